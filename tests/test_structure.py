"""What holds for the code as a whole: who may import whom, what is in the wheel, and what strangers rely on."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from shutil import copytree, ignore_patterns

import pytest

from quantum_orchestrator.tasks import registry

ROOT = Path(__file__).parent.parent
FLOORS = ("blocks", "tasks", "flows", "deployments")  # from the ground up
PACKAGE = "quantum_orchestrator"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

PREFECT_AT_ONCE = (
    "tasks/prefect_task.py",
    "flows/orchestrate.py",
    "flows/flow_runs.py",
    "flows/prefect_runner.py",
    "flows/telling.py",
    "flows/deployed.py",
    "blocks/policy_block.py",
    "blocks/model_block.py",
    "blocks/quality.py",
    "blocks/webhook_secret.py",
    "blocks/set_block.py",
    "blocks/workspace_block.py",
)
"""Modules that exist to speak to Prefect, and are themselves imported only when something runs."""
WHEN_NEEDED = ("flows/recover.py", "flows/optimize.py", "deployments/*.py", "blocks/*.py")
"""Modules that may import Prefect or Anthropic inside a function, where it costs only those who call it."""
STARTS_PROCESSES = (
    *("blocks/sandbox.py", "blocks/levels.py", "blocks/supervisor.py", "blocks/repository.py"),
    *("deployments/server.py", "deployments/service.py", "deployments/service_command.py", "deployments/serving.py"),
    "deployments/dispatcher.py",
    "deployments/child_commands.py",
)
PURE = ("flows/plan.py", "flows/schedule.py")

OPERATIONS = """
approval assert call checkpoint echo file.append file.chmod file.copy file.delete file.edit file.list file.mkdir
file.move file.patch file.read file.render file.set file.write git.add git.branch git.checkout git.clone git.commit
git.diff git.fetch git.init git.log git.merge git.push git.revert git.status git.tag http.request llm.analyze
llm.diagnose llm.document llm.edit llm.fix llm.generate llm.optimize llm.plan quality.format quality.gate quality.lint
quality.refactor quality.score quality.test script.run wait
"""


@cache
def modules() -> dict[str, ast.Module]:
    """The parsed modules of the four floors, by their path in the repository."""
    found = [path for floor in FLOORS for path in sorted((ROOT / floor).glob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in found}


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every name that is imported anywhere in a tree, with whether that is when the module is loaded."""
    for node in ast.iter_child_nodes(tree):
        lazily = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types_alone(node)
        if isinstance(node, ast.Import):
            yield from ((alias.name, True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base, True
            yield from ((f"{base}.{alias.name}", True) for alias in node.names)
        yield from ((name, at_once and not lazily) for name, at_once in imported(node))


def _for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def within(path: str, patterns: Sequence[str]) -> bool:
    return any(PurePosixPath(path).match(pattern) for pattern in patterns)


def imports_of(names: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """Each import of one of these packages: the module, what it imports, and whether at once."""
    for path, tree in modules().items():
        for name, at_once in imported(tree):
            if name.partition(".")[0] in names:
                yield path, name, at_once


# Who imports whom.


def test_imports_go_down_only() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--config", "pyproject.toml"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 kept, 0 broken" in checked.stdout


def test_a_floor_names_no_floor_above_it_not_even_inside_a_function() -> None:
    height = {f"{PACKAGE}.{floor}": number for number, floor in enumerate(FLOORS)}
    upwards = [
        (path, name)
        for path, name, _ in imports_of([PACKAGE])
        if height.get(".".join(name.split(".")[:2]), 0) > FLOORS.index(path.partition("/")[0])
    ]
    assert upwards == []


def test_modules_are_imported_by_one_name() -> None:
    """`blocks.errors` beside `quantum_orchestrator.blocks.errors` would be a second copy, with classes of its own."""
    assert list(imports_of(["", *FLOORS])) == []
    tests = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tests").rglob("*.py")}
    names = {
        path: {name.partition(".")[0] for name, _ in imported(ast.parse(file.read_bytes()))}
        for path, file in tests.items()
    }
    assert [path for path, found in names.items() if found & {"", *FLOORS}] == []


def test_prefect_is_imported_where_it_is_spoken_to_and_nowhere_else() -> None:
    wrong = [
        (path, name)
        for path, name, at_once in imports_of(["prefect"])
        if not within(path, PREFECT_AT_ONCE) and (at_once or not within(path, WHEN_NEEDED))
    ]
    assert wrong == []


def test_anthropic_is_imported_only_by_those_who_call_it() -> None:
    wrong = [
        (path, name)
        for path, name, at_once in imports_of(["anthropic"])
        if at_once or not within(path, [*PREFECT_AT_ONCE, *WHEN_NEEDED])
    ]
    assert wrong == []


def test_planning_and_scheduling_know_neither_disk_nor_clock() -> None:
    outside = {
        *(
            "asyncio",
            "datetime",
            "fcntl",
            "git",
            "glob",
            "io",
            "os",
            "pathlib",
            "random",
            "secrets",
            "shutil",
            "signal",
        ),
        *("socket", "sqlite3", "subprocess", "tempfile", "threading", "time", "anthropic", "anyio", "httpx", "prefect"),
    }
    found = [(path, name) for path, name, _ in imports_of(sorted(outside)) if path in PURE]
    assert found == []
    for path in PURE:
        calls = {
            node.func.id
            for node in ast.walk(modules()[path])
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"open", "input", "print", "exec", "eval", "__import__"}


def test_the_families_of_operations_do_not_know_each_other() -> None:
    points = PROJECT["project"]["entry-points"][registry.GROUP]
    families = {value.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py": value for value in points.values()}
    assert families.keys() <= modules().keys()
    known = [
        (path, name)
        for path, name, _ in imports_of([PACKAGE])
        if path.startswith("tasks/")
        for family, module in families.items()
        if path != family and (name == module or name.startswith(module + "."))
    ]
    assert known == []


STARTERS = re.compile(
    r"os\.(fork|forkpty|exec\w+|posix_spawnp?|spawn\w+|system|popen|startfile)|pty\.(fork|spawn)"
    r"|asyncio\.create_subprocess_\w+|anyio\.(run|open)_process|concurrent\.futures\.ProcessPoolExecutor"
    r"|(subprocess|multiprocessing|pexpect|sh)(\..*)?"
)


def test_only_these_modules_start_processes() -> None:
    """A process that is started elsewhere has neither limits nor a sandbox, and outlives a cancelled run."""
    found = {
        path
        for path, tree in modules().items()
        for name in [*(name for name, _ in imported(tree)), *used(tree)]
        if STARTERS.fullmatch(name)
    }
    assert found == set(STARTS_PROCESSES)


def test_git_is_spoken_to_in_one_place() -> None:
    """Where nothing that was planted in a repository runs. (`qo doctor` asks git for its version, in no repository.)"""
    assert {path for path, _, _ in imports_of(["git"])} <= {"blocks/repository.py", "deployments/doctor.py"}


def used(tree: ast.AST) -> Iterator[str]:
    """The dotted names in a tree, as `os.fork`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


# What a reader finds.


def test_every_module_opens_with_a_paragraph() -> None:
    texts = {path: ast.get_docstring(tree) or "" for path, tree in modules().items()}
    least = {path: 40 if path.endswith("__init__.py") else 100 for path in texts}
    assert [path for path, text in texts.items() if len(text) < least[path] or "." not in text] == []
    tests = [path for path in (ROOT / "tests").rglob("*.py") if not ast.get_docstring(ast.parse(path.read_bytes()))]
    assert tests == []


def test_the_operations_are_these() -> None:
    """The public surface: a name may be added; one that is gone, or is called otherwise, breaks sets that exist."""
    own = {name for name, each in registry.every().items() if type(each).__module__.startswith(f"{PACKAGE}.")}
    assert sorted(own) == OPERATIONS.split()


# What is shipped.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that nothing is left in the source; by the backend itself, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    for floor in FLOORS:
        copytree(ROOT / floor, folder / floor, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            (folder / name).write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, "dist"], cwd=folder, check=True, capture_output=True)
    (made,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(made)


def test_the_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {
        f"{PACKAGE}/{path.relative_to(ROOT).as_posix()}"
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == ours
    assert all(f"{PACKAGE}/{floor}/py.typed" in shipped for floor in FLOORS)


def test_the_wheel_brings_the_command_and_the_operations(wheel: zipfile.ZipFile) -> None:
    (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/entry_points.txt")]
    points = wheel.read(name).decode()
    assert f"qo = {PACKAGE}.deployments.qo:main" in points
    for family, module in PROJECT["project"]["entry-points"][registry.GROUP].items():
        assert f"{family} = {module}" in points


def requirements() -> list[str]:
    """The entries of the lock, each on one line."""
    lock = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    return [line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def test_the_lock_pins_every_package_to_hashes() -> None:
    entry = re.compile(r"[a-z0-9][a-z0-9._-]*==\S+( ; [^#]*?)?( +--hash=sha256:[0-9a-f]{64})+ *")
    assert [line for line in requirements() if not entry.fullmatch(line)] == []


def test_the_lock_has_every_package_that_the_project_asks_for() -> None:
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    locked = {line.partition("==")[0] for line in requirements()}
    names = {re.sub("[-_.]+", "-", re.split("[^A-Za-z0-9._-]", each)[0].lower()) for each in asked}
    assert names - locked == set()


def test_the_lock_says_what_and_not_where_from() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|(?m:^\s*-)(-index-url|-extra-index-url|-find-links|-trusted-host|i |f )| @ ", lock)


HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("gcr", "io"),
        ("proxy", "golang", "org"),
        ("rubygems", "org"),
        ("maven", "org"),
        ("huggingface", "co"),
        ("jfrog", "io"),
    )
)


def files_of_the_repository() -> Iterator[Path]:
    """What a reader of the repository sees; neither caches nor what was built or installed."""
    hidden = {".git", ".venv", "build", "dist", "__pycache__", "node_modules"}
    for folder, names, files in os.walk(ROOT):
        kept = [each for each in names if each not in hidden and not each.endswith((".egg-info", "_cache"))]
        names[:] = [each for each in kept if not each.startswith(".") or each in (".ci", ".github")]
        yield from (Path(folder, name) for name in files)


def test_no_file_names_a_registry() -> None:
    """Where packages come from is the reader's own setting."""
    named = [
        (path.relative_to(ROOT).as_posix(), host)
        for path in files_of_the_repository()
        for host in HOSTS
        if host.encode() in path.read_bytes()
    ]
    assert named == []
