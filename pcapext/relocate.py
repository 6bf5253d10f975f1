"""Relocate: from packets behind a header that libpcap makes up to what the kernel shows of them.

In:  a graph for packets of a cooked link type (LINUX_SLL, LINUX_SLL2).
Out: a graph that gives the same verdict on the packet without that header, which is how a SOCK_DGRAM packet socket, and libpcap's
     `any`, show it to their filter.

Bytes behind the header move to the front. Those of the header become words that the kernel has about the packet (net/core/filter.c,
convert_bpf_extensions), the length grows by the header's, and an accepted packet is cut that much shorter. A place inside of the
header that only the packet tells is behind every packet here: reading it rejects, where libpcap would read the header.
"""

from __future__ import annotations

from dataclasses import dataclass

from pcapext.bpf import SKF_AD_HATYPE, SKF_AD_IFINDEX, SKF_AD_PKTTYPE, SKF_AD_PROTOCOL
from pcapext.cfg import (
    VOID,
    Ancillary,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    Label,
    Length,
    Load,
    Local,
    Operator,
    Return,
    Test,
    Value,
    rewrite,
    rewrite_end,
)
from pcapext.errors import KernelLacksError


@dataclass(frozen=True, slots=True)
class MadeUpField:
    """`size` bytes of a made-up header: what they are called, and the value that the kernel has for them, if it has one."""

    title: str
    size: int
    value: Value | None


_PROTOCOL = MadeUpField("protocol", 2, Ancillary(4, SKF_AD_PROTOCOL))
_HATYPE = MadeUpField("ARPHRD type", 2, Ancillary(4, SKF_AD_HATYPE))
_ADDRESS = MadeUpField("link-layer address", 8, None)

#: The fields of each made-up header in their order, by the name of the link type (tcpdump.org, LINKTYPE_LINUX_SLL and LINKTYPE_LINUX_SLL2).
#: libpcap writes 0 where SLL2 has a reserved field (pcap-linux.c).
MADE_UP_HEADERS: dict[str, tuple[MadeUpField, ...]] = {
    "LINUX_SLL": (
        MadeUpField("packet type", 2, Ancillary(4, SKF_AD_PKTTYPE)),
        _HATYPE,
        MadeUpField("length of the link-layer address", 2, None),
        _ADDRESS,
        _PROTOCOL,
    ),
    "LINUX_SLL2": (
        _PROTOCOL,
        MadeUpField("reserved field", 2, Const(0)),
        MadeUpField("interface index", 4, Ancillary(4, SKF_AD_IFINDEX)),
        _HATYPE,
        MadeUpField("packet type", 1, Ancillary(4, SKF_AD_PKTTYPE)),
        MadeUpField("length of the link-layer address", 1, None),
        _ADDRESS,
    ),
}


def relocate(cfg: Cfg, linktype: str) -> Cfg:
    """The graph for packets without the header of `linktype`, a name of `MADE_UP_HEADERS`.

    Raises `KernelLacksError` where it reads a field of the header that the kernel has no word for.
    """
    return _Relocation(cfg, linktype).graph()


class _Relocation:
    """Relocates one graph."""

    def __init__(self, cfg: Cfg, linktype: str):
        self.given = cfg
        self.linktype = linktype
        self.fields = MADE_UP_HEADERS[linktype]
        self.length = sum(field.size for field in self.fields)
        self.blocks: dict[Label, Block] = {}
        self.next_label = max(cfg.blocks) + 1

    def graph(self) -> Cfg:
        for label, block in self.given.blocks.items():
            assignments = [self.assignment(local, value) for local, value in block.assignments]
            end = rewrite_end(block.end, self.moved)
            if isinstance(end, Return):
                self.cut(label, tuple(filter(None, assignments)), end.value)
            else:
                self.blocks[label] = Block(tuple(filter(None, assignments)), end)
        return Cfg(self.given.entry, self.blocks)

    def assignment(self, local: Local, value: Value) -> tuple[Local, Value] | None:
        """An assignment; None for a load of the header that is there for nothing but its bounds."""
        match value:
            case Load(size, Const(at)) if local == VOID and at < self.length:
                return (VOID, self.behind(at, size)) if at + size > self.length else None
        return local, rewrite(value, self.moved)

    def moved(self, value: Value) -> Value:
        """A value, whose parts have been moved already."""
        match value:
            case Length():
                return Binary(Operator.ADD, value, Const(self.length))
            case Load(size, Const(at)) if at >= self.length:
                return Load(size, Const(at - self.length))
            case Load(size, Const(at)):
                return self.in_header(at, size)
            case Load(size, offset, k) if k >= self.length:
                return Load(size, offset, k - self.length)
            case Load(size, offset, k):
                # Below the header's end this wraps around to a place that no packet reaches, for the kernel too.
                return Load(size, Binary(Operator.SUB, offset, Const(self.length - k)))
        return value

    def behind(self, at: int, size: int) -> Load | Binary:
        """The bytes of a load that begins in the header, and ends 1 to 3 bytes behind it, that are behind it."""
        match at + size - self.length:
            case 3:  # no load has 3 bytes
                return Binary(Operator.OR, Binary(Operator.LSH, Load(2, Const(0)), Const(8)), Load(1, Const(2)))
            case inside:
                return Load(inside, Const(0))

    def in_header(self, at: int, size: int) -> Value:
        """The value of a load that begins in the header: its bytes, field by field, as a sum."""
        terms: list[Value] = []
        begin = 0
        for field in self.fields:
            end = begin + field.size
            first, last = max(at, begin), min(at + size, end)
            if first < last:
                if field.value is None:
                    raise KernelLacksError(
                        f"the filter reads the {field.title} in the header of link type {self.linktype}, "
                        "and the kernel has no word for it: it does not show the header to filters"
                    )
                kept = Binary(Operator.AND, _shifted(Operator.RSH, field.value, end - last), Const((1 << 8 * (last - first)) - 1))
                terms.append(_shifted(Operator.LSH, kept, at + size - last))
            begin = end
        if at + size > self.length:
            terms.append(self.behind(at, size))
        value = terms[0]
        for term in terms[1:]:
            value = Binary(Operator.OR, value, term)
        return value

    def cut(self, label: Label, assignments: tuple[tuple[Local, Value], ...], value: Value) -> None:
        """Blocks, the first of them `label`, that return as many bytes less as the header has, but 0 only for 0."""
        if isinstance(value, Const):
            self.blocks[label] = Block(assignments, Return(Const(value.value and max(value.value - self.length, 1))))
            return
        kept = Local("kept")
        longer, not_longer, one, none = range(self.next_label, self.next_label + 4)
        self.next_label += 4
        header = Const(self.length)
        self.blocks[label] = Block((*assignments, (kept, value)), Branch(Test(Comparison.GT, kept, header), longer, not_longer))
        self.blocks[longer] = Block((), Return(Binary(Operator.SUB, kept, header)))
        self.blocks[not_longer] = Block((), Branch(Test(Comparison.EQ, kept, Const(0)), none, one))
        self.blocks[one], self.blocks[none] = Block((), Return(Const(1))), Block((), Return(Const(0)))


def _shifted(operator: Operator, value: Value, octets: int) -> Value:
    """A value shifted by whole bytes."""
    return Binary(operator, value, Const(8 * octets)) if octets else value
