"""Write pcapext/_parsetab.py, the parser's tables, anew: after every change of the grammar in pcapext/parser.py."""

from __future__ import annotations

import sys
from pathlib import Path

from ply import yacc

from pcapext import parser

PATH = Path(parser.__file__).with_name("_parsetab.py")


def generate(directory: Path) -> Path:
    """Write `_parsetab.py` into a directory; a grammar with conflicts is an error."""

    class Conflicts(yacc.PlyLogger):  # type: ignore[misc]
        def warning(self, message: str, *arguments: object, **_: object) -> None:
            raise SystemExit(message % arguments)

    yacc.yacc(module=parser, tabmodule="_parsetab", outputdir=str(directory), debug=False, errorlog=Conflicts(sys.stderr))
    return directory / "_parsetab.py"


if __name__ == "__main__":
    PATH.unlink(missing_ok=True)
    print(generate(PATH.parent))
