"""The interpreter in C against the machine, which is its definition, and against libpcap's; and what it refuses to run."""

from __future__ import annotations

import array
import mmap
import random
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from bpf_oracles import NUMBERS, PROLOGUE, libpcap_run, packed, random_instructions
from graphs import steered_packet

from pcapext import bpf
from pcapext.bpf import JA, OPCODES, RET_A, RET_K, Instruction, Operand, Program
from pcapext.compiler import compile
from pcapext.engine import Matcher, ffi, lib
from pcapext.errors import ProgramError
from pcapext.machine import LIMIT, run
from pcapext.textforms import read_program

PACKET = bytes.fromhex("0102030445060708ff0a")


def keyless(instructions: Sequence[Instruction]) -> bool:
    return not any(instruction.ancillary for instruction in instructions)


def check(instructions: tuple[Instruction, ...], packet: bytes, wirelen: int, matcher: Matcher | None = None) -> int:
    """One packet through the engine, the machine and libpcap; what all three return."""
    matcher = matcher or Matcher(instructions)
    result = run(Program(instructions), packet, wirelen)
    assert matcher.run(packet, wirelen) == result.value == libpcap_run(instructions, packet, wirelen), (instructions, packet, wirelen)
    counts = matcher.count(packet, wirelen)
    assert len(counts) == len(instructions)
    assert sum(counts) == result.executed
    return result.value


# ---- What instructions do ----


