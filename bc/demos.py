"""Demonstrations of any format, by their meaning: what a reader of a format derives from.

A format is a class derived from :class:`Demos` and a row of ``bc.formats.FORMATS``. The class opens
its files and presents them with the keys of the HDF5 layout (``bc.loader``), whatever they are
called in the files:

    actions, rewards, dones             [T, A], [T], [T]
    obs/{key}                           [T, D]
    obs/{camera}_image                  pictures; decoded only when ``images`` asks for them
    infos/{key}                         [T]

It defines ``path``, ``names``, ``notes``, ``env_args`` (and ``fps``, where it is recorded), and the
abstract methods. What the arrays mean, and the checks of their numbers, are here, once for all.
Every fault is a :class:`DatasetError` that names the file, the demonstration and the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from bc.dataset_config import KeyOptions
from bc.demo_arrays import DatasetError, DemoArrays, Stored
from common_utils.env_args import arm_controller, shown, suite_of
from common_utils.made_by import RAW_ROBOMIMIC
from common_utils.robomimic_keys import ALPHABETICAL, PROP_KEYS, STATE_KEYS
from common_utils.success_rule import TERMINATED, TRUNCATED

__all__ = ["DatasetError", "Demos", "Stored", "split"]


class Demos(DemoArrays):
    """Open demonstrations; delivers their arrays by meaning, checked and converted.

    Attributes in addition to those of the arrays: ``keys`` (the user's choice of keys).
    """

    keys: KeyOptions

    def key_of(self, own: str, obs: bool = True) -> str:
        """The key of what the user calls ``own``: by default, a name in the HDF5 layout.

        obs: an observation, else something beside them.
        """
        return f"obs/{own}" if obs else own

    def usual_keys(self, name: str, kind: str) -> Sequence[str]:
        """The observations that ``kind`` ("prop" or "state") is made of if the user does not say.

        As names below ``obs/``. Empty if nothing is known of this environment.
        """
        if self.has(name, f"obs/{kind}"):
            return (kind,)
        if kind == "prop":
            return PROP_KEYS
        if self.env_name.startswith(ALPHABETICAL):
            return [k for k in self.obs_keys(name) if not k.endswith("_image")]
        return STATE_KEYS.get(self.env_name, ())

    @cached_property
    def env_name(self) -> str:
        """The task that env_args name, or ""."""
        return str(self.env_args.get("env_name", ""))

    @cached_property
    def suite(self) -> str:
        """ "metaworld", "robosuite", "d4rl", any other that env_args name, or ""."""
        return suite_of(self.env_args)

    @property
    def delta_control(self) -> bool:
        """Whether actions are relative and so must lie in [-1, 1] (robosuite: control_delta)."""
        return bool(arm_controller(self.env_args)["control_delta"])

    def length(self, name: str) -> int:
        """Number of steps T of one demonstration."""
        if name not in self._lengths:
            key = self._action_keys[0]
            shape = self.stored(name, key).shape
            if not shape or 0 in shape:
                raise self.error(
                    name, key, f"has shape {list(shape)}, so the demonstration has no steps; "
                    "expected [T, A]"
                )  # fmt: skip
            self._lengths[name] = int(shape[0])
        return self._lengths[name]

    @cached_property
    def _lengths(self) -> dict[str, int]:
        return {}

    def check(self, name: str) -> None:
        """Raise DatasetError if ``dones`` or ``num_samples`` contradict ``actions``."""
        stated = self.attribute(name, "", "num_samples")
        if stated is not None and not isinstance(stated, (int, np.integer)):
            raise self.error(
                name, "num_samples", f"expected a whole number (the attribute), got {shown(stated)}"
            )
        if stated is not None and stated != self.length(name):
            raise self.error(
                name, "num_samples", f"says {stated}, but 'actions' has {self.length(name)} steps"
            )
        if not self.has(name, "dones"):
            return
        dones = self._same_length(name, "dones", self._float(name, "dones", 1, kinds="fiub"))
        if not np.isin(dones, (0, 1)).all():
            wrong = dones[~np.isin(dones, (0, 1))][0]
            raise self.error(name, "dones", f"holds {wrong:g}, expected 0 and 1 only")

    def verdict(self, name: str) -> tuple[str, bool | None]:
        """How an episode ended ("terminated", "truncated", or "" if not recorded), and whether its
        recorder counts it as a success (None: not recorded)."""
        ended, success = self.text(name, "ended"), self.attribute(name, "", "success")
        if ended not in ("", TERMINATED, TRUNCATED):
            raise self.error(
                name, "ended", f"is {shown(ended)}, expected {TERMINATED} or {TRUNCATED}"
            )
        if success is not None and not _is_flag(success):
            raise self.error(name, "success", f"is {shown(success)}, expected true or false")
        return ended, None if success is None else bool(success)

    def info(self, name: str, key: str) -> np.ndarray | None:
        """float64 [T]: ``info[key]`` after each step, or None if it was not recorded."""
        place = f"infos/{key}"
        if not self.has(name, place):
            return None
        return self._same_length(name, place, self.numbers(name, place, 1, kinds="fiub"))

    def boundary_rows(self, name: str) -> int:
        """1 if the last row is a terminal observation, whose action was not played, else 0.

        Files made from tf-agents recordings mark it in ``step_type`` (2: last).
        """
        if not self.has(name, "step_type"):
            return 0
        kinds = self._same_length(name, "step_type", self._float(name, "step_type", 1))
        return int(len(kinds) > 1 and kinds[-1] == 2)

    @cached_property
    def _action_keys(self) -> list[str]:
        return [self.key_of(own, obs=False) for own in split(self.keys.action)] or ["actions"]

    def actions(
        self, name: str, limits: tuple[Sequence[float], Sequence[float]] | None = None
    ) -> np.ndarray:
        """float32 [T, A]; within [-1, 1] when the controller is relative.

        ``limits``: the stored actions' range (low, high), one number or one per dimension,
        which becomes [-1, 1].
        """
        key = self._action_keys[0]
        parts = [self._same_length(name, k, self._float(name, k, 2)) for k in self._action_keys]
        actions = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if limits is not None:
            low, high = (np.asarray(x, np.float64) for x in limits)
            if low.size not in (1, actions.shape[1]):
                raise self.error(
                    name, key, f"have {actions.shape[1]} dimensions, dataset.action_low {low.size}"
                )
            actions = (2 * (actions - low) / (high - low) - 1).astype(np.float32)
        if (limits is not None or self.delta_control) and actions.size:
            worst = float(np.abs(actions).max())
            if worst > 1 + 1e-5:  # the margin is for float rounding only
                step = int(np.argwhere(np.abs(actions) > 1 + 1e-5)[0][0])
                raise self.error(
                    name, key, f"step {step}: |action| up to {worst:.4g}, must be in [-1, 1]"
                    + self._range_hint
                )  # fmt: skip
            actions = actions.clip(-1, 1)
        return actions

    @property
    def _range_hint(self) -> str:
        """What maps actions to [-1, 1], where the format knows their range."""
        return ""

    @cached_property
    def _reward_key(self) -> str:
        return self.key_of(self.keys.reward, obs=False) if self.keys.reward else "rewards"

    def has_rewards(self, name: str) -> bool:
        """Whether rewards are recorded (or asked for)."""
        return bool(self.keys.reward) or self.has(name, self._reward_key)

    def rewards(self, name: str) -> np.ndarray:
        """float32 [T]."""
        key = self._reward_key
        return self._same_length(name, key, self._float(name, key, 1, kinds="fiub"))

    def _same_length(self, name: str, key: str, array: np.ndarray) -> np.ndarray:
        if len(array) != self.length(name):
            raise self.error(
                name, key, f"has {len(array)} steps, but 'actions' has {self.length(name)}"
            )
        return array

    def _vector_keys(self, name: str, kind: str) -> list[str]:
        own = split(self.keys.state if kind == "state" else self.keys.prop)
        return [self.key_of(k) for k in own] or [f"obs/{k}" for k in self.usual_keys(name, kind)]

    def has_prop(self, name: str) -> bool:
        """Whether proprioception is stored (or asked for)."""
        return bool(self.keys.prop) or all(
            self.has(name, k) for k in self._vector_keys(name, "prop")
        )

    def vector(self, name: str, kind: str) -> np.ndarray:
        """``kind`` "prop" or "state": float32 [T, D], concatenated in the specified key order."""
        keys = self._vector_keys(name, kind)
        if not self.obs_keys(name):
            raise self.error(
                name, "obs", f"missing: a raw recording without observations; {RAW_ROBOMIMIC}"
            )
        if not keys:
            raise self.error(
                name, f"obs/{kind}", f"missing, and the environment '{self.env_name}' (env_args or "
                f"env_cfg.json) is not one of {sorted(STATE_KEYS)}, whose keys are known; "
                f"dataset.keys.{kind} names them"
            )  # fmt: skip
        parts = [self._same_length(name, k, self._float(name, k, 2)) for k in keys]
        parts = [self._newest_columns(name, k, p) for k, p in zip(keys, parts, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _newest_columns(self, name: str, key: str, array: np.ndarray) -> np.ndarray:
        """The newest frame of a vector that was saved stacked (attribute "stack"; newest first)."""
        stack = self.stack(name, key) or 1
        if array.shape[1] % stack:
            raise self.error(
                name, key, f"attribute 'stack' is {stack}, expected a divisor of {array.shape[1]}"
            )
        return array[:, : array.shape[1] // stack]

    def image_key(self, camera: str) -> str:
        """The key of a camera's pictures, which may have another name in the file."""
        named = dict(pair.split("=", 1) for pair in split(self.keys.cameras))
        return self.key_of(named[camera]) if camera in named else f"obs/{camera}_image"

    def image_shape(self, name: str, camera: str) -> tuple[int, int, int]:
        """(3, H, W) of one unstacked frame."""
        layout = self.layout(name, camera)
        return (3, layout.height, layout.width)


def split(names: str) -> list[str]:
    """The names that "+" joins."""
    return [name for name in names.split("+") if name]


def _is_flag(value: object) -> bool:
    """Whether an attribute is true or false, or 1 or 0 in any numeric type."""
    number = np.asarray(value)
    return number.ndim == 0 and number.dtype.kind in "biuf" and number in (0, 1)
