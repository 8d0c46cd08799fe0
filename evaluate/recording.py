"""Recordings of evaluation episodes for the viewer of rerun (rerun.io).

A file ``seed1.rrd`` holds, for each step of an episode (timeline ``step``):

==================  ============================================================================
``/camera/NAME``    image uint8 [H, W, 3] of the observation, newest frame; without cameras, the
                    renderer's as JPEG, where OpenGL works (``/camera/scene``)
``/state, /prop``   newest frame of the observation
``/action``         [A]
``/reward``         of this step, and ``/return``, their sum so far; ``/success``: 0 or 1
``/q``              value of each candidate [N], under its name ("rl", "bc", ...)
``/candidates/NAME``  its action [A]
``/chosen``         which was chosen, by number, and ``/choice``, by name
``/energy``         the energy over two dimensions of the action, as a picture; a dot is the action
``/energy/values``  its numbers float32 [G, G] (``common_utils.specs.Decision``)
==================  ============================================================================
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common_utils.atomic import atomic_write
from common_utils.errors import ConfigError
from common_utils.extras import how_to_install
from common_utils.specs import Decision, EnvSpec
from env.core import Env, EnvError, EnvGone, EpisodeLost, ObsDict

_OPTION = "--rerun_dir"
_JPEG = 90  # quality of the renderer's images; observations are stored exactly
_PRECISE = np.float64  # in which the viewer's series are kept; holds every float32


class Recordings:
    """A folder of recordings, one file per episode; ConfigError without the package."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            import rerun
        except ImportError as error:
            line = " ".join(str(error).split())
            raise ConfigError(
                f"{_OPTION}: the package rerun-sdk cannot be imported ({line}); expected what "
                f"this installs: {how_to_install('report')}"
            ) from None
        self._rr: Any = rerun
        self._pictures = True

    def path(self, seed: int) -> Path:
        """The file of an episode."""
        return self.folder / f"seed{seed}.rrd"

    def check(self, seeds: Iterable[int]) -> None:
        """Raise ConfigError if a file of these episodes exists."""
        for path in map(self.path, seeds):
            if path.exists():
                raise ConfigError(
                    f"{_OPTION}: '{path}' exists, expected a folder without it; remove the file "
                    "or choose another folder"
                )

    @contextmanager
    def episode(self, spec: EnvSpec, seed: int) -> Iterator[EpisodeRecording]:
        """Record an episode in the block; if it raises, there is no file."""
        rr, title = self._rr, f"{spec.suite} {spec.task}, seed {seed}"
        with atomic_write(self.path(seed)) as temp:
            # of its own: by default, all recordings of a process would be shown as one
            stream = rr.RecordingStream("ibrl", recording_id=str(uuid.uuid4()))
            try:
                stream.save(temp, default_blueprint=_blueprint(spec))
                stream.send_recording_name(title)
                yield EpisodeRecording(rr, stream, spec, self)
            finally:
                stream.disconnect()

    def picture(self, env: Env) -> np.ndarray | None:
        """The renderer's image, None where it does not work (said once)."""
        if self._pictures:
            try:
                return env.render()
            except (EnvGone, EpisodeLost):  # no fault of the renderer
                raise
            except EnvError as error:
                self._pictures = False
                print(f"{_OPTION}: no pictures of the scene: {error}")
        return None


class EpisodeRecording:
    """Writes the steps of one episode."""

    def __init__(self, rr: Any, stream: Any, spec: EnvSpec, recordings: Recordings) -> None:
        self._rr, self._stream, self._spec, self._recordings = rr, stream, spec, recordings
        self._named = False

    def before(self, step: int, env: Env, obs: ObsDict, decision: Decision | None = None) -> None:
        """What is seen at a step, and the decision; None at the end of the episode."""
        self._stream.set_time("step", sequence=step)
        self._see(env, obs)
        if decision is not None:
            self._series("action", decision.action)
            self._choice(decision)
            if decision.landscape is not None:
                self._energy(decision)

    def after(self, reward: float, score: float, success: bool) -> None:
        """What the action led to."""
        for name, value in (("reward", reward), ("return", score), ("success", success)):
            self._series(name, [value])

    def _see(self, env: Env, obs: ObsDict) -> None:
        for key, spec in self._spec.observations.items():
            newest = obs[key][: spec.frame_shape[0]]
            if key in self._spec.cameras:
                self._log(f"camera/{key}", self._rr.Image(newest.transpose(1, 2, 0)))
            else:
                self._series(key, newest.reshape(-1))
        if not self._spec.cameras:
            scene = self._recordings.picture(env)
            if scene is not None:
                self._log("camera/scene", self._rr.Image(scene).compress(jpeg_quality=_JPEG))

    def _choice(self, decision: Decision) -> None:
        if decision.candidates is None or decision.values is None:
            return
        if not self._named:
            lines = self._rr.SeriesLines(names=list(decision.names))
            self._stream.log("q", lines, static=True)
            self._named = True
        self._series("q", decision.values)
        for name, action in zip(decision.names, decision.candidates, strict=True):
            self._series(f"candidates/{name}", action)
        self._series("chosen", [decision.chosen])
        self._log("choice", self._rr.TextLog(decision.names[decision.chosen]))

    def _energy(self, decision: Decision) -> None:
        assert decision.landscape is not None
        values, rr = decision.landscape.numpy(), self._rr
        self._log("energy", rr.Image(_coloured(values)))
        self._log("energy/values", rr.Tensor(values, dim_names=("second", "first")))
        # the centre of the first pixel is at 0.5
        right, up = (decision.action[:2].double().numpy() + 1) / 2 * (len(values) - 1)
        at = [[right + 0.5, len(values) - 1 - up + 0.5]]
        self._log("energy/action", rr.Points2D(at, radii=1.0, colors=[213, 94, 0]))

    def _series(self, name: str, values: Any) -> None:
        self._log(name, self._rr.Scalars(np.asarray(values, _PRECISE)))

    def _log(self, name: str, what: Any) -> None:
        self._stream.log(name, what, strict=True)


def _coloured(values: np.ndarray) -> np.ndarray:
    """uint8 [G, G, 3]: from dark (the lowest, best energy) to yellow."""
    from matplotlib import colormaps

    low, high = float(values.min()), float(values.max())
    shown = (values - low) / (high - low or 1.0)
    return colormaps["viridis"](shown, bytes=True)[..., :3]


def _blueprint(spec: EnvSpec) -> Any:
    """How the viewer shows a recording at first: pictures on the left, series on the right."""
    import rerun.blueprint as rrb

    names = spec.cameras or ("scene",)
    pictures = [rrb.Spatial2DView(origin=f"camera/{name}", name=name) for name in names]
    pictures.append(rrb.Spatial2DView(origin="energy", name="energy"))
    titles: Mapping[str, str] = {
        "q": "value of each candidate",
        "chosen": "chosen",
        "action": "action",
        "reward": "reward",
    }
    series = [rrb.TimeSeriesView(origin=origin, name=name) for origin, name in titles.items()]
    return rrb.Blueprint(
        rrb.Horizontal(rrb.Vertical(*pictures), rrb.Vertical(*series)), collapse_panels=True
    )
