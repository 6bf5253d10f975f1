"""`python -m pcapext`: the command line."""

import sys

from pcapext.cli import run

sys.exit(run())
