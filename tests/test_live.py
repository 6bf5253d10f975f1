"""Live captures in Python: on real interfaces exactly the packets come that the rules accept, and nothing is left of a capture."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest
from everywhere import TEMPLATES, observed, sample
from oracle import NETMASK, Packet, expected, text_of
from packets import EN10MB
from wire import LONGEST, MARKER, SHORTEST, SLL, SLL2, Wire, seen

import pcapext
from pcapext import AttachError, AttachWarning, CaptureError, FilterError, LibpcapError, LiveCapture, open_live
from pcapext.live import BATCH

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.tools("ip")]

#: Seconds after which what was waited for will not come any more.
PATIENCE = 30.0


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    gc.freeze()  # what there is by now need not be looked at by each `descriptors`
    with closing(Wire()) as wire:
        wire.do(subprocess.run, ["ip", "link", "set", "lo", "up"])
        yield wire
    gc.unfreeze()


@contextmanager
def opened(wire: Wire, device: str = "right", *arguments: Any, **settings: Any) -> Iterator[LiveCapture]:
    with wire.do(lambda: open_live(device, *arguments, **{"timeout_ms": 20, **settings})) as capture:
        yield capture


def frame(number: int, port: int = 80, length: int = 60) -> bytes:
    """A UDP datagram over IPv4 that says which one it is."""
    udp = port.to_bytes(2, "big") * 2 + (length - 34).to_bytes(2, "big") + bytes(2) + number.to_bytes(4, "big")
    ip = bytes.fromhex("4500") + (length - 14).to_bytes(2, "big") + bytes.fromhex("00000000401100000a0000010a000002") + udp
    return (bytes.fromhex("020000000002020000000001" + "0800") + ip).ljust(length, b"\0")


def numbers(packets: Sequence[pcapext.Packet]) -> list[int]:
    """Which of the frames they are."""
    return [int.from_bytes(packet.data[42:46], "big") for packet in packets]


def received(capture: LiveCapture) -> list[pcapext.Packet]:
    """What has come in until now."""
    capture.stop()
    return [packet for packet in capture if not is_marker(packet)]


def is_marker(packet: pcapext.Packet) -> bool:
    return MARKER[12:] in packet.data or MARKER[12:].startswith(packet.data[12:])


def in_a_thread(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread that runs a function, and what came of it."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


# ---- What comes ----

#: Packets that are sent, as they are, and as filters in the kernel see them.
SENT = [
    packet
    for packet in sample(600, 5, [EN10MB])
    if packet.captured == packet.length and SHORTEST <= packet.length <= LONGEST and seen(packet.data) is not None
]


def as_seen(packet: Packet) -> Packet:
    data = seen(packet.data)
    assert data is not None
    return packet if data == packet.data else observed(data)


@pytest.mark.parametrize("template", TEMPLATES[1::9])
def test_packets_are_those_that_the_rules_accept(wire: Wire, template: str) -> None:
    with opened(wire, "right", text_of(template), netmask=NETMASK) as capture:
        wire.send(packet.data for packet in SENT)
        packets = received(capture)
        stats = capture.stats()
    wanted = [packet.data for packet in SENT if expected(template, as_seen(packet), NETMASK)]
    assert 3 <= len(wanted) <= len(SENT) - 3
    assert [packet.data for packet in packets] == wanted
    assert all((packet.wirelen, packet.linktype) == (len(packet.data), EN10MB) for packet in packets)
    assert [packet.timestamp_ns for packet in packets] == sorted(packet.timestamp_ns for packet in packets)
    assert stats.received >= len(wanted)
    assert stats.dropped == 0
    wire.control.take()


@pytest.mark.parametrize(("linktype", "header"), [(None, 16), ("LINUX_SLL", 16), (SLL2, 20)])
def test_all_interfaces(wire: Wire, linktype: str | int | None, header: int) -> None:
    """Each frame goes out at one interface and comes in at the other."""
    with opened(wire, "any", "inner udp port 80 and len = 60", linktype=linktype) as capture:
        wire.send(frame(number, 80 + number % 2, 74 - header) for number in range(40))
        packets = received(capture)
    assert capture.linktype == (SLL2 if header == 20 else SLL)
    assert [packet.data[header:] for packet in packets] == [frame(number, 80, 74 - header)[14:] for number in range(0, 40, 2) for _ in "io"]


def test_loopback(wire: Wire) -> None:
    """Each datagram is seen once, though it goes out and comes in."""
    with wire.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender, opened(wire, "lo", "inner udp port 9") as capture:
        for number in range(20):
            sender.sendto(bytes([number]), ("127.0.0.1", 9 + number % 2))
        packets = received(capture)
    assert [packet.data[42:] for packet in packets] == [bytes([number]) for number in range(0, 20, 2)]


@pytest.mark.parametrize(
    ("settings", "caught"),
    [
        ({"snaplen": 50}, (50, 60, 20)),
        ({"direction": "out"}, (60, 60, 0)),
        ({"direction": "in"}, (60, 60, 20)),
        ({"immediate": True}, (60, 60, 20)),
        ({"promiscuous": False, "buffer_size": 1 << 22, "timeout_ms": 10}, (60, 60, 20)),
        ({"nanoseconds": False, "timestamp_type": "host"}, (60, 60, 20)),
    ],
)
def test_settings(wire: Wire, settings: dict[str, Any], caught: tuple[int, int, int]) -> None:
    with opened(wire, "right", **settings) as capture:
        wire.send(frame(number) for number in range(20))
        packets = received(capture)
    assert len(packets) == caught[2]
    assert all((len(packet.data), packet.wirelen) == caught[:2] for packet in packets)
    assert capture.snaplen == settings.get("snaplen", 262144)
    assert capture.nanoseconds == settings.get("nanoseconds", True)
    if not capture.nanoseconds:
        assert all(packet.timestamp_ns % 1000 == 0 for packet in packets)


def test_netmask_is_that_of_the_interface(wire: Wire) -> None:
    """10.0.0.2 is the first address of a network of two, which tcpdump's `ip broadcast` takes, and no such thing without a network."""
    with opened(wire, "right", "ip broadcast") as capture:
        wire.send([frame(1)])
        assert received(capture) == []
        wire.do(subprocess.run, ["ip", "address", "add", "10.0.0.5/31", "dev", "right"])
        try:
            wire.do(lambda: capture.attach("ip broadcast"))
        finally:
            wire.do(subprocess.run, ["ip", "address", "flush", "dev", "right"])
        wire.send([frame(2)])
        assert numbers(received(capture)) == [2]


