"""Assembling, against the evaluator of graphs: the program returns what the graph does, and every checker takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random

import pytest
from bpf_oracles import Kernel, libpcap_accepts, libpcap_run
from graphs import EFFORT, NUMBERS, RandomGraph, evaluate, graph_of, random_graphs, random_inputs, random_packet, value_of

from pcapext import bpf
from pcapext.assemble import assemble
from pcapext.bpf import MEMORY_SLOTS, OPCODE_BY_CODE, Instruction, Program, kernel_fault
from pcapext.bpf import program_of as program
from pcapext.cfg import (
    REJECT,
    VOID,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    Goto,
    Length,
    Load,
    Local,
    Operator,
    Return,
    Test,
    Value,
)
from pcapext.errors import FilterError
from pcapext.flowkeys import KEY_BY_NAME, FlowKeys
from pcapext.lower import load_keys
from pcapext.machine import run


def check(cfg: Cfg, rng: Random, packets: int = 10) -> tuple[Program, set[int]]:
    """Assemble a graph and compare; the program, and the numbers that it returned."""
    made = program(assemble(cfg))
    assert made.kernel_refusal(stock=False) is None
    assert libpcap_accepts(made.instructions)
    returned = set()
    for packet, keys in random_inputs(rng, packets):
        wirelen = len(packet) + rng.choice((0, 0, 40))
        expected = evaluate(cfg, packet, wirelen, keys)
        assert run(made, packet, wirelen, lambda *_, keys=keys: keys).value == expected, (str(cfg), packet.hex(), wirelen, keys)
        returned.add(expected)
    return made, returned


def test_random_graphs_that_load_all_keys_at_once() -> None:
    """The dissector runs at most once, and not where it does not with a load for each key."""
    dissected, refused = Counter[int](), 0
    for cfg, rng in random_graphs(400, seed=12):
        each = program(assemble(cfg))
        try:
            made = program(assemble(load_keys(cfg)))
        except FilterError:
            refused += 1
            continue
        assert made.kernel_refusal(stock=False) is None
        assert set(made.flow_keys) <= {"keys"}
        for packet, keys in random_inputs(rng, 10):
            result = run(made, packet, None, lambda *_, keys=keys: keys)
            one = run(each, packet, None, lambda *_, keys=keys: keys)
            assert result.value == one.value, (str(cfg), packet.hex(), keys)
            assert result.dissected <= one.dissected <= 1
            dissected[result.dissected] += 1
    assert min(dissected[0], dissected[1]) > 400
    assert refused < 20


def test_random_graphs() -> None:
    varied = 0
    for cfg, rng in random_graphs(1000, seed=10):
        varied += len(check(cfg, rng)[1]) > 1
    assert varied > 450


def test_random_graphs_without_keys() -> None:
    """What loads no flow key also runs on libpcap's interpreter."""
    for cfg, rng in random_graphs(300, seed=11, keys=False):
        made, _ = check(cfg, rng, packets=3)
        for packet in (random_packet(rng), random_packet(rng, 40)):
            assert libpcap_run(made.instructions, packet, len(packet)) == evaluate(cfg, packet), (str(cfg), packet.hex())


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.mark.kernel
def test_the_kernel_takes_and_runs_them(kernel: Kernel) -> None:
    """Verdicts are compared where the kernel computes as libpcap does: no shift by a number that is not known to be small,
    and no load whose offset may be over 2**31."""
    compared = 0
    for cfg, rng in random_graphs(400, seed=12, keys=False):
        made = assemble(cfg)
        assert kernel.accepts(made), str(cfg)
        if any(OPCODE_BY_CODE[instruction.code].mnemonic in ("lsh", "rsh") and instruction.code & 8 for instruction in made):
            continue
        if any(instruction.code in (bpf.LD_W_IND, bpf.LD_H_IND, bpf.LD_B_IND) for instruction in made):
            continue
        for packet in (random_packet(rng, 60) + b"x" for _ in range(8)):
            assert kernel.kept(packet) == min(evaluate(cfg, packet), len(packet)), (str(cfg), packet.hex())
            compared += 1
    assert compared > 300


def test_large_graphs() -> None:
    """Hundreds of blocks: long jumps, `ja`, and locals that live long."""
    far = 0
    for seed in range(60 * EFFORT):
        rng = Random(f"large {seed}")
        maker = RandomGraph(rng, names=6, depth=2)
        made, _ = check(spread(maker.graph(rng.choice((150, 300, 400))), rng), rng, packets=12)
        far += sum(instruction.code == bpf.JA and instruction.k > 255 for instruction in made)
    assert far > 50


