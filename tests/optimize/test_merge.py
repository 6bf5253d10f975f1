"""Merging: equal blocks become one."""

from __future__ import annotations

import pytest
from graphs import evaluate, graph_of, random_graphs, random_inputs

from pcapext.cfg import Block, Cfg, Goto
from pcapext.optimize.merge import merge

GRAPHS = [
    (
        "equal ends",
        "0: length gt 5 ? 1 : 2\n1: length gt 9 ? 3 : 4\n3: return 1\n4: return 0\n2: return 0",
        "0: length gt 5 ? 1 : 2\n1: length gt 9 ? 3 : 2\n3: return 1\n2: return 0",
    ),
    (
        "equal tails, from the back on",
        "0: length gt 5 ? 1 : 2\n1: A := 3; load1[0] eq A ? 3 : 4\n3: return 1\n4: return 0\n"
        "2: A := 3; load1[0] eq A ? 5 : 6\n5: return 1\n6: return 0",
        "0: length gt 5 ? 2 : 2\n2: A := 3; load1[0] eq A ? 5 : 6\n5: return 1\n6: return 0",
    ),
    (
        "blocks that only jump on",
        "0: length gt 5 ? 1 : 2\n1: goto 3\n3: goto 4\n4: A := length; A gt 7 ? 5 : 2\n5: return 1\n2: return 0",
        "0: length gt 5 ? 4 : 2\n4: A := length; A gt 7 ? 5 : 2\n5: return 1\n2: return 0",
    ),
    ("the entry too", "0: goto 1\n1: goto 2\n2: return 7", "2: return 7"),
    (
        "equal but for a local",
        "0: length gt 5 ? 1 : 2\n1: A := 3; return A\n2: X := 3; return X",
        "0: length gt 5 ? 1 : 2\n1: A := 3; return A\n2: X := 3; return X",
    ),
]


@pytest.mark.parametrize(("before", "after"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graph(before: str, after: str) -> None:
    assert str(merge(graph_of(before))) == after


def check(merged: Cfg) -> None:
    """What the head of the module says that holds afterwards."""
    blocks = list(merged.blocks.values())
    assert len({*blocks}) == len(blocks)
    for block in blocks:
        match block:
            case Block((), Goto()):
                raise AssertionError(f"only jumps on: {block}")


def test_random_graphs() -> None:
    fewer = 0
    for cfg, rng in random_graphs(350, seed=50):
        merged = merge(cfg)
        fewer += len(merged.blocks) < len(cfg.blocks)
        check(merged)
        for packet, keys in random_inputs(rng):
            wirelen = len(packet) + rng.choice((0, 40))
            assert evaluate(merged, packet, wirelen, keys) == evaluate(cfg, packet, wirelen, keys), (str(cfg), packet.hex(), keys)
    assert fewer > 60
