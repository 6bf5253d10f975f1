"""Instructions, programs and the rules for them, against the system's headers, libpcap's validator and the kernel."""

from __future__ import annotations

import copy
import dataclasses
import errno
import os
import pickle
import random
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_oracles import PROLOGUE, Kernel, attach, libpcap_accepts, packed, random_instructions
from packets import LINK_TYPES, packets

from pcapext import bpf
from pcapext.bpf import ANCILLARY, OPCODES, Fault, Instruction, Program, kernel_fault, program_of, structural_fault
from pcapext.compiler import compile
from pcapext.encapsulation import WalkSettings
from pcapext.errors import ProgramError
from pcapext.flowkeys import FLOW_KEYS, KEYS_K, SKF_AD_OFF
from pcapext.machine import run
from pcapext.textforms import read_program

HEADERS = "".join(Path("/usr/include/linux", name).read_text() for name in ("bpf_common.h", "filter.h"))
DEFINED = {name: int(value, 0) for name, value in re.findall(r"#define\s+(\w+)\s+\(?(-?[0-9]\w*)\)?\s*(?:/\*.*)?$", HEADERS, re.MULTILINE)}

RET = Instruction(bpf.RET_K)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


def spelled(name: str) -> int:
    """The code of a constant such as LD_W_ABS, put together from the parts that its name names."""
    parts = {"LDX_MSH": "LDX_B_MSH", "NEG": "ALU_NEG", "JA": "JMP_JA", "TAX": "MISC_TAX", "TXA": "MISC_TXA"}.get(name, name).split("_")
    if parts[0] in ("ADD", "SUB", "MUL", "DIV", "MOD", "AND", "OR", "XOR", "LSH", "RSH"):
        parts.insert(0, "ALU")
    if parts[0] in ("JEQ", "JGT", "JGE", "JSET"):
        parts.insert(0, "JMP")
    return sum(DEFINED[f"BPF_{part}"] for part in parts)


