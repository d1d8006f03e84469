"""A child fills a queue and is joined before anything is read.

`put()` is complete when it returns, so the child needs no reader in order to end, and `empty()`
tells the truth afterwards. How many items, and how many bytes to attach to each, are arguments.
"""

import os
import sys

import phalanx as mp


def put_even_numbers(queue, count: int, size: int) -> None:
    for number in range(count):
        queue.put((2 * number, bytes(size)))


def main(count: int = 10, size: int = 1) -> None:
    queue = mp.Queue()
    child = mp.Process(target=put_even_numbers, args=(queue, count, size))
    child.start()
    child.join()
    print("joined:", child.exitcode)

    numbers = []
    while not queue.empty():
        number, attached = queue.get()
        assert len(attached) == size
        numbers.append(number)
    assert numbers == list(range(0, 2 * count, 2))
    print(f"{len(numbers)} even numbers, from {numbers[0]} to {numbers[-1]}")


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main(*map(int, sys.argv[1:]))
