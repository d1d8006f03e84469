"""Run CPython's own tests of ProcessPoolExecutor: `process_pool_suite.py METHOD PART`.

PART is "deadlock", for those about killed workers, or "rest". Exits with 3 if the interpreter was
installed without its tests.
"""

from __future__ import annotations

import sys
import unittest
from collections.abc import Iterator

PREFIX = {
    "fork": "ProcessPoolFork",
    "spawn": "ProcessPoolSpawn",
    "forkserver": "ProcessPoolForkserver",
}

# Keeps the queue's feeder thread from starting; the queues of phalanx have none.
NEEDS_FEEDER_THREAD = "test_python_finalization_error"


def cases(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from cases(item)
        else:
            yield item


def is_wanted(case: unittest.TestCase, method: str, part: str) -> bool:
    name = type(case).__name__
    if NEEDS_FEEDER_THREAD in case.id() or not name.startswith(PREFIX[method]):
        return False
    if method == "fork" and name.startswith(PREFIX["forkserver"]):
        return False
    return ("Deadlock" in name) == (part == "deadlock")


def main(method: str, part: str) -> int:
    import concurrent.futures.process as futures

    assert futures.mp.Process.__module__ == "phalanx.context", futures.mp
    try:
        import test.test_concurrent_futures  # noqa: F401
    except ModuleNotFoundError:
        return 3
    found = unittest.defaultTestLoader.loadTestsFromName("test.test_concurrent_futures")
    wanted = unittest.TestSuite(case for case in cases(found) if is_wanted(case, method, part))
    result = unittest.TextTestRunner(verbosity=2).run(wanted)
    print(result.testsRun)
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
