"""eBPF programs: what they are, how they read, that the kernel takes them, and that their verdicts are those of the rules."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random

import pytest
from bpf_oracles import Kernel
from ebpf_oracles import LONGEST, accepts_on_socket, ethertype_of, loaded, takes
from everywhere import TEMPLATES, observed, sample
from graphs import EFFORT
from oracle import NETMASK, expected, text_of
from packets import EN10MB
from wire import LONGEST as LONGEST_FRAME
from wire import SHORTEST, SLL, SLL2, AnyHandle, Wire, cooked, seen

from benchmarks.calls import counter
from benchmarks.frames import frames
from pcapext import bpf, bpf_syscall, compile, ebpf
from pcapext.bpf_syscall import attach_descriptor, load, run_in_kernel
from pcapext.ebpf import EbpfInstruction, EbpfProgram
from pcapext.encapsulation import LINK_LAYER_BY_NUMBER, WalkSettings
from pcapext.errors import FilterError, LoadError, ProgramError

ACCEPT = EbpfProgram((EbpfInstruction(0xB7, imm=64), EbpfInstruction(ebpf.EXIT)))
DEEP = WalkSettings(max_levels=16)
LITTLE = sys.byteorder == "little"

# --- instructions and programs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((256,), "opcode 256 is out of range, expected 0 to 255"),
        ((0, 11), "dst 11 is out of range, expected 0 to 10"),
        ((0, 0, -1), "src -1 is out of range, expected 0 to 10"),
        ((0, 0, 0, 0x8000), "off 32768 is out of range, expected -32768 to 32767"),
        ((0, 0, 0, 0, 1 << 31), "imm 2147483648 is out of range, expected -2147483648 to 2147483647"),
    ],
)
def test_instructions_that_cannot_be(fields: tuple[int, ...], message: str) -> None:
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        EbpfInstruction(*fields)


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ((), "the last instruction must be an exit or a goto"),
        ((EbpfInstruction(0xB7),), "the last instruction must be an exit or a goto"),
        ((EbpfInstruction(ebpf.JA, off=1), EbpfInstruction(ebpf.EXIT)), "instruction 0: a jump to instruction 2, but the program has 2"),
        (
            (EbpfInstruction(ebpf.CALL, src=1, imm=-2), EbpfInstruction(ebpf.EXIT)),
            "instruction 0: a jump to instruction -1, but the program has 2",
        ),
    ],
)
def test_programs_that_cannot_be(instructions: tuple[EbpfInstruction, ...], message: str) -> None:
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        EbpfProgram(instructions)


def test_program() -> None:
    program = compile("inner tcp port 80", target="ebpf", snaplen=100)
    assert (program.linktype, program.snaplen, program.expression, program.target) == (1, 100, "inner tcp port 80", "ebpf")
    assert program.settings == DEEP
    assert compile("tcp", target="ebpf").settings is None
    assert len(bytes(program)) == 8 * len(program)
    assert program[0] == EbpfInstruction(0xBF, 6, 1)
    assert program[:2] == program.instructions[:2]
    assert pickle.loads(pickle.dumps(program)) == program
    assert hash(program) == hash(compile("inner tcp port 80", target="ebpf", snaplen=100))
    with pytest.raises(ProgramError, match=r"^unknown style 'dd', expected one of d, c$"):
        program.dump("dd")


def test_length() -> None:
    assert len(compile("inner tcp port 80", target="ebpf")) <= 350


def test_levels_cost_nothing() -> None:
    assert len(compile("inner tcp port 80", target="ebpf", max_levels=2)) == len(compile("inner tcp port 80", target="ebpf"))


@pytest.mark.tools("cc")
def test_c_array_is_the_program(tmp_path: Path) -> None:
    """Compiled by a C compiler against the kernel's header."""
    program = compile("inner tcp port 80 or vlan", target="ebpf")
    main = "int main(void) { return fwrite(filter, sizeof filter[0], sizeof filter / sizeof filter[0], stdout) == 0; }\n"
    (tmp_path / "filter.c").write_text(f"#include <stdio.h>\n#include <linux/bpf.h>\n{program.dump('c')}{main}")
    subprocess.run(["cc", "-Wall", "-Werror", "filter.c", "-o", "filter"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "filter"], capture_output=True, check=True).stdout == bytes(program)


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize(
    "expression", ["inner tcp port 80", "tcp port 80 and poff / 3 % 5 > len - 40", "encap gre 7 or outer host 10.0.0.1"]
)
@pytest.mark.parametrize("optimize", [0, 1])
def test_dump_is_what_the_verifier_prints(expression: str, optimize: int) -> None:
    program = compile(expression, target="ebpf", optimize=optimize)
    descriptor, _, log = bpf_syscall._load(program, 1 << 26, 2)
    os.close(descriptor)
    ours = dict(line.lstrip().split(": ", 1) for line in program.dump().splitlines())
    printed = {
        number: words.strip() for number, words in re.findall(r"^(\d+): (\([0-9a-f]{2}\) [^;\n]*?)(?:\s*;.*|\s+\d+: .*)?$", log, re.M)
    }
    assert len(printed) > 0.95 * len(program)
    assert {number: ours[number] for number in printed} == printed


