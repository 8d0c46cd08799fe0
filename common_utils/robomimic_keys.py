"""Which robomimic/robosuite observation keys make up "prop" and "state".

The order inside each tuple (docs/reference/ibrl.md#environments) is the order of concatenation,
and so part of every checkpoint trained on these vectors: never reorder an entry.
"""

from __future__ import annotations

PROP_KEYS: tuple[str, ...] = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")

_ROBOT1_KEYS = tuple(key.replace("robot0", "robot1") for key in PROP_KEYS)

STATE_KEYS: dict[str, tuple[str, ...]] = {
    "Lift": (*PROP_KEYS, "object"),
    "PickPlaceCan": (*PROP_KEYS, "object"),
    "NutAssemblySquare": (*PROP_KEYS, "object"),
    "TwoArmTransport": (*PROP_KEYS, *_ROBOT1_KEYS, "object"),
    "ToolHang": ("object", *PROP_KEYS),
    "PickPlace": (*PROP_KEYS, "object"),
    "NutAssembly": (*PROP_KEYS, "object"),
}

# dimension of one unstacked state vector
STATE_DIMS: dict[str, int] = {
    "Lift": 19,
    "PickPlaceCan": 23,
    "NutAssemblySquare": 23,
    "TwoArmTransport": 59,
    "ToolHang": 53,
    "PickPlace": 65,
    "NutAssembly": 37,
}

# name prefixes of environments whose state is all their observations in alphabetical order: the
# order in which the recordings of Implicit BC are flattened
ALPHABETICAL = ("Particle", "PARTICLE", "BlockPush", "PUSH", "REACH", "INSERT")
