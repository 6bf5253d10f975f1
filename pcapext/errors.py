"""The exceptions of pcapext, and how a place in an expression is shown.

In:  a message, and for expressions the text and the span that is wrong.
Out: exceptions whose `str()` is what a user reads, caret included.

Everything that a caller's input can cause derives from `PcapextError`;
anything else that escapes is a bug in pcapext.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unicodedata import category, east_asian_width

from pcapext.slotted import dataclass

#: Characters an expression may take in a message before it is cut around the place that is wrong.
WIDTH = 76
#: Characters that a message repeats of an expression.
LONGEST_EXCERPT = 40


@dataclass(frozen=True, slots=True)
class Span:
    """A place in an expression: characters `start` up to, not including, `end`.

    >>> Span(6, 9).cover(Span(10, 14))
    Span(start=6, end=14)
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a span cannot run from {self.start} to {self.end}")

    def cover(self, other: Span) -> Span:
        """The smallest span that holds both."""
        return Span(min(self.start, other.start), max(self.end, other.end))


class PcapextError(Exception):
    """Base of all errors that input can cause."""


class FilterError(PcapextError):
    """An expression that has no program: what is wrong, what was expected and where.

    >>> print(FilterError("unexpected 'and', expected a term", "tcp and and udp", Span(8, 11)))
    unexpected 'and', expected a term
      tcp and and udp
              ^^^
    """

    def __init__(self, message: str, expression: str | None = None, span: Span | None = None):
        super().__init__(message)
        self.message = message
        self.expression = expression
        self.span = span

    def __str__(self) -> str:
        if self.expression is None or self.span is None:
            return printable(self.message)
        return f"{printable(self.message)}\n{render(self.expression, self.span)}"

    def __reduce__(self) -> tuple[type[FilterError], tuple[str, str | None, Span | None]]:
        return FilterError, (self.message, self.expression, self.span)


class SettingsError(PcapextError, ValueError):
    """A setting of the walk that is unknown or out of range; the message names it and what is possible."""


class ProgramError(PcapextError):
    """A BPF program, or a text of one, that is not valid; the message names the instruction or line."""


class CaptureError(PcapextError):
    """A capture that cannot be read or written; the message names the file."""


class CutShortError(CaptureError):
    """A capture that ends within a record: all before was read."""


class CaptureWarning(UserWarning):
    """Something about a capture that did not keep it from being read: it is cut short, or an interface lacks what was asked for."""


class AttachError(PcapextError):
    """A filter that cannot run where it was to be attached; the message names the place, and the kernel's reason if there is one."""


class KernelLacksError(AttachError):
    """The kernel lacks something for this filter that pcapext has, running it itself: memory, or a part of the packet."""


class AttachWarning(UserWarning):
    """What to know of an attached filter: pcapext filters in place of the kernel, or there is another filter by now."""


class LibpcapError(PcapextError):
    """libpcap is missing, or refused a call; the message has its words."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Make errors of the system, in what is done with a file, `CaptureError`s that name it."""
    try:
        yield
    except OSError as error:
        raise CaptureError(f"{name}: {error.strerror}") from error
    except ValueError as error:  # a NUL character in a path
        raise CaptureError(f"{name}: {error}") from error


def printable(text: str) -> str:
    """`text` on one line, as many characters: what a terminal would act on becomes a space or '?'."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def excerpt(text: str) -> str:
    """A piece of an expression for a message: cut if it is long, and what a terminal would act on as an escape.

    >>> print(excerpt("\\0"))
    \\x00
    """
    short = text if len(text) <= LONGEST_EXCERPT else f"{text[: LONGEST_EXCERPT - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def columns(text: str) -> int:
    """The columns that printable text takes on a terminal: some characters take two, and combining ones none."""
    return sum(2 if east_asian_width(c) in "WF" else 0 if category(c) in ("Mn", "Me") else 1 for c in text)


def render(expression: str, span: Span) -> str:
    """Two lines: the expression, cut to `WIDTH` around the place, and carets below the place.

    >>> print(render("ip and (", Span(8, 8)))
      ip and (
              ^
    """
    text, start = printable(expression), min(span.start, len(expression))
    first = max(0, min(start - WIDTH // 3, len(text) - WIDTH))
    last = first + WIDTH
    head = "..." if first else ""
    tail = "..." if last < len(text) else ""
    before, place = head + text[first:start], text[start : min(span.end, last)]
    return f"  {head}{text[first:last]}{tail}\n  {' ' * columns(before)}{'^' * (columns(place) or 1)}"
