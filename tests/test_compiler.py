"""The compiler: standard filters against tcpdump, errors and where they point, and what holds for any text."""

from __future__ import annotations

import pickle
import re
import subprocess
import time
from dataclasses import replace
from itertools import cycle
from random import Random
from typing import Any

import pytest
from graphs import steered_packet
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import NETMASK, UNKNOWN_NETMASK, Refused, libpcap_compile, libpcap_matches
from packets import LINK_TYPES as GENERATED_LINK_TYPES
from packets import packets as generated

import pcapext
from benchmarks.frames import frames
from pcapext import pcap_bridge
from pcapext.bpf import CLASSIC_TARGETS, JA, LD_W_ABS, MAX_INSTRUCTIONS, RET_A, Instruction, Program
from pcapext.compiler import compile, compile_to_run
from pcapext.encapsulation import WalkSettings
from pcapext.errors import FilterError, LibpcapError, ProgramError, SettingsError
from pcapext.flowkeys import KEY_BY_NAME, FlowKeys
from pcapext.formats import NATIVE
from pcapext.kernel_program import for_kernel
from pcapext.machine import run

# ---- Standard filters ----

#: Filters of libpcap's language that mean something on many link types; on some libpcap refuses them.
EVERYWHERE = r"""
ip
ip6
arp
rarp
tcp
udp
sctp
icmp
icmp6
igmp
igrp
pim
vrrp
carp
ah
esp
atalk
aarp
decnet
lat
sca
moprc
mopdl
iso
esis
isis
clnp
l1
l2
iih
lsp
snp
csnp
psnp
stp
ipx
netbeui
not ip
! tcp
not not udp
host 10.0.0.1
src host 10.0.0.1
dst host 10.0.0.1
src or dst host 10.0.0.1
src and dst host 10.0.0.1
10.0.0.1
src 10.0.0.1
ip host 10.0.0.1
arp host 10.0.0.1
rarp src host 10.0.0.1
host 2001:db8::1
src host 2001:db8::1
ip6 dst host 2001:db8::1
::1
host localhost
host 10.0.0.1 and 10.0.0.2
host 10.0.0.1 or 10.0.0.2 or 10.0.0.3
host (10.0.0.1 or 10.0.0.2) and not 10.0.0.3
net 10
net 10.1
net 10.1.2
net 10.0.0.0/8
src net 10.0.0.0/30
dst net 128.0.0.0/1
net 10.0.0.0 mask 255.0.0.0
net 0.0.0.0/0
net 2001:db8::/32
src net 2001:db8::/48
net 2001:db8::/65
net ::/0
ip6 net fe80::/10
port 80
src port 80
dst port 80
tcp port 80
tcp src port http
udp port domain
sctp port 80
port 80 or 443
tcp port 80 or 443 or 8080
tcp port (80 or 443)
portrange 1-1024
tcp portrange 20-25
udp dst portrange 100-50
portrange ftp-ssh
proto 6
proto \tcp
ip proto 47
ip proto \udp
ip6 proto 58
ip6 proto \udp
ether proto 0x88cc
ether proto \ip
ether proto \arp
ip protochain 6
ip6 protochain \tcp
protochain 17
ip broadcast
ip multicast
ip6 multicast
broadcast
multicast
ether multicast
ether broadcast
less 100
greater 100
len > 100
len - 14 <= 1500
len & 1 = 0
byte 12 = 8
byte 0 & 1
ip[0] & 0xf != 5
ip[8] < 10
ip[2:2] > 576
ip[6:2] & 0x1fff = 0
ip[12:4] = 0x0a000001
ip6[6] = 44
ip6[4:2] > 40
tcp[13] & 2 != 0
tcp[tcpflags] & (tcp-syn|tcp-fin) != 0
tcp[tcpflags] == tcp-syn
udp[4:2] > 100
icmp[icmptype] = icmp-echo
icmp[0] != 8 and icmp[0] != 0
icmp6[icmp6type] = icmp6-echo
sctp[12] = 0
igmp[0] = 0x16
link[0] & 1 = 0
ether[12:2] = 0x800
ether[0:4] = 1 and ether[4:2] = 2
ip[ip[0] & 0xf] = 3
tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420
ip[0] + 5 * 3 - 2 > 40
ip[0] / 4 % 3 = 1
ip[0] ^ 0x40 = 5
ip[0] | 1 << 3 = 77
-ip[8] < 0xffffff00
1 + 2 = 3
1 > 2
5 - 5 = 0 and tcp
10 / 3 = 3
2 * 3 = 7 or ip
len = len
tcp and ip
tcp or udp
tcp and udp
ip and not ip
ip or not ip
tcp port 80 and host 10.0.0.1
tcp or udp and port 53
(tcp or udp) and port 53
not (tcp port 80 or udp port 53)
not (host 10.0.0.1 and port 80) or arp
tcp[0:2] = 80 or tcp[2:2] = 80
tcp port 80 and (tcp[13] & 2 != 0 or len > 100) and not src net 10.0.0.0/8
tcp src port 80 and dst host 10.0.0.1 or udp
host 10.0.0.1 && port 80 || arp
ip and ip and ip
((((tcp))))
inbound
outbound
ifindex 3
llc
llc u
llc rr
vlan
vlan 10
vlan 10 and ip
vlan and vlan 20 and tcp port 80
vlan 10 or ip
not vlan and ip
mpls
mpls 1000
mpls and mpls 5 and ip
mpls 1000 and tcp port 80
pppoed
pppoes
pppoes 7
pppoes 7 and tcp port 80
pppoes and ip6
vlan and pppoes and ip
vlan and mpls and ip
geneve
geneve 42
geneve and ip
geneve 42 and tcp port 80
ether host 02:00:00:00:00:01
ether src 2:0:0:0:0:1
ether dst host 0200.0000.0001
ether host 020000000001
ether src and dst host 02-00-00-00-00-01
link host 02:00:00:00:00:01
gateway 10.0.0.1
ip host inner.invalid
""".strip().splitlines()

