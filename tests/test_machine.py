"""The reference machine against libpcap's interpreter and the kernel's, and what only it does: the flow keys."""

from __future__ import annotations

import array
import mmap
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest
from bpf_oracles import PROLOGUE, Kernel, libpcap_run, random_instructions

from pcapext import bpf
from pcapext.bpf import ANCILLARY, JA, RET_A, RET_K, Instruction, Program, program_of
from pcapext.errors import ProgramError
from pcapext.flowkeys import FLOW_KEYS, KEY_BY_NAME, NO_ETHERNET, WALKED_K, FlowKeys
from pcapext.machine import LIMIT, Result, run
from pcapext.textforms import read_program


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


def random_packet(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((1, 2, 3, 4, 13, 14, 15, 39, 40, 41, 64)))


def keyless(instructions: tuple[Instruction, ...]) -> bool:
    return not any(instruction.ancillary for instruction in instructions)


def test_values_are_those_of_libpcap() -> None:
    rng, codes, values, packets = random.Random(6), set(), set(), 0
    for _ in range(4000):
        instructions = PROLOGUE + random_instructions(rng)
        if not keyless(instructions):
            continue
        program = Program(instructions)
        for _ in range(3):
            packet, more = random_packet(rng), rng.choice((0, 0, 1, 2000))
            wirelen = len(packet) + more
            result = run(program, packet, wirelen)
            assert result.value == libpcap_run(instructions, packet, wirelen), (program.dump(), packet)
            assert program.matches(packet, wirelen) == (result.value != 0)
            assert 0 < result.executed <= len(program)
            packets += 1
            values.add(result.value)
        codes |= {instruction.code for instruction in instructions}
    assert codes == set(bpf.OPCODE_BY_CODE)
    assert packets > 8000
    assert len(values) > 300


#: One opcode each on chosen numbers: code, A, X or k.
EDGES = [
    (code, a, b)
    for code in sorted(code for code in bpf.OPCODE_BY_CODE if code & 7 == 4)  # BPF_ALU
    for a in (0, 1, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    for b in (0, 1, 3, 31, 32, 33, 0x80000000, 0xFFFFFFFF)
    if not (code in (bpf.LSH_K, bpf.RSH_K) and b >= 32) and not (code in (bpf.DIV_K, bpf.MOD_K) and b == 0)
]


def test_arithmetic_is_that_of_libpcap() -> None:
    for code, a, b in EDGES:
        program = (Instruction(bpf.LDX_IMM, k=b), Instruction(bpf.LD_IMM, k=a), Instruction(code, k=b), Instruction(RET_A))
        assert run(Program(program), b"").value == libpcap_run(program, b"", 0), (hex(code), a, b)


@pytest.mark.parametrize("code", [bpf.LD_W_ABS, bpf.LD_H_ABS, bpf.LD_B_ABS, bpf.LD_W_IND, bpf.LD_H_IND, bpf.LD_B_IND, bpf.LDX_MSH])
def test_loads_end_where_those_of_libpcap_do(code: int) -> None:
    packet = bytes.fromhex("0102030445060708ff0a")
    for x in (0, 1, 5, 9, 10, 11, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF):
        for k in (0, 1, 2, 4, 6, 7, 8, 9, 10, 11, 0x7FFFFFFF, 0x80000000, 0xFFEFFFFF, 0xFFFFEFFF, 0xFFFFFFFF):
            program = [Instruction(bpf.LDX_IMM, k=x), Instruction(code, k=k)]
            program += [Instruction(bpf.TXA)] if code == bpf.LDX_MSH else []
            program.append(Instruction(RET_A))
            for length in (0, 1, 4, 10):
                assert run(Program(tuple(program)), packet[:length]).value == libpcap_run(program, packet[:length], length), (x, k, length)


def tame(rng: random.Random) -> tuple[Instruction, ...]:
    """A random program whose meaning in the kernel is libpcap's: no shift by X, no load at X + k near 2**32, no negative k."""
    instructions = []
    for instruction in random_instructions(rng):
        code, k = instruction.code, instruction.k
        if code in (bpf.LSH_X, bpf.RSH_X):
            code, k = code & ~8, k & 31
        elif code in (bpf.LD_W_IND, bpf.LD_H_IND, bpf.LD_B_IND):
            code, k = code ^ 0x60, k & 63  # The same load, absolute.
        elif code in (bpf.LD_W_ABS, bpf.LD_H_ABS, bpf.LD_B_ABS, bpf.LDX_MSH):
            k &= 0xFFFF
        instructions.append(Instruction(code, instruction.jt, instruction.jf, k))
    return (*PROLOGUE, Instruction(bpf.LDX_LEN), *instructions)


@pytest.mark.kernel
def test_values_are_those_of_the_kernel(kernel: Kernel) -> None:
    rng, kept = random.Random(7), set()
    for _ in range(3000):
        instructions = tame(rng)
        assert kernel.accepts(instructions), Program(instructions).kernel_refusal()
        for _ in range(2):
            packet = random_packet(rng)
            value = run(Program(instructions), packet).value
            assert kernel.kept(packet) == min(value, len(packet)), (Program(instructions).dump(), packet)
            kept.add(min(value, len(packet)))
    assert len(kept) > 30


@pytest.mark.kernel
def test_indirect_loads_are_those_of_the_kernel(kernel: Kernel) -> None:
    packet = bytes(range(1, 41))
    for code in (bpf.LD_W_IND, bpf.LD_H_IND, bpf.LD_B_IND):
        for k in (0, 1, 5, 33, 39, 40):
            for x in (0, 1, 4, 35, 39, 40, 4000):
                instructions = (Instruction(bpf.LDX_IMM, k=x), Instruction(code, k=k), Instruction(bpf.AND_K, k=63), Instruction(RET_A))
                assert kernel.accepts(instructions)
                assert kernel.kept(packet) == min(run(Program(instructions), packet).value, len(packet)), (code, k, x)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("source", "ours", "theirs"),
    [
        ("ldxi 33 ldi 2 lsh x ret a", 0, 4),  # X modulo 32
        ("ldxi -1 ldb [x + 4] ret a", 0, 4),  # X + k modulo 2**32
    ],
)
def test_where_the_kernel_differs(kernel: Kernel, source: str, ours: int, theirs: int) -> None:
    """The two differences that the module tells of."""
    program = read_program(source)
    assert run(program, bytes(range(1, 41))).value == ours == libpcap_run(program, bytes(range(1, 41)), 40)
    assert kernel.accepts(program)
    assert kernel.kept(bytes(range(1, 41))) == theirs


