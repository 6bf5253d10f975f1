"""What the handles of the libraries that bind libpcap have in common: a filter of pcapext's on them.

In:  a handle of a library's, behind a few methods; filters.
Out: its packets, those that match. The kernel filters what comes in on a packet socket; elsewhere pcapext does, on what libpcap has let
     through by a weaker filter that it knows, if there is one.

Packets that were let through before a filter was in place are checked as they are delivered (attaching.py). A library's time of a packet
may be less exact than the kernel's: what counts is the earliest that it can stand for.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from pcapext.attaching import attach
from pcapext.bpf import Program
from pcapext.compiler import weaker
from pcapext.errors import AttachError, CaptureError, printable
from pcapext.formats import NATIVE, PCAP_MAGICS, PCAPNG_MAGIC, SECTION_START, section_byteorder
from pcapext.pcap_bridge import LOOPBACK_LINKTYPES
from pcapext.pcap_handles import Matches
from pcapext.selection import Filter

#: A C double of seconds since 1970 is wrong by less than that, in ns.
FLOAT_ERROR = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """What packets are to be checked for: those stamped before `until` (in ns since 1970), all if it is None, none if it is 0."""

    until: int | None
    matches: Matches


_NONE = Check(0, lambda data, wirelen: True)


class Checked(ABC):
    """A handle of a library's that pcapext can filter: a `Source` of attaching.py.

    Its state is in the class to begin with: an `__init__` of its own would have to run before the library's.
    """

    _check = _NONE
    _lock = Lock()
    #: The capture file that it reads; None for an interface.
    path: str | None = None

    # ---- What a library tells ----

    @property
    @abstractmethod
    def linktype(self) -> int:
        """The DLT number of its packets."""

    @abstractmethod
    def fileno(self) -> int:
        """The descriptor that it captures on. Raises `CaptureError` where it is closed."""

    @abstractmethod
    def _set_library_filter(self, expression: str) -> None:
        """The library's own way to set a filter."""

    @abstractmethod
    def _accepts_packet(self, *packet: Any) -> bool:
        """Whether to give a packet: what the library tells of it."""

    def _netmask(self, is_standard: bool) -> int | None:
        """What the library takes for the network's mask, None for unknown. `is_standard`: for a filter of libpcap's alone."""
        return 0

    def _byteorder(self) -> str:
        """The byte order of the capture file, "<" or ">"."""
        return byteorder_of(str(self.path))

    # ---- Filtering ----

    def check_until(self, time_ns: int | None, matches: Matches) -> tuple[int | None, Matches]:
        """From now on give packets only if `matches(data, wirelen)`: those stamped before `time_ns` (ns since 1970), all if it is None.

        It takes the place of what was told before, which is returned.
        """
        with self._lock:
            told = self._check
            self._check = Check(time_ns, matches)
            return told.until, told.matches

    def clear_filter(self) -> None:
        """Have libpcap let everything through."""
        self._set_library_filter("")

    def _set_filter(self, filter: str | Program, optimize: bool | int = True) -> None:
        """Put a filter in place of the one there is. Raises what `attach` raises, before anything is changed."""
        if not isinstance(filter, str | Program):
            raise AttachError(f"the filter is of type {type(filter).__name__}, expected an expression or a Program")
        if self.fileno() < 0:
            raise CaptureError("the handle has no descriptor to filter: is it activated?")
        weak = weaker(filter, netmask=self._netmask(False)) if isinstance(filter, str) else None
        netmask = self._netmask(weak == filter) if isinstance(filter, str) else None
        if self.path is None:
            attached = attach(filter, self) if isinstance(filter, Program) else attach(filter, self, netmask=netmask, optimize=optimize)
            # Linux shows filters in the kernel a tagged frame without its tag, and pcapext is given it with the tag: there, a filter in the
            # kernel may be stronger than it reads.
            if attached.where == "pcapext" and weak is not None and sys.platform != "linux":
                self._set_library_filter(weak)
            return
        linktype = self.linktype
        byteorder = self._byteorder() if linktype in LOOPBACK_LINKTYPES else NATIVE
        matcher = Filter(filter, netmask=netmask, optimize=optimize).matcher_in(linktype, byteorder, is_only=True)
        with self._lock:
            # Before what libpcap filters is changed, so that nothing is given that neither filter accepts.
            self._check = Check(None, lambda data, wirelen: matcher.run(data, wirelen) > 0)
        self._set_library_filter(weak or "")
        if weak == filter:
            self.check_until(0, _NONE.matches)

    @property
    def _is_checking(self) -> bool:
        """Whether packets may come that do not match, for pcapext to hold them back."""
        return self._check.until != 0

    def _accepts(self, time_ns: int, data: bytes, wirelen: int) -> bool:
        """Whether to give a packet; `time_ns` is the earliest that its time can stand for."""
        check = self._check
        if check.until == 0:
            return True
        if check.until is not None and time_ns >= check.until:
            with self._lock:
                if self._check is check:
                    self._check = _NONE
            return True
        return check.matches(data, wirelen)

    # ---- Delivering ----

    def _dispatch(self, dispatch: Callable[..., Any], count: int, callback: Callable[..., Any]) -> int:
        """A library's `dispatch`, for packets that are accepted: how many were given to `callback`.

        It returns when a buffer of the kernel's was read, or a capture to its end, or when `count` packets were given if that is above 0;
        but not for the sole reason that packets were held back.
        """
        given = 0
        while True:
            counter = _Counter(self, callback)
            dispatch(count - given if count > 0 else count, counter)
            given += counter.given
            if counter.seen == 0 or given == count > 0 or (given and (self.path is None or counter.given == counter.seen)):
                return given

    def _loop(self, loop: Callable[..., Any], count: int, callback: Callable[..., Any]) -> None:
        """A library's `loop`, for packets that are accepted: until `count` were given if that is above 0, or the capture ends."""
        given = 0
        while True:
            counter = _Counter(self, callback)
            wanted = count - given
            loop(wanted if count > 0 else count, counter)
            given += counter.given
            if count <= 0 or given == count or counter.seen < wanted:
                return


class _Counter:
    """A callback that counts the packets it sees, and gives on those that are accepted."""

    def __init__(self, handle: Checked, callback: Callable[..., Any]) -> None:
        self._handle = handle
        self._callback = callback
        self.seen = self.given = 0

    def __call__(self, *packet: Any) -> None:
        self.seen += 1
        if self._handle._accepts_packet(*packet):
            self.given += 1
            self._callback(*packet)


def network_mask(octets: bytes, is_standard: bool) -> int:
    """A netmask for the compiler from its 4 bytes, 255 first.

    The libraries hand libpcap the bytes as they are, for a number (pcap.c, pcap_lookupnet); for a filter of libpcap's alone so do we.
    """
    return int.from_bytes(octets, sys.byteorder if is_standard else "big")


def byteorder_of(path: str) -> str:
    """The byte order of a capture file, "<" or ">". Raises `CaptureError` where it cannot be read twice."""
    name = printable(path)
    try:
        if not Path(path).is_file():
            raise CaptureError(f"{name}: the byte order of a capture of this link type matters, and it is no file that can be read twice")
        with open(path, "rb") as file:
            start = file.read(SECTION_START)
    except OSError as error:
        raise CaptureError(f"{name}: {error.strerror}") from error
    if start[:4] == PCAPNG_MAGIC:
        return section_byteorder(start, name, 0)
    if start[:4] not in PCAP_MAGICS:
        raise CaptureError(f"{name}: neither a pcap nor a pcapng file begins like this")
    return PCAP_MAGICS[start[:4]][0]
