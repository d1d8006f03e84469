"""The standard library's multiprocessing with the one thing that the demo asks beyond it: a
manager that knows Counter. `import standard as mp` stands for `import phalanx as mp`."""

import collections
from multiprocessing import Pool, set_start_method
from multiprocessing.managers import BaseManager

__all__ = ["CounterManager", "Manager", "Pool", "set_start_method"]


class CounterManager(BaseManager):
    """A manager of Counters."""


CounterManager.register(
    "Counter", collections.Counter, exposed=("update", "most_common", "items", "__len__")
)


def Manager() -> CounterManager:
    """Start a manager's process, as `multiprocessing.Manager()` does."""
    manager = CounterManager()
    manager.start()
    return manager
