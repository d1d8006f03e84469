"""A producer that is held back: the queue takes three items, then `put()` waits for a consumer.

The consumer is kept from starting until the producer has been seen to wait.
"""

import os
import time

import phalanx as mp


def produce(queue, produced) -> None:
    for number in range(10):
        queue.put(number)
        produced.value = number + 1
    queue.put(None)  # the end


def consume(queue, start, consumed) -> None:
    start.wait()
    while (item := queue.get()) is not None:
        consumed.send(item)
    consumed.close()


def main() -> None:
    queue = mp.Queue(maxsize=3)
    start = mp.Event()
    produced = mp.Value("i", 0)
    results, consumed = mp.Pipe(duplex=False)
    producer = mp.Process(target=produce, args=(queue, produced))
    consumer = mp.Process(target=consume, args=(queue, start, consumed))
    producer.start()
    consumer.start()
    consumed.close()  # the consumer has its own

    while produced.value < 3:
        time.sleep(0.01)
    time.sleep(0.3)  # time enough to go on, were it not for the limit
    print(f"produced {produced.value} of 10, full: {queue.full()}, waiting: {producer.is_alive()}")

    start.set()
    print("consumed", [results.recv() for _ in range(10)])
    producer.join()
    consumer.join()
    print(f"produced {produced.value} of 10, empty: {queue.empty()}")


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main()
