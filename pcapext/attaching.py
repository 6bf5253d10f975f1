"""Attaching: a filter put where packets come in, so that from then on only those arrive that match.

In:  a filter, as text or as a program; a place: a packet socket, its descriptor, or a handle that captures.
Out: an `Attachment`. After `attach` has returned, no packet that does not match is delivered, whatever was queued before, and every
     packet that matches and is sent from then on is. If it raises, the place is as it was before, or lets nothing through.

There is one way for all places on Linux. A program that rejects everything takes the place of the filter there is; when no packet is
on its way through that any more, what is queued is thrown away; then the program comes in. The queue of a libpcap handle is a ring
buffer that libpcap alone reads: what is in it is checked by pcapext when it is delivered.

The kernel shows packets to filters in its own way. The outermost VLAN tag of a frame stands beside it: a text is compiled for that, as
libpcap does for its live captures; a program sees the frame without the tag. A SOCK_DGRAM packet socket, and libpcap's `any`, show no
link-layer header: programs for LINUX_SLL and LINUX_SLL2 are moved (relocate.py). A packet socket on no interface in particular gets
frames of all kinds of interfaces: only those of interfaces with the program's link type are let through. If a socket is bound to
another kind of interface later, that is its owner's affair.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pcapext import bpf
from pcapext.bpf import Ancillary, Instruction, Program
from pcapext.compiler import compile, compile_live, for_kernel
from pcapext.errors import AttachError, AttachWarning, KernelLacksError, PcapextError, ProgramError
from pcapext.flowkeys import KEY_BY_K
from pcapext.kernel_filter import no_memory
from pcapext.pcap_bridge import linktype_name
from pcapext.sockets import Sight, await_filters, drain, identity, read_filter, remove_filter, set_filter, sight

EN10MB, RAW, LINUX_SLL, LINUX_SLL2 = 1, 12, 113, 276

#: The link types of frames on a SOCK_RAW packet socket, with the ARPHRD types of their interfaces (include/uapi/linux/if_arp.h), as
#: libpcap has them (pcap-linux.c, map_arphrd_to_dlt). PPP and raw IP, which it captures cooked, have no header there.
HATYPES: dict[int, tuple[int, ...]] = {
    EN10MB: (1, 23, 772),  # Ethernet, Metricom, loopback
    RAW: (15, 256, 257, 258, 259, 264, 512, 518, 519, 768, 776, 0xFFFE),  # DLCI, SLIP, PPP, raw HDLC, raw IP, tunnels, none
    2: (2,),  # EN3MB
    4: (4,),  # PRONET
    5: (5,),  # CHAOS
    6: (6, 800),  # IEEE802
    10: (774,),  # FDDI
    104: (513,),  # C_HDLC
    105: (801,),  # IEEE802_11
    107: (770,),  # FRELAY
    114: (773,),  # LTALK
    119: (802,),  # PRISM_HEADER
    127: (803,),  # IEEE802_11_RADIO
    129: (7,),  # ARCNET_LINUX
    202: (3,),  # AX25_KISS
    224: (784, 785, 786, 787),  # FC_2
    227: (280,),  # CAN_SOCKETCAN
    230: (804,),  # IEEE802_15_4_NOFCS
    271: (826,),  # VSOCK
}
LINKTYPE_BY_HATYPE = {hatype: linktype for linktype, hatypes in HATYPES.items() for hatype in hatypes}

#: A program that rejects everything.
_REJECTING = bytes(Program((Instruction(bpf.RET_K),)))


#: Whether to give a packet: its bytes, and how many there were on the wire.
Matches = Callable[[bytes, int], bool]


class Source(Protocol):
    """Whatever reads packets through libpcap, and lets itself be told to check them."""

    @property
    def linktype(self) -> int:
        """The DLT number of its packets."""

    def fileno(self) -> int:
        """The descriptor that it captures on (`pcap_fileno`)."""

    def check_until(self, time_ns: int | None, matches: Matches) -> tuple[int | None, Matches]:
        """From now on give packets only if `matches(data, wirelen)`: until the first one with a stamp of `time_ns` (ns since 1970) or
        later, for ever if that is None. It takes the place of what was told before, which is returned. The stamps are those of the
        system's clock: a source with others has to check until it has given all that was captured when this was called.
        """

    def clear_filter(self) -> None:
        """Have libpcap accept everything (`pcap_setfilter`). After a filter is set, it filters what comes next a second time itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """A filter in its place. As a context manager it is detached in the end.

    `where` says who filters: "kernel" or "pcapext", the latter where the kernel cannot; `reason` says why, and `str()` is a sentence on it.
    `program` is what runs there: in the kernel the program as it was installed.
    """

    where: str
    program: Program
    reason: str | None
    _place: object
    _shown: str
    _identity: tuple[int, int] | None

    def __str__(self) -> str:
        if self.where == "kernel":
            return f"the kernel filters the {self._shown}: {len(self.program)} instructions"
        return f"pcapext filters the {self._shown}: {self.reason}"

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the filter away: everything is delivered again. What was there before it does not come back.

        Nothing is done where it is not there any more, since it was detached or the place was closed. Where another filter was
        attached since, that stays, with an `AttachWarning`. Raises `AttachError` where the kernel refuses.
        """
        descriptor = _descriptor(self._place)
        if descriptor < 0 or self._identity != identity(descriptor):
            return
        source = _source(self._place)
        if self.where == "kernel":
            try:
                current = read_filter(descriptor)
            except OSError as error:
                if error.errno != errno.EACCES:
                    raise AttachError(f"the {self._shown}: {error.strerror}") from error
                current = None
            if current == b"":
                return
            if current != bytes(self.program):
                warnings.warn(f"the {self._shown} has another filter by now, and it stays", AttachWarning, stacklevel=2)
                return
            with _in_words(self._shown, self.program):
                remove_filter(descriptor)
        if source is not None:
            told = source.check_until(0, _everything)
            if self.where == "pcapext" and told != (None, self.program.matches):
                source.check_until(*told)
                if told[0] != 0:
                    warnings.warn(f"the {self._shown} has another filter by now, and it stays", AttachWarning, stacklevel=2)


def attach(
    filter: str | Program, place: object, /, *, netmask: int | None = None, optimize: bool | int = True, **settings: Any
) -> Attachment:
    """Attach a filter to a place: from then on only packets that match are delivered there.

    `filter` is an expression, compiled for the place, or a program for the place's link type, lowered to what the kernel runs. `netmask`,
    `optimize` and `settings` are arguments of `compile`, for an expression. `place` is a packet socket (`socket.AF_PACKET`, SOCK_RAW or
    SOCK_DGRAM), a raw IPv4 socket (`socket.AF_INET`, SOCK_RAW), the descriptor of one, an object with a `fileno()` that is one, or a
    `Source`: a handle that captures. What is queued is lost; a `Source` still delivers what of it matches, as it delivers it, with its
    VLAN tag.

    A plain socket without link-layer headers is filtered for link type LINUX_SLL. The length of a packet, and the snap length, count
    16 bytes then of a header that nobody sees.

    Where the kernel has not the memory for the program, or does not show the filter what it reads, and for what is no packet socket, a
    `Source` checks its packets itself, with an `AttachWarning`. Raises `AttachError` for a place that cannot be filtered, and for a
    program that the kernel refuses, with its reason; the place is then as it was before, but its queue may be lost. Raises the errors
    of `compile`.

    >>> import socket
    >>> with socket.socket() as place:
    ...     attach("inner tcp port 80", place)
    Traceback (most recent call last):
    pcapext.errors.AttachError: socket of AF_INET, SOCK_STREAM: no filter for packets can be attached to it, expected a packet socket ...
    """
    if not isinstance(filter, str | Program):
        raise AttachError(f"the filter is of type {type(filter).__name__}, expected an expression or a Program")
    if isinstance(filter, Program) and (settings or netmask is not None):
        raise AttachError(f"{', '.join(settings) or 'netmask'}: settings of compiling, and the filter is a Program")
    if wrong := settings.keys() & {"linktype", "target"}:
        raise AttachError(f"{', '.join(sorted(wrong))}: that follows from the place")
    descriptor, source = _descriptor(place), _source(place)
    spot = _spot(descriptor, source)
    if isinstance(filter, Program):
        _check_linktype(filter, spot)
    settings |= {"netmask": netmask, "optimize": optimize}
    try:
        if spot.reason:
            raise KernelLacksError(spot.reason)
        program = _for_kernel(filter, spot, settings)
        if refusal := program.kernel_refusal():
            raise AttachError(f"{spot}: the kernel does not take the program: {refusal}")
        check = None if source is None else _Check(source, _for_userland(filter, spot, settings).matches)
        _install(program, descriptor, spot, check)
    except KernelLacksError as error:
        reason = str(error).removeprefix(f"{spot}: ")
        if source is None:
            raise KernelLacksError(f"{spot}: {reason}") from error
        program = _for_userland(filter, spot, settings)
        if lacking := [word.name for word in map(_kernel_word, program) if word]:
            raise AttachError(f"{spot}: {reason}; nor can pcapext run it, which has no ancillary word {lacking[0]}") from error
        _check_in_userland(program, descriptor, spot, source)
        attachment = Attachment("pcapext", program, reason, place, str(spot), identity(descriptor))
        warnings.warn(str(attachment), AttachWarning, stacklevel=2)
        return attachment
    return Attachment("kernel", program, None, place, str(spot), identity(descriptor))


# ---- The place ----


@dataclass(frozen=True, slots=True)
class Spot:
    """How packets are shown to filters at a place.

    `linktypes` are those that a program may be for, `linktype` the one that an expression is compiled for. `made_up`: without the header
    that libpcap makes up. `unbound`: from interfaces of all kinds. `reason`: why the kernel cannot filter there, if it cannot.
    """

    shown: str
    linktypes: tuple[int, ...]
    made_up: bool = False
    unbound: bool = False
    is_packet_socket: bool = True
    reason: str | None = None

    @property
    def linktype(self) -> int:
        return self.linktypes[0]

    def __str__(self) -> str:
        return self.shown


def _descriptor(place: object) -> int:
    """The number of a place's descriptor, -1 for one that is closed."""
    if isinstance(place, int) and not isinstance(place, bool):
        return place
    fileno = getattr(place, "fileno", None)
    if not callable(fileno):
        raise AttachError(f"the place is of type {type(place).__name__}, expected a socket, a descriptor or a handle")
    try:
        number = fileno()
    except (ValueError, OSError, PcapextError):  # what closed files and handles say
        return -1
    if not isinstance(number, int):
        raise AttachError(f"fileno() of the {type(place).__name__} is {number!r}, expected a descriptor")
    return number


