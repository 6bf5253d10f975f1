"""The readers of programs written in words: bpf_asm source, and what `tcpdump -d` prints.

In:  text.
Out: the instructions and the line each begins on; a ProgramError that names the line where the text is wrong.
     Whether they are a program is left to the caller.

The syntax of bpf_asm is that of the kernel's tools/bpf/bpf_exp.l and bpf_exp.y. Everything these take is taken, but for
`ret x`, which nothing can run, numbers of more than 32 bits, and labels that stand twice. Beyond them a few things are
taken that do no harm: `[x+3]` without spaces, `#pktlen`, labels of one letter, the names of the flow keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

from pcapext.bpf import ANCILLARY, JA, LDX_MSH, OPCODES, RET_A, U32, Instruction, Operand
from pcapext.errors import ProgramError, printable
from pcapext.slotted import dataclass

#: Blanks and comments. A `#` begins a comment only in the first column. No two alternatives begin alike, so that a
#: match takes linear time.
BLANK = r"[ \t\r\n\f\v]|;[^\n]*|^\#[^\n]*|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/"

_TOKEN = re.compile(
    rf"""(?P<blank>(?:{BLANK})+)
        |(?P<number>(?:0|[-+]?[1-9])[0-9A-Za-z_]*)
        |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
        |(?P<mark>[][(){{}}:,\#%+*&=])""",
    re.VERBOSE | re.MULTILINE,
)

_NUMBER = re.compile(r"(?P<hex>0[xX][0-9a-fA-F]+)|(?P<binary>0[bB][01]+)|(?P<octal>0[0-7]+)|(?P<decimal>0|[-+]?[1-9][0-9]*)")
_BASES = {"hex": 16, "binary": 2, "octal": 8, "decimal": 10}

Numbered = tuple[Instruction, int]


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the text. `kind` is number, name, mark, or end for the end of the text."""

    kind: str
    text: str
    line: int

    def __str__(self) -> str:
        return "the end of the text" if self.kind == "end" else quoted(self.text)


def quoted(text: str) -> str:
    """`text` in quotes for a message, cut if it is long."""
    return f"'{printable(text if len(text) <= 40 else text[:37] + '...')}'"


class Cursor:
    """A place in a text that was cut into tokens."""

    def __init__(self, text: str):
        self._tokens = _tokens(text)
        self._next = 0

    @property
    def token(self) -> Token:
        """The next token."""
        return self._tokens[self._next]

    def take(self) -> Token:
        """The next token, which is then behind."""
        token = self.token
        self._next += token.kind != "end"
        return token

    def skip(self, *texts: str) -> bool:
        """Whether the next tokens are these, in any case; they are then behind."""
        tokens = self._tokens[self._next : self._next + len(texts)]
        found = [token.text.lower() for token in tokens] == list(texts)
        if found:
            self._next += len(texts)
        return found

    def expect(self, text: str) -> None:
        """Take the token `text`."""
        if not self.skip(text):
            self.fail(f"'{text}'")

    def number(self, what: str = "a number", lowest: int = -0x8000_0000, highest: int = U32) -> int:
        """Take a number in any base of bpf_asm, within the range."""
        match = _NUMBER.fullmatch(self.token.text) if self.token.kind == "number" else None
        if match is None:
            self.fail(what)
        token, base = self.take(), _BASES[str(match.lastgroup)]
        # The other bases take linear time; a decimal number of this length is out of range whatever it is.
        value = highest + 1 if base == 10 and len(token.text) > 11 else int(token.text, base)
        if not lowest <= value <= highest:
            raise ProgramError(f"line {token.line}: {token} is out of range, expected {lowest} to {highest}")
        return value

    def name(self, what: str) -> Token:
        """Take a name."""
        if self.token.kind != "name":
            self.fail(what)
        return self.take()

    def fail(self, expected: str) -> NoReturn:
        """Say that the next token is wrong."""
        raise ProgramError(f"line {self.token.line}: unexpected {self.token}, expected {expected}")


def _tokens(text: str) -> Sequence[Token]:
    tokens, place, line = list[Token](), 0, 1
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ProgramError(f"line {line}: unexpected {quoted(text[place])}")
        kind, place = str(match.lastgroup), match.end()
        if kind == "blank":
            line += match[0].count("\n")
        else:
            tokens.append(Token(kind, match[0], line))
    tokens.append(Token("end", "", line))
    return tokens


# A constant is read alike whatever libpcap shows it as. The kernel's grammar has `ldx 4*([k]&0xf)` too.
_CODES: dict[tuple[str, Operand], int] = {
    (opcode.mnemonic, Operand.DECIMAL if opcode.operand is Operand.HEX else opcode.operand): opcode.code for opcode in OPCODES
}
_CODES["ldx", Operand.HEADER_LENGTH] = LDX_MSH
_CONDITIONAL = {opcode.mnemonic for opcode in OPCODES if opcode.conditional}
_MNEMONICS = {opcode.mnemonic for opcode in OPCODES}
_BARE = {mnemonic for mnemonic, operand in _CODES if operand is Operand.NONE}
_NAMES = {name: word.k for word in ANCILLARY for name in (word.name, *word.asm)}
_LENGTHS = ("len", "pktlen")

#: bpf_asm's other names: of loads of a constant, and of jumps where the test does not hold.
_IMMEDIATE = {"ldi": "ld", "ldxi": "ldx"}
_NEGATED = {"jne": "jeq", "jneq": "jeq", "jlt": "jge", "jle": "jgt"}


def read_asm(text: str) -> list[Numbered]:
    """The instructions of bpf_asm source, each with its line.

    >>> [instruction.code for instruction, line in read_asm("ld #len ; the length\\nret a")]
    [128, 22]
    """
    cursor = Cursor(text)
    rows, lines = list[_Row](), list[int]()
    labels, jumps = dict[str, _Label](), list[_Jump]()
    while cursor.token.kind != "end":
        word = cursor.name("an instruction or a label")
        if cursor.skip(":"):
            if word.text in labels:
                raise ProgramError(f"line {word.line}: label {word} stands on line {labels[word.text].word.line} already")
            labels[word.text] = _Label(word, len(rows))
            continue
        lines.append(word.line)
        rows.append(_asm_row(cursor, word, len(rows), jumps))
    for label in labels.values():
        if label.index == len(rows):
            raise ProgramError(f"line {label.word.line}: there is no instruction behind label {label.word}")
    for jump in jumps:
        rows[jump.index][jump.column] = jump.distance(labels)
    return _numbered(rows, lines)


#: Code, jt, jf and k of an instruction while it is read.
_Row = list[int]
_JT, _JF, _K = 1, 2, 3


@dataclass(frozen=True, slots=True)
class _Label:
    """A label, and the index of the instruction behind it."""

    word: Token
    index: int


@dataclass(frozen=True, slots=True)
class _Jump:
    """A column of a row that leads to a label."""

    index: int
    column: int
    label: Token

    def distance(self, labels: dict[str, _Label]) -> int:
        where = f"line {self.label.line}: "
        if self.label.text not in labels:
            raise ProgramError(f"{where}there is no label {self.label}")
        distance = labels[self.label.text].index - self.index - 1
        if self.column == _K:
            return distance & U32
        if distance < 0:
            raise ProgramError(f"{where}label {self.label} lies behind, a conditional jump goes forward")
        if distance > 0xFF:
            raise ProgramError(f"{where}label {self.label} is {distance} instructions away, a conditional jump reaches 255")
        return distance


def _asm_row(cursor: Cursor, word: Token, index: int, jumps: list[_Jump]) -> _Row:
    """The row of the instruction whose mnemonic `word` was taken; its jumps are noted in `jumps`."""
    mnemonic = word.text.lower()
    if mnemonic in ("ja", "jmp"):
        jumps.append(_Jump(index, _K, cursor.name("a label")))
        return [JA, 0, 0, 0]
    if mnemonic in _IMMEDIATE:
        cursor.skip("#")
        return [_CODES[_IMMEDIATE[mnemonic], Operand.DECIMAL], 0, 0, cursor.number() & U32]
    row = _row(cursor, word, _NEGATED.get(mnemonic, mnemonic))
    if mnemonic in _NEGATED:
        cursor.expect(",")
        jumps.append(_Jump(index, _JF, cursor.name("a label")))
    elif mnemonic in _CONDITIONAL:
        cursor.expect(",")
        jumps.append(_Jump(index, _JT, cursor.name("a label")))
        if cursor.skip(","):
            jumps.append(_Jump(index, _JF, cursor.name("a label")))
    return row


def read_d(text: str) -> list[Numbered]:
    """The instructions of what `tcpdump -d` prints, each with its line.

    >>> read_d("(000) ret      #-1")
    [(Instruction(code=6, jt=0, jf=0, k=4294967295), 1)]
    """
    cursor = Cursor(text)
    rows, lines = list[_Row](), list[int]()
    while cursor.token.kind != "end":
        index = len(rows)
        lines.append(cursor.token.line)
        if not cursor.skip("(", f"{index:03d}", ")"):
            cursor.fail(f"'({index:03d})'")
        word = cursor.name("an instruction")
        mnemonic = word.text.lower()
        if mnemonic == "ja":
            row = [JA, 0, 0, cursor.number("the number of an instruction") - index - 1 & U32]
        elif mnemonic == "ret" and (cursor.token.kind == "end" or cursor.token.text == "("):
            row = [RET_A, 0, 0, 0]  # It is written without operand.
        else:
            row = _row(cursor, word, mnemonic)
        if mnemonic in _CONDITIONAL:
            for column, name in ((_JT, "jt"), (_JF, "jf")):
                cursor.expect(name)
                row[column] = cursor.number("the number of an instruction", index + 1, index + 256) - index - 1
        rows.append(row)
    return _numbered(rows, lines)


def _numbered(rows: list[_Row], lines: list[int]) -> list[Numbered]:
    return [(Instruction(*row), line) for row, line in zip(rows, lines, strict=True)]


def _row(cursor: Cursor, word: Token, mnemonic: str) -> _Row:
    """The row of an instruction written as `word`, without where it jumps to: takes the operand that its mnemonic has."""
    if mnemonic not in _MNEMONICS:
        raise ProgramError(f"line {word.line}: unknown instruction {word}")
    operand, k = (Operand.NONE, 0) if mnemonic in _BARE else _operand(cursor)
    code = _CODES.get((mnemonic, operand))
    if code is None:
        taken = " or ".join(f"'{other.value}'" for name, other in _CODES if name == mnemonic)
        raise ProgramError(f"line {word.line}: {word} does not take '{operand.value}', expected {taken}")
    return [code, 0, 0, k & U32]


def _operand(cursor: Cursor) -> tuple[Operand, int]:
    """What an operand is, and its number."""
    if cursor.skip("#"):
        return _word(cursor) if cursor.token.kind == "name" else (Operand.DECIMAL, cursor.number())
    if cursor.skip("%", "x") or cursor.skip("x"):
        return Operand.X, 0
    if cursor.skip("%", "a") or cursor.skip("a"):
        return Operand.A, 0
    if cursor.skip("m", "["):
        operand, k = Operand.MEMORY, cursor.number()
        cursor.expect("]")
        return operand, k
    if cursor.skip("["):
        operand, k = _place(cursor)
        cursor.expect("]")
        return operand, k
    if cursor.token.kind == "number":
        return Operand.HEADER_LENGTH, _header_length(cursor)
    return _word(cursor)


def _word(cursor: Cursor) -> tuple[Operand, int]:
    """`len` or an ancillary word."""
    name = cursor.token.text.lower()
    if name not in _NAMES and name not in _LENGTHS:
        cursor.fail("an operand")
    cursor.take()
    return (Operand.LENGTH, 0) if name in _LENGTHS else (Operand.ABSOLUTE, _NAMES[name])


def _place(cursor: Cursor) -> tuple[Operand, int]:
    """What stands between the brackets of a load."""
    if cursor.skip("%", "x") or cursor.skip("x"):
        if not cursor.token.text.startswith("+") or cursor.token.kind != "number":
            cursor.expect("+")
        return Operand.INDIRECT, cursor.number()
    if cursor.token.text.lower() in _NAMES:
        return _word(cursor)
    return Operand.ABSOLUTE, cursor.number("a number, 'x' or the name of an ancillary word")


def _header_length(cursor: Cursor) -> int:
    """The k of `4*([k]&0xf)`."""
    start = cursor.token
    factor = cursor.number()
    if not cursor.skip("*", "(", "["):
        raise ProgramError(f"line {start.line}: unexpected {start}, expected an operand such as '#{factor}' or '[{factor}]'")
    k = cursor.number()
    cursor.expect("]")
    cursor.expect("&")
    mask = cursor.number()
    cursor.expect(")")
    if (factor, mask) != (4, 0xF):
        raise ProgramError(f"line {start.line}: unexpected '{factor}*([{k}]&{mask:#x})', expected '4*([{k}]&0xf)'")
    return k
