"""Places that a filter can be attached to: packet sockets, raw IPv4 sockets, and handles that capture.

In:  what a caller names a place by: a descriptor, an object with one, a `Source`.
Out: a `Spot`: how packets are shown to a filter there. What is no such place is an `AttachError` that says what it is.
"""

from __future__ import annotations

import errno
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pcapext.errors import AttachError, PcapextError
from pcapext.pcap_bridge import shown_linktype
from pcapext.pcap_handles import Matches
from pcapext.sockets import Sight, sight

if TYPE_CHECKING:
    from pcapext.bpf import Program
    from pcapext.ebpf import EbpfProgram

EN10MB, RAW, LINUX_SLL, LINUX_SLL2 = 1, 12, 113, 276

#: The link types of frames on a SOCK_RAW packet socket, with the ARPHRD types of their interfaces (include/uapi/linux/if_arp.h), as
#: libpcap has them (pcap-linux.c, map_arphrd_to_dlt). PPP and raw IP, which it captures cooked, have no header there.
HATYPES: dict[int, tuple[int, ...]] = {
    EN10MB: (1, 23, 772),  # Ethernet, Metricom, loopback
    RAW: (15, 256, 257, 258, 259, 264, 512, 518, 519, 768, 776, 0xFFFE),  # DLCI, SLIP, PPP, raw HDLC, raw IP, tunnels, none
    2: (2,),  # EN3MB
    4: (4,),  # PRONET
    5: (5,),  # CHAOS
    6: (6, 800),  # IEEE802
    10: (774,),  # FDDI
    104: (513,),  # C_HDLC
    105: (801,),  # IEEE802_11
    107: (770,),  # FRELAY
    114: (773,),  # LTALK
    119: (802,),  # PRISM_HEADER
    127: (803,),  # IEEE802_11_RADIO
    129: (7,),  # ARCNET_LINUX
    202: (3,),  # AX25_KISS
    224: (784, 785, 786, 787),  # FC_2
    227: (280,),  # CAN_SOCKETCAN
    230: (804,),  # IEEE802_15_4_NOFCS
    271: (826,),  # VSOCK
}
LINKTYPE_BY_HATYPE = {hatype: linktype for linktype, hatypes in HATYPES.items() for hatype in hatypes}


class Source(Protocol):
    """Whatever reads packets through libpcap, and lets itself be told to check them."""

    @property
    def linktype(self) -> int:
        """The DLT number of its packets."""

    def fileno(self) -> int:
        """The descriptor that it captures on (`pcap_fileno`)."""

    def check_until(self, time_ns: int | None, matches: Matches) -> tuple[int | None, Matches]:
        """From now on give packets only if `matches(data, wirelen)`: until the first one with a stamp of `time_ns` (ns since 1970) or
        later, for ever if that is None. It takes the place of what was told before, which is returned. The stamps are those of the
        system's clock: a source with others has to check until it has given all that was captured when this was called.
        """

    def clear_filter(self) -> None:
        """Have libpcap accept everything (`pcap_setfilter`). After a filter is set, it filters what comes next a second time itself."""


@dataclass(frozen=True, slots=True)
class Spot:
    """How packets are shown to filters at a place.

    `linktypes` are those that a program may be for, `linktype` the one that an expression is compiled for. `made_up`: without the header
    that libpcap makes up. `unbound`: from interfaces of all kinds. `reason`: why the kernel cannot filter there, if it cannot.
    """

    shown: str
    linktypes: tuple[int, ...]
    made_up: bool = False
    unbound: bool = False
    is_packet_socket: bool = True
    reason: str | None = None

    @property
    def linktype(self) -> int:
        return self.linktypes[0]

    def __str__(self) -> str:
        return self.shown


def descriptor_of(place: object) -> int:
    """The number of a place's descriptor, -1 for one that is closed."""
    if isinstance(place, int) and not isinstance(place, bool):
        return place
    fileno = getattr(place, "fileno", None)
    if not callable(fileno):
        raise AttachError(f"the place is of type {type(place).__name__}, expected a socket, a descriptor or a handle")
    try:
        number = fileno()
    except (ValueError, OSError, PcapextError):  # what closed files and handles say
        return -1
    if not isinstance(number, int):
        raise AttachError(f"fileno() of the {type(place).__name__} is {number!r}, expected a descriptor")
    return number


def source_of(place: object) -> Source | None:
    return place if hasattr(place, "check_until") else None  # type: ignore[return-value]


def spot_of(descriptor: int, source: Source | None) -> Spot:
    """What the kernel says of a descriptor, and a source of its packets."""
    if sys.platform != "linux":
        if source is None:
            raise AttachError(f"a socket can be filtered on Linux only, and this is {sys.platform}; libpcap's handles can be everywhere")
        return Spot("capture", (source.linktype,), is_packet_socket=False, reason=f"on {sys.platform} it is not set in the kernel")
    try:
        seen = sight(descriptor)
    except OSError as error:
        if error.errno == errno.ENOTSOCK and source is not None:
            return Spot("capture", (source.linktype,), is_packet_socket=False, reason="what it reads from is no packet socket")
        if descriptor < 0:
            raise AttachError("the place is closed") from None
        words = {errno.EBADF: "it is closed", errno.ENOTSOCK: "it is no socket"}
        raise AttachError(f"descriptor {descriptor}: {words.get(error.errno or 0, error.strerror)}") from None
    if source is not None:
        return _spot_of_source(seen, source.linktype)
    if seen.ring:
        raise AttachError(f"{seen}: it has a ring buffer, which only its owner can read; attach the filter to the handle that owns it")
    match seen.family, seen.type:
        case socket.AF_PACKET, socket.SOCK_DGRAM:
            return Spot(str(seen), (LINUX_SLL, LINUX_SLL2), made_up=True)
        case socket.AF_PACKET, socket.SOCK_RAW if not seen.interface:
            return Spot(str(seen), (EN10MB, *(linktype for linktype in HATYPES if linktype != EN10MB)), unbound=True)
        case socket.AF_PACKET, socket.SOCK_RAW if seen.hatype in LINKTYPE_BY_HATYPE:
            return Spot(str(seen), (LINKTYPE_BY_HATYPE[seen.hatype],))
        case socket.AF_PACKET, socket.SOCK_RAW:
            header = f"its link-layer header (ARPHRD type {seen.hatype}) is of no link type of libpcap's"
            raise AttachError(f"{seen}: {header}; a SOCK_DGRAM socket has no such header")
        case socket.AF_INET, socket.SOCK_RAW:
            return Spot(str(seen), (RAW,))
    raise AttachError(f"{seen}: no filter for packets can be attached to it, expected a packet socket or a raw IPv4 socket")


def _spot_of_source(seen: Sight, linktype: int) -> Spot:
    if seen.family != socket.AF_PACKET:
        return Spot("capture", (linktype,), is_packet_socket=False, reason="what it reads from is no packet socket")
    cooked = seen.type == socket.SOCK_DGRAM
    if cooked and linktype not in (LINUX_SLL, LINUX_SLL2):
        return Spot(
            f"capture on {seen.interface}", (linktype,), reason=f"the kernel does not show the headers of {shown_linktype(linktype)}"
        )
    return Spot(f"capture on {seen.interface or 'all interfaces'}", (linktype,), made_up=cooked)


def check_linktype(program: Program | EbpfProgram, spot: Spot) -> None:
    if program.linktype not in spot.linktypes:
        names = "one of an interface" if spot.unbound else " or ".join(map(shown_linktype, spot.linktypes))
        raise AttachError(f"{spot}: the program is for link type {shown_linktype(program.linktype)}, expected {names}")
