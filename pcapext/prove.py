"""Prove: that one program does what another does, with no more instructions on any packet.

In:  two classic BPF programs without backward jumps.
Out: True where that is proved; False where it is not so, or takes too long to see. And, of one program, how long it runs at most.

Both programs are run together on symbols. What they ask of the packet is answered in every way that fits the answers before:
whether a load reaches past the end, how a test comes out. Answers that neither program can ask for again are
forgotten, so that ways meet again. Where both have ended, the verdicts and the numbers of instructions executed are compared; where
ways meet, the one counts on which the first program is farther behind. Ways that no packet takes can be among
those that are looked at: then nothing is proved that holds, but nothing that does not hold is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from heapq import heappop, heappush
from itertools import count
from typing import Literal, TypeAlias

from pcapext import bpf
from pcapext.bpf import Instruction, Operand
from pcapext.cfg import (
    LONGEST_PACKET,
    REMEMBERED,
    U32,
    Binary,
    Comparison,
    Const,
    Length,
    Load,
    Local,
    Test,
    Value,
    locals_of,
    maximum,
    parts,
)
from pcapext.lift import MEMORY, A, X, comparison_of, run_one
from pcapext.optimize.simplify import simplify_test, simplify_value
from pcapext.optimize.thread import Known
from pcapext.slotted import dataclass

#: How many pairs of places to look at. It takes less than 100 µs for one; a thousand hosts have 5000.
_MOST_PAIRS = 40_000


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether the packet has this many bytes behind a base; the base None is its begin."""

    base: Value | None
    distance: int


#: A question that is a bool has its answer already.
Question: TypeAlias = Reach | Test | bool


@dataclass(frozen=True, slots=True)
class _Facts:
    """What was answered: by value what tests told of it, by base how far the packet reaches behind it, and how far it does not."""

    known: frozenset[tuple[Value, Known]] = frozenset()
    reached: frozenset[tuple[Value | None, int]] = frozenset()
    beyond: frozenset[tuple[Value | None, int]] = frozenset()

    def answer(self, question: Question) -> bool | None:
        """What follows for a question."""
        match question:
            case bool():
                return question
            case Reach(base, distance):
                reached, beyond = dict(self.reached), dict(self.beyond)
                if reached.get(base, -1) >= distance or (base is not None and reached.get(None, -1) >= maximum(base) + distance):
                    return True
                # What is not there behind the begin is not there behind a base.
                return False if min(beyond.get(base, U32 * 2), beyond.get(None, U32 * 2)) <= distance else None
            case Test(_, left):
                known = dict(self.known).get(left)
                return None if known is None else known.outcome(question)

    def told(self, question: Question, answer: bool) -> _Facts:
        """This and one more answer."""
        match question:
            case bool():
                return self
            case Reach(base, distance) if answer:
                farther = {each: max(distance, dict(self.reached).get(each, 0)) for each in (base, None)}
                return _Facts(self.known, frozenset({**dict(self.reached), **farther}.items()), self.beyond)
            case Reach(base, distance):
                return _Facts(self.known, self.reached, frozenset({**dict(self.beyond), base: distance}.items()))
            case Test(_, left):
                known = dict(self.known)
                known[left] = known.get(left, Known()).with_outcome(question, answer)
                return _Facts(frozenset(known.items()), self.reached, self.beyond)

    def about(self, sources: set[Source]) -> _Facts:
        """The facts about values that are made of these."""

        def relevant(value: Value | None) -> bool:
            return value is None or all(
                source is None or source in sources or _behind(source) in sources for source in map(_source, parts(value))
            )

        reached = {base: distance for base, distance in self.reached if relevant(base)}
        if None in reached and not any(source[0] == "behind" for source in sources):
            # Among the ends that are asked for, the farthest one that is there says as much.
            ends = (offset + size for kind, size, offset in sources if kind == "at")
            reached[None] = max((end for end in ends if end <= reached[None]), default=0)
        return _Facts(
            frozenset(fact for fact in self.known if relevant(fact[0])),
            frozenset(reached.items()),
            frozenset(fact for fact in self.beyond if relevant(fact[0])),
        )


#: What numbers come from: a load at an offset, one behind a base, or the length. The numbers are the size and the offset.
Source: TypeAlias = tuple[Literal["at", "behind", "length"], int, int]


