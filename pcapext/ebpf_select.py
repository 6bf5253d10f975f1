"""Select: eBPF instructions for a graph, and the walk's before them if the graph reads what a walk tells.

In:  a graph, without `Among`; the link layer, the settings of the walk.
Out: the instructions of a socket filter with the graph's verdicts.

    r6  the context        r7  the length of the packet        r8, r9  the locals that are read most; the others are on the stack
    r0  the value at hand; r1 its right-hand operand

Each block has two versions as in lower.py: one for the ways on which the walk has not run, one for those on which it has. The first
version of a block that reads what a walk tells is a call of the walk, which goes on at the second. So the walk runs at most once on any
way, only where it is needed, and no flag says whether it ran. Where several blocks are the first to read that, they share one call, since
the verifier looks at the walk anew for each: a number on the stack says where to go on. The second versions at most double the
program, and the kernel takes a million instructions.

A load is an instruction that ends the program where the packet is too short. Each is a call inside of the kernel, and takes as long as
twenty other instructions. So where a test has told that the packet has so many bytes, and several loads at constant offsets within
these follow, they are brought to the stack by one call: the *window*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pcapext import ebpf
from pcapext.bpf import ANCILLARY_BY_K
from pcapext.cfg import (
    LONGEST_PACKET,
    VOID,
    Among,
    Ancillary,
    Binary,
    Block,
    Branch,
    Cfg,
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
    locals_of,
    maximum,
    parts,
)
from pcapext.ebpf import EbpfInstruction
from pcapext.ebpf_walk import LENGTH_OF_PACKET, WALK, Findings, as_in_packet, write_walk
from pcapext.ebpf_words import CB, made_up_word, write_word
from pcapext.ebpf_writer import NEGATED, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Register, Writer
from pcapext.encapsulation import LinkLayer, WalkSettings
from pcapext.errors import FilterError
from pcapext.plain import needs_walk

#: The call of the walk.
_CALL = "call"

#: A block, and whether the walk has run.
Node = tuple[Label, bool]

#: The stack that a function has, and what the walk takes of it, in the kernel's steps of 32 bytes.
_STACK, _WALKS_STACK = 512, 128

#: The farthest end of a load that is brought to the stack with others, how many there must be for that, and how many places are tried.
_FARTHEST, _FEWEST, _PLACES = 128, 3, 16

_COMPARISONS = {Comparison.EQ: "==", Comparison.GT: ">", Comparison.GE: ">=", Comparison.SET: "&"}
_OPERATORS = {
    Operator.ADD: "+=",
    Operator.SUB: "-=",
    Operator.MUL: "*=",
    Operator.DIV: "/=",
    Operator.MOD: "%=",
    Operator.AND: "&=",
    Operator.OR: "|=",
    Operator.XOR: "^=",
    Operator.LSH: "<<=",
    Operator.RSH: ">>=",
}


def select(cfg: Cfg, link_layer: LinkLayer | None, settings: WalkSettings, *, counting: bool = False) -> tuple[EbpfInstruction, ...]:
    """The instructions of a graph; `link_layer` is None where no walk can start.

    With `counting`, the first number of the context's `cb` grows by one at each call of the walk: this is for tests.

    Raises `FilterError` for an ancillary word that eBPF programs cannot ask for, and where the stack is too small.
    """
    return _Selector(cfg, link_layer, settings, counting).instructions()


@dataclass(frozen=True, slots=True)
class _Raw:
    """Bytes of the packet, as they stand there."""

    load: Load


@dataclass(frozen=True, slots=True)
class _Window:
    """How much of the packet's begin is brought to the stack, how far behind a multiple of 8, before which block, and where it is then."""

    size: int
    skew: int
    node: Node | None
    blocks: frozenset[Node]


