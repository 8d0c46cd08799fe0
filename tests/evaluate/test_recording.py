"""Recordings for rerun, read back by rerun itself and compared with a plain evaluation."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from pendulum_env import PendulumEnv

from bc.ibc.ebm_policy import EbmPolicy, EbmPolicyConfig
from bc.ibc.landscape import POINTS
from bc.ibc.samplers import LangevinConfig
from common_utils.errors import ConfigError, run_program
from common_utils.specs import ArraySpec, EnvSpec, Explainer
from env.core import Env, EnvError
from env.factory import make_env
from evaluate import eval as eval_cli
from evaluate.recording import Recordings
from evaluate.rollout import PolicyRunner, evaluating, run_eval
from networks.ibc.mlp import MLPConfig
from rl.critic import MultiFcQConfig
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig
from tests.fuzz import folders

STATE = {"suite": "particle", "task": "PARTICLE_2d", "state_stack": 2, "episode_length": 25}


def read(path: Path) -> dict[str, list[Any]]:
    """The columns of a recording by entity and component, a value (or None) for each step."""
    from rerun.dataframe import load_recording

    view = load_recording(str(path)).view(index="step", contents="/**")
    table = view.select().read_all()
    return {name: table[name].to_pylist() for name in table.column_names}


def series(columns: dict[str, list[Any]], name: str) -> np.ndarray:
    """float64 [T, n] of an entity, for the steps that have it."""
    return np.array([row for row in columns[f"/{name}:Scalar"] if row is not None])


def implicit(seed: int = 0) -> EbmPolicy:
    """A small policy that draws whenever it acts."""
    torch.manual_seed(seed)
    net = MLPConfig(width=16, depth=2, rate=0.0)
    langevin = LangevinConfig(num_iterations=3)
    cfg = EbmPolicyConfig(net=net, num_action_samples=32, langevin=langevin)
    policy = EbmPolicy("state", (16,), 2, 2, cfg)
    policy.fit_actions(torch.tensor([[-0.5, -0.8], [0.9, 0.7]]))
    return policy.eval()


def agent(act_method: str, num_k: int = 2) -> QAgent:
    """A random agent; IBRL with three samples of the implicit policy."""
    torch.manual_seed(1)
    cfg = QAgentConfig(
        device="cpu",
        act_method=act_method,
        bootstrap_method="rl",
        num_bc_samples=3,
        soft_ibrl_beta=10.0,
        state_critic=MultiFcQConfig(num_q=4, num_k=num_k, num_layer=2, hidden_dim=16),
    )
    made = QAgent(1, (16,), (0,), 2, "", cfg)
    made.add_bc_policy(implicit())
    return made.eval()


def played(env: Env, player: Any, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, actions and rewards of an episode that nobody records."""
    runner = PolicyRunner(player)
    generator, (obs, _), done = runner.generator(seed), env.reset(seed=seed), False
    states, actions, rewards = [], [], []
    with evaluating(player):
        while not done:
            states.append(obs["state"])
            actions.append(runner.act(obs, generator))
            obs, reward, terminated, truncated, _ = env.step(actions[-1])
            rewards.append(reward)
            done = terminated or truncated
    return np.stack([*states, obs["state"]]), np.stack(actions), np.array(rewards)


@pytest.mark.parametrize("kind", ["rl", "ibrl", "ibrl_soft", "ebm"])
def test_a_recording_changes_no_bit_of_an_evaluation(kind: str, tmp_path: Path) -> None:
    player: Any = implicit() if kind == "ebm" else agent(kind)
    assert isinstance(player, Explainer)
    env = make_env(STATE)
    plain = run_eval(env, player, 2, 3)
    found = run_eval(env, player, 2, 3, recordings=Recordings(tmp_path / "new"))
    np.testing.assert_array_equal(plain.scores, found.scores)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["seed3.rrd", "seed4.rrd"]
    for seed in (3, 4):
        states, actions, rewards = played(env, player, seed)
        columns = read(tmp_path / "new" / f"seed{seed}.rrd")
        # float64 holds float32 exactly
        np.testing.assert_array_equal(series(columns, "action"), actions)
        np.testing.assert_array_equal(series(columns, "state"), states[:, :8])  # the newest step
        np.testing.assert_array_equal(series(columns, "reward")[:, 0], rewards)
        np.testing.assert_allclose(series(columns, "return")[:, 0], rewards.cumsum())
        assert columns["step"] == list(range(len(states)))
    assert plain.scores[0] == pytest.approx(
        series(read(tmp_path / "new" / "seed3.rrd"), "return")[-1]
    )


