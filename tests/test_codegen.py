"""Filters with extension terms, on generated packets, against verdicts worked out without resolve, mark and codegen (oracle.py)."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from random import Random

import packets
import pytest
from everywhere import Everywhere
from oracle import NETMASK, Packet, Refused, expected, libpcap_compile, text_of, with_known_values, without_outer_headers
from packets import EN10MB, LINK_TYPES

#: Each extension term alone (LANGUAGE.md 2, 3 and 4). What stands in braces and quotes is explained in oracle.py.
TERMS = r"""
{inner ip}  {inner ip6}  {inner arp}  {inner rarp}
{inner tcp}  {inner udp}  {inner sctp}  {inner icmp}  {inner icmp6}  {inner igmp}  {inner igrp}  {inner pim}  {inner vrrp}  {inner carp}
{inner esp}  {inner ah}
{inner proto 6}  {inner proto \tcp}  {inner proto gre}  {inner proto 51}  {inner proto 44}  {inner proto 0}  {inner proto 58}
{inner ip proto 17}  {inner ip proto \udp}  {inner ip proto 51}  {inner ip6 proto 58}  {inner ip6 proto 60}  {inner ip6 proto 43}
{inner ip6 proto \tcp}  {inner ip6 proto 44}
{inner ether proto \ip}  {inner ether proto 0x86dd}  {inner ether proto \arp}  {inner ether proto 0x88cc}  {inner ether proto 0x8847}
{inner host 10.0.0.1}  {inner src host 10.0.0.1}  {inner dst host 10.0.0.1}  {inner src or dst host 10.0.0.2}
{inner src and dst host 10.0.0.1}
{inner 10.0.0.2}  {inner src 10.1.2.3}  {inner ip host 10.0.0.1}  {inner ip src host 10.0.0.2}  {inner arp host 10.0.0.1}
{inner rarp src host 10.0.0.1}  {inner rarp dst host 10.0.0.2}
{inner host 2001:db8::1}  {inner src host 2001:db8::1}  {inner ip6 host 2001:db8::2}  {inner ip6 dst host 2001:db8::1}
{inner 2001:db8:1::1}
{inner src and dst host 2001:db8::1}  {inner src or dst host fe80::1}
{inner net 10}  {inner net 10.0}  {inner net 10.0.0}  {inner net 10.0.0.0/8}  {inner src net 10.0.0.0/30}  {inner dst net 128.0.0.0/1}
{inner src and dst net 10.0.0.0/8}  {inner net 10.0.0.0 mask 255.255.0.0}  {inner net 0.0.0.0/0}  {inner ip net 10.1.2.0/24}
{inner arp net 10.0.0.0/24}  {inner src or dst net 192.168.0.0/16}
{inner net 2001:db8::/32}  {inner src net 2001:db8::/48}  {inner dst net ff00::/8}  {inner ip6 net 2001:db8::/47}  {inner net fe80::/10}
{inner net 2001:db8::/64}  {inner net ::/0}  {inner src and dst net 2001:db8::/32}  {inner net 2001:8000::/17}  {inner net 2001:db8::/97}
{inner port 80}  {inner src port 80}  {inner dst port 80}  {inner src or dst port 80}  {inner src and dst port 80}
{inner tcp port 80}  {inner tcp src port 443}  {inner tcp dst port 22}  {inner udp port 53}  {inner udp dst port 443}  {inner sctp port 80}
{inner sctp dst port 36412}  {inner tcp port http}  {inner udp port domain}  {inner tcp port https}  {inner port 4789}
{inner portrange 1-1024}  {inner tcp portrange 20-100}  {inner udp dst portrange 50-60}  {inner src portrange 0-1023}
{inner sctp portrange 1-100}  {inner tcp src and dst portrange 22-65535}  {inner dst portrange 80-80}
{inner ip broadcast}  {inner ip multicast}  {inner ip6 multicast}
{inner ether host 02:00:00:00:00:01}  {inner ether src host 02:00:00:00:00:02}  {inner ether dst host 02:00:00:00:00:02}
{inner ether src or dst host 33:33:00:00:00:01}  {inner ether src and dst host 02:00:00:00:00:01}  {inner ether dst 01:00:5e:00:00:05}
{inner ether multicast}  {inner ether broadcast}  {inner multicast}  {inner broadcast}  {inner link multicast}
{tproto tcp}  {tproto 47}  {inner tproto udp}  {tproto gre}  {tproto icmp6}  {inner tproto 6}  {tproto 0x11}  {tproto ipv6-icmp}
{nproto ip}  {nproto ip6}  {inner nproto arp}  {nproto 0x88cc}  {nproto rarp}  {inner nproto 0x8847}  {nproto 0}
{encap}
"{depth} > 0"  "{depth} = 2"  "{inner depth} >= 3"  "{nhoff} > 14"  "{nhoff} = 0"  "{inner nhoff} < 40"  "{nproto} = 0x800"
"{thoff} = 0"  "{thoff} - {nhoff} = 20"  "{thoff} > {nhoff} + 40"  "{tproto} = 6"  "{inner tproto} & 1 != 0"  "{poff} > 54"
"{poff} = 0"  "{poff} - {thoff} = 8"  "{poff} - {thoff} > 20"  "len - {poff} > 20"  "{poff} + 10 <= len"  "len = {poff}"
"{nproto} ^ 0x800 = 0"  "{poff} % 4 = 2"  "1 << ({poff} & 3) > 2"  "{poff} >> ({depth} + 1) < 20"  "{thoff} * {depth} > 100"
"{poff} / 7 = 8"  "-{depth} = 0"  "-{poff} < 0xffffffd8"  "{poff} | 1 != {poff}"  "100 / {depth} > 40"  "{poff} % {depth} = 1"
"len / ({depth} + 1) > 60"  "3 = {depth} + {depth} + 1"  "{depth} != 0 ^ 1"
"{inner ip[9]} = 6"  "{inner ip[8]} > 100"  "{inner ip[0]} & 0xf != 5"  "{inner ip[6:2]} & 0x1fff != 0"  "{inner ip[2:2]} > 60"
"{inner ip[12:4]} = 0x0a000001"  "{inner ip6[6]} = 6"  "{inner ip6[4:2]} > 40"  "{inner ip6[8:4]} = 0x20010db8"  "{inner ip6[7]} & 1 = 1"
"{inner arp[6:2]} = 1"  "{inner arp[14:4]} = 0x0a000001"  "{inner rarp[6:2]} = 3"  "{inner rarp[7]} = 3"
"{inner tcp[13]} & 2 != 0"  "{inner tcp[tcpflags]} & (tcp-syn|tcp-fin) = tcp-syn"  "{inner tcp[0:2]} > 50000"  "{inner tcp[12]} >> 4 > 5"
"{inner tcp[2:2]} = 80"  "{inner tcp[4:4]} & 0x80000000 != 0"  "{inner udp[4:2]} > 30"  "{inner udp[2:2]} = 53"  "{inner udp[8]} > 109"
"{inner icmp[0]} = 8"  "{inner icmp[icmptype]} != icmp-echo"  "{inner icmp6[0]} = 128"  "{inner icmp6[icmp6type]} = 1"
"{inner sctp[12]} = 4"
"{inner sctp[2:2]} = 80"  "{inner igmp[0]} = 0x16"  "{inner igmp[4]} = 0xe0"  "{inner pim[0]} > 100"  "{inner vrrp[0]} > 110"
"{inner igrp[0:2]} > 0"  "{inner carp[0]} < 118"
"{inner ether[0]} & 1 = 1"  "{inner ether[12:2]} = 0x800"  "{inner ether[6:4]} = 0x02000000"  "{inner link[14]} > 64"
"{payload[0:4]} = 0x70696e67"  "{payload[0]} > 109"  "{inner payload[4:2]} & 1 = 0"  "{payload[20]} > 0"  "{payload[depth]} >= 110"
"{inner udp[inner ip[0] & 3]} > 40"  "{payload[inner udp[5] & 7]} > 109"  "{inner ip[thoff - nhoff - 4]} > 100"
"{inner ip[8]} != {inner ip[9]} + 58"  "{inner udp[4:2]} = len - {thoff}"
"{inner ip[2:2]} = len - {nhoff}"  "{inner tcp[13]} < {payload[0]} - 90"  "{inner tcp[0:2]} < {inner tcp[2:2]}"
"""

#: Extension terms among standard ones.
MIXED = r"""
vlan and {inner tcp}
vlan 10 and {inner udp} and ip
vlan 10 and {inner tcp} and ip host 10.0.0.1
{inner udp} and vlan 10 and ip6
{inner udp} or vlan and {inner tcp} and ip6
vlan 10 and (ip or {inner ip6}) and host 10.0.0.1
vlan and vlan and {encap} and ip
not vlan and {inner tcp}
not (vlan 10 and {inner udp}) and ip
(vlan and {encap}) or ip
vlan and not {encap} and (ip src net 10.0.0.0/8 or ip6)
mpls and {inner ip}
mpls 1024 and {inner ip6} and ip6
mpls 1024 and "{nhoff} > 18" and ip[9] != 6
mpls and not {inner tcp} and "ip[8] >= {inner ip[8]}"
mpls and {inner udp} and mpls and ip
pppoes and {inner ip} and ip
pppoes 7 and not {inner ip} and ip6
pppoes and "{poff} > 60" and (tcp or udp)
vlan and {inner ip} and pppoes and ip
geneve and {inner tcp}
geneve and not {inner tcp} and ip
not geneve and {encap}
geneve and {inner ip} or {inner ip6} and ip6
geneve and ("{inner ip[9]} != 17" or ip6)
{inner tcp} and geneve or ip6
not {inner tcp}
not not {inner tcp}
not ({inner udp} and ip)
not (not {inner tcp} or not ip)
not ({inner ip} or ip) and not ({inner ip6} and ip6)
not ("{payload[0]} > 100" and ip)
not "{inner tcp[13]} & 2 != 0" and ip
not "ip[8] > {inner ip[8]}"
ip and ((({inner udp} or {inner tcp})) or (arp and ({nproto arp})))
(((ip and {inner tcp}))) or ((({inner ip6}) and (not (ip6 or arp))))
{inner tcp} and ip or {inner udp} and ip6 or {inner arp}
ip or {inner tcp} and ip6 and {encap} or arp
src host 10.0.0.1 and {inner tcp}
ip and {inner src net 10.0.0.0/8} and dst net 10.0.0.0/8
host 10.0.0.1 or {inner host 10.0.0.1} and not host 10.0.0.2
udp port 4789 or 8472 or 6081 and {inner tcp}
udp dst port 4789 or 8472 and {inner ip}
udp dst port (4789 or 6081) and not {inner udp}
tcp port 80 or 443 and {inner tcp} or udp and {inner ip6}
{inner udp} and udp port 4789 or 8472
(tcp port 80 or 443) and {tproto tcp} or (udp port 53 and {inner udp port 53})
portrange 1-1024 and {inner portrange 1-1024}
ether host 02:00:00:00:00:01 and {inner ether host 02:00:00:00:00:01}
ether multicast and not {inner ether multicast}
ether dst ff:ff:ff:ff:ff:ff or {inner ether broadcast}
ip multicast and not {inner ip multicast}
ip proto 47 and {inner ip}
ip proto 4 or ip proto 41 and {inner ip6}
{inner ip proto \udp} and proto \tcp or proto 41
less 100 and {inner tcp} or greater 150 and {inner udp}
{inner tcp} and less 120
len > 100 and "{poff} < 80"
"ip[2:2] = {poff} - 14"
"ip[2:2] + 14 > {poff} + 20"
"link[{thoff} + 13] & 2 != 0"
"ether[{poff}] > 100"
"link[{nhoff}] & 0xf0 = 0x40"
"ip[{inner ip[0]} & 0xf] > 64"
"ip[({thoff} - {nhoff}) & 0x1f] > 100"
"ip[8] != {inner ip[8]}"
"ip[8] = {inner ip[8]}" and {inner tcp}
"{inner ip6[7]} < ip[8]"
"ip[12:4] = {inner ip[12:4]}" and ip
"ip[9] + {depth} = 18"
"ip[9] * {depth} > 17"
"ip[9] - {tproto} = 0"
"ip[9] / {depth} > 8"
"ip[9] % {depth} = 1"
"{tproto} / ip[1] > 0" or ip
"1 << ({poff} & ip[9] & 7) > 2"
"ip[0] << {depth} > 100"
"ip[0] & {tproto} | ip[8] > 70"
"ip[2:2] ^ {inner ip[2:2]} != 0"
"-ip[9] + {tproto} = 0"
"ip[{depth}] = {inner ip[depth]}" and {encap}
"tcp[13] & 2 = {inner tcp[13]} & 2"
"udp[4:2] = len - {poff} + 8"
"udp[4:2] > {inner udp[4:2]}"
"ip[8] = 64 + {depth}" or "ip6[7] > 64 + {depth}"
"ip6[7] != {inner ip[8]}" and ip6
"ip[20] > {thoff}" or {inner tcp}
"ip[100] > {thoff}" or {inner tcp}
"ip[60] + {depth} > 0" or {inner ip}
"len - {poff} > ip[8]"
"{thoff} + (ip[0] & 0xf) * 4 > {poff}"
vlan and "ip[8] != {inner ip[8]}"
vlan 10 and "ip[2:2] > {poff} - {nhoff}" and {inner ip}
vlan and ("ip[8] >= {inner ip[8]}" or "ip6[7] <= {inner ip6[7]}")
geneve and "ip[8] = {inner ip[8]}"
tcp[13] = 2 or {inner tcp} and tcp[13] & 16 != 0
ip[6:2] & 0x1fff != 0 and {inner udp} or {inner tcp}
not ip[9] = 17 and {inner udp}
ip[8] > 100 and {inner ip} and ip[9] = 17 or ip6[7] > 100 and {inner ip6}
"""

#: Filters that are not their template without braces and quotes: inherited qualifiers and `inner ( ... )`.
MEANT = r"""
inner tcp port 80 or 443
    {inner tcp port 80} or {inner tcp port 443}
