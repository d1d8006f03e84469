"""A pool of four workers: every way to give it work, an error coming back, and big results."""

import math
import os

import phalanx as mp


def square(number: int) -> int:
    return number * number


def power(base: int, exponent: int) -> int:
    return base**exponent


def invert(number: int) -> float:
    return 1 / number


def main() -> None:
    with mp.Pool(4) as pool:
        print("map:", pool.map(square, range(10)))
        big = pool.map(square, range(100_000))
        print("map of 100,000:", big == [n * n for n in range(100_000)])

        called_back = []
        result = pool.apply_async(square, (12,), callback=called_back.append)
        print("apply_async:", result.get())
        pool.apply(square, (0,))
        print("imap_unordered:", sorted(pool.imap_unordered(square, range(5))))
        print("starmap:", pool.starmap(power, [(2, 3), (3, 2), (10, 6)]))

        try:
            pool.map(invert, [2, 1, 0])
        except ZeroDivisionError as error:
            print("error:", error)
            print("its cause names the worker's function:", "in invert" in str(error.__cause__))

        numbers = range(100_000, 500_001, 200_000)
        factorials = pool.map(math.factorial, numbers, chunksize=1)
        print("factorials:", factorials == [math.factorial(n) for n in numbers])

        pool.close()
        pool.join()  # callbacks have run once this returns
        print("called back with", called_back)


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main()
