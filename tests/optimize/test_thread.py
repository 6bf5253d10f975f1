"""Threading jumps: a test whose outcome is known is not asked again."""

from __future__ import annotations

from random import Random

import pytest
from graphs import NUMBERS, compare, condition_of, evaluate, graph_of, random_graphs, random_inputs

from pcapext.cfg import Branch, Cfg, Comparison, Const, Length, Test
from pcapext.optimize.thread import Known, decide, thread_jumps

ENDS = "\n8: return 1\n9: return 0"
GRAPHS = [
    (
        "the same test, where it holds",
        "0: A := 1; length gt 60 ? 1 : 9\n1: A := 2; length gt 60 ? 8 : 9",
        "0: A := 1; length gt 60 ? 1 : 9\n1: A := 2; goto 8",
    ),
    (
        "the same test, where it does not hold",
        "0: length gt 60 ? 8 : 1\n1: A := 2; length gt 60 ? 8 : 9",
        "0: length gt 60 ? 8 : 1\n1: A := 2; goto 9",
    ),
    (
        "an empty block is passed by the jump",
        "0: length gt 60 ? 1 : 9\n1: length gt 60 ? 2 : 9\n2: A := 1; goto 8",
        "0: length gt 60 ? 2 : 9\n2: A := 1; goto 8",
    ),
    (
        "another number",
        "0: tproto eq 6 ? 1 : 2\n1: tproto eq 17 ? 8 : 9\n2: tproto eq 17 ? 8 : 9",
        "0: tproto eq 6 ? 9 : 2\n2: tproto eq 17 ? 8 : 9",
    ),
    ("not another value", "0: tproto eq 6 ? 1 : 9\n1: nproto eq 6 ? 8 : 9", "0: tproto eq 6 ? 1 : 9\n1: nproto eq 6 ? 8 : 9"),
    (
        "not a value with locals",
        "0: A := length; A eq 6 ? 1 : 9\n1: A := poff; A eq 6 ? 8 : 9",
        "0: A := length; A eq 6 ? 1 : 9\n1: A := poff; A eq 6 ? 8 : 9",
    ),
    (
        "one way into a join",
        "0: tproto eq 6 ? 1 : 2\n1: A := 1; goto 3\n2: A := 2; goto 3\n3: tproto eq 6 ? 4 : 9\n4: return A",
        "0: tproto eq 6 ? 1 : 2\n1: A := 1; goto 4\n2: A := 2; goto 9\n4: return A",
    ),
    (
        "but a join with assignments has to agree",
        "0: tproto eq 6 ? 1 : 2\n1: A := 1; goto 3\n2: A := 2; goto 3\n3: A := (A add 1); tproto eq 6 ? 8 : 9",
        "0: tproto eq 6 ? 1 : 2\n1: A := 1; goto 3\n2: A := 2; goto 3\n3: A := (A add 1); tproto eq 6 ? 8 : 9",
    ),
    (
        "as these ways do",
        "0: tproto gt 6 ? 1 : 9\n1: length eq 3 ? 2 : 3\n2: A := 1; goto 4\n3: A := 2; goto 4\n4: A := (A add 1); tproto ge 7 ? 8 : 9",
        "0: tproto gt 6 ? 1 : 9\n1: length eq 3 ? 2 : 3\n2: A := 1; goto 4\n3: A := 2; goto 4\n4: A := (A add 1); goto 8",
    ),
    (
        "a few numbers",
        "0: tproto eq 6 ? 2 : 1\n1: tproto eq 17 ? 2 : 9\n2: A := 5; tproto eq 6 ? 3 : 4\n3: A := 6; goto 8\n4: tproto eq 17 ? 8 : 9",
        "0: tproto eq 6 ? 2 : 1\n1: tproto eq 17 ? 2 : 9\n2: A := 5; tproto eq 6 ? 3 : 8\n3: A := 6; goto 8",
    ),
    ("a test of bits", "0: load1[13] set 2 ? 1 : 9\n1: A := 1; load1[13] set 2 ? 8 : 9", "0: load1[13] set 2 ? 1 : 9\n1: A := 1; goto 8"),
    (
        "a test of two values",
        "0: length gt poff ? 1 : 9\n1: A := 1; length gt poff ? 8 : 9",
        "0: length gt poff ? 1 : 9\n1: A := 1; goto 8",
    ),
    (
        "but not the other way round",
        "0: length gt poff ? 1 : 9\n1: poff gt length ? 8 : 9",
        "0: length gt poff ? 1 : 9\n1: poff gt length ? 8 : 9",
    ),
    (
        "a local that is assigned a number",
        "0: length gt 60 ? 1 : 2\n1: A := 6; goto 3\n2: A := 17; goto 3\n3: A eq 6 ? 8 : 4\n4: A eq 17 ? 7 : 9\n7: return 2",
        "0: length gt 60 ? 1 : 2\n1: A := 6; goto 8\n2: A := 17; goto 7\n7: return 2",
    ),
    (
        "a local on some ways only",
        "0: length gt 60 ? 1 : 2\n1: A := 6; goto 3\n2: A := tproto; goto 3\n3: A eq 6 ? 8 : 9",
        "0: length gt 60 ? 1 : 2\n1: A := 6; goto 8\n2: A := tproto; goto 3\n3: A eq 6 ? 8 : 9",
    ),
    (
        "a local, until it is assigned again",
        "0: A := 6; length gt 60 ? 1 : 9\n1: A := (A add tproto); A eq 6 ? 8 : 9",
        "0: A := 6; length gt 60 ? 1 : 9\n1: A := (A add tproto); A eq 6 ? 8 : 9",
    ),
    (
        "a local that one of several numbers was assigned to",
        "0: length gt 60 ? 1 : 2\n1: A := 6; goto 3\n2: A := 17; goto 3\n3: X := nproto; A gt 17 ? 8 : 4\n4: A eq 6 ? 9 : 7\n7: return X",
        "0: length gt 60 ? 1 : 2\n1: A := 6; goto 3\n2: A := 17; goto 3\n3: X := nproto; goto 4\n4: A eq 6 ? 9 : 7\n7: return X",
    ),
    (
        "a test of a local that both sides told",
        "0: A := poff; A eq 6 ? 1 : 9\n1: X := 1; A eq 6 ? 7 : 8\n7: return X",
        "0: A := poff; A eq 6 ? 1 : 9\n1: X := 1; goto 7\n7: return X",
    ),
    (
        "a test whose outcomes meet",
        "0: length gt 60 ? 1 : 2\n1: nproto eq 5 ? 3 : 3\n2: A := 1; goto 8\n3: A := 2; goto 9",
        "0: length gt 60 ? 3 : 2\n2: A := 1; goto 8\n3: A := 2; goto 9",
    ),
    (
        "behind an empty block",
        "0: length gt 60 ? 1 : 2\n1: nproto eq 5 ? 3 : 4\n2: A := 1; goto 8\n3: A := 2; goto 9\n4: goto 3",
        "0: length gt 60 ? 3 : 2\n2: A := 1; goto 8\n3: A := 2; goto 9",
    ),
    (
        "behind a test whose outcome is known then",
        "0: length gt 60 ? 1 : 2\n1: tproto eq 5 ? 4 : 3\n2: A := 1; goto 8\n3: A := 2; goto 9\n4: tproto gt 5 ? 8 : 3",
        "0: length gt 60 ? 3 : 2\n2: A := 1; goto 8\n3: A := 2; goto 9",
    ),
    (
        "behind another test whose outcomes meet",
        "0: length gt 60 ? 1 : 2\n1: tproto eq 5 ? 4 : 3\n2: A := 1; goto 8\n3: A := 2; goto 9\n4: nproto gt 5 ? 3 : 3",
        "0: length gt 60 ? 3 : 2\n2: A := 1; goto 8\n3: A := 2; goto 9",
    ),
    (
        "not if they do not all meet",
        "0: length gt 60 ? 1 : 2\n1: tproto eq 5 ? 4 : 3\n2: A := 1; goto 8\n3: A := 2; goto 9\n4: nproto gt 5 ? 2 : 3",
        "0: length gt 60 ? 1 : 2\n1: tproto eq 5 ? 4 : 3\n2: A := 1; goto 8\n3: A := 2; goto 9\n4: nproto gt 5 ? 2 : 3",
    ),
    (
        "not a test that can reject the packet",
        "0: length gt 60 ? 1 : 2\n1: load1[70] eq 5 ? 3 : 3\n2: A := 1; goto 8\n3: A := 2; goto 9",
        "0: length gt 60 ? 1 : 2\n1: load1[70] eq 5 ? 3 : 3\n2: A := 1; goto 8\n3: A := 2; goto 9",
    ),
    (
        "nor past a block that assigns",
        "0: length gt 60 ? 1 : 2\n1: nproto eq 5 ? 3 : 4\n2: A := 1; goto 8\n3: A := 2; goto 9\n4: X := 2; goto 3",
        "0: length gt 60 ? 1 : 2\n1: nproto eq 5 ? 3 : 4\n2: A := 1; goto 8\n3: A := 2; goto 9\n4: X := 2; goto 3",
    ),
]


