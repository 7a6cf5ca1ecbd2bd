"""The `qo` command: which commands there are, and what becomes of their errors.

Each command is a function in one of the `cli_*` modules, imported when it is called. Whatever goes wrong ends here, in
a line that says what and one that says what to do next, and in an exit code:

    0  done            1  failed, and rolled back (or kept)     2  the plan has changes (--detailed-exitcode)
    3  invalid input   4  somebody must look at it              5  awaiting approval           130  interrupted

There is no traceback without -v. This module must stay cheap to import: it is the start of every command.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from quantum_orchestrator.blocks.errors import InvalidInput, QuantumError
from quantum_orchestrator.deployments.cli_options import STDIN
from quantum_orchestrator.deployments.failures import as_known, error_json
from quantum_orchestrator.deployments.garbage import collected_seldom
from quantum_orchestrator.deployments.screen import Screen, plural
from quantum_orchestrator.deployments.service_client import Unserved

SETS = Group.create_ordered("Instruction sets")
RUNS = Group.create_ordered("Runs")
DOORS = Group.create_ordered("What starts runs")
SERVICE = Group.create_ordered("This machine")

COMMANDS: dict[str, tuple[str, Group, tuple[str, ...]]] = {
    "run": (
        "cli_runs:run",
        SETS,
        (
            "qo run tour.json",
            "qo run deploy.json --input service=api --workspace ../shop",
            "generate | qo run - --json",
            "qo run tour.json --follow",
            "qo run tour.json --json-stream | jq -c 'select(.event == \"step_finished\") | [.step, .outputs]'",
            "qo run --plan p.plan",
            "qo run check.json --sarif build/findings.sarif --junit build/tests.xml",
            'qo run tour.json --junit build/run.xml --source "$CI_JOB_URL"',
        ),
    ),
    "plan": (
        "cli_sets:plan",
        SETS,
        ("qo plan tour.json", "qo plan tour.json --explain -o p.plan", "qo plan fix.json | git apply --check"),
    ),
    "validate": ("cli_sets:validate", SETS, ("qo validate tour.json", "qo validate - --json < tour.json")),
    "graph": ("cli_sets:graph", SETS, ("qo graph tour.json", "qo graph tour.json --format dot | dot -Tsvg > tour.svg")),
    "init": ("cli_sets:init", SETS, ("qo init", "qo init release-notes")),
    "ops": ("cli_sets:ops", SETS, ("qo ops", "qo ops file.edit", "qo ops file.edit --json")),
    "schema": ("cli_sets:schema", SETS, ("qo schema > instruction-set.schema.json",)),
    "status": ("cli_journal:status", RUNS, ("qo status", "qo status --workspace ../shop --json")),
    "history": ("cli_journal:history", RUNS, ("qo history", "qo history --limit 5 --json")),
    "show": ("cli_journal:show", RUNS, ("qo show", "qo show 20260102-030405", "qo show --json")),
    "diff": (
        "cli_diff:diff",
        RUNS,
        (
            "qo diff",
            "qo diff 20260102-030405 --stat",
            "qo diff 20260102-030405 --step build",
            "qo diff 20260102-030405 20260103-141500",
            "qo diff --by-step --json",
            "qo diff --against p.plan",
            "qo diff | git apply -R --check",
        ),
    ),
    "logs": ("cli_journal:logs", RUNS, ("qo logs", "qo logs -f")),
    "approve": ("cli_runs:approve", RUNS, ("qo approve", "qo approve 20260102-030405 sign-off", "qo approve --follow")),
    "reject": ("cli_runs:reject", RUNS, ("qo reject", "qo reject 20260102-030405 sign-off")),
    "cancel": ("cli_runs:cancel", RUNS, ("qo cancel",)),
    "resume": (
        "cli_recovery:resume",
        RUNS,
        ("qo resume", "qo resume 20260102-030405", "qo resume 20260102-030405 --from tests", "qo resume --follow"),
    ),
    "rollback": (
        "cli_recovery:rollback",
        RUNS,
        (
            "qo rollback",
            "qo rollback 20260102-030405 --check",
            "qo rollback 20260102-030405 --to generated",
            "qo rollback 20260102-030405 --force-conflicts keep",
        ),
    ),
    "gc": (
        "cli_gc:gc",
        RUNS,
        (
            "qo gc --dry-run",
            "qo gc --older-than 30d --workspace ../shop",
            "qo gc --keep 10 --max-size 500MiB",
            "qo gc --all --json",
        ),
    ),
    "watch": (
        "cli_watch:watch",
        DOORS,
        (
            "qo watch ../drop --workspace ../shop",
            "qo watch sets --validate",
            "qo watch /srv/incoming --events-only",
        ),
    ),
    "mcp": (
        "cli_mcp:mcp",
        DOORS,
        ("qo mcp --workspace ../shop", "QO_MCP_TOKEN=$TOKEN qo mcp --http --port 8848 --workspace ../shop"),
    ),
    "hooks install": (
        "cli_hooks:install",
        DOORS,
        ("qo hooks install pre-commit tidy.json", "qo hooks install commit-msg message.json"),
    ),
    "hooks uninstall": ("cli_hooks:uninstall", DOORS, ("qo hooks uninstall pre-commit",)),
    "hooks list": ("cli_hooks:list_", DOORS, ("qo hooks list", "qo hooks list --workspace ../shop --json")),
    "hooks run": (
        "cli_hooks:run",
        DOORS,
        ("qo hooks run pre-commit --set tidy.json", "qo hooks run pre-push --set push.json -- origin URL"),
    ),
    "deploy": (
        "cli_deploy:deploy",
        DOORS,
        (
            "qo deploy tour.json --pool local",
            'qo deploy nightly.json --pool local --workspace /srv/site --cron "0 3 * * *" --timezone Europe/Berlin',
            "qo deploy build.json --input branch=main --overlap skip --job-variable env.TZ=UTC",
        ),
    ),
    "serve": (
        "cli_serve:serve",
        DOORS,
        ("qo serve", "qo serve --limit 2 --with 'api --port 8080 --workspace /srv/site' --with 'watch incoming'"),
    ),
    "deployment list": ("cli_deploy:list_", DOORS, ("qo deployment list", "qo deployment list --json")),
    "deployment remove": ("cli_deploy:remove", DOORS, ("qo deployment remove nightly",)),
    "schedule add": (
        "cli_schedule:add",
        DOORS,
        (
            'qo schedule add nightly --cron "0 6 * * 1-5" --timezone Europe/Berlin',
            "qo schedule add nightly --interval 15m --input full=false --overlap skip",
            'qo schedule add nightly --rrule "FREQ=MONTHLY;BYDAY=-1FR" --name month-end',
        ),
    ),
    "schedule list": ("cli_schedule:list_", DOORS, ("qo schedule list", "qo schedule list nightly --json")),
    "schedule pause": ("cli_schedule:pause", DOORS, ("qo schedule pause nightly month-end",)),
    "schedule resume": ("cli_schedule:resume", DOORS, ("qo schedule resume nightly month-end",)),
    "schedule remove": ("cli_schedule:remove", DOORS, ("qo schedule remove nightly month-end",)),
    "automation add": (
        "cli_automation:add",
        DOORS,
        (
            "qo automation add import --on-file 'incoming/*.csv'",
            "qo automation add rebuild --on-file '/srv/site/*' --event created --event changed --as source",
            "qo automation add nightly --notify slack-webhook/alerts",
            "qo automation add --notify webhook/pager --of failed --of awaiting-approval",
        ),
    ),
    "automation list": ("cli_automation:list_", DOORS, ("qo automation list", "qo automation list --json")),
    "automation remove": ("cli_automation:remove", DOORS, ("qo automation remove 'import on created'",)),
    "policy show": ("cli_policy:show", SERVICE, ("qo policy show", "qo policy show --untrusted --json")),
    "policy test": (
        "cli_policy:judge_set",
        SERVICE,
        ("qo policy test tour.json", "qo policy test from-a-model.json --untrusted --json"),
    ),
    "audit show": ("cli_audit:show", SERVICE, ("qo audit show", "qo audit show --run 20260102-030405 --json")),
    "audit verify": (
        "cli_audit:verify",
        SERVICE,
        ("qo audit verify", "qo audit verify --head 12:$(cat head-of-monday)", "qo audit verify --json | jq -r .head"),
    ),
    "api": (
        "cli_api:api",
        SERVICE,
        ("qo api --workspace ../shop", "qo api --port 8410 --rate 200", "qo api --host 0.0.0.0 --workspace /srv/shop"),
    ),
    "token create": (
        "cli_api:create_token",
        SERVICE,
        ("qo token create ci --scope run --scope read", "qo token create ada --scope approve --json"),
    ),
    "token list": ("cli_api:list_tokens", SERVICE, ("qo token list",)),
    "token revoke": ("cli_api:revoke_token", SERVICE, ("qo token revoke ci",)),
    "webhooks add": (
        "cli_webhooks:add",
        SERVICE,
        (
            "qo webhooks add deploy --provider github --secret-env SECRET --event push --branch main --set deploy.json",
            "qo webhooks add docs --provider gitlab --secret-block docs --path 'docs/**' --set d.json --workspace docs",
            "qo webhooks add paid --provider standard --secret-env PAID --when 'inputs.payload.paid' --set paid.json",
        ),
    ),
    "webhooks list": ("cli_webhooks:list_", SERVICE, ("qo webhooks list", "qo webhooks list --json")),
    "webhooks remove": ("cli_webhooks:remove", SERVICE, ("qo webhooks remove deploy",)),
    "webhooks test": (
        "cli_webhooks:judge",
        SERVICE,
        (
            "qo webhooks test deploy --payload push.json",
            "qo webhooks test deploy --payload push.json --send http://127.0.0.1:8410",
        ),
    ),
    "webhooks replay": ("cli_webhooks:replay", SERVICE, ("qo webhooks replay 20260102-030405-1a2b3c",)),
    "inbox list": ("cli_inbox:list_", SERVICE, ("qo inbox list", "qo inbox list --workspace ../shop --json")),
    "inbox run": ("cli_inbox:run", SERVICE, ("qo inbox run 12",)),
    "up": ("cli_service:up", SERVICE, ("qo up",)),
    "down": ("cli_service:down", SERVICE, ("qo down",)),
    "doctor": ("cli_service:doctor", SERVICE, ("qo doctor", "qo doctor --all-workspaces", "qo doctor --json")),
    "completion": ("cli_service:completion", SERVICE, ("qo completion bash", "qo completion zsh --install")),
}
"""Name -> where its function is, its group in the help, examples."""

PARENTS = {
    "hooks": "Git hooks that run instruction sets.",
    "automation": "What Prefect does by itself: run deployments for files, tell of runs that fail.",
    "deployment": "The Prefect deployments of instruction sets.",
    "schedule": "When deployments run by themselves: schedules of Prefect's.",
    "policy": "What this machine allows sets to do.",
    "token": "Who may use the API.",
    "webhooks": "Which deliveries run which sets.",
    "inbox": "What the API, webhooks and watched folders have accepted.",
    "audit": "Who began, approved, ended and undid which runs.",
}
"""Commands that only have commands."""

Printer = Callable[[dict[str, Any]], None]
_FLAGS = ("-q", "--quiet", "-v", "--verbose", "--no-color", "--json", "--json-stream")


def version() -> str:
    """The installed version."""
    from importlib.metadata import version

    return version("quantum-orchestrator")


app = App(
    name="qo",
    help="Run JSON instruction sets on a workspace: all or nothing, by Prefect.",
    help_epilogue="`qo COMMAND --help` shows a command's options and examples.",
    help_format="plaintext",
    version=version,
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _place, (_name, (_target, _group, _examples)) in enumerate(COMMANDS.items()):
    _parent, _, _own = _name.rpartition(" ")
    if _parent and _parent not in app:
        _inner = App(name=_parent, help=PARENTS[_parent], sort_key=_place, group=_group, version_flags=())
        _inner.default_parameter, _inner.help_format = app.default_parameter, app.help_format
        app.command(_inner)
    (app[_parent] if _parent else app).command(
        f"quantum_orchestrator.deployments.{_target}",
        name=_own,
        sort_key=_place,
        group=_group,
        help_epilogue="\n".join(["Examples:", *(f"  {example}" for example in _examples)]),
    )


def command(name: str) -> App:
    """The command of this name, imported."""
    found = app
    for part in name.split():
        found = found[part]
    return found


def main() -> NoReturn:
    """Carry out this process's command line here, whatever service there is: `qo` is `qo.main`."""
    sys.exit(carry_out(sys.argv[1:]))


