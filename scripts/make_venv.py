"""Make the virtual environment of this checkout: `python make_venv.py FOLDER`."""

import subprocess
import sys
import venv

MINIMUM = (3, 10)


def main(folder: str) -> None:
    if sys.version_info < MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"phalanx needs Python 3.10 or later; this is {found}: make PYTHON=... chooses another"
        )
    try:
        venv.create(folder, clear=True, with_pip=True, symlinks=True)
    except subprocess.CalledProcessError:
        sys.exit(
            "this Python cannot make virtual environments: install its venv package (python3-venv)"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
