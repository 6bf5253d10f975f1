"""Filtering: whole captures into other captures.

In:  captures, and filters with the names of outputs.
Out: the outputs; how many packets there were, and how many were selected.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pcapext.bpf import Program
from pcapext.errors import CaptureError, CaptureWarning, printable
from pcapext.formats import PCAP_MAGICS, PCAPNG_MAGIC
from pcapext.outputs import Counting, PcapngOutput, PcapOutput, is_pcapng, largest_of
from pcapext.records import read_head
from pcapext.selection import Filter
from pcapext.sinks import open_sink
from pcapext.slotted import dataclass
from pcapext.streams import open_stream
from pcapext.workers import Run, Task

if TYPE_CHECKING:
    from pcapext.records import Origin

FilePath = str | os.PathLike[str]


def captures(source: Origin | Sequence[Origin]) -> list[Origin]:
    """The captures that are meant: of a folder, the files in it that begin like a capture, in the order of their names.

    Files of unfinished outputs (.part) do not count.
    """
    sources: Sequence[Any] = source if isinstance(source, list | tuple) else [source]
    found: list[Origin] = []
    for each in sources:
        if isinstance(each, str | os.PathLike) and os.path.isdir(each):
            found += _in_folder(each)
        else:
            found.append(each)
    return found


def _in_folder(folder: FilePath) -> list[Origin]:
    paths = sorted(os.path.join(os.fspath(folder), name) for name in os.listdir(folder))
    found: list[Origin] = [path for path in paths if not path.endswith(".part") and os.path.isfile(path) and _is_capture(path)]
    if not found:
        raise CaptureError(f"{printable(os.fspath(folder))}: the folder has no captures")
    return found


def _is_capture(path: str) -> bool:
    with open_stream(path) as stream:
        magic = read_head(stream)[:4]
    return magic == PCAPNG_MAGIC or magic in PCAP_MAGICS


def prepare(
    run: Run, outputs: Iterable[tuple[Filter, FilePath | Counting | None]], limit: int | None = None, *, profile: bool = False
) -> None:
    """Give a run its tasks: filters, and for each where its packets go; None only counts them.

    Whatever is wrong with a filter for the first capture or with the name of an output is raised before anything is written.
    """
    layout, named = run.first_layout(), list(outputs)
    if layout.header:
        for filter, _ in named:
            filter.matcher(layout.header.linktype, layout)
    precision = None
    if run.has_several and any(isinstance(output, str | os.PathLike) and not is_pcapng(output) for _, output in named):
        precision = largest_of(run.layouts())
    for filter, output in named:
        match output:
            case None:
                output = Counting()
            case str() | os.PathLike():
                sink = open_sink(output, inputs=run.files())
                output = PcapngOutput(sink) if is_pcapng(output) else PcapOutput(sink, precision)
        run.tasks.append(Task(filter, output, limit, profile))


def _finish(run: Run) -> Filtered:
    is_whole = run.run()
    for fault in run.cut_short:
        warnings.warn(str(fault), CaptureWarning, stacklevel=3)
    if not is_whole:
        raise KeyboardInterrupt
    return Filtered(run.packets, run.tasks[0].matching)


@dataclass(frozen=True, slots=True)
class Filtered:
    """What came of filtering: how many packets were read, and how many of them were selected."""

    packets: int
    matching: int


def filter_file(
    source: Origin | Sequence[Origin],
    output: str | os.PathLike[str],
    filter: str | Program | None = None,
    *,
    limit: int | None = None,
    follow: bool = False,
    workers: int | None = None,
    **options: Any,
) -> Filtered:
    """Write the packets of captures that a filter accepts to another capture, in their order.

    `source` is a path, "-" for standard input, a buffer that holds a capture, or a list of such. `output` is a path or "-"; its name
    says whether it is pcapng (.pcapng) or pcap, and how it is compressed (.gz, .zst, .lz4). It is there when all is written, not
    before. `filter` is an expression, compiled with `options`, those of `compile`, or a program. `limit` is how many
    packets to write at most. With `follow` files that grow are read on. `workers` are threads, unless told as many as processors, up to 4.

    A capture that is cut short is a `CaptureWarning`; what is damaged otherwise a `CaptureError`, and the packets before it are in
    OUTPUT.part. An interrupt completes the output before it is raised.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     filter_file("examples/tunnels.pcap", f"{folder}/web.pcapng.zst", "inner tcp port 80")
    Filtered(packets=60, matching=28)
    """
    with Run(captures(source), follow=follow, workers=workers) as run:
        prepare(run, [(Filter(filter, **options), output)], limit)
        return _finish(run)


def count(source: Origin | Sequence[Origin], filter: str | Program | None = None, *, workers: int | None = None, **options: Any) -> int:
    """How many packets of captures a filter accepts. Arguments, warnings and errors are those of `filter_file`.

    >>> count("examples/tunnels.pcap", "inner tcp port 80")
    28
    """
    with Run(captures(source), workers=workers) as run:
        prepare(run, [(Filter(filter, **options), None)])
        return _finish(run).matching
