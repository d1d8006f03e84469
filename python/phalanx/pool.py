"""`Pool` and `ThreadPool`: functions applied by workers.

The calling thread hands tasks over and takes results out of shared memory itself; no thread stands
in between. A worker that dies costs the task it had, which raises :class:`WorkerDied`; a new one
takes its place.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import types
import warnings
import weakref
from _thread import allocate_lock
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _failure, _phalanx, util
from .context import TimeoutError as TimeoutError
from .context import _default_context as default_context
from .reduction import ForkingPickler

# Neither `threading` nor `queue`, which needs it: they took a fifth of this module's import, and a
# forked worker has 315 page faults instead of 347 without the hook that they bring.
if TYPE_CHECKING:
    import threading

    from ._pool_queues import TaskQueue
    from .context import BaseContext
    from .process import BaseProcess

__all__ = ["Pool", "ThreadPool", "WorkerDied"]

S = TypeVar("S")
R = TypeVar("R")

INIT = "INIT"
RUN = "RUN"
CLOSE = "CLOSE"
TERMINATE = "TERMINATE"

#: How long terminate() waits for workers to follow SIGTERM before it kills them, in seconds.
GRACE = 5.0


def mapstar(args: tuple[Callable[..., Any], Iterable[Any]]) -> list[Any]:
    """``list(map(f, items))`` for ``args = (f, items)``: a chunk of a map."""
    return list(map(*args))


def starmapstar(args: tuple[Callable[..., Any], Iterable[Iterable[Any]]]) -> list[Any]:
    """``list(starmap(f, items))`` for ``args = (f, items)``: a chunk of a starmap."""
    return list(itertools.starmap(args[0], args[1]))


def _star(args: tuple[Callable[..., Any], Iterable[Any]]) -> Any:
    """``f(*item)`` for ``args = (f, item)``: a starmap's chunk of one."""
    return args[0](*args[1])


# -- errors ----------------------------------------------------------------------------------------


class WorkerDied(RuntimeError):
    """A worker's process ended in the middle of a task, and the task is lost with it.

    Attributes:
        worker: the worker's name.
        pid: its process id.
        exitcode: how it ended: -N for signal N, else the exit status.
        task: the place of the task in its call, 0 for a single one; None if no task is lost but
            the workers cannot start.
    """

    def __init__(
        self,
        message: str,
        worker: str | None = None,
        pid: int | None = None,
        exitcode: int | None = None,
        task: int | None = None,
    ) -> None:
        super().__init__(message)
        self.worker = worker
        self.pid = pid
        self.exitcode = exitcode
        self.task = task

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.worker, self.pid, self.exitcode, self.task)


class RemoteTraceback(Exception):
    """The cause of an error that a worker sent: prints the worker's traceback, ``tb``."""

    def __init__(self, tb: str) -> None:
        self.tb = tb

    def __str__(self) -> str:
        return self.tb


class ExceptionWithTraceback:
    """An exception on its way to another process, with its traceback as text."""

    def __init__(self, exc: BaseException, tb: types.TracebackType | None) -> None:
        import traceback

        text = "".join(traceback.format_exception(type(exc), exc, tb))
        self.exc = exc
        self.tb = f'\n"""\n{text}"""'

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_exc, (_failure.portable(self.exc), self.tb)


def rebuild_exc(exc: BaseException, tb: str) -> BaseException:
    """The exception, with the worker's traceback as its cause."""
    exc.__cause__ = RemoteTraceback(tb)
    return exc


class MaybeEncodingError(Exception):
    """A result, or an exception, could not be pickled: ``exc`` and ``value`` are the texts of the
    pickling error and of the result."""

    def __init__(self, exc: object, value: object) -> None:
        self.exc = _text(exc)
        self.value = _text(value)
        super().__init__(self.exc, self.value)

    def __str__(self) -> str:
        return f"cannot send the result {self.value} to the parent process: {self.exc}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"


