"""Agents on a device compute what they compute on the CPU, and move between the two."""

from __future__ import annotations

import io
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from common_utils.data_aug import RandomShiftsAug
from common_utils.ibrl_utils import eval_mode
from common_utils.specs import Batch
from tests.rl.releases import CASES, ROWS, Small, small


def moved(value: Any, device: str) -> Any:
    """A batch, or a dict of tensors, on a device."""
    if isinstance(value, Batch):
        return Batch(**{f.name: moved(getattr(value, f.name), device) for f in fields(Batch)})
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    return None if value is None else value.to(device)


def without_noise(case: str, device: str) -> Small:
    """An agent whose updates draw nothing on its device, where generators differ."""
    it = small(case, device, bootstrap_method="")
    agent = it.agent
    for module in agent.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if agent.bootstrap_method == "ibrl_soft":
        agent.bootstrap_method = "ibrl"
    if not agent.use_state:
        agent.head.aug = nn.Identity()
    return it


def grads(agent: nn.Module) -> dict[str, torch.Tensor]:
    return {k: p.grad.cpu() for k, p in agent.named_parameters() if p.grad is not None}


# pixels and states, IBRL and RFT; on a GPU every release configuration
SOME = ("small_state", "robomimic_rl/can_ibrl", "robomimic_rl/can_state_rft", "metaworld/rft")


@pytest.mark.parametrize("case", CASES if torch.cuda.is_available() else SOME)
def test_an_update_is_that_of_the_cpu(case: str, device: str) -> None:
    here, there = without_noise(case, "cpu"), without_noise(case, device)
    there.agent.load_state_dict(here.agent.state_dict())
    for a, b in zip(here.agent.bc_policies, there.agent.bc_policies, strict=True):
        b.load_state_dict(a.state_dict())
    rft = {}
    if here.rft:
        there.rft["ref_agent"].load_state_dict(here.rft["ref_agent"].state_dict())
        rft = {**there.rft, "bc_batch": moved(here.batch, device)}
    ours = there.agent.update(moved(here.batch, device), 0.0, True, **rft)
    expected = here.agent.update(here.batch, 0.0, True, **here.rft)
    assert set(ours) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name].cpu(), value, rtol=1e-4, atol=1e-5, msg=name)
    mine = grads(there.agent)
    for name, grad in grads(here.agent).items():
        error = (mine[name] - grad).norm() / grad.norm().clamp_min(1e-6)
        assert error < 1e-3, (name, float(error))
    with eval_mode(here.agent, there.agent):
        action = there.agent.act(here.obs, eval_mode=True)
        torch.testing.assert_close(
            action, here.agent.act(here.obs, eval_mode=True), rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("case", ["small_state", "robomimic_rl/can_ibrl", "metaworld/rft"])
def test_a_state_moves_to_the_device_and_back(case: str, device: str) -> None:
    there, here = small(case, device), small(case, "cpu")
    there.agent.update(there.batch, 0.1, True, **there.rft)
    file = io.BytesIO()
    torch.save(there.agent.training_state(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True, map_location="cpu")
    here.agent.load_training_state(state)
    for name, value in there.agent.state_dict().items():
        assert torch.equal(here.agent.state_dict()[name], value.cpu()), name
    here.agent.update(here.batch, 0.1, True, **here.rft)
    there.agent.load_training_state(here.agent.training_state())
    there.agent.update(there.batch, 0.1, True, **there.rft)
    weights = there.agent.state_dict().values()
    assert {w.device.type for w in weights} == {device}
    assert all(w.isfinite().all() for w in weights if w.is_floating_point())


def test_shifts_are_drawn_and_made_on_the_device(device: str) -> None:
    aug = RandomShiftsAug(pad=4)
    images = torch.randint(0, 256, (ROWS, 3, 12, 12), dtype=torch.uint8)
    generator = torch.Generator(device).manual_seed(1)
    out = aug(images.to(device), generator)
    generator.manual_seed(1)
    shifts = aug.draw(ROWS, device, generator)
    assert (out.device.type, shifts.device.type) == (device, device)
    assert torch.equal(out.cpu(), aug.shift(images, shifts.cpu()))
