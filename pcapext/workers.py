"""Workers: captures read, filtered and written, by as many threads as there are processors.

In:  captures, and for each output a filter.
Out: the outputs; how many packets there were, and how many were selected.

Workers take *jobs*, the next pieces of the inputs. A worker reads its piece, finds the records in it and asks the filters, all beside the
other workers. Then the job is *settled*: what was selected is written. Jobs are settled in their order, so the outputs have that of
the inputs, by one worker at a time: who is ready while another one settles leaves its job to that one and takes the next.

A piece of a regular file is a region: its worker guesses where the first record begins, and when it is settled the job before
has told it. Where the guess was wrong, the region is read once more. From another input (a pipe, a compressed file) one worker
at a time reads; only what comes behind is done side by side. While somebody reads from a compressed file, others read the files behind it
ahead. What is selected of those is kept until it is their turn, and there is a limit to that: then they wait.
"""

from __future__ import annotations

import _thread
import os
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from pcapext.errors import CutShortError
from pcapext.outputs import Counting
from pcapext.records import CHUNK, Chunk, Input, Layout, Portion, open_input
from pcapext.selection import Filter, Selected, Selector
from pcapext.slotted import dataclass, replace

if TYPE_CHECKING:
    from pcapext.records import Origin

#: Workers unless told: from a few on, reading is as fast as memory.
_MOST_WORKERS = 4
#: Desks for each worker. With two it need not wait while another one settles.
_DESKS = 2
#: Bytes to keep at most of what was read ahead, but for what comes of the last pieces that were begun before there were as many.
_MOST_KEPT = 12 << 20


@dataclass(slots=True, eq=False)
class Task:
    """A filter and where its packets go; no more of them than `limit`, if there is one. `matching` is how many there were.

    With `is_profiled` each matcher's `counts` tell how often its instructions ran; then there must be one worker only.
    """

    filter: Filter
    output: Counting
    limit: int | None = None
    is_profiled: bool = False
    matching: int = 0

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.matching >= self.limit


class _Source:
    """An input, and how far the jobs have got with it. Inputs are numbered in their order."""

    def __init__(self, number: int, origin: Origin | Input) -> None:
        self.number = number
        self.origin = origin
        self._input: Input | None = None
        #: Of a regular file that is not compressed, its size: it is read by region.
        self.size: int | None = None
        #: How many jobs there were, and how many of them are not settled; where the next region begins.
        self.jobs = self.under_way = self.next = 0
        #: Whether a worker opens it or reads from it, when no other can. Whether it was told to the outputs.
        self.is_busy = self.is_begun = False

    def open(self, input: Input, follow: bool) -> None:
        """Before that there are no jobs."""
        self._input = input
        if input.stream.descriptor is not None and not follow:
            self.size, self.next = input.stream.size, input.offset

    @property
    def is_open(self) -> bool:
        return self._input is not None

    @property
    def input(self) -> Input:
        assert self._input
        return self._input

    @property
    def done(self) -> int:
        """Bytes of the file that are done with."""
        if not self._input:
            return 0
        return self._input.stream.position if self.size is None else self._input.offset


