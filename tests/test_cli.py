"""The command line: what users type, and all they see: output, messages, exit status, files."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import packets
import pytest
from oracle import Packet, expected, text_of, with_known_values
from packets import LINK_TYPES

import benchmarks.frames
import pcapext
from pcapext import pcap_bridge
from pcapext.cli import main
from pcapext.dump import STYLES

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TUNNELS = str(EXAMPLES / "tunnels.pcap")
#: Packets of tunnels.pcap with port 80 in their innermost header (examples/README.md).
OF_A_WEB_SERVER = 28

Capsys = pytest.CaptureFixture[str]


# ---- Captures, written and read without libpcap ----

MICROSECONDS, NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
#: In files, raw IP has another number than in libpcap (https://www.tcpdump.org/linktypes.html).
IN_FILES = {12: 101}

Record = tuple[int, int, int, bytes]


def pcap(
    data: Iterable[bytes], linktype: int = 1, magic: int = MICROSECONDS, order: str = "<", snaplen: int = 262144, cut: int = 1 << 20
) -> bytes:
    """A pcap file; `cut` bytes of each packet are captured."""
    parts = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, snaplen, IN_FILES.get(linktype, linktype))]
    for index, packet in enumerate(data):
        captured = packet[:cut]
        parts.append(struct.pack(f"{order}IIII", 1_700_000_000 + index, index * 7919 % 1_000_000, len(captured), len(packet)) + captured)
    return b"".join(parts)


def records(file: bytes) -> list[Record]:
    """Seconds, fraction, length on the wire and bytes of each packet of a little-endian pcap file."""
    at, found = 24, []
    while at < len(file):
        seconds, fraction, captured, length = struct.unpack_from("<IIII", file, at)
        found.append((seconds, fraction, length, file[at + 16 : at + 16 + captured]))
        assert len(found[-1][3]) == captured
        at += 16 + captured
    return found


def generated(linktype: int, count: int = 120) -> list[Packet]:
    made = packets.packets(count, seed=linktype + 1, linktypes=[linktype])
    return [Packet.whole(with_known_values(packet, index)) for index, packet in enumerate(made)]


@pytest.fixture
def capture(tmp_path: Path) -> Callable[..., str]:
    """Makes a capture of generated packets, and gives its path."""

    def make(linktype: int = 1, **how: object) -> str:
        path = tmp_path / f"{linktype}.pcap"
        path.write_bytes(pcap([packet.data for packet in generated(linktype)], linktype, **how))  # type: ignore[arg-type]
        return str(path)

    return make


# ---- Running commands ----


def pcapext_process(*arguments: str, **how: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "pcapext", *arguments], capture_output=True, cwd=ROOT, **how)  # type: ignore[call-overload,no-any-return]


def tcpdump(*arguments: str) -> str:
    return subprocess.run(["tcpdump", *arguments], capture_output=True, text=True, check=True).stdout


def succeeds(capsys: Capsys, *arguments: str) -> str:
    """The output of a command that says nothing else."""
    status = main(arguments)
    output = capsys.readouterr()
    assert (status, output.err) == (0, "")
    return output.out


def fails(capsys: Capsys, *arguments: str) -> str:
    """The message of a command that fails and prints no result."""
    status = main(arguments)
    output = capsys.readouterr()
    assert (status, output.out) == (1, "")
    assert output.err.startswith("pcapext: ")
    return output.err.removeprefix("pcapext: ").removesuffix("\n")


def misused(capsys: Capsys, *arguments: str) -> str:
    """The last line of what is said of wrong usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    output = capsys.readouterr()
    assert (caught.value.code, output.out) == (2, "")
    return output.err.splitlines()[-1]


# ---- compile ----

NOTE = "pcapext: note: a stock kernel refuses {}; -t classic gives a program without them\n"


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("flag", ["-d", "-dd", "-ddd"])
@pytest.mark.parametrize("arguments", [["tcp", "port", "80"], ["-O", "tcp port 80"], ["-s", "96", "-y", "LINUX_SLL", "host 10.0.0.1"], []])
def test_compile_prints_what_tcpdump_prints(capsys: Capsys, flag: str, arguments: list[str]) -> None:
    assert succeeds(capsys, "compile", flag, *arguments) == tcpdump(flag, *arguments)


@pytest.mark.parametrize("style", STYLES)
def test_compile_formats(capsys: Capsys, style: str) -> None:
    assert succeeds(capsys, "compile", "--format", style, "udp") == pcapext.compile("udp").dump(style)


def test_compile_prints_text_unless_told(capsys: Capsys) -> None:
    assert succeeds(capsys, "compile", "udp") == succeeds(capsys, "compile", "-d", "udp") == pcapext.compile("udp").dump("d")


@pytest.mark.parametrize("linktype", ["RAW", "raw", "DLT_RAW", "LINKTYPE_RAW", "12"])
def test_compile_link_type(capsys: Capsys, linktype: str) -> None:
    assert succeeds(capsys, "compile", "-y", linktype, "udp") == pcapext.compile("udp", linktype="RAW").dump()


