"""Filters with extension terms wherever they run: one verdict, that of the rules, on packets of every nesting, whole and cut.

`make check-walk` tries all of them, as classic programs too, on 200,000 packets, and as C on 120,000; here it is a small part of that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice

import pytest
from everywhere import BOTH, TEMPLATES, Everywhere, observed, sample
from graphs import EFFORT
from oracle import Packet, with_known_values, without_outer_headers
from packets import EN10MB, IPV4, IPV6, LINK_TYPES, LOOP, packets

from pcapext.encapsulation import WalkSettings

pytestmark = pytest.mark.kernel

#: Each group of filters makes its packets itself, so that groups can run beside each other.
GROUPS = 4


def classic(index: int) -> Collection[bool]:
    """As what a filter becomes a classic program, which takes long to compile: not all do with little effort."""
    if EFFORT > 1 or index % 15 == 0:
        return BOTH
    return (True,) if index % 5 == 0 else ()


#: Packets go to one filter after the other in portions.
PACKETS, PORTION = 1000, 1000


@pytest.mark.parametrize("group", range(GROUPS))
def test_one_verdict(group: int) -> None:
    """On Ethernet. What takes long is tried on a part of the packets, which is the smaller the more there are."""
    filters = [Everywhere(template, classic=classic(index)) for index, template in enumerate(TEMPLATES) if index % GROUPS == group]
    check(filters, PACKETS * EFFORT, group, slow=3 * EFFORT, least=3)


def check(filters: Sequence[Everywhere], count: int, seed: int, slow: int, least: int) -> None:
    """Try filters on so many generated packets, in the slow ways on each `slow`th of a portion.

    Each filter must accept `least` packets or more, and reject as many.
    """
    verdicts: Counter[tuple[str, bool]] = Counter()
    made = sample(count, seed, [EN10MB])
    while portion := list(islice(made, PORTION)):
        for everywhere in filters:
            for index, packet in enumerate(portion):
                verdicts[everywhere.text, everywhere.check(packet, slow=index % slow == 0)] += 1
    assert min(verdicts[everywhere.text, verdict] for everywhere in filters for verdict in (False, True)) >= least, verdicts
    for everywhere in filters:
        everywhere.close()


@pytest.mark.root
@pytest.mark.tools("cc", "clang")
def test_one_verdict_of_c() -> None:
    """Compiling C takes long, too."""
    some = [(template, BOTH if EFFORT > 1 or index % 12 == 0 else (True,)) for index, template in enumerate(TEMPLATES)]
    filters = [Everywhere(template, classic=(), c=both, xdp=both) for template, both in some[:: 1 if EFFORT > 1 else 6]]
    check(filters, 600 * EFFORT, GROUPS, slow=PORTION, least=1)


#: For link types without Ethernet addresses. The first one is a classic program with little effort too.
WITHOUT_ADDRESSES = """
not ({inner udp port 53} or {inner tcp}) and "{poff} - {nhoff} > 20"
{inner tcp port 80}
not {inner tcp}
{inner host 10.0.0.1} or {inner net 2001:db8::/47}
{encap} and {inner ip}
"{payload[0]} > 109"
"len - {poff} > 20"
ip and {inner ip6} or ip6 and {inner tcp}
"{inner tcp[13]} & 2 != 0"
""".strip().splitlines()


@pytest.mark.tools("cc")
@pytest.mark.parametrize("linktype", [linktype for linktype in LINK_TYPES if linktype != EN10MB])
def test_one_verdict_on_other_link_types(linktype: int) -> None:
    verdicts: Counter[tuple[str, bool]] = Counter()
    made = list(sample(300 * min(EFFORT, 10), linktype, [linktype]))
    for index, template in enumerate(WITHOUT_ADDRESSES):
        # With little effort: IPV4 and IPV6 are parts of RAW, and LOOP is NULL.
        few = (True,) if index == 0 and linktype not in (IPV4, IPV6, LOOP) else ()
        with Everywhere(template, linktype, classic=BOTH if EFFORT > 1 else few, c=BOTH if EFFORT > 1 else few) as everywhere:
            for packet in made:
                verdicts[template, everywhere.check(packet)] += 1
        assert min(verdicts[template, verdict] for verdict in (False, True)) >= 3, (template, verdicts)


@pytest.mark.tools("cc")
@pytest.mark.parametrize(
    "settings",
    [
        WalkSettings(max_levels=2),
        WalkSettings(
            tunnel_ports={"vxlan": (), "geneve": (7000, 6081)}, vlan_tags=1, mpls_labels=2, extension_headers=1, gtpu_extensions=0
        ),
    ],
)
def test_one_verdict_with_settings_of_the_walk(settings: WalkSettings) -> None:
    """The generator knows the keys for the usual settings, so here the reference walk has the word."""
    made = [(packet, observed(packet.data, settings=settings)) for packet in sample(400 * min(EFFORT, 20), 9, [EN10MB])]
    assert sum(packet.keys != walked.keys for packet, walked in made) > 50
    for index, template in enumerate(WITHOUT_ADDRESSES):
        few = BOTH if EFFORT > 1 else (True,) if index == 0 else ()
        with Everywhere(template, classic=few, c=few, settings=settings) as everywhere:
            verdicts = Counter(everywhere.check(walked) for _, walked in made)
        assert min(verdicts[False], verdicts[True]) >= 3, (template, verdicts)


@pytest.mark.parametrize("wirelen", [54, 100])
def test_the_check_can_fail(wirelen: int) -> None:
    """A program that accepts what the rules reject is found, cut by the snap length or not, in each way to run it."""
    tcp = Packet(observed(bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(10) + bytes(20)).made, wirelen, 54)
    with Everywhere("{inner udp}", text="inner tcp") as everywhere, pytest.raises(AssertionError) as caught:
        everywhere.check(tcp)
    message = str(caught.value)
    assert tcp.data.hex() in message
    assert message.count("optimized") == (16 if wirelen == 54 else 14)  # the kernel gets no packets that were cut before


#: Each standard term that may follow `inner` (LANGUAGE.md 3), with its qualifiers.
INNER = (
    r"""
