"""Connections: pipes between processes, and messages over sockets with authentication.

    with Listener(("localhost", 6000), authkey=b"secret") as listener:
        with listener.accept() as conn:
            conn.send([1, None, "three"])

The format of messages and the authentication are those of `multiprocessing.connection`, so that
either end may be a program of the standard library's. Nothing that comes from the other end is
unpickled before it has proved that it knows the key.
"""

from __future__ import annotations

import os
import sys
import time

from . import _phalanx, util
from .context import AuthenticationError, get_spawning_popen
from .context import BufferTooShort as BufferTooShort

TYPE_CHECKING = False  # `typing`, `pickle` and `socket` take longer to import than all of this
if TYPE_CHECKING:
    import io
    from collections.abc import Callable
    from typing import Any

    Address = Any  # (host, port), a path, or an abstract name ("\0..." as str or bytes)

__all__ = ["Client", "Listener", "Pipe", "wait"]

BUFSIZE = 8192
CONNECTION_TIMEOUT = 20.0

default_family = "AF_UNIX"
families = ["AF_INET", "AF_UNIX"]

_LONGEST_UNIX_ADDRESS = 107


# Addresses -----------------------------------------------------------------------------------


def arbitrary_address(family: str) -> Address:
    """Return a free address of a family: "AF_INET" or "AF_UNIX"."""
    if family == "AF_INET":
        return ("localhost", 0)
    if family == "AF_UNIX":
        return os.path.join(util.get_temp_dir(), "listener-" + os.urandom(6).hex())
    raise ValueError(f"{family!r} is no family of addresses that is known here")


def abstract_address() -> str:
    """Return a free address that has no file: nothing is left of it, however its owner ends.

    Not for programs that pass it on as an argument or in the environment: it has a zero in it.
    """
    return f"\0phalanx-{os.getpid()}-{os.urandom(8).hex()}"


def _validate_family(family: str) -> None:
    if family == "AF_PIPE":
        raise ValueError("AF_PIPE is not a family of addresses on this platform")


def address_type(address: Address) -> str:
    """Return the family that an address belongs to."""
    if type(address) is tuple:
        return "AF_INET"
    if type(address) is str and address.startswith("\\\\"):
        return "AF_PIPE"
    if type(address) is str or util.is_abstract_socket_namespace(address):
        return "AF_UNIX"
    raise ValueError(
        f"{address!r} is no address: it should be (host, port), a path, or an abstract name"
    )


def _check_length(address: Address) -> None:
    """Refuse what does not fit into a Unix socket's address, in words that help."""
    if isinstance(address, (str, bytes)):
        size = len(os.fsencode(address))
        if size > _LONGEST_UNIX_ADDRESS:
            raise OSError(
                f"AF_UNIX path too long: {address!r} has {size} bytes, and at most"
                f" {_LONGEST_UNIX_ADDRESS} are possible; use a shorter path (the environment"
                " variable TMPDIR decides where the automatic ones are)"
            )


# Connections ---------------------------------------------------------------------------------


class Connection(_phalanx.Connection):
    """One end of a pipe, or of a socket connected to a `Listener`."""

    # For subclasses and patches that know the standard library's. The first two are for the bytes
    # of a stream themselves, without the lengths that messages have before them.

    def _send(self, buf: Any, write: Callable[[int, Any], int] = os.write) -> None:
        view = memoryview(buf).cast("B")
        while view:
            view = view[write(self.fileno(), view) :]

    def _recv(self, size: int, read: Callable[[int, int], bytes] = os.read) -> io.BytesIO:
        import io

        got = io.BytesIO()
        while got.tell() < size:
            part = read(self.fileno(), size - got.tell())
            if not part:
                raise EOFError if not got.tell() else OSError("got end of file during message")
            got.write(part)
        return got

    def _send_bytes(self, buf: Any) -> None:
        self.send_bytes(buf)

    def _recv_bytes(self, maxsize: int | None = None) -> io.BytesIO:
        import io

        return io.BytesIO(self.recv_bytes(maxsize))


