"""The standard library's way of putting, for subclasses of `Queue` that change it.

A queue here has no feeder thread. But a subclass may bring a `_feed` or a `_start_thread` of its
own (loky's and joblib's do, to pickle in their way), or a copy of the standard `put`. For those
there is what the standard queue has: a buffer that `put` appends to, and a thread that takes from
it and sends. Only then is this module loaded.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import queues, util

if TYPE_CHECKING:
    from .queues import Queue

__all__ = ["Room", "feed", "finalize_close", "finalize_join", "put", "start_thread"]

# The longest that a wait for room goes without looking at the buffer again, in seconds.
_SLICE = 0.05


class Room:
    """The room that a queue has left, as the semaphore that the standard queue keeps it in.

    Taking an item makes room by itself, so `release` has nothing to do; what waits in the buffer
    of this process counts as put.
    """

    def __init__(self, queue: Queue[Any] | None) -> None:
        self._queue = None if queue is None else weakref.ref(queue)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (None,)  # the queue that it comes with makes its own

    def get_value(self) -> int:
        """How many more items there may be."""
        queue = None if self._queue is None else self._queue()
        if queue is None:
            return 0
        room: int = queue._maxsize - queue.qsize() - len(queue._buffer)
        return max(0, room)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Wait until there is room; False if there was none in `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.get_value():
            left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
            queue = None if self._queue is None else self._queue()
            if not block or left <= 0 or queue is None:
                return False
            if queue._poll_room(left):
                # All the room is for what the buffer has.
                time.sleep(0.001)
        return True

    def release(self) -> None:
        """Do nothing."""

    def locked(self) -> bool:
        """Whether the queue is full."""
        return not self.get_value()

    _get_value = get_value
    _is_zero = locked

    @property
    def _semlock(self) -> Room:
        return self

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def put(queue: Queue[Any], obj: Any, block: bool = True, timeout: float | None = None) -> None:
    """`Queue.put` by way of the buffer."""
    if queue._closed:
        raise ValueError(f"Queue {queue!r} is closed")
    if not queue._sem.acquire(block, timeout):
        raise queues.Full
    with queue._notempty:
        if queue._thread is None:
            queue._start_thread()
        queue._buffer.append(obj)
        queue._notempty.notify()


def start_thread(queue: Queue[Any]) -> None:
    """`Queue._start_thread`: begin to send what is in the buffer."""
    queue._buffer.clear()
    thread = threading.Thread(
        target=queue._feed,
        args=(
            queue._buffer,
            queue._notempty,
            queue._send_bytes,
            queue._wlock,
            queue._reader.close,
            queue._writer.close,
            queue._ignore_epipe,
            queue._on_queue_feeder_error,
            queue._sem,
        ),
        name="QueueFeederThread",
        daemon=True,
    )
    queue._thread = thread
    thread.start()
    if not queue._joincancelled:
        queue._jointhread = util.Finalize(
            thread, queue._finalize_join, [weakref.ref(thread)], exitpriority=-5
        )
    queue._close = util.Finalize(
        queue, queue._finalize_close, [queue._buffer, queue._notempty], exitpriority=10
    )


def feed(
    buffer: deque[Any],
    notempty: threading.Condition,
    send_bytes: Callable[[Any], object],
    writelock: Any,
    reader_close: Callable[[], object],
    writer_close: Callable[[], object],
    ignore_epipe: bool,
    onerror: Callable[[BaseException, Any], object],
    queue_sem: Any,
) -> None:
    """`Queue._feed`: what the thread does."""
    from .reduction import ForkingPickler

    while True:
        with notempty:
            while not buffer:
                notempty.wait()
            obj = buffer.popleft()
        if obj is queues._sentinel:
            writer_close()
            return
        try:
            pickled = ForkingPickler.dumps(obj)
            with writelock:
                send_bytes(pickled)
        except Exception as error:
            if ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE:
                return
            if util.is_exiting():
                util.info("error in queue thread: %s", error)
                return
            queue_sem.release()
            onerror(error, obj)
        obj = None


def finalize_join(reference: weakref.ref[threading.Thread]) -> None:
    """Wait until the thread has sent all."""
    thread = reference()
    if thread is not None:
        thread.join()


def finalize_close(buffer: deque[Any], notempty: threading.Condition) -> None:
    """Let the thread end when it has sent what is there."""
    with notempty:
        buffer.append(queues._sentinel)
        notempty.notify()


def reset(queue: Queue[Any], after_fork: bool = False) -> None:
    """`Queue._reset`: nothing in the buffer, and no thread."""
    if after_fork:
        queue._notempty._at_fork_reinit()
    else:
        queue._notempty = threading.Condition(threading.Lock())
    queue._buffer = deque()
    queue._thread = queue._jointhread = queue._close = None
    queue._joincancelled = False
    queue._opid = os.getpid()
    queue.__dict__.pop("_sem", None)
    util.register_after_fork(queue, queues.Queue._after_fork)
