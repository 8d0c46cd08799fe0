"""Reading parity fixtures: discovery, weights, inputs, configs (fixtures/ibrl/README.md).

Cases are found by the ``kind`` written in each JSON file, so the tests also run on a folder of
fixtures they have never seen: set PARITY_FIXTURES to it.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
ROOT = Path(os.environ.get("PARITY_FIXTURES", HERE / "fixtures"))

# which module of this folder runs the fixtures of a kind; test_functions checks that no kind
# found in the folder is missing here, and that every module named here runs its kind
IBRL_KINDS = {
    "module": "test_modules",
    "aug": "test_functions",
    "rescale": "test_functions",
    "truncated_normal": "test_functions",
    "fn": "test_functions",
    "schedule": "test_functions",
    "concat_obs": "test_functions",
    "topk_saver": "test_functions",
    "agent": "test_agent",
    "replay": "test_replay",
    "replay_capacity": "test_replay",
    "demo_load": "test_replay",
}

RTOL, ATOL = 1e-4, 1e-5


@dataclass(frozen=True)
class Fixture:
    """One recorded case: its description (JSON) and its arrays (npz, may be absent)."""

    path: Path
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The recorded outputs; empty when the case has no npz file."""
        npz = self.path.with_suffix(".npz")
        if not npz.exists():
            if self.spec.get("outputs"):
                raise FileNotFoundError(f"{self.path} lists outputs but {npz.name} is missing")
            return {}
        with np.load(npz, allow_pickle=False) as data:
            return {k: data[k] for k in data.files}

    def inputs(self) -> dict[str, torch.Tensor]:
        """The input tensors, by name."""
        return {spec["name"]: make_input(spec) for spec in self.spec["inputs"]}


def all_fixtures(folder: str) -> list[Fixture]:
    """Every case of a sub-folder, sorted by name. An empty or missing folder is an error."""
    files = sorted((ROOT / folder).glob("*.json"))
    if not files:
        raise FileNotFoundError(f"no fixtures in {ROOT / folder} (PARITY_FIXTURES)")
    return [Fixture(f, json.loads(f.read_text())) for f in files]


def fixtures_of_kind(folder: str, kind: str) -> list[Fixture]:
    """The cases of one kind, sorted by name (none is fine)."""
    return [f for f in all_fixtures(folder) if f.spec.get("kind") == kind]


def make_input(spec: dict[str, Any]) -> torch.Tensor:
    """One input from its recipe."""
    rng = np.random.default_rng(spec["seed"])
    shape, kind = spec["shape"], spec["kind"]
    if kind == "image_uint8":
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        return torch.from_numpy(image.astype(np.float32) if spec.get("as_float") else image)
    if kind == "normal":
        value = rng.standard_normal(shape) * spec["scale"]
    elif kind == "uniform":
        value = rng.random(shape) * (spec["high"] - spec["low"]) + spec["low"]
    elif kind == "bernoulli":
        value = (rng.random(shape) < spec["p"]) * np.float32(spec.get("value", 1))
    else:
        raise ValueError(f"input '{spec['name']}': unknown kind '{kind}'")
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def make_weights(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The floating point entries of a state dict, by the README's recipe."""
    rng = np.random.default_rng(weights["seed"])
    out = {}
    for key, shape in weights["keys"]:
        w = rng.standard_normal(shape) * weights["scale"]
        if key.endswith("running_var"):
            w = 1 + np.abs(w)
        elif len(shape) == 1 and key.endswith("weight"):
            w = 1 + w
        out[key] = torch.from_numpy(np.asarray(w, dtype=np.float32))
    return out


def load_weights(module: nn.Module, weights: dict[str, Any]) -> None:
    """Load the recipe's weights strictly; integer buffers keep their fresh values."""
    state = make_weights(weights)
    fresh = module.state_dict()
    for key in weights["nonfloat_keys"]:
        state[key] = fresh[key]
    module.load_state_dict(state, strict=True)


def make_config(cls: type, values: dict[str, Any]) -> Any:
    """A config dataclass from a nested dict; unknown keys are an error."""
    types = typing.get_type_hints(cls)
    unknown = set(values) - set(types)
    if unknown:
        raise ValueError(f"{cls.__name__} has no fields {sorted(unknown)}")
    return cls(
        **{
            k: make_config(types[k], v) if dataclasses.is_dataclass(types[k]) else v
            for k, v in values.items()
        }
    )


def find_class(path: str) -> Any:
    """The object a dotted path names; ImportError or AttributeError when there is none."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def build_module(spec: dict[str, Any]) -> nn.Module:
    """The module of a fixture: ``cls`` built with ``ctor`` and ``config``, recipe weights, eval.

    The config class is the one called ``<class>Config`` in the same module.
    """
    cls = find_class(spec["cls"])
    kwargs = dict(spec["ctor"])
    if spec.get("config") is not None:
        kwargs["cfg"] = make_config(find_class(spec["cls"] + "Config"), spec["config"])
    module = cls(**kwargs)
    load_weights(module, spec["weights"])
    return module.eval()


def assert_close(
    actual: torch.Tensor,
    expected: np.ndarray,
    name: str,
    rtol: float = RTOL,
    atol: float = ATOL,
) -> None:
    """Shapes equal and values within the fixtures' tolerance."""
    value = actual.detach().cpu().numpy()
    assert value.shape == expected.shape, f"{name}: {value.shape}, recorded {expected.shape}"
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=name)
