"""The Python programs in README.md run, and print what the README says."""

from __future__ import annotations

import re

import pytest

from processes import ROOT, run_python

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
PROGRAMS = BLOCK.findall((ROOT / "README.md").read_text())


def test_readme_has_programs():
    assert PROGRAMS


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_readme_program(program, output, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(program)
    done = run_python(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == output


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
