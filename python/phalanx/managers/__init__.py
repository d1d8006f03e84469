"""Managers: server processes that hold objects, for others to use through proxies.

    with Manager() as manager:
        words = manager.Counter()
        ...                           # give it to processes, and let them update it
        words.most_common(10)

A manager can also serve other machines, with an address and a key, and talks to managers and
proxies of the standard library in either direction. What a client held is given back when it dies.
When the server dies, its clients get an `EOFError` or a `ConnectionError` that says so.
"""

# ruff: noqa: F401 (whoever knows the standard library looks for these names here)

from __future__ import annotations

import array
import collections
import os
import signal
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .. import connection, get_context, process, util
from ..context import ProcessError
from ..reduction import register as _register_reducer
from . import locks, sessions
from .objects import Array, ManagedCounter, Namespace, Value
from .protocol import (
    RemoteError,
    Token,
    all_methods,
    convert_to_error,
    dispatch,
    listener_client,
    public_methods,
)
from .proxies import (
    AutoProxy,
    BaseProxy,
    MakeProxyType,
    ProcessLocalSet,
    RebuildProxy,
    proxy_types,
)
from .queues import Queue
from .server import Server
from .types import AcquirerProxy as AcquirerProxy
from .types import ArrayProxy as ArrayProxy
from .types import BarrierProxy as BarrierProxy
from .types import BaseListProxy as BaseListProxy
from .types import BasePoolProxy as BasePoolProxy
from .types import ConditionProxy as ConditionProxy
from .types import CounterProxy as CounterProxy
from .types import DefaultDictProxy as DefaultDictProxy
from .types import DequeProxy as DequeProxy
from .types import DictProxy as DictProxy
from .types import EventProxy as EventProxy
from .types import IteratorProxy as IteratorProxy
from .types import ListProxy as ListProxy
from .types import NamespaceProxy as NamespaceProxy
from .types import OrderedDictProxy as OrderedDictProxy
from .types import PoolProxy as PoolProxy
from .types import SetProxy as SetProxy
from .types import ValueProxy as ValueProxy
from .types import _BaseDictProxy

if TYPE_CHECKING:
    from .. import shared_memory
    from ..context import BaseContext
    from ..pool import Pool
    from ._makers import Makers as _Makers
else:
    _Makers = object

__all__ = ["BaseManager", "BaseProxy", "SharedMemoryManager", "SyncManager", "Token"]

HAS_SHMEM = True


# Pickling -------------------------------------------------------------------------------------


def reduce_array(a: array.array[Any]) -> tuple[Any, ...]:
    return array.array, (a.typecode, a.tobytes())


def rebuild_as_list(obj: Any) -> tuple[Any, ...]:
    return list, (list(obj),)


_register_reducer(array.array, reduce_array)
for _mapping in (dict[Any, Any](), collections.OrderedDict[Any, Any]()):
    for _view in (_mapping.items(), _mapping.keys(), _mapping.values()):
        _register_reducer(type(_view), rebuild_as_list)
del _mapping, _view


# Managers -------------------------------------------------------------------------------------


class State:
    """How far a manager has got in its life."""

    __slots__ = ["value"]
    INITIAL = 0
    STARTED = 1
    SHUTDOWN = 2

    value: int


