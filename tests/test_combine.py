"""Filters put together from their terms, against libpcap's whole programs; and long lists at `optimize=2`, which are compiled so."""

from __future__ import annotations

import re
import struct
from ipaddress import ip_address
from random import Random

import pytest
from bpf_oracles import libpcap_run_packed, packed
from filters import words
from graphs import EFFORT, evaluate, steered_packet
from oracle import Refused, libpcap_compile

from benchmarks.__main__ import hosts
from pcapext import FilterError, Program, compile, pcap_bridge
from pcapext.bpf import LD_LEN
from pcapext.combine import combine, terms_apart
from pcapext.lift import lift
from pcapext.machine import run
from pcapext.parser import parse

EN10MB, IEEE802_11_RADIO = 1, 127
SNAPLEN = 262144


def apart(expression: str, linktype: int = EN10MB) -> tuple[str, ...] | None:
    terms = terms_apart(parse(expression), expression)
    return None if terms is None else tuple(terms.values())


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("tcp", ("tcp",)),
        ("tcp port 80 or 443 and not 22", ("tcp port 80", "tcp port 443", "tcp port 22")),
        ("src host (10.0.0.1 or not 10.0.0.2) or 10.0.0.3", ("src host 10.0.0.1", "src host 10.0.0.2", "src host 10.0.0.3")),
        ("port 80 or (host 10.0.0.1 and 10.0.0.2) or 443", ("port 80", "host 10.0.0.1", "host 10.0.0.2", "port 443")),
        ("ip[2:2] > 100 and len < 60 or less 80", ("ip[2:2] > 100", "len < 60", "less 80")),
        ("ether multicast or ip broadcast", ("ether multicast", "ip broadcast")),
    ],
)
def test_terms(expression: str, terms: tuple[str, ...]) -> None:
    assert apart(expression) == terms


@pytest.mark.parametrize(
    "term", ["vlan", "vlan 3", "mpls", "mpls 4", "pppoed", "pppoes", "pppoes 2", "geneve", "vxlan", "vxlan 5", "lane", "llc", "inbound"]
)
@pytest.mark.parametrize("expression", ["{} and tcp", "tcp or not ({})", "host 10.0.0.1 and (tcp or {})"])
def test_terms_that_may_change_what_others_mean(term: str, expression: str) -> None:
    assert apart(expression.format(term)) is None


def test_random_filters() -> None:
    """libpcap's verdicts, with its M[] cleared at the begin, on packets that go all ways through its program, and on pieces of them."""
    tried = accepted = 0
    for seed in range(250 * EFFORT):
        rng = Random(f"combine {seed}")
        expression = " ".join(words(rng, EN10MB))
        try:
            whole = libpcap_compile(expression, EN10MB)
            tree = parse(expression)
        except (Refused, FilterError):
            continue
        terms = terms_apart(tree, expression)
        if terms is None or "protochain" in expression:
            continue
        tried += 1
        cfg = combine(tree, {span: lift(libpcap_compile(term, EN10MB)) for span, term in terms.items()}, SNAPLEN)
        for _ in range(6):
            packet = steered_packet(whole, rng)
            for data in (packet, packet[: rng.randrange(len(packet) + 1)]):
                verdict = libpcap_run_packed(packed(whole), data, len(packet))
                assert evaluate(cfg, data, len(packet)) == verdict, (expression, data.hex())
                accepted += verdict > 0
    assert tried > 80
    assert accepted > 100


# Long lists.


def listed(kind: str, count: int) -> tuple[list[str], str]:
    """So many values of a kind, `net` or `port` among them, and the list of them."""
    rng = Random(f"{kind} {count}")
    match kind.split()[-1]:
        case "net":
            values = [f"{value.rpartition('.')[0]}.0/24" for value in hosts(count).split(" or ")]
        case "port":
            values = [str(number) for number in rng.sample(range(1, 65536, 2), count)]
        case _ if "ip6" in kind:
            values = [str(ip_address((0x20010DB8 << 96) + rng.randrange(0, 1 << 64, 2))) for _ in range(count)]
        case _:
            values = hosts(count).split(" or ")
    return values, f"{kind} {' or '.join(values)}"


ETHERNET = bytes.fromhex("020000000001020000000002")


def ipv4(source: bytes, destination: bytes, ports: tuple[int, int], protocol: int = 6, fragment: int = 0) -> bytes:
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, fragment, 64, protocol, 0, source, destination)
    return ETHERNET + b"\x08\x00" + header + struct.pack(">HH", *ports) + bytes(8)


def ipv6(source: bytes, destination: bytes, ports: tuple[int, int]) -> bytes:
    return (
        ETHERNET + b"\x86\xdd" + struct.pack(">IHBB16s16s", 6 << 28, 20, 6, 64, source, destination) + struct.pack(">HH", *ports) + bytes(4)
    )


