"""The parser accepts what libpcap accepts, and reads it as libpcap does; and it reads what pcapext adds."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import PathFinder
from io import StringIO
from pathlib import Path
from random import Random

import pytest
from filters import EN10MB, IEEE802_11, MTP2, PFLOG, SUNATM, SYNTAX_ERROR, VOCABULARY, compiled, mutated, nodes, placeless, spelled, words
from hypothesis import example, given
from hypothesis import strategies as st
from ply import yacc

from pcapext import parser
from pcapext.errors import FilterError
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.lexer import KEYWORDS
from pcapext.parser import parse
from pcapext.syntax import (
    ARITHMETIC_DEPTH,
    Access,
    Binary,
    Cast,
    Encap,
    Group,
    KeyValue,
    Length,
    Name,
    Negate,
    Number,
    Payload,
    Primitive,
    Protocol,
    Qualified,
    Qualifiers,
    Relation,
    Standard,
)

ROOT = Path(__file__).parent.parent

#: How often a filter is made for each link type.
_SHARES = (*[EN10MB] * 9, *[IEEE802_11] * 3, PFLOG, SUNATM, MTP2)


def filters(seed: int, count: int, wrong: float) -> Iterator[tuple[str, int]]:
    """`count` filters, a share of them spoilt, and the link type that each is for."""
    random = Random(seed)
    for _ in range(count):
        linktype = random.choice(_SHARES)
        text = words(random, linktype)
        if random.random() < wrong:
            text = mutated(random, text)
        yield " ".join(text) or "tcp", linktype


def accepted(text: str) -> bool:
    try:
        parse(text)
    except FilterError:
        return False
    return True


# --- acceptance


@pytest.mark.parametrize("seed", [1, 2])
def test_accepts_what_libpcap_accepts(seed: int) -> None:
    """libpcap stops at the first thing that is wrong. Where that is no syntax error, the rest of a text is undecided."""
    outcomes: Counter[str] = Counter()
    for text, linktype in filters(seed, 2500, wrong=0.4):
        result = compiled(text, linktype)
        right = not isinstance(result, str)
        if right or result == SYNTAX_ERROR:
            assert accepted(text) == right, (text, linktype)
        outcomes["right" if right else "wrong" if result == SYNTAX_ERROR else "undecided"] += 1
    assert min(outcomes["right"], outcomes["wrong"]) > 600
    assert outcomes["undecided"] < 800


def test_accepts_what_libpcap_accepts_of_token_soup() -> None:
    """Up to six words and signs in any order, most of them no filter."""
    random = Random(3)
    outcomes: Counter[bool] = Counter()
    for _ in range(5000):
        text = " ".join(random.choices(VOCABULARY, k=random.randrange(1, 7)))
        result = compiled(text)
        right = not isinstance(result, str)
        if right or result == SYNTAX_ERROR:
            assert accepted(text) == right, text
            outcomes[right] += 1
    assert outcomes[True] > 50
    assert outcomes[False] > 3000


def test_accepts_what_newer_libpcap_does() -> None:
    """The same with the libpcap that comes with pcapext. In a process of its own: the system loads no second libpcap into one."""
    package = PathFinder.find_spec("libpcap")
    assert package is not None
    (folder,) = package.submodule_search_locations or ()
    (library,) = Path(folder, "_platform", "linux", platform.machine()).glob("*/libpcap.so")
    script = "import test_parser as it; it.test_accepts_what_libpcap_accepts(1); it.test_reads_as_libpcap_does(4)"
    environment = {**os.environ, "PCAPEXT_LIBPCAP": str(library), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr


def test_every_word_is_used() -> None:
    """The texts above reach every word of the language: the two tests show nothing for one that they leave out."""
    assert set(KEYWORDS) - set(" ".join(VOCABULARY).split()) - {*EXTENSION_WORDS, "vxlan", "mask", "portrange"} == set()
    made = {word for seed in (1, 2) for text, _ in filters(seed, 2500, wrong=0.4) for word in text.split()}
    assert set(KEYWORDS) - made == {*EXTENSION_WORDS, "vxlan"}


@pytest.mark.parametrize("word", EXTENSION_WORDS)
def test_reserved_words_are_names_for_libpcap(word: str) -> None:
    """The wanted differences (LANGUAGE.md 1): a word of pcapext's is no name, unless it has a backslash."""
    assert compiled(f"port {word}") == f"unknown port '{word}'"
    assert not accepted(f"port {word}")
    match parse(f"port \\{word}"):
        case Qualified(Qualifiers(None, None, None, "port"), Primitive(Name(name))):
            assert name == word
        case tree:
            pytest.fail(repr(tree))