#: Filters for particular link types.
SPECIAL = r"""
IEEE802_11: type mgt | type mgt subtype beacon | type ctl subtype ack | type data | subtype assocreq | type 2 subtype 0 | dir tods
IEEE802_11: dir fromds | wlan host 02:00:00:00:00:01 | wlan ra 02:00:00:00:00:01 | wlan addr1 02:00:00:00:00:01
IEEE802_11: wlan addr4 02:00:00:00:00:01 | wlan[0] & 1 = 0 | wlan multicast | wlan ta 02:00:00:00:00:01 and ip
IEEE802_11_RADIO: type mgt | tcp port 80 | wlan src host 02:00:00:00:00:01 | ip6 | geneve and ip
PPI: type mgt | tcp | ip host 10.0.0.1
PRISM_HEADER: type data | udp
SUNATM: lane | llc | metac | bcc | oam | oamf4 | oamf4ec | oamf4sc | sc | ilmic | connectmsg | metaconnect
SUNATM: vpi 5 | vci 32 | vpi = 1 or vci > 33
SUNATM: vpi (1 or 2 or 3) | lane and ip
MTP2: fisu | lssu | msu | lsu | hfisu | hlssu | hmsu | sio 5 | opc 12 | dpc (4 or 5) | sls > 3 | hsio 5 | hopc 1 | hdpc 1 | hsls 1
PFLOG: on eth0 | ifname eth0 | rnr 3 | rulenum 3 | reason match | reason 1 | action pass | srnr 1 | subrulenum 1 | rset foo | ruleset foo
PFLOG: tcp port 80 | ip6 | inbound
ARCNET: host $1 | ip | link host $2 | multicast | broadcast
FDDI: fddi host 02:00:00:00:00:01 | ip | stp
IEEE802: tr host 02:00:00:00:00:01 | tcp
IP_OVER_FC: ip | ether host 02:00:00:00:00:01
FRELAY: ip | isis | iso | l1
C_HDLC: ip | ip6 | isis | mpls | host 10.0.0.1
PPP_SERIAL: ip | tcp port 80
PPP_ETHER: ip | tcp
PPP_BSDOS: ip | tcp
SLIP: ip | inbound
SLIP_BSDOS: tcp
LTALK: atalk | ip
ATM_RFC1483: ip | iso | tcp
SYMANTEC_FIREWALL: ip
APPLE_IP_OVER_IEEE1394: ip | tcp
IPNET: ip | inbound | outbound
USB_LINUX: len > 64 | link[8] = 2 | ip
IEEE802_15_4: ip | link[0] = 1
DOCSIS: ip
"""

#: What is not of libpcap's language, or out of its bounds; it says so in its own words.
REFUSED = r"""
port 70000
port 80-90x
tcp port nosuchservice
host nosuchname.invalid
src host 10.0.0.256
net 10.0.0.1/8
net 10.0.0.0/33
net 10.0.0.1 mask 255.0.0.0
host 10.0.0.0/8
host 1.2.3.4.5
net 2001:db8::1/32
net 2001:db8::/129
ip host ::1
ip6 host 10.0.0.1
tcp host 10.0.0.1
ether host 10.0.0.1
tcp host 02:00:00:00:00:01
host 02:00:00:00:00:01
port 10.0.0.1
portrange 5-70000
portrange a-b
ip proto nosuchproto
proto 10.0.0.1
ether proto nosuchproto
arp port 80
tcp proto 6
ip6 broadcast
tcp multicast
vlan 5000
mpls 2000000
pppoes 70000
geneve 20000000
vxlan 20000000
arp and mpls and vlan
ip[0:3] = 1
ip[0] / 0 = 1
ip[0] % 0 = 1
ip[0] << 32 = 1
less 100 and less -1
atalk[0] = 1
llc bogus
type mgt
wlan host 02:00:00:00:00:01 and dir tods
host $1
lane
fisu
on eth0
rnr 5
1 = 2
tcp and 1 > 2
ip and arp
less 0 and greater 1
net nosuchnet
net localhost
gateway localhost
tcp src tcp
radio[0] = 1
"""

LINK_TYPES = ("RAW", "IPV4", "IPV6", "LINUX_SLL", "LINUX_SLL2", "NULL", "LOOP", "PPP", "IEEE802_11", "IEEE802_11_RADIO")
SYNTAX_ERROR = "can't parse filter expression: syntax error"


def tcpdump(expression: str, linktype: str, optimize: bool, snaplen: int) -> str:
    """What `tcpdump -d` prints; where it refuses, its words."""
    command = ["tcpdump", "-d", "-y", linktype, "-s", str(snaplen), *([] if optimize else ["-O"]), "--", expression]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout
    return done.stderr.strip().splitlines()[-1].removeprefix("tcpdump: ")