# --- verdicts

STANDARD = """
tcp port 80
host 10.0.0.1 and {inner tcp}
ip[0] & 0xf > 5 or {inner tcp}
len > 100 and {inner tcp}
tcp[tcpflags] & tcp-syn != 0 and not {inner udp}
"{poff} / 2 % 7 = 3"
"{poff} / ({thoff} - 34) = 1" or {inner udp}
"1 << ({poff} - 20) > 5"
"ip[{depth}] = 0x45"
"link[{thoff} - 1 : 2] = 80" or {inner ip6}
"link[{nproto} * 70000] = 1" or {inner ip}
""".strip().splitlines()


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "unoptimized"])
def test_verdicts(optimize: bool) -> None:
    """The rules' verdicts, with the keys of the reference walk, on whole and short packets of all link types."""
    made: dict[int, list[bytes]] = {}
    for packet in sample(500 * EFFORT, 5):
        if packet.captured == packet.length <= LONGEST:
            made.setdefault(packet.linktype, []).append(packet.data)
    random, accepted, rejected = Random(6), 0, 0
    for template in [*TEMPLATES, *STANDARD]:
        linktype = random.choice([EN10MB, *made])
        link_layer = LINK_LAYER_BY_NUMBER[linktype]
        try:
            program = compile(text_of(template), linktype=linktype, netmask=NETMASK, optimize=optimize, target="ebpf")
        except FilterError as error:
            assert error.message.startswith(("no VLAN support", "expression rejects all")), template  # noqa: PT017
            continue
        with loaded(program) as descriptor:
            for data in made[linktype]:
                if not takes(linktype, data):
                    continue
                protocol = ethertype_of(data, linktype)
                verdict = run_in_kernel(descriptor, data[link_layer.made_up :], protocol=protocol).value != 0
                assert verdict == expected(template, observed(data, linktype, DEEP), NETMASK), (template, linktype, data.hex())
                accepted, rejected = accepted + verdict, rejected + (not verdict)
    assert accepted > 100
    assert rejected > 100


@pytest.mark.kernel
@pytest.mark.root
def test_on_sockets_as_classic() -> None:
    """On a pair of sockets, where packets have any length from 1 byte on: as the classic program."""
    expression = "inner tcp port 80 or not inner ip"
    kernel, program = Kernel(), compile(expression, target="ebpf", max_levels=4)
    assert kernel.accepts(compile(expression, target="classic").instructions)
    frame = frames("EN10MB")["geneve"]
    for length in range(1, len(frame), 3):
        assert accepts_on_socket(program, frame[:length]) == bool(kernel.kept(frame[:length])), length
    kernel.close()


#: Filters that differ in what they ask of the made-up header and of the length.
ON_WIRES = [
    "{inner tcp}",
    "{inner host 10.0.0.1}",
    '"{poff} > 54" or arp',
    'not "{inner ip[8]} > 100"',
    '"len - {poff} > 20"',
    "{encap gre} or {outer ip6}",
    "ip and {inner ip}",
]


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip")
@pytest.mark.parametrize("linktype", [EN10MB, SLL, SLL2])
def test_on_real_interfaces(linktype: int) -> None:
    """On packet sockets, and on libpcap's handles for all interfaces, where the kernel's frame begins behind the Ethernet header."""
    wire = Wire()
    whole = [packet.data for packet in sample(400 * min(EFFORT, 20), 7, [EN10MB]) if packet.captured == packet.length]
    # The kernel drops a frame with nothing behind its Ethernet header, of which a tag may be taken off, before a cooked handle sees it.
    sent = [data for data in whole if SHORTEST + 4 < len(data) <= LONGEST_FRAME and seen(data) is not None]
    try:
        for template in ON_WIRES:
            program = compile(text_of(template), linktype=linktype, netmask=NETMASK, target="ebpf")
            with ExitStack() as stack:
                descriptor = stack.enter_context(loaded(program))
                open_one = partial(wire.tap, None) if linktype == EN10MB else partial(wire.any_handle, linktype, None)
                everything, filtered = stack.enter_context(open_one()), stack.enter_context(open_one())
                attach_descriptor(filtered.call("fileno") if isinstance(filtered, AnyHandle) else filtered.socket.fileno(), descriptor)
                wire.send(sent)
                wanted = []
                for received, data in zip(everything.take(), sent, strict=True):
                    frame = seen(data)
                    assert frame is not None
                    packet = frame if linktype == EN10MB else cooked(frame, linktype)
                    if expected(template, observed(packet, linktype, DEEP), NETMASK):
                        wanted.append(received)
                assert filtered.take() == wanted, template
                assert 3 <= len(wanted) <= len(sent) - 3, template
    finally:
        wire.close()