inner tcp port 80 or udp port 53
    {inner tcp port 80} or udp port 53
inner tcp port (80 or 443) and ip
    ({inner tcp port 80} or {inner tcp port 443}) and ip
inner src host 10.0.0.1 or 10.0.0.2 or 2001:db8::1
    {inner src host 10.0.0.1} or {inner src host 10.0.0.2} or {inner src host 2001:db8::1}
inner port 80 and ip and port 443 or 22
    {inner port 80} and ip and port 443 or port 22
tcp port 80 or 443 and inner tcp port 22 or 80
    tcp port 80 or tcp port 443 and {inner tcp port 22} or {inner tcp port 80}
inner net 10 or not 192.168
    {inner net 10} or not {inner net 192.168}
inner host (10.0.0.1 or 10.0.0.2) and not (10.0.0.1)
    ({inner host 10.0.0.1} or {inner host 10.0.0.2}) and not {inner host 10.0.0.1}
inner (tcp port 80 or 443)
    {inner tcp port 80} or {inner tcp port 443}
inner (tcp port 80 or udp port 53)
    {inner tcp port 80} or {inner udp port 53}
inner (ip and not tcp)
    {inner ip} and not {inner tcp}
inner (not (host 10.0.0.1 or (udp and ip6)))
    not ({inner host 10.0.0.1} or ({inner udp} and {inner ip6}))
