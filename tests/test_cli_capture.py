"""`pcapext capture` as users see it: what it writes and prints is what came in, however it ends."""

from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest
from backports import zstd
from capturefiles import Packet, by_tshark, read
from everywhere import sample
from packets import EN10MB
from wire import LONGEST, MARKER, SHORTEST, Wire, seen

from pcapext.cli import main

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.tools("ip", "tcpdump")]

ROOT = Path(__file__).parent.parent
PCAPEXT = [sys.executable, "-m", "pcapext", "capture"]
#: Seconds after which what was waited for will not come any more.
PATIENCE = 30.0

#: Frames with and without tunnels, none of which has its VLAN tag taken off on the way.
FRAMES = [
    packet.data
    for packet in sample(300, 11, [EN10MB])
    if packet.captured == packet.length and SHORTEST <= packet.length <= LONGEST and seen(packet.data) == packet.data
]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with closing(Wire()) as wire:
        wire.do(subprocess.run, ["ip", "link", "set", "lo", "up"])
        yield wire


class Running:
    """A program that captures. `errors` is what it has written on standard error until now."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.errors = ""
        self.listening = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        assert self.listening.wait(PATIENCE), self.errors

    def _listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.errors += line.decode()
            if b"listening on" in line:
                self.listening.set()
        self.listening.set()

    def end(self, number: signal.Signals | None = None) -> bytes:
        """Wait until it has ended, after a signal if one is given: what it has written on standard output."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stdout
        output = b"" if self.process.stdout.closed else self.process.stdout.read()
        self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        return output

    @property
    def status(self) -> int | None:
        return self.process.poll()

    def counts(self) -> tuple[int, ...]:
        """Packets captured, received and dropped, as the last lines have them."""
        found = re.search(
            r"^(\d+) packets? captured\n(\d+) packets? received by filter\n(\d+) packets? dropped by kernel\n", self.errors, re.MULTILINE
        )
        assert found, self.errors
        return tuple(map(int, found.groups()))


@contextmanager
def started(wire: Wire, *arguments: object, command: Sequence[str] = PCAPEXT, device: str = "right", **how: IO[bytes]) -> Iterator[Running]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    process = wire.do(lambda: subprocess.Popen([*command, "-i", device, *map(str, arguments)], cwd=ROOT, **pipes))  # type: ignore[call-overload]
    with process:
        try:
            yield Running(process)
        finally:
            process.kill()


def captured(wire: Wire, *arguments: object, frames: Sequence[bytes] = FRAMES, device: str = "right") -> Running:
    """A capture of frames, ended by an interrupt."""
    with started(wire, *arguments, device=device) as running:
        wire.send(frames)
        wire.control.take()
        running.end(signal.SIGINT)
    return running


def frames_of(octets: bytes) -> list[bytes]:
    """What an independent reader finds in a capture, which must be whole. The marker is none of ours."""
    found = read(octets)
    assert found.reason is None
    return [packet.data for packet in found.packets if packet.data != MARKER]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


# ---- What is written ----


@pytest.fixture
def hung_up() -> Iterator[None]:
    """Terminals may end what is started, even where the tests themselves go on without (nohup)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hung_up")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_all_is_written(wire: Wire, tmp_path: Path, number: signal.Signals) -> None:
    """What an independent packet socket sees, though the signal comes at once; and the counts."""
    output = tmp_path / "out.pcap"
    with started(wire, "-w", output) as running:
        wire.send(FRAMES)
        running.end(number)
    wanted = wire.control.take()
    assert frames_of(output.read_bytes()) == wanted == FRAMES
    assert running.status == 0
    count = len(read(output.read_bytes()).packets)  # with the markers
    assert running.counts() == (count, count, 0)
    assert running.errors.startswith(
        "pcapext: listening on right, link-type EN10MB (Ethernet), snapshot length 262144 bytes\n" + f"{count} packets captured\n"
    )
    assert sorted(os.listdir(tmp_path)) == ["out.pcap"]


@pytest.mark.parametrize("target", ["classic", "ebpf"])
@pytest.mark.parametrize("expression", ["tcp", "udp port 53 or arp", "ip6 and not icmp6", "vlan", ""])
def test_tcpdump_beside_it_writes_the_same(wire: Wire, tmp_path: Path, expression: str, target: str) -> None:
    """The same header, the same packets: only the times are each one's own."""
    sent = [packet.data for packet in sample(400, 12, [EN10MB]) if SHORTEST <= len(packet.data) <= LONGEST and seen(packet.data)]
    mine, theirs = tmp_path / "mine.pcap", tmp_path / "theirs.pcap"
    with (
        started(wire, "-w", mine, "-t", target, expression) as running,
        started(wire, "--immediate-mode", "-B", "65536", "-w", theirs, expression, command=["tcpdump", "-Z", "root"]) as tcpdump,
    ):
        wire.send(sent)
        wire.control.take()
        running.end(signal.SIGINT)
        tcpdump.end(signal.SIGINT)
    assert mine.read_bytes()[:24] == theirs.read_bytes()[:24]
    packets, wanted = (read(path.read_bytes()).packets for path in (mine, theirs))
    assert [packet.data for packet in packets] == [packet.data for packet in wanted]
    assert [packet.wirelen for packet in packets] == [packet.wirelen for packet in wanted]
    assert len(packets) > 3
    assert running.counts() == tcpdump.counts()


