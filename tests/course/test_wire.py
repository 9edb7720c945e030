"""The codec and the channel: what can travel arrives equal, what is malformed ends the conversation."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import threading
import time

import numpy as np
import pytest
import torch

from minidiff.course.grading.channel import Channel, Gone, Malformed
from minidiff.course.grading.wire import CLASSES, DTYPES, AnswerError, Codec, Peer, Remote, loopback
from minidiff.exact import EmpiricalDenoiser, GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.prediction import Prediction
from minidiff.schedule import NoiseLevel, linear_schedule

LEVEL = linear_schedule().level(torch.tensor([3, 500]))


def travelled(value):
    """The value as it arrives: encoded, turned into bytes, decoded."""
    return Codec().decode(json.loads(json.dumps(Codec().encode(value))))


def same(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    return a == b or (a != a and b != b)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -(2**70), 0.1, -0.0, math.inf, -math.inf, math.nan, "", "é\x00\ud800"),
        *([], [1, [2.0]], (), (1, (2,)), {}, {"a": 1, 2: (3,), (4, 5): None}),
        *(torch.tensor(1.5), torch.zeros(0, 3), torch.arange(6).reshape(2, 3).T, torch.tensor([math.nan, math.inf])),
    ],
    ids=repr,
)
def test_plain_values_arrive_equal(value):
    assert same(travelled(value), value)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_arrives_equal(dtype):
    value = torch.tensor([[0, 1], [1, 3]]).to(dtype)
    assert same(travelled(value), value)


def test_tensors_arrive_plain():
    value = torch.nn.Parameter(torch.ones(3))
    assert same(travelled(value), torch.ones(3)) and not travelled(value).requires_grad
    assert same(travelled(torch.ones(2, dtype=torch.complex64).conj()), torch.ones(2, dtype=torch.complex64))


def test_numpy_arrives_as_numbers_and_tensors():
    assert same(travelled([np.float64(0.5), np.int32(3), np.bool_(True)]), [0.5, 3, True])
    assert same(travelled(np.arange(4.0)[::2]), torch.tensor([0.0, 2.0], dtype=torch.float64))


X = torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=torch.float64)
OBJECTS = [
    GaussianDenoiser(torch.tensor([0.1, 0.2]), torch.tensor([[1.0, 0.2], [0.2, 0.5]])),
    GaussianMixtureDenoiser(torch.tensor([[0.0, 1], [1, 0], [2, 2]]), 0.3, torch.tensor([1.0, 2, 3]), [0, 1, 0]),
    EmpiricalDenoiser(torch.tensor([[0.0, 1], [1, 0], [2, 2]]), torch.tensor([0, 1, 0]), 0.2),
]


@pytest.mark.parametrize("world", OBJECTS, ids=lambda world: type(world).__name__)
def test_exact_denoisers_are_rebuilt(world):
    arrived = travelled(world)
    assert type(arrived) is type(world)
    torch.testing.assert_close(arrived(X, LEVEL).x0, world(X, LEVEL).x0, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(arrived.log_prob(X, LEVEL), world.log_prob(X, LEVEL), rtol=1e-14, atol=1e-14)


def test_levels_predictions_and_schedules_are_rebuilt():
    prediction = Prediction(X, LEVEL, 2 * X, "v", fraction=X, tilt=None)
    arrived = travelled(prediction)
    assert type(arrived) is Prediction and same(arrived.x0, prediction.x0) and same(arrived.fraction, X)
    assert arrived.tilt is None and same(arrived.level.time, LEVEL.time)
    assert travelled(NoiseLevel(0.6, 0.8, 3)) == NoiseLevel(0.6, 0.8, 3)
    assert same(travelled(linear_schedule(50)).alpha_bar, linear_schedule(50).alpha_bar)
    assert len(CLASSES) == 6


def test_generators_arrive_in_their_state():
    generator = torch.Generator().manual_seed(3)
    assert same(torch.rand(2, generator=travelled(generator)), torch.rand(2, generator=generator))


class Fake:
    """Named like a class that travels, but not it."""


Fake.__name__ = "NoiseLevel"


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, b"bytes", Fake(), torch.ones(2).to_sparse(), torch.ones(2, device="meta"), 1j],
    ids=["object", "set", "bytes", "namesake", "sparse", "meta", "complex"],
)
def test_other_values_are_refused_where_they_are_made(value):
    with pytest.raises(TypeError, match="cannot be passed"):
        Codec().encode([value])


def test_a_large_tensor_is_refused_before_it_is_copied():
    with pytest.raises(TypeError, match=r"\(1000000000, 1000000000\) is too large"):
        Codec().encode(torch.zeros(1).expand(10**9, 10**9))


def test_deep_nesting_is_refused_on_both_sides():
    value, data = [], []
    for _ in range(50):
        value, data = [value], [data]
    with pytest.raises(TypeError, match="nested"):
        Codec().encode(value)
    with pytest.raises(Malformed, match="nested"):
        Codec().decode(data)


def tensor(dtype="float32", shape=(2,), data=b"\x00" * 8):
    return {"tensor": [dtype, list(shape), base64.b64encode(data).decode()]}


@pytest.mark.parametrize(
    "data",
    [
        *({"unknown": 1}, {}, {"tuple": 1}, {"tuple": [], "dict": []}, {"dict": [[1]]}, {"dict": [[[], 1]]}),
        *(tensor("float128"), tensor(shape=(3,)), tensor(shape=(-2,)), tensor(shape=(True, 2)), tensor(shape=(2.0,))),
        *(tensor(shape=(1 << 40, 0), data=b""), tensor(shape=[1] * 17), {"tensor": ["float32", [2], "?"]}),
        *({"object": ["NoiseLevel", {}]}, {"object": ["Path", {"x": "/"}]}, {"object": ["os.system", {}]}),
        {"object": ["Prediction", {k: 1 for k in ("x", "level", "value", "kind", "fraction", "tilt")}]},
        {"object": ["GaussianDenoiser", {"mean": tensor(), "covariance": "x"}]},
        *({"yours": 0}, {"yours": -1}, {"yours": True}, {"mine": -1}, {"mine": "0"}, {"generator": [1]}),
    ],
    ids=str,
)
def test_malformed_values_are_refused(data):
    with pytest.raises(Malformed, match="sent a value that cannot be read"):
        Codec().decode(data)


def test_a_decoded_bool_is_a_bool():
    assert travelled(torch.tensor([True, False])).tolist() == [True, False]
    assert Codec().decode(tensor("bool", data=b"\x02\x00")).tolist() == [True, False]


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def peers():
    """Two ends of a conversation; the second is served by a thread, as a worker serves its answers."""
    (a_in, b_out), (b_in, a_out) = os.pipe(), os.pipe()
    ours, theirs = Channel(a_in, a_out), Channel(b_in, b_out)
    ours.deadline = theirs.deadline = time.monotonic() + 20

    def guided(f, s):
        return lambda x: s * f(x)

    def fail(kind):
        raise {
            "value": ValueError("bad"),
            "stub": NotImplementedError(),
            "own": OwnError("mine"),
            "exit": SystemExit(3),
        }[kind]

    def same_function(f):
        return f

    class OwnError(Exception):
        def __str__(self):
            raise ZeroDivisionError

    def serve():
        try:
            Peer(theirs, guided, fail, same_function, torch.is_grad_enabled, caught=BaseException).serve()
        except Gone:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    peer = Peer(ours)
    yield [Remote(peer, i) for i in range(5)]
    ours.close()
    thread.join(20)
    assert not thread.is_alive()


def test_functions_call_back_and_forth(peers):
    tripled = peers[0](lambda x: x + 1, 3.0)
    assert same(tripled(torch.ones(2)), torch.full((2,), 6.0))
    assert same(peers[0](peers[0](lambda x: x, 2.0), 5.0)(1.0), 10.0)


def test_a_function_that_comes_home_is_itself(peers):
    mine = lambda x: x
    assert peers[2](mine) is mine


def test_a_call_under_no_grad_runs_under_no_grad_there(peers):
    """Gradient mode belongs to a thread; the other side has one of its own."""
    asked = peers[0](lambda x: torch.is_grad_enabled(), 1)  # asks there, and that asks here
    for enabled in (True, False, True):
        with torch.set_grad_enabled(enabled):
            assert peers[3]() is enabled and asked(0) == enabled


def test_exceptions_travel_as_far_as_a_case_may_expect_them(peers):
    with pytest.raises(ValueError, match=r"^bad$"):
        peers[1]("value")
    with pytest.raises(NotImplementedError):
        peers[1]("stub")
    with pytest.raises(AnswerError, match="OwnError"):
        peers[1]("own")
    with pytest.raises(AnswerError, match="SystemExit: 3"):
        peers[1]("exit")

    def breaks(x):
        raise IndexError("in the callback")

    with pytest.raises(IndexError, match="in the callback"):
        peers[0](breaks, 1.0)(1)


def test_a_function_is_no_truth_value(peers):
    with pytest.raises(TypeError, match="a function where a value was expected"):
        assert peers[0](abs, 1.0)


def test_calling_what_is_not_shared_ends_the_conversation(peers):
    with pytest.raises(Gone):
        peers[4](1)


def test_loopback_copies_values_and_keeps_exceptions():
    x = torch.zeros(2)

    def spoil(value):
        value += 1
        return value

    assert same(loopback(spoil)(x), torch.ones(2)) and same(x, torch.zeros(2))
    assert loopback(lambda f: f(2))(lambda v: v + 1) == 3
    with pytest.raises(TypeError, match="missing"):
        loopback(lambda a, b: a)(1)
    with pytest.raises(TypeError, match="a set cannot be passed"):
        loopback(lambda: {1})()


# -- the channel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def line():
    """A channel that reads what the test writes to a file descriptor, within half a second."""
    (read, raw), (end, write) = os.pipe(), os.pipe()
    channel = Channel(read, write, max_bytes=1000)
    channel.deadline = time.monotonic() + 0.5
    yield channel, raw
    channel.close()
    for fd in (raw, end):
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(fd)


@pytest.mark.parametrize(
    ("sent", "error", "message"),
    [
        ((2000).to_bytes(8, "big"), Malformed, r"2000 bytes \(at most 1000\)"),
        (b"\xff" * 8, Malformed, "sent a message of"),
        ((3).to_bytes(8, "big") + b"{x}", Malformed, "not JSON"),
        ((900).to_bytes(8, "big") + b"[" * 900, Malformed, "not JSON"),
        ((4).to_bytes(8, "big") + b"\xff\xfe\xfd\xfc", Malformed, "not JSON"),
        ((4).to_bytes(8, "big") + b"12", Gone, "took too long"),
        (b"", Gone, "took too long"),
    ],
)
def test_bad_messages(line, sent, error, message):
    channel, raw = line
    os.write(raw, sent)
    with pytest.raises(error, match=message):
        channel.receive()


def test_an_end_that_closes(line):
    channel, raw = line
    os.close(raw)
    with pytest.raises(Gone, match="ended"):
        channel.receive()


def test_an_end_that_does_not_read(line):
    channel, _ = line
    with pytest.raises(Gone, match="took too long"):
        channel.send("x" * (1 << 20))
