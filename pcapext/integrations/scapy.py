"""scapy's `sniff` and `AsyncSniffer`, whose filter may hold terms of pcapext.

In:  what scapy's own take; `filter` is an expression, or a `Program`.
Out: what scapy's own give. No packet that does not match is delivered, however early it came; errors of the filter are pcapext's.

Change one line of a script:

    from scapy.all import *
    from pcapext.integrations.scapy import AsyncSniffer, sniff

    sniff(iface="eth0", filter="inner tcp port 80", prn=lambda packet: packet.summary())

Who filters what:

- Interfaces: the kernel, on the packet socket that scapy reads, or that libpcap reads for it (`conf.use_pcap`). The filter is joined with
  `conf.except_filter`. The outermost VLAN tag is beside the packet there, and the filter knows; scapy puts it back.
- Captures (`offline`): pcapext, as they are read by scapy's own readers; no tcpdump is started. Packets are as scapy reads them, with
  their times and lengths on the wire. Lists of packets likewise.
- Sockets that are open (`opened_socket`), whose filter scapy takes no notice of: pcapext, when a packet is read from the socket. A filter
  that the socket has is left there.

`install` makes scapy's own functions take such filters. Nothing of scapy's is changed without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

from pcapext import compiler
from pcapext.attaching import attach
from pcapext.bpf import Program
from pcapext.errors import AttachError, CaptureError, FilterError, KernelLacksError, PcapextError
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.formats import NATIVE, dlt_of_linktype
from pcapext.integrations import missing
from pcapext.pcap_handles import Matches
from pcapext.places import EN10MB, LINKTYPE_BY_HATYPE
from pcapext.selection import Filter

try:
    import scapy.all  # noqa: F401  (all that scripts have with scapy.all: every layer, and the sockets of this platform)
    from scapy import sendrecv
    from scapy.arch.libpcap import _L2libpcapSocket
    from scapy.config import conf
    from scapy.data import MTU
    from scapy.interfaces import resolve_iface
    from scapy.packet import Packet
    from scapy.plist import PacketList
    from scapy.supersocket import IterSocket
    from scapy.utils import PcapNgReader, PcapReader, RawPcapNgReader, RawPcapReader
except ImportError as error:
    raise missing("scapy", error) from error

__all__ = ["AsyncSniffer", "install", "sniff", "uninstall"]

#: scapy's own, whatever `install` does: it makes the sockets, with `L2socket`, and reads packets from them.
_SCAPYS_RUN = sendrecv.AsyncSniffer._run
_SIGNATURE = inspect.signature(_SCAPYS_RUN)


class AsyncSniffer(sendrecv.AsyncSniffer):  # type: ignore[misc]
    """scapy's `AsyncSniffer`, with all that it takes and does, whose `filter` may hold terms of pcapext.

    A filter that is wrong for the interface is an error of `start` at once; scapy's own would tell in `join`.
    """

    def start(self) -> None:
        """Start to sniff, in a thread."""
        _check(_named(self, *self.args, **self.kwargs))
        super().start()

    def _run(self, *args: Any, **kwargs: Any) -> None:
        _run(self, *args, **kwargs)


def sniff(*args: Any, **kwargs: Any) -> Any:
    """scapy's `sniff`, with all that it takes and gives, whose `filter` may hold terms of pcapext.

    >>> packets = sniff(offline="examples/tunnels.pcap", filter="encap vxlan and inner icmp")
    >>> packets[0].summary()
    'Ether / IP / UDP / VXLAN / Ether / IP / ICMP 10.0.0.1 > 10.0.0.2 echo-request 0 / Raw'
    """
    sniffer = AsyncSniffer()
    sniffer._run(*args, **kwargs)
    return sniffer.results


# ---- scapy's own functions ----


class _Installation(AbstractContextManager["_Installation"]):
    """What ends with `uninstall`."""

    def __exit__(self, *_: object) -> None:
        uninstall()


def install() -> _Installation:
    """Have scapy's own `sniff`, `AsyncSniffer`, and what is made with them, take filters with terms of pcapext.

    It changes one method, `scapy.sendrecv.AsyncSniffer._run`, in the whole process, until `uninstall`, or for a `with` statement. Filters
    without such terms stay scapy's own affair. Doing it twice is doing it once. Sockets, and the functions that make their own to
    send and receive (`srp`), do not take such filters.

    >>> with install():
    ...     len(scapy.all.sniff(offline="examples/tunnels.pcap", filter="inner tcp port 80"))
    28
    """
    sendrecv.AsyncSniffer._run = _run_where_scapy_cannot
    return _Installation()


def uninstall() -> None:
    """Take back what `install` did. Sniffers that run go on."""
    sendrecv.AsyncSniffer._run = _SCAPYS_RUN


def _run_where_scapy_cannot(sniffer: Any, *args: Any, **kwargs: Any) -> None:
    filters = (kwargs.get("filter"), conf.except_filter)
    ours = any(isinstance(filter, Program) or any(word in (filter or "") for word in EXTENSION_WORDS) for filter in filters)
    (_run if ours else _SCAPYS_RUN)(sniffer, *args, **kwargs)


# ---- Sniffing ----


def _named(sniffer: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of `_SCAPYS_RUN` by their names."""
    arguments = _SIGNATURE.bind(sniffer, *args, **kwargs).arguments
    for name, parameter in _SIGNATURE.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def _run(sniffer: Any, *args: Any, **kwargs: Any) -> None:
    """`_SCAPYS_RUN`, with the filter in the hands of pcapext."""
    arguments = _named(sniffer, *args, **kwargs)
    live = _filter_of_interfaces(arguments)
    filter = arguments.pop("filter", None)
    if not (filter or live) or arguments.get("nofilter"):
        _SCAPYS_RUN(sniffer, *args, **kwargs)
        return
    _check(arguments | {"filter": filter})
    verdicts = _Verdicts(filter, sniffer) if filter else None
    with ExitStack() as opened:
        if verdicts:
            sockets = dict(_labelled(arguments.get("opened_socket")))
            for socket in sockets:
                _check_packets_of(socket, verdicts.filter, opened)
            for source, label in _captures(arguments.pop("offline", None)):
                reader = _reader(source, verdicts)
                opened.callback(_close, reader)
                sockets[reader] = label
            if sockets:
                arguments["opened_socket"] = sockets
        # For an empty list of captures scapy turns to an interface.
        arguments["L2socket"] = partial(_open, live or filter, arguments.get("L2socket"), opened)
        _SCAPYS_RUN(**arguments)
    if verdicts:
        verdicts.check()


