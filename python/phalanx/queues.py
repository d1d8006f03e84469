"""Queues between processes.

An item is in the queue when `put()` returns: there is no feeder thread. So an object that cannot be
pickled raises in the caller, an exiting process leaves nothing unsent, and `qsize()` and `empty()`
are exact. A process killed at any moment leaves the queue working for all others.
"""

from __future__ import annotations

from types import GenericAlias

from . import _phalanx

TYPE_CHECKING = False  # `typing` and `queue` take longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from queue import Empty as Empty
    from queue import Full as Full
    from types import ModuleType
    from typing import Any, Generic, TypeVar

    class ShutDown(Exception):
        """Raised by `put` and `get` of a queue that was shut down: `queue.ShutDown` itself from
        Python 3.13 on."""

    from .context import BaseContext
    from .synchronize import Lock

    T = TypeVar("T")

    class _Native(_phalanx.Queue, Generic[T]):
        def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None: ...
        def get(self, block: bool = True, timeout: float | None = None) -> T: ...
        def put_nowait(self, obj: T) -> None: ...
        def get_nowait(self) -> T: ...
        def put_many(self, items: Iterable[T], timeout: float | None = None) -> int: ...
        def get_many(self, max_items: int, timeout: float | None = None) -> list[T]: ...

else:
    T = object

    class _Native(_phalanx.Queue):
        __class_getitem__ = classmethod(GenericAlias)


__all__ = ["Queue", "SimpleQueue", "JoinableQueue", "ShutDown"]


_sentinel = object()


def __getattr__(name: str) -> object:
    # Names that subclasses of the standard classes take from here.
    if name in ("Empty", "Full", "ShutDown"):
        import queue

        value = getattr(queue, name, None) or type(
            name,
            (Exception,),
            {"__module__": __name__, "__doc__": "Raised by `put` and `get` after `shutdown()`."},
        )
        return globals().setdefault(name, value)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _new(cls: type[_Base[Any]]) -> _Base[Any]:
    return cls.__new__(cls)


def _rebuild_end(state: tuple[Any, ...], readable: bool) -> _End:
    queue: _Base[Any] = _Base()
    queue.__setstate__(state)
    return _End(queue, readable)


class _End:
    """A queue as one of the two connections that the standard library's has inside.

    For libraries that poll `queue._reader` or send through `queue._writer`: what goes through them
    and what goes through `put` and `get` are the same items.
    """

    readable: bool
    writable: bool

    def __init__(self, queue: _Base[Any], readable: bool) -> None:
        self._queue = queue
        self.readable = readable
        self.writable = not readable
        self._shut = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_end, (_Base.__getstate__(self._queue), self.readable)

    @property
    def closed(self) -> bool:
        """True once this end, or the queue, was closed by this process."""
        # A feeder thread, where there is one, sends on after the queue was closed.
        feeds = self.writable and getattr(self._queue, "_thread", None) is not None
        return self._shut or (self._queue._closed and not feeds)

    def _check_open(self) -> None:
        if self.closed:
            raise OSError("handle is closed")

    def close(self) -> None:
        """Closes this end only."""
        self._shut = True

    def fileno(self) -> int:
        """A descriptor that is readable while the queue has items."""
        self._check_open()
        return self._queue._fileno()

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is an item within `timeout` seconds (None: wait for ever)."""
        self._check_open()
        return self._queue._poll_item(timeout)

    def recv(self) -> Any:
        """Takes an item; blocks until there is one."""
        self._check_open()
        return _Native.get(self._queue)  # not what a subclass makes of it from this very end

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Takes an item as a pickle; blocks until there is one."""
        self._check_open()
        pickled, item = self._queue._get_pickle()
        if pickled is None:
            from .reduction import ForkingPickler

            pickled = bytes(ForkingPickler.dumps(item))
        if maxlength is not None and len(pickled) > maxlength:
            raise OSError("bad message length")
        return pickled

    def send(self, obj: Any) -> None:
        """Puts an item."""
        self._check_open()
        _Native.put(self._queue, obj)

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Puts an item that has been pickled already."""
        self._check_open()
        view = memoryview(buf).cast("B")[offset:]
        self._queue._put_pickle(bytes(view if size is None else view[:size]))


class _Lazy:
    """An attribute that is made when it is first asked for, and can be set.

    `cached_property` of one import less.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: object, name: str) -> None:
        self._name = name

    def __get__(self, queue: _Base[Any] | None, owner: object = None) -> Any:
        if queue is None:
            return self
        value = queue.__dict__[self._name] = self._make(queue)
        return value


