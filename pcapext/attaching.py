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
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pcapext import bpf
from pcapext.bpf import Ancillary, Instruction, Program
from pcapext.bpf_syscall import attach_descriptor, load
from pcapext.compiler import compile, compile_live, compile_live_ebpf
from pcapext.ebpf import EbpfProgram
from pcapext.errors import AttachError, AttachWarning, KernelLacksError, ProgramError
from pcapext.flowkeys import KEY_BY_K
from pcapext.kernel_filter import no_memory
from pcapext.kernel_program import for_kernel
from pcapext.pcap_handles import Matches
from pcapext.places import HATYPES, Source, Spot, check_linktype, descriptor_of, source_of, spot_of
from pcapext.sockets import await_filters, drain, identity, read_filter, remove_filter, set_filter

#: A program that rejects everything.
_REJECTING = bytes(Program((Instruction(bpf.RET_K),)))


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """A filter in its place. As a context manager it is detached in the end.

    `where` says who filters: "kernel" or "pcapext", the latter where the kernel cannot; `reason` says why, and `str()` is a sentence on it.
    `program` is what runs there: in the kernel the program as it was installed.
    """

    where: str
    program: Program | EbpfProgram
    reason: str | None
    _place: object
    _shown: str
    _identity: tuple[int, int] | None

    def __str__(self) -> str:
        if self.where == "kernel":
            kind = " of eBPF" if self.program.target == "ebpf" else ""
            return f"the kernel filters the {self._shown}: {len(self.program)} instructions{kind}"
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
        descriptor = descriptor_of(self._place)
        if descriptor < 0 or self._identity != identity(descriptor):
            return
        source = source_of(self._place)
        if self.where == "kernel":
            current = _filter_of(descriptor, self._shown)
            if current == b"":
                return
            if not _is(current, self.program):
                warnings.warn(f"the {self._shown} has another filter by now, and it stays", AttachWarning, stacklevel=2)
                return
            with _in_words(self._shown, self.program):
                remove_filter(descriptor)
        if source is not None:
            told = source.check_until(0, _everything)
            if isinstance(self.program, Program) and self.where == "pcapext" and told != (None, self.program.matches):
                source.check_until(*told)
                if told[0] != 0:
                    warnings.warn(f"the {self._shown} has another filter by now, and it stays", AttachWarning, stacklevel=2)