def test_registers_and_memory_begin_as_0() -> None:
    for source in ("ret a", "txa ret a", *(f"ldi 7 ld M[{slot}] ret a" for slot in range(16)), "ldxi 7 ldx M[3] txa ret a"):
        assert run(read_program(source), b"packet").value == 0


def test_memory_is_that_of_one_run() -> None:
    program = read_program("ld M[5] jne #0, again ldi 1 st M[5] ret #1 again: ret #2")
    assert [run(program, b"").value for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("source", "value", "executed"),
    [
        ("ret #7", 7, 1),
        ("ld [1] ret #7", 0, 1),
        ("ld #len jeq #4, yes, no no: ret #0 tax tax yes: ret #1", 1, 3),
        ("ja end tax tax end: ret #9", 9, 2),
        ("ldi 1 div x ret #9", 0, 2),
    ],
)
def test_executed_counts_what_ran(source: str, value: int, executed: int) -> None:
    assert run(read_program(source), b"\1\2\3\4") == Result(value, executed, 0)


@pytest.mark.parametrize(("wirelen", "length"), [(None, 3), (3, 3), (1500, 1500), (0, 0), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_length_is_that_on_the_wire(wirelen: int | None, length: int) -> None:
    for source in ("ld #len ret a", "ldx #len txa ret a"):
        assert run(read_program(source), b"abc", wirelen).value == length


@pytest.mark.parametrize("wirelen", [-1, 1 << 32])
def test_length_out_of_range(wirelen: int) -> None:
    with pytest.raises(ValueError, match=f"wirelen {wirelen} is out of range"):
        run(read_program("ret a"), b"", wirelen)


def test_any_buffer() -> None:
    program = read_program("ld [4] ret a")
    data = bytes(range(16))
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            words, view = array.array("I", data), memoryview(bytearray(data))
            backwards = memoryview(data[::-1])[::-1]
            for buffer in (data, bytearray(data), view, view[:8], view.cast("H"), backwards, words, memoryview(words), mapped):
                assert run(program, buffer).value == 0x04050607
                assert program.matches(buffer)
    assert not program.matches(b"")
    with pytest.raises(TypeError, match="bytes-like"):
        program.matches("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bytes-like"):
        program.matches(8)  # type: ignore[arg-type]


KEYS = FlowKeys(nhoff=14, nproto=0x86DD, thoff=54, tproto=6, poff=74, depth=2, lhoff=NO_ETHERNET)


class Dissector:
    """Counts how often it is asked, and for what."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, int]] = []

    def __call__(self, packet: bytes, linktype: int) -> FlowKeys:
        self.calls.append((packet, linktype))
        return KEYS


@pytest.mark.parametrize("key", FLOW_KEYS, ids=lambda key: key.name)
@pytest.mark.parametrize("code", [bpf.LD_W_ABS, bpf.LD_H_ABS, bpf.LD_B_ABS])
def test_key_loads_are_whole_words_of_any_size(key: bpf.Ancillary, code: int) -> None:
    """As the kernel has it for its own ancillary words: the size of the load does not matter."""
    dissect = Dissector()
    program = Program((Instruction(code, k=key.k), Instruction(RET_A)), linktype=113)
    assert run(program, b"abc", None, dissect).value == getattr(KEYS, key.name)
    assert dissect.calls == [(b"abc", 113)]


def test_dissector_is_called_once_and_only_where_a_load_needs_it() -> None:
    program = read_program("ld #len jlt #2, out ld #tproto tax ld #depth add x st M[0] ld #tproto out: ret a")
    dissect = Dissector()
    assert run(program, b"a", None, dissect) == Result(1, 3, 0)
    assert dissect.calls == []
    assert run(program, memoryview(b"ab"), None, dissect) == Result(6, 9, 1)
    assert dissect.calls == [(b"ab", 1)]


@pytest.mark.parametrize(("asked", "written"), [(0, 0), (1, 1), (5, 5), (7, 7), (8, 7), (0xFFFFFFFF, 7)])
def test_all_keys_at_once(asked: int, written: int) -> None:
    """In the order of the table, into the first slots of M[]; the others stay. A says how many there are, X stays."""
    stores = " ".join(f"ldx #{100 + slot} stx M[{slot}]" for slot in range(9))
    for slot in range(9):
        dissect = Dissector()
        program = read_program(f"{stores} ldx #9 ldi {asked} ld #keys mul #0x10 add x st M[15] ld M[{slot}] ldx M[15] lsh #8 add x ret a")
        expected = getattr(KEYS, FLOW_KEYS[slot].name) if slot < written else 100 + slot
        assert run(program, b"", None, dissect).value == ((expected << 8) + 16 * written + 9) & 0xFFFFFFFF
        assert len(dissect.calls) == 1


def test_the_load_of_all_keys_dissects_each_time() -> None:
    program = read_program("ld #tproto ld #1 ld #keys ld #2 ld #keys ld #poff ret a")
    assert run(program, b"", None, Dissector()) == Result(74, 7, 3)


def test_keys_only_where_k_is_the_whole_address() -> None:
    k = KEY_BY_NAME["tproto"].k
    for load in (f"ld [x + {k}]", f"ldxi {k} ld [x + 0]", f"ldxb 4*([{k}]&0xf)"):
        dissect = Dissector()
        assert run(read_program(f"{load} ret #1"), bytes(64), None, dissect).value == 0
        assert dissect.calls == []


@pytest.mark.parametrize("word", [word for word in ANCILLARY if word.k not in WALKED_K], ids=lambda word: word.name)
def test_other_ancillary_words_reject_as_in_libpcap(word: bpf.Ancillary) -> None:
    for code in (bpf.LD_W_ABS, bpf.LD_H_ABS, bpf.LD_B_ABS):
        program = Program((Instruction(code, k=word.k), Instruction(RET_K, k=1)))
        dissect = Dissector()
        assert run(program, bytes(64), None, dissect) == Result(0, 1, 0)
        assert dissect.calls == []
        assert libpcap_run(program, bytes(64), 64) == 0


def test_reference_walk_unless_told() -> None:
    """An ARP frame: its keys follow from its 14 bytes of Ethernet header (LANGUAGE.md 2)."""
    frame = bytes(12) + b"\x08\x06" + bytes(28)
    assert run(read_program("ld #nproto ret a"), frame) == Result(0x0806, 2, 1)
    assert run(read_program("ld #nhoff ret a"), frame).value == 14
    assert read_program("ld #nproto jeq #0x806, y, n y: ret #1 n: ret #0").matches(frame)


def protochain(headers: int) -> bytes:
    """An Ethernet frame with IPv6, so many destination options of 8 bytes, and TCP."""
    options = b"\x3c\0" + bytes(6)
    return bytes(12) + b"\x86\xdd" + bytes(6) + b"\x3c" + bytes(33) + options * (headers - 1) + b"\x06\0" + bytes(6) + bytes(20)


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("optimize", [[], ["-O"]])
def test_backward_jumps_of_libpcap_run(optimize: list[str]) -> None:
    """`ip6 protochain` on a chain as long as the default snap length lets a packet be."""
    text = subprocess.run(["tcpdump", "-ddd", *optimize, "ip6 protochain 6"], capture_output=True, text=True, check=True).stdout
    program = read_program(text)
    assert any(instruction.code == JA and instruction.k > bpf.U32 // 2 for instruction in program)
    for packet in (protochain(1), protochain(3), protochain(3)[:-40], protochain(2).replace(b"\x06", b"\x11")):
        assert run(program, packet).value == libpcap_run(program, packet, len(packet))
    longest = protochain((bpf.MAXIMUM_SNAPLEN - 74) // 8)
    result = run(program, longest)
    assert result.value == libpcap_run(program, longest, len(longest)) == bpf.MAXIMUM_SNAPLEN
    assert result.executed < LIMIT


def test_endless_program_is_stopped() -> None:
    program = program_of([Instruction(bpf.LD_IMM), Instruction(JA, k=bpf.U32), Instruction(RET_K)])
    start = time.process_time()
    with pytest.raises(ProgramError, match=f"the program was stopped after {LIMIT} instructions: it jumps backwards and does not end"):
        run(program, b"")
    assert time.process_time() - start < 20


def test_program_longer_than_the_limit_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcapext.machine.LIMIT", 10)
    assert run(read_program("tax " * 50 + "ret #5"), b"") == Result(5, 51, 0)
