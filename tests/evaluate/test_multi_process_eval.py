"""The worker pool plays exactly what the in-process evaluation plays; faults become errors."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from pendulum_env import PendulumEnv

from bc.explicit.bc_policy import StateBcPolicy
from common_utils.errors import UserError
from common_utils.finite import NonFiniteError
from evaluate.multi_process_eval import EvalPool, run_eval_mp
from evaluate.rollout import EvalError, run_eval

MAKER = "pendulum_env:make"


class Agent(nn.Module):
    """A random network: acts on batched and single observations, as every agent must."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Tanh(), nn.Linear(64, 1))
        self.stochastic_eval = noise > 0
        self.noise = noise
        self.batches: list[int] = []

    def act(self, obs, *, eval_mode=True, cpu=True, generator=None):
        x = obs["state"]
        self.batches.append(1 if x.dim() == 1 else len(x))
        action = self.net(x)
        if self.noise:
            assert generator is not None
            action = action + self.noise * torch.randn(action.shape, generator=generator)
        return action.clamp(-1, 1)


@pytest.fixture(scope="module")
def pool():
    with EvalPool({"horizon": 30}, 2, maker=MAKER, timeout=60) as it:
        yield it


def local(agent, num_game, seed):
    env = PendulumEnv({"horizon": 30})
    result = run_eval(env, agent, num_game, seed)
    env.close()
    return result


def pids(pool):
    return [member.worker.process.pid for member in pool._crew.members]


def assert_same(a, b):
    for field in ("scores", "successes", "lengths", "seeds"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


@pytest.mark.parametrize("num_game", [1, 2, 7])
def test_one_by_one_equals_in_process_exactly(pool, num_game):
    agent = Agent()
    want = local(agent, num_game, 11)
    assert_same(pool.run(agent, num_game, 11, one_by_one=True), want)
    assert list(want.seeds) == list(range(11, 11 + num_game))
    assert len(set(want.scores)) == num_game, "different seeds are different games"


def test_batched_inference_plays_the_same_games(pool):
    agent = Agent()
    got, want = pool.run(agent, 6, 3), local(Agent(), 6, 3)
    np.testing.assert_array_equal(got.lengths, want.lengths)
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-4)
    assert max(agent.batches) <= 2


def test_stochastic_agents_repeat_game_by_game(pool):
    agent = Agent(noise=0.3)
    want = local(agent, 5, 20)
    assert_same(pool.run(agent, 5, 20), want)
    single = local(agent, 1, 23)
    assert single.scores[0] == want.scores[3], "a game depends on its own seed alone"
    assert want.scores.std() > 0


def test_global_generators_modes_and_config_are_left_alone(pool):
    agent = Agent(noise=0.1).train()
    cfg = {"horizon": 30, "inner": {"a": [1]}}
    states = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    pool.run(agent, 2, 0)
    with EvalPool(cfg, 0, maker=MAKER) as here:
        here.run(agent, 2, 0)
    assert agent.training and agent.net.training
    assert cfg == {"horizon": 30, "inner": {"a": [1]}}
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


def test_workers_stay_alive_between_evaluations(pool):
    pool.run(Agent(), 2, 0)
    before = pids(pool)
    pool.run(Agent(), 3, 5)
    assert pids(pool) == before
    assert pool.spec.observations["state"].shape == (4,)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("fault", "timeout", "message"),
    [
        ("die", 30, "lost 3 times: .*was killed by signal 9 while playing seed 4; out of memory"),
        ("hang", 1, "lost 3 times: .*did not answer for 2 s while playing seed 4"),
        ("raise", 30, "failed while playing seed 4(.|\n)*the simulation diverged"),
    ],
)
def test_faulty_workers_become_errors_without_zombies(fault, timeout, message):
    cfg = {"bad_seed": 4, "fault": fault}
    with EvalPool(cfg, 2, maker=MAKER, timeout=60) as pool:
        pool.spec  # noqa: B018 - starts the workers, so that the short timeout is for steps
        pool.timeout = timeout
        before = pids(pool)
        with pytest.raises(EvalError, match=message):
            pool.run(Agent(), 6, 0)
        assert all(gone(pid) for pid in before)
        # the pool recovers with new workers
        pool.timeout = 60
        assert len(pool.run(Agent(), 2, 0)) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("reward", "task 'pendulum', episode of seed 4, step 4: the reward is nan"),
        ("obs", "task 'pendulum', episode of seed 4, step 4: observation 'state' is inf at [0]"),
        ("refuse", "step: no such task"),
    ],
)
def test_what_an_environment_may_not_give_is_one_line(fault, message):
    cfg = {"bad_seed": 4, "fault": fault}
    with EvalPool(cfg, 2, maker=MAKER, timeout=60) as pool:
        with pytest.raises(EvalError) as there:
            pool.run(Agent(), 6, 0)
        assert len(pool.run(Agent(), 2, 0)) == 2, "the pool goes on with new workers"
    with EvalPool(cfg, 0, maker=MAKER) as here, pytest.raises(UserError) as error:
        here.run(Agent(), 6, 0)
    for text in (str(there.value), str(error.value)):
        assert message in text and "\n" not in text and "Traceback" not in text
    assert "while playing seed 4" in str(there.value)


class Diverged(Agent):
    """Chooses NaN when the pole leans far, at a step of its own in each game."""

    def act(self, obs, **options):
        action = super().act(obs, **options)
        leans = obs["state"][..., 1:2].abs() > 0.05
        return torch.where(leans, torch.nan, action)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_an_agent_that_chooses_nan_is_named(pool, one_by_one):
    env = PendulumEnv({"horizon": 30})
    with pytest.raises(NonFiniteError) as here:
        run_eval(env, Diverged(), 1, 3)
    env.close()
    step = len(env.actions)
    assert str(here.value) == (
        f"the agent chose the action [nan] at step {step} of the episode of seed 3: it has diverged"
    )
    with pytest.raises(NonFiniteError) as there:
        pool.run(Diverged(), 1, 3, one_by_one=one_by_one)
    assert str(there.value) == str(here.value)