_ConnectionBase = _phalanx.Connection


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Return two connected `Connection` objects.

    Both can send and receive; with `duplex=False` the first can only receive, and the second only
    send.
    """
    first, second = Connection.__new__(Connection), Connection.__new__(Connection)
    _phalanx.join_by_pipe(first, second, duplex)
    return first, second


wait = _phalanx.wait


# Pickling connections ------------------------------------------------------------------------
#
# A pipe's messages go through the family's memory, so its ends are pickled as a handle there and a
# descriptor. A pipe that has not been used yet becomes a plain stream, though, when it is pickled
# for an unknown receiver, which may be of another family.


def reduce_connection(conn: Connection) -> tuple[Callable[..., Connection], tuple[Any, ...]]:
    from . import reduction

    spawning = get_spawning_popen() is not None
    shared = conn._share(spawning)
    how = conn.readable, conn.writable
    if shared is None:
        return rebuild_connection, (reduction.DupFd(conn._socket()), *how)
    if spawning:
        return rebuild_end, (*shared, reduction.DupFd(conn._socket()), *how)
    return _SentEnd.detach, (_SentEnd(conn, *shared), *how)


def rebuild_connection(duplicate: Any, readable: bool, writable: bool) -> Connection:
    return Connection(duplicate.detach(), readable, writable)


def rebuild_end(
    family: int, handle: int, duplicate: Any, readable: bool, writable: bool
) -> Connection:
    conn = Connection.__new__(Connection)
    conn._attach(family, handle, duplicate.detach(), readable, writable)
    return conn


class _SentEnd:
    """The end of a pipe on its way to another process of the family.

    It is kept here until it has arrived, whatever its owner does with it meanwhile.
    """

    def __init__(self, conn: Connection, family: int, handle: int) -> None:
        from . import reduction, resource_sharer

        keeper = Connection.__new__(Connection)
        keeper._attach(family, handle, os.dup(conn._socket()), True, True)

        def send(receiver: Connection, pid: int) -> None:
            reduction.send_handle(receiver, keeper._socket(), pid)
            try:
                receiver.recv_bytes()
            except EOFError:
                pass

        self._handle = family, handle
        self._id = resource_sharer._resource_sharer.register(send, keeper.close)

    def detach(self, readable: bool, writable: bool) -> Connection:
        from . import reduction, resource_sharer

        with resource_sharer._resource_sharer.get_connection(self._id) as sender:
            conn = Connection.__new__(Connection)
            conn._attach(*self._handle, reduction.recv_handle(sender), readable, writable)
            sender.send_bytes(b"arrived")
        return conn


# `reduction` registers it itself if it is imported later.
_reduction = sys.modules.get(f"{__package__}.reduction")
if _pickler := getattr(_reduction, "ForkingPickler", None):
    _pickler.register(Connection, reduce_connection)


# Listening and connecting --------------------------------------------------------------------


class Listener:
    """A socket bound to an address, which accepts connections.

    Without an address it finds a free one. With an `authkey`, only who knows it is let in.
    """

    def __init__(
        self,
        address: Address = None,
        family: str | None = None,
        backlog: int = 1,
        authkey: bytes | None = None,
    ) -> None:
        _check_key(authkey)
        family = family or (address and address_type(address)) or default_family
        _validate_family(family)
        self._listener: SocketListener | None = None
        self._listener = SocketListener(address or arbitrary_address(family), family, backlog)
        self._authkey = authkey

    def accept(self) -> Connection:
        """Wait for a client, and return the connection to it.

        Raises `AuthenticationError` for a client that does not know the key (or keeps silent for
        too long), `OSError` when the listener is closed.
        """
        if self._listener is None:
            raise OSError("listener is closed")
        conn = self._listener.accept()
        if self._authkey is not None:
            try:
                authenticate_client(conn, self._authkey)
            except BaseException:
                conn.close()
                raise
        return conn

    def close(self) -> None:
        """Close the socket, and remove its path if it has one."""
        listener = self._listener
        if listener is not None:
            self._listener = None
            listener.close()

    @property
    def address(self) -> Address:
        return self._open()._address

    @property
    def last_accepted(self) -> Address:
        """Where the last client came from; None if nothing is known of that."""
        return self._open()._last_accepted

    def _open(self) -> SocketListener:
        if self._listener is None:
            raise OSError("listener is closed")
        return self._listener

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def Client(address: Address, family: str | None = None, authkey: bytes | None = None) -> Connection:
    """Return a connection to the `Listener` at an address.

    Raises `ConnectionRefusedError` or `FileNotFoundError` if nobody listens there, and
    `AuthenticationError` if either side does not know the other's key.
    """
    _check_key(authkey)
    _validate_family(family or address_type(address))
    conn = SocketClient(address)
    if authkey is not None:
        try:
            authenticate_to_listener(conn, authkey, address)
        except BaseException:
            conn.close()
            raise
    return conn


def _check_key(authkey: object) -> None:
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError(f"authkey should be a byte string, not {type(authkey).__name__}")


class SocketListener:
    """A listening socket, without authentication."""

    def __init__(self, address: Address, family: str, backlog: int = 1) -> None:
        import socket

        _check_length(address)
        self._socket: socket.socket = socket.socket(getattr(socket, family))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setblocking(True)
            self._socket.bind(address)
            self._socket.listen(backlog)
            self._address = self._socket.getsockname()
        except OSError:
            self._socket.close()
            raise
        self._family = family
        self._last_accepted: Address = None
        self._unlink: util.Finalize | None = None
        if family == "AF_UNIX" and not util.is_abstract_socket_namespace(address):
            self._unlink = util.Finalize(self, os.unlink, args=(address,), exitpriority=0)

    def accept(self) -> Connection:
        sock, self._last_accepted = self._socket.accept()
        sock.setblocking(True)
        return Connection(sock.detach())

    def close(self) -> None:
        try:
            self._socket.close()
        finally:
            unlink, self._unlink = self._unlink, None
            if unlink is not None:
                unlink()


def SocketClient(address: Address) -> Connection:
    """Return a connection to a listening socket, without authentication."""
    import socket

    _check_length(address)
    with socket.socket(getattr(socket, address_type(address))) as sock:
        sock.setblocking(True)
        sock.connect(address)
        return Connection(sock.detach())


# Authentication ------------------------------------------------------------------------------
#
# Each side in turn sends "#CHALLENGE#" and a random text, and the other answers with the text's
# HMAC under the key; then the first says "#WELCOME#" or "#FAILURE#". The listener asks first.
#
# Up to Python 3.11 the text has 20 bytes and the HMAC is MD5's 16 bytes. From 3.12 the text begins
# with the name of a digest in braces, and so does the answer. Such a text is longer than 20 bytes,
# and an old program takes the whole of it, braces and all, as its text: so either understands the
# other, and lengths tell which it is.

MESSAGE_LENGTH = 40

CHALLENGE = _CHALLENGE = b"#CHALLENGE#"
WELCOME = _WELCOME = b"#WELCOME#"
FAILURE = _FAILURE = b"#FAILURE#"

_ALLOWED_DIGESTS = frozenset({b"md5", b"sha256", b"sha384", b"sha3_256", b"sha3_384"})
_MAX_DIGEST_LEN = max(map(len, _ALLOWED_DIGESTS))
_MD5ONLY_MESSAGE_LENGTH = 20
_MD5_DIGEST_LEN = 16
_LEGACY_LENGTHS = (_MD5ONLY_MESSAGE_LENGTH, _MD5_DIGEST_LEN)
_LONGEST_ANSWER = 256


def _get_digest_name_and_payload(message: bytes) -> tuple[str, bytes]:
    """Split "{digest}payload"; the name is empty for a message of the old form."""
    if len(message) in _LEGACY_LENGTHS:
        return "", message
    if message.startswith(b"{"):
        name, brace, payload = message[1 : _MAX_DIGEST_LEN + 2].partition(b"}")
        if brace and name in _ALLOWED_DIGESTS:
            return name.decode("ascii"), message[len(name) + 2 :]
    raise AuthenticationError(
        "unsupported message length, missing digest prefix, or unsupported digest:"
        f" message={message!r}"
    )


def _hmac(authkey: bytes, message: bytes, digest: str) -> bytes:
    import hmac

    return hmac.new(authkey, message, digest).digest()


def _create_response(authkey: bytes, message: bytes) -> bytes:
    """Answer a challenge, in the form in which it was asked."""
    digest = _get_digest_name_and_payload(message)[0]
    if not digest:
        try:
            return _hmac(authkey, message, "md5")
        except ValueError:  # no MD5 here (FIPS): the other side may know better ones
            digest = "sha256"
    return b"{%s}" % digest.encode("ascii") + _hmac(authkey, message, digest)


def _verify_challenge(authkey: bytes, message: bytes, response: bytes) -> None:
    """Raise `AuthenticationError` unless `response` answers the challenge `message`."""
    import hmac

    digest, answer = _get_digest_name_and_payload(response)
    digest = digest or "md5"
    try:
        expected = _hmac(authkey, message, digest)
    except ValueError:
        raise AuthenticationError(f"the digest {digest!r} is not supported here") from None
    if len(expected) != len(answer):
        raise AuthenticationError(
            f"expected {digest!r} of length {len(expected)}, got {len(answer)}"
        )
    if not hmac.compare_digest(expected, answer):
        raise AuthenticationError("digest received was wrong")


def deliver_challenge(connection: Any, authkey: bytes, digest_name: str = "sha256") -> None:
    """Ask the other end to prove that it knows the key, and tell it whether it did."""
    _check_key_of_challenge(authkey)
    message = b"{%s}" % digest_name.encode("ascii") + os.urandom(MESSAGE_LENGTH)
    connection.send_bytes(_CHALLENGE + message)
    response = connection.recv_bytes(_LONGEST_ANSWER)
    try:
        _verify_challenge(authkey, message, response)
    except AuthenticationError:
        connection.send_bytes(_FAILURE)
        raise
    connection.send_bytes(_WELCOME)


def answer_challenge(connection: Any, authkey: bytes) -> None:
    """Prove to the other end that this one knows the key."""
    _check_key_of_challenge(authkey)
    message = connection.recv_bytes(_LONGEST_ANSWER)
    if not message.startswith(_CHALLENGE):
        raise AuthenticationError(
            f"expected a challenge, got {message!r}: the other end does not authenticate"
        )
    message = message[len(_CHALLENGE) :]
    if len(message) < _MD5ONLY_MESSAGE_LENGTH:
        raise AuthenticationError(f"challenge too short: {len(message)} bytes")
    connection.send_bytes(_create_response(authkey, message))
    if connection.recv_bytes(_LONGEST_ANSWER) != _WELCOME:
        raise AuthenticationError("digest sent was rejected")


def _check_key_of_challenge(authkey: object) -> None:
    if not isinstance(authkey, bytes):
        raise ValueError(f"Authkey must be bytes, not {type(authkey)!s}")


# How long the other end may take for one step of the handshake. Only a program that does not
# authenticate takes longer than a moment, and the two would wait for each other for ever.
_PATIENCE = 10.0


class _Impatient:
    """A connection whose `recv_bytes` gives up after a while, also in the middle of a message."""

    def __init__(self, conn: Any, complaint: str, may_wait: Callable[[], bool]) -> None:
        self._conn = conn
        self._complaint = complaint
        self._may_wait = may_wait
        self.send_bytes = conn.send_bytes

    def recv_bytes(self, maxlength: int) -> bytes:
        limit = time.monotonic() + _PATIENCE
        while not self._conn.poll(max(1.0, limit - time.monotonic())):
            if time.monotonic() >= limit and not self._may_wait():
                raise AuthenticationError(self._complaint)
        # Not by the connection, which would wait for the rest of the message for ever.
        limit = time.monotonic() + _PATIENCE
        size = int.from_bytes(self._read(4, limit), "big", signed=True)
        if not 0 <= size <= maxlength:
            raise OSError("bad message length")
        return self._read(size, limit)

    def _read(self, size: int, limit: float) -> bytes:
        data = b""
        while len(data) < size:
            if not self._conn.poll(max(0.0, limit - time.monotonic())):
                raise AuthenticationError(self._complaint)
            part = os.read(self._conn.fileno(), size - len(data))
            if not part:
                raise EOFError
            data += part
        return data


def authenticate_client(conn: Any, authkey: bytes) -> None:
    """The listener's side of the handshake."""
    patient = _Impatient(
        conn,
        f"the client did not answer the challenge within {_PATIENCE:g} s: has it no authkey?",
        lambda: False,
    )
    deliver_challenge(patient, authkey)
    answer_challenge(patient, authkey)


