"""Hostile models in recordings: refused, or of them sizes and places alone are taken as written."""

from __future__ import annotations

import copy
import functools
import os
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from env.core import EnvError
from tests.fuzz import damages
from tests.fuzz.case import Case, Trial

KIND = "xml"
Element = ElementTree.Element

# what a recording may change of the simulation's model, and what MuJoCo makes of that
MAY_CHANGE = ("body_", "geom_", "bvh_", "dof_M0", "dof_invweight0", "cam_poscom0", "light_poscom0")
HERE = "@HERE@"  # the scratch folder, where a pipe waits for whoever opens it


def cases(rng: random.Random) -> Iterator[Case]:
    while True:
        yield rng.choice([_bytes, _text, _changed, _changed, _changed])(rng)


@dataclass(frozen=True)
class Bench:
    """A scene, a recording of it, and the model that adopting this recording gives."""

    scene: Any
    xml: str
    model: Any
    adopted: dict[str, np.ndarray]


@functools.cache
def bench() -> Bench:
    """Of robosuite's Lift, where a cube's size is drawn at each reset."""
    from env.robosuite.replay import RecordedScene
    from env.robosuite.robomimic_args import model_xml
    from env.robosuite.sim import make_sim, reset_sim

    env = make_sim("Lift")
    reset_sim(env, 7)
    xml = model_xml(env)
    reset_sim(env, 1)
    scene, model = RecordedScene(env), env.sim.model._model
    scene.adopt(xml)
    return Bench(scene, xml, model, fields(model))


prepare = bench


def fields(model: Any) -> dict[str, np.ndarray]:
    names = [k for k in dir(model) if not k.startswith(("_", "mesh_", "tex_"))]
    found = {name: getattr(model, name) for name in names}
    # meshes and textures are large, and their normals may be NaN
    return {k: v.copy() for k, v in found.items() if isinstance(v, np.ndarray) and v.size < 10**4}


def trial(name: str, xml: str) -> Trial:
    def call(folder: Path) -> str | None:
        os.mkfifo(folder / "pipe")
        text = xml.replace(HERE, str(folder))
        try:
            _, differences = bench().scene.adopt(text)
            said = _wrong(text, differences)
        finally:
            bench().scene.reset()
        bench().scene.adopt(bench().xml)
        changed = differences_of(fields(bench().model))
        return said or (f"afterwards other recordings give other {changed}" if changed else None)

    return Trial(name, call, refusals=(EnvError,), names=("record",))


def differences_of(fields: dict[str, np.ndarray]) -> list[str]:
    adopted = bench().adopted
    return [k for k, v in fields.items() if not np.array_equal(v, adopted[k], equal_nan=True)]


def _wrong(text: str, differences: list[str]) -> str | None:
    """What of the model is neither the simulation's own nor written in ``text``."""
    have = fields(bench().model)
    if other := [k for k in differences_of(have) if not k.startswith(MAY_CHANGE)]:
        return f"{other} have changed"
    if bad := [k for k, v in have.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]:
        return f"{bad} are not finite"
    world = ElementTree.fromstring(text).find("worldbody")
    bodies = [b for b in (world or Element("x")).iter("body") if b.get("name") == "cube_main"]
    if bodies:
        return _wrong_shapes(bodies[0])
    return None if any("no body 'cube_main'" in x for x in differences) else "the cube is another"


def _wrong_shapes(body: Element) -> str | None:
    model = bench().model
    start = model.body("cube_main").geomadr[0]
    for number, geom in enumerate(body.findall("geom")):
        size = [float(x) for x in geom.get("size", "").split()][:3]
        have = model.geom_size[start + number][: len(size)]
        if not np.allclose(have, size, rtol=1e-6, atol=0):
            return f"a shape is {have.tolist()}, the recording says {size}"
    return None


# ---------------------------------------------------------------- texts


