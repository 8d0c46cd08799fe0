"""Exported graphs, run by onnxruntime, act as the policies and agents that they come from."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml

import train_bc
import train_rl
from bc.base import BasePolicy, PolicyInputs
from bc.registry import POLICIES
from common_utils import run_config, run_info
from common_utils.errors import UserError, run_program
from common_utils.specs import Obs
from env.factory import make_env
from networks.exported import Graph, Port
from networks.normalizer import AffineNormalizer, Normalizer
from tests.rl.agents import CAMERA, A, P, S, pixel_agent, state_agent
from tools import export
from workspace.build_agent import build_agent
from workspace.onnx_file import open_session, write_onnx
from workspace.rl_config import rl_env_config

STACK = 2
STATE = PolicyInputs((STACK * S,), A, stack=STACK)


def policy(kind: str, inputs: PolicyInputs, **options: Any) -> BasePolicy:
    """A random policy whose normalisers have been fitted to something."""
    row = POLICIES[kind]
    tree = run_config.deflatten(options)
    built = row.build(inputs, run_config.from_dict(row.config, tree))
    for norm in built.modules():
        if isinstance(norm, Normalizer):
            norm.fit(3 + 2 * torch.randn(20, norm.mean.numel()))
        elif isinstance(norm, AffineNormalizer):
            norm.fit_standard(0.2 + 0.3 * torch.randn(20, norm.offset.numel()))
    return built.eval()


def found_graph(model: Any, name: str = "action") -> Graph:
    graph = model.graphs()[name]
    assert isinstance(graph, Graph)
    return graph


def joined(graphs: dict[str, Graph]) -> Graph:
    """Several graphs over the same observations as one: an export takes seconds, whatever it is."""
    inputs = {port.name: port for graph in graphs.values() for port in graph.inputs}
    outputs = [
        Port(f"{name}.{port.name}", port.shape, port.dtype)
        for name, graph in graphs.items()
        for port in graph.outputs
    ]

    def run(obs: Obs) -> tuple[torch.Tensor, ...]:
        return tuple(y for graph in graphs.values() for y in graph.run(obs))

    parts = tuple(part for graph in graphs.values() for part in graph.parts)
    return Graph(run, tuple(inputs.values()), tuple(outputs), parts, chooses=True)


def played(path: Path, obs: Obs) -> dict[str, torch.Tensor]:
    """What onnxruntime computes."""
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, {k: obs[k].numpy() for k in (i.name for i in session.get_inputs())})
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_policies_over_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"net.width": 16}
    kinds = {
        "state": policy("state", STATE, hidden_dim=16, norm_state=1, layer_norm=1),
        "mse": policy("mse", STATE, **small, **{"net.normalizer": "Batch"}),
        "mdn": policy("mdn", STATE, **small, greedy_eval=1),
        "ebm": policy("ebm", STATE, **small, **{"net.dense_layer_type": "spectral_norm"}),
    }
    graphs = {k: found_graph(p, "energy" if k == "ebm" else "action") for k, p in kinds.items()}
    write_onnx(joined(graphs), tmp_path / "x.onnx", {}, "test")
    for rows in (1, 5):
        obs = {"state": 3 + 2 * torch.randn(rows, STACK * S)}
        actions = torch.rand(rows, 4, A) * 2 - 1
        found = played(tmp_path / "x.onnx", {**obs, "actions": actions})
        for name in ("state", "mse", "mdn"):
            assert_same(found[f"{name}.action"], kinds[name].act(obs))
        with torch.no_grad():
            ebm: Any = kinds["ebm"]
            logits = ebm.net(ebm.features(obs), ebm.act_norm.normalize(actions))
        assert_same(found["ebm.logits"], logits)


@pytest.mark.slow
def test_policies_and_actors_over_pixels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = (3, 96, 96)
    two = PolicyInputs(shape, A, cameras=(CAMERA, "wrist"), prop_shape=(P,))
    one = PolicyInputs(shape, A, cameras=(CAMERA,), prop_shape=(P,))
    resnet, size = {"resnet.shallow": 1}, {"pixel.image.target_height": 48}
    encoder = {f"encoder.{k}": v for k, v in resnet.items()}
    models: dict[str, Any] = {
        "pixel": policy("pixel", two, use_prop=1, hidden_dim=16, **encoder),
        "metaworld": policy("metaworld", one, hidden_dim=16, **resnet),
        "mse": policy("mse", one, **size, **{"pixel.image.target_width": 64}),
        "vit": pixel_agent(),
        "drq": pixel_agent(enc_type="drq", use_prop=0),  # resizes 96 to 84
        "resnet96": pixel_agent(enc_type="resnet96", use_prop=0),
    }
    graph = joined({name: found_graph(model) for name, model in models.items()})
    write_onnx(graph, tmp_path / "x.onnx", {}, "test")
    for rows in (1, 3):
        images = torch.randint(0, 256, (2, rows, *shape), dtype=torch.uint8)
        obs = {CAMERA: images[0], "wrist": images[1], "prop": torch.randn(rows, P)}
        found = played(tmp_path / "x.onnx", obs)
        for name, model in models.items():
            assert_same(found[f"{name}.action"], model.eval().act(obs, eval_mode=True))


@pytest.mark.slow
def test_the_whole_choice_of_ibrl(tmp_path: Path) -> None:
    torch.manual_seed(0)
    states = state_agent(norm_state=1, act_method="ibrl").eval()
    for _ in range(2):
        states.add_bc_policy(policy("state", PolicyInputs((S,), A), hidden_dim=16))
    pixels = pixel_agent(act_method="ibrl").eval()
    one = PolicyInputs((3, 96, 96), A, cameras=(CAMERA,))
    pixels.add_bc_policy(policy("metaworld", one, hidden_dim=16, **{"resnet.shallow": 1}))
    graphs = {"state": found_graph(states, "ibrl"), "pixel": found_graph(pixels, "ibrl")}
    write_onnx(joined(graphs), tmp_path / "x.onnx", {}, "test")
    obs = {"state": torch.randn(40, S), "prop": torch.randn(40, P)}
    obs[CAMERA] = torch.randint(0, 256, (40, 3, 96, 96), dtype=torch.uint8)
    drawn = torch.Generator().manual_seed(3)
    members = torch.tensor(states.critic_target.draw_members(drawn))
    found = played(tmp_path / "x.onnx", {**obs, "members": members})
    for name, agent in (("state", states), ("pixel", pixels)):
        own = agent.act(obs, eval_mode=True, generator=torch.Generator().manual_seed(3))
        assert_same(found[f"{name}.action"], own)
        chosen, candidates = found[f"{name}.chosen"], found[f"{name}.candidates"]
        assert torch.equal(candidates[torch.arange(40), chosen], found[f"{name}.action"])
        assert torch.equal(found[f"{name}.q"].argmax(1), chosen)
        assert_same(candidates[:, 1:], agent.propose(obs))
    assert len(found["state.chosen"].unique()) > 1  # it does choose


# ------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs on the particle: mse, ebm and mdn policies, IBRL with mse, RLPD."""
    root = tmp_path_factory.mktemp("runs")
    for kind in ("mse", "ebm", "mdn"):
        options = ["--policy_type", kind, "--dataset.use_state", "1", f"--{kind}.net.width", "16"]
        cfg = run_config.parse_args(train_bc.MainConfig, options)
        cfg.obs_shape, cfg.action_dim = [6], 2
        cfg.env.suite, cfg.env.task, cfg.env.use_state = "particle", "PARTICLE_2d", 1
        save(root / kind, cfg, train_bc.build_policy(cfg).state_dict())
    for name, bc in {"ibrl": "mse", "ibrl_mdn": "mdn", "rlpd": ""}.items():
        options = ["--suite", "particle", "--task_name", "PARTICLE_2d", "--use_state", "1"]
        options += ["--q_agent.state_critic.hidden_dim", "16", "--q_agent.device", "cpu"]
        options += ["--q_agent.act_method", "ibrl" if bc else "rl", "--hide_velocity", "1"]
        if bc:
            options += ["--bc_policy", str(root / bc / "model0.pt")]
        rl = run_config.parse_args(train_rl.MainConfig, options)
        env = make_env(rl_env_config(rl))
        policies = [train_bc.load_policy(root / bc / "model0.pt", "cpu")[0]] if bc else []
        save(root / name, rl, build_agent(rl, env.spec, policies).state_dict())
        env.close()
    return root


