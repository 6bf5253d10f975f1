"""The one check: a filter has the same verdict on a packet wherever it runs, the one that the rules give.

In:  a filter as a template of oracle.py, and packets, whole, ended early or cut by the snap length.
Out: nothing but the verdict; a disagreement is an AssertionError that names the ways that differ and holds the packet in hex.

The ways: the program with flow keys on pcapext's machine, which takes the keys from the reference walk, and in pcapext's engine, which
walks by itself; the program that loads all keys at once on both; the classic program on the machine, in the engine, in libpcap's
interpreter and in the running kernel; where it is asked for, C compiled to native code, and to eBPF that runs as XDP; each of these
optimized and not. The rules are oracle.py's, with the keys that the generator
knows by construction.

A packet captured whole has one verdict everywhere. Of a packet that the snap length cut, a program may reject what the rules
accept, never the other way (LANGUAGE.md 5). The kernel has no such packets: it runs the filter before the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields
from functools import cache, lru_cache
from random import Random
from typing import Any

import packets
from bpf_oracles import Kernel, libpcap_accepts, libpcap_run_packed, packed
from c_programs import Native
from oracle import NETMASK, Packet, expected, text_of, with_known_values
from packets import EN10MB, LINK_TYPES, LINUX_SLL2, Generated

from benchmarks.clang import LONGEST, SHORTEST, InKernel
from pcapext.bpf import RET_K, Instruction, Program
from pcapext.compiler import compile
from pcapext.csource import CSource
from pcapext.dissect import dissect, walk
from pcapext.encapsulation import DEFAULT_SETTINGS, WalkSettings
from pcapext.errors import FilterError
from pcapext.flowkeys import FlowKeys
from pcapext.machine import run

#: A way to run a filter: what it returns for a packet, None for one that it cannot be given.
Way = Callable[[Packet], int | None]

BOTH = (True, False)

#: What a walk can be told, by the names that `compile` has for it too.
SETTINGS = [field.name for field in fields(WalkSettings) if field.init]

#: What the optimizer refuses to make, since it would never accept.
REJECT = (Instruction(RET_K, k=0),)


#: Templates of oracle.py: extension terms in braces, relations with their numbers in quotes.
EXPRESSIONS = r"""
{inner tcp}
{inner tcp port 80}
{inner udp port 53}
{inner port 80}
{inner src port 443}
{inner sctp dst port 36412}
{inner tcp portrange 20-100}
{inner ip}
{inner ip6 proto 58}
{inner icmp}
{inner proto 51}
{inner host 10.0.0.1}
{inner src host 2001:db8::1}
{inner dst net 10.0.0.0/8}
{inner net 2001:db8::/47}
{inner arp host 10.0.0.1}
{inner ip multicast}
{inner ip broadcast}
{inner ether src host 02:00:00:00:00:01}
{inner ether multicast}
{inner ether proto 0x88cc}
{tproto gre} or {nproto 0x8847}
{encap}
"{depth} > 1"
"{nhoff} > 54"
"{thoff} - {nhoff} = 20"
"{poff} > 54"
"len - {poff} > 20"
"{inner ip[8]} > 100"
"{inner tcp[13]} & 2 != 0"
"{inner udp[4:2]} > 30"
"{inner icmp6[0]} = 128"
"{inner ether[0]} & 1 = 1"
"{payload[0]} > 109"
"{payload[0:2]} & 1 = 0"
not {inner tcp}
not {inner udp port 53} and {inner udp}
not ({inner tcp port 80} or {inner arp})
not "{payload[0]} > 100"
not "{inner tcp[13]} & 2 != 0"
not {inner ether multicast}
ip or {inner tcp}
ip6 and {inner tcp} or arp and {inner udp} or "{depth} > 1"
tcp port 80 or {inner host 10.0.0.1}
vlan and {inner ip} and ip
not ip and {inner ip}
udp or not {inner tcp}
"ip[8] < {inner ip[8]}" or {inner ip6}
"{poff} > 54" and "{thoff} - {nhoff} = 20"
({inner host 10.0.0.1} or {inner ip6}) and not "{inner tcp[13]} & 2 != 0"
{inner ether multicast} or {encap} and {inner icmp}
not "{payload[1:2]} & 1 = 0" or {nproto 0x88cc}
"len - {poff} > 100" or {inner proto 51} or {inner sctp}
"ip[2:2] = {poff} - 14"
host 10.0.0.1 and not {inner host 10.0.0.1}
{outer ip6}
not {outer tcp}
{outer host 10.0.0.1} and not {inner host 10.0.0.1}
{outer udp dst port 4789} and not {inner tcp}
{outer udp} or {outer icmp}
"{outer ip[8]} > {inner ip[8]}"
"{outer thoff} - {outer nhoff} > 20"
{outer ether multicast} or {inner ether multicast}
{encap vlan}
{encap vlan 10} and not {inner tcp}
{encap qinq} or {encap mpls 1024}
not {encap gre} and {encap}
{encap vxlan} or {encap geneve} or {encap gtpu}
{encap pppoe 7} or {encap 6in4}
tcp or {encap erspan} or {encap nvgre}
"""
TEMPLATES = EXPRESSIONS.strip().splitlines()


class Everywhere:
    """A filter, with a program for each way to run it.

    `text` is the filter where it is not the template without braces and quotes. `classic` holds the values of `optimize` for which there
    is to be a classic program, which takes long to compile; `c` and `xdp` those for which there is to be C, which needs a C compiler, and
    C in XDP, which needs clang and root. With other `settings` of the walk, packets must have been made for them
    (`observed`).
    """

    def __init__(
        self,
        template: str,
        linktype: int = EN10MB,
        *,
        text: str | None = None,
        classic: Collection[bool] = BOTH,
        c: Collection[bool] = (),
        xdp: Collection[bool] = (),
        netmask: int = NETMASK,
        settings: WalkSettings = DEFAULT_SETTINGS,
    ):
        self.template = template
        self.text = text_of(template) if text is None else text
        self.linktype = linktype
        self.netmask = netmask
        self.quick: dict[str, Way] = {}
        self.slow: dict[str, Way] = {}
        self._kernels: list[Kernel | InKernel] = []
        for optimize in BOTH:
            how = "optimized" if optimize else "unoptimized"
            keyed = compiled(self.text, linktype, netmask, optimize, "flowkeys", settings)
            self.quick[f"machine, flow keys, {how}"] = _on_machine(keyed, settings)
            self.quick[f"engine, flow keys, {how}"] = _in_engine(keyed)
            together = compiled(self.text, linktype, netmask, optimize, "keys", settings)
            assert set(together.flow_keys) <= {"keys"}, self.text
            assert together.kernel_refusal(stock=False) is None, self.text
            self.quick[f"engine, keys, {how}"] = _in_engine(together)
            (self.quick if optimize else self.slow)[f"machine, keys, {how}"] = _on_machine(together, settings)
            if optimize in (*c, *xdp):
                source = _c_source(self.text, linktype, netmask, optimize, settings)
                if optimize in c:
                    self.quick[f"native C, {how}"] = _in_c(Native(source))
                if optimize in xdp:
                    program = InKernel(source)
                    self._kernels.append(program)
                    self.quick[f"C in XDP, {how}"] = _in_xdp(program)
            if optimize in classic:
                plain = compiled(self.text, linktype, netmask, optimize, "classic", settings)
                kernel = Kernel()
                self._kernels.append(kernel)
                assert plain.flow_keys == (), self.text
                assert plain.kernel_refusal() is None, self.text
                assert libpcap_accepts(plain.instructions), self.text
                assert kernel.accepts(plain.instructions), self.text
                self.quick[f"libpcap, classic, {how}"] = _in_libpcap(plain)
                self.quick[f"engine, classic, {how}"] = _in_engine(plain)
                self.slow[f"machine, classic, {how}"] = _on_machine(plain, settings)
                self.slow[f"kernel, classic, {how}"] = _in_kernel(kernel)

    def check(self, packet: Packet, slow: bool = True) -> bool:
        """The verdict, which must be the same everywhere; without `slow`, in the ways that take microseconds."""
        assert packet.linktype == self.linktype
        verdict = expected(self.template, packet, self.netmask)
        whole = packet.captured == packet.length
        wrong = []
        for name, way in (self.quick | self.slow if slow else self.quick).items():
            returned = way(packet)
            if returned is not None and (returned != 0) != verdict and (whole or returned != 0):
                wrong.append(name)
        assert not wrong, self._report(packet, verdict, wrong)
        return verdict

    def _report(self, packet: Packet, verdict: bool, wrong: Sequence[str]) -> str:
        by_rules = "accepted" if verdict else "rejected"
        size = f"{packet.captured} of {packet.length} bytes of {len(packet.made.data)}"
        return f"{self.text!r}: {by_rules} by the rules, not by {'; '.join(wrong)}: {size}, {packet.made.layers}: {packet.data.hex()}"

    def close(self) -> None:
        """Give the sockets back."""
        for kernel in self._kernels:
            kernel.close()

    def __enter__(self) -> Everywhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _changed(settings: WalkSettings) -> dict[str, Any]:
    return {name: value for name in SETTINGS if (value := getattr(settings, name)) != getattr(DEFAULT_SETTINGS, name)}


def _c_source(text: str, linktype: int, netmask: int, optimize: bool, settings: WalkSettings) -> CSource:
    return compile(text, linktype=linktype, netmask=netmask, optimize=optimize, target="c", **_changed(settings))


@cache
def compiled(text: str, linktype: int, netmask: int, optimize: bool, target: str, settings: WalkSettings = DEFAULT_SETTINGS) -> Program:
    """The program, made once in a run of the tests."""
    try:
        return compile(text, linktype=linktype, netmask=netmask, optimize=optimize, target=target, **_changed(settings))
    except FilterError as error:
        if error.message == "expression rejects all packets":
            return Program(REJECT, linktype)
        raise


@cache
def _walker(settings: WalkSettings) -> Callable[[bytes, int], FlowKeys]:
    """The reference walk, once for all filters that the same packet is tried on."""
    return lru_cache(maxsize=1 << 12)(lambda data, linktype: dissect(data, linktype, settings))


def _on_machine(program: Program, settings: WalkSettings) -> Way:
    walker = _walker(settings)
    return lambda packet: run(program, packet.data, packet.length, walker).value


def _in_engine(program: Program) -> Way:
    return lambda packet: int(program.matches(packet.data, packet.length))


def _in_libpcap(program: Program) -> Way:
    code = packed(program.instructions)
    assert libpcap_accepts(program.instructions)
    return lambda packet: libpcap_run_packed(code, packet.data, packet.length)


def _in_c(native: Native) -> Way:
    return lambda packet: native(packet.data, packet.length)


def _in_xdp(program: InKernel) -> Way:
    """There is no packet that ends in the Ethernet header, none that was cut before the filter, and none longer than a page."""
    return lambda packet: program(packet.data) if packet.captured == packet.length and SHORTEST <= len(packet.data) <= LONGEST else None


def _in_kernel(kernel: Kernel) -> Way:
    """On a socket pair: there is no packet of 0 bytes, nor one that was cut before the filter."""
    return lambda packet: kernel.kept(packet.data) if packet.data and packet.captured == packet.length else None


def observed(data: bytes, linktype: int = EN10MB, settings: WalkSettings = DEFAULT_SETTINGS) -> Packet:
    """Bytes that no generator made, as a packet whose keys are those of the reference walk. It cannot be cut further."""
    found = walk(data, linktype, settings)
    passed = tuple((len(data), header.name, header.identifier) for header in found.headers)
    made = Generated(data, linktype, ((len(data), found.outer), (len(data), found.keys)), passed, (), (), False)
    return Packet.whole(made)


def sample(count: int, seed: int, linktypes: Sequence[int] = LINK_TYPES) -> Iterator[Packet]:
    """`count` generated packets with values that filters name: half of them whole, half of them cut.

    A cut packet comes twice: as one that ended there on the wire, and as one of which no more was captured. Of the header that libpcap
    makes up in LINUX_SLL2 all was captured: a program that asked for that would not run in the kernel.
    """
    random = Random(seed)
    for index, made in enumerate(packets.packets(count, seed, linktypes=linktypes)):
        packet = Packet.whole(with_known_values(made, index))
        if index % 2:
            length = random.choice(packet.made.cuts())
            yield packet.cut(length)
            if packet.linktype != LINUX_SLL2 or length >= 20:
                yield packet.snapped(length)
        else:
            yield packet