def test_vxlan_is_a_keyword() -> None:
    """It is one in libpcap's development version; before, it is a name, and without a term before it a syntax error."""
    assert isinstance(parse("vxlan 5"), Standard)
    assert not accepted("port vxlan")


# --- meaning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # and, or: one precedence, to the left; not binds closer.
        ("tcp or udp and ip", "((tcp or udp) and ip)"),
        ("tcp and udp or ip", "((tcp and udp) or ip)"),
        ("not tcp and udp", "((not tcp) and udp)"),
        ("not not tcp or ! udp", "((not (not tcp)) or (not udp))"),
        ("tcp or (udp and ip)", "(tcp or (udp and ip))"),
        # Arithmetic, from loose to close: | & << + *, then - as a sign. % and ^ take all that follows.
        ("len + 5 % 3 > 0", "((len + (5 % 3)) > 0)"),
        ("len % 5 + 1 > 0", "((len % (5 + 1)) > 0)"),
        ("len ^ 5 | 1 > 0", "((len ^ (5 | 1)) > 0)"),
        ("len | 5 ^ 1 & 7 > 0", "((len | (5 ^ (1 & 7))) > 0)"),
        ("len % 5 % 3 > 0", "((len % (5 % 3)) > 0)"),
        ("- len % 5 > 0", "((- (len % 5)) > 0)"),
        ("- len - 5 > 0", "(((- len) - 5) > 0)"),
        ("len | 1 & 2 << 3 + 4 * 5 > 0", "((len | (1 & (2 << (3 + (4 * 5))))) > 0)"),
        ("len * 5 + 4 >> 3 & 2 | 1 > 0", "((((((len * 5) + 4) >> 3) & 2) | 1) > 0)"),
        ("len - 5 - 3 > 0", "(((len - 5) - 3) > 0)"),
        ("len / 5 * 3 > 0", "(((len / 5) * 3) > 0)"),
        ("len * (5 + 3) == 010", "((len * (5 + 3)) = 8)"),
        ("ip[2:2] & 0xff = tcp-syn", "((ip[2:2] & 255) = 2)"),
        ("ether[ip[0] & 0xf] != 5", "(ether[(ip[0:1] & 15):1] != 5)"),
        # A value without qualifiers takes those of the term before it; parentheses put back what was before them.
        ("tcp port 80 or 443", "((tcp port 80) or (tcp port 443))"),
        ("tcp port 80 or not 443", "((tcp port 80) or (not (tcp port 443)))"),
        ("tcp port (80 or 443) or 8080", "(((tcp port 80) or (tcp port 443)) or (tcp port 8080))"),
        ("tcp port 80 or (udp port 53) or 443", "(((tcp port 80) or (udp port 53)) or (tcp port 443))"),
        ("tcp port 80 or (udp port 53 or 54) or 443", "(((tcp port 80) or ((udp port 53) or (udp port 54))) or (tcp port 443))"),
        ("tcp port 80 or udp port 53 or 443", "(((tcp port 80) or (udp port 53)) or (udp port 443))"),
        ("src host 10.0.0.1 and (10.0.0.2 or 10.0.0.3)", "((src host 10.0.0.1) and ((src host 10.0.0.2) or (src host 10.0.0.3)))"),
        ("not host 10.0.0.1 or 10.0.0.2", "((not (host 10.0.0.1)) or (host 10.0.0.2))"),
        ("src or dst net 10 or 11", "((src or dst net 10) or (src or dst net 11))"),
        ("dst or src port 5", "(src or dst port 5)"),
        ("link src 2:0:0:0:0:1", "(ether src 2:0:0:0:0:1)"),
        ("host (10.0.0.1 and 10.0.0.2) and not (10.0.0.3 or 10.0.0.4)",
         "(((host 10.0.0.1) and (host 10.0.0.2)) and (not ((host 10.0.0.3) or (host 10.0.0.4))))"),
        ("port ((80) or ((443)))", "((port (80)) or (port ((443))))"),
    ],
)  # fmt: skip
def test_reading(text: str, expected: str) -> None:
    """As spelled out here; and libpcap has one program for both texts."""
    assert spelled(parse(text), text) == expected
    program = compiled(text)
    assert not isinstance(program, str), program
    assert program == compiled(expected)


