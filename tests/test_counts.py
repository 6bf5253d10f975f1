"""What programs cost, against tests/golden/counts.txt: lengths, and instructions executed on the packets of benchmarks/frames.py.

`python -m benchmarks.counts` writes the file anew; look at the difference before you keep it. Its lines for libpcap are for the reader, and
are not compared: they change with libpcap's version.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import EFFORT
from packets import EN10MB, LINUX_SLL2, RAW
from tshark import keys_by_tshark

from benchmarks.counts import EXPRESSIONS, GOLDEN, TARGETS, block, heading, plain
from benchmarks.frames import NAMES, frames

ALL = [(linktype, expression) for linktype, text in EXPRESSIONS.items() for expression in text.splitlines()]
#: Classic programs take long to compile.
SOME = ALL if EFFORT > 1 else ALL[::6]

LINK_TYPES = {"EN10MB": EN10MB, "RAW": RAW, "LINUX_SLL2": LINUX_SLL2}


def recorded() -> dict[tuple[str, str], list[str]]:
    """The lines of each expression."""
    found, linktype = {}, ""
    for part in GOLDEN.read_text().rstrip("\n").split("\n\n"):
        first, *lines = part.split("\n")
        if lines:
            found[linktype, first] = lines
        else:
            linktype = first.split()[0]
            assert first == heading(linktype, frames(linktype))
    return found


def of_target(target: str, lines: list[str]) -> list[str]:
    return [line for line in lines if line.split()[0] == target]


def test_every_expression_is_recorded() -> None:
    assert list(recorded()) == ALL
    assert len(ALL) == len(set(ALL)) >= 60


@pytest.mark.parametrize(("linktype", "expression"), ALL)
def test_flowkeys_costs_what_is_recorded(linktype: str, expression: str) -> None:
    lines = block(linktype, expression, ("flowkeys",)).split("\n")
    assert of_target("flowkeys", lines) == of_target("flowkeys", recorded()[linktype, expression])
    assert bool(of_target("libpcap", lines)) == (plain(expression) is not None)


@pytest.mark.parametrize(("linktype", "expression"), SOME)
def test_classic_costs_what_is_recorded(linktype: str, expression: str) -> None:
    lines = block(linktype, expression, ("classic",)).split("\n")
    assert of_target("classic", lines) == of_target("classic", recorded()[linktype, expression])


@pytest.mark.parametrize(("linktype", "expression"), ALL)
def test_verdicts_that_are_recorded_agree(linktype: str, expression: str) -> None:
    def verdicts(line: str) -> list[bool]:
        return [column.endswith("+") for column in line.split()[2:]]

    flowkeys, classic = (of_target(target, recorded()[linktype, expression])[0] for target in TARGETS)
    assert verdicts(flowkeys) == verdicts(classic)


@pytest.mark.parametrize(("expression", "asked"), [("not inner (tcp port 80)", "not (tcp port 80)"), ("inner tcp and depth > 0", None)])
def test_what_libpcap_is_asked(expression: str, asked: str | None) -> None:
    assert plain(expression) == asked


#: What each packet is: the innermost EtherType and IP protocol, tunnels, and how much comes before the payload on Ethernet.
FRAMES = {
    "tcp": (0x0800, 6, 0, 14 + 20 + 20),
    "tcp6": (0x86DD, 6, 0, 14 + 40 + 20),
    "udp": (0x0800, 17, 0, 14 + 20 + 8),
    "arp": (0x0806, 0, 0, 0),
    "fragment": (0x0800, 6, 0, 14 + 20),
    "options6": (0x86DD, 6, 0, 14 + 40 + 8 + 8 + 20),
    "vlan": (0x0800, 6, 0, 14 + 4 + 20 + 20),
    "qinq-mpls": (0x0800, 6, 0, 14 + 4 + 4 + 4 + 4 + 20 + 20),
    "pppoe": (0x0800, 6, 0, 14 + 8 + 20 + 20),
    "ipip": (0x0800, 6, 1, 14 + 20 + 20 + 20),
    "gre": (0x0800, 6, 1, 14 + 20 + 4 + 20 + 20),
    "vxlan": (0x0800, 6, 1, 14 + 20 + 8 + 8 + 14 + 20 + 20),
    "geneve": (0x0800, 6, 1, 14 + 20 + 8 + 16 + 14 + 20 + 20),
    "gtpu": (0x0800, 6, 1, 14 + 20 + 8 + 16 + 20 + 20),
    "deep": (0x0800, 6, 3, 14 + 40 + 8 + 14 + 20 + 8 + 8 + 14 + 20 + 20 + 20),
}


@pytest.mark.tools("tshark")
@pytest.mark.parametrize("linktype", LINK_TYPES)
def test_packets_are_what_they_are_called(tmp_path: Path, linktype: str) -> None:
    assert tuple(FRAMES) == NAMES
    link_layer = {"EN10MB": 14, "RAW": 0, "LINUX_SLL2": 20}[linktype]
    made = frames(linktype)
    shown = keys_by_tshark([(frame, LINK_TYPES[linktype]) for frame in made.values()], tmp_path)
    for name, keys in zip(made, shown, strict=True):
        nproto, tproto, depth, before = FRAMES[name]
        poff = before and before - 14 + link_layer
        assert (keys.nproto, keys.tproto, keys.depth, keys.poff) == (nproto, tproto, depth, poff), name


def test_frames_of_another_link_type() -> None:
    with pytest.raises(ValueError, match="no frames of link type PPP"):
        frames("PPP")