def spread(cfg: Cfg, rng: Random) -> Cfg:
    """The graph with some of its branches leading to the end."""
    end = max(cfg.labels) + 1
    blocks = {**cfg.blocks, end: Block(filling(1), Return(Const(7)))}
    for label, block in cfg.blocks.items():
        match block.end:
            case Branch(test, then, _) if rng.random() < 0.15:
                blocks[label] = Block(block.assignments, Branch(test, then, end))
    return Cfg(cfg.entry, blocks)


def test_deep_arithmetic() -> None:
    """Trees of operators with a register for nothing: either a right program, or an error where 16 slots are not enough."""
    refused = 0
    for seed in range(150 * EFFORT):
        rng = Random(f"deep {seed}")
        tree = deep(rng, rng.choice((3, 5, 7)))
        cfg = Cfg(0, {0: Block((), Branch(Test(Comparison.GT, tree, deep(rng, 4)), 1, 2)), 1: Block((), Return(tree)), 2: REJECT})
        try:
            check(cfg, rng, packets=6)
        except FilterError:
            refused += 1
    assert refused == 0  # a tree of depth 7 needs 7 slots


def deep(rng: Random, depth: int) -> Value:
    if depth == 0:
        leaves = (Load(rng.choice((1, 2, 4)), Const(rng.randrange(20))), Const(rng.choice(NUMBERS)), Length(), value_of("nhoff"))
        return rng.choice(leaves)
    if rng.random() < 0.1:
        return Load(1, Binary(Operator.AND, deep(rng, depth - 1), Const(15)), rng.randrange(8))
    return Binary(rng.choice(list(Operator)), deep(rng, depth - 1), deep(rng, depth - 1))


@pytest.mark.parametrize("comparison", list(Comparison))
@pytest.mark.parametrize("left", ["5", "length", "nhoff", "load2[2]", "load1[load1[0] + 2]", "(load1[1] sub load1[3])", "A", "X"])
@pytest.mark.parametrize("right", ["5", "length", "nhoff", "load2[2]", "load1[load1[0] + 2]", "(load1[1] sub load1[3])", "A", "X"])
def test_comparisons_of_all_kinds_of_values(comparison: Comparison, left: str, right: str) -> None:
    test = Test(comparison, value_of(left), value_of(right))
    cfg = graph_of("0: A := load1[0]; X := load2[2]; goto 1\n1: return 1")
    cfg = Cfg(0, {**cfg.blocks, 1: Block((), Branch(test, 2, 3)), 2: Block((), Return(value_of("(A add 7)"))), 3: REJECT})
    rng = Random(f"{comparison} {left} {right}")
    made = program(assemble(cfg))
    for _ in range(8):
        packet, keys = bytes(rng.choice((0, 1, 5, 6)) for _ in range(12)), FlowKeys(nhoff=rng.choice((0, 5, 6)))
        assert run(made, packet, None, lambda *_, keys=keys: keys).value == evaluate(cfg, packet, None, keys), packet.hex()


# --- registers


