"""`paceline plan` of a language topology."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from paceline.launch.language.plan import language_plan, show_language_plan
from paceline.pipeline.load import load_topology
from paceline.pipeline.speculation.formula import Costs, pipelined, sequential

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("name", "runs"), [("speculate-2", 1), ("speculate-3", 2)])
def test_the_plan_names_all_ranks_and_its_speeds_are_the_formula_s_best(name: str, runs: int) -> None:
    sets = ["stages.draft.ms=2", "stages.verify.ms=10"]
    plan = language_plan(load_topology(ROOT / "topologies" / f"{name}.yaml", sets))
    assert plan["layer_runs"] == runs and len(plan["ranks"]) == runs + 1
    assert plan["draft_cost"] == 0.2
    costs = Costs(draft=0.2, slots=runs)
    for row in plan["speedup"]:
        chance = [row["acceptance"]]
        assert row["in_turns"] == round(max(sequential(chance, g, costs) for g in range(1, 17)), 3)
        assert row["pipelined"] == round(max(pipelined(chance, g, costs) for g in range(1, 17)), 3)
        assert row["hedged"] >= row["pipelined"]
    assert [row["hedged"] for row in plan["speedup"]] == sorted(row["hedged"] for row in plan["speedup"])


def test_it_says_which_proof_holds_and_what_a_fault_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["speculation.coupling=rejection", "speculation.depth=2", "speculation.hedge=0"]
    topology = load_topology(ROOT / "topologies" / "speculate-3.yaml", sets)
    plan = language_plan(topology)
    assert (plan["live"], plan["deadlock"]) == (True, None)
    assert "coupling rejection, policy hedge, depth 2, 3 window(s) at the verifiers" in plan["proof"]
    # A drafter that keeps its windows: with its verifier's patience a run ends all the same, with a bad one it may not.
    monkeypatch.setattr("paceline.pipeline.speculation.verify_scheduler.VerifyScheduler._plain_due", lambda *_: False)
    plan = language_plan(topology)
    assert (plan["live"], plan["proof"]) == (False, None)
    assert "nothing can happen, and a session is not over" in plan["deadlock"]


def test_it_is_printed_for_people() -> None:
    out = io.StringIO()
    plan = language_plan(load_topology(ROOT / "topologies" / "speculate-3.yaml"))
    show_language_plan(plan, Console(file=out, width=120))
    text = out.getvalue()
    for name in plan["ranks"].values():
        assert name in text
    assert "0.9" in text and "hedged" in text
