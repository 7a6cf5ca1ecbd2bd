"""Every error the product raises on purpose, in one tree.

Each says what is wrong, where, and (in `hint`) what to do next; the command line prints exactly that, never a
traceback. `exit_code` is the process's exit code when the error ends it:
1 failed and rolled back, 3 invalid input, 4 needs attention, 5 awaiting approval, 130 interrupted.

    QuantumError
    ├── InvalidInput              exit 3: nothing has run
    │   ├── InvalidSet            a document, with all of its faults (flows/instruction_set.py)
    │   └── UsageError            the command line, a missing file
    ├── OperationError            an instruction failed; the run decides what follows
    │   ├── PathRefused           a path that is spelt wrong or leads out of the workspace
    │   ├── PolicyRefused         allowed by spelling, refused by a setting
    │   ├── TimedOut
    │   └── ModelError            a language model was not asked, or what it answered cannot be used
    │       ├── ModelUnavailable  for now: asking again may help
    │       ├── ModelRefused      it will not answer this
    │       ├── BadAnswer         it answered something else than what was asked for
    │       ├── BudgetExceeded    asking could break a budget: it was not asked
    │       └── OfflineCannot     it takes a model, and none is configured
    ├── NeedsAttention            exit 4: a person must look; says which command settles it
    │   └── WorkspaceBusy
    ├── ServerError               the Prefect server could not be started or reached
    └── StateError                the journal or the state folder is unusable
Interrupted is a BaseException beside the tree, so that no operation's `except Exception` can swallow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class QuantumError(Exception):
    """What went wrong, and in `hint` what to do about it. `details` are JSON values for programs that read errors."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: Mapping[str, Any] = details or {}

    @property
    def kind(self) -> str:
        """The name users see as `error.type`."""
        return type(self).__name__


class InvalidInput(QuantumError):
    """What was given cannot be used; nothing has run."""

    exit_code = 3


class UsageError(InvalidInput):
    """The command line, or a file it names, is wrong."""


class OperationError(QuantumError):
    """An instruction failed."""


class PathRefused(OperationError):
    """A path is refused, by its spelling or by what is there."""


class PolicyRefused(OperationError):
    """A setting forbids it; `hint` names the setting."""


class TimedOut(OperationError):
    """An instruction took longer than its `timeout`."""


class ModelError(OperationError):
    """A language model was not asked, or what it answered cannot be used."""


class ModelUnavailable(ModelError):
    """The model cannot answer now; asking again may help. `retry_after` is the seconds that its server asks for, and
    `billed` says whether the try may have cost something all the same."""

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None, billed: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after
        self.billed = billed


class ModelRefused(ModelError):
    """The model, or its server, will not answer this; asking again does not help."""


class BadAnswer(ModelError):
    """The model answered, but not with what was asked for. `said` is what it said, as far as that is known."""

    def __init__(self, message: str, *, hint: str = "", said: str = "") -> None:
        super().__init__(message, hint=hint)
        self.said = said


class BudgetExceeded(ModelError):
    """Asking the model could break a budget: it was not asked."""


class OfflineCannot(ModelError):
    """No model is configured, and rules alone cannot do it."""


class NeedsAttention(QuantumError):
    """A person must look before anything goes on."""

    exit_code = 4


class WorkspaceBusy(NeedsAttention):
    """Another run holds the workspace."""


class ServerError(QuantumError):
    """The Prefect server could not be started or reached."""


class StateError(QuantumError):
    """The state folder or the journal in it cannot be used."""

    exit_code = 4


class Interrupted(BaseException):
    """The run was interrupted or cancelled. Not an Exception: operations must not swallow it."""
