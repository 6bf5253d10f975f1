"""pcapy-ng's readers, whose filter may hold terms of pcapext.

In:  what pcapy takes; `setfilter` takes an expression, or a `Program`.
Out: what pcapy gives. No packet that does not match is delivered, however early it came; errors of the filter are pcapext's.

Change one line of a script:

    from pcapext.integrations import pcapy_ng as pcapy

    reader = pcapy.open_live("eth0", 65535, True, 100)
    reader.setfilter("inner tcp port 80")
    reader.loop(10, lambda header, data: print(header.getlen()))

On interfaces the kernel filters, in captures pcapext.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from pcapext.bpf import MAXIMUM_SNAPLEN, Program
from pcapext.errors import CaptureError
from pcapext.integrations import missing
from pcapext.integrations.handles import Checked, network_mask

try:
    import pcapy as library
except ImportError as error:
    raise missing("pcapy-ng", error) from error

__all__ = ["Reader", "create", "open_live", "open_offline"]

#: What `next_batch` tells of a packet: seconds, microseconds, where it begins, how many bytes.
_RECORD = struct.Struct("=4I")


def __getattr__(name: str) -> Any:
    return getattr(library, name)


def open_live(device: str, snaplen: int, promisc: int, to_ms: int) -> Reader:
    """pcapy's `open_live`."""
    return Reader(library.open_live(device, snaplen, promisc, to_ms), snaplen=snaplen)


def create(device: str) -> Reader:
    """pcapy's `create`."""
    return Reader(library.create(device))


def open_offline(filename: str) -> Reader:
    """pcapy's `open_offline`.

    >>> reader = open_offline("examples/tunnels.pcap")
    >>> reader.setfilter("encap gtpu and inner tcp port 80")
    >>> header, data = reader.next()
    >>> header.getts(), header.getlen()
    ((1704067200, 130000), 135)
    """
    return Reader(library.open_offline(filename), path=filename)


class Reader(Checked):
    """A reader of pcapy's, with all that it has, whose filter may hold terms of pcapext."""

    def __init__(self, reader: Any, path: str | None = None, snaplen: int = MAXIMUM_SNAPLEN) -> None:
        self._reader = reader
        self._snaplen = snaplen
        self.path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def __enter__(self) -> Reader:
        self._reader.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def set_snaplen(self, snaplen: int) -> Any:
        """The snap length of a reader that is not activated yet."""
        self._snaplen = snaplen
        return self._reader.set_snaplen(snaplen)

    def setfilter(self, filter: str | Program) -> None:
        """Set the filter."""
        self._set_filter(filter)

    # ---- What pcapext asks ----

    @property
    def linktype(self) -> int:
        """The DLT number of its packets."""
        return int(self._reader.datalink())

    def fileno(self) -> int:
        """The descriptor that it reads from, which is pcapy's `getfd`."""
        return int(self._reader.getfd())

    def _netmask(self, is_standard: bool) -> int:
        return network_mask(socket.inet_aton(self._reader.getmask()), is_standard)

    def _set_library_filter(self, expression: str) -> None:
        self._reader.setfilter(expression)

    def _accepts_packet(self, header: Any, data: bytes, *_: object) -> bool:
        seconds, microseconds = header.getts()
        return self._accepts(_nanoseconds(seconds, microseconds), data, header.getlen())

    # ---- Reading ----

    def next(self) -> tuple[Any, bytes]:
        """The next packet that matches: header and bytes. The header is None at the end of a capture, and where none came in time."""
        while True:
            header, data = self._reader.next()
            if header is None or self._accepts_packet(header, data):
                return header, data

    def next_batch(self, max_n: int) -> tuple[bytes, bytes]:
        """pcapy's `next_batch`, with the packets that match.

        It does not tell how long a packet was on the wire: where pcapext filters, `len` is what was captured of it. Of a packet that was
        queued before the filter was there, and may be cut, it cannot be told whether it matches: it is left out.
        """
        while True:
            octets, records = self._reader.next_batch(max_n)
            if not records or not self._is_checking:
                return octets, records
            kept = []
            packets = bytearray()
            for seconds, microseconds, at, caplen in _RECORD.iter_unpack(records):
                data = octets[at : at + caplen]
                if self._check.until and caplen >= self._snaplen:
                    continue
                if self._accepts(_nanoseconds(seconds, microseconds), data, caplen):
                    kept.append(_RECORD.pack(seconds, microseconds, len(packets), caplen))
                    packets += data
            if kept:
                return bytes(packets), b"".join(kept)

    def dispatch(self, cant: int, callback: Callable[[Any, bytes], Any]) -> int:
        """Call `callback(header, data)` for what is there, for at most `cant` packets that match if that is above 0."""
        return self._dispatch(self._reader.dispatch, cant, callback)

    def loop(self, cant: int, callback: Callable[[Any, bytes], Any]) -> None:
        """Call `callback(header, data)` for `cant` packets that match, or for all if it is not above 0."""
        self._loop(self._reader.loop, cant, callback)

    def loop_filtered(self, *args: Any, **kwargs: Any) -> Any:
        """pcapy's `loop_filtered`, where the kernel alone filters."""
        self._check_unseen("loop_filtered")
        return self._reader.loop_filtered(*args, **kwargs)

    def loop_to_buffer(self, *args: Any, **kwargs: Any) -> Any:
        """pcapy's `loop_to_buffer`, where the kernel alone filters."""
        self._check_unseen("loop_to_buffer")
        return self._reader.loop_to_buffer(*args, **kwargs)

    def _check_unseen(self, name: str) -> None:
        """An error where packets would go past pcapext that may not match."""
        if not self._is_checking:
            return
        if self._check.until is None:
            raise CaptureError(f"{name} does not show its packets to pcapext, which filters here: use loop, dispatch, next or next_batch")
        raise CaptureError(
            f"{name} does not show its packets to pcapext, and some may be queued from before the filter was set: "
            "call next until it has given a packet that came after that"
        )


def _nanoseconds(seconds: int, microseconds: int) -> int:
    return seconds * 1_000_000_000 + microseconds * 1000
