"""The ways to give filters what a dissector finds, side by side: the tables of docs/dissector.md. It takes root, clang and gcc.

All ways are measured in turn, so that what else the machine does meets all of them alike, and the median of each is told. From times in
the kernel those of a program are taken off that rejects at once. The filters ask for a port that no packet has: on a socket, what they
accept would be copied.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache

import pcapext
from benchmarks import calls, ebpf_machine, reporting
from benchmarks.clang import InKernel
from benchmarks.frames import frames
from benchmarks.kernel import Taps
from benchmarks.native import TIMES, Packets
from pcapext import Program, machine
from pcapext.bpf import RET_K, Instruction
from pcapext.bpf_syscall import load, run_in_kernel
from pcapext.ebpf import EbpfProgram

#: A port that no packet has.
PORT = 81

#: How often everything is measured, how many test runs are one measurement, and how many packets of one kind there are in memory.
ROUNDS, RUNS, COPIES = 31, 100_000, 500

PLAIN, INNER = f"tcp port {PORT}", f"inner tcp port {PORT}"

#: The packets by what they are called in the tables: plain, in one tunnel, in three.
KINDS = {"plain TCP": "tcp", "VXLAN": "vxlan", "three tunnels": "deep"}

#: What tells how many nanoseconds a packet takes.
Timed = Callable[[bytes], float]

_EMPTY = "a program that rejects at once"


@reporting
def dissector() -> Iterable[str]:
    packets = [frames("EN10MB")[name] for name in KINDS.values()]
    with ExitStack() as stack:
        yield from _counts(stack, packets)
        yield ""
        yield from _times(stack, packets)


# --- what is counted


def _counts(stack: ExitStack, packets: list[bytes]) -> Iterator[str]:
    yield _row("filter", "target", "instructions", *(f"calls, {name}" for name in KINDS), *(f"run, {name}" for name in KINDS))
    yield _row(*["---"] * (3 + 2 * len(packets)))
    for expression, target in ((PLAIN, "classic"), *((INNER, target) for target in ("flowkeys", "keys", "c", "ebpf", "classic"))):
        count = calls.counter(stack, expression, target) if target in calls.TARGETS else lambda packet: ""
        called = [count(packet) for packet in packets]
        length, executed = _executed(stack, expression, target, packets)
        yield _row(f"`{expression}`", target, length, *called, *executed)


def _executed(stack: ExitStack, expression: str, target: str, packets: list[bytes]) -> tuple[int, list[int]]:
    """The length of a program, and how many instructions run on each packet."""
    match target:
        case "c":
            code, xdp = _in_xdp(stack, expression).instructions, True
        case "ebpf":
            code, xdp = bytes(pcapext.compile(expression, target="ebpf")), False
        case _:
            program = pcapext.compile(expression, target=target)
            return len(program), [machine.run(program, packet).executed for packet in packets]
    return len(code) // 8, [ebpf_machine.run(code, packet, xdp)[1] for packet in packets]


def _in_xdp(stack: ExitStack, expression: str) -> InKernel:
    program = InKernel(pcapext.compile(expression, target="c"))
    stack.callback(program.close)
    return program


# --- what is timed


def _times(stack: ExitStack, packets: list[bytes]) -> Iterator[str]:
    """A row for each program and place; the rows of a place before the first of another one."""
    places = {
        "packet sockets": _on_sockets(stack),
        "test runs": _in_test_runs(stack),
        "XDP, test runs": _in_xdp_test_runs(stack),
        "pcapext's engine": _in_engine(),
        "native code": _in_native(),
    }
    ways = {(place, name): way for place, contestants in places.items() for name, way in contestants.items()}
    measured: dict[tuple[str, str], list[list[float]]] = {key: [] for key in ways}
    for number in range(1 + ROUNDS):
        for key, way in ways.items():
            times = [way(packet) for packet in packets]
            if number:  # the first round warms up
                measured[key].append(times)
    medians = {key: [statistics.median(column) for column in zip(*rows, strict=True)] for key, rows in measured.items()}
    yield _row("where", "program", *KINDS)
    yield _row(*["---"] * (2 + len(packets)))
    for (place, name), row in medians.items():
        if name == _EMPTY:
            yield _row(place, f"{_EMPTY} (taken off below)", *(f"{cell:.0f}" for cell in row))
        else:
            least = medians.get((place, _EMPTY), [0.0] * len(row))
            yield _row(place, name, *(f"{cell - taken:.0f}" for cell, taken in zip(row, least, strict=True)))


def _on_sockets(stack: ExitStack) -> dict[str, Timed]:
    # The namespace of the sockets goes with the thread.
    thread = stack.enter_context(ThreadPoolExecutor(1))
    taps = thread.submit(Taps, stack).result()
    programs: dict[str, Program | EbpfProgram] = {_EMPTY: Program((Instruction(RET_K),))}
    for target in ("classic", "ebpf"):
        programs |= {f"{target}, `{expression}`": pcapext.compile(expression, target=target) for expression in (PLAIN, INNER)}

    def way(program: Program | EbpfProgram) -> Timed:
        return lambda packet: thread.submit(taps.time, program, packet).result()

    return {name: way(program) for name, program in programs.items()}


def _in_test_runs(stack: ExitStack) -> dict[str, Timed]:
    programs = {_EMPTY: "less 1", **{f"ebpf, `{expression}`": expression for expression in (PLAIN, INNER)}}

    def way(expression: str) -> Timed:
        descriptor = load(pcapext.compile(expression, target="ebpf"))
        stack.callback(os.close, descriptor)
        return lambda packet: run_in_kernel(descriptor, packet, RUNS).nanoseconds

    return {name: way(expression) for name, expression in programs.items()}


def _in_xdp_test_runs(stack: ExitStack) -> dict[str, Timed]:
    programs = {_EMPTY: "less 1", **{f"c, `{expression}`": expression for expression in (PLAIN, INNER)}}

    def way(expression: str) -> Timed:
        program = _in_xdp(stack, expression)
        return lambda packet: program.run(packet, RUNS)[1]

    return {name: way(expression) for name, expression in programs.items()}


def _in_engine() -> dict[str, Timed]:
    def way(expression: str, target: str) -> Timed:
        runs = cache(lambda packet: Packets([packet] * COPIES).by_engine(expression, target))
        return lambda packet: _in_memory(runs(packet))

    programs = ((PLAIN, "classic"), *((INNER, target) for target in ("flowkeys", "keys", "classic")))
    return {f"{target}, `{expression}`": way(expression, target) for expression, target in programs}


def _in_native() -> dict[str, Timed]:
    def way(expression: str) -> Timed:
        runs = cache(lambda packet: Packets([packet] * COPIES).by_native(expression, "gcc"))
        return lambda packet: _in_memory(runs(packet))

    return {f"c, `{expression}`, gcc -O2": way(expression) for expression in (PLAIN, INNER)}


def _in_memory(run: Callable[[], int]) -> float:
    start = time.perf_counter_ns()
    assert run() == 0
    return (time.perf_counter_ns() - start) / COPIES / TIMES


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
