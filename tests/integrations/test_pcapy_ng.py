"""`pcapext.integrations.pcapy_ng`: all ways to read give what matches, as pcapy itself gives it; those that cannot be checked say so."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pcapy
import pytest
from bindings import SECONDS, capturing
from libpcaps import no_descriptor_is_left
from wire import Wire

import pcapext
from pcapext.errors import AttachWarning, CaptureError
from pcapext.integrations import cypcap, pcapy_ng
from pcapext.sockets import read_filter

__all__ = ["no_descriptor_is_left"]

TUNNELS = str(Path(__file__).parent.parent.parent / "examples" / "tunnels.pcap")
FILTER = "inner tcp port 80"

#: A TCP segment to port 80, one to port 81, and one that is the last.
TCP = bytes.fromhex("0200000000010200000000020800450000280001000040060000010203040506070800500050") + bytes(22)
OTHER = TCP[:34] + b"\0\x51\0\x51" + TCP[38:]
LAST = TCP[:6] + b"\x02\0\0\0\0\xed" + TCP[12:]

live = [pytest.mark.root, pytest.mark.kernel, pytest.mark.tools("ip"), pytest.mark.usefixtures("no_descriptor_is_left")]


def reader(filter: str = FILTER) -> pcapy_ng.Reader:
    made = pcapy_ng.open_offline(TUNNELS)
    made.setfilter(filter)
    return made


def told(header: Any, data: bytes) -> tuple[int, int, int, bytes]:
    return (*header.getts(), header.getlen(), data)


def wanted() -> list[tuple[int, int, int, bytes]]:
    with pcapext.open_offline(TUNNELS, filter=FILTER) as capture:
        return [(*divmod(packet.timestamp_ns // 1000, 10**6), packet.wirelen, packet.data) for packet in capture]


def test_ways_to_read() -> None:
    everything = wanted()
    assert len(everything) == 28
    capture, seen = reader(), []
    while (packet := capture.next())[0] is not None:
        seen.append(told(*packet))
    assert seen == everything
    assert capture.next() == (None, b"")
    for count, given in ((3, 3), (0, 28), (-1, 28), (100, 28)):
        for name in ("loop", "dispatch"):
            found: list[Any] = []
            result = getattr(reader(), name)(count, lambda *packet: found.append(told(*packet)))  # noqa: B023
            assert found == everything[:given], (name, count)
            assert result == (given if name == "dispatch" else None)
    batches = []
    capture = reader()
    while (batch := capture.next_batch(7))[1]:
        batches += [(s, us, batch[0][at : at + length]) for s, us, at, length in struct.iter_unpack("=4I", batch[1])]
    assert batches == [(seconds, microseconds, data) for seconds, microseconds, _, data in everything]


def test_errors_of_callbacks() -> None:
    def fail(header: Any, data: bytes) -> None:
        raise KeyError(len(data))

    for name in ("loop", "dispatch"):
        with pytest.raises(KeyError):
            getattr(reader(), name)(-1, fail)  # with a count, pcapy tells an error in the last call in a way of its own


def test_the_rest_is_pcapys(tmp_path: Path) -> None:
    with pcapy_ng.open_offline(TUNNELS) as capture:
        capture.setfilter(pcapext.compile("inner udp"))
        dumper = capture.dump_open(str(tmp_path / "out"))
        capture.loop(0, dumper.dump)
        dumper.close()
        assert (capture.datalink(), capture.getmask()) == (1, "0.0.0.0")
    with pcapext.open_offline(tmp_path / "out") as written, pcapext.open_offline(TUNNELS, filter="inner udp") as read:
        assert [*written] == [*read]
    assert pcapy_ng.findalldevs is pcapy.findalldevs
    with pytest.raises(ValueError, match="pcap is closed"):
        capture.next()
    with pytest.raises(ValueError, match="pcap is closed"):
        capture.setfilter(FILTER)
    with pytest.raises(pcapy.PcapError, match="absent"):
        pcapy_ng.open_offline("absent")


def test_packets_that_pcapext_cannot_see() -> None:
    buffer = bytearray(1 << 16)
    for use in (lambda: reader().loop_to_buffer(0, buffer), lambda: reader().loop_filtered(0, print)):
        with pytest.raises(CaptureError, match="does not show its packets to pcapext, which filters here"):
            use()
    assert reader("udp").loop_to_buffer(0, buffer)[0] == len([*pcapext.open_offline(TUNNELS, filter="udp")])


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


class TestInterfaces:
    pytestmark = live

    def test_packets_that_pcapext_cannot_see_yet(self, wire: Wire) -> None:
        """Behind the first packet that came after the filter, the kernel has filtered all."""
        buffer = bytearray(1 << 16)
        with capturing(wire, "pcapy-ng", "right", None, LAST) as capture:
            place = capture.handle.place
            wire.do(wire.put, [OTHER, TCP])
            capture.setfilter(FILTER, LAST)
            with pytest.raises(CaptureError, match="some may be queued from before the filter was set: call next until"):
                place.loop_to_buffer(1, buffer)
            assert set(capture.received([OTHER])) <= {TCP}
            wire.do(wire.put, [OTHER, TCP, TCP])
            assert place.loop_to_buffer(2, buffer)[:2] == (2, 0)

    def test_next_and_batches(self, wire: Wire) -> None:
        with capturing(wire, "pcapy-ng", "right", None, LAST) as capture:
            place = capture.handle.place
            for poll in (lambda: place.next()[1], lambda: place.next_batch(100)[0]):
                wire.do(wire.put, [OTHER, TCP] * 50)
                capture.setfilter(FILTER, LAST)
                wire.do(wire.put, [OTHER, TCP, OTHER, LAST])
                found = b""
                deadline = time.monotonic() + SECONDS
                while not found.endswith(TCP + LAST):
                    found += poll()
                    assert time.monotonic() < deadline
                assert found.replace(TCP, b"") == LAST

    def test_not_activated(self, wire: Wire) -> None:
        for made in (wire.do(pcapy_ng.create, "right"), wire.do(cypcap.create, "right")):
            with made, pytest.raises(CaptureError, match="no descriptor to filter: is it activated"):
                made.setfilter(FILTER)

    def test_open_live(self, wire: Wire) -> None:
        with wire.do(pcapy_ng.open_live, "right", 65535, 1, 20) as place:
            wire.do(place.setfilter, FILTER)
            seen: list[bytes] = []
            wire.do(wire.put, [OTHER, TCP, OTHER, LAST])
            place.loop(2, lambda header, data: seen.append(data))
            assert seen == [TCP, LAST]

    def test_elsewhere(self, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where pcapext cannot reach the kernel, it checks what libpcap lets through, which sets what it knows of the filter."""
        with capturing(wire, "pcapy-ng", "right", None, LAST) as capture:
            monkeypatch.setattr(sys, "platform", "darwin")
            with pytest.warns(AttachWarning, match="pcapext filters the capture: on darwin it is not set in the kernel"):
                capture.handle.place.setfilter("ip and inner tcp port 80")
            monkeypatch.undo()
            assert 3 <= len(read_filter(capture.handle.place.fileno())) // 8 <= 6
            assert capture.received([OTHER, TCP]) == [TCP]
