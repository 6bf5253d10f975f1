"""The command `pcapext capture`: packets as they come in on an interface.

In:  the arguments, parsed; a filter.
Out: lines or a capture; counts on standard error; the exit status.

Signals, a number of packets and a time end a capture in the same way: what came in before is still taken, the output is complete, and
the status is 0.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from pcapext.bpf import MAXIMUM_SNAPLEN, Program
from pcapext.capture import Packet, Writer, create
from pcapext.errors import LibpcapError
from pcapext.live import LiveCapture, open_live
from pcapext.pcap_bridge import linktype_description, linktype_name
from pcapext.pcap_devices import Device, devices, linktypes, timestamp_types

if TYPE_CHECKING:
    from types import FrameType

    from pcapext.encapsulation import WalkSettings

#: What to say of an interface, as tcpdump does: by its connection, for those that are wireless and the others.
_CONNECTIONS = {
    "unknown": ("Connection status unknown", "Association status unknown"),
    "connected": ("Connected", "Associated"),
    "disconnected": ("Disconnected", "Not associated"),
}


def run_capture(options: argparse.Namespace, make_filter: Callable[[], tuple[str | Program, dict[str, Any]]]) -> int:
    """Run the command. `make_filter` gives the filter and, if that is an expression, what to compile it with."""
    if options.show_devices:
        _print_devices()
        return 0
    if options.device is None:
        options.usage_error("the following arguments are required: -i")
    device = _device(options.device)
    if options.show_linktypes:
        _print_choices("Data link types", "y", device, list(map(_shown_linktype, linktypes(device))))
    elif options.show_timestamp_types:
        _print_choices("Time stamp types", "j", device, timestamp_types(device))
    else:
        _capture(options, device, *make_filter())
    return 0


def _capture(options: argparse.Namespace, device: str, filter: str | Program, settings: dict[str, Any]) -> None:
    with _notes():
        capture = open_live(
            device,
            snaplen=options.snaplen or MAXIMUM_SNAPLEN,
            promiscuous=options.promiscuous,
            monitor=options.monitor,
            immediate=options.immediate or (options.write is None and sys.stdout.isatty()),
            buffer_size=options.buffer_size and 1024 * options.buffer_size,
            direction=options.direction,
            nanoseconds=options.precision == "nano",
            timestamp_type=options.timestamp_type,
            linktype=options.linktype,
        )
    with capture:
        with _notes():
            chosen = replace(filter, linktype=capture.linktype) if isinstance(filter, Program) else filter
            attachment = capture.attach(chosen, target=options.target, **settings)
        output: _Output
        if options.write is None:
            output = _Lines(attachment.program.settings if attachment else None)
            flushes = options.flushes or options.flushes_lines or sys.stdout.isatty()
        else:
            output = _File(
                create(options.write, linktype=capture.linktype, snaplen=capture.snaplen, nanoseconds=capture.nanoseconds, grows=True)
            )
            flushes = options.flushes
        taken = 0
        try:
            with _signals(capture, options.duration):
                try:
                    output.flush()  # a file is a capture from the beginning
                    shown = f"{capture.device}, link-type {_shown_linktype(capture.linktype)}, snapshot length {capture.snaplen} bytes"
                    print(f"pcapext: listening on {shown}", file=sys.stderr, flush=True)
                    for batch in capture.batches(options.packets):
                        taken += len(batch)
                        output.put(batch)
                        if flushes:
                            output.flush()
                finally:
                    output.close()
        finally:
            _print_counts(taken, capture)


# --- outputs


class _Output(Protocol):
    def put(self, batch: list[Packet]) -> None: ...

    def flush(self) -> None:
        """Hand what was put to the system."""

    def close(self) -> None:
        """Complete it: there was the last packet, or something went wrong."""


class _Lines:
    def __init__(self, settings: WalkSettings | None) -> None:
        from pcapext.summary import summarize

        self._line = lambda packet: f"{summarize(packet, settings)}\n"

    def put(self, batch: list[Packet]) -> None:
        sys.stdout.write("".join(map(self._line, batch)))

    def flush(self) -> None:
        sys.stdout.flush()

    def close(self) -> None:
        """What is in a buffer is written when the program ends."""


class _File:
    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def put(self, batch: list[Packet]) -> None:
        for packet in batch:
            self._writer.write(packet)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


# --- what there is to choose from


def _device(name: str) -> str:
    """The name of an interface. A number is one of the list that -D prints, as for tcpdump, unless there is an interface of this name."""
    if not (name.isdecimal() and name.isascii()):
        return name
    found = [device.name for device in devices()]
    if name in found:
        return name
    if not 1 <= int(name) <= len(found):
        raise LibpcapError(f"interface number {name} is out of range, expected 1 to {len(found)}")
    return found[int(name) - 1]


def _print_devices() -> None:
    for number, device in enumerate(devices(), 1):
        description = f" ({device.description})" if device.description else ""
        state = ", ".join(_state(device))
        print(f"{number}.{device.name}{description} [{state or 'none'}]")


def _state(device: Device) -> Iterator[str]:
    yield from (
        word
        for word, holds in (
            ("Up", device.is_up),
            ("Running", device.is_running),
            ("Loopback", device.is_loopback),
            ("Wireless", device.is_wireless),
        )
        if holds
    )
    if device.connection in _CONNECTIONS:
        yield _CONNECTIONS[device.connection][device.is_wireless]


def _print_choices(title: str, flag: str, device: str, choices: Sequence[str]) -> None:
    if not choices:
        raise LibpcapError(f"{device}: there is no choice of {title.lower()}")
    print(f"{title} for {device} (use option -{flag} to set):")
    for choice in choices:
        print(f"  {choice}")


def _shown_linktype(linktype: int) -> str:
    name = linktype_name(linktype)
    return f"{name} ({linktype_description(linktype)})" if name else str(linktype)


# --- beginning and ending


@contextmanager
def _notes() -> Iterator[None]:
    """Warnings become notes on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        print(f"pcapext: note: {warning.message}", file=sys.stderr)


@contextmanager
def _signals(capture: LiveCapture, duration: float | None) -> Iterator[None]:
    """Signals stop a capture, and so does the time. A second one is an interrupt, wherever it comes."""
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = number != signal.SIGALRM
        capture.stop()

    # As tcpdump, which goes on without its terminal where it was told so (nohup).
    ending = [signal.SIGINT, signal.SIGTERM, signal.SIGALRM, *[signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) == signal.SIG_DFL)]
    before = {number: signal.signal(number, stop) for number in ending}
    try:
        if duration is not None:
            signal.setitimer(signal.ITIMER_REAL, duration)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_counts(taken: int, capture: LiveCapture) -> None:
    """As tcpdump does."""
    stats = capture.stats()
    counts = [(taken, "captured"), (stats.received, "received by filter"), (stats.dropped, "dropped by kernel")]
    if stats.dropped_by_interface:
        counts.append((stats.dropped_by_interface, "dropped by interface"))
    sys.stderr.write("".join(f"{count} packet{'s' if count != 1 else ''} {what}\n" for count, what in counts))