def carry_out(arguments: Sequence[str]) -> int:
    """Carry out one command line as this process's own; its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # one way to end in order
    return invoke(arguments)


def by_itself(arguments: Sequence[str], unserved: Unserved) -> int:
    """The same for one that no warm service carries out; where one could have, it is started for the next."""
    screen = _screen(arguments)
    if screen.verbose and unserved.telling:
        screen.note(f"without the warm service: {unserved.reason}")
    code = carry_out(arguments)
    if unserved.startable and "prefect" in sys.modules:  # it has paid for the import
        from quantum_orchestrator.deployments import service

        try:
            service.start()
        except (OSError, QuantumError) as problem:
            screen.note(f"no warm service was started: {problem}")
        else:
            screen.note(
                "started a warm service: the next runs begin at once (`qo down` ends it, QO_SERVICE=off forgoes it)"
            )
    return code


def _screen(arguments: Sequence[str]) -> Screen:
    """Where to say what is not a command's own."""
    options = set(takewhile(lambda each: each != "--", arguments))
    return Screen(
        quiet=not options.isdisjoint(("-q", "--quiet")),
        verbose=not options.isdisjoint(("-v", "--verbose")),
        color="--no-color" not in options,
    )


def invoke(arguments: Sequence[str]) -> int:
    """Carry out one command line; its exit code."""
    try:
        with collected_seldom():
            return _invoked(arguments)
    except BrokenPipeError:
        return _reader_has_gone()


