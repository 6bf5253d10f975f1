"""Every form is read back, from whoever wrote it, and any other text is a ProgramError that names its place."""

from __future__ import annotations

import json
import random
import subprocess
import time
from dataclasses import replace

import pytest
from bpf_oracles import random_instructions, shown
from hypothesis import given
from hypothesis import strategies as st

from pcapext import bpf
from pcapext.bpf import Instruction, Program, program_of
from pcapext.dump import STYLES
from pcapext.encapsulation import WalkSettings
from pcapext.errors import ProgramError
from pcapext.textforms import FORMS, read_program, recognise

ARP = Program((Instruction(bpf.LD_H_ABS, k=12), Instruction(bpf.JEQ_K, 0, 1, 0x806), Instruction(bpf.RET_K, k=64), Instruction(bpf.RET_K)))


def test_a_reader_for_every_style() -> None:
    assert FORMS.keys() == STYLES.keys()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("named", [False, True])
def test_round_trip(style: str, named: bool) -> None:
    rng = random.Random(style)
    for _ in range(150):
        program = program_of(random_instructions(rng, 50))
        back = read_program(program.dump(style), style if named else None)
        kept = tuple(map(shown, program)) if style in ("d", "asm") else program.instructions
        assert back == program_of(kept)


@pytest.mark.parametrize("style", STYLES)
def test_round_trip_of_a_backward_jump(style: str) -> None:
    loop = Program((Instruction(bpf.LD_LEN), Instruction(bpf.JEQ_K, 0, 1, 9), Instruction(bpf.JA, k=bpf.U32 - 2), Instruction(bpf.RET_A)))
    assert read_program(loop.dump(style)) == loop


@pytest.mark.parametrize("expression", [None, "", 'a "quoted" \\ one\n*/ é \ud800'])
def test_json_keeps_all_of_a_program(expression: str | None) -> None:
    program = Program(ARP.instructions, 113, 96, expression, "flowkeys")
    assert read_program(program.dump("json")) == program
    settings = WalkSettings(tunnel_ports={"vxlan": [5000, 5001], "teredo": []}, max_levels=2, gtpu_extensions=0)
    program = replace(program, settings=settings)
    assert read_program(program.dump("json")) == program
    assert read_program(program.dump("json")).settings == settings


def test_json_may_name_some_settings() -> None:
    settings = read_program('{"instructions": [{"code": 6, "jt": 0, "jf": 0, "k": 0}], "settings": {"tunnel_ports": {"gre": []}}}').settings
    assert settings == WalkSettings(tunnel_ports={"gre": ()})
    assert read_program('{"instructions": [{"code": 6, "jt": 0, "jf": 0, "k": 0}], "settings": {}}').settings is None


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("expression", ["", "tcp port 80", "ip6 protochain 6", "vlan 10 and tcp[tcpflags] & 2 != 0", "len * 3 > ip[2:2]"])
def test_what_tcpdump_prints(expression: str) -> None:
    """The three forms of one program: the numbers keep every field, the words those that are used."""

    def tcpdump(flag: str) -> str:
        return subprocess.run(["tcpdump", flag, expression], capture_output=True, text=True, check=True).stdout

    d, dd, ddd = tcpdump("-d"), tcpdump("-dd"), tcpdump("-ddd")
    program = read_program(ddd)
    assert program == program_of(Instruction(*map(int, row.split())) for row in ddd.split("\n")[1:-1])
    assert read_program(dd) == program
    assert read_program(d).instructions == tuple(map(shown, program))
    assert read_program(ddd.replace("\n", ",")) == program


#: Texts of ARP from elsewhere: form, text.
ELSEWHERE = [
    ("ddd", "4\n40 0 0 12\n21 0 1 2054\n6 0 0 64\n6 0 0 0\n"),
    ("ddd", "4\r\n40 0 0 12\r\n21 0 1 2054\r\n6 0 0 64\r\n6 0 0 0\r\n"),
    ("ddd", "  4,40 0 0 12,21 0 1 2054,6 0 0 64,6 0 0 0,"),  # bpf_asm
    ("ddd", "4,40 0 0 12,21 0 1 2054,\n6 0 0 64,6 0 0 0 "),
    # bpf_asm -c
    ("dd", "{ 0x28,  0,  0, 0x0000000c },\n{ 0x15,  0,  1, 0x00000806 },\n{ 0x06,  0,  0, 0x00000040 },\n{ 0x06,  0,  0, 0000000000 },\n"),
    ("dd", "/* arp */ {40,0,0,12},{0x15,0,1,0x806},{6,0,0,0100},{6,0,0,0}"),
    ("c", "static const struct bpf_insn arp[4] = { {40,0,0,12},{0x15,0,1,0x806},\n#define ONE\n{6,0,0,64},{6,0,0,0} /* no */ };"),
    ("c", "/* arp */\n#include <linux/filter.h>\nstruct\tsock_filter arp[LENGTH]={{40,0,0,12},{0x15,0,1,0x806},{6,0,0,64},{6,0,0,0},};"),
    ("asm", "; arp\n# or not\n/* so */ ldh [12]\njne #0x806, drop\nret #64\ndrop: ret #0"),
    ("asm", "LDH [0xc] jeq #04006, l_1, l_2 l_1: ret #0b1000000 l_2: RET #0"),
    ("d", "(000) ldh [12]\n\n(001) jeq #0x806 jt 2 jf 3\n(002) ret #64\n(003) ret #0"),
    ("json", json.dumps({"instructions": [dict(zip(("k", "jt", "jf", "code"), (i.k, i.jt, i.jf, i.code), strict=True)) for i in ARP]})),
]


