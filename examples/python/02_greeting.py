"""A worker puts a greeting into a queue; its parent gets it, then joins the worker."""

import os

import phalanx as mp


def greet(queue, name: str) -> None:
    queue.put(f"hello {name}, from a process of its own")


def main() -> None:
    queue = mp.Queue()
    worker = mp.Process(target=greet, args=(queue, "world"))
    worker.start()
    print(queue.get())
    worker.join()
    print("joined:", worker.exitcode)


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main()
