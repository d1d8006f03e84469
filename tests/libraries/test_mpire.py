"""mpire: pools with shared objects, worker state, timeouts and progress."""

from __future__ import annotations

# Without worker_lifespan: mpire takes a worker that ends just then for one that died, now and then.
PROGRAM = """
import sys
import time

from mpire import WorkerPool

def start(shared, state):
    state["calls"] = 0

def count(shared, state, n):
    state["calls"] += 1
    return n * shared[0], whose()

if __name__ == "__main__":
    method = sys.argv[1]
    options = dict(start_method=method, shared_objects=[3], use_worker_state=True)
    with WorkerPool(2, **options) as pool:
        results = pool.map(count, range(20), worker_init=start, chunk_size=2)
        print([n for n, _ in results] == [3 * n for n in range(20)], {w for _, w in results})
    with WorkerPool(2, start_method=method) as pool:
        print(sorted(pool.imap_unordered(abs, range(-5, 0))))
        print(pool.apply(divmod, (7, 2)), pool.apply_async(pow, (2, 5)).get(timeout=60))
    with WorkerPool(2, start_method=method, keep_alive=True) as pool:
        for _ in range(2):
            print(pool.map(abs, [-1, -2]))
    try:
        with WorkerPool(2, start_method=method) as pool:
            pool.map(divmod, [(1, 1), (1, 0)])
    except ZeroDivisionError:
        print("ZeroDivisionError")
    try:
        with WorkerPool(1, start_method=method) as pool:
            pool.map(time.sleep, [600], task_timeout=0.2)
    except TimeoutError:
        print("TimeoutError")
"""


def test_pool(run, start_method):
    assert run(PROGRAM, start_method).splitlines() == [
        "True {'phalanx.queues'}",
        "[1, 2, 3, 4, 5]",
        "(3, 1) 32",
        "[1, 2]",
        "[1, 2]",
        "ZeroDivisionError",
        "TimeoutError",
    ]
