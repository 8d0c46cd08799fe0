"""Policies that other processes answer for: chunks, losses, and IBRL with such a base."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from openpi_client import msgpack_numpy as openpi
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.sync.server import serve

import train_bc
import train_rl
from bc.base import PolicyInputs
from bc.explicit.bc_policy import BcPolicy, BcPolicyConfig
from bc.remote import RemoteError, RemotePolicy, RemotePolicyConfig
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.link import LinkLost, LinkRefused
from common_utils.run_config import ConfigError
from common_utils.seeding import preserve_rng, seed_for
from common_utils.specs import CLOCK, ArraySpec, EnvSpec
from env.config import EnvConfig
from env.factory import make_env
from evaluate import eval as eval_cli
from evaluate.multi_process_eval import EvalPool
from evaluate.rollout import run_eval
from serve.server import PolicyServer, ServerOptions
from serve.session import Inputs
from tests.runs import assert_same_run
from tests.serve.checkpoints import LENGTH, STATE, TASK, bc_checkpoint, port_of, running, serving
from tests.train.test_rl_suites import config
from tools import collect_oracle
from tools.serve import greeting_of
from workspace.build_policy import load_policy
from workspace.remote_policy import URL_VARIABLE, written_config

HORIZON, ACTIONS = 8, 2
CAMERA, PROP = (6, 5, 4), (4,)  # of two steps each


class Foreign:
    """A server as openpi's are, packed by openpi: a chunk depends on the observation alone."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answer: Any = None  # instead of the chunk
        self.port = 0

    def chunk(self, obs: dict[str, Any]) -> np.ndarray:
        seen = np.asarray(obs["observation/state"], np.float64)
        steps = np.arange(HORIZON)[:, None] + np.arange(ACTIONS)
        return np.sin(100 * seen.sum() + steps)

    def handle(self, connection: Any) -> None:
        connection.send(openpi.packb({}))
        for data in connection:
            self.requests.append(openpi.unpackb(data))
            if isinstance(self.answer, str):
                connection.send(self.answer)
                connection.close(1011)
                return
            chunk = self.chunk(self.requests[-1]) if self.answer is None else self.answer
            connection.send(openpi.packb({"actions": chunk, "server_timing": {}}))

    @contextmanager
    def running(self) -> Iterator[str]:
        with serve(self.handle, "127.0.0.1", self.port) as running:
            self.port = running.socket.getsockname()[1]
            thread = threading.Thread(target=running.serve_forever)
            thread.start()
            try:
                yield f"ws://127.0.0.1:{self.port}"
            finally:
                running.shutdown()
                thread.join()


def remote(url: str, **fields: Any) -> RemotePolicy:
    fields = {"names": ["observation/state=state"], "patience": 0, **fields}
    return RemotePolicy(
        PolicyInputs((STATE,), ACTIONS), RemotePolicyConfig(url=url, **fields)
    ).eval()


STATES = np.random.default_rng(0).random((3, 21, STATE), np.float32)  # episodes


def at(episode: int, step: int) -> dict[str, torch.Tensor]:
    """An observation that says when it is."""
    clock = torch.tensor([episode, step])
    return {"state": torch.from_numpy(STATES[episode, step]), CLOCK: clock}


def test_chunks_are_played_as_openpis_broker_plays_them() -> None:
    foreign, other = Foreign(), Foreign()
    with foreign.running() as url, other.running():
        broker = ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", other.port), 5)
        mine = remote(url, execute=5)
        for episode in range(3):
            broker.reset()
            for step in range(21):
                want = broker.infer({"observation/state": STATES[episode, step]})["actions"]
                got = mine.act(at(episode, step))
                assert got.dtype == torch.float32
                np.testing.assert_array_equal(got, want.astype(np.float32))
    assert len(foreign.requests) == len(other.requests) == 3 * 5  # at steps 0, 5, 10, 15 and 20