def unzstd(octets: bytes) -> bytes:
    return bytes(zstd.decompress(octets))


@pytest.mark.parametrize(("name", "unpack"), [("out.pcapng", bytes), ("out.pcap.gz", gzip.decompress), ("out.pcapng.zst", unzstd)])
def test_formats(wire: Wire, tmp_path: Path, name: str, unpack: Callable[[bytes], bytes]) -> None:
    output = tmp_path / name
    captured(wire, "-w", output, "--time-stamp-precision", "nano", "not ether proto 0x88b5", frames=FRAMES[:50])
    octets = unpack(output.read_bytes())
    assert frames_of(octets) == FRAMES[:50]
    assert octets.startswith(bytes.fromhex("0a0d0d0a" if "pcapng" in name.lower() else "4d3cb2a1"))
    plain = tmp_path / f"plain{'.pcapng' if 'pcapng' in name.lower() else '.pcap'}"
    plain.write_bytes(octets)
    assert [packet.data for packet in by_tshark(plain)] == FRAMES[:50]


def test_standard_output(wire: Wire) -> None:
    with started(wire, "-w", "-") as running:
        wire.send(FRAMES[:50])
        octets = running.end(signal.SIGINT)
    assert frames_of(octets) == FRAMES[:50]


@pytest.mark.parametrize(
    ("arguments", "check"),
    [
        (["-s", "40"], lambda packets: all(len(packet.data) == min(packet.wirelen, 40) for packet in packets)),
        (["-Q", "out"], lambda packets: packets == ()),
        (["-Q", "in", "-p", "-B", "8192", "-n", "-I"][:-1], lambda packets: len(packets) > 50),
        (["--immediate-mode", "-B", "65536", "-j", "host"], lambda packets: len(packets) > 50),
        (["--program", "PROGRAM"], lambda packets: {packet.data[23] for packet in packets} == {17}),
        (["-O2", "-F", "FILE"], lambda packets: {packet.data[12:14] for packet in packets} == {b"\x08\x06"}),
    ],
)
def test_flags(wire: Wire, tmp_path: Path, arguments: list[str], check: Callable[[tuple[Packet, ...]], bool]) -> None:
    (tmp_path / "PROGRAM").write_bytes(subprocess.run(["tcpdump", "-ddd", "ip proto 17"], capture_output=True, check=True).stdout)
    (tmp_path / "FILE").write_text("arp # nothing else")
    output = tmp_path / "out.pcap"
    given = [str(tmp_path / word) if word.isupper() and word.isalpha() else word for word in arguments]
    captured(wire, "-w", output, *given)
    assert check(read(output.read_bytes()).packets)


def test_all_interfaces(wire: Wire, tmp_path: Path) -> None:
    """What comes in at one interface and goes out at the other; with -Q what comes in."""
    output = tmp_path / "out.pcap"
    captured(wire, "-y", "LINUX_SLL2", "-Q", "in", "-w", output, "not ether proto 0x88b5", device="any")
    found = read(output.read_bytes()).packets
    assert {packet.linktype for packet in found} == {276}
    assert [packet.data[20:] for packet in found] == [frame[14:] for frame in FRAMES]


# ---- How it ends ----


@pytest.mark.parametrize("count", [1, 20, 300])
def test_a_number_of_packets(wire: Wire, tmp_path: Path, count: int) -> None:
    output = tmp_path / "out.pcap"
    with started(wire, "-w", output, "-c", count, "not ether proto 0x88b5") as running:
        wire.send(FRAMES * 4)
        running.end()
    wire.control.take()
    assert frames_of(output.read_bytes()) == (FRAMES * 4)[:count]
    assert running.status == 0
    assert running.counts()[0] == count
    assert f"{count} packet{'s' if count > 1 else ''} captured\n" in running.errors


def test_a_duration(wire: Wire, tmp_path: Path) -> None:
    """It ends by itself, on a silent interface too."""
    output = tmp_path / "out.pcap"
    with started(wire, "-w", output, "--duration", "0.2") as running:
        running.end()
    assert running.status == 0
    assert running.counts() == (0, 0, 0)
    assert read(output.read_bytes()).packets == ()