#: Graphs and their programs: what the registers hold is used, and what they no longer hold is not. Written by hand.
PROGRAMS: list[tuple[str, str, str]] = [
    (
        "A from the test before",
        "0: load2[12] eq 2048 ? 1 : 2\n2: load2[12] eq 34525 ? 1 : 3\n1: return 9\n3: return 0",
        "ldh [12]; jeq 0x800 1 0; jeq 0x86dd 0 1; ret 9; ret 0",
    ),
    (
        "A from both sides of a join",
        "0: load1[0] eq 1 ? 1 : 2\n1: void := load2[12]; goto 3\n2: void := load2[12]; goto 3\n3: return load2[12]",
        "ldb [0]; jeq 0x1 2 0; ldh [12]; ja 1; ldh [12]; ret a",
    ),
    (
        "but not from one side of a join",
        "0: load1[0] eq 1 ? 1 : 2\n1: void := load2[12]; goto 3\n2: void := load2[14]; goto 3\n3: return load2[12]",
        "ldb [0]; jeq 0x1 2 0; ldh [14]; ja 1; ldh [12]; ldh [12]; ret a",
    ),
    (
        "a value of a local is forgotten with the local",
        "0: L := load1[0]; void := (L add 1); L := load1[1]; return (L add 1)",
        "ldb [0]; add 1; ldb [1]; add 1; ret a",
    ),
    (
        "X too",
        "0: L := load1[0]; void := load1[(L and 15)]; L := load1[1]; return load1[(L and 15) + 2]",
        "ldb [0]; and 0xf; tax; ldb [x+0]; ldb [1]; and 0xf; tax; ldb [x+2]; ret a",
    ),
    (
        "X serves two loads",
        "0: load1[((load1[14] and 15) lsh 2) + 14] eq 5 ? 1 : 2\n1: return load1[((load1[14] and 15) lsh 2) + 16]\n2: return 0",
        "ldxb [14]; ldb [x+14]; jeq 0x5 0 2; ldb [x+16]; ret a; ret 0",
    ),
    (
        "a local from A that X is loaded from",
        "0: L := ((load1[14] and 15) lsh 2); load1[L + 14] eq 1 ? 1 : 2\n1: return L\n2: return 0",
        "ldxb [14]; ldb [x+14]; jeq 0x1 0 2; txa; ret a; ret 0",
    ),
    (
        "a local that is in a register is not stored",
        "0: L := load1[0]; L eq 5 ? 1 : 2\n1: return 9\n2: return L",
        "ldb [0]; jeq 0x5 0 1; ret 9; ret a",
    ),
    (
        "it is stored when the register is about to change",
        "0: L := load1[0]; load1[1] eq 5 ? 1 : 2\n1: return L\n2: return 0",
        "ldb [0]; st 0; ldb [1]; jeq 0x5 0 2; ld M0; ret a; ret 0",
    ),
    (
        "but not if the other register has it",
        "0: L := load1[0]; load1[L] eq 5 ? 1 : 2\n1: load1[1] eq 6 ? 3 : 2\n3: return L\n2: return 0",
        "ldb [0]; tax; ldb [x+0]; jeq 0x5 0 4; ldb [1]; jeq 0x6 0 2; txa; ret a; ret 0",
    ),
    (
        "nor if it is needed no more",
        "0: L := load1[0]; void := (L add 1); load1[1] eq 5 ? 1 : 2\n1: return 9\n2: return 0",
        "ldb [0]; add 1; ldb [1]; jeq 0x5 0 1; ret 9; ret 0",
    ),
    (
        "at the end of a block whose follower wants it from M[], as another way brings it",
        "0: load1[0] eq 1 ? 1 : 2\n1: L := load1[1]; void := load1[2]; goto 3\n2: L := load1[3]; goto 3\n3: return L",
        "ldb [0]; jeq 0x1 3 0; ldb [3]; st 0; ja 3; ldb [1]; st 0; ldb [2]; ld M0; ret a",
    ),
    (
        "before the jump at that end",
        "0: load1[0] eq 1 ? 1 : 2\n1: L := load1[1]; void := load1[2]; goto 3\n2: L := load1[3]; L eq 7 ? 3 : 4\n3: return L\n4: return 0",
        "ldb [0]; jeq 0x1 3 0; ldb [3]; st 0; jeq 0x7 3 5; ldb [1]; st 0; ldb [2]; ld M0; ret a; ret 0",
    ),
    (
        "a local that loads begin at goes to X at once",
        "0: L := load1[0]; load1[L + 14] eq 5 ? 1 : 2\n1: load1[L + 15] eq 6 ? 3 : 2\n3: return 1\n2: return 0",
        "ldb [0]; tax; ldb [x+14]; jeq 0x5 0 3; ldb [x+15]; jeq 0x6 0 1; ret 1; ret 0",
    ),
    (
        "and stays there when it moves on",
        "0: L := load1[0]; load1[L + 14] eq 5 ? 1 : 2\n1: L := (L add 4); load1[L + 14] eq 6 ? 3 : 2\n3: return load1[L]\n2: return 0",
        "ldb [0]; tax; ldb [x+14]; jeq 0x5 0 7; txa; add 4; tax; ldb [x+14]; jeq 0x6 0 2; ldb [x+0]; ret a; ret 0",
    ),
    (
        "stored from X",
        "0: L := ((load1[14] and 15) lsh 2); void := load1[L]; load1[load1[1]] eq 5 ? 1 : 2\n1: return load1[L]\n2: return 0",
        "ldxb [14]; ldb [x+0]; ldb [1]; stx 0; tax; ldb [x+0]; jeq 0x5 0 3; ldx M0; ldb [x+0]; ret a; ret 0",
    ),
    (
        "a local from X, while A holds something else",
        "0: void := load1[((load1[14] and 15) lsh 2) + 14]; L := ((load1[14] and 15) lsh 2); return (L add 1)",
        "ldxb [14]; ldb [x+14]; txa; add 1; ret a",
    ),
    (
        "a local from X, while A holds something that is needed",
        "0: A := load1[(load1[2] or 1)]; X := (load1[2] or 1); A set 4 ? 1 : 2\n1: return load1[X + 3]\n2: return 0",
        "ldb [2]; or 0x1; tax; ldb [x+0]; jset 0x4 0 2; ldb [x+3]; ret a; ret 0",
    ),
    ("sides that change places", "0: length gt load4[0] ? 1 : 2\n1: return 9\n2: return 0", "ld [0]; ldx len; jge x 1 0; ret 9; ret 0"),
    ("a difference", "0: return (length sub load4[0])", "ld [0]; tax; ld len; sub x; ret a"),
    ("a difference from 0", "0: return (0 sub load4[0])", "ld [0]; neg; ret a"),
    ("a sum in the other order", "0: return (length add load4[0])", "ld [0]; ldx len; add x; ret a"),
    ("a shift that no constant may make", "0: return (length lsh 32)", "ld len; ldx 0x20; lsh x; ret a"),
    ("an offset that is no place", "0: return load4[0xfffff000]", "ldx 0xfffff000; ld [x+0]; ret a"),
    ("an ancillary word", "0: return ancillary1[0xfffff030]", "ldb [0xfffff030]; ret a"),
    ("a flow key", "0: return tproto", f"ld [{KEY_BY_NAME['tproto'].k:#x}]; ret a"),
    (
        "two that need A and X: the one that takes more goes first",
        "0: return (((load1[0] sub load1[1]) sub (load1[2] sub load1[3])) sub (load1[4] mul load1[5]))",
        "ldb [3]; tax; ldb [2]; sub x; st 0; ldb [1]; tax; ldb [0]; sub x; ldx M0; sub x; "
        "st 0; ldb [5]; tax; ldb [4]; mul x; tax; ld M0; sub x; ret a",
    ),
    ("a loop of empty blocks", "0: goto 1\n1: goto 2\n2: return 9", "ret 9"),
]


