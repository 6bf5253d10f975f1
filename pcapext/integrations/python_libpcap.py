"""python-libpcap's `Sniff`, `sniff` and `rpcap`, whose filters may hold terms of pcapext.

In:  what python-libpcap takes; `filters` is an expression.
Out: what python-libpcap gives. No packet that does not match is delivered, or written to `out_file`, however early it came; errors of
     the filter are pcapext's.

Change one line of a script:

    from pcapext.integrations.python_libpcap import rpcap, sniff

    for length, time, data in sniff("eth0", filters="inner tcp port 80", out_file="web.pcap"): ...

On interfaces the kernel filters, in captures pcapext. A `Sniff` hides its handle: the packet socket is the one that the process has more
when it is made. Where that cannot be told, since other threads open some on the same interface, pcapext filters, with an `AttachWarning`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pcapext.attaching import attach
from pcapext.bpf import MAXIMUM_SNAPLEN
from pcapext.capture import open_offline
from pcapext.compiler import compile
from pcapext.errors import AttachWarning, CaptureError, LibpcapError, printable
from pcapext.integrations import missing
from pcapext.integrations.handles import FLOAT_ERROR, Checked
from pcapext.pcap_handles import Dumper, open_dead
from pcapext.pcap_live import open_live
from pcapext.sockets import identity, sight

try:
    # The package itself hides it when its own library cannot be loaded.
    from pylibpcap import base as library
    from pylibpcap.base import get_first_iface, get_iface_list, send_packet
    from pylibpcap.pcap import wpcap
except ImportError as error:
    raise missing("python-libpcap", error) from error

__all__ = ["Sniff", "get_first_iface", "get_iface_list", "rpcap", "send_packet", "sniff", "wpcap"]

_SECOND = 1_000_000_000


def rpcap(path: str, filters: str = "") -> Iterator[tuple[int, int, bytes]]:
    """python-libpcap's `rpcap`: the length captured, the time in seconds, and the bytes of each packet that matches.

    >>> next(rpcap("examples/tunnels.pcap", "encap gtpu and inner tcp port 80"))[:2]
    (135, 1704067200)
    """
    reader = library.LibPcap(path)  # what is wrong with the file is its affair
    if not filters:
        return reader.read()  # type: ignore[no-any-return]
    reader.close()
    # It tells neither link type nor length on the wire.
    capture = open_offline(os.path.expanduser(path), filter=filters, netmask=0)
    return ((len(packet.data), packet.timestamp_ns // _SECOND, packet.data) for packet in capture)


def sniff(*args: Any, **kwargs: Any) -> Iterator[tuple[int, float, bytes]]:
    """python-libpcap's `sniff`: what `Sniff` with these arguments captures."""
    return Sniff(*args, **kwargs).capture()


@dataclass(slots=True)
class _State:
    """What is known of a capture with a filter."""

    device: str
    linktype: int
    count: int
    snaplen: int
    descriptor: int = -1
    dumper: Dumper | None = None
    given: int = 0
    is_closed: bool = False


