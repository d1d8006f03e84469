"""Clients of a manager that are of another family, or of the standard library."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

# The interpreter whose standard library is talked to: by default the one that runs the tests.
OTHER_PYTHON = os.environ.get("PHALANX_OTHER_PYTHON", sys.executable)

KEY = b"a key of all"

# A client that does what it is told, each line in the thread that its first word names.
CLIENT = """
    import os, queue, sys, threading
    from PACKAGE.managers import *
    from PACKAGE import managers

    class Remote(managers.SyncManager):
        pass

    Remote.register("queue")
    for name in ("lock", "rlock", "semaphore", "bounded"):
        Remote.register(name, proxytype=managers.AcquirerProxy)
    Remote.register("event", proxytype=managers.EventProxy)
    Remote.register("condition", proxytype=managers.ConditionProxy)
    Remote.register("over_lock", proxytype=managers.ConditionProxy)
    Remote.register("barrier", proxytype=managers.BarrierProxy)
    manager = Remote(eval(sys.argv[1]), sys.argv[2].encode())
    manager.connect()
    known = {name: getattr(manager, name)() for name in sys.argv[3:]}
    threads = {}

    def work(thread, tasks):
        while True:
            code = tasks.get()
            try:
                answer = repr(eval(code, known))
            except Exception as error:
                answer = type(error).__name__
            os.write(1, f"{thread} {answer}\\n".encode())

    print("ready", flush=True)
    for line in sys.stdin:
        thread, code = line.split(maxsplit=1)
        if thread not in threads:
            threads[thread] = queue.Queue()
            threading.Thread(target=work, args=(thread, threads[thread]), daemon=True).start()
        threads[thread].put(code)
"""


class Remote:
    """A client that is not of this family, in a process of its own."""

    def __init__(self, package: str, address: object, names: tuple[str, ...]) -> None:
        python, path = (OTHER_PYTHON, "") if package == "multiprocessing" else (sys.executable, "")
        path = os.pathsep.join(sys.path) if package == "phalanx" else path
        self.process = subprocess.Popen(
            [
                python,
                "-c",
                textwrap.dedent(CLIENT).replace("PACKAGE", package),
                repr(address),
                KEY,
                *names,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=path),
        )
        assert self.process.stdout.readline() == "ready\n"

    def begin(self, code: str, thread: str = "main") -> None:
        self.process.stdin.write(f"{thread} {code}\n")
        self.process.stdin.flush()

    def end(self, thread: str = "main") -> str:
        answering, _, answer = self.process.stdout.readline().partition(" ")
        assert answering == thread
        return answer.rstrip("\n")

    def ask(self, code: str, thread: str = "main") -> str:
        self.begin(code, thread)
        return self.end(thread)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        self.process.stdin.close()
        assert self.process.wait() == 0