def test_episodes_at_once_do_not_take_each_others_chunks() -> None:
    foreign = Foreign()
    with foreign.running() as url:
        apart, mixed = remote(url, execute=5), remote(url, execute=5)
        want = [[apart.act(at(e, s)) for s in range(21)] for e in range(3)]
        for step in range(21):
            rows = [at(e, step) for e in (2, 0, 1)]
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            got = mixed.propose(batch, 1)
            assert torch.equal(got[:, 0], torch.stack([want[e][step] for e in (2, 0, 1)]))
        # the first step of an episode always asks, also if it is played again
        asked = len(foreign.requests)
        mixed.act(at(1, 0))
        assert len(foreign.requests) == asked + 1


def test_chunks_survive_a_saved_state() -> None:
    with Foreign().running() as url:
        whole, first, second = (remote(url, execute=5) for _ in range(3))
        want = [whole.act(at(0, s)) for s in range(9)]
        for step in range(7):
            first.act(at(0, step))
        second.load_memory_state(first.memory_state())
        assert [torch.equal(second.act(at(0, s)), want[s]) for s in (7, 8)] == [True, True]


def test_without_a_clock_every_observation_is_asked() -> None:
    foreign = Foreign()
    with foreign.running() as url:
        mine, obs = remote(url), torch.from_numpy(STATES[0])
        got = mine.propose({"state": obs}, 3)
        assert got.shape == (21, 3, ACTIONS) and len(foreign.requests) == 63
        want = [foreign.chunk({"observation/state": s})[0] for s in STATES[0]]
        np.testing.assert_array_equal(got[:, 1], np.float32(want))
        assert not mine.needs_clock and mine.state_dict() == {}


def test_games_in_workers_are_those_of_this_process() -> None:
    """Three games in two workers, each with its own chunks."""
    env_cfg = EnvConfig(suite="particle", task=TASK, use_state=1, episode_length=LENGTH)
    with Foreign().running() as url, EvalPool(asdict(env_cfg), 2) as pool:
        got = pool.run(remote(url, execute=5), 3, 7)
        env = make_env(env_cfg)
        want = run_eval(env, remote(url, execute=5), 3, 7)
        env.close()
    assert got.seeds.tolist() == [7, 8, 9] and got.lengths.tolist() == [LENGTH] * 3
    assert got.metrics.keys() == want.metrics.keys() and want.metrics
    for name, values in want.metrics.items():
        np.testing.assert_array_equal(got.metrics[name], values)


def test_a_served_policy_of_images_is_the_policy(tmp_path: Path) -> None:
    """Two cameras, two steps, proprioception: by the server's own account of what it reads."""
    torch.manual_seed(0)
    shape, cameras = (6, 64, 64), ("front", "wrist")
    local = BcPolicy(shape, (4,), 3, cameras, BcPolicyConfig(use_prop=1, hidden_dim=16)).eval()
    observations = {camera: ArraySpec(shape, "uint8", 2) for camera in cameras}
    observations["prop"] = ArraySpec((4,), stack=2)
    spec = EnvSpec("robosuite", "Lift", observations, 3, 10, cameras)
    (tmp_path / "model0.pt").write_bytes(b"weights")
    params = {"action_repeat": 1, "stack_pad": "zeros"}
    said = greeting_of(tmp_path / "model0.pt", "bc", spec, params, 20.0)
    inputs = Inputs(observations, "zeros", {key: key for key in observations})
    rng = np.random.default_rng(0)
    obs = {c: torch.from_numpy(rng.integers(0, 256, (3, *shape), np.uint8)) for c in cameras}
    obs["prop"] = torch.from_numpy(rng.random((3, 4), np.float32))
    with running(
        PolicyServer(local, inputs, said, ServerOptions(port=0), lambda _: None)
    ) as server:
        base, cfg = load_policy(written_config(server.address), "cpu")
        assert torch.equal(base.propose(obs, 2), local.propose(obs, 2))
        assert torch.equal(
            base.act({k: v[0] for k, v in obs.items()}),
            local.act({k: v[0] for k, v in obs.items()}),
        )
    assert {k: v.shape for k, v in base.input_specs().items()} == {
        k: v.shape for k, v in local.input_specs().items()
    }
    assert (cfg.env.task, cfg.rl_image_size, cfg.dataset.prop_stack) == ("Lift", 64, 2)


