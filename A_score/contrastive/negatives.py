"""Hard negatives: a caption with one phrase exchanged for its opposite (`leftright.yaml`)."""

import re
from dataclasses import dataclass
from pathlib import Path

from llava.config import load
from llava.errors import UsageError, unknown_name

SETS = {"leftright": Path(__file__).with_name("leftright.yaml")}
"""Sets of phrases that come with the package."""


@dataclass(frozen=True)
class Phrases:
    """Opposite phrases; each stands for the other, in the order of the file, left ones first."""

    phrases: list[tuple[str, str]]

    def __post_init__(self):
        every = [phrase for pair in self.phrases for phrase in pair]
        if not every or not all(phrase.split() for phrase in every):
            raise ValueError("phrases: expected pairs of phrases, none of them empty")
        if len(set(every)) != len(every):
            raise ValueError("phrases: one of them stands there twice")

    def rewritten(self, caption: str) -> str | None:
        """The caption with the first phrase that it has exchanged, everywhere; None without one.

        Phrases are whole words in any case; each word of the opposite takes its place's case.
        """
        for one, other in [*self.phrases, *[(b, a) for a, b in self.phrases]]:
            changed, count = _pattern(one).subn(lambda found, to=other: _as(found[0], to), caption)
            if count:
                return changed
        return None


def phrases_of(name: str) -> Phrases:
    """A set that comes with the package, or one in a YAML file; UsageError for neither."""
    path = SETS.get(name, Path(name))
    if name not in SETS and not path.is_file():
        raise UsageError(f"negatives: {unknown_name('set', name, SETS)}, nor a YAML file")
    return load(Phrases, path)


def _pattern(phrase: str) -> re.Pattern:
    words = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def _as(found: str, phrase: str) -> str:
    """`phrase` with each word in the case of what was found in its place."""
    words, blanks = found.split(), re.findall(r"\s+", found)
    new = phrase.split()
    if len(new) != len(words):
        return phrase.upper() if found.isupper() else phrase
    cased = [_cased(old, word) for old, word in zip(words, new, strict=True)]
    return "".join(part for pair in zip(cased, [*blanks, ""], strict=True) for part in pair)


def _cased(old: str, word: str) -> str:
    if old.isupper():
        return word.upper()
    return word.capitalize() if old[0].isupper() else word
