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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pcapext import __version__, pcap_bridge
from pcapext.bpf import MAXIMUM_SNAPLEN, Program
from pcapext.compiler import TARGETS, compile
from pcapext.dump import STYLES
from pcapext.errors import PcapextError, ProgramError, SettingsError, printable

if TYPE_CHECKING:
    from pcapext.selection import Filter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    # A standard stream that was closed before we began: using it must fail, and no file that is opened may take its place.
    if sys.stdin is None:
        os.open(os.devnull, os.O_PATH)
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
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
    print(program.dump(options.format), end="")
    if program.flow_keys:
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
    chosen = {name: getattr(options, name) for name in ("tunnel_ports", *_BOUNDS) if getattr(options, name) is not None}
    if chosen:
        from pcapext.encapsulation import WalkSettings

        try:
            WalkSettings(**chosen)
        except SettingsError as error:
            options.usage_error(str(error))
    return chosen


def _filter_program(options: argparse.Namespace, linktype: str | int, snaplen: int, settings: dict[str, Any]) -> Program:
    """The program of the expression."""
    return compile(
        _expression(options),
        linktype=linktype,
        snaplen=snaplen,
        netmask=options.netmask,
        optimize=options.optimize,
        target=options.target,
        **settings,
    )


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


# --- arguments


def _netmask(text: str) -> int:
    """A netmask, as an address or as a prefix length."""
    import ipaddress

    try:
        return int(ipaddress.IPv4Network(f"0.0.0.0/{text}").netmask)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no netmask") from None


def _linktype(text: str) -> str | int:
    """A name of libpcap's, or a number."""
    return int(text) if text.isdecimal() and text.isascii() else text


def _whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is no number") from None
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"{text} is out of range, expected {low} {'or more' if high is None else f'to {high}'}")
        return number

    return convert


def _snaplen(text: str) -> int:
    """tcpdump's: 0 stands for the largest."""
    return _whole_number(0, MAXIMUM_SNAPLEN)(text) or MAXIMUM_SNAPLEN


