"""SharedMemory and ShareableList: values, life cycle, and the standard library beside them."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import time

import pytest

from phalanx import shared_memory
from phalanx.managers import SharedMemoryManager
from phalanx.shared_memory import ShareableList, SharedMemory


@pytest.fixture
def block():
    block = SharedMemory(create=True, size=4096)
    yield block
    block.close()
    try:
        block.unlink()
    except FileNotFoundError:
        pass


def run(module: str, script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a script with `shared_memory` of a module, in a program of its own."""
    script = f"from {module} import shared_memory\nimport sys\n" + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", script, *args],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        timeout=60,
    )


def write(name_or_block, data):
    block = SharedMemory(name_or_block) if isinstance(name_or_block, str) else name_or_block
    block.buf[: len(data)] = data
    block.close()


def test_seen_by_another_process(ctx, block):
    for argument, data in ((block.name, b"by name"), (block, b"pickled")):
        process = ctx.Process(target=write, args=(argument, data))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert bytes(block.buf[: len(data)]) == data


def test_attributes(block):
    same = pickle.loads(pickle.dumps(block))
    same.buf[0] = 1
    assert block.buf[0] == 1
    assert (same.name, same.size) == (block.name, block.size)
    assert "/" not in block.name
    assert repr(block) == f"SharedMemory({block.name!r}, size=4096)"
    ignored = SharedMemory(block.name, size=1)
    assert ignored.size == 4096
    for other in (same, ignored):
        other.close()
        other.close()
        assert other.buf is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"create": True}, ValueError),
        ({"create": True, "size": 0}, ValueError),
        ({"create": True, "size": -1}, ValueError),
        ({}, ValueError),
        ({"name": "not/a/name"}, OSError),
        ({"name": "nul\0"}, ValueError),
        ({"name": "phalanx-not-there"}, FileNotFoundError),
    ],
)
def test_wrong_arguments(arguments, error):
    with pytest.raises(error):
        SharedMemory(**arguments)


def test_names_are_taken_once(block, monkeypatch):
    with pytest.raises(FileExistsError):
        SharedMemory(block.name, create=True, size=1)
    names = iter([block._name, block._name + "x"])
    monkeypatch.setattr(shared_memory, "_make_filename", lambda: next(names))
    other = SharedMemory(create=True, size=1)
    assert other._name == block._name + "x"
    other.close()
    other.unlink()
    with pytest.raises(FileNotFoundError):
        other.unlink()


def test_a_view_keeps_the_memory(block):
    view = block.buf[:10]
    with pytest.raises(BufferError):
        block.close()
    view.release()
    block.close()
    lost = SharedMemory(create=True, size=10)
    lost.unlink()
    view = lost.buf[:]
    del lost  # no complaint: the memory goes with the view
    view[0] = 1


VISITOR = """
    block = shared_memory.SharedMemory(name=sys.argv[1], **eval(sys.argv[2]))
    print(bytes(block.buf[:5]).decode())
    block.close()
"""


@pytest.mark.parametrize("options", ["{}", "{'track': False}"])
def test_looking_at_a_block_does_not_destroy_it(block, options):
    block.buf[:5] = b"hello"
    visit = run("phalanx", VISITOR, block.name, options)
    assert (visit.stdout, visit.stderr) == ("hello\n", "")
    with_another = SharedMemory(block.name)
    assert bytes(with_another.buf[:5]) == b"hello"
    with_another.close()


def test_a_tracked_block_goes_with_the_program_that_tracks_it(block):
    visit = run("phalanx", VISITOR, block.name, "{'track': True}")
    assert "1 leaked shared_memory object" in visit.stderr
    with pytest.raises(FileNotFoundError):
        SharedMemory(block.name)


