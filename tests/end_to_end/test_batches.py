"""Large sets against a real server: few task runs, and all that is said of a step as if it had one of its own."""

from __future__ import annotations

import signal

from commands import Qo
from prefect_api import states, task_runs_by_name

COUNT = 240
WRITES = [
    {"id": f"w{number}", "op": "file.write", "with": {"path": f"f{number}", "content": f"{number}\n"}}
    for number in range(COUNT)
]


def test_many_steps_are_few_task_runs_and_every_step_is_told(qo: Qo) -> None:
    said = qo("run", qo.set(*WRITES), "--json").exits(0)
    document = said.json
    assert [step["id"] for step in document["steps"]] == [f"w{number}" for number in range(COUNT)]
    assert {(step["status"], step["attempts"]) for step in document["steps"]} == {("succeeded", 1)}
    assert all(step["outputs"]["sha256"] for step in document["steps"])
    assert document["diff"]["files"] == COUNT
    assert len(qo.files) == COUNT
    runs = task_runs_by_name(document["flow_run_id"], 2)
    assert len(runs) <= COUNT / 8
    assert all(name.partition(" ")[0] in {step["id"] for step in WRITES} for name in runs)
    assert qo("show", "--json").json == document
    assert qo("logs").out.count("step_finished succeeded ") == COUNT
    qo("rollback", document["run_id"]).exits(0)
    assert qo.files == {}


def test_a_large_run_that_dies_goes_on(qo: Qo) -> None:
    gate = {"id": "gate", "op": "script.run", "with": {"shell": "until test -e ../open; do sleep 0.1; done"}}
    early = WRITES[: COUNT // 2]
    first = [*early, {**WRITES[COUNT // 2], "needs": [step["id"] for step in early]}]
    rest = [{**step, "needs": ["gate"]} for step in WRITES[COUNT // 2 + 1 :]]
    gate |= {"needs": [step["id"] for step in first], "reads": [], "writes": []}
    running = qo.begins("run", qo.set(*first, gate, *rest)).until(f"✓ w{COUNT // 2}")
    running.signal(signal.SIGKILL).ended()
    (qo.work.parent / "open").touch()
    document = qo("resume", "--json").exits(0).json
    assert (document["status"], document["diff"]["files"]) == ("committed", COUNT)
    assert len(qo.files) == COUNT
    assert qo("logs").out.count("step_finished succeeded w0\n") == 1
    named = states(document["flow_run_id"], 4)
    assert "Cached" in {state for several in named.values() for state in several}
