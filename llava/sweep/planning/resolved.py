"""The representations that a plan is of, also before `prepare` has made their towers."""

from collections.abc import Sequence

from llava.errors import LawError, UsageError
from llava.sweep.config import SweepConfig
from llava.sweep.planning.vision import Candidate, Unresolved
from llava.sweep.space import candidates, check_names, extra_names, names


def resolved(config: SweepConfig) -> tuple[list[Candidate], list[Candidate]]:
    """(what is chosen among, references of the cosine A score).

    Raises UnknownNameError, UsageError for names that stand for nothing.
    """
    check_names(config)
    return _all(config, names(config)), _all(config, extra_names(config))


def _all(config: SweepConfig, texts: Sequence[str]) -> list[Candidate]:
    try:
        return [one.representation for one in candidates(config, texts)]
    except UsageError:
        raise
    except LawError:
        return [one for text in texts for one in _each(config, text)]


def _each(config: SweepConfig, text: str) -> list[Candidate]:
    try:
        return [one.representation for one in candidates(config, [text])]
    except UsageError:
        raise
    except LawError:  # a folder that is not there yet
        if not config.prepare:
            raise
        return [Unresolved(text, tuple(text.split("+")))]
