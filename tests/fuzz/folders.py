"""Damaged run folders: refused, or continued and read as if nothing had happened.

What is resumed from an older state has to end where the undamaged run ended, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

import train_bc
import train_rl
from common_utils import run_config, run_state
from common_utils.errors import USER_ERROR, UserError
from common_utils.records import read_metrics
from evaluate import eval as evaluation
from tests import runs
from tests.bc.ibc_data import write_particle
from tests.fuzz import damages
from tests.fuzz.case import Case, Trial
from tests.fuzz.runs import RUNS
from tools import plot_runs, report
from workspace import build_agent, build_policy

KIND = "folders"
FILES = ("cfg.yaml", "metrics.jsonl", "model0.pt", "latest.pt", "train.log")


def cases(rng: random.Random) -> Iterator[Case]:
    while True:
        yield _case(rng)


# ---------------------------------------------------------------- undamaged runs


@functools.cache
def workshop() -> tempfile.TemporaryDirectory[str]:
    """Where they lie, until this process ends."""
    return tempfile.TemporaryDirectory(prefix="fuzz_runs_")


@functools.cache
def whole(kind: str) -> Path:
    """The folder of a finished run, with all its states."""
    folder = Path(workshop().name) / kind
    if kind == "rl":
        whole("bc")
    with mock.patch.object(run_state, "_remove_old_states"):
        train(kind, folder, resume=False)
    return folder


@functools.cache
def states(kind: str) -> tuple[str, ...]:
    """Names of its states, the oldest first."""
    return tuple(sorted(p.name for p in (whole(kind) / "state").iterdir()))


def prepare() -> None:
    """What all children share."""
    whole("rl")


def train(kind: str, folder: Path, *, resume: bool = True) -> None:
    """A small run, from its beginning or from its newest state; ``rl`` is IBRL with ``bc``."""
    here = Path(workshop().name)
    if kind == "bc":
        options = {k: v for k, v in RUNS["train_bc"].items() if not k.startswith(OTHERS)}
        options |= {"policy_type": "state", "dataset.path": here / "demos.hdf5"}
        options |= {"state_policy.hidden_dim": 4}
        if not (here / "demos.hdf5").is_file():
            write_particle(here / "demos.hdf5")
    else:
        options = RUNS["train_rl"] | {
            "bc_policy": here / "bc" / "model0.pt", "q_agent.act_method": "ibrl",
        }  # fmt: skip
    options |= {"save_dir": folder, "resume": int(resume)}
    program: Any = train_bc if kind == "bc" else train_rl
    args = [f"--{k}={v}" for k, v in options.items()]
    program.run(run_config.parse_args(program.MainConfig, args))


OTHERS = ("ebm.", "mse.", "mdn.")


# ---------------------------------------------------------------- readers and their oracles


def _resume(kind: str, run: Path) -> str | None:
    before = _records(run)
    train(kind, run)
    weights, wanted = runs.weights(run), runs.weights(whole(kind))
    if [k for k in wanted if not torch.equal(weights[k], wanted[k])]:
        return "the weights at the end are others"
    known = runs.metrics(whole(kind))
    after = [*_records(run), *(r for p in run.glob("metrics.jsonl.*") for r in _read(p))]
    if lost := [r for r in before if r in known and r not in after]:
        return f"records are lost: {lost[:2]}"
    return None


def _records(run: Path) -> list[dict[str, Any]]:
    return _read(run / "metrics.jsonl")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [
        {k: v for k, v in record.items() if not k.startswith(runs.TIMING)}
        for record in read_metrics(path)
    ]


def _load(kind: str, run: Path) -> str | None:
    module: Any = build_policy if kind == "bc" else build_agent
    model, env, _ = module.load_model(str(run / "model0.pt"), "cpu")
    env.close()
    wanted = torch.load(whole(kind) / "model0.pt", weights_only=True)
    own = model.state_dict()
    if own.keys() != wanted.keys() or not all(torch.equal(own[k], wanted[k]) for k in own):
        return "the weights are others"
    return None


def _evaluate(kind: str, run: Path) -> str | None:
    options = ["--mp", "0", "--num_game", "1", "--device", "cpu", "--verbose", "0"]
    return _status(evaluation.main(["--weight", str(run / "model0.pt"), *options]))


def _evaluate_all(kind: str, run: Path) -> str | None:
    options = ["--mp", "0", "--num_game", "1", "--device", "cpu", "--verbose", "0"]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = evaluation.main(["--folder", str(run.parent), *options])
    if status == USER_ERROR:  # what it says of each file that it cannot use
        raise UserError(said.getvalue().splitlines()[0])
    return _status(status)


def _plot(kind: str, run: Path) -> str | None:
    key = "train/loss" if kind == "bc" else "score/score"
    out = str(run.parent / "plot.png")
    return _status(plot_runs.main([str(run), "--key", key, "--out", out, "--bootstrap", "2"]))


def _report(kind: str, run: Path) -> str | None:
    out = run.parent / "report.html"
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = report.main([str(run), "--out", str(out), "--bootstrap", "2"])
    if status == USER_ERROR:
        raise UserError(said.getvalue().splitlines()[0])
    return None if out.is_file() else "no report was written"


def _status(status: int) -> str | None:
    return f"the status is {status}" if status else None


READERS: dict[str, Callable[[str, Path], str | None]] = {
    "resume": _resume, "load_model": _load, "evaluate": _evaluate,
    "evaluate a folder": _evaluate_all, "plot_runs": _plot, "report": _report,
}  # fmt: skip
LOOKS_AT = {
    "resume": ("cfg.yaml", "metrics.jsonl", "state", "state", "state", "bc_policy", "tb"),
    "load_model": ("cfg.yaml", "model0.pt", "bc_policy"),
    "evaluate": ("cfg.yaml", "model0.pt", "bc_policy"),
    "evaluate a folder": ("cfg.yaml", "latest.pt", "bc_policy", "state"),
    "plot_runs": ("metrics.jsonl",),
    "report": ("metrics.jsonl", "cfg.yaml", "run_info.json"),
}


# ---------------------------------------------------------------- damages


@dataclass
class Draft:
    """A copy of a run that is being damaged, at one of its files."""

    rng: random.Random
    kind: str
    run: Path
    path: Path


def _bytes(d: Draft) -> None:
    if d.path.stat().st_size:
        d.path.write_bytes(damages.of_bytes(d.rng, d.path.read_bytes())[1])


def _value(d: Draft) -> None:
    """Another value in what is JSON or YAML; elsewhere bytes."""
    try:
        d.path.write_text(_other_value(d.rng, d.path.name, d.path.read_text()))
    except (ValueError, RecursionError):  # the first damage left nothing to parse
        _bytes(d)


def _other_value(rng: random.Random, name: str, text: str) -> str:
    if name in ("COMPLETE", "origin.json"):
        return json.dumps(damages.of_value(rng, json.loads(text))[1])
    if name == "metrics.jsonl":
        lines = text.splitlines()
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(damages.of_value(rng, json.loads(lines[number]))[1])
        return "\n".join(lines) + "\n"
    if name != "cfg.yaml":
        raise ValueError(name)
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(name) from error
    return yaml.safe_dump(damages.of_value(rng, tree)[1], sort_keys=False)


BOMB = "".join(f"x{n}: &x{n} [{f'*x{n - 1},' * 20 if n else '1'}]\n" for n in range(12))
TEXTS = (
    b"", b"\xff\xfe\x00", b"\x00" * 5000, b"[" * 200_000, b"{" * 50_000, BOMB.encode(), b"null",
    b"[1, 2]\n", b"{}", b"5", b"? [a]\n: 1\n", b"1: 2\n", b"!!python/object/apply:os.system [x]\n",
    b"<<<<<<< HEAD\n", b'{"step": 1}\n', b'{"step": 1e999, "files": {}}', b"a: b: c", b"x" * 2**21,
)  # fmt: skip


def _text(d: Draft) -> None:
    d.path.write_bytes(d.rng.choice(TEXTS))


def _line(d: Draft) -> None:
    """Garbage in the middle."""
    lines = d.path.read_bytes().split(b"\n")
    lines.insert(d.rng.randrange(len(lines)), d.rng.choice(TEXTS))
    d.path.write_bytes(b"\n".join(lines))


def _thing(d: Draft) -> None:
    """No ordinary file."""
    _remove(d.path)
    _make(d.rng, d.path)


def _make(rng: random.Random, path: Path) -> None:
    kind = rng.choice(["folder", "pipe", "/dev/zero", "/dev/full", "loop", "gone", "empty", "up"])
    if kind == "folder":
        path.mkdir()
        (path / "x").mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.symlink_to({"loop": path.name, "up": ".."}.get(kind, kind))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _missing(d: Draft) -> None:
    _remove(d.path)


def _folder(d: Draft) -> None:
    """The folder that the file lies in, if it is not the run itself."""
    folder = d.path.parent
    if folder == d.run:
        folder = d.run / "state"
    if not os.path.lexists(folder):
        return
    _remove(folder)
    if d.rng.random() < 0.6:
        _make(d.rng, folder)


def _swapped(d: Draft) -> None:
    """The same file of another kind of run, or of the run's other state."""
    place = d.path.relative_to(d.run)
    others = [whole("rl" if d.kind == "bc" else "bc") / place]
    if "state" in place.parts:
        saved = sorted((d.run / "state").iterdir())
        others += [s / Path(*place.parts[2:]) for s in saved if s.name != place.parts[1]]
        others += [p for p in d.path.parent.iterdir() if p != d.path]
    others = [p for p in others if p.is_file()]
    if others:
        data = d.rng.choice(others).read_bytes()
        d.path.write_bytes(data)


