"""The arguments of the command line: names, meanings, and what is no value for them.

In:  the commands, as functions by name.
Out: a parser. Only the chosen command has its arguments: to make those of all takes as long as to compile a filter.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import NoReturn

from pcapext import __version__, pcap_bridge
from pcapext.bpf import MAXIMUM_SNAPLEN
from pcapext.dump import STYLES
from pcapext.errors import PcapextError
from pcapext.request import TARGETS

Command = Callable[[argparse.Namespace], int]

#: The largest number in a C int; the longest that a capture may be told to last, in seconds: 31 years.
_INT, _LONGEST_DURATION = 0x7FFF_FFFF, 10**9
#: The forms that a program is printed in and read from: `pcapext.dump`'s, `bytes(program)`, those of `pcapext.elsewhere` and
#: `pcapext.savefile`.
PRINTED = (*STYLES, "raw", "iptables", "tc", "savefile")
READ = (*STYLES, "savefile")
_PRINTED_HELP = (
    "; raw is the kernel's structs, as bytes; iptables and tc are what these tools take as bytecode; "
    "savefile, experimental, is libpcap's draft of a binary format"
)


def parser(commands: Mapping[str, Command], chosen: str | None) -> argparse.ArgumentParser:
    """The parser; `chosen` is the first argument. What it parses has the function as `command`, and `usage_error` to end with."""
    # Each argument that is added is formatted, to see that it can be. With a width of its own, that does not load shutil.
    narrow = partial(argparse.HelpFormatter, width=80)
    description = "tcpdump's filters, for the innermost headers of tunnelled packets too"
    made = argparse.ArgumentParser(prog="pcapext", description=description, formatter_class=narrow)
    made.add_argument("--version", action=_Version, nargs=0, help="print the version, and libpcap's and where it is")
    # Named here, the program is not put together from the help, which would load much.
    added_commands = made.add_subparsers(required=True, metavar="COMMAND", prog="pcapext")
    for name, (summary, add_arguments) in _COMMANDS.items():
        added = added_commands.add_parser(name, help=summary, description=summary, formatter_class=narrow)
        added.set_defaults(command=commands[name], usage_error=added.error)
        if name == chosen:
            add_arguments(added)
        added.formatter_class = argparse.HelpFormatter
    made.formatter_class = argparse.HelpFormatter
    return made


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
BOUNDS = {
    "max_levels": "walk no more levels of headers, 1 to 16 (4, with -t ebpf 16)",
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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None
    if not 0 < seconds <= _LONGEST_DURATION:
        raise argparse.ArgumentTypeError(f"{text} is out of range, expected more than 0 and at most {_LONGEST_DURATION}")
    return seconds


def _expression_arguments(added: argparse.ArgumentParser, netmask: int | None = 0, shown: str = "0.0.0.0") -> None:
    added.add_argument("expression", nargs="*", metavar="EXPR", help="the filter; its parts are put together with spaces")
    added.add_argument("-F", dest="file", metavar="FILE", help="take the filter from a file, - for standard input, instead")
    # tcpdump's -O stands for none at all. What is asked for last counts.
    added.add_argument("-O", dest="optimize", action="store_const", const=0, default=1, help="do not optimize")
    added.add_argument("-O2", dest="optimize", action="store_const", const=2, help="optimize libpcap's programs further")
    added.add_argument("--netmask", type=_netmask, default=netmask, metavar="MASK", help=f"the network's, for 'ip broadcast' ({shown})")
    settings = added.add_argument_group("settings of the walk through the headers")
    settings.add_argument(
        "--tunnel-port",
        dest="tunnel_ports",
        action=_TunnelPort,
        metavar="NAME=PORTS",
        help="UDP ports of a tunnel, as in vxlan=4789,8472; without ports it is not looked for (one flag a tunnel)",
    )
    for name, limit in BOUNDS.items():
        settings.add_argument(f"--{name.replace('_', '-')}", type=_whole_number(0), metavar="N", help=limit)


def _program_argument(added: argparse.ArgumentParser) -> None:
    added.add_argument("--program", metavar="FILE", help="take a program, in any form that compile prints, instead of a filter")


def _compile_arguments(added: argparse.ArgumentParser) -> None:
    styles = added.add_mutually_exclusive_group()
    for style, shown in (("d", "as text"), ("dd", "as a C array"), ("ddd", "as decimal numbers")):
        styles.add_argument(f"-{style}", dest="format", action="store_const", const=style, help=f"print it {shown}")
    styles.add_argument("--format", choices=PRINTED, help=f"print it in this form (d){_PRINTED_HELP}")
    linktype = "link type, libpcap's name or number (EN10MB, for iptables RAW)"
    added.add_argument("-y", dest="linktype", type=_linktype, metavar="LINKTYPE", help=linktype)
    added.add_argument("-s", dest="snaplen", type=_snaplen, metavar="SNAPLEN", help="bytes to keep of a packet (262144)")
    added.add_argument("-r", dest="read", metavar="FILE", help="take link type and snap length from a capture")
    added.add_argument("-t", dest="target", choices=TARGETS, help="the form of program (flowkeys; for iptables, tc and savefile classic)")
    _expression_arguments(added)


def _filter_arguments(added: argparse.ArgumentParser) -> None:
    read = "a capture to read, or a folder of them; - for standard input. It may be given several times"
    added.add_argument("-r", dest="read", metavar="IN", required=True, action="append", help=read)
    _program_argument(added)
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
    _expression_arguments(added)


def _capture_arguments(added: argparse.ArgumentParser) -> None:
    shown = added.add_mutually_exclusive_group()
    added.add_argument("-i", dest="device", metavar="IFACE", help="the interface, or its number in the list of -D; any for all")
    shown.add_argument("-D", dest="show_devices", action="store_true", help="print the interfaces")
    shown.add_argument("-L", dest="show_linktypes", action="store_true", help="print the link types that the interface has")
    shown.add_argument("-J", dest="show_timestamp_types", action="store_true", help="print the types of time stamps that it has")
    _program_argument(added)
    write = "write the packets to a capture: pcapng if it is called .pcapng, compressed if .gz, .zst or .lz4; - for standard output"
    added.add_argument("-w", dest="write", metavar="OUT", help=write)
    added.add_argument("-c", dest="packets", type=_whole_number(1), metavar="N", help="stop after N packets")
    added.add_argument("--duration", type=_seconds, metavar="S", help="stop after S seconds")
    flush = "hand each packet on at once: to the file that is written, or to standard output"
    added.add_argument("-U", "--packet-buffered", dest="flushes", action="store_true", help=flush)
    added.add_argument("-l", dest="flushes_lines", action="store_true", help="print each line at once, to a pipe too")
    target = "the form of program that the kernel runs (classic)"
    added.add_argument("-t", dest="target", choices=("classic", "ebpf"), help=target)
    added.add_argument("-n", action="store_true", help="nothing: addresses and ports are printed as numbers in any case")
    settings = added.add_argument_group("settings of the capture")
    settings.add_argument(
        "-s", "--snapshot-length", dest="snaplen", type=_snaplen, metavar="SNAPLEN", help="bytes to keep of a packet (262144)"
    )
    promiscuous = "see only what is for this host, if the interface lets choose"
    settings.add_argument("-p", "--no-promiscuous-mode", dest="promiscuous", action="store_false", default=None, help=promiscuous)
    settings.add_argument("-I", "--monitor-mode", dest="monitor", action="store_true", help="monitor mode, of a wireless interface")
    buffer = "the kernel's buffer for packets, in KiB (2048)"
    settings.add_argument("-B", "--buffer-size", dest="buffer_size", type=_whole_number(1, _INT // 1024), metavar="KIB", help=buffer)
    direction = "packets that the interface receives, that it sends, or both (inout)"
    settings.add_argument("-Q", "--direction", dest="direction", choices=("in", "out", "inout"), help=direction)
    settings.add_argument("-y", "--linktype", dest="linktype", type=_linktype, metavar="LINKTYPE", help="one of the link types of -L")
    immediate = "have packets from the kernel one by one, not in batches, as if lines go to a terminal"
    settings.add_argument("--immediate-mode", dest="immediate", action="store_true", help=immediate)
    settings.add_argument("-j", "--time-stamp-type", dest="timestamp_type", metavar="TYPE", help="one of the types of -J")
    precision = "of times in the file that is written (micro)"
    settings.add_argument("--time-stamp-precision", dest="precision", choices=("micro", "nano"), default="micro", help=precision)
    _expression_arguments(added, netmask=None, shown="the interface's")


def _keys_arguments(added: argparse.ArgumentParser) -> None:
    added.add_argument("-r", dest="read", metavar="IN", required=True, help="the capture to read, - for standard input")
    _program_argument(added)
    added.add_argument("--json", action="store_true", help="print an object for each packet")
    _expression_arguments(added)


def _program_text_arguments(added: argparse.ArgumentParser) -> None:
    added.add_argument("source", nargs="?", default="-", metavar="FILE", help="the program (standard input)")
    added.add_argument("--input", choices=READ, help="the form it is in (what it looks like)")


def _assemble_arguments(added: argparse.ArgumentParser, format: str = "bytecode") -> None:
    _program_text_arguments(added)
    added.add_argument("--format", choices=PRINTED, default=format, help=f"the form to print it in ({format}){_PRINTED_HELP}")
    linktype = "link type that it is for, libpcap's name or number (what it says, or EN10MB)"
    added.add_argument("-y", dest="linktype", type=_linktype, metavar="LINKTYPE", help=linktype)


#: What each command does, and what gives it its arguments.
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "compile": ("print the program of a filter", _compile_arguments),
    "filter": ("pick packets out of captures", _filter_arguments),
    "capture": ("pick packets that come in on an interface", _capture_arguments),
    "keys": ("print the flow keys of the packets of a capture", _keys_arguments),
    "assemble": ("read a program in any form and print its numbers", _assemble_arguments),
    "disassemble": ("read a program in any form and print it as text", partial(_assemble_arguments, format="d")),
    "check": ("read a program in any form and tell whether it is valid and who takes it", _program_text_arguments),
}
