"""The weaker filter has no extension terms, accepts whatever the filter accepts, and is as strong as the filter's own words let it be."""

from __future__ import annotations

import pytest
from everywhere import sample
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import NETMASK, Packet, expected, libpcap_matches, text_of
from packets import EN10MB

from pcapext.compiler import weaker
from pcapext.errors import FilterError

TRUE, FALSE = "(greater 0)", "(greater 2147483647)"


@pytest.mark.parametrize(
    ("text", "weak"),
    [
        ("", ""),
        ("tcp port 80 or 443", "tcp port 80 or 443"),
        ("host inner-gateway", "host inner-gateway"),
        ("inner tcp port 80", None),
        ("inner tcp port 80 or 443", None),
        ("not inner tcp", None),
        ("encap vxlan 5 or ip", None),
        ("ip or not (udp or inner tcp)", "ip or not (udp or {FALSE})"),
        ("not (ip and inner tcp)", None),
        ("ip and inner tcp", "ip and {TRUE}"),
        ("ip and inner tcp port 80 or 443", None),
        ("ip and (inner tcp port 80 or 443)", "ip and {TRUE}"),
        ("ip and inner (tcp or udp) and not encap gre", "ip and {TRUE} and {TRUE}"),
        ("tcp port 80 or (arp and inner udp port 53) or 443", "tcp port 80 or (arp and {TRUE}) or 443"),
        ("tcp and not (ip and not (udp or inner icmp))", "tcp and not (ip and not (udp or {TRUE}))"),
        ("vlan 5 and inner tcp and ip", "vlan 5 and {TRUE} and ip"),
        ("ip[2:2] = poff + 6 and udp", "{TRUE} and udp"),
        ("not ip[2:2] = poff + 6 and udp", "not {FALSE} and udp"),
        ("len > 100 and poff > 42", "len > 100 and {TRUE}"),
    ],
)
def test_texts(text: str, weak: str | None) -> None:
    if "{" not in (weak or ""):
        assert weaker(text) == weak
    else:
        assert weaker(text) == str(weak).format(TRUE=TRUE, FALSE=FALSE)


PACKETS = [*sample(600, 5, [EN10MB])]
STANDARD = ("ip", "ip6", "tcp port 80", "udp", "vlan", "len > 90", "ip host 10.0.0.1", "arp", "ip broadcast")
EXTENDED = ("{inner tcp}", "{inner udp port 53}", "{encap vxlan}", "{inner ip6}", "{inner host 10.0.0.1}", "{encap}", "{outer udp}")

TEMPLATES = st.recursive(
    st.sampled_from(STANDARD + EXTENDED),
    lambda parts: st.one_of(
        st.builds("({} {} {})".format, parts, st.sampled_from(["and", "or"]), parts),
        st.builds("not {}".format, parts),
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(TEMPLATES, st.integers(0, len(PACKETS) - 1))
def test_whatever_a_filter_accepts_the_weaker_one_accepts(template: str, first: int) -> None:
    """By the oracle, which has the words of LANGUAGE.md, and libpcap. Both are asked about the same packets, some 25."""
    weak = weaker(text_of(template), netmask=NETMASK)
    if weak is None:
        return
    assert "inner" not in weak
    assert "encap" not in weak
    for packet in PACKETS[first : first + 25]:
        if holds(template, packet):
            assert libpcap_matches(weak, packet.data, packet.linktype, packet.length, NETMASK), packet


def holds(template: str, packet: Packet) -> bool:
    return expected(template, packet, NETMASK)


def test_it_rejects() -> None:
    """What is left of a filter is not only right: it keeps out what the standard terms keep out."""
    weak = weaker("ip6 and inner tcp")
    assert weak is not None
    accepted = [packet for packet in PACKETS if libpcap_matches(weak, packet.data, packet.linktype, packet.length)]
    assert accepted == [packet for packet in PACKETS if libpcap_matches("ip6", packet.data, packet.linktype, packet.length)]
    assert 20 < len(accepted) < len(PACKETS) - 20


@pytest.mark.parametrize("depth", [20_000])
def test_deep_filters(depth: int) -> None:
    chain = "ip and inner tcp" + " or udp" * depth
    assert weaker(chain) == chain.replace("inner tcp", TRUE)
    assert weaker("not " * depth + "(ip and inner tcp)") == "not " * depth + f"(ip and {TRUE})"


def test_mistakes() -> None:
    with pytest.raises(FilterError, match="unexpected 'and'"):
        weaker("inner tcp and and")
