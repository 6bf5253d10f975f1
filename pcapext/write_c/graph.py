"""A graph in C: the body of the function that tells how many bytes of a packet to keep.

In:  a graph in which what the walk tells is assigned to locals (`pcapext.lower.load_once`), and the names of these.
Out: the lines of the function's body.

Of the two ways behind a test one is written in braces, the shorter one, and the other below. What several ways lead to is
written behind all of them, at a label; so every `goto` leads forward. What was loaded on all ways to a block is not loaded again.
"""

from __future__ import annotations

from collections.abc import Mapping

from pcapext.bpf import ANCILLARY_BY_K
from pcapext.cfg import (
    U32,
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
    loads_of,
    locals_of,
    maximum,
)
from pcapext.encapsulation import BY_ETHERTYPE
from pcapext.errors import FilterError
from pcapext.headers import HEADERS
from pcapext.write_c.pieces import identifier, indented

#: The local for something that the walk tells is named so.
FOUND = "found."

#: A test and its opposite.
_TESTS = {Comparison.EQ: ("==", "!="), Comparison.GT: (">", "<="), Comparison.GE: (">=", "<")}
_OPERATORS = {
    Operator.ADD: "+",
    Operator.SUB: "-",
    Operator.MUL: "*",
    Operator.DIV: "/",
    Operator.MOD: "%",
    Operator.AND: "&",
    Operator.OR: "|",
    Operator.XOR: "^",
    Operator.LSH: "<<",
    Operator.RSH: ">>",
}
_SIZES = {1: "byte", 2: "half", 4: "word"}


def write_graph(cfg: Cfg) -> tuple[list[str], list[str]]:
    """The names of the variables, all of them `uint32_t`, and the lines. Raises `FilterError` for a word that is not of the packet."""
    return _Writer(cfg).body()


class _Writer:
    """Writes one graph."""

    def __init__(self, cfg: Cfg):
        self.cfg = cfg
        self.names: dict[Local | Load, str] = {}
        self.taken = {"packet", "found", "data", "data_end", "wirelen", "filter"}
        self.loaded = _loaded_before(cfg)
        predecessors = cfg.predecessors
        #: The blocks that have a label, each with its name; and those behind which they are written.
        self.joins = {label: "" for label in cfg.labels if len(predecessors[label]) > 1 and not self.is_verdict(label)}
        self.behind: dict[Label, list[Label]] = {}
        above = _dominators(cfg)
        for label in self.joins:
            self.joins[label] = f"next_{len([name for name in self.joins.values() if name]) + 1}"
            self.behind.setdefault(above[label], []).append(label)
        self.size = dict.fromkeys(cfg.labels, 1)
        for label in reversed(cfg.labels):
            if label != cfg.entry:
                self.size[above[label]] += self.size[label]

    def body(self) -> tuple[list[str], list[str]]:
        lines = self.tree(self.cfg.entry)
        return [name for name in self.names.values() if not name.startswith(FOUND)], lines

    def is_verdict(self, label: Label) -> bool:
        match self.cfg.blocks[label]:
            case Block((), Return(Const())):
                return True
        return False

    # --- blocks

    def tree(self, first: Label) -> list[str]:
        """A block and all that it alone leads to."""
        lines: list[str] = []
        pending = [first]
        while pending:
            label: Label | None = pending.pop()
            if label in self.joins and label != first:
                if lines and lines[-1] == f"goto {self.joins[label]};":
                    lines.pop()
                lines.append(f"{self.joins[label]}:")
            while label is not None:
                pending += reversed(self.behind.get(label, []))
                label = self.block(label, lines)
        return lines

    def block(self, label: Label, lines: list[str]) -> Label | None:
        """Writes a block; the one to be written below it, if there is one."""
        block = self.cfg.blocks[label]
        loaded = set(self.loaded[label])
        walked = False
        for local, value in block.assignments:
            if isinstance(value, Key | Passed):
                self.names[local] = local.name
                if not walked:
                    lines.append("walk(data, data_end, &found);")
                walked = True
                continue
            text = self.value(value, lines, loaded)
            if local != VOID:
                lines.append(f"{self.name(local)} = {text};")
                loaded = {load for load in loaded if local not in locals_of(load)}
        match block.end:
            case Goto(target):
                return self.go(target, lines)
            case Return(value):
                text = self.value(value, lines, loaded)
                lines.append(f"return {value.value if isinstance(value, Const) else text};")
                return None
            case Branch(test, then, otherwise):
                holds, fails = self.test(test, lines, loaded)
                ways = [(holds, then, otherwise), (fails, otherwise, then)]
                # What is a jump or a verdict first, then what is shorter.
                condition, apart, below = min(ways, key=lambda way: (not self.is_short(way[1]), self.size[way[1]]))
                inside = [self.jump(apart)] if self.is_short(apart) else self.tree(apart)
                lines.append(f"if ({condition})" if len(inside) == 1 else f"if ({condition}) {{")
                lines += indented(inside)
                if len(inside) > 1:
                    lines.append("}")
                return self.go(below, lines)
            case Leave():
                raise AssertionError("the graph is a part of one")

    def is_short(self, label: Label) -> bool:
        return label in self.joins or self.is_verdict(label)

    def jump(self, label: Label) -> str:
        match self.cfg.blocks[label].end:
            case Return(Const(number)) if self.is_verdict(label):
                return f"return {number};"
        return f"goto {self.joins[label]};"

    def go(self, label: Label, lines: list[str]) -> Label | None:
        """The block, if it is to be written here; else a jump to it is written."""
        if not self.is_short(label):
            return label
        lines.append(self.jump(label))
        return None

    # --- values

    def name(self, value: Local | Load) -> str:
        if value not in self.names:
            match value:
                case Local(name):
                    wanted = name if name.startswith(FOUND) else f"local_{identifier(name)}"
                case Load(size, Const(offset), _):
                    wanted = f"{_SIZES[size]}_{offset}"
                case Load(size, Local(name), k) if name.startswith(FOUND):
                    wanted = f"{_SIZES[size]}_{identifier(name.removeprefix(FOUND))}_{k}"
                case Load(size):
                    wanted = f"{_SIZES[size]}_x"
            name, number = wanted, 2
            while name in self.taken:
                name, number = f"{wanted}_{number}", number + 1
            self.taken.add(name)
            self.names[value] = name
        return self.names[value]

    def test(self, test: Test, lines: list[str], loaded: set[Load]) -> tuple[str, str]:
        """A test and its opposite."""
        is_mask = test.comparison is Comparison.SET
        left = self.value(test.left, lines, loaded)
        right = self.value(test.right, lines, loaded, hexadecimal=is_mask or _is_type(test)) + _comment(test)
        if is_mask:
            return f"{left} & {right}", f"!({left} & {right})"
        holds, fails = _TESTS[test.comparison]
        return f"{left} {holds} {right}", f"{left} {fails} {right}"

    def value(self, value: Value, lines: list[str], loaded: set[Load], hexadecimal: bool = False) -> str:
        """The text of a value; what must be loaded for it is written before."""
        match value:
            case Const(number):
                return f"{number:#x}" if hexadecimal or number > 0xFFFF else str(number)
            case Length():
                return "wirelen"
            case Local():
                return self.name(value)
            case Load(size, offset, k):
                if value not in loaded:
                    at = self.offset(offset, k, lines, loaded)
                    lines += [f"if (!load_{_SIZES[size]}(packet, {at}, &{self.name(value)}))", "    return 0;"]
                    loaded.add(value)
                return self.name(value)
            case Binary(operator, left, right):
                return self.binary(operator, left, right, lines, loaded)
            case Ancillary(_, k):
                word = ANCILLARY_BY_K.get(k)
                raise FilterError(f"the filter asks for [{word.name if word else hex(k)}], and C sees nothing but the bytes of a packet")
            case Key() | Passed() | Among():
                raise AssertionError(f"{value} has no text in C")

    def offset(self, offset: Value, k: int, lines: list[str], loaded: set[Load]) -> str:
        """Where a load is from: a sum that is not cut to 32 bits."""
        text = self.value(offset, lines, loaded)
        if k == 0:
            return text
        return f"{text} + {k}" if maximum(offset) + k <= U32 else f"(uint64_t){text} + {k}"

    def binary(self, operator: Operator, left: Value, right: Value, lines: list[str], loaded: set[Load]) -> str:
        first, second = self.value(left, lines, loaded), self.value(right, lines, loaded, operator is Operator.AND)
        if isinstance(left, Const):
            first += "u"
        match operator, right:
            case ((Operator.DIV | Operator.MOD), Const(0)):
                lines.append("return 0;")
                return "0"
            case ((Operator.DIV | Operator.MOD), Const()):
                pass
            case ((Operator.DIV | Operator.MOD), _):
                lines += [f"if ({second} == 0)", "    return 0;"]
            case ((Operator.LSH | Operator.RSH), Const(count)):
                if count >= 32:
                    return "0"
            case ((Operator.LSH | Operator.RSH), _):
                return f"({second} < 32 ? {first} {_OPERATORS[operator]} {second} : 0)"
        return f"({first} {_OPERATORS[operator]} {second})"


