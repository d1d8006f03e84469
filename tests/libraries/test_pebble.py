"""pebble: pools whose tasks have timeouts and can be cancelled, which costs their workers."""

from __future__ import annotations

PROGRAM = """
import multiprocessing
import os
import sys
import time
from concurrent.futures import CancelledError, TimeoutError

from pebble import ProcessExpired, ProcessPool, concurrent

@concurrent.process(timeout=60)
def decorated(n):
    return n + 1, whose()

@concurrent.process(timeout=0.2)
def endless():
    time.sleep(600)

def outcome(future):
    try:
        return future.result()
    except (CancelledError, TimeoutError, ProcessExpired, ZeroDivisionError) as error:
        return type(error).__name__

if __name__ == "__main__":
    # Printed at the end: pebble forks in a thread, and what is in a buffer then is printed twice.
    said = []
    say = lambda *what: said.append(" ".join(map(str, what)))
    context = multiprocessing.get_context(sys.argv[1])
    if sys.argv[1] == "fork":  # the decorators' only one without a module to import
        say(decorated(1).result(), outcome(endless()))
    with ProcessPool(max_workers=2, max_tasks=3, context=context) as pool:
        say(set(pool.map(whose, range(10)).result()))
        say(list(pool.map(abs, range(-9, 0), chunksize=2).result()))
        say(outcome(pool.schedule(time.sleep, args=[600], timeout=0.2)))
        running = pool.schedule(time.sleep, args=[600])
        while not running.running():
            time.sleep(0.01)
        running.cancel()
        say(outcome(running))
        say(outcome(pool.schedule(os._exit, args=[3])))
        say(outcome(pool.schedule(divmod, args=[1, 0])))
        say(outcome(pool.schedule(pow, args=[2, 3])))
    pool = ProcessPool(max_workers=1, context=context)
    pool.schedule(time.sleep, args=[600])
    pool.stop()
    pool.join()
    say("stopped")
    print(*said, sep="\\n")
"""


def test_pool(run, start_method):
    printed = run(PROGRAM, start_method).splitlines()
    if start_method == "fork":
        assert printed.pop(0) == "(2, 'phalanx.queues') TimeoutError"
    assert printed == [
        "{'phalanx.queues'}",
        "[9, 8, 7, 6, 5, 4, 3, 2, 1]",
        "TimeoutError",
        "CancelledError",
        "ProcessExpired",
        "ZeroDivisionError",
        "8",
        "stopped",
    ]
