"""What a machine's owner allows: the settings of `policy.toml`. Every other module only asks.

A policy is a list of restrictions: an `allow` list refuses what it does not name, a `deny` list what it names, and
numbers are limits. Two policies together are the stricter one (`narrowed`), and what a set that is not trusted may do
is the same policy, narrowed further (`for_untrusted`) - but for what `[untrusted]` grants by name. So nothing that is
added to a policy can ever allow more, and the order in which things are added does not matter.

What a set changes is judged by its paths, when it is known exactly: before it is written where an operation can be
predicted, and afterwards, with all of it undone, where it cannot. The verdicts here are about single names; which
names an instruction means is `flows/guard.py`'s matter. This module does not know where the file lies.

The settings are in `SETTINGS`; `blocks/policy_file.py` reads and judges them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.errors import PolicyRefused
from quantum_orchestrator.blocks.globs import Finder, name_finder, path_finder

GIT_PROTOCOLS = ("https", "ssh", "http", "git", "file")
"""Protocols that may be allowed. Others are helper programs that a URL names (`ext::sh -c …`), and never are."""
HIGHEST_LEVEL = 4
UNTRUSTED_LEVEL = 3
"""Programs that an untrusted set chooses need this sandbox level at least."""
MOST = 10**9
"""Enough to mean "without a limit"; more overflows clocks and columns."""
CACHES = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".venv", "node_modules")
BUILT_IN = "built in"
EXECUTED = (
    # What a forge or a build service runs.
    *("**/.github/workflows/**", "**/.github/actions/**", ".gitlab-ci.yml", "**/.circleci/**", "**/.buildkite/**"),
    *("azure-pipelines.yml", "bitbucket-pipelines.yml", ".travis.yml", ".drone.yml", "Jenkinsfile", ".woodpecker.yml"),
    # What Python runs when it starts, builds or tests.
    *("conftest.py", "sitecustomize.py", "usercustomize.py", "*.pth", "setup.py", "setup.cfg", "pyproject.toml"),
    *("pytest.ini", "tox.ini", "noxfile.py", "fabfile.py", "dodo.py"),
    # What git, editors and shells run when they come by.
    *(".gitattributes", ".pre-commit-config.yaml", ".pre-commit-hooks.yaml", "lefthook.yml", "**/.husky/**", ".envrc"),
    *("**/.vscode/tasks.json", "**/.vscode/settings.json", "**/.devcontainer/**", ".exrc", ".nvimrc", ".mise.toml"),
    # What builds.
    *(
        "Makefile",
        "GNUmakefile",
        "*.mk",
        "justfile",
        ".justfile",
        "Rakefile",
        "Gemfile",
        "CMakeLists.txt",
        "meson.build",
    ),
    *("package.json", ".npmrc", ".yarnrc", ".yarnrc.yml", ".pnpmfile.cjs", "binding.gyp", "composer.json"),
    *(
        "build.rs",
        "**/.cargo/config",
        "**/.cargo/config.toml",
        "build.gradle*",
        "settings.gradle*",
        "gradlew",
        "pom.xml",
    ),
    *("Dockerfile", "*.Dockerfile", "compose.y*ml", "docker-compose*.y*ml", "Vagrantfile", "Taskfile.y*ml", ".bazelrc"),
)
"""Files that tools execute, or take commands from, without being asked."""


class Kind(Enum):
    """What a setting holds, and so how two of them come together."""

    ALLOW = auto()  # globs: what matches none of them is refused
    DENY = auto()  # globs: what matches one is refused
    ASK = auto()  # globs: what matches one needs an approval
    NAMES = auto()  # names that are needed for something: fewer are stricter
    PROTOCOLS = auto()  # the same, of git's
    FOLDERS = auto()  # names of folders
    LEVEL = auto()  # of the sandbox: higher is stricter
    NUMBER = auto()
    LIMIT = auto()  # 0 is none, lower is stricter
    FLAG = auto()  # what must be done, if one of them says so
    GRANT = auto()  # what is granted, if all of them say so
    GRANTED = auto()  # names that are granted: fewer are stricter
    BLOCK = auto()  # the name of a Prefect block; empty for none


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the file: `key` in `[table]`. `own` ones are the machine's own matter, and the same for all."""

    table: str
    key: str
    kind: Kind
    default: Any
    about: str
    own: bool = False

    @property
    def name(self) -> str:
        """As messages and `qo policy show` have it."""
        return f"{self.table}.{self.key}"

    @property
    def field(self) -> str:
        """What Policy and the Prefect block call it."""
        return f"{self.table}_{self.key}"