def authenticate_to_listener(conn: Any, authkey: bytes, address: Address) -> None:
    """The client's side of the handshake."""
    patient = _Impatient(
        conn,
        f"the listener at {address!r} sent no challenge within {_PATIENCE:g} s: has it no authkey?",
        lambda: _is_unaccepted(conn.fileno(), address),
    )
    answer_challenge(patient, authkey)
    deliver_challenge(patient, authkey)


def _is_unaccepted(fd: int, address: Address) -> bool:
    """Whether the connection may still wait for the listener to call `accept()`.

    A listener may be busy with another client for hours, and that is no reason to give up. The
    kernel's tables show a connection that nobody has accepted yet as one without an inode. A
    listener on another machine is not in them, and gets the benefit of the doubt.
    """
    import socket

    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family == socket.AF_UNIX:
                name = os.fsdecode(address).replace("\0", "@")
                rows = _rows("/proc/net/unix")
                return any(row[6] == "0" and " ".join(row[7:]) == name for row in rows)
            ours, theirs = sock.getsockname()[1], sock.getpeername()[1]
        rows = _rows("/proc/net/tcp") + _rows("/proc/net/tcp6")
        ports = f"{theirs:04X}", f"{ours:04X}"
        peers = [row for row in rows if (row[1][-4:], row[2][-4:]) == ports]
        return not peers or any(row[9] == "0" for row in peers)
    except OSError:
        return True


