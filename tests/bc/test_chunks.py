"""Policies over chunks of actions: what is learned, proposed and played."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from ibc_data import write_particle

import train_bc
from bc.base import BasePolicy
from bc.dataset import RobomimicDataset
from bc.explicit.mdn_policy import MdnPolicy, MdnPolicyConfig
from bc.explicit.mse_policy import MsePolicy, MsePolicyConfig
from bc.generative.flow_policy import FlowPolicy, FlowPolicyConfig
from bc.ibc.autoregressive import AutoregressivePolicy
from bc.ibc.ebm_policy import EbmPolicy, EbmPolicyConfig
from bc.ibc.losses import GradPenaltyConfig
from common_utils import run_config
from common_utils.chunks import MOST_EPISODES, ChunkConfig, ChunkPlayer
from common_utils.specs import CLOCK
from env.factory import make_env
from evaluate.multi_process_eval import run_eval_mp
from evaluate.rollout import run_eval
from networks.flow import VelocityConfig
from networks.ibc.mlp import MDNConfig, MLPConfig
from networks.ibc.pixel import EncoderConfig, ImageConfig

S, A, T = 6, 3, 4
CHUNK = ChunkConfig(length=T, execute=2)
NET = MLPConfig(width=16, rate=0.0)
FIELD = VelocityConfig(hidden_dim=16, num_layer=2)
SMALL = EncoderConfig(ImageConfig(target_height=16, target_width=16))


def flow(**more: object) -> FlowPolicy:
    cfg = FlowPolicyConfig(chunk=CHUNK, **{"net": FIELD, "steps": 3, **more})  # type: ignore[arg-type]
    return FlowPolicy("state", (2 * S,), 2, A, cfg)


def pixels() -> FlowPolicy:
    cfg = FlowPolicyConfig(chunk=CHUNK, net=FIELD, pixel=SMALL, steps=3)
    return FlowPolicy("front", (6, 24, 24), 2, A, cfg)


def ebm(autoregressive: bool = False) -> EbmPolicy:
    more = dict(
        autoregressive=1, use_dfo=1, use_langevin=0, fraction_langevin_samples=0,
        grad_penalty=GradPenaltyConfig(add_grad_penalty=0),
    ) if autoregressive else {}  # fmt: skip
    cfg = EbmPolicyConfig(
        chunk=CHUNK, net=NET, num_counter_examples=4, num_action_samples=16, **more
    )
    kind = AutoregressivePolicy if autoregressive else EbmPolicy
    return kind("state", (2 * S,), 2, A, cfg)


POLICIES: dict[str, Callable[[], BasePolicy]] = {
    "mse": lambda: MsePolicy("state", (2 * S,), 2, A, MsePolicyConfig(chunk=CHUNK, net=NET)),
    "mdn": lambda: MdnPolicy(
        "state", (2 * S,), 2, A, MdnPolicyConfig(chunk=CHUNK, net=MDNConfig(width=16))
    ),
    "ebm": ebm,
    "autoregressive": lambda: ebm(True),
    "flow": flow,
    "transformer": lambda: flow(net=VelocityConfig("transformer", 16, 1)),
    "ddim": lambda: flow(process="ddim"),
    "ddpm": lambda: flow(process="ddpm"),
    "one_step": lambda: flow(one_step=1),
    "pixels": pixels,
}


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> BasePolicy:
    torch.manual_seed(0)
    return POLICIES[request.param]().eval()


def observe(policy: BasePolicy, n: int) -> dict[str, torch.Tensor]:
    (key, spec), *_ = policy.input_specs().items()
    if spec.dtype == "uint8":
        return {key: torch.randint(0, 256, (n, *spec.shape), dtype=torch.uint8)}
    return {key: torch.randn(n, *spec.shape)}


def at(obs: dict[str, torch.Tensor], *times: tuple[int, int]) -> dict[str, torch.Tensor]:
    return {**obs, CLOCK: torch.tensor(times)}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


# ------------------------------------------------------------------------- policies


def test_it_learns_and_says_chunks(policy: BasePolicy) -> None:
    obs = observe(policy, 5)
    batch = SimpleNamespace(obs=obs, action=torch.rand(5, T, A) * 2 - 1)
    policy.fit([batch])
    loss = policy.train().loss(batch)
    loss.backward()
    assert loss.shape == ()
    policy.eval()
    chunk = policy.act_chunk(obs, generator=seeded())
    assert chunk.shape == (5, T, A) and float(chunk.abs().max()) <= 1
    assert torch.equal(policy.act(obs, generator=seeded()), chunk[:, 0])
    few = policy.propose(obs, 3, horizon=2, generator=seeded())
    all_ = policy.propose(obs, 3, horizon=T, generator=seeded())
    assert few.shape == (5, 3, 2 * A) and torch.equal(few, all_[..., : 2 * A])
    assert torch.equal(policy.propose(obs, 3, generator=seeded()), all_[..., :A])
    assert "chunks" in str(policy.graphs()["action"]) or "autoregressive" in str(policy.graphs())


def test_wrong_windows_and_horizons_are_refused(policy: BasePolicy) -> None:
    obs = observe(policy, 2)
    with pytest.raises(ValueError, match=rf"actions must be \[B, {T}, {A}\], got \[2, {A}\]"):
        policy.loss(SimpleNamespace(obs=obs, action=torch.zeros(2, A)))
    with pytest.raises(ValueError, match=f"proposes chunks of {T}, expected at least {T + 1}"):
        policy.propose(obs, 1, horizon=T + 1)


def test_a_chunk_is_played_and_then_another_is_decided_on(policy: BasePolicy) -> None:
    """execute is 2: steps 0 and 1 come from one decision, step 2 from the next."""
    first, second = observe(policy, 1), observe(policy, 1)
    rng = seeded()
    one, two = (policy.act_chunk(obs, generator=rng)[0] for obs in (first, second))
    rng = seeded()
    played = [policy.act(at(first, (9, 0)), generator=rng)]
    played.append(policy.act(at(second, (9, 1)), generator=rng))  # this observation is not read
    played.append(policy.act(at(second, (9, 2)), generator=rng))
    assert torch.equal(torch.cat(played), torch.stack([one[0], one[1], two[0]]))


def test_normalisers_count_each_step_once() -> None:
    policy = MsePolicy("state", (S,), 1, A, MsePolicyConfig(chunk=CHUNK, net=NET))
    plain = MsePolicy("state", (S,), 1, A, MsePolicyConfig(net=NET))
    obs, action = {"state": torch.randn(9, S)}, torch.rand(9, T, A)
    policy.fit([SimpleNamespace(obs=obs, action=action)])
    plain.fit([SimpleNamespace(obs=obs, action=action[:, 0])])
    assert torch.equal(policy.act_norm.scale, plain.act_norm.scale)


def test_a_one_step_policy_lands_where_the_steps_do() -> None:
    torch.manual_seed(0)
    policy = flow(one_step=1, net=VelocityConfig(hidden_dim=64, num_layer=2))
    obs = {"state": torch.zeros(64, 2 * S)}
    batch = SimpleNamespace(obs=obs, action=(torch.rand(64, 1, A) < 0.5).float().repeat(1, T, 1))
    policy.fit([SimpleNamespace(obs=obs, action=batch.action * 2 - 1)])
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    for _ in range(500):
        optimizer.zero_grad()
        policy.loss(batch).backward()
        optimizer.step()
    before = policy.metrics["student_loss"]
    features = policy.net.encode(policy.features(obs))
    noise = torch.randn(64, 1, T * A)
    with torch.no_grad():
        ends = policy._follow(policy.net.teacher.field(features), noise, seeded())
        jumps = policy._jump(features, noise)
    apart = float((jumps - ends).square().mean())
    assert apart < 0.1 * float(ends.var()) and before < 0.1


@pytest.mark.parametrize(
    "field, options",
    [
        ("execute", lambda: ChunkConfig(length=2, execute=3)),
        ("steps", lambda: FlowPolicyConfig(process="ddim", steps=11, levels=10)),
        ("one_step", lambda: FlowPolicyConfig(process="ddpm", one_step=1)),
    ],
)
def test_fields_that_do_not_go_together(field: str, options: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: .* expected"):
        options()


# ------------------------------------------------------------------------- the player


class Counting:
    """Decides on chunks that say when, in which order, and for which row."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        assert set(inputs) == {"x"}
        self.rows.append(inputs["x"][:, 0].tolist())
        steps = torch.arange(4.0).view(1, 1, 4, 1)
        return 10.0 * inputs["x"].view(-1, 1, 1, 1) + steps


