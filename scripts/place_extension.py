"""Put a built extension beside the package in the tree, under the name that Python imports."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "python" / "phalanx"


def main(built: str) -> None:
    target = PACKAGE / ("_phalanx" + sysconfig.get_config_var("EXT_SUFFIX"))
    fresh = target.with_suffix(".new")
    shutil.copyfile(built, fresh)
    os.replace(fresh, target)  # at once: a process that has the old one mapped keeps it


if __name__ == "__main__":
    main(*sys.argv[1:])
