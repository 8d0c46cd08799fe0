"""A report of real runs, loaded in a real browser: what it draws is what the runs logged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_utils.errors import run_program
from common_utils.records import read_metrics
from evaluate import eval as evaluation
from evaluate.stats import wilson
from evaluate.video import write_video
from tests import chromium
from tests.fuzz import folders
from tools import report
from tools.reporting.runs import read_run, unique_names

READY = "document.documentElement?.dataset.ready"
HOSTILE = "<img src=x onerror=hacked=1>&_seed1"  # a folder's name
FRAMES, FPS = 30, 10


def write_records(run: Path, records: list[dict[str, Any]]) -> None:
    with open(run / "metrics.jsonl", "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def scored(run: Path, scores: list[float]) -> None:
    """Give a run's evaluations these scores, as if it had learned."""
    records = read_metrics(run / "metrics.jsonl")
    evaluated = [record for record in records if "score/score" in record]
    for record, score in zip(evaluated, scores, strict=True):
        record["score/score"] = record["score/success"] = score
    write_records(run, records)


@pytest.fixture(scope="module")
def exps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of an IBRL run, a BC run, a run whose name attacks the page, and no run."""
    folder = tmp_path_factory.mktemp("exps")
    for name, kind in {"ibrl_seed1": "rl", "ibrl_seed2": "rl", "bc": "bc", HOSTILE: "rl"}.items():
        shutil.copytree(folders.whole(kind), folder / name)
    scored(folder / "ibrl_seed1", [0.0, 1.0])
    scored(folder / "ibrl_seed2", [0.0, 0.0])
    frames = [np.full((48, 64, 3), 8 * i, np.uint8) for i in range(FRAMES)]
    write_video(folder / "ibrl_seed1" / "videos" / "seed7_success.mp4", frames, FPS)
    weight, out = folder / "ibrl_seed1" / "model0.pt", folder / "ibrl_seed1" / "evaluation.json"
    options = ["--num_game", "3", "--seed", "7", "--mp", "0", "--device", "cpu"]
    assert evaluation.main(["--weight", str(weight), *options, "--out", str(out)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(exps: Path) -> Path:
    out = exps / "report.html"
    assert report.main([str(exps), "--out", str(out), "--bootstrap", "200"]) == 0
    return out


@pytest.fixture(scope="module")
def tab(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.open(page.absolute().as_uri(), READY)
        yield tab


def lines(tab: chromium.Page, plot: str) -> dict[str, dict[str, Any]]:
    """What a figure has drawn: its lines by name."""
    script = (
        f"document.getElementById('plot-{plot}')._fullData.map(t => "
        "({name: t.name, x: Array.from(t.x), y: Array.from(t.y), width: t.line?.width}))"
    )
    return {trace["name"]: trace for trace in tab.value(script)}


def rows(tab: chromium.Page, table: str) -> list[list[str]]:
    """The cells of a table's body."""
    script = (
        f"[...document.querySelectorAll('#table-{table} tbody tr')]"
        ".map(r => [...r.cells].map(c => c.textContent))"
    )
    return tab.value(script)


def metric(run: Path, key: str) -> tuple[list[float], list[float]]:
    found = [(r["step"], r[key]) for r in read_metrics(run / "metrics.jsonl") if key in r]
    return [step for step, _ in found], [value for _, value in found]


def test_nothing_fails_and_nothing_is_asked_for(tab: chromium.Page, page: Path) -> None:
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [page.as_uri()]
    assert tab.value("Plotly.version").split(".")[0].isdigit()
    assert page.read_text().count("plotly.js v") == 1


def test_curves_are_those_of_the_runs(tab: chromium.Page, exps: Path) -> None:
    drawn = lines(tab, "curve-rl")
    for name in ("ibrl_seed1", "ibrl_seed2"):
        assert (drawn[name]["x"], drawn[name]["y"]) == metric(exps / name, "score/score")
    # of two values the interquartile mean is the mean; redrawing them reaches both
    assert drawn["ibrl (IQM of 2 runs)"]["y"] == [0.0, 0.5]
    assert sorted(set(drawn["ibrl, interval"]["y"])) == [0.0, 1.0]
    assert ["ibrl", "particle/PARTICLE_2d", "2", "12", "0.5", "0.5", "0 to 1"] in rows(
        tab, "final-rl"
    )
    assert (lines(tab, "curve-bc")["bc (1 run)"]["y"]) == metric(exps / "bc", "score/score")[1]