ip|ip6|arp|rarp|tcp|udp|sctp|icmp|igmp|igrp|pim|vrrp|carp|esp|ah|icmp6
proto 6|proto \udp|proto 51|ip proto 17|ip proto \icmp|ip6 proto 58|ip6 proto 44|ether proto 0x88cc|ether proto \ip
host 10.0.0.1|src host 10.0.0.1|dst host 10.0.0.2|src or dst host 10.1.2.3|src and dst host 10.0.0.1|10.0.0.2
ip host 10.0.0.1|ip6 host 2001:db8::1|arp host 10.0.0.1|rarp dst host 10.0.0.2|host 2001:db8::1|src and dst host 2001:db8::1
net 10|net 10.0.0.0/8|src net 10.0.0.0/30|net 10.0.0.0 mask 255.255.0.0|net 2001:db8::/32|dst net ff00::/8|ip6 net 2001:db8::/97
port 80|src port 80|dst port 443|src or dst port 22|src and dst port 80|tcp port 80|udp port 53|sctp dst port 36412|tcp src port http
portrange 1-1024|tcp portrange 20-100|udp dst portrange 50-60|sctp portrange 1-100
ip broadcast|ip multicast|ip6 multicast|ether multicast|ether broadcast|multicast|broadcast
ether host 02:00:00:00:00:01|ether src host 02:00:00:00:00:02|ether dst 01:00:5e:00:00:05|ether src and dst host 02:00:00:00:00:01
ip[8] > 100|ip[6:2] & 0x1fff != 0|ip6[7] & 1 = 1|arp[6:2] = 1|rarp[7] = 3|tcp[13] & 2 != 0|tcp[2:2] = 80|udp[4:2] > 30|icmp[0] = 8
icmp6[0] = 128|sctp[12] = 4|igmp[0] = 0x16
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


def test_inner_is_libpcap_on_the_packet_that_is_left() -> None:
    """`inner E` holds exactly when libpcap says that E holds for the packet without its outer headers."""
    made = packets(3000 * min(EFFORT, 20), 8, odd=False, linktypes=[EN10MB])
    whole = [Packet.whole(with_known_values(packet, index)) for index, packet in enumerate(made)]
    for term in INNER:
        relation = "[" in term
        template = re.sub(r"^(\w+\[.*\])(.*)", r'"{inner \1}\2"', term) if relation else f"{{inner {term}}}"
        agreed: Counter[bool] = Counter()
        with Everywhere(template, classic=BOTH if EFFORT > 1 else ()) as everywhere:
            for index, packet in enumerate(whole):
                theirs = without_outer_headers(packet, everywhere.text)
                # Most terms hold for few packets.
                if theirs or (theirs is False and index % 8 == 0):
                    assert everywhere.check(packet) == theirs, (term, packet)
                    agreed[theirs] += 1
        assert min(agreed[True], agreed[False]) >= 3, (term, agreed)
