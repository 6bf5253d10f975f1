"""The walk in C: it finds the flow keys of the reference walk in every packet, and programs with flow keys get them from it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from random import Random

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import EN10MB, LINK_TYPES
from test_dissect import BEGINNINGS, CASES, CUTS

from pcapext import bpf, encapsulation
from pcapext.bpf import JEQ_K, LD_B_ABS, LD_H_ABS, LD_IMM, LD_MEM, LD_W_ABS, LDX_MEM, RET_A, RET_K, ST, Instruction, Program, program_of
from pcapext.compiler import compile
from pcapext.dissect import dissect as reference
from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYERS, TunnelPorts, WalkSettings
from pcapext.engine import Matcher, ffi, lib, matcher_of
from pcapext.engine.walk import dissect, walk_table
from pcapext.errors import FilterError, ProgramError
from pcapext.flowkeys import FLOW_KEYS, KEY_BY_NAME, SKF_AD_OFF, FlowKeys
from pcapext.layout import (
    ByNibble,
    ByNumber,
    Counted,
    Encapsulation,
    Equals,
    Extensions,
    Field,
    IfSet,
    Length,
    Prefix,
)
from pcapext.machine import run
from pcapext.textforms import read_program

ENGINE = Path(__file__).parent.parent / "pcapext" / "engine"


def check(data: bytes, linktype: int, settings: WalkSettings = DEFAULT_SETTINGS) -> FlowKeys:
    keys = dissect(data, linktype, settings)
    assert keys == reference(data, linktype, settings), (linktype, settings, data.hex())
    return keys


# ---- What it finds ----


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_packets_written_by_hand(case: tuple[int, str, tuple[int, ...], object]) -> None:
    linktype, text, keys, _ = case
    data = bytes.fromhex(text)
    assert dissect(data, linktype) == FlowKeys(*keys)
    for length in range(len(data)):
        check(data[:length], linktype)


@pytest.mark.parametrize("case", CUTS.values(), ids=CUTS)
def test_cut_packets_written_by_hand(case: tuple[int, str, dict[int, tuple[int, ...]]]) -> None:
    linktype, text, keys_from = case
    data, keys = bytes.fromhex(text), None
    for length in range(len(data) + 1):
        keys = keys_from.get(length, keys)
        if keys is not None:
            assert dissect(data[:length], linktype) == FlowKeys(*keys), f"{length} bytes"


@pytest.mark.parametrize("linktype", LINK_TYPES)
def test_every_cut_of_generated_packets(linktype: int) -> None:
    """Against what the generator knows by construction."""
    for packet in packets.packets(120, seed=linktype, linktypes=[linktype]):
        for length in range(len(packet.data) + 1):
            assert dissect(packet.data[:length], linktype) == packet.keys_of(length), (packet.layers, length, packet.data.hex())


def settings_from(random: Random) -> WalkSettings:
    """Any settings: bounds near the usual ones and at the ends, the usual ports given to other tunnels."""
    ports = [port for usual in TunnelPorts.DEFAULTS.values() for port in usual]
    random.shuffle(ports)
    given = {name: [ports.pop() for _ in range(random.choice((0, 1, 1, 2))) if ports] for name in TunnelPorts.DEFAULTS}
    bounds = {name: random.choice((0, 1, 1, 2, 3, 5, 16)) for name, _ in DEFAULT_SETTINGS.bounds}
    return WalkSettings(given if random.random() < 0.7 else TunnelPorts(), **bounds | {"max_levels": random.choice((1, 2, 3, 5, 16))})


def test_settings() -> None:
    random, differ = Random(7), 0
    generated = [*packets.packets(400, seed=7)]
    for _ in range(60):
        settings = settings_from(random)
        for packet in random.sample(generated, 40):
            keys = check(packet.data, packet.linktype, settings)
            differ += keys != packet.keys
            check(packet.data[: random.randrange(len(packet.data) + 1)], packet.linktype, settings)
    assert differ > 400


def test_offsets_have_16_bits() -> None:
    """Headers that come to stand before, around and behind the last byte that is seen."""
    settings = WalkSettings(extension_headers=16)
    addresses = "20010db8000000000000000000000001 20010db8000000000000000000000002"
    ip6, longest = bytes.fromhex(f"60000000 0000 3c 40 {addresses}"), bytes.fromhex("3cff" + "00" * 2046)
    tcp = bytes.fromhex(f"60000000 0000 06 40 {addresses} c000 0050 00000001 00000002 f010 2000 0000 0000") + bytes(100)
    link_layers = {packets.IPV6: b"", packets.LOOP: bytes.fromhex("0000000a"), EN10MB: bytes(12) + b"\x86\xdd"}
    found = []
    for linktype, start in link_layers.items():
        for eights in range(226, 256):
            last = bytes([41, eights]) + bytes(8 * eights + 6)
            data = start + ip6 + longest * 15 + bytes.fromhex("29ff") + longest[2:] + ip6 + longest * 15 + last + tcp
            found.append(check(data, linktype, settings))
            assert found[-1] == check(data[:65535], linktype, settings)
    assert {keys.depth for keys in found} == {1, 2}
    assert max(keys.thoff for keys in found) <= 65535 < max(keys.poff for keys in found)
    assert {keys.thoff for keys in found if keys.depth == 2} > {0}


def damaged(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data))
    byte = random.choice((0, 1, 4, 6, 8, 17, 41, 44, 47, 51, 0x45, 0x60, 0x81, 0xFF, data[place] ^ 1 << random.randrange(8)))
    return data[:place] + bytes([byte]) + data[place + 1 :]


def test_one_wrong_byte() -> None:
    random, changed = Random(11), 0
    for packet in packets.packets(500, seed=11):
        for _ in range(12):
            changed += check(damaged(packet.data, random), packet.linktype) != packet.keys
    assert changed > 300


@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.integers(0, 400))
def test_any_damage(seed: int, damage: Sequence[tuple[int, int]], length: int) -> None:
    (packet,) = packets.packets(1, seed)
    data = bytearray(packet.data)
    for place, byte in damage:
        data[place % len(data)] = byte
    check(bytes(data[:length]), packet.linktype)


@given(st.binary(max_size=200), st.sampled_from(LINK_TYPES))
def test_any_bytes(data: bytes, linktype: int) -> None:
    check(data, linktype)


@given(st.sampled_from(BEGINNINGS), st.integers(0, 200), st.binary(max_size=100))
def test_any_bytes_behind_a_good_beginning(beginning: bytes, length: int, data: bytes) -> None:
    check(beginning[:length] + data, EN10MB)


def test_any_buffer() -> None:
    data = bytes(12) + b"\x08\x06"
    assert dissect(bytearray(data)) == dissect(memoryview(b"x" + data)[1:]) == reference(data)


# ---- The rows are all that it knows ----

#: Two rows with something of everything, which nobody has ever sent.
TAG = Encapsulation(
    "tag",
    "a chain inside of a level",
    "none",
    ethertypes=(0x1234,),
    next=ByNumber(Field(1, 1, 0x70, 4), ((0, 0x0800), (1, 0x86DD), (2, 0x1234), (3, 0x8847))),
    length=Length(3, (Counted(Field(0, 1, 0x0E, 1), 2), IfSet(Field(1, 1, 0x08), 3)), base=2),
    requires=Equals(Field(2, 1, 0x80), 0),
    begins_level=False,
    repeats=Equals(Field(0, 1, 0x01), 1),
    bound="vlan_tags",
)
TUNNEL = Encapsulation(
    "tunnel",
    "a tunnel with prefixes and extensions",
    "none",
    ethertypes=(0x4321,),
    ip_protocols=(200,),
    over=0x86DD,
    gre_protocols=(0x0806,),
    gre_test=Equals(Field(0, 2, 0x2000), 0),
    nibbles=(9,),
    ports="vxlan",
    next=ByNibble(((0, 0x6558), (1, 0x1234), (2, 0x4321), (4, 0x0800), (6, 0x86DD))),
    length=Length(4, (Counted(Field(2, 2, 0x0003), 1),)),
    prefixes=(
        Prefix(Equals(Field(0, 1, 0xC0), 0x40), Length(2, (Counted(Field(1, 1, 0x07), 1),))),
        Prefix(Equals(Field(0, 4, 0x80000000), 0x80000000), Length(1)),
    ),
    requires=Equals(Field(1, 2, 0x0100), 0),
    extensions=Extensions(Field(0, 1, 0x02), Field(3, 1, 0x03), Length(2, (Counted(Field(0, 1, 0x03), 2),), base=0), "mpls_labels"),
)


def test_a_new_row_needs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [row for row in encapsulation.ENCAPSULATIONS if row.ports != "vxlan"]
    monkeypatch.setattr(encapsulation, "ENCAPSULATIONS", (TAG, *others[:5], TUNNEL, *others[5:]))
    for row in (TAG, TUNNEL):
        for number in row.ethertypes:
            monkeypatch.setitem(encapsulation.BY_ETHERTYPE, number, row)
    monkeypatch.setitem(encapsulation.BY_IP_PROTOCOL, (0x86DD, 200), TUNNEL)
    monkeypatch.setitem(encapsulation.BY_NIBBLE, 9, TUNNEL)
    monkeypatch.setitem(encapsulation.BY_PORT_SETTING, "vxlan", TUNNEL)
    monkeypatch.setitem(encapsulation.TRANSPORT_LENGTHS, 200, 5)
    settings = WalkSettings(TunnelPorts({"vxlan": [4789]}), max_levels=6)
    walk_table.cache_clear()
    random, found = Random(5), set()
    mac, ip6 = bytes(12), bytes.fromhex("60000000 0000 c8 40") + bytes(32)
    udp = bytes.fromhex("0800 45000000 00000000 4011 0000 00000000 00000000 c000 12b5 00000000")
    gre = bytes.fromhex("0800 45000000 00000000 402f 0000 00000000 00000000 0000 0806")
    starts = (mac + b"\x12\x34", mac + b"\x43\x21", mac + b"\x86\xdd" + ip6, mac + udp, mac + gre, mac + bytes.fromhex("8847 00001100 90"))
    few = bytes(range(4)) * 4 + b"\x04\x06\x08\x10\x12\x20\x21\x40\x43\x45\x47\x60\x81\xc8"
    try:
        for _ in range(20_000):
            data = random.choice(starts) + bytes(random.choices(few, k=random.randrange(60)))
            keys = check(data, EN10MB, settings)
            found.add((keys.depth, keys.nproto))
    finally:
        walk_table.cache_clear()
    assert {depth for depth, _ in found} >= {0, 1, 2, 3}
    assert {nproto for _, nproto in found} >= {0, 0x0800, 0x86DD, 0x1234, 0x4321, 0x8847}


def test_keys_of_the_engine_are_those_of_the_table() -> None:
    names = [name for name, _ in ffi.typeof("struct flow_keys").fields]
    assert names == [field.name for field in fields(FlowKeys)]
    assert sorted(names) == sorted(KEY_BY_NAME)
    assert len(names) == lib.KEYS


# ---- Programs that load keys ----


def load(key: str, code: int = LD_W_ABS) -> Instruction:
    return Instruction(code, k=KEY_BY_NAME[key].k)


GENERATED = [*packets.packets(60, seed=21, linktypes=[EN10MB])]


@pytest.mark.parametrize("code", [LD_W_ABS, LD_H_ABS, LD_B_ABS])
@pytest.mark.parametrize("key", [key.name for key in FLOW_KEYS])
def test_key_is_loaded_whatever_the_size(key: str, code: int) -> None:
    program = Program((load(key, code), Instruction(RET_A)))
    matcher = matcher_of(program.instructions, EN10MB)
    values = set()
    for packet in GENERATED:
        value = matcher.run(packet.data)
        assert value == getattr(packet.keys, key) == run(program, packet.data).value
        values.add(value)
    assert len(values) > 1


@pytest.mark.parametrize("test", [bpf.JEQ_K, bpf.JGT_K, bpf.JGE_K, bpf.JSET_K])
@pytest.mark.parametrize("key", ["nproto", "thoff", "lhoff"])
def test_key_and_test_in_one(key: str, test: int) -> None:
    """With the jump behind the load, to which another one may lead."""
    numbers = sorted({getattr(packet.keys, key) for packet in GENERATED})
    for number in numbers[:: len(numbers) // 5 + 1]:
        program = Program(
            (
                Instruction(LD_B_ABS, k=5),
                Instruction(bpf.JSET_K, 1, 0, 1),
                load(key),
                Instruction(test, 0, 1, number),
                Instruction(RET_K, k=1),
                Instruction(RET_K, k=2),
            )
        )
        matcher = matcher_of(program.instructions, EN10MB)
        for packet in GENERATED:
            result = run(program, packet.data)
            assert matcher.run(packet.data) == result.value
            assert sum(matcher.count(packet.data)) == result.executed


FILTERS = (
    "inner tcp port 80",
    "inner host 10.0.0.1 or inner udp",
    "depth > 1 and not inner tcp",
    "poff - thoff = 20 or nhoff > 54",
    "inner ether multicast and len > 100",
    "payload[0] > 109",
    "outer udp and inner tcp",
    "encap vxlan and inner ip6",
)


@pytest.mark.parametrize("linktype", LINK_TYPES)
@pytest.mark.parametrize("text", FILTERS)
def test_filters_are_those_of_the_machine(text: str, linktype: int) -> None:
    program = compile(text, linktype=linktype)
    for packet in packets.packets(25, seed=linktype + len(text), linktypes=[linktype]):
        for length in (len(packet.data), len(packet.data) * 2 // 3):
            data = packet.data[:length]
            assert program.matches(data) == (run(program, data).value != 0), (text, packet.layers, length)


def test_settings_of_a_program() -> None:
    usual, shallow = compile("depth > 0"), compile("depth > 0", max_levels=1)
    deep = [packet for packet in GENERATED if packet.keys.depth]
    assert deep
    assert all(usual.matches(packet.data) and not shallow.matches(packet.data) for packet in deep)


def test_keys_in_a_loop() -> None:
    """The first byte counts the rounds; each adds thoff to M[1]."""
    program = Program(
        (
            Instruction(LD_B_ABS, k=0),
            Instruction(ST, k=0),
            Instruction(LD_MEM, k=0),
            Instruction(JEQ_K, 7, 0, 0),
            Instruction(bpf.SUB_K, k=1),
            Instruction(ST, k=0),
            load("thoff"),
            Instruction(LDX_MEM, k=1),
            Instruction(bpf.ADD_X),
            Instruction(ST, k=1),
            Instruction(bpf.JA, k=0xFFFF_FFFF - 8),
            Instruction(LD_MEM, k=1),
            Instruction(RET_A),
        )
    )
    matcher = matcher_of(program.instructions, EN10MB)
    for packet in GENERATED[:20]:
        data = b"\x05" + packet.data[1:]
        result = run(program, data)
        assert matcher.run(data) == result.value == 5 * packet.keys.thoff
        assert sum(matcher.count(data)) == result.executed


@pytest.mark.parametrize("asked", [0, 1, 5, 7, 8, 0xFFFFFFFF])
def test_all_keys_at_once(asked: int) -> None:
    """What the machine makes of `ld #keys`, in which every slot of M[] and A count."""
    total = " ".join(f"ldx M[{slot}] mul #5 add x" for slot in range(9))
    program = read_program(f"ldx #77 stx M[6] stx M[7] ldi {asked} ld #keys {total} ret a")
    matcher = matcher_of(program.instructions, EN10MB)
    for packet in GENERATED[:100]:
        result = run(program, packet.data)
        assert matcher.run(packet.data) == result.value
        assert sum(matcher.count(packet.data)) == result.executed


def test_without_a_table_keys_reject_the_packet() -> None:
    for key in FLOW_KEYS:
        assert Matcher((load(key.name), Instruction(RET_K, k=1))).run(bytes(100)) == 0


@pytest.mark.parametrize("offset", [0, 4, 48, 56, 65, 85, 92])
def test_other_ancillary_words_reject_the_packet(offset: int) -> None:
    instructions = (load("nhoff"), Instruction(LD_W_ABS, k=SKF_AD_OFF + offset), Instruction(RET_K, k=1))
    assert matcher_of(instructions, EN10MB).run(GENERATED[0].data) == 0


def test_indirect_loads_load_no_keys() -> None:
    instructions = (load("nhoff"), Instruction(bpf.LD_W_IND, k=KEY_BY_NAME["nhoff"].k), Instruction(RET_K, k=1))
    assert matcher_of(instructions, EN10MB).run(GENERATED[0].data) == 0


def test_link_types_without_a_walk() -> None:
    for linktype, shown in ((105, "IEEE802_11"), (60000, "60000")):
        program = program_of((load("thoff"), Instruction(RET_A)), linktype=linktype)
        with pytest.raises(ProgramError, match=rf"^the program loads flow keys, and there are none on link type {shown}$"):
            program.matches(bytes(60))
    with pytest.raises(FilterError, match=r"^no walk through packets of link type 105; there is one for EN10MB, .*PPP$"):
        dissect(bytes(60), 105)
    assert {row.linktype for row in LINK_LAYERS} == set(LINK_TYPES)


COUNTING_WALK = """
#include "engine.h"
int walks = 0;
void walk(const struct walk_table *table, const uint8_t *packet, uint32_t caplen, struct flow_keys *keys)
{
    (void)table, (void)packet, (void)caplen;
    walks++;
    *keys = (struct flow_keys){walks, walks, walks, walks, walks, walks, walks};
}
"""


@pytest.mark.tools("cc")
def test_one_walk_at_most(tmp_path: Path) -> None:
    """program.c with a walk that counts how often it is asked for."""
    (tmp_path / "counting.c").write_text(COUNTING_WALK)
    library = tmp_path / "counting.so"
    sources = (tmp_path / "counting.c", ENGINE / "program.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", f"-I{ENGINE}", "-o", library, *sources], check=True)
    engine = ctypes.CDLL(str(library))
    engine.program_new.restype = ctypes.c_void_p
    engine.program_run.restype = ctypes.c_int64
    table = walk_table(EN10MB)
    walks = ctypes.c_int.in_dll(engine, "walks")
    fault = ctypes.create_string_buffer(8)

    def walked(*instructions: Instruction) -> tuple[int, int]:
        """What a program returns for a packet and how often it walked."""
        code = bytes(Program(instructions))
        address = ctypes.c_void_p(int(ffi.cast("uintptr_t", table)))
        program = ctypes.c_void_p(engine.program_new(code, len(instructions), address, fault, fault))
        assert program
        walks.value = 0
        value = engine.program_run(program, bytes([7] * 60), 60, 60)
        engine.program_free(program)
        return value, walks.value

    test = Instruction(JEQ_K, 0, 1, 99)
    assert walked(Instruction(LD_IMM, k=3), Instruction(RET_A)) == (3, 0)
    assert walked(load("nhoff"), Instruction(RET_A)) == (1, 1)
    assert walked(load("nhoff"), test, Instruction(RET_A), load("thoff"), load("poff"), Instruction(RET_A)) == (1, 1)
    # The way that loads no key does not walk.
    assert walked(Instruction(LD_B_ABS, k=0), Instruction(JEQ_K, 0, 1, 8), load("thoff"), Instruction(RET_A)) == (7, 0)
    again = (load("depth"), Instruction(LDX_MEM, k=0), Instruction(bpf.ADD_X), Instruction(ST, k=0), Instruction(JEQ_K, 0, 1, 3))
    assert walked(*again, Instruction(RET_A), Instruction(bpf.JA, k=0xFFFF_FFFF - 6), Instruction(RET_A)) == (3, 1)


def test_a_filter_without_keys_needs_no_rows() -> None:
    script = "import sys, pcapext; pcapext.compile('tcp port 80').matches(bytes(60)); print('pcapext.encapsulation' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ENGINE.parent.parent)
    assert done.stdout.split() == ["False"]


def test_table_is_made_once() -> None:
    settings = WalkSettings(max_levels=2)
    assert walk_table(EN10MB, settings) is walk_table(EN10MB, WalkSettings(max_levels=2))
    assert walk_table(EN10MB, settings) is not walk_table(EN10MB)
