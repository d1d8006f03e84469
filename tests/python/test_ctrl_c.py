"""One Ctrl-C, as a terminal sends it to all processes: an end, one traceback, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from processes import is_running

PROGRAM = r"""
import asyncio, logging, os, sys, time
import phalanx as mp

TOTAL = 400

def work(n):
    os.write(1, b"working\n")
    time.sleep(0.01 if n < 0 else 600)
    return bytes(3000)

def equip(*queues):
    work.queues = queues

def equip_slowly(*queues):
    os.write(1, b"working\n")
    time.sleep(600)

def fill(n):
    os.write(1, b"working\n")
    while True:
        work.queues[n % 2].put(bytes(3000))

async def map_in_thread(pool):
    await asyncio.to_thread(pool.map, work, range(TOTAL), 1)

async def wait(pool, form):
    loop = asyncio.get_running_loop()
    if form == "asyncio-executor":
        await loop.run_in_executor(None, pool.map, work, range(TOTAL))
    elif form == "asyncio-thread":
        await map_in_thread(pool)
    elif form == "asyncio-poll":
        results = pool.map_async(work, range(TOTAL))
        while not results.ready():
            await asyncio.sleep(0.01)

async def wait_in_pool(ctx, queues):
    with ctx.Pool(2, equip, queues) as pool:
        await map_in_thread(pool)

def run(form, ctx):
    # One without a bound, which nobody empties, and one that is soon full.
    queues = ctx.Queue(), ctx.Queue(4)
    for _ in range(500):
        queues[0].put(bytes(3000))
    if form == "asyncio-inside":
        return asyncio.run(wait_in_pool(ctx, queues))
    if form == "no-with":
        pool = ctx.Pool(2, equip, queues)
        return pool.map(work, range(TOTAL))
    if form == "start":
        with ctx.Pool(2, equip_slowly, queues) as pool:
            return pool.map(work, range(TOTAL))
    with ctx.Pool(2, equip, queues) as pool:
        if form == "queues":
            pool.map(fill, [1, 1], 1)
        elif form == "apply":
            pool.apply(work, (1,))
        elif form == "apply_async":
            pool.apply_async(work, (1,)).get()
        elif form == "map":
            pool.map(work, range(TOTAL))
        elif form == "map_async":
            pool.map_async(work, range(TOTAL)).get()
        elif form == "starmap":
            pool.starmap(work, [(n,) for n in range(TOTAL)])
        elif form == "starmap_async":
            pool.starmap_async(work, [(n,) for n in range(TOTAL)]).get()
        elif form == "imap":
            list(pool.imap(work, range(TOTAL), chunksize=3))
        elif form == "imap_unordered":
            list(pool.imap_unordered(work, range(TOTAL)))
        elif form == "callbacks":
            pool.map_async(work, range(-TOTAL, TOTAL), 1, callback=print).wait()
        else:
            asyncio.run(wait(pool, form))

if __name__ == "__main__":
    run(sys.argv[2], mp.get_context(sys.argv[1]))
"""

FORMS = (
    "queues",
    "apply",
    "apply_async",
    "map",
    "map_async",
    "starmap",
    "starmap_async",
    "imap",
    "imap_unordered",
    "callbacks",
    "no-with",
    "start",
    "asyncio-poll",
    "asyncio-executor",
    "asyncio-thread",
    "asyncio-inside",
)


def group(leader):
    """The running processes of a process group."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        pid = int(entry)
        try:
            if os.getpgid(pid) == leader and is_running(pid):
                found.append(pid)
        except ProcessLookupError:
            pass
    return found


def default_interrupt():
    # A test run in the background ignores it, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("form", FORMS)
def test_one_press_ends_it_with_one_traceback(start_method, form, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, script, start_method, form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=default_interrupt,
    )
    try:
        assert program.stdout.readline() == "working\n"
        os.killpg(program.pid, signal.SIGINT)
        pressed = time.monotonic()
        _, errors = program.communicate(timeout=60)
        took = time.monotonic() - pressed
        left = group(program.pid)
        while left and time.monotonic() < pressed + 30:
            time.sleep(0.01)
            left = group(program.pid)
    finally:
        for pid in group(program.pid):
            os.kill(pid, signal.SIGKILL)
        program.wait()
    print(f"{took:.3f} s")
    assert left == []
    assert program.returncode == -signal.SIGINT, errors
    # asyncio itself shows how it was cancelled before it came to that.
    heads = errors.count("Traceback (most recent call last)")
    assert heads == 1 or form.startswith("asyncio"), errors
    assert errors.count("\nKeyboardInterrupt") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    # A child's traceback begins so; a line of the parent's may contain the word.
    assert not any(line.startswith("Process ") for line in errors.splitlines()), errors
    assert "Exception ignored" not in errors, errors
