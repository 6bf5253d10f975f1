"""Live handles, on both libpcaps, beside a packet socket of our own: what they give, refuse and leave behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import packets
import pytest
from libpcaps import each_libpcap, no_descriptor_is_left
from wire import LONGEST, MARKER, PORTION, SHORTEST, SLL, SLL2, Wire, cooked, seen

import pcapext
from pcapext import bpf, pcap_bridge
from pcapext.bpf import Instruction, Program
from pcapext.errors import CaptureWarning, LibpcapError, ProgramError
from pcapext.pcap_bridge import compile_expression, libpcap
from pcapext.pcap_handles import CapturedPacket
from pcapext.pcap_live import LiveHandle, Stats, _is_of_system_clock, open_live

__all__ = ["each_libpcap", "no_descriptor_is_left"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.kernel,
    pytest.mark.tools("ip"),
    pytest.mark.usefixtures("each_libpcap", "no_descriptor_is_left"),
]

#: How long a packet that is sent may take to arrive: no test waits for as long.
SECONDS = 20.0

#: Frames that a real interface takes, without a tag that the kernel would take away.
FRAMES = [
    packet.data
    for packet in packets.packets(3000, 5, linktypes=[packets.EN10MB])
    if SHORTEST <= len(packet.data) <= LONGEST and seen(packet.data) == packet.data
]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def opened(wire: Wire, device: str = "right", **settings: object) -> LiveHandle:
    """A handle in the wire's namespace; it belongs to whoever has it then."""
    return wire.do(lambda: open_live(device, **{"timeout_ms": 10, **settings}))  # type: ignore[arg-type]


def run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def until_marker(handle: LiveHandle) -> list[CapturedPacket]:
    """What has come before the marker."""
    taken = []
    while True:
        packet = handle.read(SECONDS)
        assert packet is not None, "the marker was lost"
        if packet[2].endswith(MARKER[14:]):
            return taken
        taken.append(packet)


def test_frames_are_those_of_a_packet_socket(wire: Wire) -> None:
    wire.control.take()
    with opened(wire, buffer_size=1 << 24) as handle:
        assert (handle.device, handle.linktype, handle.snaplen, handle.nanoseconds) == ("right", 1, 262144, True)
        before = time.time_ns()
        frames = FRAMES[:200]
        wire.send(frames)
        after = time.time_ns()
        taken = until_marker(handle)
        assert [data for _, _, data in taken] == wire.control.take() == frames
        assert [wirelen for _, wirelen, _ in taken] == [len(frame) for frame in frames]
        assert all(before <= stamp <= after for stamp, _, _ in taken)
        assert any(stamp % 1000 for stamp, _, _ in taken)
        assert handle.stats() == Stats(len(frames) + 1, 0, 0)


def test_microseconds(wire: Wire) -> None:
    with opened(wire, nanoseconds=False, timestamp_type="host") as handle:
        before = time.time_ns()
        wire.send(FRAMES[:20])
        assert not handle.nanoseconds
        for stamp, _, _ in until_marker(handle):
            assert stamp % 1000 == 0
            assert before - 1000 <= stamp <= time.time_ns()


def test_snaplen(wire: Wire) -> None:
    frames = [frame for frame in FRAMES if len(frame) > 100][:20]
    with opened(wire, snaplen=60) as handle:
        wire.send(frames)
        assert handle.snaplen == 60
        assert [(wirelen, data) for _, wirelen, data in until_marker(handle)] == [(len(frame), frame[:60]) for frame in frames]


@pytest.mark.parametrize("linktype", [SLL, SLL2])
def test_any(wire: Wire, linktype: int) -> None:
    with opened(wire, "any", linktype=linktype, direction="in") as handle:
        assert set(handle.linktypes()) == {SLL, SLL2}
        assert handle.linktype == linktype
        handle.set_program(pcapext.compile("ip", linktype=linktype, target="classic"))
        sent = [frame for frame in FRAMES[:100] if frame[12:14] == b"\x08\0"]
        assert len(sent) > 5
        wire.send([*FRAMES[:100], MARKER[:12] + b"\x08\0" + MARKER[14:]])
        taken = [data for _, _, data in until_marker(handle)]
        number = wire.do(socket.if_nametoindex, "right")
        shown = [cooked(frame, linktype) for frame in sent]
        if linktype == SLL2:  # the interface is in the header
            shown = [data[:4] + struct.pack("!I", number) + data[8:] for data in shown]
        assert taken == shown


