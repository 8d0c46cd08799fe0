"""Objects whose shape robosuite draws when it compiles a model: Lift's cube, Transport's hammer.

Compiling takes most of a second. Here only the object is compiled, and everything that depends on
its shape is copied into the existing model. Every field then equals that of the model which
robosuite would have compiled (tests/env/test_robosuite.py).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np

# robosuite's arguments of the constructors (environments/manipulation/lift.py and
# two_arm_transport.py)
CUBE = {"name": "cube", "size_min": [0.020, 0.020, 0.020], "size_max": [0.022, 0.022, 0.022]}
HAMMER = {
    "name": "payload",
    "handle_radius": 0.015,
    "handle_length": 0.20,
    "handle_density": 150.0,
    "handle_friction": 4.0,
    "head_density_ratio": 1.5,
}
# attributes of the object that define its shape; they are read to place it on a table
SHAPE = ("size", "handle_radius", "handle_length", "head_halfsize")
GEOM_FIELDS = ("size", "pos", "quat", "rbound", "aabb", "sameframe")
BODY_FIELDS = ("mass", "inertia", "ipos", "iquat", "sameframe", "simple")
BVH_FIELDS = ("aabb", "child", "depth")
# as in robosuite's base.xml: masses follow from the collision shapes
MODEL = '<mujoco><compiler angle="radian" inertiagrouprange="0 0" autolimits="true"/></mujoco>'


def draw_shapes(env: Any, generator: np.random.Generator) -> None:
    """Give the task's variable object the shape that a hard reset would draw from ``generator``.

    For tasks without such an object nothing is drawn. Reset the simulation's data afterwards.
    """
    from robosuite.models.objects import BoxObject, HammerObject

    task = type(env).__name__
    if task == "Lift":
        old, new = env.cube, BoxObject(**CUBE, rng=generator)
    elif task == "TwoArmTransport":
        old, new = env.transport.payload, HammerObject(**HAMMER, rng=generator)
    else:
        return
    for name in SHAPE:
        if hasattr(old, name):
            setattr(old, name, getattr(new, name))
    copy_shape(env.sim, compiled(new.get_obj()), new.root_body)


def variable_body(env: Any) -> str:
    """Name of the body whose shape differs between episodes; "" if there is none."""
    if type(env).__name__ == "Lift":
        return str(env.cube.root_body)
    if type(env).__name__ == "TwoArmTransport":
        return str(env.transport.payload.root_body)
    return ""


def compiled(body: ET.Element) -> Any:
    """MjModel of the object alone, from its XML element (which loses its materials)."""
    import mujoco

    root = ET.fromstring(MODEL)
    for geom in body.iter("geom"):
        geom.attrib.pop("material", None)
    ET.SubElement(root, "worldbody").append(body)
    return mujoco.MjModel.from_xml_string(ET.tostring(root, encoding="unicode"))


def copy_shape(sim: Any, small: Any, name: str) -> None:
    """Give body ``name`` of the simulation the shape that it has in the model ``small``."""
    import mujoco

    model, data = sim.model._model, sim.data._data
    one, body = small.body(name).id, model.body(name).id
    for field in BODY_FIELDS:
        getattr(model, f"body_{field}")[body] = getattr(small, f"body_{field}")[one]
    first, start = small.body_geomadr[one], model.body_geomadr[body]
    count = small.body_geomnum[one]
    if count != model.body_geomnum[body]:
        raise RuntimeError(f"{name} has {count} shapes, the model {model.body_geomnum[body]}")
    for field in GEOM_FIELDS:
        rows = getattr(small, f"geom_{field}")[first : first + count]
        getattr(model, f"geom_{field}")[start : start + count] = rows
    begin, at = small.body_bvhadr[one], model.body_bvhadr[body]
    nodes = small.body_bvhnum[one]
    for field in BVH_FIELDS:
        rows = getattr(small, f"bvh_{field}")[begin : begin + nodes]
        getattr(model, f"bvh_{field}")[at : at + nodes] = rows
    leaves = small.bvh_nodeid[begin : begin + nodes].copy()
    leaves[leaves >= 0] += start - first
    model.bvh_nodeid[at : at + nodes] = leaves
    mujoco.mj_setConst(model, data)