def spelled(instructions: tuple[Instruction, ...]) -> Iterator[str]:
    """Instructions in a few characters, to compare by eye."""
    for instruction in instructions:
        opcode, k = OPCODE_BY_CODE[instruction.code], instruction.k
        operand = {
            bpf.Operand.NONE: "",
            bpf.Operand.ABSOLUTE: f" [{k}]" if k < 1 << 31 else f" [{k:#x}]",
            bpf.Operand.HEADER_LENGTH: f" [{k}]",
            bpf.Operand.INDIRECT: f" [x+{k}]",
            bpf.Operand.LENGTH: " len",
            bpf.Operand.MEMORY: f" M{k}" if opcode.mnemonic in ("ld", "ldx") else f" {k}",
            bpf.Operand.HEX: f" {k:#x}",
            bpf.Operand.DECIMAL: f" {k}",
            bpf.Operand.DISTANCE: f" {k}",
            bpf.Operand.X: " x",
            bpf.Operand.A: " a",
        }[opcode.operand]
        yield opcode.mnemonic + operand + (f" {instruction.jt} {instruction.jf}" if opcode.conditional else "")


@pytest.mark.parametrize(("graph", "expected"), [case[1:] for case in PROGRAMS], ids=[case[0] for case in PROGRAMS])
def test_program(graph: str, expected: str) -> None:
    assert "; ".join(spelled(assemble(graph_of(graph)))) == expected


# --- jumps


def filling(count: int) -> tuple[tuple[Local, Value], ...]:
    """Assignments that take so many instructions."""
    return tuple((VOID, Load(1, Const(1 + number % 7))) for number in range(count))


def far_test(distance: int, *, then_is_far: bool, far: Block) -> Cfg:
    """A test of which one way leads to the next block, of `distance` instructions and a `ret`, and the other one past it."""
    test = Test(Comparison.EQ, Load(1, Const(0)), Const(5))
    next_block = Block(filling(distance), Branch(Test(Comparison.EQ, Load(1, Const(40)), Const(5)), 3, 2))
    return Cfg(0, {0: Block((), Branch(test, *((2, 1) if then_is_far else (1, 2)))), 1: next_block, 2: far, 3: Block((), Return(Const(7)))})


