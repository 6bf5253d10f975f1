"""Markers stand for pcapext's parts of a filter, are found again in libpcap's program, and touch nothing else."""

from __future__ import annotations

import re
from random import Random

import pytest
from filters import EN10MB, compiled, nodes, words
from hypothesis import example, given
from hypothesis import strategies as st

from pcapext import bpf
from pcapext.errors import FilterError, Span
from pcapext.extension import Extension, Marked, MixedRelation, Operand, Term
from pcapext.lexer import make_lexer
from pcapext.mark import mark
from pcapext.parser import parse
from pcapext.resolve import resolve
from pcapext.syntax import Number, Relation

_HOLDS = Relation("=", Number(1, Span(0, 0)), Number(1, Span(0, 0)), Span(0, 0))


def marked(text: str) -> tuple[tuple[Extension, ...], Marked]:
    extensions = resolve(text, parse(text))
    return extensions, mark(text, extensions)


def numbers(text: str) -> list[int]:
    """Every number in a filter, as libpcap reads it."""
    lexer = make_lexer()
    lexer.input(text)
    return [token.value.number for token in lexer if token.type == "NUM"]


def check(text: str) -> Marked:
    """What holds of every filter: markers are new numbers, each stands once, and the text around them is as it was."""
    extensions, result = marked(text)
    markers = [*result.terms, *result.relations, *result.numbers]
    assert len(set(markers)) == len(markers)
    assert not set(markers) & set(numbers(text))
    assert all(marker < 2**31 for marker in markers)
    found = numbers(result.text)
    assert [found.count(marker) for marker in markers] == [1] * len(markers)

    expected, at = "", 0
    terms, relations, operands = iter(result.terms.items()), iter(result.relations.items()), iter(result.numbers.items())
    for extension in extensions:
        expected += text[at : extension.span.start]
        match extension:
            case Term(span, condition):
                marker, meaning = next(terms)
                assert meaning == condition
                expected += f"(greater {marker})"
            case MixedRelation(span, parts):
                marker, values = next(relations)
                assert values == tuple(part.value for part in parts)
                expected += f"(greater {marker} and "
                at = span.start
                for part in parts:
                    marker, value = next(operands)
                    assert value == part.value
                    expected += f"{text[at : part.span.start]}(1 * {marker})"
                    at = part.span.end
                expected += f"{text[at : span.end]})"
        at = span.end
    assert result.text == expected + text[at:]
    return result


def accepted(text: str) -> bool:
    """Not every number can be a flow key: `port thoff + 80`."""
    try:
        marked(text)
    except FilterError:
        return False
    return True


def near_markers() -> st.SearchStrategy[str]:
    """Numbers around those that the markers begin with, in every way to write them. (Octal with one 0 is a MAC address.)"""
    number = st.integers(0x6500_0000 - 2, 0x6500_0000 + 6)
    form = st.sampled_from(["{}", "{:#x}", "{:#X}", "0x00{:x}", "0x00000000{:x}", "00{:o}", "0000{:o}"])
    return st.builds(str.format, form, number)


@given(st.lists(near_markers(), min_size=1, max_size=6))
@example(["0014500000000", "0x065000001"])
def test_markers_are_no_numbers_of_the_filter(written: list[str]) -> None:
    """libpcap's program could not be told from a program with that number."""
    relations = " and ".join(f"link[thoff] = {number} and len != {number}" for number in written)
    check(f"{relations} and inner tcp")


def test_text_around_markers_is_untouched() -> None:
    random = Random(1)
    made = 0
    for _ in range(400):
        text = " ".join(words(random, EN10MB)) or "tcp"
        if isinstance(compiled(text), str):
            continue
        places = sorted({node.span.start for node in nodes(parse(text)) if isinstance(node, Number)})
        if places and random.random() < 0.8:
            at = random.choice(places)
            text = f"{text[:at]} thoff + {text[at:]}"
        text = random.choice((text, f"inner tcp port 80 or {text}", f"{text} and ( poff > 3 )", f"not ( {text} ) or link [ nhoff ] = 2"))
        made += accepted(text)
        if accepted(text):
            check(text)
    assert made > 100


@pytest.mark.parametrize(
    "text",
    [
        "inner tcp",
        "vlan 10 and inner tcp and ip host 10.0.0.1 or not inner udp port 53",
        "ip[2:2] = poff - 14",
        "link[thoff + 13] & 2 != 0 or inner ip",
        "1 << tproto = ip[0] and ip[0] / nproto > 2",
        "not (tcp[thoff:2] > nhoff * 2 + tcp[2]) and mpls and inner arp",
        "len = 0x64ffffff and poff > 3 and greater 5",
        "pppoes and inner tcp and (ip or ip6[nhoff] = 2)",
    ],
)
def test_markers_are_found_in_libpcaps_program(text: str) -> None:
    """A term is one test of the length, a number one load of a constant; nothing else in the program has their numbers."""
    _, result = marked(text)
    program = compiled(result.text)
    assert not isinstance(program, str), result.text
    for marker in (*result.terms, *result.relations):
        (at,) = [index for index, instruction in enumerate(program) if instruction.k == marker]
        assert program[at].code == bpf.JGE_K
        assert program[at - 1].code == bpf.LD_LEN
    for marker in result.numbers:
        (load,) = [instruction for instruction in program if instruction.k == marker]
        assert load.code == bpf.LD_IMM


def test_no_extensions_no_change() -> None:
    assert mark("tcp port 80", ()) == Marked("tcp port 80", {}, {}, {})


def test_two_operands() -> None:
    text = "ip[0] + nhoff < thoff"
    operands = (Operand(Span(8, 13), Number(1, Span(8, 13))), Operand(Span(16, 21), Number(2, Span(16, 21))))
    result = mark(text, [MixedRelation(Span(0, 21), operands)])
    assert re.fullmatch(r"\(greater \d+ and ip\[0\] \+ \(1 \* \d+\) < \(1 \* \d+\)\)", result.text)
    assert list(result.relations.values()) == [(operands[0].value, operands[1].value)]
    assert list(result.numbers.values()) == [operands[0].value, operands[1].value]