CONSTANTS = {
    name: value
    for name, value in vars(bpf).items()
    if re.fullmatch("(LD|LDX)_[A-Z_]+|STX?|[A-Z]{2,4}_[KXA]|NEG|JA|TAX|TXA", name) and name not in ("U32", "KEYS_K")
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant_is_that_of_the_header(name: str) -> None:
    assert CONSTANTS[name] == spelled(name)


def test_table_has_every_constant_once() -> None:
    assert sorted(opcode.code for opcode in OPCODES) == sorted(CONSTANTS.values())


@pytest.mark.kernel
def test_table_is_all_the_kernel_takes(kernel: Kernel) -> None:
    """Every code alone, with operands that no rule forbids, before two `ret`s; M[1] is written first."""
    known = {opcode.code for opcode in OPCODES}
    store = Instruction(bpf.ST, k=1)
    for code in [*range(0x200), 0x8000, 0xFF06, 0xFFFF]:
        program = (store, Instruction(code, k=1), RET, RET)
        assert kernel.accepts(program) == (code in known), hex(code)


def test_ancillary_offsets_are_those_of_the_header() -> None:
    offsets = {value for name, value in DEFINED.items() if name.startswith("SKF_AD_") and name not in ("SKF_AD_OFF", "SKF_AD_MAX")}
    assert {word.offset for word in ANCILLARY if word.stock} == offsets
    assert DEFINED["SKF_AD_OFF"] & bpf.U32 == SKF_AD_OFF


def test_ancillary_words_hold_the_flow_keys() -> None:
    assert {(key.name, key.k) for key in FLOW_KEYS} <= {(word.name, word.k) for word in ANCILLARY}
    assert len({word.offset for word in ANCILLARY}) == len(ANCILLARY)


@pytest.mark.parametrize(("field", "value"), [("code", -1), ("code", 1 << 16), ("jt", 256), ("jf", -1), ("k", 1 << 32), ("k", -1)])
def test_field_out_of_range(field: str, value: int) -> None:
    with pytest.raises(ProgramError, match=f"{field} {value} is out of range"):
        Instruction(**{"code": bpf.RET_K, field: value})


LD, ST, JA, JEQ = bpf.LD_MEM, bpf.ST, bpf.JA, bpf.JEQ_K


def tuples(*rows: tuple[int, ...]) -> tuple[Instruction, ...]:
    """Instructions from (code, k) and (code, jt, jf, k)."""
    return tuple(Instruction(row[0], k=row[1]) if len(row) == 2 else Instruction(*row) for row in rows)


#: Programs that libpcap's rules refuse, and the words for it.
STRUCTURAL = [
    ((), "a program needs at least one instruction"),
    (tuples((0x0E, 0)), "instruction 0: unknown opcode 0xe"),
    (tuples((bpf.LD_IMM, 0)), "instruction 0: the last instruction must be a ret"),
    (tuples((ST, 16), (bpf.RET_K, 0)), "instruction 0: st M[16], expected M[0] to M[15]"),
    (tuples((bpf.LDX_MEM, 1 << 31), (bpf.RET_K, 0)), "instruction 0: ldx M[2147483648], expected M[0] to M[15]"),
    (tuples((bpf.DIV_K, 0), (bpf.RET_K, 0)), "instruction 0: div by zero"),
    (tuples((bpf.MOD_K, 0), (bpf.RET_K, 0)), "instruction 0: mod by zero"),
    (tuples((bpf.LSH_K, 32), (bpf.RET_K, 0)), "instruction 0: lsh by 32, expected 0 to 31"),
    (tuples((bpf.RSH_K, 1 << 31), (bpf.RET_K, 0)), "instruction 0: rsh by 2147483648, expected 0 to 31"),
    (tuples((JA, 1), (bpf.RET_K, 0)), "instruction 0: ja to instruction 2, but the program has 2"),
    (tuples((JA, 0xFFFFFFFE), (bpf.RET_K, 0)), "instruction 0: ja to instruction 4294967295, but the program has 2"),
    (tuples((JEQ, 1, 0, 0), (bpf.RET_K, 0)), "instruction 0: jeq to instruction 2, but the program has 2"),
    (tuples((bpf.JSET_X, 0, 9, 0), (bpf.RET_K, 0)), "instruction 0: jset to instruction 10, but the program has 2"),
]


@pytest.mark.parametrize(("instructions", "words"), STRUCTURAL)
def test_structural_fault(instructions: tuple[Instruction, ...], words: str) -> None:
    assert str(structural_fault(instructions)) == words
    assert str(kernel_fault(instructions)) == words
    with pytest.raises(ProgramError, match=re.escape(words)):
        Program(instructions)


#: Programs that libpcap's rules take and the kernel's refuse, and the words for it.
KERNEL = [
    (tuples((bpf.RET_K, 0)) * 4097, "4097 instructions, the kernel takes at most 4096"),
    (tuples((bpf.LD_IMM, 0), (JA, 0xFFFFFFFE), (bpf.RET_K, 0)), "instruction 1: ja jumps backwards"),
    (tuples((bpf.LD_W_ABS, SKF_AD_OFF + 1), (bpf.RET_K, 0)), "instruction 0: there is no ancillary word at offset 1"),
    (tuples((bpf.LD_B_ABS, 0xFFFFFFFF), (bpf.RET_K, 0)), "instruction 0: there is no ancillary word at offset 4095"),
    (tuples((bpf.LD_H_ABS, SKF_AD_OFF + 76), (bpf.RET_K, 0)), "instruction 0: a stock kernel has no ancillary word tproto"),
    (tuples((LD, 3), (bpf.RET_K, 0)), "instruction 0: M[3] is read, but not written on every path before"),
    (
        tuples((ST, 3), (bpf.LDX_MEM, 2), (bpf.RET_K, 0)),
        "instruction 1: M[2] is read, but not written on every path before",
    ),
    # One path jumps over the store.
    (
        tuples((JEQ, 1, 0, 7), (ST, 0), (LD, 0), (bpf.RET_A, 0)),
        "instruction 2: M[0] is read, but not written on every path before",
    ),
    # Every path writes the slot, but the kernel's pass also comes to the load through the ret above it.
    (
        tuples((JEQ, 0, 2, 7), (ST, 0), (JA, 2), (bpf.LD_IMM, 0), (bpf.RET_K, 0), (LD, 0), (bpf.RET_A, 0)),
        "instruction 5: M[0] is read, but not written on every path before",
    ),
    (tuples((JEQ, 1, 0, 7), (bpf.RET_K, 0), (ST, 0), (LD, 0), (bpf.RET_A, 0)), None),
    (tuples((JEQ, 0, 1, 7), (ST, 0), (ST, 0), (bpf.LDX_MEM, 0), (bpf.RET_A, 0)), None),
    (tuples((JEQ, 0, 2, 7), (ST, 0), (JA, 1), (bpf.STX, 0), (LD, 0), (bpf.RET_A, 0)), None),
    (tuples((bpf.LD_W_ABS, SKF_AD_OFF + 52), (bpf.RET_A, 0)), None),
    (tuples((bpf.LD_W_ABS, SKF_AD_OFF - 1), (bpf.LD_W_IND, 0xFFFFFFFF), (bpf.RET_A, 0)), None),
]


@pytest.mark.kernel
@pytest.mark.parametrize(("instructions", "words"), KERNEL)
def test_kernel_fault(kernel: Kernel, instructions: tuple[Instruction, ...], words: str | None) -> None:
    assert structural_fault(instructions) is None
    assert Program(instructions).kernel_refusal() == words
    assert kernel.accepts(instructions) == (words is None)


def test_kernel_takes_4096_instructions() -> None:
    # By its rules. Whether it has the memory is another question (net.core.optmem_max), so it is not asked here.
    assert kernel_fault(tuples((bpf.RET_K, 0)) * 4096) is None


@pytest.mark.parametrize("key", FLOW_KEYS, ids=lambda key: key.name)
@pytest.mark.parametrize("code", [bpf.LD_W_ABS, bpf.LD_H_ABS, bpf.LD_B_ABS])
def test_kernel_with_the_proposal_knows_the_keys(key: bpf.Ancillary, code: int) -> None:
    program = Program((Instruction(code, k=key.k), RET))
    assert program.kernel_refusal(stock=False) is None
    assert (program.kernel_refusal() is None) == key.stock
    assert program.flow_keys == (() if key.stock else (key.name,))


#: Programs for a kernel that has `ld #keys`, and what it has against them.
ALL_KEYS = [
    ("ld #5 ld #keys ld M[0] ld M[4] ret a", None),
    ("ld #9 ld #keys ld M[6] ret a", None),
    ("ld #5 ld #keys ld M[5] ret a", "instruction 2: M[5] is read, but not written on every path before"),
    ("ld #9 ld #keys ld M[7] ret a", "instruction 2: M[7] is read, but not written on every path before"),
    ("ld #0 ld #keys ldx M[0] ret a", "instruction 2: M[0] is read, but not written on every path before"),
    ("ldx #5 ld #keys ld M[0] ret a", "instruction 2: M[0] is read, but not written on every path before"),
    ("ld #keys ld M[0] ret a", "instruction 1: M[0] is read, but not written on every path before"),
    ("ld #5 ld #keys ld #2 ld #keys ld M[4] ret a", None),
    # What A holds then is not known.
    ("ld #len jeq #1, asks ld #5 asks: ld #keys ld M[0] ret a", "instruction 4: M[0] is read, but not written on every path before"),
    ("ld #len jeq #1, no ld #5 ld #keys no: ld M[0] ret a", "instruction 4: M[0] is read, but not written on every path before"),
    ("ld #len jeq #1, other ld #5 ld #keys ja all other: st M[0] all: ld M[0] ret a", None),
]


@pytest.mark.parametrize(("source", "words"), ALL_KEYS)
def test_load_of_all_keys_writes_slots(source: str, words: str | None) -> None:
    program = read_program(source)
    assert program.kernel_refusal(stock=False) == words
    assert str(program.kernel_refusal()).endswith("a stock kernel has no ancillary word keys")


def mutated(rng: random.Random) -> tuple[Instruction, ...]:
    """A valid program, in which one instruction may be something else."""
    instructions = list(random_instructions(rng, 10))
    if rng.random() < 0.6:
        place = rng.randrange(len(instructions))
        left = len(instructions) - place - 1
        odd = (0, 16, 32, rng.randrange(16), left, -rng.randint(1, 5) & bpf.U32, SKF_AD_OFF + 4 * rng.randrange(20))
        code = rng.choice((rng.randrange(0x100), JA, bpf.DIV_K, bpf.MOD_K, bpf.LD_W_ABS, bpf.LD_H_ABS, rng.choice(OPCODES).code))
        changes = {
            "code": code,
            "jt": rng.choice((left, rng.randrange(256))),
            "jf": rng.choice((left, rng.randrange(256))),
            "k": rng.choice(odd),
        }
        fields = rng.choice((["code"], ["jt"], ["jf"], ["k"], ["code", "k"]))
        instructions[place] = dataclasses.replace(instructions[place], **{field: changes[field] for field in fields})
    return tuple(instructions)


def test_libpcap_takes_what_the_structural_rules_take() -> None:
    """The same verdict as `pcap_validate_filter`, but for codes its interpreter does not have and shifts C does not define."""
    rng, codes, seen = random.Random(1), {opcode.code for opcode in OPCODES}, set()
    for _ in range(6000):
        instructions = mutated(rng)
        stricter = any(i.code not in codes or (i.code in (bpf.LSH_K, bpf.RSH_K) and i.k >= 32) for i in instructions)
        valid = structural_fault(instructions) is None
        assert valid == (libpcap_accepts(instructions) and not stricter), instructions
        seen.add((valid, stricter))
    assert seen == {(True, False), (False, False), (False, True)}


@pytest.mark.kernel
def test_kernel_takes_what_the_kernel_rules_take(kernel: Kernel) -> None:
    rng, reasons = random.Random(2), set()
    for _ in range(8000):
        instructions = mutated(rng)
        fault = kernel_fault(instructions)
        assert kernel.accepts(instructions) == (fault is None), (instructions, fault)
        reasons.add(re.sub(" ?[0-9].*| word .*|^(j|ja|ld|st)[a-z]* ", "", fault.reason) if fault else None)
    # Every rule was met, but those that ask for a program of no or too many instructions.
    assert reasons == {
        None, "unknown opcode", "M[", "div by zero", "mod by zero", "lsh by", "rsh by", "to instruction", "jumps backwards",
        "there is no ancillary", "a stock kernel has no ancillary", "the last instruction must be a ret",
    }  # fmt: skip


@pytest.mark.kernel
@pytest.mark.root
def test_kernel_takes_bytes_of_a_program_on_a_packet_socket() -> None:
    program = Program((Instruction(bpf.LD_H_ABS, k=12), Instruction(bpf.JEQ_K, 0, 1, 0x806), Instruction(bpf.RET_K, k=64), RET))
    assert bytes(program) == packed(program)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        attach(sock, Program.from_bytes(bytes(program)))
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            attach(sock, tuples((bpf.LD_IMM, 0)))


ARP = (Instruction(bpf.LD_H_ABS, k=12), Instruction(bpf.JEQ_K, 0, 1, 0x806), Instruction(bpf.RET_K, k=64), RET)


def test_program_is_a_sequence() -> None:
    program = Program(ARP)
    assert (len(program), list(program), program[1], program[-1], program[1:3]) == (4, list(ARP), ARP[1], RET, ARP[1:3])
    assert (RET in program, program.index(RET), list(reversed(program))) == (True, 3, list(ARP[::-1]))
    with pytest.raises(IndexError):
        program[4]


def test_program_does_not_change() -> None:
    program = Program(ARP)
    with pytest.raises(dataclasses.FrozenInstanceError):
        program.snaplen = 1  # type: ignore[misc]
    assert Program(list(ARP)).instructions == ARP  # type: ignore[arg-type]


def test_programs_compare_by_all_they_are() -> None:
    program = Program(ARP, 1, 64, "arp", "classic")
    same = Program(tuple(copy.deepcopy(ARP)), 1, 64, "arp", "classic")
    assert program == same
    assert hash(program) == hash(same)
    others = [Program(ARP[2:]), Program(ARP, 113), Program(ARP, snaplen=65), Program(ARP, expression="ip"), Program(ARP, target="flowkeys")]
    others += [dataclasses.replace(program, settings=WalkSettings(max_levels=levels)) for levels in (1, 2)]
    assert len({program, same, *others}) == 8
    # The usual settings are the same as none.
    assert Program(ARP, settings=WalkSettings()) == Program(ARP)
    assert Program(ARP, settings=WalkSettings()).settings is None


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_program_travels(protocol: int) -> None:
    """Also to a process where strings hash otherwise."""
    program = Program(ARP, 12, 64, "arp", "flowkeys", WalkSettings(tunnel_ports={"vxlan": [5000]}, max_levels=2))
    assert pickle.loads(pickle.dumps(program, protocol)) == program == copy.copy(program) == copy.deepcopy(program)
    if protocol == pickle.HIGHEST_PROTOCOL:
        script = """
import pickle, sys
p = pickle.load(sys.stdin.buffer)
print({p: p.expression}[type(p)(p[:], 12, 64, 'arp', 'flowkeys', type(p.settings)({'vxlan': [5000]}, 2))])"""
        ran = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(program), capture_output=True, check=True)
        assert ran.stdout == b"arp\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"linktype": -1}, "link type -1 is out of range, expected 0 to 65535"),
        ({"linktype": 65536}, "link type 65536 is out of range, expected 0 to 65535"),
        ({"snaplen": 0}, "snap length 0 is out of range, expected 1 to 2147483647"),
        ({"snaplen": 1 << 31}, "snap length 2147483648 is out of range, expected 1 to 2147483647"),
        ({"target": "ebpf"}, "unknown target 'ebpf', expected one of classic, flowkeys, keys"),
    ],
)
def test_program_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ProgramError) as error:
        Program(ARP, **options)  # type: ignore[arg-type]
    assert str(error.value) == words


