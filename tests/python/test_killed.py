"""Processes killed at bad moments: the survivors go on, and learn what they have to."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings

import pytest

from processes import is_running, run_python


def hold(lock, connection):
    lock.acquire()
    connection.send("held")
    time.sleep(600)


def wait_in(function, connection):
    connection.send("about to wait")
    function()
    connection.send("came back")


def fill(queue, number):
    while True:
        queue.put((number, bytes([number]) * 5000))


def read_one(queue, connection):
    connection.send(queue.get())


def die(how):
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(600)


def square(number):
    return number * number


def started(ctx, target, *args):
    """Start a process that sends a message when it is where it is wanted; wait for that."""
    here, there = ctx.Pipe()
    process = ctx.Process(target=target, args=(*args, there))
    process.start()
    here.recv()
    return process, here


def kill(process):
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def wait_until_asleep(process):
    """Until a process that waits for something has gone to sleep in the kernel."""
    while True:
        with open(f"/proc/{process.pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "S":
                return
        time.sleep(0.01)


def take_over(mp, lock):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert lock.acquire(timeout=60)
    lock.release()
    return [w.category for w in caught]


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Value", "Condition"])
def test_lock_of_the_killed_is_taken_over_with_a_warning(mp, ctx, kind):
    made = ctx.Value("i", 5) if kind == "Value" else getattr(ctx, kind)()
    lock = made.get_lock() if kind == "Value" else made
    process, _ = started(ctx, hold, lock)
    assert not lock.acquire(block=False)
    kill(process)
    assert take_over(mp, lock) == [mp.AbandonedLockWarning]
    assert take_over(mp, lock) == []  # once is enough


def test_abandoned_lock_can_be_made_an_error(mp, ctx):
    lock = ctx.Lock()
    process, _ = started(ctx, hold, lock)
    kill(process)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mp.AbandonedLockWarning)
        with pytest.raises(mp.AbandonedLockWarning):
            lock.acquire(timeout=60)
    assert take_over(mp, lock) == []


def test_permit_of_the_killed_comes_back_to_a_bounded_semaphore(ctx):
    semaphore = ctx.BoundedSemaphore(2)
    processes = [started(ctx, hold, semaphore)[0] for _ in range(2)]
    assert not semaphore.acquire(block=False)
    kill(processes[0])
    assert semaphore.acquire(timeout=60)
    assert not semaphore.acquire(block=False)
    semaphore.release()
    kill(processes[1])


def test_killed_waiter_blocks_nobody(ctx):
    event = ctx.Event()
    waiters = [started(ctx, wait_in, event.wait) for _ in range(3)]
    for process, _ in waiters:
        wait_until_asleep(process)
    kill(waiters[1][0])
    event.set()
    for process, connection in waiters[::2]:
        assert connection.recv() == "came back"
        process.join()
        assert process.exitcode == 0


def wait_on(condition, connection):
    with condition:
        connection.send("holds the lock")
        condition.wait()
    connection.send("came back")


def test_notify_goes_to_the_living(ctx):
    condition = ctx.Condition()
    waiters = [started(ctx, wait_on, condition) for _ in range(3)]
    with condition:  # so all have let go of it in wait()
        pass
    kill(waiters[0][0])
    with condition:
        condition.notify(2)
    for process, connection in waiters[1:]:
        assert connection.recv() == "came back"
        process.join()


def test_barrier_of_the_killed_breaks(ctx):
    barrier = ctx.Barrier(3)
    process, _ = started(ctx, wait_in, barrier.wait)
    while barrier.n_waiting < 1:
        time.sleep(0.01)
    kill(process)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(60)
    barrier.reset()
    assert not barrier.broken


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_killed_writers_leave_whole_messages(ctx, kind):
    queue = getattr(ctx, kind)()
    writers = [ctx.Process(target=fill, args=(queue, n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for _ in range(50):
        number, data = queue.get()
        assert data == bytes([number]) * 5000
    for writer in writers:
        kill(writer)
    queue.put("the end")
    while (item := queue.get()) != "the end":
        number, data = item
        assert data == bytes([number]) * 5000
    assert queue.empty()


def test_killed_reader_leaves_the_queue_to_others(ctx):
    queue = ctx.Queue()
    here, there = ctx.Pipe()
    reader = ctx.Process(target=read_one, args=(queue, there))
    reader.start()
    wait_until_asleep(reader)
    kill(reader)
    queue.put("kept")
    assert queue.get(timeout=60) == "kept"


def take_and_wait(queue, connection):
    connection.send(queue.get())
    time.sleep(600)


def test_what_the_killed_had_taken_counts_as_done(ctx):
    queue = ctx.JoinableQueue()
    for number in range(3):
        queue.put(number)
    workers = [started(ctx, take_and_wait, queue)[0] for _ in range(2)]
    queue.get()
    kill(workers[0])
    workers[1].kill()  # found dead by the one who waits
    queue.task_done()
    queue.join()
    with pytest.raises(ValueError):
        queue.task_done()
    workers[1].join()


def test_end_of_a_pipe_is_seen_when_its_owner_is_killed(ctx):
    here, there = ctx.Pipe()
    process = ctx.Process(target=hold, args=(ctx.Lock(), there))
    process.start()
    there.close()
    assert here.recv() == "held"
    kill(process)
    with pytest.raises(EOFError):
        here.recv()


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit"])
def test_death_of_a_worker_costs_its_task_alone(ctx, how):
    from phalanx.pool import WorkerDied

    with ctx.Pool(2) as pool:
        lost = pool.apply_async(die, (how,))
        others = [pool.apply_async(square, (n,)) for n in range(50)]
        with pytest.raises(WorkerDied) as caught:
            lost.get(timeout=60)
        assert ("7" if how == "exit" else how) in str(caught.value)
        assert [other.get(timeout=60) for other in others] == [n * n for n in range(50)]
        assert pool.map(square, range(100)) == [n * n for n in range(100)]
        pool.close()
        pool.join()


def test_killed_idle_worker_is_replaced(ctx):
    with ctx.Pool(2) as pool:
        assert pool.map(square, range(4)) == [0, 1, 4, 9]
        for worker in list(pool._pool):
            os.kill(worker.pid, signal.SIGKILL)
        assert pool.map_async(square, range(100)).get(timeout=60) == [n * n for n in range(100)]


def test_manager_killed_is_noticed(ctx):
    manager = ctx.Manager()
    shared = manager.dict(a=1)
    os.kill(manager._process.pid, signal.SIGKILL)
    manager._process.join()
    with pytest.raises((EOFError, OSError)):
        shared["a"]
    manager.shutdown()


PARENT = """
import os, signal, sys, time
import phalanx as mp