def _source(place: object) -> Source | None:
    return place if hasattr(place, "check_until") else None  # type: ignore[return-value]


def _spot(descriptor: int, source: Source | None) -> Spot:
    """What the kernel says of a descriptor, and a source of its packets."""
    if sys.platform != "linux":
        if source is None:
            raise AttachError(f"a socket can be filtered on Linux only, and this is {sys.platform}; libpcap's handles can be everywhere")
        return Spot("capture", (source.linktype,), is_packet_socket=False, reason=f"on {sys.platform} it is not set in the kernel")
    try:
        seen = sight(descriptor)
    except OSError as error:
        if error.errno == errno.ENOTSOCK and source is not None:
            return Spot("capture", (source.linktype,), is_packet_socket=False, reason="what it reads from is no packet socket")
        if descriptor < 0:
            raise AttachError("the place is closed") from None
        words = {errno.EBADF: "it is closed", errno.ENOTSOCK: "it is no socket"}
        raise AttachError(f"descriptor {descriptor}: {words.get(error.errno or 0, error.strerror)}") from None
    if source is not None:
        return _spot_of_source(seen, source.linktype)
    if seen.ring:
        raise AttachError(f"{seen}: it has a ring buffer, which only its owner can read; attach the filter to the handle that owns it")
    match seen.family, seen.type:
        case socket.AF_PACKET, socket.SOCK_DGRAM:
            return Spot(str(seen), (LINUX_SLL, LINUX_SLL2), made_up=True)
        case socket.AF_PACKET, socket.SOCK_RAW if not seen.interface:
            return Spot(str(seen), (EN10MB, *(linktype for linktype in HATYPES if linktype != EN10MB)), unbound=True)
        case socket.AF_PACKET, socket.SOCK_RAW if seen.hatype in LINKTYPE_BY_HATYPE:
            return Spot(str(seen), (LINKTYPE_BY_HATYPE[seen.hatype],))
        case socket.AF_PACKET, socket.SOCK_RAW:
            header = f"its link-layer header (ARPHRD type {seen.hatype}) is of no link type of libpcap's"
            raise AttachError(f"{seen}: {header}; a SOCK_DGRAM socket has no such header")
        case socket.AF_INET, socket.SOCK_RAW:
            return Spot(str(seen), (RAW,))
    raise AttachError(f"{seen}: no filter for packets can be attached to it, expected a packet socket or a raw IPv4 socket")