def arp(source: bytes, destination: bytes, ethertype: int = 0x806) -> bytes:
    return ETHERNET + struct.pack(">HHHBBH", ethertype, 1, 0x800, 6, 4, 1) + ETHERNET[:6] + source + ETHERNET[6:] + destination


def packets_with(value: str) -> list[bytes]:
    """Packets that have a value of a list at every place, with neighbours of it, and packets that do not."""
    if value.isdigit():
        number, none = int(value), bytes(4)
        ports = [(number, 7), (7, number), (number - 1, number + 1), (number + 1, 0), (0, 0)]
        made = [ipv4(none, none, each, protocol) for each in ports for protocol in (6, 17, 132, 1)]
        return [*made, ipv4(none, none, ports[0], 6, 7), *(ipv6(bytes(16), bytes(16), each) for each in ports)]
    address = ip_address(value.partition("/")[0])
    inside = (int(address) + 9).to_bytes(len(address.packed), "big")
    others = [(int(address) + more).to_bytes(len(address.packed), "big") for more in (-1, 256)]
    nothing = bytes(len(address.packed))
    pairs = [(address.packed, nothing), (nothing, inside), (nothing, address.packed), *((each, each) for each in others)]
    if address.version == 6:
        return [ipv6(*pair, (1, 2)) for pair in pairs]
    return [frame for pair in pairs for frame in (ipv4(*pair, (1, 2)), arp(*pair), arp(*pair, 0x8035), ipv6(bytes(16), bytes(16), (1, 2)))]


FORMS = ("{}", "tcp and not ({}) and less 1000")
LISTS = [(kind, form, count) for kind in ("host", "ip6 src host", "net", "port") for form in FORMS for count in (2, 10, 100)]
LISTS += [("ip host", "{}", 400), ("host", "{}", 400), ("host", FORMS[1], 400), ("net", FORMS[1], 400), ("tcp dst port", "{}", 400)]
#: What libpcap's optimizer is not asked to do.
NOT_OPTIMIZED = [("host", 400), ("net", 400), ("tcp dst port", 400)]


@pytest.mark.parametrize(("kind", "form", "count"), LISTS)
def test_verdicts_of_lists(kind: str, form: str, count: int) -> None:
    """Those of libpcap's programs in libpcap's interpreter, on whole packets and on all that is left of them when they are cut.

    Where libpcap's optimizer puts tests in another order, cut packets can have other verdicts: then it decides.
    """
    values, text = listed(kind, count)
    expression = form.format(text)
    plain = packed(libpcap_compile(expression, EN10MB))
    theirs = plain if (kind, count) in NOT_OPTIMIZED else packed(libpcap_compile(expression, EN10MB, True))
    ours = packed(compile(expression, optimize=2))
    verdicts = set()
    for value in {values[0], values[-1], *Random(count).sample(values, min(count, 3))}:
        for packet in packets_with(value):
            for length in range(len(packet) + 1):
                data = packet[:length]
                found = libpcap_run_packed(ours, data, len(packet)), libpcap_run_packed(theirs, data, len(packet))
                assert found[0] == found[1], (value, data.hex())
                verdicts.add(found[0])
            assert found[0] == libpcap_run_packed(plain, packet, len(packet))
    assert verdicts == {0, SNAPLEN}


def all_ways(program: Program) -> int:
    """The instructions on the longest way, counted from the first instruction on."""
    executed = [1] + [0] * (len(program) - 1)
    for index, instruction in enumerate(program):
        for target in instruction.targets(index) or ([index + 1] if instruction.code not in (6, 22) else []):
            executed[target] = max(executed[target], executed[index] + 1)
    return max(executed)


@pytest.mark.parametrize(
    ("kind", "length", "longest"),
    [("host", 2600, 40), ("net", 2600, 50), ("tcp port", 2600, 50), ("tcp dst port", 1350, 30)],
)
def test_a_thousand(kind: str, length: int, longest: int) -> None:
    values, text = listed(kind, 1000)
    program = compile(text, optimize=2)
    assert len(program) <= length
    assert all_ways(program) <= longest
    assert program.kernel_refusal() is None
    rng = Random(kind)
    results = [run(program, packet) for value in rng.sample(values, 20) for packet in packets_with(value)]
    assert max(result.executed for result in results) <= longest
    assert {result.value for result in results} == {0, SNAPLEN}


def test_a_thousand_hosts_beside_libpcap() -> None:
    """Every one of them is found, no other address is, and libpcap takes more than a thousand instructions."""
    values, _ = listed("ip host", 1000)
    expression = " or ".join(f"ip host {value}" for value in values)
    ours, theirs = compile(expression, optimize=2), compile(expression)
    nothing = bytes(4)
    for value in values:
        address = ip_address(value).packed
        assert ours.matches(ipv4(address, nothing, (1, 2)))
        assert ours.matches(ipv4(nothing, address, (1, 2)))
        neighbour = (int.from_bytes(address, "big") + 1).to_bytes(4, "big")  # no two of them are next to each other
        assert not ours.matches(ipv4(neighbour, neighbour, (1, 2)))
    miss = ipv4(nothing, nothing, (1, 2))
    assert run(theirs, miss).executed > 1000
    assert run(ours, miss).executed <= 40


