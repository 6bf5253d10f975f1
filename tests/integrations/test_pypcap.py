"""`pcapext.integrations.pypcap`: all ways to read give what matches, as pypcap itself gives it; what it cannot tell is not guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pcap
import pytest
from bindings import capturing
from libpcaps import no_descriptor_is_left
from wire import MARKER, Wire

import pcapext
from pcapext.errors import AttachError, CaptureError
from pcapext.integrations import pypcap

__all__ = ["no_descriptor_is_left"]

TUNNELS = str(Path(__file__).parent.parent.parent / "examples" / "tunnels.pcap")
FILTER = "inner tcp port 80"

#: A TCP segment to port 80 with 100 bytes.
TCP = bytes.fromhex("0200000000010200000000020800450000960001000040060000010203040506070800500050") + bytes(126)


def reader(filter: str = FILTER, **options: Any) -> pypcap.pcap:
    made = pypcap.pcap(TUNNELS, **options)
    made.setfilter(filter)
    return made


def wanted() -> list[tuple[float, bytes]]:
    with pcapext.open_offline(TUNNELS, filter=FILTER) as capture:
        return [(packet.timestamp_ns // 10**9 + packet.timestamp_ns % 10**9 * 1e-9, packet.data) for packet in capture]


def test_ways_to_read() -> None:
    everything = wanted()
    assert len(everything) == 28
    assert [*reader()] == everything
    assert reader().readpkts() == everything
    assert [(time / 1e9, data) for time, data in reader(timestamp_in_ns=True)] == [(pytest.approx(time), data) for time, data in everything]
    for count, given in ((3, 3), (0, 28), (-1, 28), (100, 28)):
        for name in ("loop", "dispatch"):
            seen: list[Any] = []
            result = getattr(reader(), name)(count, lambda *packet: seen.append(packet), "x")  # noqa: B023
            assert seen == [(*packet, "x") for packet in everything[:given]], (name, count)
            assert result == (given if name == "dispatch" else None)


@pytest.mark.parametrize("filter", ["udp", FILTER])
def test_dispatch_goes_on_while_there_is_more(filter: str) -> None:
    """Packets held back are no end of the capture."""
    capture, theirs = reader(filter), pcap.pcap(TUNNELS)
    counts, packets = [], []
    while count := capture.dispatch(5, lambda time, data: packets.append(data)):
        counts.append(count)
    if filter == "udp":
        theirs.setfilter(filter)
        assert packets == [data for _, data in theirs]
    else:
        assert counts == [5, 5, 5, 5, 5, 3]
        assert packets == [data for _, data in wanted()]


def test_errors_of_callbacks() -> None:
    def fail(time: float, data: bytes) -> None:
        raise KeyError(len(data))

    for name in ("loop", "dispatch"):
        with pytest.raises(KeyError):
            getattr(reader(), name)(1, fail)


def test_the_rest_is_pypcaps() -> None:
    capture = pypcap.pcap(TUNNELS)
    assert (capture.filter, capture.datalink(), capture.snaplen, capture.name) == ("", 1, 262144, TUNNELS)
    capture.setfilter(FILTER)
    assert capture.filter == FILTER
    capture.setfilter(pcapext.compile("inner udp"))
    assert capture.filter == "inner udp"
    assert len(capture.readpkts()) == 28
    assert pypcap.findalldevs is pcap.findalldevs


@pytest.mark.root
def test_no_such_device() -> None:
    with pytest.raises(OSError, match="No such device exists"):
        pypcap.pcap("absent")


def test_closed() -> None:
    capture = reader()
    capture.close()
    capture.close()
    for use in (
        capture.readpkts,
        lambda: next(capture),
        lambda: iter(capture),
        lambda: capture.loop(1, print),
        lambda: capture.setfilter("ip"),
    ):
        with pytest.raises(CaptureError, match="the pcap is closed"):
            use()


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip")
@pytest.mark.usefixtures("no_descriptor_is_left")
def test_packets_that_were_queued_and_cut() -> None:
    """How long they were is not told: `less 100` cannot be decided, and they are left out. What comes later is whole for the kernel."""
    wire = Wire()
    try:
        with capturing(wire, "pypcap", "right", None, MARKER) as capture:
            capture.handle.close(lambda: None)
            capture.handle.place = place = wire.do(lambda: pypcap.pcap("right", snaplen=70, timeout_ms=20))
            place.setnonblock(True)
            wire.do(wire.put, [TCP, TCP[:64]])
            wire.do(place.setfilter, "inner tcp port 80 and less 100")
            short = TCP[:6] + b"\x02\0\0\0\0\xed" + TCP[12:64]
            capture.last = short
            assert set(capture.received([TCP, TCP[:64]])) == {TCP[:64]}
        with pytest.raises(AttachError, match="the place is closed"):
            pcapext.attach("inner tcp", place)
    finally:
        wire.close()
