"""cypcap's captures, whose filter may hold terms of pcapext.

In:  what cypcap takes; `setfilter` takes an expression, a `BpfProgram`, or a `Program`.
Out: what cypcap gives. No packet that does not match an expression is delivered, however early it came; errors of the filter are pcapext's.

Change one line of a script:

    from pcapext.integrations import cypcap

    with cypcap.open_live("eth0", 65535, True, 0.1) as pcap:
        pcap.setfilter("inner tcp port 80")
        for header, data in pcap: ...

On interfaces the kernel filters, in captures pcapext.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from typing import Any

from pcapext import compiler
from pcapext.bpf import Program
from pcapext.errors import CaptureError
from pcapext.formats import PCAP_HEADER
from pcapext.integrations import missing
from pcapext.integrations.handles import FLOAT_ERROR, Checked, network_mask

try:
    import cypcap as library
except ImportError as error:
    raise missing("cypcap", error) from error

__all__ = ["CompiledProgram", "Pcap", "compile", "create", "open_dead", "open_live", "open_offline"]

#: Types of time stamps that are not of the system's clock, as numbers (pcap/pcap.h).
_UNSYNCED = (4, 5)

_UNKNOWN_NETMASK = 0xFFFF_FFFF


def __getattr__(name: str) -> Any:
    return getattr(library, name)


class CompiledProgram(library.BpfProgram):  # type: ignore[misc]
    """A `BpfProgram` of cypcap's that was compiled from an expression.

    It is for packets as they are captured. `Pcap.setfilter` compiles the expression for the handle again.
    """

    def __init__(self, program: Program, optimize: bool | int, netmask: int | None) -> None:
        super().__init__([(step.code, step.jt, step.jf, step.k) for step in program])
        self.expression, self.optimize, self.netmask = str(program.expression), optimize, netmask


def compile(linktype: int, snaplen: int, filter_: str, optimize: bool, netmask: int) -> CompiledProgram:
    """cypcap's `compile`, for expressions that may hold terms of pcapext.

    >>> len(compile(1, 65535, "inner tcp port 80", True, 0)) > 100
    True
    """
    known = None if netmask == _UNKNOWN_NETMASK else netmask
    made = compiler.compile(filter_, linktype=int(linktype), snaplen=snaplen, netmask=known, optimize=bool(optimize), target="classic")
    return CompiledProgram(made, optimize, netmask)


def create(source: Any) -> Pcap:
    """cypcap's `create`."""
    return Pcap(library.create(source))


def open_live(device: Any, snaplen: int, promisc: bool, to_ms: float) -> Pcap:
    """cypcap's `open_live`; `to_ms` is in seconds, as it is there."""
    return Pcap(library.open_live(device, snaplen, promisc, to_ms))


def open_dead(linktype: int, snaplen: int, precision: Any = library.TstampPrecision.MICRO) -> Pcap:
    """cypcap's `open_dead`."""
    return Pcap(library.open_dead(linktype, snaplen, precision))


def open_offline(fname: Any, precision: Any = library.TstampPrecision.MICRO) -> Pcap:
    """cypcap's `open_offline`.

    >>> with open_offline("examples/tunnels.pcap") as pcap:
    ...     pcap.setfilter("encap gtpu and inner tcp port 80")
    ...     for header, data in pcap:
    ...         print(header.ts, header.len)
    ...         break
    1704067200.13 135
    """
    return Pcap(library.open_offline(fname, precision))


