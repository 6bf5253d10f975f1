"""`pcapext.integrations.cypcap`: all ways to read give what matches, as cypcap itself gives it; programs of its kind work too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cypcap as library
import pytest
from bindings import Capturing, Cypcap
from libpcaps import no_descriptor_is_left
from wire import Wire

import pcapext
from pcapext.errors import CaptureError, FilterError
from pcapext.integrations import cypcap

__all__ = ["no_descriptor_is_left"]

TUNNELS = str(Path(__file__).parent.parent.parent / "examples" / "tunnels.pcap")
FILTER = "inner tcp port 80"

#: A TCP segment to port 80, one to port 81, and one that is the last.
TCP = bytes.fromhex("0200000000010200000000020800450000280001000040060000010203040506070800500050") + bytes(22)
OTHER = TCP[:34] + b"\0\x51\0\x51" + TCP[38:]
LAST = TCP[:6] + b"\x02\0\0\0\0\xed" + TCP[12:]


def told(header: Any, data: bytes) -> tuple[int, int, bytes]:
    return round(header.ts * 1e6), header.len, data


def wanted() -> list[tuple[int, int, bytes]]:
    with pcapext.open_offline(TUNNELS, filter=FILTER) as capture:
        return [(packet.timestamp_ns // 1000, packet.wirelen, packet.data) for packet in capture]


def test_ways_to_read() -> None:
    everything = wanted()
    assert len(everything) == 28
    with cypcap.open_offline(TUNNELS) as pcap:
        pcap.set_config(filter=FILTER)
        assert [told(*packet) for packet in pcap] == everything
    for count, given in ((3, 3), (0, 28), (-1, 28), (100, 28)):
        for name in ("loop", "dispatch"):
            with cypcap.open_offline(TUNNELS) as pcap:
                pcap.setfilter(FILTER)
                found: list[Any] = []
                assert getattr(pcap, name)(count, lambda *packet: found.append(told(*packet))) is None  # noqa: B023
                assert found == everything[:given], (name, count)


@pytest.mark.parametrize("filter", ["udp", FILTER])
def test_programs(filter: str) -> None:
    """`compile` makes cypcap's kind of program: it runs there, and as a filter it is as good as its text."""
    made = cypcap.compile(library.DatalinkType.EN10MB, 65535, filter, True, 0xFFFFFFFF)
    assert isinstance(made, library.BpfProgram)
    with cypcap.open_offline(TUNNELS) as pcap:
        assert [*pcap.compile(filter)] == [*cypcap.compile(1, 262144, filter, True, 0xFFFFFFFF)]
        accepted = [data for header, data in pcap if made.offline_filter(header, data)]
    with cypcap.open_offline(TUNNELS) as pcap, pcapext.open_offline(TUNNELS, filter=filter) as read:
        pcap.setfilter(made)
        assert [data for _, data in pcap] == accepted == [packet.data for packet in read]


def test_programs_of_libpcaps() -> None:
    """They end the filter that there was."""
    with cypcap.open_offline(TUNNELS) as pcap:
        pcap.setfilter(FILTER)
        pcap.setfilter(library.compile(1, 65535, "udp", True, 0))
        found = [data for _, data in pcap]
    with pcapext.open_offline(TUNNELS, filter="udp") as read:
        assert found == [packet.data for packet in read]


def test_netmask() -> None:
    with cypcap.open_offline(TUNNELS) as pcap:
        with pytest.raises(FilterError, match="netmask not known"):
            pcap.setfilter("inner ip broadcast")
        pcap.setfilter("inner ip broadcast", netmask=0xFFFFFF00)
        assert [*pcap] == []


def test_the_rest_is_cypcaps(tmp_path: Path) -> None:
    with cypcap.open_offline(TUNNELS) as pcap:
        pcap.setfilter(pcapext.compile("inner udp"))
        with pcap.dump_open(tmp_path / "out") as dumper:
            pcap.loop(0, dumper.dump)
        assert (pcap.type, pcap.source, pcap.snapshot()) == (library.PcapType.OFFLINE, TUNNELS, 262144)
        assert repr(pcap) == f"<Pcap OFFLINE on '{TUNNELS}'>"
    with pcapext.open_offline(tmp_path / "out") as written, pcapext.open_offline(TUNNELS, filter="inner udp") as read:
        assert [*written] == [*read]
    assert cypcap.findalldevs is library.findalldevs
    for use in (lambda: next(pcap), lambda: pcap.setfilter(FILTER)):
        with pytest.raises(ValueError, match="Operation on closed Pcap"):
            use()
    with pytest.raises(library.Error, match="absent"):
        cypcap.open_offline("absent")
    with cypcap.open_dead(1, 100) as dead:
        assert len(dead.compile(FILTER)) > 100


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip")
@pytest.mark.usefixtures("no_descriptor_is_left")
@pytest.mark.parametrize("is_nano", [False, True])
@pytest.mark.parametrize("is_program", [False, True])
def test_interfaces(wire: Wire, monkeypatch: pytest.MonkeyPatch, is_nano: bool, is_program: bool) -> None:
    """With nanoseconds, times are wrong by up to 1000 s (cypcap 0.6.3), and what was queued is still told from the rest: that is
    checked by the kernel alone, which sees no tag.
    """
    if is_nano:
        monkeypatch.setattr(library, "create", nanoseconds(library.create))
    capture = Capturing(wire, "cypcap", "right", None, LAST)
    try:
        place = capture.handle.place
        assert isinstance(capture.handle, Cypcap)
        assert (place.get_tstamp_precision() == library.TstampPrecision.NANO) == is_nano
        wire.do(wire.put, [OTHER, TCP] * 20)
        capture.setfilter(wire.do(place.compile, FILTER) if is_program else FILTER, LAST)
        found = capture.received([OTHER, TCP])
        assert set(found) == {TCP}
        tagged = TCP[:12] + b"\x81\0\0\5" + TCP[12:]
        capture.setfilter("ip and inner tcp port 80", LAST)
        capture.received([])
        assert capture.received([tagged, TCP, tagged]) == [tagged, TCP, tagged]
    finally:
        capture.close()


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip")
def test_types_of_time_stamps(wire: Wire) -> None:
    with wire.do(cypcap.create, "right") as pcap:
        pcap.set_pre_config(tstamp_type=library.TstampType.ADAPTER_UNSYNCED)  # the interface has none, and libpcap goes on
        wire.do(pcap.activate)
        wire.do(pcap.setfilter, FILTER)
        pcap._is_unsynced = True
        with pytest.raises(CaptureError, match="not of the system's clock"):
            pcap.setfilter(FILTER)


def nanoseconds(create: Any) -> Any:
    def made(source: str) -> Any:
        pcap = create(source)
        pcap.set_tstamp_precision(library.TstampPrecision.NANO)
        return pcap

    return made
