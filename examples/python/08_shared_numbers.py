"""Numbers in shared memory: a counter that loses no update, and an array seen through numpy."""

import os

import numpy as np

import phalanx as mp

WORKERS = 4
PART = 250


def count(counter, lock) -> None:
    for _ in range(1000):
        with lock:  # += reads, adds and writes: without the lock, updates would be lost
            counter.value += 1


def fill(array, part: int) -> None:
    first = part * PART
    array[first : first + PART] = [float(n * n) for n in range(first, first + PART)]


def run(target, arguments) -> None:
    processes = [mp.Process(target=target, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def main() -> None:
    counter, lock = mp.Value("i", 0), mp.Lock()
    run(count, [(counter, lock)] * WORKERS)
    print("counted", counter.value)

    array = mp.Array("d", WORKERS * PART)
    view = np.frombuffer(array.get_obj())  # made before they write: no copy, the same memory
    run(fill, [(array, part) for part in range(WORKERS)])
    print("squares right:", bool((view == np.arange(WORKERS * PART) ** 2.0).all()))
    view[:3] = -1.0  # and it can be written through
    print("array begins", array[:5])


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main()
