"""eBPF programs attached, to what test_attaching.py attaches classic ones: frames on a real interface, verdicts by the reference walk."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import bpf_oracles
import pytest
from bpf_oracles import attach as attach_classic
from everywhere import observed
from frames import as_seen
from libpcaps import each_libpcap  # noqa: F401
from oracle import NETMASK, expected, text_of
from test_attaching import ACCEPT, KINDS, Flow, LiveTap, accepted, check_flow, nested, number_of, sent
from wire import SLL, SLL2, Wire, cooked

import pcapext
from pcapext import AttachError, LoadError
from pcapext.attaching import Attachment, attach
from pcapext.sockets import read_filter

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.tools("ip")]

#: The reference walk goes as deep.
LEVELS = 4


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def has_ebpf(place: socket.socket) -> bool:
    """Whether the kernel says that the filter of a socket is no classic one."""
    try:
        return read_filter(place.fileno()) is None
    except PermissionError:
        return True


FILTERS = ["{inner tcp}", "{encap vxlan} or {inner icmp}", "ip6 and not {inner host 10.0.0.1}", "ip"]


@pytest.mark.parametrize("form", ["text", "program"])
@pytest.mark.parametrize("kind", ["raw", "cooked", "cooked on all"])
def test_exactly_the_matching_frames_arrive(wire: Wire, kind: str, form: str) -> None:
    type_, interface, header = KINDS[kind]
    linktype = SLL if type_ == socket.SOCK_DGRAM else 1
    packets = nested() if form == "text" else nested()[:300]
    for template in FILTERS:
        text = text_of(template)
        with wire.tap(None, type_, interface) as tap:
            wire.do(wire.put, [packet.data for packet in nested()[:50]])
            if form == "text":
                attachment = wire.do(partial(attach, text, tap.socket, target="ebpf", netmask=NETMASK, max_levels=LEVELS))
            else:
                program = pcapext.compile(text, target="ebpf", linktype=linktype, netmask=NETMASK, max_levels=LEVELS)
                attachment = wire.do(program.attach, tap.socket)
            assert attachment.where == "kernel"
            assert str(attachment).endswith(f"{len(attachment.program)} instructions of eBPF")
            assert has_ebpf(tap.socket)
            sent(wire, packets)
            verdicts = accepted(template, type_)[: len(packets)]
            wanted = [as_seen(packet).data[header:] for packet, verdict in zip(packets, verdicts, strict=True) if verdict]
            assert tap.take() == wanted, template
            assert 3 <= len(wanted) <= len(packets) - 3


class EbpfTap(LiveTap):
    """The same with eBPF programs."""

    def attach(self, text: str) -> Attachment:
        marked = f"ether proto 0x88b5 or ({text})"
        return self.wire.do(partial(attach, marked, self.handle, target="ebpf", netmask=NETMASK, max_levels=LEVELS))


@pytest.mark.usefixtures("each_libpcap")
@pytest.mark.parametrize("immediate", [True, False])
@pytest.mark.parametrize(("device", "linktype"), [("right", None), ("any", SLL), ("any", SLL2)])
def test_handles(wire: Wire, device: str, linktype: int | None, immediate: bool) -> None:
    """What was captured before is checked when it is read; what comes after is filtered by the kernel."""
    packets = [packet for packet in nested()[:400] if as_seen(packet) is packet]
    frames = [packet.data for packet in packets]
    made = [observed(cooked(frame, linktype), linktype) if linktype else observed(frame) for frame in frames]
    verdicts = [expected("{inner tcp}", packet, NETMASK) for packet in made]
    with EbpfTap(wire, device, linktype, immediate) as tap:
        sent(wire, packets)
        assert tap.attach("inner tcp").where == "kernel"
        sent(wire, packets)
        for _ in range(2):
            taken = tap.take(len(packets))
            assert len(taken) == sum(verdicts)
            assert all(map(bytes.endswith, taken, (frame[14:] for frame, wanted in zip(frames, verdicts, strict=True) if wanted)))
        assert 3 < sum(verdicts) < len(packets) - 3


def test_a_program_alone_lets_nothing_of_the_ring_through(wire: Wire) -> None:
    """What it accepts nobody knows but the kernel, which does not see those packets again."""
    packets = nested()[:100]
    with EbpfTap(wire, "right", None, False) as tap:
        sent(wire, packets)
        program = pcapext.compile("ether proto 0x88b5 or inner tcp", target="ebpf", max_levels=LEVELS)
        wire.do(program.attach, tap.handle)
        sent(wire, packets)
        wanted = sum(expected("{inner tcp}", as_seen(packet), NETMASK) for packet in packets)
        assert len(tap.take(len(packets))) == wanted > 3


def test_vlan_as_the_classic_program(wire: Wire) -> None:
    """The tag that the kernel keeps beside the frame is found there, by both."""
    frames = [packet.data for packet in nested()]
    for text in ("vlan", "not vlan", "vlan and inner tcp", "vlan 5 or inner udp"):
        with wire.tap(None) as classic, wire.tap(None) as ebpf:
            wire.do(partial(attach, text, classic.socket))
            wire.do(partial(attach, text, ebpf.socket, target="ebpf", max_levels=LEVELS))
            wire.send(frames)
            wire.control.take()
            taken = ebpf.take()
            assert taken == classic.take(), text
            assert 0 < len(taken) < len(frames), text


def test_while_frames_flow() -> None:
    wire = Wire()
    try:
        with wire.tap(None) as tap, Flow(wire) as flow:

            def read() -> None:
                wire.control.drain()
                wire.control.take()
                tap.drain()

            flow.await_more(300, read)
            for name, target in (("tcp", "ebpf"), ("udp", "classic"), ("icmp", "ebpf"), ("tcp", "ebpf")):
                wire.do(partial(attach, f"inner {name}", tap.socket, target=target))
                first = flow.count + 1
                tap.take()
                last = flow.await_more(300, read) - 1
                tap.drain()
                numbers = [number_of(frame) for frame in tap.take()]
                came = max(numbers) + 1
                assert came > first + 100
                check_flow(numbers, name, first, min(last, came))
    finally:
        wire.close()


def test_detaching(wire: Wire) -> None:
    with wire.tap(None) as tap:
        with wire.do(partial(attach, "inner tcp", tap.socket, target="ebpf")) as attachment:
            assert has_ebpf(tap.socket)
        assert read_filter(tap.socket.fileno()) == b""
        attachment.detach()
        attachment = wire.do(partial(attach, "inner tcp", tap.socket, target="ebpf"))
        attach_classic(tap.socket, ACCEPT)
        with pytest.warns(pcapext.AttachWarning, match="has another filter by now, and it stays"):
            attachment.detach()
        assert read_filter(tap.socket.fileno()) != b""


def test_no_descriptor_is_left(wire: Wire) -> None:
    with wire.tap(None) as tap:
        before = os.listdir("/proc/self/fd")
        for text in ("inner tcp", "arp"):
            wire.do(partial(attach, text, tap.socket, target="ebpf"))
        assert os.listdir("/proc/self/fd") == before


# ---- Errors ----


def test_a_socket_on_no_interface(wire: Wire) -> None:
    with wire.tap(None, socket.SOCK_RAW, None) as tap:
        with pytest.raises(AttachError, match="on all interfaces: an eBPF program is not told of what kind an interface is; bind the"):
            wire.do(partial(attach, "inner tcp", tap.socket, target="ebpf"))
        assert read_filter(tap.socket.fileno()) == b""


def test_what_the_kernel_does_not_load_changes_nothing(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    program = pcapext.compile("inner tcp", target="ebpf")
    # An instruction that reads behind the stack: the verifier refuses it.
    bad = bytes(program).replace(bytes(program)[:8], struct.pack("=BBhi", 0x79, 0xA0, 8, 0), 1)
    with wire.tap(ACCEPT) as tap:
        monkeypatch.setattr(type(program), "__bytes__", lambda self: bad)
        with pytest.raises(LoadError, match="verifier refused the program") as caught:
            wire.do(program.attach, tap.socket)
        assert "invalid" in caught.value.log
        assert read_filter(tap.socket.fileno()) == bytes(bpf_oracles.packed(ACCEPT))


def test_a_locked_filter(wire: Wire) -> None:
    with wire.tap(ACCEPT) as tap:
        tap.socket.setsockopt(socket.SOL_SOCKET, 44, 1)  # SO_LOCK_FILTER
        with pytest.raises(AttachError, match="its filter is locked"):
            wire.do(partial(attach, "inner tcp", tap.socket, target="ebpf"))


def test_sources_that_are_no_packet_sockets() -> None:
    class Source:
        linktype = 1

        def fileno(self) -> int:
            return null

        def check_until(self, *_: object) -> None:
            raise AssertionError

    null = os.open(os.devnull, os.O_RDONLY)
    try:
        with pytest.raises(AttachError, match=r"^capture: what it reads from is no packet socket$"):
            attach("inner tcp", Source(), target="ebpf")
    finally:
        os.close(null)


WITHOUT_PRIVILEGES = """
import fcntl, os, socket, pcapext, pcapext.attaching
for target in ("ebpf", "classic"):
    pcapext.compile("inner tcp", target=target)  # everything is loaded, which others may not read
place = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    pcapext.attach("inner tcp", place, target="ebpf")
except pcapext.LoadError as error:
    print(str(error).splitlines()[0])
print(pcapext.attach("inner tcp", place).where)
"""


def test_without_privileges() -> None:
    """The capability is named; without a target a filter is classic, and needs none."""
    shown = subprocess.run([sys.executable, "-c", WITHOUT_PRIVILEGES], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0].startswith("no permission to load an eBPF program: it takes CAP_BPF")
    assert shown[1] == "kernel"


def test_the_socket_keeps_the_program(wire: Wire) -> None:
    """The socket holds the program when the descriptor that it was loaded on is closed."""
    with wire.tap(None) as tap:
        wire.do(partial(attach, "len >= 1000000", tap.socket, target="ebpf"))
        sent(wire, nested()[:50])
        assert tap.take() == []
