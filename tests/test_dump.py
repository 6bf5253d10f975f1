"""Programs as text, against tcpdump, libpcap's `bpf_image`, the kernel's bpf_asm, and a C compiler."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import bpf_asm
import pytest
from bpf_oracles import libpcap_image, packed, random_instruction, random_instructions, shown

from pcapext import bpf
from pcapext.bpf import ANCILLARY, Instruction, Program, program_of
from pcapext.dump import STYLES, dump, image
from pcapext.encapsulation import WalkSettings
from pcapext.errors import ProgramError
from pcapext.flowkeys import FLOW_KEYS, KEY_BY_NAME

#: Expressions that between them need most opcodes: link type, expression, tcpdump's own flags.
EXPRESSIONS = [
    ("EN10MB", "", []),
    ("EN10MB", "tcp port 80", []),
    ("EN10MB", "tcp port 80", ["-O"]),
    ("EN10MB", "not tcp port 80", ["-s", "96"]),
    ("EN10MB", "ip6 protochain 6", []),
    ("EN10MB", "ip protochain 6", []),
    ("EN10MB", "host 10.0.0.1 and not net 192.168.0.0/16", []),
    ("EN10MB", "vlan 10 and ip6 host ::1", []),
    ("EN10MB", "mpls 1024 and udp portrange 1-1023", []),
    ("EN10MB", "geneve 7 and tcp[tcpflags] & tcp-syn != 0", []),
    ("EN10MB", "vlan and pppoes 3 and ip", []),
    ("EN10MB", "ip[2:2] * 3 + 1 > len - 5 or ip[0] << 2 = 20", []),
    ("EN10MB", "ip[0] / ip[1] = ip[2] % ip[3] | 1 ^ 3", ["-O"]),
    ("EN10MB", "7 & -ip[0] - ip[1] > ip[2] >> ip[3] << ip[4]", ["-O"]),
    ("EN10MB", "ip[0] * ip[1] / 3 % 5 >= 1", ["-O"]),
    ("EN10MB", "len >= tcp[4:4] and 4294967295 != ether[len]", []),
    ("EN10MB", "ether[100000:4] = 0x80000000", []),
    ("EN10MB", "ether multicast and less 128", []),
    ("RAW", "icmp6 and ip6[40] = 135", []),
    ("LINUX_SLL", "inbound and tcp", []),
    ("LINUX_SLL2", "ifindex 3 and udp", []),
    ("NULL", "ip and udp", []),
    ("IEEE802_11_RADIO", "type mgt subtype beacon", []),
    ("IEEE802_11_RADIO", "wlan addr1 00:00:00:00:00:01 and ip", []),
    ("PPP", "ip6", []),
    ("FDDI", "tcp dst port 22", []),
    ("JUNIPER_ETHER", "ip", []),
    ("MTP2", "opc 3", []),
]


def tcpdump(flag: str, linktype: str, expression: str, flags: list[str]) -> str:
    run = subprocess.run(["tcpdump", flag, "-y", linktype, *flags, expression], capture_output=True, text=True, check=True)
    return run.stdout


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize(("linktype", "expression", "flags"), EXPRESSIONS)
def test_styles_are_those_of_tcpdump(linktype: str, expression: str, flags: list[str]) -> None:
    count, *rows = tcpdump("-ddd", linktype, expression, flags).split("\n")[:-1]
    program = program_of(Instruction(*map(int, row.split())) for row in rows)
    assert int(count) == len(program)
    for style in ("d", "dd", "ddd"):
        assert dump(program, style) == tcpdump(f"-{style}", linktype, expression, flags)


def test_image_is_that_of_libpcap() -> None:
    """For every opcode, ancillary word of the kernel, and any operand. libpcap has no words for `ldx #pktlen`."""
    rng, codes = random.Random(3), set()
    words = [Instruction(code, k=word.k) for word in ANCILLARY if word.stock for code in (bpf.LD_W_ABS, bpf.LD_H_ABS, bpf.LD_B_ABS)]
    for instruction in words + [random_instruction(rng, rng.choice((0, 300))) for _ in range(4000)]:
        index = rng.choice((0, 9, 99, 999, 4095))
        theirs = libpcap_image(instruction, index)
        assert image(instruction, index) == theirs or (instruction.code == bpf.LDX_LEN and "unimp" in theirs)
        codes.add(instruction.code)
    assert codes == set(bpf.OPCODE_BY_CODE)


@pytest.mark.parametrize("key", FLOW_KEYS, ids=lambda key: key.name)
def test_flow_keys_have_names(key: bpf.Ancillary) -> None:
    program = program_of([Instruction(bpf.LD_W_ABS, k=key.k), Instruction(bpf.RET_A)])
    assert dump(program) == f"(000) ld       [{key.name}]\n(001) ret      \n"
    assert dump(program, "asm") == f"\tld #{key.name}\n\tret a\n"


TPROTO = program_of(
    [
        Instruction(bpf.LD_W_ABS, k=KEY_BY_NAME["tproto"].k),
        Instruction(bpf.JEQ_K, 0, 3, 6),
        Instruction(bpf.LDX_MSH, k=14),
        Instruction(bpf.LD_H_IND, k=0xFFFFFFFE),
        Instruction(bpf.JA, k=1),
        Instruction(bpf.LD_LEN),
        Instruction(bpf.TAX),
        Instruction(bpf.RET_K, k=0xFFFFFFFF),
    ],
    expression='inner tcp "\\\n',
)

WRITTEN = {
    "d": """\
