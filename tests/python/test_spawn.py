"""What a child finds: the main module, the flags, descriptors; and what a start refuses."""

from __future__ import annotations

import os
import sys

import pytest

from processes import run_python

UNGUARDED = """
import phalanx as mp

def target():
    print("in the child", flush=True)

process = mp.get_context({method!r}).Process(target=target)
process.start()
process.join()
print("exit code", process.exitcode)
"""


CHANGING = """
import sys
import phalanx as mp

def target():
    print("first", __name__, __file__ == sys.argv[1], flush=True)

def start():
    process = mp.get_context("spawn").Process(target=target)
    process.start()
    process.join()
    print("exit code", process.exitcode, flush=True)

if __name__ == "__main__":
    start()
    start()
    with open(__file__) as file:
        text = file.read()
    with open(__file__, "w") as file:
        file.write(text.replace('"first"', '"second one"'))
    start()
    with open(__file__, "w") as file:
        file.write("1 +")
    start()
"""


def test_children_run_the_main_module_as_it_is_at_their_start(tmp_path):
    script = tmp_path / "changing.py"
    script.write_text(CHANGING)
    done = run_python(script, script)
    line = "{} __mp_main__ True\nexit code 0\n".format
    assert done.stdout == 2 * line("first") + line("second one") + "exit code 1\n"
    assert "SyntaxError" in done.stderr and str(script) in done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_missing_main_guard_is_explained(method, tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED.format(method=method))
    done = run_python(script)
    assert done.stdout == "exit code 1\n"
    assert done.stderr.count("RuntimeError:") == 1
    assert "if __name__ == '__main__':" in done.stderr


def test_missing_main_guard_does_not_matter_for_fork(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED.format(method="fork"))
    assert run_python(script).stdout == "in the child\nexit code 0\n"


def length_of(connection, data):
    connection.send(len(data))


def test_large_arguments(ctx):
    here, there = ctx.Pipe()
    process = ctx.Process(target=length_of, args=(there, bytes(30_000_000)))
    process.start()
    assert here.recv() == 30_000_000
    process.join()
    assert process.exitcode == 0


def flags_of(connection):
    connection.send((tuple(sys.flags), sys.warnoptions))


FLAGS = """
import sys
import phalanx as mp

def child(connection):
    connection.send(tuple(sys.flags))

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    here, there = ctx.Pipe()
    process = ctx.Process(target=child, args=(there,))
    process.start()
    print(here.recv() == tuple(sys.flags), sys.flags.optimize, sys.flags.no_site)
    process.join()
"""


def test_flags_are_inherited(start_method, tmp_path):
    script = tmp_path / "flags.py"
    script.write_text(FLAGS)
    done = run_python(script, start_method, options=["-O", "-B", "-s", "-X", "utf8"])
    assert done.stdout == "True 1 0\n", done.stderr


def open_descriptors(connection):
    found = [
        fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    connection.send([os.readlink(f"/proc/self/fd/{fd}") for fd in found])


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_no_other_descriptors_are_inherited(mp, method, tmp_path):
    ctx = mp.get_context(method)
    path = tmp_path / "secret"
    with open(path, "w") as file:
        os.set_inheritable(file.fileno(), True)
        here, there = ctx.Pipe()
        process = ctx.Process(target=open_descriptors, args=(there,))
        process.start()
        assert str(path) not in here.recv()
        process.join()


def test_executable_that_is_not_there_is_an_error_of_start():
    program = """
import phalanx as mp
mp.set_executable("/no/such/python")
process = mp.get_context("spawn").Process(target=print)
try:
    process.start()
except FileNotFoundError as error:
    print(error)
print(process.pid, mp.active_children())
"""
    done = run_python("-c", program)
    assert "/no/such/python cannot be started" in done.stdout
    assert done.stdout.endswith("None []\n"), done.stderr


def test_functions_of_a_main_without_a_file(start_method):
    program = f"""
import phalanx as mp
def target(n):
    print("got", n, flush=True)
process = mp.get_context({start_method!r}).Process(target=target, args=(5,))
process.start()
process.join()
"""
    done = run_python("-c", program)
    assert (done.stdout, done.stderr) == ("got 5\n", "")


def test_unpicklable_argument_raises_and_leaves_nothing(mp):
    ctx = mp.get_context("spawn")
    before = len(os.listdir("/proc/self/fd"))
    process = ctx.Process(target=print, args=(n for n in range(3)))
    process._args = ((n for n in range(3)),)
    with pytest.raises(TypeError, match="generator"):
        process.start()
    assert process.exitcode is None
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # the arena, the tracker's pipe


def test_command_line_names_this_package(mp):
    from phalanx import spawn

    *_, option, program, forking = spawn.get_command_line(pipe_handle=7)
    assert (option, forking) == ("-c", "--multiprocessing-fork")
    assert program == "from phalanx.spawn import spawn_main; spawn_main(pipe_handle=7)"
    assert spawn.is_forking(["python", "--multiprocessing-fork", "pipe_handle=7"])
    assert not spawn.is_forking(["python", "script.py"])
