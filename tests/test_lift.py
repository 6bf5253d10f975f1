"""Lifting, against libpcap's interpreter: what a program returns for a packet is what its graph and the program made of that return.

libpcap's own unoptimized programs, for standard expressions over every kind of link layer that its code generator knows,
and random programs. Each is lifted and assembled, as it is and optimized, and run on packets that were made to go
through it in every direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import pytest
from bpf_oracles import PROLOGUE, Kernel, libpcap_accepts, libpcap_run, random_instructions
from filters import LINK_TYPES, words
from graphs import EFFORT, evaluate, random_packet, steered_packet

from pcapext import bpf
from pcapext.assemble import assemble
from pcapext.bpf import OPCODE_BY_CODE, Instruction, Operand, Program, kernel_fault
from pcapext.errors import FilterError, ProgramError
from pcapext.flowkeys import FlowKeys
from pcapext.lift import lift, name_keys
from pcapext.machine import run
from pcapext.optimize import optimize
from pcapext.pcap_bridge import compile_expression
from pcapext.textforms import read_program

#: Each kind of link layer that libpcap's code generator tells from others (gencode.c, init_linktype).
_LINKTYPES = """
    EN10MB RAW IPV4 IPV6 LINUX_SLL LINUX_SLL2 NULL LOOP ENC PPP PPP_BSDOS PPP_SERIAL PPP_ETHER SLIP SLIP_BSDOS C_HDLC FRELAY MFR
    IEEE802_11 IEEE802_11_RADIO IEEE802_11_RADIO_AVS PRISM_HEADER PPI FDDI IEEE802 IP_OVER_FC ARCNET ARCNET_LINUX LTALK
    ATM_RFC1483 ATM_CLIP SUNATM MTP2 MTP2_WITH_PHDR ERF PFLOG PFSYNC SYMANTEC_FIREWALL APPLE_IP_OVER_IEEE1394 DOCSIS
    JUNIPER_ATM1 JUNIPER_ATM2 JUNIPER_ETHER JUNIPER_MLPPP JUNIPER_PPPOE JUNIPER_PPPOE_ATM NETANALYZER NETANALYZER_TRANSPARENT
    IPNET NFLOG LINUX_LAPD BACNET_MS_TP USB_LINUX CAN_SOCKETCAN IEEE802_15_4 IEEE802_16_MAC_CPS_RADIO
