"""C: what is written compiles without a warning, does what the graph does, and passes the kernel's verifier.

The verdicts of whole filters are for test_everywhere.py.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from c_programs import Native
from graphs import EFFORT, evaluate, random_graphs, random_packet
from oracle import Packet, with_known_values
from packets import EN10MB, LINK_TYPES, packets

from benchmarks.clang import LONGEST, SHORTEST, WARNINGS, WRAPPERS, InKernel, run
from pcapext.cfg import Binary, Block, Cfg, Const, Key, Operator, Passed, Return, Value
from pcapext.compiler import compile
from pcapext.csource import CSource
from pcapext.dissect import walk
from pcapext.encapsulation import ENCAPSULATION_NAMES, LINK_LAYER_BY_NUMBER, WalkSettings
from pcapext.errors import FilterError
from pcapext.flowkeys import FLOW_KEYS
from pcapext.lower import load_once, wanted_of
from pcapext.machine import run as machine
from pcapext.optimize import optimize
from pcapext.write_c import found_locals, write_c

#: Filters whose C has everything in it that may be there: all headers by name and identifier, all keys, no walk, no packet.
FILTERS = [
    "inner tcp port 80",
    "outer udp",
    "inner ether multicast and payload[0] > 5 and depth > 0 or (ip[2:2] << ip[8]) + ip[ip[0]:2] = 5",
    " or ".join(f"encap {name}" for name in ENCAPSULATION_NAMES),
    "encap vlan 1 or encap mpls 1 or encap pppoe 1 or encap gre 1 or encap nvgre 1 or encap erspan 1 or encap vxlan 1 or encap gtpu 1",
    "tcp port 80",
    "greater 100",
    "",
]
COMPILERS = [
    *(f"{compiler} -std={standard} {level}" for compiler in ("gcc", "clang") for standard in ("c99", "c11") for level in ("-O0", "-O2")),
    "g++ -x c++ -std=c++11 -O2",
    "clang++ -x c++ -std=c++17",
]


def written(value: Value, linktype: int, settings: WalkSettings) -> CSource:
    """A function that returns a value made of what the walk finds."""
    cfg = Cfg(0, {0: Block((), Return(value))})
    wanted = wanted_of(cfg)
    text = write_c(load_once(cfg, found_locals(wanted)), "", "test", wanted, LINK_LAYER_BY_NUMBER[linktype], settings)
    return CSource(text, linktype, 1, "")


@pytest.mark.tools("gcc", "g++", "clang", "clang++")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_compiler_warns(compiler: str, tmp_path: Path) -> None:
    for number, expression in enumerate(FILTERS):
        (tmp_path / f"{number}.c").write_text(compile(expression, target="c").text)
    command, *flags = compiler.split()
    subprocess.run([command, *flags, *WARNINGS, "-fsyntax-only", *sorted(tmp_path.glob("*.c"))], check=True)


def mixed(values: list[Value]) -> Value:
    """One number of many, of which each change makes another one."""
    total: Value = Const(1)
    for value in values:
        total = Binary(Operator.ADD, Binary(Operator.MUL, total, Const(0x9E3779B1)), value)
    return total


def mixed_numbers(numbers: list[int]) -> int:
    total = 1
    for number in numbers:
        total = (total * 0x9E3779B1 + number) & 0xFFFFFFFF
    return total


SETTINGS = [
    WalkSettings(),
    WalkSettings(max_levels=16),
    WalkSettings({"vxlan": (), "geneve": (7000, 6081)}, 2, 1, 2, 1, 0),
    WalkSettings(dict.fromkeys(WalkSettings().tunnel_ports, ()), 1, 0, 0, 0, 0),
]


@pytest.mark.tools("cc")
@pytest.mark.parametrize(
    ("linktype", "settings"), [*((linktype, SETTINGS[0]) for linktype in LINK_TYPES), *((EN10MB, settings) for settings in SETTINGS[1:])]
)
def test_the_walk_is_the_reference_walk(linktype: int, settings: WalkSettings) -> None:
    """All keys of the innermost and the outermost headers, all names, and some identifiers, on packets whole and cut."""
    keys = [Key(key.name, outer) for key in FLOW_KEYS for outer in (False, True)]
    names = [Passed(name) for name in ENCAPSULATION_NAMES]
    numbered = [Passed("vlan", 10), Passed("mpls", 1024), Passed("vxlan", 42), Passed("gre", 7), Passed("nvgre", 5), Passed("gtpu", 9)]
    native = Native(written(mixed([*keys, *names, *numbered]), linktype, settings))
    random, seen = Random(linktype), set()
    for index, made in enumerate(packets(250 * EFFORT, linktype, linktypes=[linktype])):
        packet = with_known_values(made, index)
        for length in (len(packet.data), *random.choices(packet.cuts(), k=4)):
            data = packet.data[:length]
            found = walk(data, linktype, settings)
            passed = {(header.name, number) for header in found.headers for number in (None, header.identifier)}
            numbers = [getattr(found.outer if key.outer else found.keys, key.name) for key in keys]
            numbers += [(asked.name, asked.identifier) in passed for asked in (*names, *numbered)]
            wanted = mixed_numbers(numbers)
            assert native(data, length) == wanted, (packet.layers, data.hex(), numbers)
            seen.add(wanted)
    assert len(seen) > 40


def test_offsets_have_16_bits() -> None:
    """The walk sees the first 65535 bytes, and a load of the filter sees all."""
    frame = bytes(12) + b"\x86\xdd" + bytes(6) + b"\x3c" + bytes(33) + b"\x3c\xff".ljust(2048, b"\0") * 40 + b"\x06\0" + bytes(100)
    settings = WalkSettings(extension_headers=16)
    native = Native(written(mixed([Key("thoff"), Key("tproto")]), EN10MB, settings))
    for length in (60, 40000, 65535, 65536, len(frame)):
        found = walk(frame[:length], EN10MB, settings).keys
        assert native(frame[:length], length) == mixed_numbers([found.thoff, found.tproto])
    far = Native(compile("ether[80000] = 5 and inner ip6", target="c"))
    assert far(frame[:80000] + b"\5", 80001) == 262144
    assert far(frame[:80000], 80001) == 0


@pytest.mark.tools("cc")
def test_random_graphs(tmp_path: Path) -> None:
    """All at once, since starting a compiler takes longest."""
    graphs = list(random_graphs(60, seed=31, keys=False))
    for number, (cfg, _) in enumerate(graphs):
        for name, graph in (("plain", cfg), ("optimized", optimize(cfg))):
            text = write_c(graph, "", "test", frozenset(), None, WalkSettings())
            (tmp_path / f"{name}_{number}.c").write_text(text.replace("FILTER uint32_t filter(", f"uint32_t {name}_{number}("))
    # Without the warnings: much of what random graphs ask always holds.
    run("cc", "-std=c99", "-O0", "-w", "-shared", "-fPIC", "-o", tmp_path / "all.so", *sorted(tmp_path.glob("*.c")))
    library = ctypes.CDLL(str(tmp_path / "all.so"))
    varied = 0
    for number, (cfg, rng) in enumerate(graphs):
        returned = set()
        for _ in range(20):
            data = random_packet(rng)
            wirelen = len(data) + rng.choice((0, 0, 40))
            held = ctypes.create_string_buffer(data, max(len(data), 1))
            begin = ctypes.addressof(held)
            expected = evaluate(cfg, data, wirelen)
            for name in ("plain", "optimized"):
                function = library[f"{name}_{number}"]
                function.restype, function.argtypes = ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
                assert function(begin, begin + len(data), wirelen) == expected, (name, str(cfg), data.hex(), wirelen)
            returned.add(expected)
        varied += len(returned) > 1
    assert varied > 25


@pytest.mark.tools("cc")
def test_a_long_list() -> None:
    """Braces nest with the logarithm of a list's length, and the C is as long as the list."""
    for level, count in ((0, 100), (1, 1000)):
        listed = " or ".join(f"10.{number >> 8}.{number & 255}.7" for number in range(count))
        source = compile(f"inner host {listed}", target="c", optimize=level)
        assert max(len(line) - len(line.lstrip()) for line in source.text.splitlines()) < 60
        native = Native(source, "cc", "-std=c99", "-O0")
        for number in (0, count - 1, count):
            addresses = bytes([10, number >> 8, number & 255, 7, 192, 0, 2, 1])
            frame = bytes(12) + b"\x08\0\x45" + bytes(8) + b"\x06" + bytes(2) + addresses + bytes(20)
            assert native(frame, len(frame)) == (262144 if number < count else 0)