def ours(expression: str, linktype: str, optimize: bool, snaplen: int) -> str:
    try:
        # tcpdump tells libpcap that the netmask of no network is 0.
        program = compile(expression, linktype=linktype, optimize=optimize, snaplen=snaplen, netmask=0)
    except FilterError as error:
        return error.message if error.span is not None else f"{error.message}, but where?"
    assert program.target == "classic"
    assert not program.flow_keys
    return program.dump("d")


def cases() -> list[tuple[str, str, bool, int]]:
    """Filter, link type, whether to optimize, snap length."""
    linktypes, optimize, snaplens = cycle(LINK_TYPES), cycle((True, False, False, True)), cycle((262144, 96, 65535, 1))
    pairs = [(expression, linktype) for expression in EVERYWHERE for linktype in ("EN10MB", next(linktypes))]
    for line in SPECIAL.strip().splitlines():
        linktype, _, expressions = line.partition(": ")
        pairs += [(expression.strip(), linktype) for expression in expressions.split("|")]
    pairs += [(expression, "EN10MB") for expression in REFUSED.strip().splitlines()]
    return [(expression, linktype, next(optimize), next(snaplens)) for expression, linktype in pairs]


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("part", range(8))
def test_standard_filters_are_tcpdumps(part: int) -> None:
    for expression, linktype, optimize, snaplen in cases()[part::8]:
        theirs = tcpdump(expression, linktype, optimize, snaplen)
        if theirs != SYNTAX_ERROR:
            assert ours(expression, linktype, optimize, snaplen) == theirs, (expression, linktype, optimize)


def test_table_is_large_and_holds_both_answers() -> None:
    answers = [ours(*case).startswith("(") for case in cases()]
    assert len(answers) > 550
    assert answers.count(False) > 80
    assert {linktype for _, linktype, _, _ in cases()} >= {*LINK_TYPES, "SUNATM", "MTP2", "PFLOG"}


@pytest.mark.parametrize("netmask", [0, 0xFF000000, 0xFFFFFF00, 0xFFFFFFFF - 1, None])
@pytest.mark.parametrize("optimize", [True, False])
def test_standard_filters_on_every_link_type(netmask: int | None, optimize: bool) -> None:
    """The same programs, or the same words, as libpcap called from here."""
    for expression in ("ip broadcast", "tcp port 80 and not ip broadcast", *EVERYWHERE[:: 5 if netmask else 3]):
        for linktype in ("EN10MB", *LINK_TYPES):
            number = pcap_bridge.linktype_number(linktype)
            try:
                theirs: object = libpcap_compile(expression, number, optimize, 1000, UNKNOWN_NETMASK if netmask is None else netmask)
            except Refused as error:
                theirs = str(error)
            try:
                program = compile(expression, linktype=linktype, snaplen=1000, netmask=netmask, optimize=optimize)
                assert (program.linktype, program.snaplen, program.expression) == (number, 1000, expression)
                ours: object = program.instructions
            except FilterError as error:
                ours = error.message if theirs != SYNTAX_ERROR else SYNTAX_ERROR
            assert ours == theirs, (expression, linktype)


def packets_for(linktype: int, theirs: Program) -> list[bytes]:
    """Packets with every nesting where there are some for the link type, and some that go all ways through a program."""
    rng = Random(f"level 2 {theirs.expression} {linktype}")
    found = [packet.data for packet in generated(4, seed=linktype, linktypes=(linktype,))] if linktype in GENERATED_LINK_TYPES else []
    found += [steered_packet(theirs.instructions, rng) for _ in range(8)]
    return found + [packet[: rng.randrange(len(packet) + 1)] for packet in found]


def test_level_2_never_executes_more() -> None:
    """On the whole table and every link type: libpcap's verdicts, by its own interpreter too, and no more instructions."""
    filters = fewer = 0
    for expression, linktype in sorted({case[:2] for case in cases()}):
        try:
            theirs = compile(expression, linktype=linktype, netmask=0xFFFFFF00)
        except FilterError as error:
            with pytest.raises(FilterError, match=f"^{re.escape(str(error))}$"):
                compile(expression, linktype=linktype, netmask=0xFFFFFF00, optimize=2)
            continue
        ours = compile(expression, linktype=linktype, netmask=0xFFFFFF00, optimize=2)
        if "protochain" in expression:
            assert ours == theirs
            continue
        spared = False
        for packet in packets_for(theirs.linktype, theirs):
            for wirelen in (len(packet), len(packet) + 40):
                expected, found = run(theirs, packet, wirelen), run(ours, packet, wirelen)
                assert found.value == expected.value, (expression, linktype, packet.hex())
                assert found.executed <= expected.executed, (expression, linktype, packet.hex())
                spared |= found.executed < expected.executed
                for program in (theirs, ours):
                    # Some of libpcap's programs for 802.11 read M[] where they never wrote; what that is depends on its stack.
                    if "not written" not in (program.kernel_refusal() or ""):
                        assert pcap_bridge.run_filter(program.instructions, packet, wirelen) == found.value, (expression, linktype)
        filters += 1
        fewer += spared
    assert filters > 400
    assert fewer > 40


