"""The names and signatures are those of the running Python's own multiprocessing."""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import types

import pytest

SUBMODULES = [
    "connection",
    "context",
    "dummy",
    "managers",
    "pool",
    "process",
    "queues",
    "reduction",
    "shared_memory",
    "sharedctypes",
    "spawn",
    "synchronize",
    "util",
]
CLASSES = [
    ("process", "BaseProcess"),
    ("context", "BaseContext"),
    ("queues", "Queue"),
    ("queues", "JoinableQueue"),
    ("queues", "SimpleQueue"),
    ("synchronize", "Lock"),
    ("synchronize", "RLock"),
    ("synchronize", "Semaphore"),
    ("synchronize", "BoundedSemaphore"),
    ("synchronize", "Condition"),
    ("synchronize", "Event"),
    ("synchronize", "Barrier"),
    ("connection", "Connection"),
    ("connection", "Listener"),
    ("pool", "Pool"),
    ("pool", "ThreadPool"),
    ("pool", "AsyncResult"),
    ("managers", "BaseManager"),
    ("managers", "SyncManager"),
    ("managers", "BaseProxy"),
    ("managers", "SharedMemoryManager"),
    ("shared_memory", "SharedMemory"),
    ("shared_memory", "ShareableList"),
]


def public(module: types.ModuleType) -> set[str]:
    """The names that a module promises."""
    return set(getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]))


def test_package_has_every_public_name(mp):
    assert public(multiprocessing) - public(mp) == set()


@pytest.mark.parametrize("name", SUBMODULES)
def test_submodule_has_every_public_name(name):
    theirs = importlib.import_module(f"multiprocessing.{name}")
    ours = importlib.import_module(f"phalanx.{name}")
    assert {n for n in public(theirs) if not hasattr(ours, n)} == set()


def test_package_has_no_other_public_names(mp):
    """By the rule of CPython's own test: what was defined here, and no module."""
    names = {
        name
        for name, value in vars(mp).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", mp.__name__) == mp.__name__
    }
    assert names - set(mp.__all__) == {"SUBDEBUG", "SUBWARNING"}


def parameters(function) -> list[tuple] | None:
    """A signature without annotations; None where there is none to see."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    found = [(p.name, p.kind, p.default) for p in signature.parameters.values()]
    if found and found[0][0] in ("self", "$self"):
        del found[0]  # positional-only in a native method, which nobody sees
    return found


def compare(name: str, theirs, ours) -> str | None:
    """What is wrong with our signature: it may have more, but with a default."""
    wanted, found = parameters(theirs), parameters(ours)
    if wanted is None or found is None:
        return None
    kind = inspect.Parameter
    defaults = {name: default for name, _, default in wanted}
    found = [
        (name, k, defaults.get(name, default) if default is ... else default)  # not shown
        for name, k, default in found
    ]
    if {k for _, k, _ in found} == {kind.VAR_POSITIONAL, kind.VAR_KEYWORD}:
        return None  # anything goes
    extra = [p for p in found if p not in wanted]
    if [p for p in found if p in wanted] != wanted:
        return f"{name}: {wanted} expected, {found} found"
    if any(default is kind.empty for _, k, default in extra):
        return f"{name}: {extra} beyond the standard have no default"
    return None


@pytest.mark.parametrize(("module", "name"), CLASSES, ids=[".".join(c) for c in CLASSES])
def test_class_has_every_public_method(module, name):
    theirs = getattr(importlib.import_module(f"multiprocessing.{module}"), name)
    ours = getattr(importlib.import_module(f"phalanx.{module}"), name)
    names = [n for n in dir(theirs) if not n.startswith("_")]
    assert [n for n in names if not hasattr(ours, n)] == []
    wrong = [
        compare(f"{name}.{n}", getattr(theirs, n), getattr(ours, n))
        for n in names
        if inspect.isroutine(getattr(theirs, n))
    ]
    assert [w for w in wrong if w] == []


def test_context_methods_take_the_same_arguments(mp):
    wrong = [
        compare(n, getattr(multiprocessing, n), getattr(mp, n))
        for n in public(multiprocessing)
        if inspect.ismethod(getattr(multiprocessing, n))
    ]
    assert [w for w in wrong if w] == []


def test_exceptions_are_the_builtin_ones_where_the_standard_ones_are(mp):
    for name in ("ProcessError", "TimeoutError", "AuthenticationError", "BufferTooShort"):
        assert issubclass(getattr(mp, name), Exception)
        assert issubclass(getattr(mp, name), mp.ProcessError)


def test_default_start_method_is_the_same():
    from processes import run_python

    program = "import {} as mp; print(mp.get_start_method(), mp.get_all_start_methods())"
    ours, theirs = (run_python("-c", program.format(m)) for m in ("phalanx", "multiprocessing"))
    assert ours.stdout == theirs.stdout


def test_the_inside_of_connections(mp):
    from multiprocessing.connection import Connection

    here, there = mp.Pipe()
    here._send_bytes(b"message")
    assert there._recv_bytes().getvalue() == b"message"
    here, there = mp.Pipe()
    theirs = Connection(there.fileno())  # a stream from now on
    here._send(b"\0\0\0\2hi")
    assert theirs.recv_bytes() == b"hi"
    theirs.send_bytes(b"ho")
    assert here._recv(6).getvalue() == b"\0\0\0\2ho"
    theirs._handle = None
    there.close()
    with pytest.raises(EOFError):
        here._recv(1)


def test_names_that_libraries_take_from_inside():
    """Those that no other test comes by; see the libraries' own sources for why."""
    for path in """
        connection.SocketListener connection.SocketClient connection.address_type
        connection.reduce_connection context._concrete_contexts context._force_start_method
        forkserver.read_signed forkserver.ForkServer heap.rebuild_arena heap.reduce_arena
        managers.Server managers.State managers.Token managers.IteratorProxy pool.mapstar
        pool.starmapstar pool.Pool._repopulate_pool_static pool.Pool._join_exited_workers
        popen_fork.Popen._launch popen_spawn_posix.Popen._launch process.ORIGINAL_DIR
        queues.Full queues.Empty queues._sentinel queues.Queue._after_fork queues.Queue._reset
        queues.Queue._feed queues.Queue._start_thread queues.Queue._finalize_close
        queues.Queue._finalize_join queues.Queue._terminate_broken
        reduction.ForkingPickler._extra_reducers reduction._reduce_socket
        reduction.AbstractReducer resource_sharer.DupFd.detach resource_tracker.main
        shared_memory._posixshmem sharedctypes.typecode_to_type spawn.get_command_line
        spawn._fixup_main_from_path spawn._fixup_main_from_name spawn._python_exe
        synchronize.SemLock._make_name synchronize.SemLock._rand util.Finalize.still_active
        util._run_after_forkers util._args_from_interpreter_flags util._close_stdin
        util._log_to_stderr util.ForkAwareLocal util.MAXFD util.close_all_fds_except
        util.sub_warning util.spawnv_passfds util.is_abstract_socket_namespace
    """.split():
        module, *names = path.split(".")
        found = importlib.import_module(f"phalanx.{module}")
        for name in names:
            found = getattr(found, name)
