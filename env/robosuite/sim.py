"""Makes, seeds and saves robosuite 1.5 simulations that match robomimic's data (robosuite 1.4).

The differences between the two versions that matter to data and policies are handled here and
in ``env.robosuite.obs``; docs/environments.md lists them. Nothing here renders:
``env.rendering`` draws images from ``sim.model._model`` and ``sim.data._data``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common_utils.extras import how_to_install
from env.core import EnvError
from env.robosuite.fast import FastLoop, fits
from env.robosuite.shapes import draw_shapes

CONTROL_FREQ = 20  # Hz
ARM_ACTION_DIM = 7  # position 3, rotation 3 (axis-angle), gripper 1 (-1 opens, +1 closes)


@dataclass(frozen=True)
class Task:
    """A robosuite task: its robots, robomimic's time limit and its condition of success."""

    name: str
    robots: tuple[str, ...]
    horizon: int
    success: str

    @property
    def action_dim(self) -> int:
        """7 per arm."""
        return ARM_ACTION_DIM * len(self.robots)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("Lift", ("Panda",), 200, "the cube is 4 cm above the table"),
        Task("PickPlaceCan", ("Panda",), 200, "the can lies in its compartment, the hand away"),
        Task("NutAssemblySquare", ("Panda",), 300, "the nut is on the square peg, the hand away"),
        Task(
            "TwoArmTransport",
            ("Panda", "Panda"),
            800,
            "the hammer lies in the target bin, the trash in the trash bin",
        ),
        Task("ToolHang", ("Panda",), 700, "the frame stands in its mount, the tool hangs on it"),
        # the full tasks; old teleoperated recordings of them exist, but no expert
        Task("PickPlace", ("Panda",), 1500, "all four objects lie in their compartments"),
        Task("NutAssembly", ("Panda",), 1000, "both nuts are on their pegs"),
    )
}


def task_named(name: str) -> Task:
    """The task; for an unknown name an EnvError that lists the tasks."""
    try:
        return TASKS[name]
    except KeyError:
        known = ", ".join(TASKS)
        raise EnvError(f"robosuite task '{name}' is unknown; expected one of {known}") from None


def recorded_task(suite: str, name: str) -> Task:
    """The task of a demonstration file; EnvError unless robosuite recorded it."""
    if suite != "robosuite" or not name:
        found = suite or "a file that names no suite"
        raise EnvError(f"expected a robosuite recording, got {found} (task '{name}')")
    return task_named(name)


def _quiet_macros() -> types.ModuleType:
    """Set robosuite to print no notes about missing optional parts, and to keep MUJOCO_GL.

    robosuite reads its settings from ``robosuite.macros_private``, where users may have their own.
    By default it sets MUJOCO_GL to egl when it is imported, even if there is no OpenGL.
    """
    macros = types.ModuleType("robosuite.macros_private")
    macros.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    spec = importlib.util.find_spec("robosuite")
    if spec is not None and spec.origin is not None:
        own = Path(spec.origin).with_name("macros_private.py")
        if own.exists():
            exec(compile(own.read_text(), str(own), "exec"), macros.__dict__)
    macros.MUJOCO_GPU_RENDERING = False  # type: ignore[attr-defined]
    return macros


def import_robosuite() -> Any:
    """The robosuite module; EnvError if it cannot be imported.

    It uses OpenCV only for windows, which are never opened here, and OpenCV needs libGL. If OpenCV
    does not load, robosuite is imported without it.
    """
    if "robosuite" in sys.modules:
        return sys.modules["robosuite"]
    if importlib.util.find_spec("robosuite") is None:
        raise EnvError(f"robosuite is not installed: {how_to_install('sim')}")
    sys.modules.setdefault("robosuite.macros_private", _quiet_macros())
    gl_backend = os.environ.get("MUJOCO_GL")
    try:
        import cv2  # noqa: F401
    except ImportError:
        sys.modules["cv2"] = types.ModuleType("cv2")
        without_cv2 = True
    else:
        without_cv2 = False
    try:
        import robosuite
    except Exception as error:
        raise EnvError(
            f"robosuite cannot be imported: {error!r}; python -m common_utils.doctor explains"
        ) from error
    finally:
        if without_cv2:
            del sys.modules["cv2"]
        if gl_backend is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = gl_backend
    return robosuite