@lru_cache(REMEMBERED)
def _source(part: Value) -> Source | None:
    match part:
        case Load(size, Const(offset)):
            return "at", size, offset
        case Load(size):
            return "behind", size, 0
        case Length():
            return "length", 0, 0
    return None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a program is, and what the registers hold that it reads from here on; or, with no index, its verdict."""

    index: int | None
    registers: tuple[tuple[Local, Value], ...]
    verdict: Value | None = None


class _Walker:
    """Runs one program on symbols."""

    def __init__(self, instructions: Sequence[Instruction]):
        self.instructions = instructions
        self.live = _live(instructions)
        self.asked = _asked(instructions)

    def begin(self) -> _Place:
        return _Place(0, tuple((register, Const(0)) for register in (A, X, *MEMORY) if register in self.live[0]))

    def run(self, place: _Place, facts: _Facts) -> tuple[_Place, int, Question | None]:
        """Run on to the end, or the first question without an answer: the place, the instructions executed, and the question."""
        index = place.index
        if index is None:
            return place, 0, None
        registers = dict.fromkeys((A, X, *MEMORY), Const(0)) | dict(place.registers)
        for executed in count():
            instruction = self.instructions[index]
            match instruction.code:
                case bpf.RET_K:
                    return _Place(None, (), Const(instruction.k)), executed + 1, None
                case bpf.RET_A:
                    return _Place(None, (), registers[A]), executed + 1, None
                case bpf.JA:
                    index += 1 + instruction.k
                case code if bpf.OPCODE_BY_CODE[code].conditional:
                    test, same = _simple_test(comparison_of(instruction, registers))
                    outcome = facts.answer(test)
                    if outcome is None:
                        return self.place(index, registers), executed, test
                    then, otherwise = instruction.targets(index)
                    index = then if outcome == same else otherwise
                case _:
                    before = dict(registers)
                    for part in run_one(instruction, registers):
                        question, rejecting = _rejects(part)
                        answer = facts.answer(question)
                        if answer is None:
                            return self.place(index, before), executed, question
                        if answer == rejecting:
                            return _Place(None, (), Const(0)), executed + 1, None
                    index += 1
                    for register in (A, X):
                        registers[register] = simplify_value(registers[register])
        raise AssertionError

    def place(self, index: int, registers: dict[Local, Value]) -> _Place:
        return _Place(index, tuple((register, value) for register, value in registers.items() if register in self.live[index]))

    def sources(self, place: _Place) -> set[Source]:
        """What the values are made of that the program can ask about from a place on."""
        if place.index is None:
            return set()
        held = {source for _, value in place.registers for part in parts(value) if (source := _source(part)) is not None}
        return held | self.asked[place.index]


def never_worse(instructions: Sequence[Instruction], other: Sequence[Instruction], most_pairs: int = _MOST_PAIRS) -> bool:
    """Whether it is proved that a program gives the other's verdict on every packet and never executes more instructions.

    >>> from pcapext.bpf import JEQ_K, LD_B_ABS, RET_K
    >>> load, accept, reject = Instruction(LD_B_ABS, k=9), Instruction(RET_K, k=96), Instruction(RET_K)
    >>> twice = (load, Instruction(JEQ_K, 0, 3, 6), load, Instruction(JEQ_K, 0, 1, 6), accept, reject)
    >>> once = (load, Instruction(JEQ_K, 0, 1, 6), accept, reject)
    >>> never_worse(once, twice), never_worse(twice, once)
    (True, False)
    """
    if any(bpf.OPCODE_BY_CODE[each.code].operand is Operand.ABSOLUTE and each.k > LONGEST_PACKET for each in (*instructions, *other)):
        return False  # whether there are such words depends on where a program runs
    walker, others = _Walker(instructions), _Walker(other)
    begin = walker.begin(), others.begin(), _Facts()
    spared = {begin: 0}  # how many instructions more the other one executed up to a pair of places, at least
    order = count()
    # Jumps go forward: when a pair is taken, all ways to it were looked at.
    pending = [(0, next(order), begin)]
    for _ in range(most_pairs):
        if not pending:
            return True
        _, _, pair = heappop(pending)
        place, executed, question = walker.run(pair[0], pair[2])
        other_place, other_executed, other_question = others.run(pair[1], pair[2])
        margin = spared.pop(pair) + other_executed - executed
        asked = other_question or question
        if asked is None:
            if place.verdict is not other_place.verdict or margin < 0:
                return False
            continue
        for answer in (True, False):
            facts = pair[2].told(asked, answer).about(walker.sources(place) | others.sources(other_place))
            following = place, other_place, facts
            if following not in spared:
                done = sum(len(walker.instructions) if each.index is None else each.index for each in (place, other_place))
                heappush(pending, (done, next(order), following))
            spared[following] = min(margin, spared.get(following, margin))
    return False


def longest_way(instructions: Sequence[Instruction]) -> int:
    """The instructions that a program without backward jumps executes at most, on whatever packet.

    Which tests exclude each other is not looked at: there may be no packet that takes the longest way.

    >>> from pcapext.bpf import JEQ_K, LD_B_ABS, RET_K
    >>> load, accept, reject = Instruction(LD_B_ABS, k=9), Instruction(RET_K, k=96), Instruction(RET_K)
    >>> longest_way((load, Instruction(JEQ_K, 1, 0, 6), Instruction(JEQ_K, 0, 1, 17), accept, reject))
    4
    """
    longest = [1] * len(instructions)
    for index in reversed(range(len(instructions))):
        longest[index] += max((longest[following] for following in _next(instructions[index], index)), default=0)
    return longest[0]


def _behind(source: Source) -> Source:
    """A load behind a base that turns out to be a number is one of these."""
    return ("behind", source[1], 0)


@lru_cache(REMEMBERED)
def _simple_test(test: Test) -> tuple[Test | bool, bool]:
    return simplify_test(Test(test.comparison, simplify_value(test.left), simplify_value(test.right)))


@lru_cache(REMEMBERED)
def _rejects(part: Value) -> tuple[Question, bool]:
    """What decides whether a value rejects the packet, and the answer with which it does."""
    match part:
        case Binary(_, _, divisor):
            return _simple_test(Test(Comparison.EQ, divisor, Const(0)))
    match simplify_value(part):
        case Load(size, Const(offset)):
            return Reach(None, offset + size), False
        case Load(size, offset, k):
            return Reach(offset, k + size), False
    raise AssertionError(part)


def _asked(instructions: Sequence[Instruction]) -> list[frozenset[Source]]:
    """For each instruction, what it and those that may follow load."""
    asked: list[frozenset[Source]] = [frozenset()] * len(instructions)
    for index, instruction in reversed([*enumerate(instructions)]):
        following = frozenset[Source]().union(*(asked[target] for target in _next(instruction, index)))
        opcode, k = bpf.OPCODE_BY_CODE[instruction.code], instruction.k
        size = {"ld": 4, "ldh": 2}.get(opcode.mnemonic, 1)
        match opcode.operand:
            case Operand.ABSOLUTE | Operand.HEADER_LENGTH:
                following |= {("at", size, k)}
            case Operand.INDIRECT:
                following |= {("behind", size, 0), ("at", size, k)}
            case Operand.LENGTH:
                following |= {("length", 0, 0)}
        asked[index] = following
    return asked


def _live(instructions: Sequence[Instruction]) -> list[frozenset[Local]]:
    """For each instruction, the registers that it and those that may follow read before they write them."""
    live: list[frozenset[Local]] = [frozenset()] * len(instructions)
    for index, instruction in reversed([*enumerate(instructions)]):
        after = frozenset[Local]().union(*(live[target] for target in _next(instruction, index)))
        reads, writes = _registers(instruction)
        live[index] = reads | (after - writes)
    return live


def _next(instruction: Instruction, index: int) -> tuple[int, ...]:
    """The instructions that may follow."""
    if instruction.code in (bpf.RET_K, bpf.RET_A):
        return ()
    return instruction.targets(index) or (index + 1,)


def _registers(instruction: Instruction) -> tuple[frozenset[Local], frozenset[Local]]:
    """The registers that an instruction reads and writes."""
    unknown: dict[Local, Value] = {register: register for register in (A, X, *MEMORY)}
    match instruction.code:
        case bpf.RET_A:
            return frozenset({A}), frozenset()
        case bpf.RET_K | bpf.JA:
            return frozenset(), frozenset()
        case code if bpf.OPCODE_BY_CODE[code].conditional:
            test = comparison_of(instruction, unknown)
            return locals_of(test.left) | locals_of(test.right), frozenset()
    rejecting = run_one(instruction, unknown)
    changed = {register: value for register, value in unknown.items() if value is not register}
    return frozenset[Local]().union(*map(locals_of, (*changed.values(), *rejecting))), frozenset(changed)