def test_loopback(wire: Wire) -> None:
    wire.do(run, "ip link set lo up")
    with opened(wire, "lo") as handle, wire.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        handle.set_program(pcapext.compile("udp dst port 4242"))
        for text in (b"one", b"two"):
            sender.sendto(text, ("127.0.0.1", 4242))
        for text in (b"one", b"two"):
            packet = handle.read(SECONDS)
            assert packet is not None
            assert packet[2][42:] == text
    wire.do(run, "ip link set lo down")


def test_injected_frames_arrive(wire: Wire) -> None:
    with opened(wire, "left", direction="in") as left, opened(wire) as right:
        right.set_program(compile_expression("ether proto 0x88b5"))
        for frame in (MARKER[:-1] + b"1", MARKER[:-1] + b"2"):
            assert left.inject(frame) == len(frame)
            packet = right.read(SECONDS)
            assert packet is not None
            assert packet[2] == frame
        with pytest.raises(LibpcapError, match="left: send: Message too long"):
            left.inject(bytes(5000))
        with pytest.raises(LibpcapError, match="left: a frame of 0 bytes cannot be sent"):
            left.inject(b"")
    with opened(wire, "any") as everywhere, pytest.raises(LibpcapError, match="any: Sending packets isn't supported"):
        everywhere.inject(MARKER)


@pytest.mark.tools("tc")
def test_sending_waits_for_room(wire: Wire) -> None:
    """Through an interface that is slow, from a socket that has little room."""
    frames = [MARKER + bytes([number]) * 1000 for number in range(50)]
    with opened(wire, "left", direction="in") as left, opened(wire, immediate=True, snaplen=2000) as right:
        right.set_program(compile_expression("ether proto 0x88b5"))
        with socket.socket(fileno=os.dup(left.fileno())) as queue:
            queue.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        wire.do(run, "tc qdisc add dev left root tbf rate 8mbit burst 2000 limit 10000000")
        try:
            left.nonblocking = True
            with pytest.raises(LibpcapError, match="left: send: Resource temporarily unavailable"):
                send_all(left, [MARKER] * 1000)
            left.nonblocking = False
            send_all(left, frames)
            received: list[bytes] = []
            while len(received) < len(frames):
                packet = right.read(SECONDS)
                assert packet is not None
                received += [packet[2]] if packet[2] != MARKER else []
            assert received == frames
        finally:
            wire.do(run, "tc qdisc del dev left root")


def send_all(handle: LiveHandle, frames: list[bytes]) -> None:
    for frame in frames:
        assert handle.inject(frame) == len(frame)


def test_directions(wire: Wire) -> None:
    with opened(wire) as handle, opened(wire, "left") as left, opened(wire) as right:
        handle.set_program(compile_expression("ether proto 0x88b5"))
        for direction in ("in", "out", "inout"):
            came, went = (MARKER[:14] + f"{direction} {way}".encode().ljust(46) for way in ("came", "went"))
            shown = {"in": [came], "out": [went], "inout": [came, went]}[direction]
            handle.direction = direction
            assert handle.direction == direction
            # What is to be seen is sent last.
            for sender, frame in [(right, went), (left, came)] if direction == "in" else [(left, came), (right, went)]:
                sender.inject(frame)
            taken: list[bytes] = []
            while not set(shown) <= set(taken):
                packet = handle.read(SECONDS)
                assert packet is not None
                taken.append(packet[2])
            assert [frame for frame in taken if frame in (came, went)] == shown
        with pytest.raises(LibpcapError, match="unknown direction 'up', expected in, out or inout"):
            handle.direction = "up"


# --- waiting


def test_nonblocking(wire: Wire) -> None:
    with opened(wire, nonblocking=True) as handle:
        assert list(handle) == []
        assert handle.read() is None
        assert handle.read(0.01) is None
        wire.send(FRAMES[:5])
        readable, _, _ = select.select([handle.selectable], [], [], SECONDS)
        assert readable == [handle.selectable]
        taken: list[CapturedPacket] = []
        while len(taken) < 6:
            taken += handle
        assert [data for _, _, data in taken] == [*FRAMES[:5], MARKER]
        handle.nonblocking = False
        threading.Timer(0.05, handle.breakloop).start()
        assert list(handle) == []