def test_from_bytes() -> None:
    program = Program(ARP, 12, 64, "arp")
    assert Program.from_bytes(memoryview(bytearray(bytes(program))), 12, 64, "arp") == program
    for size in (1, 7, 31):
        with pytest.raises(ProgramError, match=f"{size} bytes are no array of struct sock_filter"):
            Program.from_bytes(bytes(program)[:size])
    with pytest.raises(ProgramError, match="at least one instruction"):
        Program.from_bytes(b"")


def test_target_follows_from_the_loads() -> None:
    keys = tuples((bpf.LD_W_ABS, SKF_AD_OFF + 76), (bpf.LD_B_ABS, SKF_AD_OFF + 64), (bpf.LD_W_ABS, SKF_AD_OFF + 76), (bpf.RET_A, 0))
    assert program_of(keys).flow_keys == ("tproto", "nhoff")
    assert program_of(keys).target == "flowkeys"
    assert program_of(iter(ARP)).target == "classic"
    # Whoever asks for all at once may ask for one as well.
    assert program_of((*keys[:1], Instruction(bpf.LD_H_ABS, k=KEYS_K), RET)).flow_keys == ("tproto", "keys")
    assert program_of((*keys[:1], Instruction(bpf.LD_H_ABS, k=KEYS_K), RET)).target == "keys"
    # Only an absolute load of that k is a key.
    assert program_of(tuples((bpf.LD_IMM, SKF_AD_OFF + 76), (bpf.LD_W_IND, SKF_AD_OFF + 76), (bpf.RET_A, 0))).flow_keys == ()


