"""Weights as .safetensors: the same numbers everywhere a .pt file is read, and nothing else."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

import train_bc
from common_utils.errors import UserError, run_program
from common_utils.kept_weights import find, keep, originals
from common_utils.run_config import ConfigError
from tests.infra.test_hostile_files import bytes_of, checkpoint, refused
from tools import export
from workspace.tensor_file import write_tensors
from workspace.weights import load_weights


def exported(folder: Path) -> Path:
    """The policy of ``checkpoint`` as a .safetensors file in a folder of its own."""
    (folder / "run").mkdir()
    out = folder / "shared" / "model0.safetensors"
    args = ["--weight", str(checkpoint(folder / "run")), "--out", str(out)]
    assert run_program(export.main, args) == 0
    return out


def test_the_same_weights_under_the_official_names(tmp_path: Path) -> None:
    out = exported(tmp_path)
    own = torch.load(tmp_path / "run/model0.pt", weights_only=True)
    read = safetensors.torch.load_file(out)  # the package's own reader
    assert read.keys() == own.keys() and all(torch.equal(read[k], own[k]) for k in own)
    policy, _ = train_bc.load_policy(out, "cpu")
    assert all(torch.equal(v, own[k]) for k, v in policy.state_dict().items())
    with safetensors.safe_open(out, "pt") as file:
        about = file.metadata()
    assert about["kind"] == "bc" and "hidden_dim: 4" in about["config"]
    assert about["weights"] == str(tmp_path / "run/model0.pt")


def test_tensors_that_share_memory_and_views(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    own = {"a": whole, "b": whole, "c": whole.T, "d": whole[0], "n": torch.tensor(3)}
    write_tensors(own, tmp_path / "x.safetensors", {}, "out")
    read = load_weights(tmp_path / "x.safetensors", "weight")
    assert all(torch.equal(read[k], own[k]) and read[k].dtype == own[k].dtype for k in own)


def header(text: str, size: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text.encode() + data


def entry(**changes: Any) -> Callable[[bytes], bytes]:
    """The entry of the first layer's weights [4, 3] is another."""

    def change(data: bytes) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        tree = json.loads(data[8 : 8 + size])
        name = next(k for k, v in tree.items() if v.get("shape") == [4, 3])
        tree[name] |= changes
        return header(json.dumps(tree), data=data[8 + size :])

    return change


NAN = struct.pack("<f", float("nan"))
BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut off": (lambda data: data[:-5], "damaged, cut off"),
    "header cut off": (lambda data: data[:60], "damaged, cut off"),
    "empty": (lambda data: b"", "it is empty"),
    "text": (lambda data: b"hello", "damaged, cut off"),
    "a pickle": (lambda data: bytes_of({"a": torch.zeros(3)}), "damaged, cut off"),
    "longer than its header says": (lambda data: data + b"\0" * 8, "damaged, cut off"),
    "header of 2^60 bytes": (lambda data: header("{}", 2**60), "damaged, cut off"),
    "no JSON": (lambda data: header("{{{"), "damaged, cut off"),
    "a list": (lambda data: header("[1, 2]"), "damaged, cut off"),
    "deep": (lambda data: header("[" * 100_000), "damaged, cut off"),
    "no tensors": (lambda data: header("{}"), "missing net."),
    "shape that claims more": (entry(shape=[4, 10**12]), "damaged, cut off"),
    "negative size": (entry(shape=[-4, -3]), "damaged, cut off"),
    "offsets beyond the file": (entry(data_offsets=[0, 10**15]), "damaged, cut off"),
    "offsets that overlap": (entry(data_offsets=[0, 4]), "damaged, cut off"),
    "unknown numbers": (entry(dtype="F77"), "damaged, cut off"),
    "integers": (entry(dtype="I32"), "(int32, expected float32)"),
    "another shape": (entry(shape=[12]), "size mismatch for "),
    "not a number": (lambda data: data[:-4] + NAN, "holds NaN or infinity"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_refused(tmp_path: Path, name: str) -> None:
    out = exported(tmp_path)
    change, said = BAD[name]
    out.write_bytes(change(out.read_bytes()))
    refused(out, said)


def test_without_the_package_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = exported(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.torch")
    with pytest.raises(UserError, match=r"^weight: the package 'safetensors' is not .*\[data\]"):
        load_weights(out, "weight")


def test_a_run_keeps_a_copy_that_is_read_the_same_way(tmp_path: Path) -> None:
    out = exported(tmp_path)
    (tmp_path / "rl").mkdir()
    keep(tmp_path / "rl", originals([str(out)]))
    out.unlink()
    kept = find(tmp_path / "rl")
    assert kept is not None and kept.notes == [] and kept.files[0].endswith("0/model.safetensors")
    policy, _ = train_bc.load_policy(kept.files[0], "cpu")
    own = torch.load(tmp_path / "run/model0.pt", weights_only=True)
    assert all(torch.equal(v, own[k]) for k, v in policy.state_dict().items())


def test_nothing_is_replaced_or_mixed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(tmp_path)
    before = out.read_bytes()
    args = ["--weight", str(tmp_path / "run/model0.pt"), "--out"]
    assert run_program(export.main, [*args, str(out)]) == 2
    assert "exists; replace it with --overwrite 1" in capsys.readouterr().err
    assert run_program(export.main, [*args, str(out), "--overwrite", "1"]) == 0
    assert out.stat().st_size == len(before)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/cfg.yaml").write_text("seed: 3\n")
    assert run_program(export.main, [*args, str(tmp_path / "other/x.safetensors")]) == 2
    assert "holds the cfg.yaml of another run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["cfg.yaml"]
    for name in ("x.pt", "x"):
        assert run_program(export.main, [*args, str(tmp_path / name)]) == 2
        assert "expected a name that ends in .onnx or .safetensors" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weight: no file '.*gone.safetensors'"):
        load_weights(tmp_path / "gone.safetensors", "weight")
