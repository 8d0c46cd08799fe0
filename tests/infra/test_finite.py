"""What must be finite and is not: found, named, and never saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common_utils import run_state
from common_utils.finite import NonFiniteError, check_action, check_observed, check_tensors
from common_utils.logger import MultiCounter
from common_utils.run_state import StateError, load_latest, load_state, save_state


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("step", [1, 256, 257, 700])
def test_meters_name_the_first_bad_number(bad: float, as_tensor: bool, step: int) -> None:
    meters = MultiCounter()
    meters.append("host", 1.0)
    for meters.step in range(1, 701):
        value = torch.tensor(bad if meters.step >= step else 1.0)
        meters.update(
            {"good": torch.tensor(2.0), "train/loss": value if as_tensor else value.item()}
        )
        meters.append("later", math.nan if meters.step > step else 0.0)
    before = meters.state_dict()
    with pytest.raises(NonFiniteError, match=rf"^step {step}: train/loss is {bad}: "):
        meters.check_finite()
    after = meters.state_dict()
    pending = [torch.stack(s["train/loss"]["pending"]) for s in (before, after) if as_tensor]
    assert all(torch.equal(p.isfinite(), pending[0].isfinite()) for p in pending)
    meters.summary()
    meters.check_finite()


def test_meters_of_a_resumed_run_name_its_own_steps() -> None:
    first, second = MultiCounter(), MultiCounter()
    for first.step in range(1, 301):
        first.append("x", torch.tensor(1.0))
    second.load_state_dict(first.state_dict())
    for second.step in range(301, 901):
        second.append("x", torch.tensor(1.0 if second.step != 600 else math.nan))
    with pytest.raises(NonFiniteError, match="^step 600: x is nan"):
        second.check_finite()


def test_what_environments_return() -> None:
    obs = {"top": np.zeros((3, 4, 4), np.uint8), "state": np.zeros(3, np.float32)}
    check_observed("Lift", 4, 0, obs, 1.0)
    for reward in (math.nan, -math.inf):
        with pytest.raises(NonFiniteError) as error:
            check_observed("Lift", 4, 7, obs, reward)
        assert str(error.value) == (
            f"task 'Lift', episode of seed 4, step 7: the reward is {reward}, expected a finite "
            "number"
        )
    obs["state"][1] = np.nan
    with pytest.raises(
        NonFiniteError, match=r"seed 4, step 7: observation 'state' is nan at \[1\]"
    ):
        check_observed("Lift", 4, 7, obs)


def test_actions() -> None:
    check_action(np.zeros(2, np.float32), 3, 5)
    with pytest.raises(NonFiniteError, match=r"^the agent chose the action \[0, inf\] at step 5 "):
        check_action(np.array([0, np.inf], np.float32), 3, 5)


def tree(bad: float = 1.0) -> dict[str, Any]:
    return {
        "agent": {"model": {"w": torch.ones(3)}, "opt": [{"avg": torch.tensor([1.0, bad])}]},
        "count": torch.tensor([3]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "array": np.ones(2),
        "low": math.inf,
    }


def test_tensors_are_named_by_the_way_to_them() -> None:
    check_tensors(tree(), "", "step 3")
    with pytest.raises(NonFiniteError, match=r"^step 3: agent\.opt\.0\.avg holds NaN or infinity"):
        check_tensors(tree(math.inf), "", "step 3")
    with pytest.raises(NonFiniteError, match=r"ema\.array holds"):
        check_tensors({"array": np.array([np.nan])}, "ema", "step 3")


def spoil(state: Path, *path: str | int) -> None:
    """NaN into a saved state, as an earlier version would have written it."""
    content = torch.load(state / "tree.pt", weights_only=True)
    entry = content
    for key in path:
        entry = entry[key]
    entry.view(-1)[0] = math.nan
    torch.save(content, state / "tree.pt")
    (state / run_state.MARKER).unlink()
    run_state._write_marker(state, int(state.name[5:14]))


def test_states_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path) -> None:
    first = save_state(tmp_path, 1, tree())
    second = save_state(tmp_path, 2, tree())
    with pytest.raises(NonFiniteError, match=r"^step 3: agent\.opt\.0\.avg"):
        save_state(tmp_path, 3, tree(math.nan))
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.name, second.name]
    spoil(second, "agent", "model", "w")
    with pytest.raises(StateError, match=r"step_000000002: agent\.model\.w holds NaN or infinity"):
        load_state(second)
    with pytest.warns(UserWarning, match=r"agent\.model\.w holds NaN.*trying the state before it"):
        state = load_latest(tmp_path)
    assert state is not None and state.step == 1
    spoil(first, "agent", "opt", 0, "avg")
    with (
        pytest.warns(UserWarning, match="trying the state before it"),
        pytest.raises(StateError, match=r"opt\.0\.avg holds NaN"),
    ):
        load_latest(tmp_path)
