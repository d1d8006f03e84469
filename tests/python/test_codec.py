"""The encoding of small values against values and bytes of all kinds.

PHALANX_FUZZ_ROUNDS sets how many are tried (`make fuzz`: many), PHALANX_FUZZ_SEED the first.
"""

from __future__ import annotations

import math
import os
import pickle
import random
import struct

import pytest

from phalanx import Pipe, Pool, Queue, _phalanx
from pool_tasks import echo

ROUNDS = int(os.environ.get("PHALANX_FUZZ_ROUNDS", 3000))
SEED = int(os.environ.get("PHALANX_FUZZ_SEED", 1))


def leaf(dice):
    """A value that has an encoding of its own."""
    return dice.choice(
        (
            lambda: None,
            lambda: dice.random() < 0.5,
            lambda: dice.randint(-(2**7), 2**7 - 1),
            lambda: dice.randint(-(2**63), 2**63 - 1),
            lambda: dice.uniform(-1e300, 1e300),
            lambda: "".join(chr(dice.randrange(1, 0xD800)) for _ in range(dice.randrange(6))),
            lambda: "x" * dice.randrange(250, 300),
            lambda: dice.randbytes(dice.randrange(30)),
        )
    )()


def value(dice, depth=3):
    """A value as it may be encoded: tuples nest, a list or dict is the whole of it."""

    def nested(left):
        if left == 0 or dice.random() < 0.6:
            return leaf(dice)
        return tuple(nested(left - 1) for _ in range(dice.randrange(4)))

    shape = dice.random()
    if shape < 0.3:
        return [nested(depth) for _ in range(dice.randrange(5))]
    if shape < 0.6:
        return {leaf(dice): nested(depth) for _ in range(dice.randrange(5))}
    return nested(depth)


def is_value(found):
    """Whether it is made of what the encoding knows."""
    if isinstance(found, dict):
        return all(map(is_value, found)) and all(map(is_value, found.values()))
    if isinstance(found, (list, tuple)):
        return all(map(is_value, found))
    return found is None or type(found) in (bool, int, float, str, bytes)


def decode(data):
    """A value, or None with the one kind of error that there may be."""
    try:
        found = _phalanx._decode_value(data)
    except RuntimeError as error:
        assert "damaged" in str(error)
    except TypeError as error:
        assert "unhashable" in str(error)  # a list as a key
    else:
        assert is_value(found)


def test_values_come_back_as_they_were():
    for seed in range(SEED, SEED + ROUNDS):
        wanted = value(random.Random(seed))
        data = _phalanx._encode_value(wanted)
        if data is not None:
            found = _phalanx._decode_value(data)
            assert (found, repr(found)) == (wanted, repr(wanted)), f"seed {seed}"


@pytest.mark.parametrize("wanted", [math.inf, -0.0, 2**63 - 1, -(2**63), "\0", b"", (), [], {}])
def test_edges(wanted):
    found = _phalanx._decode_value(_phalanx._encode_value(wanted))
    assert repr(found) == repr(wanted)


def test_any_bytes_give_a_value_or_an_error():
    for seed in range(SEED, SEED + ROUNDS):
        dice = random.Random(seed)
        # Small bytes are kinds and lengths more often than others.
        top = dice.choice((16, 256))
        decode(bytes(dice.randrange(top) for _ in range(dice.randrange(40))))


def test_damaged_values_give_a_value_or_an_error():
    for seed in range(SEED, SEED + ROUNDS):
        dice = random.Random(seed)
        data = bytearray(_phalanx._encode_value(value(dice)) or b"\0")
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(len(data))
            data[place] = dice.choice((0, 255, dice.randrange(16), dice.randrange(256)))
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        decode(bytes(data))


@pytest.mark.parametrize("kind", range(256))
def test_invented_lengths_and_depths_cost_nothing(kind):
    for length in (0, 1, 2**16, 2**31, 2**32 - 1):
        decode(bytes([kind]) + struct.pack("<I", length))
        decode(bytes([kind]) + struct.pack("<I", length) + bytes(100))
    # Each of them inside the one before, deeper than any encoder goes.
    decode((bytes([kind]) + struct.pack("<I", 1)) * 100_000)
    decode(bytes([kind]) * 100_000)


BYTES = bytes(range(256)) * 300
TEXT = "wörter " * 20_000


@pytest.mark.parametrize(
    "wanted",
    [
        TEXT,
        BYTES,
        (1, BYTES, TEXT, b"small"),
        [TEXT, None, BYTES, BYTES + b"!"],
        {"image": BYTES, TEXT: ("label", TEXT + "!")},
        {"in a list": [BYTES]},
        [bytes([n % 256]) * 60_000 for n in range(1100)],
    ],
    ids=["str", "bytes", "tuple", "list", "dict", "pickled", "many"],
)
def test_large_text_and_bytes_lie_aside(wanted):
    with Pool(1) as pool:
        assert pool.apply(echo, (wanted,)) == wanted
    queue = Queue()
    queue.put(wanted)
    assert queue.get() == wanted
    queue.close()
    reader, writer = Pipe(False)
    with reader, writer:
        writer.send(wanted)
        assert pickle.loads(reader.recv_bytes()) == wanted
        writer.send(wanted)
        assert reader.recv() == wanted


def test_what_a_message_holds_twice_is_sent_once():
    queue = Queue()
    queue.put([BYTES, BYTES, TEXT, TEXT])
    one, same, text, other = queue.get()
    assert one is same
    assert text is other
    assert (one, text) == (BYTES, TEXT)
    queue.close()


def test_no_buffer_where_one_is_named():
    for kind in (12, 13):
        with pytest.raises(RuntimeError, match="damaged"):
            _phalanx._decode_value(bytes([kind]))


class Late:
    pass


def test_reducers_registered_after_the_first_pickle_count():
    from phalanx.reduction import ForkingPickler

    pipe = Pipe()
    pipe[0].send({Late})
    assert pipe[1].recv() == {Late}
    ForkingPickler.register(Late, lambda obj: (str, ("reduced",)))
    try:
        pipe[0].send([Late()])
        assert pipe[1].recv() == ["reduced"]
    finally:
        del ForkingPickler._extra_reducers[Late]
    pipe[0].send([Late()])
    assert type(pipe[1].recv()[0]) is Late
    for end in pipe:
        end.close()
