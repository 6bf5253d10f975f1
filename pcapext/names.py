"""What names and literals in a filter stand for, in numbers: the same as libpcap's.

In:  the text of a name or literal, as the lexer of libpcap takes it from an expression.
Out: addresses, masks, ports and protocol numbers. Numbers of more than one byte are in host byte order.

The rules are those of libpcap's gencode.c and nametoaddr.c, and so are the words of the errors. Names of services,
protocols, networks and Ethernet hosts are looked up by libpcap itself. Every function raises `FilterError`, which tells what is
wrong with the name; the place in the expression is the caller's to add.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pcapext import bpf, pcap_bridge
from pcapext.errors import FilterError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

#: libpcap cuts its messages to this many bytes (PCAP_ERRBUF_SIZE, less the NUL).
_MESSAGE_BYTES = 255

_IPV4_MASK = 0xFFFF_FFFF
_PORTS = 0xFFFF

#: The protocols that a port can belong to, by their numbers.
_TRANSPORTS = {6: "tcp", 17: "udp", 132: "sctp"}

#: What the scanner takes for a name behind a backslash (scanner.l).
_WORD = re.compile(r"[^ !()\n\t]+")

#: DLT_IPV4: packets that begin with an IPv4 header. Where its protocol is, and the source port behind it, X bytes on.
_IPV4_LINKTYPE = 228
_PROTOCOL_FIELD = (bpf.LD_B_ABS, 9)
_SOURCE_PORT = (bpf.LD_H_IND, 0)

#: The literal forms of Ethernet addresses that the scanner knows (scanner.l, MAC).
_ETHERNET_FORMS = re.compile(
    r"[0-9a-f]{1,2}(?:(?::[0-9a-f]{1,2}){5}|(?:-[0-9a-f]{1,2}){5}|(?:\.[0-9a-f]{1,2}){5})|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}|[0-9a-f]{12}",
    re.IGNORECASE,
)


def _error(message: str) -> FilterError:
    return FilterError(message.encode(errors="replace")[:_MESSAGE_BYTES].decode(errors="ignore"))


# --- addresses


def host_addresses(name: str) -> tuple[IPv4Address | IPv6Address, ...]:
    """All addresses of a host, in the system's order, each once.

    >>> host_addresses("localhost")[-1].is_loopback
    True
    """
    import socket
    from ipaddress import IPv4Address, IPv6Address

    text = pcap_bridge.c_text(name)
    try:
        # nametoaddr.c, pcap_nametoaddrinfo: the hints that libpcap gives. As bytes, because Python would encode a
        # name for the DNS and refuse some before the system has seen them.
        found = socket.getaddrinfo(text, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except OSError:
        raise _error(f"unknown host '{name}'") from None
    addresses: dict[IPv4Address | IPv6Address, None] = {}
    for family, _, _, _, address in found:
        if family == socket.AF_INET:
            addresses[IPv4Address(address[0])] = None
        elif family == socket.AF_INET6:
            addresses[IPv6Address(address[0])] = None
    return tuple(addresses)


def ipv4_literal(text: str) -> tuple[int, int]:
    """The number of an address of one to four parts, and how many bits of an address that is.

    Every part is decimal, whatever it begins with (nametoaddr.c, __pcap_atoin).

    >>> ipv4_literal("10.1")
    (2561, 16)
    """
    parts = text.split(".")
    value = 0
    for part in parts:
        digits = part.lstrip("0") or "0"
        if not (digits.isdecimal() and digits.isascii() and len(digits) <= 3 and int(digits) <= 255) or len(parts) > 4:
            raise _error(f"invalid IPv4 address '{text}'")
        value = value << 8 | int(digits)
    return value, 8 * len(parts)


def ipv4_network(text: str, prefix: int | None = None, mask: str | None = None) -> tuple[int, int]:
    """Address and mask of "10.1", "10.1/16" or "10.1 mask 255.255.0.0"; bits that are not written are 0.

    >>> [hex(number) for number in ipv4_network("10.1", 16)]
    ['0xa010000', '0xffff0000']
    """
    address, bits = _promoted(text)
    match prefix, mask:
        case None, None:
            return address, _mask(bits)
        case None, str():
            bitmask, _ = _promoted(mask)
            written = f"{text} mask {mask}"
        case int(), None:
            if prefix > 32:
                raise _error("mask length must be <= 32")
            bitmask, written = _mask(prefix), f"{text}/{prefix}"
        case _:
            raise ValueError("either a prefix or a mask")
    if address & ~bitmask:
        raise _error(f'non-network bits set in "{written}"')
    return address, bitmask


def _promoted(text: str) -> tuple[int, int]:
    value, bits = ipv4_literal(text)
    return value << 32 - bits, bits


def _mask(bits: int) -> int:
    return _IPV4_MASK << 32 - bits & _IPV4_MASK


def number_network(number: int) -> tuple[int, int]:
    """Address and mask of a network that is a bare number, `net 10`: its first byte that is not 0 comes first.

    >>> [hex(number) for number in number_network(10)]
    ['0xa000000', '0xff000000']
    """
    mask = _IPV4_MASK
    while number and not number & 0xFF00_0000:
        number, mask = number << 8, mask << 8 & _IPV4_MASK
    return number, mask


def net_name(name: str) -> tuple[int, int]:
    """Address and mask of a network by its name (/etc/networks).

    One with all four parts has all bits in its mask, and glibc gives every one with four.
    """
    number = pcap_bridge.network_by_name(name)
    if number is None:
        raise _error(f"unknown network '{name}'")
    return number_network(number)


def ipv6_network(text: str, prefix: int = 128) -> tuple[int, int]:
    """Address and mask of "2001:db8::" and a prefix length, as numbers of 128 bits.

    >>> [hex(number >> 96) for number in ipv6_network("2001:db8::", 32)]
    ['0x20010db8', '0xffffffff']
    """
    import socket

    try:
        address = int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
    except (OSError, ValueError):
        raise _error(f"bogus IPv6 address {text}") from None
    if prefix > 128:
        raise _error("mask length must be <= 128")
    mask = (1 << 128) - (1 << 128 - prefix)
    if address & ~mask:
        raise _error(f'non-network bits set in "{text}/{prefix}"')
    return address, mask


def ethernet_address(text: str) -> bytes:
    """The six bytes of an Ethernet address, in any form that libpcap takes.

    >>> ethernet_address("0:50:56:c0:0:8") == ethernet_address("0050.56c0.0008")
    True
    """
    if not _ETHERNET_FORMS.fullmatch(text):
        raise _error(f"bogus ethernet address {text}")
    groups = re.split("[-:.]", text)
    return bytes.fromhex("".join(group.zfill(2) for group in groups))


def ethernet_host(name: str) -> bytes:
    """The Ethernet address of a host by its name (/etc/ethers)."""
    address = pcap_bridge.ethernet_by_name(name)
    if address is None:
        raise _error(f"unknown ether host '{name}'")
    return address


# --- ports


def number_port(number: int) -> tuple[int, int]:
    """The range of a port that is a number, `port 80` as `portrange 80`: from itself to itself."""
    if number > _PORTS:
        raise _error(f"illegal port number {number} > {_PORTS}")
    return number, number


def named_ports(name: str, kind: str = "port", protocol: str | None = None) -> tuple[int, int, str | None]:
    """The lowest and the highest port of a name, and the protocol it belongs to, None if to each.

    `kind` is "port", where the name is that of a service, or "portrange", where it is "80-90" or two names. `protocol` is
    the one that the term asks for: "tcp", "udp", "sctp" or None.

    >>> named_ports("90-80", "portrange", "tcp")
    (80, 90, 'tcp')
    """
    if not _WORD.fullmatch(name):
        raise _error(f"unknown port '{name}'")
    # libpcap is asked, because what is a range differs from one version to the next: "010-020" is 8 to 16 in 1.10.6
    # and 10 to 20 before. A backslash makes any word a name.
    program = pcap_bridge.compile_expression(f"{protocol or ''} src {kind} \\{name}", _IPV4_LINKTYPE, optimize=False)
    compared: dict[tuple[int, int], set[int]] = {_PROTOCOL_FIELD: set(), _SOURCE_PORT: set()}
    field = None
    for instruction in program:
        if instruction.code in (bpf.JEQ_K, bpf.JGE_K, bpf.JGT_K) and field in compared:
            compared[field].add(instruction.k)
        else:
            field = instruction.code, instruction.k
    (number, *others), ports = compared[_PROTOCOL_FIELD], compared[_SOURCE_PORT]
    return min(ports), max(ports), None if others else _TRANSPORTS[number]


# --- protocols


def ip_protocol(name: str) -> int:
    """The number of an IP protocol (/etc/protocols).

    >>> ip_protocol("gre")
    47
    """
    number = pcap_bridge.protocol_by_name(name)
    if number is None:
        raise _error(f"unknown ip proto '{name}'")
    return number


def ethertype(name: str) -> int:
    """The EtherType of a network protocol, one of the dozen that libpcap has names for.

    libpcap takes the names of LLC access points in its place (`iso`, `stp`, `ipx`, `netbeui`); here that is an error.

    >>> hex(ethertype("ip6"))
    '0x86dd'
    """
    number = pcap_bridge.ethertype_by_name(name)
    if number is None:
        if pcap_bridge.llc_by_name(name) is not None:
            raise _error(f"'{name}' is an LLC protocol and has no EtherType")
        raise _error(f"unknown ether proto '{name}'")
    return number
