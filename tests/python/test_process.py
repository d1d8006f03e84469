"""Process: starting, ending, waiting, what it is told and what it tells."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
import time
import weakref

import pytest

from processes import run_python


def send_identity(connection, mp_name):
    mp = importlib.import_module(mp_name)
    me, parent = mp.current_process(), mp.parent_process()
    connection.send((os.getpid(), me.pid, me.name, me.daemon, parent.pid, parent.is_alive()))


def leave(code):
    sys.exit(code)


def fail():
    raise ValueError("an error of the child")


def wait_for(event):
    event.wait()


def sleep():
    time.sleep(600)


def send_arguments(connection, *args, **kwargs):
    connection.send((args, kwargs))


def thread_and_exit(connection):
    def late():
        time.sleep(0.1)
        connection.send("from a thread")

    threading.Thread(target=late).start()


def send_start_method(connection, mp_name):
    connection.send(importlib.import_module(mp_name).get_start_method())


def nothing():
    pass


@pytest.fixture
def pipe(ctx):
    here, there = ctx.Pipe()
    with here, there:
        yield here, there


def run(ctx, target, *args, **kwargs):
    process = ctx.Process(target=target, args=args, **kwargs)
    process.start()
    process.join()
    return process


def test_smoke(ctx):
    assert run(ctx, nothing).exitcode == 0


def test_identity(mp, ctx, pipe):
    here, there = pipe
    process = run(ctx, send_identity, there, "phalanx", name="Caesar", daemon=True)
    pid, own_pid, name, daemon, parent, alive = here.recv()
    assert pid == own_pid == process.pid == process.ident != os.getpid()
    assert (name, daemon, parent, alive) == ("Caesar", True, os.getpid(), True)
    assert mp.parent_process() is None
    assert mp.current_process().pid == os.getpid()


def test_arguments(ctx, pipe):
    here, there = pipe
    process = ctx.Process(target=send_arguments, args=(there, 1, "two"), kwargs={"three": [3]})
    process.start()
    assert here.recv() == ((1, "two"), {"three": [3]})
    process.join()


def test_life_cycle(ctx):
    event = ctx.Event()
    process = ctx.Process(target=wait_for, args=(event,))
    assert (process.pid, process.exitcode, process.is_alive()) == (None, None, False)
    assert "initial" in repr(process)
    process.start()
    assert process.is_alive()
    assert process.exitcode is None
    assert process in ctx.active_children()
    assert "started" in repr(process)
    assert process.join(0) is None
    assert process.join(0.05) is None
    assert process.is_alive()
    event.set()
    process.join()
    assert (process.exitcode, process.is_alive()) == (0, False)
    assert process not in ctx.active_children()
    assert "stopped" in repr(process)


@pytest.mark.parametrize(
    ("said", "code"), [(None, 0), (0, 0), (8, 8), (True, 1), (False, 0), ("text", 1)]
)
def test_exit_codes(ctx, said, code, capfd):
    assert run(ctx, leave, said).exitcode == code
    err = capfd.readouterr().err
    assert err == ("text\n" if said == "text" else "")


def test_exception_is_printed_and_is_exit_code_1(ctx, capfd):
    assert run(ctx, fail).exitcode == 1
    err = capfd.readouterr().err
    assert err.rstrip().endswith("ValueError: an error of the child")
    assert "in fail" in err


def say_and_sleep(connection):
    connection.send("running")
    time.sleep(600)


@pytest.mark.parametrize("how", ["terminate", "kill", "interrupt"])
def test_ended_by_a_signal(ctx, pipe, how, capfd):
    here, there = pipe
    process = ctx.Process(target=say_and_sleep, args=(there,))
    process.start()
    assert here.recv() == "running"
    getattr(process, how)()
    process.join()
    number = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}.get(how)
    assert process.exitcode == (1 if how == "interrupt" else -number)


def test_sentinel_becomes_ready_at_the_end(mp, ctx):
    from phalanx.connection import wait

    event = ctx.Event()
    process = ctx.Process(target=wait_for, args=(event,))
    process.start()
    assert wait([process.sentinel], timeout=0.05) == []
    event.set()
    assert wait([process.sentinel], timeout=60) == [process.sentinel]
    process.join()


def test_many_at_once(ctx):
    event = ctx.Event()
    processes = [ctx.Process(target=wait_for, args=(event,)) for _ in range(15)]
    for process in processes:
        process.start()
    assert set(processes) <= set(ctx.active_children())
    event.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 15


def test_child_waits_for_its_threads(ctx, pipe):
    here, there = pipe
    assert run(ctx, thread_and_exit, there).exitcode == 0
    assert here.recv() == "from a thread"


def test_child_knows_its_start_method(ctx, start_method, pipe):
    here, there = pipe
    run(ctx, send_start_method, there, "phalanx")
    if start_method != "fork":  # fork's context was not made the default
        assert here.recv() == start_method


def test_collected_with_its_target_and_arguments(ctx):
    class Payload:
        pass

    payload = Payload()
    reference = weakref.ref(payload)
    process = ctx.Process(target=nothing)
    process.payload = payload
    if ctx.get_start_method() == "fork":
        process.start()
        process.join()
        process.close()
    del process, payload
    gc.collect()
    assert reference() is None


def test_joined_by_a_thread_while_another_looks(ctx):
    event = ctx.Event()
    process = ctx.Process(target=wait_for, args=(event,))
    process.start()
    threads = [threading.Thread(target=process.join) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert process.is_alive()
    event.set()
    for thread in threads:
        thread.join()
    assert process.exitcode == 0


def test_the_first_process_objects_of_two_threads_are_both_noted(mp, monkeypatch):
    import _weakrefset

    made, others = [], []

    class Slow(weakref.WeakSet):
        def __init__(self):
            super().__init__()
            made.append(self)
            if len(made) == 1:  # as if another thread came in between
                others.append(mp.Process())

    monkeypatch.setattr(mp.process, "_dangling", set())
    monkeypatch.setattr(mp.process, "_danglings", {})
    monkeypatch.setattr(_weakrefset, "WeakSet", Slow)
    one = mp.Process()
    assert set(mp.process._dangling) == {one, *others} and others


def test_no_descriptor_stays_open(ctx):
    run(ctx, nothing).close()
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        run(ctx, nothing).close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(before)


SUBCLASS = """
import sys
import phalanx as mp

