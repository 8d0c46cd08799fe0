"""The weights of other runs that a run keeps: copied, checked, never silently others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from common_utils.kept_weights import find, keep, originals
from common_utils.run_config import ConfigError


def weights(folder: Path, text: str = "weights") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.yaml").write_text("lr: 1\n")
    (folder / "model0.pt").write_text(text)
    return str(folder / "model0.pt")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that keeps two policies."""
    (tmp_path / "run").mkdir()
    paths = [weights(tmp_path / "a", "one"), weights(tmp_path / "b", "two")]
    keep(tmp_path / "run", originals(paths))
    return tmp_path / "run"


def test_copies_are_what_was_there(run: Path, tmp_path: Path) -> None:
    kept = find(run)
    assert kept is not None and kept.notes == []
    assert [Path(p).read_text() for p in kept.files] == ["one", "two"]
    assert all((Path(p).parent / "cfg.yaml").read_text() == "lr: 1\n" for p in kept.files)
    assert kept.origins == [str(tmp_path / "a/model0.pt"), str(tmp_path / "b/model0.pt")]
    assert [p.name for p in run.iterdir()] == ["bc_policy"]
    assert find(tmp_path / "a") is None


@pytest.mark.parametrize("name", ["model0.pt", "cfg.yaml"])
def test_a_changed_original_is_reported_and_does_not_matter(
    name: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "a" / name).write_text("other")
    kept = find(run)
    assert kept is not None and len(kept.notes) == 1
    assert str(tmp_path / "a/model0.pt") in kept.notes[0] and "has changed" in kept.notes[0]
    assert [Path(p).read_text() for p in kept.files] == ["one", "two"]
    (tmp_path / "a" / name).unlink()
    kept = find(run)
    assert kept is not None and kept.notes == []


def test_a_damaged_copy_is_replaced_by_its_original_or_named(run: Path, tmp_path: Path) -> None:
    copy = run / "bc_policy" / "1" / "model.pt"
    copy.write_text("damaged")
    kept = find(run)
    assert kept is not None and "is damaged; its original" in kept.notes[0]
    assert kept.files[1] == str(tmp_path / "b/model0.pt")
    keep(run, kept)
    assert copy.read_text() == "two"
    kept = find(run)
    assert kept is not None and kept.notes == [] and kept.files[1] == str(copy)
    copy.unlink()
    (tmp_path / "b/model0.pt").write_text("other")
    with pytest.raises(
        ConfigError, match="missing or damaged, and its original .* has changed since"
    ):
        find(run)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"path": "x"}]', "[" * 100_000, "\x00"])
def test_a_damaged_list_is_named(text: str, run: Path) -> None:
    (run / "bc_policy" / "origin.json").write_text(text)
    with pytest.raises(ConfigError, match=r"origin\.json: damaged"):
        find(run)


@pytest.mark.parametrize("name", ["x" * 5000, "\0", "/"])
def test_a_name_that_no_file_has_does_not_matter(name: str, run: Path) -> None:
    """The run's own copy is there."""
    path = run / "bc_policy" / "origin.json"
    entries = json.loads(path.read_text())
    entries[0]["path"] = name
    path.write_text(json.dumps(entries))
    kept = find(run)
    assert kept is not None and kept.notes == []
    assert [Path(p).read_text() for p in kept.files] == ["one", "two"]


def test_a_file_that_changes_while_the_run_starts_is_refused(tmp_path: Path) -> None:
    path = weights(tmp_path / "a")
    read = originals([path])
    weights(tmp_path / "a", "other")
    with pytest.raises(ConfigError, match="changed while the run was starting"):
        keep(tmp_path, read)
    assert find(tmp_path) is None


def test_weights_need_their_config(tmp_path: Path) -> None:
    path = weights(tmp_path / "a")
    (tmp_path / "a" / "cfg.yaml").unlink()
    with pytest.raises(ConfigError, match="must have its cfg.yaml beside it"):
        originals([path])


@pytest.mark.parametrize("what", ["pipe", "file", "link", "loop"])
@pytest.mark.parametrize("name", ["bc_policy", "bc_policy.new"])
def test_what_lies_in_the_place_of_the_copies_is_replaced(
    what: str, name: str, run: Path, tmp_path: Path
) -> None:
    """A pipe would be waited for."""
    shutil.rmtree(run / "bc_policy")
    place, elsewhere = run / name, tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x").write_text("kept")
    if what == "pipe":
        os.mkfifo(place)
    elif what == "file":
        place.write_text("x")
    else:
        place.symlink_to(place.name if what == "loop" else elsewhere)
    keep(run, originals([str(tmp_path / "a/model0.pt"), str(tmp_path / "b/model0.pt")]))
    kept = find(run)
    assert kept is not None and kept.notes == []
    assert (elsewhere / "x").read_text() == "kept"
    assert sorted(p.name for p in run.iterdir()) == ["bc_policy"]


def test_half_a_copy_is_none(run: Path, tmp_path: Path) -> None:
    (run / "bc_policy").rename(run / "bc_policy.new")  # killed while copying
    assert find(run) is None
    keep(run, originals([weights(tmp_path / "c", "three")]))
    entries = json.loads((run / "bc_policy" / "origin.json").read_text())
    assert [e["path"] for e in entries] == [str(tmp_path / "c/model0.pt")]
    assert [p.name for p in run.iterdir()] == ["bc_policy"]