def test_fault_names_the_place() -> None:
    assert str(Fault("wrong", 3)) == "instruction 3: wrong"
    assert str(Fault("wrong")) == "wrong"


# ---- matches ----

#: Programs that no compiler of ours made: keys in arithmetic, as offsets, before and behind what rejects, in any size of load.
BY_HAND = [
    "ld #thoff jgt #34, y, n y: ret #1 n: ret #0",
    "ld #nproto jeq #0x800, y, n y: ld #tproto jeq #6, t, n t: ret #1 n: ret #0",
    "ld #thoff tax ldb [x + 1] ret a",
    "ld #poff tax ldh [x + 0] and #1 ret a",
    "ld #len st M[3] ld #nhoff tax ld M[3] sub x jgt #60, y, n y: ret #7 n: ret #0",
    "ld #depth add #1 div #2 ret a",
    "ld #depth tax ldi 1 div x ret #1",
    "ldh #tproto jeq #17, y, n n: ldb #nproto jeq #0x86dd, y, z y: ret #1 z: ret #0",
    "ld #lhoff add #1 ret a",
    "ld #tproto ld #ifidx ret #1",
    "ldb [60] ld #thoff jset #1, n, y y: ret #1 n: ret #0",
    "ldx #len ld #poff jeq x, y, n y: ret #1 n: ret #0",
    "ld #thoff ret #5",
]


