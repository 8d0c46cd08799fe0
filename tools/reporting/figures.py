"""The report's figures, as plotly's plain dicts (data and layout), in the project's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common_utils.errors import ConfigError
from tools import plot_style
from tools.reporting.curves import Band, Curve, aggregate, at_common_steps, is_number
from tools.reporting.runs import Run

Figure = dict[str, Any]
Groups = Mapping[tuple[str, str, str], Sequence[Run]]


def group_label(key: tuple[str, str, str], groups: Groups) -> str:
    """A group's name in legends; with its task if the name alone is not unique."""
    _, task, name = key
    alone = [k for k in groups if k[2] == name]
    return name if len(alone) == 1 else f"{name} ({task or '?'})"


def x_label(kind: str) -> str:
    """What a run of this kind counts as steps."""
    labels = {"rl": plot_style.ENV_STEPS, "bc": plot_style.GRADIENT_STEPS}
    return labels.get(kind, "steps")


def figure(data: list[dict[str, Any]], x: str, y: str, **layout: Any) -> Figure:
    """A figure with labelled axes. Names are escaped by the page that draws it."""
    axes = {
        "xaxis": {
            "title": {"text": x},
            "automargin": True,
            "gridcolor": "#e5e5e5",
            "rangemode": "tozero",
        },
        "yaxis": {"title": {"text": y}, "automargin": True, "gridcolor": "#e5e5e5"},
    }
    common = {
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "plot_bgcolor": "#fff",
        "paper_bgcolor": "#fff",
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "height": 420,
        "hovermode": "closest",
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    }
    return {"data": data, "layout": {**common, **axes, **layout}}


def line(
    name: str, x: Sequence[float], y: Sequence[float], number: int, **more: Any
) -> dict[str, Any]:
    """A line with markers in the colour and dash of ``number``."""
    style = {"color": plot_style.colour(number), "dash": plot_style.dash(number), "width": 2}
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) < 60 else "lines",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {**style, **more.pop("line", {})},
        "marker": {"size": 5},
        **more,
    }


def number_list(values: np.ndarray) -> list[float]:
    return [float(v) for v in values]


def bands(
    groups: Groups, key: str, repeats: int, confidence: float
) -> tuple[dict[tuple[str, str, str], Band], list[str]]:
    """Each group's combined curve of ``key``, and why groups have none."""
    found, notes = {}, []
    for group, runs in groups.items():
        curves = [c for run in runs if (c := run.curve(key)) is not None]
        if missing := [run.name for run in runs if run.curve(key) is None]:
            notes.append(f"{', '.join(missing)}: no {key} logged")
        try:
            if curves:
                found[group] = aggregate(curves, repeats, confidence)
        except ConfigError as error:
            notes.append(str(error))
    return found, notes


def learning_curves(
    groups: Groups, found: Mapping[tuple[str, str, str], Band], key: str, kind: str
) -> Figure:
    """IQM with its interval per group, and every run as a faint line."""
    data: list[dict[str, Any]] = []
    shown = [g for g in groups if g in found]
    by_return = all(run.protocol.by_return for g in shown for run in groups[g])
    for number, group in enumerate(shown):
        band, runs, name = found[group], groups[group], group_label(group, groups)
        colour, steps = plot_style.colour(number), number_list(band.steps)
        if band.runs > 1:
            edge = {"x": steps + steps[::-1], "hoverinfo": "skip", "showlegend": False}
            outline = number_list(band.high) + number_list(band.low[::-1])
            data.append({
                "type": "scatter", "mode": "lines", "line": {"width": 0}, "fill": "toself",
                "fillcolor": plot_style.faint(colour, 0.2), "legendgroup": name, "y": outline,
                "name": f"{name}, interval", **edge,
            })  # fmt: skip
            for run in runs:
                if curve := run.curve(key):
                    data.append(
                        line(run.name, number_list(curve.steps), number_list(curve.values), number,
                             mode="lines", opacity=0.35, legendgroup=name, showlegend=False,
                             line={"width": 1})
                    )  # fmt: skip
        what = f"{name} (IQM of {band.runs} runs)" if band.runs > 1 else f"{name} (1 run)"
        data.append(line(what, steps, number_list(band.iqm), number, legendgroup=name))
    label = plot_style.label_of(key, by_return)
    axis = {"title": {"text": label}, "automargin": True, "gridcolor": "#e5e5e5"}
    if label.endswith("(0 to 1)"):
        axis["range"] = [-0.02, 1.02]
    return figure(data, x_label(kind), label, yaxis=axis)


def _mean_curve(runs: Sequence[Run], key: str) -> tuple[list[float], list[float]] | None:
    """Mean over runs of a logged number, at their common steps."""
    curves: list[Curve] = [c for run in runs if (c := run.curve(key)) is not None]
    if not curves:
        return None
    try:
        steps, values = at_common_steps(curves)
    except ConfigError:
        return None
    return number_list(steps), number_list(values.mean(0))


def candidate_sources(runs: Sequence[Run]) -> dict[str, str]:
    """Name -> logged key of each source of BC candidates."""
    keys = {k for run in runs for record in run.records for k in record}
    several = sorted(
        (k for k in keys if k.startswith("actor/bc") and k.endswith("_train") and k[8:9].isdigit()),
        key=lambda k: int(k[8:-6]) if k[8:-6].isdigit() else 0,
    )
    if several:
        return {f"BC policy {k[8:-6]}": k for k in several}
    return {"BC action": "actor/bc_train"} if "actor/bc_train" in keys else {}


