"""Errors, named by their consequence.

The class of an error says what happens next to the clip, the source or the store; its text says
what happened to what, and its `hint` what the operator can do. Adapters translate whatever their
libraries raise at their own edge (`raise … from err`); an exception that is none of these is a bug
and ends the process. A message must never contain a secret (password, token, session URI).
"""

from __future__ import annotations


class NvrBackupError(Exception):
    """Base of every error this program foresees.

    `origin` names the configured part that failed (`sources.home`, `stores.offsite`); the core
    fills it in where the call is made, so adapters need not.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.origin = ""

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class ConfigError(NvrBackupError):
    """The configuration cannot be used: no start (exit 78), or the old one stays on reload."""


class Transient(NvrBackupError):
    """Worth another try later: the clip goes back to the backlog with a later `not_before`.

    `retry_after` (seconds) is the other side's own wish, where it stated one.
    """

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Suspect(Transient):
    """The body that came is not a whole video: empty, cut off, an error page.

    Tried again with patience, because a restarting recorder serves such bodies for a while; set
    aside only after the same finding many times in a row (`pool.PATIENCE`).
    """


class StartOver(Transient):
    """This upload cannot go on from where it is: its session is gone, or its bytes are in doubt.

    Nothing of it counts; the clip begins again at byte 0, at once but a limited number of times.
    """


class Unfit(NvrBackupError):
    """This clip cannot be backed up as things are: set aside by name with this reason."""


class Blocked(NvrBackupError):
    """Nothing on this source or store can succeed until someone or something mends it.

    Everything on it waits, without counting as an attempt of any clip; a slow probe finds out
    when it works again.
    """


class KeyTaken(NvrBackupError):
    """The object key already holds an object: nothing was written and nothing was replaced.

    `maybe_ours` is true when an earlier request of this same upload may have created it (its
    answer was lost).
    """

    def __init__(self, message: str, *, maybe_ours: bool = False) -> None:
        super().__init__(message)
        self.maybe_ours = maybe_ours