def test_the_candidates_shares_are_the_logged_ones(tab: chromium.Page, exps: Path) -> None:
    shares = [metric(exps / f"ibrl_seed{s}", "actor/bc_train")[1] for s in (1, 2)]
    drawn = next(
        found for number in range(2) if len(found := lines(tab, f"candidates-{number}")) >= 2
    )
    bc = drawn["BC action, exploring"]["y"]
    np.testing.assert_allclose(bc, np.mean(shares, axis=0))
    np.testing.assert_allclose(np.add(drawn["RL action, exploring"]["y"], bc), 1)
    evaluated = metric(exps / "ibrl_seed1", "actor/bc_eval")[1]
    np.testing.assert_allclose(drawn["BC, in evaluation"]["y"], evaluated)


def test_q_is_drawn_against_the_discounted_return(tab: chromium.Page, exps: Path) -> None:
    run, keys = exps / "ibrl_seed1", ("score/start_q", "score/discounted_return")
    q, got = ([metric(exps / f"ibrl_seed{s}", key)[1] for s in (1, 2)] for key in keys)
    over_time = lines(tab, "value-time")
    np.testing.assert_allclose(over_time["ibrl, Q"]["y"], np.mean(q, axis=0))
    np.testing.assert_allclose(over_time["ibrl, return"]["y"], np.mean(got, axis=0))
    points = lines(tab, "value-return")
    assert points["ibrl: evaluations"]["x"] == [*got[0], *got[1]]
    assert points["ibrl: evaluations"]["y"] == [*q[0], *q[1]]
    episodes = json.loads((run / "evaluation.json").read_text())["episodes"]
    assert [e["seed"] for e in episodes] == [7, 8, 9]
    of_file = points["ibrl_seed1: episodes of evaluation.json"]
    assert of_file["x"] == [e["discounted_return"] for e in episodes]
    assert of_file["y"] == [e["start_q"] for e in episodes]


def test_evaluations_have_their_episodes_and_intervals(tab: chromium.Page, exps: Path) -> None:
    table = {(row[0], row[1]): row[2:] for row in rows(tab, "evaluations")}
    records = read_metrics(exps / "ibrl_seed1" / "metrics.jsonl")
    one = wilson(1, 1)
    assert table["ibrl_seed1", "newest of training"][:5] == [
        "12", "1.000", f"{one.low:.3f} to {one.high:.3f}", "1", f"{records[-1]['eval/seed']} to "
        f"{records[-1]['eval/seed']}",
    ]  # fmt: skip
    fresh = table["ibrl_seed1", "model0.pt (evaluation.json)"]
    episodes = json.loads((exps / "ibrl_seed1" / "evaluation.json").read_text())["episodes"]
    wins = sum(e["success"] for e in episodes)
    rate = wilson(wins, 3)
    assert fresh[1:5] == [f"{wins / 3:.3f}", f"{rate.low:.3f} to {rate.high:.3f}", "3", "7 to 9"]
    long = read_metrics(exps / "bc" / "metrics.jsonl")[-1]["score/best_ckpt_score"]
    assert table["bc", "best, long evaluation"][1] == f"{long:.3f}"
    assert table["bc", "best, long evaluation"][4] == "1 to 1"


def test_time_configuration_and_environment(tab: chromium.Page, exps: Path) -> None:
    parts = tab.value(
        "document.getElementById('plot-time')._fullData.map(t => [t.name, t.x[t.y.indexOf("
        "'ibrl_seed1')]])"
    )
    last = read_metrics(exps / "ibrl_seed1" / "metrics.jsonl")[-1]
    logged = {k.removeprefix("time/"): v for k, v in last.items() if k.startswith("time/")}
    assert dict(parts) == logged
    text = tab.value("document.body.innerText")
    assert "num_train_step: 200000 -> 12" in text
    assert "No shares of time logged (BC runs log none): bc." in text
    facts = {row[0]: row[1:] for row in rows(tab, "environment")}
    assert facts["numpy"] == [np.__version__] * 4
    assert len(facts["commit"][0].split()[0]) in (40, 4)  # a hash, or none


