"""Evaluate checkpoints: one weight file, or all of a folder as a ranked table.

    python -m evaluate.eval --weight exps/rl/run1/model0.pt --num_game 50
    python -m evaluate.eval --folder exps/bc --include model --num_game 50
    python -m evaluate.eval --weight exps/bc/run1/model0.pt --mp 0 --record_dir videos
    python -m evaluate.eval --weight exps/rl/run1/model0.pt --mp 0 --num_game 1 --rerun_dir rerun

Exit status 0 on success, 2 when the command or a checkpoint cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common_utils import run_config
from common_utils.atomic import atomic_json
from common_utils.config_types import Flag
from common_utils.errors import UserError, print_error, run_program
from common_utils.kept_weights import is_copy
from common_utils.options import Options, numeric
from common_utils.ranges import Positive, Seed, Threads
from common_utils.run_config import ConfigError
from common_utils.run_folder import output_folder
from env.core import Env
from env.named_modules import add_trust_option
from env.remote import WORKERS
from evaluate.multi_process_eval import EvalPool, run_eval_mp
from evaluate.protocol import Protocol, protocol_of
from evaluate.recording import Recordings
from evaluate.rollout import EvalResult, Forecast
from evaluate.stats import Rate, wilson
from networks import fast
from workspace import build_agent, build_policy, tensor_file
from workspace.kinds import MARKS, kind_in
from workspace.rl_config import MainConfig as RlConfig
from workspace.weights import require_weights

# How each kind of checkpoint is loaded. This module is an entry script: unlike the rest of its
# package it may import from the layer above.
LOADERS: dict[str, Callable[..., tuple[Any, Env, dict[str, Any]]]] = {
    "bc": build_policy.load_model,
    "rl": build_agent.load_model,
}


def _parser() -> argparse.ArgumentParser:
    parser = Options(prog="python -m evaluate.eval", description="Evaluate checkpoints.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--weight", help="weight file; its cfg.yaml must be next to it")
    what.add_argument("--folder", help="evaluate every weight file below it")
    parser.add_argument(
        "--include", nargs="*", default=[], help="with --folder: paths must contain all of these"
    )
    parser.add_argument(
        "--mode", choices=sorted(LOADERS), help="what was trained; default: read from its cfg.yaml"
    )
    parser.add_argument(
        "--num_game", type=numeric(Positive), default=10, help="episodes per evaluation"
    )
    parser.add_argument("--seed", type=numeric(Seed), default=1, help="seed of the first episode")
    parser.add_argument(
        "--repeat",
        type=numeric(Positive),
        default=1,
        help="evaluations per checkpoint, each on further seeds",
    )
    parser.add_argument("--mp", type=numeric(Threads), default=10, help="workers; 0: this process")
    parser.add_argument(
        "--engine",
        choices=sorted(WORKERS),
        default="process",
        help="where workers are: processes of this machine, or actors of a Ray cluster (that of "
        "RAY_ADDRESS)",
    )
    parser.add_argument(
        "--one_by_one", type=numeric(Flag), default=0,
        help="1: one observation per forward pass, scores exactly as with --mp 0",
    )  # fmt: skip
    parser.add_argument("--record_dir", help="write one MP4 per episode here (needs --mp 0)")
    parser.add_argument(
        "--rerun_dir",
        help="write one recording (.rrd) per episode here, for the viewer of rerun: pictures, "
        "actions, value of each candidate, energies (needs --mp 0 and --weight)",
    )
    parser.add_argument(
        "--out", help="with --weight: write each episode's outcome to this JSON file"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_trust_option(parser)
    parser.add_argument("--verbose", type=numeric(Flag), default=1, help="1: a line per game")
    return parser


def find_weights(folder: str | Path, include: Sequence[str] = ()) -> list[Path]:
    """Weight files below ``folder`` whose path contains all of ``include``.

    Only those with a cfg.yaml next to them (resumable state is not a checkpoint), and not the
    copies of other runs' weights that runs keep. Raises ConfigError if there are none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"--folder: no folder '{folder}'")
    found = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix in (".pt", tensor_file.SUFFIX)
        and (path.parent / "cfg.yaml").is_file()
        and not is_copy(path)
        and all(part in str(path.relative_to(root)) for part in include)
    ]
    if not found:
        wanted = f" whose path contains {' and '.join(include)}" if include else ""
        raise ConfigError(
            f"--folder: no weight file with a cfg.yaml next to it in '{folder}'{wanted}"
        )
    return found