def test_a_block_goes_with_its_killed_creator():
    script = """
        import os, signal
        block = shared_memory.SharedMemory(create=True, size=100)
        print(block.name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    creator = run("phalanx", script)
    assert creator.returncode == -signal.SIGKILL
    while os.path.exists("/dev/shm/" + creator.stdout.strip()):
        time.sleep(0.01)


def test_the_standard_library_sees_the_same(block):
    block.buf[:5] = b"hello"
    values = ShareableList(["text", b"bytes", 1, 2.5, True, None])
    try:
        script = """
            block = shared_memory.SharedMemory(sys.argv[1], **eval(sys.argv[3]))
            values = shared_memory.ShareableList(name=sys.argv[2])
            print(bytes(block.buf[:5]), list(values))
            values[2] = 7
        """
        track = "{'track': False}" if sys.version_info >= (3, 13) else "{}"
        visit = run("multiprocessing", script, block.name, values.shm.name, track)
        assert visit.stdout == "b'hello' ['text', b'bytes', 1, 2.5, True, None]\n"
        assert values[2] == 7
    finally:
        values.shm.close()
        if os.path.exists("/dev/shm/" + values.shm.name):
            values.shm.unlink()


VALUES = [
    "",
    "text",
    "na\u00efve",
    "\U0001f4a5" * 8,
    "nul\0",
    b"",
    b"bytes",
    b"\x01\0",
    b"\0" * 9,
    7,
    -(1 << 63),
    2.5,
    float("inf"),
    True,
    False,
    None,
]


@pytest.fixture
def values():
    values = ShareableList(VALUES)
    yield values
    values.shm.close()
    values.shm.unlink()


def test_values_come_back_as_they_were(values):
    attached = ShareableList(name=values.shm.name)
    unpickled = pickle.loads(pickle.dumps(values))
    for one in (values, attached, unpickled):
        assert list(one) == VALUES
        assert [type(value) for value in one] == [type(value) for value in VALUES]
    attached.shm.close()
    unpickled.shm.close()


def test_any_value_in_any_slot(values):
    for position in range(len(values)):
        for value in (1, None, 2.5, False, "eight by", b"zeros\0\0\0", b"\0", "", b"ab"):
            values[position] = value
            assert values[position] == value
            assert type(values[position]) is type(value)
    values[-1] = "last"
    assert values[len(values) - 1] == "last"


def test_lists(values):
    assert (len(values), values.count(7), values.index(7)) == (len(VALUES), 1, 9)
    with pytest.raises(ValueError, match="not in"):
        values.index("none")
    for position in (len(VALUES), -len(VALUES) - 1):
        with pytest.raises(IndexError):
            values[position]
        with pytest.raises(IndexError):
            values[position] = 1
    with pytest.raises(ValueError, match="exceeds available storage"):
        values[1] = "x" * 100
    with pytest.raises(struct.error, match="64 bits"):
        values[0] = 1 << 63
    with pytest.raises(TypeError, match="not list"):
        values[0] = []
    with pytest.raises(TypeError, match="not object"):
        ShareableList([object()])
    same = ShareableList(x for x in [1])
    assert repr(same) == f"ShareableList([1], name={same.shm.name!r})"
    same.shm.close()
    same.shm.unlink()


def test_a_block_that_is_no_list(block):
    for garbage in (b"\xff" * 64, struct.pack("4q", 2, 0, 99999, 3), struct.pack("q", 1 << 40)):
        block.buf[: len(garbage)] = garbage
        with pytest.raises(ValueError, match="holds no ShareableList"):
            ShareableList(name=block.name)


def test_a_manager_removes_its_blocks(ctx):
    unstarted = SharedMemoryManager(ctx=ctx)
    with pytest.raises(ValueError, match="not running"):
        unstarted.SharedMemory(1)
    with SharedMemoryManager(ctx=ctx) as manager:
        block = manager.SharedMemory(100)
        values = manager.ShareableList(["a", 1])
        process = ctx.Process(target=write, args=(block, b"from a child"))
        process.start()
        process.join()
        assert bytes(block.buf[:12]) == b"from a child"
        assert list(ShareableList(name=values.shm.name)) == ["a", 1]
    for name in (block.name, values.shm.name):
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
    block.close()
    values.shm.close()
