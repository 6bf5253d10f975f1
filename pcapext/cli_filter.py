"""The command `pcapext filter`: packets picked out of captures.

In:  the arguments, parsed; a function that makes a `Filter` of an expression.
Out: captures, lines or counts; the exit status.
"""

from __future__ import annotations

import argparse
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from pcapext.bpf import Program
from pcapext.errors import CaptureError, printable
from pcapext.filtering import captures, prepare
from pcapext.outputs import Calling, Counting
from pcapext.progress import Progress
from pcapext.selection import Filter, Selected
from pcapext.workers import Run

if TYPE_CHECKING:
    from pcapext.encapsulation import WalkSettings

#: What a shell tells of a program that SIGINT ended.
INTERRUPTED = 130


def run_filter(options: argparse.Namespace, make_filter: Callable[[str | None], Filter]) -> int:
    """Run the command. `make_filter` makes the filter of an expression, or of what the other arguments say."""
    filters = (
        {name: make_filter(expression) for name, expression in _splits(options)} if options.split else {options.write: make_filter(None)}
    )
    prints_lines = not (options.split or options.write or options.count)
    # How often instructions run is nothing that threads can count together.
    run = Run(captures(options.read), workers=1 if options.profile else options.workers, follow=options.follow)
    try:
        with run:
            outputs = {
                name: _lines(filter.settings) if prints_lines else None if options.count else name for name, filter in filters.items()
            }
            prepare(run, [(filters[name], output) for name, output in outputs.items()], options.packets, profile=options.profile)
            progress = Progress(_size(run))
            watches = sys.stderr.isatty() and not (prints_lines and sys.stdout.isatty())
            try:
                is_whole = run.run(progress.show if watches else None)
            finally:
                progress.clear()
                if options.count:
                    _print_counts(run, list(filters) if options.split else None)
    except CaptureError as error:
        if not run.left:
            raise
        raise CaptureError(f"{error}; what was written is in {', '.join(run.left)}") from error.__cause__
    if options.profile:
        for filter in filters.values():
            _print_profile(filter)
    for fault in run.cut_short:
        print(f"pcapext: warning: {fault}", file=sys.stderr)
    if not is_whole:
        matching = sum(task.matching for task in run.tasks)
        print(f"pcapext: interrupted: {_packets(run.packets)} read, {matching} selected", file=sys.stderr)
        return INTERRUPTED
    return 1 if run.cut_short else 0


def _splits(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Names of outputs and their expressions."""
    if options.write or options.expression or options.file is not None or options.program is not None:
        options.usage_error("argument --split: not allowed with -w or another filter")
    splits: list[tuple[str, str]] = []
    for text in options.split:
        name, sign, expression = text.partition("=")
        if not sign or not name:
            options.usage_error(f"argument --split: '{text}' is no name of an output with its filter, as in web.pcap='tcp port 80'")
        if name == "-" or name in dict(splits):
            options.usage_error(
                f"argument --split: {name} cannot be the output of {'one of several filters' if name == '-' else 'two filters'}"
            )
        splits.append((name, expression))
    return splits


def _lines(settings: WalkSettings | None) -> Counting:
    """The output of packets one a line."""
    from pcapext.capture import packets_of
    from pcapext.summary import summarize

    def show(selected: Selected) -> None:
        sys.stdout.write("".join(f"{summarize(packet, settings)}\n" for packet in packets_of(selected)))

    return Calling(show, sys.stdout.flush)


def _size(run: Run) -> int | None:
    """The bytes of the captures, None where one is no file."""
    files = run.files()
    regular = [file.st_size for file in files if stat.S_ISREG(file.st_mode)]
    return sum(regular) if regular and len(regular) == len(files) else None


def _print_counts(run: Run, names: list[str] | None) -> None:
    for index, task in enumerate(run.tasks):
        sys.stdout.write(f"{printable(names[index])}: {_packets(task.matching)}\n" if names else f"{_packets(task.matching)}\n")


def _packets(number: int) -> str:
    return f"{number} packets" if number != 1 else "1 packet"


def _print_profile(filter: Filter) -> None:
    """The programs that ran, and before each instruction how often it did."""
    for (linktype, _), matcher in filter.matchers.items():
        print(f"# link type {linktype}", file=sys.stderr)
        lines = Program(matcher.instructions, linktype).dump().splitlines()
        for count, line in zip(matcher.counts, lines, strict=True):
            print(f"{count:>12}  {line}", file=sys.stderr)
