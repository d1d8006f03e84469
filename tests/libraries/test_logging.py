"""logging's own recipe: workers send their records through a queue to one listener."""

from __future__ import annotations

PROGRAM = """
import io
import logging
import logging.config
import logging.handlers
import multiprocessing
import sys

def worker(queue, number):
    logging.config.dictConfig({
        "version": 1,
        "handlers": {"queue": {"class": "logging.handlers.QueueHandler", "queue": queue}},
        "root": {"handlers": ["queue"], "level": "DEBUG"},
    })
    for n in range(50):
        logging.getLogger("worker").info("record %d of %d", n, number)
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("an exception of %s", multiprocessing.current_process().name)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(processName)s %(levelname)s %(message)s"))
    listener = logging.handlers.QueueListener(queue, handler, respect_handler_level=True)
    listener.start()
    children = [
        context.Process(target=worker, args=(queue, n), name=f"worker {n}") for n in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    listener.stop()
    lines = text.getvalue().splitlines()
    for n in range(2):
        expected = [f"worker {n} INFO record {i} of {n}" for i in range(50)]
        print([line for line in lines if line.startswith(f"worker {n} INFO")] == expected)
        print(f"worker {n} ERROR an exception of worker {n}" in lines)
    print(lines.count("ZeroDivisionError: division by zero"), whose())
"""


def test_queue_handler_and_listener(run, start_method):
    printed = run(PROGRAM, start_method)
    assert printed == "True\nTrue\nTrue\nTrue\n2 phalanx.queues\n"
