"""Attaching: only what matches arrives, all of it arrives, and every failure leaves the place as it was."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import bpf_oracles
import pytest
from everywhere import compiled, observed
from libpcaps import each_libpcap, no_descriptor_is_left
from oracle import NETMASK, Packet, expected, text_of
from test_kernel import as_seen, receivable
from wire import BUFFER, MARKER, PORTION, SECONDS, SLL, SLL2, Tun, Wire, cooked

from pcapext import AttachError, AttachWarning, Program, bpf, compile
from pcapext.attaching import Attachment, attach
from pcapext.bpf import Instruction
from pcapext.errors import FilterError, KernelLacksError
from pcapext.pcap_handles import Matches
from pcapext.pcap_live import LiveHandle, open_live
from pcapext.sockets import await_filters, read_filter, set_filter

__all__ = ["each_libpcap", "no_descriptor_is_left"]

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.tools("ip"), pytest.mark.usefixtures("no_descriptor_is_left")]

ACCEPT, REJECT = (Instruction(bpf.RET_K, k=0xFFFF),), (Instruction(bpf.RET_K, k=0),)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire()
    wire.do(subprocess.run, ["ip", "link", "set", "lo", "up"])
    yield wire
    wire.close()


@cache
def nested() -> list[Packet]:
    """2,000 frames that the kernel takes, tunnels in most of them."""
    return receivable(2250, 2)[:2000]


def sent(wire: Wire, packets: Sequence[Packet]) -> None:
    wire.send(packet.data for packet in packets)
    wire.control.take()


# ---- Packet sockets ----

FILTERS = """
{inner tcp}
{encap vxlan} or {inner icmp}
ip6 and not {inner host 10.0.0.1}
ip
""".strip().splitlines()

#: Kinds of sockets, the interfaces they are bound to, and what they leave out of a frame.
KINDS: dict[str, tuple[int, str | None, int]] = {
    "raw": (socket.SOCK_RAW, "right", 0),
    "raw on all": (socket.SOCK_RAW, None, 0),
    "cooked": (socket.SOCK_DGRAM, "right", 14),
    "cooked on all": (socket.SOCK_DGRAM, None, 14),
}


@cache
def accepted(template: str, kind: int) -> list[bool]:
    """What the rules say of each of the nested frames, as sockets see it."""
    shown = [as_seen(packet) for packet in nested()]
    made = [observed(cooked(packet.data, SLL), SLL) for packet in shown] if kind == socket.SOCK_DGRAM else shown
    return [expected(template, packet, NETMASK) for packet in made]


@pytest.mark.parametrize(
    ("kind", "form"),
    [*((kind, "text") for kind in KINDS), *((kind, form) for kind in ("raw", "cooked") for form in ("flowkeys", "classic"))],
)
def test_exactly_the_matching_frames_arrive(wire: Wire, kind: str, form: str) -> None:
    """Filters in every form on each kind of socket, attached when everything is in its queue."""
    type_, interface, header = KINDS[kind]
    linktype = SLL if type_ == socket.SOCK_DGRAM else 1
    packets, filters = (nested(), FILTERS) if form == "text" else (nested()[:300], FILTERS[:2])
    with ExitStack() as stack:
        taps = [stack.enter_context(wire.tap(None, type_, interface)) for _ in filters]
        wire.do(wire.put, [packet.data for packet in nested()[:50]])
        for template, tap in zip(filters, taps, strict=True):
            text = text_of(template)
            filter = text if form == "text" else compiled(text, linktype, NETMASK, True, form)
            attachment = wire.do(attach, filter, tap.socket)
            assert attachment.where == "kernel"
            assert read_filter(tap.socket.fileno()) == bytes(attachment.program)
        sent(wire, packets)
        for template, tap in zip(filters, taps, strict=True):
            verdicts = accepted(template, type_)[: len(packets)]
            wanted = [as_seen(packet).data[header:] for packet, verdict in zip(packets, verdicts, strict=True) if verdict]
            assert tap.take() == wanted, template
            assert 3 <= len(wanted) <= len(packets) - 3


def test_frames_of_other_kinds_of_interfaces_are_rejected(wire: Wire) -> None:
    """A socket on all interfaces: tun0 has no Ethernet header. A program for RAW gets its packets, one for EN10MB the others."""
    packet = bytes.fromhex("4500001c000000004011 0000 0a000001 0a000002 0001 0035 0008 0000")
    frame = bytes(12) + b"\x08\x00" + packet + bytes(32)
    with wire.do(Tun) as tun, wire.tap(None, interface=None) as ethernet, wire.tap(None, interface=None) as raw:
        wire.do(attach, "ip or not ip", ethernet.socket)
        wire.do(attach, compile("ip", linktype="RAW"), raw.socket)
        tun.write(packet)
        wire.send([frame])
        wire.control.take()
        assert ethernet.take() == [frame]
        assert raw.take() == [packet]


def test_tunnels_have_link_type_raw(wire: Wire) -> None:
    packet = bytes.fromhex("4500001c000000004011 0000 0a000001 0a000002 0001 0035 0008 0000")
    with wire.do(Tun) as tun, wire.tap(None, interface="tun0") as tap:
        with pytest.raises(AttachError, match="packet socket on tun0: the program is for link type EN10MB, expected RAW"):
            wire.do(attach, compile("ip"), tap.socket)
        wire.do(attach, "inner udp port 53", tap.socket)
        for port in (b"\0\x35", b"\0\x36", b"\0\x35"):
            tun.write(packet[:22] + port + packet[24:])
        wire.send([])
        tap.drain()
        assert tap.take() == [packet, packet]


def test_loopback(wire: Wire) -> None:
    """There each packet is seen twice, as it goes and as it comes, with an Ethernet header of zeros."""
    with wire.tap(None, interface="lo") as tap, wire.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        wire.do(attach, "inner udp port 4000", tap.socket)
        for port in (4000, 4001, 4000):
            sender.sendto(b"x", ("127.0.0.1", port))
        tap.drain()
        assert [frame[36:38] for frame in tap.take()] == [b"\x0f\xa0"] * 2  # those that go are not the tap's


def test_raw_ipv4_sockets(wire: Wire) -> None:
    """They deliver from the IP header on."""

    def raw() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)

    with wire.do(raw) as receiver, wire.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"before", ("127.0.0.1", 4000))
        attachment = wire.do(attach, "inner udp port 4000", receiver)
        assert attachment.program.linktype == 12
        for port in (4001, 4000):
            sender.sendto(b"after", ("127.0.0.1", port))
        assert receiver.recv(100, socket.MSG_DONTWAIT)[20:].endswith(b"after")
        with pytest.raises(BlockingIOError):
            receiver.recv(100, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("place", ["descriptor", "socket", "file"])
def test_places(wire: Wire, place: str) -> None:
    """A descriptor, a socket, anything with a fileno(); a program has the method, too. Whether it blocks is left alone."""

    class File:
        def fileno(self) -> int:
            return tap.socket.fileno()

    with wire.tap(None) as tap:
        tap.socket.setblocking(True)
        where = {"descriptor": tap.socket.fileno(), "socket": tap.socket, "file": File()}[place]
        attachment = wire.do(compile("inner tcp").attach, where)
        assert tap.socket.getblocking()
        assert os.get_blocking(tap.socket.fileno())
        assert str(attachment) == f"the kernel filters the packet socket on right: {len(attachment.program)} instructions"
        with attachment:
            assert read_filter(tap.socket.fileno())
        assert not read_filter(tap.socket.fileno())
        tap.socket.setblocking(False)


def test_snap_length(wire: Wire) -> None:
    with wire.tap(None) as tap, wire.tap(None, socket.SOCK_DGRAM) as cooked_tap:
        wire.do(lambda: attach("not ether proto 0x88b5", tap.socket, snaplen=20))
        wire.do(lambda: attach("not ether proto 0x88b5", cooked_tap.socket, snaplen=36))
        sent(wire, nested()[:100])
        shown = [as_seen(packet).data for packet in nested()[:100]]
        assert tap.take() == [packet[:20] for packet in shown]
        assert cooked_tap.take() == [packet[14:34] for packet in shown]


# ---- VLAN tags, which the kernel has beside the frame ----

VLAN_FILTERS = """
vlan
not vlan
vlan 5
vlan and vlan
vlan 5 and vlan
vlan 5 and ip
vlan 5 and arp or vlan and ip
ip
ip or vlan
ether proto 0x8100
""".strip().splitlines()

VLAN_WITH_EXTENSIONS = ["vlan 5 and inner tcp port 80", "not vlan and inner tcp", "vlan and encap vlan 7"]


def tagged_frames() -> list[bytes]:
    """Frames of every kind of tagging, each with its number at the end."""
    addresses = bytes.fromhex("020000000001 020000000002")
    tcp = bytes.fromhex("0800 45000028000000004006 0000 0a000001 0a000002 1234 0050 00000000 00000000 5002 0000 00000000")
    arp = bytes.fromhex("0806 0001 0800 0604 0001 020000000002 0a000002 000000000000 0a000001")
    tags = ["", "8100 0005", "8100 0006", "88a8 0005", "8100 0000", "8100 a005", "9100 0005", "8100 0005 8100 0007", "88a8 0005 8100 0007"]
    tags += ["8100 0006 8100 0005", "8100 0005 8100 0007 8100 0005"]
    frames = [addresses + bytes.fromhex(tag) + payload + bytes(40) for tag in tags for payload in (tcp, arp)]
    return [frame + struct.pack("!I", number) for number, frame in enumerate(frames)]


def number_of(frame: bytes) -> int:
    return int(struct.unpack("!I", frame[-4:])[0])


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("expression", VLAN_FILTERS)
def test_vlan_as_tcpdump(wire: Wire, expression: str) -> None:
    """What a live tcpdump lets through, the socket delivers. The marker, which ends tcpdump, stands before all tags."""
    frames = tagged_frames()
    text = f"ether proto 0x88b5 or ({expression})"
    with wire.tap(None) as tap, tcpdump(wire, text) as peer:
        wire.do(attach, text, tap.socket)
        sent(wire, [observed(frame) for frame in frames])
        found = [number_of(frame) for frame in tap.take()]
        assert found == [number_of(frame) for frame in frames_of(peer)]
        assert found


def test_vlan_with_extensions(wire: Wire) -> None:
    frames = tagged_frames()
    with ExitStack() as stack:
        taps = {text: stack.enter_context(wire.tap(None)) for text in VLAN_WITH_EXTENSIONS}
        for text, tap in taps.items():
            wire.do(attach, text, tap.socket)
        sent(wire, [observed(frame) for frame in frames])
        numbers = {text: {number_of(frame) for frame in tap.take()} for text, tap in taps.items()}
    # Even numbers are TCP. Tags as in the table of `tagged_frames`; the walk goes through those that are left.
    assert numbers["vlan 5 and inner tcp port 80"] == {2, 6, 10, 12, 14, 16, 20}
    assert numbers["not vlan and inner tcp"] == {0}
    assert numbers["vlan and encap vlan 7"] == {14, 15, 16, 17, 20, 21}


@contextmanager
def tcpdump(wire: Wire, expression: str) -> Iterator[subprocess.Popen[bytes]]:
    """tcpdump in the namespace, capturing."""
    command = ["tcpdump", "-i", "right", "-Q", "in", "--immediate-mode", "-U", "-s", "2048", "-w", "-", expression]
    peer = wire.do(lambda: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    with peer:
        try:
            assert peer.stderr is not None
            assert b"listening on" in next(line for line in peer.stderr if b"listening" in line or b"rror" in line)
            yield peer
        finally:
            peer.terminate()


def frames_of(peer: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """The frames of a pcap file as it is written, up to the marker."""
    assert peer.stdout is not None
    assert len(peer.stdout.read(24)) == 24
    while True:
        _, _, captured, _ = struct.unpack("=IIII", peer.stdout.read(16))
        frame = peer.stdout.read(captured)
        if frame.endswith(MARKER[14:]):
            return
        yield frame


# ---- libpcap's handles ----


class LiveTap:
    """One of pcapext's live handles in the namespace, that a marker ends: every filter of it lets the marker through."""

    def __init__(self, wire: Wire, device: str, linktype: int | None, immediate: bool):
        self.wire = wire
        self.handle = wire.do(self._open, device, linktype, immediate)
        self.received: list[bytes] = []
        self.is_open = True

    def _open(self, device: str, linktype: int | None, immediate: bool) -> LiveHandle:
        return open_live(device, snaplen=2048, immediate=immediate, buffer_size=BUFFER, direction="in", linktype=linktype, timeout_ms=50)

    def attach(self, text: str) -> Attachment:
        program = compiled(f"ether proto 0x88b5 or ({text})", self.handle.linktype, NETMASK, True, "flowkeys")
        return self.wire.do(attach, program, self.handle)

    def take(self, count: int) -> list[bytes]:
        """What comes of `count` frames that were sent: each portion of them has a marker behind it."""
        taken: list[bytes] = []
        markers = 0
        while markers < -(-count // PORTION):
            packet = self.handle.read(timeout=SECONDS)
            assert packet is not None, "a marker was lost"
            if packet[2].endswith(MARKER[14:]):
                markers += 1
            else:
                taken.append(packet[2])
        return taken

    def __enter__(self) -> LiveTap:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.close()


#: With "immediate mode" libpcap has a ring of packets (TPACKET_V2), without one of blocks (TPACKET_V3).
@pytest.mark.usefixtures("each_libpcap")
@pytest.mark.parametrize("immediate", [True, False])
@pytest.mark.parametrize(("device", "linktype"), [("right", None), ("any", SLL), ("any", SLL2)])
def test_handles(wire: Wire, device: str, linktype: int | None, immediate: bool) -> None:
    """What was captured before is checked when it is read; what comes after is filtered by the kernel; so when the filter is replaced."""
    packets = [packet for packet in nested()[:400] if as_seen(packet) is packet]  # what is delivered is what the filter saw
    frames = [packet.data for packet in packets]
    made = [observed(cooked(frame, linktype), linktype) if linktype else observed(frame) for frame in frames]
    with LiveTap(wire, device, linktype, immediate) as tap:
        templates: list[str] = []
        for template in ("{inner tcp}", "ip and not {inner icmp}"):
            sent(wire, packets)
            attachment = tap.attach(text_of(template))
            assert (attachment.where, attachment.reason) == ("kernel", None)
            sent(wire, packets)
            templates.append(template)
            for passed in (templates[-2:], templates[-1:]):
                accepted = [all(expected(template, packet, NETMASK) for template in passed) for packet in made]
                taken = tap.take(len(packets))
                assert len(taken) == sum(accepted)
                assert all(map(bytes.endswith, taken, (frame[14:] for frame, wanted in zip(frames, accepted, strict=True) if wanted)))
                assert 3 < len(taken) < len(packets) - 3


@pytest.mark.parametrize("immediate", [True, False])
def test_libpcap_does_not_filter_beside_it(wire: Wire, immediate: bool) -> None:
    """A filter that libpcap has set, it goes on to run itself on the blocks of the ring that were in use."""
    with LiveTap(wire, "right", None, immediate) as tap:
        wire.do(tap.handle.set_program, compile("inner icmp", target="classic"))
        tap.attach("inner tcp")
        sent(wire, nested()[:300])
        wanted = [packet for packet in nested()[:300] if expected("{inner tcp}", as_seen(packet), NETMASK)]
        assert len(tap.take(300)) == len(wanted) > 10


def test_a_handle_without_its_wrapper(wire: Wire) -> None:
    """Its ring cannot be read through the descriptor, so that what is in it would be delivered."""
    with LiveTap(wire, "right", None, True) as tap:
        message = (
            "packet socket on right: it has a ring buffer, which only its owner can read; attach the filter to the handle that owns it"
        )
        with pytest.raises(AttachError, match=f"^{message}$"):
            wire.do(attach, "tcp", tap.handle.fileno())
        assert not read_filter(tap.handle.fileno())


@pytest.mark.usefixtures("each_libpcap")
def test_handles_of_the_loopback(wire: Wire) -> None:
    with LiveTap(wire, "lo", None, True) as tap, wire.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        wire.do(attach, "inner udp port 4000", tap.handle)
        for port in (4000, 4001, 4000):
            sender.sendto(b"x", ("127.0.0.1", port))
        for _ in range(2):
            packet = tap.handle.read(timeout=SECONDS)
            assert packet is not None
            assert packet[2][36:38] == b"\x0f\xa0"
        tap.handle.nonblocking = True
        assert tap.handle.read() is None


def test_what_the_kernel_does_not_see_is_checked_by_the_handle(wire: Wire) -> None:
    """The sender's address stands in the header that libpcap makes up, and in no word of the kernel's."""
    text = "link[6:4] = 0x02000000 and link[10:2] = 2"
    frames = [bytes.fromhex(f"020000000001 0200000000{last:02x} 0800 45") + bytes(60) for last in (1, 2, 3, 2)]
    with LiveTap(wire, "any", SLL, True) as tap:
        warning = "pcapext filters the capture on all interfaces: the filter reads the link-layer address"
        with pytest.warns(AttachWarning, match=warning):
            attachment = tap.attach(text)
        assert attachment.where == "pcapext"
        assert str(attachment).startswith(warning)
        wire.send(frames)
        wire.control.take()
        assert len(tap.take(4)) == 2
        attachment.detach()
        wire.send(frames)
        wire.control.take()
        assert len(tap.take(4)) == 4
    with (
        wire.tap(None, socket.SOCK_DGRAM) as plain,
        pytest.raises(KernelLacksError, match=r"^packet socket .* on right: the filter reads the link-layer address"),
    ):
        wire.do(attach, text, plain.socket)


# ---- While frames flow ----


class Flow:
    """Numbered frames that a thread sends, of three kinds in turn, in bursts, so that no buffer overflows. `count`: how many were sent."""

    KINDS = ("tcp", "udp", "icmp")
    PROTOCOLS = (6, 17, 1)

    def __init__(self, wire: Wire):
        self.count = 0
        self._stopped = threading.Event()
        self._socket = wire.do(self._open)
        self._thread = threading.Thread(target=self._run)

    @staticmethod
    def _open() -> socket.socket:
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sender.bind(("left", 0))
        return sender

    def _run(self) -> None:
        outer = bytes.fromhex("020000000001 020000000002 0800 45000050000000004004 0000 0a000001 0a000002")
        inner = [outer + bytes.fromhex(f"4500003c0000000040{number:02x} 0000 0a000003 0a000004") + bytes(36) for number in self.PROTOCOLS]
        while not self._stopped.is_set():
            self._socket.send(inner[self.count % 3] + struct.pack("!I", self.count))
            self.count += 1
            if self.count % 20 == 0:
                time.sleep(0.001)

    def await_more(self, count: int, meanwhile: Callable[[], object]) -> int:
        """Wait until some more frames were sent; the number that is next."""
        wanted, deadline = self.count + count, time.monotonic() + SECONDS
        while self.count < wanted:
            assert time.monotonic() < deadline
            meanwhile()
        return self.count

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close()


def check_flow(numbers: Sequence[int], kind: str, first: int, last: int) -> None:
    """All are of the kind, and none between two numbers is missing. `numbers` came in a row."""
    index = Flow.KINDS.index(kind)
    assert {number % 3 for number in numbers} == {index}
    assert [number for number in numbers if first <= number < last] == [number for number in range(first, last) if number % 3 == index]


@pytest.mark.parametrize("kind", ["raw", "cooked"])
def test_sockets_while_frames_flow(kind: str) -> None:
    """Nothing that does not match arrives after `attach` has returned, and all that matches and is sent after it does."""
    wire = Wire()
    type_, interface, _ = KINDS[kind]
    programs = {name: compiled(f"inner {name}", 1 if kind == "raw" else SLL, NETMASK, True, "flowkeys") for name in Flow.KINDS}
    try:
        with wire.tap(None, type_, interface) as tap, Flow(wire) as flow:

            def read() -> None:
                wire.control.drain()
                wire.control.take()
                tap.drain()

            flow.await_more(300, read)
            for name in ("tcp", "udp", "icmp", "tcp", "udp"):
                attachment = wire.do(attach, programs[name], tap.socket)
                first = flow.count + 1  # the one before may be on its way
                tap.take()  # what a reader got before
                last = flow.await_more(300, read) - 1
                tap.drain()
                # Frames sent last may not have come out.
                numbers = [number_of(frame) for frame in tap.take()]
                came = max(numbers) + 1
                assert came > first + 100
                check_flow(numbers, name, first, min(last, came))
            attachment.detach()
    finally:
        wire.close()


@pytest.mark.parametrize("immediate", [True, False])
@pytest.mark.parametrize(("device", "linktype"), [("right", None), ("any", SLL2)])
def test_handles_while_frames_flow(device: str, linktype: int | None, immediate: bool) -> None:
    wire = Wire()
    wire.control.close()
    programs = {name: compiled(f"inner {name}", linktype or 1, NETMASK, True, "flowkeys") for name in Flow.KINDS}
    try:
        with LiveTap(wire, device, linktype, immediate) as tap, Flow(wire) as flow:
            flow.await_more(300, lambda: None)
            for name in ("tcp", "udp", "icmp"):
                wire.do(attach, programs[name], tap.handle)
                first = flow.count + 1
                numbers: list[int] = []
                while len(numbers) < 200:
                    packet = tap.handle.read(timeout=SECONDS)
                    assert packet is not None
                    numbers.append(number_of(packet[2]))
                if numbers[-1] < first:  # all of them from the ring
                    continue
                check_flow(numbers, name, first, numbers[-1] + 1)
            assert tap.handle.stats().dropped == 0
    finally:
        wire.close()


# ---- Detaching, and other filters ----


def test_detaching(wire: Wire) -> None:
    with wire.tap(ACCEPT) as tap:
        attachment = wire.do(attach, "inner tcp", tap.socket)
        attachment.detach()
        assert not read_filter(tap.socket.fileno())
        attachment.detach()
        # The filter of somebody else stays, also one of ours that was attached later.
        attachment = wire.do(attach, "inner tcp", tap.socket)
        later = wire.do(attach, "inner udp", tap.socket)
        with pytest.warns(AttachWarning, match="^the packet socket on right has another filter by now, and it stays$"):
            attachment.detach()
        assert read_filter(tap.socket.fileno()) == bytes(later.program)
        ebpf_filter(tap.socket)
        with pytest.warns(AttachWarning, match="has another filter by now"):
            later.detach()


def test_detaching_from_a_closed_place(wire: Wire) -> None:
    """Also where another socket has its number by then."""
    with wire.tap(None) as tap:
        number = tap.socket.fileno()
        attachment, by_number = wire.do(attach, "inner tcp", tap.socket), wire.do(attach, "inner tcp", number)
    attachment.detach()
    by_number.detach()
    with wire.tap(None) as other:
        assert other.socket.fileno() == number
        set_filter(number, bytes(by_number.program))
        attachment.detach()
        by_number.detach()
        assert read_filter(number) == bytes(by_number.program)
    with LiveTap(wire, "right", None, True) as handle:
        attachment = handle.attach("inner tcp")
    attachment.detach()


def ebpf_filter(sock: socket.socket) -> None:
    """Attach `r0 = 0; exit`, by bpf(2)."""
    instructions = ctypes.create_string_buffer(struct.pack("=QQ", 0xB7, 0x95))
    license_ = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(struct.pack("=IIQQ", 1, 2, ctypes.addressof(instructions), ctypes.addressof(license_)), 128)
    program = ctypes.CDLL(None).syscall({"x86_64": 321, "aarch64": 280}[platform.machine()], 5, attributes, len(attributes))
    assert program >= 0
    sock.setsockopt(socket.SOL_SOCKET, 50, program)  # SO_ATTACH_BPF
    os.close(program)


def test_an_ebpf_filter_is_replaced(wire: Wire) -> None:
    with wire.tap(None) as tap:
        ebpf_filter(tap.socket)
        wire.do(attach, "", tap.socket)
        wire.send([MARKER[:14] + bytes(50)])
        wire.control.take()
        assert len(tap.take()) == 1


# ---- Errors ----


def test_queue_of_a_socket_is_emptied_of_what_a_filter_let_through(wire: Wire) -> None:
    """Replacing a filter: what matched the old one is not delivered behind the new one."""
    with wire.tap(None) as tap:
        wire.do(attach, "inner tcp", tap.socket)
        wire.do(wire.put, [packet.data for packet in nested()[:100]])
        wire.do(attach, "inner udp", tap.socket)
        sent(wire, nested()[:100])
        wanted = [packet for packet in nested()[:100] if expected("{inner udp}", as_seen(packet), NETMASK)]
        assert tap.take() == [as_seen(packet).data for packet in wanted]


OTHER_PLACES: dict[str, tuple[Callable[[], object], str]] = {
    "a file": (tempfile.TemporaryFile, r"descriptor \d+: it is no socket"),
    "TCP": (
        socket.socket,
        "socket of AF_INET, SOCK_STREAM: no filter for packets can be attached to it, expected a packet socket or a raw IPv4 socket",
    ),
    "UDP": (lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), "socket of AF_INET6, SOCK_DGRAM: no filter .*"),
    "raw IPv6": (lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58), "socket of AF_INET6, SOCK_RAW: no filter .*"),
    "netlink": (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0), "socket of AF_NETLINK, SOCK_RAW: no filter .*"),
    "unix": (lambda: socket.socket(socket.AF_UNIX), "socket of AF_UNIX, SOCK_STREAM: no filter .*"),
    "obsolete": (lambda: socket.socket(socket.AF_PACKET, 10, 0), "socket of AF_PACKET, type 10: no filter .*"),
}


