"""Connections beyond the everyday: streams and arena, signals, authentication, other programs."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading

import pytest

from phalanx import connection
from phalanx.context import AuthenticationError, BufferTooShort

# The interpreter whose standard library is talked to: by default the one that runs the tests.
OTHER_PYTHON = os.environ.get("PHALANX_OTHER_PYTHON", sys.executable)


def standard(script: str, *args: object, fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """Run a script in an interpreter that has the standard library's multiprocessing only."""
    return subprocess.Popen(
        [OTHER_PYTHON, "-E", "-c", textwrap.dedent(script), *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=fds,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output.strip()


@pytest.fixture
def alarm():
    """Lets a handler raise InterruptedError in the main thread a moment from now."""

    def handler(*_args):
        raise InterruptedError("by the alarm")

    def ring():
        timers.append(threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)))
        timers[-1].start()

    timers: list[threading.Timer] = []
    before = signal.signal(signal.SIGUSR2, handler)
    yield ring
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGUSR2, before)


@pytest.fixture
def pipe(mp):
    here, there = mp.Pipe()
    with here, there:
        yield here, there


# What carries the messages ---------------------------------------------------------------------


@pytest.fixture(params=["arena", "stream"])
def any_pipe(request, pipe):
    """A pipe whose messages go through the arena, and one that is a stream."""
    if request.param == "stream":
        pipe[0].fileno()
    return pipe


def test_objects_and_bytes_can_be_mixed(any_pipe):
    here, there = any_pipe
    here.send_bytes(pickle.dumps(["as", "bytes"]))
    assert there.recv() == ["as", "bytes"]
    here.send(("as", "object"))
    assert pickle.loads(there.recv_bytes()) == ("as", "object")
    here.send(b"bytes as an object")
    assert pickle.loads(there.recv_bytes()) == b"bytes as an object"
    here.send(b"bytes as an object")
    assert there.recv() == b"bytes as an object"
    big = os.urandom(3 << 20)
    sender = threading.Thread(target=here.send_bytes, args=(pickle.dumps(big),))
    sender.start()
    assert there.recv() == big
    sender.join()


def test_maxlength(mp, any_pipe):
    here, there = any_pipe
    here.send_bytes(b"12345")
    assert there.recv_bytes(5) == b"12345"
    here.send_bytes(b"123456")
    with pytest.raises(OSError, match="bad message length"):
        there.recv_bytes(5)
    # A connection that can still send does so; one that can do nothing more is closed.
    assert not there.readable
    there.send("still here")
    assert here.recv() == "still here"
    receiver, sender = mp.Pipe(duplex=False)
    with receiver, sender:
        sender.send_bytes(b"123456")
        with pytest.raises(OSError, match="bad message length"):
            receiver.recv_bytes(0)
        assert receiver.closed


def test_into_a_buffer(any_pipe):
    here, there = any_pipe
    buffer = bytearray(6)
    here.send_bytes(b"abc")
    assert there.recv_bytes_into(buffer, 2) == 3
    assert buffer == b"\0\0abc\0"
    here.send_bytes(b"too much")
    with pytest.raises(BufferTooShort) as caught:
        there.recv_bytes_into(buffer)
    assert caught.value.args == (b"too much",)
    for wrong in (-1, 7):
        with pytest.raises(ValueError, match="offset"):
            there.recv_bytes_into(buffer, wrong)


def test_a_descriptor_asked_for_first_is_a_stream(pipe):
    here, there = pipe
    fd = there.fileno()
    here.send_bytes(b"hello")
    assert os.read(fd, 100) == b"\0\0\0\5hello"
    os.write(here.fileno(), struct.pack("!iQ", -1, 3) + b"abc")
    assert there.recv_bytes() == b"abc"


def test_a_descriptor_asked_for_later_can_be_polled(pipe):
    here, there = pipe
    here.send(1)
    fd = there.fileno()
    for number in range(2, 5):
        assert select.select([fd], [], [], 0)[0]
        assert there.recv() == number - 1
        assert not select.select([fd], [], [], 0)[0]
        here.send(number)
    assert there.recv() == 4
    here.close()
    assert select.select([fd], [], [], 0)[0]
    with pytest.raises(EOFError):
        there.recv()


