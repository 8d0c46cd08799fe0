"""Write a trained policy or agent as ONNX, or its weights as safetensors.

    python -m tools.export --weight exps/bc/run1/model0.pt --out policy.onnx
    python -m tools.export --weight exps/rl/run1/model0.pt --out ibrl.onnx --graph ibrl
    python -m tools.export --weight exps/rl/run1/model0.pt --out shared/model0.safetensors

ONNX: inputs are named as observations are, normalisation is inside, the batch size is free. The
file is compared with torch by onnxruntime before it is written. safetensors: the same names and
numbers as the .pt file, with a copy of its cfg.yaml (and of an agent's BC policies) next to it;
every program that takes a .pt file takes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from common_utils import kept_weights, run_config
from common_utils.atomic import atomic_yaml
from common_utils.config_types import Flag
from common_utils.errors import UserError, run_program
from common_utils.options import Options, numeric
from common_utils.run_info import read_starts
from common_utils.version import __version__
from env.config import EnvConfig
from env.named_modules import add_trust_option
from evaluate.eval import kind_of
from networks import fast
from networks.exported import Graph, Port
from workspace import build_agent, build_policy
from workspace.onnx_file import write_onnx
from workspace.tensor_file import write_tensors
from workspace.weights import load_weights

FORMATS = ("onnx", "safetensors")
GRAPHS = ("action", "ibrl", "energy")


def _parser() -> argparse.ArgumentParser:
    parser = Options(prog="python -m tools.export", description="Export a policy or an agent.")
    parser.add_argument("--weight", required=True, help="weight file; its cfg.yaml is next to it")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--format", choices=FORMATS, help="default: what the end of --out says")
    parser.add_argument(
        "--graph", choices=GRAPHS, default="action",
        help="ONNX: what is computed. action: a policy's action, or that of an agent's actor; "
        "ibrl: the best of the actor's and the BC policy's actions; energy: an energy network's "
        "values of given actions",
    )  # fmt: skip
    parser.add_argument("--overwrite", type=numeric(Flag), default=0, help="1: replace --out")
    add_trust_option(parser)
    return parser


def format_of(out: str, chosen: str | None) -> str:
    """onnx or safetensors, as the option or the end of the name says; raises UserError."""
    ending = Path(out).suffix.removeprefix(".")
    if chosen is None and ending not in FORMATS:
        raise UserError(f"--out: '{out}', expected a name that ends in .onnx or .safetensors")
    if chosen == "safetensors" and ending != chosen:  # the name decides how it is read
        raise UserError(f"--out: '{out}', expected a name that ends in .safetensors")
    return chosen or ending


def check_out(out: str, overwrite: bool) -> None:
    """Raise UserError for a file that must not be replaced."""
    if os.path.lexists(out) and not overwrite:
        raise UserError(f"--out: '{out}' exists; replace it with --overwrite 1")


# ------------------------------------------------------------------------- ONNX


def load(weight: Path, trust_module: Sequence[str]) -> tuple[Any, EnvConfig]:
    """The policy or agent on the CPU in eval mode, and what environment it plays in."""
    if kind_of(weight, None) == "bc":
        policy, cfg = build_policy.load_policy(
            weight, "cpu", trust_module=trust_module, field="--weight"
        )
        return policy, cfg.env
    agent, env, params = build_agent.load_model(str(weight), "cpu", trust_module=trust_module)
    env.close()
    return agent, EnvConfig(**params)


def graph_of(model: Any, name: str) -> Graph:
    """The graph of that name; UserError says why there is none."""
    found = model.graphs().get(name)
    if isinstance(found, Graph):
        return found
    why = found or f"not a graph of {type(model).__name__}, expected {' or '.join(model.graphs())}"
    raise UserError(f"--graph: {name}: {why}")


def _described(port: Port, stacks: Mapping[str, int]) -> dict[str, Any]:
    out = {"shape": list(port.shape), "dtype": port.dtype}
    return out | ({"steps": stacks[port.name]} if port.name in stacks else {})


def spec_of(graph: Graph, name: str, env: EnvConfig) -> dict[str, Any]:
    """What a robot's program must know to run the graph, as plain values."""
    cameras = dict.fromkeys(env.cameras, env.obs_stack)
    stacks = {"state": env.state_stack, "prop": env.prop_stack, **cameras}
    return {
        "graph": name,
        "note": graph.note,
        "suite": env.suite,
        "task": env.task,
        "inputs": {p.name: _described(p, stacks) for p in graph.inputs},
        "outputs": {p.name: _described(p, {}) for p in graph.outputs},
        "stacks": f"newest step first, {env.stack_pad} before the first step",
        "images": "uint8 RGB, upright, channels first",
        "actions": "-1 .. 1 in every dimension",
        **graph.about,
    }


