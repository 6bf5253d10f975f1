"""`pcapext.integrations.dpkt`: of what a reader gives, what matches; and nothing where dpkt does not tell enough."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import capturefiles
import dpkt
import pytest
from capturefiles import NANOSECONDS, SECOND, File, pcap, pcapng, several_link_types, with_other_blocks
from dpkt.pcap import UniversalReader
from everywhere import sample
from oracle import NETMASK, expected, libpcap_matches, text_of
from packets import EN10MB, LINUX_SLL, PPP, RAW

import pcapext
from pcapext.errors import CaptureError, FilterError, ProgramError
from pcapext.integrations.dpkt import FilteredReader, filtered

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def opened(file: File) -> Any:
    return UniversalReader(BytesIO(file.octets))


FORMS: dict[str, Callable[[list[capturefiles.Packet]], File]] = {
    "micro": pcap,
    "nano": lambda packets: pcap(packets, ">", NANOSECONDS),
    "pcapng": lambda packets: pcapng(packets, ">", 9),
    "blocks": with_other_blocks,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter", ["tcp port 80", "ip6 or arp", "len > 1000", "vlan 5"])
def test_what_the_reader_gives(form: str, filter: str) -> None:
    """Its times and bytes, where libpcap's interpreter accepts what was captured."""
    file = FORMS[form](capturefiles.traffic(300, 5))
    everything = list(opened(file))
    assert len(everything) == 300
    wanted = [(time, data) for time, data in everything if libpcap_matches(filter, data, EN10MB)]
    assert list(filtered(opened(file), filter)) == wanted
    assert len(wanted) > 5


@pytest.mark.parametrize("linktype", [EN10MB, RAW, PPP, LINUX_SLL])
@pytest.mark.parametrize("template", ["{inner tcp port 80}", "not {inner udp port 53} and {inner udp}"])
def test_inner_terms(linktype: int, template: str) -> None:
    made = [packet for packet in sample(300, linktype, [linktype]) if packet.captured == packet.length]
    file = pcap([capturefiles.Packet(SECOND, packet.length, packet.data, linktype) for packet in made])
    found = [data for _, data in filtered(opened(file), text_of(template))]
    assert found == [packet.data for packet in made if expected(template, packet, NETMASK)]
    assert len(found) > 3


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("form", [pcap, pcapng])
def test_byte_order_of_the_file(order: str, form: Callable[..., File]) -> None:
    """The families of loopback frames, and headers that libpcap corrects, are in the order of the machine that captured."""
    udp = b"\x45\0\0\x1c" + bytes(5) + b"\x11" + bytes(10) + b"\0\x35\0\x35\0\x08\0\0"
    families = [capturefiles.Packet(SECOND, 32, struct.pack(f"{order}I", family) + udp, 0) for family in (2, 99)]
    assert [data for _, data in filtered(opened(form(families, order)), "udp port 53")] == [families[0].data]
    header = struct.pack("!HHH8sH", 0, 280, 0, b"", 0x000C)
    numbers = [header + struct.pack(f"{order}I", number) + bytes(4) for number in (0x01020304, 0x04030201)]
    cans = [capturefiles.Packet(SECOND, 24, data, LINUX_SLL) for data in numbers]
    assert [data for _, data in filtered(opened(form(cans, order)), f"link[16:4] = {NATIVE_OF_1234:#x}")] == [cans[0].data]


#: The bytes of the number 0x01020304 on this machine, as a filter reads them.
NATIVE_OF_1234 = int.from_bytes((0x01020304).to_bytes(4, sys.byteorder), "big")


def tunnels() -> FilteredReader:
    return FilteredReader(UniversalReader(BytesIO((EXAMPLES / "tunnels.pcap").read_bytes())))


def test_ways_to_read() -> None:
    """Those that dpkt's readers have; `setfilter` works."""
    wanted = [*filtered(tunnels()._reader, "inner tcp port 80")]
    assert len(wanted) == 28
    reader = tunnels()
    assert len(reader.readpkts()) == 60
    reader = tunnels()
    reader.setfilter("inner tcp port 80")
    assert (reader.datalink(), reader.snaplen, reader.dloff) == (1, 262144, 14)
    assert [next(reader), next(reader)] == wanted[:2]
    seen: list[tuple[float, bytes, str]] = []
    assert reader.dispatch(3, lambda *given: seen.append(given), "x") == 3
    assert seen == [(*packet, "x") for packet in wanted[2:5]]
    assert reader.readpkts() == wanted[5:]
    reader = tunnels()
    reader.setfilter("inner tcp port 80")
    seen.clear()
    reader.loop(lambda *given: seen.append(given))
    assert seen == wanted
    assert reader.dispatch(5, print) == 0


def test_filter_that_changes() -> None:
    reader = tunnels()
    reader.setfilter("inner tcp port 80")
    first = next(reader)
    reader.setfilter("not inner tcp port 80")
    assert len(reader.readpkts()) <= 60 - 28
    assert first in filtered(tunnels()._reader, pcapext.compile("inner tcp port 80"))


def test_mistakes() -> None:
    reader = tunnels()
    reader.setfilter("inner tcp port 80")
    for filter, kind, words in (
        ("inner tcp and and", FilterError, "unexpected 'and'"),
        (pcapext.compile("tcp", linktype="RAW"), ProgramError, "a packet of link type EN10MB, and the filter is for RAW"),
    ):
        with pytest.raises(kind, match=words):
            reader.setfilter(filter)  # type: ignore[arg-type]
    assert len(reader.readpkts()) == 28
    with pytest.raises(CaptureError, match="a reader of type list, expected"):
        filtered([], "tcp")
    odd = pcap([capturefiles.Packet(SECOND, 60, bytes(60), 105)])
    with pytest.raises(FilterError, match="no extension term on link type IEEE802_11"):
        filtered(opened(odd), "inner tcp")


def test_link_types_that_dpkt_does_not_tell_apart() -> None:
    packets = [capturefiles.Packet(SECOND, 60, bytes(60), linktype) for linktype in (1, 12)]
    file = several_link_types(packets)
    assert len(list(opened(file))) == 2
    with pytest.raises(CaptureError, match="interfaces of link types 1 and 101, which dpkt does not tell apart"):
        list(filtered(opened(file), "len > 0"))


def test_damage_is_dpkts() -> None:
    octets = pcap(capturefiles.traffic(10, 1)).octets + bytes(3)
    with pytest.raises(dpkt.NeedData):
        list(filtered(UniversalReader(BytesIO(octets)), "inner tcp"))


def test_dpkt_is_not_there() -> None:
    script = "import sys; sys.modules['dpkt'] = None; import pcapext.integrations.dpkt"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1].endswith("'pip install pcapext[dpkt]' installs what pcapext.integrations.dpkt needs")
