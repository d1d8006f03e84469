"""Proxies: objects that stand for one in a manager's server."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from .. import process, util
from .._phalanx import pickle_shared
from ..context import get_spawning_popen
from .clients import current, is_hung_up
from .primitive import ForServer, attach
from .protocol import Token, convert_to_error, dispatch, listener_client
from .sessions import Kind, Watch, gone, retire_session, revive_session, session_of

__all__ = [
    "AutoProxy",
    "BaseProxy",
    "MakeProxyType",
    "ProcessLocalSet",
    "RebuildProxy",
    "plain",
    "proxy_types",
]

# The proxy type of each typeid registered in this process with any manager: for proxies that have
# travelled, and have no manager any more to ask.
proxy_types: dict[str, Any] = {}


class ProcessLocalSet(set[str]):
    """A set that is empty in a forked child; what was added twice has to be discarded twice."""

    def __init__(self) -> None:
        self._more: Counter[str] = Counter()
        util.register_after_fork(self, ProcessLocalSet.clear)

    def add(self, ident: str) -> None:
        if ident in self:
            self._more[ident] += 1
        super().add(ident)

    def discard(self, ident: Any) -> None:
        if self._more[ident] > 0:
            self._more[ident] -= 1
        else:
            super().discard(ident)
            del self._more[ident]

    def clear(self) -> None:
        super().clear()
        self._more.clear()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class BaseProxy:
    """Stands for an object in a manager's server, which lives as long as a proxy does.

    A proxy can be sent to other processes, and stored in other shared objects. Its methods raise
    what the object's methods raise; `EOFError` or a `ConnectionError` when the server is gone.
    """

    # By address: the connections of threads, and the idents of objects referred to.
    _address_to_local: dict[Any, tuple[util.ForkAwareLocal, ProcessLocalSet]] = {}
    _mutex = util.ForkAwareThreadLock()

    _exposed_: tuple[str, ...]
    _manager: Any
    _authkey: bytes
    # The process for which the server has counted a reference for this proxy.
    _referring_pid: int | None = None
    # An object of this process for the same thing in the arena: what it can do needs no server.
    _direct: Any = None

    def __init__(
        self,
        token: Token,
        serializer: str,
        manager: Any = None,
        authkey: bytes | None = None,
        exposed: Iterable[str] | None = None,
        incref: bool = True,
        manager_owned: bool = False,
    ) -> None:
        with BaseProxy._mutex:
            local = BaseProxy._address_to_local.get(token.address)
            if local is None:
                local = util.ForkAwareLocal(), ProcessLocalSet()
                BaseProxy._address_to_local[token.address] = local
        # The connection of the current thread to the server.
        self._tls = local[0]
        # The objects there that proxies of this process refer to.
        self._idset = local[1]

        self._token = token
        self._id = token.id
        self._manager = manager
        self._serializer = serializer
        self._Client = listener_client[serializer][1]
        # Whether the proxy is in the object's own server.
        self._owned_by_manager = manager_owned

        if authkey is not None:
            self._authkey = process.AuthenticationString(authkey)
        elif manager is not None:
            self._authkey = manager._authkey
        else:
            self._authkey = session_of(token.address, serializer).authkey

        if incref:
            self._incref()
        util.register_after_fork(self, BaseProxy._after_fork)

    def _connect(self) -> Any:
        name = process.current_process().name
        thread = threading.current_thread()
        if thread is not threading.main_thread():
            name += "|" + thread.name
        session = session_of(self._token.address, self._serializer, self._authkey)
        conn, kind = session.connect(f"{thread.ident}", name)
        self._tls.connection = conn
        self._tls.is_pipe = kind is Kind.PIPE
        self._tls.pid = os.getpid()
        return conn

    def _callmethod(self, methodname: str, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006
        """Call a method of the object, and return a copy of its result (or a proxy for it)."""
        direct = self._direct
        if direct is not None and methodname in direct._methods:
            try:
                return getattr(direct, methodname)(*args, **kwds)
            except ForServer as request:
                if request.args:
                    methodname, *args = request.args
                    kwds = {}
        tls = self._tls
        try:
            conn = tls.connection
            if tls.pid != os.getpid():  # forked by other means than ours
                conn = self._connect()
        except AttributeError:
            conn = self._connect()
        try:
            if kwds or not tls.is_pipe:
                conn.send((self._id, methodname, args, kwds))
            else:
                conn.send((self._id, methodname, args))
        except BaseException as error:
            # An argument that cannot be pickled does no harm: nothing was sent.
            if not isinstance(error, Exception) or isinstance(error, OSError) or conn._is_amid():
                self._give_up(conn, methodname, error)
            raise
        try:
            kind, result = conn.recv()
        except BaseException as error:
            # Interrupted, perhaps: then the answer will come all the same, and it must not be taken
            # for that to the next request.
            self._give_up(conn, methodname, error)
            raise
        if kind == "#RETURN":
            return result
        if kind == "#PROXY":
            return self._proxy_for(*result)
        try:
            raise convert_to_error(kind, result)
        finally:
            del result  # or the exception and this frame keep each other alive

    def _give_up(self, conn: Any, methodname: str, error: BaseException) -> None:
        """Close a connection, and say so if that is because the server is gone."""
        lost = isinstance(error, (EOFError, OSError)) and is_hung_up(conn)
        conn.close()
        if getattr(self._tls, "connection", None) is conn:
            del self._tls.connection
        if lost:
            raise gone(error, self._token, methodname) from None

    def _proxy_for(self, exposed: tuple[str, ...], token: Token) -> Any:
        """Return a proxy for a result that has stayed in the server."""
        registry = self._manager._registry if self._manager is not None else {}
        entry = registry.get(token.typeid)
        make = entry[-1] if entry else proxy_types.get(token.typeid, AutoProxy)
        token.address = self._token.address
        proxy = make(
            token, self._serializer, manager=self._manager, authkey=self._authkey, exposed=exposed
        )
        # The server has counted a reference for the result itself.
        session_of(token.address, self._serializer, self._authkey).call("decref", token.id)
        return proxy

    def _getvalue(self) -> Any:
        """Return a copy of the object."""
        return self._callmethod("#GETVALUE")

    def _incref(self) -> None:
        if self._owned_by_manager:
            server = process.current_process()._manager_server  # type: ignore[attr-defined]
            server.hold_locally(self._id)
            self._close = util.Finalize(self, server.drop_locally, args=(self._id,))
            return
        revive_session(self._token.address)
        if self._referring_pid != os.getpid():
            self._direct = None
            session = session_of(self._token.address, self._serializer, self._authkey)
            shared = session.call("incref", self._id)
            self._referring_pid = os.getpid()
            if isinstance(shared, tuple):
                self._direct = attach(shared, Watch(session, self._token))
        self._idset.add(self._id)
        state = self._manager and self._manager._state
        self._close = util.Finalize(
            self,
            BaseProxy._decref,
            args=(self._token, self._authkey, state, self._tls, self._idset, self._serializer),
            exitpriority=10,
        )

    @staticmethod
    def _decref(
        token: Token,
        authkey: bytes,
        state: Any,
        tls: util.ForkAwareLocal,
        idset: ProcessLocalSet,
        serializer: str,
    ) -> None:
        idset.discard(token.id)
        if state is None or state.value == state.STARTED:
            try:
                session_of(token.address, serializer, authkey).call_later("decref", token.id)
            except Exception as error:
                util.debug("... decref failed %s", error)
        else:
            util.debug("DECREF %r -- manager already shutdown", token.id)
        if not idset:
            retire_session(token.address, tls)

    def _after_fork(self) -> None:
        self._manager = None
        # A child of the server is a client like any other.
        self._owned_by_manager = False
        try:
            self._incref()
        except Exception as error:
            # The manager may have been shut down.
            util.info("incref failed: %s", error)

    def __reduce__(self) -> tuple[Any, ...]:
        pickle_shared()
        if self._owned_by_manager:
            # It may be on its way out of the only object that refers to it.
            current().keep(self)
        kwds: dict[str, Any] = {}
        if get_spawning_popen() is not None:
            kwds["authkey"] = self._authkey
        if getattr(self, "_isauto", False):
            kwds["exposed"] = self._exposed_
            return RebuildProxy, (AutoProxy, self._token, self._serializer, kwds)
        return RebuildProxy, (type(self), self._token, self._serializer, kwds)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._getvalue()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} object, typeid {self._token.typeid!r} at {id(self):#x}>"

    def __str__(self) -> str:
        """The object's own representation, or the proxy's if there is none to be had."""
        try:
            text: str = self._callmethod("__repr__")
            return text
        except Exception:
            return repr(self)[:-1] + "; '__str__()' failed>"


def plain(value: Any) -> Any:
    """Return the object itself if `value` is a proxy: a copy of it."""
    return value._getvalue() if isinstance(value, BaseProxy) else value


def RebuildProxy(func: Any, token: Token, serializer: str, kwds: dict[str, Any]) -> Any:
    """Unpickle a proxy."""
    me = process.current_process()
    server = getattr(me, "_manager_server", None)
    if server is not None and server.address == token.address:
        kwds["manager_owned"] = True
    if not getattr(me, "_inheriting", False):
        return func(token, serializer, incref=kwds.pop("incref", True), **kwds)
    # A child that is being started, which a manager that is gone must not keep from starting.
    kwds["incref"] = False
    proxy = func(token, serializer, **kwds)
    if isinstance(proxy, BaseProxy):
        try:
            proxy._incref()
        except Exception as error:
            util.info("incref failed: %s", error)
    return proxy


def _method(name: str) -> Callable[..., Any]:
    def method(self: BaseProxy, /, *args: Any, **kwds: Any) -> Any:
        return self._callmethod(name, args, kwds)

    method.__name__ = method.__qualname__ = name
    return method


def MakeProxyType(
    name: str,
    exposed: Iterable[str],
    _cache: dict[Any, type[BaseProxy]] = {},  # noqa: B006
) -> Any:
    """Return a proxy type with the methods named in `exposed`."""
    exposed = tuple(exposed)
    try:
        return _cache[name, exposed]
    except KeyError:
        pass
    members: dict[str, Any] = {method: _method(method) for method in exposed}
    members["_exposed_"] = exposed
    # Like a class statement's: classes are pickled by their module's name.
    members["__module__"] = sys._getframe(1).f_globals.get("__name__", __name__)
    proxy_type = type(name, (BaseProxy,), members)
    _cache[name, exposed] = proxy_type
    return proxy_type


def AutoProxy(
    token: Token,
    serializer: str,
    manager: Any = None,
    authkey: bytes | None = None,
    exposed: Iterable[str] | None = None,
    incref: bool = True,
    manager_owned: bool = False,
) -> Any:
    """Return a proxy with all the public methods of its object."""
    if authkey is None and manager is not None:
        authkey = manager._authkey
    if exposed is None:
        conn = listener_client[serializer][1](
            token.address, authkey=session_of(token.address, serializer, authkey).authkey
        )
        try:
            exposed = dispatch(conn, None, "get_methods", (token,))
        finally:
            conn.close()
    proxy_type = MakeProxyType(f"AutoProxy[{token.typeid}]", exposed)
    proxy = proxy_type(
        token,
        serializer,
        manager=manager,
        authkey=authkey,
        incref=incref,
        manager_owned=manager_owned,
    )
    proxy._isauto = True
    return proxy
