"""Copying tails: what is short and leads to nothing but verdicts is written once for each jump to it."""

from __future__ import annotations

import pytest
from graphs import evaluate, graph_of, random_graphs, random_inputs

from pcapext.cfg import Branch, Cfg, Goto
from pcapext.optimize.tails import copy_tails

ENDS = "\n8: return 1\n9: return 0"
GRAPHS = [
    (
        "one test, for each jump",
        "0: length gt 60 ? 1 : 2\n1: A := 5; goto 3\n2: A := 6; goto 3\n3: A eq 5 ? 8 : 9",
        "0: length gt 60 ? 1 : 2\n1: A := 5; A eq 5 ? 8 : 9\n2: A := 6; A eq 5 ? 8 : 9",
    ),
    (
        "several, of which only the first is taken into the block",
        "0: length gt 60 ? 1 : 2\n1: A := 5; goto 3\n2: A := 6; goto 3\n3: A eq 5 ? 4 : 9\n4: nproto eq 7 ? 8 : 9",
        "0: length gt 60 ? 1 : 2\n1: A := 5; A eq 5 ? 10 : 9\n10: nproto eq 7 ? 8 : 9\n2: A := 6; A eq 5 ? 11 : 9\n11: nproto eq 7 ? 8 : 9",
    ),
    (
        "a test that two others of the tail share is copied once for both",
        "0: length gt 60 ? 1 : 2\n1: A := 5; goto 3\n2: A := 6; goto 3\n3: A eq 5 ? 4 : 5\n4: nproto eq 7 ? 8 : 5\n5: tproto eq 7 ? 8 : 9",
        "0: length gt 60 ? 1 : 2\n1: A := 5; A eq 5 ? 10 : 11\n10: nproto eq 7 ? 8 : 11\n11: tproto eq 7 ? 8 : 9\n"
        "2: A := 6; A eq 5 ? 12 : 13\n12: nproto eq 7 ? 8 : 13\n13: tproto eq 7 ? 8 : 9",
    ),
    (
        "not where a test leads: that takes no jump",
        "0: length gt 60 ? 3 : 2\n2: length gt 50 ? 3 : 9\n3: nproto eq 5 ? 8 : 9",
        "0: length gt 60 ? 3 : 2\n2: length gt 50 ? 3 : 9\n3: nproto eq 5 ? 8 : 9",
    ),
    (
        "not what assigns",
        "0: length gt 60 ? 1 : 2\n1: A := 5; goto 3\n2: A := 6; goto 3\n3: A := (A add 1); A eq 5 ? 8 : 9",
        "0: length gt 60 ? 1 : 2\n1: A := 5; goto 3\n2: A := 6; goto 3\n3: A := (A add 1); A eq 5 ? 8 : 9",
    ),
    (
        "nor what leads to that",
        "0: length gt 60 ? 1 : 2\n1: A := 5; goto 3\n2: A := 6; goto 3\n3: A eq 5 ? 8 : 4\n4: A := poff; A eq 6 ? 8 : 9",
        "0: length gt 60 ? 1 : 2\n1: A := 5; goto 3\n2: A := 6; goto 3\n3: A eq 5 ? 8 : 4\n4: A := poff; A eq 6 ? 8 : 9",
    ),
]


@pytest.mark.parametrize(("before", "after"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graph(before: str, after: str) -> None:
    cfg = copy_tails(graph_of(before + ENDS))
    assert set(str(cfg).splitlines()) == set((after + ENDS).splitlines())


@pytest.mark.parametrize(("tests", "copied"), [(4, True), (5, False)])
def test_four_tests_are_short(tests: int, copied: bool) -> None:
    tail = "\n".join(f"{label}: tproto eq {label} ? 98 : {label + 1 if label < tests + 2 else 99}" for label in range(3, tests + 3))
    cfg = graph_of(f"0: length gt 60 ? 1 : 2\n1: A := 5; goto 3\n2: A := 6; goto 3\n{tail}\n98: return A\n99: return 0")
    after = copy_tails(cfg)
    assert (after != cfg) == copied
    assert sum(isinstance(block.end, Branch) for block in after.blocks.values()) == 1 + tests * (2 if copied else 1)


def jumps(cfg: Cfg) -> int:
    return sum(isinstance(block.end, Goto) for block in cfg.blocks.values())


def test_random_graphs() -> None:
    fewer = 0
    for cfg, rng in random_graphs(600, seed=90):
        copied = copy_tails(cfg)
        fewer += jumps(copied) < jumps(cfg)
        assert all(copied.blocks[label].assignments == cfg.blocks[label].assignments for label in copied.labels if label in cfg.blocks)
        for packet, keys in random_inputs(rng):
            wirelen = len(packet) + rng.choice((0, 40))
            assert evaluate(copied, packet, wirelen, keys) == evaluate(cfg, packet, wirelen, keys), (str(cfg), packet.hex(), keys)
    assert fewer > 50
