"""One lock, five workers: never two at a time in the section that it guards.

`inside` counts the workers in the section, and `crowded` notes if it ever was more than one. Both
are raw memory without a lock of their own: only the lock under test protects them.
"""

import os
import time

import phalanx as mp


def section(inside, crowded, entries) -> None:
    inside.value += 1
    entries.value += 1
    time.sleep(0.002)  # gives the others every chance to come in
    if inside.value != 1:
        crowded.value = 1
    inside.value -= 1


def worker(lock, *memory) -> None:
    for _ in range(10):
        lock.acquire()
        try:
            section(*memory)
        finally:
            lock.release()
    for _ in range(10):
        with lock:  # the same, shorter
            section(*memory)


def impatient(lock, result) -> None:
    start = time.monotonic()
    got = lock.acquire(timeout=0.2)
    result.send((got, time.monotonic() - start >= 0.2))


def main() -> None:
    lock = mp.Lock()
    inside, crowded, entries = mp.RawValue("i"), mp.RawValue("i"), mp.RawValue("i")
    workers = [mp.Process(target=worker, args=(lock, inside, crowded, entries)) for _ in range(5)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    print(f"{entries.value} entries, ever two at a time: {bool(crowded.value)}")

    receiver, sender = mp.Pipe(duplex=False)
    with lock:
        process = mp.Process(target=impatient, args=(lock, sender))
        process.start()
        got, waited = receiver.recv()
        process.join()
    print(f"acquire(timeout=0.2) while it is held: {got}, after at least 0.2 s: {waited}")


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main()
