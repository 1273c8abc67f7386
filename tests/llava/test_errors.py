"""Messages name what is near, and every error has its exit code."""

import pytest

from llava import errors
from llava.errors import nearest, unknown_name


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.LawError, 1),
        (errors.UsageError, 2),
        (errors.ConfigError, 2),
        (errors.TableError, 1),
        (errors.MissingPackageError, 1),
    ],
)
def test_exit_code(kind, code):
    """2 is bad usage, 1 is failed work; all of them are caught as LawError."""
    assert issubclass(kind, errors.LawError)
    assert kind("text").exit_code == code
    assert str(kind("text")) == "text"


def test_every_error_is_a_law_error():
    """An error class added beside these is caught by the command line too."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    raised = [value for value in classes if issubclass(value, BaseException)]
    assert len(raised) >= 5
    assert all(issubclass(value, errors.LawError) for value in raised)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("perfomance", "performance"),
        ("PERFORMANCE", "performance"),
        ("a_cosine", "A_cosine"),
        ("zzz", None),
        ("", None),
    ],
)
def test_nearest(name, near):
    """Case does not count; where nothing is near there is no suggestion."""
    assert nearest(name, ["A_cosine", "A_nll", "performance"]) == near


def test_nearest_of_nothing():
    """No known names: nothing is near."""
    assert nearest("a", []) is None


def test_nearest_keeps_the_known_spelling():
    """What is suggested can be typed as it stands."""
    assert nearest("c+d@336", ["CLIP@336", "C+D@336", "SD1.5"]) == "C+D@336"


def test_unknown_name_suggests_the_near_one():
    """The near name alone is named, not all names."""
    message = unknown_name("unit", "percnt", ["fraction", "percent"])
    assert message == "unknown unit 'percnt'; did you mean 'percent'?"


def test_unknown_name_lists_some():
    """Without a near name the known ones are listed."""
    assert unknown_name("unit", "%", ["a", "b"]) == "unknown unit '%'; known: a, b"


def test_unknown_name_of_nothing_known():
    """An empty list is said to be empty."""
    assert unknown_name("unit", "x", []) == "unknown unit 'x'; known: none"


def test_unknown_name_cuts_a_long_list():
    """Twelve names at most, and the command that lists the rest."""
    known = [f"{i:03}" for i in range(13)]
    message = unknown_name("tower", "zzz", known, listing="law towers")
    assert known[11] in message
    assert known[12] not in message
    assert message.endswith(", ...; `law towers` lists them all")


def test_unknown_name_shows_a_short_list_whole():
    """With twelve names nothing is left out, so no command is named."""
    known = [f"{i:03}" for i in range(12)]
    message = unknown_name("tower", "zzz", known, listing="law towers")
    assert known[11] in message
    assert "law towers" not in message
    assert "..." not in message


def test_unknown_name_takes_an_iterator():
    """Names that can be walked only once are both matched and listed."""
    assert "known: alpha" in unknown_name("x", "zzz", iter(["alpha"]))
    assert "'alpha'" in unknown_name("x", "alhpa", iter(["alpha"]))
