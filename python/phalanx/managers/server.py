"""The server of a manager: the objects, who refers to them, and the threads that serve clients."""

from __future__ import annotations

import itertools
import os
import re
import sys
import threading
import time
from traceback import format_exc
from typing import Any

from .. import _phalanx, connection, process, queues, reduction, util
from .clients import Client, ClientGone, Session, current, serve
from .objects import unget
from .primitive import Primitive
from .protocol import ANSWERS_ITSELF, Token, listener_client, public_methods

__all__ = ["Server"]

# What a client of this package appends to its name: its process, its thread, and its family.
_IDENTITY = re.compile(
    r"(?P<name>.*)@(?P<session>[0-9a-f]{32})\.(?P<thread>\d+)(\.(?P<family>[0-9a-f]+))?", re.DOTALL
)

_NO_KWDS: dict[str, Any] = {}

# Methods whose result is lost if nobody gets it.
_TAKING = frozenset({"get", "get_nowait"})


def _is_ours(family: str | None) -> bool:
    return family is not None and _phalanx.has_arena() and int(family, 16) == _phalanx.family()


def _listen(listener: Any, address: Any) -> Any:
    if not address:
        try:
            return listener(address=connection.abstract_address(), backlog=128)
        except OSError:
            pass  # not allowed here: a path will do
    return listener(address=address, backlog=128)


_Entry = tuple[Any, Any, Any]  # the object, the names of its methods, the types of their results


