"""Every file that can be run as a program goes through ``run_program``; the list is generated."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from common_utils.errors import run_program
from env.block_pushing import make_assets
from tests.docs.commands import REPO, commands, module_of

# no programs for people: what runs them, and why their errors take another way
OTHERS = {
    "tools/env_server/__main__.py": "for a robot, which has nothing else; here: tools/serve_env.py",
    "launch/child.py": "becomes another program at once",
    "env/worker.py": "started by evaluate's pool; its errors are messages on a connection",
    "release/results/robosuite/pictures_1.4/record.py": "for a Python that has robosuite 1.4 alone",
    "tests/interop/make_lerobot_fixture.py": "for a Python that has lerobot alone",
    "tests/interop/read_with_lerobot.py": "for a Python that has lerobot alone",
    "tests/replay/stress.py": "started by a test under sanitizers, imports the C++ module alone",
}


def _guard(tree: ast.Module) -> ast.If | None:
    """The statement ``if __name__ == "__main__":`` of a module."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            return node
    return None


def _entry_points() -> dict[str, str]:
    """File -> what it runs as a program, of all files that are not in a hidden folder."""
    found = {}
    for path in sorted(REPO.rglob("*.py")):
        name = path.relative_to(REPO).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        guard = _guard(ast.parse(path.read_text()))
        if guard is not None:
            found[name] = "; ".join(map(ast.unparse, guard.body))
        elif path.name == "__main__.py":
            found[name] = ""
    return found


ENTRY_POINTS = _entry_points()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_it_is_run_by_run_program(name: str) -> None:
    if name in OTHERS:
        assert "run_program" not in ENTRY_POINTS[name], f"{name} is no exception any more"
        return
    assert ENTRY_POINTS[name].startswith("sys.exit(run_program("), name
    assert "; " not in ENTRY_POINTS[name], f"{name} does something beside run_program"


def test_exceptions_exist_and_most_is_found() -> None:
    assert set(OTHERS) < set(ENTRY_POINTS)
    assert {"train_rl.py", "train_bc.py", "quickstart.py", "evaluate/eval.py"} < set(ENTRY_POINTS)
    assert len(ENTRY_POINTS) > 30


# rooms and files that compute with networks, and what sets the process up for them
NETWORKS = ("networks", "rl.q_agent", "bc.explicit", "bc.ibc", "workspace", "train_bc", "train_rl")
SET_UP = ("fast.set_up", "common.start", "common.run", "stages.train_ibrl", "measure.measure", *(
    f"{trainer}.{name}" for trainer in ("train_bc", "train_rl") for name in ("run", "main")
))  # fmt: skip


def _imported(tree: ast.Module) -> set[str]:
    """Full names of what a module imports, inside functions as well."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _used(tree: ast.Module) -> set[str]:
    """Names with a dot that a module calls or passes on, such as ``train_rl.main``."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _computing() -> list[str]:
    """Entry points that import something that computes with networks."""
    trees = {name: ast.parse((REPO / name).read_text()) for name in ENTRY_POINTS}
    return [
        name
        for name, tree in trees.items()
        if not name.startswith("tests/")
        and any(
            f"{found}.".startswith(tuple(f"{n}." for n in NETWORKS)) for found in _imported(tree)
        )
    ]


@pytest.mark.parametrize("name", _computing())
def test_programs_with_networks_set_the_process_up(name: str) -> None:
    assert _used(ast.parse((REPO / name).read_text())) & set(SET_UP), name


def test_programs_with_networks_are_found() -> None:
    assert {"train_rl.py", "quickstart.py", "tools/plot_particle.py"} < set(_computing())


PAGES = [
    page.relative_to(REPO).as_posix()
    for page in (REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted(REPO.glob("docs/**/*.md")))
]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_runs_is_an_entry_point(page: str) -> None:
    ours = {name.removesuffix("/__main__.py").removesuffix(".py") for name in ENTRY_POINTS}
    for command in commands(page):
        module = module_of(command).replace(".", "/")
        if (REPO / module.partition("/")[0]).exists() or (REPO / f"{module}.py").exists():
            assert module in ours, command


def test_meshes_that_cannot_be_written_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in_the_way").touch()
    monkeypatch.setattr(make_assets, "ASSETS", tmp_path / "in_the_way")
    assert run_program(make_assets.main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "in_the_way" in error
    assert error.count("\n") == 1


def test_programs_load_nothing_that_only_some_runs_need() -> None:
    # torch's tracer takes seconds; optional packages may not be installed
    packages = {
        "torch._dynamo", "av", "matplotlib", "msgpack", "onnx", "plotly", "pyarrow", "rerun",
        "safetensors", "tensorboard", "trackio", "wandb", "websockets", "zarr",
    }  # fmt: skip
    code = f"import sys, train_rl, train_bc\nprint(*({packages} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, check=True, capture_output=True, text=True
    )
    assert loaded.stdout.split() == []