@pytest.mark.parametrize("size", [1, 2])
def test_the_newest_step_is_sent_as_openpis_policies_read_it(size: int) -> None:
    foreign = Foreign()
    foreign.answer = np.zeros((HORIZON, 7) if size == 1 else (2, HORIZON, 7))
    inputs = PolicyInputs(CAMERA, 7, stack=2, cameras=("front",), prop_shape=PROP)
    names = ["observation/image=front", "observation/state=prop"]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, *CAMERA), np.uint8)
    prop = rng.random((2, *PROP), np.float32)
    obs = {"front": torch.from_numpy(image), "prop": torch.from_numpy(prop)}
    with foreign.running() as url:
        sent = RemotePolicyConfig(
            url=url, names=names, send="newest", prop_stack=2, prompt="lift", max_batch=size
        )
        RemotePolicy(inputs, sent).eval().propose(obs, 1)
    assert len(foreign.requests) == 2 // size
    seen = foreign.requests[-1] if size == 1 else {k: v[-1] for k, v in foreign.requests[0].items()}
    np.testing.assert_array_equal(seen["observation/image"], image[1, :3].transpose(1, 2, 0))
    np.testing.assert_array_equal(seen["observation/state"], prop[1, :2])
    assert foreign.requests[0]["prompt"] == "lift"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (np.zeros((4, ACTIONS)), r"found chunks of 4, expected at least 5 \(remote.execute\)"),
        (np.zeros((HORIZON, 3)), r"found shape \[8, 3\], expected \[T, 2\]"),
        (np.zeros(ACTIONS), r"found shape \[2\], expected \[T, 2\]"),
        (np.zeros((HORIZON, ACTIONS), int), r"found int64, expected floats \[T, 2\]"),
        ([[0.0, 0.0]], r"found list, expected floats"),
        (np.full((HORIZON, ACTIONS), np.nan), "found NaN or infinity, expected finite"),
    ],
)
def test_answers_that_are_no_chunks(answer: Any, said: str) -> None:
    foreign = Foreign()
    foreign.answer = answer
    with foreign.running() as url, pytest.raises(RemoteError, match=f"{url}: actions: {said}"):
        remote(url, execute=5).act(at(0, 0))


def test_an_error_of_the_server_is_told_and_not_tried_again() -> None:
    foreign = Foreign()
    foreign.answer = "Traceback (most recent call last):\n  File ...\nKeyError: 'state'"
    with foreign.running() as url:
        with pytest.raises(LinkRefused, match=f"{url}: the server answered: KeyError: 'state'"):
            remote(url, patience=60).act(at(0, 0))
    assert len(foreign.requests) == 1


def test_actions_are_clipped() -> None:
    foreign = Foreign()
    foreign.answer = np.full((1, ACTIONS), [-3, 1.5])
    with foreign.running() as url:
        assert remote(url).act(at(0, 0)).tolist() == [-1, 1]


def test_a_server_that_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    foreign = Foreign()
    with foreign.running() as url:
        mine = remote(url, patience=30)
        want = mine.act(at(0, 0))

    def later() -> None:
        time.sleep(0.8)
        with foreign.running():
            answered.wait(30)

    answered = threading.Event()
    thread = threading.Thread(target=later)
    thread.start()
    assert torch.equal(mine.act(at(0, 0)), want)
    answered.set()
    thread.join()
    assert "trying again in 0.5 s" in capsys.readouterr().out
    with pytest.raises(LinkLost, match="remote policy: ws://127.0.0.1:.*: no server answers"):
        remote(url).act(at(0, 0))


# ------------------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bc_checkpoint(tmp_path_factory.mktemp("bc"), stack=2)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    collect_oracle.collect(collect_oracle.MainConfig(TASK, num=3, seed=0, out=str(folder)))
    return folder / "dataset.hdf5"


