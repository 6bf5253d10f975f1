"""Syntax errors in words: what does not fit where a parser stopped, what would, and what was perhaps meant.

In:  a parser as it stands at the place, the token that does not fit, and the text of the filter.
Out: the `FilterError` to raise.

What would fit is asked of the parser's own tables, so that a message names all that the grammar takes there and nothing else.
"""

from __future__ import annotations

from typing import Any

from pcapext.errors import FilterError, Span, excerpt
from pcapext.lexer import KEYWORDS, Lexeme
from pcapext.syntax import KeyValue

#: What may stand at a place, by a token of each kind. The first row that fits is the whole answer ...
_ANY_OF = (
    ("BOUND", "a term"),
    ("LEN", "a number, a flow key or bytes of a header"),
    ("HID", "a name, a number or an address"),
)
#: ... and where none does, all of these that fit are.
_CHOICES = (
    ("ID", "a name"),
    ("NUM", "a number"),
    ("HOST", "a qualifier such as 'host' or 'port'"),
    ("GEQ", "a comparison"),
    ("+", "an operator"),
    ("[", "'['"),
    (":", "':'"),
    ("]", "']'"),
    (")", "')'"),
    ("AND", "'and'"),
    ("OR", "'or'"),
    ("$end", "the end"),
)


def syntax_error(parser: Any, token: Any, expression: str) -> FilterError:
    """The error for a token of PLY's that does not fit, None at the end of the text. `parser` is PLY's, with its stacks as they are."""
    return _Misfit(parser, token, expression).error()


class _Misfit:
    """What is wrong at the place where a parser stopped: the token that does not fit, and what would."""

    def __init__(self, parser: Any, token: Any, expression: str):
        self.parser = parser
        self.expression = expression
        self.type = token.type if token else "$end"
        self.span = token.value.span if token else Span(len(expression), len(expression))
        self.text = excerpt(expression[self.span.start : self.span.end])
        self.before, self.last = ([None] + [symbol.type for symbol in parser.symstack])[-2:]
        value = getattr(parser.symstack[-1], "value", None)
        self.last_text = value.text if isinstance(value, Lexeme) else ""

    def error(self) -> FilterError:
        """The error to raise."""
        if self.last in ("INNER", "OUTER") and self.type in self.parser.action[0]:
            # What begins a term, but none that can be asked of the headers inside.
            message = f"'{self.text}' has no meaning after '{self.last_text}'"
        else:
            found = f"'{self.text}'" if self.text else "end"
            message = f"unexpected {found}, expected {self.expected()}{self.hint()}"
        return FilterError(message, self.expression, self.span)

    def shifts(self, token: str) -> bool:
        """Whether the parser would come to shift a token of this type at the place."""
        states = list(self.parser.statestack)
        while True:
            action = self.parser.action[states[-1]].get(token)
            if action is None:
                return False
            if action >= 0:
                return True
            rule = self.parser.productions[-action]
            if rule.len:
                del states[-rule.len :]
            states.append(self.parser.goto[states[-1]][rule.name])

    def expected(self) -> str:
        if self.last in ("INNER", "OUTER"):
            return "a term"
        for token, text in _ANY_OF:
            if self.shifts(token):
                return text
        choices = [text for token, text in _CHOICES if self.shifts(token)]
        if not choices:  # after `src or`, `dst and`
            return "'src'" if self.shifts("SRC") else "'dst'"
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)

    def hint(self) -> str:
        """What was perhaps meant."""
        from difflib import get_close_matches  # here, since only an error needs it

        name = self.last_text if self.last == "ID" else ""
        if difference := _difference(self.text if self.type == "ID" else name):
            return f"; write '{difference}' for a difference"
        if comparison := self.comparison():
            return f"; write '{comparison}' to compare with a name"
        if self.before == "scope" and self.last == "NOT":
            return f"; '{self.last_text}' belongs before 'inner' or 'outer'"
        if self.before == "scope" and name:
            return f"; '{excerpt(name)}' is taken as the name of a host"
        if self.text in KEYWORDS and self.type not in ("AND", "OR", "NOT") and self.last != "ENCAP" and self.shifts("ID"):
            return f"; the name is written '\\{self.text}'"
        if self.type == "ID" and not self.text.startswith("\\"):
            possible = [word for word, token in KEYWORDS.items() if self.shifts(token)]
            for word in get_close_matches(self.text.lower(), possible, n=1, cutoff=0.7):
                return f"; did you mean '{word}'?"
        if self.shifts("BOUND") and self.type in ("ID", "HID", "HID6", "EID"):
            kind = "ether host" if self.type == "EID" else "net" if self.expression[self.span.end :][:1] == "/" else "host"
            return f" such as '{kind} {self.text}'"
        return ""

    def comparison(self) -> str:
        """`tproto tcp` where it says `tproto = tcp`; '' elsewhere."""
        match [getattr(symbol, "value", None) for symbol in self.parser.symstack[-3:]]:
            case [_, KeyValue(_, "tproto" | "nproto" as key), Lexeme("=" | "==" | "!=")] if self.type == "ID":
                return f"{key} {self.text}"
            case [KeyValue(_, "tproto" | "nproto" as key), Lexeme("=" | "==" | "!="), Lexeme(word)] if self.last == "protocol_word":
                return f"{key} {word}"
        return ""


def _difference(name: str) -> str:
    """`poff - 14` for `poff-14`, which the scanner reads as one name; '' for another name."""
    parts = name.split("-")
    numbers = [part for part in parts if KEYWORDS.get(part) in ("KEY", "PROTOCOL_KEY", "LEN")]
    return " - ".join(parts) if parts[1:] and numbers else ""