def _text(value: object) -> str:
    """The value's repr; a stand-in if it has none."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} object, whose repr failed>"


def _pack_error(error: BaseException, wrap: bool) -> tuple[bytes, str | None]:
    """The exception's pickle, and the text of its traceback if ``wrap``.

    Apart from each other, so that the text arrives even if the exception cannot be unpickled.
    """
    text = ExceptionWithTraceback(error, error.__traceback__).tb if wrap else None
    try:
        return bytes(ForkingPickler.dumps(_failure.portable(error))), text
    except Exception as refusal:
        return bytes(ForkingPickler.dumps(MaybeEncodingError(refusal, error))), text


def _pack_refusal(refusal: BaseException, value: object) -> tuple[bytes, None]:
    """What is sent in place of a value that could not be."""
    return bytes(ForkingPickler.dumps(MaybeEncodingError(refusal, value))), None


def _unpack_error(packed: tuple[bytes, str | None]) -> BaseException:
    """The exception of `_pack_error`; if it cannot be unpickled, the error of that."""
    pickled, text = packed
    try:
        error = ForkingPickler.loads(pickled)
    except Exception as failure:
        error = failure
        if hasattr(error, "add_note"):
            error.add_note("raised by unpickling the exception that a task of the pool ended with")
    if not isinstance(error, BaseException):
        error = TypeError(f"the exception of a task was unpickled as {_text(error)}")
    return error if text is None else rebuild_exc(error, text)


def _helper_reraises_exception(ex: BaseException) -> None:
    """Stands in a task for an error of the iterable that the tasks come from."""
    raise ex


# -- the worker ------------------------------------------------------------------------------------


def worker(
    inqueue: Any,
    outqueue: Any,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    maxtasks: int | None = None,
    wrap_exception: bool = False,
) -> None:
    """What a worker does: take tasks until there are no more, or ``maxtasks`` of them."""
    if maxtasks is not None and not (isinstance(maxtasks, int) and maxtasks >= 1):
        raise AssertionError(f"maxtasks must be None or a positive int, not {maxtasks!r}")
    held = False
    try:
        try:
            held = util.release_interrupt()
        except KeyboardInterrupt:
            held = True  # it came before there was anything to interrupt
        if isinstance(inqueue, _phalanx.PoolEnd):
            _serve_pool(inqueue, initializer, initargs, maxtasks, wrap_exception)
        else:
            from ._pool_queues import serve

            serve(inqueue, outqueue, initializer, initargs, maxtasks, wrap_exception)
    except KeyboardInterrupt:
        if not held:
            raise
        # The program has had it, too, and says so: one traceback is enough.
        sys.exit(1)
    finally:
        util.hold_interrupt(held)


def _serve_pool(
    end: _phalanx.PoolEnd,
    initializer: Callable[..., object] | None,
    initargs: Iterable[Any],
    maxtasks: int | None,
    wrap_exception: bool,
) -> None:
    """The worker's loop over the pool's own channels."""
    seat = end.enter()
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as error:
            seat.report(error)
            raise
    done = seat.serve(maxtasks, wrap_exception)
    util.debug("worker exiting after %d tasks", done)


# -- results ---------------------------------------------------------------------------------------


if TYPE_CHECKING:

    class _Result(_phalanx.PoolResult, Generic[R]):
        def get(self, timeout: float | None = None) -> R: ...

    class _Iterator(_phalanx.PoolIterator, Generic[R]):
        def __next__(self) -> R: ...
        def next(self, timeout: float | None = None) -> R: ...

else:

    class _Result(_phalanx.PoolResult):
        __class_getitem__ = classmethod(types.GenericAlias)

    class _Iterator(_phalanx.PoolIterator):
        __class_getitem__ = classmethod(types.GenericAlias)


class ApplyResult(_Result[R]):
    """The result of a call that may still be under way.

    ``get(timeout=None)`` waits for it, ``wait(timeout=None)`` too, ``ready()`` and ``successful()``
    tell about it.
    """

    def __init__(
        self,
        pool: Pool,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._create(pool._hub, pool, callback, error_callback)

    @property
    def _cache(self) -> dict[int, Any]:
        pool = self._pool
        return {} if pool is None else pool._cache


AsyncResult = ApplyResult


class MapResult(ApplyResult[list[R]]):
    """The result of a map that may still be under way: a list."""

    def __init__(
        self,
        pool: Pool,
        chunksize: int,
        length: int,
        callback: Callable[[list[R]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        chunksize = max(chunksize, 0)
        self._create(pool._hub, pool, callback, error_callback, chunksize, length)


class IMapIterator(_Iterator[R]):
    """The results of a call item by item, in order. ``next(timeout=None)`` waits for one."""

    _ordered = True

    def __init__(self, pool: Pool) -> None:
        self._create(pool._hub, pool, self._ordered)


class IMapUnorderedIterator(IMapIterator[R]):
    """The results of a call item by item, as they come."""

    _ordered = False


# -- the pool --------------------------------------------------------------------------------------


class Pool:
    """Processes that apply functions.

    Args:
        processes: how many; by default as many as there are CPUs for this process.
        initializer: called with ``initargs`` in each worker before its first task. If it keeps
            failing, all calls raise :class:`WorkerDied`.
        maxtasksperchild: after so many tasks (chunks, for the maps) a worker is replaced.
        context: the start method's context that makes the workers.
    """

    _wrap_exception = True
    _hub: _phalanx.PoolHub
    _inqueue: Any
    _outqueue: Any
    # Set by subclasses that bring queues of their own.
    _quick_put: Callable[[Any], object]
    _quick_get: Callable[[], Any]

    @staticmethod
    def Process(ctx: BaseContext, *args: Any, **kwds: Any) -> BaseProcess:  # noqa: N802
        """Make a worker; to be overridden for workers of another kind."""
        return ctx.Process(*args, **kwds)

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | None = None,
    ) -> None:
        self._pool: list[Any] = []
        self._state = INIT
        self._ctx = context or default_context.get_context()
        if processes is None:
            processes = _usable_cpus()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        self._initializer = initializer
        self._initargs = initargs
        self._maxtasksperchild = maxtasksperchild
        self._failed_starts = 0
        self._start_error: BaseException | None = None
        self._maintenance = allocate_lock()
        self._setup_queues()
        if not hasattr(self, "_hub"):
            # A subclass has queues of its own.
            self._hub = _phalanx.PoolHub(_Maintainer(self), _start_thread, self._quick_put)
            from ._pool_queues import ResultReader

            _start_thread(ResultReader(self._hub, self._quick_get))
        try:
            self._repopulate_pool()
        except BaseException:
            for process in self._pool:
                if process.exitcode is None:
                    process.terminate()
            for process in self._pool:
                process.join()
            raise
        self._terminate = util.Finalize(
            self,
            self._terminate_pool,
            args=(self._hub, self._pool, self._maintenance, self._inqueue),
            exitpriority=15,
        )
        self._state = RUN

    def __del__(self, _warn: Callable[..., None] = warnings.warn, RUN: str = RUN) -> None:  # noqa: N803
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        cls = type(self)
        return (
            f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(self._pool)}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.terminate()

    def _setup_queues(self) -> None:
        self._hub = _phalanx.PoolHub(_Maintainer(self), _start_thread)
        # One object for both directions: it is how workers tell the pool's own way from queues.
        self._inqueue = self._outqueue = self._hub.end

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    @property
    def _taskqueue(self) -> TaskQueue:
        """What stands for the queue of tasks."""
        from ._pool_queues import TaskQueue

        return TaskQueue(self._hub)

    @property
    def _cache(self) -> dict[int, Any]:
        return dict.fromkeys(self._hub.open_jobs())

    # -- workers -------------------------------------------------------------------------------

    def _repopulate_pool(self) -> None:
        """Replace the workers that have ended."""
        self._join_exited_workers(self._pool)
        try:
            self._repopulate_pool_static(
                self._ctx,
                self.Process,
                self._processes,
                self._pool,
                self._inqueue,
                self._outqueue,
                self._initializer,
                self._initargs,
                self._maxtasksperchild,
                self._wrap_exception,
            )
        finally:
            self._watch_workers()

    @staticmethod
    def _repopulate_pool_static(
        ctx: Any,
        Process: Callable[..., Any],  # noqa: N803
        processes: int,
        pool: list[Any],
        inqueue: Any,
        outqueue: Any,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        maxtasksperchild: int | None,
        wrap_exception: bool,
    ) -> None:
        """Start workers until there are ``processes`` of them."""
        for _ in range(processes - len(pool)):
            args = (inqueue, outqueue, initializer, initargs, maxtasksperchild, wrap_exception)
            process = Process(ctx, target=worker, args=args)
            process.name = process.name.replace("Process", "PoolWorker")
            process.daemon = process._holds_interrupt = True
            process.start()
            pool.append(process)
            util.debug("added worker")

    def _join_exited_workers(self, pool: list[Any]) -> bool:
        """Take workers off the list that have ended; whether there were any."""
        ended = [process for process in list(pool) if process.exitcode is not None]
        for process in ended:
            process.join()
            if process in pool:
                pool.remove(process)
                self._bury(process)
        return bool(ended)

    def _watch_workers(self) -> None:
        sentinels = [
            sentinel
            for process in self._pool
            if isinstance(sentinel := getattr(process, "sentinel", None), int)
        ]
        self._hub.set_workers(self._processes, sentinels)

    def _bury(self, process: Any) -> None:
        """See to what a worker left that has ended."""
        pid = getattr(process, "pid", None)
        if not isinstance(pid, int):
            return
        index, was_ready, had_left, lost = self._hub.bury(pid)
        if was_ready:
            self._failed_starts = 0
        else:
            self._failed_starts += 1
            if self._hub.start_error() is None and hasattr(process, "exception"):
                self._start_error = process.exception()
        if lost is not None:
            job, task = lost
            error = _worker_died(process, task)
            self._hub.set_result(job, task, False, error)

    def _maintain_pool(self) -> None:
        """Replace workers that have ended, as long as there is work for them.

        Called by the thread that waits, or by the supervisor, when a worker seems to have ended.
        """
        if self._state == TERMINATE or not self._maintenance.acquire(blocking=False):
            return
        try:
            self._join_exited_workers(self._pool)
            if self._state == RUN or not self._hub.is_idle():
                self._replace_workers()
            else:
                self._watch_workers()
        finally:
            self._maintenance.release()

    def _replace_workers(self) -> None:
        if self._failed_starts > self._processes + 2:
            # Workers die as fast as they are started: no more of them.
            if not self._has_ready_workers():
                self._hub.break_off(self._cannot_start())
            self._watch_workers()
            return
        try:
            self._repopulate_pool()
        except Exception as error:
            if not self._pool:
                died = WorkerDied(f"the pool has no workers left and cannot start others: {error}")
                died.__cause__ = error
                self._hub.break_off(died)

    def _has_ready_workers(self) -> bool:
        return self._hub.has_ready_workers()

    def _cannot_start(self) -> WorkerDied:
        cause = self._start_error or self._hub.start_error()
        why = "" if cause is None else f": {type(cause).__name__}: {str(cause).strip()}"
        error = WorkerDied(f"the pool cannot work, since its workers die in their start{why}")
        error.__cause__ = cause
        return error

    # -- calls ---------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},  # noqa: B006
    ) -> R:
        """``func(*args, **kwds)`` in a worker; blocks for the result."""
        if type(self).apply_async is not Pool.apply_async:
            return self.apply_async(func, args, kwds).get()
        self._check_running()
        result: R = self._hub.apply(func, args, kwds)
        return result

    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},  # noqa: B006
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> ApplyResult[R]:
        """As `apply`, but returns an `ApplyResult` at once.

        Errors, that of an argument that cannot be pickled too, are raised by its ``get()``.
        Callbacks are called in a thread of the pool, one at a time.
        """
        self._check_running()
        return self._hub.apply_async(ApplyResult, self, func, args, kwds, callback, error_callback)

    def map(
        self, func: Callable[[S], R], iterable: Iterable[S], chunksize: int | None = None
    ) -> list[R]:
        """``[func(item) for item in iterable]`` in the workers; blocks for the list.

        All items are worked on, then the first error is raised if there was one.
        """
        return self._map(func, iterable, mapstar, chunksize)

    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[R]:
        """As `map`, for ``func(*item)``."""
        return self._map(func, iterable, starmapstar, chunksize)

    def map_async(
        self,
        func: Callable[[S], R],
        iterable: Iterable[S],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[R]:
        """As `map`, but returns a `MapResult` at once."""
        return self._map_async(func, iterable, mapstar, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[R]:
        """As `starmap`, but returns a `MapResult` at once."""
        return self._map_async(func, iterable, starmapstar, chunksize, callback, error_callback)

    def _map(
        self,
        func: Callable[..., Any],
        iterable: Any,
        mapper: Callable[..., Any],
        chunksize: int | None,
    ) -> list[Any]:
        if type(self)._map_async is not Pool._map_async:
            result: list[Any] = self._map_async(func, iterable, mapper, chunksize).get()
            return result
        self._check_running()
        items, chunksize = self._chunks(iterable, chunksize)
        return self._hub.map(func, items, chunksize, mapper is starmapstar)

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Any,
        mapper: Callable[..., Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[Any]:
        self._check_running()
        items, chunksize = self._chunks(iterable, chunksize)
        star = mapper is starmapstar
        return self._hub.map_async(
            MapResult, self, func, items, chunksize, star, callback, error_callback
        )

    def _chunks(self, iterable: Any, chunksize: int | None) -> tuple[Any, int]:
        """The iterable with a length, and how many items go into a task."""
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        length = len(iterable)
        if chunksize is None:
            chunksize, extra = divmod(length, max(len(self._pool), 1) * 4)
            if extra:
                chunksize += 1
        if length == 0 or chunksize < 0:
            chunksize = 0
        return iterable, chunksize

    def imap(
        self,
        func: Callable[[S], R],
        iterable: Iterable[S],
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> IMapIterator[R]:
        """An iterator over ``func(item) for item in iterable``, in order.

        The iterable is read as results are taken, some hundreds ahead; with ``buffersize``, never
        more than so many items ahead of the results that were taken, for which chunks are made
        smaller if need be, and no further once the iterator was dropped or the pool is joined. An
        error of an item, or of the iterable, is raised in its place.
        """
        results: IMapIterator[R] = self._imap(IMapIterator, func, iterable, chunksize, buffersize)
        return results

    def imap_unordered(
        self,
        func: Callable[[S], R],
        iterable: Iterable[S],
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> IMapIterator[R]:
        """As `imap`, but results come in the order in which they are ready."""
        results: IMapIterator[R] = self._imap(
            IMapUnorderedIterator, func, iterable, chunksize, buffersize
        )
        return results

    def _imap(
        self,
        result_class: type[IMapIterator[Any]],
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
    ) -> Any:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
        window = None
        if buffersize is not None:
            chunksize, window = self._narrow(chunksize, buffersize)
        ordered = result_class._ordered
        result = self._hub.imap(result_class, self, func, iterable, chunksize, ordered, window)
        if chunksize == 1:
            return result
        return (item for chunk in result for item in chunk)

    def _narrow(self, chunksize: int, buffersize: int) -> tuple[int, int]:
        """The items in a chunk and the chunks read ahead for at most ``buffersize`` items."""
        if not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be an int or None, not {buffersize!r}")
        if buffersize < 1:
            raise ValueError(f"buffersize must be 1 or more, or None, not {buffersize!r}")
        # A chunk for each worker, and one that has been taken, but for an item perhaps.
        chunksize = max(1, min(chunksize, (buffersize + 1) // (max(len(self._pool), 1) + 1)))
        return chunksize, (buffersize + 1) // chunksize - 1

    @staticmethod
    def _get_tasks(
        func: Callable[..., Any], it: Iterable[Any], size: int
    ) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
        """``(func, items)`` for each ``size`` items."""
        iterator = iter(it)
        while items := tuple(itertools.islice(iterator, size)):
            yield func, items

    def _guarded_task_generation(
        self, result_job: int, func: Callable[..., Any], iterable: Iterable[Any]
    ) -> Iterator[tuple[Any, ...]]:
        """A task for each item; an error of the iterable is a task that raises it."""
        index = -1
        try:
            for index, item in enumerate(iterable):
                yield result_job, index, func, (item,), {}
        except Exception as error:
            yield result_job, index + 1, _helper_reraises_exception, (error,), {}

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls. The workers end when all is done."""
        util.debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            self._hub.close()

    def terminate(self) -> None:
        """End the workers at once. Calls that are not done raise RuntimeError.

        A worker that has not followed SIGTERM after some seconds is killed.
        """
        util.debug("terminating pool")
        self._state = TERMINATE
        self._terminate()

    def join(self) -> None:
        """Wait for all calls to be done and the workers to end; after `close` or `terminate`.

        Not in a callback, for which it would wait: RuntimeError.
        """
        util.debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if self._state == CLOSE:
            self._hub.settle()
            self._end_workers()
        for process in list(self._pool):
            process.join()

    def _end_workers(self) -> None:
        """Let workers know that nothing will come any more, if they do not know it by the hub."""
        if self._inqueue is not self._outqueue:
            for _ in self._pool:
                self._quick_put(None)

    @staticmethod
    def _help_stuff_finish(inqueue: Any, task_handler: Any, size: int) -> None:
        """Nothing: tasks do not stand in the way of the end."""

    @classmethod
    def _terminate_pool(
        cls, hub: _phalanx.PoolHub, pool: list[Any], maintenance: threading.Lock, inqueue: Any
    ) -> None:
        util.debug("finalizing pool")
        hub.stop(RuntimeError("the pool was terminated before this call was done"))
        # So that no worker is started behind our back.
        maintenance.acquire(timeout=GRACE)
        hub.join_supervisor(1.0)
        cls._help_stuff_finish(inqueue, None, len(pool))
        workers = [process for process in pool if hasattr(process, "terminate")]
        for process in workers:
            if process.exitcode is None:
                process.terminate()
        deadline = time.monotonic() + GRACE
        for process in workers:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                util.debug("worker %r ignores SIGTERM", process.name)
                process.kill()
        for process in workers:
            process.join()


