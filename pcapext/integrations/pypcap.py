"""pypcap's `pcap`, whose filter may hold terms of pcapext.

In:  what pypcap takes; `setfilter` takes an expression, or a `Program`.
Out: what pypcap gives. No packet that does not match is delivered, however early it came; errors of the filter are pcapext's.

Change one line of a script:

    from pcapext.integrations import pypcap as pcap

    capture = pcap.pcap(name="eth0", timeout_ms=50)
    capture.setfilter("inner tcp port 80")
    for time, data in capture: ...

On interfaces the kernel filters, in captures pcapext. pypcap does not tell how long a packet was on the wire: where pcapext filters, `len`
is what was captured of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pcapext.bpf import Program
from pcapext.errors import CaptureError
from pcapext.integrations import missing
from pcapext.integrations.handles import FLOAT_ERROR, Checked
from pcapext.pcap_handles import Matches

try:
    import pcap as library
except ImportError as error:
    raise missing("pypcap", error) from error

__all__ = ["pcap"]


def __getattr__(name: str) -> Any:
    return getattr(library, name)


class pcap(library.pcap, Checked):  # type: ignore[misc]
    """pypcap's `pcap`, with all that it takes and does, whose filter may hold terms of pcapext.

    >>> capture = pcap("examples/tunnels.pcap")
    >>> capture.setfilter("encap gtpu and inner tcp port 80")
    >>> for time, data in capture:
    ...     print(time, len(data))
    ...     break
    1704067200.13 135
    """

    _filter: str | None = None
    _is_closed = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            self.stats()
        except OSError:  # there are none for a capture file (savefile.c, sf_stats)
            self.path = self.name

    def setfilter(self, value: str | Program, optimize: bool | int = True) -> None:
        """Set the filter."""
        self.fileno()
        self._set_filter(value, optimize)
        self._filter = value if isinstance(value, str) else value.expression or ""

    @property
    def filter(self) -> str:
        """The filter that was set last."""
        return self._filter if self._filter is not None else str(super().filter)

    # ---- What pcapext asks ----

    @property
    def linktype(self) -> int:
        """The DLT number of its packets."""
        return int(self.datalink())

    def fileno(self) -> int:
        """The descriptor that it reads from."""
        if self._is_closed:
            raise CaptureError("the pcap is closed")
        return int(self.fd)

    def check_until(self, time_ns: int | None, matches: Matches) -> tuple[int | None, Matches]:
        """See `Checked`. Of a packet that was queued, and may be cut, it cannot be told whether it matches: it is left out."""
        snaplen = self.snaplen
        return super().check_until(
            time_ns, matches if not time_ns else lambda data, wirelen: len(data) < snaplen and matches(data, wirelen)
        )

    def _set_library_filter(self, expression: str) -> None:
        super().setfilter(expression)

    def _accepts_packet(self, time: float, data: bytes, *_: object) -> bool:
        earliest = time if isinstance(time, int) else int(time * 1e9) - FLOAT_ERROR
        return self._accepts(earliest, data, len(data))

    # ---- Reading ----

    def __iter__(self) -> pcap:
        self.fileno()
        super().__iter__()
        return self

    def __next__(self) -> tuple[float, bytes]:
        self.fileno()
        while True:
            time, data = super().__next__()
            if self._accepts_packet(time, data):
                return time, data

    def loop(self, cnt: int, callback: Callable[..., Any], *args: Any) -> None:
        """Call `callback(time, data, *args)` for `cnt` packets that match, or for all if it is not above 0."""
        for given, (time, data) in enumerate(self, 1):
            callback(time, data, *args)
            if given == cnt:
                break

    def dispatch(self, cnt: int, callback: Callable[..., Any], *args: Any) -> int:
        """Call `callback(time, data, *args)` for what is there, for at most `cnt` packets that match if that is above 0."""
        self.fileno()
        return self._dispatch(super().dispatch, cnt, lambda time, data: callback(time, data, *args))

    def close(self) -> None:
        """Close it."""
        if not self._is_closed:
            self._is_closed = True
            super().close()
