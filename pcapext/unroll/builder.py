"""What all of the walk is built with: blocks, places in the packet, tests of its length, and the ends of the walk.

In:  the blocks behind the walk; the link layer, the settings and what is wanted.
Out: `Builder`, which the walk's own methods belong to, and `Place`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial

from pcapext.cfg import (
    FARTHEST_PLACE,
    REJECT,
    VOID,
    Binary,
    Block,
    Branch,
    Comparison,
    Const,
    Goto,
    Key,
    Label,
    Leave,
    Length,
    Load,
    Local,
    Operator,
    Passed,
    Return,
    Test,
    Value,
    loads_of,
    locals_of,
    maximum,
    retarget,
    rewrite,
)
from pcapext.encapsulation import LinkLayer, WalkSettings
from pcapext.layout import Encapsulation, Equals, Field, Identifier, IfSet
from pcapext.optimize.membership import write_switch
from pcapext.optimize.simplify import simplify_part, simplify_test
from pcapext.slotted import dataclass

#: The header at hand, less `Builder.ahead`. In the same way: a tunnel's header, one in it, its end; the header behind an extension header.
H, TUNNEL, INSIDE, END, NEXT = (Local(name, FARTHEST_PLACE) for name in ("H", "tunnel", "inside", "end", "next"))

#: What stands at `H`: its EtherType, its IP protocol. The number by which a tunnel's header says what follows. A length.
TYPE, PROTOCOL, NUMBER, OCTETS = Local("type", 0xFFFF), Local("protocol", 0xFF), Local("number", 0xFF), Local("octets", 0xFFF)

#: The EtherType of the IP header that H is behind; and whether its extension headers are IPv6's (0) or IPv4's.
NETWORK, VERSION = Local("network", 0xFFFF), Local("version", 0xFF)

#: How many blocks behind the walk to look at for a verdict.
_LOOK = 24


def local_for(value: Key | Passed) -> Local:
    """The local that something the walk finds is assigned to."""
    match value:
        case Key(name, outer):
            return Local(f"outer {name}" if outer else name, maximum(value))
        case Passed(name, identifier):
            return Local(f"encap {name}" if identifier is None else f"encap {name} {identifier}", 1)


def add(value: Value, number: int) -> Value:
    """A value plus a number that may be negative."""
    if number < 0:
        return Binary(Operator.SUB, value, Const(-number))
    return value if number == 0 else Binary(Operator.ADD, value, Const(number))


@dataclass(frozen=True, slots=True)
class Place:
    """A header that begins `offset` bytes behind a base; the base None is the begin of the packet.

    Loads behind a base have a k of `least` or more. On a cooked handle libpcap takes the length of the pseudo header off each k
    (pcap-linux.c, fix_offset), and makes something else of a smaller one.
    """

    base: Local | None
    offset: int
    least: int = 0

    def at(self, distance: int) -> Value:
        """The offset of a byte of the header."""
        return Const(self.offset + distance) if self.base is None else add(self.base, self.offset + distance)

    def load(self, size: int, distance: int) -> Value:
        k = self.offset + distance
        if self.base is None:
            return Load(size, Const(k))
        if k >= self.least:
            return Load(size, self.base, k)
        return Load(size, add(self.base, k - self.least), self.least)

    def read(self, field: Field) -> Value:
        """The number in a field."""
        value = self.load(field.size, field.offset)
        if field.mask & (1 << 8 * field.size) - 1 != (1 << 8 * field.size) - 1:
            value = Binary(Operator.AND, value, Const(field.mask & (1 << 8 * field.size) - 1))
        return Binary(Operator.RSH, value, Const(field.shift)) if field.shift else value

    def equals(self, test: Equals) -> Test:
        return Test(Comparison.EQ, self.read(test.field), Const(test.value))

    def has_bits(self, flag: Field) -> Test:
        """Whether one of the bits of a field is set."""
        return Test(Comparison.SET, self.load(flag.size, flag.offset), Const(flag.mask & (1 << 8 * flag.size) - 1))

    def behind(self, distance: int) -> Place:
        return Place(self.base, self.offset + distance, self.least)


class Builder:
    """Builds the blocks of one walk. A state is a method with its arguments; each is built once."""

    def __init__(
        self, blocks: Mapping[Label, Block], after: Label, link_layer: LinkLayer, settings: WalkSettings, wanted: Set[Key | Passed]
    ):
        self.link_layer = link_layer
        self.settings = settings
        # The first header that H is used for stands behind the link-layer header: so H is never negative.
        self.ahead = link_layer.length
        # Where libpcap makes the header up, the kernel has no bytes of it.
        self.made_up = link_layer.made_up
        self.here, self.tunnel_place, self.inside_place, self.end_place = (
            Place(base, self.ahead, self.made_up) for base in (H, TUNNEL, INSIDE, END)
        )
        self.inner = {value.name: local_for(value) for value in wanted if isinstance(value, Key) and not value.outer}
        self.outer = {value.name: local_for(value) for value in wanted if isinstance(value, Key) and value.outer}
        self.asked = sorted((value for value in wanted if isinstance(value, Passed)), key=lambda value: local_for(value).name)
        # The outermost headers stand in the first level.
        self.max_levels = settings.max_levels if self.inner or self.asked else 1
        self.after = after
        self.blocks = dict(blocks)
        tests = [block.end.test for block in blocks.values() if isinstance(block.end, Branch) and not reads_packet(block.end.test)]
        #: The locals whose values can tell where the blocks behind the walk go on.
        self.telling = frozenset[Local]().union(*(locals_of(value) for test in tests for value in (test.left, test.right)))
        self.verdicts: dict[frozenset[tuple[Local, Value]], Label | None] = {}
        self.labels: dict[Block, Label] = {}
        self.next_label = max(blocks) + 1
        self.reject = self.block(REJECT)
        self.states: dict[tuple[object, ...], Label] = {}
        self.pending: list[tuple[Label, Callable[[], Label]]] = []

    # --- blocks

    def block(self, block: Block) -> Label:
        """The label of a block; one that is there already is not built again."""
        if block not in self.labels:
            self.next_label += 1
            self.labels[block] = self.next_label - 1
            self.blocks[self.next_label - 1] = block
        return self.labels[block]

    def state(self, method: Callable[..., Label], *arguments: object) -> Label:
        """The block of a state, which is built later if it was not yet."""
        key = (method.__name__, *arguments)
        if key not in self.states:
            self.next_label += 1
            self.states[key] = self.next_label - 1
            self.pending.append((self.next_label - 1, partial(method, *arguments)))
        return self.states[key]

    def once(self, method: Callable[..., Label], *arguments: object) -> Label:
        """The block of a state that is built at once: where it only leads to a verdict, it is the verdict."""
        key = (method.__name__, *arguments)
        if key not in self.states:
            self.states[key] = method(*arguments)
        return self.states[key]

    def whole(self, first: Label) -> tuple[Label, Mapping[Label, Block]]:
        """All blocks, those of states that are still to be built too, and the first of them."""
        begins: dict[Label, Label] = {}  # where the states begin
        while self.pending:
            label, state = self.pending.pop()
            begins[label] = state()

        def begin(label: Label) -> Label:
            while label in begins:
                label = begins[label]
            return label

        for label, block in self.blocks.items():
            if not begins.keys().isdisjoint(block.targets):
                self.blocks[label] = Block(block.assignments, retarget(block.end, begin))
        return begin(first), self.blocks

    def branch(self, test: Test, then: Label, otherwise: Label) -> Label:
        return then if then == otherwise else self.block(Block((), Branch(test, then, otherwise)))

    def equal(self, value: Value, number: int, then: Label, otherwise: Label) -> Label:
        return self.branch(Test(Comparison.EQ, value, Const(number)), then, otherwise)

    def switch(self, value: Value, cases: Sequence[tuple[int, Label]], otherwise: Label) -> Label:
        """Tests for the numbers, in their order."""
        for number, target in reversed(cases):
            otherwise = self.equal(value, number, target, otherwise)
        return otherwise

    #: How many numbers a search tests for one after the other.
    _LEAF = 5

    def search(self, value: Value, cases: Mapping[int, Label], otherwise: Label) -> Label:
        """Tests for several numbers, by halves. What is below all of them, the usual case, takes one test."""
        ordered = [(number, target) for number, target in sorted(cases.items()) if target != otherwise]
        found = write_switch(value, ordered, otherwise, self._LEAF, self.branch)
        if len(ordered) < 2:
            return found
        return self.branch(Test(Comparison.GE, value, Const(ordered[0][0])), found, otherwise)

    def assign(self, local: Local, value: Value, then: Label) -> Label:
        return then if then == self.reject else self.block(Block(((local, value),), Goto(then)))

    def move(self, value: Value, then: Label) -> Label:
        return self.assign(H, value, then)

    def local_form(self, place: Place, then: Label) -> Label:
        """Bring a place into the form of all levels: `H`."""
        return then if place == self.here else self.move(place.at(-self.ahead), then)

    # --- the length of the packet

    def needs(self, place: Place, size: int, then: Label, otherwise: Label) -> Label:
        """`then` if the packet holds `size` bytes of the header at a place, and the base of the place is in the packet.

        A packet can be longer than what was captured of it. The load of the last byte asks for that. In a header that libpcap makes up
        it would be a load of something else, and such a header is always captured whole.
        """
        if then == otherwise:
            return then
        if place.base is not None or place.offset + size > self.made_up:
            then = self.assign(VOID, place.load(1, size - 1), then)
            if otherwise == self.reject:
                return then
        left = Length() if place.base is None else Binary(Operator.SUB, Length(), place.base)
        return self.branch(Test(Comparison.GE, left, Const(place.offset + size)), then, otherwise)

    def jumped(self, base: Local, then: Label, otherwise: Label) -> Label:
        """`then` if the base, moved by a length that the packet says, is in the packet: then `length - base` does not wrap around."""
        # Where the packet is rejected otherwise, a load behind the base does that.
        return then if otherwise in (self.reject, then) else self.branch(Test(Comparison.GE, Length(), base), then, otherwise)

    def in_packet(self, place: Place, then: Label, otherwise: Label) -> Label:
        """`then` if a place whose base was moved by a length that the packet says is in the packet."""
        assert place.base is not None
        return self.jumped(place.base, self.needs(place, 0, then, otherwise), otherwise)

    # --- what the walk finds

    def exit(self, level: int, **values: Value) -> Label:
        """The end of the walk in a level: the keys that are not known to be set have their values here."""
        found = self._of(self.inner, values) | (self._of(self.outer, values) if level == 1 else {})
        return self._verdict_or(found, lambda: self._assign_all(found, self._behind_walk(found)))

    def keys(self, level: int, then: Label, **values: Value) -> Label:
        """Assign keys of a level that goes on: those of the outermost headers are final, those of the innermost may change.

        `depth` can only grow: where that makes the verdict clear, this is where the walk ends.
        """
        if "depth" in values and "depth" in self.inner:
            depths = range(level - 1, self.max_levels)
            verdicts = {self._verdict({self.inner["depth"]: Const(depth)}) for depth in depths}
            if len(verdicts) == 1 and (verdict := verdicts.pop()) is not None:
                return verdict
        outer = self._of(self.outer, values) if level == 1 else {}
        return self._verdict_or(outer, lambda: self._assign_all(self._of(self.inner, values) | outer, then))

    def leave(self, level: int, then: Label, **values: Value) -> Label:
        """Assign the keys of the outermost headers where a tunnel behind them may be entered."""
        outer = self._of(self.outer, values) if level == 1 else {}
        return self._verdict_or(outer, lambda: self._assign_all(outer, then))

    def passed(self, row: Encapsulation, place: Place, then: Label) -> Label:
        """The header at a place was passed: assign what `encap` terms ask about it."""
        for asked in self.asked:
            if asked.name in row.words:
                value: dict[Local, Value] = {local_for(asked): Const(1)}
                found = self._verdict_or(value, partial(self._assign_all, value, then))
                then = found if asked.identifier is None else self._identified(row.identifier, place, asked.identifier, found, then)
        return then

    def _identified(self, identifier: Identifier | None, place: Place, number: int, then: Label, otherwise: Label) -> Label:
        """`then` if the header at a place has the identifier with this number."""
        if identifier is None or number > identifier.field.largest:
            return otherwise

        def behind(parts: Sequence[IfSet], header: Place) -> Label:
            if not parts:
                return self.equal(header.read(identifier.field), number, then, otherwise)
            part, *others = parts
            return self.branch(place.has_bits(part.flag), behind(others, header.behind(part.length)), behind(others, header))

        found = behind(identifier.before, place)
        return found if identifier.flag is None else self.branch(place.has_bits(identifier.flag), found, otherwise)

    @staticmethod
    def _of(locals_: Mapping[str, Local], values: Mapping[str, Value]) -> dict[Local, Value]:
        return {locals_[key]: value for key, value in values.items() if key in locals_}

    def _assign_all(self, values: Mapping[Local, Value], then: Label) -> Label:
        return self.block(Block(tuple(values.items()), Goto(then))) if values else then

    def _verdict_or(self, values: Mapping[Local, Value], more: Callable[[], Label]) -> Label:
        verdict = self._verdict(values)
        return more() if verdict is None else verdict

    def _verdict(self, values: Mapping[Local, Value]) -> Label | None:
        """The verdict, if these values alone make it clear."""
        told = frozenset((local, value) for local, value in values.items() if local in self.telling)
        if told not in self.verdicts:
            self.verdicts[told] = self._find_verdict(dict(told))
        return self.verdicts[told]

    def _find_verdict(self, values: Mapping[Local, Value]) -> Label | None:
        ends: set[Label] = set()
        pending, seen, loaded = [self.after], {self.after}, False
        while pending:
            label = pending.pop()
            block = self.blocks[label]
            match block.end:
                case Return(Const(number)) if not block.assignments:
                    ends.add(self.reject if number == 0 else label)
                case Return() | Leave():
                    return None
                case Goto() | Branch():
                    if block.assignments or len(seen) > _LOOK:
                        return None
                    outcome = self._outcome(block.end, values)
                    loaded |= outcome is None and any(loads_of(value) for value in block.values)
                    targets = set(block.targets if outcome is None else [outcome]) - seen
                    seen |= targets
                    pending += targets
        return ends.pop() if len(ends) == 1 and (not loaded or ends == {self.reject}) else None

    def _outcome(self, end: Goto | Branch, values: Mapping[Local, Value]) -> Label | None:
        """Where the end of a block behind the walk goes if these are the values of some locals, if they tell that."""

        def put(value: Value) -> Value:
            return simplify_part(values.get(value, value) if isinstance(value, Local) else value)

        match end:
            case Goto(target):
                return target
            case Branch(Test(comparison, left, right) as test, then, otherwise):
                if reads_packet(test):
                    return None  # numbers in the packet are never known
                outcome, holds = simplify_test(Test(comparison, rewrite(left, put), rewrite(right, put)))
                return None if isinstance(outcome, Test) else then if outcome == holds else otherwise

    def _behind_walk(self, values: Mapping[Local, Value]) -> Label:
        """The first block behind the walk where something else than these values matters."""
        label = self.after
        while True:
            match self.blocks[label]:
                case Block((), Goto() | Branch() as end) if (target := self._outcome(end, values)) is not None:
                    label = target
                case _:
                    return label


def reads_packet(test: Test) -> bool:
    """Whether a test loads a part of the packet."""
    return bool(loads_of(test.left) or loads_of(test.right))


def size_if_set(place: Place, part: IfSet) -> Value:
    """The size of an optional part of the header at a place, or 0 where it is not there."""
    flag, size = part.flag, part.length
    value = Binary(Operator.AND, place.load(flag.size, flag.offset), Const(flag.mask))
    highest = flag.mask.bit_length() - 1
    if flag.mask == 1 << highest and size & size - 1 == 0:
        shift = highest - (size.bit_length() - 1)
        return Binary(Operator.RSH, value, Const(shift)) if shift >= 0 else Binary(Operator.LSH, value, Const(-shift))
    # Of several bits: adding the mask carries into the bit above it if any of them is set.
    above = 1 << flag.mask.bit_length()
    carried = Binary(Operator.AND, add(value, flag.mask), Const(above))
    shift = flag.mask.bit_length() - (size.bit_length() - 1)
    return Binary(Operator.RSH, carried, Const(shift)) if shift >= 0 else Binary(Operator.LSH, carried, Const(-shift))


def nibble(place: Place) -> Value:
    """The first four bits at a place."""
    return Binary(Operator.RSH, place.load(1, 0), Const(4))
