"""`pcapext.integrations.scapy`: what arrives from interfaces, captures, lists and open sockets is what matches, as scapy's own give it."""

from __future__ import annotations

import fcntl
import gzip
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import capturefiles
import pytest
import scapy.all
from capturefiles import NANOSECONDS, SECOND, pcap, pcapng, several_interfaces, several_link_types
from everywhere import observed, sample
from frames import as_seen, receivable
from oracle import NETMASK, Packet, expected, libpcap_matches, text_of
from packets import EN10MB, LINK_TYPES, LOOP, NULL
from scapy import sendrecv
from scapy.all import ARP, IP, TCP, UDP, Ether, PacketList, PcapReader, conf
from wire import SLL, Wire, cooked, seen

import pcapext
from pcapext.errors import AttachError, CaptureError, FilterError, ProgramError
from pcapext.integrations import scapy as integration
from pcapext.integrations.scapy import AsyncSniffer, install, sniff, uninstall

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

#: Templates of oracle.py. None asks for the destination in the frame, which tells the last frame from the others.
TEMPLATES = (
    "{inner tcp port 80}",
    "not {inner udp port 53} and {inner udp}",
    "tcp port 80 or {encap vxlan} or {inner host 10.0.0.1}",
)

#: The destination of a frame behind which nothing follows, and how many frames are sent at once: no more than socket buffers hold.
LAST = b"\x02\0\0\0\0\xed"
PORTION = 200
SECONDS = 20.0


# ---- Interfaces ----


class Line:
    """A wire, and scapy on it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def do(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Call a function inside of the namespace."""
        return self.wire.do(function, *arguments)

    def send(self, frames: Sequence[bytes], interface: str = "left") -> None:
        self.do(send, frames, interface)


def send(frames: Sequence[bytes], interface: str = "left") -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((interface, 0))
        for frame in frames:
            assert sender.send(frame) == len(frame)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire()
    wire.do(subprocess.run, ["ip", "link", "set", "lo", "up"])
    yield wire
    wire.close()


