"""Programs that build on the inside of the standard library's queues."""

from __future__ import annotations

import io
import os
import pickle
import queue
import threading
import time
import weakref

import pytest

from phalanx import queues, util
from phalanx.queues import Queue, SimpleQueue, _sentinel
from phalanx.reduction import ForkingPickler


class Counting(Queue):
    """The usual recipe for a queue that knows its size where the system does not tell it."""

    def __init__(self, *args, ctx, **kwargs):
        super().__init__(*args, ctx=ctx, **kwargs)
        self.size = ctx.Value("i", 0)

    def __getstate__(self):
        return {"parent_state": super().__getstate__(), "size": self.size}

    def __setstate__(self, state):
        super().__setstate__(state["parent_state"])
        self.size = state["size"]

    def put(self, *args, **kwargs):
        super().put(*args, **kwargs)
        with self.size.get_lock():
            self.size.value += 1

    def get(self, *args, **kwargs):
        item = super().get(*args, **kwargs)
        with self.size.get_lock():
            self.size.value -= 1
        return item


class Appending(Queue):
    """One attribute behind those of the base."""

    def __init__(self, *, ctx, note):
        super().__init__(ctx=ctx)
        self.note = note

    def __getstate__(self):
        return (*super().__getstate__(), self.note)

    def __setstate__(self, state):
        super().__setstate__(state[:-1])
        self.note = state[-1]


class Upper(Queue):
    """Pickles in its own way in a thread of its own, and sends its parts: as loky's does."""

    def __init__(self, maxsize=0, reducers=None, ctx=None):
        super().__init__(maxsize=maxsize, ctx=ctx)
        self._reducers = reducers

    def __getstate__(self):
        return (
            self._ignore_epipe,
            self._maxsize,
            self._reader,
            self._writer,
            self._reducers,
            self._rlock,
            self._wlock,
            self._sem,
            self._opid,
        )

    def __setstate__(self, state):
        (
            self._ignore_epipe,
            self._maxsize,
            self._reader,
            self._writer,
            self._reducers,
            self._rlock,
            self._wlock,
            self._sem,
            self._opid,
        ) = state
        self._reset()

    def _start_thread(self):
        self._buffer.clear()
        self._thread = threading.Thread(
            target=Upper._feed,
            args=(self._buffer, self._notempty, self._send_bytes, self._wlock, self._reducers),
            daemon=True,
        )
        self._thread.start()
        if not self._joincancelled:
            self._jointhread = util.Finalize(
                self._thread, Upper._finalize_join, [weakref.ref(self._thread)], exitpriority=-5
            )
        self._close = util.Finalize(
            self, Upper._finalize_close, [self._buffer, self._notempty], exitpriority=10
        )

    @staticmethod
    def _feed(buffer, notempty, send_bytes, writelock, reducers):
        while True:
            with notempty:
                while not buffer:
                    notempty.wait()
                obj = buffer.popleft()
            if obj is _sentinel:
                return
            with writelock:
                send_bytes(ForkingPickler.dumps(reducers + obj.upper()))


class Copied(Queue):
    """The standard library's `put` and `get`, step by step."""

    def put(self, obj, block=True, timeout=None):
        if not self._sem.acquire(block, timeout):
            raise queue.Full
        with self._notempty:
            if self._thread is None:
                self._start_thread()
            self._buffer.append(obj)
            self._notempty.notify()

    def get(self, block=True, timeout=None):
        if block and timeout is None:
            with self._rlock:
                res = self._recv_bytes()
            self._sem.release()
            return ForkingPickler.loads(res)
        limit = time.monotonic() + (timeout or 0)
        if not self._rlock.acquire(block, timeout):
            raise queue.Empty
        try:
            if not self._poll(max(0, limit - time.monotonic()) if block else 0):
                raise queue.Empty
            res = self._recv_bytes()
            self._sem.release()
        finally:
            self._rlock.release()
        return ForkingPickler.loads(res)


class Wrapped:
    """A connection that pickles by itself, as torch's."""

    def __init__(self, conn):
        self.conn = conn

    def send(self, obj):
        buffer = io.BytesIO()
        ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(obj)
        self.send_bytes(buffer.getvalue())

    def recv(self):
        return pickle.loads(self.recv_bytes())

    def __getattr__(self, name):
        if "conn" in self.__dict__:
            return getattr(self.conn, name)
        raise AttributeError(name)


class WrappedSimple(SimpleQueue):
    def _make_methods(self):
        if not isinstance(self._reader, Wrapped):
            self._reader, self._writer = Wrapped(self._reader), Wrapped(self._writer)
        super()._make_methods()


class LockedSimple(SimpleQueue):
    """As loky's: its own pickling, under the queue's lock."""

    def put(self, obj):
        with self._wlock:
            self._writer.send_bytes(ForkingPickler.dumps(obj + 1))


def echo(there, back):
    while (item := there.get()) != "NONE":
        back.put(item)