@pytest.mark.parametrize(
    ("expression", "linktype", "spared"),
    [
        ("ip[2:2] - ((ip[0] & 0xf) << 2) > 100 and ip[2:2] < 1000", "EN10MB", 5),
        ("tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)", "EN10MB", 8),
        ("mpls and tcp port 80", "EN10MB", 2),
        ("tcp port 80 and host 10.0.0.1", "IEEE802_11", 80),
    ],
)
def test_level_2_is_shorter(expression: str, linktype: str, spared: int) -> None:
    assert len(compile(expression, linktype=linktype, optimize=2)) <= len(compile(expression, linktype=linktype)) - spared


def test_level_2_goes_where_libpcaps_optimizer_does_not() -> None:
    expression = " or ".join(f"host 10.0.{number // 256}.{number % 256}" for number in range(400))
    with pytest.raises(FilterError, match="too long for libpcap's optimizer"):
        compile(expression)
    assert len(compile(expression, optimize=2)) < 4096


@pytest.mark.parametrize("optimize", [-1, 3, "2", None, 1.5])
def test_levels_that_there_are_not(optimize: object) -> None:
    with pytest.raises(FilterError, match=re.escape(f"optimize is {optimize!r}, expected 0, 1 or 2")):
        compile("tcp", optimize=optimize)  # type: ignore[arg-type]


@pytest.mark.parametrize("expression", ["tcp port 80", "inner tcp port 80"])
def test_levels_by_their_other_names(expression: str) -> None:
    assert compile(expression, optimize=0) == compile(expression, optimize=False)
    assert compile(expression, optimize=1) == compile(expression, optimize=True) == compile(expression)
    assert compile("inner tcp", optimize=2) == compile("inner tcp")


def test_link_types_by_name_and_number() -> None:
    assert compile("tcp") == compile("tcp", linktype=1) == compile("tcp", linktype="en10mb")
    assert compile("tcp", linktype="DLT_RAW") == compile("tcp", linktype=12)
    with pytest.raises(LibpcapError, match="unknown link type 'NOSUCH'"):
        compile("tcp", linktype="NOSUCH")


@pytest.mark.parametrize("text", ["host inner.invalid", "host depth-1.invalid", "host \\inner", "port \\payload", "host my-poff.invalid"])
def test_names_made_of_reserved_words_are_libpcaps(text: str) -> None:
    """A reserved word inside a name, or behind a backslash, is a name, which nobody knows."""
    with pytest.raises(Refused) as theirs:
        libpcap_compile(text, 1)
    with pytest.raises(FilterError) as ours:
        compile(text)
    assert ours.value.message == str(theirs.value)


@pytest.mark.parametrize("text", ["", " ", "\n\t \r"])
@pytest.mark.parametrize("optimize", [True, False])
def test_empty_filters_accept_everything(text: str, optimize: bool) -> None:
    program = compile(text, snaplen=77, optimize=optimize)
    assert program.dump() == "(000) ret      #77\n"
    assert program.matches(b"")


# ---- Errors ----


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        # What libpcap says of a standard term, in an expression of its own and among extension terms.
        ("host ^nosuchname.invalid^ and inner tcp", "unknown host 'nosuchname.invalid'"),
        ("tcp and host ^nosuchname.invalid^", "unknown host 'nosuchname.invalid'"),
        ("port ^70000^ or inner udp", "illegal port number 70000 > 65535"),
        ("tcp or port ^70000^ or udp", "illegal port number 70000 > 65535"),
        ("inner udp and tcp port ^nosuchservice^", "unknown port 'nosuchservice'"),
        ("inner udp and (ip or portrange ^a-b^)", "unknown port in range 'a-b'"),
        ("not net ^10.0.0.1/8^ and encap", 'non-network bits set in "10.0.0.1/8"'),
        ("net ^10.0.0.1/8^", 'non-network bits set in "10.0.0.1/8"'),
        ("encap and tcp port 80 or ^99999^", "illegal port number 99999 > 65535"),
        ("inner tcp port 80 and tcp port 80 or (443 or ^99999^)", "illegal port number 99999 > 65535"),
        ("inner tcp and ip host ^::1^", "'ip' modifier applied to ip6 host"),
        ("inner tcp and ip proto ^nosuch^", "unknown ip proto 'nosuch'"),
        ("inner tcp and ^vlan 5000^ and ip", "VLAN tag 5000 greater than maximum 4095"),
        ("inner tcp and ^mpls 2000000^", "MPLS label 2000000 greater than maximum 1048575"),
        ("inner tcp and ^ip[0:3]^ = 1", "data size must be 1, 2, or 4"),
        ("inner tcp and ^ip[0] / 0^ = 1", "division by zero"),
        ("^ip[0] / 0^ = poff", "division by zero"),
        ("^ip[0] + poff << 32^ = 1", "shift by more than 31 bits"),
        ("^ip[poff:3]^ = 1", "data size must be 1, 2, or 4"),
        ("inner tcp and ^type mgt^", "802.11 link-layer types supported only on 802.11"),
        ("inner tcp and gateway ^foo^", "'gateway' not supported in this configuration"),
        # What libpcap says of a term depends on those before it.
        ("mpls and inner tcp and ip or ^vlan^ and ip6", "no VLAN match after MPLS"),
        ("mpls and ip or ^vlan^", "no VLAN match after MPLS"),
        ("^ip broadcast^ and ip", "netmask not known, so 'ip broadcast' not supported"),
        ("^ip broadcast^ and inner ip", "netmask not known, so 'ip broadcast' not supported"),
        ("^inner ip broadcast^ and ip", "netmask not known, so 'ip broadcast' not supported"),
        ("ip protochain ^6^ and inner tcp", "'protochain' makes a loop, and a filter with extension terms cannot have one"),
        # Extension terms in libpcap's words.
        ("inner host ^nosuchname.invalid^", "unknown host 'nosuchname.invalid'"),
        ("ip and inner tcp port ^70000^", "illegal port number 70000 > 65535"),
        ("inner net ^10.0.0.1/8^", 'non-network bits set in "10.0.0.1/8"'),
        ("ip and ^encap ipip 5^", "'encap ipip' takes no number: its header has no identifier"),
        ("^encap vlan 4096^", "VLAN id 4096 greater than maximum 4095"),
    ],
)
def test_errors_point_at_the_term(text: str, message: str, optimize: bool) -> None:
    before, place, _ = text.split("^") if "^" in text else ("", text, "")
    text = text.replace("^", "")
    with pytest.raises(FilterError) as caught:
        compile(text, optimize=optimize)
    error = caught.value
    assert (error.message, error.expression) == (message, text)
    assert error.span is not None
    assert error.span.start == len(before)
    assert text[error.span.start : error.span.end] == place