def test_compile_snap_length(capsys: Capsys) -> None:
    assert "ret      #96" in succeeds(capsys, "compile", "-s", "96", "udp")
    assert "ret      #262144" in succeeds(capsys, "compile", "-s", "0", "udp")


@pytest.mark.parametrize("mask", ["255.255.255.0", "24"])
def test_compile_netmask(capsys: Capsys, mask: str) -> None:
    assert succeeds(capsys, "compile", "--netmask", mask, "ip broadcast") == pcapext.compile("ip broadcast", netmask=0xFFFFFF00).dump()
    # Where none is given, 0, as tcpdump has it for captures.
    assert succeeds(capsys, "compile", "ip broadcast") == pcapext.compile("ip broadcast", netmask=0).dump()


def test_compile_without_optimizing(capsys: Capsys) -> None:
    assert len(succeeds(capsys, "compile", "-O", "tcp")) > len(succeeds(capsys, "compile", "tcp"))
    libpcaps, further = (succeeds(capsys, "compile", *flags, "mpls and tcp port 80").splitlines() for flags in ([], ["-O2"]))
    assert len(further) < len(libpcaps)
    assert succeeds(capsys, "compile", "-O", "-O2", "mpls and tcp port 80").splitlines() == further


@pytest.mark.parametrize("linktype", [0, 1, 12, 113, 276])
def test_compile_takes_link_type_and_snap_length_of_a_capture(capsys: Capsys, capture: Callable[..., str], linktype: int) -> None:
    path = capture(linktype, snaplen=1000)
    assert succeeds(capsys, "compile", "-r", path, "tcp") == pcapext.compile("tcp", linktype=linktype, snaplen=1000).dump()
    assert succeeds(capsys, "compile", "-r", path, "-y", "NULL", "tcp") == pcapext.compile("tcp", linktype="NULL", snaplen=1000).dump()
    assert succeeds(capsys, "compile", "-r", path, "-s", "50", "tcp") == pcapext.compile("tcp", linktype=linktype, snaplen=50).dump()


def test_compile_reads_the_filter_from_a_file(capsys: Capsys, tmp_path: Path) -> None:
    file = tmp_path / "filter"
    file.write_text("udp # and not tcp\n  port 53\n# nothing\n")
    assert succeeds(capsys, "compile", "-F", str(file)) == pcapext.compile("udp port 53").dump()
    # As in tcpdump, a filter on the command line is ignored then.
    assert succeeds(capsys, "compile", "-F", str(file), "arp") == pcapext.compile("udp port 53").dump()


@pytest.mark.tools("tcpdump")
def test_comments_in_a_filter_file_are_tcpdumps(capsys: Capsys, tmp_path: Path) -> None:
    file = tmp_path / "filter"
    file.write_text("#first\ntcp#second\nport 80 # third")
    assert succeeds(capsys, "compile", "-F", str(file)) == tcpdump("-d", "-F", str(file))


def test_compile_notes_what_stock_kernels_refuse(capsys: Capsys) -> None:
    assert main(["compile", "inner", "tcp", "port", "80"]) == 0
    output = capsys.readouterr()
    assert output.out == pcapext.compile("inner tcp port 80").dump()
    assert output.err == NOTE.format("[tproto], [thoff]")
    assert main(["compile", "-t", "flowkeys", "depth = 1"]) == 0
    assert capsys.readouterr().err == NOTE.format("[depth]")


def test_compile_to_c(capsys: Capsys) -> None:
    source = pcapext.compile("inner tcp port 80", target="c", linktype="RAW", snaplen=96, max_levels=2, netmask=0).text
    arguments = ("compile", "-t", "c", "-y", "RAW", "-s", "96", "--max-levels", "2", "inner", "tcp", "port", "80")
    assert succeeds(capsys, *arguments) == succeeds(capsys, *arguments, "--format", "c") == source
    for form in ("-d", "-dd", "-ddd", "--format=json"):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, form])
        assert "argument -t: c is printed as C alone, not in the form" in capsys.readouterr().err


def test_compile_points_at_the_error(capsys: Capsys) -> None:
    assert fails(capsys, "compile", "inner", "tcp", "port", "80", "and", "and", "udp") == (
        "unexpected 'and', expected a term\n  inner tcp port 80 and and udp\n                        ^^^"
    )
    assert fails(capsys, "compile", "port 70000 or inner udp") == (
        "illegal port number 70000 > 65535\n  port 70000 or inner udp\n       ^^^^^"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-y", "FOO"], "unknown link type 'FOO'"),
        (["-y", "99999"], "link type 99999 is out of range, expected 0 to 65535"),
        (["-F", "/no/such"], "/no/such: No such file or directory"),
        (["-F", "/"], "/: Is a directory"),
        (["-F", "a\0b"], r"a\?b: embedded null byte"),
        (["-F", sys.executable], re.escape(sys.executable) + r": byte \d+ is not UTF-8 text"),
        (["-r", "/no/such"], "/no/such: No such file or directory"),
        (["-r", __file__], f"{re.escape(__file__)}: byte 0: neither a pcap nor a pcapng file begins like this"),
        (["tcp\0"], "character 4 is NUL"),
        (["inner tcp\0"], r"unexpected '\\x00', expected .*"),
    ],
)
def test_compile_failures(capsys: Capsys, arguments: list[str], message: str) -> None:
    assert re.fullmatch(message, fails(capsys, "compile", *arguments).splitlines()[0])


