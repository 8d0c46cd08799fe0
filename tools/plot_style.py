"""How every figure of the project looks: matplotlib's pictures and plotly's pages.

The colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with any
common kind of colour blindness tell apart; line styles repeat the difference where colours run out.
Axes state units (:func:`label_of`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from common_utils.atomic import atomic_write

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
YELLOW, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#7F7F7F"
# by order of use: neighbours differ in lightness as well
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, BLACK)
DASHES = ("solid", "dash", "dot", "dashdot")  # plotly's names

ENV_STEPS, GRADIENT_STEPS = "environment steps", "gradient steps"
# the first pattern that is found in a key gives its label
_LABELS = (
    (r"^score/(start_q|discounted_return)$", "discounted reward"),
    (r"^score/return$", "return (sum of rewards)"),
    (r"^score/(score|success|.*_score)$", "success rate (0 to 1)"),
    (r"^score/num_success$", "successful episodes"),
    (r"^train/critic_qt$", "TD target (discounted reward)"),
    (r"^actor/anorm", "norm of the action"),
    (r"^actor/qrl-qbc$", "difference of Q (discounted reward)"),
    (r"^actor/", "share of steps (0 to 1)"),
    (r"^time/", "share of time (0 to 1)"),
    (r"^other/speed$", "environment steps per second"),
    (r"^other/elapsed_time$", "seconds"),
    (r"^data/episode_len$", "control steps"),
)


def label_of(key: str, by_return: bool = False) -> str:
    """The axis label of a logged key: what it is, and its unit; the key itself if it has none.

    by_return: the run's score is its mean return (D4RL).
    """
    if by_return and re.fullmatch(r"score/(score|.*_score)", key):
        return "mean return (sum of rewards)"
    return next((label for pattern, label in _LABELS if re.search(pattern, key)), key)


def colour(number: int) -> str:
    """Of the line ``number`` (from 0) in a figure."""
    return COLOURS[number % len(COLOURS)]


def dash(number: int) -> str:
    """Plotly's line style of the line ``number``: another one for each round of colours."""
    return DASHES[number // len(COLOURS) % len(DASHES)]


def faint(hex_colour: str, alpha: float) -> str:
    """A colour with transparency, as CSS and plotly write it."""
    red, green, blue = (int(hex_colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def pyplot() -> Any:
    """matplotlib.pyplot in this style, drawing without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.fontsize": "small",
        "figure.constrained_layout.use": True,
    })  # fmt: skip
    return plt


def save(figure: Any, out: Path, dpi: int = 150) -> None:
    """Write a matplotlib figure as a PNG, atomically, and free it."""
    import matplotlib.pyplot as plt

    with atomic_write(out) as temp:
        figure.savefig(temp, format="png", dpi=dpi)
    plt.close(figure)
