"""Packets on one line: when, what the innermost headers are, and how long it was.

In:  a packet of a capture, and the settings of the walk.
Out: a line in tcpdump's manner: time of day in the local zone, innermost addresses and ports, protocol, length on the wire.
"""

from __future__ import annotations

import time
from ipaddress import ip_address

from pcapext.capture import Packet
from pcapext.encapsulation import WalkSettings
from pcapext.engine.walk import dissect
from pcapext.flowkeys import FlowKeys
from pcapext.headers import ETHERTYPE_ARP, ETHERTYPE_IP, ETHERTYPE_IP6, HEADERS, WITH_PORTS

#: By EtherType: what tcpdump calls it, where the source address begins, and how long an address is.
_ADDRESSES = {ETHERTYPE_IP: ("IP", 12, 4), ETHERTYPE_IP6: ("IP6", 8, 16)}

_PROTOCOL_NAMES = {header.protocol: word for word, header in HEADERS.items() if header.protocol is not None and word != "carp"}


def summarize(packet: Packet, settings: WalkSettings | None = None) -> str:
    """The line of a packet, walked with `settings` or the usual ones."""
    keys = dissect(packet.data, packet.linktype, settings)
    tunnels = f", in {keys.depth} tunnel{'s' if keys.depth > 1 else ''}" if keys.depth else ""
    return f"{_time_of_day(packet.timestamp_ns)} {_innermost(bytes(packet.data), keys)}, length {packet.wirelen}{tunnels}"


def _time_of_day(timestamp_ns: int) -> str:
    seconds, nanoseconds = divmod(timestamp_ns, 1_000_000_000)
    try:
        local = time.localtime(seconds)
    except (OverflowError, OSError):  # A damaged file can hold a year that no calendar has.
        return "time unknown"
    return f"{local.tm_hour:02d}:{local.tm_min:02d}:{local.tm_sec:02d}.{nanoseconds // 1000:06d}"


def _innermost(data: bytes, keys: FlowKeys) -> str:
    """Protocol, addresses and ports of the innermost headers, as far as they are there."""
    if keys.nproto not in _ADDRESSES:
        return {0: "no network header", ETHERTYPE_ARP: "ARP"}.get(keys.nproto, f"EtherType {keys.nproto:#06x}")
    name, first, size = _ADDRESSES[keys.nproto]
    places = (keys.nhoff + first, keys.nhoff + first + size)
    if places[1] + size > len(data):
        return f"{name}, cut short"
    ends = [str(ip_address(data[place : place + size])) for place in places]
    if keys.thoff and keys.tproto in WITH_PORTS and keys.thoff + 4 <= len(data):
        ends = [f"{end}.{int.from_bytes(data[at : at + 2], 'big')}" for end, at in zip(ends, (keys.thoff, keys.thoff + 2), strict=True)]
    return f"{name} {ends[0]} > {ends[1]}: {_PROTOCOL_NAMES.get(keys.tproto, f'protocol {keys.tproto}')}"