def _make_lock(queue: object) -> Lock:
    from .context import _default_context

    return _default_context.get_context().Lock()


class _Base(_Native[T]):
    """What all queues have in common."""

    # What the standard library's queues consist of, for those that look inside. The locks are not
    # needed for anything here: they are for copies of the standard methods.
    _reader = _Lazy(lambda queue: _End(queue, readable=True))
    _writer = _Lazy(lambda queue: _End(queue, readable=False))
    _rlock = _Lazy(_make_lock)
    _wlock = _Lazy(_make_lock)
    _poll = _Lazy(lambda queue: queue._reader.poll)

    def _set_up(self, maxsize: int, ctx: BaseContext, joinable: bool = False) -> None:
        self._create(maxsize, ctx.get_start_method() == "fork", joinable)
        if type(self).__module__ != __name__:
            # All processes that use a subclass shall use the same locks.
            self._rlock, self._wlock = ctx.Lock(), ctx.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # By way of `__getstate__`, which subclasses override.
        return _new, (type(self),), self.__getstate__()

    def __getstate__(self) -> tuple[Any, ...]:
        if self._is_fork_ctx:
            from .synchronize import refuse_to_be_spawned

            refuse_to_be_spawned()
        # Attributes of subclasses stay behind, as in the standard library: ProcessPoolExecutor's
        # queue has some that cannot be pickled.
        state = self._handle_for_pickle()
        if "_rlock" in self.__dict__:
            return *state, self._rlock, self._wlock
        return state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        family, handle, *locks = state
        self._attach(family, handle)
        if locks:
            self._rlock, self._wlock = locks

    def _unpicklable(self, error: BaseException, obj: Any) -> None:
        raise error


