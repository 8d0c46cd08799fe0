from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common_utils import seeding
from common_utils.atomic import (
    atomic_json,
    atomic_torch_save,
    atomic_write,
    atomic_yaml,
    remove_leftovers,
)
from common_utils.finite import NonFiniteError
from common_utils.saver import TopkSaver

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "ibrl" / "topk_saver.json"


# ---------------------------------------------------------------- atomic


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="halfway"), atomic_write(target, "w") as handle:
        handle.write("new")
        raise RuntimeError("halfway")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("mode", [None, "w"])
def test_what_is_not_a_file_is_not_replaced(mode: str | None, tmp_path: Path) -> None:
    """As root, ``--out /dev/null`` made an ordinary file of it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/null", "/dev/stdout"):
        with pytest.raises(OSError, match="not a regular file") as error:
            with atomic_write(path, mode):
                raise AssertionError("reached")
        assert error.value.filename == str(path)
    assert pipe.is_fifo() and Path("/dev/null").is_char_device()


def test_path_mode_keeps_the_suffix_and_notices_when_nothing_was_written(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "sub" / "x.npz") as temp:
        assert temp.suffix == ".npz"
        assert not (tmp_path / "sub" / "x.npz").exists()
        np.savez(temp, a=np.arange(3))
    assert np.load(tmp_path / "sub" / "x.npz")["a"].tolist() == [0, 1, 2]
    with pytest.raises(FileNotFoundError, match="nothing was written"):
        with atomic_write(tmp_path / "y.npz"):
            pass


def test_writers_round_trip(tmp_path: Path) -> None:
    atomic_json({"b": 1, "a": [1.5, None]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1, "a": [1.5, None]}
    atomic_yaml({"b": {"c": 1e-4}, "a": "x"}, tmp_path / "a.yaml")
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == {"b": {"c": 1e-4}, "a": "x"}
    atomic_torch_save({"w": torch.arange(3)}, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["w"].tolist() == [0, 1, 2]


def test_what_a_crash_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = [".tmp-0123456789ab-model0.pt", ".tmp-mine", "a.tmp-0123456789ab-x", "model0.pt"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / names[0]).write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[1:], "other"])
    assert (tmp_path / "other" / names[0]).exists()


def test_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a'"), atomic_write(tmp_path / "x", "a"):
        pass


# ---------------------------------------------------------------- seeding


def test_seed_for_is_stable_and_separates_names() -> None:
    # frozen: a change here changes every run
    assert seeding.seed_for(1, "replay") == 7571887959113564806
    seeds = {
        seeding.seed_for(s, *names)
        for s in range(50)
        for names in [("replay",), ("env",), ("env", 0), ("env", 1), ("env", "0"), ("env0",), ()]
    }
    assert len(seeds) == 350
    assert all(0 <= s < 2**63 for s in seeds)
    assert 0 <= seeding.seed_for(3, "numpy", bits=32) < 2**32


def _draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.randn()), torch.rand(()).item()]


def test_seeds_of_the_published_program() -> None:
    seeding.set_all_seeds(7)
    got = _draws()
    random.seed(7)
    np.random.seed(8)
    torch.manual_seed(9)
    assert got == _draws()
    with pytest.raises(ValueError, match="-1"):
        seeding.set_all_seeds(-1)


def test_global_state_survives_a_weights_only_file(tmp_path: Path) -> None:
    seeding.set_all_seeds(3)
    _draws()  # leaves a cached Gaussian in numpy and python
    torch.save(seeding.global_rng_state(), tmp_path / "s.pt")
    want = [_draws() for _ in range(3)]
    seeding.set_global_rng_state(torch.load(tmp_path / "s.pt", weights_only=True))
    assert [_draws() for _ in range(3)] == want


def test_preserve_rng_shields_even_when_the_block_raises() -> None:
    seeding.set_all_seeds(3)
    want = _draws()
    seeding.set_all_seeds(3)
    with pytest.raises(KeyError), seeding.preserve_rng():
        seeding.set_all_seeds(99)
        _draws()
        raise KeyError
    assert _draws() == want


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_generator_state_is_json(kind: type) -> None:
    generator = np.random.Generator(kind(5))
    generator.integers(0, 10, 3, dtype=np.uint32)
    state = json.loads(json.dumps(seeding.generator_state(generator)))
    want = generator.standard_normal(5).tolist()
    other = np.random.Generator(kind(6))
    seeding.set_generator_state(other, state)
    assert other.standard_normal(5).tolist() == want
    with pytest.raises(ValueError, match="SFC64"):
        seeding.set_generator_state(np.random.Generator(np.random.SFC64(1)), state)


# ---------------------------------------------------------------- saver


@pytest.mark.parametrize("case", json.loads(FIXTURE.read_text())["table"], ids=lambda c: c["topk"])
def test_saver_follows_the_recorded_table(case: dict, tmp_path: Path) -> None:
    saver = TopkSaver(tmp_path, case["topk"])
    for row in case["rows"]:
        saved = saver.save({"i": torch.tensor(float(row["i"]))}, row["perf"])
        assert saved is row["returned"]
        contents = {
            p.name: torch.load(p, weights_only=True)["i"].item() for p in tmp_path.glob("*.pt")
        }
        assert contents == row["contents"]
    assert saver.best_path is not None
    assert saver.best_path.name == case["best"]


def test_saver_resumes_with_its_scores(tmp_path: Path) -> None:
    saver = TopkSaver(tmp_path, 2)
    assert saver.best_path is None
    for perf in (0.4, 0.6):
        saver.save({}, perf, save_latest=False)
    assert not saver.latest_path.exists()
    again = TopkSaver(tmp_path, 2)
    again.load_state_dict(saver.state_dict())
    assert again.save({}, 0.3) is False
    assert max(again.perfs) == 0.6
    with pytest.raises(ValueError, match="topk"):
        TopkSaver(tmp_path, 3).load_state_dict(saver.state_dict())
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(NonFiniteError, match=f"the score is {bad}, expected a finite number"):
            saver.save({}, bad)
    assert saver.perfs == [0.4, 0.6]


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    saver = TopkSaver(tmp_path, 2)
    saver.save({"w": torch.ones(2)}, 0.5)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for bad in (float("nan"), float("inf")):
        weights = {"steps": torch.tensor(3), "net.bias": torch.tensor([0.0, bad])}
        with pytest.raises(NonFiniteError, match=r"net\.bias holds NaN or infinity"):
            saver.save(weights, 0.9)
        with pytest.raises(NonFiniteError, match=r"model1\.pt' is not written: net\.bias"):
            saver.save(weights, 0.9, save_latest=False)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert max(saver.perfs) == 0.5 and saver.save({"w": torch.zeros(2)}, 0.4)


def test_saver_cuts_views_out_of_their_storage(tmp_path: Path) -> None:
    flat = torch.arange(100_000.0)
    TopkSaver(tmp_path, 1).save({"w": flat[10:20]}, 1.0)
    assert (tmp_path / "model0.pt").stat().st_size < 5_000
    assert torch.load(tmp_path / "model0.pt", weights_only=True)["w"].tolist() == list(
        range(10, 20)
    )
