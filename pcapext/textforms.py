"""Programs from text: every form that `pcapext.dump` writes is read here.

In:  text, from pcapext, tcpdump, bpf_asm, nfbpf_compile or a hand.
Out: a `Program`, or a ProgramError that names the line (in JSON the instruction) and says what is wrong and what was
     expected. Any text gives one or the other, in time that grows with its length alone.

Only JSON tells the link type, the snap length, the expression and the settings of the walk; from the other forms a
program has the defaults of `Program`. Its target follows from its loads (`pcapext.bpf.program_of`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pcapext.bpf import Instruction, Program, program_of, structural_fault
from pcapext.bpfasm import BLANK, Cursor, Numbered, quoted, read_asm, read_d
from pcapext.errors import ProgramError, SettingsError
from pcapext.slotted import replace

if TYPE_CHECKING:
    from pcapext.encapsulation import WalkSettings


def read_program(text: str, form: str | None = None) -> Program:
    """The program that `text` is, in the named form (a style of `pcapext.dump.dump`), or in whichever it looks like.

    >>> read_program("2,40 0 0 12,22 0 0 0").dump("asm")
    '\\tldh [12]\\n\\tret a\\n'
    """
    if form is None:
        form = recognise(text)
    reader = FORMS.get(form)
    if reader is None:
        raise ProgramError(f"unknown form {form!r}, expected one of {', '.join(FORMS)}")
    return reader(text)


def recognise(text: str) -> str:
    """The form that `text` seems to have, from how it begins.

    `ddd` and `bytecode` are read alike, and what begins like no other form is taken for bpf_asm source.
    """
    body = text[_BLANKS.match(text).end() :]  # type: ignore[union-attr]  # It matches the empty text too.
    if not body:
        raise ProgramError("the text is empty, expected a program")
    return next((form for form, beginning in _BEGINNINGS if beginning.match(body)), "asm")


_BLANKS = re.compile(rf"(?:{BLANK})*", re.MULTILINE)
_BEGINNINGS = (
    ("json", re.compile(r'\{\s*["}]')),
    ("dd", re.compile(r"\{")),
    ("d", re.compile(r"\(")),
    ("ddd", re.compile(r"[0-9]")),
    ("c", re.compile(r"(static|const|struct)\s")),
)


def _program(numbered: list[Numbered]) -> Program:
    """The program of instructions whose lines are known."""
    instructions = tuple(instruction for instruction, _ in numbered)
    fault = structural_fault(instructions)
    if fault and fault.index is not None:
        raise ProgramError(f"line {numbered[fault.index][1]}: {fault}")
    return program_of(instructions)


def _read_ddd(text: str) -> Program:
    """A count and as many rows of four decimal numbers, between newlines or commas."""
    items = [(line, item) for line, row in enumerate(text.split("\n"), 1) for item in row.split(",") if item.strip()]
    if not items:
        raise ProgramError("the text is empty, expected the number of instructions")
    line, count = items[0]
    if _decimals(count, line, 1, "the number of instructions") != [len(items) - 1]:
        raise ProgramError(f"line {line}: {quoted(count.strip())} instructions are announced, but {len(items) - 1} follow")
    return _program([(_instruction(_decimals(item, line, 4, "four decimal numbers"), line), line) for line, item in items[1:]])


def _decimals(item: str, line: int, count: int, expected: str) -> list[int]:
    words = item.split()
    # No field has more than ten digits, and none is read that is longer.
    if len(words) != count or not all(re.fullmatch("[0-9]{1,10}", word) for word in words):
        raise ProgramError(f"line {line}: unexpected {quoted(item.strip())}, expected {expected}")
    return [int(word) for word in words]


def _instruction(fields: list[int], line: int) -> Instruction:
    try:
        return Instruction(*fields)
    except ProgramError as error:
        raise ProgramError(f"line {line}: {error}") from None


def _read_dd(text: str) -> Program:
    """Initialisers of `struct sock_filter`: `{ code, jt, jf, k },`."""
    cursor = Cursor(text)
    numbered = list(_initialisers(cursor))
    if cursor.token.kind != "end":
        cursor.fail("'{'")
    return _program(numbered)


def _read_c(text: str) -> Program:
    """The definition of an array of `struct sock_filter` or `struct bpf_insn`; what follows its `;` on the line is skipped."""
    cursor = Cursor(text)
    while cursor.skip("static") or cursor.skip("const"):
        pass
    cursor.expect("struct")
    if not (cursor.skip("sock_filter") or cursor.skip("bpf_insn")):
        cursor.fail("'sock_filter'")
    cursor.name("the name of the array")
    cursor.expect("[")
    if cursor.token.text != "]":
        cursor.take()
    for mark in "]={":
        cursor.expect(mark)
    numbered = list(_initialisers(cursor))
    cursor.expect("}")
    if cursor.token.kind != "end":
        cursor.fail("';' and the end of the text")
    return _program(numbered)


def _initialisers(cursor: Cursor) -> Iterator[Numbered]:
    while cursor.token.text == "{":
        line = cursor.take().line
        fields = list[int]()
        for mark, highest in ((",", 0xFFFF), (",", 0xFF), (",", 0xFF), ("}", 0xFFFF_FFFF)):
            fields.append(cursor.number("a number", 0, highest))
            cursor.expect(mark)
        cursor.skip(",")
        yield Instruction(*fields), line


def _read_json(text: str) -> Program:
    """The object described in `pcapext.dump.dump`; all but `instructions` may be missing from it."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProgramError(f"line {error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # Nested too deeply, or a number with too many digits.
        raise ProgramError(f"not a program: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("instructions"), list):
        raise ProgramError("not a program: expected an object whose 'instructions' are an array")
    program = program_of([_json_instruction(item, index) for index, item in enumerate(document.pop("instructions"))])
    for name, value in document.items():
        if name not in _JSON_FIELDS:
            raise ProgramError(f"unknown field {quoted(name)}, expected {', '.join(_JSON_FIELDS)} or instructions")
        if type(value) not in _JSON_FIELDS[name]:
            raise ProgramError(f"'{name}' is {type(value).__name__}, expected {_JSON_FIELDS[name][0].__name__}")
    if "settings" in document:
        document["settings"] = _json_settings(document["settings"])
    return replace(program, **document)


#: The types of a program's fields. A JSON boolean is no number, though a Python one is.
_JSON_FIELDS: dict[str, tuple[type, ...]] = {
    "linktype": (int,),
    "snaplen": (int,),
    "expression": (str, type(None)),
    "target": (str,),
    "settings": (dict,),
}
_JSON_INSTRUCTION = {"code", "jt", "jf", "k"}


def _json_settings(chosen: dict[str, Any]) -> WalkSettings:
    from pcapext.encapsulation import WalkSettings  # here, since hardly a program has settings of its own

    names = WalkSettings.__match_args__
    for name in chosen:
        if name not in names:
            raise ProgramError(f"unknown setting {quoted(name)}, expected {', '.join(names)}")
    try:
        return WalkSettings(**chosen)
    except SettingsError as error:
        raise ProgramError(f"'settings': {error}") from None


def _json_instruction(item: object, index: int) -> Instruction:
    if not isinstance(item, dict) or item.keys() != _JSON_INSTRUCTION or any(type(value) is not int for value in item.values()):
        raise ProgramError(f"instruction {index}: expected an object with the numbers 'code', 'jt', 'jf' and 'k'")
    try:
        return Instruction(**item)
    except ProgramError as error:
        raise ProgramError(f"instruction {index}: {error}") from None


#: The reader of each form.
FORMS: dict[str, Callable[[str], Program]] = {
    "d": lambda text: _program(read_d(text)),
    "dd": _read_dd,
    "ddd": _read_ddd,
    "asm": lambda text: _program(read_asm(text)),
    "bytecode": _read_ddd,
    "json": _read_json,
    "c": _read_c,
}
