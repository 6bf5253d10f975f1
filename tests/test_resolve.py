"""What a scoped term means: what libpcap's term means to the packet that is left without its outer headers (LANGUAGE.md 3).

The packets and their flow keys come from packets.py, which knows nothing of the walk; libpcap judges the packets that are left.
"""

from __future__ import annotations

import operator
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address
from itertools import product
from random import Random
from typing import Any

import pytest
from filters import SYNTAX_ERROR, VOCABULARY, compiled, nodes, placeless, words
from hypothesis import given
from hypothesis import strategies as st
from packets import EN10MB, Generated, packets

from pcapext import names, pcap_bridge
from pcapext.errors import FilterError, Span
from pcapext.extension import Extension, MixedRelation, Term
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.headers import HEADERS
from pcapext.mark import mark
from pcapext.parser import parse
from pcapext.resolve import resolve
from pcapext.syntax import (
    Access,
    And,
    Arithmetic,
    Binary,
    Cast,
    KeyValue,
    Length,
    Negate,
    Not,
    Number,
    Or,
    Protocol,
    Qualified,
    Relation,
)

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Absent(Exception):
    """A header or bytes that a packet does not have: the relation that asks for them is false."""


def holds(condition: object, packet: Generated) -> bool:
    """Whether a resolved condition holds for a packet, by the packet's known keys."""
    match condition:
        case And(left, right):
            return holds(left, packet) and holds(right, packet)
        case Or(left, right):
            return holds(left, packet) or holds(right, packet)
        case Not(operand):
            return not holds(operand, packet)
        case Relation(comparison, left, right):
            try:
                return bool(_OPERATORS[comparison](number(left, packet), number(right, packet)))
            except Absent:
                return False
    raise AssertionError(f"not resolved: {condition}")


def number(arithmetic: Arithmetic, packet: Generated) -> int:
    match arithmetic:
        case Number(value):
            return value
        case Length():
            return len(packet.data)
        case KeyValue("inner", key):
            return int(getattr(packet.keys, key))
        case Negate(operand):
            return -number(operand, packet) & 0xFFFF_FFFF
        case Binary(sign, left, right):
            return int(_OPERATORS[sign](number(left, packet), number(right, packet))) & 0xFFFF_FFFF
        case Access("inner", protocol, index, size):
            header = HEADERS[protocol]
            base = getattr(packet.keys, header.base)
            absent = {"lhoff": 0xFFFF_FFFF, "thoff": 0, "poff": 0}.get(header.base)
            if base == absent or header.ethertype not in (None, packet.keys.nproto) or header.protocol not in (None, packet.keys.tproto):
                raise Absent
            start = base + number(index, packet)
            if start + size > len(packet.data):
                raise Absent
            return int.from_bytes(packet.data[start : start + size], "big")
    raise AssertionError(f"not resolved: {arithmetic}")


def extensions(text: str) -> tuple[Extension, ...]:
    return resolve(text, parse(text), netmask=0xFFFF_FF00)


def condition(text: str) -> Any:
    """The condition of a filter that is all pcapext's."""
    (term,) = extensions(text)
    assert isinstance(term, Term)
    assert term.span == Span(0, len(text))
    return term.condition


def marked(text: str) -> str:
    """What libpcap is given, with the same number for every marker."""
    result = mark(text, extensions(text))
    shown = result.text
    for marker in (*result.terms, *result.relations, *result.numbers):
        shown = shown.replace(str(marker), "N")
    return shown


# --- against libpcap


def is_plain(packet: Generated) -> bool:
    """Whether libpcap finds the innermost transport header too: it follows no extension headers and looks at no later fragment."""
    keys, data = packet.keys, packet.data
    match keys.nproto:
        case 0x0800:
            return data[keys.nhoff + 9] == keys.tproto and keys.thoff != 0
        case 0x86DD:
            return data[keys.nhoff + 6] == keys.tproto
    return True


