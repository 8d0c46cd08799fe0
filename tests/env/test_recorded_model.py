"""Recorded models come from anybody: sizes and places are taken, everything else is refused."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from env.core import EnvError
from env.robosuite.recorded_model import MAX_CHARACTERS, MAX_DEPTH, MAX_ELEMENTS, recorded_world
from env.robosuite.replay import RecordedScene
from env.robosuite.robomimic_args import model_xml
from env.robosuite.sim import make_sim, reset_sim

Element = ElementTree.Element


@pytest.fixture(scope="module")
def lift() -> Iterator[tuple[RecordedScene, str, Any]]:
    """A scene of Lift, what is recorded of one of its episodes, and the scene's model."""
    env = make_sim("Lift")
    reset_sim(env, 7)
    xml = model_xml(env)
    reset_sim(env, 1)
    yield RecordedScene(env), xml, env.sim.model._model
    env.close()


def cube(root: Element) -> Element:
    return next(b for b in root.iter("body") if b.get("name") == "cube_main")


def put(where: str, text: str) -> Any:
    """A change of the recording: an element more, in the scene, the cube or the root."""

    def change(root: Element) -> None:
        world = root.find("worldbody")
        parents = {"root": root, "world": world, "cube": cube(root), "asset": root.find("asset")}
        parents[where].append(ElementTree.fromstring(text))

    return change


def give(key: str, value: str) -> Any:
    """A change: an attribute of the cube's first geom."""
    return lambda root: cube(root).find("geom").set(key, value)


HOSTILE = {
    "include": (put("root", '<include file="/etc/passwd"/>'), "holds 'include'"),
    "include in a body": (put("cube", '<include file="other.xml"/>'), "holds 'include'"),
    "another model": (put("asset", '<model name="m" file="other.xml"/>'), "holds 'model'"),
    "attach": (put("world", '<attach model="m" prefix="a"/>'), "holds 'attach'"),
    "composite": (
        put("cube", '<composite type="cable" count="999999 1 1" prefix="c"/>'),
        "holds 'composite'",
    ),
    "flexcomp": (
        put("cube", '<flexcomp name="f" type="grid" count="999 999 999" spacing="1 1 1"/>'),
        "holds 'flexcomp'",
    ),
    "replicate": (put("world", '<replicate count="99999999"><geom/></replicate>'), "'replicate'"),
    "plugin": (put("cube", '<plugin plugin="mujoco.elasticity.cable"/>'), "holds 'plugin'"),
    "extension": (put("root", '<extension><plugin plugin="x"/></extension>'), "holds 'extension'"),
    "a file in the scene": (put("world", '<geom type="mesh" file="/dev/zero"/>'), "names a file"),
    "an asset's shape": (give("mesh", "cube_mesh"), "has 'mesh', expected name, type, size"),
    "a height field": (give("hfield", "h"), "has 'hfield'"),
    "a class": (give("class", "big"), "has 'class'"),
    "a shape of assets": (give("type", "mesh"), "is of type 'mesh', expected one of box, sphere"),
    "a frame": (put("cube", '<frame pos="0 0 1"><geom size="1"/></frame>'), "holds 'frame'"),
    "no numbers": (give("size", "a b c"), "'a b c', expected numbers"),
    "not a number": (give("size", "nan 1 1"), "'nan 1 1', expected finite numbers"),
    "infinity": (give("mass", "1e999"), "'1e999', expected finite numbers"),
    "negative": (give("size", "-1 1 1"), "body 'cube_main' does not compile"),
    "a body twice": (put("world", '<body name="cube_main"/>'), "two bodies of the name 'cube_main"),
    "more shapes": (put("cube", '<geom size="0.1"/>'), "cube_main has 3 shapes, the model 2"),
    "half a place": (lambda r: r.find("worldbody/body").set("pos", "1 2"), "expected 3 numbers"),
    "half a camera": (lambda r: r.find("worldbody/camera").set("pos", "1"), "expected 3 numbers"),
    "deep": (
        lambda root: put("world", "<b>" * (2 * MAX_DEPTH) + "</b>" * (2 * MAX_DEPTH))(root),
        f"or {MAX_DEPTH} levels",
    ),
    "wide": (
        lambda root: root.find("worldbody").extend(Element("site") for _ in range(MAX_ELEMENTS)),
        "more than 20,000 elements",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_models_are_refused(lift: tuple[RecordedScene, str, Any], name: str) -> None:
    scene, xml, _ = lift
    change, message = HOSTILE[name]
    root = ElementTree.fromstring(xml)
    change(root)
    with pytest.raises(EnvError) as refusal:
        scene.adopt(ElementTree.tostring(root, encoding="unicode"))
    assert message in str(refusal.value) and len(str(refusal.value).splitlines()) <= 3


def test_a_recording_without_the_thing_that_varies_says_so(
    lift: tuple[RecordedScene, str, Any],
) -> None:
    scene, xml, _ = lift
    taken, differences = scene.adopt(xml.replace("cube_main", "cube_other"))
    assert taken == [] and any("no body 'cube_main'" in text for text in differences)


BOMB = "<!DOCTYPE m [" + "".join(
    f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x"}">' for n in range(12)
)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (f"{BOMB}]><mujoco><worldbody>&e11;</worldbody></mujoco>", "holds '<!DOCTYPE'"),
        ('<!DOCTYPE m SYSTEM "file:///etc/passwd"><mujoco/>', "holds '<!DOCTYPE'"),
        ("<" + "a" * MAX_CHARACTERS, "characters, expected up to"),
        ("<a>" * 20_000, "is not XML"),
        ("<a>" * 10_000 + "</a>" * 10_000, "levels"),
        ("<a>" + "<b/>" * 500_000 + "</a>", "more than 60,000 tags"),
        ("<a>" + "<b/>" * 30_000 + "</a>", "more than 20,000 elements"),
        ("<mujoco/>", "has no worldbody"),
        ("\ud800<mujoco/>", "is not UTF-8 text"),
    ],
    ids=["entities", "external", "long", "torn", "deep", "tags", "wide", "empty", "surrogate"],
)
def test_texts_that_are_no_model(xml: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        recorded_world(xml)


def test_a_recording_gives_its_sizes_and_opens_none_of_its_files(
    lift: tuple[RecordedScene, str, Any], tmp_path: Path
) -> None:
    scene, xml, model = lift
    root = ElementTree.fromstring(xml)
    size = cube(root).find("geom").attrib["size"]
    for asset in root.find("asset"):  # recordings name the files of whoever made them
        if "file" in asset.attrib:
            asset.set("file", str(tmp_path / "gone.stl"))
    taken, _ = scene.adopt(ElementTree.tostring(root, encoding="unicode"))
    assert taken == ["cube_main"]
    number = model.geom("cube_g0").id
    assert model.geom_size[number].tolist() == [float(x) for x in size.split()]
