"""Making ``import multiprocessing`` mean phalanx.

`install()` puts this package's modules into `sys.modules` under the standard names and a finder
in front of the import system for those that are not loaded yet. Children of every start method
are told to do the same before they load anything of the program's. Interpreters that others
start (loky's workers, `subprocess`) find a ``sitecustomize`` on ``PYTHONPATH``, which waits for the
import of multiprocessing: see ``_site``.

``_multiprocessing`` stays the interpreter's own: libraries use its ``SemLock`` directly.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["install", "is_installed"]

_HERE = __name__.partition(".")[0]
_THERE = "multiprocessing"


class _Alias:
    """The loader of a module that exists already under another name."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, placeholder: ModuleType) -> None:
        # The import system takes what it finds here afterwards, so the module keeps its own
        # __name__ and __spec__.
        assert placeholder.__spec__ is not None
        sys.modules[placeholder.__spec__.name] = self.module


class _Finder:
    """Finds ``multiprocessing.x.y`` as ``phalanx.x.y``."""

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _THERE and not name.startswith(_THERE + "."):
            return None
        ours = _HERE + name[len(_THERE) :]
        try:
            __import__(ours)
        except ModuleNotFoundError as error:
            if error.name == ours:
                return None
            raise
        module = sys.modules[ours]
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, _Alias(module), is_package=hasattr(module, "__path__"))  # type: ignore[arg-type]


_finder: _Finder | None = None


def is_installed() -> bool:
    """Whether `install` has been called here or in the process that started this one."""
    return _finder is not None


def install() -> None:
    """Make ``import multiprocessing`` give phalanx, in this process and in all its children.

    Call it before the first import of a library that uses multiprocessing: a module which holds
    the standard one already keeps it. Calling it again does nothing.

    It puts a folder on ``PYTHONPATH`` in `os.environ`, for interpreters started by other means
    than a Process; those that ignore the environment (``-E``, ``-I``) are not reached.
    """
    global _finder
    if _finder is not None:
        return
    _finder = _Finder()
    sys.meta_path.insert(0, _finder)
    for name in [n for n in sys.modules if n == _THERE or n.startswith(_THERE + ".")]:
        del sys.modules[name]
    package = sys.modules[_HERE]
    for name, module in list(sys.modules.items()):
        if module is not None and (name == _HERE or name.startswith(_HERE + ".")):
            sys.modules[_THERE + name[len(_HERE) :]] = module
    package.__dict__.setdefault("process", sys.modules[f"{_HERE}.process"])
    _reach_new_interpreters()


def _reach_new_interpreters() -> None:
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_site")
    paths = os.environ.get("PYTHONPATH", "")
    if folder not in paths.split(os.pathsep):
        os.environ["PYTHONPATH"] = folder + os.pathsep + paths if paths else folder