def varied(packet: Generated, random: Random) -> Generated:
    """The packet with other addresses, ports or an IP protocol that no generated one has, and else the same headers."""
    data, keys = bytearray(packet.data), packet.keys
    if keys.lhoff < len(data):
        ends = data[keys.lhoff : keys.lhoff + 6], data[keys.lhoff + 6 : keys.lhoff + 12]
        data[keys.lhoff : keys.lhoff + 6] = random.choice((*ends, b"\xff" * 6, b"\x01\x00\x5e\x00\x00\x05"))
    if keys.tproto in (33, 59, 89, 253) and is_plain(packet):
        protocol = random.choice((9, 103, 112, keys.tproto))
        data[keys.nhoff + (9 if keys.nproto == 0x0800 else 6)] = protocol
        keys = replace(keys, tproto=protocol)
    match random.randrange(3):
        case 0 if keys.nproto in _ADDRESSES:  # both ends the same
            source, destination, size = _ADDRESSES[keys.nproto]
            data[keys.nhoff + source : keys.nhoff + source + size] = data[keys.nhoff + destination : keys.nhoff + destination + size]
            if keys.tproto in (6, 17, 132):
                data[keys.thoff : keys.thoff + 2] = data[keys.thoff + 2 : keys.thoff + 4]
        case 1 if keys.nproto == 0x0800:  # to a group, to all in a network
            data[keys.nhoff + 16 : keys.nhoff + 20] = random.choice((b"\xe0\x00\x00\x05", b"\x0a\x01\x02\xff", b"\x0a\x01\x02\x00"))
        case 1 if keys.nproto == 0x86DD:
            data[keys.nhoff + 24] = 0xFF
    assert len(data) == len(packet.data)
    return replace(packet, data=bytes(data), steps=((0, keys),))


#: Where an address of the source and one of the destination stand, and their size, by EtherType.
_ADDRESSES = {0x0800: (12, 16, 4), 0x86DD: (8, 24, 16), 0x0806: (14, 24, 4), 0x8035: (14, 24, 4)}

_random = Random(11)
PACKETS = [varied(packet, _random) for packet in packets(450, seed=11, odd=False) if packet.keys.nproto not in (0, 0x8847)]
PLAIN = [packet for packet in PACKETS if is_plain(packet)]


def judged(text: str, packet: Generated) -> bool | None:
    """libpcap's verdict on what is left of a packet; None where it has no meaning for what kind of link layer is left."""
    data, linktype = packet.decapsulated
    program = compiled(text, linktype)
    return None if isinstance(program, str) else pcap_bridge.run_filter(program, data) != 0


def values(packet: Generated) -> dict[str, str]:
    """Values for a filter, most of them such that something of this packet matches."""
    data, keys = packet.data, packet.keys
    found = {
        "PORT": "80",
        "BYTE": "0",
        "MAC": "2:0:0:0:0:1",
        "SOURCE": "2:0:0:0:0:1",
        "IP4": "10.0.0.1",
        "TO4": "10.0.0.1",
        "NET4": "10.0.0.0",
        "NUM4": "1",
        "IP6": "fe80::1",
        "NET6": "fe80::",
    }
    if keys.nproto in _ADDRESSES:
        source, destination, size = _ADDRESSES[keys.nproto]
        address = data[keys.nhoff + source :][:size]
        version, net = ("4", 2) if size == 4 else ("6", 6)
        found[f"IP{version}"] = str(ip_address(address))
        found[f"TO{version}"] = str(ip_address(data[keys.nhoff + destination :][:size]))
        found[f"NET{version}"] = str(ip_address(address[:net] + bytes(size - net)))
        found["NUM4"] = str(int.from_bytes(address[:4], "big"))
    if keys.thoff:
        found |= {name: str(int.from_bytes(data[keys.thoff + at : keys.thoff + 4], "big")) for name, at in (("PORT", 2), ("BYTE", 3))}
    if keys.lhoff < len(data):
        found |= {"MAC": data[keys.lhoff :][:6].hex(":"), "SOURCE": data[keys.lhoff + 6 :][:6].hex(":")}
    return found


def _alternatives(text: str) -> list[str]:
    return [term.strip() for line in text.strip().split("\n") for term in line.split(" | ")]


