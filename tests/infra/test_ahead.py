"""A batch drawn ahead is the one that would have been drawn, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train_bc
import train_rl
from bc.dataset import DatasetConfig, RobomimicDataset
from common_utils import run_config
from common_utils.ahead import Ahead
from common_utils.specs import ArraySpec, Batch
from rl.replay import ReplayBuffer
from tests.bc.test_dataset import write_robomimic
from tests.runs import assert_same_run

CPU = torch.device("cpu")
SPECS = {"state": ArraySpec((4,), "float32", 2)}


@pytest.fixture(autouse=True)
def _ahead_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ahead, "on_cpu", True)


def replay(prefetch: int = 0, seed: int = 3) -> ReplayBuffer:
    out = ReplayBuffer(
        SPECS, 2, nstep=2, gamma=0.9, max_episode_length=20, replay_size=3, seed=seed,
        use_bc=True, prefetch=prefetch,
    )  # fmt: skip
    for number in range(2):
        add(out, number)
    return out


def add(buffer: ReplayBuffer, number: int, length: int = 7) -> None:
    frames = np.full((length, 2), number, np.float32)
    frames += np.arange(length, dtype=np.float32)[:, None] / 100
    actions = np.full((length, 2), number, np.float32)
    buffer.add_episode({"state": frames}, actions, np.arange(length, dtype=np.float32))


def both(buffer: ReplayBuffer, demos: bool) -> tuple[Batch, Batch | None]:
    """As an update of RFT draws."""
    batch = buffer.sample_rl_bc(6, 3)
    return batch, buffer.sample_bc(5) if demos else None


def flat(drawn: tuple[Batch, Batch | None]) -> list[torch.Tensor]:
    batches = [b for b in drawn if b is not None]
    return [t for b in batches for t in (*b.obs.values(), *b.next_obs.values(), b.action, b.reward)]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_and_their_order_stay(prefetch: int) -> None:
    """Episodes come, demonstrations are asked for or not, as announced and otherwise."""
    ours, plain = replay(prefetch), replay()
    ahead = Ahead[Any](ours, CPU)
    rng, used, drawn = np.random.default_rng(0), 0, []

    def draw(demos: bool) -> Any:
        drawn.append(demos)
        return both(ours, demos)

    for step in range(200):
        demos, announced, episode = rng.random(3) < (0.5, 0.8, 0.2)
        drawn.clear()
        got, want = ahead.take(draw, bool(demos)), both(plain, bool(demos))
        used += not drawn
        for a, b in zip(flat(got), flat(want), strict=True):
            assert torch.equal(a, b)
        if announced:
            ahead.prepare(draw, bool(rng.random() < 0.5))
        if episode:
            for buffer in (ours, plain):
                add(buffer, step, 3 + step % 10)
    assert 40 < used < 120  # what was drawn ahead served where nothing had changed


def test_a_state_is_as_if_nothing_had_been_drawn(tmp_path: Path) -> None:
    ours, plain = replay(), replay()
    ahead = Ahead[Any](ours, CPU)
    ahead.take(both, ours, True)
    both(plain, True)
    ahead.prepare(both, ours, True)
    ours.save(tmp_path / "ours")
    again = replay(seed=9)
    again.load(tmp_path / "ours")
    assert [m[1] for m in again.mark()] == [m[1] for m in plain.mark()]
    expected = flat(both(plain, True))
    for got in (both(again, True), ahead.take(both, ours, True)):
        assert all(torch.equal(a, b) for a, b in zip(flat(got), expected, strict=True))
    assert [m[1] for m in ours.mark()] == [m[1] for m in plain.mark()]


def test_a_failed_draw_leaves_the_source_as_it_was() -> None:
    ours = replay()
    before = ours.mark()

    def draw() -> Batch:
        ours.sample(4)
        raise RuntimeError("no room")

    ahead = Ahead[Batch](ours, CPU)
    with pytest.raises(RuntimeError, match="no room"):
        ahead.prepare(draw)
    assert ours.mark() == before


@pytest.mark.parametrize("sampling", ["replacement", "epochs"])
def test_demonstrations_too(sampling: str, tmp_path: Path) -> None:
    file = write_robomimic(tmp_path / "data.hdf5", size=8)
    ours, plain = (
        RobomimicDataset(DatasetConfig(path=str(file), use_state=1, sampling=sampling), seed=1)
        for _ in range(2)
    )
    ahead = Ahead[Any](ours, CPU)
    for _ in range(3 * ours.num_steps // 7):  # some passes
        got, want = ahead.take(ours.sample_bc, 7), plain.sample_bc(7)
        assert torch.equal(got.obs["state"], want.obs["state"])
        assert torch.equal(got.action, want.action)
        ahead.prepare(ours.sample_bc, 7)
        assert ours.state_dict() == plain.state_dict()


class Stream:
    """Stands for a CUDA stream: records what waits for it, and what is used on it."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.waited_for: list[Stream] = []
        self.used: list[torch.Tensor] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