def _bytes(rng: random.Random) -> Trial:
    said, torn = damages.of_bytes(rng, bench().xml.encode())
    errors = rng.choice(["replace", "surrogateescape", "ignore"])
    return trial(said, torn.decode("utf-8", errors))


ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20 if n else "x"}">' for n in range(12))
HEADS = (
    f"<!DOCTYPE m [{ENTITIES}]>", '<!DOCTYPE m SYSTEM "@HERE@/pipe">', "<!doctype m>", "<!DOCTYPE",
    '<!DOCTYPE m [<!ENTITY x SYSTEM "file:///etc/passwd">]>', '<?xml version="1.0"?>', "\ufeff",
    '<?xml version="1.0" encoding="utf-16"?>', '<?xml version="1.0" encoding="x"?>',
    '<?xml version="1.1"?>', '<?xml version="1.0" encoding="utf-7"?>', "<!--" + "-" * 10**6,
    '<?xml-stylesheet href="@HERE@/pipe"?>', "\x00", "\ud800", "&#0;", " " * 10**6, "<![CDATA[x]]>",
)  # fmt: skip


def _text(rng: random.Random) -> Trial:
    """Something before the model, within it, or in place of it."""
    head, xml = rng.choice(HEADS), bench().xml
    kind = rng.choice(["head", "head", "body", "alone", "coded", "deep", "wide", "closed"])
    number = rng.choice([10, 200, 10_000, 500_000])
    text = {
        "head": lambda: head + xml,
        "body": lambda: xml.replace("<worldbody>", f"<worldbody>{head}&e11;"),
        "alone": lambda: head,
        "coded": lambda: xml.encode(rng.choice(["utf-16", "utf-7", "cp037"])).decode("latin-1"),
        "deep": lambda: xml.replace(
            "<worldbody>", f"<worldbody>{'<body>' * number}{'</body>' * number}"
        ),
        "wide": lambda: xml.replace("<worldbody>", "<worldbody>" + "<body/>" * number),
        "closed": lambda: xml + "</mujoco>" * rng.randrange(3),
    }[kind]()
    return trial(f"{kind}, {head[:40]!r}, {number}", text)


# ---------------------------------------------------------------- elements and attributes

ELEMENTS = (
    '<include file="@HERE@/pipe"/>', '<include file="/etc/passwd"/>', '<Include file="x"/>',
    '<a:include xmlns:a="x" file="@HERE@/pipe"/>', '<model name="m" file="@HERE@/pipe"/>',
    '<attach model="m" prefix="a"/>', '<composite type="cable" count="999999 1 1" prefix="c"/>',
    '<flexcomp name="f" type="grid" count="999 999 999" spacing="1 1 1"/>',
    '<flexcomp name="f" type="gmsh" file="@HERE@/pipe"/>', '<flex name="f"/>',
    '<replicate count="99999999"><geom size="1"/></replicate>', '<frame pos="0 0 1"/>',
    '<plugin plugin="mujoco.elasticity.cable"/>', '<extension><plugin plugin="x"/></extension>',
    '<skin file="@HERE@/pipe"/>', '<deformable><skin/></deformable>', "<default class='x'/>",
    '<geom type="mesh" mesh="x"/>', '<geom type="sdf" size="1"/>', '<geom size="1"/>', "<geom/>",
    '<geom type="hfield" hfield="h"/>', '<mesh file="@HERE@/pipe"/>', "<joint/>", "<freejoint/>",
    '<hfield file="@HERE@/pipe"/>', '<texture file="@HERE@/pipe"/>', "<site/>", "<camera/>",
    '<camera name="agentview" pos="nan 0 0"/>', '<compiler meshdir="/" />', "<light/>", "<body/>",
    '<body name="cube_main"/>', '<body name="cube_main"><geom size="9"/></body>', "<inertial/>",
    '<inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/>', '<inertial mass="-1"/>', "<worldbody/>",
    '<inertial pos="0 0 0" mass="1" diaginertia="1 9 1"/>', '<body name="table" pos="9 9 9"/>',
    '<body name="robot0_x"><include file="@HERE@/pipe"/></body>', '<body name="robot0_base"/>',
    '<body name="\u00e9"/>', '<body name="world" pos="1 1 1"/>', '<option timestep="1e9"/>',
)  # fmt: skip
KEYS = (
    *("file", "mesh", "hfield", "class", "childclass", "pos", "size", "quat", "axisangle", "euler"),
    *("xyaxes", "zaxis", "fromto", "mass", "density", "name", "type", "content_type", "material"),
    *("mocap", "gravcomp", "user", "axis", "diaginertia", "fullinertia", "group", "shellinertia"),
    *("fitscale", "fluidshape", "rgba", "friction", "fovy", "{x}file", "armature", "ref", "align"),
)
NUMBERS = (
    "nan", "inf", "-inf", "1e999", "1e308", "1e6", "-1", "0", "1e-320", "0x10", "1_0", "\u0661",
    "1,2,3", "1;2", "", " ", "1e", "1e5e5", "\x0b1", "+1", "1.", ".5", "1f", "1d0", "NaN",
    "1\u00a02", "infinity", "True", "a" * 10**5, "9" * 400,
)  # fmt: skip
WORDS = (
    "box", "sphere", "mesh", "plane", "hfield", "sdf", "free", "ball", "hinge", "cube_main", "x",
    "@HERE@/pipe", "/dev/zero", "http://x/y", "..", "\u00e9", "a b", "", "n" * 10**4, "table",
)  # fmt: skip


