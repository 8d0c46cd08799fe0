"""The description of the environment in robomimic's files: ``env_args``, with the names of
robosuite 1.4, and the model of each episode."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from env.robosuite.shapes import variable_body
from env.robosuite.sim import CONTROL_FREQ, import_robosuite, task_named

ENV_TYPE = 1  # robomimic's number for robosuite

# robosuite 1.4's default OSC_POSE, with which robomimic's demonstrations were recorded
OSC_POSE: dict[str, Any] = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


# settings of a controller that must equal these for its actions to have the same meaning
MEANING = ("type", "output_max", "output_min", "kp", "damping_ratio", "impedance_mode")


def controller_differences(controller: Mapping[str, Any]) -> list[str]:
    """Sentences about differences of a file's arm controller (``common_utils.env_args``)."""
    notes = []
    for key in MEANING:
        recorded, ours = controller.get(key, OSC_POSE[key]), OSC_POSE[key]
        same = recorded == ours
        if not same and np.ndim(recorded) == 1 and np.ndim(ours) == 0:
            same = all(part == ours for part in recorded)  # 150 is [150] * 6
        if not same:
            notes.append(
                f"controller {key} was {recorded}, here it is {ours}: actions have another meaning"
            )
    return notes


def robomimic_env_args(
    task: str, cameras: Sequence[str] = (), size: int = 96, *, delta: bool = True
) -> dict[str, Any]:
    """``env_args`` of demonstrations of ``task``: env_name, env_version, type, env_kwargs.

    Args:
        cameras: cameras whose images the file holds, ``size`` x ``size`` pixels.
        delta: actions are relative (robosuite 1.4's ``control_delta``).
    """
    kind = task_named(task)
    kwargs: dict[str, Any] = {
        "has_renderer": False,
        "has_offscreen_renderer": bool(cameras),
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": bool(cameras),
        "control_freq": CONTROL_FREQ,
        "controller_configs": OSC_POSE | {"control_delta": delta},
        "robots": list(kind.robots),
        "camera_names": list(cameras),
        "camera_depths": False,
        "camera_heights": size,
        "camera_widths": size,
        "reward_shaping": False,
    }
    if len(kind.robots) == 2:
        kwargs["env_configuration"] = "opposed"
    return {
        "suite": "robosuite",
        "env_name": kind.name,
        "env_version": import_robosuite().__version__,
        "type": ENV_TYPE,
        "env_kwargs": kwargs,
    }


def model_xml(env: Any) -> str:
    """The model of ``env``'s current episode (``make_sim``): robosuite's XML, with the simulation's
    positions of fixed bodies, and the shape that is drawn at each reset."""
    root = ElementTree.fromstring(env.model.get_xml())
    model, shaped = env.sim.model._model, variable_body(env)
    for body in root.iter("body"):
        name = body.get("name", "")
        moves = body.find("joint") is not None or body.find("freejoint") is not None
        number = model.body(name).id
        recorded = np.array([float(x) for x in body.get("pos", "0 0 0").split()])
        if not moves and np.abs(recorded - model.body_pos[number]).max() > 1e-9:
            body.set("pos", _text(model.body_pos[number]))
            body.set("quat", _text(model.body_quat[number]))
        if name == shaped:
            for geom in body.iter("geom"):
                own = model.geom(geom.attrib["name"])
                geom.set("size", _text(own.size[: len(geom.attrib["size"].split())]))
                geom.set("pos", _text(own.pos))
                geom.set("quat", _text(own.quat))
    return ElementTree.tostring(root, encoding="unicode")


def _text(values: np.ndarray) -> str:
    return " ".join(repr(float(v)) for v in values)
