"""What all of the walk in eBPF is built with: blocks of code, fields in the window, the places for what is found.

In:  a link layer, the settings of the walk, and where to put what is wanted of it.
Out: `Builder`, which the walk's own methods belong to, and `Findings`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

from pcapext import encapsulation as table
from pcapext.cfg import Key, Passed
from pcapext.ebpf_writer import R0, R1, R2, R3, R7, R8, R9, R10, Label, Register, Writer
from pcapext.encapsulation import LinkLayer, WalkSettings
from pcapext.errors import FilterError
from pcapext.layout import Counted, Encapsulation, Equals, Field, IfSet, Length

#: The function.
WALK = "walk"

#: Fields of the context (struct __sk_buff, include/uapi/linux/bpf.h).
LENGTH_OF_PACKET, PROTOCOL_OF_PACKET = 0, 16

#: Kinds of headers beyond EtherTypes.
IN_IPV4, IN_IPV6, FIRST_STATE = 0x1_0000, 0x2_0000, 0x3_0000

#: The function's stack. A number at a multiple of 8 is what a register was stored as; the verifier remembers it. No other place is one.
PLACE, END, LEVELS, COUNTS, LEFT, WINDOW, PENDING = -4, -12, -13, -20, -32, -48, -52

#: The bytes of a header that are looked at.
WINDOW_BYTES = 16

#: The numbers of which the verifier may know which are 0.
FEW = 3

NEXT, DONE = "next", "done"


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


@dataclass(frozen=True, slots=True)
class State:
    """Code that is written once, for whatever leads there: a method and its arguments."""

    method: str
    arguments: tuple[object, ...]


class Builder:
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
        self.states: dict[State, int] = {}
        bounds = dict.fromkeys(row.bound for row in table.ENCAPSULATIONS if row.bound)
        chains = dict.fromkeys(row.extensions.bound for row in table.ENCAPSULATIONS if row.extensions)
        #: The bytes that count what may still be walked in a level.
        self.counts = {name: COUNTS + index for index, name in enumerate([*bounds, *chains, "extension_headers"])}
        assert len(self.counts) <= 4

    # --- blocks

    def block(self, label: Label, write: Callable[[], None]) -> Label:
        """A block that is written if something leads there."""
        if label not in self.blocks:
            self.blocks[label] = Writer()  # its place, in the order in which blocks are asked for
            self.pending.append((label, write))
        return label

    def write(self, label: Label, write: Callable[[], None]) -> None:
        self.to, self.in_r2 = Writer(), None
        write()
        self.blocks[label] = self.to

    def state(self, method: Callable[..., None], *arguments: object) -> int:
        """The kind of a header that is told by no number of its own: the state whose code looks at it."""
        state = State(method.__name__, arguments)
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
        self.to.goto(NEXT)

    @property
    def done(self) -> Label:
        return self.block(DONE, self.write_done)

    def write_done(self) -> None:
        if self.copies_outer:
            gone = object()
            self.to.load(R1, 1, R10, LEVELS)
            self.to.jump(R1, "<", self.levels - 1, gone)
            self.copy_outer()
            self.to.label(gone)
        self.to.exit()

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
        assert 0 <= at <= WINDOW_BYTES - size, "a field behind the window"
        self.to.load(to, size, R10, WINDOW + at)

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
        if len(self.findings.inner) + len(self.findings.words) <= FEW:
            return 0
        self.to.load(R1, 4, R10, END)
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
        return range(PENDING, PENDING - 8 * len(self.findings.words), -8)

    def copy_outer(self) -> None:
        for name, place in self.findings.outer.items():
            self.to.load(R1, 4, R9, self.findings.inner[name])
            self.to.store(4, R9, place, R1)

    @property
    def copies_outer(self) -> bool:
        return self.findings.goes_on and bool(self.findings.outer)

    # --- the table

    def like(self, row: Encapsulation) -> Encapsulation:
        """The first row of the table whose headers are walked in the same way: only names tell them apart, and nobody asks for these."""

        def way(row: Encapsulation) -> tuple[object, ...]:
            asked = tuple(word for word in row.words if any(value.name == word for value in self.findings.bits))
            return row.length, row.next, row.requires, row.repeats, row.bound, row.extensions, row.prefixes, row.begins_level, asked

        return next(other for other in table.ENCAPSULATIONS if way(other) == way(row))

    def is_asked(self, row: Encapsulation) -> bool:
        """Whether somebody asks for a name of a header."""
        return any(value.name in row.words for value in self.findings.bits)


def as_in_packet(number: int, size: int) -> int:
    """What a load of `size` bytes gives on this machine where they are a number in a packet."""
    return int.from_bytes(number.to_bytes(size, "big"), sys.byteorder)