#: Terms, with words in capitals for values. Each means the same to libpcap on an Ethernet frame, on IP and on a packet of another kind.
TERMS = _alternatives("""
    ip | ip6 | arp | rarp | tcp | udp | sctp | icmp | icmp6 | igmp | igrp | pim | vrrp | carp | esp
    proto 17 | ip proto 6 | ip6 proto 17 | proto \\tcp | ip proto ( \\tcp or 17 or 1 ) | ip6 proto \\udp | not proto 6 and not 17
    ether proto 0x0806 | ether proto ( \\ip or \\rarp or 0x88cc )
    host IP4 | host IP6 | src host IP4 | dst IP4 | dst IP6 | ip host IP4 | ip6 host IP6 | ip src and dst host IP4 | ip6 dst host IP6
    arp host IP4 | arp dst host TO4 | rarp src host IP4 | src and dst host ( IP4 or 10.0.0.1 ) | host IP4 or IP6
    net 10 | net 10.1 | net NET4/16 | src net NET4 mask 255.255.0.0 | ip src net NET4/16 | net NET6/48 | ip6 dst net NET6/48 | net ::/0
    net 0.0.0.0/0 | src net 0.0.0.0/1 | not dst net NET4/16 | net 0xe0 | ip host NUM4 | src host NUM4
    port PORT | tcp port PORT | udp dst port PORT | sctp port PORT | src port PORT | src and dst port PORT | port \\domain | tcp port \\http
    portrange 1-PORT | udp src portrange 1024-PORT | tcp dst portrange PORT-65535 | portrange PORT-1 | port PORT or 80
    port ( PORT or 80 and not 53 )
    tcp dst port ( 80 or PORT ) | udp port 53 or ( tcp port PORT ) or PORT
    ip broadcast | ip6 multicast
    ip [ 8 ] > 32 | ip [ 6 : 2 ] & 0x1fff = 0 | ip6 [ 7 ] = 64 | icmp [ icmptype ] = icmp-echo | icmp6 [ 3 ] = BYTE
    arp [ 6 : 2 ] = 1 | rarp [ 0 : 2 ] = 1 | igmp [ 0 ] != 5
    ip [ 0 ] & 0xf << 2 + 3 > 5 | ip [ 2 : 2 ] - ( ip [ 0 ] & 0xf ) * 4 >= ip [ 8 ] | 5 > 3 | 5 < 3
""")  # fmt: skip
IN_FRAMES = _alternatives("""
    ether host MAC | ether dst MAC | link src SOURCE | ether broadcast | broadcast | ether multicast | multicast | ether [ 0 ] & 1 = 0
    ether src and dst host MAC | not ether dst ff:ff:ff:ff:ff:ff and ether [ 0 ] >= 0
""")  # fmt: skip
#: libpcap looks at the bytes of TCP, UDP and SCTP on IPv4 only.
ON_IPV4 = _alternatives("""
    tcp [ 13 ] & 2 != 0 | udp [ 2 : 2 ] = PORT | sctp [ 0 : 2 ] != PORT | tcp [ tcpflags ] & ( tcp-syn + tcp-ack ) = tcp-ack
    tcp [ 0 : 2 ] > tcp [ 2 : 2 ] or udp [ 4 : 2 ] > 20 | tcp [ ip [ 0 ] & 0xf ] != 0
""")  # fmt: skip


def filled(text: str, packet: Generated) -> str:
    """The text with values in place of the words in capitals."""
    known = values(packet)
    return re.sub("[A-Z]+[46]?", lambda word: known[word[0]], text)


def agrees(text: str, packets: Iterable[Generated], at_least: int = 100) -> bool:
    """Whether we say of each packet what libpcap says of the packet that is left, and the term holds for some.

    Packets are tried until there are enough and the term held for one.
    """
    held = False
    for count, packet in enumerate(packets):
        if held and count >= at_least:
            break
        term = filled(text, packet)
        expected = judged(term, packet)
        assert expected is not None, term
        assert holds(condition(f"inner ( {term} )"), packet) == expected, (term, packet.layers)
        held |= expected
    return held


@pytest.mark.parametrize("text", TERMS)
def test_terms_mean_what_libpcap_means(text: str) -> None:
    assert agrees(text, PLAIN) or text == "5 < 3"


def test_ip_multicast() -> None:
    """Newer libpcap takes 240.0.0.0/4 out of what is multicast."""
    assert agrees("ip multicast", [packet for packet in PLAIN if packet.data[packet.keys.nhoff + 16 :][:1] < b"\xf0"])


@pytest.mark.parametrize("text", IN_FRAMES)
def test_ethernet_terms(text: str) -> None:
    """They ask about the frame that the innermost network header stands in; in a tunnel without one they are false."""
    framed = [packet for packet in PLAIN if packet.decapsulated[1] == EN10MB]
    assert agrees(text, framed)
    for packet in PLAIN:
        if packet not in framed:
            assert not holds(condition(f"inner ( {filled(text, packet)} )"), packet)


