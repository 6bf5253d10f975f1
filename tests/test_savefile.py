"""libpcap's draft of a file format for programs, against a file made by hand from cbpf-savefile(5) and a reader of the test's own."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bpf_oracles import random_instructions
from hypothesis import given
from hypothesis import strategies as st

import pcapext
from pcapext import bpf
from pcapext.bpf import Instruction, Program, program_of
from pcapext.cli import main
from pcapext.encapsulation import WalkSettings
from pcapext.errors import ProgramError
from pcapext.savefile import read_savefile, write_savefile

HEADER = "a1b2c3cb 63425046 01 00 0003 00000060 000c 0003"
CODE = "0030 00 00 00000000  0045 00 00 000000f0  0016 00 00 00000000"

#: All types of TLVs: the name of the link type, the filter, whether to optimize, the netmask, a comment, the time.
TLVS = "0001 0003 524157  0002 0003 746370  0003 0001 01  0004 0004 ffffff00  0005 0002 c3a9  0006 0008 0000000063000000"

BY_HAND = bytes.fromhex(f"{HEADER} {CODE} {TLVS} 0000 0000")
MEANT = Program((Instruction(bpf.LD_B_ABS), Instruction(bpf.JSET_K, k=0xF0), Instruction(bpf.RET_A)), 12, 96, "tcp")


def test_file_by_hand() -> None:
    assert read_savefile(BY_HAND) == MEANT
    assert read_savefile(bytes.fromhex(HEADER + CODE)) == replace(MEANT, expression=None)
    assert write_savefile(MEANT) == bytes.fromhex(f"{HEADER} {CODE} 0002 0003 746370 0000 0000")


def test_later_minor_versions() -> None:
    """They have flags and TLVs of their own."""
    later = bytes.fromhex(HEADER.replace("01 00 0003", "01 07 fff3") + CODE + "0100 0002 abcd" + TLVS)
    assert read_savefile(later) == MEANT


def parsed(data: bytes) -> tuple[int, int, list[tuple[int, ...]], dict[int, bytes]]:
    """Snap length, link type, instructions and TLVs, read as the manual page has them."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "big")

    assert (data[:4], data[4:8], data[8], data[9], number(10, 2)) == (b"\xa1\xb2\xc3\xcb", b"cBPF", 1, 0, 0b11)
    end = 20 + 8 * number(18, 2)
    code = [(number(at, 2), data[at + 2], data[at + 3], number(at + 4, 4)) for at in range(20, end, 8)]
    found: dict[int, bytes] = {}
    while end < len(data):
        found[number(end, 2)] = data[end + 4 : end + 4 + number(end + 2, 2)]
        end += 4 + number(end + 2, 2)
    assert end == len(data)
    return number(12, 4), number(16, 2), code, found


@pytest.mark.parametrize("expression", [None, "", "tcp port 80", "é", "x" * 0xFFFF, "x" * 0x10000])
def test_what_is_written(expression: str | None) -> None:
    """Of other expressions than ASCII text of some length the format has no room."""
    rng = random.Random(expression)
    for _ in range(20):
        made = Program(random_instructions(rng, 200), rng.randrange(0x10000), rng.randrange(1, 0x80000000), expression)
        if made.flow_keys:
            continue
        told = expression if expression is not None and expression.isascii() and len(expression) < 0x10000 else None
        filters = {2: told.encode()} if told is not None else {}
        code = [(i.code, i.jt, i.jf, i.k) for i in made]
        assert parsed(write_savefile(made)) == (made.snaplen, made.linktype, code, filters | {0: b""})
        assert read_savefile(write_savefile(made)) == replace(made, expression=told)


def test_what_is_not_written() -> None:
    settings = WalkSettings(max_levels=2)
    for program, message in (
        (
            pcapext.compile("inner tcp", max_levels=2),
            "a savefile is for plain classic BPF, which has no [tproto]; -t classic gives a program without them",
        ),
        (
            Program((Instruction(bpf.TAX),) * 0xFFFF + (Instruction(bpf.RET_A),)),
            "a savefile takes at most 65535 instructions, and the program has 65536",
        ),
    ):
        with pytest.raises(ProgramError, match=rf"\A{re.escape(message)}\Z"):
            write_savefile(program)
    # The settings of a walk that is in the program are told by nothing else than the program.
    lowered = pcapext.compile("inner tcp", max_levels=2, target="classic")
    assert lowered.settings == settings
    assert read_savefile(write_savefile(lowered)) == replace(lowered, settings=None)


