"""Folders for one script: gone with it, and with whoever was killed over it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.script_folders import abandoned, bytes_in, folder_for_now, remove, remove_abandoned

HOLDER = """
import sys, time
from pathlib import Path
from quantum_orchestrator.blocks.script_folders import folder_for_now
with folder_for_now(Path(sys.argv[1]), "layer-") as folder:
    (folder / "inner").mkdir(mode=0)
    print(flush=True)
    time.sleep(60)
"""


def test_it_is_the_users_alone_and_gone_at_the_end(tmp_path: Path) -> None:
    with folder_for_now(tmp_path, "x-") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("")
    assert list(tmp_path.iterdir()) == []


def test_it_is_gone_after_a_failure_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), folder_for_now(tmp_path, "x-"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_one_in_use_stays_and_that_of_a_killed_process_goes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with folder_for_now(tmp_path, "layer-") as ours, folder_for_now(tmp_path, "other-") as other:
            remove_abandoned(tmp_path, "layer-")
            assert len(list(tmp_path.glob("layer-*"))) == 2
            holder.kill()
            holder.wait()
            remove_abandoned(tmp_path, "layer-")
            assert sorted(tmp_path.iterdir()) == sorted([ours, other])


def test_none_is_abandoned_where_there_is_no_folder(tmp_path: Path) -> None:
    assert list(abandoned(tmp_path / "none", "x-")) == []


def test_folders_that_are_closed_or_too_deep_for_any_path_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "closed").mkdir(parents=True)
    (top / "closed" / "file").write_text("")
    (top / "closed").chmod(0)
    (top / "link").symlink_to(tmp_path)
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d" * 100, dir_fd=descriptor)
        inner = os.open("d" * 100, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.chmod(descriptor, 0o500)
    os.close(descriptor)
    remove(top)
    assert list(tmp_path.iterdir()) == []


def test_what_it_takes_of_the_disk_counts_every_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "empty").write_text("")
    (tmp_path / "large").write_bytes(bytes(100_000))
    assert 100_000 + 2 * 4096 <= bytes_in(tmp_path) <= 200_000