class _Verdicts:
    """A filter on what scapy reads. An error in it ends the sniffing."""

    def __init__(self, filter: str | Program, sniffer: Any) -> None:
        self.filter = Filter(filter)
        self._sniffer = sniffer
        self._fault: PcapextError | None = None

    def accepts(self, linktype: int, byteorder: str, data: bytes, wirelen: int | None) -> bool:
        """Whether a packet is accepted: its link type as files have it, the byte order of the file, its bytes, its length on the wire."""
        try:
            return self.filter.accepts(dlt_of_linktype(linktype & 0xFFFF), byteorder, data, wirelen, is_only=False)
        except PcapextError as error:
            raise self.end(error) from error

    def end(self, error: PcapextError) -> EOFError:
        """The error to raise for an error: of any other scapy makes a warning, and goes on."""
        self._fault = error
        self._sniffer.continue_sniff = False
        return EOFError()

    def check(self) -> None:
        """Raise what was wrong, when the sniffing is over."""
        if self._fault:
            raise self._fault
        if self.filter.matchers:
            self.filter.check()


def _labelled(sockets: Any) -> Iterable[tuple[Any, Any]]:
    """Open sockets as `_SCAPYS_RUN` takes them, one or a list or a dictionary, each with what packets are said to be sniffed on."""
    match sockets:
        case None:
            return ()
        case list():
            return ((socket, f"socket{index}") for index, socket in enumerate(sockets))
        case dict():
            return sockets.items()
    return ((sockets, "socket0"),)


# ---- Interfaces ----


def _filter_of_interfaces(arguments: dict[str, Any]) -> str | Program | None:
    """The filter for interfaces, if there are any to sniff on: scapy's settings may leave out what it is to see nowhere."""
    filter: str | Program | None = arguments.get("filter")
    if arguments.get("iface") is None and any(arguments.get(name) is not None for name in ("offline", "opened_socket")):
        return None
    if not conf.except_filter:
        return filter
    if isinstance(filter, Program):
        raise FilterError("a Program cannot be joined with scapy's conf.except_filter: give the expression instead, or clear that")
    exceptions = f"not ({conf.except_filter})"
    return f"({filter}) and {exceptions}" if filter else exceptions