class Greeter(mp.get_context(sys.argv[1]).Process):
    def __init__(self, to, **kwargs):
        super().__init__(**kwargs)
        self.to = to

    def run(self):
        print("hello", self.to, flush=True)

if __name__ == "__main__":
    greeter = Greeter("subclass", name="greeter")
    greeter.start()
    greeter.join()
    print(greeter.exitcode, greeter.name)
"""


def test_subclass_with_run(start_method, tmp_path):
    program = tmp_path / "subclass.py"
    program.write_text(SUBCLASS)
    done = run_python(program, start_method)
    assert (done.stdout, done.stderr) == ("hello subclass\n0 greeter\n", "")


NEW_ENVIRONMENT = """
import os, sys
import phalanx as mp

def look(name):
    print(os.environ.get(name), os.getcwd(), sys.argv[1:], flush=True)

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    for word in ("first", "second"):  # not only what was there when a server was started
        os.environ["A_WORD"] = word
        os.chdir("/" if word == "first" else "/proc")
        process = ctx.Process(target=look, args=("A_WORD",))
        process.start()
        process.join()
"""


def test_child_has_the_environment_and_folder_of_its_start(start_method, tmp_path):
    program = tmp_path / "environment.py"
    program.write_text(NEW_ENVIRONMENT)
    done = run_python(program, start_method)
    assert done.stderr == ""
    assert done.stdout == f"first / ['{start_method}']\nsecond /proc ['{start_method}']\n"


OUTPUT_ONCE = """
import sys
import phalanx as mp

def child():
    sys.stdout.write("child\\n")

if __name__ == "__main__":
    sys.stdout.write("parent\\n")  # in the buffer, where a forked child finds it too
    process = mp.get_context(sys.argv[1]).Process(target=child)
    process.start()
    process.join()
"""


def test_buffered_output_is_printed_once(start_method, tmp_path):
    program = tmp_path / "output.py"
    program.write_text(OUTPUT_ONCE)
    done = run_python(program, start_method)
    assert sorted(done.stdout.splitlines()) == ["child", "parent"]


LAMBDAS = """
import sys
import phalanx as mp

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    greeting = "hello"
    def closure(name, queue):
        queue.put(f"{greeting} {name}")
    queue = ctx.Queue()
    process = ctx.Process(target=lambda: closure("lambda", queue))
    process.start()
    print(queue.get())
    process.join()
    with ctx.Pool(2) as pool:
        print(pool.map(lambda n: n * len(greeting), range(4)))
"""


def test_lambdas_and_closures(start_method, tmp_path):
    program = tmp_path / "lambdas.py"
    program.write_text(LAMBDAS)
    done = run_python(program, start_method)
    assert (done.stdout, done.stderr) == ("hello lambda\n[0, 5, 10, 15]\n", "")


def test_terminate_with_children(ctx, pipe):
    here, there = pipe
    process = ctx.Process(target=start_sleepers, args=(there, ctx.get_start_method(), 2))
    process.start()
    pids = here.recv()
    process.terminate(children=True)
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert len(pids) == 2  # that they are gone is checked after every test


def start_sleepers(connection, method, count):
    import phalanx

    children = [phalanx.get_context(method).Process(target=sleep) for _ in range(count)]
    for child in children:
        child.start()
    connection.send([child.pid for child in children])
    sleep()


def test_exception_of_a_child_can_be_asked_for(ctx, capfd):
    process = run(ctx, fail)
    error = process.exception()
    assert isinstance(error, ValueError)
    assert str(error) == "an error of the child"
    assert "in fail" in str(error.__cause__)
    assert run(ctx, nothing).exception() is None


def use_stdin(connection):
    stdin = sys.stdin
    told = [stdin.read(), list(stdin), stdin.readable(), stdin.isatty(), stdin.encoding]
    try:
        input()
    except EOFError:
        told.append("the end")
    told.append(stdin.buffer.read())
    told.append(os.readlink(f"/proc/self/fd/{stdin.fileno()}"))
    stdin.close()
    try:
        stdin.read()
    except ValueError:
        told.append("closed")
    connection.send(told)


def test_stdin_of_a_child_is_empty(ctx):
    reader, writer = ctx.Pipe(False)
    process = ctx.Process(target=use_stdin, args=(writer,))
    process.start()
    told = reader.recv()
    process.join()
    assert told == ["", [], True, False, "utf-8", "the end", b"", os.devnull, "closed"]


def test_a_start_without_a_descriptor_left_leaves_no_child():
    program = """
import os, resource
import phalanx as mp

ctx = mp.get_context("fork")
queue = ctx.Queue()
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
process = ctx.Process(target=queue.put, args=(1,))
free = os.dup(0)
os.close(free)  # the lowest that is free: one more can be opened
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limit[1]))
try:
    process.start()
except OSError:
    pass
else:
    raise AssertionError("started")
resource.setrlimit(resource.RLIMIT_NOFILE, limit)
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    pass
else:
    raise AssertionError("a child was left")
again = ctx.Process(target=queue.put, args=(2,))
again.start()
again.join()
items = [queue.get() for _ in range(queue.qsize())]
assert items[-1] == 2, items
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