inner (ip[8] > 64 or ip6[7] > 64) and ip
    ("{inner ip[8]} > 64" or "{inner ip6[7]} > 64") and ip
inner (tcp[13] & 2 != 0 and dst net 10)
    "{inner tcp[13]} & 2 != 0" and {inner dst net 10}
inner (src net 10.0.0.0/8 and dst 10.0.0.1 or 10.0.0.2)
    {inner src net 10.0.0.0/8} and {inner dst 10.0.0.1} or {inner dst 10.0.0.2}
inner (poff > 60 and tproto tcp)
    "{poff} > 60" and {tproto tcp}
inner (inner tcp or udp)
    {inner tcp} or {inner udp}
inner (ether src 02:00:00:00:00:01) and ip
    {inner ether src 02:00:00:00:00:01} and ip
vlan 10 and inner (tcp or udp) and ip
    vlan 10 and ({inner tcp} or {inner udp}) and ip
tproto 6 or 17
    {tproto tcp} or {tproto udp}
tproto tcp or udp
    {tproto tcp} or udp
tproto (gre or 17) and not ip
    ({tproto gre} or {tproto udp}) and not ip
nproto ip or 0x86dd
    {nproto ip} or {nproto ip6}
not inner tcp port 80 or 443
    not {inner tcp port 80} or {inner tcp port 443}