class _TunnelPort(argparse.Action):
    """Gathers `NAME=PORT,PORT...` in a mapping of names to lists of ports. No port after the sign turns the tunnel off."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, text: object, *_: object) -> None:
        name, sign, ports = str(text).partition("=")
        if not sign:
            raise argparse.ArgumentError(self, f"'{text}' is no name of a tunnel with its ports, as in vxlan=4789,8472")
        tunnels: dict[str, tuple[int, ...]] = getattr(namespace, self.dest) or {}
        if name in tunnels:
            raise argparse.ArgumentError(self, f"{name} is given twice, expected one list of ports")
        try:
            numbers = tuple(map(_whole_number(1, 0xFFFF), ports.split(","))) if ports else ()
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, f"{name}: {error}") from None
        setattr(namespace, self.dest, tunnels | {name: numbers})


#: The bounds among the settings of the walk, and what their flags say in the help.
_BOUNDS = {
    "max_levels": "walk no more levels of headers, 1 to 16 (4)",
    "vlan_tags": "walk no more VLAN tags in a level, 0 to 16 (3)",
    "mpls_labels": "walk no more MPLS labels in a level, 0 to 16 (6)",
    "extension_headers": "walk no more IPv6 extension headers in a level, 0 to 16 (4)",
    "gtpu_extensions": "walk no more extension headers of a GTP-U header, 0 to 16 (2)",
}


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        try:
            libpcap = pcap_bridge.description()
        except PcapextError as error:
            libpcap = str(error)
        print(f"pcapext {__version__}\n{libpcap}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pcapext", description="tcpdump's filters, for the innermost headers of tunnelled packets too")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version, and libpcap's and where it is")
    # Named here, the program is not put together from the help, which would load much.
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog="pcapext")

    def add(name: str, command: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(command=command, usage_error=added.error)
        return added

    def add_expression(added: argparse.ArgumentParser) -> None:
        added.add_argument("expression", nargs="*", metavar="EXPR", help="the filter; its parts are put together with spaces")
        added.add_argument("-F", dest="file", metavar="FILE", help="take the filter from a file, - for standard input, instead")
        # tcpdump's -O stands for none at all. What is asked for last counts.
        added.add_argument("-O", dest="optimize", action="store_const", const=0, default=1, help="do not optimize")
        added.add_argument("-O2", dest="optimize", action="store_const", const=2, help="optimize libpcap's programs further")
        added.add_argument("--netmask", type=_netmask, default=0, metavar="MASK", help="the network's, for 'ip broadcast' (0.0.0.0)")
        settings = added.add_argument_group("settings of the walk through the headers")
        settings.add_argument(
            "--tunnel-port",
            dest="tunnel_ports",
            action=_TunnelPort,
            metavar="NAME=PORTS",
            help="UDP ports of a tunnel, as in vxlan=4789,8472; without ports it is not looked for (one flag a tunnel)",
        )
        for name, limit in _BOUNDS.items():
            settings.add_argument(f"--{name.replace('_', '-')}", type=_whole_number(0), metavar="N", help=limit)

    added = add("compile", _compile, "print the program of a filter")
    styles = added.add_mutually_exclusive_group()
    for style, shown in (("d", "as text"), ("dd", "as a C array"), ("ddd", "as decimal numbers")):
        styles.add_argument(f"-{style}", dest="format", action="store_const", const=style, help=f"print it {shown}")
    styles.add_argument("--format", choices=STYLES, help="print it in this form (d)")
    added.set_defaults(format="d")
    added.add_argument("-y", dest="linktype", type=_linktype, metavar="LINKTYPE", help="link type, libpcap's name or number (EN10MB)")
    added.add_argument("-s", dest="snaplen", type=_snaplen, metavar="SNAPLEN", help="bytes to keep of a packet (262144)")
    added.add_argument("-r", dest="read", metavar="FILE", help="take link type and snap length from a capture")
    added.add_argument("-t", dest="target", default="flowkeys", choices=TARGETS, help="the form of program (flowkeys)")
    add_expression(added)

    def add_program(added: argparse.ArgumentParser) -> None:
        added.add_argument("--program", metavar="FILE", help="take a program, in any form that compile prints, instead of a filter")

    added = add("filter", _filter, "pick packets out of captures")
    read = "a capture to read, or a folder of them; - for standard input. It may be given several times"
    added.add_argument("-r", dest="read", metavar="IN", required=True, action="append", help=read)
    add_program(added)
    output = added.add_mutually_exclusive_group()
    write = "write the packets to a capture: pcapng if it is called .pcapng, compressed if .gz, .zst or .lz4; - for standard output"
    output.add_argument("-w", dest="write", metavar="OUT", help=write)
    output.add_argument("--count", action="store_true", help="print only how many there are")
    split = "write the packets of several filters, each to a capture of its own"
    added.add_argument("--split", nargs="+", action="extend", metavar="OUT=EXPR", help=split)
    added.add_argument("-c", dest="packets", type=_whole_number(1), metavar="N", help="stop after N packets, with --split of each filter")
    added.add_argument("-j", dest="workers", type=_whole_number(1, 64), metavar="N", help="work with N threads (as processors, up to 4)")
    added.add_argument("--follow", action="store_true", help="at the end of a file wait for what is added to it, until interrupted")
    added.add_argument("--profile", action="store_true", help="print how often each instruction of the filter ran, on standard error")
    add_expression(added)

    added = add("keys", _keys, "print the flow keys of the packets of a capture")
    added.add_argument("-r", dest="read", metavar="IN", required=True, help="the capture to read, - for standard input")
    add_program(added)
    added.add_argument("--json", action="store_true", help="print an object for each packet")
    add_expression(added)

    for name, format, summary in (
        ("assemble", "bytecode", "read a program in any form and print its numbers"),
        ("disassemble", "d", "read a program in any form and print it as text"),
    ):
        added = add(name, _assemble, summary)
        added.add_argument("source", nargs="?", default="-", metavar="FILE", help="the program (standard input)")
        added.add_argument("--input", choices=STYLES, help="the form it is in (what it looks like)")
        added.add_argument("--format", choices=STYLES, default=format, help=f"the form to print it in ({format})")

    added = add("check", _check, "read a program in any form and tell whether it is valid and who takes it")
    added.add_argument("source", nargs="?", default="-", metavar="FILE", help="the program (standard input)")
    added.add_argument("--input", choices=STYLES, help="the form it is in (what it looks like)")
    return parser