def _invoked(arguments: Sequence[str]) -> int:
    """The same. Raises BrokenPipeError where nobody reads what it prints."""
    screen = _screen(arguments)
    tokens = _arranged(arguments)
    if not tokens or tokens[0] in ("--help", "-h", *PARENTS):
        for name in COMMANDS:
            if not tokens or tokens[0] not in PARENTS or name.startswith(f"{tokens[0]} "):
                command(name)  # imports it, for the line that the help has of it
    try:
        code = app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _interrupted(screen, _printer(screen, arguments))
    except CycloptsError as error:
        return _usage(screen, error, stream="--json-stream" in arguments)
    except Exception as error:
        return _failed(screen, error, _printer(screen, arguments))
    return code if isinstance(code, int) else 0


def _arranged(arguments: Sequence[str]) -> list[str]:
    """The same with a lone `-` by a name that is no option, and with options put before the command behind it."""
    options = list(takewhile(lambda each: each in _FLAGS, arguments))
    rest = [STDIN if each == "-" else each for each in arguments[len(options) :]]
    return [*rest[:1], *options, *rest[1:]]


# What becomes of errors.


def _reader_has_gone() -> int:
    """Whoever read our output has closed it, as `head` does: not worth a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
    return 141  # as the shell has it for a program that SIGPIPE ended


def _interrupted(screen: Screen, print_document: Printer) -> int:
    """By Ctrl-C, with nothing to undo: a run that is at work ends in its own way."""
    # `python -m` remembers one that met an `exec` of text, as imports do, as one that nobody caught, and would end by
    # SIGINT; any other `exec` makes it forget (CPython: `unhandled_keyboard_interrupt`).
    exec("")  # noqa: S102
    screen.problem("interrupted")
    print_document({"status": "cancelled", "error": {"type": "Interrupted", "message": "interrupted", "hint": ""}})
    sys.stdout.flush()
    return 130


def _usage(screen: Screen, error: CycloptsError, *, stream: bool) -> int:
    error.verbose = False
    command = " ".join(error.command_chain or ())
    said = str(error).partition(" Available commands:")[0]  # cut off in its middle; the help has them all
    known = InvalidInput(said.strip().rstrip("."), hint=f"`{f'qo {command}'.strip()} --help` shows what there is")
    screen.error(known)
    if stream:  # which has a last line, whatever happens
        from quantum_orchestrator.deployments.json_stream import finish

        finish(error_json(known))
    return known.exit_code


def _printer(screen: Screen, arguments: Sequence[str]) -> Printer:
    """What prints a document in the place of a result, for programs; for people there is none."""
    options = set(takewhile(lambda each: each != "--", arguments))
    if "--json-stream" in options:
        from quantum_orchestrator.deployments.json_stream import finish

        return finish
    return screen.document if "--json" in options else lambda _: None


def _failed(screen: Screen, error: Exception, print_document: Printer) -> int:
    if screen.verbose:
        import traceback

        screen.warn("".join(traceback.format_exception(error)).rstrip())
    shown = as_known(error)
    faults = getattr(shown, "faults", None)
    if faults:
        for fault in faults:
            screen.problem(str(fault))
        screen.note(f"{plural(len(faults), 'fault')}; nothing has run", "")
    else:
        screen.error(shown)
    print_document(error_json(shown))
    sys.stdout.flush()
    return shown.exit_code


if __name__ == "__main__":
    main()