@pytest.mark.parametrize(("form", "text"), ELSEWHERE)
def test_what_others_write(form: str, text: str) -> None:
    assert recognise(text) == form
    assert read_program(text)[:3] == ARP[:3]
    assert len(read_program(text, form)) == 4


JSON_ARP = '{"instructions": [{"code": 6, "jt": 0, "jf": 0, "k": 0}]'

ERRORS = [
    ("", "the text is empty, expected a program"),
    (" \n/* nothing */ ; at all\n# here", "the text is empty, expected a program"),
    ("tcp port 80", "line 1: unknown instruction 'tcp'"),
    ("3\n6 0 0 0\n", "line 1: '3' instructions are announced, but 1 follow"),
    ("1", "line 1: '1' instructions are announced, but 0 follow"),
    ("99999999999999999999\n6 0 0 0\n", "line 1: unexpected '99999999999999999999', expected the number of instructions"),
    ("0", "a program needs at least one instruction"),
    ("1\n6 0 0\n", "line 2: unexpected '6 0 0', expected four decimal numbers"),
    ("2\n6 0 0 0\n\n6 0 0 0x5\n", "line 4: unexpected '6 0 0 0x5', expected four decimal numbers"),
    ("1\n6 0 0 -1\n", "line 2: unexpected '6 0 0 -1', expected four decimal numbers"),
    ("1\n6 256 0 0\n", "line 2: jt 256 is out of range, expected 0 to 255"),
    ("1,6 0 0 4294967296", "line 1: k 4294967296 is out of range, expected 0 to 4294967295"),
    ("1\n14 0 0 0\n", "line 2: instruction 0: unknown opcode 0xe"),
    ("{ 6, 0, 0 }", "line 1: unexpected '}', expected ','"),
    ("{ 6, 0, 0, 0 },\n{ 6, 0, 0, 0", "line 2: unexpected the end of the text, expected '}'"),
    ("{ 6, 0, 0, 0 } 7", "line 1: unexpected '7', expected '{'"),
    ("{ 65536, 0, 0, 0 }", "line 1: '65536' is out of range, expected 0 to 65535"),
    ("{ 6, 0, -1, 0 }", "line 1: '-1' is out of range, expected 0 to 255"),
    ("{ 6, 0, 0, BPF }", "line 1: unexpected 'BPF', expected a number"),
    ("struct sock_fprog f", "line 1: unexpected 'sock_fprog', expected 'sock_filter'"),
    ("struct sock_filter f[] = {{ 6, 0, 0, 0 }", "line 1: unexpected the end of the text, expected '}'"),
    ("struct sock_filter f[] = {};", "a program needs at least one instruction"),
    ("struct sock_filter f[] = {{ 6, 0, 0, 0 }};\nint x;", "line 2: unexpected 'int', expected ';' and the end of the text"),
    ("struct sock_filter f[", "line 1: unexpected the end of the text, expected ']'"),
    ("ld [12]\n\n", "line 1: instruction 0: the last instruction must be a ret"),
    ("ret #0\n\nlsh #32\nret a", "line 3: instruction 1: lsh by 32, expected 0 to 31"),
    ("(000) ja 7\n(001) ret", "line 1: instruction 0: ja to instruction 7, but the program has 2"),
    ("{}", "not a program: expected an object whose 'instructions' are an array"),
    ('{"instructions": 5}', "not a program: expected an object whose 'instructions' are an array"),
    ('{"instructions": []}', "a program needs at least one instruction"),
    ('{"instructions":\n [}', "line 2: not JSON: Expecting value"),
    ('{"instructions": [[6, 0, 0, 0]]}', "instruction 0: expected an object with the numbers 'code', 'jt', 'jf' and 'k'"),
    ('{"instructions": [{"code": 6}]}', "instruction 0: expected an object with the numbers 'code', 'jt', 'jf' and 'k'"),
    (JSON_ARP.replace("6", "6.0") + "}", "instruction 0: expected an object with the numbers 'code', 'jt', 'jf' and 'k'"),
    (JSON_ARP.replace("6", "true") + "}", "instruction 0: expected an object with the numbers 'code', 'jt', 'jf' and 'k'"),
    (JSON_ARP.replace("6", "-1") + "}", "instruction 0: code -1 is out of range, expected 0 to 65535"),
    (JSON_ARP.replace("6", "NaN") + "}", "instruction 0: expected an object with the numbers 'code', 'jt', 'jf' and 'k'"),
    (JSON_ARP.replace("6", "14") + "}", "instruction 0: unknown opcode 0xe"),
    (JSON_ARP + ', "linktype": "EN10MB"}', "'linktype' is str, expected int"),
    (JSON_ARP + ', "linktype": true}', "'linktype' is bool, expected int"),
    (JSON_ARP + ', "snaplen": 0}', "snap length 0 is out of range, expected 1 to 2147483647"),
    (JSON_ARP + ', "expression": 5}', "'expression' is int, expected str"),
    (JSON_ARP + ', "target": "ebpf"}', "unknown target 'ebpf', expected one of classic, flowkeys, keys"),
    (JSON_ARP + ', "name": "arp"}', "unknown field 'name', expected linktype, snaplen, expression, target, settings or instructions"),
    (JSON_ARP + ', "settings": 4}', "'settings' is int, expected dict"),
    (
        JSON_ARP + ', "settings": {"levels": 4}}',
        "unknown setting 'levels', expected tunnel_ports, max_levels, vlan_tags, mpls_labels, extension_headers, gtpu_extensions",
    ),
    (JSON_ARP + ', "settings": {"max_levels": 17}}', "'settings': max_levels is 17, expected a number from 1 to 16"),
    (JSON_ARP + ', "settings": {"vlan_tags": null}}', "'settings': vlan_tags is None, expected a number from 0 to 16"),
    (
        JSON_ARP + ', "settings": {"tunnel_ports": []}}',
        "'settings': tunnel_ports is [], expected a mapping of tunnel names to lists of ports",
    ),
    (JSON_ARP + ', "settings": {"tunnel_ports": {"gre": "a"}}}', "'settings': tunnel port 'a' of gre is not a number from 1 to 65535"),
    (
        JSON_ARP + ', "settings": {"tunnel_ports": {"gre": [' + "[" * 100 + "]" * 100 + "]}}}",
        "'settings': tunnel port [[[[[[[...]]]]]]] of gre is not a number from 1 to 65535",
    ),
]


