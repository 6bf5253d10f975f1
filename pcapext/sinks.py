"""Bytes into files, of captures or whatever else: standard output, pipes, files; compressed or not.

In:  a path, "-" for standard output; then bytes.
Out: a `Sink`, and in the end the file.

A regular file is complete or not there: it is written as OUT.part, and becomes OUT when it is closed. Until then OUT is what it
was before. Only what is to be read while it grows is written to OUT at once. Whatever cannot be written is a `CaptureError` that names
the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

from pcapext.compression import Encoder, compression_of, encoder
from pcapext.errors import CaptureError, naming, printable

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Where the own descriptors are, by number.
_DESCRIPTORS = "/proc/self/fd"


class Sink(AbstractContextManager["Sink"]):
    """A file being written. Made by `open_sink`.

    `name` is what messages call it. `descriptor` is None where the bytes are compressed, or the sink is closed; otherwise it is
    the file's, and may be written to beside `write`. As a context manager a sink is closed, or abandoned after an exception.

    Where the reader of a pipe has gone, the `__cause__` of the error is a `BrokenPipeError`.
    """

    def __init__(self, name: str, file: int, encoder: Encoder | None = None, becomes: str | None = None) -> None:
        self.name = name
        self.descriptor = None if encoder else file
        self._file = file
        self._encoder = encoder
        self._becomes = becomes  # the path of the regular file that is OUT; it is OUT.part until then
        self._begun = False
        self._fault: CaptureError | None = None

    @property
    def is_stream(self) -> bool:
        """Whether somebody may read at the other end what is written, before the sink is closed."""
        return self._becomes is None

    def write(self, data: Buffer) -> None:
        """Write all of it."""
        self._begun = True
        self._write(self._encoder.encode(data) if self._encoder else data)

    def flush(self) -> None:
        """Hand all that was written to the system, so that whoever reads at the other end has it."""
        if self._encoder:
            self._write(self._encoder.flush())

    def close(self) -> None:
        """Complete the file. Closing twice is fine; writing on is an error. What fails leaves the file as `abandon` does."""
        if self._file < 0:
            return
        try:
            if self._fault:  # The file lacks what was not written then.
                raise self._fault
            if self._encoder:
                encoder, self._encoder = self._encoder, None
                self._write(encoder.finish())
            with naming(self.name):
                # Some file systems, such as NFS, tell only at a close that the disk is full. The file itself stays open: that
                # keeps its lock.
                os.close(os.dup(self._file))
                if self._becomes:
                    os.rename(_part(self._becomes), self._becomes)
        except BaseException:
            self.abandon()
            raise
        self._close()

    def abandon(self) -> str | None:
        """Leave what was written as OUT.part, if it was anything: its name. A pipe gets no more."""
        if self._file < 0:
            return None
        left = None
        try:
            if self._becomes:
                if self._encoder and self._begun and not self._fault:
                    with suppress(CaptureError):
                        self._write(self._encoder.finish())
                with suppress(OSError):
                    left = f"{self.name}.part"
                    if os.fstat(self._file).st_size == 0:
                        left = None
                        os.unlink(_part(self._becomes))
        finally:
            self._close()
        return left

    def _close(self) -> None:
        self.descriptor = None
        self._encoder = None
        # A number that is no file's, so that nothing is written to what gets the number next.
        file, self._file = self._file, -1
        os.close(file)

    def _write(self, data: Buffer) -> None:
        if self._file < 0:
            raise CaptureError(f"{self.name}: it is closed")
        view = memoryview(data).cast("B")
        try:
            with naming(self.name):
                while view:
                    try:
                        view = view[os.write(self._file, view) :]
                    except BlockingIOError:
                        poll = select.poll()
                        poll.register(self._file, select.POLLOUT)
                        poll.poll()
        except CaptureError as error:
            self._fault = error
            raise

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        if exception is None:
            self.close()
        else:
            self.abandon()


def open_sink(path: str | os.PathLike[str], *, inputs: Iterable[os.stat_result] = (), grows: bool = False) -> Sink:
    """Open a file to write; "-" is standard output. Its suffix (.gz, .zst, .lz4) says how it is compressed.

    Special files, and descriptors by names such as /dev/stdout, are written as they are. A regular file is replaced when the
    sink is closed, or emptied now and written as it is if it `grows`; it keeps its mode. A symbolic link stays one. `inputs` are files
    that it must not be.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with open_sink(f"{folder}/out.gz") as sink:
    ...         sink.write(b"captured")
    ...         os.listdir(folder)
    ...     os.listdir(folder)
    ['out.gz.part']
    ['out.gz']
    """
    name = "standard output" if path == "-" else printable(os.fsdecode(path))
    inputs = [file for file in inputs if stat.S_ISREG(file.st_mode)]
    compression = compression_of(path)[1]
    with naming(name):
        number = 1 if path == "-" else _own_descriptor(path)
        status = os.fstat(number) if number is not None else _status(path)
        _check_other(name, status, inputs)
        becomes = None
        if number is not None:
            file = os.dup(number)
        elif os.path.basename(path) and (status is None or stat.S_ISREG(status.st_mode)):
            target = os.path.realpath(path)
            if grows:
                file = _create(name, target, None, inputs)
            else:
                becomes = target
                if status is not None and not os.access(becomes, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                file = _create(_part(name) if not os.path.islink(path) else printable(_part(becomes)), _part(becomes), status, inputs)
        else:
            file = os.open(path, os.O_WRONLY)
    try:
        return Sink(name, file, encoder(compression) if compression else None, becomes)
    except BaseException:
        os.close(file)
        raise


def _create(name: str, path: str, old: os.stat_result | None, inputs: list[os.stat_result]) -> int:
    """A descriptor of a file, empty and locked, with the mode of an `old` one. `name` is for messages."""
    with naming(name):
        while True:
            # O_NONBLOCK: it may be a FIFO, which would be waited for. O_NOFOLLOW: a link leads to a file that is not ours.
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise CaptureError(f"{name}: the file is in the way")
                _check_other(name, status, inputs)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise CaptureError(f"{name}: it is being written already") from error
                # It may have been completed and renamed before it was locked: then it is no part any more.
                named = _status(path)
                if named is not None and os.path.samestat(named, status):
                    os.ftruncate(file, 0)
                    if old is not None:
                        os.fchmod(file, old.st_mode & 0o777)
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)


def _part(path: str) -> str:
    return f"{path}.part"


def _status(path: str | os.PathLike[str]) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _own_descriptor(path: str | os.PathLike[str]) -> int | None:
    """The number of an open descriptor that a path names: /dev/stdout, /dev/fd/3, or links to such."""
    own = os.path.realpath(_DESCRIPTORS)
    for _ in range(40):  # as many links as Linux follows
        folder, base = os.path.split(path)
        if os.path.realpath(folder) == own and base.isdecimal() and len(base) < 10:
            return int(base)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def _check_other(name: str, status: os.stat_result | None, inputs: list[os.stat_result]) -> None:
    if status is not None and any(os.path.samestat(status, file) for file in inputs):
        raise CaptureError(f"{name}: the output is the same file as the input")
