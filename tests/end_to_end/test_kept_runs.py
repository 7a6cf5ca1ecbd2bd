"""What becomes of a run whose before-images are gone."""

from __future__ import annotations

from commands import NOTE, SHIP, Qo, script
from without_prefect import alone

from quantum_orchestrator.blocks.home import home

pytestmark = alone


def test_the_limits_hold_at_the_end_of_each_run(qo: Qo) -> None:
    (home() / "policy.toml").write_text("[journal]\nkeep_runs = 1\n")
    try:
        for number in range(4):
            step = {**SHIP, "with": {"path": "shipped.txt", "content": f"{number}\n"}}
            qo("run", qo.set(step)).exits(0)
        runs = [run["run_id"] for run in qo("history", "--json").json["runs"]]
        qo("logs", runs[0]).exits(0).prints("the journal forgot the before-images of")
        qo("rollback", runs[0]).exits(0)
        qo("rollback", runs[-1]).exits(3).says("its before-images were removed by `qo gc` on ")
        qo("diff", runs[-1]).exits(3).says("were removed by `qo gc` on ")
        qo("show", runs[-1]).exits(0).prints("committed")
    finally:
        (home() / "policy.toml").unlink()


def test_one_that_was_undone_may_run_again_and_one_that_was_kept_may_not_go_on(qo: Qo) -> None:
    ready = script("test -e ../ready", step="need")
    qo("run", qo.set(NOTE, ready)).exits(1)
    qo("run", qo.set(NOTE, ready), "--on-failure", "keep").exits(1)
    kept, undone = (run["run_id"] for run in qo("history", "--json").json["runs"])
    qo("gc", "--keep", "0").exits(0)
    (qo.work.parent / "ready").touch()
    (qo.work / "note.txt").unlink()
    qo("resume", kept).exits(4).says("cannot go on: its before-images were removed by `qo gc`")
    qo("resume", undone).exits(0)
    qo("rollback", undone).exits(0)
    assert qo.files == {}
