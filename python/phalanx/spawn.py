"""What a child that did not inherit its parent's memory needs to become a part of the program.

The parent pickles three things into an anonymous file: the child's name, a dictionary with what it
has to take over (`get_preparation_data`), and the `Process` object. The child reads them with
`_main`: `prepare` applies the dictionary, which may run the main module again, under the name
``__mp_main__``.
"""

from __future__ import annotations

import io
import os
import sys

from . import _failure, _install, _phalanx, context, process, util

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from .process import BaseProcess

__all__ = [
    "_main",
    "freeze_support",
    "set_executable",
    "get_executable",
    "get_preparation_data",
    "get_command_line",
    "import_main_path",
]

WINEXE = False
WINSERVICE = False

_FORKING = "--multiprocessing-fork"

# Bits of `options`, which a child has to know before it unpickles anything.
_DAEMON = 1
_INSTALL = 2
_HOLDS_INTERRUPT = 4
# The child began with Ctrl-C held back.
INTERRUPT_HELD = 8


# What `ResourceTracker.reserve` gave in the parent, for when this process imports that module.
inherited_tracker: list[int] = []


# The pickle of the dictionary that a fork server has applied for its children, if it has.
prepared = b""


# -- which interpreter -----------------------------------------------------------------------------

_python_exe: Any = None


def set_executable(exe: str | bytes | os.PathLike[Any] | None) -> None:
    """The interpreter that children run."""
    global _python_exe
    if exe is None:
        _python_exe = None
    elif sys.version_info >= (3, 11):
        _python_exe = os.fsencode(exe)
    else:
        _python_exe = exe


def get_executable() -> Any:
    """The interpreter that children run; bytes from Python 3.11 on."""
    return _python_exe


set_executable(sys.executable)


# -- the command line ------------------------------------------------------------------------------


def is_forking(argv: list[str]) -> bool:
    """Whether this command line is that of a child."""
    return len(argv) >= 2 and argv[1] == _FORKING


def freeze_support() -> None:
    """In a frozen program: if this is a child, run it and exit."""
    if not is_forking(sys.argv):
        return
    kwds: dict[str, int | None] = {}
    for arg in sys.argv[2:]:
        name, _, value = arg.partition("=")
        kwds[name] = None if value == "None" else int(value)
    spawn_main(**kwds)  # type: ignore[arg-type]
    sys.exit()


def get_command_line(**kwds: Any) -> list[Any]:
    """The command that starts a child; ``kwds`` are the arguments of `spawn_main`."""
    if getattr(sys, "frozen", False):
        return [sys.executable, _FORKING, *(f"{name}={value!r}" for name, value in kwds.items())]
    arguments = ", ".join(f"{name}={value!r}" for name, value in kwds.items())
    program = f"from {__name__} import spawn_main; spawn_main({arguments})"
    return [get_executable(), *util._args_from_interpreter_flags(), "-c", program, _FORKING]


def options_of(process_obj: BaseProcess) -> int:
    """What a child has to know at once, as bits."""
    mortal = process_obj.daemon or process_obj._follows_parent
    return (
        (_DAEMON if mortal else 0)
        | (_INSTALL if _install.is_installed() else 0)
        | (_HOLDS_INTERRUPT if process_obj._holds_interrupt else 0)
    )


def spawn_main(
    pipe_handle: int,
    parent_pid: int | None = None,
    tracker_fd: int | None = None,
    arena_fd: int | None = None,
    member: int | None = None,
    options: int = 0,
    tracker_read: int | None = None,
    tracker_permission: int | None = None,
) -> None:
    """The main program of a child of the start method spawn.

    Args:
        pipe_handle: the descriptor of the file with what the parent pickled.
        parent_pid: the parent.
        tracker_fd: the write end of the resource tracker's pipe; ``tracker_read`` and
            ``tracker_permission`` come with it if no tracker runs yet.
        arena_fd: the family's memory.
        member: the place in the family that the parent has reserved.
        options: see `options_of`.
    """
    if not is_forking(sys.argv):
        raise AssertionError("this is not the command line of a child process")
    if parent_pid is None:
        parent_pid = os.getppid()
    failure = os.dup(pipe_handle)
    tracker = [fd for fd in (tracker_fd, tracker_read, tracker_permission) if fd is not None]
    become_child(options, parent_pid, arena_fd, member, tracker, failure)
    os.set_inheritable(pipe_handle, False)
    sys.exit(_main(pipe_handle, _phalanx.watch_process(parent_pid)))