def test_values_and_choice_are_those_of_the_critic(tmp_path: Path) -> None:
    player = agent("ibrl", num_k=4)  # all members, so that no subset is drawn
    env = make_env(STATE)
    run_eval(env, player, 1, 3, recordings=Recordings(tmp_path))
    columns = read(tmp_path / "seed3.rrd")
    states, actions, _ = played(env, player, 3)
    names = ["rl", "bc0", "bc1", "bc2"]
    assert columns["/q:Name"][0] == names
    candidates = np.stack([series(columns, f"candidates/{name}") for name in names], axis=1)
    state = torch.from_numpy(states[:-1])
    with torch.no_grad():
        feats, every = {"state": state}, torch.from_numpy(candidates).float()
        q = player.critic_target.q(feats, every, None).min(dim=-1).values
        rl = player.actor(feats, 0.0).mean
    np.testing.assert_allclose(series(columns, "q"), q, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(candidates[:, 0], rl, rtol=1e-5, atol=1e-6)
    chosen = series(columns, "chosen")[:, 0].astype(int)
    np.testing.assert_array_equal(chosen, series(columns, "q").argmax(1))
    np.testing.assert_array_equal(actions, candidates[np.arange(len(chosen)), chosen])
    words = [row[0] for row in columns["/choice:Text"] if row is not None]
    assert words == [names[i] for i in chosen] and len(set(words)) > 1


def test_the_landscape_is_the_policys_energy(tmp_path: Path) -> None:
    policy, env = implicit(), make_env(STATE)
    run_eval(env, policy, 1, 3, recordings=Recordings(tmp_path))
    columns = read(tmp_path / "seed3.rrd")
    states, actions, _ = played(env, policy, 3)
    for step in (0, 20):
        tensor = columns["/energy/values:TensorData"][step][0]
        values = np.reshape(tensor["buffer"], tensor["shape"])
        assert values.shape == (POINTS, POINTS) and tensor["names"] == ["second", "first"]
        oldest_first = torch.from_numpy(states[step]).view(2, 8).flip(0).reshape(1, 16)
        grid = np.linspace(-1, 1, POINTS)
        for row, column in ((0, 0), (5, 40), (POINTS - 1, 7)):
            # the first dimension to the right, the second upwards
            action = torch.tensor([[grid[column], -grid[row]]], dtype=torch.float32)
            with torch.no_grad():
                energy = -policy.net(oldest_first, policy.act_norm.normalize(action)[None])[0]
            assert values[row, column] == pytest.approx(float(energy), rel=1e-4, abs=1e-5)
        # a picture of them, and the action on it
        picture = np.reshape(columns["/energy:ImageBuffer"][step][0], (POINTS, POINTS, 3))
        best, worst = (np.unravel_index(f(values), values.shape) for f in (np.argmin, np.argmax))
        assert picture[best].sum() < picture[worst].sum()
        ((right, down),) = columns["/energy/action:Position2D"][step]
        at = (right - 0.5) / (POINTS - 1) * 2 - 1, 1 - (down - 0.5) / (POINTS - 1) * 2
        np.testing.assert_allclose(at, actions[step], atol=1e-5)


class Balance:
    """A controller that is not a torch module and explains nothing."""

    stochastic_eval = False

    def act(self, obs, *, eval_mode=True, cpu=True, generator=None):
        x, angle, dx, dangle = obs["state"][:4]
        return torch.tanh(x * 0.3 + angle * 8 + dx * 0.5 + dangle * 1.5).reshape(1)


class Seen(PendulumEnv):
    """The pendulum with a camera, whose last two frames are stacked."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__(cfg)
        observations = {
            "state": ArraySpec((4,)),
            "front": ArraySpec((6, 64, 97), "uint8", stack=2),
        }
        self.spec = EnvSpec("gym", "pendulum", observations, 1, self.horizon, ("front",))
        self.frames: list[np.ndarray] = []

    def _with_camera(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.frames.append(self.render().transpose(2, 0, 1))
        newest = [*reversed(self.frames[-2:]), np.zeros_like(self.frames[0])][:2]
        return {**obs, "front": np.concatenate(newest)}

    def reset(self, *, seed: int):
        self.frames = []
        obs, info = super().reset(seed=seed)
        return self._with_camera(obs), info

    def step(self, action: np.ndarray):
        obs, *rest = super().step(action)
        return self._with_camera(obs), *rest


def test_cameras_show_the_newest_frame_exactly(tmp_path: Path) -> None:
    env = Seen({"horizon": 6})
    run_eval(env, Balance(), 1, 0, recordings=Recordings(tmp_path))
    columns = read(tmp_path / "seed0.rrd")
    assert len(env.frames) == 7
    for frame, row, kind in zip(
        env.frames,
        columns["/camera/front:ImageBuffer"],
        columns["/camera/front:ImageFormat"],
        strict=True,
    ):
        assert (kind[0]["height"], kind[0]["width"]) == (64, 97)
        np.testing.assert_array_equal(np.reshape(row[0], (64, 97, 3)), frame.transpose(1, 2, 0))
    assert not any(name.startswith(("/camera/scene", "/q", "/energy")) for name in columns)
    env.close()


def test_without_cameras_the_scene_is_rendered(tmp_path: Path) -> None:
    env = PendulumEnv({"horizon": 4})
    run_eval(env, Balance(), 1, 0, recordings=Recordings(tmp_path))
    last = read(tmp_path / "seed0.rrd")["/camera/scene:Blob"][-1][0]
    picture = np.asarray(Image.open(io.BytesIO(bytes(last))).convert("RGB")).astype(float)
    assert np.abs(picture - env.render()).mean() < 6
    env.close()


class Dark(PendulumEnv):
    def render(self, camera: str | None = None) -> np.ndarray:
        raise EnvError("render: no OpenGL here")


def test_without_opengl_it_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = Dark({"horizon": 4})
    run_eval(env, Balance(), 2, 0, recordings=Recordings(tmp_path))
    env.close()
    said = capsys.readouterr().out
    assert said == "--rerun_dir: no pictures of the scene: render: no OpenGL here\n"
    assert len(series(read(tmp_path / "seed1.rrd"), "action")) == 4


def test_an_episode_that_fails_leaves_no_file(tmp_path: Path) -> None:
    env = PendulumEnv({"bad_seed": 1, "fault": "raise"})
    with pytest.raises(ValueError, match="diverged"):
        run_eval(env, Balance(), 2, 0, recordings=Recordings(tmp_path))
    env.close()
    assert [p.name for p in tmp_path.iterdir()] == ["seed0.rrd"]


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "seed1.rrd").write_text("mine")
    env = PendulumEnv({})
    with pytest.raises(ConfigError, match=r"--rerun_dir: '.*seed1\.rrd' exists, expected"):
        run_eval(env, Balance(), 3, 0, recordings=Recordings(tmp_path))
    env.close()
    assert [p.name for p in tmp_path.iterdir()] == ["seed1.rrd"]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ConfigError, match="rerun-sdk cannot be imported.*report"):
        Recordings(tmp_path)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a trained IBRL run; rerun's own program accepts the file."""
    weight = folders.whole("rl") / "model0.pt"
    args = ["--weight", str(weight), "--num_game", "1", "--device", "cpu"]
    capsys.readouterr()
    assert run_program(eval_cli.main, [*args, "--mp", "0"]) == 0
    plain = capsys.readouterr().out
    args += ["--rerun_dir", str(tmp_path / "out")]
    assert run_program(eval_cli.main, [*args, "--mp", "0"]) == 0
    assert capsys.readouterr().out == plain
    path = tmp_path / "out" / "seed1.rrd"
    assert read(path)["/q:Name"][0] == ["rl", "bc"]
    program = shutil.which("rerun", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run(
        [program, "rrd", "verify", str(path)], env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run_program(eval_cli.main, [*args, "--mp", "0"]) == 2
    assert f"error: --rerun_dir: '{path}' exists" in capsys.readouterr().err
    for wrong in (["--mp", "2"], ["--mp", "0", "--folder", "x"]):
        given = args if "--folder" not in wrong else args[2:]
        with pytest.raises(SystemExit):
            eval_cli.main([*given, *wrong])
        assert "error: --rerun_dir needs --mp 0 and --weight" in capsys.readouterr().err