def make_sim(task: str, *, hard_reset: bool = False, delta: bool = True) -> Any:
    """The robosuite environment of ``task``, without any camera or renderer.

    Sparse reward (1 at success), 20 Hz, the OSC_POSE controller that robosuite 1.4 had by
    default. It never ends an episode by itself. Actions: float [7] (TwoArmTransport [14]:
    robot0, robot1) in [-1, 1], see ARM_ACTION_DIM. Call ``reset_sim`` before the first step.

    Args:
        task: one of TASKS.
        hard_reset: compile the model again at each reset, as robosuite does by default (200
            times slower; the episodes are the same).
        delta: actions are shares of the largest steps (5 cm, 0.5 rad). False: the arm's part of
            an action is the hand's pose in the world, metres and axis-angle.
    """
    kind = task_named(task)
    robosuite = import_robosuite()
    # each robot has its own configuration, because the environment writes into it
    controllers = [robosuite.load_composite_controller_config(robot=r) for r in kind.robots]
    if not delta:
        for controller in controllers:
            controller["body_parts"]["right"] |= {
                "input_type": "absolute",
                "input_ref_frame": "world",
            }
    more = {"env_configuration": "opposed"} if len(kind.robots) == 2 else {}
    return robosuite.make(
        kind.name,
        robots=list(kind.robots),
        controller_configs=controllers,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=True,
        reward_shaping=False,
        control_freq=CONTROL_FREQ,
        horizon=kind.horizon,
        ignore_done=True,
        hard_reset=hard_reset,
        renderer="mujoco",  # robosuite would search for the other one at every reset
        seed=0,
        **more,
    )


def reset_sim(env: Any, seed: int) -> None:
    """Start the episode of ``seed``; it does not depend on what was played before."""
    generator = np.random.default_rng(seed)
    env.rng = generator
    if hasattr(env, "transport"):
        env.transport.payload.rng = generator  # which way the hammer lies
    if not env.hard_reset:
        draw_shapes(env, generator)
    initializer = env.placement_initializer
    initializer.rng = generator
    for sampler in getattr(initializer, "samplers", {}).values():
        sampler.rng = generator
    env.reset()


def step_sim(env: Any, action: np.ndarray, *, fast: bool = True) -> bool:
    """One control step (25 physics steps); returns whether the task is solved after it.

    The same as ``env.step(action)`` without robosuite's observations, which
    ``env.robosuite.obs.observe`` replaces. ``fast`` uses ``env.robosuite.fast`` if possible.
    """
    steps = round(env.control_timestep / env.model_timestep)
    loop = _fast_loop(env) if fast else None
    if loop is not None:
        loop.step(env, action, steps)
    else:
        for number in range(steps):
            env.sim.step1()
            env._pre_action(action, number == 0)
            env.sim.step2()
    env.timestep += 1
    env.cur_time += env.control_timestep
    return bool(env._check_success())


def _fast_loop(env: Any) -> FastLoop | None:
    """The loop of the environment's current simulation (a hard reset makes a new one)."""
    known = getattr(env, "_fast_loop", None)
    if known is None or known[0] is not env.sim:
        known = env._fast_loop = (env.sim, FastLoop(env) if fits(env) else None)
    loop: FastLoop | None = known[1]
    return loop


def sim_state(env: Any) -> np.ndarray:
    """Flattened state float64 [1 + nq + nv] (time, positions, velocities), as in robomimic."""
    state: np.ndarray = env.sim.get_state().flatten()
    return state


def camera_names(env: Any) -> list[str]:
    """The model's cameras."""
    model = env.sim.model._model
    return [model.camera(i).name for i in range(model.ncam)]