@pytest.mark.parametrize(("before", "after"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graph(before: str, after: str) -> None:
    cfg = graph_of(before + ENDS)
    expected = {line for line in (after + ENDS).splitlines() if int(line.partition(":")[0]) in thread_jumps(cfg).blocks}
    assert set(str(thread_jumps(cfg)).splitlines()) == expected
    assert set(after.splitlines()) <= expected


#: What is known, and what that says of other tests.
DECISIONS = [
    (["length eq 5"], {"length eq 5": True, "length eq 6": False, "length gt 4": True, "length set 4": True, "length set 2": False}),
    (["not length eq 5"], {"length eq 5": False, "length eq 6": None, "length gt 4": None, "length set 4": None}),
    (["length gt 5"], {"length eq 5": False, "length eq 6": None, "length gt 5": True, "length gt 6": None, "length ge 6": True}),
    (["not length gt 5"], {"length eq 5": None, "length eq 6": False, "length gt 5": False, "length ge 6": False, "length ge 5": None}),
    (["length ge 5"], {"length eq 4": False, "length gt 4": True, "length gt 5": None, "length ge 5": True, "length ge 6": None}),
    (["not length ge 5"], {"length eq 5": False, "length eq 4": None, "length gt 3": None, "length gt 4": False, "length ge 4": None}),
    (["length ge 5", "not length gt 5"], {"length eq 5": True, "length set 5": True, "length set 2": False}),
    (["length ge 5", "not length eq 5"], {"length gt 5": True, "length ge 6": True, "length gt 6": None}),
    (["not length eq 5", "not length eq 6", "length ge 5"], {"length gt 6": True, "length gt 7": None}),
    (["not length gt 6", "not length eq 6"], {"length ge 6": False, "length gt 4": None}),
    (["not length eq 0", "not length eq 1"], {"length ge 2": True, "length ge 3": None}),
    (["not length ge 1"], {"length eq 0": True}),
    (["length set 6"], {"length set 6": True, "length set 2": None, "length eq 6": None}),
    (["not length set 6"], {"length set 6": False, "length set 2": None}),
    (["length gt poff"], {"length gt poff": True, "length ge poff": None, "length gt 0": None}),
    (["not length gt 4294967294", "not length ge 4294967294"], {"length gt 4294967293": False, "length ge 4294967293": None}),
]  # fmt: skip


@pytest.mark.parametrize(("known", "decisions"), DECISIONS, ids=[" and ".join(case[0]) for case in DECISIONS])
def test_decide(known: list[str], decisions: dict[str, bool | None]) -> None:
    fact = Known()
    for text in known:
        fact = fact.with_outcome(condition_of(text.removeprefix("not ")), not text.startswith("not "))
    assert {text: decide(condition_of(text), {Length(): fact}) for text in decisions} == decisions


def test_what_is_not_known() -> None:
    assert decide(condition_of("length gt 5"), {}) is None


def told(rng: Random, number: int, near: list[int]) -> Known:
    """What a few tests tell of a number."""
    fact = Known()
    for _ in range(rng.randrange(6)):
        test = Test(rng.choice(list(Comparison)), Length(), Const(rng.choice(near)))
        fact = fact.with_outcome(test, compare(test.comparison.value, number, test.right.value))  # type: ignore[union-attr]
    return fact


def test_decisions_are_right_for_every_number() -> None:
    """What is known of a number is told by tests of it, joined with what tests tell of others: every decision must fit all."""
    decided = 0
    for seed in range(1500):
        rng = Random(f"decide {seed}")
        near = [*range(4), 0xFFFF_FFFE, 0xFFFF_FFFF] if rng.random() < 0.5 else list(NUMBERS)
        numbers = [rng.choice(near) for _ in range(rng.choice((1, 2, 3, 20)))]
        facts = [told(rng, number, near) for number in numbers]
        joined = facts[0]
        for fact in facts[1:]:
            joined = joined.common(fact)
        for comparison in Comparison:
            for right in near:
                outcome = decide(Test(comparison, Length(), Const(right)), {Length(): joined})
                if outcome is not None:
                    decided += 1
                    assert all(compare(comparison.value, number, right) == outcome for number in numbers), (
                        numbers,
                        comparison,
                        right,
                        joined,
                    )
    assert decided > 1500


def test_joining_loses_nothing_that_both_say() -> None:
    for seed in range(300):
        rng = Random(f"join {seed}")
        fact = told(rng, rng.choice(NUMBERS), list(NUMBERS))
        assert fact.common(fact) == fact
        assert fact.common(Known()) == Known() == Known().common(fact)


def branches(cfg: Cfg) -> int:
    return sum(isinstance(block.end, Branch) for block in cfg.blocks.values())


def test_random_graphs() -> None:
    fewer = 0
    for cfg, rng in random_graphs(500, seed=70):
        threaded = thread_jumps(cfg)
        fewer += branches(threaded) < branches(cfg)
        assert all(threaded.blocks[label].assignments == cfg.blocks[label].assignments for label in threaded.labels)
        for packet, keys in random_inputs(rng):
            wirelen = len(packet) + rng.choice((0, 40))
            assert evaluate(threaded, packet, wirelen, keys) == evaluate(cfg, packet, wirelen, keys), (str(cfg), packet.hex(), keys)
    assert fewer > 60


def test_chains_of_tests_of_one_value() -> None:
    """Random trees of tests of two keys, with little else: most of what can be known is met here."""
    fewer = 0
    for seed in range(250):
        rng = Random(f"chains {seed}")
        count = 14
        lines = []
        for label in range(count):
            left, right = rng.choice(("tproto", "tproto", "nproto", "load1[9]")), rng.choice((0, 1, 2, 3, 4, 5, "nproto"))
            then, otherwise = (rng.choice([*range(label + 1, min(label + 4, count + 1))]) for _ in range(2))
            assigned = f"A := (A add {label}); " if rng.random() < 0.4 else ""
            lines.append(f"{label}: {assigned}{left} {rng.choice(('eq', 'eq', 'gt', 'ge', 'set'))} {right} ? {then} : {otherwise}")
        lines[0] = f"0: A := 1; {lines[0][3:].replace('A := (A add 0); ', '')}"
        cfg = graph_of("\n".join([*lines, f"{count}: return A"]))
        threaded = thread_jumps(cfg)
        fewer += branches(threaded) < branches(cfg)
        for tproto in range(7):
            for nproto in range(7):
                packet, keys = bytes([0] * 9 + [tproto ^ 1]), next(random_inputs(rng, 1))[1]
                keys = type(keys)(nproto=nproto, tproto=tproto)
                assert evaluate(threaded, packet, None, keys) == evaluate(cfg, packet, None, keys), (str(cfg), keys)
    assert fewer > 120


def test_long_chains_of_empty_blocks() -> None:
    """Behind a test that is looked at ahead, and as far as it wants."""
    lines = [f"{label}: goto {label + 1}" for label in range(3, 5000)]
    cfg = graph_of("\n".join(["0: length gt 60 ? 1 : 2", "1: nproto eq 5 ? 3 : 2", "2: A := 1; return A", *lines, "5000: goto 2"]))
    assert str(thread_jumps(cfg)) == "0: length gt 60 ? 2 : 2\n2: A := 1; return A"
