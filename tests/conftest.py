"""What holds for every test: what a marker asks of the machine, and that in CI nothing is skipped.

On a developer's machine a test whose marker asks for more than there is, is skipped with the reason. With CI set in the
environment every skip, for whatever reason, is a failure: a test that did not run has shown nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

# A busy machine is no bug: no test fails for the time an example took.
hypothesis.settings.register_profile("pcapext", deadline=None)
hypothesis.settings.load_profile("pcapext")


def pytest_configure(config: pytest.Config) -> None:
    # Whoever starts the tests in the background makes them deaf to interrupts, and what they start too. Some tests are about them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("CI"):
        # A registered plugin sees all items; the hooks of this file itself do not see doctests under pcapext/.
        config.pluginmanager.register(SkipIsFailure())
    if sys.version_info >= (3, 12):
        config.pluginmanager.register(WithoutPypcap())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := lacking(item):
        pytest.skip(reason)


def lacking(item: pytest.Item) -> str | None:
    """What the machine lacks of what the markers of a test ask for, or None."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "needs root"
    if item.get_closest_marker("kernel") and sys.platform != "linux":
        return "needs a Linux kernel"
    programs = {program for marker in item.iter_markers("tools") for program in marker.args}
    absent = sorted(program for program in programs if shutil.which(program) is None)
    return f"needs {', '.join(absent)}" if absent else None


class WithoutPypcap:
    """Leaves out what needs pypcap, which does not build on Python 3.12 and later: pyproject.toml does not ask for it there."""

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        return True if collection_path.name in ("pypcap.py", "test_pypcap.py") else None


class SkipIsFailure:
    """Turns the report of a skip, of a test or of a whole module, into one of a failure. An expected failure is no skip."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.skipped and not hasattr(report, "wasxfail"):
            fail(report)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.skipped:
            fail(report)
        return report


def fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make the report of a skip one of a failure, with the reason of the skip in it."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"not run, and in CI that is a failure: {reason}"
