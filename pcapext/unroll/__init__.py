"""Unroll: the walk through the headers as a graph without loops, for programs that cannot load flow keys.

In:  the blocks that read what the walk finds, and the one of them that begins; a link layer, the settings of the walk.
Out: blocks before these that assign what is wanted to locals, whatever the packet.

There is one set of blocks a level, shared by all ways into it; what differs between the ways is put into one form
first. In the form of all levels but the begin of the first, the local `H` is a place a link-layer header's length before the
header at hand: an Ethernet header at H has its EtherType at H + 12 and what follows it at H + 14, and so have a VLAN tag, a GRE
header without options and a PPPoE header when H has been moved to 14 bytes before what follows them. IP in IP costs nothing.
A number that says what stands at H is in a local too, `TYPE` or `PROTOCOL`. At the begin of the first level all offsets are constants.

A tunnel is entered only when all of it that must be there is there; until then `H` stays at the carrier's header. Every
load stands behind a test of the packet's length, as LANGUAGE.md 5 has it; the optimizer removes those that change nothing.

Where the walk ends, the blocks behind it are asked where they go on with what is known there: `inner tcp` goes on nowhere
from a UDP header, so that nothing is looked up for it. This is the walk's share of the optimizer's work, done before the graph
is large.

    builder   blocks, places in the packet, tests of its length
    tunnels   the headers that begin a level
    levels    all other headers: from the link layer to the transport
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from pcapext.cfg import Block, Key, Label, Passed
from pcapext.encapsulation import LinkLayer, WalkSettings
from pcapext.unroll.builder import local_for
from pcapext.unroll.levels import Levels

__all__ = ["local_for", "unroll"]


def unroll(
    blocks: Mapping[Label, Block], after: Label, link_layer: LinkLayer, settings: WalkSettings, wanted: Set[Key | Passed]
) -> tuple[Label, Mapping[Label, Block]]:
    """The first block of the walk, and all blocks: the walk's, and those given. The walk goes on at `after`, with the locals of what is
    `wanted` (`local_for`) assigned.
    """
    return Levels(blocks, after, link_layer, settings, wanted).build()
