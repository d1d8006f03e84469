"""Pools, for the tests of several files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import phalanx
from phalanx.pool import Pool, ThreadPool


@pytest.fixture
def pool(ctx) -> Iterator[Pool]:
    """Of each start method in turn."""
    with ctx.Pool(2) as pool:
        yield pool
    pool.join()


@pytest.fixture(params=["processes", "threads"])
def any_pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Of processes (of the default method) and of threads."""
    with phalanx.Pool(3) if request.param == "processes" else ThreadPool(3) as pool:
        yield pool
    pool.join()