def kind_of(weight: Path, mode: str | None) -> str:
    """Which of :data:`LOADERS` reads ``weight``, according to the cfg.yaml next to it.

    mode: the user's choice, needed only if that does not decide.
    Raises ConfigError if the two differ or if neither decides.
    """
    require_weights(weight, "--weight")
    path = weight.parent / run_config.CFG_NAME
    tree = run_config.read_yaml(path)
    kind = kind_in(tree) or mode
    if kind is None:
        raise ConfigError(
            f"{path}: cannot decide between BC and RL weights; expected "
            f"{' or '.join(MARKS['bc'])} (BC), {' or '.join(MARKS['rl'])} (RL), "
            "or the option --mode"
        )
    if mode not in (None, kind):
        raise ConfigError(
            f"--mode: {mode}, but these are {kind.upper()} weights (of {path}); "
            f"expected --mode {kind}, or no --mode"
        )
    return kind


class Evaluator:
    """Evaluates one checkpoint after another, keeping the workers while the task is the same."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.protocol = Protocol()  # that of the checkpoint evaluated last
        self._recordings: Recordings | None = None
        if args.rerun_dir is not None:
            self._recordings = Recordings(output_folder(args.rerun_dir, "--rerun_dir", "a folder"))
            self._recordings.check(range(args.seed, args.seed + args.repeat * args.num_game))
        self._pool: EvalPool | None = None
        self._forecast: Forecast | None = None

    def _pool_for(self, params: dict[str, Any]) -> EvalPool:
        if self._pool is None or self._pool.env_cfg != params:
            self.close()
            workers = min(self.args.mp, self.args.num_game)
            self._pool = EvalPool(params, workers, engine=self.args.engine)
        return self._pool

    def evaluate(self, weight: Path) -> EvalResult:
        """All ``repeat * num_game`` games of one checkpoint."""
        args = self.args
        kind = kind_of(weight, args.mode)
        load_model = LOADERS[kind]
        agent, env, params = load_model(str(weight), args.device, trust_module=args.trust_module)
        env.close()  # evaluations build their own
        self.protocol = protocol_of(params["suite"])
        self._forecast = None
        if args.out and kind == "rl":
            cfg = run_config.load(RlConfig, weight.parent / run_config.CFG_NAME)
            self._forecast = Forecast(agent.value, cfg.discount)
        results = []
        for number in range(args.repeat):
            result = self._play(params, agent, args.seed + number * args.num_game)
            results.append(result)
            if args.repeat > 1:
                print(f"{weight}, evaluation {number + 1}: success {result.rate()}")
        return merge(results)

    def _play(self, params: dict[str, Any], agent: Any, seed: int) -> EvalResult:
        """One evaluation; if there are several, workers are kept between them."""
        args = self.args
        options = {
            "one_by_one": bool(args.one_by_one),
            "record": args.record_dir,
            "verbose": bool(args.verbose),
            "recordings": self._recordings,
            "forecast": self._forecast,
        }
        if args.weight and args.repeat == 1:
            options["engine"] = args.engine
            return run_eval_mp(params, agent, args.mp, args.num_game, seed, **options)
        return self._pool_for(params).run(agent, args.num_game, seed, **options)

    def close(self) -> None:
        """Stop the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def write_outcomes(result: EvalResult, weight: Path, out: Path) -> None:
    """One object per episode, for ``tools.report``."""
    episodes = [
        {
            "seed": int(result.seeds[i]),
            "success": bool(result.successes[i]),
            "return": float(result.scores[i]),
            "length": int(result.lengths[i]),
            **{name: float(values[i]) for name, values in result.metrics.items()},
        }
        for i in range(len(result))
    ]
    atomic_json({"weight": weight.name, "episodes": episodes}, out)


