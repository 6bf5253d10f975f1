"""The reader of bpf_asm source, against the kernel's bpf_asm itself, and what either reader says of text that is wrong."""

from __future__ import annotations

import bpf_asm
import pytest
from bpf_oracles import libpcap_image, shown
from hypothesis import given
from hypothesis import strategies as st

from pcapext import bpf
from pcapext.bpf import ANCILLARY, Instruction
from pcapext.bpfasm import read_asm, read_d
from pcapext.errors import ProgramError
from pcapext.flowkeys import FLOW_KEYS

EXTENSIONS = [name for word in ANCILLARY if word.stock for name in word.asm]
NUMBERS = st.one_of(
    st.integers(0, 0xFFFFFFFF).map(hex),
    st.integers(0, 0xFFFFFFFF).map(bin),
    st.integers(0, 0xFFFFFFFF).map(lambda value: f"0{value:o}"),
    st.integers(-(1 << 31), 0xFFFFFFFF).map(str),
)
BLANKS = st.sampled_from([" ", "  ", "\t", "\n", " \n", "/* a * b */ ", "/****/\n", "; a comment\n", "\n# a comment\n"])
CONDITIONAL = ["jeq", "jgt", "jge", "jset", "jne", "jneq", "jlt", "jle", "JEQ", "Jlt"]
ARITHMETIC = ["add", "sub", "mul", "div", "mod", "and", "or", "xor", "lsh", "rsh"]
X = [["x"], ["X"], ["%", "x"]]


@st.composite
def operations(draw: st.DrawFn, labels: int) -> list[str]:
    """The words of one instruction that bpf_asm takes; it may jump to one of the labels to come."""

    def one(*choices: list[str]) -> list[str]:
        return draw(st.sampled_from(choices))

    number = draw(NUMBERS)
    extension = draw(st.sampled_from(["#", ""])) + draw(st.sampled_from(EXTENSIONS))
    place = one(["[", number, "]"], *(["[", *x, "+", number, "]"] for x in X))
    memory = [draw(st.sampled_from("Mm")), "[", number, "]"]
    header = ["4", "*", "(", "[", number, "]", "&", "0xf", ")"]
    constant, length = ["#", number], one(["#len"], ["len"], ["LEN"])
    choices = [
        ["ld", *one(constant, length, [extension], memory, place)],
        [draw(st.sampled_from(["ldh", "ldb", "LDB"])), *one([extension], place)],
        [draw(st.sampled_from(["ldi", "ldxi"])), *one(constant, [number])],
        ["ldx", *one(constant, length, memory, header)],
        ["ldxb", *header],
        [draw(st.sampled_from(["st", "stx"])), *memory],
        [draw(st.sampled_from(ARITHMETIC)), *one(constant, *X)],
        ["ret", *one(constant, ["a"], ["%", "a"])],
        *(["tax"], ["txa"], ["neg"]),
    ]
    if labels:
        jump = draw(st.sampled_from(CONDITIONAL))
        ways = [draw(st.integers(0, labels - 1)) for _ in range(draw(st.integers(1, 2)) if jump in CONDITIONAL[:4] else 1)]
        # Labels are numbered from the end, so that it is known which of them lie ahead.
        choices.append([jump, *one(constant, *X), *(word for way in ways for word in (",", f"L_{way}"))])
        choices.append([draw(st.sampled_from(["ja", "jmp"])), f"L_{ways[0]}"])
    return draw(st.sampled_from(choices))


@st.composite
def sources(draw: st.DrawFn) -> str:
    """A source that bpf_asm takes."""
    count = draw(st.integers(1, 8))
    text = ""
    for left in reversed(range(count)):
        words = [f"L_{left}", ":", *draw(operations(left))]
        # A `#` in the first column would begin a comment.
        for word, following in zip(words, [*words[1:], ""], strict=True):
            text += word + (" " if following.startswith("#") else draw(BLANKS))
    return text


@given(sources())
def test_asm_reads_what_bpf_asm_reads(source: str) -> None:
    assert [instruction for instruction, _ in read_asm(source)] == [Instruction(*fields) for fields in bpf_asm.assemble(source)]


WORDS = """ld ldh ldx ldxb jeq jne ja st ret tax add # #len poff l1 l1: l2: , [ ] ( ) x a M + & * % 4 0xf 0x 08 -1 +2 ; /* */"""