def with_keys(rng: random.Random) -> tuple[Instruction, ...]:
    """Random instructions, many of which load keys."""
    return tuple(
        Instruction(each.code, each.jt, each.jf, rng.choice(FLOW_KEYS).k)
        if each.code in (bpf.LD_W_ABS, bpf.LD_H_ABS, bpf.LD_B_ABS) and rng.random() < 0.7
        else each
        for each in (*PROLOGUE, *random_instructions(rng, 40))
    )


def check_matches(program: Program, linktype: int, count: int) -> Counter[bool]:
    """The verdict is that of the machine with the reference walk, on packets that end somewhere and on those that were cut."""
    rng, verdicts = random.Random(linktype), Counter[bool]()
    for made in packets(count, linktype, linktypes=[linktype]):
        for length in (len(made.data), *rng.choices(made.cuts(), k=4)):
            packet = made.data[:length]
            for wirelen in (length, len(made.data)):
                verdict = run(program, packet, wirelen).value != 0
                assert program.matches(packet, wirelen) == verdict, (program.dump(), packet, wirelen)
                verdicts[verdict] += 1
    return verdicts


@pytest.mark.parametrize("source", BY_HAND)
def test_matches_with_flow_keys(source: str) -> None:
    verdicts = check_matches(read_program(source), 1, 40)
    assert (min(verdicts[True], verdicts[False]) > 5) == (source not in (BY_HAND[9], BY_HAND[12]))


