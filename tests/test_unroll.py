"""The walk as a graph without loops, against what tests/packets.py knows of its packets, and of each cut of them, by construction."""

from __future__ import annotations

from functools import reduce
from random import Random

import pytest
from packets import packets

from pcapext.assemble import assemble
from pcapext.bpf import Program
from pcapext.cfg import REJECT, Binary, Block, Branch, Cfg, Comparison, Const, Key, Load, Operator, Return, Test, Value
from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYERS, LinkLayer, WalkSettings
from pcapext.flowkeys import FLOW_KEYS, FlowKeys
from pcapext.lower import RESUME, lower
from pcapext.machine import run
from pcapext.pcap_bridge import run_filter

#: Odd, so that multiplying by it loses nothing modulo 2**32.
FACTOR = 0x9E3779B1


def digest(keys: FlowKeys) -> int:
    """One number of all keys: different keys give different numbers, but for one pair in 2**32."""
    return reduce(lambda number, key: (number * FACTOR + getattr(keys, key.name)) & 0xFFFFFFFF, FLOW_KEYS, 1)


def digest_program(link_layer: LinkLayer, settings: WalkSettings = DEFAULT_SETTINGS) -> Program:
    """A program in plain classic BPF that returns the digest of a packet's keys."""
    start: Value = Const(1)
    value = reduce(lambda number, key: Binary(Operator.ADD, Binary(Operator.MUL, number, Const(FACTOR)), Key(key.name)), FLOW_KEYS, start)
    return Program(assemble(lower(Cfg(0, {0: Block((), Return(value))}), link_layer, settings)), link_layer.linktype)


@pytest.mark.parametrize("link_layer", LINK_LAYERS, ids=lambda row: row.name)
def test_keys_are_those_of_the_packet(link_layer: LinkLayer) -> None:
    program = digest_program(link_layer)
    assert program.flow_keys == ()
    rng = Random(link_layer.linktype)
    seen = set()
    for packet in packets(100, seed=link_layer.linktype, linktypes=[link_layer.linktype]):
        for length in (len(packet.data), *(rng.randrange(len(packet.data) + 1) for _ in range(4))):
            wanted = digest(packet.keys_of(length))
            seen.add(wanted)
            assert run(program, packet.data[:length]).value == wanted, (packet.layers, length, packet.data.hex())
            assert run_filter(program.instructions, packet.data[:length]) == wanted, (packet.layers, length)
    assert len(seen) > 50


def test_settings_of_the_walk() -> None:
    settings = WalkSettings(
        tunnel_ports={"vxlan": [], "geneve": [6081, 7000]}, max_levels=2, vlan_tags=1, mpls_labels=2, extension_headers=1
    )
    ethernet = LINK_LAYERS[0]
    program, usual = digest_program(ethernet, settings), digest_program(ethernet)
    from pcapext.dissect import dissect

    differ = 0
    for packet in packets(500, seed=5, linktypes=[ethernet.linktype]):
        wanted = digest(dissect(packet.data, ethernet.linktype, settings))
        differ += wanted != digest(packet.keys)
        assert run(program, packet.data).value == wanted, packet.layers
        assert run(usual, packet.data).value == digest(packet.keys), packet.layers
    assert differ > 40


def test_graph_without_keys_stays_as_it_is() -> None:
    cfg = Cfg(0, {0: Block((), Return(Load(2, Const(12))))})
    assert lower(cfg, LINK_LAYERS[0], DEFAULT_SETTINGS) is cfg


def test_walk_runs_once_at_most_and_only_where_it_is_needed() -> None:
    """Two blocks are the first to load a key, each on its way; a third way loads none, and one of them loads another key later."""
    byte = Load(1, Const(0))
    cfg = Cfg(
        0,
        {
            0: Block((), Branch(Test(Comparison.EQ, byte, Const(1)), 1, 2)),
            1: Block((), Branch(Test(Comparison.EQ, Key("tproto"), Const(6)), 3, 4)),
            2: Block((), Branch(Test(Comparison.EQ, byte, Const(2)), 5, 6)),
            3: Block((), Return(Key("thoff"))),
            4: REJECT,
            5: Block((), Return(Key("nhoff"))),
            6: Block((), Return(Const(7))),
        },
    )
    lowered = lower(cfg, LINK_LAYERS[0], DEFAULT_SETTINGS)
    resumes = [value for block in lowered.blocks.values() for local, value in block.assignments if local == RESUME]
    assert sorted(resumes, key=str) == [Const(0), Const(1)]
    program = Program(assemble(lowered))
    tcp = bytes(6) + bytes(6) + bytes.fromhex("0800 4500 0028 0000 0000 4006 0000 0a000001 0a000002") + bytes(20)
    for first, wanted in ((1, 34), (2, 14), (3, 7)):
        assert run(program, bytes([first]) + tcp[1:]).value == wanted
    assert run(program, bytes([3]) + tcp[1:]).executed < 12
