"""What all Python tests share: start methods, the package, a search for left-over processes."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import processes

ROOT = Path(__file__).parent.parent
START_METHODS = ("fork", "spawn", "forkserver")
PR_SET_CHILD_SUBREAPER = 36


def pytest_configure(config: pytest.Config) -> None:
    # Orphans of what a test starts become children of this process, where they are found.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A shell starts what runs in the background with Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # For a child that hangs: `kill -USR1` shows where, also for forked ones.
    faulthandler.register(signal.SIGUSR1, chain=False)


def pytest_unconfigure(config: pytest.Config) -> None:
    # The interpreter's exit waits for children: if one was left, say where it waits, and go.
    faulthandler.dump_traceback_later(60, exit=True)


@pytest.fixture(scope="session")
def mp() -> ModuleType:
    """The package itself."""
    import phalanx

    return phalanx


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """Each start method in turn."""
    return str(request.param)


@pytest.fixture
def ctx(mp: ModuleType, start_method: str):
    """A context of each start method in turn."""
    return mp.get_context(start_method)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail a test that leaves a process behind; end what it left, for the sake of the next."""
    before = processes.descendants(os.getpid())
    yield
    deadline = time.monotonic() + 10
    while True:
        left = processes.left_over(before)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    described = [processes.describe(pid) for pid in left]
    for pid in left:
        processes.end(pid)
    if described:
        pytest.fail("processes left behind: " + "; ".join(described))