@pytest.mark.parametrize("kind", OTHER_PLACES)
def test_other_places(kind: str) -> None:
    make, message = OTHER_PLACES[kind]
    place = make()
    with pytest.raises(AttachError, match=f"^{message}$"):
        attach("inner tcp", place)
    place.close()  # type: ignore[attr-defined]


def closed_socket() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


EBPF = compile("inner tcp", target="ebpf")


@pytest.mark.parametrize(
    ("filter", "place", "settings", "message"),
    [
        ("tcp", closed_socket, {}, "the place is closed"),
        ("tcp", lambda: 1_000_000, {}, "descriptor 1000000: it is closed"),
        ("tcp", lambda: -1, {}, "the place is closed"),
        ("tcp", lambda: "eth0", {}, "the place is of type str, expected a socket, a descriptor or a handle"),
        ("tcp", lambda: True, {}, "the place is of type bool, expected a socket, a descriptor or a handle"),
        ("tcp", lambda: None, {}, "the place is of type NoneType, expected a socket, a descriptor or a handle"),
        (5, closed_socket, {}, "the filter is of type int, expected an expression or a program"),
        (compile("tcp"), closed_socket, {"max_levels": 2}, "max_levels: settings of compiling, and the filter is a program"),
        (compile("tcp"), closed_socket, {"netmask": 2}, "netmask: settings of compiling, and the filter is a program"),
        ("tcp", closed_socket, {"linktype": 1}, "linktype: that follows from the place"),
        ("tcp", closed_socket, {"target": "flowkeys"}, "target 'flowkeys' is nothing to attach, expected 'classic' or 'ebpf'"),
        (compile("tcp"), closed_socket, {"target": "ebpf"}, "the program is classic and stays it: compile it for target 'ebpf'"),
        (EBPF, closed_socket, {"target": "classic"}, "the program is ebpf and stays it: compile it for target 'classic'"),
        (EBPF, closed_socket, {}, "the place is closed"),
    ],
)
def test_wrong_arguments(filter: str, place: Callable[[], object], settings: dict[str, int], message: str) -> None:
    with pytest.raises(AttachError) as caught:
        attach(filter, place(), **settings)  # type: ignore[arg-type]
    assert str(caught.value) == message


