"""Filters in the running kernel, on frames that come in on a real interface (wire.py), and its own flow dissector beside our walk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import packets
import pytest
from everywhere import TEMPLATES, compiled, observed, sample
from frames import as_seen, receivable
from graphs import EFFORT
from oracle import NETMASK, expected, text_of
from packets import EN10MB, Generated
from wire import LONGEST, SHORTEST, SLL, SLL2, Wire, cooked, seen

from pcapext import bpf
from pcapext.bpf import OPCODE_BY_CODE, Instruction, Operand, Program
from pcapext.dissect import dissect
from pcapext.flowkeys import KEY_BY_NAME

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.tools("ip")]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def test_frames_are_seen_without_their_outer_tag(wire: Wire) -> None:
    made = [packet for packet in sample(2000, 1, [EN10MB]) if SHORTEST <= len(packet.data) <= LONGEST]
    wire.send(packet.data for packet in made)
    shown = [seen(packet.data) for packet in made]
    assert wire.control.take() == [frame for frame in shown if frame is not None]
    assert shown.count(None) > 5
    assert sum(frame is not None and frame != packet.data for frame, packet in zip(shown, made, strict=True)) > 100


#: With little effort those that test_everywhere.py compiles to classic programs too.
FILTERS = TEMPLATES if EFFORT > 1 else TEMPLATES[::5]


def test_verdicts(wire: Wire) -> None:
    """Each filter on a socket of its own, all on the same frames: exactly those come through that the rules accept, in their order."""
    assert len(FILTERS) >= 12
    sent = receivable(1500 * min(EFFORT, 20), 2)
    made = [as_seen(packet) for packet in sent]
    with ExitStack() as stack:
        programs = [compiled(text_of(template), EN10MB, NETMASK, True, "classic") for template in FILTERS]
        taps = [stack.enter_context(wire.tap(program.instructions)) for program in programs]
        wire.send(packet.data for packet in sent)
        assert wire.control.take() == [packet.data for packet in made]
        for template, tap in zip(FILTERS, taps, strict=True):
            wanted = [packet.data for packet in made if expected(template, packet, NETMASK)]
            assert tap.take() == wanted, template
            assert 3 <= len(wanted) <= len(made) - 3, template


# ---- The kernel's own payload offset ----

#: `ld #poff; ret a`: cuts a packet at the offset of its payload, as net/core/flow_dissector.c, skb_get_poff, has it.
POFF = (Instruction(bpf.LD_W_ABS, k=KEY_BY_NAME["poff"].k), Instruction(bpf.RET_A))

#: Where the kernel's flow dissector (__skb_flow_dissect unless said otherwise) goes on in another way than the walk, and why. It takes
#: a packet whose protocol it does not know for one without a payload, 0; where it ends on a protocol that it knows, the payload is there.
DIFFERENCES = {
    "tag 0x9100": "it knows 0x8100 and 0x88a8",
    "Ethernet by EtherType": "0x6558 is known behind GRE only (__skb_flow_dissect_gre)",
    "NSH": "EtherType 0x894f is not known",
    "ARP": "ARP and RARP headers are where it ends, for us there is no payload (__skb_flow_dissect_arp)",
    "MPLS": "it ends behind the first label (__skb_flow_dissect_mpls)",
    "PPP": "it ends on a PPP protocol that is not IP; older kernels without a payload, newer ones know MPLS and take LCP for one",
    "AH": "AH is not stepped over",
    "EtherIP": "protocol 97 is not known",
    "Ethernet by IP protocol": "protocol 143 is not known",
    "UDP tunnel": "it does not look into UDP",
    "ERSPAN": "protocol types 0x88be and 0x22eb are not known (__skb_flow_dissect_gre goes on with them as EtherTypes)",
    "IPv6 fragment": "it ends on every fragment header: skb_get_poff does not set FLOW_DISSECTOR_F_PARSE_1ST_FRAG",
    "IPv4 fragment": "it ends on a first fragment, for the same reason",
    "many headers": "it goes on at most 15 times (MAX_FLOW_DISSECT_HDRS)",
}


#: Layers behind an IP header that the kernel goes into.
TUNNELS = ("ip", "ip6", "gre", "mpls")


def difference(made: Generated) -> tuple[str, int | None] | None:
    """Where the kernel goes another way through a whole packet, and the payload offset that it then has; None: not told here."""
    data, layers = made.data, ("", *made.layers, "")
    if sum(layer in ("vlan", "pppoe", "ip", "ip6", "options", "routing", "gre", "mpls") for layer in layers) > 15:
        return "many headers", None
    places = (0, *made.places, len(data))
    for at, place in enumerate(made.places, 1):
        before, layer, behind, end = layers[at - 1], layers[at], layers[at + 1], places[at + 1]
        # GRE can have more behind its protocol type.
        named = places[at - 1] + 2 if before == "gre" else place - 2
        match layer:
            case "vlan" if data[named : named + 2] == b"\x91\x00":
                return "tag 0x9100", 0
            case "nsh":
                return "NSH", 0
            case "arp" | "rarp":
                return "ARP", place
            case "mpls" | "lcp" if before == "pppoe":
                return "PPP", None
            case "mpls":
                return "MPLS", end
            case "ah":
                return "AH", place
            case "etherip":
                return "EtherIP", place
            case "eth" if before in ("eth", "vlan"):
                return "Ethernet by EtherType", 0
            case "eth" if before not in ("", "gre"):
                return "Ethernet by IP protocol", place
            case "udp" if behind != "data":
                return "UDP tunnel", end
            case "gre" if data[place + 2 : place + 4] in (b"\x88\xbe", b"\x22\xeb"):
                return "ERSPAN", 0
            case "fragment" if behind in ("options", "routing", *TUNNELS):
                return "IPv6 fragment", end
            case "ip" if behind in TUNNELS and data[place + 6] & 0x20:
                return "IPv4 fragment", end
    return None


def test_payload_offset(wire: Wire) -> None:
    """The kernel's is ours wherever both walk the same headers, and elsewhere what the table says."""
    found: Counter[tuple[str, bool]] = Counter()
    with wire.tap(POFF) as tap:
        for made in packets.packets(2500 * min(EFFORT, 20), seed=3, linktypes=[EN10MB], odd=False):
            frame = seen(made.data)
            assert frame is not None
            ours = dissect(frame).poff
            reason, theirs = difference(made) or ("", ours)
            wire.send([made.data])
            wire.control.take()
            kept = sum(map(len, tap.take()))
            if theirs is not None:
                if reason and theirs:
                    theirs -= len(made.data) - len(frame)
                assert kept == min(theirs, len(frame)), (reason, made)
            found[reason, kept == ours] += 1
    assert found["", True] > 500
    assert {reason for reason, same in found if not same} == set(DIFFERENCES)


