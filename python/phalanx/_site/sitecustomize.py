"""Run at the start of each interpreter that inherits the environment of `phalanx.install()`.

It has `import multiprocessing` give phalanx, if that import comes. An interpreter of another
version or environment, for which phalanx was not built, keeps the multiprocessing that it has.
"""

import os
import sys

__all__ = ["start"]


class _Finder:
    """Installs phalanx when multiprocessing is first asked for."""

    def __init__(self, root: str) -> None:
        self.root = root

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != "multiprocessing":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        # Behind all others: the folder may hold any number of other packages.
        sys.path.append(self.root)
        try:
            import phalanx

            phalanx.install()
        except ImportError:
            return None
        finally:
            sys.path.remove(self.root)
        return sys.meta_path[0].find_spec(name, None)


def start() -> None:
    """Wait for multiprocessing, and run the sitecustomize that this one hides."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != here]
    sys.meta_path.insert(0, _Finder(os.path.dirname(os.path.dirname(here))))  # type: ignore[arg-type]
    me = sys.modules.pop(__name__)
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if error.name != __name__:
            raise
        sys.modules[__name__] = me


if __name__ == "sitecustomize":
    start()
