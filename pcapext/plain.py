"""Plain packets first: what most packets are, a TCP segment behind one IP header without options, needs no walk.

In:  a graph that reads flow keys, the link layer.
Out: a graph that computes the same verdict. Before it asks what only a walk tells, it looks whether the packet is plain; if so, it goes on
     in a copy of itself in which the keys are numbers.

This is for programs that load flow keys from a walk of their own, which takes longer than the few tests here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pcapext import encapsulation as table
from pcapext.cfg import (
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    Key,
    Label,
    Length,
    Load,
    Operator,
    Passed,
    Test,
    Value,
    parts,
    retarget,
    rewrite,
    rewrite_end,
)
from pcapext.encapsulation import IPV4, IPV6, TCP, LinkLayer
from pcapext.flowkeys import NO_ETHERNET
from pcapext.layout import Always, ByEtherType, ByNibble, ByNumber

#: Graphs of more blocks are not copied: where so much is asked, a walk is the smaller part of the work.
LONGEST = 64

#: Behind the offset of a TCP header: the byte with its length, and the byte for a length of 20.
_DATA_OFFSET, _NO_OPTIONS = 12, 0x50


def needs_walk(block: Block) -> bool:
    """Whether a value in a block is what only a walk tells."""
    return any(isinstance(part, Key | Passed) for value in block.values for part in parts(value))


def plain_first(cfg: Cfg, link_layer: LinkLayer) -> Cfg:
    """The graph with a quick way for plain packets; the very graph if it needs no walk or is too long to be copied."""
    first = _first(cfg)
    if not first or len(cfg.blocks) > LONGEST:
        return cfg
    wanted = {part.name for block in cfg.blocks.values() for value in block.values for part in parts(value) if isinstance(part, Key)}
    blocks = dict(cfg.blocks)
    shift = max(blocks) + 1
    kinds = [kind for ethertype in (IPV4, IPV6) if (kind := _kind(ethertype, link_layer, "poff" in wanted))]
    for number, kind in enumerate(kinds, 1):
        for label in _behind(cfg, first):
            blocks[label + number * shift] = _known(cfg.blocks[label], kind.keys, lambda target, by=number * shift: target + by)  # type: ignore[misc]
    next_label = (len(kinds) + 1) * shift
    for label in first:
        # The block itself moves: whatever led to it now comes to the tests.
        blocks[next_label] = blocks[label]
        slow = otherwise = next_label
        next_label += 1
        for number, kind in reversed([*enumerate(kinds, 1)]):
            then = label + number * shift
            for index, (test, holds) in enumerate(reversed(kind.tests)):
                # Behind the first test the packet is of this kind or of none.
                apart = otherwise if index == len(kind.tests) - 1 else slow
                blocks[next_label] = Block((), Branch(test, then, apart) if holds else Branch(test, apart, then))
                then = next_label
                next_label += 1
            otherwise = then
        least = Test(Comparison.GE, Length(), Const(link_layer.length + table.IPV4_LENGTH + table.TRANSPORT_LENGTHS[TCP]))
        blocks[label] = Block((), Branch(least, otherwise, slow)) if kinds else blocks[slow]
    return Cfg(cfg.entry, blocks)


def _first(cfg: Cfg) -> list[Label]:
    """The blocks that are the first to need a walk on some way."""
    reached, first = {cfg.entry}, []
    for label in cfg.labels:
        if label in reached:
            if needs_walk(cfg.blocks[label]):
                first.append(label)
            else:
                reached.update(cfg.blocks[label].targets)
    return first


def _behind(cfg: Cfg, first: list[Label]) -> list[Label]:
    """These blocks and all that can be reached from them."""
    reached = set(first)
    for label in cfg.labels:
        if label in reached:
            reached.update(cfg.blocks[label].targets)
    return [label for label in cfg.labels if label in reached]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of plain packet: the tests that it passes, each with the outcome, and its keys."""

    tests: tuple[tuple[Test, bool], ...]
    keys: Mapping[str, Value]


def _kind(ethertype: int, link_layer: LinkLayer, payload: bool) -> _Kind | None:
    """A TCP segment in a packet of the IP version; with `payload`, its header's length is to be known. None: not on this link layer."""
    ip = link_layer.length
    size = table.IPV4_LENGTH if ethertype == IPV4 else table.IPV6_LENGTH
    tcp = ip + size
    end = tcp + table.TRANSPORT_LENGTHS[TCP]
    named = _named(ethertype, link_layer)
    if named is None:
        return None
    tests = [(named, True)]
    if ethertype == IPV6:
        tests.append((Test(Comparison.GE, Length(), Const(end)), True))
    if ethertype == IPV4:
        tests += [
            (Test(Comparison.EQ, Load(1, Const(ip)), Const(0x45)), True),
            (Test(Comparison.EQ, Load(1, Const(ip + 9)), Const(TCP)), True),
            (Test(Comparison.SET, Load(2, Const(ip + 6)), Const(0x1FFF)), False),
        ]
    else:
        tests.append((Test(Comparison.EQ, Load(1, Const(ip + 6)), Const(TCP)), True))
    data_offset = Load(1, Const(tcp + _DATA_OFFSET))
    if payload:
        tests.append((Test(Comparison.GE, data_offset, Const(_NO_OPTIONS)), True))
    octets = Binary(Operator.LSH, Binary(Operator.RSH, data_offset, Const(4)), Const(2))
    keys: dict[str, Value] = {
        "nhoff": Const(ip),
        "nproto": Const(ethertype),
        "thoff": Const(tcp),
        "tproto": Const(TCP),
        "poff": Binary(Operator.ADD, octets, Const(tcp)),
        "depth": Const(0),
        "lhoff": Const(0 if link_layer.is_ethernet else NO_ETHERNET),
    }
    return _Kind(tuple(tests), keys)


def _named(ethertype: int, link_layer: LinkLayer) -> Test | None:
    """A test that holds only where the link-layer header says that a header of the EtherType follows."""
    match link_layer.next:
        case Always(always):
            return Test(Comparison.GE, Length(), Const(0)) if always == ethertype else None
        case ByEtherType(field):
            return Test(Comparison.EQ, Load(field.size, Const(field.offset)), Const(ethertype))
        case ByNumber(field, pairs):
            number = next(number for number, known in pairs if known == ethertype)
            return Test(Comparison.EQ, Load(field.size, Const(field.offset)), Const(number))
        case ByNibble(pairs):
            nibble = next(nibble for nibble, known in pairs if known == ethertype)
            return Test(Comparison.EQ, Binary(Operator.RSH, Load(1, Const(link_layer.length)), Const(4)), Const(nibble))


def _known(block: Block, keys: Mapping[str, Value], place: Callable[[Label], Label]) -> Block:
    """The block with numbers in place of the keys, and other targets."""

    def put(value: Value) -> Value:
        match value:
            case Key(name):
                return keys[name]
            case Passed():
                return Const(0)
        return value

    assignments = tuple((local, rewrite(value, put)) for local, value in block.assignments)
    return Block(assignments, retarget(rewrite_end(block.end, put), place))