def test_an_end_in_a_program_of_the_standard_library(pipe):
    here, there = pipe
    other = standard(
        """
        import sys
        from multiprocessing.connection import Connection
        with Connection(int(sys.argv[1])) as conn:
            while (thing := conn.recv()) is not None:
                conn.send([thing] * 2)
        """,
        there.fileno(),
        fds=(there.fileno(),),
    )
    there.close()
    for thing in (1, "two", b"x" * 500_000):
        here.send(thing)
        assert here.recv() == [thing] * 2
    here.send(None)
    finish(other)
    with pytest.raises(EOFError):
        here.recv()


def receive_ends(conn):
    for _ in range(3):
        end = conn.recv()
        while not isinstance(message := end.recv(), str):
            pass
        end.send(message.upper())


def test_ends_travel_used_or_not(mp, ctx):
    """An end may be let go as soon as it is sent; what was sent before it was goes with it."""
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=receive_ends, args=(theirs,))
    process.start()
    for used in (False, True):
        here, there = mp.Pipe()
        if used:
            here.send(0)
        ours.send(there)
        there.close()
        here.send("hello")
        assert here.recv() == "HELLO"
        here.close()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        near = socket.create_connection(listening.getsockname())
        far = connection.Connection(listening.accept()[0].detach())
        ours.send(far)
        far.close()
        with connection.Connection(near.detach()) as near:
            near.send("by tcp")
            assert near.recv() == "BY TCP"
    process.join()
    assert process.exitcode == 0


# Signals ---------------------------------------------------------------------------------------


def test_an_interrupted_receiver_goes_on_where_it_was(alarm):
    ours, theirs = socket.socketpair()
    with connection.Connection(ours.detach()) as conn, theirs:
        theirs.sendall(b"\0\0\0\x05he")
        alarm()
        with pytest.raises(InterruptedError):
            conn.recv_bytes()
        theirs.sendall(b"llo")
        assert conn.recv_bytes() == b"hello"


def test_an_interrupted_message_is_finished_before_the_next(alarm):
    ours, theirs = socket.socketpair()
    body = os.urandom(5_000_000)
    with (
        connection.Connection(ours.detach()) as sender,
        connection.Connection(theirs.detach()) as receiver,
    ):
        alarm()
        with pytest.raises(InterruptedError):
            sender.send_bytes(body)
        rest = threading.Thread(target=sender.send_bytes, args=(b"next",))
        rest.start()
        assert receiver.recv_bytes() == body
        assert receiver.recv_bytes() == b"next"
        rest.join()


@pytest.mark.parametrize("wait", ["recv", "poll", "wait"])
def test_waits_are_interrupted(any_pipe, alarm, wait):
    _here, there = any_pipe
    calls = {
        "recv": there.recv,
        "poll": lambda: there.poll(None),
        "wait": lambda: connection.wait([there]),
    }
    alarm()
    with pytest.raises(InterruptedError):
        calls[wait]()


def test_a_thread_waiting_for_its_turn_is_interrupted(alarm):
    """One thread receives; the main thread wants to as well, and can still be interrupted."""
    ours, theirs = socket.socketpair()
    with connection.Connection(ours.detach()) as conn, theirs:
        other = threading.Thread(target=conn.recv_bytes)
        other.start()
        alarm()
        with pytest.raises(InterruptedError):
            conn.recv_bytes()
        theirs.sendall(b"\0\0\0\0")
        other.join()


def test_threads_send_whole_messages_over_a_stream():
    ours, theirs = socket.socketpair()
    sender, receiver = connection.Connection(ours.detach()), connection.Connection(theirs.detach())
    with sender, receiver:
        threads = [
            threading.Thread(target=lambda m=mark: [sender.send_bytes(m * 300_000)] * 3)
            for mark in (b"a", b"b", b"c")
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            message = receiver.recv_bytes()
            assert message == message[:1] * 300_000
        for thread in threads:
            thread.join()


# Hostile streams -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"", EOFError),
        (b"\0", OSError),
        (b"\0\0\0\x09short", OSError),
        (b"\x80\0\0\0", OSError),
        (b"\xff\xff\xff\xff" + b"\xff" * 8, OSError),
        (b"\xff\xff\xff\xff\0\0\x0f\0\0\0\0\0a terabyte", OSError),
    ],
)
def test_nonsense_on_the_stream_is_an_error(stream, error):
    ours, theirs = socket.socketpair()
    with connection.Connection(ours.detach()) as conn:
        theirs.sendall(stream)
        theirs.close()
        with pytest.raises(error):
            conn.recv_bytes()