@pytest.mark.parametrize("linktype", LINK_TYPES)
def test_matches_on_every_link_type_of_the_walk(linktype: int) -> None:
    verdicts = check_matches(
        dataclasses.replace(read_program("ld #thoff jset #4, y, n y: ret #1 n: ret #0"), linktype=linktype), linktype, 60
    )
    assert min(verdicts[True], verdicts[False]) > 5


def test_matches_of_random_programs() -> None:
    verdicts, rng = Counter[bool](), random.Random(4)
    programs = [program for _ in range(40) if (program := program_of(with_keys(rng))).flow_keys]
    assert len(programs) > 15
    for program in programs[:16]:
        verdicts += check_matches(program, 1, 15)
    assert min(verdicts[True], verdicts[False]) > 100


def test_matches_goes_by_the_settings_of_the_walk() -> None:
    settings = WalkSettings(tunnel_ports={"vxlan": []}, max_levels=2, vlan_tags=1, mpls_labels=0)
    usual = read_program("ld #depth jgt #1, y, n y: ret #1 n: ret #0")
    program = dataclasses.replace(usual, settings=settings)
    check_matches(program, 1, 60)
    made = [packet.data for packet in packets(60, 5, linktypes=[1])]
    assert any(program.matches(packet) != usual.matches(packet) for packet in made)


