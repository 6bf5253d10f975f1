"""Gathering: which tests come together, which must not, and that a condition of any shape keeps its verdict."""

from __future__ import annotations

from random import Random
from typing import TypeAlias

import pytest
from graphs import EFFORT, condition_of, evaluate, graph_of, random_graphs, random_inputs

from pcapext.cfg import REJECT, Block, Branch, Cfg, Const, Goto, Label, Return, show
from pcapext.flowkeys import FlowKeys
from pcapext.optimize.gather import gather

#: A test, or `or`, `and`, `not` and what they stand before.
Tree: TypeAlias = "str | tuple[Tree, ...]"


def graph(tree: Tree) -> Cfg:
    """The graph that accepts where a condition holds, as code generators write it: one block a test."""
    blocks = {0: Block((), Return(Const(1))), 1: REJECT}

    def write(tree: Tree, then: Label, otherwise: Label) -> Label:
        match tree:
            case "or", *operands:
                for operand in reversed(operands):
                    otherwise = write(operand, then, otherwise)
                return otherwise
            case "and", *operands:
                for operand in reversed(operands):
                    then = write(operand, then, otherwise)
                return then
            case "not", operand:
                return write(operand, otherwise, then)
            case str():
                label = len(blocks)
                blocks[label] = Block((), Branch(condition_of(tree), then, otherwise))
                return label
        raise ValueError(tree)

    return Cfg(write(tree, 0, 1), blocks)


def lines(cfg: Cfg) -> list[str]:
    """The tests of a graph in its order, each with a number and where it leads: on to a number, `yes` or `no`."""
    ends: dict[Label, str | Label] = {}
    for label in reversed(cfg.labels):
        match cfg.blocks[label].end:
            case Return(Const(verdict)):
                ends[label] = "yes" if verdict else "no"
            case Goto(target):
                ends[label] = ends[target]
            case _:
                ends[label] = label
    branches = {label: block.end for label, block in cfg.blocks.items() if isinstance(block.end, Branch)}
    names = {label: str(number) for number, label in enumerate(branches)}
    return [
        f"{names[label]}: {show(end.test)} ? {' : '.join(names.get(ends[way], str(ends[way])) for way in (end.then, end.otherwise))}"
        for label, end in branches.items()
    ]


def numbers(value: str, *constants: int) -> tuple[str, ...]:
    return tuple(f"{value} eq {constant}" for constant in constants)


SOURCE, DESTINATION = "load4[26]", "load4[30]"
FAR = (10, 20, 30, 40, 50)