@pytest.fixture(params=[False, True], ids=["native", "libpcap"])
def line(wire: Wire, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The wire, with scapy's own sockets and with libpcap's."""
    # What the system lets anybody have: no frame is lost while one that matches is looked at.
    monkeypatch.setattr(conf, "bufsize", int(Path("/proc/sys/net/core/rmem_max").read_text()))
    conf.use_pcap = request.param
    wire.do(conf.ifaces.reload)
    yield Line(wire)
    conf.use_pcap = False
    conf.ifaces.reload()


class Sniffing:
    """A sniffer that runs. `last` is a frame that it lets through and that ends the sniffing."""

    def __init__(self, line: Line, last: bytes, make: Any = AsyncSniffer, copies: int = 1, **arguments: Any) -> None:
        self.line = line
        self.last = last
        self.copies = copies
        self.packets: Queue[Any] = Queue()
        self.received: list[Any] = []
        started = threading.Event()
        self.sniffer = make(prn=self.packets.put, store=False, started_callback=started.set, **arguments)
        line.do(self.sniffer.start)
        while not started.wait(0.1):
            assert self.sniffer.thread.is_alive(), self.sniffer.exception

    def send(self, frames: Sequence[bytes], interface: str = "left", sent_last: bytes | None = None) -> None:
        """Send frames; when it returns, what there is of them in `received` is all there will be."""
        for start in range(0, len(frames), PORTION):
            self.line.send([*frames[start : start + PORTION], sent_last or self.last], interface)
            self.await_last()

    def await_last(self) -> None:
        missing = self.copies
        while missing:
            packet = self.packets.get(timeout=SECONDS)
            if packet.original == self.last:
                missing -= 1
            else:
                self.received.append(packet)

    def stop(self) -> list[bytes]:
        self.sniffer.stop()
        return [packet.original for packet in self.received]


def last_of(made: Sequence[Packet], template: str) -> bytes:
    return LAST + next(packet.data for packet in made if expected(template, as_seen(packet), NETMASK))[6:]


@pytest.fixture(scope="module")
def made() -> list[Packet]:
    """2000 frames of every nesting, tagged ones too."""
    packets = receivable(2900, 11)[:2000]
    assert len(packets) == 2000
    assert sum(seen(packet.data) != packet.data for packet in packets) > 100
    return packets


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip")
class TestInterfaces:
    @pytest.mark.parametrize("template", TEMPLATES)
    def test_what_matches_arrives(self, line: Line, made: list[Packet], template: str) -> None:
        wanted = [packet.data for packet in made if expected(template, as_seen(packet), NETMASK)]
        assert 20 < len(wanted) < 1900
        sniffing = Sniffing(line, last_of(made, template), iface="right", filter=text_of(template))
        sniffing.send([packet.data for packet in made])
        assert sniffing.stop() == wanted

    def test_nothing_that_was_queued_before(self, line: Line, made: list[Packet], monkeypatch: pytest.MonkeyPatch) -> None:
        """Frames come in between the opening of the socket and the filter: of what does not match none is delivered."""
        template, before = TEMPLATES[0], made[:100]
        queued = threading.Event()

        def attach(filter: str, place: object) -> None:
            send([packet.data for packet in before])
            queued.set()
            real(filter, place)

        real = integration.attach
        monkeypatch.setattr(integration, "attach", attach)
        sniffing = Sniffing(line, last_of(made, template), iface="right", filter=text_of(template))
        assert queued.is_set()
        after = made[100:300]
        sniffing.send([packet.data for packet in after])
        early, late = ([packet.data for packet in some if expected(template, as_seen(packet), NETMASK)] for some in (before, after))
        # libpcap's buffer cannot be emptied, and what matches in it is delivered.
        assert sniffing.stop() == (early + late if conf.use_pcap else late)
        assert early

    def test_frames_flow_while_it_is_attached(self, line: Line, made: list[Packet]) -> None:
        template = TEMPLATES[0]
        verdicts = {packet.data: expected(template, as_seen(packet), NETMASK) for packet in made}
        last = last_of(made, template)
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                send([packet.data for packet in made[:50]])

        thread = threading.Thread(target=flood)
        line.do(thread.start)
        try:
            sniffing = Sniffing(line, last, iface="right", filter=text_of(template))
        finally:
            stop.set()
            thread.join()
        # The buffer may be full: the mark is sent until it has come.
        mark, first = LAST[:5] + b"\xef" + last[6:], list[bytes]()
        while mark not in first:
            try:
                first.append(sniffing.packets.get(timeout=0.1).original)
            except Empty:
                line.send([mark])
        assert all(data == mark or verdicts[data] for data in first)
        after = made[50:250]
        sniffing.send([packet.data for packet in after])
        assert [data for data in sniffing.stop() if data != mark] == [packet.data for packet in after if verdicts[packet.data]]

    def test_loopback(self, line: Line, made: list[Packet]) -> None:
        """What is sent there comes in as well; libpcap gives it once."""
        template, copies = TEMPLATES[0], 1 if conf.use_pcap else 2
        some = [packet for packet in made if seen(packet.data) == packet.data][:300]
        sniffing = Sniffing(line, last_of(some, template), iface="lo", filter=text_of(template), copies=copies)
        sniffing.send([packet.data for packet in some], "lo")
        assert sniffing.stop() == [packet.data for packet in some if expected(template, packet, NETMASK) for _ in range(copies)]

    @pytest.mark.parametrize(
        ("iface", "labels"),
        [(["left", "right"], {"left", "right"}), ({"left": "out", "right": "in"}, {"out", "in"})],
        ids=["list", "dictionary"],
    )
    def test_several_interfaces(self, line: Line, made: list[Packet], iface: Any, labels: set[str]) -> None:
        template, some = TEMPLATES[0], [packet for packet in made if seen(packet.data) == packet.data][:300]
        wanted = [packet.data for packet in some if expected(template, packet, NETMASK)]
        sniffing = Sniffing(line, last_of(some, template), iface=iface, filter=text_of(template), copies=2)
        sniffing.send([packet.data for packet in some])
        sniffing.stop()
        for label in labels:
            assert [packet.original for packet in sniffing.received if packet.sniffed_on == label] == wanted

    def test_scapys_own_interface(self, line: Line, made: list[Packet], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(conf, "iface", "right")
        sniffing = Sniffing(line, last_of(made, TEMPLATES[0]), filter=text_of(TEMPLATES[0]))
        sniffing.send([packet.data for packet in made[:100]])
        assert sniffing.stop() == [packet.data for packet in made[:100] if expected(TEMPLATES[0], as_seen(packet), NETMASK)]
        assert {packet.sniffed_on for packet in sniffing.received} == {"right"}

    def test_all_interfaces_of_libpcap(self, line: Line, made: list[Packet]) -> None:
        """Each frame goes out on one and comes in on the other, behind a header that libpcap makes up."""
        if not conf.use_pcap:
            with pytest.raises(ValueError, match="Interface 'any' not found"):
                line.do(AsyncSniffer(iface="any", filter="inner tcp").start)
            return
        template = TEMPLATES[0]
        some = [packet.data for packet in made if seen(packet.data) == packet.data and packet.data[12:14] >= b"\x06"][:PORTION]
        wanted = [frame for frame in some if expected(template, observed(cooked(frame, SLL), SLL), NETMASK)]
        last = wanted[0][:6] + LAST + wanted[0][12:]
        sniffing = Sniffing(line, cooked(last, SLL), iface="any", filter=text_of(template))
        sniffing.send(some, sent_last=last)
        received = sniffing.stop()
        assert [packet for packet in received if packet[:2] != b"\0\4"] == [cooked(frame, SLL) for frame in wanted]
        assert [packet[2:] for packet in received if packet[:2] == b"\0\4"] == [cooked(frame, SLL)[2:] for frame in (*wanted, last)]

    @pytest.mark.parametrize("filter", ["tcp port 80 or udp port 53", "ip6 and not tcp", "len > 200 or udp"])
    def test_standard_filters_are_as_scapys(self, line: Line, made: list[Packet], filter: str) -> None:
        """Frames with a tag aside, which scapy's own filter takes for others than they are."""
        some = [packet.data for packet in made if seen(packet.data) == packet.data][:400]
        last = next(data for data in some if libpcap_matches(filter, data, EN10MB))
        last = LAST[:5] + b"\xef" + last[6:]
        sniffers = [Sniffing(line, last, make, iface="right", filter=filter) for make in (AsyncSniffer, sendrecv.AsyncSniffer)]
        for start in range(0, len(some), PORTION):
            line.send([*some[start : start + PORTION], last])
            for sniffing in sniffers:
                sniffing.await_last()
        ours, theirs = (sniffing.stop() for sniffing in sniffers)
        assert ours == theirs
        assert len(ours) > 5
        ours, theirs = ([(type(packet), packet.sniffed_on) for packet in sniffing.received] for sniffing in sniffers)
        assert ours == theirs

    @pytest.mark.parametrize("exceptions", ["tcp port 80", "inner tcp port 80"])
    def test_exceptions_in_scapys_settings(self, line: Line, made: list[Packet], exceptions: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(conf, "except_filter", exceptions)
        template = "{inner tcp} and not " + (f"{{{exceptions}}}" if "inner" in exceptions else exceptions)
        for filter, wanted in (("inner tcp", template), (None, template.removeprefix("{inner tcp} and "))):
            sniffing = Sniffing(line, last_of(made, template), iface="right", filter=filter)
            sniffing.send([packet.data for packet in made[:200]])
            assert sniffing.stop() == [packet.data for packet in made[:200] if expected(wanted, as_seen(packet), NETMASK)]

    def test_program(self, line: Line, made: list[Packet]) -> None:
        program = pcapext.compile(text_of(TEMPLATES[0]))
        sniffing = Sniffing(line, last_of(made, TEMPLATES[0]), iface="right", filter=program)
        sniffing.send([packet.data for packet in made[:100]])
        assert sniffing.stop() == [packet.data for packet in made[:100] if expected(TEMPLATES[0], as_seen(packet), NETMASK)]

    def test_installed(self, line: Line, made: list[Packet]) -> None:
        template = TEMPLATES[0]
        with install():
            sniffing = Sniffing(line, last_of(made, template), sendrecv.AsyncSniffer, iface="right", filter=text_of(template))
        sniffing.send([packet.data for packet in made[:100]])
        assert sniffing.stop() == [packet.data for packet in made[:100] if expected(template, as_seen(packet), NETMASK)]

    def test_nothing_is_left(self, line: Line, made: list[Packet]) -> None:
        def state() -> tuple[object, ...]:
            promiscuous = subprocess.run(["ip", "-d", "link", "show", "right"], capture_output=True, text=True, check=True).stdout
            return threading.active_count(), sorted(os.listdir("/proc/self/fd")), promiscuous.split("promiscuity ")[1].split()[0]

        # What is made once, such as the thread's own pipe, is made by now.
        for _ in range(2):
            before = line.do(state)
            sniffing = Sniffing(line, last_of(made, TEMPLATES[0]), iface="right", filter="inner tcp port 80")
            during = line.do(state)
            sniffing.stop()
            del sniffing
            after = line.do(state)
        assert (before[0], len(before[1]), before[2]) == (after[0], len(after[1]), after[2])
        assert during[0] == before[0] + 1
        assert during[2] == "1"

    def test_open_sockets(self, line: Line, made: list[Packet]) -> None:
        """They are filtered as long as it takes, and stay open with the filter that they have."""
        opened = line.do(lambda: conf.L2listen(iface="right", filter="ip or ip6"))
        template, some = "{inner tcp}", made[:200]
        sniffing = Sniffing(line, last_of(made, f"ip and {template}"), opened_socket=opened, filter="inner tcp")
        with pytest.raises(AttachError, match="is filtered by another sniffer"):
            sniff(opened_socket=opened, filter="inner udp", timeout=0)
        sniffing.send([packet.data for packet in some])
        # What it delivers has its tag back, as in a capture; its own filter saw it without.
        assert sniffing.stop() == [
            packet.data for packet in some if expected("ip or ip6", as_seen(packet), NETMASK) and expected(template, packet, NETMASK)
        ]
        again = Sniffing(line, sniffing.last, opened_socket=[opened])
        again.send([packet.data for packet in some])
        assert again.stop() == [packet.data for packet in some if expected("ip or ip6", as_seen(packet), NETMASK)]
        assert not opened.closed
        opened.close()

    def test_where_the_kernel_has_no_room(self, line: Line, made: list[Packet]) -> None:
        """pcapext filters then, and says so."""
        optmem = Path("/proc/sys/net/core/optmem_max")
        template = "not {inner udp port 53} and {inner udp}"
        before = line.do(optmem.read_text)
        line.do(optmem.write_text, "4096")
        try:
            with pytest.warns(pcapext.errors.AttachWarning, match="pcapext filters"):
                sniffing = Sniffing(line, last_of(made, template), iface="right", filter=text_of(template))
        finally:
            line.do(optmem.write_text, before)
        sniffing.send([packet.data for packet in made[:200]])
        # pcapext sees the frame as scapy gives it, with its tag.
        assert sniffing.stop() == [packet.data for packet in made[:200] if expected(template, packet, NETMASK)]

    @pytest.mark.parametrize("interfaces", ["right", ["left", "right"]])
    def test_mistakes_are_told_before_anything_is_opened(self, line: Line, interfaces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[object] = []
        monkeypatch.setattr(integration, "_open", lambda *_, **__: opened.append(1))
        with pytest.raises(FilterError) as caught:
            line.do(AsyncSniffer(iface=interfaces, filter="inner tcp port 80 or or").start)
        assert str(caught.value).splitlines()[1:] == ["  inner tcp port 80 or or", " " * 23 + "^^"]
        with pytest.raises(FilterError):
            line.do(lambda: sniff(iface=interfaces, filter="tcp port"))
        assert not opened

    def test_no_such_interface(self, line: Line) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ValueError, match="Interface 'absent' not found"):
            line.do(AsyncSniffer(iface=["right", "absent"], filter="inner tcp").start)
        with pytest.raises(ValueError, match="Interface 'absent' not found"):
            line.do(lambda: sniff(iface="absent", filter="inner tcp"))
        assert len(os.listdir("/proc/self/fd")) == before

    def test_sockets_before_the_one_that_fails_are_closed(self, line: Line) -> None:
        sockets: list[Any] = []

        def listen(**arguments: Any) -> Any:
            if sockets:
                raise OSError("it fails")
            sockets.append(conf.L2listen(**arguments))
            return sockets[0]

        with pytest.raises(OSError, match="it fails"):
            line.do(lambda: sniff(iface=["left", "right"], filter="inner tcp", L2socket=listen))
        assert sockets[0].closed

    def test_link_type_without_a_walk(self, line: Line) -> None:
        """802.11 frames: libpcap knows them, and nothing can be inside of them."""
        interface = line.do(interface_of_kind, 801)
        try:
            with pytest.raises(FilterError, match="no extension term on link type IEEE802_11"):
                line.do(lambda: sniff(iface="odd", filter="inner tcp"))
        finally:
            os.close(interface)


TUNSETIFF, TUNSETLINK, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x400454CD, 2, 0x1000


def interface_of_kind(hatype: int) -> int:
    """An interface `odd` of an ARPHRD type, as long as the descriptor is open."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"odd", IFF_TAP | IFF_NO_PI))
    fcntl.ioctl(descriptor, TUNSETLINK, hatype)
    subprocess.run(["ip", "link", "set", "odd", "up"], check=True)
    return descriptor


# ---- Captures ----

#: Filters of tcpdump's, and of ours.
STANDARD = ("tcp port 80", "ip6 or arp", "udp and not port 53", "len > 1000", "vlan 5", "ether[0] & 1 = 1")


#: The link types of generated packets whose filters are the same in files and elsewhere: the families of loopback frames are not.
FILES = [linktype for linktype in LINK_TYPES if linktype not in (NULL, LOOP)]


def described(packet: Any) -> tuple[object, ...]:
    return type(packet), packet.original, packet.time, packet.wirelen, packet.sniffed_on


def every_form(folder: Path) -> Iterator[tuple[Path, str]]:
    packets = capturefiles.traffic(120, 3)
    forms = {
        "micro.pcap": pcap(packets),
        "nano.pcap": pcap(packets, ">", NANOSECONDS),
        "plain.pcapng": pcapng(packets, ">", 9, options=True),
        "interfaces.pcapng": several_interfaces(packets),
        "raw.pcap": pcap(capturefiles.traffic(120, 3, 12)),
        "cooked.pcap": pcap(capturefiles.traffic(120, 3, 113)),
    }
    for name, file in forms.items():
        (folder / name).write_bytes(file.octets)
        yield folder / name, name
        with gzip.open(folder / f"{name}.gz", "wb") as output:
            output.write(file.octets)
        yield folder / f"{name}.gz", name


class TestCaptures:
    @pytest.mark.parametrize("filter", STANDARD)
    def test_as_scapys_readers_give_them(self, tmp_path: Path, filter: str) -> None:
        """Of all that the reader gives, in every form, what libpcap's interpreter accepts."""
        for path, name in every_form(tmp_path):
            linktype = {"raw.pcap": 12, "cooked.pcap": 113}.get(name, EN10MB)
            if linktype != EN10MB and filter in ("vlan 5", "ether[0] & 1 = 1"):
                continue  # libpcap refuses them there
            with PcapReader(str(path)) as reader:
                everything = list(reader)
            assert len(everything) == 120
            wanted = [packet for packet in everything if libpcap_matches(filter, packet.original, linktype, packet.wirelen)]
            for packet in wanted:
                packet.sniffed_on = str(path)
            found = sniff(offline=str(path), filter=filter)
            assert [described(packet) for packet in found] == [described(packet) for packet in wanted], name
            assert [getattr(packet, "comments", None) for packet in found] == [getattr(packet, "comments", None) for packet in wanted]

    @pytest.mark.tools("tcpdump")
    @pytest.mark.parametrize("filter", STANDARD[:4])
    def test_as_scapys_own_filter(self, tmp_path: Path, filter: str) -> None:
        """It has tcpdump filter, which gives what it reads in microseconds."""
        path = tmp_path / "x.pcap"
        path.write_bytes(pcap(capturefiles.traffic(300, 4)).octets)
        with open(path, "rb") as file, open(path, "rb") as again:
            for ours, theirs in ((str(path), str(path)), ([str(path)] * 2, [str(path)] * 2), ({str(path): "x"},) * 2, (file, again)):
                found = sniff(offline=ours, filter=filter)
                wanted = sendrecv.sniff(offline=theirs, filter=filter)
                assert [described(packet)[:4] for packet in found] == [described(packet)[:4] for packet in wanted]
                assert len(found) > 5
                if isinstance(ours, dict):
                    assert {packet.sniffed_on for packet in found} == {packet.sniffed_on for packet in wanted} == {"x"}

    @pytest.mark.parametrize("template", ["{inner tcp port 80}", "tcp port 80 or {inner host 10.0.0.1}", '"{depth} > 1"'])
    def test_inner_terms(self, tmp_path: Path, template: str) -> None:
        # Of a packet of which not all was captured, a program may reject what the rules accept.
        made = [packet for packet in sample(400, 7, FILES) if packet.captured == packet.length]
        packets = [capturefiles.Packet(SECOND + index, packet.length, packet.data, packet.linktype) for index, packet in enumerate(made)]
        (tmp_path / "x.pcapng").write_bytes(several_link_types(packets).octets)
        found = sniff(offline=str(tmp_path / "x.pcapng"), filter=text_of(template))
        assert [(packet.original, packet.wirelen) for packet in found] == [
            (packet.data, packet.length) for packet in made if expected(template, packet, NETMASK)
        ]

    @pytest.mark.parametrize("order", "<>")
    def test_byte_order_of_the_file(self, tmp_path: Path, order: str) -> None:
        """The families of loopback frames are in the order of the machine that captured."""
        family = struct.pack(f"{order}I", 2)
        packets = [capturefiles.Packet(SECOND, 24, family + bytes(IP() / TCP(dport=port)), 0) for port in (80, 81)]
        (tmp_path / "x.pcap").write_bytes(pcap(packets, order).octets)
        assert [packet.original for packet in sniff(offline=str(tmp_path / "x.pcap"), filter="tcp port 80")] == [packets[0].data]

    def test_several_captures_in_order(self) -> None:
        names = [str(EXAMPLES / name) for name in ("tunnels.pcap", "plain.pcap")]
        found = sniff(offline=names, filter="inner tcp port 80")
        assert [packet.sniffed_on for packet in found].count(names[0]) == 28
        assert {packet.sniffed_on for packet in found} == set(names)

    def test_arguments_are_scapys(self) -> None:
        """`count`, by its place; `lfilter` and `stop_filter` see what matches alone."""
        path = str(EXAMPLES / "tunnels.pcap")
        assert len(sniff(3, offline=path, filter="inner tcp port 80")) == 3
        seen_by: list[Any] = []
        assert not sniff(offline=path, filter="inner tcp port 80", lfilter=seen_by.append, store=False)
        assert len(seen_by) == 28
        assert len(sniff(offline=path, filter="inner tcp port 80", stop_filter=lambda packet: packet.time > 1704067200.1)) < 28

    def test_asynchronous(self) -> None:
        sniffer = AsyncSniffer(offline=str(EXAMPLES / "tunnels.pcap"), filter="inner tcp port 80")
        sniffer.start()
        sniffer.join()
        assert len(sniffer.results) == 28

    def test_no_filter(self) -> None:
        path = str(EXAMPLES / "tunnels.pcap")
        assert [described(packet) for packet in sniff(offline=path)] == [described(packet) for packet in sendrecv.sniff(offline=path)]

    def test_files_are_closed(self, tmp_path: Path) -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        sniff(2, offline=str(EXAMPLES / "tunnels.pcap"), filter="inner tcp port 80")
        for filter in ("inner tcp port", "wlan type mgt"):
            with pytest.raises(FilterError):
                sniff(offline=[str(EXAMPLES / "plain.pcap"), str(EXAMPLES / "tunnels.pcap")], filter=filter)
        with pytest.raises(FileNotFoundError):
            sniff(offline=[str(EXAMPLES / "plain.pcap"), str(tmp_path / "absent")], filter="inner tcp")
        assert len(os.listdir("/proc/self/fd")) == descriptors

    def test_mistakes(self, tmp_path: Path) -> None:
        with pytest.raises(FilterError, match="inner tcp and and"):
            sniff(offline=str(EXAMPLES / "plain.pcap"), filter="inner tcp and and")
        # A link type without a walk, told when a packet of it comes; what came before is not taken for all.
        packets = [capturefiles.Packet(SECOND, 60, bytes(60), linktype) for linktype in (1, 105)]
        (tmp_path / "x.pcapng").write_bytes(pcapng(packets).octets)
        with pytest.raises(FilterError, match="no extension term on link type IEEE802_11"):
            sniff(offline=str(tmp_path / "x.pcapng"), filter="not inner tcp")
        program = pcapext.compile("tcp", linktype="RAW")
        with pytest.raises(ProgramError, match="a packet of link type EN10MB, and the filter is for RAW"):
            sniff(offline=str(EXAMPLES / "plain.pcap"), filter=program)


class TestLists:
    def test_packets(self) -> None:
        """Their times and lengths are kept, and each goes by its own link type."""
        packets = [Ether() / IP() / TCP(dport=80), Ether() / ARP(), IP() / UDP(dport=53), IP() / TCP(dport=80)]
        for number, packet in enumerate(packets):
            packet.time, packet.wirelen = number + 0.5, 1000
        for given in (packets, PacketList(packets)):
            found = sniff(offline=given, filter="inner tcp port 80")
            assert [(type(packet), packet.time, packet.wirelen) for packet in found] == [(Ether, 0.5, 1000), (IP, 3.5, 1000)]
            assert [bytes(packet) for packet in found] == [bytes(packets[0]), bytes(packets[3])]
        assert len(sniff(offline=packets[0], filter="inner tcp and len = 1000")) == 1
        assert not sniff(offline=packets[0], filter="inner udp")

    @pytest.mark.tools("tcpdump")
    def test_as_scapys_own_filter(self) -> None:
        packets = [Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP() / TCP(dport=port) for port in (80, 81)] * 3
        for given in (packets, [bytes(packet) for packet in packets]):
            ours, theirs = (function(offline=given, filter="tcp port 80") for function in (sniff, sendrecv.sniff))
            assert [(type(packet), bytes(packet)) for packet in ours] == [(type(packet), bytes(packet)) for packet in theirs]
            assert len(ours) == 3

    def test_without_a_link_type(self) -> None:
        with pytest.raises(CaptureError, match="there is no link type for one that begins with TCP"):
            sniff(offline=[Ether() / IP(), TCP()], filter="inner tcp")


# ---- The rest ----


def test_what_cannot_be_filtered() -> None:
    with PcapReader(str(EXAMPLES / "plain.pcap")) as reader, pytest.raises(AttachError, match="expected a socket for layer 2"):
        sniff(opened_socket=reader, filter="inner tcp")
    left, right = socket.socketpair()
    with left, right, pytest.raises(AttachError, match="the link type of the open StreamSocket is not known"):
        sniff(opened_socket=scapy.all.StreamSocket(left), filter="inner tcp")


def test_program_and_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "except_filter", "tcp port 22")
    with pytest.raises(FilterError, match="cannot be joined with scapy's"):
        sniff(iface="lo", filter=pcapext.compile("inner tcp"))


def test_installing() -> None:
    path, own = str(EXAMPLES / "tunnels.pcap"), sendrecv.AsyncSniffer._run
    assert own.__module__ == "scapy.sendrecv"
    try:
        install()
        assert len(scapy.all.sniff(offline=path, filter="inner tcp port 80")) == 28
        with install():
            sniffer = scapy.all.AsyncSniffer(offline=path, filter=pcapext.compile("encap vxlan and inner icmp"))
            sniffer.start()
            sniffer.join()
            assert len(sniffer.results) > 0
    finally:
        uninstall()
    assert sendrecv.AsyncSniffer._run is own
    with pytest.raises(scapy.error.Scapy_Exception):
        scapy.all.sniff(offline=path, filter="inner tcp port 80")


def test_installed_it_leaves_standard_filters_to_scapy(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(integration, "_SCAPYS_RUN", lambda *_, **arguments: calls.append(arguments.get("filter")))
    with install():
        sendrecv.AsyncSniffer()._run(offline="absent", filter="tcp")
    monkeypatch.undo()
    assert calls == ["tcp"]


def test_scapy_is_not_there() -> None:
    script = "import sys; sys.modules['scapy'] = None; import pcapext.integrations.scapy"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1].endswith("'pip install pcapext[scapy]' installs what pcapext.integrations.scapy needs")
