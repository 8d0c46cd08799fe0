"""Read, replay and check raw robosuite and robomimic recordings (states and actions).

``dataset_states_to_obs`` and ``robomimic_dataset_conversion`` use it. Recordings of older
versions are played in the current simulation, and every difference is reported: the version,
sizes and cameras of the recorded model, controller settings, actions out of range, different
observations and rewards, and actions that do not lead from one state to the next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bc.demos import DatasetError
from bc.loader import DemoFile
from common_utils.demo_file import Recording
from common_utils.env_args import arm_controller, version_numbers
from common_utils.errors import shortened
from common_utils.progress import console
from env.config import EnvConfig
from env.core import EnvError, ObsDict
from env.robosuite.env import RobosuiteEnv
from env.robosuite.replay import RecordedScene, restore_state, restore_step, to_base_frame
from env.robosuite.robomimic_args import controller_differences, model_xml, robomimic_env_args
from env.robosuite.sim import import_robosuite, recorded_task, sim_state, step_sim, task_named
from tools.recording import Job, Outcome, store_part

STEPS_TRIED = 20  # single actions played per demonstration, to check that they fit the states
# share of an arm's movement in a step: a larger mean error is reported
FITTING = 0.5
PICTURE_GAP = 20  # of 255: a difference that is seen
PICTURE_NOISE = 0.01  # mean difference of pictures whose poses agree to rounding
OBS_TOLERANCE = 1e-3  # metres, and components of a quaternion


@dataclass(frozen=True)
class Source:
    """How a file was recorded; ``notes`` are sentences on what differs here."""

    task: str
    version: str
    delta: bool
    world_frame: bool
    keeps_rotation: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RawDemo:
    """One recording: states float64 [T, 1 + nq + nv], actions float64 [T, A] in [-1, 1] as
    today's controller takes them (poses where the source is absolute)."""

    name: str
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray | None
    dones: np.ndarray | None
    obs: Mapping[str, np.ndarray]
    model_xml: str
    notes: tuple[str, ...]


def read_source(file: DemoFile) -> Source:
    """How ``file`` was recorded. Raises DatasetError where that is unknown or unsupported."""
    args = file.env_args
    try:
        task = recorded_task(file.suite, file.env_name)
    except EnvError as error:
        raise file.error(None, "data.attrs['env_args']", str(error)) from None
    robots = (args.get("env_kwargs") or {}).get("robots") or []
    robots = [robots] if isinstance(robots, str) else list(robots)
    if robots and robots != list(task.robots):
        raise file.error(
            None, "data.attrs['env_args']", f"robots {robots}, expected {list(task.robots)} for "
            f"{task.name}"
        )  # fmt: skip
    version, here = str(args.get("env_version", "")), import_robosuite().__version__
    notes = list(file.notes)
    if not version:
        notes.append(f"the file does not state its robosuite version; replayed in {here}")
    elif version_numbers(version) != version_numbers(here):
        notes.append(
            f"recorded with robosuite {version}, replayed in {here}: observations and rewards are "
            "those of today's simulation in the recorded states; playing the actions drifts"
        )
    controller = arm_controller(args)
    notes += controller_differences(controller)
    old = version_numbers(version) < (1, 5)
    return Source(
        task=task.name,
        version=version,
        delta=bool(controller["control_delta"]),
        world_frame=controller["input_ref_frame"] == "world",
        keeps_rotation=old,
        notes=tuple(notes),
    )