#: Filters, and for which of the benchmarks' packets the walk is run once; for the others it is not run at all.
CALLS = {
    "inner udp": {"udp", "arp", "fragment", "options6", "vlan", "qinq-mpls", "pppoe", "ipip", "gre", "vxlan", "geneve", "gtpu", "deep"},
    "arp or inner udp": {"udp", "fragment", "options6", "vlan", "qinq-mpls", "pppoe", "ipip", "gre", "vxlan", "geneve", "gtpu", "deep"},
    "ip6 and inner tcp port 80": {"options6", "deep"},
    "udp port 4789 and (inner host 10.0.0.1 or depth > 2 or inner ip6 or encap gre)": {"vxlan"},
    "tcp or ip6 or inner tcp or inner icmp": {"udp", "arp", "vlan", "qinq-mpls", "pppoe", "ipip", "gre", "vxlan", "geneve", "gtpu"},
}


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("expression", CALLS)
@pytest.mark.parametrize("optimize", [False, True])
def test_calls_of_the_walk(expression: str, optimize: bool) -> None:
    """One at most, and none where the rest of the filter decides."""
    with ExitStack() as stack:
        count = counter(stack, expression, "ebpf", optimize)
        calls = {name: count(data) for name, data in frames("EN10MB").items()}
    assert set(calls.values()) <= {0, 1}
    plain = set() if optimize else {"tcp", "tcp6"}  # which the optimizer has looked at first
    expected_calls = CALLS[expression] | (plain & set(_undecided(expression)))
    assert {name for name, count in calls.items() if count} == expected_calls


def _undecided(expression: str) -> list[str]:
    """The plain packets that a filter of CALLS needs the walk for."""
    return {"inner udp": ["tcp", "tcp6"], "arp or inner udp": ["tcp", "tcp6"], "ip6 and inner tcp port 80": ["tcp6"]}.get(expression, [])


# --- what cannot be

WORDS = {
    "nla": 12,
    "nlan": 16,
    "hatype": 28,
    "xor_x": 40,
}


@pytest.mark.parametrize("name", WORDS)
def test_words_that_ebpf_lacks(name: str) -> None:
    from pcapext.ebpf_select import select
    from pcapext.lift import lift

    graph = lift((bpf.Instruction(bpf.LD_W_ABS, k=bpf.SKF_AD_OFF + WORDS[name]), bpf.Instruction(bpf.RET_A)))
    with pytest.raises(FilterError, match=f"^the filter asks for the ancillary word {name}, which an eBPF program cannot ask for$"):
        select(graph, None, DEEP)


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0x86DD), (4, 0), (8, 1), (20, 77), (24, 0), (32, 0), (36, None), (44, 0), (48, 0), (56, None), (60, 0)],
    ids=str,
)
def test_words(offset: int, value: int | None) -> None:
    """What the kernel has for a packet of a test run, whose device is the loopback device; of two words anything."""
    from pcapext.ebpf_select import select
    from pcapext.lift import lift

    graph = lift((bpf.Instruction(bpf.LD_W_ABS, k=bpf.SKF_AD_OFF + offset), bpf.Instruction(bpf.RET_A)))
    with loaded(EbpfProgram(select(graph, None, DEEP))) as descriptor:
        found = run_in_kernel(descriptor, bytes(60), protocol=0x86DD, mark=77).value
    assert value is None or found == value


@pytest.mark.parametrize(
    ("expression", "linktype", "message"),
    [
        ("ip6 protochain 6", "EN10MB", "'protochain' makes a loop, and target 'ebpf' cannot have one"),
        (
            "link[2] = 1 and inner tcp",
            "LINUX_SLL",
            "byte 2 of a packet is in the header that libpcap makes up for LINUX_SLL, and the kernel,",
        ),
    ],
)
def test_filters_that_cannot_be(expression: str, linktype: str, message: str) -> None:
    with pytest.raises(FilterError, match=f"^{re.escape(message)}"):
        compile(expression, linktype=linktype, target="ebpf")


