"""ProcessPoolExecutor on phalanx, judged by CPython's own tests of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from processes import run_python

SUITE = Path(__file__).parent / "process_pool_suite.py"


@pytest.mark.timeout(150)
@pytest.mark.parametrize("part", ["deadlock", "rest"])
def test_process_pool_executor(start_method, part):
    done = run_python("-m", "phalanx", SUITE, start_method, part, timeout=140)
    if done.returncode == 3:
        pytest.skip("this interpreter was installed without its package 'test'")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 10