# ---- filter ----

#: Filters as in oracle.py.
TEMPLATES = [
    "{inner tcp}",
    "{inner tcp port 80}",
    "{inner host 10.0.0.1} or {inner host 2001:db8::1}",
    "not {inner udp} and {encap}",
    "tcp or {inner ip6}",
    '"{poff} > 60" and ip',
]


@pytest.mark.parametrize("linktype", LINK_TYPES)
def test_filter_picks_the_right_packets(capsys: Capsys, tmp_path: Path, capture: Callable[..., str], linktype: int) -> None:
    source, output = capture(linktype), tmp_path / "out.pcap"
    before, made = records(Path(source).read_bytes()), generated(linktype)
    picked = 0
    for template in TEMPLATES:
        wanted = [record for record, packet in zip(before, made, strict=True) if expected(template, packet)]
        for extra in ([], ["-O"]) if linktype == 1 else ([],):
            if not wanted and not extra:
                continue  # on raw IPv6, `ip` rejects all packets, and the optimizer says so
            assert succeeds(capsys, "filter", "-r", source, "-w", str(output), *extra, text_of(template)) == ""
            written = output.read_bytes()
            assert written[:24] == Path(source).read_bytes()[:24]
            assert records(written) == wanted
        picked += len(wanted)
    assert 0 < picked < len(before) * len(TEMPLATES)


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [MICROSECONDS, NANOSECONDS])
@pytest.mark.parametrize("expression", ["", "tcp", "udp port 4789 or ip6", "not ip", "vlan and ip"])
def test_filter_writes_what_tcpdump_writes(
    capsys: Capsys, capture: Callable[..., str], tmp_path: Path, order: str, magic: int, expression: str
) -> None:
    source = capture(1, magic=magic, order=order, snaplen=2000, cut=120)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert succeeds(capsys, "filter", "-r", source, "-w", str(ours), expression) == ""
    precision = ["--time-stamp-precision=nano"] if magic == NANOSECONDS else []
    tcpdump("-r", source, "-w", str(theirs), *precision, expression)
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(ours.read_bytes()) > 24


@pytest.mark.tools("tcpdump", "tshark")
def test_filter_reads_pcapng(capsys: Capsys, tmp_path: Path) -> None:
    source, ours, theirs = (tmp_path / name for name in ("in.pcapng", "ours", "theirs"))
    subprocess.run(["tshark", "-F", "pcapng", "-r", TUNNELS, "-w", source], check=True, capture_output=True)
    assert source.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
    assert succeeds(capsys, "filter", "-r", str(source), "-w", str(ours), "tcp") == ""
    tcpdump("-r", str(source), "-w", str(theirs), "--time-stamp-precision=nano", "tcp")
    assert ours.read_bytes() == theirs.read_bytes()
    assert succeeds(capsys, "filter", "-r", str(source), "--count", "inner tcp port 80") == f"{OF_A_WEB_SERVER} packets\n"


def test_filter_prints_a_line_for_each_packet(capsys: Capsys) -> None:
    lines = succeeds(capsys, "filter", "-r", TUNNELS, "inner tcp port 80").splitlines()
    assert len(lines) == OF_A_WEB_SERVER
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6} IP6? \S+ > \S+: tcp, length \d+(, in \d tunnels?)?", line) for line in lines)


def test_filter_counts(capsys: Capsys) -> None:
    assert succeeds(capsys, "filter", "-r", TUNNELS, "--count", "inner tcp port 80") == f"{OF_A_WEB_SERVER} packets\n"
    assert succeeds(capsys, "filter", "-r", TUNNELS, "--count", "-c", "1") == "1 packet\n"
    assert succeeds(capsys, "filter", "-r", TUNNELS, "--count", "inner tcp port 1") == "0 packets\n"