def test_batches(wire: Wire) -> None:
    """They hold all packets in order; one that was not asked for is still to come."""
    with opened(wire, "right", "udp") as capture:
        wire.send(frame(number) for number in range(BATCH + 50))
        batches = list(capture.batches(BATCH + 20))
        assert all(1 <= len(batch) <= BATCH for batch in batches)
        assert [numbers([packet])[0] for batch in batches for packet in batch] == list(range(BATCH + 20))
        assert numbers(received(capture)) == list(range(BATCH + 20, BATCH + 50))


class Failing:
    """A handle that gives what it is told to, and None, as others do where reading was interrupted."""

    device, linktype, snaplen, nanoseconds, delay = "right", EN10MB, 100, True, 0.0

    def __init__(self, *given: int | str | None) -> None:
        self.given = iter(given)

    def read(self, timeout: float | None) -> tuple[int, int, bytes] | None:
        match next(self.given):
            case int(number):
                return number, 60, frame(number)
            case str(words):
                raise LibpcapError(words)
        return None


@pytest.mark.parametrize(
    "given", [(1, 2, "gone", None, None), (1, 2, "gone", "gone", None), (1, "gone", None, 2, None), ("gone", 1, None, 2, None, None)]
)
def test_a_batch_is_given_before_the_error_behind_it(given: tuple[int | str | None, ...]) -> None:
    batches = LiveCapture(Failing(*given)).batches()  # type: ignore[arg-type]
    packets: list[pcapext.Packet] = []
    with pytest.raises(LibpcapError, match="gone"):
        packets.extend(packet for batch in batches for packet in batch)
    assert numbers(packets) == [1, 2]


# ---- Another filter ----


