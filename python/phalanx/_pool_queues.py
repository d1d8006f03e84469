"""Pools over other queues than their own: those of threads, and those that a subclass sets up."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from . import util
from .pool import ExceptionWithTraceback, MaybeEncodingError, _helper_reraises_exception

if TYPE_CHECKING:
    from . import _phalanx
    from .pool import ThreadPool

__all__ = ["ResultReader", "Results", "TaskQueue", "serve"]


def serve(
    inqueue: Any,
    outqueue: Any,
    initializer: Callable[..., object] | None,
    initargs: Iterable[Any],
    maxtasks: int | None,
    wrap_exception: bool,
) -> None:
    """The worker's loop; see `pool.worker`."""
    if hasattr(inqueue, "_writer"):
        inqueue._writer.close()
        outqueue._reader.close()
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as error:
            if isinstance(outqueue, Results):
                outqueue.report(error)
            raise
    for _ in itertools.repeat(None) if maxtasks is None else range(maxtasks):
        try:
            task = inqueue.get()
        except (EOFError, OSError):
            util.debug("worker exiting: the task queue is closed")
            return
        if task is None:
            util.debug("worker exiting: no more tasks")
            return
        job, index, function, args, kwargs = task
        task = None
        result: Any
        try:
            result = (True, function(*args, **kwargs))
        except BaseException as error:
            wrapped = wrap_exception and function is not _helper_reraises_exception
            result = (
                False,
                ExceptionWithTraceback(error, error.__traceback__) if wrapped else error,
            )
        try:
            outqueue.put((job, index, result))
        except Exception as error:
            outqueue.put((job, index, (False, MaybeEncodingError(error, result[1]))))
        function = args = kwargs = result = None


class TaskQueue:
    """What stands for the queue of tasks: subclasses put ``(tasks, set_length)`` into it."""

    def __init__(self, hub: _phalanx.PoolHub) -> None:
        self._hub = hub

    def put(self, item: tuple[Iterable[Any], Callable[[int], object] | None] | None) -> None:
        """Hand the tasks over."""
        if item is not None:
            self._hub.put_tasks(*item)


class ResultReader:
    """Takes results from a queue that a subclass has set up."""

    def __init__(self, hub: _phalanx.PoolHub, get: Callable[[], Any]) -> None:
        self._hub = hub
        self._get = get

    def __call__(self) -> None:
        while True:
            try:
                result = self._get()
            except (EOFError, OSError):
                return
            if result is None:
                return
            job, index, (success, value) = result
            result = None
            self._hub.set_result(job, index, success, value)
            value = None


class Results:
    """Where worker threads put their results: straight into the calls they belong to."""

    def __init__(self, pool: ThreadPool) -> None:
        self._hub = pool._hub
        self._pool = weakref.ref(pool)

    def put(self, result: tuple[int, int, tuple[bool, Any]]) -> None:
        """Deliver ``(job, index, (success, value))``."""
        job, index, (success, value) = result
        self._hub.set_result(job, index, success, value)

    def report(self, error: BaseException) -> None:
        """Tell that the initializer has raised ``error``."""
        pool = self._pool()
        if pool is not None:
            pool._failed_starts += 1
            pool._start_error = error