@pytest.mark.parametrize("text", ON_IPV4)
def test_bytes_of_transport_headers(text: str) -> None:
    """As libpcap's on IPv4; they are there on IPv6 and behind extension headers too."""
    assert agrees(text, [packet for packet in PLAIN if packet.keys.nproto == 0x0800])
    for packet in PACKETS:
        if packet.keys.tproto == 6 and packet.keys.thoff:
            flags = packet.data[packet.keys.thoff + 13]
            assert holds(condition(f"inner tcp[13] = {flags}"), packet)
            assert not holds(condition(f"inner tcp[13] = {flags ^ 1}"), packet)


def test_payload() -> None:
    seen = 0
    for packet in PACKETS:
        data = packet.data[packet.keys.poff :]
        if packet.keys.poff and len(data) >= 4:
            seen += 1
            assert holds(condition(f"payload[0:4] = {int.from_bytes(data[:4], 'big')} and payload[3] = {data[3]}"), packet)
        for absent in (f"payload[{len(data)}] >= 0", f"payload[{max(0, len(data) - 1)}:2] >= 0"):
            assert not holds(condition(absent), packet)
    assert seen > 100


@pytest.mark.parametrize(
    "text", ["ah", "ip proto 51", "proto 44", "proto 60", "ip6 proto 0", "ip6 proto 43", "ip6 proto 44", "ip6 proto 51 or ah"]
)
def test_protocols_that_the_walk_steps_over(text: str) -> None:
    """`tproto` is never one of them: the IP header itself is asked, and what follows a fragment header, as libpcap does."""
    assert agrees(text, PACKETS)


def test_whole_filters_mean_what_libpcap_means() -> None:
    """Terms put together at random, with values that inherit qualifiers; each filter once with `inner` at every term."""
    random = Random(1)
    verdicts: Counter[bool] = Counter()
    for _ in range(300):
        text = together(random, 4)
        verdicts += Counter(agrees(text, [packet]) for packet in random.sample(PLAIN, 3))
        term = filled(text, random.choice(PLAIN))
        whole, each = condition(f"inner ( {term} )"), condition(with_inner_everywhere(term))
        assert placeless(whole) == placeless(each), term
    assert min(verdicts.values()) > 100


_INHERITING = ("tcp port 1", "port PORT", "src or dst host IP4", "ip src host IP4", "net NET4/16", "proto 17", "udp dst port PORT")


def together(random: Random, depth: int) -> str:
    """A filter of several terms."""
    connective = random.choice(("and", "or"))
    match random.randrange(6) if depth else 5:
        case 0:
            return f"( {together(random, depth - 1)} )"
        case 1:
            return f"not ( {together(random, depth - 1)} )"
        case 2 | 3:
            return f"{together(random, depth - 1)} {connective} {together(random, depth - 1)}"
        case 4:
            term = random.choice(_INHERITING)
            value = term.split()[-1]
            more = random.choice(
                (value, f"not {value}", f"( {value} or {value} )", f"( arp ) or {value}", f"( udp port 53 or 54 ) and not {value}")
            )
            return f"{term} {connective} {more}"
    return random.choice([term for term in TERMS if term not in ("5 > 3", "5 < 3")])


def with_inner_everywhere(text: str) -> str:
    """The filter with `inner` before everything that can have it."""
    starts = {node.span.start for node in nodes(parse(text)) if isinstance(node, Qualified | Protocol | Cast | Access)}
    return "".join(f"inner {character}" if at in starts else character for at, character in enumerate(text))


