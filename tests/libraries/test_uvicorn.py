"""uvicorn with two workers: they answer, are replaced when one is killed, and stop cleanly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import processes

pytestmark = pytest.mark.heavy

APPLICATION = """
import json
import multiprocessing
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    answer = {
        "pid": os.getpid(),
        "process": multiprocessing.current_process().__class__.__mro__[1].__module__,
    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
"""


def ask(port: int) -> dict[str, object]:
    """One answer; waits for the server to be there."""
    while True:  # bounded by the test's own limit
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)


def ask_until(port: int, workers: int) -> set[object]:
    """Ask until so many workers have answered; their numbers."""
    pids: set[object] = set()
    while len(pids) < workers:
        answer = ask(port)
        assert str(answer["process"]).startswith("phalanx."), answer
        pids.add(answer["pid"])
    return pids


def test_workers(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "phalanx", "-m", "uvicorn", "application:app"]
    command += ["--workers", "2", "--port", str(port), "--log-level", "warning"]
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)
    try:
        pids = ask_until(port, 2)
        victim = pids.pop()
        assert isinstance(victim, int)
        os.kill(victim, signal.SIGKILL)
        while processes.is_running(victim):
            time.sleep(0.05)
        assert victim not in ask_until(port, 2)
        below = processes.descendants(server.pid)
        server.send_signal(signal.SIGTERM)
        code = server.wait()
    finally:
        if server.poll() is None:
            processes.end(server.pid)
    # uvicorn ends by the signal that it was sent, from 0.29 on.
    assert code in (0, -signal.SIGTERM), log.read_text()
    assert [pid for pid in below if processes.is_running(pid)] == []
    assert "Traceback" not in log.read_text()
