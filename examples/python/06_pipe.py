"""Pipes: one way until the end of file, both ways for request and reply, any object."""

import os

import phalanx as mp


def send_list(connection) -> None:
    for item in ["spam", "bacon", "eggs"]:
        connection.send(item)
    connection.close()


def answer(connection) -> None:
    """Reply to each number with its square, until None is asked."""
    while (number := connection.recv()) is not None:
        connection.send(number**2)


def echo(connection) -> None:
    for _ in range(3):
        connection.send(connection.recv())


def one_way() -> None:
    receiver, sender = mp.Pipe(duplex=False)
    child = mp.Process(target=send_list, args=(sender,))
    child.start()
    sender.close()  # else this process itself would keep the pipe open
    try:
        while True:
            print("received", receiver.recv())
    except EOFError:
        print("the sender has closed")
    child.join()


def request_and_reply() -> None:
    here, there = mp.Pipe()
    child = mp.Process(target=answer, args=(there,))
    child.start()
    for number in range(1, 4):
        here.send(number)
        print(f"{number} squared is {here.recv()}")
    here.send(None)
    child.join()
    print("exit code", child.exitcode)


def any_object() -> None:
    here, there = mp.Pipe()
    child = mp.Process(target=echo, args=(there,))
    child.start()
    for thing in ["a string", 42, {"a": [1, 2.5], "b": None}]:
        here.send(thing)
        print(f"{thing!r} came back equal: {here.recv() == thing}")
    child.join()


if __name__ == "__main__":
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    one_way()
    request_and_reply()
    any_object()
