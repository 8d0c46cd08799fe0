"""tools.build_wheels refuses what is no CPython 3.10 to 3.12 (tests/infra/test_wheel.py builds)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from common_utils.errors import UserError
from tools.build_wheels import chosen, version_of


def test_an_interpreter_is_known_by_its_version() -> None:
    version = ".".join(map(str, sys.version_info[:2]))
    assert version_of(sys.executable) == version
    assert chosen([sys.executable]) == {version: sys.executable}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "not a Python that runs"),
        ("#!/bin/sh\nexit 127\n", "not a Python that runs"),
        ("#!/bin/sh\necho 3.13\n", "of version 3.13"),
    ],
)
def test_others_are_refused(tmp_path: Path, text: str, found: str) -> None:
    python = tmp_path / "python"
    if text:
        python.write_text(text)
        python.chmod(0o755)
    with pytest.raises(UserError, match=f"--python: {python} is {found}, expected one of 3.10"):
        chosen([str(python)])


def test_without_any_the_path_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no CPython 3.10 or 3.11 or 3.12 was found in PATH"):
        chosen([])
    assert "CPython 3.11: not found in PATH" in capsys.readouterr().out
