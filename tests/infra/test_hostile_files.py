"""Weights and cfg.yaml from anybody: one clear message, no code run, no hang, nothing guessed."""

from __future__ import annotations

import io
import math
import os
import pickle
import signal
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import train_bc
import train_rl
from bc.dataset import DatasetConfig
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.run_config import ConfigError, load, parse_args, read_yaml
from common_utils.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_yaml
from evaluate import eval as eval_cli
from workspace import build_agent
from workspace.weights import load_weights, put_weights


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """What waits for a pipe, or never ends, fails."""

    def give_up(*_: object) -> None:
        raise TimeoutError("hung for 30 s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------- cfg.yaml


def bomb(kind: str, levels: int = 30) -> str:
    """A few hundred bytes that stand for 2^levels values."""
    if kind == "lists":
        return "a0: &a0 [1, 1]\n" + "".join(
            f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, levels)
        )
    return "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, levels)
    )


BAD_YAML = {
    "integer key": ("3: x", "line 1, column 1: a key is a int, expected a field's name"),
    "integer key below": ("q_agent: {lr: 1, 3: x}", "line 1, column 18: a key is a int"),
    "null key": ("~: x", "a key is null"),
    "switch for a key": ("on: x", "a key is a bool"),
    "unhashable key": ("[1, 2]: x", "a key is a list, expected a field's name"),
    "mapping for a key": ("{a: 1}: x", "a key is a dict"),
    "unhashable below": ("q_agent: {? {a: [1]} : 2}", "a key is a dict"),
    "lists of aliases": (bomb("lists"), f"more than {MAX_NODES:,} values"),
    "merged aliases": (bomb("merges"), f"more than {MAX_NODES:,} values"),
    "in itself": ("a: &a [*a]", "(or in itself)"),
    "deep": ("a: " + "[" * 4 * MAX_DEPTH + "]" * 4 * MAX_DEPTH, f"deeper than {MAX_DEPTH} levels"),
    "too deep for Python": ("[" * 50_000, f"deeper than {MAX_DEPTH} levels"),
    "no date": ("a: 2020-13-45", "line 1, column 4: month must be in 1..12"),
    "digits": ("a: " + "7" * 5_000, "a value of 5,000 characters"),
    "an object": ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    "two documents": ("a: 1\n---\nb: 2", "but found another document"),
    "control characters": ("a: \x01", "special characters are not allowed"),
    "no YAML": ("a: [", "line 1, column 5: "),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_texts_that_are_no_configuration(tmp_path: Path, name: str) -> None:
    text, said = BAD_YAML[name]
    path = tmp_path / "cfg.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert f"{path}: not valid YAML: " in str(error.value) and said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_texts_that_are_one() -> None:
    assert parse_yaml("base: &b {lr: 1}\nq: {<<: *b, seed: 2}\nr: [*b, x, {a: .5}]") == {
        "base": {"lr": 1}, "q": {"lr": 1, "seed": 2}, "r": [{"lr": 1}, "x", {"a": 0.5}],
    }  # fmt: skip
    assert parse_yaml("") is None and parse_yaml("1") == 1 and parse_yaml("[a, b]") == ["a", "b"]


@pytest.mark.parametrize(
    "text", ["{[1]: 2}", "2020-13-45", "7" * 5_000, "[" * 5_000, bomb("lists")]
)
def test_values_on_the_command_line(text: str) -> None:
    with pytest.raises(ConfigError, match="seed: cannot read .*, expected an integer"):
        parse_args(train_bc.MainConfig, [f"--seed={text}"])


@pytest.mark.parametrize(
    "text",
    [
        "dataset: 3", "env: [1, 2]", "ebm: ", "policy_type: ebm\nebm: ", "seed: {a: 1}",
        "batchsize: 3\ndataset: 4",
        "batchsize: 3\nenv: 4", "batchsize: 3\npolicy: x", "batchsize: {a: 1}",
        "batchsize: 1\nrobot: [1]", "dataset: {rl_camera: {x: y}}",
        "policy_type: ebm\nebm: {net: [1]}",
    ],
)  # fmt: skip
def test_wrong_sections(tmp_path: Path, text: str) -> None:
    weight = checkpoint(tmp_path)
    (tmp_path / "cfg.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"cfg\.yaml: "):
        train_bc.load_policy(weight, "cpu")


# ------------------------------------------------------------- files that are no files


def not_ordinary(path: Path, kind: str) -> str:
    """Something else in the place of ``path``; returns what is said of it."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path.name)
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)  # a hole
    else:
        path.write_bytes(b"seed: \xff\xfe")
    return {
        "huge": f"larger than {MAX_BYTES:,} bytes",
        "text": "not UTF-8 text: invalid start byte at byte 6",
        "circle": "Too many levels of symbolic links",
        "folder": "Is a directory",
    }.get(kind, "not an ordinary file")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "circle", "huge", "text"])
def test_a_config_that_is_no_ordinary_file(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = checkpoint(tmp_path)
    said = not_ordinary(tmp_path / "cfg.yaml", kind)
    for read in (lambda: load(train_bc.MainConfig, tmp_path / "cfg.yaml"),
                 lambda: train_bc.load_policy(weight, "cpu")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            read()
    args = ["--weight", str(weight), "--device", "cpu"]
    assert run_program(eval_cli.main, args) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "circle", "text"])
def test_weights_that_are_no_ordinary_file(tmp_path: Path, kind: str) -> None:
    weight = checkpoint(tmp_path)
    not_ordinary(weight, kind)
    said = {"text": "not a readable weight file", "circle": "no file", "folder": "is a folder"}
    refused(weight, said.get(kind, "is not an ordinary file"))


# -------------------------------------------------------------------------------- weights


def checkpoint(folder: Path) -> Path:
    """A small policy over states, and its cfg.yaml."""
    cfg = train_bc.MainConfig(
        dataset=DatasetConfig(path="gone.hdf5", use_state=1, eval_episode_len=12),
        save_dir=str(folder),
        obs_shape=[3],
        action_dim=2,
    )
    cfg.state_policy.hidden_dim = 4
    cfg.env.suite, cfg.env.task, cfg.env.use_state = "metaworld", "Assembly", 1
    run_config.dump(cfg, folder / "cfg.yaml")
    torch.manual_seed(0)
    torch.save(train_bc.build_policy(cfg).state_dict(), folder / "model0.pt")
    return folder / "model0.pt"


ADVICE = ("weights_only", "trust", "safe_globals", "pytorch.org", "torch.load")


def refused(weight: Path, said: str) -> None:
    """Loading says what is wrong in up to three lines, none of them torch's advice."""
    with pytest.raises(ConfigError) as error:
        train_bc.load_policy(weight, "cpu")
    text = str(error.value)
    assert said in text and str(weight) in text and len(text.splitlines()) <= 3, text
    assert not [word for word in ADVICE if word in text.replace("--trust", "")], text


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(Evil.target),)

    target = Path()


def bytes_of(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def compressed(data: bytes) -> bytes:
    """The same archive, its records compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


def changed(**values: object) -> Callable[[dict[str, Any]], bytes]:
    """A file in which the first weight is another."""
    return lambda own: bytes_of({**own, next(iter(own)): values["to"]})


def flipped(own: dict[str, Any]) -> tuple[bytes, bytes]:
    """The first weight's bytes, and the same with another sign of one number."""
    data = next(iter(own.values())).numpy().tobytes()
    return data, data[:-1] + bytes([data[-1] ^ 0x80])


def grown(own: dict[str, Any]) -> bytes:
    more = {f"more.{n}": torch.zeros(1) for n in range(500)}
    return bytes_of({**own, **more})


BAD_WEIGHTS: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "integer key": (lambda own: bytes_of({**own, 3: torch.zeros(1)}), "holds the key '3' (int)"),
    "tuple key": (lambda own: bytes_of({(1, 2): torch.zeros(1)}), "(tuple), expected names"),
    "a number": (lambda own: bytes_of({**own, "x": 3}), "'x' is a int, expected a tensor"),
    "nested": (lambda own: bytes_of({"model": own}), "'model' is a OrderedDict"),
    "a list": (lambda own: bytes_of([1, 2]), "holds a list, expected a state_dict"),
    "a tensor": (lambda own: bytes_of(torch.zeros(3)), "holds a Tensor"),
    "integers": (changed(to=torch.zeros(4, 3, dtype=torch.int64)), "(int64, expected float32)"),
    "a mask": (changed(to=torch.zeros(4, 3, dtype=torch.bool)), "(bool, expected float32)"),
    "complex": (changed(to=torch.zeros(4, 3, dtype=torch.complex64)), "complex64, expected real"),
    "8 bits": (
        changed(to=torch.zeros(4, 3).to(torch.float8_e4m3fn)),
        "holds float8_e4m3fn, expected real numbers",
    ),
    "sparse": (changed(to=torch.eye(4, 3).to_sparse()), "is not a dense tensor"),
    "nowhere": (changed(to=torch.zeros(4, 3, device="meta")), "is not a dense tensor"),
    "endless": (changed(to=torch.zeros(1).expand(10**12)), "but the file holds less"),
    "not a number": (changed(to=torch.full((4, 3), torch.nan)), "holds NaN or infinity"),
    "infinity": (changed(to=torch.full((4, 3), -torch.inf)), "holds NaN or infinity"),
    "infinity in float32": (
        changed(to=torch.full((4, 3), 1e300, dtype=torch.float64)),
        "holds NaN or infinity",
    ),
    "shape": (changed(to=torch.zeros(3, 4)), "size mismatch for "),
    "nothing": (lambda own: bytes_of({}), "missing net."),
    "other names": (lambda own: bytes_of({f"x.{k}": v for k, v in own.items()}), "not expected x."),
    "many names": (grown, "not expected more.0, more.1, more.2 and 497 more"),
    "code": (lambda own: bytes_of({"a": Evil()}), "which is code and is not run"),
    "plain pickle": (lambda own: pickle.dumps(Evil()), "is not a readable weight file"),
    "compressed": (lambda own: compressed(bytes_of(own)), "its records are compressed"),
    "another bit": (
        lambda own: bytes_of(own).replace(*flipped(own)),
        "the checksum of its record 'archive/data/0' does not match",
    ),
    "a folder for a record": (
        lambda own: with_attribute(bytes_of(own), "archive/data/0", 0x10),
        "its record 'archive/data/0' is marked as a folder",
    ),
    "lines in a name": (lambda own: bytes_of({"a\nb\nc\nd": torch.zeros(1)}), r"a\nb\nc\nd"),
    "cut off": (lambda own: bytes_of(own)[:-200], "is not a readable weight file"),
    "empty": (lambda own: b"", "is not a readable weight file: it is empty"),
    "text": (lambda own: b"hello", "is not a readable weight file"),
    "script": (
        lambda own: scripted(),
        "is not a readable weight file",
    ),
}


def with_attribute(archive: bytes, record: str, value: int) -> bytes:
    """The archive with the external attributes of a record changed in its directory of records."""
    data = bytearray(archive)
    entry = data.rindex(record.encode()) - 46
    assert data[entry : entry + 4] == b"PK\1\2"
    data[entry + 38] = value
    return bytes(data)


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", BAD_WEIGHTS)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_refused(tmp_path: Path, name: str) -> None:
    Evil.target = tmp_path / "ran"
    make, said = BAD_WEIGHTS[name]
    weight = checkpoint(tmp_path)
    own = torch.load(weight, weights_only=True)
    assert next(iter(own)).startswith("net.") and own[next(iter(own))].shape == (4, 3)
    weight.write_bytes(make(own))
    refused(weight, said)
    assert not Evil.target.exists()


def test_weights_of_a_bc_policy_name_the_option_of_the_rl_run(tmp_path: Path) -> None:
    weight = checkpoint(tmp_path)
    torch.save({k: v * math.nan for k, v in torch.load(weight).items()}, weight)
    cfg = train_rl.MainConfig(bc_policy=str(weight))
    with pytest.raises(ConfigError, match="^bc_policy: '.*holds NaN or infinity"):
        build_agent.load_bc_policies(cfg)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("action_dim: 2", "action_dim: 2147483648", "size mismatch for "),
        ("  use_state: 1\n  prop_stack", "  prop_stack", "image observations are [C, H, W]"),
    ],
)
def test_a_config_of_other_sizes_takes_no_memory_and_is_named(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    weight = checkpoint(tmp_path)
    config = tmp_path / "cfg.yaml"
    text = config.read_text()
    config.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        train_bc.load_policy(weight, "cpu")
    assert said in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = checkpoint(tmp_path)
    own = torch.load(weight, weights_only=True)
    torch.save(OrderedDict((k, v.to(dtype)) for k, v in own.items()), weight)
    policy, _ = train_bc.load_policy(weight, "cpu")
    for key, value in policy.state_dict().items():
        assert value.dtype is torch.float32
        torch.testing.assert_close(value, own[key], rtol=1e-2, atol=1e-2)


def test_counters_are_integers(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(2)
    path = tmp_path / "x.pt"
    torch.save(module.state_dict(), path)
    put_weights(module, load_weights(path, "w"), path, "w")
    torch.save({**module.state_dict(), "num_batches_tracked": torch.tensor(1.0)}, path)
    with pytest.raises(ConfigError, match=r"num_batches_tracked \(float32, expected int64\)"):
        put_weights(module, load_weights(path, "w"), path, "w")
