"""tqdm's process_map: a ProcessPoolExecutor whose workers share a lock for writing their bars."""

from __future__ import annotations

from processes import run_python


def test_process_map(tmp_path, start_method):
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import multiprocessing
from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

def slowly(n):
    for _ in tqdm(range(3), desc=f"task {{n}}", position=n % 2 + 1, leave=False):
        pass
    return n * n, multiprocessing.Process.__module__.split(".")[0]

if __name__ == "__main__":
    multiprocessing.set_start_method({start_method!r})
    results = process_map(slowly, range(20), max_workers=2, chunksize=3, desc="all")
    squares, workers = zip(*results)
    print(list(squares) == [n * n for n in range(20)], set(workers))
"""
    )
    done = run_python("-m", "phalanx", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True {'phalanx'}\n"
    assert "all:" in done.stderr
    assert "Traceback" not in done.stderr
