"""Dropping length checks that the load behind them makes needless."""

from __future__ import annotations

import pytest
from graphs import evaluate, graph_of, random_graphs, random_inputs

from pcapext.cfg import REJECT, Branch, Goto
from pcapext.optimize.bounds import drop_bounds

#: The end of each graph: a block 2 that rejects.
NEEDLESS = [
    ("the bytes behind a base", "0: (length sub thoff) ge 2 ? 1 : 9\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("further on", "0: (length sub thoff) ge 4 ? 1 : 9\n1: load2[thoff + 2] eq 80 ? 8 : 9"),
    ("the base before k took the constant in", "0: (length sub thoff) ge 4 ? 1 : 9\n1: load2[(thoff add 2)] eq 80 ? 8 : 9"),
    ("a place that is computed", "0: (length sub thoff) ge (load1[0] add 2) ? 1 : 9\n1: load2[(thoff add load1[0])] eq 80 ? 8 : 9"),
    ("with a constant in it", "0: (length sub thoff) ge (load1[0] add 5) ? 1 : 9\n1: load2[(thoff add load1[0]) + 3] eq 80 ? 8 : 9"),
    ("a sum in another order", "0: (length sub thoff) ge (2 add load1[0]) ? 1 : 9\n1: load2[(load1[0] add thoff)] eq 80 ? 8 : 9"),
    ("with a difference", "0: (length sub thoff) ge 8 ? 1 : 9\n1: load1[(thoff sub 1) + 8] eq 80 ? 8 : 9"),
    ("a constant base", "0: (length sub 14) ge 20 ? 1 : 9\n1: load4[30] eq 80 ? 8 : 9"),
    ("the base itself", "0: length ge poff ? 1 : 9\n1: load1[poff] eq 5 ? 8 : 9"),
    ("anywhere behind the base", "0: length ge poff ? 1 : 9\n1: load1[(poff add load2[0]) + 7] eq 5 ? 8 : 9"),
    ("a base that can be anything", "0: length ge lhoff ? 1 : 9\n1: load1[lhoff + 7] eq 5 ? 8 : 9"),
    ("in an assignment", "0: length ge poff ? 1 : 9\n1: A := load1[poff]; goto 8"),
    ("inside another load", "0: length ge poff ? 1 : 9\n1: return load1[load1[poff]]"),
    ("behind a jump", "0: length ge poff ? 1 : 9\n1: A := 3; goto 2\n2: return load1[poff]"),
]
NEEDED = [
    ("no load", "0: (length sub thoff) ge 2 ? 1 : 9\n1: length eq 80 ? 8 : 9"),
    ("a load elsewhere", "0: (length sub thoff) ge 2 ? 1 : 9\n1: load2[nhoff] eq 80 ? 8 : 9"),
    ("a load that ends before", "0: (length sub thoff) ge 4 ? 1 : 9\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("a load that ends behind", "0: (length sub thoff) ge 1 ? 1 : 9\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("a load before the base", "0: length ge thoff ? 1 : 9\n1: load2[(thoff sub 2)] eq 80 ? 8 : 9"),
    ("a failure that does not reject", "0: (length sub thoff) ge 2 ? 1 : 8\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("a value that is added once more", "0: (length sub thoff) ge 2 ? 1 : 9\n1: load2[(thoff add thoff)] eq 80 ? 8 : 9"),
    ("the other way round", "0: (length sub thoff) ge 2 ? 9 : 1\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("another test", "0: (length sub thoff) gt 2 ? 1 : 9\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("a load behind another test", "0: length ge poff ? 1 : 9\n1: length ge 40 ? 2 : 9\n2: return load1[poff]"),
    ("a place that wraps around", "0: (length sub thoff) ge (load4[0] add 2) ? 1 : 9\n1: load2[(thoff add load4[0])] eq 80 ? 8 : 9"),
    ("a base that wraps around", "0: length ge lhoff ? 1 : 9\n1: load1[(lhoff add 7)] eq 5 ? 8 : 9"),
    ("one of two that wraps around", "0: length ge poff ? 1 : 9\n1: load1[(poff add load4[0])] eq 5 ? 8 : 9"),
    ("a local that is assigned between", "0: A := length; length ge A ? 1 : 9\n1: A := 3; load1[A] eq 5 ? 8 : 9"),
]
ENDS = "\n8: return 1\n9: return 0"


@pytest.mark.parametrize("graph", [case[1] for case in NEEDLESS], ids=[case[0] for case in NEEDLESS])
def test_needless(graph: str) -> None:
    cfg = graph_of(graph + ENDS)
    assert drop_bounds(cfg).blocks[0].end == Goto(1)


@pytest.mark.parametrize("graph", [case[1] for case in NEEDED], ids=[case[0] for case in NEEDED])
def test_needed(graph: str) -> None:
    cfg = graph_of(graph + ENDS)
    assert drop_bounds(cfg) == cfg


def test_a_chain_goes_at_once() -> None:
    checks = "\n".join(f"{label}: (length sub thoff) ge {label + 1} ? {label + 1} : 99" for label in range(40))
    loads = " add ".join(f"(load1[thoff + {offset}]" for offset in range(40)) + " add 0" + ")" * 40
    dropped = drop_bounds(graph_of(f"{checks}\n40: return {loads}\n99: return 0"))
    assert not any(isinstance(block.end, Branch) for block in dropped.blocks.values())


def test_random_graphs() -> None:
    """On packets captured whole."""
    dropped = 0
    for cfg, rng in random_graphs(500, seed=60):
        after = drop_bounds(cfg)
        dropped += sum(isinstance(after.blocks[label].end, Goto) and isinstance(cfg.blocks[label].end, Branch) for label in after.labels)
        for packet, keys in random_inputs(rng):
            assert evaluate(after, packet, None, keys) == evaluate(cfg, packet, None, keys), (str(cfg), packet.hex(), keys)
    assert dropped > 60


def test_random_graphs_on_packets_cut_short() -> None:
    """There it may reject what was accepted, and nothing else changes."""
    for cfg, rng in random_graphs(300, seed=61):
        after = drop_bounds(cfg)
        for packet, keys in random_inputs(rng):
            wirelen = len(packet) + 40
            assert evaluate(after, packet, wirelen, keys) in (0, evaluate(cfg, packet, wirelen, keys)), (str(cfg), packet.hex(), keys)


def test_only_checks_that_reject_go() -> None:
    for cfg, _ in random_graphs(300, seed=62):
        after = drop_bounds(cfg)
        for label in after.labels:
            if after.blocks[label] != cfg.blocks[label]:
                assert cfg.blocks[cfg.blocks[label].targets[1]] == REJECT
                assert after.blocks[label].targets == cfg.blocks[label].targets[:1]
