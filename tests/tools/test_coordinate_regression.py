"""Coordinate regression: images, hull, the runs through train_bc, results and plot."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from common_utils import run_config
from common_utils.run_config import ConfigError
from tools import coordinate_regression as tool
from tools.coordinate_regression import MainConfig


def small(out: Path, **kwargs: object) -> MainConfig:
    options = {
        "num_points": [5],
        "num_test": 30,
        "image_size": 20,
        "steps": 100,
        "batch_size": 5,
        "lr": 5e-3,
    }
    return MainConfig(**options | {"out": str(out)} | kwargs)


def test_pictures_show_the_square_at_the_point() -> None:
    centres = tool.points(40, 3, 20)
    images = tool.pictures(centres, 20)
    assert images.shape == (40, 3, 20, 20) and images.dtype == np.uint8
    for image, centre in zip(images, centres, strict=True):
        rows, columns = np.nonzero(image[0] != 255)
        assert len(rows) == 25  # never cut off
        np.testing.assert_array_equal((rows.mean(), columns.mean()), centre)
    assert np.unique(tool.points(3000, 0, 20)).tolist() == list(range(2, 18))
    actions = tool.to_action(np.array([[0, 19], [2, 17]]), 20)
    np.testing.assert_allclose(actions, [[-1, 1], [-15 / 19, 15 / 19]], atol=1e-6)


def test_hull() -> None:
    square = np.array([[0, 0], [0, 4], [4, 0], [4, 4], [1, 2]])
    inside = tool.in_hull(square, np.array([[2, 2], [3, 1], [5, 2], [-1, -1]]))
    assert inside.tolist() == [True, True, False, False]


def test_errors_are_pixels() -> None:
    class Shifted:
        def act(self, obs: dict, generator: object) -> object:
            import torch

            pictures = obs[tool.CAMERA].numpy()
            marked = [np.argwhere(p[0] != 255).mean(0) + (3, 4) for p in pictures]
            return torch.from_numpy(tool.to_action(np.stack(marked), 20))

    centres = tool.points(120, 1, 20)
    np.testing.assert_allclose(tool.errors_of(Shifted(), centres, 20), 5, atol=1e-4)


def test_runs_are_recorded_go_on_and_are_plotted(tmp_path: Path) -> None:
    cfg = small(tmp_path, policies=["mse"])
    first = tool.experiment(cfg)
    cfg.policies = ["mse", "ibc"]
    results = tool.experiment(cfg)
    assert results[0] == first[0]  # not trained again
    assert [(r["policy"], r["num_points"], r["seed"]) for r in results] == [
        ("mse", 5, 0), ("ibc", 5, 0)
    ]  # fmt: skip
    tree = json.loads((tmp_path / "coordinate_regression.json").read_text())
    assert tree["results"] == results and tree["steps"] == 100
    assert "--num_points [5]" in tree["command"]
    inside = tool.in_hull(tool.points(5, 0, 20), tool.held_out(cfg))
    for run in results:
        errors = np.array(run["errors"])
        assert run["inside_points"] == inside.sum()
        assert run["outside_error"] == pytest.approx(errors[~inside].mean(), abs=0.01)
        assert run["training_cpu_seconds"] > 0
        assert run["train_error"] < 0.5
    # the finding: the implicit policy extrapolates
    assert results[1]["outside_error"] < 0.5 < 1.5 < results[0]["outside_error"]
    assert "ibc" in tool.table(results) and f"{results[1]['outside_error']:.2f}" in tool.table(
        results
    )
    picture = imageio.imread(tool.plot(cfg, results))
    assert (
        picture.shape[0] > 200
        and len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20
    )
    with pytest.raises(ConfigError, match="other settings.*100"):
        tool.experiment(small(tmp_path, steps=101))


def test_training_is_reproducible(tmp_path: Path) -> None:
    cfg = small(tmp_path, steps=4, policies=["ibc"])
    runs = [tool.measure(cfg, "ibc", 5, 1) for _ in range(2)]
    assert runs[0]["errors"] == runs[1]["errors"]
    assert runs[0]["errors"] != tool.measure(cfg, "ibc", 5, 2)["errors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": ["ebm"]}, "policies.*ebm.*mse_convmlp"),
        ({"num_points": [2]}, r"num_points: .*got \[2\]"),
        ({"image_size": 8}, "image_size: .*got 8"),
        ({"steps": 0}, "steps: .*got 0"),
    ],
)
def test_bad_options_are_reported(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config.from_dict(tool.MainConfig, options)