# --- inheritance


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner tcp port 80 or 443", "(inner tcp port 80) or (inner tcp port 443)"),
        ("inner tcp port (80 or not 443)", "(inner tcp port 80) or not (inner tcp port 443)"),
        ("inner (tcp port 80 or 443)", "(inner tcp port 80) or (inner tcp port 443)"),
        ("inner (tcp port 80 or (udp port 53) or 443)", "(inner tcp port 80) or (inner udp port 53) or (inner tcp port 443)"),
        ("inner (tcp port 80 or (udp port 53 or 54))", "(inner tcp port 80) or ((inner udp port 53) or (inner udp port 54))"),
        ("inner (tcp port 80) or inner 80", "(inner tcp port 80) or inner host 80"),
        ("inner src 10.0.0.1 and (10.0.0.2)", "(inner src host 10.0.0.1) and (inner src host 10.0.0.2)"),
        ("inner 10.0.0.1 or 10.0.0.2", "(inner host 10.0.0.1) or (inner host 10.0.0.2)"),
        ("inner not 10.0.0.1", "not (inner host 10.0.0.1)"),
        ("tproto 6 or 17", "(inner tproto 6) or (inner tproto 17)"),
        (r"inner tproto tcp or \udp", "(tproto 6) or (tproto 17)"),
        (r"nproto ip or \arp", "(nproto 0x0800) or (nproto 0x0806)"),
        ("outer tproto udp or 6", "(outer tproto 17) or (outer tproto 6)"),
        ("inner (inner tcp or udp)", "inner tcp or inner udp"),
        ("inner (tproto tcp and poff > 3)", "inner tproto 6 and inner poff > 3"),
        ("outer (ip and payload[0] = thoff)", "outer ip and outer payload[0] = outer thoff"),
        ("outer (udp port 53 or (tcp) or 54)", "outer udp port 53 or outer tcp or outer udp port 54"),
        ("inner (not (tcp or udp))", "not (inner tcp or inner udp)"),
        ("encap", "depth > 0"),
        ("payload[poff] = nhoff", "inner payload[inner poff] = inner nhoff"),
    ],
)
def test_scope_and_qualifiers_are_inherited(text: str, expected: str) -> None:
    assert placeless(condition(text)) == placeless(condition(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A term with qualifiers of its own starts afresh: it is libpcap's.
        ("inner tcp port 80 or udp port 53", "(greater N) or udp port 53"),
        ("inner tcp port 80 or (udp port 53) or 443", "(greater N) or (udp port 53) or (greater N)"),
        ("tcp port 80 or (inner udp port 53) or 443", "tcp port 80 or (greater N) or 443"),
        ("tcp port 80 or inner udp port 53 and 443", "tcp port 80 or (greater N) and (greater N)"),
        ("tproto tcp or udp", "(greater N) or udp"),
        ("vlan 10 and inner tcp and ip host 10.0.0.1 or 10.0.0.2", "vlan 10 and (greater N) and ip host 10.0.0.1 or 10.0.0.2"),
        ("arp and not (inner tcp or inner udp)", "arp and (greater N)"),
        ("not (arp and inner tcp)", "not (arp and (greater N))"),
        # A relation is libpcap's for the bytes that are.
        ("poff > 54", "(greater N)"),
        ("len - poff > 0", "(greater N)"),
        ("ip[2:2] = poff - 14", "(greater N and ip[2:2] = (1 * N))"),
        ("link[thoff + 13] & 2 != 0 or arp", "(greater N and link[(1 * N)] & 2 != 0) or arp"),
        ("inner tcp[0:2] + ip[0] > tproto * 3", "(greater N and (1 * N) + ip[0] > (1 * N))"),
        ("tcp[13] = 2 and ip[0] = 5 and inner ip", "tcp[13] = 2 and ip[0] = 5 and (greater N)"),
        ("5 = 5 and inner ip", "5 = 5 and (greater N)"),
        ("len > 5 and -len < 3 and inner ip", "len > 5 and -len < 3 and (greater N)"),
    ],
)
def test_what_is_left_to_libpcap(text: str, expected: str) -> None:
    assert marked(text) == expected
    assert not isinstance(compiled(marked(text).replace("N", "5")), str)


def test_standard_filters_have_no_extensions() -> None:
    random = Random(2)
    texts = [" ".join(words(random, EN10MB)) for _ in range(300)]
    found = [text for text in texts if not isinstance(compiled(text), str)]
    assert len(found) > 150
    assert all(extensions(text) == () for text in found)


def test_extensions_stand_in_the_order_of_the_text() -> None:
    text = "inner tcp and (arp or poff > 3) and link[thoff] + ip[nhoff] = 2 or not inner udp"
    found = extensions(text)
    assert [text[extension.span.start : extension.span.end] for extension in found] == [
        *("inner tcp", "poff > 3", "link[thoff] + ip[nhoff] = 2", "not inner udp"),
    ]
    mixed = found[2]
    assert isinstance(mixed, MixedRelation)
    assert [text[operand.span.start : operand.span.end] for operand in mixed.operands] == ["thoff", "nhoff"]


