"""The libraries that bind libpcap, each driven in one way, with the filters of pcapext.

In:  the name of an interface, or a path; filters.
Out: the packets that a library gives.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from wire import Wire

from pcapext.integrations import cypcap, pcapy_ng, python_libpcap

if sys.version_info < (3, 12):  # pypcap does not build on later ones
    from pcapext.integrations import pypcap

#: No test waits as long for a packet that was sent.
SECONDS = 20.0
#: What there is room for in front of the reader.
BUFFER = 1 << 24

#: The source in the frame behind which nothing follows, and in those of `Flow`; cooked headers have it, in the same place.
LAST = b"\x02\0\0\0\0\xed"
FLOW = b"\x02\xf1"
SOURCE = slice(6, 12)
#: How cooked headers begin where the frame was sent (sll(4)): each frame is seen twice on `any`.
OUTGOING = b"\0\x04"


class Handle(ABC):
    """A handle of a library's on an interface, opened and used inside of a namespace. `place` is what pcapext made."""

    place: Any

    @abstractmethod
    def poll(self) -> list[bytes]:
        """What is there."""

    def setfilter(self, filter: str) -> None:
        self.place.setfilter(filter)

    def close(self, wake: Callable[[], object]) -> None:
        """Close it. `wake` sends a frame that its filter lets through."""
        self.place.close()


class Pypcap(Handle):
    def __init__(self, wire: Wire, device: str, filter: str | None) -> None:
        self.place = pypcap.pcap(name=device, timeout_ms=20, buffer_size=BUFFER)
        self.place.setnonblock(True)
        if filter is not None:
            self.setfilter(filter)

    def poll(self) -> list[bytes]:
        return [data for _, data in self.place.readpkts()]


class PcapyNg(Handle):
    def __init__(self, wire: Wire, device: str, filter: str | None) -> None:
        self.place = pcapy_ng.create(device)
        self.place.set_snaplen(65535)
        self.place.set_timeout(20)
        self.place.set_buffer_size(BUFFER)
        assert self.place.activate() == 0
        self.place.setnonblock(1)
        if filter is not None:
            self.setfilter(filter)

    def poll(self) -> list[bytes]:
        found: list[bytes] = []
        count = self.place.dispatch(-1, lambda header, data: found.append(data))
        assert count == len(found)
        return found


class Cypcap(Handle):
    def __init__(self, wire: Wire, device: str, filter: str | None) -> None:
        self.place = cypcap.create(device)
        self.place.set_pre_config(snaplen=65535, timeout=0.02, buffer_size=BUFFER)
        self.place.activate()
        self.place.set_config(nonblock=True, filter=filter)

    def poll(self) -> list[bytes]:
        found: list[bytes] = []
        self.place.dispatch(-1, lambda header, data: found.append(data))
        return found


class PythonLibpcap(Handle):
    """It always waits: a thread reads it, and goes when it sees the last frame. Its filter is given when it is opened."""

    def __init__(self, wire: Wire, device: str, filter: str | None) -> None:
        self.place = python_libpcap.Sniff(device, promisc=1, timeout=20, filters=filter or "")
        self._packets: SimpleQueue[bytes] = SimpleQueue()
        self._is_over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for length, _, data in self.place.capture():
            if length:
                self._packets.put(data)
            if self._is_over:
                return

    def poll(self) -> list[bytes]:
        with suppress(Empty):
            return [self._packets.get(timeout=0.1)]
        return []

    def close(self, wake: Callable[[], object]) -> None:
        self._is_over = True
        deadline = time.monotonic() + SECONDS
        while self._reader.is_alive():
            assert time.monotonic() < deadline, "the reader does not wake up"
            wake()
            self._reader.join(0.1)
        self.place.close()


HANDLES: dict[str, Callable[..., Handle]] = {
    "pcapy-ng": PcapyNg,
    "cypcap": Cypcap,
    "python-libpcap": PythonLibpcap,
}
if sys.version_info < (3, 12):
    HANDLES["pypcap"] = Pypcap


class Capturing:
    """A handle on a wire. `last` is a frame with source `LAST` that its filter lets through."""

    def __init__(self, wire: Wire, library: str, device: str, filter: str | None, last: bytes) -> None:
        self.wire = wire
        self.last = last
        self.is_cooked = device == "any"
        self.put = put_on_loopback if device == "lo" else wire.put
        self.handle: Handle = wire.do(HANDLES[library], wire, device, filter)

    def setfilter(self, filter: str, last: bytes) -> None:
        self.last = last
        self.wire.do(self.handle.setfilter, filter)

    def until_last(self) -> list[bytes]:
        """What comes in, up to the last frame, which the caller sends."""
        found: list[bytes] = []
        deadline = time.monotonic() + SECONDS
        while True:
            for data in self.wire.do(self.handle.poll):
                if self.is_cooked and data[:2] == OUTGOING:
                    continue
                if data[SOURCE] == LAST:
                    return found
                found.append(data)
            assert time.monotonic() < deadline, "the last frame did not come"

    def received(self, frames: Sequence[bytes]) -> list[bytes]:
        """What comes in up to and with frames that are sent, a portion at a time."""
        found: list[bytes] = []
        for start in range(0, len(frames) or 1, 500):
            self.wire.do(self.put, [*frames[start : start + 500], self.last])
            found += self.until_last()
        return found

    def close(self) -> None:
        self.handle.close(partial(self.wire.do, self.put, [self.last]))


def put_on_loopback(frames: Sequence[bytes]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("lo", 0))
        for frame in frames:
            assert sender.send(frame) == len(frame)


@contextmanager
def capturing(wire: Wire, library: str, device: str, filter: str | None, last: bytes) -> Iterator[Capturing]:
    made = Capturing(wire, library, device, filter, last)
    try:
        yield made
    finally:
        made.close()


def offline(library: str, path: str, filter: str) -> Iterator[bytes]:
    """The packets of a capture, read one after the other."""
    match library:
        case "pypcap":
            capture = pypcap.pcap(path)
            capture.setfilter(filter)
            yield from (data for _, data in capture)
            capture.close()
        case "pcapy-ng":
            with pcapy_ng.open_offline(path) as reader:
                reader.setfilter(filter)
                while (packet := reader.next())[0] is not None:
                    yield packet[1]
        case "cypcap":
            with cypcap.open_offline(path) as pcap:
                pcap.setfilter(filter)
                yield from (data for _, data in pcap)
        case "python-libpcap":
            yield from (data for _, _, data in python_libpcap.rpcap(path, filter))


def numbered(frame: bytes, number: int) -> bytes:
    """A frame of `Flow`."""
    return frame[:6] + FLOW + number.to_bytes(4, "big") + frame[12:]


def number_of(packet: bytes) -> int:
    assert packet[6:8] == FLOW
    return int.from_bytes(packet[8:12], "big")


class Flow:
    """Frames that are sent over and over by a thread, each with its number, until it is stopped."""

    def __init__(self, wire: Wire, frames: Sequence[bytes]) -> None:
        self.sent = 0
        self._wire = wire
        self._frames = frames
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)

    def _send(self) -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as the wire, so that no frame overtakes another
        while not self._over.is_set():
            self._wire.put([numbered(self._frames[self.sent % len(self._frames)], self.sent)])
            self.sent += 1
            self._over.wait(0.0002)  # slow enough for buffers that nobody reads while a filter is compiled

    def await_sent(self, count: int) -> None:
        deadline = time.monotonic() + SECONDS
        while self.sent < count:
            assert time.monotonic() < deadline
            assert self._thread.is_alive()
            os.sched_yield()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
