"""`imap(buffersize=)`: how far the input is read ahead of the results that are taken."""

from __future__ import annotations

import gc
import itertools
import threading

import pytest

import phalanx
from phalanx.pool import Pool
from pool_tasks import square
from processes import until

METHODS = ["imap", "imap_unordered"]


def fail_at(number):
    if number == 3:
        raise KeyError(number)
    return number


class Watched:
    """An endless input that counts what was read of it."""

    def __init__(self):
        self.read = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.read += 1
        return self.read - 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("buffersize", "chunksize"), [(1, 1), (2, 1), (5, 1), (40, 1), (1, 9), (7, 3), (12, 3), (50, 9)]
)
def test_never_more_ahead(any_pool, method, buffersize, chunksize):
    source = Watched()
    results = getattr(any_pool, method)(square, source, chunksize, buffersize)
    taken = []
    for result in itertools.islice(results, 60):
        taken.append(result)
        # What is read while this result is handled is one the more: it has left the buffer.
        assert source.read <= len(taken) + buffersize
    if method == "imap":
        assert taken == [n * n for n in range(60)]
    assert len(set(taken)) == 60


@pytest.mark.parametrize("method", METHODS)
def test_the_buffer_is_filled_without_a_reader(any_pool, method):
    source = Watched()
    results = getattr(any_pool, method)(square, source, buffersize=4)
    until(lambda: source.read == 4, "four items read")
    next(results)
    until(lambda: source.read == 5, "the fifth")


def test_before_the_first_result_is_asked_for(any_pool):
    source = Watched()
    results = any_pool.imap(square, source, buffersize=3)
    assert any_pool.map(square, range(50)) == [n * n for n in range(50)]
    assert source.read <= 3
    assert next(results) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [tuple, list, iter])
@pytest.mark.parametrize("chunksize", [1, 4])
def test_all_of_it(any_pool, method, kind, chunksize):
    results = getattr(any_pool, method)(square, kind(range(100)), chunksize, buffersize=9)
    assert sorted(results) == [n * n for n in range(100)]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_under_each_start_method(mp, method):
    with mp.get_context(method).Pool(2) as pool:
        assert list(pool.imap(square, range(20), buffersize=2)) == [n * n for n in range(20)]
    pool.join()


def test_errors_keep_their_place(any_pool):
    results = any_pool.imap(fail_at, range(6), buffersize=2)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    assert list(results) == [4, 5]

    def failing():
        yield 1
        raise LookupError("the input")

    results = any_pool.imap(square, failing(), buffersize=2)
    assert next(results) == 1
    with pytest.raises(LookupError):
        next(results)
    assert list(results) == []


def test_a_consumer_in_a_thread_of_its_own(any_pool):
    results, taken = any_pool.imap(square, iter(range(300)), buffersize=2), []
    thread = threading.Thread(target=lambda: taken.extend(results))
    thread.start()
    thread.join()
    assert taken == [n * n for n in range(300)]


def test_close_lets_the_reader_go_on(any_pool):
    results = any_pool.imap(square, iter(range(30)), buffersize=2)
    any_pool.close()
    assert list(results) == [n * n for n in range(30)]
    any_pool.join()


@pytest.mark.parametrize("method", METHODS)
def test_join_does_not_wait_for_a_reader(method):
    pool = phalanx.Pool(2)
    source = Watched()
    results = getattr(pool, method)(square, source, buffersize=2)
    next(results)
    pool.close()
    pool.join()
    read = source.read
    assert read <= 3
    # The rest is not read, and who looks for it is told so.
    with pytest.raises(RuntimeError, match="buffersize"):
        list(results)
    assert source.read == read


def test_join_does_not_wait_for_a_list_either():
    pool = phalanx.Pool(2)
    results = pool.imap(square, range(100), buffersize=2)
    assert next(results) == 0
    pool.close()
    pool.join()
    with pytest.raises(RuntimeError, match="buffersize"):
        list(results)


def test_a_dropped_iterator_reads_no_further(any_pool):
    source = Watched()
    for _result in any_pool.imap(square, source, buffersize=2):
        break
    del _result
    gc.collect()
    read = source.read
    assert any_pool.map(square, range(100)) == [n * n for n in range(100)]
    assert source.read <= read + 2
    any_pool.close()
    any_pool.join()


def test_terminate_ends_the_reader():
    pool = phalanx.Pool(2)
    results = pool.imap(square, Watched(), buffersize=2)
    next(results)
    pool.terminate()
    pool.join()
    with pytest.raises(RuntimeError):
        list(results)


@pytest.mark.parametrize("method", METHODS)
def test_bad_sizes(any_pool, method):
    for size in (0, -1):
        with pytest.raises(ValueError, match="buffersize"):
            getattr(any_pool, method)(square, [1], buffersize=size)
    for size in (1.5, "3"):
        with pytest.raises(TypeError, match="buffersize"):
            getattr(any_pool, method)(square, [1], buffersize=size)


def test_chunks_leave_no_worker_idle():
    pool = Pool.__new__(Pool)
    pool._pool, pool._state = [None] * 4, "CLOSE"
    for chunksize in (1, 2, 5, 100):
        for buffersize in range(1, 120):
            size, window = pool._narrow(chunksize, buffersize)
            assert 1 <= size <= chunksize and window >= 1
            assert window * size + size - 1 <= buffersize
            assert window >= min(4, buffersize)
