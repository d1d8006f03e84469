"""Who is measured. Most have the API of multiprocessing; the others take part with what they have.

A workload that needs something an adapter lacks fails with AttributeError and has no figure.
"""

from __future__ import annotations

import importlib
import multiprocessing
from typing import Any

__all__ = ["RIVALS", "load"]


class _Adapter:
    """A part of the API of multiprocessing on another library; processes are the standard ones."""

    Process = multiprocessing.Process
    Event = staticmethod(multiprocessing.Event)
    Pipe = staticmethod(multiprocessing.Pipe)

    def get_context(self, method: str) -> _Adapter:
        if method != "fork":
            raise AttributeError("measured with fork only")
        return self


class _FasterFifo(_Adapter):
    def __init__(self) -> None:
        self._module = importlib.import_module("faster_fifo")
        importlib.import_module("faster_fifo_reduction")

    def Queue(self, maxsize: int = 0) -> Any:  # noqa: N802
        # Its default of 1 MB holds no 8 MB array.
        size = 1_000_000 if not maxsize else maxsize * 8_001_000
        return _FifoQueue(self._module.Queue(max_size_bytes=size))


class _FifoQueue:
    """Its calls give up after ten seconds where the standard library's wait."""

    def __init__(self, queue: Any) -> None:
        self.put = queue.put
        self.get = queue.get
        self.put_many = queue.put_many
        self._queue = queue

    def get_many(self, count: int) -> Any:
        return self._queue.get_many(max_messages_to_get=count)


class _Later:
    def __init__(self, future: Any) -> None:
        self.get = future.result


class _Executor:
    """The methods of a Pool on an executor of concurrent.futures."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def __enter__(self) -> _Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def map(self, function: Any, items: Any, chunksize: int | None = None) -> list[Any]:
        items = list(items)
        return list(self._executor.map(function, items, chunksize=chunksize or len(items) // 8 + 1))

    def imap(self, function: Any, items: Any) -> Any:
        return self._executor.map(function, items)

    def imap_unordered(self, function: Any, items: Any) -> Any:
        from concurrent.futures import as_completed

        return as_completed([self._executor.submit(function, item) for item in items])

    def apply(self, function: Any, args: tuple[Any, ...]) -> Any:
        return self._executor.submit(function, *args).result()

    def apply_async(self, function: Any, args: tuple[Any, ...]) -> Any:
        return _Later(self._executor.submit(function, *args))

    def close(self) -> None:
        pass

    def join(self) -> None:
        # Its processes start with the first task; without one there would be nothing to measure.
        list(self._executor.map(len, ["", ""]))
        self._executor.shutdown()


class _Futures(_Adapter):
    def Pool(self, workers: int) -> Any:  # noqa: N802
        from concurrent.futures import ProcessPoolExecutor

        context = multiprocessing.get_context("fork")
        return _Executor(ProcessPoolExecutor(workers, mp_context=context))


class _Loky(_Adapter):
    def Pool(self, workers: int) -> Any:  # noqa: N802
        from loky import ProcessPoolExecutor

        return _Executor(ProcessPoolExecutor(workers))


class _PebblePool(_Executor):
    def __exit__(self, *_: object) -> None:
        self._executor.close()
        self._executor.join()

    def map(self, function: Any, items: Any, chunksize: int | None = None) -> list[Any]:
        items = list(items)
        size = chunksize or len(items) // 8 + 1
        return list(self._executor.map(function, items, chunksize=size).result())

    def imap(self, function: Any, items: Any) -> Any:
        return self._executor.map(function, list(items)).result()

    imap_unordered = imap

    def apply(self, function: Any, args: tuple[Any, ...]) -> Any:
        return self._executor.submit(function, None, *args).result()

    def apply_async(self, function: Any, args: tuple[Any, ...]) -> Any:
        return _Later(self._executor.submit(function, None, *args))

    def join(self) -> None:
        self._executor.submit(len, None, "").result()
        self._executor.close()
        self._executor.join()


class _Pebble(_Adapter):
    def Pool(self, workers: int) -> Any:  # noqa: N802
        from pebble import ProcessPool

        return _PebblePool(ProcessPool(workers, context=multiprocessing.get_context("fork")))


class _MpirePool:
    def __init__(self, workers: int) -> None:
        from mpire import WorkerPool

        self._pool = WorkerPool(workers, keep_alive=True)
        self.apply = self._pool.apply
        self.apply_async = self._pool.apply_async
        self.imap = self._pool.imap
        self.imap_unordered = self._pool.imap_unordered

    def __enter__(self) -> _MpirePool:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    def map(self, function: Any, items: Any, chunksize: int | None = None) -> Any:
        return self._pool.map(function, list(items), chunk_size=chunksize)

    def close(self) -> None:
        self._pool.map(abs, [1, 2])

    def join(self) -> None:
        self._pool.stop_and_join()


class _Mpire(_Adapter):
    Pool = _MpirePool


class _JoblibPool:
    """Joblib has one way in, which is a map."""

    def __init__(self, workers: int) -> None:
        from joblib import Parallel

        self._parallel = Parallel

        self._workers = workers
        self._kept = Parallel(workers)
        self._kept.__enter__()

    def __enter__(self) -> _JoblibPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.__exit__(None, None, None)

    def map(self, function: Any, items: Any, chunksize: int | None = None) -> Any:
        from joblib import delayed

        self._kept.batch_size = chunksize or "auto"
        return self._kept(delayed(function)(item) for item in items)

    def imap(self, function: Any, items: Any) -> Any:
        return self.map(function, items, 1)


class _Joblib(_Adapter):
    Pool = _JoblibPool


_ADAPTERS = {
    "faster_fifo": _FasterFifo,
    "futures": _Futures,
    "loky": _Loky,
    "pebble": _Pebble,
    "mpire": _Mpire,
    "joblib": _Joblib,
}
_SAME_API = ("multiprocessing", "phalanx", "multiprocess", "billiard")
# Which groups of workloads a rival takes part in; the distribution that its version is asked of.
RIVALS: dict[str, tuple[frozenset[str] | None, str | None]] = {
    "multiprocessing": (None, None),
    "phalanx": (None, "phalanx"),
    "multiprocess": (None, "multiprocess"),
    "billiard": (None, "billiard"),
    "faster_fifo": (frozenset({"queue"}), "faster-fifo"),
    "futures": (frozenset({"pool"}), None),
    "loky": (frozenset({"pool"}), "loky"),
    "pebble": (frozenset({"pool"}), "pebble"),
    "mpire": (frozenset({"pool"}), "mpire"),
    "joblib": (frozenset({"pool"}), "joblib"),
}


def load(rival: str) -> Any:
    """What a workload is given: the name of a module, or an adapter."""
    return rival if rival in _SAME_API else _ADAPTERS[rival]()