def sleep(connection):
    connection.send(os.getpid())
    time.sleep(600)

def compute(connection):
    connection.send(os.getpid())
    sum(iter(int, 1))  # in C code for ever: no Python instruction is run again

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    here, there = ctx.Pipe()
    daemons = [ctx.Process(target=t, args=(there,), daemon=True) for t in (sleep, compute)]
    for daemon in daemons:
        daemon.start()
    print(here.recv(), here.recv(), flush=True)
    pool = ctx.Pool(2)
    print(*pool.map(int, [3, 4]), flush=True)
    print(*[worker.pid for worker in pool._pool], flush=True)
    manager = ctx.Manager()
    print(manager._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_outlives_a_killed_parent(start_method, tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    done = run_python(program, start_method)
    assert done.returncode == -signal.SIGKILL
    daemons, numbers, workers, manager = done.stdout.splitlines()
    assert numbers == "3 4"
    pids = [int(pid) for line in (daemons, workers, manager) for pid in line.split()]
    assert len(pids) == 5
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in pids if is_running(pid)] == []


CTRL_C = """
import signal, sys, time
import phalanx as mp

def work(n):
    time.sleep(600)

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    queue, lock, event = ctx.Queue(), ctx.Lock(), ctx.Event()
    lock.acquire()
    here, there = ctx.Pipe()
    waits = [
        queue.get, lock.acquire, event.wait, here.recv, ctx.Process(target=work, args=(1,)).join,
        ctx.Pool(2).apply,
    ]
    waiting = waits[int(sys.argv[2])]
    arguments = ()
    if hasattr(waiting, "__self__") and isinstance(waiting.__self__, ctx.Process):
        waiting.__self__.start()
    if waiting.__name__ == "apply":
        arguments = (work, (1,))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        waiting(*arguments)
    except KeyboardInterrupt:
        print("interrupted")
    for process in mp.active_children():
        process.terminate()
"""


@pytest.mark.parametrize("wait", range(6), ids=["get", "acquire", "wait", "recv", "join", "apply"])
def test_every_wait_serves_signals(start_method, tmp_path, wait):
    program = tmp_path / "ctrl_c.py"
    program.write_text(CTRL_C)
    done = run_python(program, start_method, str(wait))
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