def _check(arguments: dict[str, Any]) -> None:
    """Raise what is wrong with a filter before anything is opened, where the link type of an interface is known before."""
    filter, given = _filter_of_interfaces(arguments), arguments.get("iface")
    if not isinstance(filter, str) or any(arguments.get(name) for name in ("L2socket", "monitor", "nofilter")):
        return
    for interface in given if isinstance(given, list | dict) else (given or conf.iface,):
        linktype = LINKTYPE_BY_HATYPE.get(resolve_iface(interface).type)
        # libpcap captures some other kinds of interfaces with headers of its own.
        if linktype == EN10MB or (linktype is not None and not conf.use_pcap):
            compiler.compile(filter, linktype=linktype)


def _open(filter: str | Program, chosen: Any, opened: ExitStack, *, type: int, iface: Any, **options: Any) -> Any:
    """A socket on an interface, as `_SCAPYS_RUN` would open it, with the filter attached; `opened` closes it."""
    make = chosen or resolve_iface(iface).l2listen()
    if "nofilter" in inspect.signature(make).parameters:
        options["nofilter"] = True
    elif inspect.isclass(make) and issubclass(make, _L2libpcapSocket):
        # Where this is ETH_P_ALL, it sets conf.except_filter, which may hold terms of pcapext. It has no other use for it.
        type = 0
    socket = make(type=type, iface=iface, **options)
    opened.callback(socket.close)
    _attach(filter, socket)
    return socket


def _attach(filter: str | Program, socket: Any) -> None:
    if not hasattr(socket, "pcap_fd"):
        try:
            attach(filter, getattr(socket, "ins", socket))
            return
        except KernelLacksError:
            pass  # a source says more of it, and checks its packets itself
    attach(filter, _Source(socket))


class _Source:
    """A socket of scapy's, a packet socket or one that has libpcap read packets, as a `pcapext.attaching.Source`."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._receive = socket.recv_raw
        self._handle = getattr(socket, "pcap_fd", None)
        self._until: int | None = 0
        self._matches: Matches = lambda data, wirelen: True

    @property
    def linktype(self) -> int:
        """The DLT number of its packets."""
        if self._handle is not None:
            return int(self._handle.datalink())
        hatype = self._socket.ins.getsockname()[3]
        if hatype not in LINKTYPE_BY_HATYPE:
            raise AttachError(f"{self._socket.iface}: its link-layer header (ARPHRD type {hatype}) is of no link type of libpcap's")
        return LINKTYPE_BY_HATYPE[hatype]

    def fileno(self) -> int:
        """The descriptor that it reads."""
        return int(self._socket.fileno())

    def check_until(self, time_ns: int | None, matches: Matches) -> tuple[int | None, Matches]:
        """Give packets only if `matches(data, wirelen)`, up to the first one with a stamp of `time_ns` or later; all if it is None."""
        told = self._until, self._matches
        self._until, self._matches = time_ns, matches
        if time_ns == 0:
            self.release()
        else:
            self._socket.recv_raw = self._checked
        return told

    def clear_filter(self) -> None:
        """Have libpcap accept everything."""
        if self._handle is not None:
            self._handle.setfilter("")

    def release(self) -> None:
        """End the checking."""
        self._socket.__dict__.pop("recv_raw", None)

    def _checked(self, *args: Any) -> Any:
        received = self._receive(*args)
        data = received[1]
        if not data:
            return received
        wirelen = len(data)
        if self._handle is not None:
            header = self._handle.header.contents
            wirelen = header.len
            if self._until is not None and header.ts.tv_sec * 1_000_000_000 + header.ts.tv_usec * 1000 >= self._until:
                self.release()
                return received
        return received if self._matches(data, wirelen) else (None, None, None)


# ---- Sockets that are open ----


def _check_packets_of(socket: Any, selection: Filter, opened: ExitStack) -> None:
    """Have pcapext check what is read from a socket of the user's, as long as `opened` is."""
    shown = type(socket).__name__
    # A socket for layer 3 reads from the sockets that it sends on, too.
    if not hasattr(socket, "recv_raw") or hasattr(socket, "send_socks"):
        raise AttachError(f"an open {shown} cannot be filtered, expected a socket for layer 2")
    if "recv_raw" in socket.__dict__:
        raise AttachError(f"the open {shown} is filtered by another sniffer")
    source = _Source(socket)
    try:
        linktype = source.linktype
    except (AttributeError, IndexError, OSError):  # it has no packet socket
        raise AttachError(f"the link type of the open {shown} is not known, and it cannot be filtered") from None
    selection.matcher_in(linktype, NATIVE, is_only=True)
    opened.callback(source.release)
    source.check_until(None, partial(selection.accepts, linktype, NATIVE))


