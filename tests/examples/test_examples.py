"""Every example program, under every start method: as it is, and as a standard library program."""

from __future__ import annotations

from pathlib import Path

import pytest

from processes import ROOT, run_python

EXAMPLES = sorted((ROOT / "examples" / "python").glob("[0-9]*.py"))
EXPECTED = Path(__file__).parent / "expected"
ANY_ORDER = {"01_workers"}  # five processes print, each when it comes to it
IMPORT = "import phalanx as mp"


@pytest.fixture(params=["phalanx", "python -m phalanx"])
def launch(request, start_method, tmp_path):
    """Run an example: as it is, or with `import multiprocessing` under `python -m phalanx`."""

    def run(example: Path, *arguments: str, timeout: float = 60):
        options = []
        if request.param != "phalanx":
            text = example.read_text()
            assert text.count(IMPORT) == 1
            example = tmp_path / example.name
            example.write_text(text.replace(IMPORT, "import multiprocessing as mp"))
            options = ["-m", "phalanx"]
        env = {"PHALANX_EXAMPLE_START": start_method}
        return run_python(example, *arguments, env=env, options=options, timeout=timeout)

    return run


@pytest.fixture
def texts(tmp_path):
    """Three files in which the letters a to k are words, the first once, the second twice, ..."""
    words = [chr(ord("a") + n) for n in range(11) for _ in range(n + 1)]
    paths = [tmp_path / f"{n}.txt" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_text("\n".join(words[n::3]))
    return [str(path) for path in paths]


def test_there_are_thirteen():
    assert [path.name[:2] for path in EXAMPLES] == [f"{n:02}" for n in range(1, 14)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, launch, texts):
    done = launch(example, *(texts if example.stem == "11_word_count" else []))
    assert (done.returncode, done.stderr) == (0, "")
    expected = (EXPECTED / f"{example.stem}.txt").read_text().splitlines()
    printed = done.stdout.splitlines()
    assert (sorted(printed) if example.stem in ANY_ORDER else printed) == expected


def test_hundred_thousand_items_of_a_kilobyte_wait_for_their_reader(launch):
    example = ROOT / "examples" / "python" / "05_join_before_drain.py"
    done = launch(example, "100000", "1000", timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "joined: 0\n100000 even numbers, from 0 to 199998\n"


def test_word_count_without_files_says_how_to_use_it(launch):
    done = launch(ROOT / "examples" / "python" / "11_word_count.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "usage: 11_word_count.py FILE...\n"
