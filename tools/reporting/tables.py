"""The report's tables, as rows of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common_utils.progress import format_seconds
from evaluate.protocol import Games
from evaluate.stats import wilson
from tools.reporting.curves import Band, is_number
from tools.reporting.runs import Run


class Table(NamedTuple):
    """A head and rows of equally many cells; columns in ``numbers`` are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


def shown(value: Any) -> str:
    """A number with up to four digits, other values as they are; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4g}"


def summary(runs: Sequence[Run]) -> Table:
    """One row per run: what it is, how far it came, how well it plays."""
    head = ("run", "method", "task", "seed", "steps", "of", "time", "best score", "newest score")
    rows = []
    for run in runs:
        curve = run.curve("score/score")
        best = None if curve is None else float(curve.values.max())
        wall = _number(run.last.get("wall"))
        spent = "" if wall is None else format_seconds(wall)
        planned = f"{run.steps_planned:,}" if run.steps_planned else "?"
        scores = shown(best), shown(run.newest("score/score"))
        what = run.name, run.method, run.task or "?", run.seed
        rows.append((*what, f"{run.last['step']:,}", planned, spent, *scores))
    return Table(head, rows, (3, 4, 5, 6, 7, 8))


EVALUATIONS = ("run", "weights", "step", "success", "95 % interval", "episodes", "episode seeds",
               "mean return")  # fmt: skip


def evaluations(runs: Sequence[Run]) -> Table:
    """Each run's evaluations that count: best and newest of training, long ones, those in files."""
    rows = [row for run in runs for row in (*_in_training(run), *_long(run), *_in_files(run))]
    return Table(EVALUATIONS, rows, (2, 3, 5, 7))


def _row(
    run: Run, what: str, step: str, success: float | None, games: Games, mean: float | None
) -> tuple[str, ...]:
    """``success``: the share of successful games; its interval needs their number."""
    interval, seeds = "", ""
    if games.num:
        seeds = f"{games.seed} to {games.seed + games.num - 1}" if games.seed >= 0 else ""
        if success is not None and abs(success * games.num - round(success * games.num)) < 1e-6:
            rate = wilson(round(success * games.num), games.num)
            interval = f"{rate.low:.3f} to {rate.high:.3f}"
    rate_text = "" if success is None else f"{success:.3f}"
    return (run.name, what, step, rate_text, interval, str(games.num or "?"), seeds, shown(mean))


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _configured(run: Run, field: str) -> int:
    value = run.config.get(field)
    return value if isinstance(value, int) and value > 0 else 0


def _in_training(run: Run) -> list[tuple[str, ...]]:
    """The newest evaluation, and the best one if that is another."""
    scored = [r for r in run.records if is_number(r.get("score/score"))]
    if not scored:
        return []
    newest = scored[-1]
    best = max(scored, key=lambda r: r["score/score"])
    chosen = [("newest of training", newest)]
    if best is not newest:
        chosen.insert(0, ("best of training", best))
    rows = []
    for what, record in chosen:
        success = record.get("score/success")
        if success is None and not run.protocol.by_return:  # of earlier versions
            success = record["score/score"]
        games = Games(_first_seed(run, record), _configured(run, "num_eval_episode"))
        mean = _number(record.get("score/return"))
        rows.append(_row(run, what, f"{record['step']:,}", _number(success), games, mean))
    return rows


def _first_seed(run: Run, record: dict[str, Any]) -> int:
    """Of the record's evaluation; -1 if unknown."""
    seed, epoch = record.get("eval/seed"), record.get("other/epoch")
    if isinstance(seed, int):
        return seed
    num = _configured(run, "num_eval_episode")
    if run.kind == "bc" and isinstance(epoch, int) and epoch > 0 and num:
        return run.protocol.after_epoch(epoch - 1, num).seed
    return -1


def _long(run: Run) -> list[tuple[str, ...]]:
    """A BC run's long evaluations of its newest and its best weights."""
    names = {"score/last_ckpt_score": "newest, long evaluation",
             "score/best_ckpt_score": "best, long evaluation"}  # fmt: skip
    rows = []
    for key, what in names.items():
        if (score := run.newest(key)) is None:
            continue
        games = run.protocol.of_best(_configured(run, "num_final_episode"))
        success, mean = (None, score) if run.protocol.by_return else (score, None)
        rows.append(_row(run, what, f"{run.last['step']:,}", success, games, mean))
    return rows