def test_asyncio(wire: Wire) -> None:
    async def first(handle: LiveHandle) -> bytes:
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(handle.selectable, readable.set)
        sending = loop.run_in_executor(None, wire.send, FRAMES[:1])
        while (packet := handle.read()) is None:
            await asyncio.wait_for(readable.wait(), SECONDS)
            readable.clear()
        loop.remove_reader(handle.selectable)
        await sending
        return packet[2]

    with opened(wire, nonblocking=True, immediate=True) as handle:
        assert asyncio.run(first(handle)) == FRAMES[0]


def test_breakloop_ends_one_iteration(wire: Wire) -> None:
    with opened(wire) as handle:
        handle.breakloop()  # before
        assert list(handle) == []
        threading.Timer(0.05, handle.breakloop).start()  # meanwhile
        assert list(handle) == []
        wire.send(FRAMES[:1])
        assert handle.read(SECONDS) is not None


@pytest.mark.parametrize("do", ["breakloop", "stats", "close"])
def test_signals_are_heeded_on_a_silent_interface(wire: Wire, do: str) -> None:
    """Whatever the handler does with the handle."""
    with opened(wire, timeout_ms=0) as handle:
        done = []

        def handler(*_: object) -> None:
            done.append(getattr(handle, do)())
            if do == "stats":
                raise KeyboardInterrupt

        error = {"breakloop": None, "stats": KeyboardInterrupt, "close": LibpcapError}[do]
        before = signal.signal(signal.SIGALRM, handler)
        try:
            with pytest.raises(error) if error else nullcontext():
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                assert list(handle) == []
        finally:
            signal.signal(signal.SIGALRM, before)
        assert len(done) == 1


def test_closing_while_others_read(wire: Wire) -> None:
    """Threads that wait, and threads that are in the middle of packets: each ends with the error, and nothing crashes."""
    for traffic in (False, True):
        handle = opened(wire)
        words: list[str] = []

        def read(handle: LiveHandle = handle, words: list[str] = words) -> None:
            try:
                for _ in handle:
                    handle.stats()
            except LibpcapError as error:
                words.append(str(error))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        if traffic:
            wire.send(FRAMES[:500])
        handle.close()
        for thread in threads:
            thread.join(SECONDS)
        assert words == ["the handle is closed"] * 4


CALLS: dict[str, Callable[[LiveHandle], object]] = {
    "iteration": lambda handle: next(iter(handle)),
    "read": lambda handle: handle.read(0),
    "stats": LiveHandle.stats,
    "inject": lambda handle: handle.inject(MARKER),
    "fileno": LiveHandle.fileno,
    "selectable": lambda handle: handle.selectable,
    "required_timeout": lambda handle: handle.required_timeout,
    "linktypes": LiveHandle.linktypes,
    "set_linktype": lambda handle: handle.set_linktype(1),
    "direction": lambda handle: setattr(handle, "direction", "in"),
    "set_program": lambda handle: handle.set_program([Instruction(bpf.RET_K)]),
    "breakloop": LiveHandle.breakloop,
    "check_until": lambda handle: handle.check_until(None, lambda data, wirelen: True),
    "error": LiveHandle.error,
}


@pytest.mark.parametrize("call", CALLS)
def test_closed(wire: Wire, call: str) -> None:
    handle = opened(wire)
    handle.close()
    handle.close()
    with pytest.raises(LibpcapError, match=r"\Athe handle is closed\Z"):
        CALLS[call](handle)


def test_nothing_is_left_behind(wire: Wire) -> None:
    """No socket, no promiscuous mode: closed, forgotten, or not even opened."""

    def promiscuity() -> str:
        shown = run("ip -d link show right").split()
        return shown[shown.index("promiscuity") + 1]

    assert wire.do(promiscuity) == "0"
    for _ in range(3):
        handle = opened(wire)
        assert wire.do(promiscuity) == "1"
        handle.close()
        opened(wire)
        with pytest.raises(LibpcapError, match="right: "):
            opened(wire, linktype="RAW")
    assert wire.do(promiscuity) == "0"
    with opened(wire, promiscuous=False):
        assert wire.do(promiscuity) == "0"