def test_it_can_be_read_while_it_is_written(wire: Wire, tmp_path: Path) -> None:
    """With -U up to the last packet; and what a kill leaves is a whole capture."""
    output = tmp_path / "out.pcap"
    output.write_text("old")
    output.chmod(0o640)
    with started(wire, "-U", "-w", output, "not ether proto 0x88b5") as running:
        assert frames_of(output.read_bytes()) == []
        for end in (10, 20):
            wire.send(FRAMES[end - 10 : end])
            wait_until(lambda end=end: len(read(output.read_bytes()).packets) == end)  # type: ignore[misc]
            assert frames_of(output.read_bytes()) == FRAMES[:end]
        with started(wire, "-w", output) as other:
            other.end()
        assert (other.status, other.errors) == (1, f"pcapext: {output}: it is being written already\n")
        running.end(signal.SIGKILL)
    wire.control.take()
    assert frames_of(output.read_bytes()) == FRAMES[:20]
    assert output.stat().st_mode & 0o777 == 0o640


def test_compressed_it_can_be_read_while_it_is_written(wire: Wire, tmp_path: Path) -> None:
    output = tmp_path / "out.pcap.gz"
    with started(wire, "-U", "-w", output, "not ether proto 0x88b5") as running:
        wire.send(FRAMES[:10])
        wire.control.take()

        def so_far() -> list[bytes]:
            import zlib

            return [packet.data for packet in read(zlib.decompressobj(wbits=31).decompress(output.read_bytes())).packets]

        wait_until(lambda: so_far() == FRAMES[:10])
        running.end(signal.SIGINT)
    assert frames_of(gzip.decompress(output.read_bytes())) == FRAMES[:10]


def test_an_interface_that_is_deleted(tmp_path: Path) -> None:
    output = tmp_path / "out.pcap.zst"
    with closing(Wire()) as wire, started(wire, "-w", output, "not ether proto 0x88b5") as running:
        wire.send(FRAMES[:20])
        wire.do(subprocess.run, ["ip", "link", "delete", "right"])
        running.end()
    assert running.status == 1
    assert frames_of(unzstd(output.read_bytes())) == FRAMES[:20]
    assert running.counts()[0] == 20
    assert running.errors.splitlines()[-1] == "pcapext: right: The interface disappeared"


def test_a_second_interrupt(wire: Wire) -> None:
    """Where a reader does not read, an interrupt is not heeded before it does; a second one is."""
    with started(wire, "-w", "-", "-U") as running:
        wire.send(FRAMES * 6)
        wire.control.take()
        waits_in = Path(f"/proc/{running.process.pid}/wchan")
        wait_until(lambda: "pipe" in waits_in.read_text())
        for _ in range(int(PATIENCE)):
            running.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):  # it was the first, or taken for one with the first
                running.process.wait(1)
                break
    assert running.status == 130
    assert running.counts()[0] > 0


def test_signals_are_as_they_were(tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    assert main(["capture", "-i", "lo", "--duration", "0.05", "-w", str(tmp_path / "out.pcap"), "arp"]) == 0
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# ---- What is printed ----


def test_lines(wire: Wire) -> None:
    """Time, innermost addresses and ports, length; each at once with -l."""
    frame = bytes.fromhex("0200000000020200000000010800" + "4500002800000000401100000a0000010a000002" + "1389003500140000") + b"x" * 12
    with started(wire, "-l", "inner udp port 53") as running:
        assert running.process.stdout
        for _ in range(2):
            wire.send([frame])
            line = running.process.stdout.readline().decode()
            assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6} IP 10\.0\.0\.1\.5001 > 10\.0\.0\.2\.53: udp, length 54\n", line)
        assert running.end(signal.SIGINT) == b""
    assert running.counts() == (2, 2, 0)


def test_where_the_kernel_cannot_filter_it_is_said(wire: Wire) -> None:
    running = captured(wire, "link[4:2] = 6 and udp", device="any")
    assert running.errors.startswith("pcapext: note: pcapext filters the capture on all interfaces: ")
    assert 0 < running.counts()[0] < running.counts()[1]


@pytest.mark.parametrize("arguments", [["-l"], ["-U", "-w", "-"]])
def test_a_reader_that_goes(wire: Wire, arguments: list[str]) -> None:
    with started(wire, *arguments) as running:
        assert running.process.stdout
        running.process.stdout.close()
        wire.send(FRAMES[:1])
        running.end()
    wire.control.take()
    assert running.status == 1
    assert running.errors.splitlines()[-1] == "pcapext: standard output: Broken pipe"


