"""Workers: what is written depends neither on how many there are nor on what they guess, in files made to mislead them.

A region is a megabyte; here it is 4 KiB, so that small files have many of them.
"""

from __future__ import annotations

import gzip
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from capturefiles import NANOSECONDS, SECOND, File, Packet, Pcapng, between, pcap, pcapng, read, several_sections

from pcapext import outputs, records, workers
from pcapext.bpf import JA, JEQ_K, LD_LEN, RET_K, U32, Instruction, Program
from pcapext.errors import CaptureError, FilterError, ProgramError
from pcapext.filtering import Filtered, count, filter_file, prepare
from pcapext.records import Chunk, PcapLayout, PcapngLayout, open_input
from pcapext.selection import Filter, Selector
from pcapext.workers import Run

#: Bytes of a region.
REGION = 4096
WORKERS = (1, 2, 4)
#: The number of workers, and whether the begin of each region is guessed, even where it is known already.
WAYS = [(number, guess) for number in WORKERS for guess in (False, True)]

#: What is filtered for. The lengths on the wire are known, so whether it holds is.
ODD = "len & 1 = 1"


def is_odd(packet: Packet) -> bool:
    return packet.wirelen % 2 == 1


@pytest.fixture(autouse=True)
def small_regions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small regions, and threads that get in each other's way as often as they can."""
    for module in (workers, records, outputs):
        monkeypatch.setattr(module, "CHUNK", REGION)
    monkeypatch.setattr(Chunk.__init__, "__defaults__", (REGION,))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def guess(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Tells whether all begins of regions are to be guessed, or only those that are not known when a worker takes them."""
    begin = workers._Source.__init__

    def never_settled(source: workers._Source, *arguments: Any) -> None:
        begin(source, *arguments)
        source.under_way = 1

    return lambda always: monkeypatch.setattr(workers._Source, "__init__", never_settled if always else begin)


# ---- Captures ----


def packet(data: bytes, number: int = 0, more: int = 0) -> Packet:
    return Packet(1_700_000_000 * SECOND + number * 1_000_000, len(data) + more, data)


def some(random: Random, count: int) -> list[Packet]:
    """Packets of everyday lengths."""
    return [packet(random.randbytes(random.choice((0, 1, 60, 61, 300, 1400))), number, number % 3) for number in range(count)]


def mixed_with(random: Random, payloads: Sequence[bytes]) -> list[Packet]:
    """Packets with these payloads, everyday packets between them."""
    made = []
    for payload in payloads:
        made += [payload, *(random.randbytes(random.randrange(200)) for _ in range(random.randrange(4)))]
    return [packet(data, number, number % 2) for number, data in enumerate(made)]


def records_inside(random: Random) -> list[Packet]:
    """Whole pcap files as payload, in both byte orders, cut and not: longer than regions."""
    inner = [pcap(some(random, 40), order).octets for order in "<>"]
    return mixed_with(random, [random.choice(inner)[random.choice((0, 24, 40)) : random.choice((None, -7))] for _ in range(30)])


def blocks_inside(random: Random) -> list[Packet]:
    """Pcapng blocks as payload, of interfaces that there are; whole files too, with sections and interfaces of other link types."""
    builder = Pcapng()
    builder.section()
    builder.interface(12)
    builder.interface(113)
    for each in some(random, 40):
        builder.packet(each, random.randrange(2))
        between(builder, random.randrange(7))
    whole = bytes(builder.octets)
    return mixed_with(random, [whole[random.choice((0, builder.places[3])) : random.choice((None, -4))] for _ in range(30)])


def zeros(random: Random) -> list[Packet]:
    return [packet(bytes(random.choice((0, 100, 5000))), number, random.randrange(2)) for number in range(60)]


def empty(random: Random) -> list[Packet]:
    """Packets of which nothing was captured."""
    return [packet(b"", number, random.randrange(100)) for number in range(1500)]


def long(random: Random) -> list[Packet]:
    """Packets longer than a region, or than several."""
    lengths = (REGION - 16, REGION, REGION + 1, 3 * REGION, 40_000, 10, 200)
    return [packet(random.randbytes(random.choice(lengths)), number, number % 2) for number in range(40)]


def backwards(random: Random) -> list[Packet]:
    """Times that jump by years."""
    return [each._replace(time=random.randrange(1 << 32) * SECOND) for each in some(random, 200)]


def at_borders(random: Random) -> list[Packet]:
    """In a pcap file a record ends exactly where each region does."""
    return [packet(random.randbytes(REGION // 16 - 16), number, random.randrange(2)) for number in range(16 * 6)]


PACKETS: dict[str, Callable[[Random], list[Packet]]] = {
    made.__name__: made for made in (records_inside, blocks_inside, zeros, empty, long, backwards, at_borders)
}


def with_interfaces(packets: Sequence[Packet]) -> File:
    """A pcapng file in which interfaces are described only when a packet needs one, with other blocks."""
    builder = Pcapng()
    builder.section()
    for number, each in enumerate(packets):
        if number % 25 == 0:
            builder.interface(1, 1 << 31, (6, 9)[number % 2])
        builder.packet(each, number % len(builder.interfaces))
        between(builder, number)
    return builder.file()


FILES: dict[str, Callable[[Sequence[Packet]], File]] = {
    "pcap": pcap,
    "pcap big": lambda packets: pcap(packets, ">"),
    "pcap 2 GB": lambda packets: pcap(packets, magic=NANOSECONDS, snaplen=0x7FFFFFFF),
    "pcapng": with_interfaces,
    "pcapng big": lambda packets: pcapng(packets, ">", snaplen=0),
}


def kept(file: File, limit: int | None = None, *, accepts: Callable[[Packet], bool] = is_odd, end: int | None = None) -> bytes:
    """What is to be written of a file in its own format: all records or blocks but those of packets that are not accepted; none
    behind the last packet of a limit; none that does not end up to `end`."""
    packets = dict(zip(file.holders, file.packets, strict=True))
    matching = 0
    octets = b"" if file.octets[:4] == b"\n\r\r\n" else file.octets[:24]
    for place, following in zip(file.places, file.places[1:], strict=False):
        if matching == limit or (end is not None and following > end):
            break
        if place in packets and not accepts(packets[place]):
            continue
        matching += place in packets
        octets += file.octets[place:following]
    return octets


def check(file: File, path: Path, made: bytes, limit: int | None = None) -> None:
    """What was written of a file, in its own format."""
    if ">" in path.name and file.octets[:4] != b"\n\r\r\n":  # in the order of this machine
        packets = [each for each in file.packets if is_odd(each)][:limit]
        made_of = read(made)
        assert (made_of.packets, made_of.stopped) == (tuple(packets), None)
    else:
        assert made == kept(file, limit)


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("kind", PACKETS)
def test_what_misleads(kind: str, form: str, tmp_path: Path, guess: Callable[[bool], None]) -> None:
    file = FILES[form](PACKETS[kind](Random(f"{kind} {form}")))
    source = tmp_path / ("in>" if "big" in form else "in")
    source.write_bytes(file.octets)
    odd = sum(map(is_odd, file.packets))
    assert odd > 9
    assert len(file.octets) > 5 * REGION
    target = tmp_path / ("out.pcapng" if "pcapng" in form else "out")
    for number, always in WAYS:
        guess(always)
        assert filter_file(source, target, ODD, workers=number) == Filtered(len(file.packets), odd)
        check(file, source, target.read_bytes())
        limit = odd * number // 5
        assert filter_file(source, target, ODD, workers=number, limit=limit).matching == limit
        check(file, source, target.read_bytes(), limit)


@pytest.mark.parametrize("form", ["pcap 2 GB", "pcapng", "pcapng big"])
@pytest.mark.parametrize("kind", ["records_inside", "long", "at_borders"])
def test_into_the_other_format(kind: str, form: str, tmp_path: Path) -> None:
    file = FILES[form](PACKETS[kind](Random(f"{kind} {form} other")))
    source, target = tmp_path / "in", tmp_path / ("out" if "pcapng" in form else "out.pcapng")
    source.write_bytes(file.octets)
    for number in WORKERS:
        filter_file(source, target, ODD, workers=number)
        reading = read(target.read_bytes())
        assert (reading.packets, reading.stopped) == (tuple(filter(is_odd, file.packets)), None)


# ---- Guesses ----


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("seed", range(6))
def test_wrong_guesses(seed: int, form: str, tmp_path: Path, guess: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that are anything: right, wrong, none."""
    random, guessed = Random(seed), list[int | None]()
    for layout in (PcapLayout, PcapngLayout):

        def anything(self: Any, chunk: Chunk, before: int, right: Callable[..., int | None] = layout.guess) -> int | None:
            wrong = random.randrange(before) if before else None
            guessed.append(random.choice((right(self, chunk, before), wrong, None)))
            return guessed[-1]

        monkeypatch.setattr(layout, "guess", anything)
    guess(True)
    file = FILES[form](records_inside(random) + some(random, 50))
    source, target = tmp_path / ("in>" if "big" in form else "in"), tmp_path / ("out.pcapng" if "pcapng" in form else "out")
    source.write_bytes(file.octets)
    for number in WORKERS:
        assert filter_file(source, target, ODD, workers=number).packets == len(file.packets)
        check(file, source, target.read_bytes())
    assert len(guessed) >= 3 * (len(file.octets) // REGION)


def bait() -> File:
    """A file whose payload holds packets of an interface that has none, of a link type for which a filter cannot be compiled."""
    inside = Pcapng()
    inside.section()
    inside.interface(1)
    inside.interface(12)
    for number in range(200):
        inside.packet(packet(bytes(50), number), 1)
    builder = Pcapng()
    builder.section()
    builder.interface(1)
    builder.interface(12)
    builder.packet(packet(bytes(inside.octets[inside.places[3] :])))
    for number in range(50):
        builder.packet(packet(bytes(51), number))
    return builder.file()


def test_filter_that_fails_for_a_guess_alone(tmp_path: Path, guess: Callable[[bool], None]) -> None:
    file, target = bait(), tmp_path / "out.pcapng"
    (tmp_path / "in").write_bytes(file.octets)
    for number, always in WAYS:
        guess(always)
        assert filter_file(tmp_path / "in", target, "not ether host 1:2:3:4:5:6", workers=number) == Filtered(51, 51)
        assert target.read_bytes() == file.octets


# ---- What is wrong ----


@pytest.mark.parametrize("number", [0, 1, 30, 31, 150, 298, 299])
@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_damaged(form: str, number: int, tmp_path: Path, guess: Callable[[bool], None]) -> None:
    """What is before the damage is written, and nothing behind it, to a file that is not the output."""
    file = FILES[form](some(Random(form), 300))
    place = file.holders[number]
    damaged = bytearray(file.octets)
    struct.pack_into("<I", damaged, place + (8 if form == "pcap" else 4), 0x7FFFFFFF)
    source, target, part = (tmp_path / name for name in ("in", f"out.{form}", f"out.{form}.part"))
    source.write_bytes(damaged)
    for count_of_workers, always in WAYS:
        guess(always)
        with pytest.raises(CaptureError, match=f"in: byte {place}: a (record|block) of .*2147483647"):
            filter_file(source, target, ODD, workers=count_of_workers)
        assert not target.exists()
        assert part.read_bytes() == kept(file, end=place)
        with pytest.raises(CaptureError, match=f"byte {place}:"):
            count(source, ODD, workers=count_of_workers)


def test_damaged_behind_what_is_wanted(tmp_path: Path) -> None:
    """What is behind the last packet of a limit is of no account, though a worker may have seen it."""
    file = pcap(some(Random(8), 300))
    damaged = bytearray(file.octets)
    odd = [place for place, each in zip(file.holders, file.packets, strict=True) if is_odd(each)]
    source, target = tmp_path / "in", tmp_path / "out"
    for number in WORKERS * 4:
        # In the same region, in the next one.
        for limit in (20, 100, len(odd) // 2):
            for place in (odd[limit], next(place for place in odd if place > odd[limit] + REGION)):
                damaged[:] = file.octets
                struct.pack_into("<I", damaged, place + 8, 0x7FFFFFFF)
                source.write_bytes(damaged)
                assert filter_file(source, target, ODD, workers=number, limit=limit).matching == limit
                assert target.read_bytes() == kept(file, limit)


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_limit_ends_before_the_next_input(form: str, tmp_path: Path) -> None:
    """Nothing of it is written, nor does it matter what is wrong with it, and what was counted depends on no worker."""
    file = pcap(some(Random(form), 20))
    target = tmp_path / f"out.{form}"
    source = tmp_path / "in"
    source.write_bytes(file.octets)
    odd = sum(map(is_odd, file.packets))
    filter_file(source, target, ODD, workers=1)
    expected = target.read_bytes()
    for number in WORKERS * 5:
        # For a pcap file all inputs are looked at first: its times are as fine as those of any.
        for others in ([file.octets], [source, source], [tmp_path / "none"])[: 2 + (form == "pcapng")]:
            assert filter_file([source, *others], target, ODD, workers=number, limit=odd) == Filtered(20, odd)
            assert target.read_bytes() == expected


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_cut_short(form: str, tmp_path: Path) -> None:
    """Wherever a file ends: a warning where that is within a record. Near a region's end above all."""
    file = FILES[form](some(Random(form), 60))
    source, target = tmp_path / "in", tmp_path / f"out.{form}"
    random = Random(form)
    near = {24 + REGION * number + more for number in (1, 2, 3) for more in (-1, 0, 1, 15, 40, 500, 1200)}
    for end in sorted({*near, *(random.randrange(200, len(file.octets)) for _ in range(30)), *file.places[40:50]}):
        source.write_bytes(file.octets[:end])
        place = max(place for place in file.places if place <= end)
        for number in WORKERS[:2]:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                assert filter_file(source, target, ODD, workers=number).packets == len(file.before(end))
            assert target.read_bytes() == kept(file, end=end)
            assert [str(each.message).partition(": the file ends")[0] for each in told] == [f"{source}: byte {place}"] * (place != end)


def at_call(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Do something when a region is read for the so many-th time, before it is."""
    preadv, calls, lock = os.preadv, [0], threading.Lock()

    def read(*arguments: Any) -> int:
        with lock:
            calls[0] += 1
            if calls[0] == number:
                act()
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", read)


def append(path: Path, octets: bytes) -> None:
    with path.open("ab") as file:
        file.write(octets)


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
@pytest.mark.parametrize("call", [1, 4])
def test_file_that_grows(form: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added before its last region is read is of it, by however much, and whatever it ended with before."""
    file = FILES[form](some(Random(form), 250))
    source, target = tmp_path / "in", tmp_path / f"out.{form}"
    for end in (file.places[120], file.places[120] + 7, file.places[121] - 1):
        for number in WORKERS:
            source.write_bytes(file.octets[:end])
            with monkeypatch.context() as patch:
                at_call(patch, call, partial(append, source, file.octets[end:]))
                assert filter_file(source, target, ODD, workers=number).packets == 250
            assert target.read_bytes() == kept(file)


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_file_that_shrinks(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it is written; where that ends within a record there is a warning."""
    file = FILES[form](some(Random(form), 250))
    source, target = tmp_path / "in", tmp_path / f"out.{form}"
    for end in (file.places[100], file.places[100] + 7, file.places[3]):
        for number in WORKERS:
            source.write_bytes(file.octets)
            with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                at_call(patch, 1, partial(os.truncate, source, end))
                assert filter_file(source, target, ODD, workers=number).packets == len(file.before(end))
            assert target.read_bytes() == kept(file, end=end)
            assert len(told) == (end not in file.places)


# ---- Several ----


def fed(octets: bytes) -> str:
    """The name of a pipe into which a thread writes."""
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as file:
            file.write(octets)

    threading.Thread(target=feed, daemon=True).start()
    return f"/dev/fd/{reader}"


def test_inputs_of_all_kinds(tmp_path: Path) -> None:
    random = Random(7)
    files = [pcap(some(random, 150)), with_interfaces(some(random, 150)), pcap(records_inside(random), ">"), pcapng(some(random, 90), ">")]
    files += [pcap(some(random, 100), magic=NANOSECONDS), several_sections([*some(random, 100)])]
    for name, file in zip("abc", files, strict=False):
        (tmp_path / name).write_bytes(file.octets)
    (tmp_path / "d").write_bytes(gzip.compress(files[3].octets))
    expected = tuple(filter(is_odd, (each for file in files for each in file.packets)))
    target = tmp_path / "out.pcapng"
    for number in WORKERS:
        pipe = fed(files[5].octets)
        origins = [*(tmp_path / name for name in "abcd"), bytearray(files[4].octets), pipe]
        assert filter_file(origins, target, ODD, workers=number).matching == len(expected)
        os.close(int(pipe.rpartition("/")[2]))
        reading = read(target.read_bytes())
        assert (reading.packets, reading.stopped) == (expected, None)


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("kind", ["records_inside", "long", "empty"])
def test_streams_are_as_files(kind: str, form: str, tmp_path: Path) -> None:
    file = FILES[form](PACKETS[kind](Random(f"{kind} {form} stream")))
    source, target = tmp_path / ("in>" if "big" in form else "in"), tmp_path / ("out.pcapng" if "pcapng" in form else "out")
    for number in WORKERS[:2]:
        filter_file(gzip.compress(file.octets, 1), target, ODD, workers=number)
        check(file, source, target.read_bytes())


def test_several_filters_at_once(tmp_path: Path) -> None:
    """Each has its own limit, and the run ends when all are full."""
    file = pcap(records_inside(Random(1)) + some(Random(2), 50))
    (tmp_path / "in").write_bytes(file.octets)
    for number in WORKERS:
        with Run([tmp_path / "in"], workers=number) as run:
            prepare(run, [(Filter(ODD), tmp_path / "odd"), (Filter(f"not {ODD}"), tmp_path / "even.pcapng"), (Filter(None), None)])
            assert run.run()
            assert run.packets == run.tasks[2].matching == len(file.packets)
        assert (tmp_path / "odd").read_bytes() == kept(file)
        assert read((tmp_path / "even.pcapng").read_bytes()).packets == tuple(each for each in file.packets if not is_odd(each))
        with Run([tmp_path / "in"], workers=number) as run:
            prepare(run, [(Filter(ODD), tmp_path / "odd"), (Filter(None), tmp_path / "all")], 12)
            assert run.run()
        assert (tmp_path / "odd").read_bytes() == kept(file, 12)
        assert (tmp_path / "all").read_bytes() == kept(file, 12, accepts=lambda packet: True)


# ---- Files read ahead ----


def compressed(octets: bytes, form: str) -> bytes:
    if form == "gz":
        return gzip.compress(octets, 1)
    return subprocess.run(["zstd" if form == "zst" else form, "-1", "-q", "-c"], input=octets, capture_output=True, check=True).stdout


class Ahead:
    """What workers keep of files that they read ahead: the most bytes there were, and how many jobs they were of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most = self.jobs = 0
        keep = workers.Run._keep

        def watch(run: Run, *arguments: Any) -> None:
            keep(run, *arguments)
            self.jobs += 1
            self.most = max(self.most, run._kept)

        monkeypatch.setattr(workers.Run, "_keep", watch)
        monkeypatch.setattr(workers, "_MOST_KEPT", most)


class Waiting:
    """A pipe that gives the first bytes at once, and the others when `until` holds."""

    def __init__(self, octets: bytes, first: int, until: Callable[[], bool], then: Callable[[], object] = lambda: None) -> None:
        self._reader, writer = os.pipe()
        self.name = f"/dev/fd/{self._reader}"

        def feed() -> None:
            with os.fdopen(writer, "wb", buffering=0) as file:
                file.write(octets[:first])
                for _ in range(2000):
                    if until():
                        break
                    time.sleep(0.005)
                then()
                file.write(octets[first:])

        self._thread = threading.Thread(target=feed)
        self._thread.start()

    def close(self) -> None:
        self._thread.join()
        os.close(self._reader)


@pytest.fixture(params=["gz", "zst", "lz4"])
def behind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[Path], list[File]]:
    """Compressed captures, to be read behind others."""
    random = Random(4)
    files = [pcap(some(random, 300)), pcap([], linktype=1), pcap(records_inside(random))]
    paths = [tmp_path / f"{number}.{request.param}" for number in range(3)]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(compressed(file.octets, request.param))
    return paths, files


@pytest.mark.tools("zstd", "lz4")
@pytest.mark.parametrize("most", [1, 10_000, 1 << 20])
@pytest.mark.parametrize("number", [2, 4])
def test_order_of_what_is_read_ahead(
    number: int, most: int, behind: tuple[list[Path], list[File]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first input gives nothing, the others are read, but not more than may be kept. The output has the order of the inputs."""
    ahead = Ahead(monkeypatch, most)
    paths, files = behind
    first = pcap(some(Random(1), 100))
    pipe = Waiting(first.octets, 100, lambda: ahead.jobs > 0)
    target = tmp_path / "out"
    everything = sum(len(file.packets) for file in (first, *files))
    odd = [each for file in (first, *files) for each in file.packets if is_odd(each)]
    assert filter_file([pipe.name, *paths], target, ODD, workers=number) == Filtered(everything, len(odd))
    pipe.close()
    assert read(target.read_bytes()).packets == tuple(odd)
    assert ahead.jobs > 0
    # A job more for each worker but the one that reads the pipe; none of them is of more than a region and the longest record.
    assert 0 < ahead.most < most + (number - 1) * 4 * REGION
    ahead.jobs = 0
    pipe = Waiting(first.octets, 100, lambda: ahead.jobs > 0)
    assert count([pipe.name, *paths], ODD, workers=number) == len(odd)
    pipe.close()
    for limit in (1, 30, 60, len(odd) - 1):
        filter_file([fed(first.octets), *paths], target, ODD, limit=limit, workers=number)
        assert read(target.read_bytes()).packets == tuple(odd[:limit])


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_all_kinds_ahead(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pcapng of both byte orders with everything in it; packets that are corrected; outputs in another format."""
    ahead = Ahead(monkeypatch, 1 << 20)
    random = Random(3)
    made = [with_interfaces(some(random, 200)), pcapng(some(random, 200), ">"), several_sections([*some(random, 100)])]
    if form == "pcap":
        made = [pcap(some(random, 200), ">"), pcap(some(random, 200), magic=NANOSECONDS)]
    usb = Pcapng(">")
    usb.section()
    usb.interface(220)
    for number in range(100):
        usb.packet(packet(random.randbytes(64) + bytes(number), number))
    made += [usb.file()] if form == "pcapng" else []
    inputs = [gzip.compress(file.octets, 1) for file in made]
    target, alone = tmp_path / f"out.{form}", tmp_path / f"alone.{form}"
    first = pcap(some(Random(1), 100), magic=NANOSECONDS)
    (tmp_path / "first").write_bytes(first.octets)
    filter_file([tmp_path / "first", *inputs], alone, ODD, workers=1)
    assert ahead.jobs == 0
    pipe = Waiting(first.octets, 100, lambda: ahead.jobs > 20)
    filter_file([pipe.name, *inputs], target, ODD, workers=4)
    pipe.close()
    assert ahead.jobs > 20
    assert target.read_bytes() == alone.read_bytes()


def test_errors_of_what_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told when it is their turn, and what stands before is written: all of it, and nothing else."""
    ahead = Ahead(monkeypatch, 1 << 20)
    first, second = pcap(some(Random(1), 100)), pcap(some(Random(2), 200))
    damaged = bytearray(gzip.compress(second.octets, 1))
    damaged[-5] ^= 1
    (tmp_path / "second").write_bytes(damaged)
    pipe = Waiting(first.octets, 100, lambda: ahead.jobs > 0)
    with pytest.raises(CaptureError, match="second: the gzip data is damaged"):
        filter_file([pipe.name, tmp_path / "second", tmp_path / "second"], tmp_path / "out", ODD, workers=4)
    pipe.close()
    assert read((tmp_path / "out.part").read_bytes()).packets == (*kept_packets(first), *kept_packets(second))
    ahead.jobs = 0
    pipe = Waiting(first.octets[:-3] + b"\xff" * 20, 100, lambda: ahead.jobs > 0)
    with pytest.raises(CaptureError, match=rf"{pipe.name}: byte \d+: a record of a packet with 4294967295 bytes"):
        filter_file([pipe.name, tmp_path / "second"], tmp_path / "out", ODD, workers=2)
    pipe.close()


def kept_packets(file: File) -> tuple[Packet, ...]:
    return tuple(filter(is_odd, file.packets))


def test_place_of_an_error_in_what_was_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = Ahead(monkeypatch, 1 << 20)
    first, second = pcap(some(Random(1), 100)), with_another_link_type(60)
    pipe = Waiting(first.octets, 100, lambda: ahead.jobs > 0)
    with pytest.raises(CaptureError, match=rf"byte {second.holders[60]}: a packet of link type RAW, and .*/out is of EN10MB"):
        filter_file([pipe.name, gzip.compress(second.octets)], tmp_path / "out", workers=2)
    pipe.close()


def test_interrupt_with_something_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands behind an input that did not end is not written."""
    ahead = Ahead(monkeypatch, 1 << 20)
    first, second = pcap(some(Random(1), 100)), pcap(some(Random(2), 200))
    done = threading.Event()
    pipe = Waiting(first.octets, first.places[50], lambda: ahead.jobs > 0, lambda: (interrupt(), done.wait()))
    with pytest.raises(KeyboardInterrupt):
        filter_file([pipe.name, gzip.compress(second.octets)], tmp_path / "out", ODD, workers=2)
    done.set()
    pipe.close()
    written = read((tmp_path / "out").read_bytes()).packets
    assert written == kept_packets(first)[: len(written)]


# ---- Filters that fail ----


def with_another_link_type(others: int) -> File:
    """Ethernet, and from some place on another link type."""
    builder = Pcapng()
    builder.section()
    builder.interface(1)
    builder.interface(12)
    for number in range(200):
        builder.packet(packet(bytes(100 + number), number), int(number >= others))
    return builder.file()


@pytest.mark.parametrize("others", [1, 60, 199])
def test_filter_that_fails_for_a_later_link_type(others: int, tmp_path: Path, guess: Callable[[bool], None]) -> None:
    """What is before, but for packets of the same region, is written: as much however it is read."""
    file = with_another_link_type(others)
    source, target, part = tmp_path / "in", tmp_path / "out.pcapng", tmp_path / "out.pcapng.part"
    source.write_bytes(file.octets)
    parts = set()
    for number, always in WAYS:
        guess(always)
        with pytest.raises(FilterError, match="ethernet addresses supported only on"):
            filter_file(source, target, "not ether host 1:2:3:4:5:6", workers=number)
        assert not target.exists()
        parts.add(part.read_bytes() if part.exists() else b"")
    assert len(parts) == 1
    written = parts.pop()
    assert file.octets[: file.holders[others]].startswith(written)
    assert len(written) > file.holders[others] - 2 * REGION


def test_program_that_does_not_end(tmp_path: Path) -> None:
    program = Program((Instruction(JA, k=U32), Instruction(RET_K)))
    (tmp_path / "in").write_bytes(pcap(some(Random(1), 3)).octets)
    for number in WORKERS:
        with pytest.raises(ProgramError, match="the program was stopped"):
            filter_file(tmp_path / "in", tmp_path / "out", program, workers=number)
        assert not (tmp_path / "out").exists()


def test_program_that_does_not_end_for_a_late_packet(tmp_path: Path) -> None:
    """By then packets are asked while they are found."""
    loop = (Instruction(LD_LEN), Instruction(JEQ_K, 0, 1, 61), Instruction(JA, k=U32), Instruction(RET_K, k=U32))
    packets = [Packet(number * SECOND, 61 if number == 350 else 60, bytes(60)) for number in range(400)]
    (tmp_path / "in").write_bytes(pcap(packets).octets)
    for number in WORKERS:
        with pytest.raises(ProgramError, match="the program was stopped"):
            count(tmp_path / "in", Program(loop), workers=number)


def test_packets_are_asked_when_they_are_found() -> None:
    """From a chunk's second filling on; and what is selected is what is selected afterwards."""
    packets = some(Random(1), 400)
    input, chunk, selector = open_input(pcap(packets).octets), Chunk(), Selector(Filter(ODD))
    asked, matching = [], 0
    while portion := input.read(chunk):
        for batch in portion.batches:
            selected, afterwards = selector.select(batch), Selector(Filter(ODD)).select(batch)
            assert list(selected.indexes[0 : selected.length]) == list(afterwards.indexes[0 : afterwards.length])
            assert selected.packets == afterwards.packets
            asked.append(batch.early is not None)
            matching += selected.packets
    assert matching == sum(map(is_odd, packets))
    assert len(asked) > 2
    assert asked == [False] + [True] * (len(asked) - 1)


def test_error_of_a_worker_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: nobody waits for a worker that is gone."""
    (tmp_path / "in").write_bytes(pcap(some(Random(1), 300)).octets)
    at_call(monkeypatch, 5, lambda: 1 / 0)
    for number in WORKERS:
        with pytest.raises(ZeroDivisionError):
            filter_file(tmp_path / "in", tmp_path / "out", ODD, workers=number)
        at_call(monkeypatch, 5, lambda: 1 / 0)


# ---- Interrupts ----


def interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
@pytest.mark.parametrize("number", WORKERS)
def test_interrupt_while_a_pipe_is_read(form: str, number: int, tmp_path: Path) -> None:
    """What came before is in the output, which is complete; part of a record is left out, without a warning."""
    file = FILES[form](some(Random(form), 50))
    target, part = tmp_path / f"out.{form}", tmp_path / f"out.{form}.part"
    end = file.places[45] + 5
    reader, writer = os.pipe()
    expected = kept(file, end=end)

    def feed() -> None:
        os.write(writer, file.octets[:end])
        for _ in range(2000):
            if part.exists() and part.stat().st_size == len(expected):
                break
            time.sleep(0.005)
        interrupt()

    thread = threading.Thread(target=feed)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        filter_file(f"/dev/fd/{reader}", target, ODD, workers=number)
    thread.join()
    os.close(reader)
    os.close(writer)
    assert target.read_bytes() == expected
    assert not part.exists()


@pytest.mark.parametrize("number", WORKERS)
def test_interrupt_in_a_file(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output ends with a whole record, nothing before is missing, and no worker is left at work."""
    file = pcap(records_inside(Random(1)) * 4)
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(file.octets)
    went_on = []
    at_call(monkeypatch, 9, lambda: (interrupt(), time.sleep(0.05), went_on.append(True)))
    with pytest.raises(KeyboardInterrupt):
        filter_file(source, target, ODD, workers=number)
    assert went_on
    reading = read(target.read_bytes())
    assert reading.stopped is None
    expected = tuple(filter(is_odd, file.packets))
    assert 0 < len(reading.packets) < len(expected)
    assert reading.packets == expected[: len(reading.packets)]


def test_one_compressed_file_is_for_one_worker(tmp_path: Path) -> None:
    """There is nothing that a second one would not wait for; unless it is asked for."""
    plain, packed = Path(__file__).parent.parent / "examples" / "plain.pcap", tmp_path / "packed.pcap.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for origins, asked, wanted in (([packed], None, 1), ([packed], 3, 3), ([plain], None, None), ([packed, packed], None, None)):
        with Run(origins, workers=asked) as run:
            run.first_layout()
            assert run._workers == (wanted or min(workers.usable_processors(), workers._MOST_WORKERS))