def alone(opcode: bpf.Opcode) -> list[tuple[Instruction, ...]]:
    """Programs for one opcode on edges: A and X are set, then it is done, then what came of it is returned."""
    made: list[tuple[Instruction, ...]] = []
    for a in (0, 1, 7, 12, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        for b in NUMBERS:
            start = (*PROLOGUE, Instruction(bpf.LDX_IMM, k=b), Instruction(bpf.STX, k=3), Instruction(bpf.LD_IMM, k=a))
            k = b % 4 if opcode.operand is Operand.MEMORY else 1 if opcode.operand is Operand.DISTANCE else b
            if (opcode.code in (bpf.DIV_K, bpf.MOD_K) and b == 0) or (opcode.code in (bpf.LSH_K, bpf.RSH_K) and b >= 32):
                continue
            if opcode.code in (RET_K, RET_A):
                made.append((*start, Instruction(opcode.code, k=k)))
                continue
            one = (*start, Instruction(opcode.code, 0, 1, k))
            # What X and a slot hold is in A at the end.
            made.append((*one, Instruction(RET_A), Instruction(RET_K, k=9)))
            made.append((*one, Instruction(bpf.TXA), Instruction(RET_A)))
            made.append((*one, Instruction(bpf.LD_MEM, k=k % 4), Instruction(RET_A)))
    return made


@pytest.mark.parametrize("opcode", OPCODES, ids=lambda opcode: f"{opcode.mnemonic} {opcode.operand.value}")
def test_opcodes(opcode: bpf.Opcode) -> None:
    values = set()
    for instructions in alone(opcode):
        if not keyless(instructions):
            continue
        for length, more in ((0, 0), (1, 3), (10, 0xFFFFFFF5)):
            values.add(check(instructions, PACKET[:length], length + more))
    assert len(values) > 1


@pytest.mark.parametrize("load", [bpf.LD_W_ABS, bpf.LD_H_ABS, bpf.LD_B_ABS, bpf.LD_W_IND, bpf.LD_H_IND, bpf.LD_B_IND])
@pytest.mark.parametrize("test", [bpf.JEQ_K, bpf.JGT_K, bpf.JGE_K, bpf.JSET_K, bpf.JEQ_X, bpf.JSET_X])
def test_load_and_test(load: int, test: int) -> None:
    """A load and the test behind it run as one, but for those who jump to the test. What is loaded is there afterwards."""
    for k in (0, 1, 2, 0x0102, 0x01020304, 0x02030405):
        # To the load; or to the test, with A from elsewhere.
        for jump in (0, 1):
            instructions = (
                Instruction(bpf.LDX_IMM, k=1),
                Instruction(bpf.LD_LEN),
                Instruction(bpf.JGT_K, jump, 0, 6),
                Instruction(load, k=0),
                Instruction(test, 1, 0, k),
                Instruction(bpf.ADD_K, k=1000),
                Instruction(RET_A),
            )
            for wirelen in (6, 7):
                for length in (0, 1, 2, 3, 4, 5, 6):
                    check(instructions, PACKET[:length], wirelen)


def test_random_programs() -> None:
    rng, codes, values = random.Random(16), set(), set()
    for _ in range(1500):
        instructions = PROLOGUE + random_instructions(rng, rng.choice((4, 24, 100)))
        if not keyless(instructions):
            continue
        matcher = Matcher(instructions)
        packets = [rng.randbytes(rng.choice((0, 1, 2, 3, 4, 14, 40, 64))), steered_packet(instructions, rng)]
        for packet in packets:
            values.add(check(instructions, packet, len(packet) + rng.choice((0, 0, 1, 2000, 0x7FFFFFFF)), matcher))
        codes |= {instruction.code for instruction in instructions}
    assert codes == set(bpf.OPCODE_BY_CODE)
    assert len(values) > 200


def test_counts_are_those_of_a_trace() -> None:
    """Instruction by instruction: what the machine does with a program that ends there is what tells where it goes."""
    rng = random.Random(17)
    for _ in range(150):
        instructions = PROLOGUE + random_instructions(rng, 30)
        if not keyless(instructions):
            continue
        packet = steered_packet(instructions, rng)
        counts = Matcher(instructions).count(packet)
        assert set(counts) <= {0, 1}  # nothing jumps backwards
        for index in range(len(instructions)):
            marked = tuple(
                Instruction(RET_K, k=0xFACADE) if place == index else RETURNS_0 if each.code in (RET_K, RET_A) else each
                for place, each in enumerate(instructions)
            )
            assert counts[index] == (run(Program(marked), packet).value == 0xFACADE), (instructions, index)


RETURNS_0 = Instruction(RET_K)


@pytest.mark.parametrize("text", ["tcp port 80", "ip6 and not udp", "host 10.0.0.1 or vlan and ip", "len > 5 and ip[0] & 0xf > 5"])
def test_every_cut(text: str) -> None:
    program = compile(text)
    matcher, rng = Matcher(program.instructions), random.Random(text)
    for _ in range(4):
        packet = steered_packet(program.instructions, rng)
        for length in range(len(packet) + 1):
            check(program.instructions, packet[:length], len(packet), matcher)
            check(program.instructions, packet[:length], length, matcher)


# ---- Loops ----


def protochain(headers: int) -> bytes:
    """An Ethernet frame with IPv6, so many destination options of 8 bytes, and TCP."""
    options = b"\x3c\0" + bytes(6)
    return bytes(12) + b"\x86\xdd" + bytes(6) + b"\x3c" + bytes(33) + options * (headers - 1) + b"\x06\0" + bytes(6) + bytes(20)


@pytest.mark.parametrize("optimize", [False, True])
def test_backward_jumps_of_libpcap(optimize: bool) -> None:
    program = compile("ip6 protochain 6", optimize=optimize)
    assert any(instruction.code == JA and instruction.k > bpf.U32 // 2 for instruction in program)
    matcher = Matcher(program.instructions)
    packets = [protochain(1), protochain(3), protochain(3)[:-40], protochain(200), protochain(2).replace(b"\x06", b"\x11")]
    values = {check(program.instructions, packet, len(packet), matcher) for packet in packets}
    assert len(values) == 2
    assert max(matcher.count(protochain(200))) >= 200


def spinning(turns: int) -> tuple[Instruction, ...]:
    """Three instructions a turn."""
    return (
        Instruction(bpf.LD_IMM, k=turns),
        Instruction(bpf.SUB_K, k=1),
        Instruction(bpf.JEQ_K, 1, 0, 0),
        Instruction(JA, k=bpf.U32 - 2),
        Instruction(RET_K, k=5),
    )


def test_limit_is_the_machines() -> None:
    """A program that executes as many instructions as may be ends; with one more it is stopped."""
    turns = LIMIT // 3
    padding = LIMIT - (1 + 3 * turns - 1 + 1)
    longest = (Instruction(bpf.TAX),) * padding + spinning(turns)
    matcher, result = Matcher(longest), run(Program(longest), b"")
    assert (matcher.run(b""), sum(matcher.count(b""))) == (result.value, result.executed) == (5, LIMIT)
    longer = Program((Instruction(bpf.TAX), *longest))
    matcher = Matcher(longer.instructions)
    for stopped in (matcher.run, matcher.count, partial(run, longer)):
        with pytest.raises(ProgramError, match="the program was stopped"):
            stopped(b"")


def test_lock_of_python_is_not_held() -> None:
    """While one thread is in a call of the engine, this one sees how far it has come."""
    count = 60
    matcher = Matcher(spinning(LIMIT // 3 - 9))
    programs, records = ffi.new("struct program *[]", [matcher.pointer]), ffi.new("struct record[]", count)
    selected, length = ffi.new("uint32_t[]", count), ffi.new("uint32_t *")
    found: list[int] = []

    def match() -> None:
        found.append(lib.match_records(programs, b"", records, count, 0, selected, length, ffi.NULL))

    thread = threading.Thread(target=match)
    thread.start()
    seen = set()
    while not found:
        seen.add(max(selected))
    thread.join()
    assert found == [count] == [length[0]]
    assert list(selected) == list(range(count))
    assert len(seen) > 5


def test_threads_share_a_matcher() -> None:
    program = compile("ip6 protochain 6 or tcp port 80")
    matcher, rng = Matcher(program.instructions), random.Random(3)
    packets = [protochain(rng.randrange(1, 90)) for _ in range(20)] + [steered_packet(compile("tcp port 80"), rng) for _ in range(20)]
    expected = [run(program, packet).value for packet in packets]
    wrong: list[object] = []

    def work() -> None:
        for _ in range(200):
            found = [matcher.run(packet) for packet in packets]
            if found != expected:
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- Lengths ----


@pytest.mark.parametrize("length", [0, 5000, 70_000, 1 << 18])
def test_long_programs(length: int) -> None:
    instructions = (*(Instruction(bpf.ADD_K, k=index) for index in range(length)), Instruction(RET_A))
    matcher = Matcher(instructions)
    assert matcher.run(b"") == sum(range(length)) % (1 << 32)
    assert sum(matcher.count(b"")) == length + 1


def test_far_jumps() -> None:
    """The distance of a `ja` has 32 bits."""
    rows = 70_000
    instructions = [Instruction(JA, k=rows), *[Instruction(RET_K, k=1)] * rows, Instruction(bpf.LD_LEN), Instruction(RET_A)]
    assert Matcher(instructions).run(b"abc") == 3
    back = [*instructions[:-2], Instruction(JA, k=bpf.U32 - 69_000), Instruction(RET_K)]
    assert Matcher(back).run(b"abc") == 1


@pytest.mark.parametrize(("wirelen", "length"), [(None, 3), (3, 3), (1500, 1500), (0, 0), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_length_is_that_on_the_wire(wirelen: int | None, length: int) -> None:
    for source in ("ld #len ret a", "ldx #len txa ret a"):
        assert Matcher(read_program(source).instructions).run(b"abc", wirelen) == length


@pytest.mark.parametrize("wirelen", [-1, 1 << 32, 1 << 80])
def test_length_out_of_range(wirelen: int) -> None:
    matcher = Matcher((Instruction(RET_A),))
    for use in (matcher.run, matcher.count):
        with pytest.raises(ValueError, match=f"wirelen {wirelen} is out of range, expected 0 to 4294967295"):
            use(b"", wirelen)


# ---- Buffers ----


def test_any_buffer() -> None:
    matcher, data = Matcher(read_program("ld [4] ret a").instructions), bytes(range(16))

    class Derived(bytes):
        pass

    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            words, view = array.array("I", data), memoryview(bytearray(data))
            buffers: list[Any] = [data, Derived(data), bytearray(data), view, view[:8], view.cast("H"), view.cast("B", (4, 4))]
            buffers += [words, memoryview(words), mapped, memoryview(b"x" + data)[1:]]
            # With gaps, and backwards.
            buffers += [
                memoryview(bytes(octet for pair in zip(data, data, strict=True) for octet in pair))[::2],
                memoryview(data[::-1])[::-1],
            ]
            for buffer in buffers:
                assert matcher.run(buffer) == 0x04050607
                assert matcher.count(buffer) == [1, 1]
    for empty in (b"", bytearray(), memoryview(b""), memoryview(b"abc")[:0], array.array("I")):
        assert matcher.run(empty) == 0
        assert matcher.count(empty) == [1, 0]


def test_buffer_is_let_go() -> None:
    matcher, data = Matcher((Instruction(RET_K, k=1),)), bytearray(8)
    matcher.run(data)
    matcher.count(data)
    data.append(1)  # a BufferError if it were still held


@pytest.mark.parametrize("wrong", ["text", 8, None, [1, 2], 1.5])
def test_no_buffer(wrong: Any) -> None:
    matcher = Matcher((Instruction(RET_K, k=1),))
    for use in (matcher.run, matcher.count):
        with pytest.raises(TypeError, match="bytes-like"):
            use(wrong)


# ---- What cannot be run ----

RET = Instruction(RET_K, k=1)

FAULTS: dict[str, tuple[list[Instruction], str, int]] = {
    "empty": ([], "EMPTY", 0),
    "opcode": ([RET, Instruction(0xFFFF), RET], "OPCODE", 1),
    "opcode of ancillary": ([Instruction(0xB0), RET], "OPCODE", 0),
    "ld M": ([Instruction(bpf.LD_MEM, k=16), RET], "SLOT", 0),
    "ldx M": ([Instruction(bpf.LDX_MEM, k=0xFFFFFFFF), RET], "SLOT", 0),
    "st M": ([Instruction(bpf.ST, k=16), RET], "SLOT", 0),
    "stx M": ([RET, Instruction(bpf.STX, k=1 << 31), RET], "SLOT", 1),
    "div 0": ([Instruction(bpf.DIV_K), RET], "DIVISION", 0),
    "mod 0": ([Instruction(bpf.MOD_K), RET], "DIVISION", 0),
    "lsh 32": ([Instruction(bpf.LSH_K, k=32), RET], "SHIFT", 0),
    "rsh -1": ([Instruction(bpf.RSH_K, k=0xFFFFFFFF), RET], "SHIFT", 0),
    "ja to the end": ([Instruction(JA, k=1), RET], "JUMP", 0),
    "ja far": ([RET, Instruction(JA, k=0x7FFFFFFF), RET], "JUMP", 1),
    "ja before the begin": ([RET, Instruction(JA, k=0xFFFFFFFD), RET], "JUMP", 1),
    "ja just before the begin": ([Instruction(JA, k=0xFFFFFFFE), RET], "JUMP", 0),
    "jt": ([Instruction(bpf.JEQ_K, 1, 0), RET], "JUMP", 0),
    "jf": ([RET, Instruction(bpf.JSET_X, 0, 255), RET], "JUMP", 1),
    "jt at the end": ([RET, Instruction(bpf.JGE_K)], "JUMP", 1),
    "no ret": ([RET, Instruction(bpf.TAX)], "NO_RETURN", 1),
    "load at the end": ([Instruction(bpf.LD_W_ABS)], "NO_RETURN", 0),
    "ja back at the end": ([RET, Instruction(JA, k=0xFFFFFFFE)], "NO_RETURN", 1),
}


@pytest.mark.parametrize(("instructions", "fault", "index"), FAULTS.values(), ids=FAULTS)
def test_faults(instructions: list[Instruction], fault: str, index: int) -> None:
    """Whoever calls it: no program is made that would do what C leaves undefined. The rules are those of `structural_fault`."""
    found, place = ffi.new("int *"), ffi.new("uint32_t *", 99)
    octets = packed(instructions)
    assert not lib.program_new(ffi.from_buffer("struct instruction[]", octets), len(instructions), ffi.NULL, found, place)
    assert (found[0], place[0]) == (getattr(lib, f"FAULT_{fault}"), index)
    assert bpf.structural_fault(instructions) is not None
    with pytest.raises(ProgramError, match=f"instruction {index}: the engine cannot run it"):
        Matcher(instructions)


def test_programs_too_long_are_refused_unread() -> None:
    found, place = ffi.new("int *"), ffi.new("uint32_t *")
    for count in ((1 << 24) + 1, 0xFFFFFFFF):
        assert not lib.program_new(ffi.NULL, count, ffi.NULL, found, place)
        assert found[0] == lib.FAULT_EMPTY


def test_every_structural_fault_is_one() -> None:
    """Random instructions, valid or not: the engine takes what `structural_fault` takes."""
    rng, taken = random.Random(5), 0
    codes = [*bpf.OPCODE_BY_CODE, 0xB0, 0x100, 0x8C]
    for _ in range(3000):
        instructions = [
            Instruction(
                rng.choice(codes), rng.choice((0, 0, 1, 3)), rng.choice((0, 1, 2)), rng.choice((0, 1, 2, 15, 16, 31, 32, bpf.U32 - 1))
            )
            for _ in range(rng.randrange(1, 5))
        ]
        if rng.random() < 0.9:
            instructions.append(RET)
        valid = bpf.structural_fault(instructions) is None
        try:
            Matcher(instructions)
        except ProgramError:
            assert not valid, instructions
        else:
            assert valid, instructions
        taken += valid
    assert 300 < taken < 2700


def test_a_fault_names_the_instruction() -> None:
    assert bpf.structural_fault([RET, Instruction(0xFFFF), RET]) == bpf.Fault("unknown opcode 0xffff", 1)
    with pytest.raises(ProgramError, match="instruction 1: the engine cannot run it"):
        Matcher([RET, Instruction(0xFFFF), RET])
