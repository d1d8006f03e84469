"""Event, Semaphore, Condition and Barrier: four ways for processes to wait for one another."""

import os
import time

import phalanx as mp


def run(target, *args, count: int, meanwhile=lambda: None) -> None:
    """Run `count` processes of `target(number, *args)`; call `meanwhile` while they run."""
    processes = [mp.Process(target=target, args=(n, *args)) for n in range(count)]
    for process in processes:
        process.start()
    meanwhile()
    for process in processes:
        process.join()


def wait_for_event(number, event, ready, released) -> None:
    ready.release()
    event.wait()
    with released.get_lock():
        released.value += 1


def event() -> None:
    event, ready, released = mp.Event(), mp.Semaphore(0), mp.Value("i", 0)

    def meanwhile() -> None:
        for _ in range(3):
            ready.acquire()
        print("event: released before it is set:", released.value)
        event.set()

    run(wait_for_event, event, ready, released, count=3, meanwhile=meanwhile)
    print("event: released by it:", released.value)


def use_resource(number, semaphore, inside, most) -> None:
    for _ in range(5):
        with semaphore:
            with inside.get_lock():
                inside.value += 1
                most.value = max(most.value, inside.value)
            time.sleep(0.002)
            with inside.get_lock():
                inside.value -= 1


def semaphore() -> None:
    inside, most = mp.Value("i", 0), mp.Value("i", 0)
    run(use_resource, mp.Semaphore(2), inside, most, count=5)
    print("semaphore: more than two at a time:", most.value > 2)


def take_turns(number, condition, turn, log) -> None:
    for step in range(number, 6, 2):
        with condition:
            condition.wait_for(lambda step=step: turn.value == step)
            log.put(f"{step} by {number}")
            turn.value += 1
            condition.notify_all()


def condition() -> None:
    log = mp.Queue()
    run(take_turns, mp.Condition(), mp.RawValue("i", 0), log, count=2)
    print("condition:", ", ".join(log.get() for _ in range(6)))


def climb(number, barrier, height, ahead) -> None:
    """Add one to `height` a round; after the barrier it shows that all have done so."""
    for stage in range(1, 4):
        with height.get_lock():
            height.value += 1
        barrier.wait()
        if height.value != 3 * stage:
            ahead.value = 1
        barrier.wait()  # nobody goes on before all have looked


def barrier() -> None:
    height, ahead = mp.Value("i", 0), mp.RawValue("i", 0)
    run(climb, mp.Barrier(3), height, ahead, count=3)
    print(f"barrier: {height.value} steps in 3 rounds, anyone ahead: {bool(ahead.value)}")


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    event()
    semaphore()
    condition()
    barrier()
