"""Functions against the official program, and the check that every fixture has a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common_utils.data_aug import RandomShiftsAug
from common_utils.ibrl_utils import (
    TruncatedNormal,
    clip_action_norm,
    concat_obs,
    resize_images,
    schedule,
)
from common_utils.saver import TopkSaver
from tests.parity import recipes
from tests.parity.recipes import Fixture

# the documented rounding error of the original's bilinear sampling, on the 0..255 scale
AUG_ATOL = 2.4e-3


def cases(kind: str) -> pytest.MarkDecorator:
    """Parametrise a test over the fixtures of one kind; a folder without any is fine."""
    found = recipes.fixtures_of_kind("ibrl", kind)
    return pytest.mark.parametrize("case", found, ids=lambda c: c.name)


@pytest.mark.parametrize("case", recipes.all_fixtures("ibrl"), ids=lambda c: c.name)
def test_fixture_has_a_test(case: Fixture) -> None:
    kind = case.spec.get("kind")
    module = recipes.IBRL_KINDS.get(str(kind))
    assert module is not None, f"{case.path}: kind '{kind}' has no test (recipes.IBRL_KINDS)"
    source = (recipes.HERE / f"{module}.py").read_text()
    assert f'"{kind}"' in source, f"{module}.py does not read fixtures of kind '{kind}'"


@cases("aug")
def test_random_shift(case: Fixture) -> None:
    aug = RandomShiftsAug(**case.spec["ctor"])
    x, expected = case.inputs()["x"], case.arrays
    torch.manual_seed(case.spec["torch_seed"])
    drawn = aug.draw(x.size(0), x.device)
    np.testing.assert_array_equal(drawn.numpy(), expected["drawn_shifts_xy"])
    torch.manual_seed(case.spec["torch_seed"])
    y = aug(x)
    recipes.assert_close(y, expected["y_torch_seed"], "y_torch_seed", rtol=0, atol=AUG_ATOL)
    for k, shift in enumerate(case.spec["given_shifts_xy"]):
        one = aug.shift(x[:1], torch.tensor([shift]))[0]
        recipes.assert_close(one, expected["y_given_shift"][k], "given", rtol=0, atol=AUG_ATOL)
        as_bytes = aug.shift(x[:1].byte(), torch.tensor([shift]))[0]
        assert as_bytes.dtype == torch.uint8 and torch.equal(as_bytes.float(), one)


@cases("rescale")
def test_rescale(case: Fixture) -> None:
    y = resize_images(case.inputs()["x"], case.spec["ctor"]["target_size"])
    expected = case.arrays["y"]
    assert y.numpy().dtype == expected.dtype
    recipes.assert_close(y, expected, "y")


@cases("truncated_normal")
def test_truncated_normal(case: Fixture) -> None:
    ctor, expected = case.spec["ctor"], case.arrays
    loc = torch.tanh(case.inputs()["loc_pre_tanh"]).requires_grad_()
    dist = TruncatedNormal(loc, ctor["std"], ctor["max_action_norm"])
    torch.manual_seed(case.spec["torch_seed"])
    noise = torch.randn(loc.shape)
    recipes.assert_close(noise, expected["noise_z"], "noise_z")
    torch.manual_seed(case.spec["torch_seed"])
    sample = dist.sample(clip=ctor["clip"])
    sample.sum().backward()
    assert loc.grad is not None
    recipes.assert_close(sample, expected["sample"], "sample")
    recipes.assert_close(dist.mean, expected["mean"], "mean")
    recipes.assert_close(loc.grad, expected["grad_loc"], "grad_loc")


@cases("fn")
def test_function(case: Fixture) -> None:
    functions = {"common_utils.ibrl_utils.clip_action_norm": clip_action_norm}
    assert case.spec["cls"] in functions, f"no test for function {case.spec['cls']}"
    action = case.inputs()["action"]
    y = torch.stack([clip_action_norm(action, m) for m in case.spec["ctor"]["max_norms"]])
    recipes.assert_close(y, case.arrays["y"], "y")


@cases("schedule")
def test_schedule(case: Fixture) -> None:
    assert case.spec["table"]
    for row in case.spec["table"]:
        value = schedule(row["schedule"], row["step"])
        assert value == pytest.approx(row["value"], rel=1e-12), row


@cases("concat_obs")
def test_concat_obs(case: Fixture) -> None:
    obses = [torch.tensor(o) for o in case.spec["obs"]]
    assert case.spec["table"]
    for row in case.spec["table"]:
        assert concat_obs(row["idx"], obses, row["stack"]).tolist() == row["out"], row


@cases("topk_saver")
def test_topk_saver(case: Fixture, tmp_path: Path) -> None:
    for table in case.spec["table"]:
        folder = tmp_path / f"k{table['topk']}"
        saver = TopkSaver(folder, table["topk"])
        for row in table["rows"]:
            net = nn.Linear(1, 1)
            nn.init.constant_(net.weight, row["i"])
            saved = saver.save(net.state_dict(), row["perf"], save_latest=True)
            assert saved == row["returned"], row
            contents = {
                f.name: torch.load(f, weights_only=True)["weight"].item()
                for f in folder.glob("*.pt")
            }
            assert contents == row["contents"], row
        assert saver.best_path is not None and saver.best_path.name == table["best"]