def become_child(
    options: int,
    killer: int,
    arena_fd: int | None,
    member: int | None,
    tracker: list[int],
    failure_fd: int,
) -> None:
    """Take the place in the family that was reserved for this process."""
    if options & INTERRUPT_HELD:
        util.hold_interrupt()
    if options & _DAEMON:
        _phalanx.die_with_parent(killer)
    if options & _INSTALL:
        _install.install()
    if arena_fd is not None and member is not None:
        _phalanx.adopt(arena_fd, member)
    global inherited_tracker
    inherited_tracker = tracker
    module = sys.modules.get(f"{__package__}.resource_tracker")
    if module is not None and tracker:
        module._resource_tracker.inherit(tracker)
    _phalanx.set_failure_file(failure_fd)
    if not options & _HOLDS_INTERRUPT:
        util.release_interrupt()


def _main(fd: int, parent_sentinel: int) -> int:
    """Read what the parent pickled, become that process and run it; the exit code."""
    # Only a parent with a reducer of its own needs more than the plain pickle here.
    from _pickle import load

    me: Any = process.current_process()
    me._inheriting = True
    try:
        data = io.BytesIO(_read_all(fd))
        me.name = load(data)
        if prepared and data.getbuffer()[data.tell() :][: len(prepared)] == prepared:
            data.seek(len(prepared), os.SEEK_CUR)
        else:
            prepare(load(data))
        child = load(data)
    except BaseException as error:
        _failure.record(error)
        raise
    finally:
        del me._inheriting
        _phalanx.drop_unclaimed()
    os.close(fd)
    del data
    return child._bootstrap(parent_sentinel)  # type: ignore[no-any-return]


def _read_all(fd: int) -> bytes:
    """All that the parent has written; nothing is left in the file, which lies in memory."""
    size = os.fstat(fd).st_size
    data = os.read(fd, size)
    while len(data) < size:  # a read gives less than 2 GiB
        data += os.read(fd, size - len(data))
    os.ftruncate(fd, 0)
    return data


# -- in the parent ---------------------------------------------------------------------------------


def _check_not_importing_main() -> None:
    if getattr(process.current_process(), "_inheriting", False):
        raise RuntimeError(
            """
        This process is itself just being started: it is importing the main
        module of the program, and that module starts processes again.

        Under the start methods spawn and forkserver each child imports the
        main module to find the functions in it. So what a program does when
        it is run has to stand behind this guard:

            if __name__ == '__main__':
                freeze_support()    # only needed in a frozen executable
                ...

        See "Safe importing of main module" in
        https://docs.python.org/3/library/multiprocessing.html
        """
        )


def get_preparation_data(name: str) -> dict[str, Any]:
    """What the child ``name`` has to take over from this process, but for the Process object."""
    _check_not_importing_main()
    data: dict[str, Any] = {
        "log_to_stderr": util._log_to_stderr,
        "authkey": process.current_process().authkey,
    }
    if util._logger is not None:
        data["log_level"] = util._logger.getEffectiveLevel()
    data.update(
        name=name,
        sys_path=[process.ORIGINAL_DIR if entry == "" else entry for entry in sys.path],
        sys_argv=sys.argv,
        orig_dir=process.ORIGINAL_DIR,
        dir=os.getcwd(),
        start_method=context._default_context.get_start_method(),
    )
    data.update(main_module())
    return data


