"""``python -m phalanx script.py [args]``: run a program with multiprocessing meaning phalanx.

The program is run as ``python script.py [args]`` would run it: as ``__main__``, with its own
``sys.argv`` and ``sys.path[0]``. Its children of every start method get phalanx too.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, NoReturn

from ._install import install

__all__ = ["main"]

_USAGE = """\
usage: python -m phalanx [-h] script [args ...]
       python -m phalanx -m module [args ...]
       python -m phalanx -c command [args ...]
       python -m phalanx bench [workload ...]
"""

_HELP = """
Run a Python program with `import multiprocessing` giving phalanx, in the program
and in all the processes it starts.

positional arguments:
  script       a Python file, or a folder or zip file with a __main__.py
  args         the program's own arguments

options:
  -h, --help   show this help message and exit
  -m module    run a module, as python -m does
  -c command   run a text, as python -c does

"bench" measures the standard library beside phalanx on this machine (a script of
that name is run as ./bench).
"""


def main(argv: list[str]) -> None:
    """Run the program that the command line ``argv`` (without this program's name) asks for."""
    option, *rest = argv or [""]
    if option in ("-h", "--help"):
        sys.stdout.write(_USAGE + _HELP)
        sys.exit(0)
    if option == "bench":
        from . import _bench

        _bench.main(rest)
    elif option[:2] in ("-m", "-c"):
        # The argument may follow without a space, as it may for python itself.
        value, *args = [option[2:], *rest] if option[2:] else (rest or [""])
        if not rest and not option[2:]:
            _refuse(f"argument {option}: expected one argument")
        install()
        if option[:2] == "-m":
            _run_module(value, args)
        else:
            _run_command(value, args)
    elif option in ("", "-") or (option.startswith("-") and option != "--"):
        if option and option != "-":
            _refuse(f"unrecognized arguments: {option}")
        _refuse("the following arguments are required: script")
    else:
        if option == "--":
            if not rest:
                _refuse("the following arguments are required: script")
            option, *rest = rest
        install()
        _run_path(option, rest)


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"{_USAGE}python -m phalanx: error: {message}\n")
    sys.exit(2)


def _new_main() -> ModuleType:
    """A fresh ``__main__``, so that nothing of this file is seen by the program."""
    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return module


def _run_path(path: str, args: list[str]) -> None:
    sys.argv[:] = [path, *args]
    if _holds_main(path):
        # A folder or an archive: its __main__ is found on the path.
        _new_main()
        if getattr(sys.flags, "safe_path", False):
            sys.path.insert(0, path)
        else:
            sys.path[0] = path
        _run_as_main("__main__", alter_argv=False)
        return
    try:
        code = _read_code(path)
    except OSError as error:
        sys.stderr.write(
            f"{sys.executable}: can't open file {os.path.abspath(path)!r}: "
            f"[Errno {error.errno}] {error.strerror}\n"
        )
        sys.exit(2)
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    module = _new_main()
    # From 3.9 on python makes the path of the main file absolute.
    file = os.path.abspath(path)
    module.__dict__.update(
        __file__=file, __cached__=None, __loader__=SourceFileLoader("__main__", file)
    )
    _run(code, module)


def _holds_main(path: str) -> bool:
    if os.path.isdir(path):
        return True
    import zipfile

    return not path.endswith((".py", ".pyc")) and zipfile.is_zipfile(path)


def _read_code(path: str) -> CodeType:
    with open(path, "rb") as file:
        data = file.read()
    from importlib.util import MAGIC_NUMBER

    if data[: len(MAGIC_NUMBER)] == MAGIC_NUMBER:
        import marshal

        return marshal.loads(data[16:])  # type: ignore[no-any-return]
    return compile(data, os.path.abspath(path), "exec", dont_inherit=True)


def _run_module(name: str, args: list[str]) -> None:
    sys.argv[:] = ["-m", *args]
    _new_main()
    _run_as_main(name, alter_argv=True)


def _run_as_main(name: str, *, alter_argv: bool) -> None:
    # This is the function by which the interpreter itself runs modules and folders.
    run: Any = runpy._run_module_as_main  # type: ignore[attr-defined]
    try:
        run(name, alter_argv)
    except Exception as error:
        _report(error)


def _run_command(text: str, args: list[str]) -> None:
    sys.argv[:] = ["-c", *args]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = ""
    try:
        code = compile(text, "<string>", "exec", dont_inherit=True)
    except SyntaxError as error:
        _report(error)
    _run(code, _new_main())


def _run(code: CodeType, module: ModuleType) -> None:
    try:
        exec(code, module.__dict__)
    except Exception as error:
        _report(error)


def _report(error: Exception) -> NoReturn:
    """What the interpreter does with an exception of the program, without the frames of ours."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename in (
        __file__,
        runpy.__file__,
        "<frozen runpy>",
    ):
        traceback = traceback.tb_next
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)
    sys.exit(1)


if __name__ == "__main__":
    # The interpreter clears the main module's names at the end; the program's are others now.
    _keep = sys.modules["__main__"]
    main(sys.argv[1:])
