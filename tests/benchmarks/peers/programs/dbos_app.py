"""The work as one DBOS workflow, a step each; scripts two at a time. Its state is in SQLite."""

import asyncio
import json
import subprocess
from pathlib import Path

from dbos import DBOS, DBOSConfig

config: DBOSConfig = {"name": "peer", "system_database_url": "sqlite:///dbos.sqlite", "log_level": "WARNING"}
DBOS(config=config)


@DBOS.step()
def write(path: str, text: str) -> None:
    Path(path).write_text(text)


@DBOS.step()
def append(path: str, text: str) -> None:
    with open(path, "a") as stream:
        stream.write(text)


@DBOS.step()
async def script(program: str) -> None:
    process = await asyncio.create_subprocess_exec(program)
    if await process.wait():
        raise subprocess.SubprocessError


@DBOS.workflow()
def files(kind: str, items: list[list[str]]) -> None:
    for path, text in items:
        (append if kind == "chain" else write)(path, text)


@DBOS.workflow()
async def scripts(count: int, program: str) -> None:
    for number in range(0, count, 2):
        await asyncio.gather(*(script(program) for _ in range(min(2, count - number))))


def main() -> None:
    work = json.loads(Path("work.json").read_text())
    DBOS.launch()
    if work["kind"] == "scripts":
        asyncio.run(scripts(len(work["items"]), work["script"]))
    else:
        files(work["kind"], work["items"])
    DBOS.destroy()


main()
