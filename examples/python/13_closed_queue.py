"""After `close()` this process can put no more; what it has put is still read by another."""

import os

import phalanx as mp


def read(queue, result) -> None:
    result.send([queue.get() for _ in range(3)])


def main() -> None:
    queue = mp.Queue()
    receiver, sender = mp.Pipe(duplex=False)
    reader = mp.Process(target=read, args=(queue, sender))
    reader.start()
    for item in ["one", "two", "three"]:
        queue.put(item)
    queue.close()
    try:
        queue.put("four")
    except ValueError as error:
        print("put refused:", "is closed" in str(error))
    print("read by another process:", receiver.recv())
    reader.join()


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main()