def test_jump_that_is_too_long() -> None:
    from pcapext.ebpf_writer import R0, Writer

    writer = Writer()
    writer.jump(R0, "==", 0, "far")
    for _ in range(0x8000):
        writer.move(R0, R0)
    writer.label("far")
    writer.exit()
    with pytest.raises(FilterError, match=r"^the program would take 32770 instructions, and no jump of eBPF reaches farther than 32767$"):
        writer.finish()


# --- the kernel's refusals


@pytest.mark.root
@pytest.mark.kernel
def test_the_verifiers_log() -> None:
    with pytest.raises(LoadError) as caught:
        load(EbpfProgram((EbpfInstruction(ebpf.EXIT),)))
    assert str(caught.value).startswith("the kernel's verifier refused the program: Permission denied\n")
    assert "\n  R0 !read_ok" in str(caught.value)
    assert "R0 !read_ok" in caught.value.log
    assert pickle.loads(pickle.dumps(caught.value)).log == caught.value.log


#: Loads programs, and prints what the kernel says of those that it does not take.
LOADING = """
import sys
from pcapext import compile
from pcapext.bpf_syscall import load
from pcapext.errors import LoadError
for expression in sys.argv[1:]:
    for optimize in (0, 1):
        try:
            load(compile(expression, target="ebpf", optimize=optimize))
        except LoadError as error:
            print(expression, error)
"""


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("setpriv")
def test_the_least_capability() -> None:
    """CAP_BPF alone: the verifier is stricter where it is not joined by CAP_PERFMON."""
    templates = [
        "{inner tcp port 80}",
        STANDARD[-1],
        "{encap gre 7} or {outer ip6}",
        '"{outer thoff} - {outer nhoff} > 20" and {inner tcp}',
    ]
    command = ["setpriv", "--bounding-set=-all,+bpf", sys.executable, "-c", LOADING, *map(text_of, templates)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.root
@pytest.mark.kernel
def test_without_permission() -> None:
    """As a user who may nothing, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            load(compile("inner tcp", target="ebpf"))
        except LoadError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        message = file.read()
    os.waitpid(child, 0)
    assert message.startswith(
        "no permission to load an eBPF program: it takes CAP_BPF, before Linux 5.8 CAP_SYS_ADMIN (kernel.unprivileged_bpf_disabled is "
    )


@pytest.mark.parametrize(
    ("error", "log", "message"),
    [
        ("ENOSYS", "", "this kernel has no eBPF: it lacks bpf(2)"),
        ("EINVAL", "", "this kernel does not take eBPF programs of this kind: it is too old"),
        ("EINVAL", "unknown opcode e5\n", "this kernel is too old: it has no may_goto, which came with Linux 6.9\n  unknown opcode e5"),
        ("ENOMEM", "", "the kernel did not take the program: Cannot allocate memory"),
        ("EINVAL", "1\n2\n3\n4\n5\n6\n7\n", "the kernel's verifier refused the program: Invalid argument\n  2\n  3\n  4\n  5\n  6\n  7"),
    ],
)
def test_what_other_kernels_say(error: str, log: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    monkeypatch.setattr(bpf_syscall, "_load", lambda program, size, level=1: (-1, getattr(errno, error), log if size else ""))
    with pytest.raises(LoadError, match=f"^{re.escape(message)}$") as caught:
        load(ACCEPT)
    assert caught.value.log == log


@pytest.mark.root
@pytest.mark.kernel
def test_descriptors_that_do_not_fit() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other, loaded(ACCEPT) as program, open(os.devnull) as file:
        for sock, descriptor, message in (
            (file.fileno(), program, f"descriptor {file.fileno()} is not a socket"),
            (one.fileno(), file.fileno(), f"descriptor {file.fileno()} is not an eBPF socket filter"),
            (one.fileno(), 9999, "descriptor 9999 is not open"),
            (9999, program, "descriptor 9999 is not open"),
        ):
            with pytest.raises(LoadError, match=f"^{message}$"):
                attach_descriptor(sock, descriptor)
        attach_descriptor(one.fileno(), program)
        one.setsockopt(socket.SOL_SOCKET, 44, 1)  # SO_LOCK_FILTER
        with pytest.raises(LoadError, match=f"^the filter of socket {one.fileno()} is locked$"):
            attach_descriptor(one.fileno(), program)
        with pytest.raises(LoadError, match=r"^the program cannot be run on 70000 bytes: "):
            run_in_kernel(program, bytes(70000))


@pytest.mark.root
@pytest.mark.kernel
def test_nothing_is_left_open() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    with pytest.raises(LoadError):
        load(EbpfProgram((EbpfInstruction(ebpf.EXIT),)))
    assert accepts_on_socket(ACCEPT, b"1")
    assert count() == before
