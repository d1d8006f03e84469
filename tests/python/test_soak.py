"""A short soak: see scripts/soak.py, and `make soak MINUTES=10` for a long one."""

from __future__ import annotations

import pytest

from processes import ROOT, run_python


# Its processes are many, and other tests may run beside them.
@pytest.mark.timeout(650)
def test_a_short_soak_loses_nothing_and_leaves_nothing():
    done = run_python(ROOT / "scripts/soak.py", "--minutes", "1", timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
