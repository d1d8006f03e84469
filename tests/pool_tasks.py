"""Work for the pools of the tests."""

from __future__ import annotations

import time
from pathlib import Path


def square(x):
    return x * x


def echo(x):
    return x


def refuse(x):
    raise ValueError(f"no {x}")


def refuse_odd(x):
    if x % 2:
        raise ValueError(f"no {x}")
    return x


def touch(path):
    Path(path).touch()


def slow_echo(x):
    time.sleep(0.002)
    return x
