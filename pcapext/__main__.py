"""`python -m pcapext`: the command line."""

import sys

from pcapext.cli import main

sys.exit(main())