# --- names


def test_every_address_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = tuple(map(ip_address, ("10.0.0.1", "fe80::1", "10.0.0.2")))
    monkeypatch.setattr(names, "host_addresses", lambda name: addresses)
    assert placeless(condition("inner src host many")) == placeless(condition("inner src host (10.0.0.1 or fe80::1 or 10.0.0.2)"))
    assert placeless(condition("inner ip host many")) == placeless(condition("inner ip host (10.0.0.1 or 10.0.0.2)"))
    assert placeless(condition("inner ip6 dst host many")) == placeless(condition("inner ip6 dst host fe80::1"))
    monkeypatch.setattr(names, "host_addresses", lambda name: addresses[:1])
    with pytest.raises(FilterError, match=r"unknown host 'one' for specified address family\n"):
        condition("inner ip6 host one")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tproto tcp", "tproto 6"),
        ("tproto icmp6", "tproto 58"),
        ("tproto ah", "tproto 51"),
        ("tproto igrp", "tproto 9"),
        ("tproto gre", "tproto 47"),
        (r"tproto \sctp", "tproto 132"),
        ("nproto ip6", "nproto 0x86dd"),
        ("nproto rarp", "nproto 0x8035"),
        ("nproto atalk", "nproto 0x809b"),
        (r"inner proto \udp", "inner proto 17"),
        (r"inner ether proto \arp", "inner ether proto 0x0806"),
        ("inner port domain", "inner port 53"),
        ("inner tcp port http", "inner tcp port 80"),
        ("inner host localhost", "inner host 127.0.0.1"),
        ("inner host 0x0a000001", "inner host 10.0.0.1"),
        ("inner net 10", "inner net 10.0.0.0/8"),
        ("inner portrange 90-80", "inner portrange 80-90"),
        ("inner portrange 80-80", "inner port 80"),
        ("inner ether proto 0x600", "nproto 0x600"),
    ],
)
def test_names(text: str, expected: str) -> None:
    assert placeless(condition(text)) == placeless(condition(expected))


# --- errors

_PROTOCOLS = [
    "",
    "ip",
    "ip6",
    "arp",
    "rarp",
    "tcp",
    "udp",
    "sctp",
    "icmp",
    "icmp6",
    "igmp",
    "pim",
    "vrrp",
    "carp",
    "ah",
    "esp",
    "ether",
    "link",
]
_HEADS = [
    " ".join(filter(None, words))
    for words in product(_PROTOCOLS, ["", "src", "src or dst"], ["", "host", "net", "port", "portrange", "proto"])
    if words[1] or words[2]
]
_VALUES = (
    *(
        "80",
        "0",
        "70000",
        "10.0.0.1",
        "10.1",
        "10.0.0.0/8",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0.0 mask 255.0.0.0",
        "10.0.0.1 mask 255.0.0.0",
    ),
    *("1.2.3.400", "::1", "::/0", "fe80::/16", "fe80::1/16", "::1/129", "1::99999.1.1.1", "2:0:0:0:0:1", "$1f"),
    *(r"\http", r"\domain", r"\tcp", r"\ip"),
)


def complaint(text: str) -> str | None:
    try:
        extensions(text)
    except FilterError as error:
        return error.message
    return None


@pytest.mark.parametrize("value", _VALUES)
def test_refuses_what_libpcap_refuses(value: str) -> None:
    """In its words, where there is one thing wrong. With two, libpcap tends to see that of the value and we that of the qualifiers."""
    same = 0
    for head in _HEADS:
        if value.startswith("\\") and head.split()[-1] not in ("net", "port", "portrange", "proto"):
            continue  # the name of a host: the DNS would be asked
        theirs, ours = compiled(f"{head} {value}"), complaint(f"inner {head} {value}")
        if theirs == SYNTAX_ERROR:
            assert ours is not None
        elif head in ("ether proto", "link proto") and value in ("80", "0"):
            assert ours == f"'ether proto {value}' has no meaning after 'inner'"  # an LLC service access point
        else:
            assert isinstance(theirs, str) == (ours is not None), (head, value, theirs, ours)
            same += ours is not None and ours == theirs
            if "ether" not in head and "link" not in head and head.split()[-1] in ("host", "net"):
                assert ours is None or ours == theirs, head
    assert same > 20