def raw_program(*instructions: Instruction, linktype: int = 1) -> Program:
    return Program(instructions, linktype)


LOOP = raw_program(Instruction(bpf.LD_LEN), Instruction(bpf.JEQ_K, 1, 0, 0), Instruction(bpf.JA, k=0xFFFF_FFFD), Instruction(bpf.RET_A))

REFUSED: dict[str, tuple[str | Program, str, str]] = {
    "loop": (LOOP, "raw", "the kernel does not take the program: instruction 2: ja jumps backwards"),
    "protochain": ("ip6 protochain 6", "raw", "the kernel does not take the program: instruction .*: ja jumps backwards"),
    "cooked loop": (
        raw_program(*LOOP, linktype=SLL),
        "cooked",
        "the program cannot be made into one that the kernel runs: instruction 2: a jump backwards makes a loop",
    ),
    "too long": (
        raw_program(*[Instruction(bpf.LD_IMM)] * 4096, Instruction(bpf.RET_A)),
        "raw",
        "the kernel does not take the program: 4097 instructions, the kernel takes at most 4096",
    ),
    "unwritten": (
        raw_program(Instruction(bpf.LD_MEM, k=3), Instruction(bpf.RET_A)),
        "raw",
        r"the kernel does not take the program: instruction 0: M\[3\] is read, but not written on every path before",
    ),
    "ancillary": (
        raw_program(Instruction(bpf.LD_W_ABS, k=0xFFFF_F100), Instruction(bpf.RET_A)),
        "raw",
        "the kernel does not take the program: instruction 0: there is no ancillary word at offset 256",
    ),
    "link type": (compile("ip", linktype="RAW"), "raw", "the program is for link type RAW, expected EN10MB"),
    "link type, cooked": (compile("ip"), "cooked", "the program is for link type EN10MB, expected LINUX_SLL or LINUX_SLL2"),
    "link type, all": (
        compile("ip", linktype="LINUX_SLL"),
        "raw on all",
        "the program is for link type LINUX_SLL, expected one of an interface",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_programs(wire: Wire, case: str) -> None:
    """The filter that was there stays, and what is in the queue."""
    filter, kind, message = REFUSED[case]
    type_, interface, _ = KINDS[kind]
    with wire.tap(ACCEPT, type_, interface) as tap:
        wire.do(wire.put, [MARKER])
        with pytest.raises(AttachError, match=f"^packet socket.*: {message}$"):
            wire.do(attach, filter, tap.socket)
        assert read_filter(tap.socket.fileno()) == bytes(raw_program(*ACCEPT))
        assert tap.drain()


@pytest.mark.parametrize("text", ["", "inner tcp and", "inner tcp and inner udp", "vlan 5 and"])
def test_wrong_texts(wire: Wire, text: str) -> None:
    """The errors of `compile`, and the filter that was there stays."""
    with wire.tap(ACCEPT) as tap:
        if text:
            with pytest.raises(FilterError):
                wire.do(attach, text, tap.socket)
            assert read_filter(tap.socket.fileno()) == bytes(raw_program(*ACCEPT))
        else:
            assert wire.do(attach, text, tap.socket).where == "kernel"


def test_a_locked_filter(wire: Wire) -> None:
    with wire.tap(ACCEPT) as tap:
        tap.socket.setsockopt(socket.SOL_SOCKET, 44, 1)  # SO_LOCK_FILTER
        message = r"^packet socket on right: its filter is locked \(SO_LOCK_FILTER\) and cannot be changed$"
        with pytest.raises(AttachError, match=message):
            wire.do(attach, "tcp", tap.socket)
        assert read_filter(tap.socket.fileno()) == bytes(raw_program(*ACCEPT))
    with wire.tap(None) as tap:
        attachment = wire.do(attach, "tcp", tap.socket)
        tap.socket.setsockopt(socket.SOL_SOCKET, 44, 1)
        with pytest.raises(AttachError, match=message):
            attachment.detach()


@pytest.fixture
def little_memory(wire: Wire) -> Iterator[None]:
    """A kernel with little memory for filters, in the namespace."""
    limit = Path("/proc/sys/net/core/optmem_max")
    before = wire.do(limit.read_text)
    wire.do(limit.write_text, "4096")
    yield
    wire.do(limit.write_text, before)


@pytest.mark.usefixtures("little_memory")
def test_no_memory(wire: Wire) -> None:
    """A socket keeps its filter; a handle checks its packets itself, and says so."""
    message = (
        r"packet socket on right: no memory for \d+ instructions in the kernel; "
        "the limit for a socket is net.core.optmem_max, 4096 bytes"
    )
    with wire.tap(ACCEPT) as tap, pytest.raises(KernelLacksError, match=f"^{message}$"):
        wire.do(attach, "inner tcp", tap.socket)
    with LiveTap(wire, "right", None, True) as handle:
        wire.do(handle.handle.set_program, raw_program(*REJECT))
        with pytest.warns(AttachWarning, match="^pcapext filters the capture on right: no memory"):
            attachment = handle.attach("inner tcp")
        assert attachment.where == "pcapext"
        assert not read_filter(handle.handle.fileno())
        sent(wire, nested()[:200])
        wanted = [packet for packet in nested()[:200] if as_seen(packet) is packet and expected("{inner tcp}", packet, NETMASK)]
        taken = handle.take(200)
        assert [packet.data for packet in wanted] == [frame for frame in taken if frame in {packet.data for packet in wanted}]
        # Another one that the kernel takes: now it filters.
        assert wire.do(attach, "ether proto 0x88b5", handle.handle).where == "kernel"
        sent(wire, nested()[:100])
        assert handle.take(100) == []


def test_no_memory_for_the_second_time(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails when everything is rejected already is undone: the filter that was there is back."""

    def fail(descriptor: int, program: bytes) -> None:
        if len(program) > 8 and program != bytes(raw_program(*before)) and in_place(descriptor):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        set_filter(descriptor, program)

    def in_place(descriptor: int) -> bool:
        return descriptor == tap.socket.fileno()

    before = (Instruction(bpf.LD_LEN), *ACCEPT)
    monkeypatch.setattr("pcapext.attaching.set_filter", fail)
    with wire.tap(before) as tap:
        with pytest.raises(KernelLacksError, match=r"no memory for 4 instructions in the kernel; [^;]*$"):
            wire.do(attach, "arp", tap.socket)
        assert read_filter(tap.socket.fileno()) == bytes(raw_program(*before))
        bpf_oracles.attach(tap.socket, REJECT)
        set_filter(tap.socket.fileno(), bytes(raw_program(*REJECT)))
    with wire.tap(None) as tap:
        with pytest.raises(KernelLacksError):
            wire.do(attach, "arp", tap.socket)
        assert not read_filter(tap.socket.fileno())
        ebpf_filter(tap.socket)
        message = "the filter there was is an eBPF program, which cannot be put back, and nothing is let through$"
        with pytest.raises(KernelLacksError, match=message):
            wire.do(attach, "arp", tap.socket)
        assert read_filter(tap.socket.fileno()) == bytes(raw_program(*REJECT))


def test_an_interface_that_is_down(wire: Wire) -> None:
    """What the socket would have told its reader is not lost: it is the error."""
    with wire.do(Tun) as _, wire.tap(ACCEPT, interface="tun0") as tap:
        wire.do(subprocess.run, ["ip", "link", "set", "tun0", "down"])
        with pytest.raises(AttachError, match=r"^packet socket on tun0: Network is down$"):
            wire.do(attach, "ip", tap.socket)
        assert read_filter(tap.socket.fileno()) == bytes(raw_program(*ACCEPT))
        assert wire.do(attach, "ip", tap.socket).where == "kernel"


def test_an_interface_without_a_link_type(wire: Wire) -> None:
    """A GRE tunnel has a header of its own (ARPHRD_IPGRE)."""
    with wire.do(Tun, 778):
        with wire.tap(None, interface="tun0") as tap:
            message = r"packet socket on tun0: its link-layer header \(ARPHRD type 778\) is of no link type of libpcap's; .*"
            with pytest.raises(AttachError, match=f"^{message}$"):
                wire.do(attach, "ip", tap.socket)
        with wire.tap(None, socket.SOCK_DGRAM, "tun0") as tap:
            assert wire.do(attach, "ip", tap.socket).where == "kernel"


WITHOUT_PRIVILEGES = """
import fcntl, os, socket, sys
import pcapext
import pcapext.attaching
pcapext.attaching.compile_live("inner tcp", 1)  # everything is loaded, which others may not read
place = socket.socket(fileno=int(sys.argv[1]))
os.setresuid(65534, 65534, 65534)
try:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
except PermissionError:
    print(pcapext.attach("inner tcp", place).where)
place.detach()  # from this object, not from the filter
"""


def test_without_privileges(wire: Wire) -> None:
    """A socket that somebody else opened can be filtered by anybody."""
    with wire.tap(ACCEPT) as tap:
        command = [sys.executable, "-c", WITHOUT_PRIVILEGES, str(tap.socket.fileno())]
        run = wire.do(lambda: subprocess.run(command, pass_fds=[tap.socket.fileno()], capture_output=True, text=True, check=True))
        assert run.stdout == "kernel\n"
        assert len(read_filter(tap.socket.fileno())) > 8000


def test_filters_are_awaited_without_privileges_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(socket, "socket", refuse)
    await_filters()
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(OSError, match="Function not implemented"):
        await_filters()


# ---- Sources ----


class Recorder:
    """A source that only remembers what it is told."""

    linktype = 1

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.told: list[int | None] = []
        self.until: int | None = 0
        self.matches: Matches = lambda data, wirelen: True
        self.cleared = 0

    def fileno(self) -> int:
        return self.descriptor

    def check_until(self, time_ns: int | None, matches: Matches) -> tuple[int | None, Matches]:
        before = self.until, self.matches
        self.told.append(time_ns)
        self.until, self.matches = time_ns, matches
        return before

    def clear_filter(self) -> None:
        self.cleared += 1


def test_a_source_on_what_is_no_packet_socket() -> None:
    """A USB device, netlink: libpcap reads from something else."""
    arp = bytes(12) + b"\x08\x06" + bytes(46)
    with open("/dev/null") as file, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        for place in (file, netlink):
            source = Recorder(place.fileno())  # type: ignore[attr-defined]
            with pytest.warns(AttachWarning, match="^pcapext filters the capture: what it reads from is no packet socket$"):
                attachment = attach("arp", source)
            assert attachment.where == "pcapext"
            assert source.told == [None]
            assert source.matches(arp, 60)
            assert not source.matches(bytes(60), 60)
            attachment.detach()
            assert source.told == [None, 0]
            assert source.matches(bytes(60), 60)


def test_a_filter_that_took_the_place_of_one_of_pcapext_stays() -> None:
    arp, ip = bytes(12) + b"\x08\x06" + bytes(46), bytes(12) + b"\x08\x00" + bytes(46)
    with open("/dev/null") as file:
        source = Recorder(file.fileno())
        with pytest.warns(AttachWarning, match="no packet socket"):
            first, second = attach("arp", source), attach("ip", source)
        with pytest.warns(AttachWarning, match="^the capture has another filter by now, and it stays$"):
            first.detach()
        assert source.until is None
        assert (source.matches(ip, 60), source.matches(arp, 60)) == (True, False)
        second.detach()
        assert source.until == 0
        first.detach()


def test_a_filter_of_pcapext_comes_back_when_another_one_fails(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the kernel has no memory, so pcapext filters; then it has, but the program does not come in."""

    def fail(descriptor: int, program: bytes) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    arp, ip = bytes(12) + b"\x08\x06" + bytes(46), bytes(12) + b"\x08\x00" + bytes(46)
    with wire.tap(None) as tap:
        source = Recorder(tap.socket.fileno())
        with monkeypatch.context() as patch:
            patch.setattr("pcapext.attaching.set_filter", fail)
            with pytest.warns(AttachWarning, match="no memory"):
                wire.do(attach, "arp", source)
        monkeypatch.setattr("pcapext.attaching.await_filters", lambda: os.close(-1))
        with pytest.raises(AttachError, match="Bad file descriptor"):
            wire.do(attach, "ip", source)
        assert source.until is None
        assert (source.matches(arp, 60), source.matches(ip, 60)) == (True, False)
        assert read_filter(tap.socket.fileno()) == b""


def test_words_that_only_the_kernel_has() -> None:
    """Where pcapext filters, a program that asks for the kernel's mark would let nothing through."""
    program = raw_program(Instruction(bpf.LD_W_ABS, k=0xFFFF_F000 + 20), Instruction(bpf.RET_A))
    with open("/dev/null") as file:
        source = Recorder(file.fileno())
        message = r"^capture: what it reads from is no packet socket; nor can pcapext run it, which has no ancillary word mark$"
        with pytest.raises(AttachError, match=message):
            attach(program, source)
        assert source.told == []


def test_too_many_files(wire: Wire) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with wire.tap(ACCEPT) as tap:
        resource.setrlimit(resource.RLIMIT_NOFILE, (tap.socket.fileno() + 1, limits[1]))
        try:
            with pytest.raises(AttachError, match=r"^packet socket on right: Too many open files$"):
                wire.do(attach, raw_program(*REJECT), tap.socket)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert read_filter(tap.socket.fileno()) == bytes(raw_program(*ACCEPT))


def test_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    with open("/dev/null") as file:
        with pytest.warns(AttachWarning, match="^pcapext filters the capture: on freebsd14 it is not set in the kernel$"):
            assert attach("arp", Recorder(file.fileno())).where == "pcapext"
        with pytest.raises(AttachError, match=r"^a socket can be filtered on Linux only, and this is freebsd14; "):
            attach("arp", file)
