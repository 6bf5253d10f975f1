"""The types of graphs: what they refuse, what they promise, and the questions about values that the passes ask."""

from __future__ import annotations

import pytest
from graphs import NUMBERS, Rejected, arithmetic, compare, evaluate, graph_of, random_graphs, random_inputs, value_of, values_in

from pcapext.cfg import (
    REJECT,
    VOID,
    Ancillary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    Goto,
    Key,
    Length,
    Load,
    Local,
    Operator,
    Return,
    Test,
    liveness,
    loads_of,
    locals_of,
    maximum,
    parts,
    rewrite,
    rewrite_end,
    show,
)
from pcapext.flowkeys import FLOW_KEYS, FlowKeys

ACCEPT = Block((), Return(Const(1)))


@pytest.mark.parametrize("number", [-1, 1 << 32])
def test_constant_out_of_range(number: int) -> None:
    with pytest.raises(ValueError, match=f"{number} is no 32-bit number"):
        Const(number)


@pytest.mark.parametrize("size", [-1, 0, 3, 8])
def test_load_of_no_such_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"no load of {size} bytes"):
        Load(size, Const(0))
    with pytest.raises(ValueError, match=f"no load of {size} bytes"):
        Ancillary(size, 0xFFFF_F000)


@pytest.mark.parametrize("k", [-1, 0, 0x7FFF_FFFF, 1 << 32])
def test_ancillary_word_in_the_packet(k: int) -> None:
    with pytest.raises(ValueError, match="is a place in the packet"):
        Ancillary(4, k)


@pytest.mark.parametrize("name", ["", "tcp", "NHOFF"])
def test_no_such_key(name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no flow key {name}"):
        Key(name)


@pytest.mark.parametrize("k", [-1, 1 << 32])
def test_load_with_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match=f"k {k} is no 32-bit number"):
        Load(1, Length(), k)


@pytest.mark.parametrize(
    ("offset", "k", "place"),
    [(14, 6, 20), (14, 0, 14), (0, 0xFFFF_FFFF, 0xFFFF_FFFF), (0xFFFF_FFFF, 1, 0xFFFF_FFFF), (0x8000_0000, 0x8000_0000, 0xFFFF_FFFF)],
)
def test_constant_offset_takes_k_in(offset: int, k: int, place: int) -> None:
    """A sum over 2**32 stays behind every packet."""
    assert Load(1, Const(offset), k) == Load(1, Const(place))


GOTO_0, GOTO_1 = Block((), Goto(0)), Block((), Goto(1))