def test_every_metric_can_be_drawn(tab: chromium.Page, exps: Path) -> None:
    for key in ("train/critic_loss", "train/loss", "other/speed"):
        tab.value(
            f"document.getElementById('metric').value = '{key}',"
            "document.getElementById('metric').dispatchEvent(new Event('change')), 1"
        )
        script = "document.getElementById('explorer').data.map(t => [t.name, t.x, t.y])"
        drawn = {name: (x, y) for name, x, y in tab.value(script)}
        names = [n for n in ("ibrl_seed1", "ibrl_seed2", "bc") if metric(exps / n, key)[0]]
        assert names and all(drawn[n] == metric(exps / n, key) for n in names)
        assert len([n for n in drawn if "onerror" not in n]) == len(names)


def test_videos_play(tab: chromium.Page) -> None:
    caption = tab.value("document.querySelector('.videos figcaption').textContent")
    assert caption == "ibrl_seed1: videos/seed7_success.mp4"
    seconds = tab.value(
        "new Promise((done, fail) => { const v = document.querySelector('video');"
        "v.onerror = () => fail(v.error.message); v.onloadedmetadata = () => done(v.duration);"
        "v.load(); })"
    )
    assert seconds == pytest.approx(FRAMES / FPS, abs=0.1)


def test_names_are_text_and_nothing_more(tab: chromium.Page) -> None:
    assert tab.value("window.hacked") is None
    assert tab.value("document.querySelectorAll('img').length") == 0
    assert HOSTILE in [row[0] for row in rows(tab, "runs")]
    drawn = tab.value("document.getElementById('plot-curve-rl').textContent")
    assert "<img src=x onerror=hacked=1>&" in drawn


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_as_wide_as_the_window(
    tab: chromium.Page, page: Path, width: int, tmp_path: Path
) -> None:
    tab.open(page.absolute().as_uri(), READY, width=width)
    assert tab.value("document.documentElement.scrollWidth") == width
    wide = tab.value("[...document.querySelectorAll('.plot')].filter(p => p.scrollWidth > "
                     "p.clientWidth + 1).map(p => p.id)")  # fmt: skip
    assert wide == []
    tab.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


# ---------------------------------------------------------------- what is missing or damaged