(000) ld       [tproto]
(001) jeq      #0x6             jt 2\tjf 5
(002) ldxb     4*([14]&0xf)
(003) ldh      [x + -2]
(004) ja       6
(005) ld       #pktlen
(006) tax      \n\
(007) ret      #-1
""",
    "dd": """\
{ 0x20, 0, 0, 0xfffff04c },
{ 0x15, 0, 3, 0x00000006 },
{ 0xb1, 0, 0, 0x0000000e },
{ 0x48, 0, 0, 0xfffffffe },
{ 0x5, 0, 0, 0x00000001 },
{ 0x80, 0, 0, 0x00000000 },
{ 0x7, 0, 0, 0x00000000 },
{ 0x6, 0, 0, 0xffffffff },
""",
    "ddd": """\
8
32 0 0 4294963276
21 0 3 6
177 0 0 14
72 0 0 4294967294
5 0 0 1
128 0 0 0
7 0 0 0
6 0 0 4294967295
""",
    "asm": """\
\tld #tproto
\tjeq #0x6, l2, l5
l2:\tldxb 4*([14]&0xf)
\tldh [x + -2]
\tja l6
l5:\tld #len
l6:\ttax
\tret #-1
""",
    "bytecode": "8,32 0 0 4294963276,21 0 3 6,177 0 0 14,72 0 0 4294967294,5 0 0 1,128 0 0 0,7 0 0 0,6 0 0 4294967295\n",
    "json": """\
{
  "linktype": 1,
  "snaplen": 262144,
  "expression": "inner tcp \\"\\\\\\n",
  "target": "flowkeys",
  "instructions": [
    {"code": 32, "jt": 0, "jf": 0, "k": 4294963276},
    {"code": 21, "jt": 0, "jf": 3, "k": 6},
    {"code": 177, "jt": 0, "jf": 0, "k": 14},
    {"code": 72, "jt": 0, "jf": 0, "k": 4294967294},
    {"code": 5, "jt": 0, "jf": 0, "k": 1},
    {"code": 128, "jt": 0, "jf": 0, "k": 0},
    {"code": 7, "jt": 0, "jf": 0, "k": 0},
    {"code": 6, "jt": 0, "jf": 0, "k": 4294967295}
  ]
}
""",
    "c": """\