def main_module() -> dict[str, str]:
    """Where a child finds the main module: by name if it was run as a module, else by path."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return {"init_main_from_name": name}
    path = getattr(main, "__file__", None)
    if path is None or os.path.basename(path).startswith("<"):  # "<stdin>"
        return {}
    if not os.path.isabs(path) and process.ORIGINAL_DIR is not None:
        path = os.path.join(process.ORIGINAL_DIR, path)
    return {"init_main_from_path": os.path.normpath(path)}


_compiled: tuple[Any, bytes | None] = (None, None)


def compiled_main(path: str) -> bytes | None:
    """The main module's code for a child, which would compile it anew; None if it has to.

    Kept until the file changes. A child of a program of 1700 lines took 90 ms instead of 130 from
    start to end (with the standard library 180), on a busy machine.
    """
    global _compiled
    if not path.endswith(".py") or _python_exe not in (sys.executable, os.fsencode(sys.executable)):
        return None  # another interpreter may have other code
    try:
        stat = os.stat(path)
        version = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if _compiled[0] != version:
            import marshal
            import warnings

            with open(path, "rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were shown when the program began
                code = compile(file.read(), path, "exec", dont_inherit=True)
            _compiled = version, marshal.dumps(code)
    except (OSError, SyntaxError, ValueError):  # the child will say so
        return None
    return _compiled[1]


def pickle_for_child(
    popen: Any, member: int, data: dict[str, Any], process_obj: BaseProcess
) -> bytes:
    """The bytes that `_main` reads; shared objects in them are counted for ``member``."""
    file = io.BytesIO()
    try:
        context.set_spawning_popen(popen)
        _phalanx.begin_spawning(member)
        context._default_context.reducer.dump(data.pop("name"), file)
        context._default_context.reducer.dump(data, file)
        _pickle_process(popen, data, process_obj, file)
    finally:
        context.set_spawning_popen(None)
    return file.getvalue()


def _pickle_process(
    popen: Any, data: dict[str, Any], process_obj: BaseProcess, file: io.BytesIO
) -> None:
    """Pickle by name; by value what has no name that the child could import."""
    start, descriptors = file.tell(), len(popen._fds)
    refusal = None
    try:
        context._default_context.reducer.dump(process_obj, file)
    except Exception as error:
        refusal = error
    else:
        # The child cannot import the functions of a __main__ without a file (-c, a prompt).
        if "init_main_from_path" in data or "init_main_from_name" in data:
            return
        if file.getvalue().find(b"__main__", start) < 0:
            return
    plain = file.getvalue()
    file.seek(start)
    file.truncate()
    del popen._fds[descriptors:]
    try:
        from .reduction import dump_by_value

        dump_by_value(process_obj, file)
    except Exception:
        if refusal is not None:
            raise refusal from None
        file.seek(0)
        file.write(plain)


# -- in the child ----------------------------------------------------------------------------------

# The main modules that were replaced: other modules may still use their names.
old_main_modules: list[ModuleType] = []


def prepare(data: dict[str, Any]) -> None:
    """Make this process ready to unpickle its Process object."""
    me = process.current_process()
    if "name" in data:
        me.name = data["name"]
    if "authkey" in data:
        me.authkey = data["authkey"]
    if data.get("log_to_stderr"):
        util.log_to_stderr()
    if "log_level" in data:
        util.get_logger().setLevel(data["log_level"])
    take_surroundings(data)
    if "start_method" in data:
        context._default_context.set_start_method(data["start_method"], force=True)
    if "init_main_from_name" in data:
        _fixup_main_from_name(data["init_main_from_name"])
    elif "init_main_from_path" in data:
        _fixup_main_from_path(data["init_main_from_path"], data.get("main_code"))


def take_surroundings(data: dict[str, Any]) -> None:
    """The part of `prepare` that an imported module may have undone."""
    if "environ" in data:
        _take_environment(data["environ"])
    if "umask" in data:
        os.umask(data["umask"])
    if "sys_path" in data:
        sys.path = data["sys_path"]
    if "sys_argv" in data:
        sys.argv = data["sys_argv"]
    if "dir" in data:
        os.chdir(data["dir"])
    if "orig_dir" in data:
        process.ORIGINAL_DIR = data["orig_dir"]


def _take_environment(environ: dict[bytes, bytes]) -> None:
    mine: dict[bytes, bytes] = getattr(os.environ, "_data", {})
    if mine == environ:
        return
    for name in mine.keys() - environ.keys():
        del os.environb[name]
    for name, value in environ.items():
        if mine.get(name) != value:
            os.environb[name] = value


def _fixup_main_from_name(mod_name: str) -> None:
    # The __main__ of a package, a folder or an archive has no guard and nothing that others use.
    if mod_name == "__main__" or mod_name.endswith(".__main__"):
        return
    current = sys.modules["__main__"]
    # A forked process has it already.
    if getattr(current.__spec__, "name", None) == mod_name:
        return
    import runpy

    content = runpy.run_module(mod_name, run_name="__mp_main__", alter_sys=True)
    module = type(sys)("__mp_main__")
    module.__dict__.update(content)
    _replace_main(current, module)


def _fixup_main_from_path(main_path: str, compiled: bytes | None = None) -> None:
    current = sys.modules["__main__"]
    # IPython's start script has no guard.
    if os.path.splitext(os.path.basename(main_path))[0] == "ipython":
        return
    if getattr(current, "__file__", None) == main_path:
        return
    module = type(sys)("__mp_main__")
    if main_path.endswith(".py") and os.path.isfile(main_path):
        _run_file(main_path, module, compiled)
    else:  # an archive, a folder or compiled
        import runpy

        module.__dict__.update(runpy.run_path(main_path, run_name="__mp_main__"))
    _replace_main(current, module)


def _run_file(path: str, module: ModuleType, compiled: bytes | None) -> None:
    """What ``runpy.run_path`` does for a file of source text, but without importing runpy."""
    if compiled is not None:
        import marshal

        code = marshal.loads(compiled)
    else:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
    module.__dict__.update(
        __file__=path, __cached__=None, __package__="", __builtins__=__builtins__
    )
    program, before = sys.argv[0], sys.modules.get("__mp_main__")
    sys.argv[0] = path
    sys.modules["__mp_main__"] = module
    try:
        exec(code, module.__dict__)
    except BaseException:
        if before is None:
            del sys.modules["__mp_main__"]
        else:
            sys.modules["__mp_main__"] = before
        raise
    finally:
        sys.argv[0] = program


def _replace_main(current: ModuleType, module: ModuleType) -> None:
    old_main_modules.append(current)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def import_main_path(main_path: str) -> None:
    """Run the program at ``main_path`` as ``__mp_main__`` and make it this process's main."""
    _fixup_main_from_path(main_path)
