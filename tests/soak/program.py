"""The program that is soaked: rounds of processes that use everything while some are killed.

    program.py SECONDS SEED

Prints its totals as JSON when all accounts are in order, and fails if they are not. Run it by
`scripts/soak.py`, which looks for what it leaves behind.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import roles
from accounts import HANGS, LIVES, Messages, Tasks, Totals, need

import phalanx as mp
from phalanx import _phalanx

#: The start methods, and the seconds between two kills: a life has to be longer than its start.
METHODS = {"fork": 0.02, "forkserver": 0.02, "spawn": 0.12}
#: How long a round kills, in seconds.
ROUND = 8.0


class Role:
    """A function that processes run one after the other; each life has a number."""

    def __init__(
        self, context: Any, name: str, target: Callable[..., None], *args: Any, lives: Iterator[int]
    ) -> None:
        self.context = context
        self.name = name
        self.target = target
        self.args = args
        self.lives = lives
        self.process: Any = None
        self.begin()

    def begin(self) -> None:
        """Begin the next life, if there may be one."""
        if (life := next(self.lives, None)) is not None:
            self.process = self.context.Process(target=self.target, args=(*self.args, life))
            self.process.start()

    def look_after(self) -> None:
        """Begin the next life if the last one has ended by itself."""
        if self.process is not None and not self.process.is_alive():
            self.end()
            self.begin()

    def end(self) -> int:
        """Wait for the end of this life; returns its exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.join(HANGS)
        if (code := process.exitcode) is None:
            os.kill(process.pid, signal.SIGUSR1)  # shows where it hangs
            time.sleep(1)
        need(code is not None, f"{self.name} {process.pid} hangs")
        need(code in (0, -signal.SIGKILL), f"{self.name} ended with {code}")
        process.close()
        return int(code)

    def kill(self) -> bool:
        """End this life wherever it is, and begin the next; whether there was one to end."""
        if self.process is None:
            return False
        self.process.kill()
        killed = self.end() == -signal.SIGKILL
        self.begin()
        return killed


def play(method: str, seconds: float, pause: float, dice: random.Random, totals: Totals) -> None:
    """One round under one start method, with a kill each `pause` seconds (0: none)."""
    context = mp.get_context(method)
    kills: Counter[str] = Counter()
    stop, drained = context.Event(), context.Event()

    manager = context.Manager()
    maker = dice.choice((context, manager))
    queue, letters = maker.Queue(dice.choice((0, 3, 50))), Messages(context)
    (here, there), parcels = context.Pipe(duplex=False), Messages(context)
    lock = getattr(dice.choice((context, manager)), dice.choice(("Lock", "RLock")))()
    permits = context.BoundedSemaphore(2)
    total, counts = context.RawArray("Q", 1), context.RawArray("Q", LIVES)
    values, written = manager.dict(), context.RawArray("Q", LIVES)
    maker = dice.choice((context, manager))
    condition, event = maker.Condition(), maker.Event()

    def some(n: int, name: str, target: Callable[..., None], *args: Any) -> list[Role]:
        lives = iter(range(LIVES))
        return [Role(context, name, target, *args, lives=lives) for _ in range(n)]

    sources = [
        *some(2, "producer", roles.produce, queue, letters.sent, stop),
        *some(2, "sender", roles.send, there, parcels.sent, stop),
        *some(2, "lock holder", roles.count, lock, permits, total, counts, stop),
        *some(2, "manager client", roles.consult, values, written, stop),
        *some(2, "notifier", roles.pulse, condition, event, stop),
    ]
    sinks = [
        *some(2, "consumer", roles.consume, queue, letters.seen, letters.torn, drained),
        *some(1, "receiver", roles.receive, here, parcels.seen, parcels.torn, drained),
    ]
    tasks = Tasks(context)

    end = time.monotonic() + seconds
    next_kill = time.monotonic() + (pause or seconds)
    while (now := time.monotonic()) < end:
        tasks.feed()
        for role in sources + sinks:
            role.look_after()
        if now >= next_kill:
            next_kill = now + pause * dice.uniform(0.2, 1.8)
            if dice.random() < 0.2:
                kills["worker"] += tasks.kill(dice)
            else:
                role = dice.choice(sources + sinks)
                kills[role.name] += role.kill()
        time.sleep(dice.uniform(0, 0.003))

    stop.set()
    for role in sources:
        role.end()
    drained.set()
    for role in sinks:
        role.end()
    # Nobody may be left to take what the last producers have put.
    while True:
        try:
            number, payload = queue.get(timeout=0)
        except Empty:
            break
        roles.note(letters.seen, letters.torn, number, payload)
    roles.receive(here, parcels.seen, parcels.torn, drained)
    here.close()
    there.close()
    tasks.settle()

    arrived, in_hand = letters.settle("queue", kills, "producer", "consumer")
    piped, in_pipe = parcels.settle("pipe", kills, "sender", "receiver")
    uncounted = total[0] - sum(counts)
    need(0 <= uncounted <= kills["lock holder"], f"{uncounted} counts differ: no mutual exclusion")
    need(permits.get_value() == 2, f"{permits.get_value()} of 2 permits are there")
    with condition:
        pass
    for life, value in values.copy().items():
        need(0 <= value - written[life] <= 1, f"client {life} wrote {written[life]}, not {value}")
    manager.shutdown()

    totals.rounds += 1
    totals.kills += kills
    totals.messages += arrived + piped
    totals.in_hand += in_hand + in_pipe
    totals.tasks += tasks.number
    totals.lost_tasks += tasks.lost


def possessions() -> tuple[int, int]:
    """The blocks of the arena that are in use, and this process's descriptors."""
    mp.active_children()
    gc.collect()
    _phalanx.reap_all()
    return _phalanx.arena_usage()[0], len(os.listdir("/proc/self/fd"))


def main() -> None:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    faulthandler.register(signal.SIGUSR1)
    dice, totals = random.Random(seed), Totals()
    # What stays for ever is there after the first round of each method: its fork server, tables.
    for method in METHODS:
        play(method, 0.2, 0, dice, Totals())
    before = possessions()
    end = time.monotonic() + seconds
    for method, pause in itertools.cycle(METHODS.items()):
        left = end - time.monotonic()
        if left <= 0 and totals.rounds >= len(METHODS):
            break
        play(method, min(ROUND, max(seconds / len(METHODS), 1)), pause, dice, totals)
    after = possessions()
    totals.blocks_left = after[0] - before[0]
    totals.descriptors_left = after[1] - before[1]
    print(json.dumps(vars(totals)))


if __name__ == "__main__":
    main()