# --- compiling as for a live capture


def test_compiling_takes_an_interface_that_is_up() -> None:
    wire = Wire()
    try:
        expected = compile_expression("vlan 3", live=True)
        assert wire.do(partial(compile_expression, "vlan 3", live=True)) == expected  # the loopback is down there
        wire.do(run, "ip link set left down")
        wire.do(run, "ip link set right down")
        with pytest.raises(LibpcapError, match=r"none can be opened: \w+: That device is not up"):
            wire.do(partial(compile_expression, "vlan 3", live=True))
        assert wire.do(partial(compile_expression, "ip", live=True)) == compile_expression("ip")
    finally:
        wire.close()


# --- interfaces that go


def test_interface_is_removed_while_capturing() -> None:
    wire = Wire()
    try:
        with opened(wire) as handle:
            threading.Timer(0.05, wire.do, (run, "ip link del left")).start()
            with pytest.raises(LibpcapError, match="right: The interface disappeared"):
                list(handle)
    finally:
        wire.close()


def test_interface_is_down_for_a_while(wire: Wire) -> None:
    with opened(wire) as handle:
        for state in ("down", "up"):
            wire.do(run, f"ip link set right {state}")
            assert handle.read(0.05) is None
            assert (handle.required_timeout is None) is (state == "up")
        wire.control.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # it has been told, too
        wire.send(FRAMES[:3])
        assert [data for _, _, data in until_marker(handle)] == FRAMES[:3]
    wire.control.take()


def test_interface_is_renamed_while_capturing() -> None:
    wire = Wire()
    try:
        with opened(wire) as handle:
            wire.do(run, "ip link set right name other")
            wire.send(FRAMES[:3])
            assert [data for _, _, data in until_marker(handle)] == FRAMES[:3]
    finally:
        wire.close()


# --- programs


