"""The Python programs in the documents run and print what is said there; links lead somewhere."""

from __future__ import annotations

import re

import pytest

from processes import ROOT, run_python

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = [
    pytest.param(*block, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, block in enumerate(BLOCK.findall(path.read_text()))
]


def test_there_are_programs():
    assert len(PROGRAMS) > 5


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_program(program, output, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(program)
    done = run_python(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == output


def anchor(title: str) -> str:
    """What a heading is called in a link."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text()
    headings = {anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, heading = target.partition("#")
        assert (path.parent / file).exists(), target
        assert not heading or file or heading in headings, target
