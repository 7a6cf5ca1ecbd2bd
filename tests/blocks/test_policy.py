"""What a policy file may say, and what is said about one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantum_orchestrator.blocks.errors import InvalidInput
from quantum_orchestrator.blocks.policy import Policy


def load(folder: Path, text: str) -> Policy:
    file = folder / "policy.toml"
    file.write_text(text, encoding="utf-8")
    return Policy.load(file)


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert Policy.load(None) == Policy.load(tmp_path / "policy.toml") == Policy()
    assert Policy().git_protocols == ("https", "ssh")
    assert Policy().http_hosts == ()
    assert Policy().sandbox_require == 0
    kept = Policy()
    assert (kept.journal_keep_days, kept.journal_keep_runs, kept.journal_max_size_mb) == (90, 500, 2048)


def test_every_setting_is_read_from_its_table(tmp_path: Path) -> None:
    text = """
    [git]
    protocols = ["https", "file"]
    [http]
    hosts = ["localhost:8080"]
    [snapshot]
    exclude = ["target"]
    [sandbox]
    require = 3
    [journal]
    keep_days = 7
    keep_runs = 0
    max_size_mb = 100
    """
    assert load(tmp_path, text) == Policy(("https", "file"), ("localhost:8080",), ("target",), 3, 7, 0, 100)


def test_what_is_left_out_keeps_its_default(tmp_path: Path) -> None:
    assert load(tmp_path, "[sandbox]\nrequire = 1\n") == Policy(sandbox_require=1)
    assert load(tmp_path, "") == Policy()


def test_an_empty_list_is_not_the_default(tmp_path: Path) -> None:
    assert load(tmp_path, "[git]\nprotocols = []\n").git_protocols == ()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[gti]\n", "unknown table [gti]", "did you mean 'git'?"),
        ("[git]\nprotocol = []\n", "unknown setting 'protocol' in [git]", "did you mean 'protocols'?"),
        ("[sandbox]\nzzz = 1\n", "unknown setting 'zzz' in [sandbox]", "there are: require, prefer"),
        ("[journal]\nkeep_day = 1\n", "unknown setting 'keep_day' in [journal]", "did you mean 'keep_days'?"),
        ("[git]\nprotocols = ['htps']\n", "unknown protocol 'htps'", "did you mean 'https'?"),
        ("[git]\nprotocols = ['ext']\n", "unknown protocol 'ext'", ""),
    ],
)
def test_a_name_that_does_not_exist_is_an_error_with_the_nearest_one(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, text)
    assert message in caught.value.message
    assert str(tmp_path / "policy.toml") in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("git = 1\n", "[git] must be a table"),
        ("[git]\nprotocols = 'https'\n", "[git] protocols must be a list"),
        ("[http]\nhosts = [1]\n", "[http] hosts must be a list"),
        ("[http]\nhosts = ['']\n", "[http] hosts must be a list"),
        ("[snapshot]\nexclude = ['a/b']\n", "[snapshot] exclude must be names"),
        ("[snapshot]\nexclude = ['.git']\n", "[snapshot] exclude must be names"),
        ("[sandbox]\nrequire = 5\n", "[sandbox] require must be a level from 0 to 4"),
        ("[sandbox]\nrequire = -1\n", "[sandbox] require must be a level from 0 to 4"),
        ("[sandbox]\nrequire = true\n", "[sandbox] require must be a level from 0 to 4"),
        ("[sandbox]\nrequire = '3'\n", "[sandbox] require must be a level from 0 to 4"),
        ("[journal]\nkeep_days = -1\n", "[journal] keep_days must be a whole number from 0"),
        ("[journal]\nkeep_runs = 1.5\n", "[journal] keep_runs must be a whole number from 0"),
        ("[journal]\nkeep_runs = true\n", "[journal] keep_runs must be a whole number from 0"),
        ("[journal]\nmax_size_mb = '2GiB'\n", "[journal] max_size_mb must be a whole number from 0"),
        ("[journal]\nmax_size_mb = 1000000001\n", "[journal] max_size_mb must be a whole number from 0"),
        ("[git\n", "cannot be read"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, text)
    assert message in caught.value.message


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="cannot be read"):
        Policy.load(tmp_path / "policy.toml")


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Policy.load(tmp_path)