@pytest.mark.parametrize("expression", ["tcp", "inner tcp", "not ip", "len > 500"])
def test_programs(wire: Wire, expression: str) -> None:
    program = pcapext.compile(expression, target="classic")
    wanted = [frame for frame in FRAMES if program.matches(frame)]
    assert 0 < len(wanted) < len(FRAMES)
    either = Program(pcapext.compile(f"({expression}) or ether proto 0x88b5", target="classic").instructions)
    with opened(wire, buffer_size=1 << 24) as handle:
        wire.send(FRAMES[:300])
        handle.set_program(either)
        wire.send(FRAMES)
        portions = -(-300 // PORTION) + -(-len(FRAMES) // PORTION)
        taken = [data for _ in range(portions) for _, _, data in until_marker(handle)]
        # What came before the filter has been filtered as well.
        assert all(program.matches(data) for data in taken)
        assert taken[-len(wanted) :] == wanted


REFUSED = {
    "the program has 4097": ([Instruction(bpf.LD_IMM)] * 4096 + [Instruction(bpf.RET_K)], "4097 instructions, the kernel takes at most"),
    "ancillary": ([Instruction(bpf.LD_W_ABS, k=bpf.ANCILLARY[-1].k + 100), Instruction(bpf.RET_A)], "there is no ancillary word at offset"),
    "M[]": ([Instruction(bpf.LD_MEM, k=3), Instruction(bpf.RET_A)], r"M\[3\] is read, but not written"),
    "flow keys": ([Instruction(bpf.LD_W_ABS, k=bpf.ANCILLARY[-1].k), Instruction(bpf.RET_A)], "attach lowers such a program"),
    "backwards": ([Instruction(bpf.JA, k=0xFFFFFFFF), Instruction(bpf.RET_A)], "ja jumps backwards"),
    "invalid": ([Instruction(bpf.LD_IMM)], "the last instruction must be a ret"),
    "empty": ([], "at least one instruction"),
    "link type": (Program((Instruction(bpf.RET_K),), linktype=12), "for link type 12, and the handle has link type 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_programs_change_nothing(wire: Wire, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    program, words = REFUSED[name]
    with opened(wire) as handle:
        handle.set_program(compile_expression("ether proto 0x88b5"))
        with pytest.raises(ProgramError, match=words):
            handle.set_program(program)
        wire.send(FRAMES[:10])
        assert until_marker(handle) == []
    assert capfd.readouterr().err == ""  # where libpcap would tell


@pytest.mark.parametrize(
    ("linktype", "instruction"),
    [
        (SLL, Instruction(bpf.LD_H_ABS, k=2)),
        (SLL, Instruction(bpf.LD_B_ABS, k=14)),
        (SLL, Instruction(bpf.LD_B_IND, k=0)),
        (SLL2, Instruction(bpf.LD_H_ABS, k=8)),
        (SLL2, Instruction(bpf.LDX_MSH, k=16)),
    ],
)
def test_headers_that_the_kernel_does_not_have(wire: Wire, linktype: int, instruction: Instruction) -> None:
    with opened(wire, "any", linktype=linktype) as handle, pytest.raises(ProgramError, match=r"any: .* header that libpcap makes up"):
        handle.set_program([instruction, Instruction(bpf.RET_A)])


def test_programs_on_what_is_no_packet_socket(wire: Wire) -> None:
    """There libpcap filters."""
    with opened(wire, "nflog") as handle:
        handle.set_program([Instruction(bpf.LD_B_ABS), Instruction(bpf.RET_A)])
        with pytest.raises(ProgramError, match="libpcap has no ancillary word proto, the kernel alone has some"):
            handle.set_program([Instruction(bpf.LD_W_ABS, k=bpf.ANCILLARY[0].k), Instruction(bpf.RET_A)])


def test_no_memory_for_a_program(wire: Wire) -> None:
    limit = Path("/proc/sys/net/core/optmem_max")
    before = limit.read_text()
    program = [Instruction(bpf.LD_IMM)] * 4000 + [Instruction(bpf.RET_K)]
    with opened(wire) as handle:
        usual = wire.do(limit.read_text)
        wire.do(limit.write_text, "8192")
        try:
            assert limit.read_text() == before  # each namespace has its own
            with pytest.raises(
                ProgramError,
                match=r"no memory for 4001 instructions in the kernel; the limit for a socket is net\.core\.optmem_max, 8192 bytes",
            ):
                wire.do(handle.set_program, program)
            with pytest.raises(ProgramError, match="but not here"):
                handle.set_program(program)  # tried in this thread's namespace
        finally:
            wire.do(limit.write_text, usual)
        handle.set_program(program)


def is_ip(data: bytes, wirelen: int) -> bool:
    """Of the marker, too."""
    assert len(data) <= wirelen
    return data[12:14] == b"\x08\0" or data == MARKER


def test_packets_from_before_are_checked(wire: Wire) -> None:
    some = FRAMES[:50]
    checked = [frame for frame in some if is_ip(frame, len(frame))]
    assert 0 < len(checked) < len(some)
    with opened(wire) as handle:
        wire.send(some)
        handle.check_until(time.time_ns(), is_ip)
        wire.send(some)
        assert [data for _, _, data in until_marker(handle)] == checked
        assert [data for _, _, data in until_marker(handle)] == some
        handle.check_until(None, is_ip)
        wire.send(some)
        assert [data for _, _, data in until_marker(handle)] == checked
        handle.check_until(0, is_ip)
        wire.send(some)
        assert [data for _, _, data in until_marker(handle)] == some


@pytest.mark.parametrize("immediate", [True, False])
def test_checking_where_stamps_are_of_another_clock(wire: Wire, immediate: bool) -> None:
    """They look as if all came later; what was there before is told by reading it."""
    some = FRAMES[:50]
    checked = [frame for frame in some if is_ip(frame, len(frame))]
    assert 0 < len(checked) < len(some)
    with opened(wire, immediate=immediate, buffer_size=1 << 24) as handle:
        handle.has_system_clock = False
        wire.send(some)
        handle.check_until(1, is_ip)
        wire.send(some)
        assert [data for _, _, data in until_marker(handle)] == checked
        assert [data for _, _, data in until_marker(handle)] == some
        wire.send(some)
        handle.check_until(1, is_ip)
        handle.check_until(1, lambda data, wirelen: data == MARKER)
        assert until_marker(handle) == []
        handle.check_until(None, is_ip)
        wire.send(some)
        assert [data for _, _, data in until_marker(handle)] == checked


@pytest.mark.parametrize(
    ("type_", "is_system"),
    [
        (None, True),
        ("host", True),
        ("host_lowprec", True),
        ("host_hiprec_unsynced", False),
        ("adapter", False),
        ("adapter_unsynced", False),
    ],
)
def test_clocks_of_time_stamps(type_: str | None, is_system: bool) -> None:
    """pcap-tstamp(7): those of an adapter, and unsynchronised ones, need not agree with the system's clock."""
    assert _is_of_system_clock(type_) is is_system


# --- what cannot be opened


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("nosuch0", "nosuch0: No such device exists"),
        ("x" * 100, "x: No such device exists"),
        ("\x1b[31m", r"\?\[31m: No such device exists"),
        ("", "'' is no name of an interface"),
        ("lo\0", r"'lo\?' is no name of an interface"),
        ("lo", "lo: That device is not up"),
    ],
)
def test_devices_that_cannot_be_opened(wire: Wire, device: str, words: str) -> None:
    with pytest.raises(LibpcapError, match=words):
        opened(wire, device)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"snaplen": 0}, "snap length 0 is out of range, expected 1 to 262144"),
        ({"snaplen": 262145}, "snap length 262145 is out of range"),
        ({"timeout_ms": -1}, "timeout -1 is out of range, expected 0 to 2147483647"),
        ({"buffer_size": 0}, "buffer size 0 is out of range, expected 1 to 2147483647"),
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"timestamp_type": "sundial"}, "unknown type of time stamps 'sundial'"),
        ({"timestamp_type": "adapter"}, "right: That type of time stamp is not supported"),
        ({"monitor": True}, "right: That device doesn't support monitor mode"),
        ({"linktype": "RAW"}, "right: RAW is not one of the DLTs"),
        ({"linktype": "nosuch"}, "unknown link type 'nosuch'"),
    ],
)
def test_settings_that_cannot_be(wire: Wire, settings: dict[str, object], words: str) -> None:
    with pytest.raises(LibpcapError, match=words):
        opened(wire, **settings)