"""
LINKTYPES = _LINKTYPES.split()

_EXPRESSIONS = r"""
    ip
    ip6
    arp
    rarp
    not ip
    tcp
    udp
    icmp
    icmp6
    sctp
    atalk
    aarp
    decnet
    ipx
    netbeui
    stp
    iso
    esis
    isis
    iso proto \clnp
    isis proto 17
    l1
    iih
    lsp
    snp
    csnp
    moprc
    lat
    host 10.0.0.1
    src host 10.0.0.1
    dst host 10.0.0.1
    src and dst host 10.0.0.1
    ip host 10.0.0.1
    arp host 10.0.0.1
    rarp src host 10.0.0.1
    host 2001:db8::1
    src host 2001:db8::1
    net 10.1
    net 10.0.0.0/8
    net 10.1.2.0 mask 255.255.254.0
    net 2001:db8::/32
    net 2001:db8::/65
    src net 192.168.1
    ip broadcast
    ip multicast
    ip6 multicast
    broadcast
    multicast
    ether broadcast
    ether multicast
    ether host 02:00:00:00:00:01
    ether src 02:00:00:00:00:01
    ether dst 02:00:00:00:00:01
    ether proto 0x88cc
    ether proto 0x42
    ether proto \ip
    port 80
    src port 80
    tcp port 80 or 443
    udp dst port 53
    sctp port 5
    not port 80
    portrange 80-90
    tcp src portrange 1024-65535
    udp portrange 5-5
    proto 17
    ip proto 6
    ip6 proto 58
    ip6 proto \udp
    not (tcp port 80 and host 10.0.0.1) or icmp
    tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn
    tcp[13] = 2 and tcp[2:2] > 1023
    tcp[tcp[12] >> 2 : 4] = 0x47455420
    (ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2)) != 0
    ip[6:2] & 0x1fff = 0
    ip[0] & 0xf > 5
    ip[8] < 5
    ip6[40] = 6
    ip6[6] = 44 and ip6[42:2] & 0xfff8 = 0
    icmp[icmptype] = icmp-echo
    icmp6[icmp6type] = 128
    udp[4:2] >= 20 or udp[8:4] = 0x12345678
    ip[ip[0] & 0xf : 2] = ip[2:2]
    ip[ip[0] - 70] = 1
    ip[2:2] - 5 > len
    ether[0] & 1 = 0 and ip[16] >= 224
    ether[12:2] = 0x800
    link[0] + link[1] * 2 / (link[2] | 1) % 7 = 3
    link[1] / link[2] > 1
    link[1] % link[2] = 1
    link[3] << link[2] > 100 or link[3] >> 2 = 1
    link[0] ^ link[1] != -link[2]
    len > 60
    len <= 40
    greater 60
    less 40
    len - 14 > 20 and len != 77
    vlan
    vlan 10
    vlan and ip
    vlan 10 and host 10.0.0.1
    vlan and vlan and tcp port 80
    vlan and vlan 7 and vlan and ip6
    vlan or ip
    not vlan and not mpls
    (vlan 5 and tcp) or (vlan and vlan 6 and udp)
    mpls
    mpls 100
    mpls and ip
    mpls 100 and mpls 200 and tcp port 80
    mpls and mpls and mpls and host 10.0.0.1
    vlan and mpls 5 and ip[8] < 3
    pppoed
    pppoes
    pppoes 3
    pppoes and ip
    pppoes 3 and tcp port 80
    vlan and pppoes and ip6
    vlan and pppoes 9 and mpls and udp
    geneve
    geneve 42
    geneve and tcp port 80
    geneve 42 and vlan and ip host 10.0.0.1
    geneve and ip6 and icmp6
    geneve and geneve 7 and arp
    geneve and ip[ip[0] & 3] = ether[1]
    llc
    llc i
    llc s
    llc u
    llc rr
    llc ui
    llc sabme
    llc and stp
    ether[0] & 1 != 0 and not ip
    type mgt
    type ctl
    type data
    type mgt subtype beacon
    type data subtype qos-data
    subtype ack
    type data subtype null and not dir nods
    dir tods
    dir fromds
    dir nods
    dir dstods
    dir 2
    wlan host 02:00:00:00:00:01
    wlan src 02:00:00:00:00:01
    wlan dst 02:00:00:00:00:01
    wlan addr1 02:00:00:00:00:01
    wlan addr2 02:00:00:00:00:01
    wlan addr3 02:00:00:00:00:01
    wlan addr4 02:00:00:00:00:01
    wlan ra 02:00:00:00:00:01
    wlan ta 02:00:00:00:00:01
    wlan[0] & 0xfc = 0x80
    radio[0] = 0
    radio[2:2] > 30
    type data and tcp port 80
    wlan host 02:00:00:00:00:01 and udp port 53 and not dir tods
    lane
    metac
    bcc
    oamf4sc
    oamf4ec
    sc
    ilmic
    oam
    oamf4
    connectmsg
    metaconnect
    vpi 3
    vci > 5
    vpi 0 and vci 33 and ip
    lane and ip host 10.0.0.1
    lane and vlan 3
    fisu
    lssu
    msu
    hfisu
    hlssu
    hmsu
    sio 3
    opc 5
    dpc > 7
    sls 9
    hsio 3
    hopc 5
    hdpc 7
    hsls 9
    opc 5 or opc 6
    ifname eth0
    on eth0
    rulenum 3
    srnr 3
    reason match
    action pass
    action block
    ruleset main
    inbound
    outbound
    ifindex 3
    fddi proto 3
    fddi host 02:00:00:00:00:01
    tr host 02:00:00:00:00:01
    link proto 0x800
    link[0] = 0
    ether[20000:4] = 1
    decnet host 1.2
    decnet src host 1.2
    carp
    vrrp
    pim
    igmp
    igrp
    ah
    esp
    ah or esp or pim
    host 10.0.0.1 and (port 1 or port 2 or port 3 or port 4)
    host 10.0.0.1 or host 10.0.0.2 or host 10.0.0.3 or host 2001:db8::1
    not (not (not (tcp or udp)))
    (tcp or udp) and (src port 53 or dst port 53) and not (net 10.0.0.0/8 or net 192.168.0.0/16)
    ip and not ip and tcp
    tcp and udp
    tcp or not tcp
    1 = 1
    1 = 2
    len = len
    5 > ip[0]
    0x45 = ip[0]
    3 & 1 = 1 and ip[0] & 0xf0 = 0x40
    ip[0:4] = ip[4:4]
    ip[0:4] > ip[4:4] and ip[0:4] >= tcp[4:4]
    ip[8] * 256 + ip[9] = ip[8:2]
    ((ip[0] + ip[1]) * (ip[2] - ip[3])) / ((ip[4] & 7) + 1) > 5
    (ip[0] + (ip[1] + (ip[2] + (ip[3] + (ip[4] + (ip[5] + (ip[6] + (ip[7] + (ip[8] + ip[9]))))))))) = 100
