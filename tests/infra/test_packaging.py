"""The package: what pyproject.toml, requirements.txt and the sources say agrees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from setuptools import find_packages
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return read_configuration(ROOT / "pyproject.toml", expand=False)


def expanded(extras: dict[str, list[str]], name: str) -> set[Requirement]:
    """The packages of an extra, with those of the extras that it names."""
    found = {Requirement(text) for text in extras[name]}
    inner = {r for r in found if r.name == "ibrl"}
    for requirement in inner:
        for extra in requirement.extras:
            found |= expanded(extras, extra)
    return found - inner


def listed(file: str) -> set[Requirement]:
    """The packages of a requirements file."""
    written = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return {Requirement(text) for text in written if text}


def test_requirements_txt_has_the_versions_of_pyproject(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    everything = {Requirement(text) for text in project["dependencies"]} | expanded(extras, "dev")
    assert listed("requirements.txt") == everything


def test_requirements_scale_txt_has_the_versions_of_pyproject(pyproject: dict[str, Any]) -> None:
    assert listed("requirements-scale.txt") == expanded(
        pyproject["project"]["optional-dependencies"], "scale"
    )


def test_the_base_is_torch_and_numpy_alone(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    assert {Requirement(text).name for text in project["dependencies"]} == {"torch", "numpy"}
    assert {"sim", "scale", "docs", "dev"} <= set(project["optional-dependencies"])


def test_every_package_is_installed_but_tests_and_benchmarks(pyproject: dict[str, Any]) -> None:
    find = pyproject["tool"]["setuptools"]["packages"]["find"]
    found = set(find_packages(str(ROOT), find["exclude"], find["include"]))
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*/__init__.py"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {os.path.dirname(name).replace("/", ".") for name in names.splitlines()}
    assert found == {p for p in tracked if p.split(".")[0] not in ("tests", "benchmarks")}
    scripts = {p.stem for p in ROOT.glob("*.py")} - {"setup"}
    assert set(pyproject["tool"]["setuptools"]["py-modules"]) == scripts
