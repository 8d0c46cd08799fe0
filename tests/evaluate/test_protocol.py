"""How suites are evaluated: the published protocols, and that nothing else compares suites."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from env.suites import SUITES
from evaluate.protocol import PROTOCOLS, Games, Protocol, protocol_of
from evaluate.rollout import EvalResult

REPO = Path(__file__).resolve().parents[2]


def test_rows_are_those_of_suites_that_differ_from_the_defaults():
    assert PROTOCOLS.keys() <= SUITES.keys()
    assert Protocol() not in PROTOCOLS.values()


# first seeds of BC evaluations of 50 episodes after epochs 0, 1 and 7; whether a long one follows
# epochs 0, 4 and the last of 8; best checkpoints kept; first seed of RL's evaluation at step 2000,
# one being every 1000 steps, 10 episodes each
PUBLISHED = {
    "robosuite": ([1, 51, 351], [False, True, True], 2, 20),
    "gymnasium": ([1, 51, 351], [False, True, True], 2, 20),
    "metaworld": ([0, 1991991991 % 9997, 7 * 1991991991 % 9997], [False] * 3, 3, 2000),
    "particle": ([0, 0, 0], [False, True, True], 2, 20),
    "block_pushing": ([0, 0, 0], [False, True, True], 2, 20),
    "d4rl": ([0, 0, 0], [False, True, True], 2, 20),
    "": ([1, 51, 351], [False, True, True], 2, 20),
}


@pytest.mark.parametrize("suite", PUBLISHED)
def test_published_protocols(suite):
    seeds, long, topk, rl_seed = PUBLISHED[suite]
    protocol = protocol_of(suite)
    assert [protocol.after_epoch(e, 50) for e in (0, 1, 7)] == [Games(s, 50) for s in seeds]
    games = [protocol.long_after_epoch(e, 8, 100) for e in (0, 4, 7)]
    assert games == [Games(1, 100) if due else None for due in long]
    assert protocol.long_after_epoch(7, 8, 0) is None, "num_final_episode 0: none at all"
    assert protocol.of_best(100) == Games(1, 100)
    assert protocol.topk == topk
    assert protocol.after_step(2000, 1000, 10) == Games(rl_seed, 10)
    assert protocol.after_pretraining(300, 10) == Games(300, 10)


def test_the_score_is_success_but_the_return_on_d4rl():
    scores, wins = np.array([1.0, 4.0]), np.array([True, False])
    result = EvalResult(scores, wins, np.array([3, 3]), np.array([0, 1]), {"goal": scores})
    both = {"score/success": 0.5, "score/return": 2.5, "score/goal": 2.5}
    for suite in SUITES:
        score = 2.5 if suite == "d4rl" else 0.5
        assert protocol_of(suite).score(result) == score
        assert protocol_of(suite).report(result) == {"score/score": score, **both}


def compares_suites(source: str) -> list[int]:
    """Lines on which something called suite is compared with a suite's name or a list of some.

    ``startswith`` with a suite's name is such a comparison whatever it is called on.
    """
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            (".startswith", ".endswith")
        ):
            begins = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            lines += [node.lineno] * bool(begins & SUITES.keys())
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        constants = {n.value for s in sides for n in ast.walk(s) if isinstance(n, ast.Constant)}
        names = [ast.unparse(s) for s in sides]
        lists = any(name.endswith("_SUITES") or name == "SUITE" for name in names)
        if any("suite" in name for name in names) and (lists or constants & SUITES.keys()):
            lines.append(node.lineno)
    return lines


def test_the_check_finds_comparisons():
    assert compares_suites('if cfg.suite == "d4rl": pass') == [1]
    assert compares_suites('x = 1 if suite_of(task) != "particle" else 2') == [1]
    assert compares_suites('x = self.env.suite in ("particle", "robosuite")') == [1]
    assert compares_suites("x = cfg.env.suite in IBC_SUITES") == [1]
    assert compares_suites('x = 1 if task.lower().startswith("particle") else 2') == [1]
    assert compares_suites('if kind == "metaworld" or spec.suite == other.suite: pass') == []


def test_suites_are_compared_nowhere_else():
    found = []
    for path in sorted(REPO.rglob("*.py")):
        room = path.relative_to(REPO).parts[0]
        # benchmarks measure cases whose names begin with a suite's
        if room in ("env", "tests", "benchmarks") or room[0] == "." or path.name == "protocol.py":
            continue
        found += [f"{path.relative_to(REPO)}:{n}" for n in compares_suites(path.read_text())]
    assert found == []