class _Desk:
    """The memory that a job needs until it is settled."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.chunk = Chunk()
        self.selectors = [Selector(task.filter, task.output.blocks, task.is_profiled) for task in tasks]

    def select(self, portion: Portion) -> list[list[Selected]]:
        return [[selector.select(batch) for batch in portion.batches] for selector in self.selectors]


class _Job:
    """A piece of a source. Jobs are settled in the order of their sources, and of one source in that of their numbers.

    The `last` one of a source may have nothing in it.
    """

    def __init__(
        self, desk: _Desk, source: _Source, is_last: bool, portion: Portion | None = None, error: BaseException | None = None
    ) -> None:
        #: None once what it selected is kept elsewhere.
        self.desk: _Desk | None = desk
        self.source = source
        self.number = source.jobs
        self.is_last = is_last
        self.portion = portion
        #: What to raise when it is settled.
        self.error = error
        #: What each task selected of the portion, and how many bytes of it are kept.
        self.selected: list[list[Selected]] = []
        self.kept = 0
        source.jobs += 1


class _Region(_Job):
    """The records that begin in [start, end) of a regular file. Of the `last` one, to the end of the file, which may have grown.

    Where `is_exact`, a record is known to begin at `start`.
    """

    def __init__(self, desk: _Desk, source: _Source, start: int, end: int, is_exact: bool, is_last: bool) -> None:
        super().__init__(desk, source, is_last)
        self.start = start
        self.end = end
        self.is_exact = is_exact


class Run(AbstractContextManager["Run"]):
    """The work of filtering captures, `origins`, one after the other. To be given `tasks`, then to `run` once.

    `packets`, `cut_short` and each task's `matching` tell what came of it.
    """

    def __init__(self, origins: Iterable[Origin], *, workers: int | None = None, follow: bool = False) -> None:
        self.tasks: list[Task] = []
        self.packets = 0
        self.cut_short: list[CutShortError] = []
        #: Files that are left of outputs that are not complete.
        self.left: list[str] = []
        self._origins: list[Origin | Input] = list(origins)
        self._chosen_workers = workers
        self._follow = follow
        # Held by who looks at what is to be done and what is ready.
        self._looking = threading.Condition()
        self._free: list[_Desk] = []
        # The sources that more can be taken of, in order; how many there were; bytes kept of what was read ahead.
        self._sources: list[_Source] = []
        self._begun_sources = self._kept = 0
        # Jobs to settle, by the numbers of their sources and their own; which is the next one; whether somebody settles.
        self._ready: dict[tuple[int, int], _Job] = {}
        self._next = 0, 0
        self._is_settling = False
        self._opened: list[Input] = []
        self._error: BaseException | None = None
        self._stopping = self._full = False
        # Workers that began, and that ended, each of which puts something into the queue.
        self._begun = self._ended = 0
        self._ends = SimpleQueue[None]()
        # Bytes of the sources that are done with, and the sources that are not.
        self._done_before = 0
        self._watched: list[_Source] = []
        self._wake_reader, self._wake = os.pipe()

    def first_layout(self) -> Layout:
        """How the first capture begins."""
        self._origins[0] = first = self._open(self._origins[0])
        return first.layout

    def layouts(self) -> list[Layout]:
        """How each capture begins. What cannot be opened again stays open."""
        found = []
        for index, origin in enumerate(self._origins):
            input = self._open(origin)
            found.append(input.layout)
            if isinstance(origin, Input) or input.stream.stat is None or not stat.S_ISREG(input.stream.stat.st_mode) or origin == "-":
                self._origins[index] = input
            else:
                self._close(input)
        return found

    @property
    def has_several(self) -> bool:
        return len(self._origins) > 1

    @cached_property
    def _workers(self) -> int:
        """How many threads work. One compressed file is for one of them: decompressing takes the most time, and only one can do it."""
        if self._chosen_workers:
            return self._chosen_workers
        match self._origins:
            case [Input() as only] if only.stream.compression:
                return 1
        return min(usable_processors(), _MOST_WORKERS)

    def files(self) -> list[os.stat_result]:
        """What the system says of the captures that are files: no output may be one of them."""
        found = []
        for origin in self._origins:
            if isinstance(origin, Input):
                found += [origin.stream.stat] if origin.stream.stat else []
            elif isinstance(origin, str | os.PathLike):
                with suppress(OSError, ValueError):  # it will be told when it is opened
                    found.append(os.fstat(0) if origin == "-" else os.stat(origin))
        return found

    def _open(self, origin: Origin | Input) -> Input:
        if isinstance(origin, Input):
            return origin
        input = open_input(origin, follow=self._follow, stop=self._wake_reader)
        self._opened.append(input)
        return input

    def _close(self, input: Input) -> None:
        self._opened.remove(input)
        input.stream.close()

    def run(self, watch: Callable[[int], None] | None = None) -> bool:
        """Do it; False if an interrupt (SIGINT) ended it early. Outputs are complete then too, as far as they go.

        `watch` is called now and then, with the bytes of the captures that are done with. Raises what went wrong; the outputs do not
        look complete then.
        """
        whole = self._run_workers(watch)
        if self._error:
            raise self._error
        for task in self.tasks:
            task.filter.check()
        for task in self.tasks:
            task.output.close()
        return whole

    def __exit__(self, *_: object) -> None:
        """Let go of everything; outputs that are not complete are not to look so."""
        self.left = [name for task in self.tasks if (name := task.output.abandon())]
        for input in self._opened:
            input.stream.close()
        os.close(self._wake)
        os.close(self._wake_reader)

    def _run_workers(self, watch: Callable[[int], None] | None) -> bool:
        # An interrupt may come anywhere. Thread.join takes a thread for ended after one (Python before 3.13), and what Thread.start
        # and conditions do is not made for it; these functions are.
        try:
            for _ in range(self._workers):
                _thread.start_new_thread(self._work, ())
            while self._ended < self._workers:
                self._pause()
                if watch:
                    watch(self._done_before + sum(source.done for source in list(self._watched)))
            return True
        except KeyboardInterrupt:
            self.stop()
            while self._ended < self._begun:  # one that has not begun finds nothing to do
                self._pause()
            return False

    def _pause(self) -> None:
        with suppress(Empty):
            self._ends.get(timeout=_WATCH)

    def stop(self) -> None:
        """Take no further job, and wait for no input."""
        self._stopping = True
        os.write(self._wake, b"\0")

    # --- what a worker does

    def _work(self) -> None:
        with self._looking:
            self._begun += 1
            self._free += [_Desk(self.tasks) for _ in range(_DESKS)]
        try:
            while (desk := self._free_desk()) and (job := self._take(desk)):
                try:
                    self._read(job)
                except BaseException as error:
                    job.error = error
                self._settle_ready(job)
        except BaseException as error:
            self._fail(error)
        finally:
            with self._looking:
                self._ended += 1
                self._looking.notify_all()
            self._ends.put(None)

    def _free_desk(self) -> _Desk | None:
        """A desk, when there is one; None if there is nothing more to do."""
        with self._looking:
            while not self._free and not self._stopping:  # then there are jobs that nobody settles
                self._looking.wait()
            # The one used last, which is still in a cache.
            return self._free.pop() if self._free else None

    def _take(self, desk: _Desk) -> _Job | None:
        """The next job, if there is one. What is no region is read here."""
        while True:
            with self._looking:
                source = self._source()
                if source is None:
                    return None
                if source.size is not None:
                    return self._take_region(source, source.size, desk)
                source.is_busy = True
            try:
                if source.is_open:
                    return self._take_portion(source, desk)
                source.open(self._open(source.origin), self._follow)
            except BaseException as error:
                return self._last(source, desk, error=error)
            finally:
                with self._looking:
                    source.is_busy = False
                    self._looking.notify_all()

    def _source(self) -> _Source | None:
        """A source of which a job can be taken, when there is one; None if there is nothing more to do."""
        while not self._stopping and (self._sources or self._origins):
            for source in self._sources:
                if not source.is_busy and (source is self._sources[0] or (source.size is None and self._kept < _MOST_KEPT)):
                    return source
            if self._may_begin():
                source = _Source(self._begun_sources, self._origins.pop(0))
                self._begun_sources += 1
                self._sources.append(source)
                self._watched.append(source)
                return source
            self._looking.wait()
        return None

    def _may_begin(self) -> bool:
        """Whether the next origin may be opened now. Ahead of others only what is a file and needs no waiting."""
        if not self._origins or not self._sources:
            return bool(self._origins)
        return not self._follow and self._kept < _MOST_KEPT and len(self._sources) < self._workers and _is_file(self._origins[0])

    def _take_region(self, source: _Source, size: int, desk: _Desk) -> _Job:
        # When nothing is under way, all before is settled.
        is_exact = source.under_way == 0
        start = source.input.offset if is_exact else source.next
        end = max(start, min(source.next + CHUNK, size))
        source.next = end
        source.under_way += 1
        if end >= size:
            self._forget(source)
        return _Region(desk, source, start, end, is_exact, end >= size)

    def _take_portion(self, source: _Source, desk: _Desk) -> _Job:
        portion = source.input.read(desk.chunk)
        if portion is None or portion.fault:
            self._close(source.input)
            self._end(source)
            return self._last(source, desk, portion)
        return _Job(desk, source, False, portion)

    def _last(self, source: _Source, desk: _Desk, portion: Portion | None = None, error: BaseException | None = None) -> _Job:
        self._forget(source)
        return _Job(desk, source, True, portion, error)

    def _forget(self, source: _Source) -> None:
        """Take no more jobs of a source."""
        with self._looking:
            self._sources.remove(source)
            self._looking.notify_all()

    def _end(self, source: _Source) -> None:
        """All of a source is read."""
        self._done_before += source.done
        self._watched.remove(source)

    def _read(self, job: _Job) -> None:
        """What can be done before the jobs before it are settled."""
        if isinstance(job, _Region):
            assert job.desk
            input = job.source.input
            job.portion = input.read_region(job.desk.chunk, job.start, job.end, input.layout if job.is_exact else None)
        if job.portion and job.desk:
            job.selected = job.desk.select(job.portion)
            if self._is_ahead(job.source):
                self._keep(job, job.portion, job.desk)

    def _is_ahead(self, source: _Source) -> bool:
        """Whether there are jobs to come that will be settled before one of a source."""
        with self._looking:
            return bool(self._sources) and self._sources[0].number < source.number

    def _keep(self, job: _Job, portion: Portion, desk: _Desk) -> None:
        """Keep what a job selected elsewhere, and free its desk."""
        job.selected = [
            [each.kept(task.output.takes_records or task.limit is not None) for each in batches]
            for task, batches in zip(self.tasks, job.selected, strict=True)
        ]
        job.portion, job.desk = replace(portion, batches=()), None
        job.kept = sum(each.batch.chunk.size for batches in job.selected for each in batches)
        with self._looking:
            self._kept += job.kept
            self._free.append(desk)
            self._looking.notify_all()

    def _settle_ready(self, job: _Job) -> None:
        """Settle a job, if it is the next one, and then what else is ready; or leave it to who settles."""
        with self._looking:
            self._ready[job.source.number, job.number] = job
            if self._is_settling:
                return
            self._is_settling = True
        while following := self._next_ready():
            self._settle(following)
            with self._looking:
                source, number = self._next
                # Once stopped, nobody knows whether a source has ended: what is behind it is not to be written.
                self._next = (source + 1, 0) if following.is_last and not self._stopping else (source, number + 1)
                self._kept -= following.kept
                if following.desk:
                    self._free.append(following.desk)
                self._looking.notify_all()

    def _next_ready(self) -> _Job | None:
        with self._looking:
            following = self._ready.pop(self._next, None)
            self._is_settling = following is not None
            return following

    def _fail(self, error: BaseException) -> None:
        """Nobody settles any more."""
        with self._looking:
            self._error = self._error or error
            self._stopping = True
            self._looking.notify_all()
        with suppress(OSError):
            os.write(self._wake, b"\0")

    # --- what only the worker does that settles

    def _settle(self, job: _Job) -> None:
        source = job.source
        if self._full:
            return
        # What went wrong with packets that were guessed is of no account until they are known to be some.
        if job.error and not (isinstance(job, _Region) and job.portion):
            raise job.error
        if not source.is_begun:
            source.is_begun = True
            for task in self.tasks:
                task.output.begin(source.input)
        if isinstance(job, _Region):
            self._settle_region(job, source)
        elif job.portion:
            self._write(source, job.portion, job.selected)
        for task in self.tasks:
            task.output.flush()

    def _settle_region(self, job: _Region, source: _Source) -> None:
        input, portion = source.input, job.portion
        if portion and (portion.start, portion.before) == (input.offset, input.layout):
            if job.error:
                raise job.error
            input.offset, input.layout = portion.end, portion.after
            self._write(source, portion, job.selected)
        # What the guess missed, and what a chunk could not hold. The last region goes on to the end.
        while (input.offset < job.end or job.is_last) and not self._stopping:
            end = max(job.end, input.offset + CHUNK) if job.is_last else job.end
            assert job.desk
            portion = input.read_region(job.desk.chunk, input.offset, end, input.layout)
            assert portion
            if portion.start == portion.end and not portion.fault:
                if portion.needed and job.is_last:
                    self.cut_short.append(input.cut_short(portion))
                break
            input.offset, input.layout = portion.end, portion.after
            self._write(source, portion, job.desk.select(portion))
        source.under_way -= 1
        if job.is_last:
            self._end(source)
            self._close(input)

    def _write(self, source: _Source, portion: Portion, selected: Sequence[Sequence[Selected]]) -> None:
        self.packets += portion.packets
        for task, batches in zip(self.tasks, selected, strict=True):
            for batch in batches:
                if task.is_full:
                    break
                if task.limit is not None:
                    batch = batch.first(task.limit - task.matching)
                task.matching += batch.packets
                task.output.write(source.input, batch)
        if all(task.is_full for task in self.tasks):
            self._full = True
            self.stop()
        elif isinstance(portion.fault, CutShortError):
            if not self._stopping:  # else it is we who do not read on
                self.cut_short.append(portion.fault)
        elif portion.fault:
            raise portion.fault


#: Seconds between two calls of `watch`.
_WATCH = 0.2


def _is_file(origin: Origin | Input) -> bool:
    """Whether what is there can be read without waiting for somebody to write it."""
    if isinstance(origin, Input):
        return origin.stream.size is not None
    return origin != "-" and (not isinstance(origin, str | os.PathLike) or os.path.isfile(origin))


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
