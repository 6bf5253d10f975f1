"""The scanner cuts a filter where libpcap's does, and calls the pieces what libpcap calls them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from random import Random
from time import process_time

import pytest
from filters import SYNTAX_ERROR, compiled
from hypothesis import example, given
from hypothesis import strategies as st

from pcapext.errors import FilterError, Span
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.lexer import KEYWORDS, NUMBER_NAMES, Lexeme, make_lexer


def tokens(text: str) -> list[tuple[str, Lexeme]]:
    """The tokens of a text, by type."""
    lexer = make_lexer()
    lexer.input(text)
    return [(token.type, token.value) for token in lexer]


def cut(text: str) -> str:
    """The tokens of a text as `TYPE text`, in one line."""
    return ", ".join(f"{kind} {text[lexeme.span.start : lexeme.span.end]}" for kind, lexeme in tokens(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The longest match wins ...
        ("10.0.0.1", "HID 10.0.0.1"),
        ("10.0.0.1x", "ID 10.0.0.1x"),
        ("10.0.0.1.2", "ID 10.0.0.1.2"),
        ("10.0", "HID 10.0"),
        ("10.", "ID 10."),
        ("0x0a.0x1", "HID 0x0a.0x1"),
        ("0x0a.0xg", "ID 0x0a.0xg"),
        ("10", "NUM 10"),
        ("10x", "ID 10x"),
        ("0x1f", "NUM 0x1f"),
        ("0X1F", "NUM 0X1F"),
        ("0x", "ID 0x"),
        ("len", "LEN len"),
        ("len5", "ID len5"),
        ("len-5", "ID len-5"),
        ("len -5", "LEN len, - -, NUM 5"),
        ("tcp", "TRANSPORT tcp"),
        ("tcp-", "TRANSPORT tcp, - -"),
        ("tcp-syn", "NUM tcp-syn"),
        ("tcp-syn|tcp-ack", "NUM tcp-syn, | |, NUM tcp-ack"),
        ("icmp-echo", "NUM icmp-echo"),
        ("icmp-echoreply", "NUM icmp-echoreply"),
        ("icmp-echoes", "ID icmp-echoes"),
        ("es-is", "PROTOCOL es-is"),
        ("es-iso", "ID es-iso"),
        ("a_b", "ID a_b"),
        ("a_", "ID a, CHARACTER _"),
        ("a.", "ID a."),
        ("a--b", "ID a--b"),
        ("TCP", "ID TCP"),
        # ... and of equals the rule that stands first.
        ("001122334455", "EID 001122334455"),
        ("00112233445", "NUM 00112233445"),
        ("aabbccddeeff", "EID aabbccddeeff"),
        ("aabb.ccdd.eeff", "EID aabb.ccdd.eeff"),
        ("1.2.3.4.5.6", "EID 1.2.3.4.5.6"),
        ("1-2-3-4-5-6", "EID 1-2-3-4-5-6"),
        ("1-2-3-4-5-6-7", "ID 1-2-3-4-5-6-7"),
        ("1-2-3-4-5", "ID 1-2-3-4-5"),
        ("0:1:2:3:4:5", "EID 0:1:2:3:4:5"),
        ("00:11:22:33:44:55", "EID 00:11:22:33:44:55"),
        ("00:11:22:33:44:556", "EID 00:11:22:33:44:55, NUM 6"),
        ("000:1", "NUM 000, : :, NUM 1"),
        # IPv6 addresses and what only looks like one.
        ("::", "HID6 ::"),
        ("::1", "HID6 ::1"),
        ("1::", "HID6 1::"),
        ("fe80::1", "HID6 fe80::1"),
        ("1:2:3:4:5:6:7:8", "HID6 1:2:3:4:5:6:7:8"),
        ("1:2:3:4:5:6:7::", "HID6 1:2:3:4:5:6:7::"),
        ("::2:3:4:5:6:7:8", "HID6 ::2:3:4:5:6:7:8"),
        ("1:2:3:4:5:6:10.0.0.1", "HID6 1:2:3:4:5:6:10.0.0.1"),
        ("::10.0.0.1", "HID6 ::10.0.0.1"),
        ("::ffff:10.0.0.1", "HID6 ::ffff:10.0.0.1"),
        ("1:2::10.0.0.1", "HID6 1:2::10.0.0.1"),
        ("1:2:3:4:5::10.0.0.1", "HID6 1:2:3:4:5::10.0.0.1"),
        ("1:2:3:4:5:6::10.0.0.1", "HID6 1:2:3:4:5:6::10, CHARACTER ., HID 0.0.1"),
        ("12345::1", "NUM 12345, HID6 ::1"),
        ("::12345", "HID6 ::1234, NUM 5"),
        (":", ": :"),
        (":::", "HID6 ::, : :"),
        ("6:2", "NUM 6, : :, NUM 2"),
        ("ip[6:2]", "NETWORK ip, [ [, NUM 6, : :, NUM 2, ] ]"),
        ("ip[6:2] & 0x1fff=0", "NETWORK ip, [ [, NUM 6, : :, NUM 2, ] ], & &, NUM 0x1fff, = =, NUM 0"),
        ("ether[0::1]", "LINK ether, [ [, HID6 0::1, ] ]"),
        # Escapes, ARCnet, operators, white space.
        (r"\host", r"ID \host"),
        (r"\10.0.0.1", r"ID \10.0.0.1"),
        (r"\a&&b)", r"ID \a&&b, ) )"),
        (r"\a!b", r"ID \a, NOT !, ID b"),
        ("\\\t", "CHARACTER \\"),
        ("\\é\r", "ID \\é\r"),
        ("$1f", "AID $1f"),
        ("$1", "AID $1"),
        ("$1fa", "AID $1f, ID a"),
        ("$", "CHARACTER $"),
        ("&&&", "AND &&, & &"),
        ("|||", "OR ||, | |"),
        ("!!=!", "NOT !, NEQ !=, NOT !"),
        ("<<=>>=", "LSH <<, = =, RSH >>, = ="),
        ("<= >= == =", "LEQ <=, GEQ >=, = ==, = ="),
        ("not!(a)", "NOT not, NOT !, ( (, ID a, ) )"),
        (" \t\r\na\n", "ID a"),
        # Words of pcapext.
        ("inner outer encap", "INNER inner, OUTER outer, ENCAP encap"),
        ("depth nhoff thoff poff", "KEY depth, KEY nhoff, KEY thoff, KEY poff"),
        ("nproto tproto payload", "PROTOCOL_KEY nproto, PROTOCOL_KEY tproto, PAYLOAD payload"),
        (r"\depth depth-1", r"ID \depth, ID depth-1"),
        ("6in4 vxlan-gpe", "ID 6in4, ID vxlan-gpe"),
    ],
)
def test_longest_match(text: str, expected: str) -> None:
    assert cut(text) == expected


def test_escaped_name_has_no_backslash() -> None:
    assert tokens(r"\\host") == [("ID", Lexeme(r"\host", Span(0, 6)))]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("00", 0),
        ("010", 8),
        ("0x10", 16),
        ("0X00000000FfFfFfFf", 2**32 - 1),
        ("4294967295", 2**32 - 1),
        ("0037777777777", 2**32 - 1),  # with one 0 less it is a MAC address
        (f"0{'0' * 100_000}17", 15),
        (f"0x{'0' * 100_000}17", 23),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers(text: str, number: int) -> None:
    ((kind, lexeme),) = tokens(text)
    assert (kind, lexeme.number) == ("NUM", number)


def test_names_of_numbers() -> None:
    """libpcap compares a byte with the name and with the number: one program."""
    for name, number in NUMBER_NAMES.items():
        ((_, lexeme),) = tokens(name)
        assert lexeme.number == number
        program = compiled(f"ip[0] = {name}")
        assert not isinstance(program, str)
        assert program == compiled(f"ip[0] = {number}")


@pytest.mark.parametrize("word", sorted(KEYWORDS.keys() - {*EXTENSION_WORDS, "vxlan"}))
def test_keywords_are_libpcaps(word: str) -> None:
    """No keyword is a name for libpcap; behind a backslash each is."""
    assert compiled(f"port {word}") == SYNTAX_ERROR
    assert compiled(f"port \\{word}") != SYNTAX_ERROR


def without_number(message: object) -> str:
    """libpcap 1.10.6 repeats only the end of a number that is too large."""
    return re.sub(r"number \w* *overflows", "number overflows", str(message))


#: What libpcap says of `ether host` with a token of each type; an EID has a program.
_AS_ETHER_HOST = {
    "ID": "unknown ether host '{}'",
    "NUM": "illegal link layer address",
    "HID": "illegal link layer address|invalid IPv4 address '{}'",
    "HID6": "link-layer modifier applied to ip6 host|bogus IPv6 address {}",
    "AID": "aid supported only on ARCnet",
}


def libpcap_agrees(text: str) -> bool:
    """Whether libpcap takes a text for the tokens that we take it for: there are as many, and each is of the type."""
    try:
        found = tokens(text)
    except FilterError as error:
        at = error.span.start if error.span else 0
        theirs = without_number(compiled(f"ether host {text[at:]}"))  # ours is cut where it is long
        return theirs.startswith(without_number(error.message)) and libpcap_agrees(text[:at])
    spaced = " ".join(text[lexeme.span.start : lexeme.span.end] for _, lexeme in found)
    if any(compiled(f"{before}{text}{behind}") != compiled(f"{before}{spaced}{behind}") for before, behind in _AROUND):
        return False
    return all(taken_for(kind, lexeme.text, text[lexeme.span.start : lexeme.span.end]) for kind, lexeme in found)


#: Texts that take one token of several types, or a few: bounds that we see and libpcap does not would show in one of them.
_AROUND = (("ether host ", ""), ("net ", ""), ("ip[", "] = 0"), ("ip[0] = ", ""), ("ip proto ", ""))


def taken_for(kind: str, name: str, text: str) -> bool:
    """Whether libpcap takes a text for one token of this type."""
    result = compiled(f"ether host {text}")
    if kind == "EID":
        return not isinstance(result, str)
    if kind in _AS_ETHER_HOST:
        return result in [message.format(name) for message in _AS_ETHER_HOST[kind].split("|")]
    return result == SYNTAX_ERROR


_PIECES = (
    *("0", "1", "10", "255", "4294967296", "08", "0x", "0X1f", "a", "ab", "f", "g", "z", "tcp", "icmp-echo", "es-is", "len"),
    *(".", "-", "_", ":", "::", "1:", "ab:", ":0", "1.2.", "10.0.0.1", "aabb", "ccdd.", "1:2:3:4:5:6", "aabbccddeeff", "2:3:4:", "$", "$1"),
    *("\\", "[", "=", "<", ">", "!", "&", "|", "é"),
)


@given(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=12).map("".join))
@example("1:2:3:4:5:6:7:8:9")
@example("1::99999.1.1.1")
def test_libpcap_cuts_at_the_same_places(text: str) -> None:
    assert libpcap_agrees(text)


@pytest.mark.parametrize("alphabet", ["0123456789abcdef:", "01af:.", "019ax.-", "0:1."])
def test_libpcap_cuts_addresses_at_the_same_places(alphabet: str) -> None:
    random = Random(alphabet)
    texts = ("".join(random.choices(alphabet, k=random.randrange(1, 24))) for _ in range(1500))
    assert [text for text in texts if not libpcap_agrees(text)] == []


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("len > 4294967296", "number 4294967296 overflows 32 bits", "4294967296"),
        ("len > 0x100000000", "number 0x100000000 overflows 32 bits", "0x100000000"),
        ("len > 0777777777777777", "number 0777777777777777 overflows 32 bits", "0777777777777777"),
        ("len > 08", "number 08 contains non-octal digit", "08"),
        ("port 019", "number 019 contains non-octal digit", "019"),
        ("host 1:2:3:4:5:", "bogus ethernet address 1:2:3:4:5:", "1:2:3:4:5:"),
        ("host 1:2:3:4:5:6:7:8:9", "bogus ethernet address 1:2:3:4:5:6:7:8:", "1:2:3:4:5:6:7:8:"),
        ("ip[0:1:2] = 1", "bogus ethernet address 0:1:", "0:1:"),
    ],
)
def test_scanner_errors(text: str, message: str, place: str) -> None:
    with pytest.raises(FilterError) as caught:
        tokens(text)
    assert caught.value.message == message
    assert caught.value.span is not None
    assert text[caught.value.span.start : caught.value.span.end] == place
    assert without_number(compiled(text)) == without_number(message)


def test_long_numbers_are_cut_in_messages() -> None:
    with pytest.raises(FilterError, match=r"^number 9{40} overflows 32 bits") as caught:
        tokens("9" * 100_000)
    assert caught.value.span == Span(0, 100_000)


@pytest.mark.parametrize(
    "piece",
    [*("a", "1", "a-", "1:", ":", "1.2.", "1::", "\\", "1:2:3:4:5:6:", "- ", "0x", "aabb.", "aabb", "1::::::::", "fe80:", "&")],
)
@pytest.mark.parametrize("start", ["", "1"])
def test_long_texts_take_linear_time(start: str, piece: str) -> None:
    """A scanner that went back over a text of this length, again and again, would take minutes."""
    text = start + piece * (50_000 // len(piece))
    before = process_time()
    try:
        ends = [lexeme.span.end for _, lexeme in tokens(text)]
    except FilterError as error:
        ends = [error.span.end if error.span else 0]
    assert 0 < max(ends) <= len(text)
    assert process_time() - before < 5


def test_scanner_needs_no_docstrings() -> None:
    script = "from pcapext.parser import parse; print(parse('inner tcp and port 80').span.end)"
    run = subprocess.run(
        [sys.executable, "-OO", "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert run.stdout == "21\n"