def attach(
    filter: str | Program | EbpfProgram,
    place: object,
    /,
    *,
    target: str | None = None,
    netmask: int | None = None,
    optimize: bool | int = True,
    **settings: Any,
) -> Attachment:
    """Attach a filter to a place: from then on only packets that match are delivered there.

    `filter` is an expression, compiled for the place, or a program for the place's link type, lowered to what the kernel runs. `netmask`,
    `optimize` and `settings` are arguments of `compile`, for an expression; its `target` is "classic", which every kernel takes, unless it
    is to be "ebpf". Then, as with an `EbpfProgram`, the kernel filters or it is an error.

    `place` is a packet socket (`socket.AF_PACKET`, SOCK_RAW or SOCK_DGRAM), a raw IPv4 socket (`socket.AF_INET`, SOCK_RAW), the
    descriptor of one, an object with a `fileno()` that is one, or a `Source`: a handle that captures. What is queued is lost; a `Source`
    still delivers what of it matches, as it delivers it, with its VLAN tag.

    A plain socket without link-layer headers is filtered for link type LINUX_SLL. The length of a packet, and the snap length, count
    16 bytes then of a header that nobody sees.

    Where the kernel has not the memory for the program, or does not show the filter what it reads, and for what is no packet socket, a
    `Source` checks its packets itself, with an `AttachWarning`. Raises `AttachError` for a place that cannot be filtered, and for a
    program that the kernel refuses, with its reason; the place is then as it was before, but its queue may be lost. Raises `LoadError`
    where the kernel does not load an eBPF program, and the errors of `compile`.

    >>> import socket
    >>> with socket.socket() as place:
    ...     attach("inner tcp port 80", place)
    Traceback (most recent call last):
    pcapext.errors.AttachError: socket of AF_INET, SOCK_STREAM: no filter for packets can be attached to it, expected a packet socket ...
    """
    if not isinstance(filter, str | Program | EbpfProgram):
        raise AttachError(f"the filter is of type {type(filter).__name__}, expected an expression or a program")
    if not isinstance(filter, str) and (settings or netmask is not None):
        raise AttachError(f"{', '.join(settings) or 'netmask'}: settings of compiling, and the filter is a program")
    if "linktype" in settings:
        raise AttachError("linktype: that follows from the place")
    if target not in (None, "classic", "ebpf"):
        raise AttachError(f"target {target!r} is nothing to attach, expected 'classic' or 'ebpf'")
    if not isinstance(filter, str) and target not in (None, made_for := "ebpf" if isinstance(filter, EbpfProgram) else "classic"):
        raise AttachError(f"the program is {made_for} and stays it: compile it for target {target!r}")
    descriptor, source = descriptor_of(place), source_of(place)
    spot = spot_of(descriptor, source)
    if not isinstance(filter, str):
        check_linktype(filter, spot)
    settings |= {"netmask": netmask, "optimize": optimize}
    if isinstance(filter, EbpfProgram) or target == "ebpf":
        return _attach_ebpf(filter, place, descriptor, source, spot, settings)
    try:
        if spot.reason:
            raise KernelLacksError(spot.reason)
        program = _for_kernel(filter, spot, settings)
        if refusal := program.kernel_refusal():
            raise AttachError(f"{spot}: the kernel does not take the program: {refusal}")
        check = None if source is None else _Check(source, _for_userland(filter, spot, settings).matches)
        # On a socket that nobody uses: it has the same limits, and what the kernel refuses is known before anything is lost.
        with _in_words(spot, program), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as scratch:
            set_filter(scratch.fileno(), bytes(program))
        _install(program, partial(set_filter, program=bytes(program)), descriptor, spot, check)
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


def _attach_ebpf(
    filter: str | Program | EbpfProgram, place: object, descriptor: int, source: Source | None, spot: Spot, settings: dict[str, Any]
) -> Attachment:
    if spot.reason:
        raise AttachError(f"{spot}: {spot.reason}")
    if spot.unbound:
        raise AttachError(f"{spot}: an eBPF program is not told of what kind an interface is; bind the socket to one")
    program = compile_live_ebpf(filter, spot.linktype, **settings) if isinstance(filter, str) else filter
    assert isinstance(program, EbpfProgram)
    check = None
    if source:
        # Of a program alone nobody knows here what it accepts: what is queued is lost.
        check = _Check(source, _for_userland(filter, spot, settings).matches if isinstance(filter, str) else _nothing)
    loaded = load(program)
    try:
        _install(program, partial(attach_descriptor, program=loaded), descriptor, spot, check)
    finally:
        os.close(loaded)  # the socket holds it
    return Attachment("kernel", program, None, place, str(spot), identity(descriptor))


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


def _install(program: Program | EbpfProgram, put: Callable[[int], None], descriptor: int, spot: Spot, check: _Check | None) -> None:
    """Put a program in place of the filter there is, with nothing left unchecked of what that let through."""
    before = _filter_of(descriptor, spot)
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
            put(descriptor)
            if not _is(_filter_of(descriptor, spot), program):
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


def _filter_of(descriptor: int, shown: object) -> bytes | None:
    """The classic program on a socket, empty where there is no filter; None for an eBPF program, which nobody is shown."""
    try:
        return read_filter(descriptor)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise AttachError(f"the {shown}: {error.strerror}") from error
        return None


def _is(current: bytes | None, program: Program | EbpfProgram) -> bool:
    """Whether `_filter_of` shows a program, as far as that can be told."""
    return current is None if isinstance(program, EbpfProgram) else current == bytes(program)


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
def _in_words(spot: object, program: Program | EbpfProgram) -> Iterator[None]:
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