@pytest.mark.parametrize("seed", [4, 5])
def test_reads_as_libpcap_does(seed: int) -> None:
    read = 0
    for text, linktype in filters(seed, 1500, wrong=0):
        program = compiled(text, linktype)
        if isinstance(program, str):
            continue
        read += 1
        assert compiled(spelled(parse(text), text), linktype) == program, (text, linktype)
    assert read > 900


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner tcp", "inner tcp"),
        ("outer ip6", "outer ip6"),
        ("inner tcp port 80 or 443", "((inner tcp port 80) or (inner tcp port 443))"),
        ("inner tcp port (80 or 443)", "((inner tcp port 80) or (inner tcp port 443))"),
        ("inner tcp port 80 or udp port 53", "((inner tcp port 80) or (udp port 53))"),
        ("inner tcp port 80 or (udp port 53) or 443", "(((inner tcp port 80) or (udp port 53)) or (inner tcp port 443))"),
        ("inner 10.0.0.1 or 10.0.0.2", "((inner 10.0.0.1) or (inner 10.0.0.2))"),
        ("inner (10.0.0.1 or 10.0.0.2)", "((inner 10.0.0.1) or (inner 10.0.0.2))"),
        ("inner 5", "(inner 5)"),
        ("inner not 10.0.0.1", "(not (inner 10.0.0.1))"),
        (r"inner \depth", r"(inner \depth)"),
        ("inner (tcp port 80 or 443)", "(inner (((tcp port 80) or (tcp port 443))))"),
        ("not inner (tcp) and udp", "((not (inner (tcp))) and udp)"),
        ("inner src or dst host 10.0.0.1", "(inner src or dst host 10.0.0.1)"),
        ("inner ip broadcast or outer multicast", "((inner ip broadcast) or (outer multicast))"),
        ("tproto 6 or 17", "((tproto 6) or (tproto 17))"),
        ("inner tproto tcp or outer nproto ip6", "((inner tproto tcp) or (outer nproto ip6))"),
        (r"tproto (\tcp or 17)", r"((tproto \tcp) or (tproto 17))"),
        ("poff > 54", "(poff > 54)"),
        ("inner poff - 14 = ip[2:2]", "((inner poff - 14) = ip[2:2])"),
        ("len - poff > 0 and tproto = 6", "(((len - poff) > 0) and (tproto = 6))"),
        ("tproto + nproto % 3 = 1", "((tproto + (nproto % 3)) = 1)"),
        ("link[thoff + 13] & 2 != 0", "((ether[(thoff + 13):1] & 2) != 0)"),
        ("inner tcp[13] & 2 != 0", "((inner tcp[13:1] & 2) != 0)"),
        ("payload[0:4] = 0x47455420", "(payload[0:4] = 1195725856)"),
        ("outer payload[poff] = 1", "(outer payload[poff:1] = 1)"),
        ("inner tcp and port 80", "(inner tcp and (port 80))"),
        ("encap", "(encap  )"),
        ("encap and tcp", "((encap  ) and tcp)"),
        ("encap vlan 10 or encap gre", "((encap vlan 10) or (encap gre ))"),
        ("encap mpls (0x10)", "(encap mpls 16)"),
        ("encap geneve 0 and encap 6in4", "((encap geneve 0) and (encap 6in4 ))"),
        ("encap vxlan-gpe", "(encap vxlan-gpe )"),
    ],
)  # fmt: skip
def test_extensions(text: str, expected: str) -> None:
    """What LANGUAGE.md 2 to 4 adds. The spelled out text has the same meaning, so it is read the same once more."""
    assert spelled(parse(text), text) == expected
    assert spelled(parse(expected), expected) == expected