def save(folder: Path, cfg: Any, weights: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    run_config.dump(cfg, folder / "cfg.yaml")
    torch.save(weights, folder / "model0.pt")


def run(weight: Path, out: Path, *more: str) -> int:
    return run_program(export.main, ["--weight", str(weight), "--out", str(out), *more])


def test_a_file_says_what_it_is(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ibrl.onnx"
    run_info.write_start(runs / "ibrl", {"step": 0})
    assert run(runs / "ibrl/model0.pt", out, "--graph", "ibrl") == 0
    said = capsys.readouterr().out
    assert "state float32['batch', 6], members int64[2] -> action float32['batch', 2]" in said
    assert "onnxruntime and torch differ by" in said
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    about = {p.key: p.value for p in model.metadata_props}
    spec = json.loads(about["spec"])
    assert (spec["suite"], spec["task"], spec["graph"]) == ("particle", "PARTICLE_2d", "ibrl")
    assert spec["inputs"]["state"] == {"shape": ["batch", 6], "dtype": "float32", "steps": 1}
    config = yaml.safe_load(about["config"])
    assert config["bc_policy"] == str(runs / "mse/model0.pt") and about["kind"] == "QAgent"
    (started,) = json.loads(about["trained"])
    assert started.keys() == {"time", "command", "commit"}
    assert started["commit"] == run_info.commit()
    agent, env, _ = train_rl.load_model(str(runs / "ibrl/model0.pt"), "cpu")
    obs = {"state": torch.from_numpy(env.reset(seed=1)[0]["state"])}
    members = torch.tensor(agent.critic_target.draw_members(torch.Generator().manual_seed(0)))
    found = played(out, {"state": obs["state"][None], "members": members})["action"][0]
    assert_same(found, agent.act(obs, eval_mode=True, generator=torch.Generator().manual_seed(0)))


REFUSED: dict[str, tuple[str, Sequence[str], str]] = {
    "search": (
        "ebm",
        (),
        "--graph: action: the search for an energy's best action is not exported",
    ),
    "no such graph": ("mse", ("--graph", "energy"), "energy: not a graph of MsePolicy, expected"),
    "no BC policy": ("rlpd", ("--graph", "ibrl"), "the agent acts without a BC policy"),
    "drawn proposals": ("ibrl_mdn", ("--graph", "ibrl"), "(MdnPolicy) draws its proposals"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, options, said = REFUSED[name]
    assert run(runs / folder / "model0.pt", tmp_path / "x.onnx", *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --graph") and said in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_differs_is_not_written(tmp_path: Path) -> None:
    calls = []

    def drifting(obs: Obs) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        return (obs["x"] * (1 + 0.01 * (len(calls) > 1)),)

    port = Port("x", ("batch", 3))
    graph = Graph(drifting, (port,), (replace(port, name="y"),), ())
    with pytest.raises(UserError, match="^test: onnxruntime differs from torch by .*nothing is"):
        write_onnx(graph, tmp_path / "x.onnx", {}, "test")
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run(runs / "mse/model0.pt", tmp_path / "x.onnx") == 2
    err = capsys.readouterr().err
    assert "the package 'onnxruntime' is not installed" in err and "[data]" in err
    assert list(tmp_path.iterdir()) == []


def test_an_agent_as_safetensors_takes_its_policies_along(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "agent.safetensors"
    assert run(runs / "ibrl/model0.pt", out) == 0
    agent, env, _ = train_rl.load_model(str(out), "cpu")
    own, _, _ = train_rl.load_model(str(runs / "ibrl/model0.pt"), "cpu")
    obs = {"state": torch.from_numpy(env.reset(seed=1)[0]["state"])}
    generator = torch.Generator
    a, b = (x.act(obs, eval_mode=True, generator=generator().manual_seed(1)) for x in (agent, own))
    assert torch.equal(a, b) and np.isfinite(a.numpy()).all()
