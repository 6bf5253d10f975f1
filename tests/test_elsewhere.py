"""Programs where others run them: iptables and tc in a namespace, and a C program, on generated packets."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from everywhere import observed, sample
from oracle import NETMASK, Packet, expected, text_of
from packets import EN10MB, RAW, checksum, u16
from wire import LONGEST, SHORTEST, Wire, seen

import pcapext
from pcapext import bpf
from pcapext.bpf import Instruction, Program
from pcapext.cli import main
from pcapext.cli_arguments import PRINTED
from pcapext.dump import STYLES
from pcapext.elsewhere import PLACES, command_text
from pcapext.encapsulation import DEFAULT_SETTINGS, WalkSettings
from pcapext.errors import ProgramError

# ---- What is refused ----


def test_every_place_is_a_format() -> None:
    assert (*STYLES, "raw", *PLACES, "savefile") == PRINTED


def many(count: int, linktype: int) -> Program:
    return Program((Instruction(bpf.LD_LEN),) * (count - 1) + (Instruction(bpf.RET_K, k=1),), linktype)


REFUSED = [
    (many(1, 1), "bpf", "unknown place 'bpf', expected one of iptables, tc"),
    (
        many(1, 1),
        "iptables",
        "iptables sees packets from their network header on, and the program is for link type 1; "
        "compile it with -y RAW or -y IPV4 or -y IPV6",
    ),
    (
        many(1, 113),
        "tc",
        "tc sees Ethernet frames, or bare IP packets on devices that have no link layer, and the program is for link type 113; "
        "compile it with -y EN10MB or -y RAW or -y IPV4 or -y IPV6",
    ),
    (
        pcapext.compile("inner tcp port 80", linktype="RAW"),
        "iptables",
        "iptables has no [tproto], [thoff]; -t classic gives a program without them",
    ),
    (pcapext.compile("depth > 1"), "tc", "tc has no [depth]; -t classic gives a program without them"),
    (
        Program((Instruction(bpf.LD_MEM), Instruction(bpf.RET_A)), 12),
        "iptables",
        "iptables would refuse the program: instruction 0: M[0] is read, but not written on every path before",
    ),
    (
        many(65, 12),
        "iptables",
        "iptables takes at most 64 instructions, and the program has 65; "
        "tc takes up to 2000 (--format tc), and a walk is shorter with a smaller --max-levels or --extension-headers",
    ),
    (
        many(2001, 1),
        "tc",
        "tc takes at most 2000 instructions, and the program has 2001; "
        "a walk is shorter with a smaller --max-levels or --extension-headers",
    ),
    (
        Program((Instruction(bpf.LD_LEN), Instruction(bpf.RET_A)), 1),
        "tc",
        "instruction 1: ret a, whose value tc would take for a class; expected ret #k",
    ),
]


@pytest.mark.parametrize(("program", "place", "message"), REFUSED)
def test_refused(program: Program, place: str, message: str) -> None:
    with pytest.raises(ProgramError, match=rf"\A{re.escape(message)}\Z"):
        command_text(program, place)


def test_compile_for_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless told, it compiles to what runs there."""
    for place, linktype, expression in (("iptables", "RAW", "tcp port 80"), ("tc", "EN10MB", "inner tcp port 80")):
        assert main(["compile", "--format", place, expression]) == 0
        program = pcapext.compile(expression, linktype=linktype, target="classic")
        assert capsys.readouterr() == (command_text(program, place), "")
    assert main(["compile", "--format", "iptables", "-y", "IPV4", "udp"]) == 0
    assert capsys.readouterr() == (command_text(pcapext.compile("udp", linktype="IPV4"), "iptables"), "")
    for flags in (["-y", "EN10MB"], ["-t", "flowkeys", "inner"], ["inner"]):
        assert main(["compile", "--format", "iptables", *flags, "tcp port 80"]) == 1
        output = capsys.readouterr()
        assert (output.out, output.err[:18]) == ("", "pcapext: iptables ")


