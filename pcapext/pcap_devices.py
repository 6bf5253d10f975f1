"""The interfaces that libpcap can capture on, and what each has to choose from.

In:  nothing, or the name of an interface.
Out: frozen descriptions. Errors are `LibpcapError` with libpcap's words; what libpcap allocates is freed on every path.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6
from typing import Any

from pcapext.errors import LibpcapError, printable
from pcapext.pcap_bridge import ERRBUF_SIZE, libpcap, string
from pcapext.pcap_live import create, open_live

#: Bits of an interface's flags (PCAP_IF_LOOPBACK and its like, pcap/pcap.h), and the values of its connection status.
_LOOPBACK, _UP, _RUNNING, _WIRELESS, _CONNECTION = 0x01, 0x02, 0x04, 0x08, 0x30
_CONNECTIONS = {0x00: "unknown", 0x10: "connected", 0x20: "disconnected", 0x30: "not applicable"}

#: The family of link-layer addresses on Linux (AF_PACKET).
_AF_PACKET = 17


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface, with what belongs to it: IP addresses, or link-layer addresses as text; None where there is none.

    `destination` is the other end of a point-to-point interface.
    """

    address: IPv4Address | IPv6Address | str | None
    netmask: IPv4Address | IPv6Address | str | None
    broadcast: IPv4Address | IPv6Address | str | None
    destination: IPv4Address | IPv6Address | str | None


@dataclass(frozen=True, slots=True)
class Device:
    """An interface to capture on. `connection` is "connected", "disconnected", "unknown" or "not applicable"."""

    name: str
    description: str | None
    addresses: tuple[Address, ...]
    is_up: bool
    is_running: bool
    is_loopback: bool
    is_wireless: bool
    connection: str


def devices() -> tuple[Device, ...]:
    """All interfaces that libpcap can capture on, in its order: what is up and connected comes first. It needs no privilege.

    >>> [device.name for device in devices() if device.is_loopback]
    ['lo']
    """
    ffi, lib = libpcap().ffi, libpcap().lib
    found, errbuf = ffi.new("pcap_if_t **"), ffi.new("char[]", ERRBUF_SIZE)
    if lib.pcap_findalldevs(found, errbuf) != 0:
        raise LibpcapError(string(errbuf))
    try:
        return tuple(_device(entry) for entry in _chain(found[0]))
    finally:
        lib.pcap_freealldevs(found[0])


def _device(entry: Any) -> Device:
    flags = entry.flags
    return Device(
        name=string(entry.name),
        description=string(entry.description) if entry.description else None,
        addresses=tuple(
            Address(_address(one.addr), _address(one.netmask), _address(one.broadaddr), _address(one.dstaddr))
            for one in _chain(entry.addresses)
        ),
        is_up=bool(flags & _UP),
        is_running=bool(flags & _RUNNING),
        is_loopback=bool(flags & _LOOPBACK),
        is_wireless=bool(flags & _WIRELESS),
        connection=_CONNECTIONS[flags & _CONNECTION],
    )


def _chain(entry: Any) -> Iterator[Any]:
    while entry:
        yield entry
        entry = entry.next


def _address(sockaddr: Any) -> IPv4Address | IPv6Address | str | None:
    """A `struct sockaddr`; None for none, and for one of a family that is not known."""
    if not sockaddr:
        return None
    ffi = libpcap().ffi

    def octets(start: int, count: int) -> bytes:
        return bytes(ffi.buffer(ffi.cast("unsigned char *", sockaddr) + start, count))

    # The BSDs have a length before the family.
    family = octets(1, 1)[0] if sys.platform == "darwin" or "bsd" in sys.platform else int.from_bytes(octets(0, 2), sys.byteorder)
    if family == AF_INET:
        return IPv4Address(octets(4, 4))
    if family == AF_INET6:
        return IPv6Address(octets(8, 16))
    if family == _AF_PACKET and sys.platform == "linux":
        length = octets(11, 1)[0]
        return octets(12, length).hex(":") if length else None
    return None


def netmask(device: str) -> int | None:
    """The netmask of an interface's first IPv4 network, as `pcapext.compile` takes it for `ip broadcast`; None where it has none.

    >>> hex(netmask("lo"))
    '0xff000000'
    """
    for one in _named(device).addresses:
        if isinstance(one.netmask, IPv4Address):
            return int(one.netmask)
    return None


def _named(device: str) -> Device:
    for found in devices():
        if found.name == device:
            return found
    raise LibpcapError(f"{printable(device)}: No such device exists")


def timestamp_types(device: str) -> tuple[str, ...]:
    """The types of time stamps that an interface has, by libpcap's names, such as "host" and "adapter"; () where there is no choice."""
    ffi, lib = libpcap().ffi, libpcap().lib
    pcap, found = create(device), ffi.new("int **")
    try:
        count = lib.pcap_list_tstamp_types(pcap, found)
        if count < 0:
            raise LibpcapError(f"{printable(device)}: {string(lib.pcap_geterr(pcap))}")
        names = [lib.pcap_tstamp_type_val_to_name(found[0][index]) for index in range(count)]
        lib.pcap_free_tstamp_types(found[0])
        return tuple(string(name) for name in names if name)
    finally:
        lib.pcap_activate(pcap)  # libpcap 1.10.3 leaves a descriptor open of a handle that was not activated
        lib.pcap_close(pcap)


def linktypes(device: str) -> tuple[int, ...]:
    """The link types that an interface has to choose from, as DLT numbers, the one that it has without a choice first.

    They are known of an open handle alone, so this takes the privilege to capture.
    """
    with open_live(device, promiscuous=False) as handle:
        return (handle.linktype, *(number for number in handle.linktypes() if number != handle.linktype))