@pytest.mark.parametrize(("text", "words"), ERRORS)
def test_error(text: str, words: str) -> None:
    with pytest.raises(ProgramError) as error:
        read_program(text)
    assert str(error.value) == words


@pytest.mark.parametrize("form", ["pcap", ""])
def test_unknown_form(form: str) -> None:
    with pytest.raises(ProgramError, match=f"unknown form '{form}', expected one of d, dd, ddd, asm, bytecode, json, c"):
        read_program("", form)


PIECES = [piece for style in STYLES for piece in (ARP.dump(style), *ARP.dump(style).split())]
PIECES += [*"{}()[]:,;#%+*&=\"'\\/- \n\t\0²é\ud800\u2028", "/*", "*/", "ja", "l9", "l9:", "0x", "-1", "4294967296", "true", "9" * 5000]


def complaint(text: str, form: str | None = None) -> str:
    """What is said of a text, nothing if it is a program."""
    try:
        assert isinstance(read_program(text, form), Program)
    except ProgramError as error:
        return str(error)
    return ""


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join), st.lists(st.sampled_from(PIECES)).map(" ".join)))
def test_any_text_is_a_program_or_an_error(text: str) -> None:
    for form in (None, *FORMS):
        assert complaint(text, form).isprintable()


@given(st.sampled_from([ARP.dump(style) for style in STYLES]), st.floats(0, 1), st.integers(0, 3), st.sampled_from(PIECES))
def test_a_damaged_dump_is_a_program_or_an_error(text: str, place: float, lost: int, piece: str) -> None:
    start = int(place * len(text))
    assert complaint(text[:start] + piece + text[start + lost :]).isprintable()


LONG = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "(" * LONG, "{" * LONG, '{"a":' + "[" * LONG, "/*" * LONG, "/**/" * LONG + "x", "/* */ " * LONG, " " * LONG, "\n" * LONG + "$",
        ";" * LONG, "#\n" * LONG, "9" * LONG, "1" + " 1" * LONG, "a" * LONG, "a:" * LONG, "tax " * LONG, "ret #" + "0" * LONG + "7 $",
        "1," + "," * LONG, "struct sock_filter " * LONG, '{"instructions": ' + "9" * LONG + "}", "(000) ret\n" * LONG,
        "{6,0,0,0}," * (LONG // 10) + "{",
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)  # fmt: skip
def test_long_text_takes_no_long_time(text: str) -> None:
    start = time.process_time()
    with pytest.raises(ProgramError):
        read_program(text)
    # It takes less than a second; anything that is not linear would take minutes.
    assert time.process_time() - start < 20
