"""Unmodified programs: `python -m phalanx` and `phalanx.install()`."""

from __future__ import annotations

from pathlib import Path

import pytest

from processes import run_python

PROGRAM = """
import multiprocessing
import multiprocessing.pool
import multiprocessing as mp
import sys
from multiprocessing import Process, Queue
from multiprocessing.managers import BaseManager


def whose():
    return multiprocessing.Process.__module__.split(".")[0]


def child(queue):
    # In a child of any start method, and in a child of that.
    inner = mp.get_context().Queue()
    grandchild = mp.Process(target=grandchild_of, args=(inner,))
    grandchild.start()
    queue.put((whose(), inner.get(), sys.argv[1:]))
    grandchild.join()


def grandchild_of(queue):
    queue.put(multiprocessing.queues.Queue.__module__.split(".")[0])


if __name__ == "__main__":
    mp.set_start_method(sys.argv[1])
    print(__name__, whose(), sys.argv[1:])
    queue = Queue()
    process = Process(target=child, args=(queue,))
    process.start()
    print(*queue.get())
    process.join()
    print(process.exitcode, multiprocessing.pool.Pool.__module__, BaseManager.__module__)
"""


def expected(method: str) -> str:
    return (
        f"__main__ phalanx ['{method}', 'an argument']\n"
        f"phalanx phalanx ['{method}', 'an argument']\n"
        "0 phalanx.pool phalanx.managers\n"
    )


@pytest.fixture
def program(tmp_path) -> Path:
    path = tmp_path / "unmodified.py"
    path.write_text(PROGRAM)
    return path


def test_script(start_method, program):
    done = run_python("-m", "phalanx", program, start_method, "an argument")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(start_method)


def test_module(start_method, program):
    arguments = ["-m", "phalanx", "-m", program.stem, start_method, "an argument"]
    done = run_python(*arguments, cwd=program.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(start_method)


def test_install(start_method, program):
    text = "import phalanx\nphalanx.install()\n" + program.read_text()
    program.write_text(text)
    done = run_python(program, start_method, "an argument")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(start_method)


def test_install_reaches_concurrent_futures(start_method, tmp_path):
    program = tmp_path / "futures.py"
    program.write_text(
        f"""
import phalanx
phalanx.install()
from concurrent.futures import ProcessPoolExecutor
import multiprocessing as mp

def whose(_):
    import multiprocessing.queues
    return multiprocessing.queues.Queue.__module__

if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=mp.get_context({start_method!r})) as executor:
        print(set(executor.map(whose, range(10))), list(executor.map(abs, range(-3, 0))))
"""
    )
    done = run_python(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "{'phalanx.queues'} [3, 2, 1]\n"


def test_exit_code_and_exception_are_the_programs_own(tmp_path):
    program = tmp_path / "exits.py"
    program.write_text("import sys\nsys.exit(7)\n")
    assert run_python("-m", "phalanx", program).returncode == 7
    program.write_text("def f():\n    raise KeyError('no such thing')\nf()\n")
    done = run_python("-m", "phalanx", program)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "KeyError: 'no such thing'"
    assert str(program) in done.stderr


def test_without_a_program_it_says_how_to_use_it():
    done = run_python("-m", "phalanx")
    assert done.returncode != 0
    assert "usage" in done.stderr.lower() + done.stdout.lower()


def test_program_that_is_not_there(tmp_path):
    done = run_python("-m", "phalanx", tmp_path / "nowhere.py")
    assert done.returncode != 0
    assert "nowhere.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_phalanx_alone_changes_nothing():
    done = run_python(
        "-c", "import phalanx, multiprocessing; print(multiprocessing.Process.__module__)"
    )
    assert done.stdout == "multiprocessing.context\n"


def test_bench_measures_both() -> None:
    done = run_python("-m", "phalanx", "bench", "lock_pair")
    assert "Lock, acquire and release" in done.stdout
    assert "times as good" in done.stdout


WHOSE = "import multiprocessing; print(multiprocessing.Process.__module__)"


def test_interpreters_of_subprocess_are_on_phalanx(tmp_path):
    program = tmp_path / "starts.py"
    program.write_text(
        f"""
import subprocess, sys
for options in [], ["-I"]:
    command = [sys.executable, *options, "-c", {WHOSE!r}]
    print(subprocess.run(command, capture_output=True, text=True))
"""
    )
    done = run_python("-m", "phalanx", program)
    assert (done.returncode, done.stderr) == (0, "")
    reached, isolated = done.stdout.splitlines()
    assert "returncode=0, stdout='phalanx.context\\n', stderr=''" in reached
    # Those that must not mind the environment do not.
    assert "returncode=0, stdout='multiprocessing.context\\n', stderr=''" in isolated


def test_interpreters_that_do_not_ask_for_multiprocessing_load_nothing():
    look = "import sys; print([m for m in sys.modules if m.startswith('phalanx')])"
    text = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {look!r}])"
    done = run_python("-m", "phalanx", "-c", text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_sitecustomize_of_the_program_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('customized')\n")
    text = (
        "import os, subprocess, sys; "
        f"os.environ['PYTHONPATH'] += ':' + {str(tmp_path)!r}; "
        f"subprocess.run([sys.executable, '-c', {WHOSE!r}])"
    )
    done = run_python("-m", "phalanx", "-c", text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "customized\nphalanx.context\n"


def test_interpreter_that_cannot_load_phalanx_keeps_its_multiprocessing(tmp_path):
    # As another version of Python would: the extension is not there for it.
    hider = tmp_path / "sitecustomize.py"
    hider.write_text("import sys\nsys.modules['phalanx._phalanx'] = None\n")
    text = (
        "import os, subprocess, sys; "
        f"os.environ['PYTHONPATH'] += ':' + {str(tmp_path)!r}; "
        f"subprocess.run([sys.executable, '-c', {WHOSE!r}])"
    )
    done = run_python("-m", "phalanx", "-c", text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "multiprocessing.context\n"