def test_copies_run_on_a_stream_that_the_update_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a batch is made and who waits is decided here; there need be no GPU."""
    main, on = Stream(), []

    @contextmanager
    def stream(which: Stream) -> Iterator[None]:
        on.append(which)
        yield
        on.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, where: where.used.append(t))
    ours, device = replay(), torch.device("cuda", 1)
    ahead, made_on = Ahead[Any](ours, device), []

    def draw() -> Any:
        made_on.append(on[-1] if on else main)
        return both(ours, True)

    ahead.take(draw)
    assert made_on == [main] and main.waited_for == []
    ahead.prepare(draw)
    batch = ahead.take(draw)
    side = made_on[1]
    assert len(made_on) == 2 and side is not main and side.device == device
    assert main.waited_for == [side]
    assert {id(t) for t in flat(batch)} <= {id(t) for t in main.used}


# ------------------------------------------------------------------------------ whole runs


def rl_config(save_dir: Path, steps: int, resume: int = 0) -> train_rl.MainConfig:
    options = {
        "suite": "particle", "task_name": "PARTICLE_2d", "use_state": 1, "episode_length": 9,
        "num_train_step": steps, "log_per_step": 20, "num_warm_up_episode": 1,
        "num_critic_update": 2, "num_eval_episode": 0, "batch_size": 4, "replay_prefetch": 1,
        "q_agent.act_method": "rl", "q_agent.state_critic.hidden_dim": 8,
        "q_agent.state_actor.hidden_dim": 8, "q_agent.device": "cpu",
        "save_dir": save_dir, "resume": resume,
    }  # fmt: skip
    return run_config.parse_args(train_rl.MainConfig, [f"--{k}={v}" for k, v in options.items()])


def test_runs_are_the_same_also_when_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_rl.run(rl_config(tmp_path / "parts", 20))  # ends while one is drawn ahead
    work = train_rl.run(rl_config(tmp_path / "parts", 60, resume=1))
    assert work.batches._ahead is not None
    monkeypatch.setattr(Ahead, "on_cpu", False)
    work = train_rl.run(rl_config(tmp_path / "plain", 60))
    assert work.batches._ahead is None
    assert_same_run(tmp_path / "parts", tmp_path / "plain")


def bc_config(save_dir: Path, data: Path, epochs: int, resume: int = 0) -> train_bc.MainConfig:
    options = {
        "dataset.path": data, "dataset.use_state": 1, "num_epoch": epochs, "epoch_len": 5,
        "num_eval_episode": 0, "save_dir": save_dir, "resume": resume, "device": "cpu",
        "state_policy.hidden_dim": 8, "batch_size": 4, "dataset.sampling": "epochs",
    }  # fmt: skip
    return run_config.parse_args(train_bc.MainConfig, [f"--{k}={v}" for k, v in options.items()])


def test_bc_runs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_robomimic(tmp_path / "data.hdf5", size=8)
    train_bc.run(bc_config(tmp_path / "parts", data, 1))
    train_bc.run(bc_config(tmp_path / "parts", data, 3, resume=1))
    monkeypatch.setattr(Ahead, "on_cpu", False)
    train_bc.run(bc_config(tmp_path / "plain", data, 3))
    assert_same_run(tmp_path / "parts", tmp_path / "plain")
