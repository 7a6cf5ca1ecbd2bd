"""The work in the languages of those peers that have one of their own. Nothing here runs anything."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.benchmarks.peers.work import Kind, Work


def _shell(work: Work, path: str, text: str) -> str:
    """One item, as a line for a shell."""
    if work.kind is Kind.SCRIPTS:
        return work.script
    return f"echo '{text}' {'>>' if work.kind is Kind.CHAIN else '>'} {path}"


def makefile(work: Work) -> str:
    """For GNU make."""
    if work.kind is Kind.WRITES:
        targets = " ".join(path for path, _ in work.items())
        rules = "".join(f"{path}:\n\t@{_shell(work, path, text)}\n" for path, text in work.items())
        return f"all: {targets}\n.PHONY: all\n{rules}"
    names = " ".join(f"s{number}" for number in range(work.size))
    return f"all: {names}\n.PHONY: all {names}\n" + "".join(_recipes(work, "\t@"))


def _recipes(work: Work, indent: str) -> Iterator[str]:
    for number, (path, text) in enumerate(work.items()):
        before = f" s{number - 1}" if work.kind is Kind.CHAIN and number else ""
        yield f"s{number}:{before}\n{indent}{_shell(work, path, text)}\n"


def justfile(work: Work) -> str:
    """For just; what nothing depends on comes one by one, as just has no number of jobs."""
    wanted = [work.size - 1] if work.kind is Kind.CHAIN else range(work.size)
    return "all: " + " ".join(f"s{number}" for number in wanted) + "\n" + "".join(_recipes(work, "    @"))


def taskfile(work: Work) -> str:
    """For go-task: YAML, which JSON is."""
    chain = work.kind is Kind.CHAIN
    tasks: dict[str, object] = {
        f"s{number}": {
            "cmds": [_shell(work, path, text)],
            "deps": [f"s{number - 1}"] if chain and number else [],
            **({"generates": [path], "status": [f"test -f {path}"]} if work.kind is Kind.WRITES else {}),
        }
        for number, (path, text) in enumerate(work.items())
    }
    last = [f"s{work.size - 1}"]
    tasks["all"] = {"deps": last if chain else list(tasks)}
    return json.dumps({"version": "3", "silent": True, "tasks": tasks})


def ninja(work: Work) -> str:
    """For ninja, which knows no rule without a file: what has none gets an empty one in done/."""
    if work.kind is Kind.WRITES:
        lines = ["rule write", "  command = echo '$text' > $out"]
        for path, text in work.items():
            lines += [f"build {path}: write", f"  text = {text}"]
        return "\n".join(lines) + "\n"
    lines = ["rule work", "  command = $do && : > $out"]
    for number, (path, text) in enumerate(work.items()):
        before = f" done/{number - 1}" if work.kind is Kind.CHAIN and number else ""
        lines += [f"build done/{number}: work{before}", f"  do = {_shell(work, path, text)}"]
    return "\n".join(lines) + "\n"


def snakefile(work: Work) -> str:
    """For Snakemake, which knows no rule without a file either."""
    if work.kind is Kind.WRITES:
        return (
            f"rule all:\n    input: [f'folder-{{n % 100}}/file-{{n}}' for n in range({work.size})]\n"
            "rule write:\n    output: 'folder-{folder}/file-{n}'\n"
            "    shell: \"echo 'content {wildcards.n}' > {output}\"\n"
        )
    chain = work.kind is Kind.CHAIN
    wanted = f"['done/{work.size - 1}']" if chain else f"[f'done/{{n}}' for n in range({work.size})]"
    before = "    input: lambda one: [f'done/{int(one.n) - 1}'] if int(one.n) else []\n" if chain else ""
    act = "echo 'content {wildcards.n}' >> log.txt" if chain else work.script
    return (
        f"rule all:\n    input: {wanted}\nrule work:\n{before}    output: touch('done/{{n}}')\n    shell: \"{act}\"\n"
    )


def playbook(work: Work) -> str:
    """For Ansible: YAML, which JSON is; one task with a loop."""
    if work.kind is Kind.WRITES:
        items: list[object] = [{"path": path, "text": f"{text}\n"} for path, text in work.items()]
        task = {"ansible.builtin.copy": {"dest": "{{ playbook_dir }}/{{ item.path }}", "content": "{{ item.text }}"}}
    else:
        items = [_shell(work, path, text) for path, text in work.items()]
        task = {"ansible.builtin.shell": {"cmd": "{{ item }}", "chdir": "{{ playbook_dir }}"}}
    one = {"name": "work", **task, "loop": items, "loop_control": {"label": "one"}}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [one]}
    return json.dumps([play])
