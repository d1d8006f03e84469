"""What the processes of the soak do: each writes into shared arrays what it has done."""

from __future__ import annotations

import pickle
import warnings
from queue import Empty
from typing import Any

#: Messages that one life of a producer may put.
PER_LIFE = 4000
#: How long a wait may take before it is looked whether the round is over, in seconds.
LOOK = 0.1


def body(number: int) -> Any:
    """The payload of a message: small, of a segment's size, or in a buffer of its own."""
    filler = bytes([number & 255])
    if number % 97 == 0:
        return pickle.PickleBuffer(bytearray(filler * 200_000))
    return filler * (9000 if number % 13 == 0 else 40)


def is_whole(number: int, payload: Any) -> bool:
    """Whether the payload is the one that was sent with that number."""
    return bytes(payload) == bytes(body(number))


def produce(queue: Any, sent: Any, stop: Any, life: int) -> None:
    """Put numbered messages; a message counts as sent when `put` has returned."""
    for number in range(life * PER_LIFE, (life + 1) * PER_LIFE):
        if stop.is_set():
            break
        queue.put((number, body(number)))
        sent[number] = 1


def consume(queue: Any, seen: Any, torn: Any, drained: Any, life: int = 0) -> None:
    """Take messages until the queue is empty for good."""
    while True:
        try:
            number, payload = queue.get(timeout=LOOK)
        except Empty:
            if drained.is_set():
                break
            continue
        note(seen, torn, number, payload)


def note(seen: Any, torn: Any, number: int, payload: Any) -> None:
    """Write down that a message has arrived: 1, or 2 if it had been there before."""
    seen[number] = 2 if seen[number] else 1
    if not is_whole(number, payload):
        torn[number] = 1


def send(connection: Any, sent: Any, stop: Any, life: int) -> None:
    """As `produce`, through a pipe."""
    with connection:
        for number in range(life * PER_LIFE, (life + 1) * PER_LIFE):
            if stop.is_set():
                break
            connection.send((number, body(number)))
            sent[number] = 1


def receive(connection: Any, seen: Any, torn: Any, drained: Any, life: int = 0) -> None:
    """Take messages from a pipe until it is empty for good.

    (Forked siblings hold the other end, too: its end is not seen here.)
    """
    while True:
        if connection.poll(LOOK):
            number, payload = connection.recv()
            note(seen, torn, number, payload)
        elif drained.is_set():
            break


def count(lock: Any, permits: Any, total: Any, own: Any, stop: Any, life: int) -> None:
    """Count under a lock, and for oneself; now and then under a permit besides."""
    # That somebody died holding it is what the soak is about.
    warnings.simplefilter("ignore")
    while not stop.is_set():
        with permits, lock:
            total[0] += 1
            own[life] += 1


def consult(values: Any, own: Any, stop: Any, life: int) -> None:
    """Write into a manager's dict, and then down that it was done."""
    turns = 0
    while not stop.is_set():
        turns += 1
        values[life] = turns
        own[life] = turns


def pulse(condition: Any, event: Any, stop: Any, life: int) -> None:
    """Notify and pulse, with waits that have a time-out and may all come to nothing."""
    warnings.simplefilter("ignore")
    while not stop.is_set():
        with condition:
            condition.notify()
            condition.wait(0.002)
        event.set()
        event.wait(0.002)
        event.clear()


def work(number: int) -> int:
    """A task of up to some milliseconds: counted when it is run."""
    RAN[number] += 1
    return sum(range(size(number))) + number


def size(number: int) -> int:
    return number % 40 * 5000


def answer(number: int) -> int:
    """What `work` returns."""
    return size(number) * (size(number) - 1) // 2 + number


RAN: Any = None


def equip(ran: Any) -> None:
    """A worker's initializer: the array in which tasks are counted."""
    global RAN
    RAN = ran
