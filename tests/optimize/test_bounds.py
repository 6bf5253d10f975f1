"""Dropping length checks that the load behind them makes needless."""

from __future__ import annotations

import pytest
from graphs import evaluate, graph_of, random_graphs, random_inputs

from pcapext.cfg import REJECT, VOID, Block, Branch, Cfg, Comparison, Goto, Length, Local, Value, parts, rewrite, rewrite_end
from pcapext.optimize.bounds import drop_bounds

#: The end of each graph: a block 2 that rejects.
NEEDLESS = [
    ("the bytes behind a base", "0: (length sub thoff) ge 2 ? 1 : 9\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("further on", "0: (length sub thoff) ge 4 ? 1 : 9\n1: load2[thoff + 2] eq 80 ? 8 : 9"),
    ("the base before k took the constant in", "0: (length sub thoff) ge 4 ? 1 : 9\n1: load2[(thoff add 2)] eq 80 ? 8 : 9"),
    ("a place that is computed", "0: (length sub thoff) ge (load1[0] add 2) ? 1 : 9\n1: load2[(thoff add load1[0])] eq 80 ? 8 : 9"),
    ("with a constant in it", "0: (length sub thoff) ge (load1[0] add 5) ? 1 : 9\n1: load2[(thoff add load1[0]) + 3] eq 80 ? 8 : 9"),
    ("a value that is added once more", "0: (length sub thoff) ge 2 ? 1 : 9\n1: load2[(thoff add thoff)] eq 80 ? 8 : 9"),
    ("a constant base", "0: (length sub 14) ge 20 ? 1 : 9\n1: load4[30] eq 80 ? 8 : 9"),
    ("the base itself", "0: length ge poff ? 1 : 9\n1: load1[poff] eq 5 ? 8 : 9"),
    ("anywhere behind the base", "0: length ge poff ? 1 : 9\n1: load1[(poff add load2[0]) + 7] eq 5 ? 8 : 9"),
    ("a base that can be anything", "0: length ge lhoff ? 1 : 9\n1: load1[lhoff + 7] eq 5 ? 8 : 9"),
    ("in an assignment", "0: length ge poff ? 1 : 9\n1: A := load1[poff]; goto 8"),
    ("inside another load", "0: length ge poff ? 1 : 9\n1: return load1[load1[poff]]"),
    ("a load that ends behind", "0: (length sub thoff) ge 1 ? 1 : 9\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("a load behind another test", "0: length ge poff ? 1 : 9\n1: length ge 40 ? 2 : 9\n2: return load1[poff]"),
    ("loads on both ways", "0: length ge poff ? 1 : 9\n1: length ge 40 ? 2 : 3\n2: return load1[poff]\n3: load2[poff] eq 5 ? 8 : 9"),
    ("a load of which one outcome accepts", "0: length ge poff ? 1 : 9\n1: load2[poff] eq 5 ? 8 : 7\n7: return 2"),
    ("behind a base that moves", "0: length ge (L add 8) ? 1 : 9\n1: L := (L add 4); return load1[L + 3]"),
    ("behind a new base", "0: length ge (poff add 8) ? 1 : 9\n1: L := (poff add 4); return load1[L + 3]"),
    ("a constant place", "0: length ge 34 ? 1 : 9\n1: L := 14; return load4[L + 16]"),
    ("behind a jump", "0: length ge poff ? 1 : 9\n1: A := 3; goto 2\n2: return load1[poff]"),
]
NEEDED = [
    ("no load", "0: (length sub thoff) ge 2 ? 1 : 9\n1: length eq 80 ? 8 : 9"),
    ("a load elsewhere", "0: (length sub thoff) ge 2 ? 1 : 9\n1: load2[nhoff] eq 80 ? 8 : 9"),
    ("a load that ends before", "0: (length sub thoff) ge 4 ? 1 : 9\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("a load before the base", "0: length ge thoff ? 1 : 9\n1: load2[(thoff sub 2)] eq 80 ? 8 : 9"),
    ("a failure that does not reject", "0: (length sub thoff) ge 2 ? 1 : 8\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("the other way round", "0: (length sub thoff) ge 2 ? 9 : 1\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("another test", "0: (length sub thoff) gt 2 ? 1 : 9\n1: load2[thoff] eq 80 ? 8 : 9"),
    ("a load on one way of two", "0: length ge poff ? 1 : 9\n1: length ge 40 ? 2 : 8\n2: return load1[poff]"),
    (
        "a load on both ways, one too short",
        "0: (length sub poff) ge 2 ? 1 : 9\n1: length ge 40 ? 2 : 3\n2: return load1[poff]\n3: load2[poff] eq 5 ? 8 : 9",
    ),
    ("a base that moves too far back", "0: length ge (L add 8) ? 1 : 9\n1: L := (L add 4); return load1[L + 2]"),
    ("a base that may wrap around when it moves", "0: length ge (M add 8) ? 1 : 9\n1: M := (M add 4); return load1[M + 3]"),
    ("a place that wraps around", "0: (length sub thoff) ge (load4[0] add 2) ? 1 : 9\n1: load2[(thoff add load4[0])] eq 80 ? 8 : 9"),
    ("a base that wraps around", "0: length ge lhoff ? 1 : 9\n1: load1[(lhoff add 7)] eq 5 ? 8 : 9"),
    ("one of two that wraps around", "0: length ge poff ? 1 : 9\n1: load1[(poff add load4[0])] eq 5 ? 8 : 9"),
    ("a local that is assigned between", "0: A := length; length ge A ? 1 : 9\n1: A := 3; load1[A] eq 5 ? 8 : 9"),
]
ENDS = "\n8: return 1\n9: return 0"


def graph(text: str) -> Cfg:
    """A graph of which the local L is a place in a packet, and M can be any number."""

    def small(value: Value) -> Value:
        return SMALL if value == Local("L") else value

    cfg = graph_of(text + ENDS)
    blocks = {
        label: Block(
            tuple((SMALL if local == Local("L") else local, rewrite(value, small)) for local, value in block.assignments),
            rewrite_end(block.end, small),
        )
        for label, block in cfg.blocks.items()
    }
    return Cfg(cfg.entry, blocks)


SMALL = Local("L", 0xFFFF)


@pytest.mark.parametrize("text", [case[1] for case in NEEDLESS], ids=[case[0] for case in NEEDLESS])
def test_needless(text: str) -> None:
    cfg = graph(text)
    assert drop_bounds(cfg).blocks[0].end == Goto(1)


@pytest.mark.parametrize("text", [case[1] for case in NEEDED], ids=[case[0] for case in NEEDED])
def test_needed(text: str) -> None:
    cfg = graph(text)
    assert drop_bounds(cfg) == cfg


#: What else goes: the graph before, and what its blocks but for the ends are after. Places of L as above.
GRAPHS = [
    (
        "a check that must hold since a load before it reached as far",
        "0: load2[thoff + 2] eq 80 ? 1 : 8\n1: (length sub thoff) ge 4 ? 2 : 3\n2: return 5\n3: return 6",
        "0: load2[thoff + 2] eq 80 ? 1 : 8\n1: goto 2\n2: return 5",
    ),
    (
        "but not one byte more",
        "0: load2[thoff + 2] eq 80 ? 1 : 8\n1: (length sub thoff) ge 5 ? 2 : 3\n2: return 5\n3: return 6",
        "0: load2[thoff + 2] eq 80 ? 1 : 8\n1: (length sub thoff) ge 5 ? 2 : 3\n2: return 5\n3: return 6",
    ),
    (
        "on both ways to it",
        "0: length gt 9 ? 1 : 2\n1: A := load1[30]; goto 3\n2: A := load4[27]; goto 3\n3: length ge 31 ? 4 : 5\n4: return 5\n5: return A",
        "0: length gt 9 ? 1 : 2\n1: A := load1[30]; goto 3\n2: A := load4[27]; goto 3\n3: goto 4\n4: return 5",
    ),
    (
        "not on one way only",
        "0: length gt 9 ? 1 : 2\n1: A := load1[30]; goto 3\n2: A := 3; goto 3\n3: length ge 31 ? 4 : 5\n4: return 5\n5: return A",
        "0: length gt 9 ? 1 : 2\n1: A := load1[30]; goto 3\n2: A := 3; goto 3\n3: length ge 31 ? 4 : 5\n4: return 5\n5: return A",
    ),
    (
        "when the base moved since",
        "0: load1[L + 9] eq 1 ? 1 : 8\n1: L := (L add 4); (length sub L) ge 6 ? 2 : 3\n2: return L\n3: return 6",
        "0: load1[L + 9] eq 1 ? 1 : 8\n1: L := (L add 4); goto 2\n2: return L",
    ),
    (
        "but not over what it reached",
        "0: load1[L + 9] eq 1 ? 1 : 8\n1: L := (L add 4); (length sub L) ge 7 ? 2 : 3\n2: return L\n3: return 6",
        "0: load1[L + 9] eq 1 ? 1 : 8\n1: L := (L add 4); (length sub L) ge 7 ? 2 : 3\n2: return L\n3: return 6",
    ),
    (
        "nor when the base became another",
        "0: load1[L + 9] eq 1 ? 1 : 8\n1: L := load1[3]; (length sub L) ge 6 ? 2 : 3\n2: return L\n3: return 6",
        "0: load1[L + 9] eq 1 ? 1 : 8\n1: L := load1[3]; (length sub L) ge 6 ? 2 : 3\n2: return L\n3: return 6",
    ),
    (
        "an earlier check of the length is no load: the packet can be cut",
        "0: length ge 40 ? 1 : 8\n1: void := load1[39]; goto 8",
        "0: length ge 40 ? 1 : 8\n1: void := load1[39]; goto 8",
    ),
    ("a load for nothing, behind one", "0: A := load2[12]; void := load1[13]; return A", "0: A := load2[12]; return A"),
    ("not if it reaches farther", "0: A := load2[12]; void := load1[14]; return A", "0: A := load2[12]; void := load1[14]; return A"),
    (
        "not one whose offset cannot be told",
        "0: A := load2[12]; void := load1[load1[0]]; return A",
        "0: A := load2[12]; void := load1[load1[0]]; return A",
    ),
    (
        "not a division",
        "0: A := load2[12]; void := (length div load1[0]); return A",
        "0: A := load2[12]; void := (length div load1[0]); return A",
    ),
    ("a load for nothing, before one", "0: void := load1[poff]; return load1[poff + 2]", "0: return load1[poff + 2]"),
    (
        "and before ways to acceptance that load",
        "0: void := load1[poff]; length eq 60 ? 1 : 2\n1: return load1[poff]\n2: load2[poff + 3] eq 6 ? 8 : 9",
        "0: length eq 60 ? 1 : 2\n1: return load1[poff]\n2: load2[poff + 3] eq 6 ? 8 : 9",
    ),
    (
        "but not before one that does not",
        "0: void := load1[poff]; length eq 60 ? 1 : 2\n1: return load1[poff]\n2: length eq 61 ? 8 : 9",
        "0: void := load1[poff]; length eq 60 ? 1 : 2\n1: return load1[poff]\n2: length eq 61 ? 8 : 9",
    ),
    (
        "a test with one target whose loads cannot fail",
        "0: A := load2[12]; load1[13] eq 5 ? 1 : 1\n1: return A",
        "0: A := load2[12]; goto 1\n1: return A",
    ),
    ("not if they can", "0: A := load2[12]; load1[14] eq 5 ? 1 : 1\n1: return A", "0: A := load2[12]; load1[14] eq 5 ? 1 : 1\n1: return A"),
    (
        "ways that all reject",
        "0: length eq 60 ? 1 : 8\n1: A := load1[0]; A eq 6 ? 2 : 9\n2: void := load1[A]; return 0",
        "0: length eq 60 ? 1 : 8\n1: return 0",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graph(before: str, after: str) -> None:
    ends = ENDS.strip().splitlines()
    assert [line for line in str(drop_bounds(graph(before))).splitlines() if line not in ends] == after.splitlines()


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


def test_nothing_else_goes() -> None:
    """Loads for nothing, tests of the length, tests with one target, and what can only reject; all else stays as it is."""
    changed = 0
    for cfg, _ in random_graphs(300, seed=62):
        after = drop_bounds(cfg)
        accepting = can_accept(cfg)
        for label in after.labels:
            old, new = cfg.blocks[label], after.blocks[label]
            if old == new:
                continue
            changed += 1
            if new == REJECT and not accepting[label]:
                continue
            assert [pair for pair in new.assignments if pair[0] != VOID] == [pair for pair in old.assignments if pair[0] != VOID]
            assert {pair for pair in new.assignments if pair[0] == VOID} <= {pair for pair in old.assignments if pair[0] == VOID}
            if new.end != old.end:
                assert isinstance(old.end, Branch)
                assert new.end == Goto(old.end.then)
                test = old.end.test
                checks_length = test.comparison is Comparison.GE and Length() in parts(test.left)
                assert checks_length or old.end.then == old.end.otherwise
    assert changed > 50


def can_accept(cfg: Cfg) -> dict[int, bool]:
    """Whether a way leads from a block to a `return` that is not always of 0."""
    found: dict[int, bool] = {}
    for label in reversed(cfg.labels):
        block = cfg.blocks[label]
        found[label] = block.end != REJECT.end if not block.targets else any(found[target] for target in block.targets)
    return found