@pytest.mark.parametrize(
    "text", ["inner ip and inner ip6", "inner tcp and inner udp and ip", "depth = 5 and depth = 4", "not (inner tcp or not inner tcp)"]
)
def test_filters_that_reject_everything(text: str) -> None:
    with pytest.raises(FilterError, match="expression rejects all packets"):
        compile(text)
    assert not compile(text, optimize=False).matches(bytes(60))


def test_extension_terms_need_a_link_type_of_the_walk() -> None:
    with pytest.raises(FilterError) as caught:
        compile("type mgt and inner tcp", linktype="IEEE802_11")
    known = "EN10MB, RAW, IPV4, IPV6, LINUX_SLL, LINUX_SLL2, NULL, LOOP, PPP"
    assert str(caught.value) == (
        f"no extension term on link type IEEE802_11; there are some on {known}\n  type mgt and inner tcp\n               ^^^^^^^^^"
    )


def test_unknown_target() -> None:
    with pytest.raises(FilterError, match="unknown target 'wasm', expected one of classic, flowkeys, keys, ebpf, c"):
        compile("tcp", target="wasm")


def test_long_filters_are_refused_in_terms_of_the_user() -> None:
    """libpcap gets a text with markers; no message shows it."""
    text = " or ".join(f"inner tcp port {port} and tcp" for port in range(2000))
    with pytest.raises(FilterError, match="too long for libpcap") as caught:
        compile(text)
    assert caught.value.expression == text
    assert "greater" not in str(caught.value)


# ---- Any text ----


def sound(text: str, **how: object) -> Program | FilterError:
    """A program that the proposed kernel takes, or one `FilterError` that can be shown; in bounded time."""
    begin = time.process_time()
    try:
        program = compile(text, **how)  # type: ignore[arg-type]
    except FilterError as error:
        result: Program | FilterError = error
    else:
        result = program
    assert time.process_time() - begin < 10
    if isinstance(result, Program):
        assert result.kernel_refusal(stock=False) is None or "protochain" in text
    else:
        assert str(result)
        assert result.span is None or result.span.end <= len(text)
    return result


WORDS = r"""
inner outer encap depth payload nhoff nproto thoff tproto poff inner inner inner ( ) ( ) ( ) and or not and or not and or not
[ ] [ ] : + - * / & | << >> % ^ = != < > <= >=
tcp udp ip ip6 arp icmp sctp ether ah host net port portrange proto src dst broadcast multicast
vlan mpls pppoes geneve len less greater 0 1 2 4 6 14 80 443 0x800 0x86dd
10.0.0.1 10.0.0.0/8 ::1 2001:db8::/32 02:00:00:00:00:01 \tcp http 1-1024 vxlan gre link protochain
gateway type mgt inbound ifindex byte \ $5 é
"""


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*WORDS.split(), "\0"]), max_size=14).map(" ".join), st.booleans(), st.sampled_from([1, 0, 12, 113]))
@example("inner", True, 1)
@example("inner inner tcp", True, 1)
@example("inner ( ) and tcp", False, 1)
@example("ip[poff", True, 1)
def test_any_words(text: str, optimize: bool, linktype: int) -> None:
    sound(text, optimize=optimize, linktype=linktype)


@settings(max_examples=150)
@given(st.text(max_size=40).map(lambda text: f"inner {text}"))
@example("inner \ud800")
@example("inner tcp \x00 and poff > 4")
@example("\x00")
def test_any_text(text: str) -> None:
    sound(text)


def chain(form: str, count: int, operator: str = " or ") -> str:
    """`form` with each number from 0 on in place of N."""
    return operator.join(form.replace("N", str(number)) for number in range(count))


