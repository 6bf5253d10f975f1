"""The command line: `pcapext compile | filter | keys | assemble | disassemble | check`.

In:  arguments, files, standard input.
Out: results on standard output, all else on standard error; exit status 0, 1 for an error, 2 for wrong usage.

Flags mean what they mean in tcpdump. Each command is one function; what it needs is imported where it is used, so that
`compile` starts fast.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pcapext.bpf import MAXIMUM_SNAPLEN, Program
from pcapext.cli_arguments import BOUNDS, Command, parser
from pcapext.compiler import compile
from pcapext.errors import PcapextError, ProgramError, SettingsError, printable

if TYPE_CHECKING:
    from pcapext.ebpf import EbpfProgram
    from pcapext.selection import Filter

#: The forms of text that an eBPF program has.
EBPF_FORMATS = ("d", "c")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    # A standard stream that was closed before we began: using it must fail, and no file that is opened may take its place.
    if sys.stdin is None:
        os.open(os.devnull, os.O_PATH)
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser(_COMMANDS, given[0] if given else None).parse_args(given)
    command: Command = options.command
    try:
        try:
            return command(options)
        finally:
            _finish_output()
    except PcapextError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _fail(f"{printable(str(error.filename or 'standard output'))}: {error.strerror}")


def _fail(message: str) -> int:
    print(f"pcapext: {message}", file=sys.stderr)
    return 1


def _finish_output() -> None:
    """Write what is still buffered for standard output. If that fails, what is left is not tried once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


# --- compile


def _compile(options: argparse.Namespace) -> int:
    linktype: str | int
    linktype, snaplen = "EN10MB", MAXIMUM_SNAPLEN
    if options.read:
        from pcapext.capture import open_offline

        with open_offline(options.read) as capture:
            linktype, snaplen = capture.linktype, capture.snaplen
    if options.linktype is not None:
        linktype = options.linktype
    if options.snaplen is not None:
        snaplen = options.snaplen
    program = _filter_program(options, linktype, snaplen, _chosen_settings(options))
    if options.format == "raw":
        sys.stdout.flush()
        sys.stdout.buffer.write(bytes(program))
        return 0
    if program.target == "ebpf" and options.format not in EBPF_FORMATS:
        options.usage_error(
            f"argument --format: {options.format} is for classic BPF; with -t ebpf there are {', '.join(EBPF_FORMATS)}, raw"
        )
    print(program.dump(options.format), end="")
    if isinstance(program, Program) and program.flow_keys:
        words = ", ".join(f"[{key}]" for key in program.flow_keys)
        print(f"pcapext: note: a stock kernel refuses {words}; {_RUN_ANYWHERE}", file=sys.stderr)
    return 0


_RUN_ANYWHERE = "-t classic gives a program without them"


def _expression(options: argparse.Namespace) -> str:
    """The expression: from -F, where # begins a comment as in tcpdump, or the arguments put together with spaces."""
    if options.file is None:
        return " ".join(options.expression)
    return re.sub("#[^\n]*", "", _read_text(options.file))


def _read_text(path: str) -> str:
    """The text of a file; "-" is standard input."""
    name = "standard input" if path == "-" else printable(path)
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            return file.read().decode()
    except UnicodeDecodeError as error:
        raise PcapextError(f"{name}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise PcapextError(f"{name}: {error.strerror}") from None
    except ValueError as error:  # a NUL character in the path
        raise PcapextError(f"{name}: {error}") from None


def _chosen_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the walk that the flags give, by name; `compile` and `WalkSettings` take them."""
    chosen = {name: getattr(options, name) for name in ("tunnel_ports", *BOUNDS) if getattr(options, name) is not None}
    if chosen:
        from pcapext.encapsulation import WalkSettings

        try:
            WalkSettings(**chosen)
        except SettingsError as error:
            options.usage_error(str(error))
    return chosen


def _filter_program(options: argparse.Namespace, linktype: str | int, snaplen: int, settings: dict[str, Any]) -> Program | EbpfProgram:
    """The program of the expression."""
    program: Program | EbpfProgram = compile(
        _expression(options),
        linktype=linktype,
        snaplen=snaplen,
        netmask=options.netmask,
        optimize=options.optimize,
        target=options.target,
        **settings,
    )
    return program


def _filter_for(options: argparse.Namespace, expression: str | None = None) -> Filter:
    """The filter of an expression, or of the arguments: of theirs, or the one given with --program, whose settings flags replace."""
    from pcapext.selection import Filter

    settings = _chosen_settings(options)
    if options.program is None:
        chosen = _expression(options) if expression is None else expression
        return Filter(chosen, netmask=options.netmask, optimize=options.optimize, **settings)
    if options.expression or options.file is not None:
        options.usage_error("argument --program: not allowed with a filter")
    from dataclasses import replace

    program = _read_program(options.program)
    if settings:
        from pcapext.encapsulation import WalkSettings

        program = replace(program, settings=WalkSettings(**settings))
    return Filter(program, adapt=True)


def _read_program(path: str, form: str | None = None) -> Program:
    """The program in a file; "-" is standard input."""
    from pcapext.textforms import read_program

    text = _read_text(path)
    try:
        return read_program(text, form)
    except ProgramError as error:
        raise ProgramError(f"{'standard input' if path == '-' else path}: {error}") from None


# --- filter, keys


def _filter(options: argparse.Namespace) -> int:
    from functools import partial

    from pcapext.cli_filter import run_filter

    return run_filter(options, partial(_filter_for, options))


def _keys(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from pcapext.capture import open_offline
    from pcapext.engine.walk import dissect

    shown = ("nhoff", "nproto", "thoff", "tproto", "poff", "depth")
    filter = _filter_for(options)
    with open_offline(options.read, filter) as capture:
        if not options.json:
            print(" ".join(f"{key:>6}" for key in ("packet", *shown)))
        for number, packet in capture.numbered():
            keys = asdict(dissect(packet.data, packet.linktype, filter.settings))
            values = {key: keys[key] for key in shown}
            if options.json:
                print(json.dumps({"packet": number, **values}))
            else:
                print(
                    " ".join(f"{value:#06x}" if key == "nproto" else f"{value:>6}" for key, value in {"packet": number, **values}.items())
                )
    return 0


# --- assemble, disassemble, check


def _assemble(options: argparse.Namespace) -> int:
    print(_read_program(options.source, options.input).dump(options.format), end="")
    return 0


def _check(options: argparse.Namespace) -> int:
    program = _read_program(options.source, options.input)
    refusal = program.kernel_refusal()
    print(f"{len(program)} instructions, valid")
    print(f"Linux kernel: refused: {refusal}" if refusal else "Linux kernel: accepted")
    if program.flow_keys and not program.kernel_refusal(stock=False):
        print("pcapext and kernels with the flow keys: accepted")
    return 1 if refusal and program.kernel_refusal(stock=False) else 0


_COMMANDS: dict[str, Command] = {
    "compile": _compile,
    "filter": _filter,
    "keys": _keys,
    "assemble": _assemble,
    "disassemble": _assemble,
    "check": _check,
}
