"""What programs cost: how many instructions they have, and how many of them run on the packets of frames.py.

In:  expressions.
Out: a line for each program, a block of lines for each expression, and the whole table of tests/golden/counts.txt.

`python -m benchmarks.counts` writes that file anew; look at the difference before you keep it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pcapext
from benchmarks import BENCHMARKS
from benchmarks.frames import NAMES, frames
from pcapext import FilterError, Program
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.machine import run

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "counts.txt"

#: The targets whose programs are counted.
TARGETS = ("flowkeys", "classic")

#: Expressions by link type, one a line.
EXPRESSIONS = {
    "EN10MB": """\
inner ip
inner ip6
inner arp
inner tcp
inner udp
inner icmp
inner icmp6
inner sctp
inner esp
inner proto 47
inner ether proto 0x88cc
inner host 10.0.0.1
inner src host 10.0.0.1
inner ip6 host 2001:db8::1
inner arp host 10.0.0.1
inner net 10.0.0.0/8
inner ip6 net 2001:db8::/32
inner port 80
inner tcp port 80
inner tcp dst port 80
inner tcp port 80 or 443
inner udp port 53
inner tcp portrange 1-1024
inner ip broadcast
inner ip multicast
inner ip6 multicast
inner ether host 02:00:00:00:00:01
inner ether multicast
inner tcp[tcpflags] & tcp-syn != 0
inner ip[8] < 5
inner udp[4:2] > 100
payload[0:4] = 0x47455420
tproto tcp
nproto ip6
depth > 0
depth > 1
encap
poff > 54
len - poff > 0
ip[2:2] = poff - 14
link[thoff + 13] & 2 != 0
not inner tcp
not inner udp
not inner ip
not inner tcp port 80
not inner host 10.0.0.1
not payload[0:4] = 0x47455420
inner (host 10.0.0.1 and tcp port 80)
inner (tcp port 80 or udp port 53)
inner tcp port 80 and depth > 0
inner tcp port 80 and not host 10.0.0.1
tcp port 80 or inner tcp port 80
udp port 4789 and inner tcp port 80
vlan and inner tcp port 80
inner tcp port 80 and inner src net 10.0.0.0/8 and inner dst net 10.0.0.0/8
outer ip
outer udp port 4789
not outer host 192.0.2.1
outer udp port 4789 and inner host 10.0.0.1
encap vlan 10
encap qinq
encap mpls 100
encap gre
encap vxlan 42
not encap vxlan 42
encap gtpu 7 and inner tcp
encap erspan
""",
    "RAW": """\
inner tcp port 80
inner host 10.0.0.1
not inner udp
encap and inner ip6
""",
    "LINUX_SLL2": """\
inner tcp port 80
inner host 10.0.0.1
not inner udp
encap vxlan 42 and inner tcp
""",
}


def plain(expression: str) -> str | None:
    """What libpcap can be asked instead: the same terms, not scoped. None where there are others of pcapext's."""
    text = re.sub(r"\b(inner|outer) ", "", expression)
    return None if re.search(rf"\b({'|'.join(EXTENSION_WORDS)})\b", text) else text


def heading(name: str, packets: Mapping[str, bytes]) -> str:
    """The line above those of `line`."""
    return f"{name:<32} {'length':>6}{''.join(f'{packet:>10}' for packet in packets)}"


def line(name: str, program: Program, packets: Mapping[str, bytes]) -> str:
    """A program's length, then how many instructions run on each packet, with + where it is accepted."""
    results = [run(program, packet) for packet in packets.values()]
    executed = "".join(f"{result.executed:>9}{'+' if result.value else ' '}" for result in results)
    return f"{name:<32} {len(program):>6}{executed}".rstrip()


def compiled(name: str, expression: str, linktype: str, target: str = "flowkeys") -> str:
    """The line of the program of an expression, or of the reason why it has none."""
    try:
        return line(name, pcapext.compile(expression, linktype=linktype, target=target), frames(linktype))
    except FilterError as error:
        return f"{name:<32} {error.message}"


def block(linktype: str, expression: str, targets: tuple[str, ...] = TARGETS) -> str:
    """The lines of an expression: for each target, and for libpcap's program of the plain terms."""
    lines = [expression, *(compiled(f"  {target}", expression, linktype, target) for target in targets)]
    asked = plain(expression)
    if asked is not None:
        lines.append(compiled("  libpcap", asked, linktype))
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Counting:
    """A benchmark that counts: what it is called, and what makes the programs."""

    name: str
    setup: Callable[[], Mapping[str, Program]]

    def report(self) -> str:
        packets = frames("EN10MB")
        return "\n".join([heading(self.name, packets), *(line(f"  {name}", program, packets) for name, program in self.setup().items())])


def counting(setup: Callable[[], Mapping[str, Program]]) -> Callable[[], Mapping[str, Program]]:
    """Mark a function that returns programs for EN10MB as a benchmark that counts; its name is the benchmark's."""
    name = setup.__name__.replace("_", "-")
    BENCHMARKS[name] = Counting(name, setup)
    return setup


def table() -> str:
    """All of it."""
    parts = []
    for linktype, text in EXPRESSIONS.items():
        parts.append(heading(linktype, frames(linktype)))
        parts += [block(linktype, expression) for expression in text.splitlines()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    GOLDEN.write_text(table())
    print(f"{GOLDEN}: {sum(len(text.splitlines()) for text in EXPRESSIONS.values())} expressions on {len(NAMES)} packets")
