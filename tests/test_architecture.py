"""The shape of pcapext: which module may import which, and what a bare `import pcapext` costs.

Imports point down. A module imports only modules of rows below its own, so no two modules of one row know each other:
the passes meet in compiler.py alone. An import inside a function is a convenience for the caller and exempt
(`program.dump()` loads the dump when it is asked for one); so is one for type checkers alone, which nothing loads.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pcapext"

#: From top to bottom. `*` stands for any name that has no row of its own. A module that is to come may be named already.
ROWS = (
    # What a user calls.
    "__main__",
    "cli",
    "cli_filter cli_capture cli_arguments",
    "integrations.*",
    "integrations.handles",
    "integrations",
    "pcapext",
    "summary filtering progress",
    "live",
    "attaching",
    "places",
    # Captures, with filters.
    "capture workers",
    "outputs",
    "selection",
    "kernel_program",
    "compiler",
    # The passes: one form of an expression or a program to the next.
    "standard",
    "request",
    "optimize prove",
    "prepare ebpf_select",
    "resolve mark weaken postpone codegen lift combine lower relocate optimize.* assemble plain ebpf_words write_c",
    "unroll registers ebpf_walk write_c.walk write_c.graph",
    "unroll.levels ebpf_walk.levels write_c.pieces",
    "unroll.tunnels ebpf_walk.tunnels",
    "unroll.builder ebpf_walk.builder",
    "optimize.simplify optimize.membership optimize.conditions optimize.places",
    "extension",
    # Text to syntax tree.
    "parser",
    "misfit",
    "lexer _parsetab",
    "names locate",
    "syntax",
    # What runs and shows programs; it knows nothing of expressions.
    "records",
    "streams sinks",
    "compression",
    "pcap_devices",
    "pcap_live",
    "pcap_handles kernel_filter",
    "elsewhere savefile",
    "engine.walk",
    "machine textforms pcap_bridge engine bpf_syscall ebpf_writer",
    "engine.build",
    "dump bpfasm dissect cfg ebpf formats _libpcap_cffi csource",
    # What all speak of.
    "bpf headers sockets",
    "encapsulation",
    "flowkeys layout interned",
    "errors",
    "slotted",
)


def modules() -> dict[str, Path]:
    """Every module by its name in the table: `pcapext` for the package itself, `optimize.fold` for pcapext.optimize.fold."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__"): path for path in PACKAGE.rglob("*.py")}
    return {name.rstrip(".") or "pcapext": path for name, path in paths.items()}


MODULES = modules()


def row(module: str) -> int:
    """The row of a module, counted from the top."""
    for matches in (str.__eq__, fnmatch.fnmatch):
        for number, names in enumerate(ROWS):
            if any(matches(module, name) for name in names.split()):
                return number
    pytest.fail(f"{module} has no row in the table of this test: put it where it belongs")


def imported(module: str) -> Iterator[tuple[str, int]]:
    """The modules of pcapext that a module imports outside of functions, each with the line."""
    path = MODULES[module]
    full = "pcapext" if module == "pcapext" else f"pcapext.{module}"
    package = full if path.name == "__init__.py" else full.rpartition(".")[0]
    for node in outside_functions(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                targets = [alias.name for alias in names]
            case ast.ImportFrom(module=origin, names=names, level=level):
                base = importlib.util.resolve_name("." * level + (origin or ""), package)
                targets = [f"{base}.{alias.name}" for alias in names]
            case _:
                continue
        for target in targets:
            if target.split(".")[0] == "pcapext":
                yield known(target.removeprefix("pcapext").lstrip(".")), node.lineno


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not is_for_type_checkers(child):
            yield child
            yield from outside_functions(child)


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def known(target: str) -> str:
    """The module that `target` is or is a name in: `bpf.Program` is in bpf, `compile` in pcapext itself."""
    while target and target not in MODULES:
        target = target.rpartition(".")[0]
    return target or "pcapext"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    own = row(module)
    upward = {f"{MODULES[module].name}:{line} imports {other}" for other, line in imported(module) if row(other) <= own and other != module}
    assert not upward, f"not below {module} in the table"


def test_import_is_light() -> None:
    """`import pcapext` loads nothing but pcapext and the standard library, and of that not what only a command needs."""
    script = "import sys; before = set(sys.modules); import pcapext; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "pcapext" in loaded
    assert loaded - {"pcapext"} <= sys.stdlib_module_names - {"argparse"}
