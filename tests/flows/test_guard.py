"""What the policy refuses and asks for, in a run: before a step works, and when it is known what it has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_engine import Bench, shell, write

from quantum_orchestrator.blocks import levels
from quantum_orchestrator.blocks.errors import InvalidInput
from quantum_orchestrator.blocks.levels import Level, why_not
from quantum_orchestrator.blocks.policy import EXECUTED, Given, Policy, Rule
from quantum_orchestrator.blocks.tree import Change, Entry, Kind
from quantum_orchestrator.flows.batching import BATCH_FROM
from quantum_orchestrator.flows.document import Trust
from quantum_orchestrator.flows.faults import InvalidSet
from quantum_orchestrator.flows.guard import Guards, _outside_of
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.plan import build
from quantum_orchestrator.flows.results import EventKind, RunStatus


@pytest.fixture(params=[BATCH_FROM, 2], ids=["single", "batched"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    root, state = tmp_path / "workspace", tmp_path / "state"
    root.mkdir()
    state.mkdir()
    made = Bench(root, state)
    made.batch_from = request.param
    yield made
    made.workspace.close()
    made.journal.close()


def policy(**settings: Any) -> Policy:
    """`paths_deny=["x"]` is `deny` under [paths]."""
    names = ((name.replace("__", ".").replace("_", ".", 1), value) for name, value in settings.items())
    return Policy().given(
        Given(name, tuple(value) if isinstance(value, list) else value, f"[{name}]") for name, value in names
    )


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


ONLY_KNOWN_WHEN_RUN = {"path": "${{ steps.a.outputs.content }}", "content": "x"}


class TestRefusals:
    def test_a_path_that_only_the_run_knows_is_judged_then(self, bench: Bench) -> None:
        (bench.root / "names").write_text("secret/key")
        bench.policy = policy(paths_deny=["secret"])
        read = {"id": "a", "op": "file.read", "with": {"path": "names"}}
        outcome = bench.run(read, {"id": "b", "op": "file.write", "with": ONLY_KNOWN_WHEN_RUN}, write("c", "fine"))
        assert outcome.status is RunStatus.ROLLED_BACK
        assert outcome.error is not None
        assert (outcome.error.kind, outcome.failed_step) == ("PolicyRefused", "b")
        assert outcome.error.message == "the policy refuses path 'secret/key'"
        assert outcome.error.hint == "[paths.deny] names 'secret'"
        assert bench.files() == {"names": "secret/key"}

    def test_what_a_script_has_changed_against_it_is_undone(self, bench: Bench) -> None:
        (bench.root / "kept").write_text("kept")
        bench.policy = policy(paths_deny=["kept"])
        outcome = bench.run(shell("s", "echo more >> kept; echo x > new"))
        assert outcome.error is not None
        assert outcome.error.kind == "PolicyRefused"
        assert bench.files() == {"kept": "kept"}

    def test_a_folder_that_is_made_on_the_way_to_an_allowed_path_is_allowed(self, bench: Bench) -> None:
        bench.policy = policy(paths_allow=["docs/deep/*.md"])
        assert bench.run(write("a", "docs/deep/x.md")).status is RunStatus.COMMITTED
        outcome = bench.run({"id": "m", "op": "file.mkdir", "with": {"path": "docs/other"}}, run_id="r2")
        assert outcome.error is not None
        assert outcome.error.hint.endswith("does not name it")

    def test_gits_own_files_are_the_git_operations_matter(self, bench: Bench) -> None:
        bench.policy = policy(paths_allow=["docs"])
        assert bench.run({"id": "i", "op": "git.init"}).status is RunStatus.COMMITTED

    @pytest.mark.parametrize(
        ("settings", "step"),
        [
            ({"operations_deny": ["file.*"]}, write("a", "x")),
            ({"operations_allow": ["echo"]}, write("a", "x")),
            ({"programs_deny": ["sh"]}, shell("a", "true")),
            ({"programs_deny": ["sh"]}, {"id": "a", "op": "script.run", "with": {"argv": ["/bin/sh", "-c", "true"]}}),
            ({"programs_allow": ["make"]}, {"id": "a", "op": "script.run", "with": {"argv": ["./make"]}}),
            (
                {"http_deny": ["*.example.org"]},
                {"id": "a", "op": "http.request", "with": {"url": "http://A.Example.ORG./"}},
            ),
            ({"http_allow": ["good"]}, {"id": "a", "op": "http.request", "with": {"url": "http://good@evil/"}}),
            ({"sandbox_require": 4}, shell("a", "true")),
        ],
    )
    def test_it_is_refused_when_the_document_is_judged_and_when_it_runs(
        self, bench: Bench, settings: dict[str, Any], step: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(levels, "_why_not_overlay", lambda: "no")
        bench.policy = policy(**settings)
        with pytest.raises(InvalidSet) as caught:
            load_object({"name": "x", "instructions": [step]}, policy=bench.policy)
        assert caught.value.by_policy
        outcome = bench.run(step)
        assert outcome.error is not None
        assert outcome.error.kind == "PolicyRefused"
        assert outcome.error.message in caught.value.message


class TestJudging:
    def test_all_refusals_are_told_at_once_each_at_its_place(self) -> None:
        chosen = policy(operations_deny=["git.push"], paths_deny=["secret"], programs_deny=["curl"], http_deny=["evil"])
        steps = [
            {"id": "a", "op": "git.push"},
            {"id": "b", "op": "file.copy", "with": {"source": "x", "destination": "y"}},
            {"id": "c", "op": "file.write", "with": {"path": "SECRET/x", "content": "${{ run.id }}"}},
            {"id": "d", "op": "script.run", "with": {"argv": ["curl", "x"]}},
            {"id": "e", "op": "http.request", "with": {"url": "https://evil/"}},
            {"id": "f", "op": "call", "with": {"set": {"name": "y", "instructions": [{"id": "g", "op": "git.push"}]}}},
        ]
        with pytest.raises(InvalidSet) as caught:
            load_object({"name": "x", "instructions": steps}, policy=chosen)
        assert [fault.pointer for fault in caught.value.faults] == [
            "/instructions/0/op",
            "/instructions/2/with/path",
            "/instructions/3/with/argv/0",
            "/instructions/4/with/url",
            "/instructions/5/with/set/instructions/0/op",
        ]
        assert caught.value.faults[0].hint == "[operations.deny] names 'git.push'"

    def test_what_is_wrong_anyway_is_told_as_that(self) -> None:
        step = {"id": "c", "op": "file.write", "with": {"path": "secret/x"}}
        with pytest.raises(InvalidSet) as caught:
            load_object({"name": "x", "instructions": [step]}, policy=policy(paths_deny=["secret"]))
        assert [fault.message for fault in caught.value.faults] != []
        assert not caught.value.by_policy

    @pytest.mark.usefixtures("no_namespaces")
    def test_a_set_cannot_raise_its_trust_through_a_call(self) -> None:
        inner = {"name": "in", "trust": "trusted", "instructions": [shell("s", "true")]}
        outer = {"name": "x", "trust": "untrusted", "instructions": [{"id": "c", "op": "call", "with": {"set": inner}}]}
        with pytest.raises(InvalidSet, match="sandbox level 3"):
            load_object(outer)

    def test_an_untrusted_set_gets_the_secrets_and_the_network_that_are_granted(self) -> None:
        raw = {
            "name": "x",
            "secrets": ["ONE", "TWO"],
            "instructions": [
                {"id": "a", "op": "http.request", "with": {"url": "https://example.org/"}, "secrets": ["ONE"]}
            ],
        }
        with pytest.raises(InvalidSet) as caught:
            load_object(raw, trust=Trust.UNTRUSTED, policy=policy(untrusted_secrets=["ONE"]))
        assert {fault.pointer for fault in caught.value.faults} == {"/secrets/1", "/instructions/0/op"}
        granted = policy(untrusted_secrets=["ONE", "TWO"], untrusted_network=True)
        assert load_object(raw, trust=Trust.UNTRUSTED, policy=granted).trust is Trust.UNTRUSTED


@pytest.mark.skipif(bool(why_not(Level.BUBBLEWRAP)), reason=why_not(Level.BUBBLEWRAP))
class TestScriptsOfUntrustedSets:
    def run(self, bench: Bench, *steps: Any, **options: Any) -> Any:
        return bench.run(*steps, trust="untrusted", **options)

    def test_one_that_says_it_changes_nothing_is_not_believed(self, bench: Bench) -> None:
        liar = {**shell("s", "cat input; cat input > made"), "reads": ["nothing"], "writes": [], "cache": True}
        for run, content in (("r1", "1"), ("r2", "2")):
            (bench.root / "input").write_text(content)
            assert self.run(bench, liar, run_id=run).status is RunStatus.COMMITTED
            step = bench.journal.steps(run)["s"]
            assert step.outputs is not None
            assert (step.status, step.outputs["stdout"], step.outputs["changed"]) == ("succeeded", content, ["made"])

    def test_those_of_trusted_sets_run_at_the_level_that_the_policy_prefers(self, bench: Bench) -> None:
        for level in (0, 3):
            bench.policy = policy(sandbox_prefer=level)
            assert bench.run(shell("s", "ls -d /boot /var || true"), run_id=f"r{level}").status is RunStatus.COMMITTED
            outputs = bench.journal.steps(f"r{level}")["s"].outputs
            assert outputs is not None
            assert ("/var" in outputs["stdout"]) is (level == 0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("mkdir -p sub/.git/hooks; echo evil > sub/.git/hooks/pre-commit", "git's own files: sub/.git"),
            ("mkdir -p .git; echo '[core] fsmonitor=evil' > .git/config", "git's own files: .git"),
            ("cp /bin/sh shell; chmod u+s shell", "runs with the rights of its owner: shell"),
        ],
    )
    def test_what_others_would_execute_later_is_refused(self, bench: Bench, text: str, message: str) -> None:
        outcome = self.run(bench, shell("s", text))
        assert outcome.error is not None
        assert message in outcome.error.message
        assert bench.files() == {}

    def test_a_cache_that_it_makes_is_refused_where_it_cannot_be_kept_apart(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(levels, "_why_not_overlay", lambda: "no")
        outcome = self.run(bench, shell("s", "mkdir -p .venv/bin; echo evil > .venv/bin/python; echo x > made"))
        assert outcome.error is not None
        assert "left in caches: .venv" in outcome.error.message
        assert bench.files() == {}

    def test_caches_that_are_there_cannot_be_changed(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        (bench.root / ".venv").mkdir()
        (bench.root / ".venv/python").write_text("good")
        text = "echo evil > .venv/python || rm -r .venv || echo x > made"
        assert self.run(bench, shell("s", text)).status is RunStatus.COMMITTED
        assert bench.files() == {".venv/python": "good"}
        monkeypatch.setattr(levels, "_why_not_overlay", lambda: "no")
        assert self.run(bench, shell("s", text), run_id="r2").status is RunStatus.COMMITTED
        assert bench.files() == {".venv/python": "good", "made": "x\n"}


@pytest.mark.skipif(bool(why_not(Level.OVERLAY)), reason=why_not(Level.OVERLAY))
class TestLayers:
    """What programs write at sandbox level 4 is judged before it is done."""

    def outputs(self, bench: Bench, run_id: str = "r1") -> dict[str, Any]:
        outputs = bench.journal.steps(run_id)["s"].outputs
        assert outputs is not None
        return outputs

    def test_what_a_script_writes_is_done_at_its_end_and_can_be_undone(self, bench: Bench) -> None:
        (bench.root / "old").write_text("old")
        outcome = bench.run(shell("s", "rm old; mkdir new; echo x > new/file"), trust="untrusted")
        assert outcome.status is RunStatus.COMMITTED
        assert bench.files() == {"new/file": "x\n"}
        assert self.outputs(bench)["changed"] == ["new", "new/file", "old"]
        bench.workspace.undo("r1")
        assert bench.files() == {"old": "old"}

    def test_nothing_of_one_that_fails_reaches_the_workspace(self, bench: Bench) -> None:
        before = bench.root.stat().st_mtime_ns
        bench.run(shell("s", "echo x > new; exit 1"), trust="untrusted")
        assert bench.root.stat().st_mtime_ns == before
        assert not list(bench.journal.folder.glob("layer-*"))

    def test_what_its_writes_do_not_name_is_refused(self, bench: Bench) -> None:
        bench.policy = policy(sandbox_prefer=4)
        (bench.root / "kept").write_text("kept")
        outcome = bench.run(shell("s", "mkdir -p out/deep; echo x > out/deep/x; echo y > kept", writes=["out/deep/**"]))
        assert outcome.error is not None
        assert "changed what the step's `writes` do not name: kept" in outcome.error.message
        assert bench.files() == {"kept": "kept"}
        fine = shell("s", "mkdir -p out/deep; echo x > out/deep/x", writes=["out/deep/**"])
        assert bench.run(fine, run_id="r2").status is RunStatus.COMMITTED
        assert bench.files() == {"kept": "kept", "out/deep/x": "x\n"}

    def test_gits_own_files_are_refused_to_trusted_sets_too(self, bench: Bench) -> None:
        bench.policy = policy(sandbox_prefer=4)
        outcome = bench.run(shell("s", "mkdir -p sub/.git; echo x > sub/.git/config"))
        assert outcome.error is not None
        assert "no program changes git's own files: sub/.git" in outcome.error.message
        assert bench.files() == {}

    def test_caches_are_dropped_and_told(self, bench: Bench) -> None:
        outcome = bench.run(shell("s", "mkdir .venv sub; echo evil > .venv/python; mkfifo sub/pipe"), trust="untrusted")
        assert outcome.status is RunStatus.COMMITTED
        assert sorted(path.name for path in bench.root.iterdir()) == ["sub"]
        assert self.outputs(bench)["excluded"] == [".venv"]
        logged = [event.message for event in bench.events if event.kind is EventKind.LOG]
        assert "not kept, as snapshots exclude it: .venv" in logged
        assert "not kept, as its programs have ended: sub/pipe" in logged

    def test_programs_of_tests_are_kept_apart_too(self, bench: Bench) -> None:
        step = {"id": "s", "op": "quality.test", "with": {"argv": ["sh", "-c", "echo x > new; exit 3"]}}
        assert bench.run(step, trust="untrusted").status is RunStatus.ROLLED_BACK
        assert bench.files() == {}


class TestFilesThatAreExecuted:
    def run(self, bench: Bench, *steps: Any, **options: Any) -> Any:
        return bench.run(*steps, trust="untrusted", **options)

    def awaited(self, bench: Bench, step: str = "b") -> Any:
        recorded = bench.journal.steps("r1")[step]
        assert recorded.status == "awaiting_approval"
        assert recorded.outputs is not None
        return recorded.outputs

    def test_the_run_waits_and_says_which_content_it_waits_with(self, bench: Bench) -> None:
        (bench.root / "Makefile").write_text("all:\n")
        outcome = self.run(
            bench, write("a", "fine"), write("b", "Makefile", "all: evil\n"), write("c", "Makefile2", needs=["b"])
        )
        assert (outcome.status, outcome.failed_step) == (RunStatus.AWAITING_APPROVAL, "b")
        about = self.awaited(bench)
        assert (
            f"Makefile changes from sha256 {sha('all:' + chr(10))} to {sha('all: evil' + chr(10))}" in about["message"]
        )
        assert about["files"][0]["path"] == "Makefile"
        assert "-all:\n+all: evil\n" in about["patch"]
        assert bench.files() == {"Makefile": "all:\n", "fine": "new\n"}
        told = [event for event in bench.events if event.kind is EventKind.AWAITING_APPROVAL]
        assert [(event.step, event.op) for event in told] == [("b", "file.write")]

    def test_it_goes_on_when_exactly_that_is_approved(self, bench: Bench) -> None:
        steps = (write("a", "fine"), write("b", "conftest.py"), write("c", "after", needs=["b"]))
        self.run(bench, *steps)
        assert bench.journal.decide("r1", self.awaited(bench)["approval"], approved=True, actor="ada")
        assert self.run(bench, *steps).status is RunStatus.COMMITTED
        assert bench.files() == {"after": "new\n", "conftest.py": "new\n", "fine": "new\n"}

    def test_an_approval_of_one_content_is_none_of_another(self, bench: Bench) -> None:
        (bench.root / "source").write_text("one")
        copy = {"id": "b", "op": "file.copy", "with": {"source": "source", "destination": "setup.py"}}
        self.run(bench, copy, write("z", "z"))
        first = self.awaited(bench)["approval"]
        bench.journal.decide("r1", first, approved=True, actor="ada")
        (bench.root / "source").write_text("two")
        assert self.run(bench, copy, write("z", "z")).status is RunStatus.AWAITING_APPROVAL
        assert self.awaited(bench)["approval"] != first
        assert "setup.py" not in bench.files()

    def test_a_rejected_one_undoes_the_run(self, bench: Bench) -> None:
        steps = (write("a", "fine"), write("b", "conftest.py", needs=["a"]))
        self.run(bench, *steps)
        bench.journal.decide("r1", self.awaited(bench)["approval"], approved=False, actor="ada")
        outcome = self.run(bench, *steps)
        assert outcome.status is RunStatus.ROLLED_BACK
        assert outcome.error is not None
        assert outcome.error.message == "the approval was rejected"
        assert bench.files() == {}

    def test_yes_in_advance_does_not_count_and_a_person_who_is_there_is_asked(self, bench: Bench) -> None:
        asked: list[tuple[str, str]] = []

        def ask(step: str, message: str) -> bool:
            asked.append((step, message))
            return True

        assert self.run(bench, write("b", "conftest.py"), approve=True).status is RunStatus.AWAITING_APPROVAL
        assert self.run(bench, write("b", "conftest.py"), ask=ask, run_id="r2").status is RunStatus.COMMITTED
        assert [step for step, _ in asked] == ["b"]
        assert sha("new\n") in asked[0][1]

    @pytest.mark.parametrize(
        "path", ["CONFTEST.PY", "a/b/conftest.py", ".GitHub/workflows/x.yml", "a/.github/workflows/d/x"]
    )
    def test_the_list_holds_at_any_depth_and_in_any_letter_case(self, bench: Bench, path: str) -> None:
        assert self.run(bench, write("b", path)).status is RunStatus.AWAITING_APPROVAL

    @pytest.mark.parametrize(
        "step",
        [
            {"id": "b", "op": "file.delete", "with": {"path": "a/Makefile"}},
            {"id": "b", "op": "file.move", "with": {"source": "a", "destination": "z"}},
            {"id": "b", "op": "file.copy", "with": {"source": "a", "destination": "z"}},
            {"id": "b", "op": "file.chmod", "with": {"path": "a/Makefile", "mode": "0755"}},
            {"id": "b", "op": "file.append", "with": {"path": "a/Makefile", "content": "x"}},
        ],
    )
    def test_every_way_to_change_such_a_file_waits(self, bench: Bench, step: dict[str, Any]) -> None:
        (bench.root / "a").mkdir()
        (bench.root / "a/Makefile").write_text("all:\n")
        assert self.run(bench, step).status is RunStatus.AWAITING_APPROVAL
        assert bench.files() == {"a/Makefile": "all:\n"}

    def test_what_git_brings_waits_as_well_and_is_taken_back_until_then(self, bench: Bench) -> None:
        author = {"author": "A <a@example.org>"}
        bench.run(
            {"id": "i", "op": "git.init"},
            write("w", "x"),
            {"id": "d", "op": "git.add", "with": {"paths": ["."]}},
            {"id": "e", "op": "git.commit", "with": {"message": "one", **author}},
            {"id": "f", "op": "git.branch", "with": {"name": "side", "checkout": True}},
            write("g", "conftest.py", needs=["f"]),
            {"id": "h", "op": "git.add", "with": {"paths": ["."]}, "needs": ["g"]},
            {"id": "j", "op": "git.commit", "with": {"message": "two", **author}},
            {"id": "k", "op": "git.checkout", "with": {"ref": "main"}},
            run_id="r0",
        )
        assert not (bench.root / "conftest.py").exists()
        step = {"id": "b", "op": "git.checkout", "with": {"ref": "side"}}
        assert self.run(bench, step).status is RunStatus.AWAITING_APPROVAL
        assert not (bench.root / "conftest.py").exists()
        bench.journal.decide("r1", self.awaited(bench)["approval"], approved=True, actor="ada")
        assert self.run(bench, step).status is RunStatus.COMMITTED
        assert (bench.root / "conftest.py").exists()

    def test_a_trusted_set_is_not_asked_unless_the_policy_says_so(self, bench: Bench) -> None:
        assert bench.run(write("b", "conftest.py")).status is RunStatus.COMMITTED
        bench.policy = policy(approvals_files=["*.lock"])
        assert bench.run(write("b", "x.lock"), run_id="r2").status is RunStatus.AWAITING_APPROVAL
        assert bench.run(write("b", "x.lock"), run_id="r3", approve=True).status is RunStatus.COMMITTED

    def test_a_run_that_begins_again_needs_another_approval(self, bench: Bench) -> None:
        self.run(bench, write("b", "conftest.py"))
        subject = self.awaited(bench)["approval"]
        bench.journal.decide("r1", subject, approved=True, actor="ada")
        bench.journal.forget_decisions("r1", ["b"])
        assert bench.journal.decisions("r1") == {}


class TestOperationsThatNeedAnApproval:
    def test_it_is_for_these_parameters(self, bench: Bench) -> None:
        bench.policy = policy(approvals_operations=["file.delete"])
        (bench.root / "x").write_text("")
        step = {"id": "b", "op": "file.delete", "with": {"path": "x"}}
        assert bench.run(step).status is RunStatus.AWAITING_APPROVAL
        outputs = bench.journal.steps("r1")["b"].outputs
        assert outputs is not None
        assert (
            outputs["message"]
            == 'file.delete needs an approval ([approvals.operations] names \'file.delete\'): {"path": "x"}'
        )
        bench.journal.decide("r1", outputs["approval"], approved=True, actor="ada")
        assert bench.run(step).status is RunStatus.COMMITTED


def test_a_policy_that_forbids_nothing_is_not_asked() -> None:
    assert Guards(Policy()).of(Trust.TRUSTED).idle
    assert not Guards(Policy()).of(Trust.UNTRUSTED).idle
    assert not Guards(Policy(sandbox_require=1)).of(Trust.TRUSTED).idle


def test_the_built_in_list_stays_whatever_is_added() -> None:
    added = policy(untrusted__approvals__files=["mine"]).for_untrusted()
    assert [rule.patterns for rule in added.rules_of("approvals.files")] == [EXECUTED, ("mine",)]


@pytest.mark.parametrize(
    ("one", "two", "field", "expected"),
    [
        ({"git_protocols": ["https", "file"]}, {"git_protocols": ["file", "ssh"]}, "git_protocols", ("file",)),
        ({"http_hosts": ["a", "b"]}, {"http_hosts": ["b"]}, "http_hosts", ("b",)),
        ({"sandbox_require": 1}, {"sandbox_require": 2}, "sandbox_require", 2),
        ({"sandbox_require": 3}, {"sandbox_require": 2}, "sandbox_require", 3),
        ({"limits_seconds": 0}, {"limits_seconds": 9}, "limits_seconds", 9),
        ({"limits_seconds": 5}, {"limits_seconds": 0}, "limits_seconds", 5),
        ({"untrusted_network": True}, {"untrusted_network": False}, "untrusted_network", False),
        ({"untrusted_network": False}, {"untrusted_network": True}, "untrusted_network", False),
        ({"untrusted_secrets": ["A", "B"]}, {"untrusted_secrets": ["B", "C"]}, "untrusted_secrets", ("B",)),
        ({"journal_keep_runs": 9}, {"journal_keep_runs": 1}, "journal_keep_runs", 9),
        (
            {"paths_deny": ["a"]},
            {"paths_deny": ["b"]},
            "rules",
            (Rule("paths.deny", ("a",)), Rule("paths.deny", ("b",))),
        ),
    ],
)
def test_two_policies_together_are_the_stricter_one(
    one: dict[str, Any], two: dict[str, Any], field: str, expected: Any
) -> None:
    names = [(name.replace("_", ".", 1), value) for name, value in two.items()]
    settings = [Given(name, tuple(value) if isinstance(value, list) else value) for name, value in names]
    assert getattr(policy(**one).narrowed(settings), field) == expected


def test_untrusted_tables_narrow_and_never_widen() -> None:
    narrow = policy(untrusted__git__protocols=["ssh", "file"], untrusted__limits__seconds=5).for_untrusted()
    assert (narrow.git_protocols, narrow.limits_seconds, narrow.sandbox_require) == (("ssh",), 5, 3)
    assert (narrow.network, narrow.secrets) == (False, ())


def test_a_script_of_an_untrusted_set_is_watched_everywhere_whatever_it_says_of_itself() -> None:
    document = load_object({"name": "x", "instructions": [{**shell("a", "true"), "writes": []}]})
    assert build(document, {}).effects["a"].writes == ()
    untrusted = document.model_copy(update={"trust": Trust.UNTRUSTED})
    assert [access.path for access in build(untrusted, {}).effects["a"].writes] == ["."]


def test_a_rule_with_a_bad_class_is_an_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[paths]\ndeny = ["[z-a]"]\n')
    with pytest.raises(InvalidInput, match=r"policy.toml:2: \[paths\] deny must be globs"):
        Policy.load(tmp_path / "policy.toml")


def test_a_folder_on_the_way_to_what_a_step_names_is_its_own() -> None:
    folder = Entry(Kind.FOLDER, 0o755)
    changes = [
        Change("a", None, folder),
        Change("a/b", None, folder),
        Change("c", None, folder),
        Change("a/b/x", folder, None),
    ]
    assert list(_outside_of(["a/b"], changes)) == ["c"]
    assert list(_outside_of(["a/b"], [Change("a", folder, None)])) == ["a"]
    assert list(_outside_of(["."], changes)) == []