def test_filter_stops_after_some_packets(capsys: Capsys, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert len(succeeds(capsys, "filter", "-r", TUNNELS, "-c", "3", "inner tcp").splitlines()) == 3
    assert succeeds(capsys, "filter", "-r", TUNNELS, "-c", "2", "-w", str(output)) == ""
    assert records(output.read_bytes()) == records(Path(TUNNELS).read_bytes())[:2]
    assert len(succeeds(capsys, "filter", "-r", TUNNELS, "-c", "100000").splitlines()) == len(records(Path(TUNNELS).read_bytes()))


@pytest.mark.parametrize("style", STYLES)
def test_filter_runs_a_program(capsys: Capsys, tmp_path: Path, style: str) -> None:
    file = tmp_path / "program"
    file.write_text(pcapext.compile("inner tcp port 80").dump(style))
    assert succeeds(capsys, "filter", "-r", TUNNELS, "--count", "--program", str(file)) == f"{OF_A_WEB_SERVER} packets\n"


def test_programs_run_at_the_link_type_of_the_capture(capsys: Capsys, tmp_path: Path, capture: Callable[..., str]) -> None:
    file = tmp_path / "program"
    file.write_text(pcapext.compile("inner tcp", linktype="RAW").dump("ddd"))
    count = sum(expected("{inner tcp}", packet) for packet in generated(12))
    assert succeeds(capsys, "filter", "-r", capture(12), "--count", "--program", str(file)) == f"{count} packets\n"


def test_filter_leaves_the_output_alone_if_the_filter_is_wrong(capsys: Capsys, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text("precious")
    fails(capsys, "filter", "-r", TUNNELS, "-w", str(output), "tcp and and")
    fails(capsys, "filter", "-r", "/no/such", "-w", str(output), "tcp")
    assert output.read_text() == "precious"


@pytest.mark.parametrize("command", [["filter"], ["filter", "--count"], ["filter", "-w", "-"], ["keys"], ["keys", "--json"]])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "byte 0: the file is empty"),
        (pcap([])[:10], "byte 10: the file ends within its header of 24 bytes"),
        (b"#!/bin/sh\necho this is no capture\n", "byte 0: neither a pcap nor a pcapng file begins like this"),
        (b"\x1f\x8b\x08" + bytes(40), "the gzip data is damaged at byte 14: invalid stored block lengths"),
    ],
)
def test_captures_that_are_none(capsys: Capsys, tmp_path: Path, command: list[str], content: bytes | None, message: str) -> None:
    path = tmp_path / "foreign"
    if content is not None:
        path.write_bytes(content)
    assert fails(capsys, command[0], "-r", str(path), *command[1:], "inner tcp") == f"{path}: {message}"


@pytest.mark.parametrize("cut", [1, 10, 16, 17, 30])
def test_packets_before_a_cut_are_kept(capsys: Capsys, tmp_path: Path, cut: int) -> None:
    whole = pcap([packet.data for packet in generated(1, 20)])
    last = records(whole)[-1]
    path, output = tmp_path / "cut.pcap", tmp_path / "out"
    path.write_bytes(whole[: -len(last[3]) - 16 + cut])
    count = len(generated(1, 20)) - 1
    for options, lines in (([], count), (["--count"], 1), (["-w", str(output)], 0)):
        assert main(["filter", "-r", str(path), *options]) == 1
        printed = capsys.readouterr()
        needed = 16 + len(last[3]) if cut >= 16 else 16
        offset = len(whole) - len(last[3]) - 16
        assert printed.err == f"pcapext: warning: {path}: byte {offset}: the file ends within a record of {needed} bytes or more\n"
        assert len(printed.out.splitlines()) == lines
        if options == ["--count"]:
            assert printed.out == f"{count} packets\n"
    assert records(output.read_bytes()) == records(whole)[:-1]
    assert main(["keys", "--json", "-r", str(path)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == count
    # No further packet is read than asked for.
    assert len(succeeds(capsys, "filter", "-r", str(path), "-c", str(count)).splitlines()) == count


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/no/such/out.pcap", "/no/such/out.pcap.part: No such file or directory"),
        ("/", "/: Is a directory"),
        ("/dev/full", "/dev/full: No space left on device"),
        ("a\0b", "a?b: embedded null byte"),
    ],
)
def test_outputs_that_cannot_be_written(capsys: Capsys, output: str, message: str) -> None:
    assert fails(capsys, "filter", "-r", TUNNELS, "-w", output, "inner tcp") == message


def test_output_is_not_the_input(capsys: Capsys, tmp_path: Path) -> None:
    source, link = tmp_path / "in.pcap", tmp_path / "link"
    source.write_bytes(Path(TUNNELS).read_bytes())
    link.symlink_to(source)
    for output in (source, link):
        assert fails(capsys, "filter", "-r", str(source), "-w", str(output)) == f"{output}: the output is the same file as the input"
    assert source.read_bytes() == Path(TUNNELS).read_bytes()


def test_words_that_only_live_captures_have(capsys: Capsys, tmp_path: Path) -> None:
    for command in ("filter", "keys"):
        assert fails(capsys, command, "-r", TUNNELS, "outbound") == "the filter asks for [type], which no capture file holds"
        assert (
            fails(capsys, command, "-r", TUNNELS, "inner tcp and ifindex 3") == "the filter asks for [ifidx], which no capture file holds"
        )
    file = tmp_path / "program"
    file.write_text("ld #mark\nret a\n")
    assert "[mark]" in fails(capsys, "filter", "-r", TUNNELS, "--program", str(file))
    # This one is the kernel's too, but a flow key first.
    assert succeeds(capsys, "filter", "-r", TUNNELS, "--count", "-c", "1", "poff > 0") == "1 packet\n"


