"""Values and arrays in shared memory, bare and with a lock; the memory itself."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading

import pytest


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]


CODES = "bBhHiIlLqQfd"


def in_children(ctx, count, target, *args):
    children = [ctx.Process(target=target, args=args) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * count


@pytest.mark.parametrize("code", CODES)
def test_every_number_is_as_ctypes_has_it(mp, code):
    type_ = mp.sharedctypes.typecode_to_type[code]
    value, array, plain = mp.Value(code), mp.Array(code, 3), type_()
    assert value.value == 0 and array[:] == [0, 0, 0]
    numbers = [0, 1, -1, 127, 255, -128, 2**31, -(2**63), 2**64 - 1, 2**70]
    for number in [*numbers, True, 1.5] if code in "fd" else [*numbers, True]:
        value.value = array[1] = plain.value = number
        assert value.value == array[1] == plain.value
        assert type(value.value) is type(array[1]) is type(plain.value)
        assert value.get_obj().value == plain.value
    assert array[0] == array[2] == 0
    for wrong in ["1", None] if code in "fd" else ["1", None, 1.5]:
        with pytest.raises(TypeError):
            value.value = wrong
        with pytest.raises(TypeError):
            array[0] = wrong


def test_other_types_go_through_ctypes(mp):
    class Mine(ctypes.c_int):
        pass

    assert isinstance(mp.Array(Mine, 2)[0], Mine)
    swapped = mp.Value(ctypes.c_int.__ctype_be__, 258)
    assert swapped.value == 258
    assert bytes(swapped.get_obj()) == b"\0\0\1\2"
    assert mp.Value("c", b"x").value == b"x"
    assert mp.Array("u", "abc")[:] == "abc"
    assert mp.Value(ctypes.c_bool, 2).value is True


def test_indices_and_slices(mp):
    array = mp.Array("i", range(10))
    assert len(array) == 10 and list(array) == list(range(10))
    assert array[-1] == 9 and array[2:8:2] == [2, 4, 6] and array[::-1] == list(range(10))[::-1]
    assert array[5:2] == [] and array[-3:] == [7, 8, 9]
    array[-1] = 90
    array[1:3] = [10, 20]
    array[7:5:-1] = [7, 6]
    array[4:6] = (4, 5)
    assert array[:] == [0, 10, 20, 3, 4, 5, 6, 7, 8, 90]
    for wrong in (10, -11, 2**70):
        with pytest.raises(IndexError):
            array[wrong]
        with pytest.raises(IndexError):
            array[wrong] = 1
    with pytest.raises(ValueError):
        array[0:2] = [1]
    with pytest.raises(TypeError):
        array[0:2] = [0, "1"]
    with pytest.raises(TypeError):
        array["0"]
    assert array.acquire(timeout=1)  # no failure has kept the lock
    array.release()


def test_strings(mp):
    array = mp.Array("c", 6)
    array.value = b"abc"
    assert (array.value, array.raw, array[1], array[:2]) == (b"abc", b"abc\0\0\0", b"b", b"ab")


def test_structures(mp):
    point = mp.Value(Point, 1, 2.5)
    point.x += 1
    assert (point.x, point.y) == (2, 2.5)
    copied = mp.sharedctypes.copy(point.get_obj())
    point.x = 9
    assert copied.x == 2
    assert mp.Array(Point, [(1, 2), (3, 4)])[1].y == 4


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore"])
def test_the_lock(mp, kind):
    lock = getattr(mp, kind)()
    value = mp.Value("i", 5, lock=lock)
    assert value.get_lock() is lock
    with value:
        assert lock.locked()
        if kind == "RLock":
            assert value.value == 5
    assert not lock.locked()
    assert value.value == 5
    assert not hasattr(mp.Value("i", lock=False), "get_lock")
    assert type(mp.Value("i").get_lock()) is mp.synchronize.RLock
    with pytest.raises(AttributeError, match="has no method 'acquire'"):
        mp.Value("i", lock="no lock")


def test_an_access_waits_for_the_lock(mp):
    array, begun = mp.Array("i", 3), threading.Event()

    def read():
        begun.set()
        seen.append(array[0])

    seen: list[int] = []
    with array.get_lock():
        thread = threading.Thread(target=read)
        thread.start()
        begun.wait()
        array[0] = 7  # the lock is this thread's
        assert seen == []
    thread.join()
    assert seen == [7]


def add(value, array, point):
    for _ in range(500):
        with value.get_lock():
            value.value += 1
        with array:
            array[1] += 1
        with point:
            point.x += 1


def test_no_update_is_lost_under_the_lock(ctx):
    value, array, point = ctx.Value("i"), ctx.Array("d", 3), ctx.Value(Point)
    in_children(ctx, 3, add, value, array, point)
    assert (value.value, array[:], point.x) == (1500, [0, 1500, 0], 1500)


def fill(raw_value, raw_array, wrapper):
    raw_value.value += 1
    raw_array[:] = [5, 6, 7]
    wrapper.create_memoryview()[:3] = b"abc"


def test_raw_memory_is_common(ctx):
    value, array = ctx.RawValue(ctypes.c_longlong, 41), ctx.RawArray("h", [1, 2, 3])
    wrapper = ctx_heap(ctx).BufferWrapper(5)
    in_children(ctx, 1, fill, value, array, wrapper)
    assert value.value == 42 and array[:] == [5, 6, 7]
    assert bytes(wrapper.create_memoryview()) == b"abc\0\0"


def ctx_heap(_ctx):
    import phalanx.heap

    return phalanx.heap


def test_memory_used_before_is_zero(mp):
    for _ in range(20):
        array = mp.RawArray("B", 5000)
        assert not any(array)
        ctypes.memset(array, 255, 5000)


def test_memory_stays_as_long_as_somebody_looks_at_it(mp):
    view = mp.heap.BufferWrapper(8).create_memoryview()
    gc.collect()
    view[:] = b"12345678"
    assert bytes(view) == b"12345678" and not view.readonly
    with pytest.raises(ValueError, match="negative"):
        mp.heap.BufferWrapper(-1)
    assert bytes(mp.heap.Arena(3).buffer) == b"\0\0\0"


def test_through_numpy(ctx):
    numpy = pytest.importorskip("numpy")
    array = ctx.Array("d", 6)
    matrix = numpy.frombuffer(array.get_obj()).reshape(2, 3)
    matrix[1] = [4, 5, 6]
    assert array[:] == [0, 0, 0, 4, 5, 6]


def test_values_go_through_a_queue(ctx):
    queue, value = ctx.Queue(), ctx.Value("i", 3)
    queue.put(value)
    again = queue.get()
    value.value = 4
    assert again.value == 4


def test_what_cannot_be_deleted(mp):
    value, array = mp.Value("i", 1), mp.Array("i", 2)
    with pytest.raises(AttributeError):
        del value.value
    with pytest.raises(NotImplementedError):
        del array[0]
    assert (value.value, array[:]) == (1, [0, 0])


def test_subclasses_have_the_last_word(mp):
    class Doubled(mp.sharedctypes.SynchronizedArray):
        def __getitem__(self, index):
            return super().__getitem__(index) * 2

        def __setitem__(self, index, value):
            super().__setitem__(index, value // 2)

    class Counting(mp.sharedctypes.Synchronized):
        reads = 0

        @property
        def value(self):
            self.reads += 1
            return super().value

    array = Doubled(mp.RawArray("i", [1, 2]), ctx=mp)
    array[0] = 10
    assert (array[0], array[1], array.get_obj()[:]) == (10, 4, [5, 2])
    counting = Counting(mp.RawValue("i", 3), ctx=mp)
    assert (counting.value, counting.reads) == (3, 1)


def hold_and_die(value):
    value.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_dead_holder_is_reported_by_the_next_access(mp, kind):
    value = mp.Value("i", 3, lock=getattr(mp, kind)())
    for access in (lambda: value.value, lambda: setattr(value, "value", 3)):
        child = mp.get_context("fork").Process(target=hold_and_die, args=(value,))
        child.start()
        child.join()
        with pytest.warns(mp.synchronize.AbandonedLockWarning):
            access()
        assert value.value == 3


def test_a_read_shows_nothing_half_done(mp):
    """Reading takes no lock if that is free; it must look as if it did."""
    value = mp.Value("q")

    def write():
        for _ in range(2_000):
            with value:
                value.value += 1
                value.value += 1

    child = mp.get_context("fork").Process(target=write)
    child.start()
    last = 0
    while child.is_alive():
        seen = value.value
        assert seen % 2 == 0 and seen >= last
        last = seen
    child.join()
    assert (child.exitcode, value.value) == (0, 4_000)


@pytest.mark.parametrize("code", CODES)
def test_slices_are_as_ctypes_has_them(mp, code):
    type_ = mp.sharedctypes.typecode_to_type[code]
    array, plain = mp.Array(code, 8), (type_ * 8)()
    slices = (
        slice(None), slice(2, 5), slice(None, None, 3), slice(6, 1, -2), slice(-20, -30, -1),
        slice(3, 3), slice(8, 9), slice(5, 99),
    )  # fmt: skip
    numbers = [1, -1, 200, 70_000, 2**40, -(2**63), 2**63, 2**70]
    if code in "fd":
        numbers = [float(number) for number in numbers[:-1]] + [3]
    for where in slices:
        values = numbers[: len(plain[where])]
        array[where] = plain[where] = values
        assert array[:] == plain[:] and array[where] == plain[where]
        array[where] = tuple(reversed(values))
        plain[where] = tuple(reversed(values))
        assert array[:] == plain[:]
    for wrong in ([0] * 7, [*numbers, 0], [0, None] * 4, 5):
        with pytest.raises(Exception) as expected:
            plain[:] = wrong
        with pytest.raises(expected.type):
            array[:] = wrong
        assert array[:] == plain[:]