!inner tcp && !inner udp || ip
    not {inner tcp} and not {inner udp} or ip
inner src or dst port 80 or 443
    {inner port 80} or {inner port 443}
inner tcp dst portrange 20-30 or 80-443
    {inner tcp dst portrange 20-30} or {inner tcp dst portrange 80-443}
poff>54 and len - poff>0
    "{poff} > 54" and "len - {poff} > 0"
encap && depth>1 || inner arp
    {encap} and "{depth} > 1" or {inner arp}
inner ip[0]&0xf>5
    "{inner ip[0]} & 0xf > 5"
(inner ip[8])=(ip[8])
    "({inner ip[8]}) = (ip[8])"
(poff) + 0x10 > len - (070)
    "{poff} + 0x10 > len - 070"
inner ip proto \tcp or \udp
    {inner ip proto 6} or {inner ip proto 17}
"""


#: A filter is tried on Ethernet and one of these.
OTHERS = tuple(linktype for linktype in LINK_TYPES if linktype != EN10MB)


@cache
def chosen(linktype: int) -> list[Packet]:
    """Packets of a link type: few of each kind, some of them also cut short."""
    seen: Counter[object] = Counter()
    found: list[Packet] = []
    for index, made in enumerate(packets.packets(6000 if linktype == EN10MB else 600, seed=linktype, linktypes=[linktype])):
        keys = made.keys
        transport = keys.tproto if keys.tproto in (1, 2, 6, 17, 58, 103, 132, 253) else 0
        # What stands near the front is what libpcap's own terms see: more of those.
        kind = (made.layers[1:4], keys.nproto, transport) if keys.depth < 2 else (made.layers[1:2], keys.nproto, transport)
        seen[kind] += 1
        plain = keys.depth == 0 and transport in (6, 17, 132) and len(made.layers) < 6
        if seen[kind] > (1 if linktype != EN10MB or keys.depth > 1 else 15 if plain else 2):
            continue
        packet = Packet.whole(with_known_values(made, index))
        found.append(packet)
        cuts = made.cuts()
        if index % 3 == 0:
            found.append(packet.cut(cuts[index % len(cuts)]))
    return found


def verdicts(template: str, linktype: int, text: str | None = None, step: int = 1) -> Counter[bool]:
    """How often a filter accepts and rejects, on every `step`th packet; each time it must be what the template says."""
    everywhere = Everywhere(template, linktype, text=text, classic=())
    return Counter(map(everywhere.check, chosen(linktype)[::step]))


def lines(table: str) -> list[str]:
    return [line.strip() for line in table.strip().splitlines()]


def refused(template: str, linktype: int) -> bool:
    """Whether libpcap has no such standard term on a link type."""
    plain = re.sub(r'"[^"]*"|\{[^}]*\}', "greater 0", template)
    try:
        libpcap_compile(plain, linktype, netmask=NETMASK)
    except Refused:
        return True
    return False


#: A template, and the filter where that is not the template without braces and quotes.
CASES: list[tuple[str, str | None]] = [(term, None) for row in lines(TERMS) for term in re.split(" {2,}", row)]
CASES += [(template, None) for template in lines(MIXED)]
CASES += [(template, text) for text, template in zip(lines(MEANT)[::2], lines(MEANT)[1::2], strict=True)]


@pytest.mark.parametrize("part", range(16))
def test_verdicts_are_the_expected_ones(part: int) -> None:
    """On Ethernet and one other link type, which is another one for the next filter. Each filter must accept and reject some packets."""
    for index in range(part, len(CASES), 16):
        template, text = CASES[index]
        found = verdicts(template, EN10MB, text, step=4)
        if min(found[True], found[False]) < 3:
            found += verdicts(template, EN10MB, text)
        other = OTHERS[(index // 16 + part) % len(OTHERS)]
        if not refused(template, other):
            found += verdicts(template, other, text, step=2)
        assert min(found[True], found[False]) >= 3, (template, found)


#: Filters for every link type: terms of each kind, and standard ones before and behind them.
EVERY_LINK_TYPE = """
{inner tcp}
{inner tcp port 80}
{inner host 10.0.0.1}
{inner host 2001:db8::1}
{inner ip multicast}
not {inner udp}
"{poff} > 60"
"{nhoff} > 24" and {nproto ip}
"{inner ip[8]} > 100"
"{payload[0:2]} > 0x6c00"
"ip[8] = {inner ip[8]}"
"ip6[7] != {inner ip6[7]}" and {encap}
ip and {inner tcp}
{inner udp} and ip6
(tcp or udp) and {inner ip} or host 10.0.0.1 and "{depth} > 1"
not (ip and {inner tcp}) and len > 60
"""


@pytest.mark.parametrize("linktype", LINK_TYPES)
def test_every_link_type(linktype: int) -> None:
    always = set()
    for template in lines(EVERY_LINK_TYPE):
        found = verdicts(template, linktype, step=3 if linktype == EN10MB else 1)
        if not all(found.values()) or len(found) < 2:
            always.add(template)
    # There is no IPv6 outermost on raw IPv4, and no IPv4 on raw IPv6.
    only = {packets.IPV4: "ip6", packets.IPV6: "ip"}.get(linktype)
    assert all(only is not None and only in template for template in always), always


# Not geneve: what stands behind `geneve or` reads slots of M[] that nobody may have written.
STANDARD = """
ip|ip6|arp|tcp|udp|tcp port 80|udp port 53|host 10.0.0.1|src host 10.0.0.2|net 10|ip[8] > 100|ip6[7] & 1 = 1|tcp[13] & 2 != 0|ip multicast
vlan|vlan 10|mpls|mpls 1024|pppoes|len > 100|less 120|ether multicast|ether[40] > 100|ip[60] > 50|1 = 1|ip proto 47|udp[4:2] > 60
"""


def random_template(random: Random, depth: int = 0) -> str:
    """Terms of both kinds, joined in any way."""
    kind = random.random()
    if depth == 4 or kind < 0.25:
        if random.random() < 0.5:
            return random.choice(random.choice(lines(STANDARD)).split("|"))
        return random.choice(SINGLE)
    if kind < 0.35:
        return f"not {random_template(random, 4)}"
    if kind < 0.45:
        return f"not ({random_template(random, depth + 1)})"
    if kind < 0.6:
        return f"({random_template(random, depth + 1)})"
    return f"{random_template(random, depth + 1)} {random.choice(('and', 'or'))} {random_template(random, depth + 1)}"


#: Templates that are one term, or one relation that libpcap has a part in.
SINGLE = [template for template, text in CASES if text is None and (re.fullmatch(r'\{[^}]*\}|"[^"]*"', template))]


@pytest.mark.parametrize("seed", range(4))
def test_random_filters(seed: int) -> None:
    random = Random(seed)
    found: Counter[bool] = Counter()
    made = 0
    while made < 60:
        template = random_template(random)
        if random.random() < 0.05:
            template = f"geneve and ({template})"
        # libpcap's own optimizer takes out loads that reject short packets; what is all libpcap's is for test_compiler.py.
        if "{" in template and not refused(template, EN10MB):
            found += verdicts(template, EN10MB, step=31)
            made += 1
    assert min(found.values()) > 1000


def test_packets_captured_in_part_are_never_accepted_wrongly() -> None:
    """Where the snap length cut a packet, a program may reject what the rules accept, but not the other way (LANGUAGE.md 5)."""
    found: Counter[bool] = Counter()
    snapped = [
        packet.snapped(cuts[index % len(cuts)])
        for index, packet in enumerate(chosen(EN10MB)[::40])
        if packet.length == len(packet.made.data) and (cuts := packet.made.cuts())
    ]
    for template, text in CASES[::2]:
        found.update(map(Everywhere(template, text=text, classic=()).check, snapped))
    assert min(found.values()) > 100


# ---- The oracle itself ----


@pytest.mark.parametrize("linktype", [EN10MB, packets.RAW, packets.LINUX_SLL])
def test_oracle_agrees_with_libpcap_on_the_packet_that_is_left(linktype: int) -> None:
    """`inner E` holds exactly when libpcap says that E holds for the packet without its outer headers (LANGUAGE.md 3)."""
    terms = {template for template, _ in CASES if re.fullmatch(r"\{inner (?!tproto|nproto)[^}]*\}", template)}
    relations = {template for template, _ in CASES if re.fullmatch(r'"\{inner (?!payload|ether|link)\w+\[[^]a-z]*\]\}[^[{]*"', template)}
    agreed: Counter[bool] = Counter()
    for packet in chosen(linktype)[::4]:
        for template in terms | relations:
            theirs = without_outer_headers(packet, text_of(template))
            if theirs is not None:
                assert expected(template, packet, NETMASK) == theirs, (template, packet)
                agreed[theirs] += 1
    assert min(agreed.values()) > 500