def test_rows_that_need_no_decision_are_not_asked_about() -> None:
    player, decide = ChunkPlayer(3), Counting()

    def play(*now: tuple[float, int, int]) -> list[float]:
        x = torch.tensor([[value] for value, _, _ in now])
        clock = torch.tensor([[episode, step] for _, episode, step in now])
        return player.play({"x": x, CLOCK: clock}, 1, decide).flatten().tolist()

    assert play((1, 0, 0), (2, 1, 0)) == [10, 20]
    assert play((3, 0, 1), (4, 1, 1)) == [11, 21]
    assert play((5, 2, 0), (6, 1, 2)) == [50, 22]  # another episode in the first row
    assert play((7, 2, 1), (8, 1, 3)) == [51, 80]  # its chunk is over
    assert play((9, 1, 0)) == [90]  # an episode that begins again
    assert play((2, 1, 5)) == [20]  # a step that no chunk covers
    assert decide.rows == [[1, 2], [5], [8], [9], [2]]


def test_its_state_is_all_that_it_remembers() -> None:
    player, decide = ChunkPlayer(3), Counting()
    x = torch.tensor([[1.0]])
    player.play({"x": x, CLOCK: torch.tensor([[0, 0]])}, 1, decide)
    other = ChunkPlayer(3)
    other.load_state_dict(player.state_dict())
    later = {"x": x, CLOCK: torch.tensor([[0, 2]])}
    assert other.play(later, 1, decide).item() == 12 and len(decide.rows) == 1
    assert other.play(later, 2, decide).item() == 10  # another kind of chunk


