"""Writing records, in C, against the same in a few lines of Python; and descriptors that do not take all at once, or nothing."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

import pytest

from pcapext.engine import ffi, lib

SECOND = 10**9
LEAST, MOST = -(1 << 63), (1 << 63) - 1

# ---- Times ----

RESOLUTIONS = [*(10**n for n in range(20)), *(2**n for n in range(64))]
#: With these a time after 2038 fits 64 bits.
USUAL = [resolution for resolution in RESOLUTIONS if resolution <= SECOND]
OFFSETS = [0, 1, -1, 1_700_000_000, -1_700_000_000, 1 << 62, -(1 << 62), MOST, LEAST]


def nanoseconds(clock: tuple[int, int, int], ticks: int) -> int:
    """By the definition: rounded down, and held at the ends of the range."""
    resolution, unit, offset = clock
    seconds = Fraction(ticks >> 32) + Fraction((ticks & 0xFFFFFFFF) * unit, SECOND) if resolution == 0 else Fraction(ticks, resolution)
    return min(max((seconds + offset) * SECOND // 1, LEAST), MOST)


def some_ticks(random: Random) -> list[int]:
    return [0, 1, 999_999, (1 << 32) - 1, 1 << 32, 1_700_000_000 << 32 | 999_999_999, (1 << 63) - 1, 1 << 63, (1 << 64) - 1] + [
        random.getrandbits(random.randrange(1, 65)) for _ in range(10)
    ]


@pytest.mark.parametrize("resolution", [0, *RESOLUTIONS])
def test_times(resolution: int) -> None:
    random = Random(resolution)
    for unit in (1, 1000) if resolution == 0 else (0,):
        for offset in OFFSETS:
            clock = (resolution, unit, offset)
            given = ffi.new("struct clock *", clock)
            for ticks in some_ticks(random):
                assert lib.time_ns(given, ticks) == nanoseconds(clock, ticks), (clock, ticks)


# ---- Records ----


@dataclass(frozen=True, slots=True)
class Record:
    """A record in a buffer, which has any bytes before its packet and behind it. `interface` is None for a block without a packet."""

    time: int
    start: int
    data: int
    caplen: int
    end: int
    wirelen: int
    interface: int | None


class Buffer:
    """Records in a row, with something between some of them; and clocks of their interfaces. Where `sane`, times fit pcap."""

    def __init__(self, random: Random, count: int, *, blocks: bool = True, longest: int = 100, sane: bool = True) -> None:
        self.clocks = [(0, random.choice((1, 1000)), 0)] if random.random() < 0.4 else []
        while len(self.clocks) < random.randrange(1, 5):
            self.clocks.append((random.choice(USUAL if sane else RESOLUTIONS), 0, random.choice(OFFSETS[:5])))
        self.records = []
        at = 0
        for _ in range(count):
            at += random.choice((0, 0, 0, 7))
            caplen = random.choice((0, 1, 2, 3, 4, random.randrange(longest + 1)))
            data = at + random.choice((16, 24, 28))
            end = data + caplen + random.choice((0, 0, 4, 5))
            interface = None if blocks and random.random() < 0.2 else random.randrange(len(self.clocks))
            ticks = random.getrandbits(64)
            if sane and interface is not None:
                resolution, unit, offset = self.clocks[interface]
                seconds, fraction = random.randrange(2**31, 2**32), random.randrange(SECOND)
                if resolution == 0:
                    ticks = seconds << 32 | fraction // unit
                else:
                    ticks = (seconds - offset) * resolution + fraction * resolution // SECOND
            self.records.append(Record(ticks, at, data, caplen, end, random.getrandbits(32), interface))
            at = end
        self.octets = random.randbytes(at + 9)
        self.clocks_in_c = ffi.new("struct clock[]", self.clocks)
        self.records_in_c = ffi.new("struct record[]", [self._in_c(record) for record in self.records])

    @staticmethod
    def _in_c(record: Record) -> tuple[int, ...]:
        interface = lib.NOT_A_PACKET if record.interface is None else record.interface
        return (record.time, record.start, record.end, record.data, record.caplen, record.wirelen, interface)

    def selection(self, random: Random) -> list[int]:
        share = random.choice((0, 0.1, 0.5, 0.9, 1))
        return [index for index in range(len(self.records)) if random.random() < share]

    def raw(self, index: int) -> bytes:
        return self.octets[self.records[index].start : self.records[index].end]


def in_pieces(selected: list[int], capacity: int, convert: Any) -> tuple[bytes, int, int]:
    """All that a function converts with so little room at a time: the bytes, how many of the records, and the fault.

    The memory behind the room must stay as it is.
    """
    indexes = ffi.new("uint32_t[]", selected or 1)
    done, octets = 0, b""
    while True:
        output = ffi.new("uint8_t[]", b"\xee" * (capacity + 64))
        made = convert(indexes + done, len(selected) - done, output, capacity)
        assert made.length <= capacity
        assert bytes(ffi.buffer(output))[capacity : capacity + 64] == b"\xee" * 64
        octets += bytes(ffi.buffer(output, made.length))
        done += made.records
        if made.fault or made.records == 0:
            return octets, done, made.fault


def test_records_as_they_stand() -> None:
    for seed in range(150):
        random = Random(seed)
        buffer = Buffer(random, random.randrange(30))
        selected = buffer.selection(random)
        most = max((len(buffer.raw(index)) for index in selected), default=0)
        for capacity in (most, most + 1, most + 50, 100_000):

            def copy(*where: Any) -> Any:
                return lib.copy_records(buffer.octets, buffer.records_in_c, *where)  # noqa: B023

            octets, done, fault = in_pieces(selected, capacity, copy)
            assert (octets, done, fault) == (b"".join(map(buffer.raw, selected)), len(selected), 0)


def test_no_room() -> None:
    """For one byte less than a record takes, nothing is done."""
    buffer = Buffer(Random(1), 3, blocks=False)
    indexes = ffi.new("uint32_t[]", [1])
    output = ffi.new("uint8_t[]", 1000)
    size = len(buffer.raw(1))
    for capacity in (0, 1, size - 1, size):
        made = lib.copy_records(buffer.octets, buffer.records_in_c, indexes, 1, output, capacity)
        assert (made.records, made.length) == ((1, size) if capacity == size else (0, 0))
    interfaces = ffi.new("uint32_t[]", 4)
    caplen = buffer.records[1].caplen
    for pcapng, size in ((0, 16 + caplen), (1, 32 + caplen + -caplen % 4)):
        form = ffi.new("struct form *", (pcapng, 1, 1000, interfaces))
        for capacity in (0, 15, 16, size - 1, size):
            made = lib.convert_records(form, buffer.clocks_in_c, buffer.octets, buffer.records_in_c, indexes, 1, output, capacity)
            assert (made.records, made.length, made.fault) == ((1, size, 0) if capacity >= size else (0, 0, 0))


def converted(buffer: Buffer, index: int, pcapng: bool, unit: int, snaplen: int, interfaces: list[int]) -> bytes | int:
    """A record in another format, or why it cannot be."""
    record = buffer.records[index]
    if record.interface is None:
        return b""
    if record.caplen > snaplen:
        return int(lib.CONVERT_SNAPLEN)
    data = buffer.octets[record.data : record.data + record.caplen]
    clock = buffer.clocks[record.interface]
    time = nanoseconds(clock, record.time)
    if pcapng:
        if time < 0:
            return int(lib.CONVERT_TIME)
        ticks, size = time // unit, 32 + len(data) + -len(data) % 4
        head = (6, size, interfaces[record.interface], ticks >> 32, ticks & 0xFFFFFFFF, record.caplen, record.wirelen)
        return struct.pack("=7I", *head) + data + bytes(-len(data) % 4) + struct.pack("=I", size)
    if clock[:2] == (0, unit):  # nothing to convert, whatever it is
        seconds, fraction = record.time >> 32, record.time & 0xFFFFFFFF
    else:
        seconds, fraction = time // SECOND, time % SECOND // unit
    if not 0 <= seconds < 1 << 32:
        return int(lib.CONVERT_TIME)
    return struct.pack("=4I", seconds, fraction, record.caplen, record.wirelen) + data


@pytest.mark.parametrize("sane", [True, False])
@pytest.mark.parametrize("unit", [1, 1000])
@pytest.mark.parametrize("pcapng", [False, True])
def test_records_in_another_format(pcapng: bool, unit: int, sane: bool) -> None:
    faults = set()
    for seed in range(120):
        random = Random(f"{seed} {pcapng} {unit} {sane}")
        buffer = Buffer(random, random.randrange(30), sane=sane)
        selected = buffer.selection(random)
        interfaces = [random.getrandbits(32) for _ in buffer.clocks]
        snaplen = random.choice((1000, 100, 90))
        expected, done, why = b"", 0, 0
        for index in selected:
            one = converted(buffer, index, pcapng, unit, snaplen, interfaces)
            if isinstance(one, int):
                why = one
                break
            expected, done = expected + one, done + 1
        faults.add(why)
        numbers = ffi.new("uint32_t[]", interfaces)
        form = ffi.new("struct form *", (pcapng, unit, snaplen, numbers))

        def convert(*where: Any) -> Any:
            return lib.convert_records(form, buffer.clocks_in_c, buffer.octets, buffer.records_in_c, *where)  # noqa: B023

        for capacity in (135, 200, 100_000):
            assert in_pieces(selected, capacity, convert) == (expected, done, why), (seed, capacity)
    assert faults == ({0, lib.CONVERT_SNAPLEN} if sane else {0, lib.CONVERT_SNAPLEN, lib.CONVERT_TIME})


def test_times_of_records() -> None:
    for seed in range(50):
        random = Random(seed)
        buffer = Buffer(random, 20, blocks=False, sane=seed % 2 == 0)
        selected = buffer.selection(random)
        times = ffi.new("int64_t[]", [7] * (len(selected) + 1))
        indexes = ffi.new("uint32_t[]", selected or 1)
        lib.record_times(buffer.clocks_in_c, buffer.records_in_c, indexes, len(selected), times)
        records = [buffer.records[index] for index in selected]
        assert list(times) == [*(nanoseconds(buffer.clocks[record.interface or 0], record.time) for record in records), 7]


# ---- To descriptors ----


def write(descriptor: int, buffer: Buffer, selected: list[int]) -> int:
    indexes = ffi.new("uint32_t[]", selected or 1)
    return int(lib.write_records(descriptor, buffer.octets, buffer.records_in_c, indexes, len(selected)))


def test_written_to_a_file(tmp_path: Any) -> None:
    for seed in range(60):
        random = Random(seed)
        buffer = Buffer(random, random.choice((0, 1, 20, 300)))
        selected = buffer.selection(random)
        with open(tmp_path / "out", "wb") as file:
            assert write(file.fileno(), buffer, selected) == 0
        assert (tmp_path / "out").read_bytes() == b"".join(map(buffer.raw, selected))


@pytest.mark.parametrize("pieces", [1023, 1024, 1025, 2048, 5000])
def test_many_pieces(pieces: int, tmp_path: Any) -> None:
    """The system takes 1024 in one call. Every other record, so that each is a piece of its own."""
    buffer = Buffer(Random(pieces), 2 * pieces, longest=4)
    selected = list(range(0, 2 * pieces, 2))
    with open(tmp_path / "out", "wb") as file:
        assert write(file.fileno(), buffer, selected) == 0
    assert (tmp_path / "out").read_bytes() == b"".join(map(buffer.raw, selected))


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("share", [2, 1])
def test_pipe_with_a_slow_reader(blocking: bool, share: int) -> None:
    """It takes a part of what there is; where nothing is to wait, the engine waits itself."""
    buffer = Buffer(Random(share), 3000, longest=3000)
    selected = list(range(0, 3000, share))
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    found: list[bytes] = []

    def read() -> None:
        time.sleep(0.02)
        random = Random(1)
        while octets := os.read(reader, random.choice((1, 100, 5000, 70_000))):
            found.append(octets)

    thread = threading.Thread(target=read, daemon=True)
    expected = b"".join(map(buffer.raw, selected))
    assert len(expected) > 3 * 65536
    thread.start()
    assert write(writer, buffer, selected) == 0
    os.close(writer)
    thread.join()
    os.close(reader)
    assert b"".join(found) == expected


def test_what_cannot_be_written() -> None:
    """The errno comes back, at whichever record, and nobody is killed by a signal."""
    buffer = Buffer(Random(5), 2000)
    selected = list(range(0, 2000, 2))
    full = os.open("/dev/full", os.O_WRONLY)
    assert write(full, buffer, selected) == errno.ENOSPC
    assert write(full, buffer, []) == 0
    os.close(full)
    reader, writer = os.pipe()
    assert write(reader, buffer, selected) == errno.EBADF
    os.close(reader)
    assert write(writer, buffer, selected) == errno.EPIPE
    os.set_blocking(writer, False)
    assert write(writer, buffer, selected) == errno.EPIPE
    os.close(writer)
    assert write(-1, buffer, selected) == errno.EBADF


@pytest.mark.parametrize("blocking", [True, False])
def test_reader_that_goes_away(blocking: bool) -> None:
    buffer = Buffer(Random(6), 3000, longest=1000)
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)

    def read() -> None:
        os.read(reader, 1000)
        time.sleep(0.02)
        os.close(reader)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert write(writer, buffer, list(range(3000))) == errno.EPIPE
    thread.join()
    os.close(writer)


@pytest.mark.parametrize(
    ("ticks", "pcapng", "pcap"), [(SECOND - 1, False, False), (SECOND, True, True), ((1 + (1 << 32)) * SECOND, True, False)]
)
def test_first_and_last_time(ticks: int, pcapng: bool, pcap: bool) -> None:
    """Neither format has a time before 1970, pcap none from 2106 on. Here 1970 is one second after 0."""
    clock, interfaces = ffi.new("struct clock *", (SECOND, 0, -1)), ffi.new("uint32_t[]", 1)
    record, selected, output = ffi.new("struct record *", {"time": ticks}), ffi.new("uint32_t[]", 1), ffi.new("uint8_t[]", 100)
    for number, fits in ((1, pcapng), (0, pcap)):
        form = ffi.new("struct form *", (number, 1, 1000, interfaces))
        made = lib.convert_records(form, clock, b"", record, selected, 1, output, 100)
        assert (made.records, made.fault) == ((1, 0) if fits else (0, lib.CONVERT_TIME))
