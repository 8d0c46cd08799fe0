"""Draw the particle's trajectories, and an implicit policy's energy over the actions.

    python -m tools.plot_particle --weight exps/ibc/particle/model0.pt --num 4 --out plots
    python -m tools.plot_particle --weight exps/ibc/particle/model0.pt --energy --out plots
    python -m tools.plot_particle --task PARTICLE_16d --num 2 --out plots      # the oracle

``trajectories.png``: in two dimensions the plane with the whole 200 Hz path, otherwise every
coordinate over time; goals, their tolerance, and the set-points. ``energy.png``: the energy
(Implicit BC, equation 1; lower is better) at several steps of an episode, over the plane of
two action dimensions; the others keep the values that the policy chose.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common_utils.errors import run_program
from common_utils.finite import check_action
from common_utils.options import Options, numeric
from common_utils.ranges import NotNegative, Positive, Seed
from common_utils.run_config import ConfigError
from env.core import ObsDict
from env.experts import make_expert
from env.factory import make_env
from env.named_modules import add_trust_option
from env.particle.env import ParticleEnv
from env.particle.sim import ParticleSim
from tools import plot_style

if TYPE_CHECKING:
    from bc.ibc.ebm_policy import EbmPolicy

FIRST, SECOND, SETPOINT = plot_style.GREEN, plot_style.BLUE, plot_style.ORANGE


class Played(NamedTuple):
    """One episode: path [T * repeat + 1, N], setpoints [T, N], goals [N] twice, observations."""

    seed: int
    success: bool
    path: np.ndarray
    setpoints: np.ndarray
    goals: tuple[np.ndarray, ...]
    goal_distance: float
    step_seconds: float
    observations: list[ObsDict]
    actions: np.ndarray


def play(env: ParticleEnv, seed: int, policy: Any = None) -> Played:
    """Play an episode with the policy (an agent as in evaluations), or with the oracle."""
    from evaluate.rollout import PolicyRunner, evaluating

    obs, _ = env.reset(seed=seed)
    observations: list[ObsDict] = []
    actions: list[np.ndarray] = []
    done = False
    if policy is None:
        oracle = make_expert(env)
        oracle.reset(np.random.default_rng(seed))
    else:
        runner = PolicyRunner(policy)
        generator = runner.generator(seed)
    with evaluating(policy):
        while not done:
            action = oracle.act() if policy is None else runner.act(obs, generator)
            check_action(action, seed, len(actions))
            observations.append(obs)
            actions.append(action)
            obs, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
    sim: ParticleSim = env.sim
    return Played(
        seed,
        bool(info["success"]),
        np.stack(sim.path),
        np.stack(sim.setpoints),
        sim.goals,
        sim.params.goal_distance,
        sim.params.dt,
        observations,
        np.stack(actions),
    )


# ------------------------------------------------------------------------ plots


def trajectories(episodes: Sequence[Played], path: Path) -> Path:
    """Draw episodes side by side; writes the PNG and returns its path."""
    two = episodes[0].path.shape[1] == 2
    figure, axes = _figure(len(episodes), 3.2 if two else 4.0, 3.4)
    for axis, episode in zip(axes, episodes, strict=True):
        (_plane if two else _over_time)(axis, episode)
        axis.set_title(f"seed {episode.seed}: {'success' if episode.success else 'failure'}")
    return _save(figure, path)


def _plane(axis: Any, episode: Played) -> None:
    _goals(axis, episode, (0, 1))
    axis.plot(*episode.path.T, ":", color="black", linewidth=1)
    axis.plot(*episode.setpoints.T, "x", color=SETPOINT, markersize=4)
    axis.plot(*episode.path[0], "o", color="black", markersize=4)
    axis.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")


def _goals(axis: Any, episode: Played, dims: tuple[int, int]) -> None:
    from matplotlib.patches import Circle

    for goal, colour in zip(episode.goals, (FIRST, SECOND), strict=True):
        at = (float(goal[dims[0]]), float(goal[dims[1]]))
        axis.add_patch(Circle(at, episode.goal_distance, color=colour, alpha=0.25, linewidth=0))
        axis.add_patch(Circle(at, 0.01, color=colour, linewidth=0))


def _over_time(axis: Any, episode: Played) -> None:
    times = np.arange(len(episode.path)) * episode.step_seconds
    every = (len(episode.path) - 1) // len(episode.setpoints)
    for i in range(episode.path.shape[1]):
        # one strip per coordinate, each from 0 to 1
        axis.plot(times, i + episode.path[:, i] * 0.9, color="black", linewidth=1)
        axis.plot(times[:-1:every], i + episode.setpoints[:, i] * 0.9, "x", color=SETPOINT, ms=2)
        for goal, colour in zip(episode.goals, (FIRST, SECOND), strict=True):
            axis.axhline(i + goal[i] * 0.9, color=colour, linewidth=0.8)
    axis.set(xlabel="seconds", ylabel="coordinate", ylim=(-0.1, episode.path.shape[1]))


def energy_landscape(
    policy: EbmPolicy,
    episode: Played,
    steps: Sequence[int],
    path: Path,
    dims: tuple[int, int] = (0, 1),
    resolution: int = 101,
) -> Path:
    """Draw the energy over two action dimensions at ``steps``; writes the PNG, returns its path.

    ``resolution`` points per axis over the actions' range, [0, 1] in the particle's units.
    """
    import torch

    from bc.ibc.landscape import energies, plane

    native = np.linspace(0, 1, resolution)
    figure, axes = _figure(len(steps), 3.6, 3.2)
    for axis, step in zip(axes, steps, strict=True):
        actions = plane(torch.from_numpy(episode.actions[step]), resolution, dims)
        obs = {k: torch.from_numpy(v) for k, v in episode.observations[step].items()}
        values = energies(policy, obs, actions)
        energy = values.reshape(resolution, resolution).numpy()
        drawn = axis.contourf(native, native, energy, levels=30, cmap="viridis")
        figure.colorbar(drawn, ax=axis)
        _goals(axis, episode, dims)
        every = (len(episode.path) - 1) // len(episode.setpoints)
        axis.plot(*episode.path[step * every, list(dims)], "o", color="white", label="particle")
        axis.plot(*episode.setpoints[step, list(dims)], "x", color=SETPOINT, label="chosen")
        axis.set(title=f"energy, step {step}", aspect="equal")
    axes[0].legend(fontsize="x-small", loc="lower left")
    return _save(figure, path)


def _figure(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    size = (width * columns, height)
    figure, axes = plot_style.pyplot().subplots(1, columns, figsize=size, squeeze=False)
    for axis in axes[0]:
        axis.grid(False)
    return figure, list(axes[0])


def _save(figure: Any, path: Path) -> Path:
    plot_style.save(figure, path, dpi=120)
    return path


# ------------------------------------------------------------------ command line


def _parser() -> argparse.ArgumentParser:
    parser = Options(prog="python -m tools.plot_particle", description="Pictures of the particle.")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--weight", help="a policy's weight file, with its cfg.yaml next to it")
    who.add_argument("--task", help="PARTICLE_{N}d, played by the oracle")
    parser.add_argument("--num", type=numeric(Positive), default=4, help="episodes")
    parser.add_argument("--seed", type=numeric(Seed), default=0, help="seed of the first episode")
    parser.add_argument(
        "--energy", action="store_true", help="also draw energy.png, of the first episode"
    )
    parser.add_argument(
        "--steps",
        type=numeric(NotNegative),
        nargs="+",
        default=[0, 10, 20, 30],
        help="steps shown in energy.png",
    )
    parser.add_argument(
        "--dims",
        type=numeric(NotNegative),
        nargs=2,
        default=[0, 1],
        help="action dimensions shown in energy.png",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", default=".", help="folder of the PNG files")
    add_trust_option(parser)
    return parser


def _open(args: argparse.Namespace) -> tuple[ParticleEnv, Any]:
    """The environment, and the policy if one is to play. Raises ConfigError, EnvError."""
    from bc.ibc.landscape import has_one_energy

    if args.task:
        env, policy = make_env({"suite": "particle", "task": args.task}), None
    else:
        from networks import fast
        from workspace.build_policy import load_model

        fast.set_up()
        policy, env, _ = load_model(args.weight, args.device, trust_module=args.trust_module)
    if not isinstance(env, ParticleEnv):
        raise ConfigError(
            f"--weight: '{args.weight}' was trained for {env.spec.suite}, not particle"
        )
    if args.energy and not has_one_energy(policy):
        raise ConfigError("--energy: needs --weight of an implicit (EBM) policy")
    if args.energy and env.spec.action_dim < 2:
        raise ConfigError("--energy: draws two action dimensions, but the task has one")
    return env, policy


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status (2: wrong options or checkpoint)."""
    parser = _parser()
    args = parser.parse_args(argv)
    env, policy = _open(args)
    limit, dim = env.spec.horizon, env.spec.action_dim
    if not all(0 <= s < limit for s in args.steps):
        parser.error(f"--steps {args.steps}: an episode has steps 0 to {limit - 1}")
    if args.energy and not (all(0 <= d < dim for d in args.dims) and len(set(args.dims)) == 2):
        parser.error(f"--dims {args.dims}: expected two of the action dimensions 0 to {dim - 1}")
    episodes = [play(env, args.seed + i, policy) for i in range(args.num)]
    written = [trajectories(episodes, Path(args.out) / "trajectories.png")]
    if args.energy:
        out = Path(args.out) / "energy.png"
        dims = (args.dims[0], args.dims[1])
        written.append(energy_landscape(policy, episodes[0], args.steps, out, dims))
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