FROZEN = f"""
import sys, time
from evaluate.multi_process_eval import EvalPool
from {Path(__file__).stem} import Agent, MAKER, pids
with EvalPool({{"step_seconds": 0.05}}, 2, maker=MAKER, timeout=60) as pool:
    pool.spec
    pool.timeout = 2
    print(*pids(pool), flush=True)
    print(len(pool.run(Agent(), 4, 0)))
"""


def test_a_job_that_was_frozen_longer_than_the_limit_goes_on():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    job = subprocess.Popen([sys.executable, "-c", FROZEN], env=env, stdout=-1, stderr=-1, text=True)
    pids = [int(pid) for pid in job.stdout.readline().split()]
    time.sleep(0.3)
    for pid in (job.pid, *pids):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.5)  # more than twice the limit
    os.kill(job.pid, signal.SIGCONT)
    time.sleep(0.5)  # the pool wakes first: its workers could not answer yet
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    out, error = job.communicate(timeout=60)
    assert job.returncode == 0 and out == "4\n", error


@pytest.mark.parametrize("num_proc", [0, 2])
def test_an_evaluation_can_be_left_between_steps(num_proc):
    calls = []

    def pause():
        calls.append(1)
        if len(calls) == 7:
            raise SystemExit("left")

    with EvalPool({}, num_proc, maker=MAKER, timeout=60) as pool:
        with pytest.raises(SystemExit, match="left"):
            pool.run(Agent(), 50, 0, pause=pause)
        assert len(pool.run(Agent(), 2, 0)) == 2


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_lost_workers_change_nothing(signum):
    """One is lost between evaluations, one in a game, which is played again from its seed."""
    agent, calls, said = Agent(noise=0.3), [], []
    with EvalPool({"horizon": 30}, 2, maker=MAKER, timeout=60) as pool:
        pool.say = said.append
        pool.run(agent, 2, 0)
        while not all(member.built for member in pool._crew.members):
            pool._crew.answers()
        pool.timeout = 1.0
        first, second = pids(pool)
        os.kill(first, signum)

        def pause():
            calls.append(1)
            if len(calls) == 40:
                os.kill(second, signum)

        assert_same(pool.run(agent, 6, 11, pause=pause), local(agent, 6, 11))
        assert len(pids(pool)) == 2
    how = "killed by signal 9" if signum == signal.SIGKILL else "did not answer for 2 s"
    assert len(said) == 2 and all(how in line and "takes its place" in line for line in said)


def test_environment_that_cannot_be_built():
    with (
        EvalPool({"broken_build": True}, 1, maker=MAKER) as pool,
        pytest.raises(EvalError, match=r"building its environment(.|\n)*no such simulator"),
    ):
        pool.run(Agent(), 1, 0)


def test_workers_end_with_a_killed_parent():
    code = (
        "import sys, os; from evaluate.multi_process_eval import EvalPool, run_eval_mp\n"
        f"pool = EvalPool({{}}, 1, maker={MAKER!r}); pool.spec\n"
        "print(pool._crew.members[0].worker.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    pid = int(out.stdout)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and Path(f"/proc/{pid}/stat").exists():
        if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
            break  # ended; its new parent has not reaped it
        time.sleep(0.1)
    else:
        assert gone(pid), "a worker outlived its pool"


def test_misuse_is_named(pool):
    with pytest.raises(ValueError, match="num_game is 0"):
        pool.run(Agent(), 0, 1)
    with pytest.raises(ValueError, match="seed is -1"):
        pool.run(Agent(), 1, -1)
    with pytest.raises(ValueError, match="num_proc 0"):
        pool.run(Agent(), 1, 1, record="somewhere")
    with pytest.raises(ValueError, match="num_proc is -1"):
        EvalPool({}, -1)


def test_workers_do_not_import_torch():
    # seconds of start-up and 200 MB for each worker
    code = (
        "import sys, env.worker, pendulum_env\n"
        "cfg = dict(suite='metaworld', task='Assembly', use_state=1)\n"
        "env.worker.make_env(cfg).reset(seed=0)\n"
        "sys.exit('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_metaworld_plays_alike_everywhere():
    cfg = {"suite": "metaworld", "task": "Assembly", "use_state": 1, "episode_length": 15}
    agent = StateBcPolicy((39,), 4).eval()
    with EvalPool(cfg, 0) as here, EvalPool(cfg, 2) as there:
        want = here.run(agent, 3, 40)
        assert_same(there.run(agent, 3, 40, one_by_one=True), want)
        assert len(there.run(agent, 1, 0)) == 1
    assert (want.lengths == 15).all()


@pytest.mark.parametrize("num_proc", [0, 2, 9])
def test_run_eval_mp_is_one_evaluation(num_proc):
    """Of any number of games by any number of workers, none of which stays."""
    params = {"suite": "particle", "task": "PARTICLE_1d", "use_state": 1, "episode_length": 5}
    agent, before = StateBcPolicy((4,), 1).eval(), set(multiprocessing.active_children())
    result = run_eval_mp(params, agent, num_proc, 3, 7, one_by_one=True)
    assert_same(result, run_eval_mp(dict(params), agent, 0, 3, 7))
    assert result.seeds.tolist() == [7, 8, 9] and (result.lengths == 5).all()
    assert "device" not in params and set(multiprocessing.active_children()) == before