def test_old_episodes_are_forgotten() -> None:
    player, decide = ChunkPlayer(2), Counting()
    for episode in range(MOST_EPISODES + 5):
        player.play({"x": torch.ones(1, 1), CLOCK: torch.tensor([[episode, 0]])}, 1, decide)
    assert len(player.state_dict()["chunks"]) == MOST_EPISODES


# ------------------------------------------------------------------------- data and runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_particle(tmp_path_factory.mktemp("data") / "particle.hdf5")


@pytest.mark.parametrize("horizon", [1, 3, 40])
def test_windows_stay_within_their_demonstration(data: Path, horizon: int) -> None:
    cfg = run_config.parse_args(train_bc.MainConfig, ["--dataset.path", str(data),
        "--save_dir", "x", "--dataset.use_state", "1", "--dataset.action_low", "[0]",
        "--dataset.action_high", "[1]", "--policy_type", "flow"]).dataset  # fmt: skip
    one, ahead = RobomimicDataset(cfg), RobomimicDataset(cfg, horizon=horizon)
    rows = np.arange(one.num_steps)
    single = one.batch_at(rows).action
    want, start = [], 0
    for demo in one.episodes():
        for t in range(len(demo)):
            steps = [start + min(t + k, len(demo) - 1) for k in range(horizon)]
            want.append(single[steps])
        start += len(demo)
    found = ahead.batch_at(rows).action
    assert torch.equal(found, torch.stack(want).squeeze(1) if horizon == 1 else torch.stack(want))
    one.close()
    ahead.close()


RUN = [
    "--policy_type", "flow", "--flow.chunk.length", "4", "--flow.chunk.execute", "3",
    "--flow.net.hidden_dim", "16", "--flow.net.num_layer", "1", "--flow.steps", "2",
    "--dataset.use_state", "1", "--dataset.state_stack", "2", "--dataset.action_low", "[0]",
    "--dataset.action_high", "[1]", "--env.suite", "particle", "--env.task", "PARTICLE_2d",
    "--env.episode_length", "10", "--batch_size", "8", "--epoch_len", "5", "--num_epoch", "2",
    "--num_eval_episode", "1", "--device", "cpu", "--ema", "0.1",
]  # fmt: skip


def train(folder: Path, data: Path, *more: str) -> train_bc.Workspace:
    args = [*RUN, "--dataset.path", str(data), "--save_dir", str(folder), *more]
    return train_bc.run(run_config.parse_args(train_bc.MainConfig, args))


def test_a_run_trains_plays_resumes_and_is_loaded_again(tmp_path: Path, data: Path) -> None:
    train(tmp_path / "whole", data)
    train(tmp_path / "parts", data, "--num_epoch", "1")
    train(tmp_path / "parts", data, "--resume", "1")
    for name in ("latest.pt", "model0.pt"):
        whole, parts = (
            torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole)
    policy, _, params = train_bc.load_model(tmp_path / "whole" / "latest.pt", "cpu")
    env = make_env(params)
    alone = run_eval(env, policy, 2, 0)
    env.close()
    together = run_eval_mp(params, policy, 2, 2, 0)
    assert alone.mean_metrics == together.mean_metrics
    assert alone.scores.tolist() == together.scores.tolist()