# ---- Captures ----


def _captures(offline: Any) -> Iterable[tuple[Any, Any]]:
    """Captures as `_SCAPYS_RUN` takes them, each with what its packets are said to be sniffed on."""
    if offline is None:
        return ()
    if isinstance(offline, dict):
        return offline.items()
    if isinstance(offline, list) and all(isinstance(element, str) for element in offline):
        return ((name, name) for name in offline)
    return ((offline, offline),)


def _reader(source: Any, verdicts: _Verdicts) -> Any:
    if isinstance(source, Packet | PacketList | list):
        return _Packets(source, verdicts)
    reader = _CheckedPcapReader(source)
    reader.verdicts = verdicts
    if not isinstance(reader, RawPcapNgReader):
        try:
            verdicts.filter.matcher_in(dlt_of_linktype(reader.linktype & 0xFFFF), reader.endian, is_only=True)
        except PcapextError:
            reader.close()
            raise
    return reader


def _close(reader: Any) -> None:
    # scapy closes what it has read to the end, and a compressed file cannot be closed twice.
    if isinstance(reader, RawPcapReader) and not reader.f.closed:
        reader.close()


class _Pcap(RawPcapReader):  # type: ignore[misc]
    """What reads the records of a pcap file for `PcapReader`: those that are accepted."""

    verdicts: _Verdicts

    def _read_packet(self, size: int = MTU) -> Any:
        while True:
            data, metadata = found = super()._read_packet(size)
            if self.verdicts.accepts(self.linktype, self.endian, data, metadata.wirelen):
                return found


class _PcapNg(RawPcapNgReader):  # type: ignore[misc]
    """The same for a pcapng file, where each packet has its own link type."""

    verdicts: _Verdicts

    def _read_packet(self, size: int = MTU) -> Any:
        while True:
            data, metadata = found = super()._read_packet(size)
            if self.verdicts.accepts(metadata.linktype, self.endian, data, metadata.wirelen):
                return found


# scapy's readers make packets of what the class behind them reads.
class _CheckedPcapReader(PcapReader, _Pcap):  # type: ignore[misc]
    """scapy's reader of pcap files. Called with a pcapng file, it gives a `_CheckedPcapNgReader`."""


class _CheckedPcapNgReader(PcapNgReader, _PcapNg):  # type: ignore[misc]
    """scapy's reader of pcapng files."""

    alternative = _CheckedPcapReader


class _Packets(IterSocket):  # type: ignore[misc]
    """A list of packets that is read like a socket. Bare bytes are Ethernet, as they are for scapy's own filter."""

    def __init__(self, packets: Any, verdicts: _Verdicts) -> None:
        super().__init__(packets)
        self._verdicts = verdicts

    def recv(self, *_: Any, **options: Any) -> Any:
        for given in self.iter:
            data = bytes(given)
            layer = conf.l2types.num2layer[EN10MB] if isinstance(given, bytes) else type(given)
            linktype = conf.l2types.layer2num.get(layer)
            if linktype is None:
                words = f"a list of packets: there is no link type for one that begins with {layer.__name__}"
                raise self._verdicts.end(CaptureError(words))
            wirelen = getattr(given, "wirelen", None)
            if self._verdicts.accepts(linktype, NATIVE, data, wirelen):
                packet = layer(data, **options)
                packet.time = getattr(given, "time", packet.time)
                packet.wirelen = len(data) if wirelen is None else wirelen
                return packet
        raise EOFError