def read_demo(file: DemoFile, name: str, source: Source) -> RawDemo:
    """One recording, its arrays checked against each other and actions against the task's."""
    length = file.length(name)
    arrays = {}
    for key, ndim in (("actions", 2), ("states", 2), ("rewards", 1), ("dones", 1)):
        if ndim == 2 or file.find(name, key) is not None:
            arrays[key] = file.numbers(name, key, ndim)
            if len(arrays[key]) != length:
                raise file.error(
                    name, key, f"has {len(arrays[key])} steps, but 'actions' has {length}"
                )
    notes = []
    actions = arrays["actions"]
    wanted = task_named(source.task).action_dim
    if actions.shape[1] != wanted:
        raise file.error(
            name, "actions", f"have {actions.shape[1]} dimensions; {source.task} takes {wanted} "
            "(each arm 3 of position, 3 of rotation, 1 of the gripper)"
        )  # fmt: skip
    if file.delta_control:
        beyond = int((np.abs(actions) > 1 + 1e-6).any(axis=1).sum())
        if beyond:
            notes.append(
                f"{beyond} actions reach beyond [-1, 1] (up to {np.abs(actions).max():.3g}) and "
                "are clipped, as the controller does"
            )
        actions = actions.clip(-1, 1)
    xml = file.text(name, "model_file")
    if "<" not in xml:
        if xml.strip() and not re.fullmatch(r"[^\n]{1,300}\.xml", xml.strip()):
            raise file.error(
                name, "model_file", f"is '{shortened(xml)}', expected a model in MuJoCo's XML"
            )
        xml = ""  # no model, or the name of a file, as the first versions recorded
        notes.append("the model is not in the file: objects have the simulation's sizes")
    obs = {
        key: file.numbers(name, f"obs/{key}", 2)
        for key in file.obs_keys(name)
        if file.dataset(name, f"obs/{key}").ndim == 2
    }
    return RawDemo(
        name,
        arrays["states"],
        actions,
        arrays.get("rewards"),
        arrays.get("dones"),
        obs,
        xml,
        tuple(notes),
    )


def adopt(file: DemoFile, scene: RecordedScene, demo: RawDemo) -> tuple[list[str], list[str]]:
    """``RecordedScene.adopt`` of a demonstration's model, or the simulation's own without one.

    Raises DatasetError for a model that is refused.
    """
    if not demo.model_xml:
        scene.reset()
        return [], []
    try:
        return scene.adopt(demo.model_xml)
    except EnvError as error:
        raise file.error(demo.name, "model_file", str(error)) from error


def print_each_note(notes: Mapping[str, Sequence[str]]) -> None:
    """Print each note once, with the names of the demonstrations it is about."""
    for note, names in notes.items():
        who = ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
        console().print(f"note: {note} [{who}]", soft_wrap=True, markup=False)


@dataclass(frozen=True)
class ReplaySettings:
    """What a worker needs to replay demonstrations; plain data (see tools.recording)."""

    MAKER: ClassVar[str] = "tools.raw_demos:make_replayer"

    source: str
    source_bytes: int  # another file under the same name is another run
    cameras: list[str]
    image_size: int
    obs_size: int
    render_quality: str
    shaped: bool
    done_mode: int
    copy_dones: bool
    on_mismatch: str
    timeout: float = 3600.0

    def env_args(self, source: Source) -> dict[str, Any]:
        """robomimic's description of the written file, and its origin."""
        args = robomimic_env_args(source.task, self.cameras, self.obs_size, delta=source.delta)
        if self.cameras:
            args["env_kwargs"]["render_quality"] = self.render_quality
        args["env_kwargs"]["reward_shaping"] = self.shaped
        replayed = {"file": Path(self.source).name, "env_version": source.version}
        return args | {"replayed": replayed}

    def recorder(self) -> Replayer:
        """A replayer in this process."""
        return Replayer(self)


def make_replayer(settings: Mapping[str, Any]) -> Replayer:
    """The replayer of a worker process, built from the settings it receives."""
    return Replayer(ReplaySettings(**settings))