@pytest.mark.parametrize(("flag", "device"), [("-D", None), ("-L", "right"), ("-L", "any"), ("-J", "right")])
def test_what_there_is_to_choose_from(wire: Wire, flag: str, device: str | None) -> None:
    """The lists are tcpdump's, without the descriptions of time stamps and what it says of its own printing."""
    arguments = [flag, *(["-i", device] if device else [])]

    def output(*command: str) -> str:
        run = wire.do(lambda: subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, cwd=ROOT))
        return run.stdout + run.stderr

    theirs = output("tcpdump")
    assert output(*PCAPEXT) == re.sub(r"(?m) \((Host|printing not supported)\)$", "", theirs)
    assert theirs.count("\n") >= 2


def test_the_number_of_an_interface(wire: Wire) -> None:
    listed = wire.do(lambda: subprocess.run(["tcpdump", "-D"], capture_output=True, text=True, check=True)).stdout
    number = next(line.split(".")[0] for line in listed.splitlines() if ".right " in line)
    running = captured(wire, "-c", "1", device=number)
    assert "listening on right," in running.errors


# ---- What goes wrong ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "nosuch"], "pcapext: nosuch: .*No such device.*"),
        (["-i", "99"], r"pcapext: interface number 99 is out of range, expected 1 to \d+"),
        (["-i", "right", "inner", "tcp", "por", "80"], r"pcapext: .*por.*\n  inner tcp por 80\n +\^+"),
        (["-i", "right", "-y", "LINUX_SLL"], "pcapext: right: .*"),
        (["-i", "nflog", "inner tcp"], r"pcapext: no extension term on link type NFLOG.*\n  inner tcp\n  \^+"),
        (["-i", "right", "-j", "sundial"], "pcapext: unknown type of time stamps 'sundial'"),
        (["-i", "right", "-F", "/no/such"], "pcapext: /no/such: No such file or directory"),
        (["-i", "right", "--program", "/no/such"], "pcapext: /no/such: No such file or directory"),
        (["-i", "right", "-w", "/no/such/file"], "pcapext: /no/such/file: No such file or directory"),
    ],
)
def test_errors(wire: Wire, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str) -> None:
    """One message, exit status 1, and what OUT held before is still there."""
    kept = tmp_path / "kept.pcap"
    kept.write_text("old")
    given = arguments if "-w" in arguments else ["-w", str(kept), *arguments]
    assert wire.do(main, ["capture", *given]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert re.fullmatch(f"{message}\n", written.err), written.err
    assert kept.read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: -i"),
        (["-L"], "the following arguments are required: -i"),
        (["-D", "-L"], "not allowed with"),
        (["-i", "lo", "--duration", "0"], "0 is out of range, expected more than 0 and at most 1000000000"),
        (["-i", "lo", "--duration", "nan"], "nan is out of range"),
        (["-i", "lo", "--duration", "soon"], "'soon' is no number"),
        (["-i", "lo", "-c", "0"], "0 is out of range, expected 1 or more"),
        (["-i", "lo", "-B", "0"], "0 is out of range, expected 1 to 2097151"),
        (["-i", "lo", "-s", "-1"], "-1 is out of range"),
        (["-i", "lo", "-Q", "up"], "invalid choice: 'up'"),
        (["-i", "lo", "--program", "x", "tcp"], "argument --program: not allowed with a filter"),
        (["-i", "lo", "--max-levels", "99", "inner tcp"], "max_levels"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["capture", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.tools("setpriv")
def test_no_privilege() -> None:
    """The message names what it takes."""
    run = subprocess.run(["setpriv", "--bounding-set=-net_raw", *PCAPEXT, "-i", "lo"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 1
    assert re.fullmatch("pcapext: lo: .*CAP_NET_RAW.*\n", run.stderr)


@pytest.mark.parametrize("output", ["/dev/full", "FULL"])
def test_a_full_disk(wire: Wire, tmp_path: Path, output: str) -> None:
    """A message that names the file. What is there is not taken for a whole capture, but what was written is there."""
    if output == "FULL":
        folder = tmp_path / "disk"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], check=True)
        output = str(folder / "out.pcap")
    try:
        with started(wire, "-U", "-w", output) as running:
            if running.status is None:
                wire.send(FRAMES)
            running.end()
        assert running.status == 1
        assert running.errors.splitlines()[-1] == f"pcapext: {output}: No space left on device"
        if output != "/dev/full":
            found = read(Path(output).read_bytes())
            assert [packet.data for packet in found.packets] == FRAMES[: len(found.packets)]
            assert (found.reason, running.counts()[0] > 0) == ("cut", True)
    finally:
        wire.control.take()
        if output != "/dev/full":
            subprocess.run(["umount", tmp_path / "disk"], check=True)
