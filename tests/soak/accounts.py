"""The accounts of a soak: every message and every task, and who may have had it in hand."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import roles

from phalanx.pool import WorkerDied
from processes import is_running

#: Lives of one role in one round, at most.
LIVES = 500
#: Tasks of one round, at most, and how many of them wait for their results at a time.
TASKS = 200_000
AHEAD = 40
#: Seconds that nothing takes in a sound program: after that it hangs.
HANGS = 60.0


class AccountError(AssertionError):
    """Something was lost, came twice, was torn, hangs, or was left behind."""


def need(condition: bool, what: str) -> None:
    """Raise AccountError unless the condition holds."""
    if not condition:
        raise AccountError(what)


@dataclass
class Totals:
    """What a soak adds up."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    in_hand: int = 0
    tasks: int = 0
    lost_tasks: int = 0
    blocks_left: int = 0
    descriptors_left: int = 0


def marked(array: Any, mark: int | None = None) -> int:
    """The places of an array that hold `mark` (any but 0), as the bits of a number of bytes."""
    table = bytes(int(value == mark if mark else value > 0) for value in range(256))
    return int.from_bytes(bytes(array).translate(table), "little")


class Messages:
    """The account of the messages of one queue or pipe."""

    def __init__(self, context: Any) -> None:
        size = LIVES * roles.PER_LIFE
        self.sent, self.seen, self.torn = (context.RawArray("B", size) for _ in range(3))

    def settle(self, name: str, kills: Counter[str], sender: str, receiver: str) -> tuple[int, int]:
        """Check it; returns how many messages arrived, and how many the killed had in hand."""
        sent, seen = marked(self.sent), marked(self.seen)
        twice = marked(self.seen, 2).bit_count()
        need(twice == 0, f"{name}: {twice} messages arrived twice")
        torn = marked(self.torn).bit_count()
        need(torn == 0, f"{name}: {torn} messages were torn")
        missing = (sent & ~seen).bit_count()
        need(
            missing <= kills[receiver],
            f"{name}: {missing} messages are lost, and {kills[receiver]} {receiver}s were killed",
        )
        early = (seen & ~sent).bit_count()
        need(
            early <= kills[sender],
            f"{name}: {early} messages arrived without a sender's word, and {kills[sender]} "
            f"{sender}s were killed",
        )
        return seen.bit_count(), missing


class Tasks:
    """A pool, and the account of its tasks."""

    def __init__(self, context: Any) -> None:
        self.ran = context.RawArray("B", TASKS)
        self.pool = context.Pool(2, roles.equip, (self.ran,))
        self.waiting: dict[int, Any] = {}
        self.number = 0
        self.done = 0
        self.lost = 0
        self.killed = 0

    def feed(self) -> None:
        """Keep tasks waiting, and collect the results that are there."""
        while len(self.waiting) < AHEAD and self.number < TASKS:
            self.waiting[self.number] = self.pool.apply_async(roles.work, (self.number,))
            self.number += 1
        for number in [n for n, result in self.waiting.items() if result.ready()]:
            self.collect(number)

    def collect(self, number: int) -> None:
        """Take the one result of a task, or the one WorkerDied."""
        try:
            value = self.waiting.pop(number).get(HANGS)
        except WorkerDied as death:
            need(death.task is not None, f"task {number}: {death}")
            self.lost += 1
        else:
            self.done += 1
            need(value == roles.answer(number), f"task {number} has a wrong result")
            need(self.ran[number] == 1, f"task {number} ran {self.ran[number]} times")

    def kill(self, dice: random.Random) -> bool:
        """Kill a worker if one of them has begun to work: else no pool could ever start."""
        pids = [worker.pid for worker in self.pool._pool if worker.pid and is_running(worker.pid)]
        if not pids or not self.pool._has_ready_workers():
            return False
        os.kill(dice.choice(pids), signal.SIGKILL)
        self.killed += 1
        return True

    def settle(self) -> None:
        """Wait for all results, see that the pool still works, and end it."""
        for number in list(self.waiting):
            self.collect(number)
        need(self.pool.map(abs, range(-50, 0)) == list(range(50, 0, -1)), "a map went wrong")
        self.pool.close()
        self.pool.join()
        need(self.done + self.lost == self.number, "a task has no result")
        need(self.lost <= self.killed, f"{self.lost} tasks lost by {self.killed} kills")
        need(marked(self.ran, 1) == marked(self.ran), "a task was run twice")
