"""Ending processes early: a sleeping child, a child with children of its own, and a daemon."""

import os
import time

import phalanx as mp


def sleep() -> None:
    time.sleep(600)


def sleep_with_children(pids) -> None:
    children = [mp.Process(target=sleep) for _ in range(2)]
    for child in children:
        child.start()
    pids.send([child.pid for child in children])
    sleep()


def leave_a_daemon(pids) -> None:
    daemon = mp.Process(target=sleep, daemon=True)
    daemon.start()
    pids.send(daemon.pid)


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"  # a zombie has ended
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 30
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(runs, pids))


def main() -> None:
    child = mp.Process(target=sleep)
    child.start()
    print("alive:", child.is_alive())
    child.terminate()
    child.join()
    print("terminated:", child.exitcode)

    receiver, sender = mp.Pipe(duplex=False)
    child = mp.Process(target=sleep_with_children, args=(sender,))
    child.start()
    grandchildren = receiver.recv()
    child.terminate(children=True)
    child.join()
    print("terminated with its children:", child.exitcode, wait_until_gone(grandchildren))

    child = mp.Process(target=leave_a_daemon, args=(sender,))
    child.start()
    daemon = receiver.recv()
    child.join()
    print("ended:", child.exitcode, "and its daemon is gone:", wait_until_gone([daemon]))


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main()
