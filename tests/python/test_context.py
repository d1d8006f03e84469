"""Contexts: start methods, what belongs to each, what an import costs."""

from __future__ import annotations

import os
import sys

import pytest

from processes import run_python

DEFAULT = "forkserver" if sys.version_info >= (3, 14) else "fork"


def test_default_is_that_of_the_running_python():
    done = run_python(
        "-c",
        "import phalanx as mp; print(mp.get_start_method(allow_none=True));"
        "print(mp.get_start_method(), mp.get_all_start_methods()[0])",
    )
    assert done.stdout == f"None\n{DEFAULT} {DEFAULT}\n"


def test_start_method_is_set_once():
    program = """
import phalanx as mp
mp.set_start_method("spawn")
print(mp.get_start_method(), mp.get_context().Process.__name__)
try:
    mp.set_start_method("fork")
except RuntimeError as error:
    print(error)
mp.set_start_method("forkserver", force=True)
print(mp.get_start_method())
mp.set_start_method(None, force=True)
print(mp.get_start_method(allow_none=True))
"""
    done = run_python("-c", program)
    assert done.stdout == (
        "spawn SpawnProcess\ncontext has already been set\nforkserver\nNone\n"
    ), done.stderr


def test_concrete_contexts(mp, ctx, start_method):
    assert ctx.get_start_method() == start_method
    assert ctx.get_context() is ctx is mp.get_context(start_method)
    assert ctx.Process.__name__.lower() == f"{start_method}process"
    assert type(ctx).__name__.lower() == f"{start_method}context"
    with pytest.raises(ValueError, match="concrete context"):
        ctx.set_start_method("fork")
    assert ctx.Process(target=print)._start_method == start_method


def test_unknown_method_is_refused(mp):
    with pytest.raises(ValueError, match="cannot find context for 'thread'"):
        mp.get_context("thread")


def test_what_all_contexts_have(mp, ctx):
    assert ctx.cpu_count() == os.cpu_count()
    assert ctx.current_process() is mp.current_process()
    assert ctx.parent_process() is None
    assert ctx.active_children() == []
    assert ctx.TimeoutError is mp.TimeoutError
    assert issubclass(ctx.AuthenticationError, ctx.ProcessError)
    assert sorted(mp.get_all_start_methods()) == ["fork", "forkserver", "spawn"]


def test_reducer_can_be_replaced():
    program = """
import phalanx as mp
from phalanx import reduction
assert mp.reducer is reduction is mp.get_context("spawn").reducer
class Mine(reduction.AbstractReducer):
    pass
ctx = mp.get_context("spawn")
ctx.reducer = mine = Mine()
assert ctx.reducer is mine
"""
    assert run_python("-c", program).returncode == 0


def test_import_is_light():
    heavy = [
        "typing",
        "enum",
        "re",
        "pickle",
        "socket",
        "signal",
        "threading",
        "subprocess",
        "logging",
        "tempfile",
        "traceback",
        "phalanx.util",
        "phalanx.spawn",
    ]
    done = run_python(
        "-c",
        f"import sys; before = set(sys.modules); import phalanx;"
        f"print(sorted(set({heavy!r}) & set(sys.modules) - before))",
        options=["-S"],
    )
    assert done.stdout == "[]\n", done.stderr


def test_submodules_are_found_as_attributes():
    done = run_python(
        "-c",
        "import phalanx; print(phalanx.process.current_process().name,"
        "phalanx.reduction.ForkingPickler.__name__)",
    )
    assert done.stdout == "MainProcess ForkingPickler\n", done.stderr


def test_another_platform_gets_one_sentence():
    done = run_python("-c", "import sys; sys.platform = 'win32'; import phalanx")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: phalanx runs on Linux only, and this is 'win32'; use multiprocessing here"
    )


def test_a_library_on_the_standard_module_takes_a_context(start_method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import phalanx\n"
        "if __name__ == '__main__':\n"
        f"    context = phalanx.get_context({start_method!r})\n"
        "    with ProcessPoolExecutor(2, mp_context=context) as executor:\n"
        "        parent = executor.submit(phalanx.parent_process).result()\n"
        "        print(*executor.map(abs, [-1, 2]), parent)\n"
    )
    done = run_python(program)
    assert done.returncode == 0 and done.stdout.startswith("1 2 <_ParentProcess"), done
