"""Python with the sanitizers' libraries, for `make sanitize`: it imports this at its start where this folder is on PYTHONPATH.

In:  PCAPEXT_SANITIZERS, the libraries that must be loaded before all others, as LD_PRELOAD takes them.
Out: this process has them, and whatever Python it starts. Other programs do not: some, like editcap, hang with them.
"""

import os
import sys

libraries = os.environ["PCAPEXT_SANITIZERS"]
if os.environ.pop("LD_PRELOAD", None) != libraries:
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "LD_PRELOAD": libraries})
