"""Damaged weight files and configurations of checkpoints: refused, or loaded as they were."""

from __future__ import annotations

import functools
import io
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

import train_bc
from bc.dataset import DatasetConfig
from common_utils import run_config
from tests.fuzz import damages
from tests.fuzz.case import Case, Trial

KIND = "weights"
Weights = dict[str, torch.Tensor]


def cases(rng: random.Random) -> Iterator[Case]:
    while True:
        yield rng.choice(KINDS)(rng)


@functools.cache
def checkpoint() -> tuple[bytes, str]:
    """model0.pt and cfg.yaml of a small policy over states."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        cfg = train_bc.MainConfig(
            dataset=DatasetConfig(path="gone.hdf5", use_state=1, eval_episode_len=12),
            save_dir="run", obs_shape=[3], action_dim=2,
        )  # fmt: skip
        cfg.state_policy.hidden_dim = 4
        cfg.env.suite, cfg.env.task, cfg.env.use_state = "metaworld", "Assembly", 1
        run_config.dump(cfg, Path(folder) / "cfg.yaml")
        torch.manual_seed(0)
        weights = train_bc.build_policy(cfg).state_dict()
        return to_bytes(weights), (Path(folder) / "cfg.yaml").read_text()


prepare = checkpoint


def to_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def original() -> Weights:
    return torch.load(io.BytesIO(checkpoint()[0]), weights_only=True)


def trial(
    name: str, weights: bytes, config: bytes, expected: Weights | None, file: str = "model0.pt"
) -> Trial:
    """expected: what may be loaded; None: anything that is finite."""

    def call(folder: Path) -> str | None:
        (folder / file).write_bytes(weights)
        (folder / "cfg.yaml").write_bytes(config)
        policy, _ = train_bc.load_policy(folder / file, "cpu")
        return wrong(policy.state_dict(), expected)

    return Trial(f"{name}", call, names=(file, "cfg.yaml"))


def wrong(loaded: Weights, expected: Weights | None) -> str | None:
    """What is loaded and should not be."""
    for key, value in loaded.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"{key} is not finite"
        if expected is None:
            continue
        if key not in expected or not torch.equal(value, expected[key].to(value.dtype)):
            return f"{key} is not what was saved"
    return None


def _torn(rng: random.Random) -> Trial:
    data, config = checkpoint()
    said, torn = damages.of_bytes(rng, data)
    return trial(f"model0.pt: {said}", torn, config.encode(), original())


def _pickle(rng: random.Random) -> Trial:
    """The list of tensors is damaged, and the archive around it is whole."""
    data, config = checkpoint()
    out, said = io.BytesIO(), ""
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", 0) as new:
        for name in old.namelist():
            record = old.read(name)
            if name.endswith("data.pkl"):
                said, record = damages.of_bytes(rng, record)
            new.writestr(name, record)
    return trial(f"data.pkl: {said}", out.getvalue(), config.encode(), None)


def _tensor_file(rng: random.Random) -> Trial:
    """A .safetensors file, or its header, is damaged. Nothing there tells that its numbers are
    others, so they may be loaded if they are finite."""
    name = "model0.safetensors"
    data = safetensors.torch.save(original(), {"kind": "bc", "ibrl_version": "0.1.0"})
    if rng.random() < 0.5:
        said, torn = damages.of_bytes(rng, data)
        return trial(f"{name}: {said}", torn, checkpoint()[1].encode(), None, name)
    (size,) = struct.unpack("<Q", data[:8])
    said, tree = damages.of_value(rng, json.loads(data[8 : 8 + size]))
    header = json.dumps(tree).encode()
    torn = struct.pack("<Q", len(header)) + header + data[8 + size :]
    return trial(f"{name}, header: {said}", torn, checkpoint()[1].encode(), None, name)


# ---------------------------------------------------------------- other contents


def _nan(rng: random.Random, own: dict[Any, Any], key: str) -> None:
    value = own[key].clone()
    value.view(-1)[rng.randrange(value.numel())] = rng.choice([torch.nan, torch.inf, -torch.inf])
    own[key] = value


def _cast(rng: random.Random, own: dict[Any, Any], key: str) -> None:
    kinds = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool]
    own[key] = own[key].to(rng.choice([*kinds, torch.complex64, torch.float8_e4m3fn]))


def _shape(rng: random.Random, own: dict[Any, Any], key: str) -> None:
    value = own[key]
    forms = [value.reshape(-1), value.unsqueeze(0), value.T, value[:1], value[..., None], value[:0]]
    own[key] = rng.choice([*forms, value.sum(), torch.zeros(1).expand(10**12)])


def _layout(rng: random.Random, own: dict[Any, Any], key: str) -> None:
    value = own[key]
    own[key] = rng.choice([
        lambda: value.to_sparse(), lambda: value.to("meta"), lambda: value.contiguous().flip(0),
        lambda: torch.nn.Parameter(value), lambda: value.T.contiguous().T, lambda: value * 1e39,
    ])()  # fmt: skip


def _odd_key(rng: random.Random, own: dict[Any, Any], key: str) -> None:
    own[rng.choice([3, None, (1, 2), "", "é", "net.0.weight ", 2.5, True, b"x"])] = torch.zeros(1)


def _odd_entry(rng: random.Random, own: dict[Any, Any], key: str) -> None:
    own[rng.choice([key, "more"])] = damages.odd_value(rng)


def _drop(rng: random.Random, own: dict[Any, Any], key: str) -> None:
    del own[key]


def _swap(rng: random.Random, own: dict[Any, Any], key: str) -> None:
    own[key] = own[rng.choice([other for other in original() if other in own])]


CHANGES: tuple[Callable[[random.Random, dict[Any, Any], str], None], ...] = (
    _nan, _cast, _shape, _layout, _odd_key, _odd_entry, _drop, _swap,
)  # fmt: skip


def _changed(rng: random.Random) -> Trial:
    """A file that torch wrote, of something else."""
    first = original()
    own: dict[Any, Any] = dict(first)
    said = []
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice([key for key in first if own.get(key) is first[key]])  # untouched so far
        change = rng.choice(CHANGES)
        change(rng, own, key)
        said.append(f"{change.__name__[1:]} {key}")
    value: Any = own
    if rng.random() < 0.1:
        value = rng.choice([list(own.items()), {"model": own}, next(iter(own.values())), None, 3])
        said.append(f"as a {type(value).__name__}")
    return trial(f"weights: {', '.join(said)}", to_bytes(value), checkpoint()[1].encode(), own)


# ---------------------------------------------------------------- cfg.yaml


def _config(rng: random.Random) -> Trial:
    data, config = checkpoint()
    said, torn = damages.of_bytes(rng, config.encode())
    return trial(f"cfg.yaml: {said}", data, torn, original())


def _config_value(rng: random.Random) -> Trial:
    data, config = checkpoint()
    said, tree = damages.of_value(rng, yaml.safe_load(config))
    text = yaml.safe_dump(tree, sort_keys=False)
    return trial(f"cfg.yaml: {said}", data, text.encode(), original())


KINDS: tuple[Callable[[random.Random], Trial], ...] = (
    _torn, _torn, _changed, _changed, _pickle, _config, _config_value, _tensor_file, _tensor_file,
)  # fmt: skip
