"""Operations of other people's packages: installed beside the product, they are known everywhere, without a setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Said

STAMP = '''
from pydantic import Field

from quantum_orchestrator.tasks.operation import (
    Access, Context, Effects, FilePath, Operation, Outputs, Parameters, operation,
)


class StampParameters(Parameters):
    """What to stamp."""

    path: FilePath = Field(description="The file.")
    text: str = Field("ACME", description="What the stamp says.")


class StampOutputs(Outputs):
    """What was written."""

    length: int = Field(description="How many characters.")


@operation("acme.stamp")
class Stamp(Operation[StampParameters, StampOutputs]):
    """Put a stamp into a file."""

    example = {"path": "letter.txt"}

    def effects(self, parameters: StampParameters) -> Effects:
        """Writes the file."""
        return Effects(writes=(Access(parameters.path),))

    def run(self, parameters: StampParameters, context: Context) -> StampOutputs:
        """Write it."""
        context.files.make_parents(parameters.path)
        context.files.write(parameters.path, f"[{parameters.text}]\\n".encode())
        return StampOutputs(length=len(parameters.text))
'''

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.0"

[project.entry-points."quantum_orchestrator.operations"]
{point} = "{name}"

[tool.setuptools]
py-modules = ["{name}"]
"""


class Machine:
    """`qo`, and a folder of packages that only it looks into."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.packages, self.work = folder, folder / "packages", folder / "work"
        self.work.mkdir()

    def install(self, name: str, source: str, *, point: str) -> None:
        """Build a package of one module and install it, as `pip install` does; nothing is fetched."""
        project = self.folder / name
        project.mkdir()
        (project / f"{name}.py").write_text(source)
        (project / "pyproject.toml").write_text(PROJECT.format(name=name, point=point))
        options = ("--target", str(self.packages), "--no-deps", "--no-build-isolation", "--offline", "--no-config")
        uv = str(Path(sys.executable).parent / "uv")
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable, *options, str(project)]
        environment = {**os.environ, "UV_CACHE_DIR": str(self.folder / "cache")}
        subprocess.run(command, env=environment, check=True, capture_output=True)

    def lay(self, name: str, source: str, *, point: str) -> None:
        """A package as an installer leaves it, in a hundredth of the time."""
        information = self.packages / f"{name}-1.0.dist-info"
        information.mkdir(parents=True)
        (self.packages / f"{name}.py").write_text(source)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[quantum_orchestrator.operations]\n{point} = {name}\n")

    def qo(self, *arguments: str) -> Said:
        command = [sys.executable, "-m", "quantum_orchestrator.deployments.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self.packages)}
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, check=False)
        return Said(done.returncode, done.stdout, done.stderr)

    def set(self, *instructions: dict[str, Any]) -> str:
        file = self.folder / "set.json"
        file.write_text(json.dumps({"name": "test", "instructions": instructions}))
        return str(file)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def stamp(**parameters: Any) -> dict[str, Any]:
    return {"id": "stamp", "op": "acme.stamp", "with": {"path": "letters/one.txt", **parameters}}


HELLO = {"id": "hello", "op": "echo", "with": {"message": "hello"}}


def test_a_package_that_is_not_there_is_not_known(machine: Machine) -> None:
    machine.qo("validate", machine.set(stamp())).exits(3).says("unknown operation 'acme.stamp'")


def test_an_installed_package_is_known_to_every_command(machine: Machine, prefect_server: str) -> None:
    machine.install("acme_stamps", STAMP, point="acme")
    listed = {each["name"]: each["summary"] for each in machine.qo("ops", "--json").exits(0).json["operations"]}
    assert listed["acme.stamp"] == "Put a stamp into a file."
    assert "file.write" in listed
    machine.qo("ops").exits(0).prints("acme.stamp")
    machine.qo("ops", "acme.stamp").exits(0).prints("What the stamp says.")
    assert "acme.stamp" in machine.qo("schema").exits(0).json["$defs"]

    good = machine.set(stamp(text="PAID"))
    machine.qo("validate", good).exits(0)
    machine.qo("plan", good).exits(0).prints("+[PAID]")
    document = machine.qo("run", good, "--json").exits(0).json
    assert (document["status"], document["steps"][0]["outputs"]) == ("committed", {"length": 4})
    assert (machine.work / "letters" / "one.txt").read_text() == "[PAID]\n"
    machine.qo("validate", machine.set(stamp(txet=""))).exits(3).says("unknown key 'txet'; did you mean 'text'?")


def test_a_name_that_two_packages_declare_is_an_error_that_names_both(machine: Machine) -> None:
    machine.lay("acme_stamps", STAMP, point="acme")
    machine.lay("zenith_stamps", STAMP, point="zenith")
    said = machine.qo("ops").exits(3)
    said.says("'acme.stamp' is declared twice")
    said.says("acme_stamps")
    said.says("zenith_stamps")


def test_a_family_that_two_packages_bring_is_an_error_that_names_both(machine: Machine) -> None:
    machine.lay("acme_stamps", STAMP, point="acme")
    machine.lay("acme_seals", STAMP.replace("acme.stamp", "acme.seal"), point="acme")
    said = machine.qo("ops").exits(3)
    said.says("acme_stamps")
    said.says("acme_seals")


@pytest.mark.parametrize("point", ["acme", "file"])
def test_an_operation_of_the_products_own_cannot_be_replaced(machine: Machine, point: str) -> None:
    machine.lay("acme_files", STAMP.replace("acme.stamp", "file.write"), point=point)
    said = machine.qo("ops").exits(3)
    said.says("acme_files")
    said.says("quantum_orchestrator.tasks.files")


def test_a_package_that_cannot_be_imported_is_named_and_stops_only_those_who_need_it(machine: Machine) -> None:
    machine.lay("acme_broken", "import a_module_that_nobody_has\n", point="acme")
    for command in (("ops",), ("validate", machine.set(stamp()))):
        said = machine.qo(*command).exits(3)
        said.says("the operations of 'acme_broken' cannot be loaded")
        said.says("a_module_that_nobody_has")
        said.says("hint: repair or uninstall the package")
    machine.qo("validate", machine.set(HELLO)).exits(0)