def test_link_types_without_extension_terms(capsys: Capsys, capture: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "wlan"
    path.write_bytes(pcap([bytes(60)], 105))
    assert succeeds(capsys, "filter", "-r", str(path), "--count", "type mgt") == "1 packet\n"
    for command in ("filter", "keys"):
        message = fails(capsys, command, "-r", str(path), "type mgt and inner tcp")
        assert message.startswith("no extension term on link type IEEE802_11; there are some on EN10MB, RAW")
        assert message.endswith("\n  type mgt and inner tcp\n               ^^^^^^^^^")


# ---- keys ----

KEYS = ("nhoff", "nproto", "thoff", "tproto", "poff", "depth")


@pytest.mark.parametrize("linktype", LINK_TYPES)
def test_keys_are_those_by_construction(capsys: Capsys, capture: Callable[..., str], linktype: int) -> None:
    rows = [json.loads(line) for line in succeeds(capsys, "keys", "--json", "-r", capture(linktype)).splitlines()]
    made = generated(linktype)
    assert rows == [{"packet": number} | {key: getattr(packet.keys, key) for key in KEYS} for number, packet in enumerate(made, 1)]


def test_keys_as_a_table(capsys: Capsys, capture: Callable[..., str]) -> None:
    heading, *rows = (line.split() for line in succeeds(capsys, "keys", "-r", capture(1), "inner", "tcp").splitlines())
    assert tuple(heading) == ("packet", *KEYS)
    keys = {number: packet.keys for number, packet in enumerate(generated(1), 1) if expected("{inner tcp}", packet)}
    assert {int(row[0]): tuple(int(number, 0) for number in row[1:]) for row in rows} == {
        number: tuple(getattr(found, key) for key in KEYS) for number, found in keys.items()
    }
    assert all(re.fullmatch("0x[0-9a-f]{4}", row[2]) for row in rows)


def test_keys_with_a_program(capsys: Capsys, tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_text(pcapext.compile("inner tcp port 80").dump())
    assert succeeds(capsys, "keys", "-r", TUNNELS, "--program", str(file)) == succeeds(capsys, "keys", "-r", TUNNELS, "inner tcp port 80")


def test_keys_needs_a_link_type_that_the_walk_knows(capsys: Capsys, tmp_path: Path) -> None:
    path = tmp_path / "wlan"
    path.write_bytes(pcap([bytes(60)], 105))
    assert main(["keys", "--json", "-r", str(path)]) == 1
    assert "link type" in capsys.readouterr().err


# ---- Settings of the walk ----


@pytest.fixture
def frames_of_settings(tmp_path: Path) -> str:
    """A capture with a plain packet, one in VXLAN to port 5000 and one in three tunnels, all of a web server."""
    frames = benchmarks.frames.frames("EN10MB")
    moved = frames["vxlan"].replace((4789).to_bytes(2, "big"), (5000).to_bytes(2, "big"))
    path = tmp_path / "settings.pcap"
    path.write_bytes(pcap([frames["tcp"], moved, frames["deep"]]))
    return str(path)


#: Flags, and the depth of the three packets; where it is None, the walk does not come to port 80.
SETTINGS: list[tuple[list[str], list[int | None]]] = [
    ([], [0, None, 3]),
    (["--tunnel-port", "vxlan=4789,5000"], [0, 1, 3]),
    (["--tunnel-port", "vxlan=5000", "--tunnel-port", "teredo="], [0, 1, None]),
    (["--max-levels=3", "--tunnel-port=vxlan=5000,4789", "--vlan-tags", "0", "--mpls-labels", "0"], [0, 1, None]),
    (["--max-levels", "1", "--extension-headers", "0", "--gtpu-extensions", "0"], [0, None, None]),
]


@pytest.mark.parametrize(("flags", "depths"), SETTINGS)
def test_settings(capsys: Capsys, tmp_path: Path, frames_of_settings: str, flags: list[str], depths: list[int | None]) -> None:
    found = [(number, depth) for number, depth in enumerate(depths, 1) if depth is not None]
    over = ["-r", frames_of_settings]

    def picked(*arguments: str) -> list[tuple[int, int]]:
        rows = map(json.loads, succeeds(capsys, "keys", "--json", *over, *arguments).splitlines())
        return [(row["packet"], row["depth"]) for row in rows]

    assert picked(*flags, "inner tcp port 80") == found
    assert succeeds(capsys, "filter", *over, *flags, "--count", "inner tcp port 80").split()[0] == str(len(found))
    lines = succeeds(capsys, "filter", *over, *flags, "inner tcp port 80").splitlines()
    assert [", in 1 tunnel" in line or ", in 3 tunnels" in line for line in lines] == [depth > 0 for _, depth in found]
    # Where there is no filter to compile, the packets are walked with the settings all the same.
    assert [depth for number, depth in picked(*flags) if (number, depth) in found] == [depth for _, depth in found]
    # A program in JSON brings its settings along; flags go before them, and before the lack of any in another form.
    assert main(["compile", "--format", "json", *flags, "inner tcp port 80"]) == 0
    program = tmp_path / "program"
    program.write_text(capsys.readouterr().out)
    assert picked("--program", str(program)) == found
    assert picked("--program", str(program), "--max-levels", "16", "--tunnel-port", "vxlan=5000,4789") == [(1, 0), (2, 1), (3, 3)]
    program.write_text(succeeds(capsys, "assemble", str(program)))
    assert picked("--program", str(program), *flags) == found


@pytest.mark.parametrize("command", [["compile"], ["filter", "-r", TUNNELS], ["keys", "-r", TUNNELS]])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-levels", "0"], "max_levels is 0, expected a number from 1 to 16"),
        (["--max-levels", "17"], "max_levels is 17, expected a number from 1 to 16"),
        (["--vlan-tags", "17"], "vlan_tags is 17, expected a number from 0 to 16"),
        (["--mpls-labels", "-1"], "argument --mpls-labels: -1 is out of range, expected 0 or more"),
        (["--gtpu-extensions", "x"], "argument --gtpu-extensions: 'x' is no number"),
        (["--tunnel-port", "4789"], "argument --tunnel-port: '4789' is no name of a tunnel with its ports, as in vxlan=4789,8472"),
        (["--tunnel-port", "vxlan=70000"], "argument --tunnel-port: vxlan: 70000 is out of range, expected 1 to 65535"),
        (["--tunnel-port", "vxlan=4789,"], "argument --tunnel-port: vxlan: '' is no number"),
        (
            ["--tunnel-port", "vxlan=1", "--tunnel-port", "vxlan=2"],
            "argument --tunnel-port: vxlan is given twice, expected one list of ports",
        ),
        (["--tunnel-port", "vxlna=1"], "no tunnel over UDP is called 'vxlna'; there are vxlan, vxlan-gpe, geneve, gtpu, mpls, gre, teredo"),
        (["--tunnel-port", "vxlan=2152"], "tunnel port 2152 is given to both vxlan and gtpu"),
    ],
)
def test_settings_that_cannot_be(capsys: Capsys, command: list[str], flags: list[str], message: str) -> None:
    for expression in ("", "tcp", "inner tcp"):
        assert misused(capsys, *command, *flags, expression) == f"pcapext {command[0]}: error: {message}"