CASES: dict[str, tuple[Tree, list[str]]] = {
    "numbers of one value, between tests of another": (
        ("or", "tproto eq 6", "depth eq 1", "tproto eq 17", "depth eq 3"),
        ["0: tproto eq 6 ? yes : 1", "1: tproto eq 17 ? yes : 2", "2: depth eq 1 ? yes : 3", "3: depth eq 3 ? yes : no"],
    ),
    "many become a set": (("or", *numbers("tproto", *FAR)), ["0: (tproto among 10 20 30 40 50) eq 1 ? yes : no"]),
    "also where none of them must be": (
        ("and", "depth eq 1", ("not", ("or", *numbers("tproto", *FAR)))),
        ["0: depth eq 1 ? 1 : no", "1: (tproto among 10 20 30 40 50) eq 1 ? no : yes"],
    ),
    "behind an alternative of other tests": (
        ("and", ("or", "depth eq 1", "nproto eq 2054"), ("or", *numbers("tproto", *FAR))),
        ["0: depth eq 1 ? 2 : 1", "1: nproto eq 2054 ? 2 : no", "2: (tproto among 10 20 30 40 50) eq 1 ? yes : no"],
    ),
    "a run is a range": (
        ("or", *numbers("tproto", 4, 6, 5), "tproto gt 6"),
        ["0: tproto ge 4 ? yes : no"],
    ),
    "masked values are ranges of the whole": (
        ("or", "(load4[0] and 0xffffff00) eq 0x0a000000", "(load4[0] and 0xffffff00) eq 0x0a000100", "load4[0] eq 0x0a000200"),
        ["0: load4[0] ge 167772160 ? 1 : no", "1: load4[0] gt 167772672 ? no : yes"],
    ),
    "but not where the mask is none of a network": (
        ("or", "(tproto and 5) eq 4", "(tproto and 5) eq 1", "tproto eq 3"),
        ["0: (tproto and 5) eq 4 ? yes : 1", "1: (tproto and 5) eq 1 ? yes : 2", "2: tproto eq 3 ? yes : no"],
    ),
    "no alternative comes before a load that may reject": (
        ("or", f"{SOURCE} eq 1", f"{DESTINATION} eq 1", f"{SOURCE} eq 5", f"{DESTINATION} eq 5"),
        [
            f"0: {SOURCE} eq 1 ? yes : 1",
            f"1: {DESTINATION} eq 1 ? yes : 2",
            f"2: {DESTINATION} eq 5 ? yes : 3",
            f"3: {SOURCE} eq 5 ? yes : no",
        ],
    ),
    "unless a load before reached as far": (
        ("and", "load1[40] eq 1", ("or", f"{SOURCE} eq 1", f"{DESTINATION} eq 1", f"{SOURCE} eq 5", f"{DESTINATION} eq 5")),
        [
            "0: load1[40] eq 1 ? 1 : no",
            f"1: {SOURCE} eq 1 ? yes : 2",
            f"2: {SOURCE} eq 5 ? yes : 3",
            f"3: {DESTINATION} eq 1 ? yes : 4",
            f"4: {DESTINATION} eq 5 ? yes : no",
        ],
    ),
    "or a check did": (
        ("or", "tproto eq 6", ("and", "(length sub nhoff) ge 20", "load4[nhoff + 16] eq 1"), "tproto eq 17"),
        [
            "0: tproto eq 6 ? yes : 1",
            "1: tproto eq 17 ? yes : 2",
            "2: (length sub nhoff) ge 20 ? 3 : no",
            "3: load4[nhoff + 16] eq 1 ? yes : no",
        ],
    ),
    "but not one of fewer bytes": (
        ("or", "tproto eq 6", ("and", "(length sub nhoff) ge 19", "load4[nhoff + 16] eq 1"), "tproto eq 17"),
        [
            "0: tproto eq 6 ? yes : 1",
            "1: (length sub nhoff) ge 19 ? 2 : 3",
            "2: load4[nhoff + 16] eq 1 ? yes : 3",
            "3: tproto eq 17 ? yes : no",
        ],
    ),
    "nor one that may wrap around": (
        ("or", "tproto eq 6", ("and", "(length sub poff) ge 20", "load4[poff + 16] eq 1"), "tproto eq 17"),
        [
            "0: tproto eq 6 ? yes : 1",
            "1: (length sub poff) ge 20 ? 2 : 3",
            "2: load4[poff + 16] eq 1 ? yes : 3",
            "3: tproto eq 17 ? yes : no",
        ],
    ),
    "nor one that the filter itself makes": (
        ("or", "tproto eq 6", ("and", "length ge 60", "load4[30] eq 1"), "tproto eq 17"),
        [
            "0: tproto eq 6 ? yes : 1",
            "1: length ge 60 ? 2 : 3",
            "2: load4[30] eq 1 ? yes : 3",
            "3: tproto eq 17 ? yes : no",
        ],
    ),
    "what stands behind the same check": (
        (
            "or",
            ("and", "(length sub nhoff) ge 20", "load4[nhoff + 16] eq 1"),
            "tproto eq 6",
            ("and", "(length sub nhoff) ge 20", "load4[nhoff + 16] eq 5"),
        ),
        [
            "0: (length sub nhoff) ge 20 ? 1 : 3",
            "1: load4[nhoff + 16] eq 1 ? yes : 2",
            "2: load4[nhoff + 16] eq 5 ? yes : 3",
            "3: tproto eq 6 ? yes : no",
        ],
    ),
    "numbers exclude each other, so that what is behind them may change places": (
        (
            "or",
            ("and", "load2[12] eq 1", "load2[20] eq 5"),
            ("and", "load2[12] eq 2", "load2[30] eq 5"),
            ("and", "load2[12] eq 1", "load2[20] eq 7"),
        ),
        [
            "0: load2[12] eq 1 ? 1 : 3",
            "1: load2[20] eq 5 ? yes : 2",
            "2: load2[20] eq 7 ? yes : 3",
            "3: load2[12] eq 2 ? 4 : no",
            "4: load2[30] eq 5 ? yes : no",
        ],
    ),
    "what it is one of several for is no obstacle": (
        (
            "or",
            ("and", ("or", *numbers("tproto", 6, 17)), "depth eq 1"),
            ("and", ("or", *numbers("tproto", 6, 17)), "depth eq 5"),
        ),
        ["0: tproto eq 6 ? 2 : 1", "1: tproto eq 17 ? 2 : no", "2: depth eq 1 ? yes : 3", "3: depth eq 5 ? yes : no"],
    ),
    "many continuations are halved": (
        ("or", *(("and", f"tproto eq {number}", f"depth gt {number}") for number in range(1, 6))),
        [
            "0: tproto ge 3 ? 1 : 7",
            *("1: tproto eq 3 ? 2 : 3", "2: depth gt 3 ? yes : no", "3: tproto eq 4 ? 4 : 5", "4: depth gt 4 ? yes : no"),
            *("5: tproto eq 5 ? 6 : no", "6: depth gt 5 ? yes : no"),
            *("7: tproto eq 1 ? 8 : 9", "8: depth gt 1 ? yes : no", "9: tproto eq 2 ? 10 : no", "10: depth gt 2 ? yes : no"),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_condition(name: str) -> None:
    tree, expected = CASES[name]
    assert lines(gather(graph(tree))) == expected


@pytest.mark.parametrize(
    "tree",
    [
        ("or", "tproto eq 6", ("and", "depth eq 1", "tproto eq 17")),
        ("and", "tproto ge 6", ("not", "tproto gt 17")),
        ("or", ("and", "nproto eq 1", "tproto eq 6"), ("and", "nproto eq 1", "depth eq 1")),
        ("or", f"{SOURCE} eq 1", f"{DESTINATION} eq 1"),
    ],
)
def test_what_is_in_order_stays(tree: Tree) -> None:
    assert gather(graph(tree)) == graph(tree)


def test_a_value_that_changes_in_between_is_another() -> None:
    cfg = graph_of("0: A := length; A eq 6 ? 8 : 1\n1: A := poff; A eq 7 ? 8 : 9\n8: return 1\n9: return 0")
    assert gather(cfg) == cfg


def test_blocks_that_others_reach_are_no_part_of_a_condition() -> None:
    cfg = graph_of(
        "0: length eq 1 ? 2 : 1\n1: tproto eq 6 ? 8 : 2\n2: depth eq 5 ? 8 : 3\n3: tproto eq 7 ? 8 : 9\n8: return 1\n9: return 0"
    )
    assert "2: depth eq 5 ? 8 : 3" in str(gather(cfg))


def random_tree(rng: Random, depth: int) -> Tree:
    if depth == 0 or rng.random() < 0.15:
        return random_alternatives(rng)
    kind = rng.choice(["or", "or", "and", "not"])
    return (kind, *(random_tree(rng, depth - 1) for _ in range(1 if kind == "not" else rng.randrange(2, 5))))


def random_alternatives(rng: Random) -> Tree:
    """A test; or a few of the shapes that lists of hosts and ports have."""
    value = rng.choice(["tproto", "load1[3]", "load1[7]", "load2[3]", "load1[nhoff + 2]", "load1[nhoff + 5]", "(load1[3] and 0xfc)"])
    test: Tree = f"{value} {rng.choice(['eq', 'eq', 'eq', 'eq', 'gt', 'ge', 'set'])} {rng.choice([0, 1, 2, 3, 4, 5, 8, 255])}"
    if rng.random() < 0.5:
        test = ("and", rng.choice(["nproto eq 1", "load1[0] eq 1", "load1[0] eq 2", ("or", "tproto eq 1", "tproto eq 2")]), test)
    if rng.random() < 0.5:
        test = ("and", rng.choice(["(length sub nhoff) ge 6", "(length sub nhoff) ge 3", "length ge 5"]), test)
    return test


def test_random_conditions() -> None:
    """Whole packets have the same verdict. One that was cut is rejected, or has the verdict of the whole."""
    changed = accepted = 0
    for seed in range(400 * EFFORT):
        rng = Random(f"conditions {seed}")
        cfg = graph(random_tree(rng, rng.choice([1, 2, 2, 3])))
        gathered = gather(cfg)
        changed += gathered != cfg
        for _ in range(20):
            packet = bytes(rng.choice([0, 1, 1, 2, 3, 4, 5, 9, 255]) for _ in range(rng.choice([0, 1, 3, 4, 7, 8, 12, 12, 12])))
            keys = FlowKeys(nhoff=rng.randrange(len(packet) + 1), nproto=rng.randrange(3), tproto=rng.randrange(6))
            verdict = evaluate(cfg, packet, None, keys)
            accepted += verdict
            assert evaluate(gathered, packet, None, keys) == verdict, (str(cfg), packet.hex(), keys)
            cut = packet[: rng.randrange(len(packet) + 1)]
            assert evaluate(gathered, cut, len(packet), keys) in (0, verdict), (str(cfg), packet.hex(), len(cut), keys)
    assert changed > 100 * EFFORT
    assert accepted > 1000 * EFFORT


def test_random_graphs() -> None:
    for cfg, rng in random_graphs(300, seed=90):
        gathered = gather(cfg)
        for packet, keys in random_inputs(rng, 8):
            assert evaluate(gathered, packet, None, keys) == evaluate(cfg, packet, None, keys), (str(cfg), packet.hex(), keys)


def test_deep_conditions() -> None:
    """`and` in `or` in `and`, deeper than Python recurses."""
    deep = [f"{number}: tproto eq {number} ? {(number + 1, 9998)[number % 2]} : {(9999, number + 1)[number % 2]}" for number in range(3000)]
    cfg = graph_of("\n".join([*deep, "3000: tproto eq 7 ? 9998 : 9999", "9998: return 1", "9999: return 0"]))
    for tproto in (0, 1, 2, 255):
        assert evaluate(gather(cfg), b"", None, FlowKeys(tproto=tproto)) == evaluate(cfg, b"", None, FlowKeys(tproto=tproto))


def test_conditions_that_begin_alike_and_part_late() -> None:
    """Each a test longer than the one before: more often to be split than Python recurses."""
    trees = [("and", *(f"load1[{place}] eq 1" for place in range(length)), f"tproto eq {length}") for length in range(1, 150)]
    for cfg in (graph(("or", *trees)), graph(("or", *(("not", tree) for tree in trees)))):
        gathered = gather(cfg)
        for tproto in (0, 1, 77, 200):
            for packet in (b"", b"\1" * 76, b"\1" * 77, b"\1" * 200):
                keys = FlowKeys(tproto=tproto)
                assert evaluate(gathered, packet, None, keys) == evaluate(cfg, packet, None, keys)
