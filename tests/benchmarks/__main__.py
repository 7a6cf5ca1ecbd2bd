"""Measure, and print one table: `./run python -m tests.benchmarks NAME [--json]`; `NAME --help` says what to choose.

Every row sets two times from the same run of the command side by side, as machines are shared and differ. The floor is
what their ratio should not exceed; nothing here fails when it does.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from tests.benchmarks import recovery, reuse, scheduling, scripts
from tests.benchmarks.rows import table

BENCHMARKS = {"recovery": recovery, "reuse": reuse, "scheduling": scheduling, "scripts": scripts}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="name", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=(benchmark.__doc__ or "").partition("\n")[0])
        benchmark.add_options(command)
        command.add_argument("--json", action="store_true", help="print JSON, to compare two commits")
    options = parser.parse_args()
    rows = list(BENCHMARKS[options.name].rows(options))
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
