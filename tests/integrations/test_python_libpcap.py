"""`pcapext.integrations.python_libpcap`: what is given, and what is written, matches; its hidden socket is found, or said not to be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from libpcaps import no_descriptor_is_left
from pylibpcap import base as library
from pylibpcap.exception import LibpcapError
from wire import Wire

import pcapext
from pcapext.errors import AttachWarning, CaptureError, FilterError
from pcapext.integrations import pcapy_ng, python_libpcap
from pcapext.integrations.python_libpcap import Sniff, rpcap, sniff
from pcapext.sockets import read_filter

__all__ = ["no_descriptor_is_left"]

TUNNELS = str(Path(__file__).parent.parent.parent / "examples" / "tunnels.pcap")
FILTER = "inner tcp port 80"

#: A TCP segment to port 80 with 100 bytes, and one to port 81.
TCP = bytes.fromhex("0200000000010200000000020800450000960001000040060000010203040506070800500050") + bytes(126)
OTHER = TCP[:34] + b"\0\x51\0\x51" + TCP[38:]


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def test_captures() -> None:
    with pcapext.open_offline(TUNNELS, filter=FILTER) as capture:
        wanted = [(len(packet.data), packet.timestamp_ns // 10**9, packet.data) for packet in capture]
    assert len(wanted) == 28
    assert [*rpcap(TUNNELS, filters=FILTER)] == wanted
    assert [*rpcap(TUNNELS)] == [*library.LibPcap(TUNNELS).read()]
    assert [*rpcap(TUNNELS, "udp")] == [*library.LibPcap(TUNNELS, filters="udp").read()]
    with pytest.raises(LibpcapError, match="absent"):
        rpcap("absent", FILTER)


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip")
@pytest.mark.usefixtures("no_descriptor_is_left")
class TestInterfaces:
    def test_output(self, wire: Wire, tmp_path: Path) -> None:
        """What is written is what is given: the bytes of the snap length, with the length on the wire and the time in microseconds."""
        path = tmp_path / "out.pcap"
        before = time.time() - 1e-6
        with closing(wire.do(lambda: Sniff("right", 3, 1, 60, 20, FILTER, str(path)))) as sniffer:
            wire.do(wire.put, [OTHER, TCP, OTHER, TCP, TCP, TCP])
            given = [packet for packet in sniffer.capture() if packet[0]]
            stats = sniffer.stats()
        assert [(length, data) for length, _, data in given] == [(60, TCP[:60])] * 3
        assert (stats.capture_cnt, stats.ps_drop) == (3, 0)
        with pcapext.open_offline(path) as capture:
            assert (capture.linktype, capture.snaplen) == (1, 60)
            written = [*capture]
        assert [(packet.wirelen, packet.data) for packet in written] == [(len(TCP), TCP[:60])] * 3
        assert [packet.timestamp_ns // 1000 for packet in written] == [round(when * 1e6) for _, when, _ in given]
        assert before <= given[0][1] <= time.time()

    def test_sniff(self, wire: Wire) -> None:
        packets = wire.do(lambda: sniff("right", count=1, promisc=1, snaplen=0, timeout=20, filters=FILTER, immediate_mode=1))
        wire.do(wire.put, [OTHER, TCP])
        assert [data for length, _, data in packets if length] == [TCP]
        del packets

    def test_without_a_filter(self, wire: Wire, tmp_path: Path) -> None:
        """It is python-libpcap's own."""
        path = tmp_path / "out.pcap"
        with closing(wire.do(lambda: Sniff("right", 2, 1, out_file=str(path), timeout=20))) as sniffer:
            wire.do(wire.put, [OTHER, TCP])
            assert [data for length, _, data in sniffer.capture() if length] == [OTHER, TCP]
            assert sniffer.stats().capture_cnt == 2
            with pytest.raises(CaptureError, match="a Sniff without a filter"):
                sniffer.fileno()

    def test_mistakes(self, wire: Wire, tmp_path: Path) -> None:
        """Nothing is opened, and nothing is written over."""
        path = tmp_path / "out.pcap"
        path.write_text("precious")
        for filter in ("inner tcp and and", "tcp and and"):
            with pytest.raises(FilterError, match="unexpected 'and'"):
                wire.do(lambda: Sniff("right", filters=filter, out_file=str(path)))  # noqa: B023
        with pytest.raises(LibpcapError):
            wire.do(lambda: Sniff("absent", filters=FILTER, out_file=str(path)))
        assert path.read_text() == "precious"
        with pytest.raises(FileNotFoundError):
            wire.do(lambda: Sniff("right", filters=FILTER, out_file=str(tmp_path / "no" / "folder")))
        sniffer = wire.do(lambda: Sniff("right", filters=FILTER))
        with closing(sniffer), pytest.raises(CaptureError, match="capture_nonblocking shows its packets to nobody"):
            sniffer.capture_nonblocking()
        for use in (sniffer.stats, sniffer.fileno, lambda: next(sniffer.capture())):
            with pytest.raises(CaptureError, match="the capture on right is closed"):
                use()

    def test_others_on_the_same_interface(self, wire: Wire) -> None:
        """Packet sockets that are there before do not matter, nor do those on other interfaces."""
        with ExitStack() as stack:
            other = stack.enter_context(closing(wire.do(lambda: Sniff("right", filters="inner udp"))))
            stack.enter_context(wire.do(pcapy_ng.open_live, "left", 100, 0, 20))
            sniffer = stack.enter_context(closing(wire.do(lambda: Sniff("right", 1, 1, timeout=20, filters=FILTER))))
            assert other.fileno() != sniffer.fileno()
            assert read_filter(other.fileno()) != read_filter(sniffer.fileno())
            wire.do(wire.put, [OTHER, TCP])
            assert [data for length, _, data in sniffer.capture() if length] == [TCP]

    def test_sockets_that_cannot_be_told_apart(self, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another thread opens one on the same interface at the same time: pcapext filters, and says so."""
        others: list[Any] = []
        rings = python_libpcap._rings

        def raced() -> Any:
            found = rings()
            if not others:
                others.append(pcapy_ng.open_live("right", 100, 0, 20))
            return found

        monkeypatch.setattr(python_libpcap, "_rings", raced)
        with pytest.warns(AttachWarning, match="^pcapext filters the capture on right: which socket it reads from cannot be told$"):
            sniffer = wire.do(lambda: Sniff("right", 2, 1, timeout=20, filters=FILTER))
        with closing(sniffer):
            others[0].close()
            wire.do(wire.put, [OTHER, TCP, OTHER, TCP])
            assert [data for length, _, data in sniffer.capture() if length] == [TCP, TCP]
