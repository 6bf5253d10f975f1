"""Progress: one line on a terminal while a long work is under way.

In:  how many bytes are done, now and then, and of how many.
Out: a line that is written over again: the share, the rate, the time left. Nothing at all if the work is short.
"""

from __future__ import annotations

import sys
from time import monotonic

#: Seconds before there is a line, and between two.
_FIRST, _PAUSE = 1.0, 0.2
#: Back to the begin of the line; what stands behind is erased.
_START, _ERASE = "\r", "\x1b[K"


class Progress:
    """The progress of reading `total` bytes, None if nobody knows how many, shown on standard error."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._begun = self._last = monotonic()
        self._shown = False

    def show(self, done: int) -> None:
        """Show that so many bytes are done, if it is time to."""
        now = monotonic()
        if now - self._begun < _FIRST or now - self._last < _PAUSE:
            return
        self._last, self._shown = now, True
        sys.stderr.write(f"{_START}{line(done, self._total, now - self._begun)}{_ERASE}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write(f"{_START}{_ERASE}")
            sys.stderr.flush()


def line(done: int, total: int | None, seconds: float) -> str:
    """What there is to say after so many seconds.

    >>> line(250_000_000, 1_000_000_000, 2.0)
    '25 %, 250 MB of 1.0 GB, 125 MB/s, 0:06 left'
    >>> line(250_000_000, None, 2.0)
    '250 MB, 125 MB/s'
    """
    rate = done / seconds
    if not total:
        return f"{_bytes(done)}, {_bytes(rate)}/s"
    share = min(done / total, 1)
    parts = [f"{int(100 * share)} %", f"{_bytes(done)} of {_bytes(total)}", f"{_bytes(rate)}/s"]
    if rate:
        minutes, left = divmod(round((total - done) / rate), 60)
        parts.append(f"{minutes}:{left:02d} left")
    return ", ".join(parts)


def _bytes(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.1f} {units[0]}" if count < 10 and units[0] != "B" else f"{count:.0f} {units[0]}"