#: How long filters end: with so many instructions at most, or with an error.
LONG = {
    "parentheses": ("(" * 5000 + "inner tcp and ip" + ")" * 5000, 6),
    "standard parentheses": ("(" * 5000 + "tcp and ip" + ")" * 5000, 6),
    "scoped parentheses": ("inner (" * 5000 + "tcp" + ")" * 5000, 4),
    "not": ("not " * 5000 + "inner tcp", 4),
    "mixed not": ("not " * 5000 + "(inner tcp and ip)", 6),
    "mixed parentheses": ("(ip or " * 300 + "inner tcp" + ")" * 300, 6),
    "parentheses left open": ("(" * 5000 + "inner tcp", "unexpected end"),
    "parentheses too many": ("inner tcp" + ")" * 5000, r"unexpected '\)'"),
    "the same again": (chain("inner tcp", 5000, " and "), 4),
    "ports": (chain("inner tcp port N", 300), MAX_INSTRUCTIONS),
    "ports in a row": (chain("inner tcp port N", 1500), 11),
    "protocols in a row": (chain("nproto N", 6000), 4),
    "hosts in a row": ("inner host " + chain("10.0.0.N", 250) + chain(" or 10.0.1.N", 250, ""), 30),
    "too many ports": (chain("inner tcp port N7", 2000), "no kernel takes more than 4096"),
    "hosts apart": ("inner host " + chain("10.N.N.N", 200) + chain(" or N.10.3.N", 200, ""), MAX_INSTRUCTIONS),
    "payloads": (chain("payload[N:4] = N", 300), MAX_INSTRUCTIONS),
    "mixed terms": (chain("(inner tcp port N and tcp port N)", 100), MAX_INSTRUCTIONS),
    "mixed relations": (chain("ip[N] = inner ip[N]", 100), MAX_INSTRUCTIONS),
    "a long name": ("inner host " + "a" * 100_000, "unknown host 'aaaa"),
    "a long standard name": ("inner tcp and host " + "a" * 100_000, "too long for libpcap"),
    "a long word": ("inner" + "r" * 100_000, ".*"),
    "a long number": ("inner port " + "9" * 100_000, "overflows 32 bits"),
    "a long sum": ("poff" + " + 1" * 3000 + " = 1", "arithmetic of more than 100 levels"),
    "a deep sum": ("poff" + " + (ip[0]" * 90 + ")" * 90 + " = 1", "too many registers"),
    "deep indexes": ("inner ip[" * 90 + "poff" + "]" * 90 + " = 1", MAX_INSTRUCTIONS),
    "signs": ("-" * 3000 + "poff = 1", "arithmetic of more than 100 levels"),
}


@pytest.mark.parametrize(("text", "end"), LONG.values(), ids=LONG)
def test_long_filters_end(text: str, end: int | str) -> None:
    result = sound(text)
    if isinstance(end, int):
        assert isinstance(result, Program), str(result)[:300]
        assert len(result) <= end
    else:
        assert isinstance(result, FilterError)
        assert re.search(end, result.message)


# ---- Programs ----


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("inner tcp port 80", ("tproto", "thoff")),
        ("tproto 6", ("tproto",)),
        ("nproto ip", ("nproto",)),
        ("depth > 1", ("depth",)),
        ("nhoff > 14", ("nhoff",)),
        ("inner ether multicast", ("lhoff",)),
        ("poff > 54", ()),  # a stock kernel has this one
        ("tcp port 80", ()),
    ],
)
def test_flow_keys_of_a_program(text: str, keys: tuple[str, ...]) -> None:
    program = compile(text)
    assert program.flow_keys == keys
    assert (program.kernel_refusal() is not None) == bool(keys)
    assert program.kernel_refusal(stock=False) is None


@pytest.mark.parametrize("text", ["inner tcp port 80", "tcp port 80", ""])
def test_programs_can_be_pickled(text: str) -> None:
    program = compile(text, linktype="RAW", snaplen=100)
    again = pickle.loads(pickle.dumps(program))
    assert again == program
    assert hash(again) == hash(program)
    assert {again: 1}[program] == 1


def test_a_program_knows_what_it_was_made_from() -> None:
    program = compile("inner tcp", linktype="RAW", snaplen=100)
    assert (program.expression, program.linktype, program.snaplen, program.target) == ("inner tcp", 12, 100, "flowkeys")
    assert compile("tcp").target == "classic"
    # A reserved word alone is none of ours: libpcap's program has libpcap's target.
    assert compile("host 10.0.0.1 and less 100").target == "classic"


ETHERNET_IP_UDP = bytes(12) + b"\x08\x00" + b"\x45" + bytes(8) + b"\x11" + bytes(10) + bytes(8)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("inner tcp port 80", 1),
        ("inner tcp or inner udp or inner icmp and poff > 5 and depth = 0", 1),
        ("tcp and inner tcp", 0),  # it is UDP: the plain term decides
        ("udp or inner tcp", 0),
        ("inner tcp and udp", 1),
        ("ip6 and (inner tcp or depth > 0)", 0),
        ("len < 10 and ip[2:2] = poff", 0),
        ("not ip or len > 5 or inner tcp", 0),
        ("udp", 0),
    ],
)
@pytest.mark.parametrize("optimize", [True, False])
def test_the_dissector_runs_when_it_must_and_once(text: str, calls: int, optimize: bool) -> None:
    made = []

    def dissect(packet: bytes, linktype: int) -> FlowKeys:
        made.append(packet)
        return FlowKeys(nhoff=14, nproto=0x0800, thoff=34, tproto=17, poff=42, lhoff=0)

    result = run(compile(text, optimize=optimize), ETHERNET_IP_UDP, dissect=dissect)
    assert len(made) == result.dissected == calls


