"""Reads a recorded model (MuJoCo's XML), which may come from anybody.

Only sizes and positions of bodies, and positions of cameras, are read. No file that the model
names (meshes and textures among its assets) is opened. Everything that could make MuJoCo or the
parser do more than this is refused: includes and other models, elements that generate others
(composite, flexcomp, replicate), plugins, entities, files named in the scene, and more or deeper
elements than a scene has. So is what MuJoCo would read in another way, or not at all.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np

from common_utils.errors import shortened
from env.core import EnvError

Element = ElementTree.Element

# robosuite's largest scene has 100,000 characters, 700 elements, 16 levels
MAX_CHARACTERS = 4_000_000
MAX_ELEMENTS = 20_000
MAX_TAGS = 3 * MAX_ELEMENTS  # start tags, end tags and comments
MAX_DEPTH = 100
# numbers of a scene are metres, kilograms, or components of quaternions
MAX_NUMBER = 1e6
REFUSED = {
    *("include", "model", "attach", "replicate", "composite", "flexcomp"),
    *("flex", "skin", "deformable", "plugin", "extension"),
}
SHAPES = ("box", "sphere", "capsule", "cylinder", "ellipsoid")
# attributes that decide a body's sizes and masses ...
TAKEN = {
    "body": ("name", "pos", "quat"),
    "geom": ("name", "type", "size", "pos", "quat", "density", "mass", "group"),
    "joint": ("name", "type", "pos", "axis"),
    "freejoint": ("name",),
    "inertial": ("pos", "quat", "mass", "diaginertia"),
}
# ... and attributes that do not
LEFT = {
    *("rgba", "material", "friction", "solref", "solimp", "condim", "contype", "conaffinity"),
    *("margin", "gap", "priority", "solmix"),
    *("damping", "armature", "stiffness", "frictionloss", "limited", "range", "ref", "springref"),
    "actuatorfrclimited",  # written by MuJoCo itself, as robosuite 1.5 saves models
}
WORDS = ("name", "type")


def recorded_world(xml: str) -> Element:
    """The worldbody of a recorded model. Raises EnvError if it is not a model, or is refused."""
    if len(xml) > MAX_CHARACTERS:
        raise EnvError(
            f"the recorded model has {len(xml):,} characters, expected up to {MAX_CHARACTERS:,}"
        )
    for text in ("<!DOCTYPE", "<!ENTITY"):
        if text in xml:
            raise EnvError(f"the recorded model holds '{text}', which is refused")
    if xml.count("<") > MAX_TAGS:  # before the parser builds them
        raise EnvError(f"the recorded model has more than {MAX_TAGS:,} tags")
    try:
        root = ElementTree.fromstring(xml)
    except UnicodeEncodeError:  # h5py's escapes for bytes that are not UTF-8
        raise EnvError("the recorded model is not UTF-8 text") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise EnvError(f"the recorded model is not XML: {error}") from error
    _check(root)
    world = _only_world(root)
    bodies = {"world"}  # MuJoCo's name of the world itself
    for element in world.iter():
        name = element.get("name", "")
        if "file" in element.attrib:
            raise EnvError(f"the recorded {_called(element)} names a file, which is refused")
        if element.tag == "body" and name:
            if name in bodies:
                raise EnvError(f"the recorded model has two bodies of the name '{name[:60]}'")
            bodies.add(name)
    return world


def _only_world(root: Element) -> Element:
    if root.tag != "mujoco":
        raise EnvError(f"the recorded model is a '{shortened(root.tag)}', expected a 'mujoco'")
    worlds = root.findall("worldbody")
    if len(worlds) != 1:
        raise EnvError(f"the recorded model has {len(worlds) or 'no'} worldbody, expected one")
    for compiler in root.iter("compiler"):
        if (frame := compiler.get("coordinate", "local")) != "local":
            raise EnvError(
                f"the recorded model has coordinate '{shortened(frame)}', expected 'local'"
            )
    return worlds[0]


def _called(element: Element) -> str:
    """An element's kind and name, for messages."""
    return f"{shortened(element.tag)} '{shortened(element.get('name', ''))}'"


def _check(root: Element) -> None:
    """Check for refused elements, too many elements, and too many levels."""
    count, level, depth = 0, [root], 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > MAX_ELEMENTS or depth > MAX_DEPTH:
            raise EnvError(
                f"the recorded model has more than {MAX_ELEMENTS:,} elements or {MAX_DEPTH} levels"
            )
        for element in level:
            if (tag := element.tag.rpartition("}")[2].lower()) in REFUSED:
                raise EnvError(f"the recorded model holds '{tag}', which is refused")
        level = [child for element in level for child in element]


def shape_of(body: Element) -> Element:
    """A copy of ``body`` with only its primitive shapes, masses and joints.

    Raises EnvError for anything else that would affect them.
    """
    out = ElementTree.Element("body", _taken(body))
    for child in body:
        if child.tag == "body":
            out.append(shape_of(child))
        elif child.tag in TAKEN:
            ElementTree.SubElement(out, child.tag, _taken(child))
        elif child.tag not in ("site", "camera", "light"):  # these have no mass
            raise EnvError(f"the recorded {_called(body)} holds '{shortened(child.tag)}'")
    return out


def _taken(element: Element) -> dict[str, str]:
    taken = {}
    for key, value in element.attrib.items():
        if key in LEFT:
            continue
        if key not in TAKEN[element.tag]:
            raise EnvError(
                f"the recorded {_called(element)} has '{shortened(key)}', expected "
                f"{', '.join(TAKEN[element.tag])}"
            )
        if key not in WORDS:
            numbers(value)
        taken[key] = value
    if element.tag == "geom" and taken.get("type", "sphere") not in SHAPES:
        raise EnvError(
            f"the recorded {_called(element)} is of type '{shortened(taken['type'])}', expected "
            f"one of {', '.join(SHAPES)}"
        )
    return taken


def numbers(text: str, count: int = 0) -> np.ndarray:
    """``count`` numbers (0: any) in ``text``, float64. Raises EnvError for anything else."""
    try:
        values = [float(x) for x in text.split()]
    except ValueError:
        values = []
    # python alone reads 1_000 and the digits of other scripts
    if not values or not text.isascii() or "_" in text:
        raise EnvError(f"the recorded model has '{text[:60]}', expected numbers")
    if not all(math.isfinite(v) and abs(v) <= MAX_NUMBER for v in values):
        raise EnvError(f"the recorded model has '{text[:60]}', expected finite numbers")
    if count and len(values) != count:
        raise EnvError(f"the recorded model has {values[:6]}, expected {count} numbers")
    return np.array(values)
