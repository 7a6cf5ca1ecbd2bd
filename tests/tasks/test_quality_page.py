"""What docs/quality.md says is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from quantum_orchestrator.tasks import debt
from quantum_orchestrator.tasks.clones import LEAST_LINES
from tests.tasks.in_memory import run, workspace

PAGE = (Path(__file__).parents[2] / "docs/quality.md").read_text()


def rows(after: str) -> list[list[str]]:
    """The body of the first table after a heading."""
    lines = PAGE.split(after, 1)[1].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| ---"))
    found = []
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def test_the_worked_example_is_right() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    outputs = run("quality.score", workspace({"prices.py": code}))
    table = [
        [str(each.line), f"`{each.rule}` {each.message}", str(each.minutes), f"{each.points:g}"]
        for each in outputs.findings
    ]
    assert rows("### A worked example") == table
    assert f"{outputs.debt_minutes} minutes of debt ÷ (30 × {outputs.lines}) is" in PAGE
    assert f"**{outputs.score:g}**" in PAGE


def test_the_table_has_every_rule_with_its_cost() -> None:
    costs = {name.strip("`"): minutes for name, minutes, _ in rows("### What counts")}
    assert {name: costs[name] for name in debt.MINUTES} == {name: str(cost) for name, cost in debt.MINUTES.items()}
    assert costs.keys() - debt.MINUTES.keys() == {"complexity", "cognitive-complexity", "duplication"}
    for rule, base, step, limit in (
        ("complexity", debt.COMPLEXITY_BASE, debt.COMPLEXITY_STEP, debt.COMPLEXITY_LIMIT),
        ("cognitive-complexity", debt.COGNITIVE_BASE, debt.COGNITIVE_STEP, debt.COGNITIVE_LIMIT),
    ):
        assert costs[rule] == f"{base}, and {step} for each point above {limit}"
    wanted = f"{debt.DUPLICATION_BASE}, and {debt.DUPLICATION_STEP} for each line; {LEAST_LINES} lines or more"
    assert costs["duplication"] == wanted
    assert f"this rule set ({debt.RULE_SET})" in PAGE


def test_the_curve_is_the_one_of_the_page() -> None:
    (scores,) = rows("4. **Score.**")
    assert [float(each) for each in scores[1:]] == [score for _, score in debt.CURVE]
