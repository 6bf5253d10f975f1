"""Programs in libpcap's cBPF savefile format, written and read. It is a draft, and so this is an experiment.

In:  a `Program`, or the bytes of a file.
Out: the bytes; the program, or a ProgramError that says at which byte what is wrong.

The format is that of cbpf-savefile(5) of libpcap's main branch, format version 1.0, revision 6 of the draft: a header of 20 bytes, the
instructions, and behind them what is known of their making, in pieces of type, length and value (TLVs). All numbers are big-endian. A later
minor version only adds flags and types, and these are skipped.
"""

from __future__ import annotations

import struct

from pcapext.bpf import MOD_K, MOD_X, OPCODE_BY_CODE, XOR_K, XOR_X, Instruction, Program, program_of
from pcapext.errors import ProgramError
from pcapext.slotted import replace

#: The first bytes of every file: a number that tells the byte order, and the format's name.
SIGNATURE = b"\xa1\xb2\xc3\xcbcBPF"

#: Behind the signature: the version, the flags, the snap length, the link type, the number of instructions.
_HEADER = struct.Struct(">8sBBHIHH")
_INSTRUCTION = struct.Struct(">HBBI")
_TLV = struct.Struct(">HH")
_MAJOR, _MINOR = 1, 0
_LONGEST = 0xFFFF

#: What the flags allow that not every system's BPF has. Linux has both.
_MOD, _XOR = 1 << 0, 1 << 1
_NEEDED_FLAGS = {MOD_K: _MOD, MOD_X: _MOD, XOR_K: _XOR, XOR_X: _XOR}

#: The types of TLVs that matter here, and how long the values of those are that have one length only: the end, whether libpcap was
#: asked to optimize, the netmask and the time.
_END, _FILTER = 0, 2
_LENGTHS = {_END: 0, 3: 1, 4: 4, 6: 8}


def write_savefile(program: Program) -> bytes:
    """The file of a program. It tells the instructions, the link type, the snap length and, if it is ASCII text, the expression.

    Raises ProgramError for a program with flow keys, which nobody else could run and whose settings the format cannot hold, and for
    one of more than 65535 instructions.

    >>> import pcapext
    >>> write_savefile(pcapext.compile("arp"))[:20].hex(" ", 4)
    'a1b2c3cb 63425046 01000003 00040000 00010004'
    """
    if program.flow_keys:
        words = ", ".join(f"[{key}]" for key in program.flow_keys)
        raise ProgramError(f"a savefile is for plain classic BPF, which has no {words}; -t classic gives a program without them")
    if len(program) > _LONGEST:
        raise ProgramError(f"a savefile takes at most {_LONGEST} instructions, and the program has {len(program)}")
    header = _HEADER.pack(SIGNATURE, _MAJOR, _MINOR, _MOD | _XOR, program.snaplen, program.linktype, len(program))
    pieces = [header, *(_INSTRUCTION.pack(i.code, i.jt, i.jf, i.k) for i in program)]
    expression = program.expression
    if expression is not None and expression.isascii() and len(expression) <= _LONGEST:
        pieces += [_TLV.pack(_FILTER, len(expression)), expression.encode()]
    pieces.append(_TLV.pack(_END, 0))
    return b"".join(pieces)


def read_savefile(data: bytes) -> Program:
    """The program in the bytes of a file.

    >>> import pcapext
    >>> program = pcapext.compile("tcp port 80", linktype="RAW", snaplen=96)
    >>> read_savefile(write_savefile(program)) == program
    True
    """
    if data[:4] == SIGNATURE[3::-1]:
        raise ProgramError("byte 0: the signature is backwards; the numbers of a savefile are big-endian on every machine")
    if data[:8] != SIGNATURE[: len(data)] or not data:
        raise ProgramError("byte 0: no signature of a savefile")
    if len(data) < _HEADER.size:
        raise ProgramError(f"byte {len(data)}: the file ends within its header of {_HEADER.size} bytes")
    _, major, _, flags, snaplen, linktype, count = _HEADER.unpack_from(data)
    if major != _MAJOR:
        raise ProgramError(f"byte 8: version {major} of the savefile format, expected {_MAJOR}")
    if len(data) < (end := _HEADER.size + count * _INSTRUCTION.size):
        raise ProgramError(f"byte {len(data)}: the file ends within its {count} instructions, which take {end} bytes")
    instructions = [Instruction(*fields) for fields in _INSTRUCTION.iter_unpack(data[_HEADER.size : end])]
    for index, instruction in enumerate(instructions):
        if not (needed := _NEEDED_FLAGS.get(instruction.code, 0)) & flags == needed:
            raise ProgramError(f"instruction {index}: {OPCODE_BY_CODE[instruction.code].mnemonic}, which the flags of the file rule out")
    return replace(program_of(instructions, linktype, snaplen), expression=_read_expression(data, end))


def _read_expression(data: bytes, at: int) -> str | None:
    """The expression in the TLVs, which begin at `at`. All of them are checked."""
    found: dict[int, bytes] = {}
    while at < len(data):
        if _END in found:
            raise ProgramError(f"byte {at}: there is more behind the end")
        if len(data) < (start := at + _TLV.size):
            raise ProgramError(f"byte {len(data)}: the file ends within a TLV")
        kind, length = _TLV.unpack_from(data, at)
        if len(data) < start + length:
            raise ProgramError(f"byte {len(data)}: the file ends within a TLV of {length} bytes")
        if kind in found:
            raise ProgramError(f"byte {at}: a second TLV of type {kind}")
        if length != _LENGTHS.get(kind, length):
            raise ProgramError(f"byte {at}: a TLV of type {kind} with {length} bytes, expected {_LENGTHS[kind]}")
        found[kind] = data[start : start + length]
        at = start + length
    if _FILTER not in found:
        return None
    try:
        return found[_FILTER].decode("ascii")
    except UnicodeDecodeError:
        raise ProgramError("the filter in the file is not ASCII text") from None
