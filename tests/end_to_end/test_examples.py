"""Every file in `examples/` is run by the real command line, and does what it says: a file without a row here fails."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from without_prefect import without_prefect

from quantum_orchestrator.deployments.cli import invoke

FOLDER = Path(__file__).parents[2] / "examples"
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.json"))

pytestmark = [
    pytest.mark.usefixtures("prefect_server"),
    # Prefect leaves a connection of its own open when an event loop ends, which is noticed in whatever test comes next.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Json = dict[str, Any]
Files = Mapping[str, str]


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def files_in(root: Path) -> dict[str, str]:
    """Every file that is no part of a repository, with its text."""
    found = (path for path in root.rglob("*") if path.is_file())
    inside = {str(path.relative_to(root)): path for path in found}
    return {name: inside[name].read_text("latin-1") for name in sorted(inside) if not name.startswith(".git/")}


class Ran:
    """A workspace in which an example has been run, and the document that `qo` printed."""

    def __init__(self, root: Path, document: Json, qo: Callable[..., tuple[int, Json]]) -> None:
        self.root = root
        self.document = document
        self.qo = qo

    @property
    def files(self) -> dict[str, str]:
        return files_in(self.root)

    def step(self, name: str) -> Json:
        found: Json = next(step for step in self.document["steps"] if step["id"] == name)
        return found

    def says(self, name: str = "say") -> str:
        return str(self.step(name)["outputs"]["message"])


def nothing_is_left(ran: Ran) -> None:
    assert list(ran.root.iterdir()) == []


def files_are_as_asked(ran: Ran) -> None:
    assert list(ran.files) == [
        "bin/greet",
        "bin/hello",
        "motd",
        "notes/today.md",
        "notes/tomorrow.md",
        "settings.yaml",
        "static/dot.gif",
    ]
    assert ran.files["notes/today.md"] == "# Done today\n\n- [x] write\n- [x] append\n"
    assert ran.files["settings.yaml"].startswith("# What the service listens on\nport: 9000\n")
    assert ran.files["motd"] == "Welcome to example.org.\n"
    assert ran.files["static/dot.gif"].startswith("GIF89a")
    assert os.access(ran.root / "bin/greet", os.X_OK)
    assert (ran.root / "logs/archive").is_dir()


def scripts_have_run(ran: Ran) -> None:
    assert ran.files == {"out/greeting.txt": "hello, world\n", "build/log": "attempt\n"} | ran.files
    assert len(ran.files) == 2
    assert ran.step("flaky")["attempts"] == 2
    assert ran.step("exit")["outputs"]["exit_code"] == 1
    version = ".".join(map(str, sys.version_info[:3]))
    assert ran.says() == f"Python {version}; changed: out, out/greeting.txt; sorted: apple, pear"


def history_is_written(ran: Ran) -> None:
    log = git(ran.root, "log", "--first-parent", "--format=%an: %s")
    assert log == 'Ada: Revert "Merge the violets"\nAda: Merge the violets\nAda: Begin a poem'
    assert git(ran.root, "status", "--porcelain") == ""
    assert git(ran.root, "show", "v1.0:poem.txt") == "Roses are red.\nViolets are blue."
    assert ran.files == {"poem.txt": "Roses are red.\n"}


def code_is_better(ran: Ran) -> None:
    assert "import sys" not in ran.files["shop/prices.py"]
    assert "def total(prices: list[int], discount: int = 0) -> int:" in ran.files["shop/prices.py"]
    assert ran.says() == "findings: 2 before, 0 after; score: 100.0; tests passed: 1"


def what_failed_is_repaired(ran: Ran) -> None:
    assert ran.files["shop/area.py"].startswith(
        "import math\n\n\ndef area(width, height):\n    return width * height\n"
    )
    assert ran.says().startswith("check succeeded; shop/area.py: NameError: name 'math' is not defined")
    assert ran.says().endswith("passes now: true")


def failures_are_handled(ran: Ran) -> None:
    assert ran.files == {"config.toml": "level = 1\n", "note.txt": "hello\n", "state.txt": "offline\n"}
    assert {name: ran.step(name)["status"] for name in ("release", "optional", "default", "deploy")} == {
        "release": "skipped",
        "optional": "failed",
        "default": "succeeded",
        "deploy": "failed",
    }
    assert ran.says() == "the deployment is offline"


def every_mistake_is_told(ran: Ran) -> None:
    nothing_is_left(ran)
    assert [(error["line"], error["pointer"]) for error in ran.document["errors"]] == [
        (6, "/instructions/0/op"),
        (7, "/instructions/1/with/destination"),
        (8, "/instructions/2/with/message"),
        (8, "/instructions/2/retry"),
    ]


def nothing_has_changed(ran: Ran) -> None:
    nothing_is_left(ran)
    statuses = {step["id"]: step["status"] for step in ran.document["steps"]}
    assert statuses.pop("check") == "failed"
    assert statuses.pop("never") == "skipped"
    assert set(statuses.values()) == {"rolled_back"}
    assert "no such column" in ran.document["error"]["message"]


def the_second_run_does_what_has_changed(ran: Ran) -> None:
    folder = ran.root
    assert [step["status"] for step in ran.document["steps"]] == ["succeeded"] * 5
    (folder / "draft.md").write_text("# Tea\n\nMilk first.\n")
    code, document = ran.qo("run", str(FOLDER / "cache.json"))
    assert code == 0
    found = {step["id"]: (step["status"], step["reason"]) for step in document["steps"]}
    unchanged = f"inputs unchanged since run {ran.document['run_id']}"
    assert found == {
        "style": ("reused", unchanged),
        "page": ("succeeded", "draft.md is new"),
        "site": ("succeeded", "page.html changed"),
        "count": ("reused", unchanged),
        "say": ("succeeded", "echo is never reused"),
    }
    assert "Milk first." in ran.files["site/page.html"]


def approving_carries_on(ran: Ran) -> None:
    assert list(ran.files) == ["RELEASE.md"]
    code, document = ran.qo("approve", ran.document["run_id"])
    assert (code, document["status"]) == (0, "committed")
    assert ran.files["public/index.md"] == ran.files["RELEASE.md"]


def chapters_are_signed(ran: Ran) -> None:
    signed = {f"book/{name}.md": f"# {name.title()}\n\nPart of 3 chapters.\n" for name in ("end", "intro", "middle")}
    sums = json.loads(ran.files["SHA256SUMS.json"])
    assert {name: ran.files[name] for name in signed} == signed
    assert sums == [hashlib.sha256(text.encode()).hexdigest() for text in signed.values()]


def both_services_are_there(ran: Ran) -> None:
    paths = [f"services/{name}/{file}" for name in ("orders", "users") for file in ("main.py", "settings.json")]
    assert ran.files["services/README.md"].splitlines() == paths
    assert ran.files["services/orders/main.py"] == "PORT = 8002\n"
    assert json.loads(ran.files["services/users/settings.json"]) == {"port": 8001}
    assert ran.step("service[1]/code")["status"] == "succeeded"


def one_service_is_there(ran: Ran) -> None:
    assert ran.files["services/shop/main.py"] == "PORT = 8000\n"


def inputs_keep_their_types(ran: Ran) -> None:
    assert json.loads(ran.files["deploy.json"]) == {"project": "shop", "replicas": 3}
    assert ran.files[".github/workflows/ci.yml"].endswith("TOKEN: ${{ secrets.TOKEN }}\n")
    assert ran.step("support")["status"] == "skipped"
    code, document = ran.qo("run", str(FOLDER / "inputs.json"), "--input", "project=Shop", "--input", "replicas=12")
    assert (code, document["status"], len(document["errors"])) == (3, "invalid", 2)


def package_is_committed(ran: Ran) -> None:
    assert ran.root.parts[-2:] == ("build", "tour")
    assert git(ran.root, "log", "--format=%an <%ae> %s on %D") == (
        "Tour Guide <tour@example.org> Count words, and name the most frequent ones on HEAD -> main"
    )
    assert git(ran.root, "status", "--porcelain") == ""
    assert "import os" not in ran.files["tally/words.py"]
    assert "def top(text: str, number: int = 3) -> list[str]:" in ran.files["tally/words.py"]
    assert 'version = "0.2.0"  # kept in step' in ran.files["pyproject.toml"]
    assert ran.says("summary") == "2 tests passed, score 100.0, on branch main"
    again = ran.qo("run", str(FOLDER / "tour.json"), workspace=False)[1]
    assert (again["status"], again["diff"]["files"]) == ("committed", 0)


def models_have_answered(ran: Ran) -> None:
    assert json.loads(ran.files["limits.json"]) == {"seconds": 30, "retries": 2}
    assert ran.says() == "shop/prices.py:2: Undefined name `rate`; run tests/test_cart.py; 30 s"
    assert ran.document["models"]["calls"] == 0
    assert ran.document["models"]["budget"] == {"calls": 6, "tokens": 100_000, "time": 300.0}


def it_is_committed(ran: Ran) -> None:
    assert git(ran.root, "log", "--format=%s") == "Add x"
    assert git(ran.root, "show", "HEAD:x.py") == "x = 1"


def script_ran_in_its_folder(ran: Ran) -> None:
    said = ran.document["action_results"][1]["message_or_payload"]
    assert (said["exit_code"], said["stdout"]) == (0, f"{ran.root / 'scripts'}\none 2\n")


def approving_ends_the_block(ran: Ran) -> None:
    waiting = ran.document["action_results"][-1]["message_or_payload"]
    assert (waiting["exwork_status"], waiting["signoff_id"]) == ("AWAITING_SIGNOFF", "deploy-7")
    assert ran.qo("approve", json_=False)[0] == 0


def leaves(files: Files) -> Callable[[Ran], None]:
    def check(ran: Ran) -> None:
        assert ran.files == files

    return check


def going_on_from_the_checkpoint_ends_it(ran: Ran) -> None:
    assert list(ran.files) == ["mean.txt", "visits.csv"]
    (ran.root / "signed.txt").write_text("me\n")
    code, document = ran.qo("resume", ran.document["run_id"])
    assert (code, document["status"]) == (0, "committed")
    assert ran.files["report.txt"] == "13.5\n"


@dataclass(frozen=True)
class Example:
    """How a file is run, how that ends, and what must be true afterwards."""

    then: Callable[[Ran], None]
    code: int = 0
    status: str = "committed"
    inputs: tuple[str, ...] = ()
    workspace: bool = True
    repository: bool = False
    given: Files = field(default_factory=dict)
    whole: bool = False
    """Whether Prefect is told of it: of one of each kind."""


EXAMPLES: dict[str, Example] = {
    "approval.json": Example(approving_carries_on, code=5, status="awaiting_approval", whole=True),
    "call-inner.json": Example(one_service_is_there, inputs=("name=shop",)),
    "call.json": Example(both_services_are_there),
    "checkpoint.json": Example(going_on_from_the_checkpoint_ends_it, code=1, status="kept"),
    "ci/release-notes.json": Example(
        leaves({"RELEASE.md": "# 1.4\n\n- Faster start\n", "release.py": 'import os\n\nVERSION = "1.4"\n'})
    ),
    "control.json": Example(failures_are_handled),
    "files.json": Example(files_are_as_asked),
    "for-each.json": Example(chapters_are_signed, whole=True),
    "git.json": Example(history_is_written),
    "inputs.json": Example(inputs_keep_their_types, inputs=("project=shop", "replicas=3")),
    "invalid.json": Example(every_mistake_is_told, code=3, status="invalid"),
    "quality.json": Example(code_is_better),
    "models.json": Example(models_have_answered),
    "repair.json": Example(what_failed_is_repaired),
    "cache.json": Example(the_second_run_does_what_has_changed),
    "rollback.json": Example(nothing_has_changed, code=1, status="rolled_back"),
    "scripts.json": Example(scripts_have_run, whole=True),
    "tour.json": Example(package_is_committed, workspace=False, whole=True),
    "older/diagnose.json": Example(nothing_is_left),
    "older/echo.json": Example(nothing_is_left),
    "older/files.json": Example(leaves({"notes/a.txt": "first\nsecond\nthird", "notes/b.txt": "plain text\n"})),
    "older/git.json": Example(it_is_committed, repository=True, whole=True),
    "older/halts.json": Example(nothing_is_left, code=1),
    "older/parameters.json": Example(leaves({"demo/main.py": "print('hello')\n"}), inputs=("project_name=demo",)),
    "older/script.json": Example(script_ran_in_its_folder),
    "older/signoff.json": Example(approving_ends_the_block),
}


def test_every_file_has_a_row() -> None:
    assert sorted(EXAMPLES) == FILES


def test_every_set_says_what_it_shows() -> None:
    for name in FILES:
        document = json.loads((FOLDER / name).read_text())
        assert document["description"]
        if "version" in document:
            assert document["name"] == Path(name).stem


@pytest.mark.parametrize("name", FILES)
def test_the_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    example = EXAMPLES[name]
    root = tmp_path / "work" if example.workspace else tmp_path / "build" / "tour"
    monkeypatch.chdir(tmp_path)
    if example.workspace:
        root.mkdir()
    if example.repository:
        git(root, "init", "--quiet")

    def qo(*arguments: str, workspace: bool = True, json_: bool = True) -> tuple[int, Json]:
        place = ("--workspace", str(root)) if workspace else ()
        code = invoke([*arguments, *place, *(["--json"] if json_ else [])])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out) if out.startswith("{") else {}

    inputs = [part for pair in example.inputs for part in ("--input", pair)]
    with contextlib.nullcontext() if example.whole else without_prefect():
        code, document = qo("run", str(FOLDER / name), *inputs, workspace=example.workspace)
        assert code == example.code, document
        if "action_results" in document:
            assert document["overall_success"] is (code == 0)
        else:
            assert document["status"] == example.status, document
        example.then(Ran(root, document, qo))
