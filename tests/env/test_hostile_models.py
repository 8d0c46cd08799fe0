"""Hand-made hostile models: each is refused in a line, or gives exactly what the good one gives."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from env.core import EnvError
from tests.fuzz.xml import HERE, bench, differences_of, fields

Change = Callable[[str], str]
FILES = ("/dev/zero", "/etc/passwd", f"{HERE}/pipe", "../../etc/passwd", "http://127.0.0.1:1/", "")
LAUGHS = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "lol"}">' for n in range(10))
DECLARED = "holds '<!DOCTYPE', which is refused"


def head(text: str) -> Change:
    return lambda xml: text + xml


def root(text: str) -> Change:
    return lambda xml: re.sub("<mujoco[^>]*>", lambda m: m[0] + text, xml, count=1)


def world(text: str) -> Change:
    return lambda xml: xml.replace("<worldbody>", f"<worldbody>{text}", 1)


def cube(text: str) -> Change:
    return lambda xml: re.sub('<body [^>]*"cube_main">', lambda m: m[0] + text, xml, count=1)


def attribute(tag: str, name: str, key: str, value: str) -> Change:
    """Set an attribute of the first element of that kind and name."""

    def change(xml: str) -> str:
        found = re.search(f'<{tag} [^>]*"{name}"[^>]*>', xml)
        assert found
        rest = re.sub(f' {key}="[^"]*"', "", found[0])[len(tag) + 1 :]
        return xml.replace(found[0], f'<{tag} {key}="{value}"{rest}', 1)

    return change


def only(text: str) -> Change:
    return lambda _: text


def both(*changes: Change) -> Change:
    def change(xml: str) -> str:
        for one in changes:
            xml = one(xml)
        return xml

    return change


def entities() -> Iterator[tuple[Change, str]]:
    bomb = head(f"<!DOCTYPE m [{LAUGHS}]>")
    yield both(world("&e9;"), bomb), DECLARED
    yield both(attribute("geom", "cube_g0", "size", "&e9;"), bomb), DECLARED
    yield head(f'<!DOCTYPE m [<!ENTITY a "{"a" * 50_000}">]>'), DECLARED
    yield head('<!DOCTYPE m [<!ENTITY a "&b;"><!ENTITY b "&a;">]>'), DECLARED
    yield head('<!DOCTYPE m [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]>'), DECLARED
    yield head('<!DOCTYPE m [<!ATTLIST geom size CDATA "9 9 9">]>'), DECLARED
    for file in FILES:
        yield head(f'<!DOCTYPE m SYSTEM "{file}">'), DECLARED
        yield both(world("&x;"), head(f'<!DOCTYPE m [<!ENTITY x SYSTEM "{file}">]>')), DECLARED
    yield head("<!doctype m [<!eNTITY a 'b'>]>"), "is not XML"
    for text in ("&foo;", "&nbsp;", "&#0;", "&#x110000;", "&#99999999999;", "&e9;"):
        yield world(text), "is not XML"


def files() -> Iterator[tuple[Change, str]]:
    for file in FILES:
        for place in (root, world, cube):
            yield place(f'<include file="{file}"/>'), "holds 'include'"
        yield root(f'<asset><model name="m" file="{file}"/></asset>'), "holds 'model'"
        yield cube(f'<geom type="mesh" file="{file}"/>'), "names a file"
        yield root(f'<asset><mesh name="m" file="{file}"/></asset>'), ""  # assets are not read
        yield root(f'<asset><hfield name="h" file="{file}"/></asset>'), ""
        yield root(f'<asset><texture name="t" file="{file}"/></asset>'), ""
    yield root("<include file='x'>" * 90 + "</include>" * 90), "holds 'include'"
    yield world("<include file='x'/>" * 19_000), "holds 'include'"
    for tag in ("Include", "INCLUDE", "a:include", "xi:include"):
        place = f'<{tag} xmlns:a="m" xmlns:xi="http://www.w3.org/2001/XInclude" href="/dev/zero"/>'
        yield root(place), "holds 'include'"
        yield cube(place), "holds 'include'"
    yield root('<asset><x><model name="m" file="/dev/zero"/></x></asset>'), "holds 'model'"
    yield root('<compiler meshdir="/dev" texturedir="/proc" strippath="false"/>'), ""


def makers() -> Iterator[tuple[Change, str]]:
    for tag in ("attach", "replicate", "composite", "flexcomp", "flex", "skin", "deformable"):
        yield world(f'<{tag} count="999999999"/>'), f"holds '{tag}'"
    yield root('<extension><plugin plugin="x"/></extension>'), "holds 'extension'"
    yield root('<actuator><plugin plugin="x"/></actuator>'), "holds 'plugin'"
    yield root('<size memory="1000G" nuser_body="999999999"/>'), ""
    yield root('<custom><numeric name="n" size="999999999"/></custom>'), ""
    yield root('<asset><hfield name="h" nrow="100000" ncol="100000"/></asset>'), ""
    yield root('<asset><texture builtin="flat" width="99999" height="99999"/></asset>'), ""
    yield root('<compiler coordinate="global"/>'), "has coordinate 'global', expected 'local'"


def encodings() -> Iterator[tuple[Change, str]]:
    for name in ("utf-16", "ucs-4", "cp037", "hz", "rot13", "nonsense", "a" * 10_000):
        yield head(f'<?xml version="1.0" encoding="{name}"?>'), ""  # h5py has decoded the text
    yield head('<?xml version="1.0" encoding="utf-7"?>+ADw-!DOCTYPE m+AD4-'), "is not XML"
    for name in ("utf-16", "utf-32", "cp037"):
        yield lambda xml, name=name: xml.encode(name).decode("latin-1"), "is not XML|expected"
    yield head("\ufeff"), ""
    yield head("\ufeff\ufeff"), "is not XML"
    yield world("\udc80"), "is not UTF-8 text"
    for text in ("\0", "\x01", "\x1b[31m", "\ufffe"):
        yield world(text), "is not XML"
    for text in ("", " \n", "<", "<?xml version='1.0'?>", '{"<": 1}', "\x7fELF<", "<!---->"):
        yield only(text), "is not XML"


def shapes_of_text() -> Iterator[tuple[Change, str]]:
    for number in (200, 5_000, 15_000):
        yield world("<body>" * number + "</body>" * number), "or 100 levels"
        yield root("<x>" * number + "</x>" * number), "or 100 levels"
        yield cube("<geom>" * number + "</geom>" * number), "or 100 levels"
    yield world("<body>" * 60_000 + "</body>" * 60_000), "more than 60,000 tags"
    yield world("<a/>" * 25_000), "more than 20,000 elements"
    yield world("<!---->" * 70_000), "more than 60,000 tags"
    yield world(" " * 4_000_000), "characters, expected up to 4,000,000"
    yield cube("<geom size='1'/>" * 15_000), "has 15002 shapes, the model 2"
    yield world("<!--" + "x" * 3_000_000 + "-->"), ""
    yield world("<x " + " ".join(f"a{n}=''" for n in range(100_000)) + "/>"), ""
    yield world("<x a='' a=''/>"), "is not XML"
    yield cube(f"<{'a' * 1_000_000}/>"), "body 'cube_main' holds 'aaa"
    yield cube(f"<geom {'a' * 1_000_000}='1'/>"), "geom '' has 'aaa"
    yield attribute("geom", "cube_g0", "type", "a" * 1_000_000), "is of type 'aaa"
    for cut in (100, 20_000, -10):
        yield lambda xml, cut=cut: xml[:cut], "is not XML"
    yield lambda xml: xml + xml, "is not XML"
    yield lambda xml: xml.replace("mujoco", "MUJOCO"), "is a 'MUJOCO', expected a 'mujoco'"
    yield lambda xml: xml.replace("<mujoco", "<mujoco xmlns='x'", 1), "expected a 'mujoco'"
    yield lambda xml: xml.replace("worldbody>", "world>"), "has no worldbody"
    yield root("<worldbody><geom file='/dev/zero'/></worldbody>"), "has 2 worldbody"
    yield world('<body name="world" pos="1 1 1"/>'), "two bodies of the name 'world'"
    yield world('<body name="cube_main"/>'), "two bodies of the name 'cube_main'"


# what python alone reads as a number (1_0, digits of other scripts) is none in MuJoCo
NO_NUMBERS = ("", "a", "1,1,1", "1e", "0x10 1 1", "True", "1_0 1 1", "\u0661 1 1", "1 1 1\u00a0")
NOT_FINITE = ("nan 1 1", "inf 1 1", "-inf", "1e999 1 1", "1e308 1 1", "9" * 400, "1e7 1 1")
PLACES = (("geom", "cube_g0", "size"), ("body", "table", "pos"), ("camera", "agentview", "pos"))


def all_numbers() -> Iterator[tuple[Change, str]]:
    for place in (*PLACES, ("geom", "cube_g0", "mass"), ("geom", "cube_g0", "quat")):
        for text in NO_NUMBERS:
            yield attribute(*place, text), "expected numbers"
        for text in NOT_FINITE:
            yield attribute(*place, text), "expected finite numbers"
    for text in ("0 0 0", "-1 1 1", "1", "1 2", "1e-320 1 1"):
        yield attribute("geom", "cube_g0", "size", text), "body 'cube_main' does not compile"
    for text in ("1", "1 2", "1 2 3 4", "1 " * 100_000):
        yield attribute("body", "table", "pos", text), "expected 3 numbers"
    for inertial in ("", 'pos="0 0 0" mass="-1" diaginertia="1 1 1"', 'pos="0 0 0" mass="1"'):
        yield cube(f"<inertial {inertial}/>"), "does not compile"
    yield cube('<inertial pos="0 0 0" mass="1" fullinertia="1 1 1 0 0 0"/>'), "has 'fullinertia'"
    yield cube("<joint/>"), "does not compile"


KINDS = (entities, files, makers, encodings, shapes_of_text, all_numbers)


def said_of(text: str) -> str:
    """The refusal, what has changed for an accepted model, or "" if that is as without it."""
    try:
        bench().scene.adopt(text)
    except EnvError as error:
        return str(error)
    changed = differences_of(fields(bench().model))
    return f"{changed} have changed" if changed else ""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_is_refused_in_a_line_or_changes_nothing(
    kind: Callable[[], Iterator[tuple[Change, str]]], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    good, wrong = bench().xml, []
    for number, (change, message) in enumerate(kind()):
        text = change(good).replace(HERE, str(tmp_path))
        assert text != good
        said = said_of(text)
        fits = re.search(message, said) if message else not said
        if not fits or len(said) > 400 or len(said.splitlines()) > 1:
            wrong.append((number, message, said[:300]))
    assert wrong == []