# ---- assemble, disassemble, check ----


@pytest.mark.parametrize("expression", ["inner tcp port 80", "tcp port 80", "payload[0:4] = 1 and vlan"])
@pytest.mark.parametrize("style", STYLES)
def test_every_form_is_read_and_written(capsys: Capsys, tmp_path: Path, expression: str, style: str) -> None:
    program, file = pcapext.compile(expression), tmp_path / "program"
    file.write_text(program.dump(style))
    assert succeeds(capsys, "assemble", str(file)) == program.dump("bytecode")
    assert succeeds(capsys, "disassemble", str(file)) == program.dump("d")
    for form in STYLES:
        if form != "json" or style == "json":  # of a program's origin, only JSON tells
            assert succeeds(capsys, "assemble", "--input", style, "--format", form, str(file)) == program.dump(form)
            assert succeeds(capsys, "disassemble", "--format", form, str(file)) == program.dump(form)


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("flag", ["-d", "-dd", "-ddd"])
@pytest.mark.parametrize("expression", ["tcp port 80", "ip[0] & 0xf != 5 and host 10.0.0.1", "ip6 protochain 6", ""])
def test_programs_of_tcpdump_are_read(capsys: Capsys, tmp_path: Path, flag: str, expression: str) -> None:
    file = tmp_path / "program"
    file.write_text(tcpdump(flag, expression))
    assert succeeds(capsys, "disassemble", str(file)) == tcpdump("-d", expression)
    assert succeeds(capsys, "assemble", "--format", "ddd", str(file)).split() == tcpdump("-ddd", expression).split() or flag == "-d"


@pytest.mark.parametrize(
    ("program", "status", "lines"),
    [
        ("2,40 0 0 12,22 0 0 0", 0, ["2 instructions, valid", "Linux kernel: accepted"]),
        (
            "ld #tproto\nret a\n",
            0,
            [
                "2 instructions, valid",
                "Linux kernel: refused: instruction 0: a stock kernel has no ancillary word tproto",
                "pcapext and kernels with the flow keys: accepted",
            ],
        ),
        (
            "2,96 0 0 3,22 0 0 0",
            1,
            ["2 instructions, valid", "Linux kernel: refused: instruction 0: M[3] is read, but not written on every path before"],
        ),
    ],
)
def test_check(capsys: Capsys, tmp_path: Path, program: str, status: int, lines: list[str]) -> None:
    file = tmp_path / "program"
    file.write_text(program)
    assert main(["check", str(file)]) == status
    output = capsys.readouterr()
    assert (output.out.splitlines(), output.err) == (lines, "")