class Sniff(library.Sniff, Checked):  # type: ignore[misc]
    """python-libpcap's `Sniff`, with all that it takes and does, whose `filters` may hold terms of pcapext.

    With a filter, `capture_nonblocking` is an error: it hands packets to nobody who could check them.

    with closing(Sniff("eth0", filters="inner tcp port 80")) as sniffer:
        for length, time, data in sniffer.capture(): ...
    """

    #: None without a filter. In the class, since python-libpcap calls `close` on what is already taken apart.
    _state: _State | None = None

    def __init__(
        self,
        iface: str,
        count: int = -1,
        promisc: int = 0,
        snaplen: int = 65535,
        timeout: int = 0,
        filters: str = "",
        out_file: str = "",
        monitor: int = -1,
        immediate_mode: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if not filters:
            super().__init__(iface, count, promisc, snaplen, timeout, filters, out_file, monitor, immediate_mode, *args, **kwargs)
            return
        try:
            with open_live(iface, promiscuous=False, buffer_size=1, monitor=monitor > 0) as handle:
                linktype = handle.linktype
        except LibpcapError:
            super().__init__(iface, count, promisc, snaplen, timeout, "", "", monitor, immediate_mode)  # to hear its own words
            super().close()
            raise
        program = compile(filters, linktype=linktype, netmask=0)
        # libpcap takes other snap lengths for the longest one.
        state = _State(printable(iface), linktype, count, snaplen if 0 < snaplen < MAXIMUM_SNAPLEN else MAXIMUM_SNAPLEN)
        try:
            if out_file:
                state.dumper = _open_dumper(out_file, linktype, state.snaplen)
            before = _rings()
            # Whole packets, which are cut here: it does not tell how long they were.
            super().__init__(iface, -1, promisc, MAXIMUM_SNAPLEN, timeout, "", "", monitor, immediate_mode, *args, **kwargs)
            self._state = state
            interface = "" if iface == "any" else iface
            new = [number for key, number in _rings().items() if key not in before and sight(number).interface == interface]
            if len(new) == 1:
                (state.descriptor,) = new
                attach(filters, self, netmask=0)
            else:
                self.check_until(None, program.matches)
                warnings.warn(
                    f"pcapext filters the capture on {state.device}: which socket it reads from cannot be told", AttachWarning, stacklevel=2
                )
        except BaseException:
            if state.dumper:
                state.dumper.close()
            super().close()
            raise

    # ---- What pcapext asks ----

    @property
    def linktype(self) -> int:
        """The DLT number of its packets."""
        return self._filtered.linktype

    def fileno(self) -> int:
        """The packet socket that it reads from."""
        return self._filtered.descriptor

    def clear_filter(self) -> None:
        """Nothing: it has none."""

    def _set_library_filter(self, expression: str) -> None:
        raise CaptureError("python-libpcap sets filters only when it begins")

    def _accepts_packet(self, time: float, data: bytes, *_: object) -> bool:
        return self._accepts(int(time * 1e9) - FLOAT_ERROR, data, len(data))

    @property
    def _filtered(self) -> _State:
        """The state of an open capture with a filter."""
        if self._state is None:
            raise CaptureError("a Sniff without a filter is python-libpcap's alone")
        if self._state.is_closed:
            raise CaptureError(f"the capture on {self._state.device} is closed")
        return self._state

    # ---- Capturing ----

    def capture(self) -> Iterator[tuple[int, float, bytes]]:
        """The length captured, the time in seconds, and the bytes of each packet that matches; zeros where none came in time."""
        packets = super().capture()
        if self._state is None:
            yield from packets
            return
        state = self._filtered
        while state.count == -1 or state.given < state.count:
            self._filtered  # noqa: B018  (an error where it is closed meanwhile)
            caplen, time, data = next(packets)
            if not caplen:
                yield caplen, time, data
            elif self._accepts_packet(time, data):
                state.given += 1
                kept = data[: state.snaplen]
                if state.dumper:
                    state.dumper.write(round(time * 1e6) * 1000, caplen, kept)
                yield len(kept), time, kept

    def capture_nonblocking(self) -> None:
        """python-libpcap's `capture_nonblocking`, without a filter."""
        if self._state:
            raise CaptureError("capture_nonblocking shows its packets to nobody: with a filter, go through capture() in a thread")
        super().capture_nonblocking()

    def stats(self) -> Any:
        """What was counted; `capture_cnt` are the packets that were given."""
        if self._state is None:
            return super().stats()
        state, stats = self._filtered, super().stats()
        stats.capture_cnt = state.given
        return stats

    def close(self) -> None:
        """Close it, and `out_file`."""
        super().close()
        if self._state:
            self._state.is_closed = True
            if self._state.dumper:
                self._state.dumper.close()


def _open_dumper(path: str, linktype: int, snaplen: int) -> Dumper:
    with open_dead(linktype, snaplen) as handle:
        return Dumper(handle, os.open(os.path.expanduser(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))


def _rings() -> dict[tuple[int, int] | None, int]:
    """The packet sockets with a ring buffer that this process has, by what tells them apart."""
    found: dict[tuple[int, int] | None, int] = {}
    for name in os.listdir("/proc/self/fd") if sys.platform == "linux" else ():
        number = int(name)
        try:
            if sight(number).ring:
                found[identity(number)] = number
        except OSError:  # no socket, or closed meanwhile
            continue
    return found