@given(st.lists(st.sampled_from([*WORDS.split(), "\n"])))
def test_asm_takes_what_bpf_asm_takes(words: list[str]) -> None:
    """Words in any order: what bpf_asm reads is read, and alike. What it does not read may be refused or not."""
    source = " ".join(words)
    try:
        theirs = [Instruction(*fields) for fields in bpf_asm.assemble(source)]
    except bpf_asm.Error:
        return
    try:
        ours = [instruction for instruction, _ in read_asm(source)]
    except ProgramError as error:
        # What is refused though bpf_asm takes it, and two faults of labels that the kernel's finds and this build of it does not.
        if any(reason in str(error) for reason in ("out of range", "stands on line", "take 'x'", "there is no label", "lies behind")):
            return
        raise
    assert ours == theirs


@pytest.mark.parametrize(
    ("source", "instruction"),
    [
        ("ld [x+3]", Instruction(bpf.LD_W_IND, k=3)),
        ("ld [%x+0x3]", Instruction(bpf.LD_W_IND, k=3)),
        ("ldb [x + -1]", Instruction(bpf.LD_B_IND, k=0xFFFFFFFF)),
        ("ld #pktlen", Instruction(bpf.LD_LEN)),
        ("ldx len", Instruction(bpf.LDX_LEN)),
        ("ld #vlanp", Instruction(bpf.LD_W_ABS, k=0xFFFFF000 + 48)),
        ("ret #-1\r\n", Instruction(bpf.RET_K, k=0xFFFFFFFF)),
        *((f"ld #{key.name}", Instruction(bpf.LD_W_ABS, k=key.k)) for key in FLOW_KEYS),
    ],
)
def test_asm_reads_more(source: str, instruction: Instruction) -> None:
    assert read_asm(source) == [(instruction, 1)]


def test_key_names_are_labels_too() -> None:
    source = "depth: ld depth\n jeq #0, depth_0, poff\n poff: ret a\n depth_0: ret #0"
    assert [(instruction.code, instruction.jt, instruction.jf, line) for instruction, line in read_asm(source)] == [
        (bpf.LD_W_ABS, 0, 0, 1),
        (bpf.JEQ_K, 1, 0, 2),
        (bpf.RET_A, 0, 0, 3),
        (bpf.RET_K, 0, 0, 4),
    ]


def test_asm_jumps_as_far_as_they_reach() -> None:
    reads = "tax\n" * 255
    assert read_asm(f"jeq #0, end\n{reads}end: ret a")[0][0].jt == 255
    assert read_asm(f"start: ja end\n tax\n{reads}end: ja start")[-1][0].k == -258 & bpf.U32
    with pytest.raises(ProgramError, match="line 1: label 'end' is 256 instructions away, a conditional jump reaches 255"):
        read_asm(f"jeq #0, end\n tax\n{reads}end: ret a")