@pytest.mark.parametrize("command", [["assemble"], ["disassemble"], ["check"], ["filter", "-r", TUNNELS, "--program"]])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the text is empty, expected a program"),
        ("garbage\n", "line 1: unknown instruction 'garbage'"),
        ("2,40 0 0 12", "line 1: '2' instructions are announced, but 1 follow"),
        ("1,40 0 0 12", "line 1: instruction 0: the last instruction must be a ret"),
        ("2,21 9 9 0,6 0 0 0", "line 1: instruction 0: jeq to instruction 10, but the program has 2"),
    ],
)
def test_texts_that_are_no_programs(capsys: Capsys, tmp_path: Path, command: list[str], content: str, message: str) -> None:
    file = tmp_path / "program"
    file.write_text(content)
    assert fails(capsys, *command, str(file)).startswith(str(file) + ": ")
    assert fails(capsys, *command, str(file)).removeprefix(str(file) + ": ") == message


# ---- usage ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["explode"], "argument COMMAND: invalid choice: 'explode'"),
        (["filter", "tcp"], "the following arguments are required: -r"),
        (["keys"], "the following arguments are required: -r"),
        (["compile", "--format", "x"], "argument --format: invalid choice: 'x'"),
        (["compile", "-d", "-dd"], "argument -dd: not allowed with argument -d"),
        (["compile", "-s", "-1"], "argument -s: -1 is out of range, expected 0 to 262144"),
        (["compile", "-s", "262145"], "argument -s: 262145 is out of range, expected 0 to 262144"),
        (["compile", "-s", "many"], "argument -s: 'many' is no number"),
        (["compile", "--netmask", "1.2.3"], "argument --netmask: '1.2.3' is no netmask"),
        (["compile", "--netmask", "33"], "argument --netmask: '33' is no netmask"),
        (["compile", "-t", "wasm"], "argument -t: invalid choice: 'wasm'"),
        (["filter", "-r", "x", "-c", "0"], "argument -c: 0 is out of range, expected 1 or more"),
        (["filter", "-r", "x", "-c", "-5"], "argument -c: -5 is out of range, expected 1 or more"),
        (["filter", "-r", "x", "-w", "y", "--count"], "argument --count: not allowed with argument -w"),
        (["filter", "-r", TUNNELS, "--program", "y", "tcp"], "argument --program: not allowed with a filter"),
        (["keys", "-r", TUNNELS, "--program", "y", "-F", "z"], "argument --program: not allowed with a filter"),
        (["assemble", "a", "b"], "unrecognized arguments: b"),
        (["check", "--input", "x"], "argument --input: invalid choice: 'x'"),
    ],
)
def test_wrong_usage(capsys: Capsys, arguments: list[str], message: str) -> None:
    assert message in misused(capsys, *arguments)


@pytest.mark.parametrize("command", [[], ["compile"], ["filter"], ["keys"], ["assemble"], ["disassemble"], ["check"]])
def test_help(capsys: Capsys, command: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    output = capsys.readouterr()
    assert (caught.value.code, output.err) == (0, "")
    assert output.out.startswith(" ".join(["usage: pcapext", *command]))


def test_version(capsys: Capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    first, second = capsys.readouterr().out.splitlines()
    assert (caught.value.code, first, second) == (0, f"pcapext {pcapext.__version__}", pcap_bridge.description())
    assert second.startswith("libpcap version 1.")


# ---- Processes: standard streams, and what it costs to start ----


def test_standard_streams() -> None:
    whole = Path(TUNNELS).read_bytes()
    done = pcapext_process("filter", "-r", "-", "-w", "-", "inner tcp port 80", input=whole)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(records(done.stdout)) == OF_A_WEB_SERVER
    keys = pcapext_process("keys", "-r", "-", "--json", input=done.stdout)
    assert len(keys.stdout.splitlines()) == OF_A_WEB_SERVER
    program = pcapext_process("compile", "-F", "-", "--format", "asm", input=b"inner tcp port 80 # web\n").stdout
    assert pcapext_process("assemble", input=program).stdout.decode() == pcapext.compile("inner tcp port 80").dump("bytecode")
    assert pcapext_process("check", "-", input=program).returncode == 0
    assert pcapext_process("filter", "-r", TUNNELS, "--count", "--program", "-", input=program).stdout == b"28 packets\n"
    foreign = pcapext_process("filter", "-r", "-", input=b"no capture")
    assert (foreign.returncode, foreign.stderr) == (
        1,
        b"pcapext: standard input: byte 0: neither a pcap nor a pcapng file begins like this\n",
    )
    assert pcapext_process("compile", "-F", "-", input=b"\xff").stderr == b"pcapext: standard input: byte 0 is not UTF-8 text\n"


@pytest.mark.parametrize(
    "command", ["filter -r {}", "filter -r {} -w -", "keys -r {}", "keys --json -r {}", "filter -r {} --count", "compile tcp"]
)
@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        ("| head -c 1 > /dev/null", 0, "pcapext: standard output: Broken pipe\n"),
        ("> /dev/full", 1, "pcapext: standard output: No space left on device\n"),
        (">&-", 1, "pcapext: standard output: Bad file descriptor\n"),
    ],
)
def test_outputs_that_go_away(tmp_path: Path, command: str, redirection: str, status: int, message: str) -> None:
    if "head" in redirection and ("count" in command or "compile" in command):
        message = ""  # so little is in the pipe before it is closed
    big = tmp_path / "big.pcap"
    big.write_bytes(pcap([bytes(1400)] * 3000))
    line = f"{sys.executable} -m pcapext {command.format(big)} {redirection}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", message)


