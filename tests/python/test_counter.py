"""A manager's Counter: updated in workers, returned from them, added, merged, asked."""

from __future__ import annotations

import collections

import pytest


def count(counter, words):
    counter.update(words)


def count_and_return(counter, words):
    counter.update(words)
    return counter


def add_one_by_one(counter, lock, rounds):
    for _ in range(rounds):
        with lock:
            counter["steps"] += 1


@pytest.fixture
def manager(ctx):
    with ctx.Manager() as manager:
        yield manager


def test_updates_of_workers_add_up(ctx, manager):
    counter = manager.Counter()
    workers = [ctx.Process(target=count, args=(counter, "abracadabra")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counter.most_common(2) == [("a", 15), ("b", 6)]
    assert dict(counter.items()) == {
        k: 3 * v for k, v in collections.Counter("abracadabra").items()
    }
    assert len(counter) == 5
    assert counter["nothing"] == 0
    assert "a" in counter
    assert "nothing" not in counter


def test_can_be_returned_from_a_pool(ctx, manager):
    with ctx.Pool(2) as pool:
        counters = [manager.Counter() for _ in range(2)]
        back = pool.starmap(count_and_return, zip(counters, ["aab", "bcc"], strict=True))
        total = manager.Counter()
        for counter in back:
            total.update(counter)
        assert total.most_common() == [("a", 2), ("b", 2), ("c", 2)]
        assert counters[0]["a"] == 2
        pool.close()
        pool.join()


def test_arithmetic(manager):
    one, two = manager.Counter("aab"), manager.Counter("bcc")
    local = collections.Counter("aab")
    assert one + two == collections.Counter("aabbcc")
    assert one + local == collections.Counter("aaaabb")
    assert local + two.copy() == collections.Counter("aabbcc")
    assert one - two == collections.Counter("aa")
    assert one & two == collections.Counter("b")
    assert one | two == collections.Counter("aabcc")
    one += two
    assert one.copy() == collections.Counter("aabbcc")
    assert sum([two, two], collections.Counter()) == collections.Counter("bbcccc")


def test_methods(manager):
    counter = manager.Counter({"a": 3}, b=1)
    counter.subtract("ab")
    assert counter.copy() == collections.Counter(a=2, b=0)
    assert sorted(counter.elements()) == ["a", "a"]
    assert sorted(counter) == ["a", "b"]
    counter["c"] += 5
    assert counter.most_common(1) == [("c", 5)]
    del counter["b"]
    assert counter.pop("c") == 5
    assert counter.get("c", 9) == 9
    counter.clear()
    assert not counter.keys()


def test_steps_under_a_lock_lose_nothing(ctx, manager):
    counter, lock = manager.Counter(), ctx.Lock()
    workers = [ctx.Process(target=add_one_by_one, args=(counter, lock, 50)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counter["steps"] == 150