class Queue(_Base[T]):
    """A first-in first-out queue for any number of processes.

    `maxsize` of 0 or less: any number of items, and `put()` never blocks.
    """

    def __init__(self, maxsize: int = 0, *, ctx: BaseContext) -> None:
        self._set_up(maxsize, ctx)

    def __init_subclass__(cls, **kwds: Any) -> None:
        super().__init_subclass__(**kwds)
        feeds = cls._feed is not Queue._feed or cls._start_thread is not Queue._start_thread
        if feeds and cls.put is Queue.put:
            from ._feeder import put

            setattr(cls, "put", put)  # noqa: B010

    # The feeder thread of the standard library, which runs only if a subclass has it start: see
    # `_feeder`.

    _maxsize = _Lazy(lambda queue: queue._bound or _phalanx.SEM_VALUE_MAX)
    _send_bytes = _Lazy(lambda queue: queue._writer.send_bytes)
    _recv_bytes = _Lazy(lambda queue: queue._reader.recv_bytes)
    _sem = _Lazy(lambda queue: _feeder().Room(queue))
    _buffer = _Lazy(lambda queue: _made_by_reset(queue, "_buffer"))
    _notempty = _Lazy(lambda queue: _made_by_reset(queue, "_notempty"))
    _opid = _Lazy(lambda queue: _made_by_reset(queue, "_opid"))
    _thread: Any = None
    _jointhread: Any = None
    _joincancelled = False
    _close: Any = None
    _ignore_epipe = False

    def _reset(self, after_fork: bool = False) -> None:
        reader = self.__dict__.get("_reader")
        if reader is not None and self._is_empty_shell:
            # A subclass has sent the parts of a queue instead of its state.
            self._attach(*reader._queue._handle_for_pickle())
        _feeder().reset(self, after_fork)

    def _after_fork(self) -> None:
        self._reset(after_fork=True)

    def _start_thread(self) -> None:
        _feeder().start_thread(self)

    @staticmethod
    def _feed(*args: Any) -> None:
        _feeder().feed(*args)

    @staticmethod
    def _finalize_join(twr: Any) -> None:
        _feeder().finalize_join(twr)

    @staticmethod
    def _finalize_close(buffer: Any, notempty: Any) -> None:
        _feeder().finalize_close(buffer, notempty)

    def _terminate_broken(self) -> None:
        """Close it, and lose what a feeder thread has not sent: its readers are dead."""
        self.cancel_join_thread()
        self.close()

    @staticmethod
    def _on_queue_feeder_error(e: BaseException, obj: Any) -> None:
        """For subclasses: called, if overridden, with an object that cannot be pickled, instead of
        raising from `put()`."""

    def _unpicklable(self, error: BaseException, obj: Any) -> None:
        if self._on_queue_feeder_error is Queue._on_queue_feeder_error:
            raise error
        self._on_queue_feeder_error(error, obj)

    def empty(self) -> bool:
        """True if there is nothing in the queue; OSError after `close()`, if it was ever used."""
        if self._closed and self._used:
            raise OSError(f"Queue {self!r} is closed")
        return super().empty()

    def shutdown(self, immediate: bool = False) -> None:
        """Ends the queue for all processes, as `queue.Queue.shutdown` does for threads.

        From now on `put()` raises `ShutDown`, and so does `get()` once the queue is empty; who
        blocks in either, in any process, is woken. With `immediate` the queue is emptied as well:
        what is thrown away counts as done for `join()`. A process killed inside leaves the queue
        open or shut. Does not block.
        """
        self._shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Whether any process has called `shutdown()`."""
        return self._is_shutdown

    def close(self) -> None:
        """This process will neither put nor get any more; others go on, and get what was put."""
        super().close()
        if self._close is not None:
            self._close()

    def join_thread(self) -> None:
        """Returns at once, there is no thread (unless a subclass has one, which ends when it has
        sent all); AssertionError before `close()`."""
        assert self._closed, f"Queue {self!r} not closed"
        if self._jointhread is not None:
            self._jointhread()

    def cancel_join_thread(self) -> None:
        """Does nothing: what was put is in the queue already."""
        self._joincancelled = True
        if self._jointhread is not None:
            self._jointhread.cancel()


class JoinableQueue(Queue[T]):
    """A queue whose items are reported when they have been worked on.

    What a process had taken and not reported when it was killed counts as done.
    """

    def __init__(self, maxsize: int = 0, *, ctx: BaseContext) -> None:
        self._set_up(maxsize, ctx, joinable=True)

    def task_done(self) -> None:
        """Says that one item that was taken has been worked on.

        ValueError if more are reported than were ever put.
        """
        self._task_done()

    def join(self) -> None:
        """Blocks until every item ever put has been reported, or was thrown away by `shutdown`."""
        self._join()


class SimpleQueue(_Base[T]):
    """A queue with nothing but `put`, `get`, `empty` and `close`."""

    def __init__(self, *, ctx: BaseContext) -> None:
        self._set_up(0, ctx)

    def _make_methods(self) -> None:
        """For subclasses: called by those that have replaced `_reader` and `_writer`."""

    def empty(self) -> bool:
        """True if there is nothing in the queue; OSError after `close()`."""
        if self._closed:
            raise OSError(f"Queue {self!r} is closed")
        return super().empty()


def _feeder() -> ModuleType:
    from . import _feeder

    return _feeder


def _made_by_reset(queue: Queue[Any], name: str) -> Any:
    queue._reset()
    return queue.__dict__[name]