def test_writing_to_a_pipe_whose_reader_has_gone(tmp_path: Path) -> None:
    big = tmp_path / "big.pcap"
    big.write_bytes(pcap([bytes(1400)] * 300))
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "pcapext", "filter", "-r", big, "-w", "-"], stdout=write, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"pcapext: standard output: Broken pipe\n")


def test_standard_input_that_is_closed() -> None:
    for command in ("check", "filter -r -", "compile -F -"):
        done = subprocess.run(f"{sys.executable} -m pcapext {command} <&-", shell=True, capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "pcapext: standard input: Bad file descriptor\n")


def test_closed_standard_output_that_is_not_needed(tmp_path: Path) -> None:
    output = tmp_path / "out"
    line = f"{sys.executable} -m pcapext filter -r {TUNNELS} -w {output} inner tcp port 80 >&-"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(records(output.read_bytes())) == OF_A_WEB_SERVER


def test_libpcap_that_is_missing() -> None:
    environment = {**os.environ, "PCAPEXT_LIBPCAP": "/no/such/libpcap.so"}
    for command in (["compile", "tcp"], ["compile", "inner tcp"], ["filter", "-r", TUNNELS]):
        done = pcapext_process(*command, env=environment)
        assert (done.returncode, done.stdout) == (1, b"")
        assert re.fullmatch(
            rb"pcapext: (.*: )?PCAPEXT_LIBPCAP names '/no/such/libpcap.so', which cannot be used as libpcap: .*\n", done.stderr
        )
    version = pcapext_process("--version", env=environment)
    assert version.returncode == 0
    assert version.stdout.startswith(b"pcapext ")
    assert b"/no/such/libpcap.so" in version.stdout


def test_installed_command() -> None:
    command = Path(sys.executable).with_name("pcapext")
    done = subprocess.run([command, "compile", "tcp"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, pcapext.compile("tcp").dump(), "")


def test_arguments_that_are_no_text() -> None:
    done = pcapext_process("compile", b"inner tcp\xff".decode(errors="surrogateescape"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"pcapext: unexpected '\\udcff'")
    done = pcapext_process("filter", "-r", b"/no\xff".decode(errors="surrogateescape"))
    assert (done.returncode, done.stderr) == (1, b"pcapext: /no?: No such file or directory\n")


#: What compiling has no use for; each takes milliseconds to load.
NOT_FOR_COMPILE = {
    *("dataclasses", "shutil", "json", "pathlib", "ipaddress", "datetime", "threading", "tempfile", "importlib.metadata"),
    *(
        "pcapext.capture",
        "pcapext.pcap_handles",
        "pcapext.summary",
        "pcapext.dissect",
        "pcapext.machine",
        "pcapext.textforms",
        "pcapext.bpfasm",
        "pcapext.unroll",
    ),
}
NOT_FOR_STANDARD = {"inspect", "ply", "pcapext.parser", "pcapext.cfg", "pcapext.assemble", "pcapext.encapsulation", "pcapext.optimize"}


@pytest.mark.parametrize(
    ("expression", "needless"), [("inner tcp port 80", NOT_FOR_COMPILE), ("tcp port 80", NOT_FOR_COMPILE | NOT_FOR_STANDARD)]
)
def test_compile_loads_only_what_it_needs(expression: str, needless: set[str]) -> None:
    script = f"import sys; from pcapext.cli import main; main(['compile', {expression!r}]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, cwd=ROOT, env=clean(PYTHONPATH=":".join(sys.path))
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert "pcapext.compiler" in loaded
    assert not loaded & needless


def clean(**more: str) -> dict[str, str]:
    """The environment, with compiled modules kept as on a user's machine."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | more


def test_nothing_is_written_beside_the_output(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pcapext", "compile", "inner tcp port 80"],
        capture_output=True, cwd=tmp_path, env=clean(PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1"),
    )  # fmt: skip
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