@pytest.mark.parametrize("count", [2, 3, 5, 8, 12, 20, 60, 120])
@pytest.mark.parametrize("kind", ["host", "ip host", "src net", "port", "tcp dst port"])
def test_the_rule(kind: str, count: int) -> None:
    """No packet executes more than by libpcap's program, or the longest way is at most half of its."""
    values, text = listed(kind, count)
    ours, theirs = compile(text, optimize=2), compile(text)
    if 2 * all_ways(ours) <= all_ways(theirs):
        return
    assert all_ways(ours) <= all_ways(theirs)
    assert count <= 20
    for value in values:
        for packet in packets_with(value):
            found, expected = run(ours, packet), run(theirs, packet)
            assert found.value == expected.value
            assert found.executed <= expected.executed


def test_lists_behind_terms_that_move_offsets() -> None:
    """They are compiled whole, since the terms mean something else there."""
    values, text = listed("host", 340)
    ours = compile(f"vlan 7 and ({text})", optimize=2)
    packet = ipv4(ip_address(values[99]).packed, bytes(4), (1, 2))
    tagged = packet[:12] + b"\x81\x00\x00\x07" + packet[12:]
    assert [ours.matches(each) for each in (packet, tagged, tagged[:15] + b"\x08" + tagged[16:])] == [False, True, False]


def test_lists_where_headers_vary() -> None:
    """libpcap looks for the end of the first header before all terms, which can reject what a term alone would accept."""
    _, text = listed("host", 120)
    expression = f"less 4 or {text}"
    assert pcap_bridge.exceeds_optimizer(expression, IEEE802_11_RADIO)
    ours = compile(expression, linktype=IEEE802_11_RADIO, optimize=2)
    theirs = libpcap_compile(expression, IEEE802_11_RADIO)
    rng = Random(127)
    packets = [steered_packet(theirs, rng) for _ in range(20)] + [bytes(length) for length in range(8)]
    for packet in packets:
        assert pcap_bridge.run_filter(ours.instructions, packet) == libpcap_run_packed(packed(theirs), packet, len(packet)), packet.hex()
    assert not ours.matches(b"\0\0\0")


def test_link_types_where_headers_vary() -> None:
    """Those where libpcap puts something before the first term, which is `len`."""
    found = set()
    for linktype in range(300):
        try:
            program = libpcap_compile("less 4 or ip host 10.0.0.1", linktype)
        except Refused:
            continue
        if program[0].code != LD_LEN:
            found.add(linktype)
    assert found
    assert found <= set(pcap_bridge.VARIABLE_LINKTYPES)


@pytest.mark.parametrize(
    ("more", "message", "shown"),
    [
        ("ip6 host 10.0.0.1", "'ip6' modifier applied to ip host", "10.0.0.1"),
        ("ip[2] = 3 or 4", "syntax error in filter expression", "4"),
        ("or tcp", "unexpected 'or', expected a term", "or"),
        ("(tcp", "unexpected end, expected", ""),
    ],
)
def test_errors_in_long_lists(more: str, message: str, shown: str) -> None:
    expression = f"{listed('host', 400)[1]} or {more}"
    with pytest.raises(FilterError, match=re.escape(message)) as raised:
        compile(expression, optimize=2)
    span = raised.value.span
    assert span is not None
    assert expression[span.start : span.end] == shown


def test_lists_that_are_too_long() -> None:
    expression = listed("host", 4000)[1]
    with pytest.raises(FilterError, match=r"^the expression is too long for libpcap: it would take more than 100000 instructions"):
        compile(expression, optimize=2)
    with pytest.raises(FilterError, match=r"^the program would take \d+ instructions, and no kernel takes more than 4096"):
        compile(" or ".join(f"ether host 02:00:00:00:{3 * number // 256:02x}:{3 * number % 256:02x}" for number in range(600)), optimize=2)


def test_long_lists_beside_a_loop() -> None:
    """They are libpcap's alone."""
    with pytest.raises(FilterError, match=r"^the program would take 1\d{4} instructions"):
        compile(f"{listed('host', 400)[1]} or ip6 protochain 6", optimize=2)


def test_a_thousand_hosts_behind_the_walk() -> None:
    """Two searches and a walk are too long for any kernel; the error names what makes it shorter."""
    expression = listed("inner host", 1000)[1]
    with pytest.raises(FilterError, match=r"would take \d+ instructions, .* shorter with a smaller max_levels \(now 4\)"):
        compile(expression, target="classic")
    assert compile(expression, target="classic", max_levels=2).kernel_refusal() is None