def _rows(table: str) -> list[list[str]]:
    with open(table, encoding="utf-8", errors="surrogateescape") as file:
        return [line.split() for line in file][1:]


# Other serializers ---------------------------------------------------------------------------


class ConnectionWrapper:
    """A connection whose objects are serialized by other functions than pickle's."""

    def __init__(
        self, conn: Any, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]
    ) -> None:
        self._conn = conn
        self._dumps = dumps
        self._loads = loads
        self.fileno = conn.fileno
        self.close = conn.close
        self.poll = conn.poll
        self.recv_bytes = conn.recv_bytes
        self.send_bytes = conn.send_bytes
        self._is_amid = conn._is_amid

    def send(self, obj: Any) -> None:
        self._conn.send_bytes(self._dumps(obj))

    def recv(self) -> Any:
        return self._loads(self._conn.recv_bytes())

    def __enter__(self) -> ConnectionWrapper:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _xml_dumps(obj: Any) -> bytes:
    import xmlrpc.client

    return xmlrpc.client.dumps((obj,), allow_none=True).encode("utf-8")


def _xml_loads(data: bytes) -> Any:
    import xmlrpc.client

    (obj,), _method = xmlrpc.client.loads(data.decode("utf-8"))
    return obj


class XmlListener(Listener):
    """A listener whose connections serialize by XML-RPC's rules instead of pickle's."""

    def accept(self) -> ConnectionWrapper:  # type: ignore[override]
        return ConnectionWrapper(super().accept(), _xml_dumps, _xml_loads)


def XmlClient(*args: Any, **kwds: Any) -> ConnectionWrapper:
    """`Client`, with a connection that serializes by XML-RPC's rules."""
    return ConnectionWrapper(Client(*args, **kwds), _xml_dumps, _xml_loads)
