"""The command line: `pcapext compile | filter | capture | keys | assemble | disassemble | check`.

In:  arguments, files, standard input.
Out: results on standard output, all else on standard error; exit status 0, 1 for an error, 2 for wrong usage.

Flags mean what they mean in tcpdump. Each command is one function; what it needs is imported where it is used, so that
`compile` starts fast.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pcapext.bpf import MAXIMUM_SNAPLEN, Program
from pcapext.cli_arguments import BOUNDS, Command, parser
from pcapext.compiler import compile
from pcapext.dump import STYLES
from pcapext.errors import PcapextError, ProgramError, SettingsError, printable

if TYPE_CHECKING:
    from pcapext.selection import Filter


def run() -> int:
    """Run the command that this process is for; the exit status."""
    # What is loaded stays to the end. To look through it for garbage, again and again and once more at the exit, takes 10 ms.
    gc.set_threshold(100_000)
    status = main()
    gc.freeze()
    return status


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
    target = options.target or "flowkeys"
    form = options.format or "d"
    if form not in STYLES:
        from pcapext.elsewhere import PLACES

        target = options.target or "classic"
        if form in PLACES:
            linktype = PLACES[form].linktype
    if options.read:
        from pcapext.capture import open_offline

        with open_offline(options.read) as capture:
            linktype, snaplen = capture.linktype, capture.snaplen
    if options.linktype is not None:
        linktype = options.linktype
    if options.snaplen is not None:
        snaplen = options.snaplen
    settings = _chosen_settings(options)
    chosen = {"linktype": linktype, "snaplen": snaplen, "netmask": options.netmask, "optimize": options.optimize, **settings}
    if target == "c":
        if options.format not in (None, "c"):
            options.usage_error(f"argument -t: c is printed as C alone, not in the form {options.format}")
        print(compile(_expression(options), target="c", **chosen).dump(), end="")
        return 0
    program = compile(_expression(options), target=target, **chosen)
    _print_program(program, form)
    if program.flow_keys:
        words = ", ".join(f"[{key}]" for key in program.flow_keys)
        print(f"pcapext: note: a stock kernel refuses {words}; {_RUN_ANYWHERE}", file=sys.stderr)
    return 0


_RUN_ANYWHERE = "-t classic gives a program without them"


def _print_program(program: Program, format: str) -> None:
    if format in STYLES:
        print(program.dump(format), end="")
    elif format == "savefile":
        from pcapext.savefile import write_savefile

        sys.stdout.buffer.write(write_savefile(program))
    else:
        from pcapext.elsewhere import command_text

        print(command_text(program, format), end="")


def _expression(options: argparse.Namespace) -> str:
    """The expression: from -F, where # begins a comment as in tcpdump, or the arguments put together with spaces."""
    if options.file is None:
        return " ".join(options.expression)
    return re.sub("#[^\n]*", "", _text(_read_bytes(options.file), options.file))


def _name(path: str) -> str:
    return "standard input" if path == "-" else printable(path)


def _read_bytes(path: str) -> bytes:
    """The bytes of a file; "-" is standard input."""
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            return file.read()
    except OSError as error:
        raise PcapextError(f"{_name(path)}: {error.strerror}") from None
    except ValueError as error:  # a NUL character in the path
        raise PcapextError(f"{_name(path)}: {error}") from None


def _text(octets: bytes, path: str) -> str:
    """The text that was read from a file."""
    try:
        return octets.decode()
    except UnicodeDecodeError as error:
        raise PcapextError(f"{_name(path)}: byte {error.start} is not UTF-8 text") from None


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


def _filter_for(options: argparse.Namespace, expression: str | None = None) -> Filter:
    """The filter of an expression, or of the arguments."""
    from pcapext.selection import Filter

    source, settings = _filter_source(options, expression)
    return Filter(source, adapt=True, **settings)


def _filter_source(options: argparse.Namespace, expression: str | None = None) -> tuple[str | Program, dict[str, Any]]:
    """An expression, unless told that of the arguments, and what to compile it with; or the program given with --program, whose
    settings flags replace.
    """
    settings = _chosen_settings(options)
    if options.program is None:
        chosen = _expression(options) if expression is None else expression
        return chosen, {"netmask": options.netmask, "optimize": options.optimize, **settings}
    if options.expression or options.file is not None:
        options.usage_error("argument --program: not allowed with a filter")
    from pcapext.slotted import replace

    program = _read_program(options.program)
    if settings:
        from pcapext.encapsulation import WalkSettings

        program = replace(program, settings=WalkSettings(**settings))
    return program, {}


def _read_program(path: str, form: str | None = None) -> Program:
    """The program in a file; "-" is standard input."""
    from pcapext.savefile import SIGNATURE, read_savefile
    from pcapext.textforms import read_program

    octets = _read_bytes(path)
    try:
        if form == "savefile" or (form is None and octets.startswith((SIGNATURE[:4], SIGNATURE[3::-1]))):
            return read_savefile(octets)
        return read_program(_text(octets, path), form)
    except ProgramError as error:
        raise ProgramError(f"{_name(path)}: {error}") from None


# --- filter, capture, keys


def _filter(options: argparse.Namespace) -> int:
    from functools import partial

    from pcapext.cli_filter import run_filter

    return run_filter(options, partial(_filter_for, options))


def _capture(options: argparse.Namespace) -> int:
    from functools import partial

    from pcapext.cli_capture import run_capture

    return run_capture(options, partial(_filter_source, options))


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
    program = _read_program(options.source, options.input)
    if options.linktype is not None:
        from pcapext.pcap_bridge import linktype_number
        from pcapext.slotted import replace

        program = replace(program, linktype=linktype_number(options.linktype))
    _print_program(program, options.format)
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
    "capture": _capture,
    "keys": _keys,
    "assemble": _assemble,
    "disassemble": _assemble,
    "check": _check,
}
