"""Handles of the libraries that bind libpcap: exactly what matches arrives, by the words of oracle.py, on every kind of interface, while
frames flow, and from captures; and nothing is left behind.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import capturefiles
import pytest
from bindings import FLOW, HANDLES, LAST, Capturing, Flow, capturing, number_of, numbered, offline
from capturefiles import SECOND, File, pcap, pcapng
from everywhere import observed, sample
from frames import as_seen, receivable
from libpcaps import no_descriptor_is_left
from oracle import NETMASK, Packet, expected, text_of
from packets import EN10MB, LINUX_SLL, NULL
from wire import SLL, Wire, cooked, seen

from pcapext import attaching
from pcapext.errors import AttachError, AttachWarning, CaptureError, FilterError, KernelLacksError
from pcapext.integrations import handles
from pcapext.sockets import read_filter

__all__ = ["no_descriptor_is_left"]

live = [pytest.mark.root, pytest.mark.kernel, pytest.mark.tools("ip"), pytest.mark.usefixtures("no_descriptor_is_left")]

TUNNELS = str(Path(__file__).parent.parent.parent / "examples" / "tunnels.pcap")

#: Templates of oracle.py; none asks for a source address of a frame, nor for a length. The last one is libpcap's alone.
TEMPLATES = (
    "{inner tcp port 80}",
    "not {inner udp port 53} and {inner udp}",
    "tcp port 80 or {encap vxlan} or {inner host 10.0.0.1}",
    "udp",
)


@pytest.fixture(params=HANDLES)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire()
    wire.control.close()  # it would be full some time
    wire.do(subprocess.run, ["ip", "link", "set", "lo", "up"])
    yield wire
    wire.close()


@cache
def made() -> list[Packet]:
    """2,000 frames of every nesting, tagged ones too. None has a source that tells it from the others."""
    packets = receivable(2900, 12)[:2000]
    assert len(packets) == 2000
    assert sum(seen(packet.data) != packet.data for packet in packets) > 100
    return packets


@cache
def verdicts(template: str) -> list[bool]:
    """Those on the frames above, as they are shown to filters."""
    return [expected(template, as_seen(packet), NETMASK) for packet in made()]


def frames(count: int = 2000) -> list[bytes]:
    return [packet.data for packet in made()[:count]]


def accepted(template: str, count: int = 2000) -> list[bytes]:
    return [frame for frame, is_accepted in zip(frames(count), verdicts(template), strict=False) if is_accepted]


def last_of(template: str) -> bytes:
    return last(accepted(template)[0])


def last(frame: bytes) -> bytes:
    return frame[:6] + LAST + frame[12:]


# ---- Interfaces ----


class TestInterfaces:
    pytestmark = live

    @pytest.mark.parametrize("template", TEMPLATES[1:])
    def test_exactly_the_matching_frames_arrive(self, wire: Wire, library: str, template: str) -> None:
        wanted = accepted(template)
        assert 50 < len(wanted) < 1950
        with capturing(wire, library, "right", text_of(template), last_of(template)) as capture:
            assert capture.received(frames()) == wanted
            assert len(read_filter(capture.handle.place.fileno())) > 8  # the kernel filters

    def test_filters_that_replace_each_other(self, wire: Wire, library: str) -> None:
        if library == "python-libpcap":  # it sets its filter once
            return
        with capturing(wire, library, "right", None, last_of(TEMPLATES[0])) as capture:
            assert capture.received(frames(300)) == frames(300)
            for template in TEMPLATES:
                wire.do(wire.put, frames(300))  # they are queued, and the new filter decides
                capture.setfilter(text_of(template), last_of(template))
                found = capture.received(frames(300))
                wanted = accepted(template, 300)
                assert found[-len(wanted) :] == wanted
                assert set(found) <= set(wanted), template
            capture.setfilter("", capture.last)
            assert capture.received(frames(300))[-300:] == frames(300)

    @pytest.mark.parametrize("template", TEMPLATES[:2])
    def test_while_frames_flow(self, wire: Wire, library: str, template: str) -> None:
        """Of those sent before the filter is there some may come, if they match; of those behind it all that match, and no others."""
        is_set_once = library == "python-libpcap"
        with Flow(wire, frames()) as flow:
            flow.await_sent(100)
            with capturing(wire, library, "right", text_of(template) if is_set_once else None, last_of(template)) as capture:
                if not is_set_once:
                    flow.await_sent(flow.sent + 100)
                    capture.setfilter("udp or inner tcp", capture.last)
                    capture.setfilter(text_of(template), capture.last)
                behind = flow.sent + 1  # the one before may be under way
                while sum(verdicts(template)[number % 2000] for number in range(behind, flow.sent)) <= 10:
                    flow.await_sent(flow.sent + 100)
                flow.stop()
                found = [number_of(data) for data in capture.received([]) if data[6:8] == FLOW]
        assert found == sorted(set(found))
        assert all(verdicts(template)[number % 2000] for number in found)
        wanted = {number for number in range(behind, flow.sent) if verdicts(template)[number % 2000]}
        assert wanted <= set(found)

    @pytest.mark.parametrize("template", TEMPLATES[1:2])
    def test_loopback(self, wire: Wire, library: str, template: str) -> None:
        with capturing(wire, library, "lo", text_of(template), last_of(template)) as capture:
            assert capture.received(frames(500)) == accepted(template, 500)

    @pytest.mark.parametrize("template", TEMPLATES[:2])
    def test_all_interfaces(self, wire: Wire, library: str, template: str) -> None:
        """Each packet has a made-up header, with the source in it. What libpcap puts back of tags depends on the kernel."""
        wanted = [number for number, is_accepted in enumerate(verdicts_cooked(template)) if is_accepted]
        with capturing(wire, library, "any", text_of(template), last(frames()[wanted[0]])) as capture:
            found = capture.received([numbered(frame, number) for number, frame in enumerate(frames(500))])
        assert [number_of(data) for data in found] == wanted
        assert len(wanted) > 10

    def test_mistakes(self, wire: Wire, library: str) -> None:
        """They are told with their place, and the filter there was stays."""
        if library == "python-libpcap":
            with pytest.raises(FilterError, match="unexpected 'and'"):
                wire.do(HANDLES[library], wire, "right", "inner tcp and and")
            return
        with capturing(wire, library, "right", text_of(TEMPLATES[0]), last_of(TEMPLATES[0])) as capture:
            for filter, words in (("inner tcp and and", "inner tcp and and\n                ^^^"), ("tcp and and", "unexpected 'and'")):
                with pytest.raises(FilterError) as caught:
                    wire.do(capture.handle.setfilter, filter)
                assert words in str(caught.value)
            assert capture.received(frames(200)) == accepted(TEMPLATES[0], 200)

    def test_kernel_without_memory(self, wire: Wire, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then pcapext filters what is captured, and says so."""

        def refuse(*_: object) -> None:
            raise KernelLacksError("no memory")

        monkeypatch.setattr(attaching, "_install", refuse)
        template = "{inner udp} and not ip6"
        with pytest.warns(AttachWarning, match="^pcapext filters the capture on right: no memory$"):
            capture = Capturing(wire, library, "right", text_of(template), last_of(template))
        try:
            wanted = [packet.data for packet in made()[:500] if expected(template, packet, NETMASK)]
            assert capture.received(frames(500)) == wanted
        finally:
            capture.close()