def _changed(rng: random.Random) -> Trial:
    root = ElementTree.fromstring(bench().xml)
    said = [rng.choice(CHANGES)(rng, root) for _ in range(rng.choice([1, 1, 2, 4]))]
    return trial("; ".join(said)[:300], ElementTree.tostring(root, encoding="unicode"))


def _place(rng: random.Random, root: Element) -> Element:
    """An element of the scene, mostly the cube that is taken over."""
    world = root.find("worldbody")
    cubes = [b for b in root.iter("body") if b.get("name") == "cube_main"]
    if rng.random() < 0.6 and cubes:
        return rng.choice(list(cubes[0].iter()))
    return rng.choice(
        list(world.iter() if world is not None and rng.random() < 0.8 else root.iter())
    )


def _insert(rng: random.Random, root: Element) -> str:
    place, text = _place(rng, root), rng.choice(ELEMENTS)
    place.insert(rng.randrange(len(place) + 1), ElementTree.fromstring(text))
    return f"{text} in {place.tag}"


def _attribute(rng: random.Random, root: Element) -> str:
    place = _place(rng, root)
    key = rng.choice([*KEYS, *place.attrib])
    numbers = " ".join(rng.choice(NUMBERS) for _ in range(rng.choice([1, 2, 3, 3, 4, 9])))
    good = " ".join(f"{rng.uniform(0.01, 0.1):.4f}" for _ in range(rng.choice([1, 2, 3, 3, 4, 9])))
    mixed = re.sub(r"\S+", lambda _: rng.choice(NUMBERS), good, count=1)
    value = rng.choice([numbers, good, good, mixed, rng.choice(WORDS)])
    place.set(key, value)
    return f"{place.tag} {key} = {value[:60]!r}"


def _drop(rng: random.Random, root: Element) -> str:
    place = _place(rng, root)
    if len(place) and rng.random() < 0.5:
        child = rng.choice(list(place))
        place.remove(child)
        return f"{child.tag} of {place.tag} is missing"
    if not place.attrib:
        return "nothing"
    key = rng.choice(sorted(place.attrib))
    del place.attrib[key]
    return f"{key} of {place.tag} is missing"


def _twice(rng: random.Random, root: Element) -> str:
    place = _place(rng, root)
    child = rng.choice([place, *place])
    if child is root:
        return "nothing"
    place.append(copy.deepcopy(child))  # its characters may not be XML's
    return f"{child.tag} in {place.tag} once more"


def _rename(rng: random.Random, root: Element) -> str:
    place = _place(rng, root)
    before = place.tag
    place.tag = rng.choice(["include", "frame", "body", "geom", "x", "{y}geom", "Geom", "site"])
    return f"{before} is {place.tag}"


CHANGES: tuple[Callable[[random.Random, Element], str], ...] = (
    _insert, _insert, _attribute, _attribute, _attribute, _drop, _twice, _rename,
)  # fmt: skip
