"""How fast pcapext is, each time beside a peer that runs in the same minute on the same machine.

A benchmark is one function of `benchmarks/__main__.py`, marked `@benchmark(rounds)`. It returns its contestants, name to
callable, pcapext's own first. In each round every contestant runs once, so that what else the machine does meets all of
them alike; the first round warms up and does not count. What is reported is the median of each, and pcapext's beside it.

Marked `@race(rounds, each)`, a function's contestants all do the same work on so many packets; what is reported is also the
time a packet, and how many times as fast as the first each one is. What they return must be the same.

Marked `@reporting`, a function returns the lines of a report of its own.

Marked `@counting` (counts.py), a function returns programs by name instead, and what is reported is how many instructions they
have and run.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PYTHON = sys.executable
PCAPEXT = str(Path(PYTHON).with_name("pcapext"))

PLAIN = "tcp port 80"
EXTENDED = "inner tcp port 80"
LINKTYPE = "EN10MB"
SNAPLEN = 262144

Contestants = Mapping[str, Callable[[], object]]

#: A contestant that takes longer than this, in seconds, runs so many times in all.
SLOW, SLOW_ROUNDS = 5, 3


def medians(contestants: Contestants, rounds: int, result: Callable[[object], object] = lambda returned: None) -> dict[str, float]:
    """The median time of each contestant, in seconds.

    `result` tells from what a contestant returned, and beside the clock, what it reached; the benchmark ends if not all reach the same.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(1 + rounds):
        results = {}
        for name, run in contestants.items():
            if len(times[name]) < SLOW_ROUNDS or times[name][0] < SLOW:
                start = time.perf_counter()
                returned = run()
                times[name].append(time.perf_counter() - start)
                results[name] = result(returned)
        if len(set(results.values())) > 1:
            raise SystemExit(f"contestants do not agree: {results}")
    return {name: statistics.median(counted if first < SLOW else (first, *counted)) for name, (first, *counted) in times.items()}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A contest: what it is called, how it is set up and how many rounds count."""

    name: str
    setup: Callable[[], Contestants]
    rounds: int

    def report(self) -> str:
        return table(self.name, medians(self.setup(), self.rounds))


@dataclass(frozen=True, slots=True)
class Race:
    """Contestants that do the same work on so many packets: `each`."""

    name: str
    setup: Callable[[], Contestants]
    rounds: int
    each: int
    result: Callable[[object], object]

    def report(self) -> str:
        times = medians(self.setup(), self.rounds, self.result)
        first, *_ = times.values()
        lines = [f"{self.name:<52} {'median':>12} {'a packet':>12} {'speed':>7}"]
        for contestant, seconds in times.items():
            lines.append(
                f"  {contestant:<50} {1e3 * seconds:>9.1f} ms {1e9 * seconds / self.each:>9.0f} ns {times_as_fast(first / seconds):>7}"
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Text:
    """What reports in its own words."""

    name: str
    lines: Callable[[], Iterable[str]]

    def report(self) -> str:
        return "\n".join(self.lines())


class Reports(Protocol):
    """What has something to report."""

    def report(self) -> str: ...


#: All benchmarks by name, in the order in which they run.
BENCHMARKS: dict[str, Reports] = {}


def benchmark(rounds: int) -> Callable[[Callable[[], Contestants]], Callable[[], Contestants]]:
    """Mark a function that returns contestants as a benchmark of so many rounds; its name is the benchmark's."""

    def register(setup: Callable[[], Contestants]) -> Callable[[], Contestants]:
        name = setup.__name__.replace("_", "-")
        BENCHMARKS[name] = Benchmark(name, setup, rounds)
        return setup

    return register


def race(
    rounds: int, each: int, result: Callable[[object], object] = lambda returned: returned
) -> Callable[[Callable[[], Contestants]], Callable[[], Contestants]]:
    """Mark a function that returns contestants as a race over so many packets; the first contestant is the yardstick."""

    def register(setup: Callable[[], Contestants]) -> Callable[[], Contestants]:
        name = setup.__name__.replace("_", "-")
        BENCHMARKS[name] = Race(name, setup, rounds, each, result)
        return setup

    return register


def reporting(lines: Callable[[], Iterable[str]]) -> Callable[[], Iterable[str]]:
    """Mark a function that returns the lines of a report as a benchmark; its name is the benchmark's."""
    name = lines.__name__.replace("_", "-")
    BENCHMARKS[name] = Text(name, lines)
    return lines


def process(*command: str) -> Callable[[], object]:
    """A contestant that runs a command to its end. One that fails ends the benchmark, with what it said."""

    def run() -> None:
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except OSError as error:
            raise SystemExit(f"{error}; ./setup.sh installs what benchmarks need") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{error}\n{error.stderr}") from None

    return run


def times_as_fast(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio > 0.1 else f"1/{1 / ratio:.0f}"


def table(name: str, medians: Mapping[str, float]) -> str:
    """The medians of one benchmark as text: of the peers, also how much longer pcapext took and how many times as long."""
    own, *_ = medians.values()
    lines = [f"{name:<52} {'median':>10} {'more':>10} {'ratio':>7}"]
    for number, (contestant, seconds) in enumerate(medians.items()):
        beside = f" {1000 * (own - seconds):>+7.3f} ms {own / seconds:>7.2f}" if number else ""
        lines.append(f"  {contestant:<50} {1000 * seconds:>7.3f} ms{beside}")
    return "\n".join(lines)