@pytest.mark.parametrize("linktype", [105, 127, 147])
def test_no_flow_keys_on_a_link_type_without_a_walk(linktype: int) -> None:
    program = dataclasses.replace(read_program("ld #thoff ret a"), linktype=linktype)
    for _ in range(2):
        with pytest.raises(ProgramError, match=r"^the program loads flow keys, and there are none on link type \w+$"):
            program.matches(b"abc")
    # What loads none runs on any.
    assert Program(ARP, linktype).matches(bytes(12) + b"\x08\x06")


def test_flow_keys_in_a_loop() -> None:
    """It goes round where the innermost packet is not TCP, until it is stopped."""
    accept = Instruction(bpf.RET_K, k=1)
    loop = (Instruction(bpf.LD_W_ABS, k=SKF_AD_OFF + 76), Instruction(bpf.JEQ_K, 1, 0, 6), Instruction(bpf.JA, k=bpf.U32 - 2), accept)
    program = program_of(loop)
    assert program.matches(bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(10))
    with pytest.raises(ProgramError, match="the program was stopped: it jumps backwards and does not end"):
        program.matches(bytes(60))


def test_program_that_does_not_end_is_stopped() -> None:
    program = Program((Instruction(bpf.JA, k=bpf.U32), RET))
    for _ in range(2):
        with pytest.raises(ProgramError, match="the program was stopped: it jumps backwards and does not end"):
            program.matches(b"")


def test_matches_a_long_list_of_inner_hosts() -> None:
    hosts = [f"10.{number >> 8}.{number & 255}.{number % 7 + 1}" for number in range(1000)]
    program = compile(" or ".join(f"inner host {host}" for host in hosts))
    assert len(program) < bpf.MAX_INSTRUCTIONS
    for host, there in ((hosts[0], True), (hosts[-1], True), (hosts[500], True), ("10.3.231.7", False), ("10.0.0.0", False)):
        frame = bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(2) + b"\x01\x02\x03\x04" + socket.inet_aton(host)
        assert program.matches(frame) == there == (run(program, frame).value != 0)
        assert not program.matches(frame[:-1])


@pytest.mark.parametrize("source", ["ld #thoff ret a", "ld #len ret a"])
def test_matching_changes_nothing(source: str) -> None:
    """What the engine runs is no part of the program: not of its value, its text or what travels."""
    program, fresh = read_program(source), read_program(source)
    text, travels = repr(program), pickle.dumps(program)
    frame = bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(10)
    assert program.matches(frame)
    assert (repr(program), pickle.dumps(program)) == (text, travels)
    assert program == fresh
    assert hash(program) == hash(fresh)
    copies = [copy.copy(program), copy.deepcopy(program), pickle.loads(pickle.dumps(program)), dataclasses.replace(program)]
    for other in copies:
        assert other == program
        assert other.matches(frame)
    # A changed one is another program, and does not run the old one's instructions.
    assert not dataclasses.replace(program, instructions=(RET,)).matches(frame)


def test_threads_that_match_first_at_once() -> None:
    for source in ("ld #thoff jeq #34, y, n y: ret #1 n: ret #0", "ld #len jeq #34, y, n y: ret #1 n: ret #0"):
        program, verdicts, barrier = read_program(source), list[bool](), threading.Barrier(4)

        def work(program: Program = program, verdicts: list[bool] = verdicts, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            verdicts.append(program.matches(bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(10)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert verdicts == [True] * 4