"""
EXPRESSIONS = [line.strip() for line in _EXPRESSIONS.strip().splitlines()]

#: One in so many of the expressions that mean something on a link type is tried unless more effort is asked for.
STRIDE = max(1, 6 // EFFORT)

SNAPLEN = 96


def programs(linktype: str) -> list[tuple[str, tuple[Instruction, ...]]]:
    """libpcap's programs for this link type's share of the expressions, or for all where only a few mean anything."""
    compiled = []
    for expression in EXPRESSIONS:
        try:
            compiled.append((expression, compile_expression(expression, linktype, SNAPLEN, 0xFFFF_FF00, optimize=False)))
        except FilterError:
            continue
    stride = STRIDE if len(compiled) > 40 else 1
    return compiled[LINKTYPES.index(linktype) % stride :: stride]


def packets(instructions: Sequence[Instruction], rng: Random) -> Iterator[bytes]:
    """Packets that go through a program, such packets cut short, and others."""
    for _ in range(6):
        packet = steered_packet(instructions, rng)
        yield packet
        yield packet[: rng.randrange(len(packet) + 1)]
    yield random_packet(rng)


def returned(instructions: tuple[Instruction, ...], packet: bytes, wirelen: int) -> int:
    """What libpcap's interpreter returns, or the machine where the program reads what it did not write.

    libpcap 1.10 generates such programs for `geneve` on link layers of variable length. Its interpreter then reads what is on the
    stack; in the machine M[] begins as 0.
    """
    fault = kernel_fault(instructions, stock=False)
    if fault and "is read, but not written" in fault.reason:
        return run(Program(instructions), packet, wirelen).value
    return libpcap_run(instructions, packet, wirelen)


def check(name: str, instructions: tuple[Instruction, ...], rng: Random) -> int:
    """Lift a program, and compare. The number of packets that it accepts."""
    graph = lift(instructions)
    plain, best = assemble(graph), assemble(optimize(graph))
    kernel_takes_it = kernel_fault(instructions) is None
    for made in (plain, best):
        assert libpcap_accepts(made), name
        assert kernel_fault(made) is None or not kernel_takes_it, name
    accepted = 0
    for packet in packets(instructions, rng):
        wirelen = len(packet) + rng.choice((0, 0, 40))
        expected = returned(instructions, packet, wirelen)
        accepted += expected != 0
        at = (name, packet.hex(), wirelen)
        assert evaluate(graph, packet, wirelen) == expected, at
        assert libpcap_run(plain, packet, wirelen) == expected, at
        assert libpcap_run(best, packet, len(packet)) == returned(instructions, packet, len(packet)), at
        assert run(Program(best), packet).value == returned(instructions, packet, len(packet)), at
    return accepted


@pytest.mark.parametrize("linktype", LINKTYPES)
def test_standard_expressions(linktype: str) -> None:
    rng = Random(linktype)
    tried = [check(f"{linktype}: {expression}", instructions, rng) for expression, instructions in programs(linktype)]
    assert len(tried) >= 8
    assert sum(tried) >= 10


def test_the_table_reaches_every_term_and_link_type() -> None:
    """So that a table in which nothing compiles is noticed: every expression means something somewhere."""
    meaningless = set(EXPRESSIONS)
    for linktype in LINKTYPES:
        for expression in sorted(meaningless):
            try:
                compile_expression(expression, linktype, SNAPLEN, 0xFFFF_FF00, optimize=False)
            except FilterError:
                continue
            meaningless.remove(expression)
    assert not meaningless


def test_random_expressions() -> None:
    tried = 0
    for seed in range(220 * EFFORT):
        rng = Random(f"filters {seed}")
        made_for = rng.choice(LINK_TYPES)
        linktype = rng.choice([made_for, made_for, 1, 12, 113, 127, 192])
        text = " ".join(words(rng, made_for)).replace("~", " ")
        try:
            instructions = compile_expression(text, linktype, SNAPLEN, None, optimize=False)
        except FilterError:
            continue
        if all(target > index for index, instruction in enumerate(instructions) for target in instruction.targets(index)):
            check(f"{linktype}: {text}", instructions, rng)
            tried += 1
    assert tried > 100


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.mark.kernel
def test_the_kernel_agrees(kernel: Kernel) -> None:
    """The real kernel takes what is made, and keeps the same bytes of packets as with libpcap's program."""
    tried = kept = 0
    for linktype in LINKTYPES[:: 6 // min(EFFORT, 6)]:
        for expression, instructions in programs(linktype):
            if kernel_fault(instructions) or any(
                OPCODE_BY_CODE[i.code].operand is Operand.INDIRECT and i.k >= 1 << 31 for i in instructions
            ):
                continue  # to the kernel, X and a negative k are a place in the packet; to libpcap's interpreter they are none
            rng = Random(expression)
            graph = lift(instructions)
            samples = [packet for packet in packets(instructions, rng) if packet]
            assert kernel.accepts(instructions)
            expected = [kernel.kept(packet) for packet in samples]
            for made in (assemble(graph), assemble(optimize(graph))):
                assert kernel.accepts(made), (linktype, expression)
                assert [kernel.kept(packet) for packet in samples] == expected, (linktype, expression)
            tried += 1
            kept += sum(expected)
    assert tried > 150
    assert kept > 10_000


def test_random_programs() -> None:
    accepted = 0
    for seed in range(1000 * EFFORT):
        rng = Random(f"programs {seed}")
        instructions = (*PROLOGUE, *random_instructions(rng))
        graph = lift(instructions)
        made = assemble(graph)
        assert kernel_fault(made, stock=False) is None or kernel_fault(instructions, stock=False) is not None
        best = assemble(optimize(graph))
        for packet in (random_packet(rng), random_packet(rng, 20), steered_packet(instructions, rng)):
            expected = libpcap_run(instructions, packet, len(packet))
            accepted += expected != 0
            results = [evaluate(graph, packet), libpcap_run(made, packet, len(packet)), libpcap_run(best, packet, len(packet))]
            assert results == [expected] * 3, (seed, packet.hex())
    assert accepted > 700


@pytest.mark.parametrize("expression", ["ip protochain 6", "ip6 protochain 6", "protochain 17", "tcp and ip6 protochain 17"])
def test_loops_are_refused(expression: str) -> None:
    with pytest.raises(ProgramError, match=r"^instruction \d+: a jump backwards makes a loop$"):
        lift(compile_expression(expression, "EN10MB", SNAPLEN, None, optimize=False))


def test_a_jump_to_itself_is_a_loop() -> None:
    with pytest.raises(ProgramError, match="instruction 0: a jump backwards"):
        lift((Instruction(bpf.JA, k=0xFFFF_FFFF), Instruction(bpf.RET_K)))


ACCEPT, REJECT = Instruction(bpf.RET_K, k=9), Instruction(bpf.RET_K)

#: Programs and the graphs that they are, each worked out by hand.
GRAPHS: list[tuple[str, list[Instruction], str]] = [
    ("the snap length alone", [ACCEPT], "0: return 9"),
    (
        "a test",
        [Instruction(bpf.LD_H_ABS, k=12), Instruction(bpf.JEQ_K, 0, 1, 0x800), ACCEPT, REJECT],
        "0: load2[12] eq 2048 ? 2 : 3\n2: return 9\n3: return 0",
    ),
    (
        "A is kept for a later block",
        [
            Instruction(bpf.LD_LEN),
            Instruction(bpf.JGT_K, 0, 1, 60),
            Instruction(bpf.RET_A),
            Instruction(bpf.ADD_K, k=1),
            Instruction(bpf.RET_A),
        ],
        "0: A := length; length gt 60 ? 2 : 3\n2: return A\n3: return (A add 1)",
    ),
    (
        "A and X change places",
        [
            Instruction(bpf.LD_LEN),
            Instruction(bpf.LDX_MSH, k=14),
            Instruction(bpf.JGT_X, 0, 3),
            Instruction(bpf.ST, k=0),
            Instruction(bpf.TXA),
            Instruction(bpf.LDX_MEM, k=0),
            Instruction(bpf.SUB_X),
            Instruction(bpf.RET_A),
        ],
        "0: A := length; X := ((load1[14] and 15) lsh 2); length gt ((load1[14] and 15) lsh 2) ? 3 : 6\n"
        "3: A' := A; A := X; X := A'; goto 6\n"
        "6: return (A sub X)",
    ),
    (
        "a load that nobody reads can reject",
        [Instruction(bpf.LD_W_ABS, k=20), Instruction(bpf.LD_LEN), Instruction(bpf.RET_A)],
        "0: void := load4[20]; return length",
    ),
    (
        "a division that nobody reads can reject",
        [Instruction(bpf.LDX_LEN), Instruction(bpf.DIV_X), Instruction(bpf.LD_LEN), Instruction(bpf.RET_A)],
        "0: A := 0; void := (A div length); return length",
    ),
    (
        "a load with X, and one with a constant in X",
        [
            Instruction(bpf.LDX_LEN),
            Instruction(bpf.LD_B_IND, k=14),
            Instruction(bpf.LDX_IMM, k=3),
            Instruction(bpf.LD_H_IND, k=14),
            Instruction(bpf.RET_A),
        ],
        "0: void := load1[length + 14]; return load2[17]",
    ),
    ("registers begin as 0", [Instruction(bpf.ADD_X), Instruction(bpf.RET_A)], "0: A := 0; X := 0; return (A add X)"),
    ("and so does M[]", [Instruction(bpf.LD_MEM, k=3), Instruction(bpf.RET_A)], "0: M3 := 0; return M3"),
    ("neg", [Instruction(bpf.LD_LEN), Instruction(bpf.NEG), Instruction(bpf.RET_A)], "0: return (0 sub length)"),
    (
        "code that nothing leads to",
        [Instruction(bpf.JA, k=1), ACCEPT, Instruction(bpf.RET_K, k=8), Instruction(bpf.LD_LEN), Instruction(bpf.RET_A)],
        "0: goto 2\n2: return 8",
    ),
    (
        "an ancillary word",
        [Instruction(bpf.LD_B_ABS, k=0xFFFF_F030), Instruction(bpf.JEQ_K, 0, 1, 1), ACCEPT, REJECT],
        "0: ancillary1[0xfffff030] eq 1 ? 2 : 3\n2: return 9\n3: return 0",
    ),
]


@pytest.mark.parametrize(("instructions", "graph"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graph(instructions: list[Instruction], graph: str) -> None:
    assert str(lift(instructions)) == graph


@pytest.mark.parametrize("asked", [0, 1, 3, 7, 9])
def test_all_keys_at_once_are_keys_one_by_one(asked: int) -> None:
    """What `ld #keys` leaves in A and M[], with another value in the slots that it does not write."""
    stores = " ".join(f"ldx #{100 + slot} stx M[{slot}]" for slot in range(8))
    total = " ".join(f"ldx M[{slot}] mul #5 add x" for slot in range(8))
    program = read_program(f"{stores} ldi {asked} ld #keys {total} ret a")
    cfg = lift(program.instructions)
    keys = FlowKeys(nhoff=14, nproto=0x800, thoff=34, tproto=6, poff=54, depth=1, lhoff=0)
    assert evaluate(name_keys(cfg), bytes(60), 60, keys) == run(program, bytes(60), 60, lambda *_: keys).value


@pytest.mark.parametrize("source", ["ld #len ld #keys ret a", "ld #keys ret a", "ld #2 jeq #1, a, a a: ld #keys ret a"])
def test_how_many_keys_must_be_known(source: str) -> None:
    with pytest.raises(ProgramError, match=r"^how many keys 'ld #keys' loads is not known: there is no 'ld #' right before it$"):
        lift(read_program(source).instructions)
