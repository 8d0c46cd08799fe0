"""The normalised variants: fixed affine maps of states and actions (mean +- 3 std of oracle data).

The constants are the published ones; a normalised state has 10 numbers, relative to the
effector's target, with orientations as cosine and sine.
"""

from __future__ import annotations

import numpy as np

# (minimum, maximum) are mapped to -1 and 1
ACTION = np.array([[-0.02547718, -0.02090043], [0.02869084, 0.04272365]])
STATE = {
    "block_orientation_cos_sin": ((-2.0649862, -0.6154364), (1.6590178, 1.8811015)),
    "effector_target_to_block_translation": (
        (-0.07369827, -0.11395704),
        (0.10131563, 0.19391131),
    ),
    "effector_target_to_target_translation": (
        (-0.17813863, -0.33096507),
        (0.23726161, 0.84040901),
    ),
    "effector_target_translation": ((0.17741518, -0.62879948), (0.56544615, 0.54416074)),
    "target_orientation_cos_sin": ((-1.0761439, -0.8846937), (-0.8344331, 0.8786859)),
}
REWARD_SCALE = 100.0


def normalize(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[low, high] -> [-1, 1]."""
    return 2 * (value - low) / (high - low) - 1


def normalize_action(action: np.ndarray) -> np.ndarray:
    """Displacement [2] in metres -> normalised."""
    return normalize(np.asarray(action, np.float64), *ACTION)


def unnormalize_action(action: np.ndarray) -> np.ndarray:
    """[-1, 1] -> displacement [2] in metres."""
    low, high = ACTION
    return (np.asarray(action, np.float64) + 1) / 2 * (high - low) + low


def normalize_observation(obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The observation dict of the plain task -> that of the normalised one."""
    effector = obs["effector_target_translation"]
    values = {
        "block_orientation_cos_sin": _cos_sin(obs["block_orientation"]),
        "effector_target_to_block_translation": obs["block_translation"] - effector,
        "effector_target_to_target_translation": obs["target_translation"] - effector,
        "effector_target_translation": effector,
        "target_orientation_cos_sin": _cos_sin(obs["target_orientation"]),
    }
    return {k: normalize(v, *map(np.array, STATE[k])) for k, v in values.items()}


def _cos_sin(yaw: np.ndarray) -> np.ndarray:
    return np.concatenate([np.cos(yaw), np.sin(yaw)])
