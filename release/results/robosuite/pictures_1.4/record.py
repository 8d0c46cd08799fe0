"""Record two short episodes with pictures, in robomimic's layout, by robosuite 1.4.1.

    python3.10 -m venv rs14 && rs14/bin/pip install robosuite==1.4.1 mujoco==2.3.7 "numpy<2" h5py
    MUJOCO_GL=egl rs14/bin/python record.py Lift lift14.hdf5

Then, with this program (differences are printed, and kept as the attribute "notes"):

    python -m tools.dataset_states_to_obs --dataset lift14.hdf5 --output_folder replayed \
        --image_size 84 --obs_size 84 --camera_names agentview robot0_eye_in_hand
"""

import json
import sys

import h5py
import numpy as np
import robosuite
from robosuite.controllers import load_controller_config

STEPS, SIZE, CAMERAS = 12, 84, ["agentview", "robot0_eye_in_hand"]


def record(env, rng):
    """One episode of noisy downward motion, from the recorded model as robomimic restores it."""
    env.reset()
    xml, state = env.sim.model.get_xml(), env.sim.get_state().flatten()
    env.reset_from_xml_string(xml)
    env.sim.reset()
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    obs, out = env._get_observations(force_update=True), {"obs": []}
    drift = np.array([*(0.3 * rng.standard_normal(2)), -0.4, 0, 0, 0.2, -1.0])
    for key in ("states", "actions", "rewards"):
        out[key] = []
    for _ in range(STEPS):
        action = np.clip(drift + 0.2 * rng.standard_normal(7), -1, 1)
        out["states"].append(env.sim.get_state().flatten())
        out["actions"].append(action)
        out["obs"].append(obs)
        obs, reward, _, _ = env.step(action)
        out["rewards"].append(reward)
    return xml, out


def main(task, path):
    """Write ``path``."""
    kwargs = {
        "has_renderer": False, "has_offscreen_renderer": True, "ignore_done": True,
        "use_object_obs": True, "use_camera_obs": True, "control_freq": 20, "robots": ["Panda"],
        "controller_configs": load_controller_config(default_controller="OSC_POSE"),
        "camera_names": CAMERAS, "camera_depths": False, "camera_heights": SIZE,
        "camera_widths": SIZE, "reward_shaping": False,
    }  # fmt: skip
    np.random.seed(1)
    env, rng = robosuite.make(task, **kwargs), np.random.default_rng(1)
    args = {"env_name": task, "env_version": robosuite.__version__, "type": 1, "env_kwargs": kwargs}
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(args)
        for number in range(2):
            xml, found = record(env, rng)
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["model_file"] = xml
            for key in ("states", "actions", "rewards"):
                demo[key] = np.array(found[key])
            for key in found["obs"][0]:
                values = np.stack([obs[key] for obs in found["obs"]])
                if key.endswith("_image"):  # OpenGL's first row is the lowest
                    demo.create_dataset(f"obs/{key}", data=values[:, ::-1], compression="gzip")
                elif values.ndim == 2 and not key.endswith("proprio-state"):
                    demo["obs/object" if key == "object-state" else f"obs/{key}"] = values


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