class Server:
    """Serves the objects of a manager, each client's thread by a thread of its own.

    An object stays as long as a proxy refers to it: one in a client, or one that is itself stored
    in an object of this server.
    """

    public = [
        "shutdown",
        "create",
        "accept_connection",
        "get_methods",
        "debug_info",
        "number_of_objects",
        "dummy",
        "incref",
        "decref",
        "leave",
    ]

    def __init__(
        self, registry: dict[str, Any], address: Any, authkey: bytes, serializer: str
    ) -> None:
        if not isinstance(authkey, bytes):
            raise TypeError(f"Authkey {authkey!r} is type {type(authkey)!s}, not bytes")
        self.registry = registry
        self.authkey = process.AuthenticationString(authkey)
        # Clients are authenticated by the threads that serve them, so that a slow one delays none.
        self.listener = _listen(listener_client[serializer][0], address)
        self.address = self.listener.address

        self.id_to_obj: dict[str, _Entry] = {"0": (None, (), None)}
        # How many proxies outside of the server refer to an object. No entry: none.
        self.id_to_refcount: dict[str, int] = {}
        # Objects that proxies inside of the server refer to, and how many.
        self.id_to_local_proxy_obj: dict[str, _Entry] = {}
        self._local_refcount: dict[str, int] = {}
        self._idents: dict[int, str] = {}  # by id() of the object
        # Not from 1: proxies of another server at the same address must not mean objects of this.
        self._next_ident = itertools.count(int.from_bytes(os.urandom(6), "big"))
        # Reentrant, since anything may be collected anywhere, and a collected proxy comes here.
        self.mutex = threading.RLock()
        self._sessions: dict[str, Session] = {}
        self.stop_event = threading.Event()

    # Running ---------------------------------------------------------------------------------

    def serve_forever(self) -> None:
        """Serve until `shutdown` is asked for, and exit."""
        process.current_process()._manager_server = self  # type: ignore[attr-defined]
        try:
            threading.Thread(target=self.accepter, daemon=True).start()
            try:
                self.stop_event.wait()
            except (KeyboardInterrupt, SystemExit):
                pass
        finally:
            if sys.stdout is not sys.__stdout__:
                util.debug("resetting stdout, stderr")
                sys.stdout = sys.__stdout__
                sys.stderr = sys.__stderr__
            sys.exit(0)

    def accepter(self) -> None:
        """Accept connections, and start a thread for each."""
        while True:
            try:
                conn = self.listener.accept()
            except OSError as error:
                if self.listener._listener is None:
                    return
                util.info("the manager cannot accept a connection: %s", error)
                time.sleep(0.05)  # out of descriptors, most likely: some may be closed soon
                continue
            threading.Thread(target=self.handle_request, args=(conn,), daemon=True).start()

    def handle_request(self, conn: Any) -> None:
        """Serve a new connection."""
        try:
            self._handle_request(conn)
        except (SystemExit, ClientGone):
            pass
        finally:
            conn.close()

    def _handle_request(self, conn: Any) -> None:
        request = None
        try:
            connection.authenticate_client(conn, self.authkey)
            request = conn.recv()
            message = self._answer(conn, request)
        except EOFError:
            return
        except Exception:
            message = ("#TRACEBACK", format_exc())
        if message is None:
            return
        try:
            conn.send(message)
        except Exception as error:
            try:
                conn.send(("#TRACEBACK", format_exc()))
            except Exception:
                pass
            util.info("Failure to send message: %r", message)
            util.info(" ... request was %r", request)
            util.info(" ... exception was %r", error)

    def _answer(self, conn: Any, request: Any) -> tuple[str, Any] | None:
        """Do a request to the server itself."""
        _nobody, function, args, kwds = request
        if function not in self.public:
            return "#TRACEBACK", f"the manager's server has no function {function!r}\n"
        try:
            result = getattr(self, function)(conn, *args, **kwds)
        except Exception:
            return "#TRACEBACK", format_exc()
        if function in ("accept_connection", "shutdown"):
            return None  # these have sent their answers themselves
        return "#RETURN", result

    def accept_connection(self, c: Any, name: str) -> None:
        """Serve requests to objects from a thread of a client until it closes the connection."""
        identity = _IDENTITY.fullmatch(name)
        if identity is None:
            session, thread = Session(), ""
        else:
            name, thread = identity["name"], identity["thread"]
            session = self._join_session(identity["session"])
        threading.current_thread().name = name
        client: Client | None = None
        is_member = False
        try:
            if identity is None:
                c.send(("#RETURN", None))
            else:
                socket = c
                c = self._answer_member(c, identity["family"])
                is_member = c is not socket
            client = Client(c, session, thread)
            client.is_member = is_member
            serve(client)
            self.serve_client(c)
        finally:
            serve(None)
            if client is not None:
                client.let_go()
            c.close()
            self._leave_session(session)

    def _answer_member(self, c: Any, family: str | None) -> Any:
        """Accept a client of this package; one of this family over a pipe, which is faster."""
        try:
            pipe = connection.Pipe() if _is_ours(family) else None
        except MemoryError:
            pipe = None  # the arena is full: the socket will do
        if pipe is None:
            c.send(("#RETURN", ANSWERS_ITSELF))
            return c
        ours, theirs = pipe
        with theirs:
            c.send(("#RETURN", theirs._share(True)))
            reduction.send_handle(c, theirs._socket(), None)
            c.recv_bytes()  # it has arrived
        c.close()
        return ours

    def serve_client(self, conn: Any) -> None:
        """Answer requests to objects."""
        util.debug("starting server thread to service %r", threading.current_thread().name)
        client = current()
        while not self.stop_event.is_set():
            obj = methodname = None
            try:
                request = conn.recv()
            except (EOFError, ConnectionError):
                util.debug("got EOF: %r has gone", threading.current_thread().name)
                return
            except Exception:
                message: Any = ("#TRACEBACK", format_exc())
            else:
                client.let_go()
                message, obj, methodname = self._do(conn, request)
                del request
            if message is not None and not self._send(conn, message, obj, methodname):
                return
            # Nothing of this request is kept alive until the next one comes.
            del message, obj

    def _do(self, conn: Any, request: Any) -> tuple[Any, Any, Any]:
        """Do a request; return the answer, and the object and method that were meant."""
        obj = methodname = None
        try:
            if len(request) == 3:
                (ident, methodname, args), kwds = request, _NO_KWDS
            else:
                ident, methodname, args, kwds = request
            if ident is None:
                return self._answer(conn, request), None, None
            obj, exposed, result_types = self._find(ident)
            if methodname == "#FETCH":
                # The item that a number has stood for: the client has taken that itself.
                try:
                    item = obj._fetch(*args)
                except queues.ShutDown as error:
                    return ("#ERROR", error), None, None
                current().keep(item)
                return ("#RETURN", item), obj, "get"
            if methodname not in exposed:
                return (
                    self._fall_back(conn, ident, obj, exposed, methodname, args, kwds),
                    None,
                    None,
                )
            function = getattr(obj, methodname)
        except Exception:
            return ("#TRACEBACK", format_exc()), None, None
        try:
            if isinstance(obj, Primitive):
                result = current().perform(obj, methodname, args, kwds)
            else:
                result = function(*args, **kwds)
        except Exception as error:
            return ("#ERROR", error), None, None
        typeid = result_types and result_types.get(methodname)
        if not typeid:
            return ("#RETURN", result), obj, methodname
        try:
            ident, names = self.create(conn, typeid, result)
        except Exception:
            return ("#TRACEBACK", format_exc()), None, None
        return ("#PROXY", (names, Token(typeid, self.address, ident))), None, None

    def _send(self, conn: Any, message: Any, obj: Any, methodname: str | None) -> bool:
        """Send an answer, whatever it takes; return whether it is worth going on."""
        taken = methodname in _TAKING and message[0] == "#RETURN"
        if taken and current().is_gone():
            unget(obj, message[1])
            return False
        try:
            try:
                conn.send(message)
            except OSError:
                raise
            except Exception:
                if taken:
                    unget(obj, message[1])
                conn.send(("#UNSERIALIZABLE", format_exc()))
        except Exception as error:
            if taken:
                unget(obj, message[1])
            util.info("exception in thread serving %r", threading.current_thread().name)
            util.info(" ... message was %r", message)
            util.info(" ... exception was %r", error)
            return False
        return True

    # What any object can be asked, though its type does not say so ----------------------------

    def fallback_getvalue(self, conn: Any, ident: str, obj: Any) -> Any:
        return obj

    def fallback_str(self, conn: Any, ident: str, obj: Any) -> str:
        return str(obj)

    def fallback_repr(self, conn: Any, ident: str, obj: Any) -> str:
        return repr(obj)

    fallback_mapping = {
        "__str__": fallback_str,
        "__repr__": fallback_repr,
        "#GETVALUE": fallback_getvalue,
    }

    def _fall_back(
        self, conn: Any, ident: str, obj: Any, exposed: Any, name: str, args: Any, kwds: Any
    ) -> tuple[str, Any]:
        fallback: Any = self.fallback_mapping.get(name)
        if fallback is None:
            raise AttributeError(
                f"method {name!r} of {type(obj)!r} object is not in exposed={sorted(exposed)!r}"
            )
        return "#RETURN", fallback(self, conn, ident, obj, *args, **kwds)

    # Objects ---------------------------------------------------------------------------------

    def create(
        self, c: Any, typeid: str, /, *args: Any, **kwds: Any
    ) -> tuple[str, tuple[str, ...]]:
        """Create an object of a registered type; return its ident and its methods' names.

        The caller has a reference to it.
        """
        callable, exposed, method_to_typeid, _proxytype = self.registry[typeid]
        if callable is None:
            if kwds or len(args) != 1:
                raise ValueError("Without callable, must have one non-keyword argument")
            obj = args[0]
        else:
            obj = callable(*args, **kwds)
        if exposed is None:
            exposed = public_methods(obj)
        if method_to_typeid is not None:
            if not isinstance(method_to_typeid, dict):
                raise TypeError(
                    f"Method_to_typeid {method_to_typeid!r}: type {type(method_to_typeid)!s},"
                    " not dict"
                )
            exposed = list(exposed) + list(method_to_typeid)
        with self.mutex:
            # One object has one ident, however often it is "created": callables may return what
            # they returned before. An ident is never used again, unlike an address in memory.
            ident = self._idents.get(id(obj))
            if ident is None:
                ident = self._idents[id(obj)] = f"{next(self._next_ident):x}"
            self.id_to_obj[ident] = obj, set(exposed), method_to_typeid
            self.incref(c, ident)
        util.debug("%r callable returned object with id %r", typeid, ident)
        return ident, tuple(exposed)

    def _find(self, ident: str) -> _Entry:
        try:
            return self.id_to_obj[ident]
        except KeyError:
            raise KeyError(
                f"the manager at {self.address!r} has no object {ident!r} (any more): an object"
                " lives as long as a proxy that refers to it"
            ) from None

    def incref(self, c: Any, ident: str) -> tuple[Any, ...] | None:
        """Count one more proxy that refers to an object.

        What a client of this family can do with the object itself, without requests, it is told.
        """
        with self.mutex:
            obj, exposed, _result_types = self._find(ident)
            self.id_to_refcount[ident] = self.id_to_refcount.get(ident, 0) + 1
            session = self._session_of(c)
            if session is not None:
                session.references[ident] += 1
        direct = isinstance(obj, Primitive) and current().is_member and obj._methods <= exposed
        return obj._share() if direct else None

    def decref(self, c: Any, ident: str) -> None:
        """Count one proxy less; the last one takes the object with it."""
        session = self._session_of(c)
        if session is not None and session.references[ident] > 0:
            session.references[ident] -= 1
        self._drop(ident, 1)

    def _drop(self, ident: str, count: int) -> None:
        with self.mutex:
            left = self.id_to_refcount.get(ident, 0) - count
            if left < 0:
                raise AssertionError(f"Id {ident!s} has refcount {left + count}, not {count}+")
            if left:
                self.id_to_refcount[ident] = left
                return
            del self.id_to_refcount[ident]
            entry = self._dispose(ident)
        # The object may go here, and proxies in it, which come here in turn.
        del entry

    def _dispose(self, ident: str) -> _Entry | None:
        """Forget an object that nothing refers to. Called under the mutex."""
        if ident in self.id_to_refcount or ident in self._local_refcount:
            return None
        util.debug("disposing of obj with id %r", ident)
        self.id_to_local_proxy_obj.pop(ident, None)
        entry = self.id_to_obj.pop(ident)
        self._idents.pop(id(entry[0]), None)
        return entry

    def hold_locally(self, ident: str) -> None:
        """Count one more proxy inside of this server."""
        with self.mutex:
            self.id_to_local_proxy_obj[ident] = self._find(ident)
            self._local_refcount[ident] = self._local_refcount.get(ident, 0) + 1

    def drop_locally(self, ident: str) -> None:
        """Count one proxy inside of this server less."""
        with self.mutex:
            self._local_refcount[ident] -= 1
            if self._local_refcount[ident]:
                return
            del self._local_refcount[ident]
            entry = self._dispose(ident)
        del entry

    def get_methods(self, c: Any, token: Token) -> tuple[str, ...]:
        """Return the names of an object's methods."""
        return tuple(self._find(token.id)[1])

    # Sessions --------------------------------------------------------------------------------

    def _session_of(self, c: Any) -> Session | None:
        client = current()
        return client.session if client.connection is c and client.session.name else None

    def _join_session(self, name: str) -> Session:
        with self.mutex:
            session = self._sessions.setdefault(name, Session(name))
            session.connections += 1
            session.has_left = False
            return session

    def leave(self, c: Any, member: int | None = None) -> None:
        """A process has no more business here: what it holds is left as it is.

        If it is of this family, it says which member it is.
        """
        session = self._session_of(c)
        if session is not None:
            session.has_left = True
            if member is not None:
                self._inherit(member)

    def _inherit(self, member: int) -> None:
        """Take over the locks that a process leaves locked, so that nobody takes it for killed."""
        with self.mutex:
            entries = list(self.id_to_obj.values())
        for obj, _exposed, _result_types in entries:
            if isinstance(obj, Primitive):
                obj._inherit(member)

    def _leave_session(self, session: Session) -> None:
        """One connection of a process less; with the last one, what it held comes back."""
        if session.name is None:
            return
        with self.mutex:
            session.connections -= 1
            if session.connections:
                return
            del self._sessions[session.name]
        session.close(self._inherit)
        for ident, count in session.references.items():
            if count:
                self._drop(ident, count)

    # Questions to the server ------------------------------------------------------------------

    def dummy(self, c: Any) -> None:
        """Do nothing: a client wants to know whether the server answers."""

    def debug_info(self, c: Any) -> str:
        """Return a text about all objects."""
        with self.mutex:
            return "\n".join(
                f"  {ident}:       refcount={self.id_to_refcount[ident]}\n"
                f"    {str(self.id_to_obj[ident][0])[:75]}"
                for ident in sorted(self.id_to_refcount)
            )

    def number_of_objects(self, c: Any) -> int:
        """Return how many objects have proxies outside of the server."""
        return len(self.id_to_refcount)

    def shutdown(self, c: Any) -> None:
        """End the server's process."""
        try:
            util.debug("manager received shutdown message")
            c.send(("#RETURN", None))
        finally:
            self.stop_event.set()