def _in_files(run: Run) -> list[tuple[str, ...]]:
    rows = []
    for played in run.played:
        num = len(played.seeds)
        first, whole = min(played.seeds), max(played.seeds) - min(played.seeds) + 1 == num
        games = Games(first if whole else -1, num)
        what = f"{played.weight} ({played.file})"
        mean = sum(played.returns) / num
        rows.append(_row(run, what, "", sum(played.successes) / num, games, mean))
    return rows


def value_errors(runs: Sequence[Run]) -> Table:
    """How far Q at the start is from the discounted return, in the newest evaluation."""
    head = ("run", "step", "Q at the start", "discounted return", "Q minus return")
    rows = []
    for run in runs:
        q, got = run.newest("score/start_q"), run.newest("score/discounted_return")
        if q is not None and got is not None:
            step = f"{run.last['step']:,}"
            rows.append((run.name, step, shown(q), shown(got), f"{q - got:+.4g}"))
    return Table(head, rows, (1, 2, 3, 4))


FACTS = {
    "time": "started", "command": "command", "program": "version", "commit": "commit",
    "python": "Python", "system": "system", "cpu": "CPU", "cores": "cores", "gpu": "GPU",
}  # fmt: skip


def environment(runs: Sequence[Run]) -> Table:
    """One column per run: where and by what it was first started."""
    with_info = [run for run in runs if run.starts]
    rows: list[list[str]] = []
    for key, name in FACTS.items():
        rows.append([name, *(shown(run.starts[0].get(key)) or "none" for run in with_info)])
    for section in ("packages", "variables"):
        found = [_mapping(run.starts[0].get(section)) for run in with_info]
        for name in dict.fromkeys(k for facts in found for k in facts):
            rows.append([name, *(facts.get(name, "none") for facts in found)])
    rows.append(["starts", *(_starts(run) for run in with_info)])
    return Table(["", *(run.name for run in with_info)], rows)


def _mapping(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _starts(run: Run) -> str:
    """How often it was started, and whether anything was different then."""
    if len(run.starts) == 1:
        return "1"
    keys = ("commit", "cpu", "gpu", "python", "packages")
    first = {key: run.starts[0].get(key) for key in keys}
    changed = [k for k in keys if any(start.get(k) != first[k] for start in run.starts)]
    return f"{len(run.starts)}" + (f", with another {', '.join(changed)}" if changed else "")


def changed_fields(run: Run) -> Table:
    """The fields that differ from the program's defaults."""
    rows = [
        (name, _text(run.defaults[name]), _text(value))
        for name, value in run.config.items()
        if name in run.defaults and run.defaults[name] != value
    ]
    return Table(("field", "default", "this run"), rows)


def all_fields(run: Run) -> Table:
    """The whole configuration."""
    return Table(("field", "value"), [(name, _text(v)) for name, v in run.config.items()])


def preset_changes(run: Run) -> tuple[str, list[str]] | None:
    """(The configuration file that the run was started with, what differs from it); None if that
    was not recorded."""
    if not run.starts:
        return None
    preset, changes = run.starts[0].get("preset"), run.starts[0].get("changes")
    listed = [str(line) for line in changes] if isinstance(changes, list) else []
    return str(preset or ""), listed


def _text(value: Any) -> str:
    return '""' if value == "" else str(value)


def final(
    groups: Mapping[tuple[str, str, str], Sequence[Run]],
    found: Mapping[tuple[str, str, str], Band],
) -> Table:
    """Each group at the last step that all its runs have reached."""
    rows = []
    for group in found:
        band, runs = found[group], groups[group]
        interval = f"{band.low[-1]:.4g} to {band.high[-1]:.4g}" if band.runs > 1 else ""
        row = (runs[0].group[2], runs[0].task or "?", str(band.runs), f"{band.steps[-1]:,.0f}")
        rows.append((*row, f"{band.mean[-1]:.4g}", f"{band.iqm[-1]:.4g}", interval))
    head = ("group", "task", "runs", "step", "mean", "IQM", "interval")
    return Table(head, rows, (2, 3, 4, 5))