def say(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = run_program(report.main, [*args, "--bootstrap", "5"])
    return status, capsys.readouterr().err


def test_folders_that_hold_no_run_have_a_line_each(
    exps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "metrics.jsonl").write_text('{"step": 1, "sc')
    os.mkfifo(tmp_path / "pipe")
    given = [str(tmp_path / name) for name in ("empty", "torn", "pipe", "gone")]
    out = tmp_path / "report.html"
    status, err = say([*given, str(exps / "bc"), "--out", str(out)], capsys)
    assert status == 2
    assert err.splitlines() == [
        f"error: {given[0]}: not a run (it has no metrics.jsonl), expected a run or a folder of "
        "runs",
        f"error: {given[1]}/metrics.jsonl: holds no record, expected those of a run",
        f"error: {given[2]}: not a run (no such folder), expected a run or a folder of runs",
        f"error: {given[3]}: not a run (no such folder), expected a run or a folder of runs",
    ]
    assert "holds no record" in out.read_text()  # in the report too
    out.unlink()
    assert say([given[0], "--out", str(out)], capsys)[0] == 2
    assert not out.exists()


def test_a_file_that_is_no_report_is_kept(
    exps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    status, err = say([str(exps / "bc"), "--out", str(out)], capsys)
    assert status == 2 and "exists and is not a report" in err
    assert out.read_text() == "mine"
    out.unlink()
    for _ in range(2):  # a report is replaced
        assert say([str(exps / "bc"), "--out", str(out)], capsys)[0] == 0


DAMAGES = {
    "no cfg.yaml": (lambda run: (run / "cfg.yaml").unlink(), "cannot read"),
    "a pipe": (lambda run: (run / "cfg.yaml").unlink() or os.mkfifo(run / "cfg.yaml"), "ordinary"),
    "no YAML": (lambda run: (run / "cfg.yaml").write_text("a: ["), "not valid YAML"),
    "foreign YAML": (lambda run: (run / "cfg.yaml").write_text("a: 1"), "neither the config"),
    "unknown field": (
        lambda run: (run / "cfg.yaml").write_text((run / "cfg.yaml").read_text() + "zzz: 1\n"),
        "zzz: unknown field",
    ),
    "no run_info": (lambda run: (run / "run_info.json").write_text("["), "run_info.json"),
    "starts of nothing": (
        lambda run: (run / "run_info.json").write_text('{"starts": [{"packages": 3}, {}]}'),
        "",
    ),
    "evaluation": (lambda run: (run / "evaluation2.json").write_text('{"episodes": [{"seed": 1}]}'),
                   "not an evaluation"),
    "enormous numbers": (
        lambda run: (run / "metrics.jsonl").write_text(
            '{"step": %s}\n{"step": 3, "score/score": Infinity, "other/x": 1e400, "wall": null, '
            '"score/success": NaN}\n{"step": 4, "score/score": true, "time/act": "x"}\n' % (10**400)
        ),
        "no score/score logged",
    ),
    "lines that are no records": (
        lambda run: (run / "metrics.jsonl").write_bytes(b"\0\xff\n[1]\n" +
                                                        (run / "metrics.jsonl").read_bytes()),
        "skipped lines",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["rl", "bc"])
def test_a_damaged_part_is_a_note(
    kind: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(folders.whole(kind), tmp_path / "run"))
    harm, noted = DAMAGES[damage]
    harm(run)
    out = tmp_path / "report.html"
    status, err = say([str(run), "--out", str(out)], capsys)
    assert (status, err) == (0, "")
    assert noted in out.read_text()


def test_videos_up_to_a_size_and_only_videos(
    exps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(exps / "bc", tmp_path / "bc"))
    frames = [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8) for i in range(20)]
    for name in ("a", "b"):
        write_video(run / f"{name}.mp4", frames)
    (run / "c.mp4").write_text("not a video")
    (run / "d.mp4").symlink_to(run / "a.mp4")
    os.mkfifo(run / "e.mp4")
    size = (run / "a.mp4").stat().st_size
    out = tmp_path / "report.html"
    limit = ["--max_video_mb", str(1.5 * size / 1e6)]
    assert say([str(run), "--out", str(out), *limit], capsys) == (0, "")
    text = out.read_text()
    assert text.count("data:video/mp4") == 1
    assert "c.mp4: not an MP4 file" in text and "e.mp4: not an ordinary file" in text
    assert "1 videos do not fit" in text and f"b.mp4 ({size / 1e6:.1f} MB)" in text


def test_figures_are_plotlys(exps: Path) -> None:
    """Every property is one that plotly knows."""
    import plotly.graph_objects as go

    args = report.parser().parse_args([str(exps), "--bootstrap", "5"])
    runs = [read_run(exps / name) for name in ("ibrl_seed1", "ibrl_seed2", "bc", HOSTILE)]
    figures = report.build(runs, [], args)._figures
    assert len(figures) >= 6
    for figure in figures.values():
        go.Figure(figure)


def test_names_are_as_short_as_they_are_different() -> None:
    paths = [Path(p) for p in ("/a/can/seed1", "/a/lift/seed1", "/a/lift/seed2", "/b/lift/seed1")]
    names = unique_names(paths)
    assert [names[p] for p in paths] == ["can/seed1", "a/lift/seed1", "seed2", "b/lift/seed1"]


def test_methods_are_named_as_in_the_papers(exps: Path) -> None:
    run = read_run(exps / "ibrl_seed1")
    assert (run.method, run.task, run.seed) == ("IBRL", "particle/PARTICLE_2d", "1")
    run.config["q_agent.act_method"] = "rl"
    assert run.method == "RL"
    run.config["mix_rl_rate"] = 0.5
    assert run.method == "RLPD"
    run.config["add_bc_loss"] = 1
    assert run.method == "RFT"
    bc = read_run(exps / "bc")
    assert bc.method.startswith("BC (") or bc.method == "BC"
    bc.config["policy_type"] = "ebm"
    assert bc.method == "Implicit BC (ebm)"