def test_assemble_for_a_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The text of a program does not tell its link type."""
    file = tmp_path / "program"
    file.write_text(pcapext.compile("udp", linktype="RAW").dump("asm"))
    assert main(["assemble", "--format", "iptables", str(file)]) == 1
    assert capsys.readouterr().out == ""
    assert main(["assemble", "--format", "iptables", "-y", "raw", str(file)]) == 0
    assert capsys.readouterr().out == command_text(pcapext.compile("udp", linktype="RAW"), "iptables")


# ---- iptables ----


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def run(wire: Wire, command: str, *more: str) -> str:
    """The output of a command that runs in the namespace."""
    return wire.do(lambda: subprocess.run([*command.split(), *more], capture_output=True, text=True, check=True)).stdout


SMALL_WALK = {"max_levels": 2, "vlan_tags": 0, "mpls_labels": 0, "extension_headers": 0, "gtpu_extensions": 0}

#: Template, link type, settings of the walk.
MATCHES: list[tuple[str, str, dict[str, int]]] = [
    ("", "RAW", {}),
    ("tcp port 80", "RAW", {}),
    ("host 10.0.0.1 and not tcp", "RAW", {}),
    ("len > 100 and ip[8] > 50", "IPV4", {}),
    ("not udp", "IPV4", {}),
    ("{outer icmp}", "RAW", SMALL_WALK),
    ("{outer tcp port 80} or {outer udp}", "IPV4", SMALL_WALK),
    ("{encap vxlan}", "RAW", SMALL_WALK),
    ("udp and {encap vxlan}", "IPV4", SMALL_WALK),
    ("{inner tcp}", "RAW", SMALL_WALK | {"max_levels": 1}),
]


def delivered(count: int) -> Iterator[bytes]:
    """IPv4 packets that a kernel takes: whole ones with the right length and checksum."""
    for packet in sample(count, 5, [RAW]):
        data = packet.data
        length = 4 * (data[0] & 0xF) if data else 0
        if len(data) >= 20 and data[0] >> 4 == 4 and 20 <= length <= len(data) == int.from_bytes(data[2:4], "big") <= LONGEST - 14:
            header = data[:10] + bytes(2) + data[12:length]
            yield header[:10] + u16(checksum(header)) + data[12:]


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip", "iptables", "iptables-save")
def test_iptables(wire: Wire) -> None:
    """A rule for each filter. After each packet, the counters tell which of them it matched."""
    for template, linktype, settings in MATCHES:
        program = pcapext.compile(text_of(template), linktype=linktype, netmask=NETMASK, target="classic", **settings)
        run(wire, "iptables -t raw -A PREROUTING -i right -m bpf --bytecode", command_text(program, "iptables"))
    address = bytes.fromhex(json.loads(run(wire, "ip -json link show dev right"))[0]["address"].replace(":", ""))

    def counters() -> list[int]:
        rows = [row for row in run(wire, "iptables-save -c -t raw").split("\n") if row.startswith("[")]
        return [int(row[1:].partition(":")[0]) for row in rows]

    before, matching = counters(), [0] * len(MATCHES)
    sent = list(delivered(1500))
    assert len(sent) > 200
    for data in sent:
        wire.send([address + address + b"\x08\x00" + data])
        after = counters()
        for index, (template, _, settings) in enumerate(MATCHES):
            packet = observed(data, RAW, WalkSettings(**settings) if settings else DEFAULT_SETTINGS)
            verdict = expected(template, packet, NETMASK)
            assert after[index] - before[index] == verdict, (template, data.hex())
            matching[index] += verdict
        before = after
    assert matching[0] == len(sent)
    assert all(0 < each < len(sent) for each in matching[1:]), matching


# ---- tc ----

#: Filters that go to tc: those of the walk, and libpcap's own.
SELECTED = ["{inner tcp port 80}", "ip or {inner tcp}", "not {encap} and len > 200", '"{depth} > 1"', "tcp port 80", "not ip6"]


def frames(count: int) -> tuple[list[bytes], list[Packet]]:
    """Frames, and how the kernel shows them behind the interface: without their outer VLAN tag."""
    sent = [
        packet.data
        for packet in sample(count, 6, [EN10MB])
        if packet.captured == packet.length and SHORTEST <= packet.length <= LONGEST and seen(packet.data) is not None
    ]
    return sent, [observed(frame) for data in sent if (frame := seen(data)) is not None]


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip", "tc")
@pytest.mark.parametrize("template", SELECTED)
def test_tc_incoming(wire: Wire, tmp_path: Path, template: str) -> None:
    """What the filter matches is sent to another interface, where it is all that comes out."""
    program = pcapext.compile(text_of(template), netmask=NETMASK, target="classic")
    file = tmp_path / "program"
    file.write_text(command_text(program, "tc"))
    run(wire, "ip link add away type veth peer name arrived")
    try:
        run(wire, "ip link set away up")
        run(wire, "ip link set arrived up")
        run(wire, "tc qdisc add dev right clsact")
        run(wire, f"tc filter add dev right ingress bpf bytecode-file {file} action mirred egress redirect dev away")
        sent, shown = frames(400)
        with wire.tap(None, interface="arrived") as tap:
            wire.send(sent)
            wanted = [packet.data for packet in shown if expected(template, packet, NETMASK)]
            assert tap.take() == wanted
            assert 3 <= len(wanted) <= len(sent) - 3
    finally:
        run(wire, "tc qdisc del dev right clsact")
        run(wire, "ip link del away")


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip", "tc")
def test_tc_classes(wire: Wire) -> None:
    """Frames that go out are counted by the class that the filter was given; the snap length would be the number of another class."""
    program = pcapext.compile("tcp port 80", netmask=NETMASK)
    sent, _ = frames(400)
    untagged = [data for data in sent if seen(data) == data]
    wanted = sum(expected("tcp port 80", observed(data), NETMASK) for data in untagged)
    assert 3 <= wanted <= len(untagged) - 3
    for text, counted in ((command_text(program, "tc"), wanted), (program.dump("bytecode"), 0)):
        run(wire, "tc qdisc add dev left root handle 1: htb default 2")
        try:
            for number in ("1:1", "1:2"):
                run(wire, f"tc class add dev left parent 1: classid {number} htb rate 10gbit")
            run(wire, "tc filter add dev left parent 1: protocol all bpf flowid 1:1 bytecode", text)
            wire.send(untagged)
            shown = run(wire, "tc -s class show dev left")
            assert re.findall(r"class htb 1:1 .*\n Sent \d+ bytes (\d+) pkt", shown) == [str(counted)]
        finally:
            run(wire, "tc qdisc del dev left root")


# ---- A C program ----

PROGRAM_IN_C = """\
#include <stdio.h>
#include <stdint.h>
#include <sys/socket.h>
#include <linux/filter.h>

