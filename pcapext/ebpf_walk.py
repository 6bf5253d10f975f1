"""The walk as a function of an eBPF program: a bounded loop over the headers of a packet.

In:  a link layer, the settings of the walk, and where to put what is wanted of it.
Out: instructions, from the label `WALK` on, of a function that takes the context in r1 and in r2 the place for what it finds.

The walk goes from header to header. At each, the first bytes of it are brought from the packet to the stack, the *window*, and what is
read of the header is read there, where it is known how many bytes of the packet are left. The code for a kind of header is made from its
row of encapsulation.py; it puts down the keys that it is sure of, moves to the next header and says of what kind that is. All
else is an end: what was put down so far is the answer. So a tunnel whose header is not complete leaves the keys of its carrier, and no
header is looked at twice.

    r6  the context                      r8  the kind of the header: its EtherType; its IP protocol with IN_IPV4 or IN_IPV6; or
    r7  the place of the header              FIRST_STATE and more, the states that are neither
    r0  the bytes left from there        r9  the place for what is found

The verifier (kernel/bpf/verifier.c) follows every path, and takes two states for the same only where what it knows of the registers
agrees. So it must know little. A number loses what is known of it where it is stored to the stack at a place that no register would be
stored to, and loaded again: the place of the header is stored and loaded at the head of the loop, and counters stand at such places.
`may_goto` spares it to see that the loop ends. It does, as there are so many levels, and so many headers in each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

from pcapext import encapsulation as table
from pcapext.cfg import Key, Passed
from pcapext.ebpf import LOAD_BYTES
from pcapext.ebpf_writer import R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Label, Register, Writer
from pcapext.encapsulation import ETHERNET, IPV4, IPV6, LinkLayer, WalkSettings
from pcapext.errors import FilterError
from pcapext.flowkeys import NO_ETHERNET
from pcapext.layout import Always, ByEtherType, ByNibble, ByNumber, Counted, Encapsulation, Equals, Field, IfSet, Length

#: The function.
WALK = "walk"

#: Fields of the context (struct __sk_buff, include/uapi/linux/bpf.h).
LENGTH_OF_PACKET, PROTOCOL_OF_PACKET = 0, 16

#: Kinds of headers beyond EtherTypes.
IN_IPV4, IN_IPV6, FIRST_STATE = 0x1_0000, 0x2_0000, 0x3_0000

#: The function's stack. A number at a multiple of 8 is what a register was stored as; the verifier remembers it. No other place is one.
_PLACE, _END, _LEVELS, _COUNTS, _LEFT, _WINDOW, _PENDING = -4, -12, -13, -20, -32, -48, -52

#: The bytes of a header that are looked at.
_WINDOW_BYTES = 16

#: The numbers of which the verifier may know which are 0.
_FEW = 3

_NEXT, _DONE, _ENTER, _FRAME, _BEGIN, _COMMIT = "next", "done", "enter", "frame", "begin", "commit"


class Findings:
    """Where the walk puts what is wanted of it, counted from the place that it is given.

    A key is a number of 4 bytes. `encap NAME` is a bit of such a number. Raises `FilterError` where the stack has no room for them.
    """

    #: Bits in a number, and the most that are asked for.
    _BITS, _MOST = 31, 8 * 31

    def __init__(self, wanted: Sequence[Key | Passed]):
        inner = sorted({value.name for value in wanted if isinstance(value, Key) and not value.outer})
        outer = sorted({value.name for value in wanted if isinstance(value, Key) and value.outer})
        asked = sorted(
            {value for value in wanted if isinstance(value, Passed)},
            key=lambda value: (value.name, -1 if value.identifier is None else value.identifier),
        )
        if len(asked) > self._MOST:
            raise FilterError(f"{len(asked)} different 'encap' terms, and an eBPF program has room for {self._MOST}")
        # Each number has 8 bytes, the second half of which is its place: the verifier remembers nothing of it.
        places = count(4, 8)
        #: Whether the walk goes on behind the first level; if not, the innermost headers are the outermost.
        self.goes_on = bool(inner or asked)
        self.inner = {name: next(places) for name in (sorted({*inner, *outer}) if self.goes_on else outer)}
        self.outer = {name: next(places) for name in outer} if self.goes_on else self.inner
        words = [next(places) for _ in range(-(-len(asked) // self._BITS))]
        self.words = tuple(words)
        self.bits = {value: (words[index // self._BITS], 1 << index % self._BITS) for index, value in enumerate(asked)}
        self.size = next(places) - 4

    def place(self, key: Key) -> int:
        return (self.outer if key.outer else self.inner)[key.name]


def write_walk(link_layer: LinkLayer, settings: WalkSettings, findings: Findings) -> Writer:
    """The instructions of the function."""
    return _Walk(link_layer, settings, findings).written()


@dataclass(frozen=True, slots=True)
class _State:
    """Code that is written once, for whatever leads there: a method and its arguments."""

    method: str
    arguments: tuple[object, ...]


class _Walk:
    """Writes one walk. Each block of code ends with a jump; `self.to` is the block that is being written."""

    def __init__(self, link_layer: LinkLayer, settings: WalkSettings, findings: Findings):
        self.link_layer = link_layer
        self.settings = settings
        self.findings = findings
        self.levels = settings.max_levels if findings.goes_on else 1
        self.to = Writer()
        #: Of which size and where in the window is the field that r2 holds as it is.
        self.in_r2: tuple[int, int] | None = None
        self.blocks: dict[Label, Writer] = {}
        self.pending: list[tuple[Label, Callable[[], None]]] = []
        self.states: dict[_State, int] = {}
        bounds = dict.fromkeys(row.bound for row in table.ENCAPSULATIONS if row.bound)
        chains = dict.fromkeys(row.extensions.bound for row in table.ENCAPSULATIONS if row.extensions)
        #: The bytes that count what may still be walked in a level.
        self.counts = {name: _COUNTS + index for index, name in enumerate([*bounds, *chains, "extension_headers"])}
        assert len(self.counts) <= 4

    def written(self) -> Writer:
        self.start()
        begin = self.to
        while self.pending:
            label, write = self.pending.pop()
            self.write(label, write)
        whole = Writer()
        whole.label(WALK)
        whole.put(begin)
        # What the loop begins with most often stands before it.
        self.blocks[_NEXT] = self.head()
        for label in self.order():
            whole.label(label)
            whole.put(self.blocks[label])
        return whole

    def order(self) -> list[Label]:
        """The blocks in an order in which many need no jump to the next one."""
        frame = ("step", self.states.get(_State("frame", ())))
        waiting = [_DONE, *[*([_FRAME, frame] if _FRAME in self.blocks else []), _NEXT, *self.blocks][::-1]]
        order: dict[Label, None] = {}
        ends_there = False
        while waiting:
            label = waiting.pop()
            # The end waits for a block that leads nowhere else.
            if label in order or label not in self.blocks or (label == _DONE and waiting and not ends_there):
                continue
            order[label] = None
            follows = self.blocks[label].leads_on_to()
            ends_there = follows == (_DONE,)
            waiting += [other for other in follows if other != _DONE or ends_there]
        return [*order]

    # --- blocks

    def block(self, label: Label, write: Callable[[], None]) -> Label:
        """A block that is written if something leads there."""
        if label not in self.blocks and all(label != other for other, _ in self.pending):
            self.blocks[label] = Writer()  # its place, in the order in which blocks are asked for
            self.pending.append((label, write))
        return label

    def write(self, label: Label, write: Callable[[], None]) -> None:
        self.to, self.in_r2 = Writer(), None
        write()
        self.blocks[label] = self.to

    def state(self, method: Callable[..., None], *arguments: object) -> int:
        """The kind of a header that is told by no number of its own: the state whose code looks at it."""
        state = _State(method.__name__, arguments)
        if state not in self.states:
            self.states[state] = FIRST_STATE + len(self.states)
            self.block(state, partial(method, *arguments))
        return self.states[state]

    def step_to(self, method: Callable[..., None], *arguments: object) -> None:
        """Look at the header at r7 in a state."""
        kind = self.state(method, *arguments)
        self.to.goto(self.block(("step", kind), partial(self.write_step, kind)))

    def write_step(self, kind: int) -> None:
        self.to.move(R8, kind)
        self.to.goto(_NEXT)

    @property
    def done(self) -> Label:
        return self.block(_DONE, self.write_done)

    @property
    def enter(self) -> Label:
        return self.block(_ENTER, self.write_enter)

    @property
    def frame_here(self) -> Label:
        return self.block(_FRAME, partial(self.step_to, self.frame))

    @property
    def begin(self) -> Label:
        return self.block(_BEGIN, self.write_begin)

    @property
    def commit(self) -> Label:
        return self.block(_COMMIT, self.write_commit)

    # --- fields of the header in the window

    def read(self, to: Register, field: Field, base: int = 0) -> None:
        """The number in a field of the header that begins at `base` in the window."""
        self.load(to, field.size, base + field.offset)
        bits = (1 << 8 * field.size) - 1
        if (field.mask & bits) >> field.shift != bits >> field.shift:
            self.to.compute(to, "&=", field.mask & bits, whole=False)
        if field.shift:
            self.to.compute(to, ">>=", field.shift)

    def flags(self, field: Field, base: int) -> tuple[Register, int]:
        """A field as it stands in the packet, in r2, where it may be already; and its mask."""
        if self.in_r2 != (field.size, base + field.offset):
            self.load_raw(R2, field.size, base + field.offset)
            self.in_r2 = field.size, base + field.offset
        return R2, as_in_packet(field.mask & (1 << 8 * field.size) - 1, field.size)

    def load(self, to: Register, size: int, at: int) -> None:
        self.load_raw(to, size, at)
        self.to.from_network(to, size)

    def load_raw(self, to: Register, size: int, at: int) -> None:
        """Bytes of the window in the order in which they stand there, which is good enough to be compared with a number."""
        assert 0 <= at <= _WINDOW_BYTES - size, "a field behind the window"
        self.to.load(to, size, R10, _WINDOW + at)

    def unless(self, test: Equals, base: int, target: Label) -> None:
        """Go elsewhere if a test does not hold."""
        if test.value == 0:
            flags, mask = self.flags(test.field, base)
            self.to.jump(flags, "&", mask, target)
        else:
            size, bits = test.field.size, (1 << 8 * test.field.size) - 1
            assert test.field.shift == 0
            self.load_raw(R1, size, base + test.field.offset)
            if test.field.mask & bits != bits:
                self.to.compute(R1, "&=", as_in_packet(test.field.mask & bits, size), whole=False)
            self.to.jump(R1, "!=", as_in_packet(test.value, size), target)

    def needs(self, size: int) -> None:
        """An end where fewer bytes than these are left from r7 on."""
        self.to.jump(R0, "s<", size, self.done)

    def move_behind(self, length: Length, base: int, ahead: int = 0) -> None:
        """Move r7 to the end of the header at `base` in the window, or so many bytes ahead of it."""
        if distance := base + length.base - ahead:
            self.to.compute(R7, "+=", distance)
        for part in length.parts:
            match part:
                case Counted(field, unit):
                    self.read(R1, field, base)
                    if unit > 1:
                        self.to.compute(R1, "*=", unit)
                    self.to.compute(R7, "+=", R1)
                case IfSet(field, size):
                    there, absent = object(), object()
                    flags, mask = self.flags(field, base)
                    self.to.jump(flags, "&", mask, there)
                    self.to.goto(absent)
                    self.to.label(there)
                    self.to.compute(R7, "+=", size)
                    self.to.label(absent)

    def by_pairs(self, pairs: Sequence[tuple[int, int]], target: Label) -> None:
        """Go to a place with the EtherType in r8 that the number in r1 stands for; an end if it stands for none."""
        for number, ethertype in pairs:
            self.to.move(R8, ethertype)
            self.to.jump(R1, "==", number, target)
        self.to.goto(self.done)

    def counted(self, bound: str, exhausted: Label) -> None:
        """Go elsewhere if as many headers as a setting allows were walked in this level."""
        place = self.counts[bound]
        self.to.load(R1, 1, R10, place)
        self.to.jump(R1, "==", 0, exhausted)
        self.to.compute(R1, "+=", -1)
        self.to.store(1, R10, place, R1)

    # --- what is found

    def put(self, value: Register | int, *names: str) -> None:
        """Put keys down, of those that are wanted."""
        for name in names:
            if name in self.findings.inner:
                self.to.store(4, R9, self.findings.inner[name], value)

    def zero(self) -> Register | int:
        """What is to be stored as 0.

        The verifier remembers a 0, and tells states apart by which numbers are 0. Where many numbers are wanted it gets one that it does
        not know: the high half of the place where the packet ends, in r1.
        """
        if len(self.findings.inner) + len(self.findings.words) <= _FEW:
            return 0
        self.to.load(R1, 4, R10, _END)
        self.to.compute(R1, ">>=", 16)
        return R1

    def passed(self, row: Encapsulation, base: int, at: Register, places: Sequence[int]) -> None:
        """Set the bits for a header in the window: in numbers at `at`, at `places` for the words of the findings in their order."""
        for word, place in zip(self.findings.words, places, strict=True):
            asked = {value: bit for value, (of, bit) in self.findings.bits.items() if of == word and value.name in row.words}
            if not asked:
                continue
            self.to.load(R3, 4, at, place)
            if plain := sum(bit for value, bit in asked.items() if value.identifier is None):
                self.to.compute(R3, "|=", plain)
            if identified := {value.identifier: bit for value, bit in asked.items() if value.identifier is not None}:
                self.identified(row, base, identified)
            self.to.store(4, at, place, R3)

    def identified(self, row: Encapsulation, base: int, bits: dict[int, int]) -> None:
        """Set the bit for the identifier of the header in the window, in r3."""
        identifier = row.identifier
        if identifier is None:
            return
        absent, found = object(), object()
        if identifier.flag:
            self.read(R1, identifier.flag, base)
            self.to.jump(R1, "==", 0, absent)
        for part in identifier.before:
            there = object()
            self.read(R1, part.flag, base)
            self.to.jump(R1, "!=", 0, there)
            self.in_r2 = None
            self.read(R2, identifier.field, base)
            self.to.goto(found)
            self.to.label(there)
            base += part.length
        self.in_r2 = None
        self.read(R2, identifier.field, base)
        self.to.label(found)
        for number, bit in bits.items():
            other = object()
            self.to.jump(R2, "!=", number, other)
            self.to.compute(R3, "|=", bit)
            self.to.label(other)
        self.to.label(absent)

    @property
    def pending_places(self) -> range:
        """Where the bits for a tunnel wait until it is entered."""
        return range(_PENDING, _PENDING - 8 * len(self.findings.words), -8)

    def copy_outer(self) -> None:
        for name, place in self.findings.outer.items():
            self.to.load(R1, 4, R9, self.findings.inner[name])
            self.to.store(4, R9, place, R1)

    @property
    def copies_outer(self) -> bool:
        return self.findings.goes_on and bool(self.findings.outer)

    # --- the begin, the loop and the end

    def start(self) -> None:
        link = self.link_layer
        lhoff = 0 if link.is_ethernet else NO_ETHERNET - (1 << 32)
        self.to.move(R6, R1)
        self.to.move(R9, R2)
        for place in range(_WINDOW, _WINDOW + _WINDOW_BYTES, 8):
            self.to.store(8, R10, place, 0)
        self.to.store(1, R10, _LEVELS, self.levels)
        # The walk sees the first 65535 bytes.
        short = object()
        self.to.load(R1, 4, R6, LENGTH_OF_PACKET)
        if link.made_up:
            self.to.compute(R1, "+=", link.made_up)
        self.to.jump(R1, "<=", table.WALKED_BYTES, short)
        self.to.move(R1, table.WALKED_BYTES)
        self.to.label(short)
        self.to.store(4, R10, _END, R1)
        zero = self.zero()
        for name, place in self.findings.inner.items():
            self.to.store(4, R9, place, lhoff if lhoff and name == "lhoff" else zero)
        for place in self.findings.words:
            self.to.store(4, R9, place, zero)
        for place in self.pending_places:
            self.to.store(4, R10, place, zero)
        if self.copies_outer:
            # The verifier does not see that they are written in every case. Without CAP_PERFMON it lets nobody read what may not be.
            for place in self.findings.outer.values():
                self.to.store(4, R9, place, zero)
        match link.next:
            case ByEtherType() if link.is_ethernet:
                self.to.move(R7, 0)
                self.to.goto(self.frame_here)
            case ByEtherType():
                # The kernel has no bytes of this header, but what libpcap makes of it.
                assert link.made_up
                self.to.move(R7, link.length)
                self.to.load(R8, 4, R6, PROTOCOL_OF_PACKET)
                self.to.from_network(R8, 2)
                self.to.goto(self.begin)
            case ByNibble(pairs):
                self.to.move(R7, link.length)
                self.step_to(self.first_nibble, pairs)
            case Always(ethertype):
                self.to.move(R7, link.length)
                self.to.move(R8, ethertype)
                self.to.goto(self.begin)
            case ByNumber():
                self.to.move(R7, 0)
                self.step_to(self.link_header)

    def link_header(self) -> None:
        """The link-layer header, which names what follows it in its own way."""
        link = self.link_layer
        assert isinstance(link.next, ByNumber)
        self.needs(link.length)
        self.read(R1, link.next.field)
        self.to.compute(R7, "+=", link.length)
        self.by_pairs(link.next.pairs, self.begin)

    def head(self) -> Writer:
        """Bring the window to r7, and go on at the code for the kind of header there."""
        self.to = to = Writer()
        short, there = object(), object()
        to.may_goto(self.done)
        to.store(4, R10, _PLACE, R7)
        to.load(R7, 4, R10, _PLACE)
        to.load(R4, 4, R10, _END)
        to.compute(R4, "-=", R7)
        to.store(8, R10, _LEFT, R4)
        to.jump(R4, "s<=", 0, there)
        to.jump(R4, "s<=", _WINDOW_BYTES, short)
        to.move(R4, _WINDOW_BYTES)
        to.label(short)
        to.move(R1, R6)
        to.move(R2, R7)
        if self.link_layer.made_up:
            to.compute(R2, "+=", -self.link_layer.made_up)
        to.move(R3, R10)
        to.compute(R3, "+=", _WINDOW)
        to.call(LOAD_BYTES)
        to.jump(R0, "!=", 0, self.done)
        to.label(there)
        to.load(R0, 8, R10, _LEFT)
        to.jump(R8, "<", IN_IPV4, self.block(_State("ethertype", ()), self.ethertype))
        to.jump(R8, "<", FIRST_STATE, self.block(_State("protocol", ()), self.protocol))
        while self.pending:
            label, write = self.pending.pop()
            self.write(label, write)
        for state, kind in self.states.items():
            to.jump(R8, "==", kind, state)
        to.goto(self.done)
        return to

    def write_done(self) -> None:
        if self.copies_outer:
            gone = object()
            self.to.load(R1, 1, R10, _LEVELS)
            self.to.jump(R1, "<", self.levels - 1, gone)
            self.copy_outer()
            self.to.label(gone)
        self.to.exit()

    # --- into a level

    def write_enter(self) -> None:
        """The next level begins at r7 with the EtherType in r8."""
        self.to.jump(R8, "!=", ETHERNET, self.begin)
        self.to.goto(self.frame_here)

    def enter_as(self, ethertype: int) -> Label:
        """The next level begins at r7 with this EtherType."""
        if ethertype == ETHERNET:
            return self.frame_here
        return self.block(("enter", ethertype), partial(self.write_enter_as, ethertype))

    def write_enter_as(self, ethertype: int) -> None:
        self.to.move(R8, ethertype)
        self.to.goto(self.begin)

    def enter_by(self, pairs: Sequence[tuple[int, int]]) -> Label:
        """The next level begins at r7 with the EtherType that the number in r1 stands for."""
        return self.block(("enter by", pairs), partial(self.by_pairs, pairs, self.enter))

    def frame(self) -> None:
        """An Ethernet header, which begins a level."""
        self.needs(table.ETHERNET_LENGTH)
        if "lhoff" in self.findings.inner:
            self.to.move(R4, R7)
        self.read(R8, Field(12, 2))
        self.to.compute(R7, "+=", table.ETHERNET_LENGTH)
        self.to.goto(self.commit)

    def write_begin(self) -> None:
        """A level begins at r7 with a header of the EtherType in r8, if that place is in the packet."""
        self.to.load(R1, 4, R10, _END)
        self.to.jump(R7, ">", R1, self.done)
        if "lhoff" in self.findings.inner:
            self.to.move(R4, NO_ETHERNET)
        self.to.goto(self.commit)

    def write_commit(self) -> None:
        """A level is entered, unless it is one too many: what it has of keys is put down from here on. r4: its Ethernet header."""
        self.to.load(R2, 1, R10, _LEVELS)
        self.to.jump(R2, "==", 0, self.done)
        if self.copies_outer:
            first = object()
            self.to.jump(R2, "!=", self.levels - 1, first)
            self.copy_outer()
            self.to.label(first)
        self.to.compute(R2, "+=", -1)
        self.to.store(1, R10, _LEVELS, R2)
        if "depth" in self.findings.inner:
            self.to.move(R1, self.levels - 1)
            self.to.compute(R1, "-=", R2)
            self.put(R1, "depth")
        self.put(R4, "lhoff")
        zero = self.zero()
        self.put(zero, "tproto", "thoff", "poff")
        for word, waiting in zip(self.findings.words, self.pending_places, strict=True):
            self.to.load(R3, 4, R10, waiting)
            self.to.load(R2, 4, R9, word)
            self.to.compute(R2, "|=", R3)
            self.to.store(4, R9, word, R2)
            self.to.store(4, R10, waiting, zero)
        bounds = dict(self.settings.bounds)
        numbers = bytes(bounds[name] for name in self.counts).ljust(4, b"\0")
        self.to.store(4, R10, _COUNTS, _signed(numbers))
        self.to.goto(_NEXT)

    # --- between the Ethernet header and the network header

    def ethertype(self) -> None:
        """A header of the EtherType in r8, if the one before it was complete."""
        self.needs(0)
        if {"nproto", "nhoff"} & self.findings.inner.keys():
            named = object()
            self.to.jump(R8, ">=", table.FIRST_ETHERTYPE, named)
            self.put(0, "nproto", "nhoff")
            self.to.goto(self.done)
            self.to.label(named)
            self.put(R8, "nproto")
            self.put(R7, "nhoff")
        self.to.jump(R8, "==", IPV4, self.block("ipv4", self.ipv4))
        self.to.jump(R8, "==", IPV6, self.block("ipv6", self.ipv6))
        for number, row in table.BY_ETHERTYPE.items():
            if not row.begins_level:
                alike = self.like(row)
                target = self.block(("tag", alike), partial(self.tag, alike))
                if number == table.MPLS_MULTICAST and "nproto" in self.findings.inner:
                    target = self.block("multicast", partial(self.multicast, target))
                self.to.jump(R8, "==", number, target)
            elif self.levels > 1:
                self.to.jump(R8, "==", number, self.tunnel(self.like(row), 0))
        self.to.goto(self.done)

    def like(self, row: Encapsulation) -> Encapsulation:
        """The first row of the table whose headers are walked in the same way: only names tell them apart, and nobody asks for these."""

        def way(row: Encapsulation) -> tuple[object, ...]:
            asked = tuple(word for word in row.words if any(value.name == word for value in self.findings.bits))
            return row.length, row.next, row.requires, row.repeats, row.bound, row.extensions, row.prefixes, row.begins_level, asked

        return next(other for other in table.ENCAPSULATIONS if way(other) == way(row))

    def multicast(self, target: Label) -> None:
        """A multicast label goes for another label."""
        self.to.move(R8, table.MPLS)
        self.put(R8, "nproto")
        self.to.goto(target)

    def tag(self, row: Encapsulation) -> None:
        """A header that begins no level."""
        assert not row.length.parts
        size = row.length.base
        # If it is not complete, the next place is not in the packet, and that is looked at there.
        assert size >= row.length.fixed
        if self.is_asked(row):
            self.needs(row.length.fixed)
        if row.bound:
            self.counted(row.bound, self.done)
        self.passed(row, 0, R9, self.findings.words)
        self.to.compute(R7, "+=", size)
        if row.repeats:
            last = object()
            self.unless(row.repeats, 0, last)
            self.to.goto(_NEXT)
            self.to.label(last)
        match row.next:
            case ByEtherType(field):
                self.read(R8, field)
                self.to.goto(_NEXT)
            case ByNumber(field, pairs):
                self.load_raw(R1, field.size, field.offset)
                self.by_pairs([(as_in_packet(number, field.size), ethertype) for number, ethertype in pairs], _NEXT)
            case ByNibble(pairs):
                self.needs(size + 1)
                self.read(R1, Field(size, 1, 0xF0, 4))
                if self.levels > 1:
                    for number, tunnel in table.BY_NIBBLE.items():
                        self.to.jump(R1, "==", number, self.block(("behind", tunnel), partial(self.header, tunnel, 0)))
                self.by_pairs(pairs, _NEXT)
            case Always():
                raise AssertionError(f"{row.name} needs no code of its own")

    # --- IP

    def ipv4(self) -> None:
        self.needs(table.IPV4_LENGTH)
        self.read(R1, Field(0, 1, 0x0F))
        self.to.compute(R1, "<<=", 2)
        self.to.compute(R7, "+=", R1)
        self.load(R8, 1, 9)
        flags, mask = self.flags(Field(6, 2, 0x1FFF), 0)
        self.to.jump(flags, "&", mask, self.later)
        self.to.compute(R8, "|=", IN_IPV4)
        self.to.goto(_NEXT)

    def ipv6(self) -> None:
        self.needs(table.IPV6_LENGTH)
        self.load(R8, 1, 6)
        self.to.compute(R8, "|=", IN_IPV6)
        self.to.compute(R7, "+=", table.IPV6_LENGTH)
        self.to.goto(_NEXT)

    @property
    def later(self) -> Label:
        """The end of the walk in a later fragment: its data begins at r7, r8 is its protocol."""
        return self.block("later", self.write_later)

    def write_later(self) -> None:
        self.put(R8, "tproto")
        if "poff" in self.findings.inner:
            self.to.load(R1, 4, R10, _END)
            self.to.jump(R7, ">", R1, self.done)
            self.put(R7, "poff")
        self.to.goto(self.done)

    def protocol(self) -> None:
        """A header of the IP protocol in r8."""
        self.to.move(R1, R8)
        self.to.compute(R1, "&=", 0xFF)
        self.put(R1, "tproto")
        transport = self.block("transport", self.transport)
        if self.settings.extension_headers:
            chain, in_both = self.block("extensions", self.extension_headers), object()
            self.to.jump(R8, "<", IN_IPV6, in_both)
            for row in table.EXTENSION_HEADERS:
                if not row.in_ipv4:
                    self.to.jump(R1, "==", row.protocol, chain)
            self.to.label(in_both)
            for row in table.EXTENSION_HEADERS:
                if row.in_ipv4:
                    self.to.jump(R1, "==", row.protocol, chain)
        self.to.goto(transport)

    def extension_headers(self) -> None:
        """An extension header of the protocol in r1, if it is not one too many."""
        to, more = self.to, object()
        to.load(R2, 1, R10, self.counts["extension_headers"])
        to.jump(R2, "==", 0, "transport")
        to.compute(R2, "+=", -1)
        to.store(1, R10, self.counts["extension_headers"], R2)
        ways: dict[tuple[Length, Field | None], list[int]] = {}
        for row in table.EXTENSION_HEADERS:
            ways.setdefault((row.length, row.fragment), []).append(row.protocol)
        counted = sorted((way for way in ways if way[0].parts), key=lambda way: len(ways[way]))
        fixed = [way for way in ways if not way[0].parts]
        labels = {way: object() for way in ways}
        for way in [*fixed, *counted[:-1]]:
            for protocol in ways[way]:
                to.jump(R1, "==", protocol, labels[way])
        to.goto(labels[counted[-1]])
        tails: dict[int, Label] = {}
        for length, fragment in counted:
            assert not fragment
            to.label(labels[length, fragment])
            self.needs(length.fixed)
            (part,) = length.parts
            assert isinstance(part, Counted)
            self.read(R2, part.count)
            to.compute(R2, "*=", part.unit)
            to.goto(tails.setdefault(length.base, object()))
        for base, tail in tails.items():
            to.label(tail)
            to.compute(R7, "+=", base)
            to.compute(R7, "+=", R2)
            to.goto(more)
        to.label(more)
        self.load(R1, 1, 0)
        to.compute(R8, "&=", IN_IPV4 | IN_IPV6)
        to.compute(R8, "|=", R1)
        to.goto(_NEXT)
        for length, fragment in fixed:
            to.label(labels[length, fragment])
            self.needs(length.fixed)
            to.compute(R7, "+=", length.base)
            if fragment:
                self.in_r2 = None
                self.unless(Equals(fragment, 0), 0, self.block("later fragment", self.later_in_ipv6))
            to.goto(more)

    def later_in_ipv6(self) -> None:
        """Behind the fragment header of a later fragment."""
        self.load(R8, 1, 0)
        self.to.goto(self.later)

    def transport(self) -> None:
        """A transport header of the protocol in r1."""
        self.needs(0)
        self.put(R7, "thoff")
        if "poff" in self.findings.inner:
            self.payload()
        if self.levels > 1:
            self.to.jump(R1, "==", table.UDP, self.block("udp", self.udp))
            numbers = dict.fromkeys(number for _, number in table.BY_IP_PROTOCOL)
            for number in numbers:
                over_ipv4, over_ipv6 = (self.like(table.BY_IP_PROTOCOL[ip, number]) for ip in (IPV4, IPV6))
                if over_ipv4 != over_ipv6:
                    other = object()
                    self.to.jump(R1, "!=", number, other)
                    self.to.jump(R8, "<", IN_IPV6, self.tunnel(over_ipv4, 0))
                    self.to.goto(self.tunnel(over_ipv6, 0))
                    self.to.label(other)
                else:
                    self.to.jump(R1, "==", number, self.tunnel(over_ipv4, 0))
        self.to.goto(self.done)

    def payload(self) -> None:
        """Put the place of the payload down, if all of the transport header's fixed part is there."""
        to, cut, known, plain = self.to, object(), object(), object()
        by_length: dict[int, list[int]] = {}
        for protocol, length in table.TRANSPORT_LENGTHS.items():
            by_length.setdefault(length, []).append(protocol)
        for length, protocols in by_length.items():
            to.move(R2, length)
            for protocol in protocols:
                to.jump(R1, "==", protocol, known)
        to.move(R2, 0)
        to.label(known)
        to.jump(R0, "s<", R2, cut)
        to.jump(R1, "!=", table.TCP, plain)
        self.read(R3, Field(12, 1, 0xF0, 4))
        to.compute(R3, "<<=", 2)
        to.jump(R3, "<=", R2, plain)
        to.move(R2, R3)
        to.label(plain)
        to.compute(R2, "+=", R7)
        self.put(R2, "poff")
        to.label(cut)

    def udp(self) -> None:
        # If less of it is there, what begins behind it is not in the packet, and that is looked at.
        self.load_raw(R1, 2, 2)
        for port, row in self.settings.by_port.items():
            self.to.jump(R1, "==", as_in_packet(port, 2), self.tunnel(row, table.UDP_LENGTH))
        self.to.goto(self.done)

    # --- tunnels

    def tunnel(self, row: Encapsulation, base: int) -> Label:
        """The header of a tunnel, `base` bytes into the window."""
        if row.prefixes:
            return self.block(_State("prefixed", (row, base, 0)), partial(self.prefixed, row, base, 0))
        if row.ports and row.ip_protocols:
            if base:
                return self.block(("moved", row, base), partial(self.moved, row, base))
            return self.block(_State("header", (row,)), partial(self.header, row))
        return self.block(("header", row, base), partial(self.header, row, base))

    def moved(self, row: Encapsulation, base: int) -> None:
        """A header that gets a window of its own."""
        self.to.compute(R7, "+=", base)
        self.step_to(self.header, row)

    def prefixed(self, row: Encapsulation, base: int, index: int) -> None:
        """A tunnel header and what may stand before it, so many parts of which were looked at."""
        prefix, absent = row.prefixes[index], object()
        self.needs(base + prefix.test.field.size)
        self.unless(prefix.test, base, absent)
        assert prefix.length.base >= prefix.length.fixed
        self.move_behind(prefix.length, base, ahead=base)
        if index + 1 < len(row.prefixes):
            self.step_to(self.prefixed, row, base, index + 1)
            self.to.label(absent)
            self.to.goto(self.block(_State("prefixed", (row, base, index + 1)), partial(self.prefixed, row, base, index + 1)))
        else:
            # Nothing is read of the header itself.
            assert row.length == Length(0)
            assert isinstance(row.next, Always)
            self.to.label(absent)
            self.header(row, base)

    def header(self, row: Encapsulation, base: int = 0) -> None:
        """The header of a tunnel in the window, and on to what follows it.

        If not all of it is there, what begins behind it is not in the packet. That is looked at before the next level is entered, and
        what was read here that is not of the packet has changed nothing by then.
        """
        if row.length.base < row.length.fixed:
            self.needs(base + row.length.fixed)
        if row.requires:
            self.unless(row.requires, base, self.done)
        self.passed(row, base, R10, self.pending_places)
        if row.extensions:
            self.chain(row, base)
        self.move_behind(row.length, base)
        match row.next:
            case Always(ethertype):
                self.to.goto(self.enter_as(ethertype))
            case ByEtherType(field):
                self.read(R8, field, base)
                if row.name == "gre":
                    self.in_gre(base)
                self.to.goto(self.enter)
            case ByNumber(field, pairs):
                self.read(R1, field, base)
                self.to.goto(self.enter_by(pairs))
            case ByNibble(pairs):
                self.step_to(self.first_nibble, pairs)

    def first_nibble(self, pairs: tuple[tuple[int, int], ...]) -> None:
        """What follows a tunnel header, or begins the packet, and is told by its own first four bits."""
        self.needs(1)
        self.read(R1, Field(0, 1, 0xF0, 4))
        self.by_pairs(pairs, self.begin)

    def in_gre(self, base: int) -> None:
        """Behind a GRE header, of the protocol in r8, may stand one that belongs to the same tunnel."""
        rows: dict[int, list[Encapsulation]] = {}
        for row in table.ENCAPSULATIONS:
            for number in row.gre_protocols:
                # What adds no bytes matters only to whom asks for its name.
                if number != ETHERNET or self.is_asked(row):
                    rows.setdefault(number, []).append(row)
        for number, found in rows.items():
            other, in_r2 = object(), self.in_r2
            self.to.jump(R8, "!=", number, other)
            for index, row in enumerate(found):
                following = object()
                if row.gre_test and not (index and _complementary(found[index - 1].gre_test, row.gre_test)):
                    self.unless(row.gre_test, base, following)
                self.inside_gre(row)
                self.to.label(following)
            self.to.label(other)
            self.in_r2 = in_r2 if self.in_r2 == in_r2 else None

    def is_asked(self, row: Encapsulation) -> bool:
        """Whether somebody asks for a name of a header."""
        return any(value.name in row.words for value in self.findings.bits)

    def inside_gre(self, row: Encapsulation) -> None:
        """A header behind a GRE header, which ends at r7."""
        if not self.is_asked(row) and not row.requires and not row.length.parts:
            self.move_behind(row.length, 0)
            assert row.next == Always(ETHERNET)
            self.to.goto(self.frame_here)
            return
        # The identifier may stand before the header.
        lead = max(0, -row.identifier.field.offset) if row.identifier and self.is_asked(row) else 0
        if lead:
            self.to.compute(R7, "-=", lead)
        self.step_to(self.header, row, lead)

    def chain(self, row: Encapsulation, base: int) -> None:
        """Extension headers of a tunnel header in the window: the type of the first one is the header's last byte."""
        extensions = row.extensions
        assert extensions is not None
        assert extensions.first.size == 1
        there = [part for part in row.length.parts if isinstance(part, IfSet) and part.flag.mask & extensions.flag.mask]
        assert row.length.base + sum(part.length for part in there) == extensions.first.offset + 1
        flags, mask = self.flags(extensions.flag, base)
        self.to.jump(flags, "&", mask, self.block(("chain", row, base), partial(self.first_extension, row, base)))

    def first_extension(self, row: Encapsulation, base: int) -> None:
        assert row.extensions is not None
        self.to.compute(R7, "+=", base + row.extensions.first.offset)
        self.step_to(self.next_extension, row)

    def next_extension(self, row: Encapsulation) -> None:
        """The last byte of a header or an extension header is the type of the extension header behind it."""
        extensions = row.extensions
        assert extensions is not None
        assert isinstance(row.next, ByNibble)
        last = object()
        self.needs(1)
        self.load(R1, 1, 0)
        self.to.jump(R1, "==", 0, last)
        self.counted(extensions.bound, self.done)
        # Go to the last byte of this one: as far behind its begin as its length, less the byte at hand.
        (part,) = extensions.length.parts
        assert isinstance(part, Counted)
        assert extensions.length.base == 0
        # If its begin is not there, neither is its end.
        assert part.unit >= extensions.length.fixed
        self.read(R1, part.count, 1)
        self.to.jump(R1, "==", 0, self.done)
        self.to.compute(R1, "*=", part.unit)
        self.to.compute(R7, "+=", R1)
        self.step_to(self.next_extension, row)
        self.to.label(last)
        self.to.compute(R7, "+=", 1)
        self.step_to(self.first_nibble, row.next.pairs)


def _complementary(one: Equals | None, other: Equals) -> bool:
    """Whether exactly one of two tests holds."""
    if one is None or one.field != other.field or one.field.mask & one.field.mask - 1:
        return False
    return {one.value, other.value} == {0, one.field.mask >> one.field.shift}


def as_in_packet(number: int, size: int) -> int:
    """What a load of `size` bytes gives on this machine where they are a number in a packet."""
    return int.from_bytes(number.to_bytes(size, "big"), sys.byteorder)


def _signed(octets: bytes) -> int:
    """What a store of 4 bytes takes to put these bytes down."""
    return int.from_bytes(octets, sys.byteorder, signed=True)
