"""Which Prefect API the user has configured, and what it asks for, read without importing Prefect.

Prefect looks, in this order, at the environment, `.env`, `prefect.toml` and `pyproject.toml` of the current folder,
and the active profile; importing it to ask costs two seconds. Here the same places are read for a few settings, so that
commands that need no Prefect can tell, and our own server can start while Prefect is imported. A test compares the
answers with Prefect's own. Whoever is about to use a URL found here asks Prefect itself (`server.Pending.wait`).
"""

from __future__ import annotations

import base64
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from quantum_orchestrator.blocks.errors import UsageError


def configured_api_url() -> str | None:
    """The API URL that Prefect would use in this environment and folder; None if none is configured.

    UsageError if a file that Prefect reads is no TOML: Prefect could not be imported here.
    """
    return _configured("PREFECT_API_URL", "api", "url")


def authorization() -> dict[str, str]:
    """The header that shows a configured API who asks, as Prefect's own client makes it; none if none is configured."""
    if login := _configured("PREFECT_API_AUTH_STRING", "api", "auth_string"):
        return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    if key := _configured("PREFECT_API_KEY", "api", "key"):
        return {"Authorization": f"Bearer {key}"}
    return {}


_read_from: list[object] = []
"""What Prefect's settings were last read from; nothing before they were."""


def read_again() -> None:
    """See that Prefect's settings and loggers are as they are configured now, where it is imported or soon will be.

    It reads them once, when it is imported: in a fork of the warm service that was long ago, and in another folder. To
    read them again takes 0.3 s, so that is done only where something is not as it was.
    """
    sources = _sources()
    before, _read_from[:] = [*_read_from], [sources]
    if "prefect.main" not in sys.modules or before == [sources]:
        return
    import prefect.context
    from prefect.logging.configuration import setup_logging

    prefect.context.refresh_global_settings_context()
    setup_logging(incremental=False)


def _sources() -> tuple[object, ...]:
    """All that Prefect's settings are made of: the environment, and the files that it looks for."""
    chosen = {
        name: value
        for name, value in os.environ.items()
        if name.upper().startswith("PREFECT_") or name.upper() in ("DO_NOT_TRACK", "HOME")
    }
    files = [
        _content(Path(".env"), about=b"prefect"),
        _content(Path("prefect.toml"), about=b""),
        _content(Path("pyproject.toml"), about=b"prefect"),
    ]
    return (chosen, *files, _content(profiles_path(), about=b""))


def _content(file: Path, *, about: bytes) -> bytes | None:
    """What a file holds, if it speaks `about` this."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content if about in content.lower() else None


def _configured(name: str, *keys: str) -> str | None:
    """A setting by its name in the environment and in profiles, and by its keys in TOML; None if it is not set."""
    for value in (_in_environment(name), _in_dotenv(name), *_in_toml(*keys), _in_profile(name)):
        if value is not None:
            return value or None
    return None


def profiles_path() -> Path:
    """The file with the user's Prefect profiles, there or not."""
    home = os.environ.get("PREFECT_HOME")
    chosen = os.environ.get("PREFECT_PROFILES_PATH") or _in_dotenv("PREFECT_PROFILES_PATH")
    chosen = chosen or next((path for path in _in_toml("profiles_path") if path), None)
    return Path(chosen) if chosen else Path(home or "~/.prefect").expanduser() / "profiles.toml"


def ui_address(api_url: str) -> str:
    """Where the UI of an API is, as Prefect infers it."""
    if chosen := os.environ.get("PREFECT_UI_URL"):
        return chosen
    cloud = api_url.replace("https://api.prefect.cloud/api", "https://app.prefect.cloud")
    page = cloud.removesuffix("/api").replace("/api/", "/")
    return page.replace("/accounts/", "/account/").replace("/workspaces/", "/workspace/")


def _in_environment(name: str) -> str | None:
    # Prefect's settings take any letter case.
    return next((value for key, value in os.environ.items() if key.upper() == name), None)


def _in_dotenv(name: str) -> str | None:
    file = Path(".env")
    if not file.is_file():
        return None
    from dotenv import dotenv_values

    return next((value for key, value in dotenv_values(file).items() if key.upper() == name), None)


def _in_toml(*keys: str) -> list[str | None]:
    """A setting in prefect.toml, and in pyproject.toml below [tool.prefect]."""
    places = (("prefect.toml", keys), ("pyproject.toml", ("tool", "prefect", *keys)))
    return [_text(_toml(Path(file)), path) for file, path in places]


def _in_profile(name: str) -> str | None:
    file = profiles_path()
    if not file.is_file():
        return None
    try:
        profiles = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError:
        return None  # Prefect warns of it and goes on without a profile
    active = os.environ.get("PREFECT_PROFILE") or _text(profiles, ("active",))
    return _text(profiles, ("profiles", active, name)) if active else None


def _toml(file: Path) -> Mapping[str, object]:
    if not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file.absolute()} is no TOML: {error}", hint="Prefect reads this file for its settings: mend it"
        ) from error


def _text(value: object, path: tuple[str, ...]) -> str | None:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None
