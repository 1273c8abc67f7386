"""Errors that a user can act on: what was wrong, what was expected, what to type next."""

import difflib
from collections.abc import Iterable


class LawError(Exception):
    """Work that failed for a reason a user can mend; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(LawError):
    """A flag, name or configuration that cannot be meant."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that nothing goes by."""


class ConfigError(UsageError):
    """A YAML file whose keys or values do not fit the fields they select."""


class TableError(LawError):
    """A results table that cannot be read, or whose numbers cannot be compared."""


class MissingPackageError(LawError):
    """An optional package that this command needs and that does not import."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most likely misspells, or None where nothing is near."""
    by_lowercase = {candidate.lower(): candidate for candidate in known}
    match = difflib.get_close_matches(name.lower(), by_lowercase, n=1, cutoff=0.6)
    return by_lowercase[match[0]] if match else None


def unknown_name(kind: str, name: str, known: Iterable[str], listing: str = "") -> str:
    """Message for an unknown `kind` ("benchmark", "key"): the near name, else some that exist.

    `listing` is the command that prints every name, where there is one.
    """
    known = list(known)
    near = nearest(name, known)
    if near:
        return f"unknown {kind} '{name}'; did you mean '{near}'?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    more = f"; `{listing}` lists them all" if listing and len(known) > 12 else ""
    return f"unknown {kind} '{name}'; known: {shown or 'none'}{more}"
