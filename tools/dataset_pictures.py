"""The drawings of ``tools.inspect_dataset``: a sheet of pictures, and plots of actions."""

from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw

from bc.demos import Demos
from bc.formats import open_demos
from common_utils.atomic import atomic_write
from common_utils.run_config import ConfigError
from tools.dataset_report import Report, spread

# Okabe and Ito's colours, which colour-blind people tell apart; the last is for faults
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
FAULT = "#D55E00"
MOST_PLOTS = 64  # dimensions of an action that are drawn
COLUMNS = 4


def contact_sheet(path: str | Path, out: str | Path, demos: int = 6, frames: int = 8) -> bool:
    """Write a PNG: a row for each of ``demos`` demonstrations and each camera, ``frames`` columns.

    Returns False, writing nothing, when the file has no readable images. Raises ConfigError where
    the PNG cannot be written, one of bc.demo_arrays.FAULTS where the images cannot be read.
    """
    rows: list[np.ndarray] = []
    with open_demos(path) as file:
        for number in spread(len(file.names), demos):
            name = file.names[number]
            for key in file.obs_keys(name):
                if key.endswith("_image"):
                    rows.append(_row(file, name, key.removesuffix("_image"), frames))
    if not rows:
        return False
    width = max(r.shape[1] for r in rows)
    padded = [np.pad(r, ((0, 2), (0, width - r.shape[1]), (0, 0))) for r in rows]
    try:
        with atomic_write(out) as temp:
            imageio.imwrite(temp, np.concatenate(padded), format="png")
    except OSError as error:
        raise ConfigError(f"out: '{out}' cannot be written ({error.strerror or error})") from error
    return True


def _row(file: Demos, name: str, camera: str, count: int) -> np.ndarray:
    steps = spread(file.length(name), count)
    frames = file.images(name, camera, steps).transpose(0, 2, 3, 1)
    label = f"{name} {camera}"
    return np.concatenate(
        [_labelled(f, f"t={t}" if t else label) for f, t in zip(frames, steps, strict=True)],
        axis=1,
    )


def _labelled(frame: np.ndarray, text: str) -> np.ndarray:
    strip = Image.new("RGB", (frame.shape[1], 12))
    ImageDraw.Draw(strip).text((1, 0), text, fill=(255, 255, 255))
    return np.concatenate([np.asarray(strip), frame])


def action_plots(report: Report, out: str | Path, demos: int = 6) -> bool:
    """Write a PNG with a plot for each dimension of the actions: a line for each of ``demos``
    demonstrations, and marks on what lies outside [-1, 1].

    Returns False, writing nothing, without actions. Raises ConfigError where it cannot be written.
    """
    if not report.actions.size:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    width = min(report.actions.shape[1], MOST_PLOTS)
    columns = min(width, COLUMNS)
    lines = -(-width // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3 * columns + 0.5, 1.9 * lines + 0.7), sharex=True, squeeze=False
    )
    ends = np.cumsum(report.lengths)
    chosen = spread(len(ends), demos)
    for number, axis in enumerate(axes.flat):
        if number >= width:
            axis.set_visible(False)
            continue
        for colour, demo in enumerate(chosen):
            values = report.actions[ends[demo] - report.lengths[demo] : ends[demo], number]
            axis.plot(values, lw=1, color=COLOURS[colour % len(COLOURS)], alpha=0.8)
            beyond = np.flatnonzero(np.abs(values) > 1 + 1e-5)
            axis.plot(beyond, values[beyond], ".", ms=4, color=FAULT)
        for limit in (-1, 1):
            axis.axhline(limit, lw=0.5, ls=":", color="0.4")
        axis.set_title(f"action {number}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("step", fontsize=9)
    title = f"{len(chosen)} of {len(ends)} demonstrations; dotted: -1 and 1; red dots: beyond them"
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    try:
        with atomic_write(out) as temp:
            figure.savefig(temp, format="png", dpi=110)
    except OSError as error:
        raise ConfigError(f"out: '{out}' cannot be written ({error.strerror or error})") from error
    finally:
        plt.close(figure)
    return True