class BaseManager:
    """Starts a server process for objects of registered types, or connects to one.

    Each type that was registered is a method that makes an object in the server and returns a
    proxy for it.
    """

    _registry: dict[str, Any] = {}
    _Server = Server
    _process: Any = None

    shutdown: Callable[[], Any]

    def __init__(
        self,
        address: Any = None,
        authkey: bytes | None = None,
        serializer: str = "pickle",
        ctx: BaseContext | None = None,
        *,
        shutdown_timeout: float = 1.0,
    ) -> None:
        if authkey is None:
            authkey = process.current_process().authkey
        self._address = address
        self._authkey = process.AuthenticationString(authkey)
        self._state = State()
        self._state.value = State.INITIAL
        self._serializer = serializer
        self._Listener, self._Client = listener_client[serializer]
        self._ctx: Any = ctx or get_context()
        self._shutdown_timeout = shutdown_timeout

    def _expect_initial(self) -> None:
        if self._state.value == State.STARTED:
            raise ProcessError(f"Already started server: this {type(self).__name__} has one")
        if self._state.value == State.SHUTDOWN:
            raise ProcessError(f"Manager has shut down: make a new {type(self).__name__}")

    def get_server(self) -> Server:
        """Return a server with `serve_forever()` and `address`, to run in this process."""
        self._expect_initial()
        return self._Server(self._registry, self._address, self._authkey, self._serializer)

    def connect(self) -> None:
        """Connect to the server at the address that the manager was made with."""
        conn = self._Client(self._address, authkey=self._authkey)
        try:
            dispatch(conn, None, "dummy")
        finally:
            conn.close()
        self._state.value = State.STARTED

    def start(self, initializer: Callable[..., object] | None = None, initargs: Any = ()) -> None:
        """Start a server process; it ends with this one, if not before.

        `initializer(*initargs)` is called in it first.
        """
        self._expect_initial()
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        reader, writer = connection.Pipe(duplex=False)
        self._process = self._ctx.Process(
            target=type(self)._run_server,
            args=(
                self._registry,
                self._address,
                self._authkey,
                self._serializer,
                writer,
                initializer,
                initargs,
            ),
        )
        ident = ":".join(str(i) for i in self._process._identity)
        self._process.name = f"{type(self).__name__}-{ident}"
        self._process._follows_parent = self._process._holds_interrupt = True
        self._process.start()
        writer.close()
        self._address = self._wait_for_address(reader)
        reader.close()

        self._state.value = State.STARTED
        self.shutdown = util.Finalize(
            self,
            type(self)._finalize_manager,
            args=(
                self._process,
                self._address,
                self._authkey,
                self._state,
                self._Client,
                self._shutdown_timeout,
            ),
            exitpriority=0,
        )

    def _wait_for_address(self, reader: connection.Connection) -> Any:
        # The sentinel as well: another child, forked meanwhile, may have the pipe open, too.
        connection.wait([reader, self._process.sentinel])
        try:
            if reader.poll():
                return reader.recv()
        except EOFError:
            pass
        self._process.join()
        raise EOFError(
            f"the server process of {type(self).__name__} ended before it could serve, with exit"
            f" code {self._process.exitcode}"
        ) from self._process.exception()

    @classmethod
    def _run_server(
        cls,
        registry: dict[str, Any],
        address: Any,
        authkey: bytes,
        serializer: str,
        writer: connection.Connection,
        initializer: Callable[..., object] | None = None,
        initargs: Any = (),
    ) -> None:
        # Ctrl-C is for the program; it shuts its managers down itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        util.release_interrupt()
        if initializer is not None:
            initializer(*initargs)
        server = cls._Server(registry, address, authkey, serializer)
        writer.send(server.address)
        writer.close()
        util.info("manager serving at %r", server.address)
        server.serve_forever()

    def _session(self) -> sessions.Session:
        return sessions.session_of(self._address, self._serializer, self._authkey)

    def _create(self, typeid: str, /, *args: Any, **kwds: Any) -> tuple[Token, tuple[str, ...]]:
        """Make an object in the server; return its token and the names of its methods."""
        if self._state.value != State.STARTED:
            raise AssertionError(
                f"server not yet started: call start() or connect() of the {type(self).__name__}"
                if self._state.value == State.INITIAL
                else f"the {type(self).__name__} has been shut down"
            )
        ident, exposed = self._session().call("create", typeid, *args, **kwds)
        return Token(typeid, self._address, ident), exposed

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the server process, if this manager has started it."""
        if self._process is not None:
            self._process.join(timeout)
            if not self._process.is_alive():
                self._process = None

    def _debug_info(self) -> Any:
        return self._session().call("debug_info")

    def _number_of_objects(self) -> Any:
        return self._session().call("number_of_objects")

    def __enter__(self) -> Any:
        if self._state.value == State.INITIAL:
            self.start()
        if self._state.value != State.STARTED:
            self._expect_initial()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    @staticmethod
    def _finalize_manager(
        process: Any,
        address: Any,
        authkey: bytes,
        state: State,
        _Client: Any,
        shutdown_timeout: float,
    ) -> None:
        """Ask the server to end, and end it if it does not."""
        if process.is_alive():
            util.info("sending shutdown message to manager")
            try:
                conn = _Client(address, authkey=authkey)
                try:
                    dispatch(conn, None, "shutdown")
                finally:
                    conn.close()
            except Exception:
                pass
            process.join(timeout=shutdown_timeout)
            if process.is_alive():
                util.info("manager still alive: terminating it")
                process.terminate()
                process.join(timeout=shutdown_timeout)
                if process.is_alive():
                    util.info("manager still alive after terminate: killing it")
                    process.kill()
                    process.join()
        state.value = State.SHUTDOWN
        BaseProxy._address_to_local.pop(address, None)
        sessions.forget_session(address)

    @property
    def address(self) -> Any:
        """Where the server listens."""
        return self._address

    @classmethod
    def register(
        cls,
        typeid: str,
        callable: Callable[..., Any] | None = None,
        proxytype: Any = None,
        exposed: Any = None,
        method_to_typeid: dict[str, str] | None = None,
        create_method: bool = True,
    ) -> None:
        """Add a type.

        Args:
            typeid: its name, and that of the method that makes an object of it.
            callable: makes an object, in the server. Not needed for managers that only connect.
            proxytype: the class of its proxies; by default one with all public methods.
            exposed: the names of the methods that proxies may call.
            method_to_typeid: the types of results that stay in the server, by method.
            create_method: whether there shall be a method that makes an object.
        """
        if "_registry" not in cls.__dict__:
            cls._registry = cls._registry.copy()
        if proxytype is None:
            proxytype = AutoProxy
        exposed = exposed or getattr(proxytype, "_exposed_", None)
        method_to_typeid = method_to_typeid or getattr(proxytype, "_method_to_typeid_", None)
        for key, value in dict(method_to_typeid or {}).items():
            if not (isinstance(key, str) and isinstance(value, str)):
                raise AssertionError(
                    f"method_to_typeid maps names to names, not {key!r}: {value!r}"
                )
        cls._registry[typeid] = callable, exposed, method_to_typeid, proxytype
        proxy_types.setdefault(typeid, proxytype)
        if not create_method:
            return

        def make(self: BaseManager, /, *args: Any, **kwds: Any) -> Any:
            util.debug("requesting creation of a shared %r object", typeid)
            token, names = self._create(typeid, *args, **kwds)
            proxy = proxytype(
                token, self._serializer, manager=self, authkey=self._authkey, exposed=names
            )
            # The server has counted a reference for the creation itself.
            self._session().call("decref", token.id)
            return proxy

        make.__name__ = typeid
        make.__qualname__ = f"{cls.__qualname__}.{typeid}"
        setattr(cls, typeid, make)


class SyncManager(BaseManager, _Makers):
    """A manager of queues, locks and the like, of containers, and of values.

    `phalanx.Manager()` returns a started one.
    """


def _pool(*args: Any, **kwds: Any) -> Pool:
    from ..pool import Pool

    return Pool(*args, **kwds)


def Condition(lock: Any = None) -> locks.Condition:
    """Make a condition; a proxy stands for the lock that is in this same server."""
    server = getattr(process.current_process(), "_manager_server", None)
    if isinstance(lock, BaseProxy) and lock._owned_by_manager and server is not None:
        lock = server._find(lock._id)[0]
    return locks.Condition(lock)


SyncManager.register("Queue", Queue)
SyncManager.register("JoinableQueue", Queue)
SyncManager.register("Event", locks.Event, EventProxy)
SyncManager.register("Lock", locks.Lock, AcquirerProxy)
SyncManager.register("RLock", locks.RLock, AcquirerProxy)
SyncManager.register("Semaphore", locks.Semaphore, AcquirerProxy)
SyncManager.register("BoundedSemaphore", locks.BoundedSemaphore, AcquirerProxy)
SyncManager.register("Condition", Condition, ConditionProxy)
SyncManager.register("Barrier", locks.Barrier, BarrierProxy)
SyncManager.register("Pool", _pool, PoolProxy)
SyncManager.register("list", list, ListProxy)
SyncManager.register("dict", dict, DictProxy)
SyncManager.register("set", set, SetProxy)
SyncManager.register("Counter", ManagedCounter, CounterProxy)
SyncManager.register("OrderedDict", collections.OrderedDict, OrderedDictProxy)
SyncManager.register("defaultdict", collections.defaultdict, DefaultDictProxy)
SyncManager.register("deque", collections.deque, DequeProxy)
SyncManager.register("Value", Value, ValueProxy)
SyncManager.register("Array", Array, ArrayProxy)
SyncManager.register("Namespace", Namespace, NamespaceProxy)

# What methods of the above return.
SyncManager.register("Iterator", proxytype=IteratorProxy, create_method=False)
SyncManager.register("AsyncResult", create_method=False)


# Shared memory --------------------------------------------------------------------------------


class _SharedMemoryTracker:
    """The names of blocks of shared memory that are removed together."""

    def __init__(self, name: str, segment_names: list[str] | None = None) -> None:
        self.shared_memory_context_name = name
        self.segment_names = [] if segment_names is None else segment_names

    def register_segment(self, segment_name: str) -> None:
        util.debug("Register segment %r in pid %d", segment_name, os.getpid())
        self.segment_names.append(segment_name)

    def destroy_segment(self, segment_name: str) -> None:
        from ..shared_memory import SharedMemory

        util.debug("Destroy segment %r in pid %d", segment_name, os.getpid())
        self.segment_names.remove(segment_name)
        segment = SharedMemory(segment_name)
        segment.close()
        segment.unlink()

    def unlink(self) -> None:
        """Remove all blocks; those that are gone already do not matter."""
        for segment_name in self.segment_names[:]:
            try:
                self.destroy_segment(segment_name)
            except FileNotFoundError:
                pass

    def __del__(self) -> None:
        self.unlink()

    def __getstate__(self) -> tuple[str, list[str]]:
        return self.shared_memory_context_name, self.segment_names

    def __setstate__(self, state: tuple[str, list[str]]) -> None:
        self.shared_memory_context_name, self.segment_names = state


class SharedMemoryServer(Server):
    """A server that knows the blocks of shared memory it has to remove at its end."""

    public = [*Server.public, "track_segment", "release_segment", "list_segments"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        address = self.address
        if isinstance(address, bytes):
            address = os.fsdecode(address)
        self.shared_memory_context = _SharedMemoryTracker(f"shm_{address}_{os.getpid()}")

    def create(
        self, c: Any, typeid: str, /, *args: Any, **kwds: Any
    ) -> tuple[str, tuple[str, ...]]:
        """Make an object; proxy types with `_shared_memory_proxy` get the tracker as well."""
        if hasattr(self.registry[typeid][-1], "_shared_memory_proxy"):
            kwds["shared_memory_context"] = self.shared_memory_context
        return super().create(c, typeid, *args, **kwds)

    def shutdown(self, c: Any) -> None:
        """Remove all blocks, and end the process."""
        self.shared_memory_context.unlink()
        super().shutdown(c)

    def track_segment(self, c: Any, segment_name: str) -> None:
        """Take charge of a block."""
        self.shared_memory_context.register_segment(segment_name)

    def release_segment(self, c: Any, segment_name: str) -> None:
        """Remove a block."""
        self.shared_memory_context.destroy_segment(segment_name)

    def list_segments(self, c: Any) -> list[str]:
        """Return the names of the blocks that are there."""
        return self.shared_memory_context.segment_names


class SharedMemoryManager(BaseManager):
    """Makes blocks of shared memory, and removes all of them when it is shut down."""

    _Server = SharedMemoryServer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Now, so that the server's process shares the tracker instead of getting one of its own.
        from .. import resource_tracker

        resource_tracker.ensure_running()
        super().__init__(*args, **kwargs)

    def SharedMemory(self, size: int) -> shared_memory.SharedMemory:
        """Return a new block of so many bytes."""
        from ..shared_memory import SharedMemory

        with self._connect() as conn:
            block = SharedMemory(None, create=True, size=size)
            self._track(conn, block)
        return block

    def ShareableList(self, sequence: Any) -> shared_memory.ShareableList:
        """Return a new list with the values of a sequence."""
        from ..shared_memory import ShareableList

        with self._connect() as conn:
            values = ShareableList(sequence)
            self._track(conn, values.shm)
        return values

    def _connect(self) -> Any:
        if self._state.value != State.STARTED:
            raise ValueError(f"the {type(self).__name__} is not running: call start() first")
        return self._Client(self._address, authkey=self._authkey)

    def _track(self, conn: Any, block: shared_memory.SharedMemory) -> None:
        try:
            dispatch(conn, None, "track_segment", (block.name,))
        except BaseException:
            block.unlink()
            raise