# --- places


def test_spans_are_where_the_nodes_were_read() -> None:
    """The text at the place of a term is that term, and of a number that number; no place begins or ends with a space."""
    seen: Counter[str] = Counter()
    extended = [
        "inner tcp port 80 or ( 443 or not 80 )",
        "inner ( payload[ 4 : 2 ] + poff > - tproto ) and encap vlan 10",
        "nproto ip6 or ( 5 )",
    ]
    for text in [*extended, *(text for text, _ in filters(6, 400, wrong=0) if accepted(text))]:
        for node in nodes(parse(text)):
            if not hasattr(node, "span"):
                continue
            part = text[node.span.start : node.span.end]
            assert part == part.strip() != "", (text, node)
            seen[type(node).__name__] += 1
            match node:
                case Number() | Length() | KeyValue() | Access() | Payload() | Binary() | Negate():
                    read = parse(f"len = {part}")
                    assert isinstance(read, Relation)
                    assert placeless(read.right) == placeless(node), (text, part)
                case Qualified() | Protocol() | Cast() | Relation() | Encap() | Standard() | Group(_, "inner" | "outer"):
                    assert placeless(parse(part)) == placeless(node), (text, part)
    assert len(seen) == 18


# --- any text

_CHARACTERS = st.text(st.one_of(st.characters(), st.sampled_from("()[]!\\ \n:.-0x"), st.characters(categories=["Cs", "Cc"])))
_SOUP = st.lists(st.one_of(st.sampled_from([*VOCABULARY, *KEYWORDS, "vlan-5", "0x", "\\", "::"]), _CHARACTERS)).map(" ".join)


def checked(text: str) -> FilterError | None:
    """Parse a text; the error must show a place in it, and say something there."""
    try:
        parse(text)
    except FilterError as fault:
        error = fault
    else:
        return None
    assert error.expression == text
    assert error.span is not None
    assert error.span.end <= len(text)
    message, shown, caret = str(error).split("\n")
    assert re.fullmatch(r"unexpected .+, expected .+|'.+' has no meaning after '.+'|number .+|bogus .+|arithmetic .+", message), message
    assert shown.isprintable()
    assert re.fullmatch(r" +\^+", caret)
    assert max(map(len, (message, shown))) < 200
    return error


@given(st.one_of(_CHARACTERS, _SOUP))
@example("")
@example("src or tcp")
@example("\0")
@example("host \ud800")
def test_any_text_is_a_tree_or_one_error(text: str) -> None:
    checked(text)