#: Filters that need the walk for some packets only.
MIXED = [
    "inner tcp port 80",
    "tcp port 80 or inner host 10.0.0.1",
    "ip6 and inner tcp or arp and inner udp or tcp and depth > 1",
    "ip[2:2] = poff - 14",
    "ip[8] > 100 and inner icmp",
    "host 10.0.0.1 and not inner host 10.0.0.1 and not inner ether multicast",
    "vlan and inner ip and ip",
]


@pytest.mark.tools("cc")
@pytest.mark.parametrize("expression", MIXED)
def test_the_walk_runs_once_where_it_is_needed(expression: str) -> None:
    """In C as on the machine: once at the most, and not where the rest of the filter decides."""
    source = compile(expression, target="c")
    head = "static void walk(const uint8_t *data, const uint8_t *data_end, struct found *found)\n{\n"
    assert source.text.count(head) == 1
    native = Native(replace(source, text=source.text.replace(head, f"extern uint32_t walks;\nuint32_t walks;\n{head}    walks++;\n")))
    walks = ctypes.c_uint32.in_dll(native.library, "walks")
    keys, each = compile(expression, target="keys"), compile(expression)
    counted = Counter[int]()
    for index, made in enumerate(packets(300, 6, linktypes=[EN10MB])):
        packet = with_known_values(made, index)
        for length in (len(packet.data), *packet.cuts()[:4]):
            data = packet.data[:length]
            walks.value = 0
            value = native(data, length)
            on_machine = machine(keys, data)
            assert (value, walks.value) == (on_machine.value, on_machine.dissected), (packet.layers, data.hex())
            assert walks.value <= machine(each, data).dissected <= 1
            counted[walks.value] += 1
    assert counted[1] > 10
    assert (counted[0] > 10) == (expression != MIXED[0])