def fork(then: int, otherwise: int) -> Block:
    return Block((), Branch(Test(Comparison.GT, Length(), Const(5)), then, otherwise))


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({}, "there is no block 0"),
        ({1: ACCEPT}, "there is no block 0"),
        ({0: GOTO_1}, "there is no block 1"),
        ({0: fork(1, 2), 1: ACCEPT}, "there is no block 2"),
        ({0: fork(2, 1), 1: ACCEPT}, "there is no block 2"),
        ({0: GOTO_0}, "blocks 0 and 0 are on a loop"),
        ({0: GOTO_1, 1: GOTO_0}, "blocks 1 and 0 are on a loop"),
        ({0: fork(1, 2), 1: fork(3, 2), 2: Block((), Goto(1)), 3: ACCEPT}, "are on a loop"),
        ({0: fork(1, 2), 1: ACCEPT, 2: fork(1, 3), 3: fork(1, 2)}, "are on a loop"),
    ],
)
def test_graph_that_is_not_whole(blocks: dict[int, Block], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Cfg(0, blocks)


def test_a_loop_that_nothing_leads_to_is_left_out() -> None:
    assert Cfg(0, {0: ACCEPT, 1: Block((), Goto(2)), 2: GOTO_1}).labels == (0,)


def test_blocks_cannot_be_changed() -> None:
    blocks = {0: ACCEPT}
    cfg = Cfg(0, blocks)
    blocks[0] = REJECT
    assert cfg.blocks[0] == ACCEPT
    with pytest.raises(TypeError):
        cfg.blocks[0] = REJECT  # type: ignore[index]


def test_other_blocks() -> None:
    """They are put in; where what they lead to is another, the graph is checked and brought into order again."""
    cfg = graph_of("0: length gt 5 ? 1 : 2\n1: A := 1; goto 3\n2: A := 2; goto 3\n3: return A")
    assert cfg.with_blocks({}) is cfg
    assert cfg.with_blocks({1: Block(((Local("A"), Const(1)),), Goto(3))}) is cfg
    changed = cfg.with_blocks({3: ACCEPT})
    assert str(changed) == str(cfg).replace("3: return A", "3: return 1")
    assert changed.labels == cfg.labels
    assert str(cfg.with_blocks({1: ACCEPT})) == "0: length gt 5 ? 1 : 2\n1: return 1\n2: A := 2; goto 3\n3: return A"
    assert cfg.with_blocks({1: Block((), Goto(2))}).labels == (0, 1, 2, 3)
    assert cfg.with_blocks({0: Block((), Goto(4)), 4: ACCEPT}).labels == (0, 4)
    with pytest.raises(ValueError, match="there is no block 4"):
        cfg.with_blocks({1: Block((), Goto(4))})
    with pytest.raises(ValueError, match="are on a loop"):
        cfg.with_blocks({3: GOTO_1})
    with pytest.raises(TypeError):
        changed.blocks[3] = REJECT  # type: ignore[index]


def test_order() -> None:
    """Jumps go forward, and the block for a test that holds stands behind the test."""
    cfg = Cfg(5, {0: REJECT, 1: ACCEPT, 2: fork(1, 0), 3: fork(2, 0), 5: fork(3, 2), 9: ACCEPT})
    assert cfg.labels == (5, 3, 2, 1, 0)


def test_predecessors() -> None:
    cfg = Cfg(0, {0: fork(1, 2), 1: fork(2, 2), 2: ACCEPT})
    assert cfg.predecessors == {0: [], 1: [0], 2: [0, 1, 1]}


def test_a_deep_graph_needs_no_stack() -> None:
    blocks = {label: fork(label + 1, 20_000) for label in range(20_000)}
    assert len(Cfg(0, {**blocks, 20_000: REJECT}).labels) == 20_001


def test_random_graphs_are_in_order() -> None:
    for cfg, _ in random_graphs(200, seed=1):
        position = {label: place for place, label in enumerate(cfg.labels)}
        assert cfg.labels[0] == cfg.entry
        assert all(position[target] > position[label] for label, block in cfg.blocks.items() for target in block.targets)


def test_shown_graph_is_the_graph() -> None:
    for cfg, _ in random_graphs(100, seed=2):
        assert graph_of(str(cfg)) == cfg


@pytest.mark.parametrize(
    "text",
    [
        "0: A := load2[12]; A eq 2048 ? 1 : 2\n1: M0 := (A lsh 2); return M0\n2: goto 3\n3: return 0",
        "7: void := ancillary1[0xfffff030]; load4[(poff add A) + 14] set (length sub 5) ? 9 : 8\n9: return 1\n8: return 0",
    ],
)
def test_show(text: str) -> None:
    assert str(graph_of(text)) == text


@pytest.mark.parametrize("operator", list(Operator))
def test_operators(operator: Operator) -> None:
    for left in NUMBERS:
        for right in NUMBERS:
            try:
                expected = arithmetic(operator.value, left, right)
            except Rejected:
                expected = None
            assert operator(left, right) == expected, (left, right)


@pytest.mark.parametrize("operator", list(Operator))
def test_operators_that_commute(operator: Operator) -> None:
    assert operator.commutes == all(operator(left, right) == operator(right, left) for left in NUMBERS for right in NUMBERS)


@pytest.mark.parametrize("comparison", list(Comparison))
def test_comparisons(comparison: Comparison) -> None:
    for left in NUMBERS:
        for right in NUMBERS:
            assert comparison(left, right) is compare(comparison.value, left, right)


def test_parts() -> None:
    value = value_of("(load1[(A add 1)] mul X)")
    assert [show(part) for part in parts(value)] == [show(value), "load1[(A add 1)]", "(A add 1)", "A", "1", "X"]
    assert locals_of(value) == {Local("A"), Local("X")}


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ("(A add 5)", []),
        ("poff", []),
        ("load1[load2[0] + 3]", ["load1[load2[0] + 3]", "load2[0]"]),
        ("(load1[3] add load1[3])", ["load1[3]"]),
        ("(A div 2)", []),
        ("(A div 0)", ["(A div 0)"]),
        ("(A mod X)", ["(A mod X)"]),
        ("(5 div load1[0])", ["(5 div load1[0])", "load1[0]"]),
        ("ancillary4[0xfffff004]", ["ancillary4[0xfffff004]"]),
    ],
)
def test_loads_of(text: str, loads: list[str]) -> None:
    assert [show(load) for load in loads_of(value_of(text))] == loads


