"""Five workers, each given its number: start them all, then join them all."""

import os

import phalanx as mp


def worker(number: int) -> None:
    print(f"worker {number} is {mp.current_process().name}", flush=True)


def main() -> None:
    workers = [mp.Process(target=worker, args=(n,), name=f"number-{n}") for n in range(5)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    print("exit codes:", [process.exitcode for process in workers])


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main()