def test_promiscuous_any(wire: Wire, each_libpcap: str) -> None:
    """Nobody hears of what was not asked for."""
    if each_libpcap == "system" and libpcap().version.startswith("libpcap version 1.10.3"):
        warning: AbstractContextManager[object] = nullcontext()  # it means to warn, and forgets (pcap-linux.c, setup_mmapped)
    else:
        warning = pytest.warns(CaptureWarning, match=r"any: .*[Pp]romiscuous mode")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(wire, "any").close()
    with warning:
        opened(wire, "any", promiscuous=True).close()


def test_without_privileges(each_libpcap: str) -> None:
    """The error names the capability."""
    script = """
import os
from pcapext.errors import LibpcapError
from pcapext.pcap_bridge import compile_expression, libpcap
from pcapext.pcap_devices import devices, linktypes
from pcapext.pcap_live import open_live
devices()
os.setresuid(65534, 65534, 65534)
for call in (lambda: open_live("lo"), lambda: linktypes("lo"), lambda: compile_expression("vlan", live=True)):
    try:
        call()
    except LibpcapError as error:
        print(error)
devices()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "lo: You don't have permission" in line
        assert line.count("CAP_NET_RAW") == 1


def test_names_of_the_bridge() -> None:
    assert pcap_bridge.open_live is open_live
    with pytest.raises(AttributeError, match=r"module 'pcapext.pcap_bridge' has no attribute 'nosuch'"):
        pcap_bridge.nosuch  # noqa: B018


def test_stats_are_those_of_the_kernel(wire: Wire) -> None:
    """A buffer that is too small for what comes: what was counted as received is what was given and what was dropped."""
    with opened(wire, snaplen=1514, buffer_size=1 << 16, immediate=True) as handle:
        wire.send(FRAMES[:1000])
        handle.nonblocking = True
        given = len(list(handle))
        stats = handle.stats()
        assert stats.received == 1005
        assert 0 < stats.dropped == 1005 - given
