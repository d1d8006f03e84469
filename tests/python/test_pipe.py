"""Pipe, Connection, wait, Listener and Client."""

from __future__ import annotations

import array
import os
import select
import socket
import threading
import time

import pytest


def echo(connection):
    while True:
        try:
            connection.send(connection.recv())
        except EOFError:
            return


def send_all(connection, messages):
    for message in messages:
        connection.send_bytes(message)
    connection.close()


def send_late(connection, event):
    event.wait()
    connection.send("late")
    connection.close()


def answer(address, key):
    from phalanx.connection import Client

    with Client(address, authkey=key) as connection:
        connection.send(connection.recv() * 2)


@pytest.fixture
def pipe(mp):
    here, there = mp.Pipe()
    with here, there:
        yield here, there


def test_smoke(pipe):
    here, there = pipe
    here.send("there")
    there.send("back")
    assert (there.recv(), here.recv()) == ("there", "back")


def test_echo_of_everything(ctx):
    here, there = ctx.Pipe()
    process = ctx.Process(target=echo, args=(there,), daemon=True)
    process.start()
    for thing in (None, 1, -2.5, "text", b"bytes", [1, {"a": (2,)}], bytes(3 << 20), ""):
        here.send(thing)
        assert here.recv() == thing
    process.terminate()
    process.join()


def test_poll(pipe):
    here, there = pipe
    assert not here.poll()
    assert not here.poll(0)
    start = time.monotonic()
    assert not here.poll(0.1)
    assert time.monotonic() - start >= 0.1
    there.send(1)
    assert here.poll()
    assert here.poll(None)
    assert here.recv() == 1
    assert not here.poll()


def test_bytes(mp, pipe):
    here, there = pipe
    here.send_bytes(b"0123456789", 2, 5)
    assert there.recv_bytes() == b"23456"
    here.send_bytes(array.array("i", [1, 2]))
    assert there.recv_bytes() == array.array("i", [1, 2]).tobytes()
    here.send_bytes(b"")
    assert there.recv_bytes() == b""
    buffer = bytearray(10)
    here.send_bytes(b"abc")
    assert there.recv_bytes_into(buffer, 4) == 3
    assert bytes(buffer) == b"\0\0\0\0abc\0\0\0"
    here.send_bytes(b"much too long")
    with pytest.raises(mp.BufferTooShort) as caught:
        there.recv_bytes_into(bytearray(4))
    assert caught.value.args == (b"much too long",)
    here.send_bytes(b"over the limit")
    with pytest.raises(OSError):
        there.recv_bytes(5)


def test_one_way(mp):
    receiver, sender = mp.Pipe(duplex=False)
    assert (receiver.readable, receiver.writable) == (True, False)
    assert (sender.readable, sender.writable) == (False, True)
    sender.send("hello")
    sender.close()
    assert receiver.recv() == "hello"
    with pytest.raises(EOFError):
        receiver.recv()
    assert receiver.poll()  # there is something to be told: the end
    receiver.close()


def test_writing_to_nobody(mp):
    here, there = mp.Pipe()
    there.close()
    with pytest.raises(OSError):
        for _ in range(100):
            here.send("anyone?")
    here.close()


def test_much_more_than_fits(ctx):
    here, there = ctx.Pipe(duplex=False)
    messages = [bytes([n]) * (n * 5000) for n in range(200)]
    process = ctx.Process(target=send_all, args=(there, messages))
    process.start()
    there.close()
    for message in messages:
        assert here.recv_bytes() == message
    with pytest.raises(EOFError):
        here.recv_bytes()
    process.join()
    here.close()


def test_fileno_works_with_select(pipe):
    here, there = pipe
    assert select.select([here], [], [], 0)[0] == []
    there.send("ring")
    assert select.select([here], [], [], 60)[0] == [here]
    assert here.recv() == "ring"
    assert select.select([here], [], [], 0)[0] == []
    there.close()
    assert select.select([here], [], [], 60)[0] == [here]


def test_wait_for_several(mp, ctx):
    from phalanx.connection import wait

    event = ctx.Event()
    one, _one = ctx.Pipe()
    two, _two = ctx.Pipe()
    ours, theirs = socket.socketpair()
    process = ctx.Process(target=send_late, args=(_two, event))
    process.start()
    assert wait([one, two, ours, process.sentinel], timeout=0.05) == []
    event.set()
    assert wait([one, two, ours]) == [two]
    assert two.recv() == "late"
    theirs.send(b"x")
    assert ours in wait([one, two, ours])
    process.join()
    assert process.sentinel in wait([one, process.sentinel], timeout=0)
    for thing in (one, _one, two, _two, ours, theirs):
        thing.close()


def test_connection_sent_over_a_connection(ctx):
    here, there = ctx.Pipe()
    process = ctx.Process(target=echo, args=(there,), daemon=True)
    process.start()
    inner, outer = ctx.Pipe()
    here.send(outer)
    twin = here.recv()
    twin.send("through the twin")
    assert inner.recv() == "through the twin"
    process.terminate()
    process.join()


def test_threads_at_both_ends(pipe):
    here, there = pipe
    got = []
    thread = threading.Thread(target=lambda: got.extend(there.recv() for _ in range(1000)))
    thread.start()
    for number in range(1000):
        here.send(number)
    thread.join()
    assert got == list(range(1000))


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET", "abstract"])
def test_listener_and_client(ctx, family, tmp_path):
    from phalanx.connection import Listener

    address = {"AF_UNIX": str(tmp_path / "s"), "AF_INET": ("127.0.0.1", 0)}.get(family)
    address = address or f"\0phalanx-test-{os.getpid()}"
    with Listener(address, authkey=b"secret") as listener:
        process = ctx.Process(target=answer, args=(listener.address, b"secret"))
        process.start()
        with listener.accept() as connection:
            connection.send(21)
            assert connection.recv() == 42
        process.join()


def test_wrong_key_is_refused(mp, ctx):
    from phalanx.connection import Listener

    with Listener(authkey=b"right") as listener:
        thread = threading.Thread(target=try_to_answer, args=(listener.address, b"wrong", mp))
        thread.start()
        with pytest.raises(mp.AuthenticationError):
            listener.accept()
        thread.join()


def try_to_answer(address, key, mp):
    from phalanx.connection import Client

    with pytest.raises((mp.AuthenticationError, EOFError, OSError)):
        Client(address, authkey=key)


def test_talks_to_the_standard_library():
    import multiprocessing.connection as theirs

    import phalanx.connection as ours

    for server, client in ((ours, theirs), (theirs, ours)):
        with server.Listener(("127.0.0.1", 0), authkey=b"key") as listener:
            got = []

            def ask(client=client, listener=listener, got=got):
                with client.Client(listener.address, authkey=b"key") as connection:
                    connection.send({"question": 1})
                    got.append(connection.recv())

            thread = threading.Thread(target=ask)
            thread.start()
            with listener.accept() as connection:
                assert connection.recv() == {"question": 1}
                connection.send(["answer"])
            thread.join()
            assert got == [["answer"]]