# wait ------------------------------------------------------------------------------------------


def test_wait_returns_what_is_ready_in_the_order_given(mp):
    pipes = [mp.Pipe() for _ in range(4)]
    ends = [there for _, there in pipes]
    ends[2].fileno()  # one of them is a stream
    near, far = socket.socketpair()
    try:
        assert connection.wait(ends, 0) == []
        assert connection.wait([], 0) == []
        for number in (3, 2, 0):
            pipes[number][0].send(number)
        far.send(b"x")
        assert connection.wait([*ends, near, near.fileno()]) == [
            ends[0],
            ends[2],
            ends[3],
            near,
            near.fileno(),
        ]
        pipes[1][0].close()
        assert connection.wait([ends[1]]) == [ends[1]]
    finally:
        for end in (*sum(pipes, ()), near, far):
            end.close()


def test_wait_wakes_for_each_kind(mp, ctx):
    here, there = mp.Pipe()
    with here, there:
        for make_stream in (False, True):
            if make_stream:
                here, there = mp.Pipe()
                there.fileno()
            timer = threading.Timer(0.05, here.send, ("now",))
            timer.start()
            assert connection.wait([there], 30) == [there]
            assert there.recv() == "now"
            timer.join()


@pytest.mark.parametrize("thing", [-1, "text", None])
def test_wait_refuses_what_is_no_descriptor(thing):
    with pytest.raises(ValueError, match="Invalid file"):
        connection.wait([thing], 0)


def test_wait_refuses_closed_connections_and_nan(mp):
    here, there = mp.Pipe()
    here.close()
    there.close()
    with pytest.raises(OSError, match="handle is closed"):
        connection.wait([here])
    with pytest.raises(ValueError, match="NaN"):
        connection.wait([], float("nan"))


# Listening and authentication ------------------------------------------------------------------

KEY = b"a key of both"

CLIENT = """
    import sys
    from multiprocessing.connection import Client
    with Client(sys.argv[1], authkey=sys.argv[2].encode()) as conn:
        conn.send(conn.recv() + ["client"])
        print(conn.recv())
"""

LISTENER = """
    import sys
    from multiprocessing.connection import Listener
    with Listener(sys.argv[1], authkey=sys.argv[2].encode()) as listener:
        print("ready", flush=True)
        with listener.accept() as conn:
            conn.send(conn.recv() + ["listener"])
            print(conn.recv())
"""


def test_a_client_of_the_standard_library(tmp_path):
    address = str(tmp_path / "socket")
    with connection.Listener(address, authkey=KEY) as listener:
        client = standard(CLIENT, address, KEY.decode())
        with listener.accept() as conn:
            conn.send(["listener"])
            assert conn.recv() == ["listener", "client"]
            conn.send("done")
            assert finish(client) == "done"
    assert not os.path.exists(address)


def test_a_listener_of_the_standard_library(tmp_path):
    address = str(tmp_path / "socket")
    listener = standard(LISTENER, address, KEY.decode())
    assert listener.stdout.readline() == "ready\n"
    with connection.Client(address, authkey=KEY) as conn:
        conn.send(["client"])
        assert conn.recv() == ["client", "listener"]
        conn.send("done")
        assert finish(listener) == "done"


class Simulated:
    """A connection to an authenticating party that says what it is told to."""

    def __init__(self, *says: bytes) -> None:
        self.says = list(says)
        self.heard: list[bytes] = []

    def recv_bytes(self, _limit: int) -> bytes:
        return self.says.pop(0)

    def send_bytes(self, message: bytes) -> None:
        self.heard.append(message)