def test_what_can_reject_is_all_in_loads_of() -> None:
    """A value without loads never rejects a packet, whatever the packet and the locals are."""
    checked = 0
    for cfg, rng in random_graphs(300, seed=3):
        for value in values_in(cfg):
            if not loads_of(value):
                checked += 1
                zeros = tuple((local, Const(0)) for local in sorted(locals_of(value), key=show))
                alone = Cfg(0, {0: Block((*zeros, (VOID, value)), Return(Const(7)))})
                assert all(evaluate(alone, packet, None, keys) == 7 for packet, keys in random_inputs(rng, 2))
    assert checked > 300


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5),
        ("load1[0]", 0xFF),
        ("load2[A]", 0xFFFF),
        ("load4[0]", 0xFFFF_FFFF),
        ("A", 0xFFFF_FFFF),
        ("length", 0xFFFF_FFFF),
        ("lhoff", 0xFFFF_FFFF),
        ("(A and 15)", 15),
        ("(load2[0] and load1[0])", 0xFF),
        ("(load1[0] add 14)", 0x10D),
        ("(A add 1)", 0xFFFF_FFFF),
        ("((A and 15) lsh 2)", 60),
        ("(load2[0] lsh 16)", 0xFFFF_0000),
        ("(load2[0] lsh 17)", 0xFFFF_FFFF),
        ("(load2[0] mul load2[2])", 0xFFFE_0001),
        ("(load2[0] rsh A)", 0xFFFF),
        ("(load1[0] div A)", 0xFF),
        ("(load1[0] sub 1)", 0xFFFF_FFFF),
    ],
)
def test_maximum(text: str, number: int) -> None:
    assert maximum(value_of(text)) == number


@pytest.mark.parametrize("name", [key.name for key in FLOW_KEYS if key.name != "lhoff"])
def test_maximum_of_a_key(name: str) -> None:
    """The walk sees 65535 bytes, and `poff` is at most a TCP header of 60 bytes behind `thoff`."""
    assert 0xFFFF + 60 <= maximum(value_of(name)) < 1 << 20


def test_maximum_is_never_exceeded() -> None:
    for cfg, rng in random_graphs(300, seed=4):
        for value in values_in(cfg):
            if not locals_of(value):
                alone = Cfg(0, {0: Block((), Return(value))})
                assert all(evaluate(alone, packet, None, keys) <= maximum(value) for packet, keys in random_inputs(rng, 3)), show(value)


def test_rewrite_goes_from_the_parts_to_the_whole() -> None:
    seen = []

    def note(value: object) -> object:
        seen.append(show(value))  # type: ignore[arg-type]
        return Const(9) if value == Local("A") else value

    assert show(rewrite(value_of("(load1[A + 2] add X)"), note)) == "(load1[11] add X)"  # type: ignore[arg-type]
    assert seen == ["A", "load1[11]", "X", "(load1[11] add X)"]


def test_rewrite_end() -> None:
    def put(value: object) -> object:
        return Const(9) if value == Local("A") else value

    graph = graph_of("0: A eq (A add X) ? 1 : 2\n1: return A\n2: goto 3\n3: return X")
    assert [show(rewrite_end(block.end, put)) for block in graph.blocks.values()] == [  # type: ignore[arg-type]
        "9 eq (9 add X) ? 1 : 2", "return 9", "goto 3", "return X",
    ]  # fmt: skip


def test_liveness() -> None:
    graph = graph_of("0: A := length; X := A; X gt M0 ? 1 : 2\n1: A := 5; goto 3\n2: X := A; goto 3\n3: return (A add X)")
    after = {label: {local.name for local in found} for label, found in liveness(graph).items()}
    assert after == {0: {"A", "X"}, 1: {"A", "X"}, 2: {"A", "X"}, 3: set()}


def test_a_local_that_is_dead_can_be_anything() -> None:
    """Assigning something else to the locals that are not live changes no verdict."""
    changed = 0
    for cfg, rng in random_graphs(150, seed=5):
        after = liveness(cfg)
        blocks = dict(cfg.blocks)
        for label, block in cfg.blocks.items():
            for target in {*block.targets}:
                dead = {local for local, _ in block.assignments} - after[label] - {VOID}
                first = blocks[target]
                blocks[target] = Block((*((local, Const(0xDEAD)) for local in sorted(dead, key=show)), *first.assignments), first.end)
                changed += len(dead)
        spoilt = Cfg(cfg.entry, blocks)
        for packet, keys in random_inputs(rng, 6):
            assert evaluate(spoilt, packet, None, keys) == evaluate(cfg, packet, None, keys)
    assert changed > 100


def test_evaluate_keeps_to_the_definition() -> None:
    """The evaluator that the other tests trust, on cases that were worked out by hand."""
    text = "0: A := load1[1]; A gt 5 ? 1 : 2\n1: return load2[(A sub 8) + 2]\n2: void := (5 div A); return (A sub (length add poff))"
    assert evaluate(graph_of(text), b"\x00\x08\xab\xcd") == 0xABCD
    assert evaluate(graph_of(text), b"\x00\x07\xab\xcd") == 0  # the offset is 2**32 + 1: behind every packet
    assert evaluate(graph_of(text), b"\x00\x09\xab\xcd") == 0  # byte 4 is not there
    assert evaluate(graph_of(text), b"\x00\x00\xab\xcd") == 0  # a division by zero
    assert evaluate(graph_of(text), b"\x00\x05", 100, FlowKeys(poff=54)) == (5 - 154) % 2**32
    assert evaluate(graph_of(text), b"") == 0