struct sock_filter filter[8] = {
\t{ 0x20, 0, 0, 0xfffff04c },\t/* (000) ld       [tproto] */
\t{ 0x15, 0, 3, 0x00000006 },\t/* (001) jeq      #0x6             jt 2\tjf 5 */
\t{ 0xb1, 0, 0, 0x0000000e },\t/* (002) ldxb     4*([14]&0xf) */
\t{ 0x48, 0, 0, 0xfffffffe },\t/* (003) ldh      [x + -2] */
\t{ 0x5, 0, 0, 0x00000001 },\t/* (004) ja       6 */
\t{ 0x80, 0, 0, 0x00000000 },\t/* (005) ld       #pktlen */
\t{ 0x7, 0, 0, 0x00000000 },\t/* (006) tax */
\t{ 0x6, 0, 0, 0xffffffff },\t/* (007) ret      #-1 */
};
""",
}


@pytest.mark.parametrize("style", STYLES)
def test_style(style: str) -> None:
    assert TPROTO.dump(style) == WRITTEN[style]


def test_unknown_style() -> None:
    with pytest.raises(ProgramError, match=r"unknown style 'dddd', expected one of d, dd, ddd, asm, bytecode, json, c"):
        TPROTO.dump("dddd")


def test_asm_is_what_bpf_asm_takes() -> None:
    """The kernel's own assembler makes the same instructions of it, but for the keys, whose names are ours."""
    rng = random.Random(4)
    words = tuple(Instruction(code, k=word.k) for word in ANCILLARY if word.stock for code in (bpf.LD_W_ABS, bpf.LD_H_ABS, bpf.LD_B_ABS))
    programs = [(*words, Instruction(bpf.RET_A))] + [random_instructions(rng, 40) for _ in range(400)]
    for instructions in programs:
        stock = [i for i in instructions if not i.ancillary or i.ancillary.stock]
        if len(stock) == len(instructions):
            source = dump(Program(instructions), "asm")
            assert [Instruction(*fields) for fields in bpf_asm.assemble(source)] == list(map(shown, instructions)), source


def test_asm_of_a_backward_jump_is_what_bpf_asm_takes() -> None:
    loop = (Instruction(bpf.LD_LEN), Instruction(bpf.JEQ_K, 0, 1, 0xFFFFFFFF), Instruction(bpf.JA, k=bpf.U32 - 2), Instruction(bpf.RET_A))
    assert [Instruction(*fields) for fields in bpf_asm.assemble(dump(Program(loop), "asm"))] == list(loop)


@pytest.mark.tools("cc")
@pytest.mark.parametrize("style", ["c", "dd"])
def test_c_is_what_a_compiler_takes(tmp_path: Path, style: str) -> None:
    program = Program(random_instructions(random.Random(5), 300))
    definition = program.dump("c") if style == "c" else f"struct sock_filter filter[] = {{\n{program.dump('dd')}}};\n"
    main = "int main(void) { return fwrite(filter, sizeof filter, 1, stdout) != 1; }\n"
    (tmp_path / "filter.c").write_text(f"#include <stdio.h>\n#include <linux/filter.h>\n{definition}{main}")
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "filter", tmp_path / "filter.c"], check=True)
    assert subprocess.run([tmp_path / "filter"], capture_output=True, check=True).stdout == packed(program) == bytes(program)


def test_json_is_json() -> None:
    program = Program((Instruction(bpf.TAX, 1, 2, 3), Instruction(bpf.RET_A)), 113, 96, None)
    assert json.loads(program.dump("json")) == {
        "linktype": 113,
        "snaplen": 96,
        "expression": None,
        "target": "classic",
        "instructions": [{"code": 7, "jt": 1, "jf": 2, "k": 3}, {"code": 22, "jt": 0, "jf": 0, "k": 0}],
    }
    program = replace(program, settings=WalkSettings(tunnel_ports={"vxlan": [4789], "mpls": []}, max_levels=2, vlan_tags=1))
    ports = {"vxlan": [4789], "vxlan-gpe": [4790], "geneve": [6081], "gtpu": [2152], "mpls": [], "gre": [4754], "teredo": [3544]}
    bounds = {"max_levels": 2, "vlan_tags": 1, "mpls_labels": 6, "extension_headers": 4, "gtpu_extensions": 2}
    assert json.loads(program.dump("json"))["settings"] == {"tunnel_ports": ports, **bounds}
