"""Strangers at the door of a Listener or a manager: each costs only itself."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading

import pytest

from phalanx import AuthenticationError, connection

KEY = b"the key"


def message(payload: bytes) -> bytes:
    return struct.pack("!i", len(payload)) + payload


# What a stranger sends instead of an answer to the challenge.
SENT = {
    "nothing": b"",
    "half a length": b"\0\0",
    "half a message": b"\0\0\0\x40half",
    "a negative length": b"\x80\0\0\0",
    "a terabyte": b"\xff\xff\xff\xff" + struct.pack("!Q", 2**40) + b"x",
    "more than any answer": message(b"x" * 257),
    "an empty message": message(b""),
    "a request of HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a pickle": message(pickle.dumps({"a": 1})),
    "an unknown digest": message(b"{rot13}" + b"x" * 32),
    "a digest of the wrong length": message(b"{sha256}" + b"x" * 31),
    "a wrong digest": message(b"{sha256}" + b"x" * 32),
    "an old wrong digest": message(b"x" * 16),
    "a brace": message(b"{"),
}


def stranger(address: object, sent: bytes, *, stays: bool) -> socket.socket:
    """A connected socket that has sent `sent`, and closes its side, or stays and is silent."""
    family = socket.AF_UNIX if isinstance(address, (str, bytes)) else socket.AF_INET
    sock = socket.socket(family)
    sock.connect(address)
    sock.sendall(sent)
    if not stays:
        sock.shutdown(socket.SHUT_WR)
    return sock


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET"])
@pytest.mark.parametrize("stays", [False, True], ids=["leaves", "stays"])
@pytest.mark.parametrize("name", SENT)
def test_listener(family, name, stays, monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE", 0.1)
    address = ("127.0.0.1", 0) if family == "AF_INET" else None
    with connection.Listener(address, family, authkey=KEY) as listener:
        with stranger(listener.address, SENT[name], stays=stays):
            with pytest.raises((AuthenticationError, EOFError, OSError)) as caught:
                listener.accept()
        assert not isinstance(caught.value, TimeoutError)
        welcomed = []
        friend = threading.Thread(
            target=lambda: welcomed.append(connection.Client(listener.address, authkey=KEY))
        )
        monkeypatch.setattr(connection, "_PATIENCE", 60.0)
        friend.start()
        with listener.accept() as conn:
            friend.join()
            welcomed[0].send("hello")
            assert conn.recv() == "hello"
        welcomed[0].close()


def test_client_of_a_hostile_listener(monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE", 0.1)
    for sent in SENT.values():
        for stays in (False, True):
            with socket.create_server(("127.0.0.1", 0)) as server:

                def serve(server=server, sent=sent, stays=stays):
                    sock, _ = server.accept()
                    with sock:
                        sock.sendall(sent)
                        if not stays:
                            sock.shutdown(socket.SHUT_WR)
                        try:
                            while sock.recv(1000):
                                pass
                        except ConnectionError:
                            pass

                thread = threading.Thread(target=serve)
                thread.start()
                with pytest.raises((AuthenticationError, EOFError, OSError)):
                    connection.Client(server.getsockname(), authkey=KEY)
                thread.join()


@pytest.fixture
def manager(mp):
    with mp.Manager() as manager:
        yield manager


def test_manager(manager):
    strangers = [
        stranger(manager.address, sent, stays=stays)
        for sent in SENT.values()
        for stays in (False, True)
    ]
    # Those that stay are still waited for, and nobody waits for them.
    items = manager.list([1])
    items.append(2)
    assert list(items) == [1, 2]
    for sock in strangers:
        sock.close()
    with pytest.raises(AuthenticationError):
        connection.Client(manager.address, authkey=b"another key")
    items.append(3)
    assert list(items) == [1, 2, 3]


def test_truncated_requests_of_a_friend(manager):
    request = pickle.dumps((None, "create", ("list", [1]), {}))
    for part in (b"", b"\0", struct.pack("!i", len(request)) + request[:-5]):
        with connection.Client(manager.address, authkey=manager._authkey) as friend:
            with socket.socket(fileno=os.dup(friend.fileno())) as sock:
                sock.sendall(part)
    for payload in (b"", b"no pickle", request[:-5], b"\x80\xff"):
        with connection.Client(manager.address, authkey=manager._authkey) as friend:
            friend.send_bytes(payload)
            try:
                assert friend.recv()[0] == "#TRACEBACK"
            except EOFError:  # it ends at once, like one that was cut off
                pass
    assert manager.list([1])[0] == 1


def test_wrong_keys_and_addresses_of_managers(mp, tmp_path, manager):
    from phalanx.managers import SyncManager

    with pytest.raises(AuthenticationError):
        SyncManager(manager.address, authkey=b"another key").connect()
    with pytest.raises(FileNotFoundError):
        SyncManager(str(tmp_path / "nobody"), authkey=KEY).connect()
    with pytest.raises(EOFError, match="ended before it could serve") as caught:
        SyncManager(str(tmp_path / ("x" * 120)), authkey=KEY).start()
    assert "AF_UNIX path too long" in str(caught.value.__cause__)
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        SyncManager(str(tmp_path / ("x" * 120)), authkey=KEY).connect()


def test_proxy_unpickled_after_its_server_has_ended(mp):
    manager = mp.Manager()
    items = manager.list([1])
    pickled = pickle.dumps(items)
    manager.shutdown()
    with pytest.raises((OSError, EOFError)):
        pickle.loads(pickled).append(2)
    with pytest.raises((OSError, EOFError)):
        items.append(2)
