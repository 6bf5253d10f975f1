"""The binding of libpcap, against tcpdump; and that no text harms libpcap."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from libpcaps import PACKAGED, each_libpcap, no_descriptor_is_left

from pcapext import bpf, pcap_bridge
from pcapext.bpf import Instruction, Program
from pcapext.errors import FilterError, LibpcapError, ProgramError, Span
from pcapext.pcap_bridge import compile_expression, libpcap, linktype_number, run_filter
from pcapext.pcap_live import open_ethernet

__all__ = ["each_libpcap", "no_descriptor_is_left"]

ROOT = Path(__file__).parent.parent


# --- the generated module


def test_generated_module_is_fresh(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from generate_libpcap_cffi import generate; generate(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT / "tools", check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "_libpcap_cffi.py").read_text() == (ROOT / "pcapext" / "_libpcap_cffi.py").read_text()


# --- finding libpcap


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """libpcap is looked for anew, in the test and after it."""
    monkeypatch.delenv("PCAPEXT_LIBPCAP", raising=False)
    monkeypatch.setattr(pcap_bridge, "libpcap", pcap_bridge.lru_cache(libpcap.__wrapped__))
    return monkeypatch


def hide_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pcap_bridge._SYSTEM_NAMES, sys.platform, ("libno-such-pcap.so",))


def test_system_comes_first(fresh: pytest.MonkeyPatch) -> None:
    loaded = pcap_bridge.libpcap()
    assert Path(loaded.path).is_absolute()
    assert Path(loaded.path).name.startswith("libpcap.so")
    version = subprocess.run(["tcpdump", "--version"], capture_output=True, text=True, check=True)
    assert loaded.version in version.stdout + version.stderr


def test_package_comes_next(fresh: pytest.MonkeyPatch) -> None:
    hide_the_system(fresh)
    assert pcap_bridge.libpcap().path == str(PACKAGED)
    # Found, but not imported.
    assert "libpcap" not in sys.modules


def test_environment_comes_before_all(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("PCAPEXT_LIBPCAP", str(PACKAGED))
    assert pcap_bridge.libpcap().path == str(PACKAGED)
    assert pcap_bridge.description() == f"{pcap_bridge.libpcap().version}, {PACKAGED}"


@pytest.mark.parametrize("name", ["/no/such/libpcap.so", "libm.so.6", __file__])
def test_environment_is_not_fallen_back_from(fresh: pytest.MonkeyPatch, name: str) -> None:
    fresh.setenv("PCAPEXT_LIBPCAP", name)
    with pytest.raises(LibpcapError, match="PCAPEXT_LIBPCAP names") as caught:
        pcap_bridge.libpcap()
    assert name in str(caught.value)


def test_empty_environment_names_nothing(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("PCAPEXT_LIBPCAP", "")
    assert pcap_bridge.libpcap().version


def test_no_libpcap_says_what_to_install(fresh: pytest.MonkeyPatch) -> None:
    hide_the_system(fresh)
    fresh.setattr(sys, "path", [])
    with pytest.raises(LibpcapError, match=r"libpcap was not found: install it.*pip install libpcap"):
        pcap_bridge.libpcap()


# --- link types (numbers from the registry at https://www.tcpdump.org/linktypes.html)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("NULL", 0),
        ("EN10MB", 1),
        ("PPP", 9),
        ("RAW", 12),
        ("IEEE802_11", 105),
        ("LOOP", 108),
        ("LINUX_SLL", 113),
        ("IEEE802_11_RADIO", 127),
        ("PPI", 192),
        ("IPV4", 228),
        ("IPV6", 229),
        ("LINUX_SLL2", 276),
    ],
)
def test_linktype_names(name: str, number: int) -> None:
    for spelling in (name, name.lower(), f"DLT_{name}", f"LINKTYPE_{name}", f"dlt_{name.lower()}"):
        assert linktype_number(spelling) == number
    assert linktype_number(number) == number
    assert pcap_bridge.linktype_name(number) == name
    assert pcap_bridge.linktype_description(number)


def test_unknown_linktypes() -> None:
    for name in ("EN10GB", "", "DLT_", "1", "EN10MB\0", "EN10MB\ud800", " EN10MB"):
        with pytest.raises(LibpcapError, match="unknown link type"):
            linktype_number(name)
    for number in (-1, 0x10000):
        with pytest.raises(LibpcapError, match=f"link type {number} is out of range"):
            linktype_number(number)
    assert pcap_bridge.linktype_name(5000) is None
    assert pcap_bridge.linktype_description(5000) is None


# --- compiling, against tcpdump


EXPRESSIONS = [
    ("EN10MB", ""),
    ("EN10MB", "tcp port 80 or 443"),
    ("EN10MB", "host 10.0.0.1 and not net 192.168.0.0/16"),
    ("EN10MB", "vlan 10 and ip6 host ::1 or mpls 1024"),
    ("EN10MB", "geneve 7 and tcp[tcpflags] & (tcp-syn|tcp-fin) != 0"),
    ("EN10MB", "len - 5 > ip[2:2] * 0xffffffff or ether[len]=4294967295"),
    ("EN10MB", "ip6 protochain 6"),
    ("EN10MB", "portrange 90-80 or proto \\gre or ether host 1:2:3:4:5:6"),
    ("RAW", "icmp6 and ip6[40] = 135"),
    ("LINUX_SLL", "inbound and tcp"),
    ("LINUX_SLL2", "ifindex 3 and udp"),
    ("NULL", "ip and udp"),
    ("IEEE802_11_RADIO", "type mgt subtype beacon and wlan addr1 00:00:00:00:00:01"),
]


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize(("linktype", "expression"), EXPRESSIONS)
def test_programs_are_those_of_tcpdump(linktype: str, expression: str) -> None:
    for flags, snaplen, optimize in ((["-s", "96"], 96, True), (["-O"], 262144, False)):
        command = ["tcpdump", "-ddd", "-y", linktype, *flags, expression]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
        expected = tuple(Instruction(*map(int, line.split())) for line in lines)
        assert compile_expression(expression, linktype_number(linktype), snaplen, optimize=optimize) == expected


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("expression", ["vlan", "vlan 3 and tcp", "vlan and vlan 7 or arp", "mpls and ip", "ip and not vlan"])
def test_live_programs_are_those_of_tcpdump(expression: str) -> None:
    for flags, snaplen, optimize in ((["-s", "96"], 96, True), (["-O"], 262144, False)):
        command = ["tcpdump", "-i", "lo", "-ddd", *flags, expression]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
        expected = tuple(Instruction(*map(int, line.split())) for line in lines)
        live = compile_expression(expression, "EN10MB", snaplen, optimize=optimize, live=True)
        assert live == expected
        assert ("vlan" in expression) is (live != compile_expression(expression, "EN10MB", snaplen, optimize=optimize))


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.usefixtures("each_libpcap", "no_descriptor_is_left")
def test_live_programs_differ_by_vlan_on_ethernet_alone() -> None:
    """libpcap makes no other difference between a live handle and a dead one."""
    pcap = open_ethernet(262144)
    program = libpcap().ffi.new("struct bpf_program *")
    try:
        for linktype, expression in EXPRESSIONS:
            if linktype == "EN10MB" and "vlan" not in expression:
                assert libpcap().lib.pcap_compile(pcap, program, expression.encode(), 1, 0xFFFF_FFFF) == 0
                octets = bytes(libpcap().ffi.buffer(program.bf_insns, program.bf_len * 8))
                libpcap().lib.pcap_freecode(program)
                assert octets == bytes(Program(compile_expression(expression)))
    finally:
        libpcap().lib.pcap_close(pcap)
    for linktype in ("LINUX_SLL", "LINUX_SLL2", "RAW"):
        with pytest.raises(FilterError, match="no VLAN support"):
            compile_expression("vlan", linktype, live=True)


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize(
    "expression",
    [
        "tcp and",
        "(tcp",
        "tcp)",
        "ether host 10.0.0.1",
        "port 70000",
        "ip proto \\nosuch",
        "ip[0:3] = 1",
        "net 10.0.0.1/8",
        "1/0 = 1",
        "0x123456789 = 1",
        "ip and arp",
        "ip6 host 10.0.0.1",
        "wlan type mgt",
        "host ::1::",
        "port é",
        "inner tcp",
    ],
)
def test_errors_are_those_of_tcpdump(expression: str) -> None:
    run = subprocess.run(["tcpdump", "-d", "-y", "EN10MB", expression], capture_output=True, text=True)
    assert run.returncode == 1
    with pytest.raises(FilterError) as caught:
        compile_expression(expression)
    assert run.stderr == f"tcpdump: {caught.value.message}\n"
    assert caught.value.span is None


def test_netmask_decides_what_a_broadcast_is() -> None:
    program = compile_expression("ip broadcast", netmask=0xFFFFFF00)
    for last, verdict in ((255, True), (0, True), (254, False)):
        packet = bytes(12) + b"\x08\x00\x45" + bytes(15) + bytes([10, 0, 0, last])
        assert bool(run_filter(program, packet)) is verdict
    with pytest.raises(FilterError, match="netmask not known"):
        compile_expression("ip broadcast")


@pytest.mark.parametrize("netmask", [-1, 1 << 32])
def test_netmask_out_of_range(netmask: int) -> None:
    with pytest.raises(FilterError, match=r"netmask .* is out of range"):
        compile_expression("ip", netmask=netmask)


def test_snaplen_out_of_range() -> None:
    for snaplen in (-1, 1 << 31):
        with pytest.raises(FilterError, match=r"snap length .* is out of range"):
            compile_expression("ip", snaplen=snaplen)
    with pytest.raises(FilterError, match="snaplen of 0 rejects all packets"):
        compile_expression("ip", snaplen=0)
    assert compile_expression("", snaplen=0x7FFFFFFF) == (Instruction(bpf.RET_K, k=0x7FFFFFFF),)


@pytest.mark.parametrize(("text", "start"), [("tcp\0", 3), ("\0", 0), ("host \udc80", 5), ("é\ud83d", 1)])
def test_characters_that_no_expression_holds(text: str, start: int) -> None:
    with pytest.raises(FilterError, match=f"character {start + 1}") as caught:
        compile_expression(text)
    assert (caught.value.expression, caught.value.span) == (text, Span(start, start + 1))


# --- running


@pytest.mark.usefixtures("each_libpcap")
def test_run_filter() -> None:
    program = compile_expression("len >= 100 and ether[1] = 2", snaplen=77)
    assert run_filter(program, b"\1\2", 100) == 77
    assert run_filter(program, b"\1\2", 99) == 0
    assert run_filter(program, b"\1", 100) == 0  # a load past the end
    assert run_filter(program, b"", 100) == 0
    for buffer in (bytearray(b"\1\2"), memoryview(b"\1\2")):
        assert run_filter(program, buffer, 100) == 77


@pytest.mark.parametrize("instructions", [(), (Instruction(bpf.LD_IMM),), (Instruction(bpf.JEQ_K, 5, 5), Instruction(bpf.RET_K))])
def test_invalid_programs_are_not_run(instructions: tuple[Instruction, ...]) -> None:
    with pytest.raises(ProgramError, match="does not take"):
        run_filter(instructions, b"")


# --- long expressions


def chain(term: Callable[[int], str], count: int, connective: str = " or ") -> str:
    return connective.join(term(i) for i in range(count))


def ip(i: int) -> str:
    return f"10.0.{i // 250}.{i % 250}"


#: What the heaviest kinds of term make of libpcap, on the heaviest link types and behind `geneve`.
TERMS: list[Callable[[int], str]] = [
    lambda i: "tcp",
    lambda i: "ah",
    lambda i: f"host {ip(i)}",
    lambda i: f"ip host {ip(i)}",
    lambda i: f"ip src or dst host {ip(i)}",
    lambda i: f"host 2001:db8::{i:x}",
    lambda i: f"net 10.{i % 250}.0.0/16",
    lambda i: f"net 10.{i % 250}.0.0 mask 255.255.0.0",
    lambda i: f"port {i}",
    lambda i: f"tcp dst port {i}",
    lambda i: f"portrange {i}-{i + 9}",
    lambda i: f"udp portrange {i}-{i + 9}",
    lambda i: f"proto {i % 256}",
    lambda i: f"ip6 proto {i % 256}",
    lambda i: f"ether host 0:0:0:0:0:{i % 256:x}",
    lambda i: f"tcp[{i}] = {i}",
    lambda i: f"tcp[tcp[{i}]:2] & {i} > udp[{i}] << 3",
    lambda i: f"ether[{i}:4] - {i} * len / 3 > -{i}",
    lambda i: f"len = {i}",
    lambda i: f"vlan {i}",
    lambda i: "ip6 multicast",
    lambda i: "ether broadcast",
    lambda i: "llc",
]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term(1))
def test_weight_is_about_an_upper_bound(term: Callable[[int], str]) -> None:
    """The weight, which decides what libpcap is spared, is hardly ever less than the instructions that libpcap makes."""
    expressions = [term(1), chain(term, 40), chain(term, 40, "||"), f"geneve and ({chain(term, 30)})"]
    # Values that follow a term without a kind of their own.
    head, _, value = term(7).rpartition(" ")
    if head.endswith(("host", "net", "port", "portrange", "proto")):
        expressions.append(term(1) + 60 * f" or {value}")
    for linktype in (1, 7, 12, 105, 123, 127):
        for expression in expressions:
            weight = pcap_bridge._weigh(expression, linktype)
            with suppress(FilterError):  # not every link type has every term
                assert len(compile_expression(expression, linktype, optimize=False)) <= 1.3 * weight + 4, (linktype, expression[:60])


@pytest.mark.parametrize(
    ("expression", "optimize", "length"),
    [
        (chain(lambda i: f"ip host {ip(i)}", 1000), True, 3751),
        (chain(lambda i: f"host {ip(i)}", 500), False, 14938),
        (chain(lambda i: f"tcp port {i}", 300), True, None),
        (chain(lambda i: f"tcp[13] & {i} != 0", 250), True, None),
        ("not " * 5000 + "tcp", True, 12),
        ("(" * 5000 + "tcp" + ")" * 5000, True, 12),
        (" " * 1_000_000, True, 1),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_long_expressions_that_compile(expression: str, optimize: bool, length: int | None) -> None:
    instructions = compile_expression(expression, optimize=optimize)
    assert length is None or len(instructions) == length


@pytest.mark.usefixtures("each_libpcap")
@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("not " * 500_000 + "tcp", "memory exhausted"),
        ("(" * 500_000 + "tcp" + ")" * 500_000, "memory exhausted"),
        ("(" * 500_000, "memory exhausted"),
        ("len > " + "- " * 50_000 + "1", "memory exhausted"),
        ("[" * 100_000, "syntax error"),
        ("ip[" * 4000, "too long for libpcap"),
        (chain(lambda i: "tcp", 50_000), "too long for libpcap"),
        (chain(lambda i: f"host {ip(i)}", 5000), "too long for libpcap"),
        (chain(lambda i: f"portrange {i}-{i + 1}", 5000, "||"), "too long for libpcap"),
        ("port 1" + " or 1" * 5000, "too long for libpcap"),
        ("len > 1" + "+1" * 60_000, "too long for libpcap"),
        ("1" + "&1" * 60_000 + "= 1", "too long for libpcap"),
        ("geneve and " + chain(lambda i: f"port {i}", 200), "too long for libpcap"),
        (chain(lambda i: f"host {ip(i)}", 500), "too long for libpcap's optimizer: 14938 instructions"),
        ("host " + "a" * 100_000, "too long for libpcap"),
        ("proto \\" + "a" * 100_000, "too long for libpcap"),
        ("1" * 100_000 + " = 1", "number 1111"),
        ("portrange " + "1" * 200 + "-2", "illegal port number|overflows"),
        ("tcp " * 20_000, "syntax error|too long"),
    ],
    ids=lambda value: value[:20],
)
def test_long_expressions_that_do_not(expression: str, words: str) -> None:
    started = time.process_time()
    with pytest.raises(FilterError, match=words) as caught:
        compile_expression(expression)
    assert time.process_time() - started < 8
    assert len(caught.value.message) < 256
    if "too long for libpcap" in caught.value.message and "out of memory" not in caught.value.message:
        assert caught.value.span is not None


def test_place_of_what_is_too_much() -> None:
    expression = chain(lambda i: f"host {ip(i)}", 1100)
    with pytest.raises(FilterError) as caught:
        compile_expression(expression)
    assert caught.value.span is not None
    # A host weighs 30, so the 1067th is the first above 32,000.
    assert expression[caught.value.span.start : caught.value.span.end] == ip(1066)


def test_deep_stack() -> None:
    """Compiled in a thread whose own stack is far too small for libpcap's recursion."""
    script = """
import threading
from pcapext.pcap_bridge import compile_expression
expression = " or ".join(["tcp"] * 1000)
threading.stack_size(1 << 16)
lengths = []
thread = threading.Thread(target=lambda: lengths.append(len(compile_expression(expression, optimize=False))))
thread.start()
thread.join()
print(lengths[0], threading.stack_size())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout) == (0, f"14938 {1 << 16}\n"), run.stderr


#: Names that a server would have to be asked for are not among them.
WORDS = """
tcp udp ip ip6 arp vlan mpls geneve pppoes host net port portrange proto protochain ether src dst and or not ( ) [ ] : = < > != & && ||
+ - * / % ^ << len less greater broadcast multicast 0 1 6 80 0x800 65536 4294967295 10.0.0.1 10.0.0.0/8 256.1 ::1 fe80::/10 1:2:3:4:5:6
$1a mask inbound gateway llc type mgt wlan addr1 ra iso isis atalk tcpflags localhost \\tcp \\ip é \\ $ ' # inner outer payload poff
"""


@given(st.lists(st.sampled_from(WORDS.split()), max_size=25), st.sampled_from([0, 1, 12, 105, 113, 127, 163, 276]), st.booleans())
@example(["(", ")"], 1, True)
def test_random_words(words: list[str], linktype: int, optimize: bool) -> None:
    """A program that libpcap's own check passes, or an error."""
    with suppress(FilterError):
        run_filter(compile_expression(" ".join(words), linktype, optimize=optimize), bytes(100))


class Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc (malloc.h)."""

    _fields_ = [*((f"other{i}", ctypes.c_size_t) for i in range(7)), ("uordblks", ctypes.c_size_t), ("rest", ctypes.c_size_t * 2)]


def test_nothing_leaks() -> None:
    good = "host 10.0.0.1 and tcp port 80"
    bad = ("host ::1 and (", "ether host 10.0.0.1", "proto \\nosuch", "ip[0:3] = 1", "ip and arp")
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo

    def allocated(rounds: int) -> int:
        for _ in range(rounds):
            compile_expression(good)
            for expression in bad:
                with pytest.raises(FilterError):
                    compile_expression(expression)
        return int(libc.mallinfo2().uordblks)

    before = allocated(50)
    # The smallest thing that could be left behind on each round, a program of 20 instructions, would be 32 kB in all.
    assert allocated(200) - before < 16_000


def test_threads_compile_at_once() -> None:
    expressions = [f"host 10.0.0.{i} and port {i} or vlan {i}" for i in range(40)]
    expected = [compile_expression(expression) for expression in expressions]
    wrong: list[str] = []

    def run(seed: int) -> None:
        for _ in range(100):
            i = random.Random(seed).randrange(40)
            if compile_expression(expressions[i]) != expected[i]:
                wrong.append(expressions[i])

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