ASM_ERRORS = [
    ("ld [12]\nhello", "line 2: unknown instruction 'hello'"),
    ("ld [12]\n12", "line 2: unexpected '12', expected an instruction or a label"),
    ("ld", "line 1: unexpected the end of the text, expected an operand"),
    ("ld [12", "line 1: unexpected the end of the text, expected ']'"),
    ("ld [y]", "line 1: unexpected 'y', expected a number, 'x' or the name of an ancillary word"),
    ("ld [x 3]", "line 1: unexpected '3', expected '+'"),
    ("ld #nothing", "line 1: unexpected 'nothing', expected an operand"),
    ("ld 12", "line 1: unexpected '12', expected an operand such as '#12' or '[12]'"),
    ("add 12", "line 1: unexpected '12', expected an operand such as '#12' or '[12]'"),
    ("ldh #5", "line 1: 'ldh' does not take '#k', expected '[k]' or '[x + k]'"),
    ("ret x", "line 1: 'ret' does not take 'x', expected '#k' or 'a'"),
    ("jeq a, l1", "line 1: 'jeq' does not take 'a', expected '#k' or 'x'"),
    ("ldxb 5*([14]&0xf)", "line 1: unexpected '5*([14]&0xf)', expected '4*([14]&0xf)'"),
    ("ldxb 4*([14]&0xff)", "line 1: unexpected '4*([14]&0xff)', expected '4*([14]&0xf)'"),
    ("ret #4294967296", "line 1: '4294967296' is out of range, expected -2147483648 to 4294967295"),
    ("ret #-2147483649", "line 1: '-2147483649' is out of range, expected -2147483648 to 4294967295"),
    ("ret #0x100000000", "line 1: '0x100000000' is out of range, expected -2147483648 to 4294967295"),
    ("ret #" + "9" * 100_000, f"line 1: '{'9' * 37}...' is out of range, expected -2147483648 to 4294967295"),
    ("ret #0" + "7" * 100_000, f"line 1: '0{'7' * 36}...' is out of range, expected -2147483648 to 4294967295"),
    ("ret", "line 1: unexpected the end of the text, expected an operand"),
    ("jlt a, l1", "line 1: 'jlt' does not take 'a', expected '#k' or 'x'"),
    ("ret #08", "line 1: unexpected '08', expected a number"),
    ("ret #5x", "line 1: unexpected '5x', expected a number"),
    ("ret #٣", "line 1: unexpected '٣'"),
    ("ret #0 $", "line 1: unexpected '$'"),
    ("\n\nret #0 \x1b[1m", "line 3: unexpected '?'"),
    ("ret #0 /* and", "line 1: unexpected '/'"),
    ("ja nowhere\nret a", "line 1: there is no label 'nowhere'"),
    ("l1: tax\n\nl1: ret a", "line 3: label 'l1' stands on line 1 already"),
    ("l1: tax\njeq #0, l1\nret a", "line 2: label 'l1' lies behind, a conditional jump goes forward"),
    ("ret a\nend:", "line 2: there is no instruction behind label 'end'"),
    ("jeq #0 l1", "line 1: unexpected 'l1', expected ','"),
    ("jne #0, l1, l1\nl1: ret a", "line 1: unexpected ',', expected an instruction or a label"),
    ("ja 5", "line 1: unexpected '5', expected a label"),
]


@pytest.mark.parametrize(("source", "words"), ASM_ERRORS, ids=[source[:20] for source, _ in ASM_ERRORS])
def test_asm_error(source: str, words: str) -> None:
    with pytest.raises(ProgramError) as error:
        read_asm(source)
    assert str(error.value) == words


D_ERRORS = [
    ("(000) ret a\n(002) ret a", "line 2: unexpected '(', expected '(001)'"),
    ("(0) ret a", "line 1: unexpected '(', expected '(000)'"),
    ("(000) JEQ #0x0", "line 1: unexpected the end of the text, expected 'jt'"),
    ("(000) unimp    0x81", "line 1: unknown instruction 'unimp'"),
    ("(000) jeq #0x0 jt 2", "line 1: unexpected the end of the text, expected 'jf'"),
    ("(000) jeq #0x0\n(001) ret", "line 2: unexpected '(', expected 'jt'"),
    ("(000) tax\n(001) jeq #0x0 jt 1 jf 2", "line 2: '1' is out of range, expected 2 to 257"),
    ("(000) jeq #0x0 jt 257 jf 2", "line 1: '257' is out of range, expected 1 to 256"),
    ("(000) ld [nothing]", "line 1: unexpected 'nothing', expected a number, 'x' or the name of an ancillary word"),
]


@pytest.mark.parametrize(("text", "words"), D_ERRORS)
def test_d_error(text: str, words: str) -> None:
    with pytest.raises(ProgramError) as error:
        read_d(text)
    assert str(error.value) == words


BYTES = st.integers(0, 255)
INSTRUCTIONS = st.builds(Instruction, st.sampled_from(sorted(bpf.OPCODE_BY_CODE)), BYTES, BYTES, st.integers(0, bpf.U32))


@given(st.lists(INSTRUCTIONS.filter(lambda i: i.code != bpf.LDX_LEN), max_size=8))
def test_d_reads_what_libpcap_prints(instructions: list[Instruction]) -> None:
    """Whether or not it is a program: that is not for the reader to say."""
    text = "".join(f"{libpcap_image(instruction, index)}\n" for index, instruction in enumerate(instructions))
    assert read_d(text) == [(shown(instruction), line) for line, instruction in enumerate(instructions, 1)]