@pytest.mark.parametrize(("text", "most"), [("inner tcp port 80", 11), ("poff > 54", 4), ("inner tproto tcp", 4)])
def test_short_programs(text: str, most: int) -> None:
    assert len(compile(text)) <= most


# ---- Settings of the walk ----

FRAMES = frames("EN10MB")

#: Settings with which `inner tcp port 80` no longer holds for a packet, as the walk ends before.
TOO_SHORT: list[tuple[dict[str, Any], str]] = [
    ({"max_levels": 1}, "vxlan"),
    ({"max_levels": 3}, "deep"),
    ({"vlan_tags": 1}, "qinq-mpls"),
    ({"mpls_labels": 1}, "qinq-mpls"),
    ({"extension_headers": 1}, "options6"),
    ({"gtpu_extensions": 0}, "gtpu"),
    ({"tunnel_ports": {"vxlan": ()}}, "vxlan"),
    ({"tunnel_ports": {"vxlan": (5000,)}}, "vxlan"),
    ({"tunnel_ports": {"geneve": []}}, "geneve"),
]


@pytest.mark.parametrize("target", CLASSIC_TARGETS)
@pytest.mark.parametrize(("chosen", "name"), TOO_SHORT, ids=str)
def test_settings_of_the_walk(chosen: dict[str, Any], name: str, target: str) -> None:
    program = compile("inner tcp port 80", target=target, **({"max_levels": 2} | chosen))
    assert not program.matches(FRAMES[name])
    assert program.matches(FRAMES["tcp6"])
    assert program.settings == WalkSettings(**({"max_levels": 2} | chosen))
    assert compile("inner tcp port 80").matches(FRAMES[name])


@pytest.mark.parametrize("target", CLASSIC_TARGETS)
def test_tunnels_at_other_ports(target: str) -> None:
    frame = FRAMES["vxlan"].replace((4789).to_bytes(2, "big"), (5000).to_bytes(2, "big"))
    settings: dict[str, Any] = {"tunnel_ports": {"vxlan": range(4999, 5002), "gtpu": [4789]}, "max_levels": 2}
    program = compile("inner tcp port 80", target=target, **settings)
    assert program.matches(frame)
    assert not program.matches(FRAMES["vxlan"])
    assert program.matches(FRAMES["geneve"])
    # What it was made with goes with it.
    assert pickle.loads(pickle.dumps(program)).matches(frame)
    assert pcapext.read_program(program.dump("json")) == program


def test_usual_settings_are_none() -> None:
    program = compile("inner tcp", max_levels=4, tunnel_ports={"vxlan": [4789, 8472]}, vlan_tags=3)
    assert program == compile("inner tcp")
    assert program.settings is None
    assert compile("inner tcp", max_levels=3) != program
    # A plain filter has no walk, but whatever else walks for its sake does so with its settings.
    assert compile("tcp", max_levels=3).settings == WalkSettings(max_levels=3)