def test_the_old_challenge_is_answered_by_plain_md5():
    import hmac

    text = b"exactly twenty bytes"
    listener = Simulated(b"#CHALLENGE#" + text, b"#WELCOME#")
    connection.answer_challenge(listener, KEY)
    assert listener.heard == [hmac.new(KEY, text, "md5").digest()]


def test_an_old_answer_by_plain_md5_is_good():
    import hmac

    class Old(Simulated):
        def send_bytes(self, message: bytes) -> None:
            super().send_bytes(message)
            if message.startswith(b"#CHALLENGE#"):
                self.says.append(hmac.new(KEY, message[11:], "md5").digest())

    client = Old()
    connection.deliver_challenge(client, KEY)
    assert client.heard[1:] == [b"#WELCOME#"]


@pytest.mark.parametrize("digest", ["md5", "sha256", "sha384", "sha3_256", "sha3_384"])
def test_each_digest_is_understood(digest):
    challenge = b"{%s}" % digest.encode() + os.urandom(40)
    answer = connection._create_response(KEY, challenge)
    assert answer.startswith(b"{%s}" % digest.encode())
    connection._verify_challenge(KEY, challenge, answer)
    for wrong in (answer[:-1], answer[:-1] + bytes([answer[-1] ^ 1]), b"", b"{none}" + b"x" * 20):
        with pytest.raises(AuthenticationError):
            connection._verify_challenge(KEY, challenge, wrong)


class Boom:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_is_unpickled_before_authentication(tmp_path):
    with connection.Listener(str(tmp_path / "socket"), authkey=KEY) as listener:
        with connection.Client(listener.address) as client:
            for _ in range(3):
                client.send(Boom(str(tmp_path / "boom")))
            with pytest.raises(AuthenticationError):
                listener.accept()
    assert not (tmp_path / "boom").exists()


def test_silence_in_the_handshake_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE", 0.1)
    with connection.Listener(str(tmp_path / "socket"), authkey=KEY) as listener:
        with connection.Client(listener.address):
            with pytest.raises(AuthenticationError, match="did not answer"):
                listener.accept()


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET"])
def test_a_client_waits_for_a_busy_listener_but_not_for_one_without_a_key(monkeypatch, family):
    monkeypatch.setattr(connection, "_PATIENCE", 0.1)
    outcome = []

    def connect(address):
        try:
            connection.Client(address, authkey=KEY).close()
            outcome.append("welcome")
        except AuthenticationError as error:
            outcome.append(str(error))

    for key in (KEY, None):
        address = ("127.0.0.1", 0) if family == "AF_INET" else None
        with connection.Listener(address, family, authkey=key) as listener:
            client = threading.Thread(target=connect, args=(listener.address,))
            client.start()
            client.join(1.5)  # much longer than its patience
            assert client.is_alive()
            with listener.accept():
                client.join()
    assert outcome[0] == "welcome"
    assert "sent no challenge" in outcome[1]


def test_addresses(tmp_path):
    too_long = str(tmp_path / ("x" * 120))
    for use in (connection.Listener, connection.Client):
        with pytest.raises(OSError, match="AF_UNIX path too long.*107"):
            use(too_long)
    with pytest.raises(ValueError, match="AF_PIPE"):
        connection.Listener(r"\\.\test")
    with pytest.raises(TypeError, match="address"):
        connection.Client(3.5)
    for authkey in ("text", 3):
        with pytest.raises(TypeError, match="byte string"):
            connection.Listener(authkey=authkey)
    assert connection.address_type(("localhost", 1)) == "AF_INET"
    assert connection.address_type("\0abstract") == "AF_UNIX"
    assert connection.address_type(b"\0abstract") == "AF_UNIX"


def test_a_closed_listener():
    listener = connection.Listener()
    listener.close()
    listener.close()
    with pytest.raises(OSError, match="listener is closed"):
        listener.accept()


def test_xml():
    with connection.XmlListener(authkey=KEY) as listener:

        def connect():
            with connection.XmlClient(listener.address, authkey=KEY) as client:
                client.send([1, "two", None, {"three": 4.0}])

        client = threading.Thread(target=connect)
        client.start()
        conn = listener.accept()
        assert conn.recv() == [1, "two", None, {"three": 4.0}]
        conn.close()
        client.join()