class _Selector:
    """Writes one program."""

    def __init__(self, cfg: Cfg, link_layer: LinkLayer | None, settings: WalkSettings, counting: bool):
        self.cfg = cfg
        self.link_layer = link_layer
        self.settings = settings
        self.counting = counting
        self.made_up = link_layer.made_up if link_layer else 0
        self.to = Writer()
        values = [value for block in cfg.blocks.values() for value in block.values]
        every = [part for value in values for part in parts(value)]
        wanted = {part for part in every if isinstance(part, Key | Passed)}
        self.findings = Findings(list(wanted))
        self.walks = bool(wanted)
        self.stack = _STACK - (_WALKS_STACK + 8 * len(self.findings.words) if wanted else 0)
        self.used = 0
        self.found = self.room(self.findings.size)
        self.temporaries: list[int] = []
        self.homes = self.homes_of(every)
        self.needs_length = any(isinstance(part, Length) for part in every)
        self.nodes = list(self.reached())
        self.callers = [node for node in self.nodes if self.calls(node)]
        #: In the second half of 8 bytes: the verifier, which remembers what stands in the first, shall not know the number.
        self.resume = self.room(8) + 4 if len(self.callers) > 1 else 0
        self.window = self.choose_window()
        self.window_place = self.room(self.window.size + self.window.skew) + self.window.skew
        #: What r0 holds at the end of each block, and where the instruction at hand stands.
        self.behind: dict[Node, Value | _Raw | None] = {}
        self.in_r0: Value | _Raw | None = None
        #: Whether the window can be read there.
        self.has_window = False

    def instructions(self) -> tuple[EbpfInstruction, ...]:
        self.to.move(R6, R1)
        if self.needs_length:
            self.to.load(R7, 4, R6, LENGTH_OF_PACKET)
        sources: dict[Node, list[Node]] = {}
        for node in self.nodes:
            for target in self.targets(node):
                sources.setdefault(target, []).append(node)
        written = {self.place(node): node for node in reversed(self.nodes)}
        order = [node for node in self.nodes if written[self.place(node)] == node and self.place(node) != "reject"]
        # Verdicts stand at the end.
        order.sort(key=lambda node: isinstance(self.place(node), Block))
        for node, following in zip(order, [*map(self.place, order[1:]), "reject"], strict=True):
            self.to.label(self.place(node))
            held = {self.behind[source] for source in sources.get(node, [])}
            self.in_r0 = held.pop() if len(held) == 1 else None
            self.has_window = node in self.window.blocks
            if node == self.window.node:
                self.bring_window()
            self.block(node, following)
            self.behind[node] = self.in_r0
        if self.to.leads_to("reject"):  # the kernel refuses what nothing leads to
            self.to.label("reject")
            self.to.move(R0, 0)
            self.to.exit()
        if self.walks:
            assert self.link_layer is not None
            self.to.put(write_walk(self.link_layer, self.settings, self.findings))
        return self.to.finish()

    # --- what goes where

    def room(self, size: int) -> int:
        """A place on the stack of so many bytes."""
        self.used += (size + 7) // 8 * 8
        if self.used > self.stack:
            raise FilterError(f"the filter needs {self.used} bytes of memory at once, and an eBPF program has {self.stack}")
        return -self.used

    def homes_of(self, every: list[Value]) -> dict[Local, Register | int]:
        """The place of each local: a register, or an offset on the stack."""
        assigned = [local for block in self.cfg.blocks.values() for local, _ in block.assignments if local != VOID]
        often = Counter([*(part for part in every if isinstance(part, Local)), *assigned])
        free = [R8, R9]
        return {local: free.pop(0) if free else self.room(8) for local, _ in often.most_common()}

    def reached(self) -> Iterator[Node]:
        """The versions of the blocks that can be reached, each before those that it leads to."""
        reached = {(self.cfg.entry, False)}
        for walked in (False, True):
            for label in self.cfg.labels:
                if (label, walked) in reached:
                    yield label, walked
                    reached.update(self.targets((label, walked)))

    def calls(self, node: Node) -> bool:
        """Whether this version of a block is the call of the walk."""
        label, walked = node
        return not walked and needs_walk(self.cfg.blocks[label])

    def targets(self, node: Node) -> list[Node]:
        label, walked = node
        return [(label, True)] if self.calls(node) else [(target, walked) for target in self.cfg.blocks[label].targets]

    def place(self, node: Node) -> object:
        """The label of a block. A verdict is written once, whether the walk has run or not."""
        block = self.cfg.blocks[node[0]]
        match block:
            case Block((), Return(Const(0))):
                return "reject"
            case Block((), Return(Const())):
                return block
        return node

    def known_bytes(self) -> dict[Node, int]:
        """How many bytes the packet has for sure, by a test of its length, at the begin of each block."""
        known = {self.nodes[0]: 0}
        for node in self.nodes:
            here, block = known[node], self.cfg.blocks[node[0]]
            for target in self.targets(node):
                there = here
                match block.end:
                    case Branch(Test(Comparison.GE, Length(), Const(least)), then, otherwise) if then == target[0] != otherwise:
                        there = max(here, least - self.made_up)
                known[target] = min(known.get(target, there), there)
        return known

    def choose_window(self) -> _Window:
        """The window that most loads can be read in."""
        best = _Window(0, 0, None, frozenset())
        most = _FEWEST - 1
        known = self.known_bytes()
        for node in [node for node in self.nodes if known[node]][:_PLACES]:
            behind = self.only_through(node)
            blocks = [self.cfg.blocks[label] for label, walked in behind if not self.calls((label, walked))]
            every = [part for block in blocks for value in block.values for part in parts(value) if isinstance(part, Load)]
            ends = [(end, load.size) for load in every if (end := self.end_in_packet(load)) and end <= min(known[node], _FARTHEST)]
            # A load from the stack must be aligned, and what is behind an Ethernet header is aligned where that is not.
            skew, inside = max(
                ((skew, [end for end, size in ends if (end + skew) % size == 0]) for skew in range(4)), key=lambda found: len(found[1])
            )
            if len(inside) > most:
                most, best = len(inside), _Window(max(inside), skew, node, behind)
        return best

    def only_through(self, node: Node) -> frozenset[Node]:
        """The blocks that no way leads to but through one, and that one."""
        around: set[Node] = {self.nodes[0]} - {node}
        for other in self.nodes:
            if other in around:
                around.update(target for target in self.targets(other) if target != node)
        return frozenset(self.nodes) - around

    def end_in_packet(self, load: Load) -> int | None:
        """The end of a load at a constant offset, as the kernel counts; None for another load."""
        match load.offset:
            case Const(offset) if offset >= self.made_up:
                return offset - self.made_up + load.size
        return None

    def is_in_window(self, load: Load) -> bool:
        """Whether a load can be read in the window."""
        end = self.end_in_packet(load)
        return self.has_window and end is not None and end <= self.window.size and (end + self.window.skew) % load.size == 0

    def bring_window(self) -> None:
        """Bring the begin of the packet, which is known to be there, to the stack."""
        to = self.to
        to.move(R1, R6)
        to.move(R2, 0)
        to.move(R3, R10)
        to.compute(R3, "+=", self.window_place)
        to.move(R4, self.window.size)
        to.call(ebpf.LOAD_BYTES)
        to.jump(R0, "!=", 0, "reject")
        self.in_r0 = None

    # --- blocks

    def block(self, node: Node, following: object) -> None:
        label, walked = node
        to = self.to
        if self.calls(node):
            if len(self.callers) > 1:
                to.store(4, R10, self.resume, self.callers.index(node))
            to.goto(_CALL)
            if node == self.callers[-1]:
                self.call_walk()
            self.in_r0 = None
            return
        block = self.cfg.blocks[label]
        for local, value in block.assignments:
            self.assign(local, value)
        match block.end:
            case Goto(target):
                to.goto(self.place((target, walked)))
            case Branch(test, then, otherwise):
                self.branch(test, (then, walked), (otherwise, walked), following)
            case Return(value):
                self.value(value)
                to.exit()
            case Leave():
                raise AssertionError("a part of a graph has no program")

    def call_walk(self) -> None:
        """The call of the walk, and on to the second version of the block that it is for."""
        to = self.to
        to.label(_CALL)
        if self.counting:
            to.load(R1, 4, R6, CB)
            to.compute(R1, "+=", 1)
            to.store(4, R6, CB, R1)
        to.move(R1, R6)
        to.move(R2, R10)
        to.compute(R2, "+=", self.found)
        to.call_function(WALK)
        if len(self.callers) > 1:
            to.load(R0, 4, R10, self.resume)
        for index, (label, _) in enumerate(self.callers[:-1]):
            to.jump(R0, "==", index, self.place((label, True)))
        to.goto(self.place((self.callers[-1][0], True)))

    def assign(self, local: Local, value: Value) -> None:
        if local == VOID:
            self.operand(value)
            return
        home = self.homes[local]
        if isinstance(home, Register):
            operand = self.operand(value)
            if operand != home:
                self.to.move(home, operand)
        else:
            self.value(value)
            self.to.store(4, R10, home, R0)
        if self.in_r0 is not None and not isinstance(self.in_r0, _Raw) and local in locals_of(self.in_r0):
            self.in_r0 = None

    def branch(self, test: Test, then: Node, otherwise: Node, following: object) -> None:
        to, comparison = self.to, _COMPARISONS[test.comparison]
        match test:
            case Test(Comparison.EQ, Passed() as passed, Const(1)):
                word, bit = self.findings.bits[passed]
                to.load(R0, 4, R10, self.found + word)
                self.in_r0 = None
                to.jump(R0, "&", bit, self.place(then))
                to.goto(self.place(otherwise))
                return
        left, right = self.compared(test)
        if self.place(then) == following and comparison in NEGATED:
            to.jump(left, NEGATED[comparison], right, self.place(otherwise))
        else:
            to.jump(left, comparison, right, self.place(then))
            to.goto(self.place(otherwise))

    def compared(self, test: Test) -> tuple[Register, Register | int]:
        """The operands of a test. A number that stands in the window is compared as it stands there."""
        match test:
            case Test(Comparison.EQ | Comparison.SET, Load(size, Const(offset)) as load, Const(number)) if (
                size > 1 and number < 1 << 8 * size and self.is_in_window(load) and self.in_r0 != load
            ):
                if self.in_r0 != _Raw(load):
                    self.to.load(R0, size, R10, self.window_place + offset - self.made_up)
                    self.in_r0 = _Raw(load)
                return R0, as_in_packet(number, size)
        return self.operands(test.left, test.right)

    # --- values

    def value(self, value: Value) -> None:
        """Compute a value in r0."""
        self.into_r0(self.operand(value))

    def into_r0(self, operand: Register | int) -> None:
        if operand != R0:
            self.to.move(R0, operand)
            self.in_r0 = None

    def operands(self, left: Value, right: Value) -> tuple[Register, Register | int]:
        """Two values: in r0 and r1, or where they are."""
        to = self.to
        if self.is_at_hand(right):
            first = self.operand(left)
            if isinstance(first, int):
                self.into_r0(first)
                first = R0
            return first, self.at_hand(right, R1)
        self.value(right)
        if self.is_at_hand(left):
            to.move(R1, R0)
        else:
            place = self.temporaries.pop() if self.temporaries else self.room(8)
            to.store(8, R10, place, R0)
            self.value(left)
            to.load(R1, 8, R10, place)
            self.temporaries.append(place)
            return R0, R1
        self.into_r0(self.at_hand(left, R0))
        return R0, R1

    def is_at_hand(self, value: Value) -> bool:
        """Whether no more than a load from the stack gives it."""
        return isinstance(value, Const | Local | Key) or (isinstance(value, Length) and not self.made_up)

    def at_hand(self, value: Value, to: Register) -> Register | int:
        if self.in_r0 == value and not isinstance(value, Const):
            return R0
        if to == R0 and not isinstance(value, Const | Length):
            self.in_r0 = value
        match value:
            case Const(number):
                return number
            case Local():
                home = self.homes[value]
                if isinstance(home, Register):
                    return home
                self.to.load(to, 4, R10, home)
                return to
            case Key():
                self.to.load(to, 4, R10, self.found + self.findings.place(value))
                return to
            case Length():
                return R7
        raise AssertionError(f"{value} is to be computed")

    def operand(self, value: Value) -> Register | int:
        """A value where it is, or in r0."""
        if self.is_at_hand(value):
            return self.at_hand(value, R0)
        if self.in_r0 != value:
            self.compute(value)
            self.in_r0 = value
        return R0

    def compute(self, value: Value) -> None:
        """Compute a value, which is not at hand, in r0."""
        to = self.to
        match value:
            case Length():
                to.move(R0, R7)
                to.compute(R0, "+=", self.made_up)
            case Load():
                self.load(value)
            case Passed():
                word, bit = self.findings.bits[value]
                to.load(R0, 4, R10, self.found + word)
                to.compute(R0, ">>=", bit.bit_length() - 1)
                to.compute(R0, "&=", 1)
            case Ancillary(_, k):
                name = ANCILLARY_BY_K[k].name if k in ANCILLARY_BY_K else f"{k:#x}"
                write_word(to, name)
            case Binary():
                self.binary(value)
            case Among():
                raise AssertionError("Among is for a pass to write out")

    def load(self, load: Load) -> None:
        to = self.to
        match load.offset:
            case Const(offset) if offset < self.made_up:
                assert self.link_layer is not None
                write_word(to, made_up_word(self.link_layer, offset, load.size))
            case Const(offset) if self.is_in_window(load):
                to.load(R0, load.size, R10, self.window_place + offset - self.made_up)
                to.from_network(R0, load.size)
            case Const(offset) if offset <= LONGEST_PACKET:
                to.load_packet(load.size, None, offset - self.made_up)
            case Const():
                self.reject()
            case offset:
                self.load_behind(load.size, offset, load.k)

    def load_behind(self, size: int, offset: Value, k: int) -> None:
        """A load at an offset that is computed."""
        to = self.to
        if k > LONGEST_PACKET:
            self.value(offset)  # it can reject the packet too, but so does the load
            self.reject()
            return
        operand = self.operand(offset)
        assert isinstance(operand, Register)
        if maximum(offset) + k > LONGEST_PACKET:
            to.jump(operand, ">", LONGEST_PACKET - k, "reject")
        if k < self.made_up:
            # In the made-up header are no bytes.
            to.jump(operand, "<", self.made_up - k, "reject")
        to.load_packet(size, operand, k - self.made_up)

    def reject(self) -> None:
        """Reject the packet. What is written behind this can be reached, as far as the kernel sees."""
        self.to.move(R0, 0)
        self.to.jump(R0, "==", 0, "reject")

    def binary(self, value: Binary) -> None:
        to, operator = self.to, value.operator
        left, right = self.operands(value.left, value.right)
        if right == R0:
            to.move(R1, R0)
            right = R1
        self.into_r0(left)
        if isinstance(right, int):
            if operator in (Operator.DIV, Operator.MOD) and right == 0:
                self.reject()
                return
            if operator in (Operator.LSH, Operator.RSH) and right > 31:
                to.move(R0, 0)
                return
        elif operator in (Operator.DIV, Operator.MOD):
            to.jump(right, "==", 0, "reject")
        elif operator in (Operator.LSH, Operator.RSH):
            short, done = object(), object()
            to.jump(right, "<=", 31, short)
            to.move(R0, 0)
            to.goto(done)
            to.label(short)
            to.compute(R0, _OPERATORS[operator], right, whole=False)
            to.label(done)
            return
        to.compute(R0, _OPERATORS[operator], right, whole=False)