def test_the_filter_is_replaced(wire: Wire) -> None:
    """No packet comes that the new filter does not accept, not even one that was there before; all come that it accepts."""
    with opened(wire, "right", "udp port 80") as capture:
        wire.send(frame(number, 80) for number in range(10))
        attachment = capture.attach("inner udp port 81")
        assert attachment is not None
        assert attachment.where == "kernel"
        wire.send(frame(number, 80 + number % 2) for number in range(10, 20))
        assert numbers(received(capture)) == [11, 13, 15, 17, 19]
        capture.attach(pcapext.compile("inner udp port 80"))
        wire.send(frame(number, 80 + number % 2) for number in range(20, 30))
        assert numbers(received(capture)) == [20, 22, 24, 26, 28]
        with pytest.raises(FilterError):
            capture.attach("inner udp port")
        with pytest.raises(AttachError, match="the program is for link type LINUX_SLL"):
            capture.attach(pcapext.compile("udp", linktype=SLL))
        wire.send(frame(number, 80 + number % 2) for number in range(30, 40))
        assert numbers(received(capture)) == [30, 32, 34, 36, 38]
        assert capture.attach(None) is None
        wire.send(frame(number, 80 + number % 2) for number in range(40, 50))
        assert numbers(received(capture)) == list(range(40, 50))
        with pcapext.compile("inner udp port 81").attach(capture):
            wire.send(frame(number, 80 + number % 2) for number in range(50, 60))
            assert numbers(received(capture)) == [51, 53, 55, 57, 59]


def test_filters_are_set_and_replaced_while_frames_flow() -> None:
    """None ever comes that the filter of the moment does not accept."""
    with closing(Wire()) as wire:
        wire.control.close()  # it would have no room for so many
        flooded(wire)


def flooded(wire: Wire) -> None:
    is_enough = threading.Event()

    def flood() -> None:
        with wire.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind(("left", 0))
            while not is_enough.is_set():
                for port in (80, 81, 82):
                    sender.send(frame(0, port))

    thread, _ = in_a_thread(flood)
    try:
        with opened(wire, "right", "inner udp port 80", direction="in") as capture:
            for port in (80, 81, 82, 80, 82):
                capture.attach(f"inner udp port {port}")
                assert {next(iter(capture)).data[34:36] for _ in range(500)} == {port.to_bytes(2, "big")}
    finally:
        is_enough.set()
        thread.join()


def test_what_the_kernel_cannot_filter_is_filtered_and_said(wire: Wire) -> None:
    """The length of the link-layer address is in the header that libpcap makes up, and nowhere in the kernel."""
    with pytest.warns(AttachWarning, match="pcapext filters"):
        capture = wire.do(lambda: open_live("any", "link[4:2] = 6 and inner udp port 80"))
    with capture:
        wire.send(frame(number, 80 + number % 2) for number in range(10))
        packets = received(capture)
    assert [packet.data[44:48] for packet in packets] == [number.to_bytes(4, "big") for number in range(0, 10, 2) for _ in "io"]


# ---- Stopping and closing ----


def test_stopped_from_another_thread(wire: Wire) -> None:
    with opened(wire, "right", "udp") as capture:
        for begin in (0, 10):
            thread, results = in_a_thread(lambda: list(capture))
            wire.send(frame(number) for number in range(begin, begin + 10))
            capture.stop()
            thread.join(PATIENCE)
            [packets] = results
            assert numbers(packets) == list(range(begin, begin + 10))  # type: ignore[arg-type]


def test_what_comes_in_after_a_stop_is_for_the_next(wire: Wire) -> None:
    with opened(wire, "right", "udp", immediate=True) as capture:
        wire.send([frame(1), frame(2)])
        capture.stop()
        wire.send([frame(3), frame(4)])
        assert numbers(list(capture)) == [1, 2]
        assert numbers(received(capture)) == [3, 4]


def test_stopped_twice_it_ends_at_once(wire: Wire) -> None:
    with opened(wire, "right", "udp", immediate=True) as capture:
        wire.send([frame(1), frame(2)])
        capture.stop()
        capture.stop()
        assert list(capture) == []
        assert numbers(received(capture)) == [1, 2]


