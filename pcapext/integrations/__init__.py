"""Filters of pcapext for other capture libraries: one module a library, and none of them is loaded unless it is asked for.

Each library is an extra of pcapext: `pip install pcapext[scapy]`. docs/integrations.md tells where each one filters.
"""

from __future__ import annotations


def missing(extra: str, error: ImportError) -> ImportError:
    """The error for a library that cannot be imported: it names the extra of pcapext that installs it.

    >>> print(missing("scapy", ImportError("No module named 'scapy'")))
    No module named 'scapy'; 'pip install pcapext[scapy]' installs what pcapext.integrations.scapy needs
    """
    words = f"{error}; 'pip install pcapext[{extra}]' installs what pcapext.integrations.{extra.replace('-', '_')} needs"
    return ImportError(words, name=error.name, path=error.path)
