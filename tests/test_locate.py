"""libpcap says what is wrong with a filter, and we say where: at the term of libpcap's that it is about."""

from __future__ import annotations

from random import Random

import pytest
from filters import EN10MB, compiled, nodes, spelled, words

import pcapext
from pcapext.errors import FilterError, Span
from pcapext.locate import standard_terms
from pcapext.parser import parse
from pcapext.syntax import Cast, Primitive, Protocol, Relation, Standard


def terms(text: str) -> list[str]:
    return [term for _, term in standard_terms(parse(text), text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp port 80 or 443", ["tcp port 80", "tcp port 443"]),
        ("src host (10.0.0.1 or not (10.0.0.2))", ["src host 10.0.0.1", "src host 10.0.0.2"]),
        ("tcp port 80 or (udp port 53 or 54) or 443", ["tcp port 80", "udp port 53", "udp port 54", "tcp port 443"]),
        ("tcp port 80 or (inner udp port 53 or 54) or 443", ["tcp port 80", "tcp port 443"]),
        ("tcp port 80 or inner (udp port 53) or 443", ["tcp port 80", "tcp port 443"]),
        ("vlan 10 and not (ip and ip broadcast) or len > 5", ["vlan 10", "ip", "ip broadcast", "len > 5"]),
        ("inner tcp port 80 or 443 and udp", ["udp"]),
        ("inner (tcp or port 80) and arp", ["arp"]),
        ("tproto 6 or 17 and nproto ip and encap and arp", ["arp"]),
        ("poff > 3 and ip[poff] = 3 and inner ip[0] = ip[0] and ip[0] = 3", ["ip[0] = 3"]),
        (r"host \inner and port ( 80 )", [r"host \inner", "port ( 80 )"]),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


def test_terms_are_what_libpcap_compiles() -> None:
    """The terms of a filter, each alone, are those of the filter spelled out: same number, same programs."""
    random = Random(1)
    seen = 0
    for _ in range(400):
        text = " ".join(words(random, EN10MB)) or "tcp"
        if isinstance(compiled(text), str):
            continue
        tree = parse(text)
        explicit = spelled(tree, text)
        leaves = [node for node in nodes(parse(explicit)) if isinstance(node, Primitive | Protocol | Cast | Relation | Standard)]
        found = terms(text)
        assert len(found) == len(leaves)
        assert [compiled(term) for term in found] == [compiled(term) for term in terms(explicit)]
        seen += len(found)
    assert seen > 400


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("host 1.2.3.400", "invalid IPv4 address '1.2.3.400'", "1.2.3.400"),
        ("tcp and port 70000 or udp", "illegal port number 70000 > 65535", "70000"),
        ("tcp port 80 or (ip host 10.0.0.1) or 70000", "illegal port number 70000 > 65535", "70000"),
        ("tcp port (80 or 443 or 70000)", "illegal port number 70000 > 65535", "70000"),
        ("ip and net 10.0.0.1/8", 'non-network bits set in "10.0.0.1/8"', "10.0.0.1/8"),
        ("ip or ip host ::1", "'ip' modifier applied to ip6 host", "::1"),
        ("arp or tcp[0:3] = 1 or ip", "data size must be 1, 2, or 4", "tcp[0:3] = 1"),
        ("ip and not tcp[0] / 0 = 1", "division by zero", "tcp[0] / 0 = 1"),
        ("ip or len > 5 or 443", "syntax error in filter expression", "443"),
        ("(tcp port 80) or 443", "syntax error in filter expression", "443"),
        ("tcp or type mgt", "802.11 link-layer types supported only on 802.11", "type mgt"),
        ("tcp or atalk host 10.0.0.1", "AppleTalk host filtering not implemented", "10.0.0.1"),
        ("tcp or port nosuch", "unknown port 'nosuch'", "nosuch"),
        ("tcp or\n\tport\nnosuch", "unknown port 'nosuch'", "nosuch"),
        # The same beside terms of pcapext's.
        ("inner tcp and port nosuch", "unknown port 'nosuch'", "nosuch"),
        ("inner tcp port 80 or udp port 53 or 70000", "illegal port number 70000 > 65535", "70000"),
        ("port 80 or (inner tcp) or 70000", "illegal port number 70000 > 65535", "70000"),
        ("vlan 5000 and inner tcp", "VLAN tag 5000 greater than maximum 4095", "vlan 5000"),
        ("poff > 3 and on eth0", "ifname supported only on PF linktype", "on eth0"),
        ("inner (tcp or udp) and ether host 10.0.0.1", "illegal link layer address", "10.0.0.1"),
        ("encap and tcp broadcast and ip", "only link-layer/IP broadcast filters supported", "tcp broadcast"),
    ],
)  # fmt: skip
def test_errors_of_libpcap_have_a_place(text: str, message: str, place: str) -> None:
    with pytest.raises(FilterError) as caught:
        pcapext.compile(text)
    error = caught.value
    assert error.message == message
    assert error.expression == text
    assert error.span is not None
    assert text[error.span.start : error.span.end] == place


def test_vxlan() -> None:
    """libpcap 1.10 does not know the word and says things that do not help; the place does."""
    for text in ("tcp and\n vxlan", "inner tcp and vxlan"):
        if isinstance(compiled("tcp and vxlan"), str):
            with pytest.raises(FilterError, match="syntax error") as caught:
                pcapext.compile(text)
            assert caught.value.span == Span(text.index("vxlan"), len(text))
        else:
            assert pcapext.compile(text)


_BAD = {
    "port 70000": "70000",
    "host 1.2.3.400": "1.2.3.400",
    "ip[0:3] = 5": "ip[0:3]",
    "ether host 10.0.0.1": "10.0.0.1",
    "net 10.0.0.1/8": "10.0.0.1/8",
    "arp proto 5": "5",
}


@pytest.mark.parametrize("bad", _BAD)
def test_the_bad_term_is_found_among_good_ones(bad: str) -> None:
    random = Random(bad)
    for _ in range(40):
        good = [
            "tcp",
            "udp port 53 or 54",
            "( src host 10.0.0.1 or ( not 10.0.0.2 ) )",
            "inner tcp port 80 or 443",
            "len > poff",
            "ip[0] = 69",
            "vlan 10",
        ]
        random.shuffle(good)
        at = random.randrange(len(good) + 1)
        before, behind = " and ".join([*good[:at], ""]), " or ".join(["", *good[at:]])
        text = f"{before}{bad}{behind}"
        with pytest.raises(FilterError) as caught:
            pcapext.compile(text)
        assert caught.value.span is not None
        start = len(before) + bad.index(_BAD[bad])
        assert (caught.value.span.start, caught.value.span.end) == (start, start + len(_BAD[bad]))