def candidates(runs: Sequence[Run]) -> Figure | None:
    """Whose action was played while exploring, stacked to 1; lines for evaluation and targets."""
    sources = candidate_sources(runs)
    total = _mean_curve(runs, "actor/bc_train")
    if not sources or total is None:
        return None
    steps, bc = total
    areas = {"RL action": [1 - share for share in bc]}
    for name, key in sources.items():
        if (share := _mean_curve(runs, key)) is not None:
            areas[name] = share[1]
    data = [
        {
            "type": "scatter", "mode": "lines", "stackgroup": "played",
            "name": f"{name}, exploring", "x": steps, "y": share,
            "line": {"width": 0.5, "color": plot_style.colour(number)},
            "fillcolor": plot_style.faint(plot_style.colour(number), 0.45),
        }
        for number, (name, share) in enumerate(areas.items())
    ]  # fmt: skip
    lines = {"BC, in evaluation": "actor/bc_eval", "BC, in TD targets": "actor/bootstrap_bc",
             "the better one, exploring": "actor/greedy"}  # fmt: skip
    for number, (name, key) in enumerate(lines.items()):
        if (share := _mean_curve(runs, key)) is not None:
            style = {"color": plot_style.BLACK, "dash": plot_style.DASHES[number]}
            data.append(line(name, *share, number=0, line=style, mode="lines"))
    axis = {"title": {"text": "share of steps (0 to 1)"}, "range": [0, 1], "automargin": True}
    return figure(data, plot_style.ENV_STEPS, "", yaxis=axis)


def value_over_time(groups: Groups) -> Figure | None:
    """Q at the start of evaluation episodes, and the discounted return that it predicts: means over
    a group's runs."""
    data = []
    for number, (group, runs) in enumerate(groups.items()):
        parts = {
            "Q": (_mean_curve(runs, "score/start_q"), "solid"),
            "return": (_mean_curve(runs, "score/discounted_return"), "dot"),
        }
        for what, (found, dash) in parts.items():
            if found is not None and all(mean is not None for mean, _ in parts.values()):
                name = f"{group_label(group, groups)}, {what}"
                data.append(line(name, *found, number, line={"dash": dash}))
    return figure(data, plot_style.ENV_STEPS, "discounted reward") if data else None


def value_against_return(groups: Groups) -> Figure | None:
    """Q against the discounted return: one point per evaluation of training, and one per episode
    of evaluations in files; on the diagonal the prediction is right."""
    data: list[dict[str, Any]] = []
    for number, (group, runs) in enumerate(groups.items()):
        points = [point for run in runs for point in _evaluated(run)]
        if points:
            name = f"{group_label(group, groups)}: evaluations"
            returns, expected, texts = zip(*points, strict=True)
            data.append(_points(name, returns, expected, texts, number))
        for run in runs:
            for played in (p for p in run.played if p.forecasts):
                expected, returns = zip(*played.forecasts, strict=True)
                seeds = [f"seed {seed}" for seed in played.seeds]
                name = f"{run.name}: episodes of {played.file}"
                data.append(_points(name, returns, expected, seeds, number, "circle-open"))
    if not data:
        return None
    every = [value for points in data for axis in "xy" for value in points[axis]]
    ends = [min(every), max(every)]
    diagonal = {"color": plot_style.GREY, "dash": "dash", "width": 1}
    data.append({
        "type": "scatter", "mode": "lines", "name": "Q = return", "x": ends, "y": ends,
        "line": diagonal, "hoverinfo": "skip",
    })  # fmt: skip
    x = "discounted return (discounted reward)"
    return figure(data, x, "Q at the start (discounted reward)")


def _evaluated(run: Run) -> list[tuple[float, float, str]]:
    """(discounted return, Q at the start, what the point is) of each evaluation in training."""
    keys = "score/discounted_return", "score/start_q"
    return [
        (float(record[keys[0]]), float(record[keys[1]]), f"{run.name}, step {record['step']}")
        for record in run.records
        if all(is_number(record.get(key)) for key in keys)
    ]


def _points(
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    texts: Sequence[str],
    number: int,
    symbol: str = "circle",
) -> dict[str, Any]:
    marker = {"color": plot_style.colour(number), "symbol": symbol, "size": 8, "opacity": 0.8}
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": list(x), "y": list(y),
        "text": list(texts), "marker": marker,
    }  # fmt: skip


def time_shares(runs: Sequence[Run]) -> Figure | None:
    """The parts of each run's measured time, until its last record."""
    shares = {run.name: {k: v for k in run.last if k.startswith("time/")
                         and (v := run.newest(k)) is not None} for run in runs}  # fmt: skip
    shares = {name: parts for name, parts in shares.items() if parts}
    if not shares:
        return None
    totals: dict[str, float] = {}
    for parts in shares.values():
        for key, share in parts.items():
            totals[key] = totals.get(key, 0.0) + share
    names = list(shares)[::-1]  # plotly draws from below
    data = [
        {
            "type": "bar", "orientation": "h", "name": key.removeprefix("time/"), "y": names,
            "x": [shares[name].get(key, 0.0) for name in names],
            "marker": {
                "color": plot_style.colour(number),
                "pattern": {"shape": ["", "/", "."][number // len(plot_style.COLOURS) % 3]},
            },
        }
        for number, key in enumerate(sorted(totals, key=lambda k: -totals[k]))
    ]  # fmt: skip
    height = 140 + 34 * len(names)
    axis = {"title": {"text": "share of time (0 to 1)"}, "range": [0, 1], "automargin": True}
    return figure(data, "", "", barmode="stack", height=height, xaxis=axis)