def ibrl(save_dir: Path, bc_policy: Any, demos: Path, steps: int = 60, **more: Any) -> Any:
    options = {
        "suite": "particle", "task_name": TASK, "episode_length": LENGTH, "bc_policy": bc_policy,
        "q_agent.act_method": "ibrl", "preload_num_data": 2, "preload_datapath": demos,
        "state_stack": 2, "log_per_step": 30, **more,
    }  # fmt: skip
    return train_rl.run(config(save_dir, steps, **options))


def test_ibrl_on_a_served_policy_is_ibrl_on_the_policy(
    base: Path,
    demos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same weights and records, bit for bit; the run resumes at another port, and evaluates."""
    load = train_rl.load_bc_policies

    def shielded(*args: Any, **kwargs: Any) -> Any:
        """Building a local network draws numbers, from which the agent's first weights follow."""
        with preserve_rng():
            return load(*args, **kwargs)

    monkeypatch.setattr(train_rl, "load_bc_policies", shielded)
    ibrl(tmp_path / "local", base, demos)
    with serving(base) as server:
        ibrl(tmp_path / "remote", server.address, demos)
    assert_same_run(tmp_path / "local", tmp_path / "remote")
    agent, env, _ = train_rl.load_model(str(tmp_path / "local" / "model0.pt"), "cpu")
    env.close()
    states = np.random.default_rng(0).random((4, 2 * STATE), np.float32)
    with serving(tmp_path / "local" / "model0.pt") as server:  # an agent, with its BC policy
        client = WebsocketClientPolicy("127.0.0.1", port_of(server))
        assert client.get_server_metadata()["kind"] == "rl"
        # it draws members of the critic; the first connection's numbers follow from --seed 1
        draws = torch.Generator().manual_seed(seed_for(1, "serve", 1))
        for state in states:
            obs = {"state": torch.from_numpy(state)}
            want = agent.act(obs, eval_mode=True, generator=draws)
            np.testing.assert_array_equal(client.infer({"state": state})["actions"][0], want)
    with serving(base) as server:
        ibrl(tmp_path / "parts", server.address, demos, 30)
    moved = port_of(server)
    with serving(base) as server:
        assert port_of(server) != moved
        ibrl(tmp_path / "parts", server.address, demos, resume=1)
        assert_same_run(tmp_path / "local", tmp_path / "parts")
        weight = tmp_path / "parts" / "model0.pt"
        args = ["--num_game", "2", "--mp", "0", "--device", "cpu", "--weight"]
        assert run_program(eval_cli.main, [*args, str(tmp_path / "local" / "model0.pt")]) == 0
        want = capsys.readouterr().out.splitlines()[-1].partition(": success")[2]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(URL_VARIABLE, server.address)
            assert run_program(eval_cli.main, [*args, str(weight)]) == 0
        assert capsys.readouterr().out.splitlines()[-1].partition(": success")[2] == want


def description(path: Path, url: str, **fields: Any) -> Path:
    tree = {
        "policy_type": "remote",
        "remote": {"url": url, "names": ["observation/state=state"], "execute": 4, **fields},
        "dataset": {"use_state": 1},
        "obs_shape": [STATE],
        "action_dim": ACTIONS,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_run_resumed_within_a_chunk_is_the_uninterrupted_one(demos: Path, tmp_path: Path) -> None:
    """Episodes have 20 steps: step 30 is the third of a chunk of four."""
    foreign = Foreign()
    with foreign.running() as url:
        file = description(tmp_path / "pi.yaml", url)
        ibrl(tmp_path / "whole", file, demos, state_stack=1)
        ibrl(tmp_path / "parts", file, demos, 30, state_stack=1)
        asked = len(foreign.requests)
        ibrl(tmp_path / "parts", file, demos, resume=1, state_stack=1)
        # at steps 12, 16 and 20 of this episode; in all of the next; at the start of one more; and
        # in one game of an evaluation, whose last observation needs no action
        assert len(foreign.requests) - asked == 3 + 6 + 1 + LENGTH // 4
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_what_is_no_base(base: Path, demos: Path, tmp_path: Path) -> None:
    (tmp_path / "mse.yaml").write_text("policy_type: mse\ndataset: {use_state: 1}\n")
    (tmp_path / "short.yaml").write_text("policy_type: remote\nremote: {url: 'ws://x:1'}\n")
    with Foreign().running() as foreign:
        for given, said in {
            "gone.yaml": "bc_policy: no file 'gone.yaml'; expected a file NAME.yaml",
            tmp_path / "mse.yaml": "mse.yaml' is a config of policy_type mse, expected weights",
            tmp_path / "short.yaml": "short.yaml': obs_shape: missing",
            foreign: f"bc_policy: {foreign}: this server does not say what it reads; expected",
            "ws://x:port": "bc_policy: found 'ws://x:port', expected ws://HOST:PORT",
        }.items():
            with pytest.raises(ConfigError) as error:
                ibrl(tmp_path / "run", given, demos)
            assert said in str(error.value)
            assert not (tmp_path / "run" / "cfg.yaml").exists()
    for wrong, said in {
        "url": "remote.url: found 'localhost', expected ws://HOST:PORT",
        "names": "remote.names: found '', expected THEIRS=OURS with one of state",
    }.items():
        values: dict[str, Any] = {"url": "ws://127.0.0.1:1"}
        values |= {wrong: {"url": "localhost", "names": [""]}[wrong]}
        file = description(tmp_path / f"{wrong}.yaml", **values)
        with pytest.raises(ConfigError, match=said):
            ibrl(tmp_path / "run", file, demos, state_stack=1)


def test_a_server_with_other_weights_is_refused(base: Path, demos: Path, tmp_path: Path) -> None:
    with serving(base) as server:
        policy, cfg = load_policy(written_config(server.address), "cpu")
    torch.manual_seed(5)
    weights = {k: torch.rand_like(v) for k, v in torch.load(base, weights_only=True).items()}
    (tmp_path / "cfg.yaml").write_text((base.parent / "cfg.yaml").read_text())
    torch.save(weights, tmp_path / "model0.pt")
    assert isinstance(policy, RemotePolicy) and cfg.dataset.state_stack == 2
    with serving(tmp_path / "model0.pt") as server:
        policy.link.url = server.address
        with pytest.raises(LinkRefused, match="serves other weights .* than before"):
            policy.act({"state": torch.zeros(2 * STATE)})


def test_a_checkpoint_may_not_name_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = description(tmp_path / "pi.yaml", "ws://192.0.2.1:8000")
    kept = written_config(str(file))
    assert load_policy(kept, "cpu", given=str(file))[0].link.url == "ws://192.0.2.1:8000"  # type: ignore
    with pytest.raises(ConfigError, match=f"another machine; expected the variable {URL_VARIABLE}"):
        load_policy(kept, "cpu")
    monkeypatch.setenv(URL_VARIABLE, "ws://192.0.2.2:8000")
    assert load_policy(kept, "cpu")[0].link.url == "ws://192.0.2.2:8000"  # type: ignore


def test_the_description_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/deploy.md").read_text()
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", page, re.S) if "pi05.yaml" in b)
    (tmp_path / "pi05.yaml").write_text(block)
    policy, _ = load_policy(written_config(str(tmp_path / "pi05.yaml")), "cpu")
    specs = policy.input_specs()
    assert {key: spec.shape for key, spec in specs.items()} == {
        "agentview": (3, 96, 96), "prop": (27,)
    }  # fmt: skip
    assert policy.needs_clock and policy.action_dim == 7  # type: ignore[union-attr]
    rows = re.findall(r"^\| `(\w+)` \|", page[page.index("| field of `remote`") :], re.M)
    assert rows == [field.name for field in dataclasses.fields(RemotePolicyConfig)]


def test_nothing_of_it_is_trained(demos: Path, tmp_path: Path) -> None:
    args = ["--policy_type=remote", "--remote.url=ws://127.0.0.1:1", "--dataset.use_state=1"]
    args += [f"--dataset.path={demos}", f"--save_dir={tmp_path / 'bc'}"]
    with pytest.raises(ConfigError, match="policy_type: remote, expected one that learns"):
        train_bc.run(run_config.parse_args(train_bc.MainConfig, args))
