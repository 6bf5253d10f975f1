"""Propagating: locals whose value is known are replaced by it."""

from __future__ import annotations

import pytest
from graphs import evaluate, graph_of, random_graphs, random_inputs, value_of, values_in

from pcapext.cfg import Cfg, Local, parts
from pcapext.optimize.propagate import is_cheap, propagate

GRAPHS = [
    (
        "in the same block and later ones",
        "0: A := load2[12]; A eq 5 ? 1 : 2\n1: A gt length ? 3 : 2\n3: return 1\n2: return 0",
        "0: A := load2[12]; load2[12] eq 5 ? 1 : 2\n1: load2[12] gt length ? 3 : 2\n3: return 1\n2: return 0",
    ),
    ("a constant", "0: A := 5; return (A add A)", "0: A := 5; return (5 add 5)"),
    ("a key", "0: A := thoff; return load1[A + 3]", "0: A := thoff; return load1[thoff + 3]"),
    (
        "the header length",
        "0: X := ((load1[14] and 15) lsh 2); return (X add X)",
        "0: X := ((load1[14] and 15) lsh 2); return (((load1[14] and 15) lsh 2) add ((load1[14] and 15) lsh 2))",
    ),
    (
        "one through another",
        "0: A := load1[0]; X := A; return (X add A)",
        "0: A := load1[0]; X := load1[0]; return (load1[0] add load1[0])",
    ),
    ("not what costs more and is read twice", "0: A := (length sub 5); return (A mul A)", "0: A := (length sub 5); return (A mul A)"),
    ("but what is read once", "0: A := (length sub 5); return (A mul 3)", "0: A := (length sub 5); return ((length sub 5) mul 3)"),
    (
        "not what is made of locals that stay",
        "0: A := (length sub 5); X := (A mul 2); return (A mul X)",
        "0: A := (length sub 5); X := (A mul 2); return (A mul X)",
    ),
    (
        "but a local and a constant",
        "0: A := (length sub 5); X := (A add 14); return load1[(X add A) + 2]",
        "0: A := (length sub 5); X := (A add 14); return load1[((A add 14) add A) + 2]",
    ),
    (
        "not once that local is assigned again",
        "0: A := (length sub 5); X := (A add 14); A := load1[0]; return (X mul A)",
        "0: A := (length sub 5); X := (A add 14); A := load1[0]; return (X mul load1[0])",
    ),
    (
        "a copy of a local",
        "0: A := (length sub 5); X := A; length gt 5 ? 1 : 2\n1: return (X mul A)\n2: A := (A mul A); return (X mul A)",
        "0: A := (length sub 5); X := A; length gt 5 ? 1 : 2\n1: return (A mul A)\n2: A := (A mul A); return (X mul A)",
    ),
    (
        "the value before a local is assigned again",
        "0: A := 5; X := A; A := 6; return (A add X)",
        "0: A := 5; X := 5; A := 6; return (6 add 5)",
    ),
    ("a local in its own new value", "0: A := 5; A := (A add 1); return A", "0: A := 5; A := 6; return A"),
    (
        "a local of which the new value is not known",
        "0: A := length; A := (A sub load1[0]); return (A mul A)",
        "0: A := length; A := (length sub load1[0]); return (A mul A)",
    ),
    (
        "what all ways agree on",
        "0: length gt 5 ? 1 : 2\n1: A := 7; goto 3\n2: A := 7; goto 3\n3: return (A add A)",
        "0: length gt 5 ? 1 : 2\n1: A := 7; goto 3\n2: A := 7; goto 3\n3: return (7 add 7)",
    ),
    (
        "not what they do not agree on",
        "0: length gt 5 ? 1 : 2\n1: A := 7; goto 3\n2: A := 8; goto 3\n3: return (A add A)",
        "0: length gt 5 ? 1 : 2\n1: A := 7; goto 3\n2: A := 8; goto 3\n3: return (A add A)",
    ),
    (
        "nor what one of them changes",
        "0: A := 7; length gt 5 ? 1 : 2\n1: A := (length div load1[0]); goto 2\n2: return (A add A)",
        "0: A := 7; length gt 5 ? 1 : 2\n1: A := (length div load1[0]); goto 2\n2: return (A add A)",
    ),
]


@pytest.mark.parametrize(("before", "after"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graph(before: str, after: str) -> None:
    assert str(propagate(graph_of(before))) == after


@pytest.mark.parametrize(
    "text", ["5", "length", "poff", "ancillary4[0xfffff004]", "load2[12]", "((load1[14] and 15) lsh 2)", "A", "(A add 14)"]
)
def test_is_cheap(text: str) -> None:
    assert is_cheap(value_of(text))


@pytest.mark.parametrize(
    "text",
    [
        "load2[A]",
        "(length add 1)",
        "(A sub 1)",
        "(A add X)",
        "((load1[A] and 15) lsh 2)",
        "((load1[14] and 7) lsh 2)",
        "((load1[14] and 15) lsh 1)",
    ],
)
def test_is_not_cheap(text: str) -> None:
    assert not is_cheap(value_of(text))


def reads(cfg: Cfg) -> int:
    return sum(isinstance(part, Local) for value in values_in(cfg) for part in parts(value))


def test_random_graphs() -> None:
    fewer = 0
    for cfg, rng in random_graphs(400, seed=30):
        propagated = propagate(cfg)
        assert propagated.labels == cfg.labels
        assert reads(propagated) <= reads(cfg)
        fewer += reads(propagated) < reads(cfg)
        for packet, keys in random_inputs(rng):
            wirelen = len(packet) + rng.choice((0, 40))
            assert evaluate(propagated, packet, wirelen, keys) == evaluate(cfg, packet, wirelen, keys), (str(cfg), packet.hex(), keys)
    assert fewer > 100
