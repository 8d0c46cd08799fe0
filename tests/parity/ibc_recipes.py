"""Reading the IBC fixtures: discovery, weights in torch's layout, observations.

Their JSON files carry no ``kind``: a case belongs to a family by how its file name begins.
Weights are written in TensorFlow's names and layouts (fixtures/ibc/README.md); here
``block0/w1/kernel`` [in, out] becomes ``blocks.0.w1.weight`` [out, in].
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.parity import recipes
from tests.parity.recipes import Fixture

# which module of this folder runs the cases of a family; test_ibc_families checks that every
# case in the folder is of a family named here, and that the module has a test for it
IBC_FAMILIES = {
    "mlpebm_": "test_ibc_nets",
    "mlp_mse_mdn_": "test_ibc_nets",
    "dense_resnet_value": "test_ibc_nets",
    "pixel_nets": "test_ibc_nets",
    "spatial_encoder": "test_ibc_nets",
    "losses_": "test_ibc_agents",
    "langevin_": "test_ibc_agents",
    "dfo_": "test_ibc_agents",
    "grad_penalty": "test_ibc_agents",
    "train_": "test_ibc_agents",
    "policy_": "test_ibc_agents",
    "schedules": "test_ibc_agents",
    "normalizers": "test_ibc_agents",
    "windows": "test_ibc_agents",
    "particle_": "test_ibc_envs",
    "block_": "test_ibc_envs",
}

ATOL = 1e-5

# names of the cases that tests have been parametrised over, filled in by `cases`
CLAIMED: set[str] = set()


def family_of(case: Fixture) -> str | None:
    """The family of a case, None when no test module claims it."""
    return next((f for f in IBC_FAMILIES if case.name.startswith(f)), None)


def cases(family: str, prefix: str = "") -> pytest.MarkDecorator:
    """Parametrise a test's ``case`` over a family; none in the folder is fine.

    ``prefix`` narrows it to the names that begin so (a family split over several tests).
    """
    found = [f for f in recipes.all_fixtures("ibc") if family_of(f) == family]
    found = [f for f in found if f.name.startswith(prefix)]
    CLAIMED.update(f.name for f in found)
    return pytest.mark.parametrize("case", found, ids=lambda c: c.name)


def make_weights(weights: dict[str, Any]) -> dict[str, np.ndarray]:
    """The recipe's weights by their TensorFlow names, in TensorFlow's layout, float32."""
    rng = np.random.default_rng(weights["seed"])
    out = {}
    for name, shape in weights["keys"]:
        w = rng.standard_normal(shape)
        leaf = name.rpartition("/")[2]
        if leaf != "u":
            w = w * weights["scale"]
        out[name] = np.asarray(1 + w if leaf == "gamma" else w, dtype=np.float32)
    return out


_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# places in our modules where a layer of the original may sit
_PARENTS = ("", "trunk.", "head.", "encoder.", "net.encoder.", "net.trunk.")


def torch_name(name: str, keys: Any) -> str:
    """The state dict key, one of ``keys``, of a TensorFlow name; KeyError unless there is one."""
    path, _, leaf = name.rpartition("/")
    path = path.removeprefix("cnn/").replace("/", ".")
    path = re.sub(r"(^|\.)proj$", r"\1first", path)
    path = re.sub(r"(^|\.)fc0$", r"\1first", path)
    path = re.sub(r"(^|\.)fc(\d+)$", lambda m: f"{m[1]}hidden.{int(m[2]) - 1}", path)
    path = re.sub(r"(^|\.)block(\d+)\.", r"\1blocks.\2.", path)
    found = [k for p in _PARENTS if (k := f"{p}{path}.{_LEAVES.get(leaf, leaf)}") in keys]
    if len(found) != 1:
        raise KeyError(f"'{name}' is {found or 'not'} in a module with {sorted(keys)}")
    return found[0]


def torch_layout(name: str, value: np.ndarray) -> torch.Tensor:
    """A TensorFlow array (weight or its gradient) in torch's layout."""
    tensor = torch.from_numpy(np.array(value, dtype=np.float32))
    if not name.endswith("/kernel"):
        return tensor
    return (tensor.t() if tensor.dim() == 2 else tensor.permute(3, 2, 0, 1)).contiguous()


def to_torch(net: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """TensorFlow-named arrays -> {state dict key of ``net``: tensor in torch's layout}."""
    keys = net.state_dict().keys()
    return {torch_name(k, keys): torch_layout(k, v) for k, v in arrays.items()}


def load_weights(net: nn.Module, weights: dict[str, Any], optional: tuple[str, ...] = ()) -> None:
    """Load the recipe's weights; a key of ``net`` they don't name is an error unless optional."""
    state = to_torch(net, make_weights(weights))
    missing, _ = net.load_state_dict(state, strict=False)
    absent = [k for k in missing if k not in optional]
    if absent:
        raise KeyError(f"the fixture has no weights for {absent}")


def flat_obs(arrays: dict[str, np.ndarray], prefix: str = "obs/") -> torch.Tensor:
    """Observations ``<prefix><key>`` [B, T, d] -> [B, T * D], keys in alphabetical order."""
    keys = sorted(k for k in arrays if k.startswith(prefix))
    stacked = np.concatenate([arrays[k] for k in keys], axis=-1)
    return torch.from_numpy(stacked.reshape(len(stacked), -1))


def flat_dim(dims: dict[str, list[int]]) -> int:
    """Width of the flattened observation of a fixture's ``dims`` {key: [T, d]}."""
    return sum(steps * dim for steps, dim in dims.values())


def assert_close(
    actual: torch.Tensor, expected: np.ndarray, name: str, rtol: float = 0, atol: float = ATOL
) -> None:
    """Shapes equal and values within the fixtures' absolute tolerance."""
    recipes.assert_close(actual, expected, name, rtol=rtol, atol=atol)