def test_stopped_by_a_signal_handler(wire: Wire) -> None:
    with opened(wire, "right", "udp") as capture:
        wire.send([frame(1)])
        before = signal.signal(signal.SIGALRM, lambda *_: capture.stop())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert numbers(list(capture)) == [1]
        finally:
            signal.signal(signal.SIGALRM, before)


def test_closed(wire: Wire) -> None:
    with opened(wire, "right", "udp") as capture:
        iterator = iter(capture)
        wire.send([frame(1)])
        assert numbers([next(iterator)]) == [1]
    capture.close()
    capture.stop()
    uses: list[Callable[[], object]] = [
        lambda: iter(capture),
        lambda: next(iterator),
        lambda: next(capture.batches()),
        lambda: capture.stats(),
        lambda: capture.attach("udp"),
        lambda: capture.attach(None),
        lambda: aiter(capture),
        lambda: asyncio.run(anext(capture)),  # type: ignore[arg-type]
    ]
    for use in uses:
        with pytest.raises(CaptureError, match=r"\Aright: the capture is closed\Z"):
            use()


def test_closed_by_another_thread(wire: Wire) -> None:
    with opened(wire, "right", "udp") as capture:
        reading = threading.Event()

        def read() -> None:
            for _ in capture:
                reading.set()

        thread, results = in_a_thread(read)
        wire.send([frame(1)])
        assert reading.wait(PATIENCE)
    thread.join(PATIENCE)
    assert [str(result) for result in results] == ["right: the capture is closed"]


# ---- Tasks ----


def descriptors() -> set[str]:
    gc.collect()  # what exceptions of earlier tests refer to
    return set(os.listdir("/proc/self/fd"))


def readers(loop: asyncio.AbstractEventLoop) -> int:
    """How many descriptors a loop waits for, besides its own."""
    return len(loop._selector.get_map()) - 1  # type: ignore[attr-defined]


async def gathered(capture: LiveCapture) -> list[int]:
    return numbers([packet async for packet in capture])


def test_async_for(wire: Wire) -> None:
    """Packets come while other tasks run, until the capture is stopped; in one loop, and then in another."""

    async def main(begin: int) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(gathered(capture))
        for number in range(begin, begin + 300, 100):
            await asyncio.to_thread(wire.send, [frame(each) for each in range(number, number + 100)])
        await asyncio.to_thread(capture.stop)
        assert await asyncio.wait_for(task, PATIENCE) == list(range(begin, begin + 300))
        assert readers(loop) == 0

    with opened(wire, "right", "udp") as capture:
        before = descriptors()
        asyncio.run(main(0))
        asyncio.run(main(1000))
        assert descriptors() == before


def test_a_task_leaves_others_their_turn(wire: Wire) -> None:
    """With packets without end, another task still runs."""

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        count = 0
        async for _ in capture:
            count += 1
            if count == 3 * BATCH:
                break
        assert turns >= 2
        task.cancel()

    with opened(wire, snaplen=100, buffer_size=1 << 24) as capture:
        wire.send(frame(number) for number in range(3 * BATCH))
        asyncio.run(main())


def test_a_task_that_is_cancelled_leaves_nothing_behind(wire: Wire) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for begin in (0, 10):
            task = asyncio.create_task(gathered(capture))
            while not readers(loop):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert readers(loop) == 0
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(capture), 0.01)
            assert readers(loop) == 0
            await asyncio.to_thread(wire.send, [frame(number) for number in range(begin, begin + 10)])
            async for packet in capture:
                assert numbers([packet]) == [begin]
                break
            capture.stop()
            assert await gathered(capture) == list(range(begin + 1, begin + 10))

    with opened(wire, "right", "udp") as capture:
        asyncio.run(main())


def test_only_one_task_waits(wire: Wire) -> None:
    async def main() -> None:
        task = asyncio.create_task(gathered(capture))
        while not readers(asyncio.get_running_loop()):
            await asyncio.sleep(0)
        with pytest.raises(CaptureError, match="right: another task is waiting for its packets"):
            await gathered(capture)
        capture.stop()
        assert await task == []

    with opened(wire, "right", "udp") as capture:
        asyncio.run(main())