# --- any text

_WORDS = [*VOCABULARY, *EXTENSION_WORDS, *EXTENSION_WORDS, "inner", "vxlan", "gre", "\\domain"]


@pytest.fixture
def no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host has an address, and nobody is asked for one."""

    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def check(text: str) -> bool:
    """Whether a text has extensions that can be marked; the error, if not, has its place in the text."""
    try:
        found = extensions(text)
    except FilterError as error:
        span = error.span
        shown = str(error)
    else:
        mark(text, found)
        return True
    assert span is not None
    assert span.end <= len(text)
    assert shown.count("\n") == 2
    return False


@pytest.mark.usefixtures("no_dns")
@given(st.lists(st.one_of(st.sampled_from(_WORDS), st.text(max_size=3))).map(" ".join))
def test_any_text_has_extensions_or_one_error(text: str) -> None:
    check(text)


@pytest.mark.usefixtures("no_dns")
def test_filters_with_extensions_anywhere() -> None:
    """Filters of libpcap's with words of pcapext put in: many are right."""
    random = Random(3)
    outcomes: Counter[bool] = Counter()
    for _ in range(1000):
        text = " ".join(words(random, EN10MB)) or "tcp"
        if isinstance(compiled(text), str):
            continue
        starts = {node.span.start for node in nodes(parse(text)) if hasattr(node, "span") and random.random() < 0.3}
        word = random.choice(("inner", "inner", "outer", "poff +", "inner tcp or", "inner not"))
        outcomes[check("".join(f"{word} {character}" if at in starts else character for at, character in enumerate(text)))] += 1
    assert min(outcomes[True], outcomes[False]) > 150


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("inner tcp port 1" + " or 2" * 10_000, 1),
        ("arp or " * 5000 + "inner tcp", 1),
        ("inner tcp and arp or " * 3000 + "inner udp", 3001),
        ("inner tcp or " * 5000 + "arp", 1),
        ("not " * 10_000 + "inner tcp", 1),
        ("(" * 10_000 + "inner tcp" + ")" * 10_000, 1),
        ("(" * 5000 + "inner tcp" + ") or arp" * 5000, 1),
        ("inner (" * 5000 + "tcp port 1 or 2" + " or udp)" * 5000, 1),
        ("(inner tcp and (arp or " * 3000 + "udp" + "))" * 3000, 3000),
        ("ip[poff] = 1 or " * 3000 + "arp", 3000),
        ("inner tcp port (" + "(" * 5000 + "80" + ")" * 5000 + ")", 1),
    ],
    ids=lambda value: str(value)[:24],
)
def test_deep_trees(text: str, count: int) -> None:
    """Far deeper than Python's stack: nothing on the way goes down a tree by recursion, its end included."""
    tree = parse(text)
    found = resolve(text, tree)
    assert len(found) == count
    assert mark(text, found).text.count("(greater ") == count
    del tree, found


@pytest.mark.usefixtures("no_dns")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner host " + "x" * 100_000, "unknown host 'xxxx"),
        ("inner port " + "x" * 500, "unknown port 'xxxx"),
        ("inner port " + "x" * 100_000, ""),
        ("tproto " + "x" * 100_000, "unknown ip proto 'xxxx"),
        ("encap " + "x" * 100_000, "unknown encapsulation 'xxxx"),
        ("inner net " + "1." * 50_000, "unknown network '1.1.1."),
        ("inner (arp or (" * 5000 + "outer tcp" + "))" * 5000, "'outer' has no meaning inside 'inner ( ... )'"),
        ("inner tcp and (udp or 80) and " * 500 + "arp", "'80' stands alone"),
        ("inner host \\\0", "character 1 "),
        ("inner host \\\ud800", "character 1 "),
        ("inner net \\\x1b[31m", "unknown network '?[31m'"),
    ],
    ids=lambda value: str(value)[:16].encode("unicode_escape").decode(),
)
def test_errors_of_long_and_odd_texts(text: str, message: str) -> None:
    with pytest.raises(FilterError) as caught:
        extensions(text)
    first, shown, caret = str(caught.value).split("\n")
    assert first.startswith(message)
    assert max(map(len, (first, shown, caret))) < 300
    assert first.isprintable()
