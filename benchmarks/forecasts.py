"""Compare forecasts (``launch.plan``) with measurements of the same machine.

    python -m benchmarks.forecasts --envs ENVS.json --ranks RANKS.json --raylets RAYLETS.json
        [--folder DIR] [--json FILE]

ENVS.json is what ``benchmarks.envs --part training`` wrote (Lift and Meta-World from states, whole
training steps per second with 1, 2 and 4 environments), RANKS.json what ``benchmarks.ranks --case
rl`` did (updates per second of PickPlaceCan from pixels on 1 and 2 ranks), RAYLETS.json what
``benchmarks.envs --part raylets`` did (Lift with 2 environments in Ray actors). The costs of the
same configurations are measured now, and kept in DIR, or read from there if they are kept already.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.envs import PIXELS, STATES, load, ray_nodes
from common_utils import run_config
from common_utils.atomic import atomic_json
from common_utils.errors import run_program
from launch import costs as recorded
from launch.costs import Costs
from launch.forecast import update_seconds
from launch.measure import measure
from launch.rounds import Setting, play
from train_rl import MainConfig

CFGS = Path(__file__).resolve().parents[1] / "release" / "cfgs"
BC_PIXELS = "robomimic_bc/can.yaml"


def costs_of(args: argparse.Namespace, name: str, cfg: MainConfig, bc_config: str = "") -> Costs:
    """Those that ``args.folder`` keeps, or measured now."""
    kept = Path(args.folder) / f"costs_{name}.json" if args.folder else None
    if kept is not None and kept.exists():
        return recorded.read(kept, "--folder")
    found = measure(cfg, bc_config, say=lambda line: print(f"{name}: {line}", flush=True))
    found.config = name
    if kept is not None:
        recorded.write(found, kept, "python -m benchmarks.forecasts")
    return found


def measured(path: str, metric: str) -> dict[str, float]:
    """Values of a metric in a benchmark's records, by case."""
    records = json.loads(Path(path).read_text(encoding="utf-8"))
    if isinstance(records, dict):
        records = records["records"]
    return {r["case"]: r["value"] for r in records if r["metric"] == metric}


def environments(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs with several environments: as ``benchmarks.envs`` plays them, whose episodes all begin
    at the same time and last until the time limit."""
    points = []
    found = measured(args.envs, "env_steps_per_second")
    for name, file in STATES.items():
        costs = costs_of(args, name.lower().replace("-", ""), load(file))
        for num in (1, 2, 4):
            case = f"{name}, states, {num} environment(s)"
            if case in found:
                played = play(costs, Setting(num, costs.cores, together=True), args.steps)
                points.append(point(case, found[case], args.steps / played.seconds, "steps/s"))
    return points


def raylets(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs with environments in actors of a cluster whose nodes are all on this machine, so that
    they share its cores: for the forecast, one machine."""
    found = measured(args.raylets, "env_steps_per_second")
    with ray_nodes(1):
        costs = costs_of(args, "lift_ray", load(STATES["Lift"], rollout="ray"))
    played = play(costs, Setting(2, costs.cores, together=True), args.steps)
    return [
        point(case, rate, args.steps / played.seconds, "steps/s") for case, rate in found.items()
    ]


def ranks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Updates on several ranks."""
    cfg = run_config.parse_args(MainConfig, [f"--config_path={CFGS / PIXELS}"])
    costs = costs_of(args, "can_ibrl", cfg, str(CFGS / BC_PIXELS))
    found = measured(args.ranks, "steps_per_second")
    return [
        point(case, rate, 1 / update_seconds(costs, int(case.split()[1]), costs.cores), "updates/s")
        for case, rate in found.items()
        if case.startswith("rl,")
    ]


def point(case: str, value: float, forecast: float, unit: str) -> dict[str, Any]:
    """A measured value beside its forecast."""
    error = 100 * (forecast / value - 1)
    print(f"{case:<36} {value:>10.4g} {unit:<10} forecast {forecast:>10.4g}  error {error:+.1f} %")
    return {
        "case": case,
        "measured": value,
        "forecast": forecast,
        "unit": unit,
        "error_percent": error,
    }


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--envs", default="", help="records of benchmarks.envs --part training")
    parser.add_argument("--ranks", default="", help="records of benchmarks.ranks --case rl")
    parser.add_argument("--raylets", default="", help="records of benchmarks.envs --part raylets")
    parser.add_argument("--folder", default="", help="where costs are kept")
    parser.add_argument("--steps", type=int, default=500, help="training steps of the runs (500)")
    args = parser.parse_args()
    common.start(args)
    points = environments(args) if args.envs else []
    points += ranks(args) if args.ranks else []
    points += raylets(args) if args.raylets else []
    errors = [abs(p["error_percent"]) for p in points]
    if points:
        print(f"{len(points)} points: mean error {sum(errors) / len(errors):.1f} %, largest "
              f"{max(errors):.1f} %")  # fmt: skip
    if args.json:
        atomic_json(points, args.json)


if __name__ == "__main__":
    sys.exit(run_program(main))
