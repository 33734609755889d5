"""Errors a user can do something about: what, where, and what to do next."""

from __future__ import annotations


class BuilderError(Exception):
    """Something went wrong that is not our bug; the command line prints it and exits with `exit_code`.

    The message says what and where. `hint` says what to do next, and is shown on its own line;
    a subclass sets it once for its remedy, a raise may give a better one.
    """

    exit_code = 1
    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class UsageError(BuilderError):
    """The command was asked for something that cannot be meant."""

    exit_code = 2


class CheckError(BuilderError):
    """A check was asked for and says no."""

    exit_code = 3


class StaleLockError(CheckError):
    """The lock belongs to another profile, or to an older state of this one."""

    hint = "run `build lock` and review the change of the lock"


class ToolError(BuilderError):
    """An external program is missing or failed; `output` is the end of what it wrote to stderr."""

    def __init__(self, message: str, *, hint: str | None = None, output: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output


class OfflineError(BuilderError):
    """Bytes are needed that the store does not have, and the network may not be used."""

    hint = "run the same command once without --offline"


class FetchError(BuilderError):
    """No place that was tried gave the bytes that the lock names."""


class HostileInputError(BuilderError):
    """Foreign bytes lie about themselves: they are refused, by name."""

    hint = "the file is damaged or hostile: remove it from the profile, or choose another version of it"


class StoreError(BuilderError):
    """The local store cannot be read or written."""
