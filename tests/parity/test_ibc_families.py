"""Every IBC fixture in the folder is run by a test module."""

from __future__ import annotations

import importlib

import pytest

from tests.parity import ibc_recipes, recipes
from tests.parity.recipes import Fixture


@pytest.mark.parametrize("case", recipes.all_fixtures("ibc"), ids=lambda c: c.name)
def test_fixture_has_a_test(case: Fixture) -> None:
    family = ibc_recipes.family_of(case)
    assert family is not None, f"{case.path}: no test claims it (ibc_recipes.IBC_FAMILIES)"
    module = ibc_recipes.IBC_FAMILIES[family]
    importlib.import_module(f"tests.parity.{module}")
    assert case.name in ibc_recipes.CLAIMED, f"{case.path}: no test of {module} runs it"