def _spot_of_source(seen: Sight, linktype: int) -> Spot:
    if seen.family != socket.AF_PACKET:
        return Spot("capture", (linktype,), is_packet_socket=False, reason="what it reads from is no packet socket")
    cooked = seen.type == socket.SOCK_DGRAM
    if cooked and linktype not in (LINUX_SLL, LINUX_SLL2):
        return Spot(f"capture on {seen.interface}", (linktype,), reason=f"the kernel does not show the headers of {_linktype(linktype)}")
    return Spot(f"capture on {seen.interface or 'all interfaces'}", (linktype,), made_up=cooked)


def _linktype(number: int) -> str:
    return linktype_name(number) or str(number)


def _check_linktype(program: Program, spot: Spot) -> None:
    if program.linktype not in spot.linktypes:
        names = "one of an interface" if spot.unbound else " or ".join(map(_linktype, spot.linktypes))
        raise AttachError(f"{spot}: the program is for link type {_linktype(program.linktype)}, expected {names}")


# ---- The program ----


def _for_kernel(filter: str | Program, spot: Spot, settings: dict[str, Any]) -> Program:
    """What the kernel gets."""
    if isinstance(filter, str):
        program = compile_live(filter, spot.linktype, **settings)
    else:
        try:
            program = for_kernel(filter, spot.made_up)
        except ProgramError as error:
            raise AttachError(f"{spot}: the program cannot be made into one that the kernel runs: {error}") from None
    if spot.unbound:
        program = replace(program, instructions=(*_test_hatype(HATYPES[program.linktype]), *program.instructions))
    return program


