"""Type checkers see what the package's docstrings say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from processes import ROOT

SAMPLE = Path(__file__).parent / "sample.py"


def run_mypy(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MYPYPATH": str(ROOT / "python"), "MYPY_CACHE_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=600,
    )


@pytest.mark.timeout(600)
def test_the_sample_has_the_errors_that_it_names(tmp_path):
    """Each line marked `# error: CODE` has that error, and no other line has one."""
    done = run_mypy("mypy", "--strict", SAMPLE, folder=tmp_path)
    found = set(re.findall(r"sample\.py:(\d+): error: .*\[([\w-]+)\]", done.stdout))
    lines = SAMPLE.read_text().splitlines()
    wanted = {
        (str(number), code)
        for number, line in enumerate(lines, 1)
        for code in re.findall(r"# error: ([\w-]+)", line)
    }
    assert wanted and found == wanted, done.stdout + done.stderr
    elsewhere = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(elsewhere) == len(found), done.stdout


@pytest.mark.timeout(600)
def test_the_stubs_say_what_is_there(tmp_path):
    done = run_mypy(
        "mypy.stubtest",
        "phalanx._phalanx",
        "phalanx.sharedctypes",
        "phalanx.managers.types",
        "--allowlist",
        SAMPLE.with_name("stubtest_allowlist.txt"),
        "--ignore-unused-allowlist",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
