"""Programs as text.

In:  a `Program` and a style.
Out: its text, ending in a newline. `pcapext.textforms` reads every style back: the same instructions, but for fields
     that an instruction does not use, which `d` and `asm` do not show.
"""

from __future__ import annotations

from collections.abc import Callable

from pcapext.bpf import OPCODE_BY_CODE, Instruction, Operand, Program
from pcapext.errors import ProgramError


def dump(program: Program, style: str = "d") -> str:
    """`program` in one of the styles:

    - `d`: one line an instruction, as `tcpdump -d` and libpcap's `bpf_image` write it, flow keys as `[tproto]`;
      `ldx #pktlen`, which libpcap never emits and has no words for, is written like `ld #pktlen`
    - `dd`: the body of a C array, as `tcpdump -dd`
    - `ddd`: the number of instructions, then four decimal numbers a line, as `tcpdump -ddd`
    - `asm`: source for the kernel's bpf_asm (tools/bpf), with labels; flow keys as `#tproto`
    - `bytecode`: `ddd` on one line with commas, as `iptables -m bpf --bytecode` and `tc ... bpf bytecode` take it
    - `json`: an object with `linktype`, `snaplen`, `expression` (a string or null), `target`, `settings` (an object with all
      settings of the walk, left out where they are the usual ones), and `instructions`, an array of objects with the
      numbers `code`, `jt`, `jf` and `k`
    - `c`: the definition of an array of `struct sock_filter`

    >>> from pcapext.bpf import LD_H_ABS, JEQ_K, RET_K
    >>> program = Program((Instruction(LD_H_ABS, k=12), Instruction(JEQ_K, 0, 1, 0x806), Instruction(RET_K, k=64), Instruction(RET_K)))
    >>> print(dump(program, "bytecode"), end="")
    4,40 0 0 12,21 0 1 2054,6 0 0 64,6 0 0 0
    """
    writer = STYLES.get(style)
    if writer is None:
        raise ProgramError(f"unknown style {style!r}, expected one of {', '.join(STYLES)}")
    return writer(program)


def image(instruction: Instruction, index: int) -> str:
    """The line of `tcpdump -d` for the instruction at `index`, laid out as by libpcap's `bpf_image`.

    >>> image(Instruction(0x15, 0, 3, 0x800), 1)
    '(001) jeq      #0x800           jt 2\\tjf 5'
    """
    opcode = OPCODE_BY_CODE[instruction.code]
    if opcode.conditional:
        jt, jf = instruction.targets(index)
        return f"({index:03d}) {opcode.mnemonic:<8} {_operand(instruction):<16} jt {jt}\tjf {jf}"
    match opcode.operand:
        case Operand.DISTANCE:
            operand = str(instruction.targets(index)[0])
        case Operand.ABSOLUTE if instruction.ancillary:
            operand = f"[{instruction.ancillary.name}]"
        case Operand.A:
            operand = ""
        case _:
            operand = _operand(instruction)
    return f"({index:03d}) {opcode.mnemonic:<8} {operand}"


def _signed(k: int) -> int:
    """The low 32 bits of k as a C int: libpcap prints most operands with %d."""
    return (k & 0x7FFF_FFFF) - (k & 0x8000_0000)


def _operand(instruction: Instruction) -> str:
    """The operand where libpcap and bpf_asm write it alike."""
    k = instruction.k
    match OPCODE_BY_CODE[instruction.code].operand:
        case Operand.ABSOLUTE:
            return f"[{_signed(k)}]"
        case Operand.INDIRECT:
            return f"[x + {_signed(k)}]"
        case Operand.HEADER_LENGTH:
            return f"4*([{_signed(k)}]&0xf)"
        case Operand.MEMORY:
            return f"M[{k}]"
        case Operand.HEX:
            return f"#{k:#x}"
        case Operand.DECIMAL:
            return f"#{_signed(k)}"
        case Operand.LENGTH:
            return "#pktlen"
        case Operand.X:
            return "x"
        case _:
            return ""


def _asm_operand(instruction: Instruction, index: int) -> str:
    opcode = OPCODE_BY_CODE[instruction.code]
    labels = [f"l{target}" for target in instruction.targets(index)]
    if labels:
        return ", ".join([_operand(instruction), *labels] if opcode.conditional else labels)
    match opcode.operand:
        case Operand.ABSOLUTE if instruction.ancillary and instruction.ancillary.asm:
            return f"#{instruction.ancillary.asm[0]}"
        case Operand.LENGTH:
            return "#len"
        case Operand.A:
            return "a"
        case _:
            return _operand(instruction)


def _d(program: Program) -> str:
    return "".join(f"{image(instruction, index)}\n" for index, instruction in enumerate(program))


def _initialiser(i: Instruction) -> str:
    return f"{{ {i.code:#x}, {i.jt}, {i.jf}, 0x{i.k:08x} }},"


def _dd(program: Program) -> str:
    return "".join(f"{_initialiser(instruction)}\n" for instruction in program)


def _numbers(program: Program) -> list[str]:
    return [str(len(program)), *(f"{i.code} {i.jt} {i.jf} {i.k}" for i in program)]


def _ddd(program: Program) -> str:
    return "\n".join(_numbers(program)) + "\n"


def _bytecode(program: Program) -> str:
    return ",".join(_numbers(program)) + "\n"


def _asm(program: Program) -> str:
    targets = {target for index, instruction in enumerate(program) for target in instruction.targets(index)}
    lines = []
    for index, instruction in enumerate(program):
        label = f"l{index}:" if index in targets else ""
        mnemonic = OPCODE_BY_CODE[instruction.code].mnemonic
        lines.append(f"{label}\t{mnemonic} {_asm_operand(instruction, index)}".rstrip() + "\n")
    return "".join(lines)


def _json(program: Program) -> str:
    import json  # here, since compile prints another form most of the time

    # One instruction a line: json.dumps would give each number its own.
    head: dict[str, object] = {
        "linktype": program.linktype,
        "snaplen": program.snaplen,
        "expression": program.expression,
        "target": program.target,
    }
    if program.settings is not None:
        chosen = {name: getattr(program.settings, name) for name in program.settings.__match_args__}
        head["settings"] = chosen | {"tunnel_ports": dict(program.settings.tunnel_ports)}
    fields = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    rows = ",\n".join(f"    {json.dumps({'code': i.code, 'jt': i.jt, 'jf': i.jf, 'k': i.k})}" for i in program)
    return f'{{\n{fields}  "instructions": [\n{rows}\n  ]\n}}\n'


def _c(program: Program) -> str:
    rows = (f"\t{_initialiser(instruction)}\t/* {image(instruction, index).rstrip()} */\n" for index, instruction in enumerate(program))
    return f"struct sock_filter filter[{len(program)}] = {{\n{''.join(rows)}}};\n"


#: The styles by name.
STYLES: dict[str, Callable[[Program], str]] = {
    "d": _d,
    "dd": _dd,
    "ddd": _ddd,
    "asm": _asm,
    "bytecode": _bytecode,
    "json": _json,
    "c": _c,
}