class Replayer:
    """Replays the demonstrations of one file; job number i is the i-th demonstration."""

    def __init__(self, settings: ReplaySettings) -> None:
        self.settings = settings
        self._file = DemoFile(settings.source)
        self.source = read_source(self._file)
        self.env = RobosuiteEnv(
            EnvConfig(
                suite="robosuite",
                task=self.source.task,
                cameras=list(settings.cameras),
                image_size=settings.image_size,
                rl_image_size=settings.obs_size,
                ctrl_delta=int(self.source.delta),
                render_quality="fast" if settings.render_quality == "fast" else "faithful",
            )
        )
        self.env.sim.reward_shaping = settings.shaped
        self.env.reset(seed=0)
        self.scene = RecordedScene(self.env.sim)
        self.spec = self.env.spec

    def attempt(self, job: Job) -> Outcome:
        """Replay one demonstration and store it; EnvError if it does not fit."""
        try:
            demo, recording, attrs = self.replay(self._file.names[job.number])
        except DatasetError as error:  # workers pass EnvErrors on unchanged
            raise EnvError(str(error)) from error
        store_part(recording, job, self.settings.cameras, attrs)
        return Outcome(max(recording.rewards) >= 1, len(recording), demo.name, kept=True)

    def replay(self, name: str) -> tuple[RawDemo, Recording, dict[str, Any]]:
        """The demonstration, its new recording, and the attributes to store."""
        demo = read_demo(self._file, name, self.source)
        taken, differences = adopt(self._file, self.scene, demo)
        notes = [*demo.notes, *differences]
        sim = self.env.sim
        if self.source.delta and self.source.world_frame:
            turned = to_base_frame(sim, demo.actions)
            if not np.allclose(turned, demo.actions):
                notes.append("actions are rotated from the world's axes to the robots' bases")
            demo = RawDemo(**{**demo.__dict__, "actions": turned})
        recording, fresh_rewards = self._observe(demo)
        if demo.rewards is not None:
            notes += self._check_rewards(demo, np.array(recording.rewards), fresh_rewards)
        notes += _check_obs(demo, recording)
        notes += self._compare_pictures(name, recording)
        error, way = self._play_single_steps(demo)
        if error > FITTING * way:
            notes.append(
                "the actions do not lead from state to state (recorded one step apart?): played "
                f"alone, they miss by {error:.2g} rad, where the arm goes {way:.2g} rad a step"
            )
        attrs: dict[str, Any] = {
            "source_demo": name,
            "model_file": demo.model_xml or model_xml(sim),
            "single_step_error": error,
            "taken_over": taken,
            "notes": notes,
        }
        return demo, recording, attrs

    def _observe(self, demo: RawDemo) -> tuple[Recording, np.ndarray]:
        """Observations in the recorded states; rewards [T] of the states that follow, both
        right after a step and in the restored state itself."""
        recording, live, fresh = Recording(), [], []
        for t, state in enumerate(demo.states):
            # a reset shows the state itself; a step shows the poses before its last physics step
            after_step = t > 0 or state[0] > 0
            try:
                obs, reward = self.env.observe_state(state, live=after_step)
            except EnvError as error:
                raise self._file.error(demo.name, "states", str(error)) from error
            if t > 0:
                live.append(reward)
                fresh.append(self._reward_in(state))
            recording.append(self._stored(obs), state, demo.actions[t], 0.0)
        restore_step(self.env.sim, demo.states, demo.actions, len(demo.states) - 1)
        step_sim(self.env.sim, demo.actions[-1])
        live.append(float(self.env.sim.reward()))
        fresh.append(self._reward_in(sim_state(self.env.sim)))
        recording.rewards = live
        recording.dones = self._dones(demo, np.array(live))
        return recording, np.array(fresh)

    def _reward_in(self, state: np.ndarray) -> float:
        restore_state(self.env.sim, state)
        return float(self.env.sim.reward())

    def _stored(self, obs: ObsDict) -> dict[str, np.ndarray]:
        return {c: obs[c] for c in self.settings.cameras} | self.env.raw_obs

    def _dones(self, demo: RawDemo, rewards: np.ndarray) -> list[int]:
        if self.settings.copy_dones:
            if demo.dones is None:
                raise self._file.error(demo.name, "dones", "missing; leave out --copy_dones")
            return [int(d) for d in demo.dones]
        dones = np.zeros(len(rewards), np.int64)
        if self.settings.done_mode in (0, 2):
            dones[rewards >= 1] = 1
        if self.settings.done_mode in (1, 2):
            dones[-1] = 1
        return [int(d) for d in dones]

    def _check_rewards(self, demo: RawDemo, live: np.ndarray, fresh: np.ndarray) -> list[str]:
        recorded = demo.rewards
        assert recorded is not None
        wrong = np.flatnonzero((np.abs(recorded - live) > 1e-4) & (np.abs(recorded - fresh) > 1e-4))
        if not len(wrong):
            return []
        t = int(wrong[0])
        text = (
            f"{len(wrong)} of {len(recorded)} recorded rewards differ from those of the states, "
            f"first at step {t}: {recorded[t]:g} in the file, {live[t]:g} recomputed"
        )
        if self.settings.on_mismatch == "error":
            raise self._file.error(
                demo.name, "rewards", f"{text} ({'; '.join(self.source.notes) or 'same version'}); "
                "--on_mismatch report keeps the recomputed ones"
            )  # fmt: skip
        return [text]

    def _compare_pictures(self, name: str, recording: Recording) -> list[str]:
        """How the file's own pictures differ from those that are drawn here."""
        notes = []
        for camera in self.settings.cameras:
            if not self._file.has(name, self._file.image_key(camera)):
                continue
            theirs, ours = self._file.images(name, camera), np.stack(recording.obs[camera])
            if theirs.shape != ours.shape:
                size = theirs.shape[-1]
                notes.append(
                    f"pictures of {camera} are not compared: {size} pixels wide in the file, "
                    f"{ours.shape[-1]} here (--obs_size {size} compares them)"
                )
            elif (gap := np.abs(theirs.astype(np.int16) - ours)).mean() > PICTURE_NOISE:
                notes.append(
                    f"pictures of {camera} differ from the file's by {gap.mean():.2f} of 255 on "
                    f"average, {(gap > PICTURE_GAP).mean():.1%} of the values by more than "
                    f"{PICTURE_GAP}, at most by {gap.max()}"
                )
        return notes

    def _play_single_steps(self, demo: RawDemo) -> tuple[float, float]:
        """Mean error of the arms' joints (rad) after single actions from recorded states, and
        how far they go in those steps."""
        if not self.source.delta or len(demo.states) < 2:
            return 0.0, 0.0
        sim, errors, ways = self.env.sim, [], []
        joints = np.concatenate([r._ref_arm_joint_pos_indexes for r in sim.robots])
        for t in np.unique(np.linspace(0, len(demo.states) - 2, STEPS_TRIED).astype(int)):
            restore_step(sim, demo.states, demo.actions, int(t))
            step_sim(sim, demo.actions[t])
            before, after = (demo.states[i][1:][joints] for i in (t, t + 1))
            errors.append(np.abs(sim.sim.data.qpos[joints] - after).max())
            ways.append(np.abs(after - before).max())
        return float(np.mean(errors)), float(np.mean(ways))

    def close(self) -> None:
        """Free the simulator, close the file."""
        self.env.close()
        self._file.close()


def _check_obs(demo: RawDemo, recording: Recording) -> list[str]:
    notes = []
    for key, theirs in demo.obs.items():
        if key not in recording.obs:
            continue
        ours = np.stack(recording.obs[key])
        if ours.shape != theirs.shape:
            notes.append(f"obs/{key} is {list(theirs.shape)} in the file, {list(ours.shape)} here")
        elif (worst := float(np.abs(ours - theirs).max())) > OBS_TOLERANCE:
            notes.append(f"obs/{key} differs from the file's by up to {worst:.2g}")
    return notes
