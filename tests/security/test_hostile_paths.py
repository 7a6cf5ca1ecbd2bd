"""Spellings and things on disk that must be refused: each would lead somewhere else on some system, or in some tool."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.confined import ConfinedFolder, has_openat2
from quantum_orchestrator.blocks.errors import PathRefused
from quantum_orchestrator.blocks.paths import check_path

SPELLINGS = {
    "is empty": [""],
    "leads out of the workspace": ["..", "../x", "a/../../x", "../../../../etc/passwd", "a/b/../../..", "..//x"],
    "is refused, even where it stays": ["a/../b", "a/..", "a/b/../c/../d"],
    "'.' as a part": ["./a", "a/./b", "a/.", "./."],
    "is the workspace itself": ["."],
    "empty name between": ["a//b", "a///b/c"],
    "ends in '/'": ["a/", "a/b/"],
    "is an absolute path": ["/", "/etc/passwd", "/proc/self/root/etc", "/../x"],
    "is a network path": ["//x", "//server/share/file", "\\\\server\\share", "\\\\?\\C:\\x", "\\\\.\\pipe\\x"],
    "means a home folder": ["~", "~/x", "~root/.ssh/authorized_keys", "~+/x"],
    "contains a backslash": ["a\\b", "..\\x", "a\\..\\..\\x", "a/..\\x", ".git\\config"],
    "begins with a drive letter": ["C:", "c:x", "C:/x", "C:\\Windows\\system32", "a:b"],
    "contains ':'": ["ab:c", "src/file.txt:stream", "file::$DATA", "a/C:"],
    "is a URL": ["https://example.org/x", "file:///etc/passwd", "git+ssh://x/y", "data://x"],
    "contains a NUL": ["a\0", "a\0b", "\0", "ok.txt\0/../../x"],
    "control character": ["a\nb", "a\rb", "a\tb", "\x1b[2Jx", "a\x7f", "a\x85b", "a\u2028b", "a\u2029b"],
    "turns the text around": ["a\u202egpj.exe", "\u200ex", "a\u200fb", "a/\u2066b", "x\u2069", "\u061cx"],
    "lone surrogate": ["a\ud800", "\udcff/x", "\udfff"],
    "composed form": ["cafe\u0301", "a/\u212b", "\u1100\u1161"],
    "ends in a dot": ["a.", "a./b", "a...", "conf.d./x"],
    "ends in a space": ["a ", "a /b", "a\u00a0", "a\u3000/b"],
    "nothing but dots": ["...", "a/....", " ", "...../x", ". .", "\uff0e\uff0e/x", "\u2025/x", "a/\u2026"],
    "device on Windows": [
        *("con", "CON", "nul", "a/NUL/b", "nul.txt", "aux.c", "PRN", "com1", "COM9.log", "lpt1"),
        *("com¹", "LPT³.txt", "conin$", "CONOUT$", "aux .h", "nul.tar.gz"),
    ],
    "bytes": ["x" * 256, "é" * 128, "a/" + "日" * 86, "/".join(["dir"] * 1100)],
    "belongs to git": [
        *(".git", ".git/config", "a/.git/hooks/pre-commit", ".GIT", ".gIt/x", ".Git", "a/b/.GIT/c"),
        *(".git.", ".git ", ".git . .", ".git.../x", ".git::$INDEX_ALLOCATION", ".git:stream", "GIT~1", "git~1/config"),
        *("a/GiT~2", ".g\u200bit", ".git\u200d", "\ufeff.git", ".g\u200cit/config", ".gi\u00adt", ".git\ufe0f"),
        *("．ｇｉｔ", "\uff0egit", ".ｇｉｔ/config", "\u2024git", ".g\u0131t", ".gi\u2060t"),
        *(".gitmodules", ".GitModules", "a/.gitmodules", ".gitmodules.", "GITMOD~1", "gi7eba~1", "GI7EB~10"),
    ],
}  # fmt: skip

HOSTILE = [(spelling, why) for why, spellings in SPELLINGS.items() for spelling in spellings]


@pytest.mark.parametrize(("spelling", "why"), HOSTILE, ids=[ascii(spelling)[:60] for spelling, _ in HOSTILE])
def test_a_hostile_spelling_is_refused_for_what_it_is(spelling: str, why: str) -> None:
    for folder in (False, True):
        if folder and spelling == ".":
            continue
        with pytest.raises(PathRefused) as refused:
            check_path(spelling, folder=folder)
        assert why in refused.value.message
        assert refused.value.message.isprintable()
        refused.value.message.encode()


def test_there_are_many_of_them() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 100


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/"])
@pytest.mark.parametrize("end", ["", "/config"])
def test_every_letter_case_of_git_is_refused_at_every_depth(prefix: str, end: str) -> None:
    cases = [f".{g}{i}{t}" for g in "gG" for i in "iI" for t in "tT"]
    for name in cases:
        with pytest.raises(PathRefused, match="belongs to git"):
            check_path(f"{prefix}{name}{end}")


# What is there. A workspace beside a secret, and every way that leads from the one to the other.

WAYS = [
    pytest.param(True, id="openat2", marks=pytest.mark.skipif(not has_openat2(), reason="needs openat2")),
    pytest.param(False, id="steps"),
]


@pytest.fixture(params=WAYS)
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ConfinedFolder]:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside / "sub", inside / "real/sub"):
        folder.mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    (outside / "sub/secret").write_bytes(b"secret")
    (inside / "real/file").write_bytes(b"inside")
    (inside / "to_outside").symlink_to("../outside")
    (inside / "to_absolute").symlink_to(outside)
    (inside / "to_inside").symlink_to("real")
    (inside / "to_root").symlink_to("/")
    (inside / "to_itself").symlink_to("to_itself")
    (inside / "to_nothing").symlink_to("../outside/new")
    (inside / "to_secret").symlink_to("../outside/secret")
    (inside / "to_file").symlink_to("real/file")
    (inside / "real/up").symlink_to("..")
    (inside / "to_magic").symlink_to("/proc/self/root")
    os.mkfifo(inside / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(Path(os.path.relpath(inside)) / "socket"))
    listener.close()
    before = everything_in(outside)
    with ConfinedFolder.open(inside, openat2=request.param) as opened:
        yield opened
    assert everything_in(outside) == before


def everything_in(folder: Path) -> dict[Path, tuple[int, int, bytes]]:
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        found[path] = (status.st_mode, status.st_mtime_ns, path.read_bytes() if stat.S_ISREG(status.st_mode) else b"")
    return found


Act = Callable[[ConfinedFolder, str], object]
ACTS: dict[str, Act] = {
    "lstat": lambda folder, path: folder.lstat(path),
    "read": lambda folder, path: folder.read(path),
    "names": lambda folder, path: folder.names(path),
    "readlink": lambda folder, path: folder.readlink(path),
    "write": lambda folder, path: folder.write(path, b"changed", 0o777),
    "mkdir": lambda folder, path: folder.mkdir(path, 0o777),
    "chmod": lambda folder, path: folder.chmod(path, 0o777),
    "symlink": lambda folder, path: folder.symlink(path, "x"),
    "unlink": lambda folder, path: folder.unlink(path),
    "rmdir": lambda folder, path: folder.rmdir(path),
    "rename from": lambda folder, path: folder.rename(path, "moved"),
    "rename to": lambda folder, path: folder.rename("real/file", path),
}

THROUGH_LINKS = [
    ("to_outside/secret", "to_outside"),
    ("to_outside/sub/secret", "to_outside"),
    ("to_outside/new", "to_outside"),
    ("to_absolute/secret", "to_absolute"),
    ("to_inside/file", "to_inside"),
    ("to_inside/sub/new", "to_inside"),
    ("to_root/etc/passwd", "to_root"),
    ("to_itself/x", "to_itself"),
    ("to_nothing/x", "to_nothing"),
    ("to_secret/x", "to_secret"),
    ("real/up/real/file", "real/up"),
    ("real/up/to_outside/secret", "real/up"),
    ("to_magic/etc/passwd", "to_magic"),
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("path", "link"), THROUGH_LINKS)
def test_nothing_is_done_through_a_link_on_the_way(workspace: ConfinedFolder, path: str, link: str, act: str) -> None:
    with pytest.raises(PathRefused) as refused:
        ACTS[act](workspace, path)
    assert refused.value.message == f"{path!r}: {link!r} is a symbolic link"
    assert "never followed" in refused.value.hint


@pytest.mark.parametrize("act", ["read", "names", "write", "mkdir", "chmod"])
@pytest.mark.parametrize("link", ["to_outside", "to_inside", "to_secret", "to_file", "to_itself", "to_nothing"])
def test_a_link_is_not_taken_for_what_it_leads_to(workspace: ConfinedFolder, link: str, act: str) -> None:
    with pytest.raises(PathRefused, match=f"'{link}'.* is a symbolic link"):
        ACTS[act](workspace, link)


def test_removing_and_moving_a_link_leaves_what_it_leads_to(workspace: ConfinedFolder) -> None:
    workspace.rename("to_secret", "moved")
    workspace.unlink("moved")
    workspace.unlink("to_outside")
    with pytest.raises(NotADirectoryError):
        workspace.rmdir("to_absolute")
    workspace.rename("real/file", "to_file")  # in its place, not through it
    assert workspace.read("to_file") == b"inside"


@pytest.mark.parametrize(("name", "noun"), [("fifo", "a FIFO"), ("socket", "a socket")])
@pytest.mark.parametrize("act", ["read", "write", "mkdir", "chmod"])
def test_a_special_file_is_neither_read_nor_written_and_nobody_waits_for_it(
    workspace: ConfinedFolder, name: str, noun: str, act: str
) -> None:
    with pytest.raises(PathRefused, match=f"'{name}': is {noun}, and a "):
        ACTS[act](workspace, name)
    status = workspace.lstat(name)
    assert status is not None
    assert not stat.S_ISREG(status.st_mode)


@pytest.mark.parametrize("make", [stat.S_IFCHR, stat.S_IFBLK], ids=["character", "block"])
@pytest.mark.parametrize("act", ["read", "write", "chmod"])
def test_a_device_is_refused(workspace: ConfinedFolder, make: int, act: str) -> None:
    try:
        os.mknod(workspace.root / "device", make | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only an administrator makes devices")
    with pytest.raises(PathRefused, match=r"'device': is a (character|block) device, and a file"):
        ACTS[act](workspace, "device")


def test_special_files_that_a_script_left_can_be_removed(workspace: ConfinedFolder) -> None:
    workspace.unlink("fifo")
    workspace.unlink("socket")
    assert not {"fifo", "socket"} & set(workspace.names("."))


@pytest.mark.parametrize("act", sorted(ACTS.keys() - {"lstat"}))
@pytest.mark.parametrize(
    ("path", "thing"),
    [("real/file/x", "real/file"), ("real/file/x/y", "real/file"), ("fifo/x", "fifo"), ("socket/x", "socket")],
)
def test_what_is_no_folder_is_not_used_as_one(workspace: ConfinedFolder, path: str, thing: str, act: str) -> None:
    with pytest.raises(PathRefused) as refused:
        ACTS[act](workspace, path)
    assert refused.value.message == f"{path!r}: {thing!r} is not a folder, and is used as one"


def test_a_folder_is_neither_read_nor_overwritten(workspace: ConfinedFolder) -> None:
    for act in ("read", "write"):
        with pytest.raises(PathRefused, match="'real': is a folder, and a file is needed"):
            ACTS[act](workspace, "real")


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    "path",
    [
        *("..", "../outside", "../outside/secret", "real/..", "real/../../outside/secret", "real/../real/file"),
        *("/etc/passwd", "/x", "//x", "", "real/", "real//file", "./real", "real/.", "real/./file"),
        *("real\0/file", "real/file\0", "\0", "real\0/../../outside/secret"),
    ],
    ids=ascii,
)
def test_a_path_that_was_never_judged_still_does_not_lead_out(workspace: ConfinedFolder, path: str, act: str) -> None:
    with pytest.raises(PathRefused, match="is not the path of something in the workspace"):
        ACTS[act](workspace, path)


@pytest.mark.parametrize("openat2", WAYS)
def test_a_mounted_file_system_is_not_the_workspaces(openat2: bool) -> None:
    with ConfinedFolder.open(Path("/"), openat2=openat2) as folder:
        for act in (folder.read, folder.lstat):
            with pytest.raises(PathRefused, match="'proc/version': 'proc' is a mount point"):
                act("proc/version")
        with pytest.raises(PathRefused, match="'proc': 'proc' is a mount point"):
            folder.names("proc")