class Pcap(Checked):
    """A `Pcap` of cypcap's, with all that it has, whose filter may hold terms of pcapext."""

    _given_netmask: int | None = None
    _is_unsynced = False

    def __init__(self, pcap: Any) -> None:
        self._pcap = pcap
        self.path = pcap.source if pcap.type is library.PcapType.OFFLINE else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pcap, name)

    def __repr__(self) -> str:
        return repr(self._pcap)

    def __enter__(self) -> Pcap:
        return self

    def __exit__(self, *_: object) -> None:
        self._pcap.close()

    def compile(self, filter_: str, optimize: bool = True, netmask: int | None = None) -> CompiledProgram:
        """cypcap's `Pcap.compile`, for expressions that may hold terms of pcapext. A netmask that is not known is no error."""
        mask = self._mask(netmask, compiler.weaker(filter_, netmask=0) == filter_)
        return compile(self.linktype, self._pcap.snapshot(), filter_, optimize, _UNKNOWN_NETMASK if mask is None else mask)

    def setfilter(self, filter: Any, *, optimize: bool | int = True, netmask: int | None = None) -> None:
        """Set the filter: an expression; a program that `compile` made of one; a `Program`; or another `BpfProgram`, for libpcap."""
        if isinstance(filter, CompiledProgram):
            filter, optimize, netmask = filter.expression, filter.optimize, filter.netmask
        if isinstance(filter, library.BpfProgram):
            self._pcap.setfilter(filter)
            self.check_until(0, lambda data, wirelen: True)
            return
        if self._is_unsynced:
            raise CaptureError("the time stamps are not of the system's clock: what was captured before the filter could not be told")
        self._given_netmask = netmask
        self._set_filter(filter, optimize)

    def set_tstamp_type(self, tstamp_type: Any) -> None:
        """cypcap's `set_tstamp_type`. With a type that is not of the system's clock, filters cannot be set."""
        self._pcap.set_tstamp_type(tstamp_type)
        # Types that there are not libpcap leaves aside.
        self._is_unsynced = tstamp_type in _UNSYNCED and tstamp_type in self._pcap.list_tstamp_types()

    def set_pre_config(self, *, tstamp_type: Any = None, **settings: Any) -> None:
        """cypcap's `set_pre_config`."""
        if tstamp_type is not None:
            self.set_tstamp_type(tstamp_type)
        self._pcap.set_pre_config(**settings)

    def set_config(self, *, filter: Any = None, **settings: Any) -> None:
        """cypcap's `set_config`."""
        if filter is not None:
            self.setfilter(filter)
        self._pcap.set_config(**settings)

    # ---- What pcapext asks ----

    @property
    def linktype(self) -> int:
        """The DLT number of its packets."""
        return int(self._pcap.datalink())

    def fileno(self) -> int:
        """The descriptor that it reads from, which is cypcap's `get_selectable_fd`."""
        return int(self._pcap.get_selectable_fd())

    def _netmask(self, is_standard: bool) -> int | None:
        return self._mask(self._given_netmask, is_standard)

    def _mask(self, netmask: int | None, is_standard: bool) -> int | None:
        """The netmask that is given, or the interface's; None for an unknown one."""
        if netmask is None and self._pcap.type is library.PcapType.LIVE:
            try:
                netmask = library.lookupnet(self._pcap.source)[1]
            except library.Error:  # it has no address
                return None
            return network_mask(netmask.to_bytes(4, sys.byteorder), is_standard)
        return None if netmask == _UNKNOWN_NETMASK else netmask

    def _byteorder(self) -> str:
        return "<" if (sys.byteorder == "little") != bool(self._pcap.is_swapped()) else ">"

    def _set_library_filter(self, expression: str) -> None:
        self._pcap.setfilter(expression, netmask=_UNKNOWN_NETMASK if self._given_netmask is None else self._given_netmask)

    def _accepts_packet(self, header: Any, data: bytes, *_: object) -> bool:
        return self._accepts(self._earliest(header, data) if self._check.until else 0, data, header.len)

    def _earliest(self, header: Any, data: bytes) -> int:
        """The earliest that a packet's time can stand for, in ns since 1970."""
        if self._pcap.get_tstamp_precision() == library.TstampPrecision.MICRO:
            return int(header.ts * 1e9) - FLOAT_ERROR
        # `Pkthdr.ts` takes nanoseconds for microseconds (cypcap 0.6.3), and is up to 1000 s late; what it writes to a file is right.
        with open(os.memfd_create("packet"), "rb") as file:
            with self._pcap.dump_open(f"/proc/self/fd/{file.fileno()}") as dumper:
                dumper.dump(header, data)
            seconds, nanoseconds = struct.unpack_from("=II", file.read(), PCAP_HEADER)
        return int(seconds) * 1_000_000_000 + int(nanoseconds)

    # ---- Reading ----

    def __iter__(self) -> Pcap:
        return self

    def __next__(self) -> tuple[Any, Any]:
        while True:
            header, data = next(self._pcap)
            if header is None or self._accepts_packet(header, data):
                return header, data

    def dispatch(self, cnt: int, callback: Callable[[Any, bytes], Any]) -> None:
        """Call `callback(header, data)` for what is there, for at most `cnt` packets that match if that is above 0."""
        self._dispatch(self._pcap.dispatch, cnt, callback)

    def loop(self, cnt: int, callback: Callable[[Any, bytes], Any]) -> None:
        """Call `callback(header, data)` for `cnt` packets that match, or for all if it is not above 0."""
        self._loop(self._pcap.loop, cnt, callback)