def _usable_cpus() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return os.cpu_count() or 1


def _worker_died(process: Any, task: int) -> WorkerDied:
    exitcode, how = process.exitcode, _failure.end_of(process.exitcode)
    return WorkerDied(
        f"worker {process.name} (pid {process.pid}) {how} in the middle of task {task} of the call",
        process.name,
        process.pid,
        exitcode,
        task,
    )


class _Maintainer:
    """Looks after a pool's workers without keeping the pool alive."""

    def __init__(self, pool: Pool) -> None:
        self._pool = weakref.ref(pool)

    def __call__(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool._maintain_pool()


def _start_thread(errand: Callable[[], object]) -> threading.Thread:
    import threading

    thread = threading.Thread(target=errand, name="PoolThread", daemon=True)
    thread.start()
    return thread


class ThreadPool(Pool):
    """A pool whose workers are threads of this process."""

    _wrap_exception = False

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:  # noqa: N802
        """Make a worker."""
        from .dummy import Process

        return Process(*args, **kwds)

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        super().__init__(processes, initializer, initargs)

    def _setup_queues(self) -> None:
        from _queue import SimpleQueue

        from ._pool_queues import Results

        self._inqueue = SimpleQueue()
        self._quick_put = self._inqueue.put
        self._hub = _phalanx.PoolHub(_Maintainer(self), _start_thread, self._quick_put)
        self._outqueue = Results(self)

    def _has_ready_workers(self) -> bool:
        return bool(self._pool)

    @staticmethod
    def _help_stuff_finish(inqueue: Any, task_handler: Any, size: int) -> None:
        """Throw away the tasks that no worker has, and let the workers end."""
        from _queue import Empty

        try:
            while True:
                inqueue.get(block=False)
        except Empty:
            pass
        for _ in range(size):
            inqueue.put(None)
