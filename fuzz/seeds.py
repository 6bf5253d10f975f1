"""Makes the seeds that fuzzing starts from: `python fuzz/seeds.py`, in the root of the repository, writes fuzz/corpus.

In:  the filters and captures of the tests.
Out: one file a seed, as the heads of the targets say. What fuzzing found, fuzz/regressions, is not touched.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pcapext
from pcapext.encapsulation import LINK_LAYERS

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

import capturefiles  # noqa: E402  # found only now
import packets as generated  # noqa: E402

EXPRESSIONS = (
    "tcp port 80",
    "udp and not net 10.0.0.0/8",
    "vlan 5 and ip6 host 2001:db8::1",
    "ip[0] & 0xf != 5 or ip[8] / 3 > 4 or len * 2 < 100",
    "tcp[tcpflags] & (tcp-syn | tcp-ack) = tcp-syn",
    "ip6 protochain 6",
    "geneve and icmp",
    "ether[ip[2:2] - (ip[0] << 2) % 7] ^ 3 = 1",
)


def programs() -> Iterator[bytes]:
    packets = capturefiles.traffic(len(EXPRESSIONS))
    for expression, packet in zip(EXPRESSIONS, packets, strict=True):
        program = pcapext.compile(expression)
        octets = b"".join(struct.pack("=HBBI", i.code, i.jt, i.jf, i.k) for i in program)
        if len(program) <= 64:
            yield struct.pack("=B", len(program)) + octets + struct.pack("=I", packet.wirelen) + packet.data[:80]
    # Shaped ones: every opcode once, with k on both sides of what it may be.
    for k in (0, 1, 15, 16, 31, 32):
        for begin in range(0, 49, 7):
            octets = b"".join(struct.pack("=HBBI", each % 49, 0, 1, k) for each in (6, 9, *range(begin, begin + 7), 47, 48, 48, 48, 48, 48))
            yield struct.pack("=B", 128 + len(octets) // 8) + octets + struct.pack("=I", 60) + bytes(range(60))
    # Jumps to where they stand, and up to two instructions before; of what is a loop, programs.c runs few, so these are chosen ones.
    for k in (1, 2, 3):
        octets = b"".join(struct.pack("=HBBI", *each) for each in ((0, 0, 0, 1), (7, 0, 0, 0), (5, 7, 7, k), (6, 0, 0, 1)))
        seeds = (struct.pack("=B", 4) + octets + struct.pack("=I", number) for number in count())
        yield next(seed for seed in seeds if fnv(seed) >> 25 == 0)


def fnv(octets: bytes) -> int:
    total = 2166136261
    for octet in octets:
        total = (total ^ octet) * 16777619 & 0xFFFFFFFF
    return total


def walk() -> Iterator[bytes]:
    """Packets of every nesting, for the tables in the order of tables.py: two for each link type."""
    for index, layer in enumerate(LINK_LAYERS):
        for packet in generated.packets(12, seed=index, linktypes=[layer.linktype]):
            yield struct.pack("=B", 2 * index + 1) + packet.data


def captures() -> Iterator[bytes]:
    packets = [packet._replace(data=packet.data[:40]) for packet in capturefiles.traffic(40) if packet.data]
    mixed = [packet._replace(linktype=(1, 113)[number % 2]) for number, packet in enumerate(packets)]
    for number, form in zip(count(), (*capturefiles.FORMS.values(), *capturefiles.MIXED_FORMS.values()), strict=False):
        for amount in (2, 12):
            octets = form((mixed if form in capturefiles.MIXED_FORMS.values() else packets)[:amount]).octets
            swapped = octets[:4] in (b"\xa1\xb2\xc3\xd4", b"\xa1\xb2\x3c\x4d", b"\xa1\xb2\xcd\x34")
            ng = octets[:4] == b"\x0a\x0d\x0d\x0a"
            longer = octets[:4] in (b"\xa1\xb2\xcd\x34", b"\x34\xcd\xb2\xa1")
            lengths = 0 if ng else {(2, 4): 0, (2, 3): 2}.get(struct.unpack(">HH" if swapped else "<HH", octets[4:8]), 1)
            plan = (ng | number % 2 << 1, swapped | lengths << 1 | longer << 4, 7 * number % 256, number, number, number, number, 0)
            yield bytes(each % 256 for each in plan) + octets[0 if ng else 24 :]
    many = capturefiles.pcap([packet._replace(data=packet.data[:1]) for packet in packets] * 2).octets[24:]
    yield bytes((0, 0, 99, 15, 20, 3, 0, 5)) + many


if __name__ == "__main__":
    shutil.rmtree(HERE / "corpus", ignore_errors=True)
    for name, seeds in (("programs", programs()), ("captures", captures()), ("walk", walk())):
        folder = HERE / "corpus" / name
        folder.mkdir(parents=True)
        for seed in seeds:
            (folder / hashlib.sha1(seed).hexdigest()[:12]).write_bytes(seed)