@cache
def verdicts_cooked(template: str) -> list[bool]:
    """Those on the first 500 frames, behind the header that libpcap makes up."""
    return [expected(template, observed(cooked(as_seen(packet).data, SLL), SLL), NETMASK) for packet in made()[:500]]


# ---- Captures ----


@pytest.mark.parametrize("linktype", [EN10MB, LINUX_SLL, NULL])
def test_captures(tmp_path: Path, library: str, linktype: int) -> None:
    packets = [packet for packet in sample(300, linktype, [linktype]) if packet.captured == packet.length]
    path = tmp_path / "made.pcap"
    path.write_bytes(pcap([capturefiles.Packet(SECOND, packet.length, packet.data, linktype) for packet in packets]).octets)
    for template in ("{inner tcp port 80}", "greater 90 and not {inner udp}", "tcp port 80 or {encap vxlan}"):
        # Of loopback frames the oracle has the families of this machine, and libpcap in files those of others, too.
        if linktype != NULL or "tcp port 80" not in template.removeprefix("{inner "):
            found = [*offline(library, str(path), text_of(template))]
            assert found == [packet.data for packet in packets if expected(template, packet, NETMASK)], template
            assert 0 < len(found) < len(packets)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("form", [pcap, pcapng])
def test_byte_order_of_a_capture(tmp_path: Path, library: str, order: str, form: Callable[..., File]) -> None:
    """The families of loopback frames are in the order of the machine that captured."""
    udp = b"\x45\0\0\x1c" + bytes(5) + b"\x11" + bytes(10) + b"\0\x35\0\x35\0\x08\0\0"
    families = [capturefiles.Packet(SECOND, 32, struct.pack(f"{order}I", family) + udp, NULL) for family in (2, 99)]
    path = tmp_path / "made"
    path.write_bytes(form(families, order).octets)
    for filter in ("udp port 53", "inner udp port 53", "ip and inner udp"):
        assert [*offline(library, str(path), filter)] == [families[0].data], filter


def test_mistakes_with_captures(tmp_path: Path, library: str) -> None:
    with pytest.raises(FilterError, match="unexpected 'and'"):
        next(offline(library, TUNNELS, "inner tcp and and"))
    if library != "python-libpcap":  # there it is an argument of type str
        with pytest.raises(AttachError, match="the filter is of type bytes, expected an expression or a Program"):
            next(offline(library, TUNNELS, b"inner tcp"))  # type: ignore[arg-type]
    path = tmp_path / "made.pcap"
    path.write_bytes(pcap([capturefiles.Packet(SECOND, 60, bytes(60), 105)]).octets)
    with pytest.raises(FilterError, match="no extension term on link type IEEE802_11"):
        next(offline(library, str(path), "inner tcp"))


# ---- All of them ----


def test_nothing_is_loaded_unasked() -> None:
    script = "import sys, pcapext, pcapext.cli; print({'pcap', 'pcapy', 'cypcap', 'pylibpcap', 'pcapext.integrations'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("pypcap", "pcap", "pypcap"),
        ("pcapy_ng", "pcapy", "pcapy-ng"),
        ("cypcap", "cypcap", "cypcap"),
        ("python_libpcap", "pylibpcap", "python-libpcap"),
    ],
)
def test_libraries_that_are_missing(module: str, name: str, extra: str) -> None:
    script = f"import sys; sys.modules['{name}'] = None; import pcapext.integrations.{module}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 1
    assert f"'pip install pcapext[{extra}]' installs what pcapext.integrations.{module} needs" in run.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no file that can be read twice"), (b"", "neither a pcap nor a pcapng file"), (bytes(24), "neither a pcap nor a pcapng file")],
)
def test_byte_order_that_cannot_be_told(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "it"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CaptureError, match=words):
        handles.byteorder_of(str(path))