@pytest.mark.parametrize("then_is_far", [True, False])
@pytest.mark.parametrize("distance", [0, 1, 251, 252, 253, 254, 255, 600])
@pytest.mark.parametrize(("far", "hop"), [(REJECT, bpf.RET_K), (Block(filling(1), Return(Length())), bpf.JA)], ids=["ret", "ja"])
def test_distances(distance: int, then_is_far: bool, far: Block, hop: int) -> None:
    """255 instructions can be skipped; one more takes a hop: a `ja`, or the `ret` itself once more."""
    cfg = far_test(distance, then_is_far=then_is_far, far=far)
    made = assemble(cfg)
    near = assemble(far_test(0, then_is_far=then_is_far, far=far))
    # Behind the test stand the filling, a test of 2 instructions, and `ret #7`.
    needs_hop = distance + 3 > 255
    assert len(made) == len(near) + distance + needs_hop
    assert sum(instruction.code == hop for instruction in made) == sum(instruction.code == hop for instruction in near) + needs_hop
    for first in (5, 6):
        for tested in (5, 6):
            packet = bytearray(60)
            packet[0], packet[40] = first, tested
            assert libpcap_run(made, bytes(packet), len(packet)) == evaluate(cfg, bytes(packet))


def far_chain(count: int, ends: Sequence[Block]) -> Cfg:
    """A chain of blocks, each with a test that goes to the next or to one of the far ends, in turn."""
    blocks = {
        label: Block(
            ((VOID, Load(1, Const(label % 50))),),
            Branch(Test(Comparison.EQ, Load(2, Const(label % 60)), Const(0x0105)), count + 1 + label % len(ends), label + 1),
        )
        for label in range(count)
    }
    return Cfg(0, {**blocks, count: Block((), Return(Const(3))), **{count + 1 + index: end for index, end in enumerate(ends)}})


def test_far_jumps_share_hops() -> None:
    """One `ja` every 255 instructions is enough for all jumps to one place."""
    cfg = far_chain(400, [Block(filling(1), Return(Const(4)))])
    made, returned = check(cfg, Random("far"), packets=60)
    assert returned >= {3, 4}
    hops = [index for index, instruction in enumerate(made) if instruction.code == bpf.JA]
    assert len(made) == 400 * 3 + 1 + 2 + len(hops)
    assert len(hops) == 4
    assert all(further - index > 250 for index, further in pairwise(hops))
    assert made[hops[0]].k > 900  # a hop leads to the place itself, not to the next hop


def test_far_jumps_to_two_places() -> None:
    cfg = far_chain(400, [Block(filling(1), Return(Const(4))), Block(filling(2), Return(Const(5)))])
    made, returned = check(cfg, Random("far"), packets=60)
    assert returned >= {3, 4, 5}
    assert sum(instruction.code == bpf.JA for instruction in made) == 8


def test_a_far_ret_is_its_own_hop() -> None:
    cfg = far_chain(400, [Block((), Return(Const(4)))])
    made, returned = check(cfg, Random("far"), packets=60)
    assert returned >= {3, 4}
    assert not any(instruction.code == bpf.JA for instruction in made)
    assert sum(instruction == Instruction(bpf.RET_K, k=4) for instruction in made) == 1 + 4


def test_both_ways_far() -> None:
    """A test of which no way leads to the next instruction: two hops."""
    ends = {2: Block(filling(1), Return(Const(4))), 3: Block(filling(2), Return(Const(5)))}
    middle = Block(filling(300), Branch(Test(Comparison.EQ, Load(1, Const(1)), Const(5)), 2, 3))
    first = Block((), Branch(Test(Comparison.EQ, Load(1, Const(0)), Const(5)), 2, 3))
    cfg = Cfg(9, {9: Block((), Branch(Test(Comparison.GT, Length(), Const(40)), 0, 1)), 0: first, 1: middle, **ends})
    made = assemble(cfg)
    assert sum(instruction.code == bpf.JA for instruction in made) == 2
    for packet in (bytes([first, second, *bytes(length)]) for first in (5, 6) for second in (5, 6) for length in (20, 60)):
        assert libpcap_run(made, packet, len(packet)) == evaluate(cfg, packet)


