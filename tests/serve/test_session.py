"""Requests become the observations that environments deliver, or one line that names the key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common_utils.specs import ArraySpec
from common_utils.stacking import ObservationStacks
from serve.session import MAX_BATCH, Inputs, RequestError, Session

SPECS = {"camera": ArraySpec((9, 4, 5), "uint8", 3), "prop": ArraySpec((2,))}
NAMES = {"camera": "observation/image", "prop": "observation/state"}
RNG = np.random.default_rng(0)


def session(pad: Any = "zeros", **more: ArraySpec) -> Session:
    specs = more or SPECS
    return Session(Inputs(specs, pad, {key: NAMES.get(key, key) for key in specs}))


def step() -> dict[str, np.ndarray]:
    return {
        "camera": RNG.integers(0, 256, (3, 4, 5), np.uint8),
        "prop": RNG.random(2, np.float32),
    }


def named(obs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {NAMES.get(key, key): value for key, value in obs.items()} | more


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
    )


@pytest.mark.parametrize("pad", ["zeros", "repeat"])
def test_single_steps_are_stacked_as_environments_stack_them(pad: Any) -> None:
    steps, stacks, mine = [step() for _ in range(7)], ObservationStacks(SPECS, pad), session(pad)
    for number, frames in enumerate(steps):
        if number == 5:
            stacks.reset()
        request = mine.read(named(frames, reset=number == 5, prompt="ignored"))
        assert not request.batched and equal(request.obs, stacks.push(frames))


def test_images_may_have_their_channels_last_and_maps_may_be_nested() -> None:
    frames, mine, other = step(), session(), session()
    last = np.moveaxis(frames["camera"], 0, -1)
    nested = {"observation": {"image": last, "state": frames["prop"]}}
    assert equal(mine.read(nested).obs, other.read(named(frames)).obs)


def test_a_reset_alone() -> None:
    mine, first = session(), step()
    mine.read(named(step()))
    assert mine.read({"reset": True}).obs == {}
    assert equal(mine.read(named(first)).obs, session().read(named(first)).obs)


def test_whole_stacks_and_batches_leave_no_history() -> None:
    mine, first = session(), step()
    stack = {"camera": RNG.integers(0, 256, (9, 4, 5), np.uint8), "prop": first["prop"]}
    assert equal(mine.read(named(stack)).obs, stack)
    batch = {key: np.stack([value] * 3) for key, value in stack.items()}
    request = mine.read(named(batch))
    assert request.batched and equal(request.obs, batch)
    assert equal(mine.read(named(first)).obs, session().read(named(first)).obs)


def test_floats_may_have_another_precision_and_short_lists_are_arrays() -> None:
    mine = session(state=ArraySpec((2,)))
    for value in (np.array([1, 0.5]), np.array([1, 0.5], np.float16), [1, 0.5]):
        obs = mine.read({"state": value}).obs
        assert obs["state"].dtype == np.float32 and obs["state"].tolist() == [1, 0.5]


FRAME = named(step())
IMAGE, STATE = NAMES.values()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ([1], "request: found a list, expected a map of observations"),
        ({}, f"{IMAGE}: missing, expected it beside what there is: nothing"),
        ({IMAGE: FRAME[IMAGE], "x": 1}, f"{STATE}: missing, .* is: {IMAGE}, x"),
        (FRAME | {"reset": 1}, "reset: found 1, expected true or false"),
        (FRAME | {STATE: "text"}, f"{STATE}: found a str, expected an array of float32"),
        (FRAME | {STATE: None}, f"{STATE}: missing"),
        (FRAME | {STATE: np.zeros(3)}, rf"{STATE}: found float32\[3\], expected float32 \[2\], or"),
        (FRAME | {STATE: np.zeros(2, int)}, rf"{STATE}: found int64\[2\], .* of float32"),
        (FRAME | {STATE: np.array([0, np.nan])}, rf"{STATE}: found NaN or infinity at \[1\]"),
        (FRAME | {STATE: np.array([1e300, 0])}, rf"{STATE}: found NaN or infinity at \[0\]"),
        (FRAME | {STATE: np.zeros((2, 2))}, f"{IMAGE} a step, {STATE} a batch; expected all in"),
        (
            FRAME | {IMAGE: np.zeros((3, 4, 5), np.float32)},
            rf"{IMAGE}: found float32\[3, 4, 5\], expected an array of uint8",
        ),
        (
            FRAME | {IMAGE: np.zeros((3, 8, 8), np.uint8)},
            rf"{IMAGE}: found uint8\[3, 8, 8\], expected uint8 \[3, 4, 5\] \(one step\), \[9, 4, 5",
        ),
        (
            {IMAGE: np.zeros((2, 9, 4, 5), np.uint8), STATE: np.zeros((3, 2))},
            "found batches of .*: 2, .*: 3}, expected all of one size",
        ),
        (
            FRAME | {STATE: np.zeros((MAX_BATCH + 1, 2))},
            rf"{STATE}: found float32\[{MAX_BATCH + 1}, 2\]",
        ),
        (FRAME | {STATE: np.zeros((0, 2))}, rf"{STATE}: found float32\[0, 2\]"),
    ],
)  # fmt: skip
def test_what_is_refused(message: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said) as error:
        session().read(message)
    assert "\n" not in str(error.value)