@pytest.mark.parametrize("expression", ["tcp", "inner tcp", ""])
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"max_levels": 0}, "max_levels is 0, expected a number from 1 to 16"),
        ({"gtpu_extensions": 17}, "gtpu_extensions is 17, expected a number from 0 to 16"),
        ({"tunnel_ports": {"vxlna": [1]}}, "no tunnel over UDP is called 'vxlna'; there are vxlan, "),
        ({"tunnel_ports": {"gre": [0]}}, "tunnel port 0 of gre is not a number from 1 to 65535"),
        ({"tunnel_ports": "vxlan"}, "tunnel_ports is 'vxlan', expected a mapping"),
        ({"max_levels": "x" * 1000}, "max_levels is 'x{12}...x{13}', expected a number"),
    ],
)
def test_settings_that_cannot_be(expression: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{message}"):
        compile(expression, **chosen)


def test_error_of_a_program_too_long_names_the_settings() -> None:
    with pytest.raises(FilterError) as error:
        compile("not inner (tcp port 80 or udp port 53)", target="classic", max_levels=16, vlan_tags=1, extension_headers=9)
    assert re.fullmatch(
        r"the program would take \d+ instructions, and no kernel takes more than 4096; it is shorter with a smaller "
        r"max_levels \(now 16\), mpls_labels \(now 6\), extension_headers \(now 9\), gtpu_extensions \(now 2\)",
        str(error.value),
    )


@pytest.mark.parametrize("text", [chain("ip[N] = N", 300), chain("payload[N:4] = N", 700)], ids=["standard", "extended"])
def test_error_of_a_program_that_is_too_long_by_itself(text: str) -> None:
    with pytest.raises(FilterError, match=r"^the program would take \d+ instructions, and no kernel takes more than 4096$"):
        compile(text, optimize=False, max_levels=3)


@pytest.mark.parametrize("text", ["inner tcp port 80", "encap vxlan 42 and inner icmp", "not outer udp", "poff > 60"])
def test_programs_with_flow_keys_for_the_kernel(text: str) -> None:
    program = for_kernel(compile(text, snaplen=99, max_levels=3))
    assert program.kernel_refusal() is None
    assert (program.target, program.linktype, program.snaplen, program.expression) == ("classic", 1, 99, text)
    # One walk is enough: where `outer` and `encap` have one in the program already, its text is compiled anew.
    assert len(program) <= 1.1 * len(compile(text, target="classic", max_levels=3))
    assert for_kernel(program) is program


def test_programs_that_only_seem_to_be_of_their_text() -> None:
    """Such a program is lowered as it is: with the netmask that it was compiled with, or another text altogether."""
    text = "outer ip broadcast and inner tcp"
    program = for_kernel(compile(text, netmask=NETMASK, max_levels=2))
    frame = bytes(12) + bytes.fromhex("0800 45000028000000004006 0000 0a000001 0a0000ff") + bytes(20)
    assert program.matches(frame)
    assert not program.matches(frame[:33] + b"\xfe" + frame[34:])
    lying = replace(compile("inner udp", max_levels=2), expression="encap vxlan and inner tcp")
    assert for_kernel(lying).matches(ETHERNET_IP_UDP)


def test_programs_that_cannot_be_lowered() -> None:
    keys = (Instruction(LD_W_ABS, k=KEY_BY_NAME["tproto"].k), Instruction(RET_A))
    with pytest.raises(ProgramError, match=r"^the program loads flow keys, and there are none on link type IEEE802_11$"):
        for_kernel(Program(keys, 105))
    with pytest.raises(ProgramError, match=r"^instruction 1: a jump backwards makes a loop$"):
        for_kernel(Program((keys[0], Instruction(JA, k=0xFFFF_FFFE), keys[1])))


def test_public_names() -> None:
    assert pcapext.compile is compile
    assert libpcap_matches("udp", ETHERNET_IP_UDP, 1)


def test_link_type_that_libpcap_does_not_know_is_no_fault_of_an_empty_filter() -> None:
    with pytest.raises(FilterError, match="unknown data link type 9999"):
        compile("", linktype=9999)


# ---- For the engine ----


@pytest.mark.parametrize("text", ["", "tcp port 80", "ip6 protochain 6", "inner tcp port 80", "not encap vxlan and inner udp or outer arp"])
@pytest.mark.parametrize("optimize", [0, 1, 2])
def test_what_the_engine_runs_is_the_program_with_flow_keys(text: str, optimize: int) -> None:
    assert compile_to_run(text, 1, NATIVE, optimize=optimize) == compile(text, optimize=optimize).instructions


def test_what_the_engine_runs_goes_by_its_arguments() -> None:
    assert compile_to_run("ip broadcast", 1, NATIVE, netmask=0xFF) == compile("ip broadcast", netmask=0xFF).instructions
    options: dict[str, Any] = {"tunnel_ports": {"vxlan": []}, "max_levels": 2, "vlan_tags": 0}
    expected = compile("outer tcp port 80", linktype=113, **options)
    assert compile_to_run("outer tcp port 80", 113, NATIVE, **options) == expected.instructions
    assert compile_to_run("outer tcp port 80", 113, NATIVE) != expected.instructions


def test_the_engine_runs_more_than_a_kernel() -> None:
    text = chain("ip[N] = N", 300)
    with pytest.raises(FilterError, match="no kernel takes more than 4096"):
        compile(text, optimize=False)
    assert len(compile_to_run(text, 1, NATIVE, optimize=False)) > MAX_INSTRUCTIONS


@pytest.mark.parametrize(
    ("text", "linktype", "options", "message"),
    [
        ("tcp and", 1, {}, "unexpected end, expected a term"),
        ("inner tcp and", 1, {}, "unexpected end, expected a term"),
        ("inner tcp", 105, {}, "no extension term on link type IEEE802_11; there are some on EN10MB"),
        ("ether host 1:2:3:4:5:6", 12, {}, "ethernet addresses supported only on ethernet"),
        ("inner tcp and ip6 protochain 6", 1, {}, "'protochain' makes a loop, and a filter with extension terms cannot have one"),
        ("inner tcp and inner udp", 1, {}, "expression rejects all packets"),
        ("tcp and udp", 1, {}, "expression rejects all packets"),
        ("tcp", 1, {"optimize": 3}, "optimize is 3, expected 0, 1 or 2"),
        ("tcp", 1, {"max_levels": 0}, "max_levels is 0, expected a number from 1 to 16"),
        ("inner tcp", 1, {"vlan_tags": 17}, "vlan_tags is 17, expected a number from 0 to 16"),
        ("inner tcp", 1, {"tunnel_ports": {"x": [1]}}, "no tunnel over UDP is called 'x'"),
    ],
)
def test_errors_of_what_the_engine_runs(text: str, linktype: int, options: dict[str, Any], message: str) -> None:
    """Those of `compile`."""
    with pytest.raises((FilterError, SettingsError)) as error:
        compile_to_run(text, linktype, NATIVE, **options)
    assert message in str(error.value)
    with pytest.raises(type(error.value)) as same:
        compile(text, linktype=linktype, **options)
    assert str(same.value) == str(error.value)


@pytest.mark.parametrize("expression", ["inner tcp port 80", "tcp port 80 or inner host 10.0.0.1", "outer udp and inner tcp port 80"])
def test_all_keys_at_once_for_a_stock_kernel(expression: str) -> None:
    """No longer than the program that a stock kernel gets for the one with a load for each key."""
    program = compile(expression, target="keys")
    classic = for_kernel(program)
    assert program.flow_keys == ("keys",)
    assert classic.kernel_refusal() is None
    assert len(classic) == len(for_kernel(compile(expression)))
    assert {program.matches(frame) for frame in FRAMES.values()} == {False, True}
    assert [classic.matches(frame) for frame in FRAMES.values()] == [program.matches(frame) for frame in FRAMES.values()]