def end(process):
    process.join()
    assert process.exitcode == 0


def test_attributes_that_go_along(ctx):
    there, back = Counting(ctx=ctx), Appending(ctx=ctx, note="noted")
    process = ctx.Process(target=echo, args=(there, back))
    process.start()
    there.put("one")
    assert back.get() == "one"
    there.put("NONE")
    end(process)
    assert there.size.value == 0


def report(q, answers):
    answers.put((type(q).__name__, getattr(q, "note", None), q.get()))


def test_a_state_of_ones_own_arrives(ctx):
    q, answers = Appending(ctx=ctx, note="noted"), ctx.SimpleQueue()
    q.put(5)
    process = ctx.Process(target=report, args=(q, answers))
    process.start()
    assert answers.get() == ("Appending", "noted", 5)
    end(process)


def send_words(q):
    for word in ("a", "b"):
        q.put(word)
    q.close()
    q.join_thread()


def test_a_feeder_thread_of_ones_own(ctx):
    there, back = Upper(reducers=">", ctx=ctx), Upper(3, reducers="<", ctx=ctx)
    # Before this process has a thread: it may not fork afterwards.
    processes = [
        ctx.Process(target=echo, args=(there, back)),
        ctx.Process(target=send_words, args=(there,)),
    ]
    for process in processes:
        process.start()
    there.put("one")
    assert sorted(back.get() for _ in range(3)) == ["<>A", "<>B", "<>ONE"]
    there._writer.send("NONE")  # as it is
    for process in processes:
        end(process)
    for q in (there, back):
        q.close()
    there.join_thread()


def test_a_feeder_thread_keeps_the_bound(mp):
    q = Upper(2, reducers="", ctx=mp.get_context())
    q.put("a")
    q.put("b")
    with pytest.raises(queue.Full):
        q.put("c", False)
    with pytest.raises(queue.Full):
        q.put("c", True, 0.01)
    assert q._sem._semlock._is_zero() and q._sem.get_value() == 0
    assert q.get() == "A"
    q.put("c")
    assert (q.get(), q.get()) == ("B", "C")
    assert q._sem._semlock._get_value() == 2
    q.close()
    q.join_thread()
    with pytest.raises(ValueError, match="closed"):
        q.put("d")


def test_copies_of_the_standard_methods(ctx):
    there, back = Copied(ctx=ctx), Copied(1, ctx=ctx)
    process = ctx.Process(target=echo, args=(there, back))
    process.start()
    there.put("one")
    there.put(["two"])
    assert back.get() == "one"
    assert back.get(True, 60) == ["two"]
    with pytest.raises(queue.Empty):
        back.get(False)
    with pytest.raises(queue.Empty):
        back.get(True, 0.01)
    there.put("NONE")
    end(process)
    there.close()
    there.join_thread()


def test_what_cannot_be_pickled_does_not_stop_a_feeder(mp):
    told = []

    class Told(Copied):
        @staticmethod
        def _on_queue_feeder_error(e, obj):
            told.append((type(e), obj))

    q, unpicklable = Told(ctx=mp.get_context()), threading.Lock()
    q.put(unpicklable)
    q.put(1)
    assert q.get() == 1
    assert told == [(TypeError, unpicklable)]
    q.close()
    q.join_thread()


def test_simple_queues_with_other_ends(ctx):
    there, back = LockedSimple(ctx=ctx), WrappedSimple(ctx=ctx)
    back._make_methods()
    process = ctx.Process(target=echo, args=(there, back))
    process.start()
    there.put(1)
    assert back._reader.recv() == 2
    there._writer.send("NONE")
    end(process)


def test_the_inside_of_a_plain_queue(mp):
    q = mp.Queue(3)
    assert q._sem._semlock._get_value() == 3 and not q._sem._semlock._is_zero()
    q.put(1)
    assert q._sem.get_value() == 2
    with q._rlock, q._wlock:
        assert q._poll() and q._recv_bytes() == ForkingPickler.dumps(1)
    assert list(q._buffer) == [] and q._thread is None and q._opid == os.getpid()
    q._start_thread()
    with q._notempty:
        q._buffer.append("fed")
        q._notempty.notify()
    assert q.get() == "fed"
    q.close()
    q.join_thread()
    assert mp.Queue()._maxsize == mp.synchronize.SEM_VALUE_MAX
    assert queues._sentinel is _sentinel


def test_a_forked_child_has_no_feeder_thread(mp):
    ctx = mp.get_context("fork")
    q, answers = Copied(ctx=ctx), ctx.SimpleQueue()
    q._buffer.append("the parent's to send")
    q._thread = "the parent's"
    process = ctx.Process(target=put_by_child, args=(q, answers))
    process.start()
    assert answers.get() == (None, [])
    assert q.get() == "child's"
    end(process)
    q._buffer.clear()


def put_by_child(q, answers):
    answers.put((q._thread, list(q._buffer)))
    q.put("child's")  # and its end waits until that is sent