SETTINGS = (
    Setting("operations", "allow", Kind.ALLOW, ("*",), "operations that may be used"),
    Setting("operations", "deny", Kind.DENY, (), "operations that may not"),
    Setting("paths", "allow", Kind.ALLOW, ("**",), "paths that may be changed"),
    Setting("paths", "deny", Kind.DENY, (), "paths that may not"),
    Setting("programs", "allow", Kind.ALLOW, ("*",), "programs that a set may start: the first word, or sh for a text"),
    Setting("programs", "deny", Kind.DENY, (), "programs that it may not"),
    Setting("http", "allow", Kind.ALLOW, ("*",), "hosts that http.request may reach"),
    Setting("http", "deny", Kind.DENY, (), "hosts that it may not"),
    Setting("http", "hosts", Kind.NAMES, (), "hosts on this machine or a private network that it may reach"),
    Setting("git", "protocols", Kind.PROTOCOLS, ("https", "ssh"), "how git may reach other repositories"),
    Setting("limits", "processes", Kind.LIMIT, 512, "processes of one script (0: no limit)"),
    Setting("limits", "output_mb", Kind.LIMIT, 10, "what is kept of each of its outputs, in MiB"),
    Setting("limits", "file_mb", Kind.LIMIT, 1024, "the largest file that it may write, in MiB"),
    Setting("limits", "memory_mb", Kind.LIMIT, 0, "the memory that each of its processes may take, in MiB"),
    Setting("limits", "cpu_seconds", Kind.LIMIT, 0, "the processor time that each of its processes may take"),
    Setting("limits", "written_mb", Kind.LIMIT, 4096, "what it may write in all, in MiB; measured at level 4 alone"),
    Setting("limits", "seconds", Kind.LIMIT, 0, "the time that it may take"),
    Setting("limits", "model_calls", Kind.LIMIT, 200, "questions to language models of one run"),
    Setting("limits", "model_tokens", Kind.LIMIT, 4_000_000, "tokens of these questions and their answers"),
    Setting("limits", "model_cost", Kind.LIMIT, 0, "what they may cost, in the currency of the models' prices"),
    Setting("approvals", "operations", Kind.ASK, (), "operations that need an approval, each time"),
    Setting("approvals", "files", Kind.ASK, (), "files that need an approval when they change"),
    Setting("sandbox", "require", Kind.LEVEL, 0, "scripts run at this level of the sandbox at least, or are refused"),
    Setting("sandbox", "prefer", Kind.LEVEL, 0, "and at this one where it works, or else the highest that does"),
    Setting("snapshot", "exclude", Kind.FOLDERS, CACHES, "folders that no snapshot and no diff looks into", own=True),
    Setting("journal", "keep_days", Kind.NUMBER, 90, "for how long a run that has ended can be undone", own=True),
    Setting("journal", "keep_runs", Kind.NUMBER, 500, "for how many runs", own=True),
    Setting("journal", "max_size_mb", Kind.NUMBER, 2048, "and in how much space, in MiB; goes first", own=True),
    Setting(
        "doors",
        "trusted",
        Kind.NAMES,
        (),
        "doors whose sets are trusted: api, hooks, mcp, watch:FOLDER, webhook:NAME; globs",
        own=True,
    ),
    Setting("prefect", "policy", Kind.BLOCK, "", "a policy block of the Prefect server that narrows this", own=True),
)
GRANTS = (
    Setting("untrusted", "secrets", Kind.GRANTED, (), "secrets that an untrusted set may name"),
    Setting("untrusted", "network", Kind.GRANT, False, "whether an untrusted set may reach other machines"),
)
BY_NAME: Mapping[str, Setting] = {each.name: each for each in (*SETTINGS, *GRANTS)}
SUBJECTS = {"operations": "operation", "paths": "path", "programs": "program", "http": "host"}