# ---- In the kernel ----


def whole_packets(count: int, seed: int) -> Iterator[Packet]:
    for index, made in enumerate(packets(count, seed, linktypes=[EN10MB])):
        packet = Packet.whole(with_known_values(made, index))
        if SHORTEST <= len(packet.data) <= LONGEST:
            yield packet


@pytest.mark.root
@pytest.mark.tools("cc", "clang")
@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("expression", ["inner tcp port 80", "tcp port 80 or inner tcp port 80 and inner ip or encap vlan 10", "tcp"])
def test_verifier_takes_it(kind: str, expression: str) -> None:
    """The second one walks in two places, so that the walk is a function of its own there too."""
    source = compile(expression, target="c")
    native, program = Native(source), InKernel(source, kind)
    returned = set()
    for packet in whole_packets(200, 3):
        returned.add(program(packet.data))
        assert program(packet.data) == native(packet.data, packet.length)
    assert returned == {0, 262144}
    program.close()


@pytest.mark.root
@pytest.mark.tools("clang")
@pytest.mark.parametrize("expression", FILTERS)
def test_verifier_takes_16_levels(expression: str) -> None:
    """With room below the million of instructions that it looks at."""
    program = InKernel(compile(expression, target="c", max_levels=16))
    assert program.verified < 700_000
    assert program.length < 2000
    program.close()


# ---- Bad input ----


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("ifindex 3 or inner tcp", "the filter asks for [ifidx], and C sees nothing but the bytes of a packet"),
        ("inbound", "the filter asks for [type], and C sees nothing but the bytes of a packet"),
        ("ip6 protochain 6", "'protochain' makes a loop, and target 'c' cannot have one\n  ip6 protochain 6\n      ^^^^^^^^^^"),
        ("inner tcp and and", "unexpected 'and', expected a term\n  inner tcp and and\n                ^^^"),
        ("tcp and inner ip and not inner ip", "expression rejects all packets\n  tcp and inner ip and not inner ip\n  " + "^" * 33),
    ],
)
def test_errors(expression: str, message: str) -> None:
    with pytest.raises(FilterError) as caught:
        compile(expression, target="c")
    assert str(caught.value) == message


@pytest.mark.tools("cc")
def test_a_comment_stays_one() -> None:
    """What the expression says stands in a comment, and cannot end it."""
    cfg = Cfg(0, {0: Block((), Return(Const(7)))})
    for expression in ("*/ #error */", "/* // /*/ */*/", "a\nb\\", "é"):
        text = write_c(cfg, expression, "test", frozenset(), None, WalkSettings())
        assert Native(CSource(text, 1, 1, expression))(b"", 0) == 7


def test_source_says_what_it_is() -> None:
    source = compile("inner tcp", target="c", linktype="RAW", snaplen=96, max_levels=2)
    assert (source.linktype, source.snaplen, source.expression, source.settings) == (12, 96, "inner tcp", WalkSettings(max_levels=2))
    assert source.dump() == source.text
    assert "return 96;" in source.text
    assert "inner tcp" in source.text.partition("*/")[0]
    assert "link type RAW" in source.text.partition("*/")[0]
    assert compile("inner tcp", target="c", max_levels=4).settings is None