def merge(results: Sequence[EvalResult]) -> EvalResult:
    """Merge several evaluations of one checkpoint, in the given order."""

    def joined(field: str) -> np.ndarray:
        return np.concatenate([getattr(r, field) for r in results])

    metrics = {
        name: np.concatenate([r.metrics[name] for r in results]) for name in results[0].metrics
    }
    return EvalResult(
        joined("scores"), joined("successes"), joined("lengths"), joined("seeds"), metrics
    )


def table(results: dict[Path, EvalResult], root: Path, protocol: Protocol) -> str:
    """Print the checkpoints of a folder, ranked by the protocol's score (success, or the return on
    D4RL), with the average, the maximum, and the maximum success per episode seed."""
    ranked = sorted(results.items(), key=lambda item: -protocol.score(item[1]))
    names = {path: str(path.relative_to(root)) for path in results}
    width = max(len(name) for name in names.values())
    lines = [f"{'checkpoint':<{width}}  success  95 % interval      score   length"]
    for path, result in ranked:
        lines.append(
            f"{names[path]:<{width}}  {_rate(result.rate())}  {result.mean_score:7.3f}  "
            f"{result.lengths.mean():7.1f}"
        )
    scores = [protocol.score(r) for r in results.values()]
    per_seed = np.stack([r.successes for r in results.values()]).max(axis=0)
    lines += [
        f"average over {len(scores)} checkpoints: {np.mean(scores):.3f}",
        f"max: {max(scores):.3f} ({names[ranked[0][0]]})",
        "max over checkpoints per episode seed (solved by at least one): "
        f"{wilson(int(per_seed.sum()), per_seed.size)}",
    ]
    return "\n".join(lines)


def _rate(rate: Rate) -> str:
    return f"{rate.mean:7.3f}  [{rate.low:.3f}, {rate.high:.3f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    fast.set_up()
    parser = _parser()
    args = parser.parse_args(argv)
    if args.record_dir and args.mp:
        parser.error("--record_dir needs --mp 0")
    if args.rerun_dir is not None and (args.mp or not args.weight):
        parser.error("--rerun_dir needs --mp 0 and --weight")
    if args.engine != "process" and not args.mp:
        parser.error(f"--engine {args.engine} needs --mp of at least 1")
    if args.out and (not args.weight or Path(args.out).exists()):
        found = "exists, expected a new name" if args.weight else "goes with --weight"
        parser.error(f"--out {found}")
    if args.include and not args.folder:
        parser.error("--include goes with --folder")
    evaluator = Evaluator(args)
    try:
        return _run(args, evaluator)
    finally:
        evaluator.close()


def _run(args: argparse.Namespace, evaluator: Evaluator) -> int:
    if args.weight:
        result = evaluator.evaluate(Path(args.weight))
        extra = "".join(f", {k} {v:.4g}" for k, v in result.mean_metrics.items())
        print(f"{args.weight}: success {result.rate()}, score {result.mean_score:.3f}{extra}")
        if args.out:
            write_outcomes(result, Path(args.weight), Path(args.out))
        return 0
    results, failed = {}, 0
    for path in find_weights(args.folder, args.include):
        try:
            results[path] = evaluator.evaluate(path)
        except UserError as error:  # the table still has the others
            failed += 1
            print_error(f"{path}: {error}")
            continue
        print(f"{path}: success {results[path].rate()}", flush=True)
    if results:
        print(table(results, Path(args.folder), evaluator.protocol))
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