def test_every_error_says_what_was_expected() -> None:
    """Whatever stands in the wrong place: no list of what could have stood there is empty, and none is wrong."""
    expected: Counter[str] = Counter()
    for text, _ in filters(7, 1500, wrong=1):
        if error := checked(text):
            expected[error.message.partition(", expected ")[2]] += 1
    assert len(expected) > 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(" * 5000 + "tcp" + ")" * 5000, None),
        ("(" * 5000, "unexpected end, expected a term"),
        ("inner (" * 5000, "unexpected end, expected a term"),
        ("inner (" * 5000 + "tcp" + ")" * 5000, None),
        ("not " * 10_000 + "tcp", None),
        ("!" * 10_000, "unexpected end, expected a term"),
        ("tcp or " * 10_000 + "udp", None),
        ("inner tcp port 1" + " or 1" * 10_000, None),
        ("port " + "(" * 5000 + "1" + ")" * 5000, None),
        ("len = " + "(" * 5000 + "1" + ")" * 5000, None),
        ("tcp[" * 5000 + "1" + "]" * 5000 + " = 1", f"arithmetic of more than {ARITHMETIC_DEPTH} levels"),
        ("poff" + " + 1" * 5000 + " = 1", f"arithmetic of more than {ARITHMETIC_DEPTH} levels"),
        ("len = " + "-" * 5000 + "1", f"arithmetic of more than {ARITHMETIC_DEPTH} levels"),
        ("host " + "x" * 100_000, None),
        ("x" * 100_000, "unexpected 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...', expected a term such as 'host "),
        ("len = " + "9" * 100_000, f"number {'9' * 40} overflows 32 bits"),
        ("tcp \0", "unexpected '\\x00', expected a qualifier such as 'host' or 'port', '[', 'and', 'or' or the end"),
        ("host \\\ud800 \ud800", "unexpected '\\ud800', expected 'and', 'or' or the end"),
    ],
    ids=lambda value: str(value)[:20].encode("unicode_escape").decode(),
)
def test_long_texts(text: str, message: str | None) -> None:
    error = checked(text)
    assert (error is None) == (message is None)
    assert message is None or str(error).startswith(message)


def test_arithmetic_as_deep_as_allowed() -> None:
    most = ARITHMETIC_DEPTH - 1
    assert accepted("len" + " + 1" * most + " = 1")
    assert not accepted("len" + " + 1" * (most + 1) + " = 1")


def test_threads_do_not_share_a_parse() -> None:
    """What was expected is read off the parser's stacks: they must be those of the thread's own parse."""
    texts = ["tcp and", "(((( tcp port", "len > ", "inner tcp 80", "ip[0", "src or", "not (tcp) and (udp", "host 10.0.0.1 or (port"] * 60
    alone = [str(checked(text)) for text in texts]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert [str(error) for error in pool.map(checked, texts)] == alone
    finally:
        sys.setswitchinterval(interval)


# --- the tables


@pytest.fixture
def without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """PLY makes and writes no tables where it finds good ones."""
    monkeypatch.setitem(sys.modules, "pcapext._parsetab", None)


@pytest.mark.usefixtures("without_tables")
def test_tables_are_those_of_the_grammar(tmp_path: Path) -> None:
    """The committed tables are what the tool writes today, but for the lines in parser.py that the rules stand on."""

    def tables(path: Path) -> str:
        return re.sub(r"'parser.py',\d+", "", path.read_text())

    spec = importlib.util.spec_from_file_location("generate_parsetab", ROOT / "tools" / "generate_parsetab.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tables(tool.generate(tmp_path)) == tables(ROOT / "pcapext" / "_parsetab.py")
    assert [path.name for path in tmp_path.iterdir()] == ["_parsetab.py"]


def complaints() -> str:
    """What PLY says about the grammar. It counts conflicts only when it is asked to debug."""
    log = StringIO()
    settings = {"tabmodule": "pcapext._parsetab", "write_tables": False, "debug": True, "debuglog": yacc.NullLogger()}
    yacc.yacc(module=parser, errorlog=yacc.PlyLogger(log), **settings)
    return log.getvalue()


@pytest.mark.usefixtures("without_tables")
def test_grammar_has_no_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "WARNING" not in complaints()
    monkeypatch.setattr(parser, "precedence", tuple(level for level in parser.precedence if "+" not in level))
    assert re.search("WARNING: .* conflict", complaints())


def test_parsing_writes_no_files(tmp_path: Path) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (ROOT / "pcapext").glob("*.*")}

    before = files()
    script = "from pcapext.parser import parse; print(parse('inner tcp').span.end)"
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert (run.stdout, run.stderr) == ("9\n", "")
    assert list(tmp_path.iterdir()) == []
    assert files() == before
