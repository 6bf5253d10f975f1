"""Sample captures: as many packets as wanted, of a mix like that of a busy link, always the same ones.

In:  what a capture is to hold.
Out: a file in build/bench, made when it is not there or was made otherwise: pcap, EN10MB, microseconds, little endian.

The packets are those of a pool, in another order each time around, one every 10 µs. A pool has 10,000 packets, and so has every
capture a multiple of that: the shares below are exact.
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from random import Random

from benchmarks import frames
from benchmarks.frames import ARP, GRE, IPIP, IPV4, IPV6, MPLS, OUTER, SERVICE_VLAN, TCP, UDP, VLAN

FOLDER = Path(__file__).parent.parent / "build" / "bench"

ICMP, ICMP6, IPV6_IN_IP = 1, 58, 41

#: What a pool is made of: how many packets of which protocol and ports (of the server). Together they are the pool.
TRAFFIC = (
    (1100, TCP, (80,)),
    (4200, TCP, (443,)),
    (1300, TCP, (22, 25, 993, 3389, 8080)),
    (700, UDP, (53,)),
    (1900, UDP, (443,)),
    (500, UDP, (123, 27015, 40000, 51820)),
    (150, ICMP, (0,)),
    (150, ARP, (0,)),
)
POOL = sum(number for number, *_ in TRAFFIC)
#: Of them are in IPv6, in percent.
IN_IPV6 = 20

#: Lengths of frames by their mean: how often each range occurs. Acknowledgements, something between, full frames.
LENGTHS = {
    540: ((560, 60, 130), (215, 131, 1400), (225, 1514, 1514)),
    200: ((790, 60, 130), (190, 131, 900), (20, 1514, 1514)),
}
SHORTEST = 60

EPOCH, STEP = 1_790_000_000, 10  # seconds, microseconds


@dataclass(frozen=True, slots=True)
class Capture:
    """What a capture holds: so many packets, how long they are in the mean, and how many in a hundred are in tunnels."""

    name: str
    packets: int
    mean: int = 540
    tunnelled: int = 0

    def __post_init__(self) -> None:
        if self.packets % POOL or self.mean not in LENGTHS or not 0 <= self.tunnelled <= 100:
            raise ValueError(f"no capture is like this: {self}")

    def file(self, folder: Path = FOLDER) -> Path:
        """Where it is. It is made now if it is not there, or was made from other parameters or by other code."""
        file, stamp, part = (folder / f"{self.name}.{suffix}" for suffix in ("pcap", "stamp", "part"))
        sources = b"".join(Path(source).read_bytes() for source in (__file__, frames.__file__))
        made = f"{self} {hashlib.sha256(sources).hexdigest()}\n"
        if not file.exists() or not stamp.exists() or stamp.read_text() != made:
            folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as output:
                output.writelines(self.parts())
            part.replace(file)
            stamp.write_text(made)
        return file

    def compressed(self, program: str, suffix: str) -> Path:
        """The file as this program compresses it, anew when the capture was made anew."""
        file = self.file()
        to = file.with_name(file.name + suffix)
        if not to.exists() or to.stat().st_mtime < file.stat().st_mtime:
            part = file.with_suffix(".part")
            with part.open("wb") as output:
                subprocess.run([program, "-c", file], stdout=output, check=True)
            part.replace(to)
        return to

    def parts(self) -> Iterator[bytes]:
        """The file's header, and then the records of a whole pool at a time."""
        random = Random(self.packets)
        packets = [struct.pack("<II", len(packet), len(packet)) + packet for packet in self.pool(random)]
        times = count(EPOCH * 1_000_000, STEP)
        time_of = struct.Struct("<II").pack
        yield struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
        for _ in range(self.packets // POOL):
            random.shuffle(packets)
            yield b"".join(
                [part for packet, time in zip(packets, times, strict=False) for part in (time_of(*divmod(time, 1_000_000)), packet)]
            )

    def pool(self, random: Random) -> list[bytes]:
        """All the different frames."""
        weights, starts, ends = zip(*LENGTHS[self.mean], strict=True)
        ranges = list(zip(starts, ends, strict=True))
        tunnels = cycle(TUNNELS)
        pool = []
        for number, protocol, ports in TRAFFIC:
            for place in range(number):
                tunnel = next(tunnels) if place * self.tunnelled % 100 < self.tunnelled else "none"
                packet = Packet(
                    protocol,
                    server=random.choice(ports),
                    client=random.randrange(32768, 61000),
                    answer=random.random() < 0.5,
                    ipv6=random.randrange(100) < IN_IPV6,
                    # ARP is only where there is Ethernet.
                    tunnel="vxlan" if protocol == ARP and tunnel != "none" else tunnel,
                )
                length = random.randint(*random.choices(ranges, weights)[0])
                pool.append(packet.frame(length, random))
        return pool


@dataclass(frozen=True, slots=True)
class Packet:
    """What a frame is made of, but for its length and what is drawn by lot."""

    protocol: int
    server: int
    client: int
    answer: bool
    ipv6: bool
    tunnel: str

    def frame(self, length: int, random: Random) -> bytes:
        """It as a frame so long, or as long as its headers need."""
        addresses = random.randbytes(6)
        needed = len(self.around(b"", addresses))
        room = max(0, length - needed)
        # Where DNS is looked for, it is found, without a record. Half of it compresses well, as on a link where half is encrypted.
        payload = bytes(12) + random.randbytes(room // 2) + frames.PAYLOAD * (room // 2 // len(frames.PAYLOAD) + 1)
        return self.around(payload[:room], addresses).ljust(SHORTEST, b"\0")

    def around(self, payload: bytes, addresses: bytes) -> bytes:
        """The frame with this payload; hosts are of 10.0.0.0/8 or 2001:db8::/32, told by the six bytes."""
        source, target = (self.server, self.client) if self.answer else (self.client, self.server)
        match self.protocol:
            case frames.ARP:
                packet, ethertype = frames.arp(_ipv4(addresses)), ARP
            case frames.TCP:
                packet, ethertype = self.internet(TCP, frames.tcp(target, payload, source), addresses)
            case frames.UDP:
                packet, ethertype = self.internet(UDP, frames.udp(target, payload, source), addresses)
            case _:
                echo = struct.pack("!BBHHH", 128 if self.ipv6 else 8, 0, 0, source, 1)
                packet, ethertype = self.internet(ICMP6 if self.ipv6 else ICMP, echo + payload, addresses)
        return frames.ethernet(*_in_tunnel(self.tunnel, ethertype, packet))

    def internet(self, protocol: int, payload: bytes, addresses: bytes) -> tuple[bytes, int]:
        if self.ipv6:
            return frames.ipv6(protocol, payload, _ipv6(addresses)), IPV6
        return frames.ipv4(protocol, payload, _ipv4(addresses)), IPV4


def _ipv4(addresses: bytes) -> bytes:
    return b"\x0a" + addresses[:3] + b"\x0a" + addresses[3:]


def _ipv6(addresses: bytes) -> bytes:
    return bytes.fromhex("20010db8") + addresses[:3].rjust(12, b"\0") + bytes.fromhex("20010db8") + addresses[3:].rjust(12, b"\0")


TUNNELS = ("vxlan", "gre", "geneve", "ipip", "gtpu", "mpls", "vxlan", "vlan-gre", "qinq-vxlan", "gtpu")


def _in_tunnel(name: str, ethertype: int, packet: bytes) -> tuple[int, bytes]:
    """The packet in a tunnel, with the EtherType of what is outermost then."""
    match name:
        case "none":
            return ethertype, packet
        case "vxlan":
            return IPV4, frames.ipv4(UDP, frames.vxlan(42, frames.ethernet(ethertype, packet)), OUTER)
        case "geneve":
            return IPV4, frames.ipv4(UDP, frames.geneve(42, frames.ethernet(ethertype, packet)), OUTER)
        case "gre":
            return IPV4, frames.ipv4(GRE, struct.pack("!HH", 0, ethertype) + packet, OUTER)
        case "ipip":
            return IPV4, frames.ipv4(IPIP if ethertype == IPV4 else IPV6_IN_IP, packet, OUTER)
        case "gtpu":
            return IPV4, frames.ipv4(UDP, frames.gtpu(7, packet), OUTER)
        case "mpls":
            return MPLS, frames.labels(100, 200, payload=packet)
        case "vlan-gre":
            return VLAN, frames.tag(10, *_in_tunnel("gre", ethertype, packet))
        case "qinq-vxlan":
            return SERVICE_VLAN, frames.tag(10, VLAN, frames.tag(20, *_in_tunnel("vxlan", ethertype, packet)))
    raise ValueError(f"no tunnel {name}")


MILLION = 1_000_000
PLAIN_MIX = Capture("plain", 2 * MILLION)
TUNNELS_MIX = Capture("tunnels", 2 * MILLION, tunnelled=40)
#: For peers that take long, and to be compressed.
SMALL = Capture("small", 100_000)
HALF = Capture("half", MILLION // 2)
#: For how time and memory grow; the first has no packets.
GROWING = tuple(Capture(f"growing-{packets}", packets, mean=200) for packets in (0, 10_000, 100_000, MILLION, 10 * MILLION))
