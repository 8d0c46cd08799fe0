"""So many processes draw on a GPU, and no more."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common_utils.errors import UserError
from env import render_slots
from env.core import EnvError

CARD = "NVIDIA H100 80GB HBM3/PCIe/SSE2"


@pytest.fixture(autouse=True)
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(render_slots.VARIABLE, "2")


def _hold(pipe: Any, renderer: str) -> None:
    try:
        render_slots.take(renderer)
        render_slots.take(renderer)  # another environment of the same process
        pipe.send("")
        pipe.recv()
    except (EnvError, EOFError) as error:
        pipe.send(str(error))


Hold = Callable[..., tuple[str, Any, Any]]


@pytest.fixture
def hold() -> Iterator[Hold]:
    started: list[Any] = []

    def start(renderer: str = CARD) -> tuple[str, Any, Any]:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=_hold, args=(theirs, renderer))
        process.start()
        theirs.close()
        started.append(process)
        return (ours.recv() if ours.poll(60) else "no answer"), process, ours

    yield start
    for process in started:
        process.kill()
        process.join()


def test_slots_are_limited_and_come_back(hold: Hold) -> None:
    render_slots.check_free(5, "num_eval_worker")  # nobody draws on a GPU
    (one, first, _), (two, _, _) = hold(), hold()
    assert one == two == ""
    refused, _, _ = hold()
    assert refused.startswith(f"2 processes draw on this GPU ({CARD}) already")
    assert "IBRL_MAX_RENDERERS" in refused
    with pytest.raises(EnvError, match="num_eval_worker: 1 more processes .* beside 2 that do"):
        render_slots.check_free(1, "num_eval_worker")
    first.kill()  # however it ends
    first.join()
    render_slots.check_free(1, "num_eval_worker")
    assert hold()[0] == ""


def test_software_has_no_limit(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("llvmpipe (LLVM 15.0.6, 256 bits)", "softpipe", "")
    assert [hold(name)[0] for name in names] == ["", "", ""]
    assert not render_slots.folder().exists()
    monkeypatch.setenv(render_slots.VARIABLE, "0")
    assert [hold()[0] for _ in range(3)] == ["", "", ""]
    monkeypatch.setenv(render_slots.VARIABLE, "many")
    with pytest.raises(UserError, match="IBRL_MAX_RENDERERS: 'many', expected an integer"):
        render_slots.take(CARD)


def test_the_renderer_of_a_real_context_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """gymnasium's MuJoCo camera in this process: the name that decides is OpenGL's."""
    from env.config import EnvConfig
    from env.factory import make_env

    asked: list[str] = []
    monkeypatch.setattr(render_slots, "take", asked.append)
    cfg = EnvConfig(suite="gymnasium", task="InvertedPendulum-v5", cameras=["render"], use_state=0)
    env = make_env(cfg)
    env.close()
    assert len(asked) == 1 and asked[0]
