"""Filters with extension terms wherever they run: one verdict, that of the rules, on packets of every nesting, whole and cut.

`make check-walk` tries all of them, as classic programs too, on 200,000 packets; here it is a small part of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import islice

import pytest
from everywhere import BOTH, TEMPLATES, Everywhere, sample
from graphs import EFFORT
from packets import EN10MB, IPV4, IPV6, LINK_TYPES, LOOP

from pcapext.errors import FilterError

pytestmark = pytest.mark.kernel

#: Each group of filters makes its packets itself, so that groups can run beside each other.
GROUPS = 5


def classic(index: int) -> Collection[bool]:
    """As what a filter becomes a classic program, which takes long to compile: not all do with little effort."""
    if EFFORT > 1 or index % 8 == 0:
        return BOTH
    return (True,) if index % 4 == 0 else ()


#: Packets go to one filter after the other in portions.
PACKETS, PORTION = 1000, 1000


@pytest.mark.parametrize("group", range(GROUPS))
def test_one_verdict(group: int) -> None:
    """On Ethernet. What takes long is tried on a part of the packets, which is the smaller the more there are."""
    filters = [Everywhere(template, classic=classic(index)) for index, template in enumerate(TEMPLATES) if index % GROUPS == group]
    verdicts: Counter[tuple[str, bool]] = Counter()
    made = sample(PACKETS * EFFORT, group, [EN10MB])
    while portion := list(islice(made, PORTION)):
        for everywhere in filters:
            for index, packet in enumerate(portion):
                verdicts[everywhere.text, everywhere.check(packet, slow=index % (3 * EFFORT) == 0)] += 1
    assert min(verdicts[everywhere.text, verdict] for everywhere in filters for verdict in (False, True)) >= 3, verdicts
    for everywhere in filters:
        everywhere.close()


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


@pytest.mark.parametrize("linktype", [linktype for linktype in LINK_TYPES if linktype != EN10MB])
def test_one_verdict_on_other_link_types(linktype: int) -> None:
    verdicts: Counter[tuple[str, bool]] = Counter()
    packets = list(sample(300 * min(EFFORT, 10), linktype, [linktype]))
    for index, template in enumerate(WITHOUT_ADDRESSES):
        # With little effort: IPV4 and IPV6 are parts of RAW, and LOOP is NULL.
        few = (True,) if index == 0 and linktype not in (IPV4, IPV6, LOOP) else ()
        with Everywhere(template, linktype, classic=BOTH if EFFORT > 1 else few) as everywhere:
            for packet in packets:
                verdicts[template, everywhere.check(packet)] += 1
        assert min(verdicts[template, verdict] for verdict in (False, True)) >= 3, (template, verdicts)


#: About the outermost headers, and what `encap` can name.
OUTER = """
{outer ip6}
not {outer tcp}
{outer host 10.0.0.1} and not {inner host 10.0.0.1}
{outer udp dst port 4789} and {inner tcp}
{outer udp} or {outer icmp}
"{outer ip[8]} > {inner ip[8]}"
"{outer thoff} - {outer nhoff} > 20"
{outer ether multicast} or {inner ether multicast}
{encap vlan}
{encap vlan 10} and not {inner tcp}
{encap qinq} or {encap mpls 1024}
not {encap gre} and {encap}
{encap vxlan} or {encap geneve} or {encap gtpu}
{encap pppoe 7} or {encap 6in4}
tcp or {encap erspan} or {encap nvgre}
""".strip().splitlines()


@pytest.mark.xfail(raises=FilterError, strict=True, reason="there is no code for outer and encap NAME yet")
@pytest.mark.parametrize("template", OUTER)
def test_one_verdict_on_outer_headers(template: str) -> None:
    verdicts: Counter[bool] = Counter()
    with Everywhere(template, classic=BOTH if EFFORT > 1 else ()) as everywhere:
        verdicts.update(map(everywhere.check, sample(500 * min(EFFORT, 100), 7, [EN10MB])))
    assert min(verdicts[False], verdicts[True]) >= 3, verdicts
