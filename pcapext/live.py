"""Live captures: packets as they come in on an interface.

In:  the name of an interface, a filter, settings.
Out: `Packet`s, in a `for` or an `async for`. None is given that the filter does not accept: it is in its place before the first is read.

One thread or task at a time reads; any thread, and any signal handler, may stop or close a capture, replace its filter and ask for its
counts. Whatever is wrong is an error that names the interface. Nothing is left of a capture that is closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pcapext import pcap_live
from pcapext.attaching import Attachment, attach
from pcapext.bpf import MAXIMUM_SNAPLEN, Program
from pcapext.capture import Packet
from pcapext.errors import CaptureError, LibpcapError, PcapextError
from pcapext.pcap_devices import netmask as netmask_of
from pcapext.pcap_handles import Matches
from pcapext.pcap_live import LiveHandle, Stats

#: Packets that are taken at once at most.
BATCH = 256
#: A time after all packets: what 64 bits of nanoseconds hold.
_LAST = (1 << 63) - 1
#: Seconds between two attempts to read what came in before something went wrong.
_PAUSE = 0.01


class _Ended(Exception):
    """There are no more packets, since the capture was stopped."""


@dataclass(slots=True, eq=False)
class _End:
    """What there is still to give: packets stamped up to `time_ns`, which are waited for until `monotonic` is at `deadline`.

    `missed` is whether none was there once already: the first time that may be since reading was interrupted. `failure` is the error that
    it ends with, None where `stop` was called.
    """

    time_ns: int
    deadline: float
    missed: bool = False
    failure: LibpcapError | None = None


def _sooner(timeout: float | None, end: _End | None) -> float | None:
    """Seconds to wait: those until the deadline of an end, if that comes first. None stands for ever."""
    if end is None:
        return timeout
    left = max(end.deadline - monotonic(), 0.0)
    return left if timeout is None else min(left, timeout)


class LiveCapture(AbstractContextManager["LiveCapture"]):
    """An open capture on an interface: an iterable of packets, those that its filter accepts. Made by `open_live`.

    The iteration waits for packets until `stop` is called. Iterating again goes on where it stopped. Closing twice is fine; all else is
    a `CaptureError` on a capture that is closed.
    """

    def __init__(self, handle: LiveHandle) -> None:
        #: libpcap's handle: to inject frames, and for what else there is.
        self.handle = handle
        #: The interface, the link type as a DLT number, the snap length in bytes, and whether times are that precise.
        self.device = handle.device
        self.linktype = handle.linktype
        self.snaplen = handle.snaplen
        self.nanoseconds = handle.nanoseconds
        self._attachment: Attachment | None = None
        self._end: _End | None = None
        #: A packet that came in after the end, for whoever reads on.
        self._later: Packet | None = None
        self._is_closed = False
        #: What ends the waiting of the task that waits.
        self._wake: Callable[[], None] | None = None
        #: Packets that were given without a pause for other tasks.
        self._in_a_row = 0

    # --- reading

    def __iter__(self) -> Iterator[Packet]:
        self._check_open()
        return self._packets()

    def _packets(self) -> Iterator[Packet]:
        with suppress(_Ended):
            while True:
                if (packet := self._next(None)) is not None:
                    yield packet

    def batches(self, limit: int | None = None) -> Iterator[list[Packet]]:
        """The packets in lists of what is there, at least 1 and at most `BATCH` of them; `limit` in all."""
        self._check_open()
        left, batch = limit, list[Packet]()
        with suppress(_Ended):
            while left != 0:
                try:
                    packet = self._next(0.0 if batch else None)
                except (_Ended, PcapextError):
                    if batch:
                        yield batch
                    raise
                if packet is not None:
                    batch.append(packet)
                    left = left and left - 1
                if batch and (packet is None or len(batch) == BATCH or left == 0):
                    yield batch
                    batch = []

    def _next(self, timeout: float | None) -> Packet | None:
        """The next packet, None where none comes within so many seconds (None: for ever) or reading is interrupted.

        Raises `_Ended` where all has been given that came in before the capture was stopped.
        """
        end = self._end
        packet, self._later = self._later or self._read(_sooner(timeout, end)), None
        if end is None or (packet and packet.timestamp_ns <= end.time_ns):
            return packet
        if packet is None and (not end.missed or monotonic() < end.deadline or end is not self._end):
            end.missed = True
            return None
        self._later, self._end = packet, None
        raise end.failure or _Ended

    def _read(self, timeout: float | None) -> Packet | None:
        self._check_open()
        try:
            found = self.handle.read(timeout)
        except LibpcapError as error:
            self._check_open()
            if self._end and self._end.failure:
                time.sleep(_PAUSE)  # it fails again, and does not wait
            else:
                # What came in before is still to be given.
                self._end = _End(_LAST, monotonic() + self.handle.delay, failure=error)
            return None
        return Packet(*found, self.linktype) if found else None

    # --- reading in a task

    def __aiter__(self) -> LiveCapture:
        self._check_open()
        return self

    async def __anext__(self) -> Packet:
        if self._in_a_row == BATCH:
            import asyncio

            self._in_a_row = 0
            await asyncio.sleep(0)
        try:
            while (packet := self._next(0.0)) is None:
                self._in_a_row = 0
                await self._readable()
        except _Ended:
            raise StopAsyncIteration from None
        self._in_a_row += 1
        return packet

    async def _readable(self) -> None:
        """Wait until there may be something to read, or there is reason not to wait."""
        import asyncio

        if self._wake:
            raise CaptureError(f"{self.device}: another task is waiting for its packets")
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        def wake_from_elsewhere() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(wake)

        with self._using() as handle:
            pcap = handle.pcap  # kept, so that the descriptor stays what it is
            descriptor, timeout = handle.selectable, handle.required_timeout
        self._wake = wake_from_elsewhere
        loop.add_reader(descriptor, wake)
        # Read now that `stop` and `close` wake this task.
        timeout = _sooner(timeout, self._end)
        timer = loop.call_later(timeout, wake) if timeout is not None else None
        try:
            if not self._is_closed:
                await ready
        finally:
            self._wake = None
            loop.remove_reader(descriptor)
            if timer:
                timer.cancel()
            del pcap

    # --- ending

    def stop(self) -> None:
        """End the iteration that is going on, or else the next one, when it has given what came in until now.

        That is known in the time that the kernel keeps packets together (`open_live`, `timeout_ms`) and a little more. Called again
        meanwhile, it ends at once. Signal handlers and other threads may call it. Nothing happens where the capture is closed.
        """
        if self._end or not self.handle.has_system_clock:
            self._end = _End(0, 0.0, missed=True)
        else:
            self._end = _End(time.time_ns(), monotonic() + self.handle.delay)
        with suppress(LibpcapError):  # it is closed
            self.handle.breakloop()
        self._wake_up()

    def close(self) -> None:
        """Close it: the packet socket is gone, and promiscuous mode with it. Whoever is reading gets an error that says so."""
        self._is_closed = True
        self.handle.close()
        self._wake_up()

    def _wake_up(self) -> None:
        if wake := self._wake:
            wake()

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the rest

    def attach(self, filter: str | Program | None, *, netmask: int | None = None, **options: Any) -> Attachment | None:
        """Put another filter in the place of the one there is; None takes it away.

        When this returns, no packet is given any more that the new one does not accept, and packets that it accepts are given from then on.
        The arguments, warnings and errors are those of `open_live` and of `pcapext.attach`. If it raises, the filter is the one before.
        """
        with self._using():
            if isinstance(filter, str) and netmask is None and "broadcast" in filter:
                netmask = netmask_of(self.device) or 0
            if filter is not None:
                self._attachment = attach(filter, self, netmask=netmask, **options)
            elif self._attachment:
                self._attachment.detach()
                self._attachment = None
            return self._attachment

    # With its `linktype` these make it a `Source` for `pcapext.attach`, and for `Program.attach`.

    def fileno(self) -> int:
        """The descriptor that it captures on."""
        with self._using() as handle:
            return handle.fileno()

    def check_until(self, time_ns: int | None, matches: Matches) -> tuple[int | None, Matches]:
        """As that of `LiveHandle`."""
        with self._using() as handle:
            self._later = None
            return handle.check_until(time_ns, matches)

    def clear_filter(self) -> None:
        """As that of `LiveHandle`."""
        with self._using() as handle:
            handle.clear_filter()

    def stats(self) -> Stats:
        """What the kernel has counted since the capture was opened: packets `received`, which are those that the filter accepted,
        `dropped` for lack of room, and `dropped_by_interface`.
        """
        with self._using() as handle:
            return handle.stats()

    def _check_open(self) -> None:
        if self._is_closed:
            raise CaptureError(f"{self.device}: the capture is closed")

    @contextmanager
    def _using(self) -> Iterator[LiveHandle]:
        """The handle. Where the capture is closed, or another thread closes it meanwhile, the error says so."""
        self._check_open()
        try:
            yield self.handle
        except LibpcapError:
            self._check_open()
            raise


def open_live(
    device: str,
    filter: str | Program | None = None,
    *,
    snaplen: int = MAXIMUM_SNAPLEN,
    promiscuous: bool | None = None,
    timeout_ms: int = 100,
    immediate: bool = False,
    buffer_size: int | None = None,
    direction: str | None = None,
    nanoseconds: bool = True,
    timestamp_type: str | None = None,
    monitor: bool = False,
    linktype: str | int | None = None,
    netmask: int | None = None,
    **options: Any,
) -> LiveCapture:
    """Capture on an interface; "any" is all of them.

    With a `filter` only the packets that it accepts are given: an expression, compiled for the interface with `options`, those of
    `compile`; or a program for its link type. The kernel runs it, or pcapext where the kernel cannot, which is an `AttachWarning`.
    `netmask` is for `ip broadcast`: unless given, that of the interface.

    `snaplen` is how many bytes are kept of a packet, 1 to 262144. `promiscuous` is whether to see frames for others too: None, the usual
    value, means yes where the interface can. The kernel delivers packets in batches, after `timeout_ms` ms at the latest (0: after
    a time of its own choice), or each at once if `immediate`. `buffer_size` is the kernel's buffer in bytes, None for libpcap's choice.
    `direction` is "in", "out" or "inout", None for both. Times have nanoseconds if `nanoseconds` is true and the platform has them.
    `timestamp_type` is one of those that the interface has, such as "adapter". `monitor` is monitor mode of wireless interfaces. `linktype`
    is one of those that the interface has to choose from.

    Raises `LibpcapError` with libpcap's words (no such interface, no privilege, a setting out of range or one that the
    interface does not have), and what `compile` and `pcapext.attach` raise.

        with pcapext.open_live("eth0", "inner tcp port 80") as capture:
            for packet in capture:
                print(packet.timestamp_ns, packet.wirelen)

    In a task, `async for packet in capture` does the same, beside other tasks.
    """
    handle = pcap_live.open_live(
        device,
        snaplen=snaplen,
        promiscuous=promiscuous,
        timeout_ms=timeout_ms,
        immediate=immediate,
        buffer_size=buffer_size,
        direction=direction,
        nanoseconds=nanoseconds,
        timestamp_type=timestamp_type,
        monitor=monitor,
        linktype=linktype,
    )
    capture = LiveCapture(handle)
    try:
        if filter is not None:
            capture.attach(filter, netmask=netmask, **options)
    except BaseException:
        capture.close()
        raise
    return capture