#: EtherTypes that a comment names, or that the walk knows.
_TYPES = {header.ethertype for header in HEADERS.values() if header.ethertype} | BY_ETHERTYPE.keys()


def _is_type(test: Test) -> bool:
    """Whether an EtherType is asked for, which is written as a hexadecimal number."""
    match test:
        case Test(_, Local(name)):
            return name.endswith("nproto")
        case Test(Comparison.EQ, Load(2, Const()), Const(number)):
            return number in _TYPES
    return False


def _comment(test: Test) -> str:
    """The term of the language that asks for a protocol."""
    match test:
        case Test(Comparison.EQ, Local() | Load(), Const(number)) if _is_type(test):
            words = [word for word, header in HEADERS.items() if header.ethertype == number and header.protocol is None]
        case Test(Comparison.EQ, Local(name), Const(number)) if name.endswith("tproto"):
            words = [word for word, header in HEADERS.items() if header.protocol == number]
        case _:
            return ""
    return f" /* {' or '.join(words)} */" if words else ""


def _loaded_before(cfg: Cfg) -> Mapping[Label, frozenset[Load]]:
    """What has been loaded on every way to each block."""
    before: dict[Label, frozenset[Load]] = {cfg.entry: frozenset()}
    for label, block in cfg.blocks.items():
        loaded = before[label]
        for local, value in block.assignments:
            loaded |= {load for load in loads_of(value) if isinstance(load, Load)}
            loaded = frozenset(load for load in loaded if local not in locals_of(load))
        for value in block.end.values:
            loaded |= {load for load in loads_of(value) if isinstance(load, Load)}
        for target in block.targets:
            before[target] = before[target] & loaded if target in before else loaded
    return before


def _dominators(cfg: Cfg) -> dict[Label, Label]:
    """For each block but the entry, the last one that is on every way to it."""
    number = {label: index for index, label in enumerate(cfg.labels)}
    above: dict[Label, Label] = {}
    predecessors = cfg.predecessors
    for label in cfg.labels:
        if label == cfg.entry:
            continue
        first, *others = predecessors[label]
        for other in others:
            while first != other:
                if number[first] > number[other]:
                    first = above[first]
                else:
                    other = above[other]
        above[label] = first
    return above