def _other_state(d: Draft) -> None:
    """A whole state of another kind of run is the newest."""
    if not (d.run / "state").is_dir():
        return
    other = "rl" if d.kind == "bc" else "bc"
    source = whole(other) / "state" / states(other)[-1]
    newest = sorted((d.run / "state").iterdir())[-1]
    target = d.run / "state" / d.rng.choice([source.name, f"{newest.name}_7"])
    if target.is_dir() or not os.path.lexists(target):  # no stray is there
        shutil.copytree(source, target, dirs_exist_ok=True)


STRAYS: tuple[Any, ...] = (
    "step_x", "step_000000099", "step_" + "9" * 18, "step_" + "9" * 19, ".tmp_step_9_1_a", "notes",
    ".old_step_000000001", ".old_step_x", b"step_\xff", b"\xff\xfe", "step_000000012_1", "step_-1",
    "step_000000008_999999999", "COMPLETE", "\u00e9", "a\nb\nc\nd",
)  # fmt: skip


def _stray(d: Draft) -> None:
    """What does not belong among the states, or in one of them."""
    folders = [d.run / "state", *(d.run / "state").glob("*"), d.run / "tb", d.run]
    folders = [folder for folder in folders if folder.is_dir()]
    where, name = d.rng.choice(folders), d.rng.choice(STRAYS)
    path = Path(os.fsdecode(os.path.join(os.fsencode(where), os.fsencode(name))))
    if os.path.lexists(path):
        _remove(path)
    if d.rng.random() < 0.5:
        _make(d.rng, path)
        return
    path.mkdir()
    marker = d.rng.choice([None, b"", b"{}", b'{"step": 99, "files": {}}', b"\xff", "thing"])
    if marker == "thing":
        _make(d.rng, path / "COMPLETE")
    elif isinstance(marker, bytes):
        (path / "COMPLETE").write_bytes(marker)