%s
int main(void)
{
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    static char packet[1 << 16];
    uint32_t length;
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) ||
        setsockopt(ends[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program))
        return 1;
    while (fread(&length, sizeof length, 1, stdin) == 1) {
        if (fread(packet, length, 1, stdin) != 1 || send(ends[0], packet, length, 0) != length)
            return 2;
        putchar(recv(ends[1], packet, sizeof packet, MSG_DONTWAIT) > 0 ? '1' : '0');
    }
    return 0;
}
"""


@pytest.mark.kernel
@pytest.mark.tools("cc")
@pytest.mark.parametrize("template", ["{inner tcp port 80}", "not {encap vxlan} and udp"])
def test_c_array_on_a_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str) -> None:
    """The array is set on a socket by a program in C, which gives it packets."""
    assert main(["compile", "--format", "c", "-t", "classic", text_of(template)]) == 0
    (tmp_path / "filter.c").write_text(PROGRAM_IN_C % capsys.readouterr().out)
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "filter", tmp_path / "filter.c"], check=True)
    packets = [packet for packet in sample(400, 7, [EN10MB]) if packet.data and packet.captured == packet.length]
    given = b"".join(struct.pack("=I", len(packet.data)) + packet.data for packet in packets)
    answers = subprocess.run([tmp_path / "filter"], input=given, capture_output=True, check=True).stdout.decode()
    verdicts = [expected(template, packet, NETMASK) for packet in packets]
    assert answers == "".join(str(int(verdict)) for verdict in verdicts)
    assert 3 <= sum(verdicts) <= len(packets) - 3
