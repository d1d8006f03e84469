"""A queue used both ways: numbers go to a worker, 'stop' ends it, and its sum comes back.

The worker is the only reader until it ends, so the parent reads the sum after `join()`.
"""

import os

import phalanx as mp


def add_up(queue) -> None:
    total = 0
    while (item := queue.get()) != "stop":
        total += item
    queue.put(total)


def main() -> None:
    queue = mp.Queue()
    worker = mp.Process(target=add_up, args=(queue,))
    worker.start()
    for number in range(1, 101):
        queue.put(number)
    queue.put("stop")
    worker.join()
    print("the sum of 1 to 100 is", queue.get())


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main()