@dataclass(frozen=True, slots=True)
class Given:
    """A setting that somebody has written down: its name, such as `paths.deny`, its value, and where it stands."""

    name: str
    value: Any
    where: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """An `allow` or `deny` list, or one of those that ask for an approval. `where` says which setting it is."""

    name: str
    patterns: tuple[str, ...]
    where: str = field(default="", compare=False)

    @property
    def _finder(self) -> Finder:
        if BY_NAME[self.name].table == "paths" or self.name == "approvals.files":
            # The stricter way round: a path is allowed by its own spelling, and refused in any.
            return path_finder(self.patterns, any_case=not self.name.endswith(".allow"))
        return name_finder(self.patterns, any_case=self.name.startswith("http."))

    def find(self, name: str) -> str | None:
        """The pattern that the name matches."""
        return self._finder(name)

    def refusal(self, name: str) -> PolicyRefused | None:
        """Why it is refused."""
        found, setting = self._finder(name), BY_NAME[self.name]
        if (found is None) is (setting.kind is Kind.DENY):
            return None
        why = f"names {found!r}" if found is not None else "does not name it"
        return refused(f"{SUBJECTS[setting.table]} {name!r}", f"{self.where} {why}")


def refused(what: str, decided_by: str) -> PolicyRefused:
    """The error of every refusal: what was refused, and which setting decides."""
    return PolicyRefused(f"the policy refuses {what}", hint=decided_by)


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings, each under its table and key: `git_protocols` is `protocols` in `[git]`. Lists that allow, deny or
    ask are `rules`, of which every one counts."""

    git_protocols: tuple[str, ...] = ("https", "ssh")
    http_hosts: tuple[str, ...] = ()
    snapshot_exclude: tuple[str, ...] = CACHES
    sandbox_require: int = 0
    journal_keep_days: int = 90
    journal_keep_runs: int = 500
    journal_max_size_mb: int = 2048
    prefect_policy: str = ""
    doors_trusted: tuple[str, ...] = ()
    limits_processes: int = 512
    limits_output_mb: int = 10
    limits_file_mb: int = 1024
    limits_memory_mb: int = 0
    limits_cpu_seconds: int = 0
    limits_written_mb: int = 4096
    limits_seconds: int = 0
    limits_model_calls: int = 200
    limits_model_tokens: int = 4_000_000
    limits_model_cost: int = 0
    sandbox_prefer: int = 0
    rules: tuple[Rule, ...] = ()
    untrusted_secrets: tuple[str, ...] = ()
    untrusted_network: bool = False
    untrusted: tuple[Given, ...] = ()
    """Further settings for sets that are not trusted."""
    network: bool = True
    """Whether operations may reach other machines at all."""
    secrets: tuple[str, ...] | None = None
    """The secrets that may be named; None for all."""
    lenient: bool = False
    """Nothing is refused or asked for, whoever asks."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where each setting that was given stands, by its name."""

    @classmethod
    def load(cls, path: Path | None) -> Policy:
        """Read a file; the defaults without one (`None`, or nothing there).

        Raises InvalidInput when it cannot be read, is not TOML, or holds a wrong name or value.
        """
        from quantum_orchestrator.blocks.policy_file import read

        return cls() if path is None else cls().given(read(path))

    def given(self, settings: Iterable[Given]) -> Policy:
        """With these settings in the place of the defaults."""
        policy = self
        for each in settings:
            if BY_NAME.get(each.name, _NONE).kind in _PLAIN:
                policy = replace(policy, **{BY_NAME[each.name].field: each.value}, sources=policy._noted(each))
            else:
                policy = policy.narrowed([each])
        return policy

    def narrowed(self, settings: Iterable[Given]) -> Policy:
        """With these settings too, of each the stricter one."""
        policy = self
        for each in settings:
            policy = policy._narrowed(each)
        return policy

    def _narrowed(self, given: Given) -> Policy:
        if given.name not in BY_NAME:  # untrusted.paths.deny and the like
            return replace(self, untrusted=(*self.untrusted, given))
        setting = BY_NAME[given.name]
        if setting.kind in (Kind.ALLOW, Kind.DENY, Kind.ASK):
            if given.value == setting.default:  # it says nothing
                return replace(self, sources=self._noted(given))
            rule = Rule(given.name, given.value, given.where)
            return replace(self, rules=(*self.rules, rule), sources=self._noted(given))
        if setting.own:
            return self
        now = getattr(self, setting.field)
        value = _stricter(setting.kind, now, given.value)
        return self if value == now else replace(self, **{setting.field: value}, sources=self._noted(given))

    def _noted(self, given: Given) -> dict[str, str]:
        earlier = self.sources.get(given.name)
        both = f"{earlier}; {given.where}" if earlier and given.where not in earlier else given.where
        return {**self.sources, given.name: both if BY_NAME[given.name].kind not in _PLAIN else given.where}

    def for_untrusted(self) -> Policy:
        """What holds for sets that are not trusted."""
        if self.lenient:
            return self
        narrowed = self.narrowed(
            [
                Given("sandbox.require", UNTRUSTED_LEVEL, f"{BUILT_IN}, for untrusted sets"),
                Given("sandbox.prefer", HIGHEST_LEVEL, f"{BUILT_IN}, for untrusted sets"),
                Given("approvals.files", EXECUTED, f"{BUILT_IN}, for untrusted sets"),
                *(replace(each, name=each.name.removeprefix("untrusted.")) for each in self.untrusted),
            ]
        )
        return replace(narrowed, network=self.untrusted_network, secrets=self.untrusted_secrets)

    # Verdicts.

    def trusts(self, door: str) -> bool:
        """Whether sets that come in by a door are trusted: `mcp`, `hooks`, `watch:` with a folder, and others."""
        return any(fnmatchcase(door, each) for each in self.doors_trusted)

    @property
    def forbids_nothing(self) -> bool:
        """Whether no operation, path, program, host or secret is refused by it, and nothing needs an approval."""
        return not self.rules and self.network and self.secrets is None and not self.sandbox_require

    def rules_of(self, name: str) -> list[Rule]:
        """All lists of a setting."""
        return [rule for rule in self.rules if rule.name == name]

    def refusals(self, table: str, name: str) -> list[PolicyRefused]:
        """Every reason why an operation, a path, a program or a host (`table`) is refused."""
        lists = (rule for rule in self.rules if BY_NAME[rule.name].table == table)
        return [found for rule in lists if (found := rule.refusal(name)) is not None]

    def asks(self, what: str, name: str) -> str | None:
        """Which setting makes an operation or a file (`what`: operations, files) need an approval."""
        for rule in self.rules_of(f"approvals.{what}"):
            found = rule.find(name)
            if found is not None:
                return f"{rule.where} names {found!r}"
        return None

    def secret_refusal(self, name: str) -> PolicyRefused | None:
        """Why a secret may not be had."""
        if self.secrets is None or name in self.secrets:
            return None
        hint = "`secrets` under [untrusted] in policy.toml grants them by name"
        return refused(f"secret {name!r}, as the set is untrusted", hint)

    def network_refusal(self, what: str) -> PolicyRefused | None:
        """Why something that reaches other machines is refused."""
        if self.network:
            return None
        return refused(
            f"{what} the network, as the set is untrusted", "`network` under [untrusted] in policy.toml grants it"
        )


_PLAIN = frozenset(Kind) - {Kind.ALLOW, Kind.DENY, Kind.ASK}
_NONE = Setting("", "", Kind.ALLOW, None, "")


def _stricter(kind: Kind, one: Any, other: Any) -> Any:
    match kind:
        case Kind.NAMES | Kind.PROTOCOLS | Kind.FOLDERS | Kind.GRANTED:
            return tuple(each for each in one if each in other)
        case Kind.LEVEL:
            return max(one, other)
        case Kind.FLAG:
            return one or other
        case Kind.GRANT:
            return one and other
    return min(filter(None, (one, other)), default=0)