def export_onnx(weight: Path, out: str, name: str, trust_module: Sequence[str]) -> str:
    """Write a graph; returns a line that describes it."""
    model, env = load(weight, trust_module)
    graph = graph_of(model, name)
    about = {"spec": json.dumps(spec_of(graph, name, env)), **origin(weight, type(model).__name__)}
    apart = write_onnx(graph, out, about, f"--weight: '{weight}'")
    inputs = ", ".join(f"{p.name} {p.dtype}{list(p.shape)}" for p in graph.inputs)
    outputs = ", ".join(f"{p.name} {p.dtype}{list(p.shape)}" for p in graph.outputs)
    note = f"\n{graph.note}" if graph.note else ""
    return (
        f"{out}: {inputs} -> {outputs}{note}\n"
        f"onnxruntime and torch differ by {apart:.1e} at most, on random inputs"
    )


def origin(weight: Path, kind: str) -> dict[str, str]:
    """Where an exported file comes from."""
    tree = run_config.read_yaml(weight.parent / run_config.CFG_NAME)
    return {
        "ibrl_version": __version__,
        "kind": kind,
        "weights": os.path.abspath(weight),
        "weights_sha256": hashlib.sha256(weight.read_bytes()).hexdigest(),
        "config": yaml.safe_dump(tree, sort_keys=False),
        **trained(weight.parent),
    }


def trained(folder: Path) -> dict[str, str]:
    """When, by which command and at which commit the run was started; {} if it is not recorded."""
    try:
        starts = read_starts(folder)
    except ValueError:  # a damaged record of the past keeps nobody from using the weights
        return {}
    facts = [{key: start.get(key, "") for key in ("time", "command", "commit")} for start in starts]
    return {"trained": json.dumps(facts)} if facts else {}


# ------------------------------------------------------------------------- safetensors


def export_tensors(weight: Path, out: str) -> str:
    """Write the weights, and next to them what reading them needs; returns a line."""
    kind = kind_of(weight, None)
    weights = load_weights(weight, "--weight")
    source, target = weight.parent, Path(out).absolute().parent
    config = target / run_config.CFG_NAME
    tree = run_config.read_yaml(source / run_config.CFG_NAME)
    if source.resolve() != target and config.exists() and run_config.read_yaml(config) != tree:
        raise UserError(
            f"--out: '{target}' holds the {run_config.CFG_NAME} of another run, which the weights "
            "would be read with; expected a folder without one"
        )
    write_tensors(weights, out, origin(weight, kind), f"--weight: '{weight}'")
    beside = [run_config.CFG_NAME]
    if not config.exists():
        atomic_yaml(tree, config)
    if source.resolve() != target and (kept := kept_weights.find(source)) and kept.files:
        kept_weights.keep(target, replace(kept, notes=[]))
        beside.append(f"{kept_weights.KEPT_DIR}/")
    return f"{out}: {len(weights)} tensors; {' and '.join(beside)} next to it"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = _parser().parse_args(argv)
    weight, form = Path(args.weight), format_of(args.out, args.format)
    check_out(args.out, bool(args.overwrite))
    fast.set_up()
    if form == "onnx":
        print(export_onnx(weight, args.out, args.graph, args.trust_module))
    else:
        print(export_tensors(weight, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