DAMAGES: tuple[Callable[[Draft], None], ...] = (
    *(_bytes, _bytes, _value, _value, _text, _line, _thing, _missing, _folder, _swapped),
    *(_other_state, _stray, _stray),
)


def _case(rng: random.Random) -> Trial:
    kind, reader = rng.choice(["bc", "rl"]), rng.choice(["resume", "resume", *sorted(READERS)])
    own, parts = random.Random(rng.random()), LOOKS_AT[reader]
    newest = rng.randrange(len(states(kind)))
    kept = states(kind)[max(0, newest - 1) : newest + 1]  # the later ones are not there yet
    chosen = [rng.choice(DAMAGES) for _ in range(rng.choice([1, 1, 1, 2]))]
    if rng.random() < 0.3:
        parts = (rng.choice(parts),)
    files = [_file(rng, kind, rng.choice(parts), kept) for _ in chosen]

    def call(folder: Path) -> str | None:
        run = folder / "run"
        shutil.copytree(whole(kind), run)
        for name in set(states(kind)) - set(kept):
            shutil.rmtree(run / "state" / name)
        for damage, file in zip(chosen, files, strict=True):
            if (run / file).is_file():  # the first may have taken it away
                damage(Draft(own, kind, run, run / file))
        return READERS[reader](kind, run)

    said = ", ".join(f"{x.__name__[1:]} at {f}" for x, f in zip(chosen, files, strict=True))
    return Trial(f"{kind}, {reader}, {kept[-1]}: {said}", call, names=NAMED)


# of the folder, or fields
NAMED = (*FILES, "run", "state", "save_dir", "weight", "bc_policy", "COMPLETE", "plot")


def _file(rng: random.Random, kind: str, part: str, kept: Sequence[str]) -> str:
    """A file of that part of a run; of the ``kept`` states the newest is chosen more often."""
    if part == "state":
        part = f"state/{kept[-1] if rng.random() < 0.6 else kept[0]}"
    path = whole(kind) / part
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return str(rng.choice(found or [whole(kind) / "cfg.yaml"]).relative_to(whole(kind)))