DAMAGED = [
    ("", "byte 0: no signature of a savefile"),
    ("a1b2c3d4 00020004", "byte 0: no signature of a savefile"),
    ("a1b2c3cb 63425047", "byte 0: no signature of a savefile"),
    ("cbc3b2a1 46504263", "byte 0: the signature is backwards; the numbers of a savefile are big-endian on every machine"),
    ("a1b2c3", "byte 3: the file ends within its header of 20 bytes"),
    (HEADER[:-5], "byte 18: the file ends within its header of 20 bytes"),
    (HEADER.replace(" 01 00 ", " 02 00 ") + CODE, "byte 8: version 2 of the savefile format, expected 1"),
    (HEADER.replace(" 01 00 ", " 00 00 ") + CODE, "byte 8: version 0 of the savefile format, expected 1"),
    (HEADER + CODE[:-2], "byte 43: the file ends within its 3 instructions, which take 44 bytes"),
    (HEADER, "byte 20: the file ends within its 3 instructions, which take 44 bytes"),
    (HEADER[:-4] + "0000", "a program needs at least one instruction"),
    (HEADER.replace("00000060", "00000000") + CODE, "snap length 0 is out of range, expected 1 to 2147483647"),
    (HEADER + CODE.replace("0045 00 00", "0045 09 00"), "instruction 1: jset to instruction 11, but the program has 3"),
    (HEADER + CODE.replace("0045 00 00", "00e5 00 00"), "instruction 1: unknown opcode 0xe5"),
    (
        HEADER.replace("0003", "0002", 1) + CODE.replace("0045", "0094"),
        "instruction 1: mod, which the flags of the file rule out",
    ),
    (
        HEADER.replace("0003", "0001", 1) + CODE.replace("0045", "00ac"),
        "instruction 1: xor, which the flags of the file rule out",
    ),
    (HEADER + CODE + "00", "byte 45: the file ends within a TLV"),
    (HEADER + CODE + "0002 0004 746370", "byte 51: the file ends within a TLV of 4 bytes"),
    (HEADER + CODE + "0002 0001 74 0002 0001 75", "byte 49: a second TLV of type 2"),
    (HEADER + CODE + "0001 0001 74 0000 0000 0002 0001 75", "byte 53: there is more behind the end"),
    (HEADER + CODE + "0000 0001 00", "byte 44: a TLV of type 0 with 1 bytes, expected 0"),
    (HEADER + CODE + "0003 0000", "byte 44: a TLV of type 3 with 0 bytes, expected 1"),
    (HEADER + CODE + "0004 0005 0000000000", "byte 44: a TLV of type 4 with 5 bytes, expected 4"),
    (HEADER + CODE + "0006 0004 00000000", "byte 44: a TLV of type 6 with 4 bytes, expected 8"),
    (HEADER + CODE + "0002 0002 c3a9", "the filter in the file is not ASCII text"),
]


@pytest.mark.parametrize(("octets", "message"), DAMAGED)
def test_damaged(octets: str, message: str) -> None:
    with pytest.raises(ProgramError, match=rf"\A{re.escape(message)}\Z"):
        read_savefile(bytes.fromhex(octets))


@given(st.integers(0, len(BY_HAND) - 1), st.binary(max_size=4), st.booleans())
def test_any_bytes_are_a_program_or_an_error(at: int, put: bytes, cut: bool) -> None:
    data = BY_HAND[:at] + put + (b"" if cut else BY_HAND[at + len(put) :])
    try:
        program = read_savefile(data)
    except ProgramError:
        return
    assert program_of(program, program.linktype, program.snaplen, program.expression) == program


# ---- The command line ----


def test_command_line(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    program = pcapext.compile("inner tcp port 80", linktype="RAW", snaplen=96, target="classic")
    assert main(["compile", "--format", "savefile", "-y", "RAW", "-s", "96", "inner tcp port 80"]) == 0
    output = capfdbinary.readouterr()
    assert output == (write_savefile(program), b"")
    file = tmp_path / "program"
    file.write_bytes(output.out)
    for command, printed in (
        (["disassemble"], program.dump()),
        (["disassemble", "--input", "savefile"], program.dump()),
        (["assemble", "--format", "json"], program.dump("json")),
        (["check"], f"{len(program)} instructions, valid\nLinux kernel: accepted\n"),
    ):
        assert main([*command, str(file)]) == 0
        assert capfdbinary.readouterr() == (printed.encode(), b"")
    assert main(["assemble", "--format", "savefile", "-y", "NULL", str(file)]) == 0
    assert capfdbinary.readouterr().out == write_savefile(replace(program, linktype=0))


def test_command_line_errors(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "program"
    for octets, flags, message in (
        (BY_HAND[:30], [], "byte 30: the file ends within its 3 instructions, which take 44 bytes"),
        (BY_HAND[3::-1], [], "byte 0: the signature is backwards; the numbers of a savefile are big-endian on every machine"),
        (b"ret #0", ["--input", "savefile"], "byte 0: no signature of a savefile"),
    ):
        file.write_bytes(octets)
        assert main(["check", *flags, str(file)]) == 1
        assert capfd.readouterr() == ("", f"pcapext: {file}: {message}\n")
    assert main(["compile", "--format", "savefile", "-t", "flowkeys", "inner tcp"]) == 1
    assert capfd.readouterr().out == ""


def test_filter_takes_one(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`--program` reads it as any other form."""
    capture = Path(__file__).parent.parent / "examples" / "vxlan.pcap"
    file = tmp_path / "program"
    file.write_bytes(write_savefile(pcapext.compile("inner tcp port 80", target="classic")))
    assert main(["filter", "-r", str(capture), "--count", "--program", str(file)]) == 0
    counted = capfd.readouterr().out
    assert main(["filter", "-r", str(capture), "--count", "inner tcp port 80"]) == 0
    assert capfd.readouterr().out == counted
    assert int(counted.split()[0]) > 0