def _for_userland(filter: str | Program, spot: Spot, settings: dict[str, Any]) -> Program:
    """What checks the packets that a source delivers."""
    return filter if isinstance(filter, Program) else compile(filter, linktype=spot.linktype, **settings)


def _kernel_word(instruction: Instruction) -> Ancillary | None:
    """The ancillary word that an instruction loads, if the kernel alone has it."""
    word = instruction.ancillary
    return word if word and word.k not in KEY_BY_K else None


def _test_hatype(hatypes: Iterable[int]) -> tuple[Instruction, ...]:
    """Instructions that reject what comes from other kinds of interfaces. They leave the registers as they are at the begin."""
    tests = [*hatypes]
    jumps = [Instruction(bpf.JEQ_K, len(tests) - index, 0, hatype) for index, hatype in enumerate(tests)]
    return (Instruction(bpf.LD_W_ABS, k=bpf.SKF_AD_HATYPE), *jumps, Instruction(bpf.RET_K), Instruction(bpf.LD_IMM))


# ---- Putting it there ----


@dataclass(frozen=True, slots=True)
class _Check:
    """Who checks the packets that are queued, and how."""

    source: Source
    matches: Matches


def _install(program: Program, descriptor: int, spot: Spot, check: _Check | None) -> None:
    """Put a program in place of the filter there is, with nothing left unchecked of what that let through."""
    try:
        before: bytes | None = read_filter(descriptor)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise AttachError(f"{spot}: {error.strerror}") from error
        before = None
    # On a socket that nobody uses: it has the same limits, and what the kernel refuses is known before anything is lost.
    with _in_words(spot, program), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as scratch:
        set_filter(scratch.fileno(), bytes(program))
    with _in_words(spot, program):
        set_filter(descriptor, _REJECTING)
    told: tuple[int | None, Matches] = 0, _everything
    try:
        with _in_words(spot, program):
            if check:
                told = check.source.check_until(None, check.matches)
                check.source.clear_filter()
                set_filter(descriptor, _REJECTING)
            await_filters()
            if check:
                check.source.check_until(time.time_ns(), check.matches)
            else:
                drain(descriptor, _REJECTING)
            set_filter(descriptor, bytes(program))
            if read_filter(descriptor) != bytes(program):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    except BaseException as error:
        left = _restore(descriptor, before)
        if check and told[0] is None:  # pcapext filtered there
            check.source.check_until(*told)
        elif check:
            check.source.check_until(time.time_ns(), _nothing if before else _everything)
        if left and isinstance(error, AttachError):
            raise type(error)(f"{error}; {left}") from error
        raise


def _restore(descriptor: int, before: bytes | None) -> str:
    """Put back the filter there was, None for an eBPF program. Where that cannot be, the words on what is there instead."""
    if before is None:
        return "the filter there was is an eBPF program, which cannot be put back, and nothing is let through"
    try:
        if before:
            set_filter(descriptor, before)
        else:
            remove_filter(descriptor)
    except OSError:
        return "the filter there was could not be put back, and nothing is let through"
    return ""


@contextmanager
def _in_words(spot: object, program: Program) -> Iterator[None]:
    """What the kernel says against changing a filter becomes an `AttachError`."""
    try:
        yield
    except OSError as error:
        match error.errno:
            case errno.ENOMEM:
                raise KernelLacksError(f"{spot}: {no_memory(len(program))}") from error
            case errno.EPERM:
                raise AttachError(f"{spot}: its filter is locked (SO_LOCK_FILTER) and cannot be changed") from error
            case errno.EINVAL:
                raise AttachError(f"{spot}: the kernel does not take the program, and does not say why") from error
            case errno.EBUSY:
                raise AttachError(f"{spot}: somebody else attaches filters to it") from error
            case _:
                raise AttachError(f"{spot}: {error.strerror}") from error


def _check_in_userland(program: Program, descriptor: int, spot: Spot, source: Source) -> None:
    """Let a source check its packets, all of which the kernel then lets through."""
    told = source.check_until(None, program.matches)
    if spot.is_packet_socket:
        try:
            with _in_words(spot, program):
                remove_filter(descriptor)
        except AttachError:
            source.check_until(*told)
            raise


def _everything(data: bytes, wirelen: int) -> bool:
    return True


def _nothing(data: bytes, wirelen: int) -> bool:
    return False
