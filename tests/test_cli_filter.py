"""`pcapext filter` as users see it: several captures and filters, files that grow, interrupts, full disks, terminals."""

from __future__ import annotations

import os
import pty
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packets import packets

from pcapext.cli import main

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TUNNELS = EXAMPLES / "tunnels.pcap"
#: Packets of tunnels.pcap: all, those with TCP port 80 where tcpdump looks, and those with it in the innermost headers
#: (examples/README.md).
ALL, PLAIN, INNER = 60, 2, 28

Capsys = pytest.CaptureFixture[str]
HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)


def record(number: int, data: bytes) -> bytes:
    return struct.pack("<IIII", number, 0, len(data), len(data)) + data


def frames(count: int) -> list[bytes]:
    return [packet.data for packet in packets(count, seed=7, linktypes=[1])]


def whole_records(octets: bytes) -> int:
    """How many records a pcap file has, which must be whole."""
    at = count = 0
    assert octets[:4] == HEADER[:4]
    at = len(HEADER)
    while at < len(octets):
        at += 16 + struct.unpack_from("<I", octets, at + 8)[0]
        count += 1
    assert at == len(octets)
    return count


def run(*arguments: object, **how: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pcapext", "filter", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **how)  # type: ignore[call-overload,no-any-return]


@contextmanager
def started(*arguments: object, **how: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "pcapext", "filter", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait, half a minute at the most; what did not come then will not."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come")


# ---- Several captures, several filters ----


def test_a_folder(capsys: Capsys, tmp_path: Path) -> None:
    """Its captures in the order of their names; what is none is passed over, and so is what another filter has left."""
    for name in ("b.pcap", "a.pcap", "c.part"):
        (tmp_path / name).write_bytes(TUNNELS.read_bytes())
    (tmp_path / "notes").write_text("no capture")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    output = tmp_path.parent / f"{tmp_path.name}.out"
    assert main(["filter", "-r", str(tmp_path), "-w", str(output)]) == 0
    assert capsys.readouterr() == ("", "")
    assert output.read_bytes() == TUNNELS.read_bytes() + TUNNELS.read_bytes()[24:]
    assert main(["filter", "-r", str(tmp_path / "folder"), "--count"]) == 1
    assert capsys.readouterr().err == f"pcapext: {tmp_path}/folder: the folder has no captures\n"


def test_split(capsys: Capsys, tmp_path: Path) -> None:
    """Each output is what its filter alone gives."""
    expressions = {"web.pcap": "inner tcp port 80", "plain.pcapng": "tcp port 80", "none.pcap.gz": "arp and ip", "all.pcap": ""}
    expressions["none.pcap.gz"] = "ip host 203.0.113.99"
    splits = [f"{tmp_path / name}={expression}" for name, expression in expressions.items()]
    assert main(["filter", "-r", str(TUNNELS), "--split", *splits]) == 0
    for name, expression in expressions.items():
        alone = tmp_path / f"alone-{name}"
        assert main(["filter", "-r", str(TUNNELS), "-w", str(alone), expression]) == 0
        assert (tmp_path / name).read_bytes() == alone.read_bytes()
    assert main(["filter", "-r", str(TUNNELS), "--count", "--split", *splits]) == 0
    counts = [int(line.rpartition(": ")[2].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert counts == [INNER, PLAIN, 0, ALL]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "web.pcap"], "'web.pcap' is no name of an output with its filter, as in web.pcap='tcp port 80'"),
        (["--split", "=tcp"], "'=tcp' is no name of an output with its filter, as in web.pcap='tcp port 80'"),
        (["--split", "a=tcp", "a=udp"], "a cannot be the output of two filters"),
        (["--split=-=tcp"], "- cannot be the output of one of several filters"),
        (["-w", "x", "--split", "a=tcp"], "not allowed with -w or another filter"),
        (["-F", "x", "--split", "a=tcp"], "not allowed with -w or another filter"),
    ],
)
def test_split_misused(capsys: Capsys, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["filter", "-r", str(TUNNELS), *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"pcapext filter: error: argument --split: {message}"


def test_split_with_a_wrong_filter_writes_nothing(capsys: Capsys, tmp_path: Path) -> None:
    assert main(["filter", "-r", str(TUNNELS), "--split", f"{tmp_path}/a=tcp", f"{tmp_path}/b=tcp and"]) == 1
    assert capsys.readouterr().err.startswith("pcapext: unexpected end, expected a term")
    assert list(tmp_path.iterdir()) == []


def test_limit_of_each_filter(capsys: Capsys) -> None:
    assert main(["filter", "-r", str(TUNNELS), "--count", "-c", "5", "--split", "a=inner tcp port 80", "b=tcp port 80"]) == 0
    assert capsys.readouterr().out == f"a: 5 packets\nb: {PLAIN} packets\n"


def test_profile(capsys: Capsys) -> None:
    """How often each instruction ran: those of the first packets that tell, by hand."""
    assert main(["filter", "-r", str(TUNNELS), "--count", "--profile", "arp"]) == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert lines[0] == "# link type 1"
    counts = [int(line.split()[0]) for line in lines[1:]]
    (arps,) = map(int, re.findall(r"\d+", printed.out))
    assert counts == [ALL, ALL, arps, ALL - arps]


# ---- Data that comes and goes ----


def test_pipe_is_read_as_data_arrives() -> None:
    """The first packet is printed before the second one is written."""
    with started("-r", "-") as process:
        assert process.stdin
        assert process.stdout
        for number, data in enumerate(frames(3)):
            process.stdin.write((HEADER if number == 0 else b"") + record(number, data))
            process.stdin.flush()
            assert b", length " in process.stdout.readline()
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait() == 0


def test_follow(tmp_path: Path) -> None:
    """A file that grows, by half a record too, is read on until an interrupt; the output is complete then."""
    source, output = tmp_path / "in", tmp_path / "out"
    made = [record(number, data) for number, data in enumerate(frames(4))]
    source.write_bytes(HEADER + made[0])
    with started("-r", source, "--follow", "-w", output) as process, source.open("ab", buffering=0) as growing:
        part = tmp_path / "out.part"
        wait_until(lambda: part.exists() and part.read_bytes() == HEADER + made[0])
        growing.write(made[1] + made[2] + made[3][:20])
        wait_until(lambda: part.read_bytes() == HEADER + b"".join(made[:3]))
        growing.write(made[3][20:])
        wait_until(lambda: part.read_bytes() == HEADER + b"".join(made))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr
        assert process.stderr.read() == b"pcapext: interrupted: 4 packets read, 4 selected\n"
    assert output.read_bytes() == HEADER + b"".join(made)
    assert not part.exists()


@pytest.mark.parametrize("name", ["out.pcap", "out.pcapng", "out.pcap.gz", "out.pcap.zst", "out.pcapng.lz4"])
def test_interrupt_completes_the_output(tmp_path: Path, name: str) -> None:
    output, part = tmp_path / name, tmp_path / f"{name}.part"
    # So much that even what a compressor holds back is not all, of bytes that it cannot pack.
    made = [record(number, os.urandom(1000)) for number in range(600)]
    with started("-r", "-", "-w", output) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(HEADER + b"".join(made) + made[0][:20])
        process.stdin.flush()
        wait_until(lambda: part.exists() and part.stat().st_size > 10_000)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        told = re.fullmatch(r"pcapext: interrupted: (\d+) packets read, (\d+) selected\n", process.stderr.read().decode())
        assert told
        assert told[1] == told[2] != "0"
    assert run("-r", output, "--count").stdout == f"{told[1]} packets\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_kill_leaves_the_old_output(tmp_path: Path) -> None:
    output = tmp_path / "out.pcap"
    output.write_bytes(b"precious")
    octets = HEADER + b"".join(record(number, data) for number, data in enumerate(frames(50)))
    with started("-r", "-", "-w", output) as process:
        assert process.stdin
        process.stdin.write(octets)
        process.stdin.flush()
        part = tmp_path / "out.pcap.part"
        # All of it: a write that is under way may be cut between two pages.
        wait_until(lambda: part.exists() and part.stat().st_size == len(octets))
        process.kill()
        process.wait()
    assert output.read_bytes() == b"precious"
    assert whole_records(part.read_bytes()) == 50
    # The next run is not in its way.
    assert run("-r", TUNNELS, "-w", output).returncode == 0
    assert output.read_bytes() == TUNNELS.read_bytes()
    assert not part.exists()


FULL_DISK = """
mount -t tmpfs -o size=64k none {folder} && cp {source} {folder}/in && echo precious > {folder}/out{suffix} &&
{python} -m pcapext filter -r {folder}/in {more} -w {folder}/out{suffix}; echo "status $?"; cat {folder}/out{suffix}; ls {folder}
"""


@pytest.mark.root
@pytest.mark.tools("unshare")
@pytest.mark.parametrize(
    ("suffix", "more"), [(".pcap", ""), (".pcapng", ""), (".pcap.gz", ""), (".pcap", "-j 1"), (".pcap", "-r {folder}/in")]
)
def test_full_disk(tmp_path: Path, suffix: str, more: str) -> None:
    source = tmp_path / "source.pcap"
    # Bytes that no format packs.
    source.write_bytes(HEADER + b"".join(record(number, os.urandom(1000)) for number in range(40)))
    folder = tmp_path / "full"
    folder.mkdir()
    more = more.format(folder=folder)
    script = FULL_DISK.format(folder=folder, source=source, suffix=suffix, python=sys.executable, more=more)
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, cwd=ROOT)
    out = f"{folder}/out{suffix}"
    assert done.stderr in (
        f"pcapext: {out}: No space left on device; what was written is in {out}.part\n",
        f"pcapext: {out}: No space left on device\n",  # when there was no room for a part of it
    )
    lines = done.stdout.split()
    assert lines[:3] == ["status", "1", "precious"]
    assert set(lines[3:]) <= {"in", f"out{suffix}", f"out{suffix}.part"}


def test_damage_in_the_middle(tmp_path: Path, capsys: Capsys) -> None:
    """What stands before it is not lost, and does not look complete."""
    source, output = tmp_path / "in.pcap", tmp_path / "out.pcap"
    made = [record(number, data) for number, data in enumerate(frames(20))]
    source.write_bytes(HEADER + b"".join(made[:10]) + struct.pack("<IIII", 10, 0, 0x7FFFFFFF, 60) + b"".join(made[10:]))
    offset = len(HEADER) + sum(map(len, made[:10]))
    assert main(["filter", "-r", str(source), "-w", str(output)]) == 1
    message = f"{source}: byte {offset}: a record of a packet with {0x7FFFFFFF} bytes, more than the snap length allows"
    assert capsys.readouterr().err == f"pcapext: {message}; what was written is in {output}.part\n"
    assert not output.exists()
    assert (tmp_path / "out.pcap.part").read_bytes() == HEADER + b"".join(made[:10])


def test_several_captures_of_which_one_is_cut(tmp_path: Path, capsys: Capsys) -> None:
    """The others are read all the same."""
    cut, output = tmp_path / "cut", tmp_path / "out"
    cut.write_bytes(TUNNELS.read_bytes()[:-1])
    assert main(["filter", "-r", str(cut), "-r", str(TUNNELS), "-w", str(output)]) == 1
    assert re.fullmatch(
        rf"pcapext: warning: {cut}: byte \d+: the file ends within a record of \d+ bytes or more\n", capsys.readouterr().err
    )
    assert whole_records(output.read_bytes()) == 2 * ALL - 1


def test_output_that_is_one_of_the_inputs(tmp_path: Path, capsys: Capsys) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_bytes(TUNNELS.read_bytes())
    assert main(["filter", "-r", str(first), "-r", str(second), "-w", str(second)]) == 1
    assert capsys.readouterr().err == f"pcapext: {second}: the output is the same file as the input\n"
    assert second.read_bytes() == TUNNELS.read_bytes()


# ---- Terminals ----


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    """There is a line after a second, and it is gone in the end. A pipe gets none."""
    terminal, name = pty.openpty()
    with started("-r", "-", "-w", "/dev/null", stderr=name) as process:
        os.close(name)
        assert process.stdin
        process.stdin.write(HEADER + record(0, bytes(60)))
        process.stdin.flush()
        shown = b""
        while b"/s" not in shown:
            shown += os.read(terminal, 1000)
        assert re.match(rb"\r100 B, \d+ B/s\x1b\[K", shown)
        process.stdin.close()
        assert process.wait() == 0
        assert os.read(terminal, 1000).endswith(b"\r\x1b[K")
    os.close(terminal)
