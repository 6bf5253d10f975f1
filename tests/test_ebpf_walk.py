"""The walk in eBPF finds what the reference walk finds: every key and every name, on packets of every nesting, whole, cut and damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import packets
import pytest
from ebpf_oracles import KEYS, Findings, accepts_on_socket, by_walk, takes
from graphs import EFFORT
from packets import EN10MB, LINK_TYPES

from pcapext import compile, ebpf_walk
from pcapext.cfg import Key, Passed
from pcapext.dissect import dissect, walk
from pcapext.encapsulation import ENCAPSULATION_NAMES, WalkSettings
from pcapext.errors import FilterError

pytestmark = [pytest.mark.root, pytest.mark.kernel]

IDENTIFIED = [
    Passed(name, number) for name, number in (("vlan", 10), ("mpls", 1024), ("pppoe", 7), ("vxlan", 42), ("gre", 7), ("nvgre", 7))
]
NAMES = [*map(Passed, ENCAPSULATION_NAMES), *IDENTIFIED]

DEEP = WalkSettings(max_levels=16)
SHALLOW = WalkSettings(max_levels=2, vlan_tags=1, mpls_labels=1, extension_headers=1, gtpu_extensions=1)
FLAT = WalkSettings(max_levels=1, vlan_tags=0, mpls_labels=0, extension_headers=0, gtpu_extensions=0)
LONG = WalkSettings(max_levels=16, vlan_tags=16, mpls_labels=16, extension_headers=16, gtpu_extensions=16)
PORTS = WalkSettings(tunnel_ports={"vxlan": [4789, 80], "gre": [], "teredo": [4754]})
SETTINGS = {"deep": DEEP, "usual": WalkSettings(), "shallow": SHALLOW, "flat": FLAT, "long": LONG, "ports": PORTS}


def damaged(data: bytes, random: Random) -> bytes:
    """The packet with a few bytes of its headers changed."""
    octets = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        octets[random.randrange(min(len(octets), 120))] = random.choice((0, 1, 4, 6, 0x45, 0x60, 0xFF, random.randrange(256)))
    return bytes(octets)


def variants(data: bytes, random: Random) -> list[bytes]:
    return [data, data[: random.randrange(len(data) + 1)], damaged(data, random)] if data else [data]


def check(findings: Findings, settings: WalkSettings, data: bytes) -> None:
    linktype = findings.link_layer.linktype
    found, expected = findings.of(data), by_walk(walk(data, linktype, settings), findings.values)
    assert found == expected, (linktype, data.hex())


def check_generated(settings: WalkSettings, values: Sequence[Key | Passed], linktypes: Sequence[int], count: int, seed: int) -> None:
    programs = {linktype: Findings(linktype, settings, values) for linktype in linktypes}
    random, checked = Random(seed), 0
    try:
        for made in packets.packets(count * EFFORT, seed, linktypes=linktypes):
            for data in variants(made.data, random):
                if takes(made.linktype, data):
                    check(programs[made.linktype], settings, data)
                    checked += 1
    finally:
        for program in programs.values():
            program.close()
    assert checked > count * EFFORT


@pytest.mark.parametrize("name", SETTINGS)
def test_ethernet(name: str) -> None:
    check_generated(SETTINGS[name], [*KEYS, *NAMES], [EN10MB], 120, 1)


def test_link_types() -> None:
    check_generated(DEEP, [key for key in KEYS if not key.outer], LINK_TYPES, 300, 2)


@pytest.mark.parametrize("values", [[key] for key in KEYS[:6]] + [[Key("lhoff")], [Key("depth", True)], [Passed("gre", 7)]], ids=str)
def test_each_alone(values: list[Key | Passed]) -> None:
    """What is not wanted is left out of the program."""
    check_generated(DEEP, values, [EN10MB], 60, 3)


def test_every_cut() -> None:
    """Packets that end after each of their bytes, the empty one too."""
    findings = Findings(EN10MB, DEEP)
    try:
        for made in packets.packets(12, 4, linktypes=[EN10MB]):
            for data in (*packets.truncations(made.data[:220]), made.data):
                check(findings, DEEP, data)
    finally:
        findings.close()


@pytest.mark.parametrize("levels", [1, 3, 15, 16, 17, 20])
@pytest.mark.parametrize("tags", [0, 3, 4])
def test_deep(levels: int, tags: int) -> None:
    """Ethernet in GRE in IPv4, so many times, each time behind tags, the last of which may be one too many."""

    def frame(level: int) -> bytes:
        header = bytes(12) + b"\x81\x00\x00\x0a" * (tags if level == levels else min(tags, 3)) + b"\x08\x00"
        carried = bytes.fromhex("00006558") + frame(level + 1) if level < levels else b"\0\x50" * 10
        return header + bytes.fromhex(f"45000000 00000000 40{47 if level < levels else 6:02x}0000 0a000001 0a000002") + carried

    findings = Findings(EN10MB, DEEP, [*KEYS, *NAMES])
    try:
        found = findings.of(frame(1))
        assert found[Key("depth")] == min(levels, 16) - 1
        assert found[Key("tproto")] == (47 if levels > 16 else 6 if tags < 4 else 0)
        check(findings, DEEP, frame(1))
    finally:
        findings.close()


def chain(count: int) -> bytes:
    """An IPv6 header with so many extension headers of 2048 bytes, and TCP behind them."""
    header = bytes.fromhex("60000000 0000 00 40") + bytes(32)
    return header + (b"\x00\xff" + bytes(2046)) * (count - 1) + b"\x06\xff" + bytes(2046) + b"\0\x50" * 10


@pytest.mark.parametrize(("count", "levels"), [(15, 1), (15, 2), (16, 1), (16, 2)])
def test_the_walk_sees_65535_bytes(count: int, levels: int) -> None:
    """Two levels of 16 headers end behind that, two of 15 do not."""
    tunnelled = chain(count).replace(b"\x06\xff", b"\x29\xff", 1) if levels == 2 else b""
    frame = bytes(12) + b"\x86\xdd" + (tunnelled[:-20] + chain(count) if levels == 2 else chain(count)) + bytes(6000)
    assert (len(frame) > 0xFFFF) == (levels == 2)
    keys = dissect(frame, EN10MB, LONG)
    assert keys.depth == levels - 1
    program = compile(
        f"thoff = {keys.thoff} and tproto = {keys.tproto} and nhoff = {keys.nhoff} and depth = {keys.depth}",
        target="ebpf",
        max_levels=16,
        extension_headers=16,
    )
    assert accepts_on_socket(program, frame)
    assert not accepts_on_socket(compile(f"thoff = {keys.thoff + 1}", target="ebpf", max_levels=16, extension_headers=16), frame)


def test_more_names_than_there_is_room_for() -> None:
    expression = " or ".join(f"encap vlan {number}" for number in range(249))
    with pytest.raises(FilterError, match=r"^249 different 'encap' terms, and an eBPF program has room for 248$"):
        compile(expression, target="ebpf")


def test_the_description_is_the_table() -> None:
    """No number of a protocol or a port stands in the package: the rows have them."""
    source = "".join(path.read_text() for path in Path(ebpf_walk.__file__).parent.glob("*.py"))
    assert not [number for number in ("0x8100", "0x88", "4789", "6081", "2152", "3544", "47,", "0x22EB") if number in source]