def test_closed_while_a_task_waits(wire: Wire) -> None:
    async def main() -> None:
        task = asyncio.create_task(gathered(capture))
        while not readers(asyncio.get_running_loop()):
            await asyncio.sleep(0)
        await asyncio.to_thread(capture.close)
        with pytest.raises(CaptureError, match="right: the capture is closed"):
            await asyncio.wait_for(task, PATIENCE)
        assert readers(asyncio.get_running_loop()) == 0

    with opened(wire, "right", "udp") as capture:
        asyncio.run(main())


# ---- What goes wrong ----


def promiscuity(wire: Wire) -> str:
    shown = wire.do(lambda: subprocess.run(["ip", "-d", "link", "show", "right"], capture_output=True, text=True, check=True)).stdout
    return str(shown.split("promiscuity ")[1].split()[0])


@pytest.mark.parametrize(
    ("device", "filter", "settings", "error", "message"),
    [
        ("nosuch", None, {}, LibpcapError, "nosuch: .*No such device"),
        ("", None, {}, LibpcapError, "'' is no name of an interface"),
        ("right", "inner tcp port", {}, FilterError, r"unexpected end.*\n  inner tcp port\n +\^"),
        ("right", "inner tcp and tcp por 80", {}, FilterError, r"por.*\n +\^"),
        ("right", "ip and arp", {}, FilterError, "rejects all packets"),
        ("right", "inner tcp", {"linktype": "LINUX_SLL"}, LibpcapError, "right: "),
        ("right", None, {"timestamp_type": "sundial"}, LibpcapError, "unknown type of time stamps 'sundial'"),
        ("right", "inner tcp", {"max_levels": 99}, pcapext.SettingsError, "max_levels"),
        ("nflog", "tcp or inner tcp", {}, FilterError, r"no extension term on link type NFLOG.*\n  tcp or inner tcp\n +\^{9}"),
    ],
)
def test_errors(
    wire: Wire, device: str, filter: str | None, settings: dict[str, Any], error: type[pcapext.PcapextError], message: str
) -> None:
    """One error, and nothing is left: no descriptor, no promiscuous mode."""
    before, promiscuous = descriptors(), promiscuity(wire)
    with pytest.raises(error, match=f"(?s){message}"):
        wire.do(lambda: open_live(device, filter, **settings))
    assert descriptors() == before
    assert promiscuity(wire) == promiscuous


def test_nothing_is_left_of_a_capture(wire: Wire) -> None:
    before, promiscuous, threads = descriptors(), promiscuity(wire), threading.active_count()
    with opened(wire, "right", "inner udp", promiscuous=True) as capture:
        assert promiscuity(wire) == str(int(promiscuous) + 1)
        wire.send([frame(1)])
        assert numbers(received(capture)) == [1]
    del capture
    assert descriptors() == before
    assert promiscuity(wire) == promiscuous
    assert threading.active_count() == threads


@pytest.mark.parametrize("in_task", [False, True])
def test_an_interface_that_is_deleted(in_task: bool) -> None:
    """The packets before are given, then there is one error that names it."""
    packets: list[pcapext.Packet] = []

    async def read_in_task() -> None:
        async for packet in capture:
            packets.append(packet)

    def read() -> None:
        for packet in capture:
            packets.append(packet)

    with closing(Wire()) as wire, opened(wire, "right", "udp", timeout_ms=100) as capture:
        wire.send(frame(number) for number in range(5))
        wire.do(subprocess.run, ["ip", "link", "delete", "right"])
        with pytest.raises(LibpcapError, match=r"\Aright: The interface disappeared\Z"):
            asyncio.run(read_in_task()) if in_task else read()
        assert numbers(packets) == [0, 1, 2, 3, 4]
        assert capture.stats().received == 5
        with pytest.raises(LibpcapError, match="right: "):
            next(iter(capture))


def test_an_interface_that_is_down_for_a_while() -> None:
    with closing(Wire()) as wire, opened(wire, "right", "udp") as capture:
        wire.send([frame(1)])
        wire.do(subprocess.run, ["ip", "link", "set", "right", "down"])
        wire.do(subprocess.run, ["ip", "link", "set", "right", "up"])
        assert wire.control.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETDOWN
        wire.send([frame(2)])
        assert numbers(received(capture)) == [1, 2]