def test_trampolines_that_make_others_needed() -> None:
    """Jumps of just 255 that grow by the `ja`s put between: every distance is right in the end."""
    for distance in range(240, 260):
        tail = 4
        chain = {
            label: Block((), Branch(Test(Comparison.EQ, Load(1, Const(label)), Const(5)), 900 + label, label + 1)) for label in range(tail)
        }
        middle = Block(filling(distance), Return(Const(1)))
        ends = {900 + label: Block(filling(1), Return(Const(10 + label))) for label in range(tail)}
        cfg = Cfg(0, {**chain, tail: middle, **ends})
        made = assemble(cfg)
        for hit in range(tail + 1):
            packet = bytes(5 if place == hit else 0 for place in range(10))
            assert libpcap_run(made, packet, len(packet)) == evaluate(cfg, packet), (distance, hit)


def test_a_branch_to_one_far_block() -> None:
    cfg = Cfg(
        0,
        {
            0: Block((), Branch(Test(Comparison.EQ, Length(), Const(5)), 1, 2)),
            1: Block((), Branch(Test(Comparison.EQ, Load(1, Const(70)), Const(5)), 3, 3)),
            2: Block(filling(300), Return(Const(1))),
            3: REJECT,
        },
    )
    made = assemble(cfg)
    for packet in (bytes(5), bytes(6)):
        assert libpcap_run(made, packet, len(packet)) == evaluate(cfg, packet)


# --- memory


def live_locals(count: int) -> Cfg:
    """A graph that reads `count` locals that all live at once."""
    names = [Local(f"L{number}") for number in range(count)]
    assigned = tuple((name, Load(1, Const(number))) for number, name in enumerate(names))
    total: Value = Const(0)
    for name in names:
        total = Binary(Operator.ADD, total, name)
    return Cfg(0, {0: Block(assigned, Goto(1)), 1: Block((), Return(total))})


def test_as_many_locals_as_slots() -> None:
    cfg = live_locals(MEMORY_SLOTS)
    packet = bytes(range(1, 40))
    assert libpcap_run(assemble(cfg), packet, len(packet)) == sum(range(1, MEMORY_SLOTS + 1)) == evaluate(cfg, packet)


@pytest.mark.parametrize("count", [MEMORY_SLOTS + 1, MEMORY_SLOTS + 20])
def test_more_locals_than_slots(count: int) -> None:
    with pytest.raises(FilterError, match="too many registers needed to evaluate expression"):
        assemble(live_locals(count))


def test_more_temporaries_than_slots() -> None:
    """A full tree whose every operator needs both registers: it takes one slot more each level."""

    def tree(depth: int, at: int = 0) -> Value:
        if depth == 0:
            return Load(1, Const(at % 60))
        return Binary(Operator.SUB, tree(depth - 1, 2 * at), tree(depth - 1, 2 * at + 1))

    taken = live_locals(MEMORY_SLOTS - 5)
    read_again = taken.blocks[1].end.value  # type: ignore[union-attr]
    for depth in range(1, 9):
        total = Binary(Operator.SUB, tree(depth), read_again)
        cfg = Cfg(0, {0: taken.blocks[0], 1: Block(((Local("T"), tree(depth)),), Return(total))})
        if depth <= 5:
            check(cfg, Random(depth))
    with pytest.raises(FilterError, match="too many registers needed to evaluate expression"):
        assemble(cfg)


def test_locals_that_do_not_meet_share_a_slot() -> None:
    lines = [
        f"{label}: L{label} := load1[{label}]; void := load1[load1[50]]; load1[L{label}] eq 5 ? {label + 1} : 99" for label in range(40)
    ]
    made = assemble(graph_of("\n".join([*lines, "40: return 9", "99: return 0"])))
    assert {instruction.k for instruction in made if instruction.code in (bpf.ST, bpf.STX)} == {0}


@pytest.mark.kernel
def test_stores_before_loads_in_the_eyes_of_the_kernel(kernel: Kernel) -> None:
    """Its check of M[] runs straight on through a `ret`: two ends that read each its own slot need stores at the begin."""
    cfg = graph_of(
        "0: length gt 40 ? 1 : 2\n"
        "1: P := load1[0]; Q := length; load1[P] eq 5 ? 3 : 4\n"
        "2: R := load1[1]; S := length; load1[R] eq 5 ? 5 : 6\n"
        "3: return (P add Q)\n4: return (Q sub P)\n5: return (R add S)\n6: return (S sub R)"
    )
    made = assemble(cfg)
    assert kernel_fault(made) is None
    assert kernel.accepts(made)
    for length in (30, 60):
        for first in (2, 3):
            packet = bytes([first, first, 5, 6]) + bytes(length - 4)
            assert kernel.kept(packet) == min(evaluate(cfg, packet), length)
