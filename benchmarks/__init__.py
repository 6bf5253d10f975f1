"""How fast pcapext is, each time beside a peer that runs in the same minute on the same machine.

A benchmark is one function of `benchmarks/__main__.py`, marked `@benchmark(rounds)`. It returns its contestants, name to
callable, pcapext's own first. In each round every contestant runs once, so that what else the machine does meets all of
them alike; the first round warms up and does not count. What is reported is the median of each, and pcapext's beside it.

Marked `@counting` (counts.py), a function returns programs by name instead, and what is reported is how many instructions they
have and run.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

Contestants = Mapping[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A contest: what it is called, how it is set up and how many rounds count."""

    name: str
    setup: Callable[[], Contestants]
    rounds: int

    def medians(self) -> dict[str, float]:
        """The median time of each contestant, in seconds."""
        contestants = self.setup()
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(1 + self.rounds):
            for name, run in contestants.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        return {name: statistics.median(counted) for name, (_, *counted) in times.items()}

    def report(self) -> str:
        return table(self.name, self.medians())


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


def process(*command: str) -> Callable[[], object]:
    """A contestant that runs a command to its end. One that fails ends the benchmark, with what it said."""

    def run() -> None:
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except OSError as error:
            raise SystemExit(str(error)) from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{error}\n{error.stderr}") from None

    return run


def table(name: str, medians: Mapping[str, float]) -> str:
    """The medians of one benchmark as text: of the peers, also how much longer pcapext took and how many times as long."""
    own, *_ = medians.values()
    lines = [f"{name:<52} {'median':>10} {'more':>10} {'ratio':>7}"]
    for number, (contestant, seconds) in enumerate(medians.items()):
        beside = f" {1000 * (own - seconds):>+7.3f} ms {own / seconds:>7.2f}" if number else ""
        lines.append(f"  {contestant:<50} {1000 * seconds:>7.3f} ms{beside}")
    return "\n".join(lines)
