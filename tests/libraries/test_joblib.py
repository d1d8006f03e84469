"""joblib and loky, whose workers are interpreters that loky starts by a way of its own."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_parallel(run, backend):
    printed = run(
        """
import sys
import numpy
from joblib import Parallel, delayed

def total(array):
    return float(array.sum()), type(array).__name__

if __name__ == "__main__":
    parallel = Parallel(n_jobs=2, backend=sys.argv[1])
    print(set(parallel(delayed(whose)(n) for n in range(10))))
    print(parallel(delayed(divmod)(n, 3) for n in range(4)))
    # Large arrays go as files.
    print(parallel(delayed(total)(numpy.ones(n)) for n in (10, 1_000_000)))
    try:
        parallel(delayed(divmod)(1, n) for n in (1, 0))
    except ZeroDivisionError as error:
        print("error:", error)
""",
        backend,
    )
    assert printed.splitlines() == [
        "{'phalanx.queues'}",
        "[(0, 0), (0, 1), (0, 2), (1, 0)]",
        "[(10.0, 'ndarray'), (1000000.0, 'memmap')]",
        "error: " + _division_by_zero(),
    ]


def _division_by_zero() -> str:
    try:
        divmod(1, 0)
    except ZeroDivisionError as error:
        return str(error)
    raise AssertionError


def test_results_larger_than_any_pipe(run):
    printed = run(
        """
from joblib import Parallel, delayed

if __name__ == "__main__":
    print([len(text) for text in Parallel(n_jobs=2)(delayed("x".__mul__)(10**n) for n in range(8))])
"""
    )
    assert printed == f"{[10**n for n in range(8)]}\n"


def test_loky_executor(run):
    printed = run(
        """
import os
from loky import get_reusable_executor
from loky.process_executor import TerminatedWorkerError

if __name__ == "__main__":
    executor = get_reusable_executor(max_workers=2)
    print(set(executor.map(whose, range(10))), list(executor.map(lambda n: n + 1, range(3))))
    try:
        executor.submit(os._exit, 3).result()
    except TerminatedWorkerError as error:
        print("EXIT(3)" in str(error))
    executor = get_reusable_executor(max_workers=2)
    print(list(executor.map(abs, [-1, -2])))
    executor.shutdown()
"""
    )
    assert printed == "{'phalanx.queues'} [1, 2, 3]\nTrue\n[1, 2]\n"


def test_shared_objects_in_a_child_that_loky_starts(run):
    printed = run(
        """
import multiprocessing as mp
from loky.backend import get_context

def child(queue, simple, pipe, lock, rlock, semaphore, condition, event, value, array):
    with lock, rlock, semaphore, condition:
        value.value += 1
        array[1] = 7
    assert event.wait(30)
    queue.put(queue.get() + 1)
    simple.put(whose())
    pipe.send(pipe.recv() * 2)
    pipe.close()

if __name__ == "__main__":
    # Not the fork context's, which may not be given to other processes than forked ones.
    mp = mp.get_context("spawn")
    ours, theirs = mp.Pipe()
    queue, simple, event = mp.Queue(), mp.SimpleQueue(), mp.Event()
    value, array = mp.Value("i", 41), mp.Array("d", 3)
    shared = mp.Lock(), mp.RLock(), mp.Semaphore(2), mp.Condition(), event, value, array
    process = get_context("loky").Process(target=child, args=(queue, simple, theirs, *shared))
    process.start()
    queue.put(1)
    event.set()
    ours.send("again")
    print(ours.recv(), simple.get(), queue.get(), end=" ")
    process.join()
    print(value.value, array[:], process.exitcode)
"""
    )
    assert printed == "againagain phalanx.queues 2 42 [0.0, 7.0, 0.0] 0\n"
