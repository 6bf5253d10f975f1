"""Removing dead assignments: what is left is read, or can reject the packet."""

from __future__ import annotations

import pytest
from graphs import evaluate, graph_of, random_graphs, random_inputs

from pcapext.cfg import VOID, liveness, loads_of, locals_of
from pcapext.optimize.dead import remove_dead

GRAPHS = [
    ("nobody reads it", "0: A := length; return 1", "0: return 1"),
    ("somebody does, later", "0: A := length; goto 1\n1: return A", "0: A := length; goto 1\n1: return A"),
    ("it is assigned again", "0: A := length; A := 5; return A", "0: A := 5; return A"),
    (
        "on one way only",
        "0: A := length; X := 3; A gt 5 ? 1 : 2\n1: return X\n2: return 0",
        "0: A := length; X := 3; A gt 5 ? 1 : 2\n1: return X\n2: return 0",
    ),
    ("dead by what is dead", "0: A := length; X := (A add 1); M := (X add A); return 1", "0: return 1"),
    ("it can reject", "0: A := load1[0]; return 1", "0: void := load1[0]; return 1"),
    ("so can a division", "0: A := (5 div length); return 1", "0: void := (5 div length); return 1"),
    ("but not by a number", "0: A := (length div 5); return 1", "0: return 1"),
    ("so can an ancillary word", "0: A := ancillary2[0xfffff02c]; return 1", "0: void := ancillary2[0xfffff02c]; return 1"),
    ("only what can reject is left", "0: A := ((load1[0] add length) mul 3); return 1", "0: void := load1[0]; return 1"),
    ("a load in a load is done with it", "0: A := load1[(load1[0] and 15)]; return 1", "0: void := load1[(load1[0] and 15)]; return 1"),
    (
        "in the order of the value",
        "0: A := (load1[3] sub (load2[5] sub load4[1])); return 1",
        "0: void := load4[1]; void := load2[5]; void := load1[3]; return 1",
    ),
    (
        "the block does it anyway",
        "0: A := load1[0]; load1[0] eq 5 ? 1 : 2\n1: return 1\n2: return 0",
        "0: load1[0] eq 5 ? 1 : 2\n1: return 1\n2: return 0",
    ),
    ("inside another load", "0: A := load1[0]; return load1[load1[0] + 2]", "0: return load1[load1[0] + 2]"),
    ("in a later assignment", "0: void := load1[0]; A := load1[0]; goto 1\n1: return A", "0: A := load1[0]; goto 1\n1: return A"),
    ("twice", "0: void := load1[0]; void := load1[0]; return 1", "0: void := load1[0]; return 1"),
    ("not in the next block", "0: A := load1[0]; goto 1\n1: return load1[0]", "0: void := load1[0]; goto 1\n1: return load1[0]"),
    (
        "with another value of the local",
        "0: A := load1[0]; void := load1[A]; A := 2; return load1[A]",
        "0: A := load1[0]; void := load1[A]; A := 2; return load1[A]",
    ),
    (
        "the local that a kept load reads is kept",
        "0: A := load1[0]; X := load1[A]; return 1",
        "0: A := load1[0]; void := load1[A]; return 1",
    ),
]


@pytest.mark.parametrize(("before", "after"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graph(before: str, after: str) -> None:
    assert str(remove_dead(graph_of(before))) == after


def test_random_graphs() -> None:
    fewer = 0
    for cfg, rng in random_graphs(350, seed=40):
        left = remove_dead(cfg)
        fewer += left != cfg
        assert left.labels == cfg.labels
        assert remove_dead(left) == left
        after = liveness(left)
        for label, block in left.blocks.items():
            for index, (local, value) in enumerate(block.assignments):
                read_later = any(local in locals_of(later) for later in block.values[index + 1 :]) or local in after[label]
                assert loads_of(value) if local == VOID else read_later, (str(cfg), str(left))
        for packet, keys in random_inputs(rng):
            wirelen = len(packet) + rng.choice((0, 40))
            assert evaluate(left, packet, wirelen, keys) == evaluate(cfg, packet, wirelen, keys), (str(cfg), packet.hex(), keys)
    assert fewer > 200
