"""Joining: blocks that always follow each other become one."""

from __future__ import annotations

import pytest
from graphs import evaluate, graph_of, random_graphs, random_inputs

from pcapext.cfg import Block, Goto, Return
from pcapext.optimize.join import join

GRAPHS = [
    ("a chain", "0: A := load1[0]; goto 1\n1: X := A; goto 2\n2: return (A add X)", "0: A := load1[0]; X := A; return (A add X)"),
    (
        "a chain that ends in a test",
        "0: A := load1[0]; goto 1\n1: A gt 3 ? 2 : 3\n2: return 1\n3: return 0",
        "0: A := load1[0]; A gt 3 ? 2 : 3\n2: return 1\n3: return 0",
    ),
    (
        "not a block with two ways to it",
        "0: length gt 5 ? 1 : 2\n1: A := 3; goto 3\n2: A := 4; goto 3\n3: X := A; return X",
        "0: length gt 5 ? 1 : 2\n1: A := 3; goto 3\n2: A := 4; goto 3\n3: X := A; return X",
    ),
    (
        "but an end is as short as the jump",
        "0: length gt 5 ? 1 : 2\n1: A := 3; goto 3\n2: A := 4; goto 3\n3: return 9",
        "0: length gt 5 ? 1 : 2\n1: A := 3; return 9\n2: A := 4; return 9",
    ),
    (
        "one behind the other, to the end",
        "0: length gt 5 ? 1 : 2\n1: A := 3; goto 3\n3: goto 4\n4: X := A; return X\n2: return 0",
        "0: length gt 5 ? 1 : 2\n1: A := 3; X := A; return X\n2: return 0",
    ),
]


@pytest.mark.parametrize(("before", "after"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graph(before: str, after: str) -> None:
    assert str(join(graph_of(before))) == after


def test_random_graphs() -> None:
    fewer = 0
    for cfg, rng in random_graphs(350, seed=51):
        joined = join(cfg)
        fewer += len(joined.blocks) < len(cfg.blocks)
        for block in joined.blocks.values():
            match block:
                case Block(_, Goto(target)):
                    assert len(joined.predecessors[target]) > 1, str(joined)
                    assert not isinstance(joined.blocks[target].end, Return) or joined.blocks[target].assignments, str(joined)
        for packet, keys in random_inputs(rng):
            wirelen = len(packet) + rng.choice((0, 40))
            assert evaluate(joined, packet, wirelen, keys) == evaluate(cfg, packet, wirelen, keys), (str(cfg), packet.hex(), keys)
    assert fewer > 60