# ---- Cooked handles ----

#: Filters for the `any` device: both kinds of link type, negations, terms of libpcap's before and behind.
COOKED = """
{inner tcp}
not {inner tcp}
{inner udp port 53} or {inner icmp}
{inner udp} or {inner sctp}
{encap} and not {inner icmp}
"{depth} > 0" and {inner tcp port 80}
"{poff} > 60" and {encap}
ip and {inner host 10.0.0.1}
""".strip().splitlines()


#: The length of the header that libpcap makes up, and the places in it that the kernel has a word for (pcap-linux.c, fix_offset).
COOKED_HEADERS = {SLL: (16, (0, 14)), SLL2: (20, (0, 4, 10))}


def inside_header(program: Program) -> list[int]:
    """The loads that libpcap cannot move: it gives the program up, or, from X + k with k one of those places, makes it another one."""
    length, known = COOKED_HEADERS[program.linktype]
    loads = (Operand.ABSOLUTE, Operand.INDIRECT, Operand.HEADER_LENGTH)
    return [
        index
        for index, instruction in enumerate(program)
        if (operand := OPCODE_BY_CODE[instruction.code].operand) in loads and instruction.k < length
        if operand is not Operand.ABSOLUTE or instruction.k not in known
    ]


@pytest.mark.parametrize("linktype", [SLL, SLL2])
def test_no_load_is_inside_of_the_cooked_header(linktype: int) -> None:
    programs = [compiled(text_of(template), linktype, NETMASK, True, "classic") for template in COOKED]
    assert {program.expression: inside_header(program) for program in programs if inside_header(program)} == {}


@pytest.mark.parametrize("linktype", [SLL, SLL2])
@pytest.mark.parametrize("template", COOKED)
def test_cooked_handles(wire: Wire, linktype: int, template: str) -> None:
    """libpcap moves the program's offsets when it is set on the `any` device; the kernel takes it, and the right packets arrive.

    There `ld #pktlen` does not count the header that libpcap makes up, of 16 or 20 bytes, and a test for the length goes wrong where
    fewer bytes than these are left. So each frame here has 20 bytes more behind its last header.
    """
    program = compiled(text_of(template), linktype, NETMASK, True, "classic")
    whole = [packet.data + bytes(20) for packet in receivable(1000 * min(EFFORT, 20), 4) if packet.length == len(packet.made.data)]
    with wire.any_handle(linktype, None) as everything, wire.any_handle(linktype, program.instructions) as handle:
        assert handle.filter_length() == len(program)
        wire.send(whole)
        wire.control.take()
        delivered = everything.take()
        assert len(delivered) == len(whole)
        wanted = []
        for packet, frame in zip(delivered, map(seen, whole), strict=True):
            assert frame is not None
            assert packet.endswith(frame[14:])
            if expected(template, observed(cooked(frame, linktype), linktype), NETMASK):
                wanted.append(packet)
        assert handle.take() == wanted
        assert 3 <= len(wanted) <= len(whole) - 3
