"""Strict YAML: numbers as people write them, unknown keys refused, what is saved loads again."""

import dataclasses
import math
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llava.config import build, load, read_yaml, save, to_plain
from llava.errors import ConfigError


@dataclass(frozen=True)
class Step:
    """One entry of a list of dataclasses."""

    command: str
    inputs: list[Path] = field(default_factory=list)
    rate: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A field of every kind that the project's configurations use."""

    name: str
    steps: list[Step] = field(default_factory=list)
    size: tuple[int, int] = (336, 336)
    seeds: tuple[int, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    by_name: dict[str, Step] = field(default_factory=dict)
    first: Step | None = None
    limit: int | None = None
    mode: Literal["cosine", "nll", 3] = "cosine"
    folder: Path = Path("runs")
    exact: bool = False
    either: int | str = 0
    anything: Any = None
    plain_list: list = field(default_factory=list)


@pytest.fixture
def yaml_file(tmp_path):
    """Writes text (or bytes) to a YAML file and returns its path."""

    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def same(a, b) -> bool:
    """Equal and of one type, NaN equal to itself, so that 1, 1.0 and True differ."""
    return repr(a) == repr(b)


# ---------------------------------------------------------------- plain values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E3", 1000.0),
        ("-1e-4", -1e-4),
        ("+1e+4", 1e4),
        ("1e5", 1e5),
        (".5e3", 500.0),
        ("1.e-3", 1e-3),
        ("1.5e-3", 1.5e-3),
        ("2e-05", 2e-5),
        ("0.1", 0.1),
        ("1.0", 1.0),
        ("-3", -3),
        ("0", 0),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("12e", "12e"),
        ("1e", "1e"),
        ("1e5x", "1e5x"),
        ("1e-", "1e-"),
        ("-e5", "-e5"),
        (".e5", ".e5"),
        ("1e5.0", "1e5.0"),
        ("1-e5", "1-e5"),
        ("0.7.3", "0.7.3"),
        ('"2e-5"', "2e-5"),
        ("'1E3'", "1E3"),
        ('"1"', "1"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("a word", "a word"),
        ("clip@336", "clip@336"),
        ("C+D@336", "C+D@336"),
        ("[1, 2e0, a]", [1, 2.0, "a"]),
        ("{b: 1e1}", {"b": 10.0}),
    ],
)
def test_scalars(yaml_file, text, value):
    """Numbers with an exponent need no point; versions, names and quoted numbers stay text."""
    assert same(read_yaml(yaml_file(f"a: {text}\n")), {"a": value})


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n", "---\n"])
def test_empty_file(yaml_file, text):
    """Nothing is None, and a configuration of defaults where no key is required."""

    @dataclass(frozen=True)
    class Free:
        a: int = 1

    assert read_yaml(yaml_file(text)) is None
    assert load(Free, yaml_file(text)) == Free()
    with pytest.raises(ConfigError, match="name: this key is required"):
        load(Recipe, yaml_file(text))


def test_byte_order_mark(yaml_file):
    """Some editors begin a UTF-8 file with one."""
    assert read_yaml(yaml_file("\ufeffa: 1\n")) == {"a": 1}


def test_windows_line_ends(yaml_file):
    """A carriage return is no part of a value."""
    assert read_yaml(yaml_file("a: x\r\nb: y\r\n")) == {"a": "x", "b": "y"}


def test_same_key_in_two_mappings(yaml_file):
    """Only one mapping must not say a thing twice."""
    text = "- {a: 1}\n- {a: 2, b: {a: 3}}\n"
    assert read_yaml(yaml_file(text)) == [{"a": 1}, {"a": 2, "b": {"a": 3}}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3: key 'a' stands already on line 1"),
        ("s:\n  - x: 1\n    x: 2\n", r"line 3: key 'x' stands already on line 2"),
        ("{a: 1, a: 2}", r"key 'a' stands already on line 1"),
        ("1: a\n1: b\n", r"line 2: key '1' stands already"),
        ("? [1, 2]\n: 3\n", r"line 1: a key must be a word, not list"),
        ("a: [1, 2\n", r"not valid YAML"),
        ("a: b: c\n", r"not valid YAML"),
        ("\ta: 1\n", r"not valid YAML"),
        ("a: 1\n---\nb: 2\n", r"not valid YAML"),
        ("a: *nowhere\n", r"not valid YAML"),
        ("a: &a {b: *a}\n", r"not valid YAML"),
        ("a: \x01\n", r"not valid YAML"),
        ("a: \x00\n", r"not valid YAML"),
        (b"a: gr\xfcn\n", r"cannot be read as UTF-8"),
        ("a: 1\n".encode("utf-16"), r"cannot be read as UTF-8"),
    ],
)
def test_refused_files(yaml_file, text, message):
    """Each message begins with the file."""
    path = yaml_file(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object:os.system {}",
        "a: !!python/object/apply:os.getcwd []",
        "a: !!python/name:os.system",
        "a: !!python/tuple [1]",
        "!!python/module:os",
        "a: !mine 1",
        "a: !!float abc",
        "a: !!int abc",
        "a: !!bool maybe",
        "a: !!timestamp never",
        "a: !!pairs 3",
    ],
)
def test_odd_tags(yaml_file, text):
    """No tag makes an object, runs code or gets past as another error."""
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        read_yaml(yaml_file(text))


@pytest.mark.parametrize("text", ["2024-02-30", "0b_", "0x_", "9" * 5000])
def test_values_that_only_look_right(yaml_file, text):
    """A day that no month has, a number without digits or with too many: an error or text."""
    try:
        assert read_yaml(yaml_file(f"a: {text}\n")) == {"a": text}
    except ConfigError as error:
        assert "recipe.yaml" in str(error)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_deep_nesting(yaml_file, opening, closing):
    """Brackets enough to exhaust the stack are a ConfigError like other bad files."""
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        read_yaml(yaml_file(opening * 1200 + closing * 1200))


def bomb(doublings: int) -> str:
    """A short file whose aliases stand for 2**doublings words."""
    lines = ["a0: &a0 x"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, doublings + 1)]
    return "\n".join(lines) + f"\nname: *a{doublings}\n"


@pytest.mark.timeout(20)
def test_alias_bomb_is_read_at_once(yaml_file):
    """Aliases that stand for 2**60 words are refused, or share what they stand for."""
    try:
        value = read_yaml(yaml_file(bomb(60)))
    except ConfigError:
        return
    assert value["a60"][0] is value["a60"][1]


def test_alias_bomb_is_not_written_out(yaml_file):
    """Nor does a message spell it out before it is cut: 2**18 words here would take 3 MB.

    The words of 2**60 would take the machine.
    """

    @dataclass(frozen=True)
    class Named:
        name: str

    path = yaml_file(bomb(18))
    tracemalloc.start()
    with pytest.raises(ConfigError) as caught:
        build(Named, {"name": read_yaml(path)["name"]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert peak < 1_000_000


def test_missing_file(tmp_path, monkeypatch):
    """A relative path is wrong mostly for where one stands, so that is told."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file") as caught:
        read_yaml("nothing.yaml")
    assert str(tmp_path) in str(caught.value)


def test_folder_for_a_file(tmp_path):
    """A folder is not read."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


# ------------------------------------------------------------------- typed values


def test_whole_recipe(yaml_file):
    """Every kind of field at once, from text to values."""
    path = yaml_file(
        """
        name: all
        steps:
          - command: one
          - {command: two, inputs: [a, b/c], rate: 3}
        size: [224, 448]
        seeds: [1, 2, 3]
        weights: {a: 1, b: 2e-5}
        by_name:
          x: {command: three}
        first: {command: four}
        limit: 1e3
        mode: nll
        folder: some/where
        exact: true
        either: text
        anything: {k: [1, null]}
        plain_list: [1, a]
        """
    )
    expected = Recipe(
        name="all",
        steps=[Step("one"), Step("two", [Path("a"), Path("b/c")], 3.0)],
        size=(224, 448),
        seeds=(1, 2, 3),
        weights={"a": 1.0, "b": 2e-5},
        by_name={"x": Step("three")},
        first=Step("four"),
        limit=1000,
        mode="nll",
        folder=Path("some/where"),
        exact=True,
        either="text",
        anything={"k": [1, None]},
        plain_list=[1, "a"],
    )
    assert same(load(Recipe, path), expected)


def test_defaults():
    """A key that is not given has the dataclass's default."""
    assert build(Recipe, {"name": "a"}) == Recipe("a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "name: expected text, got 1"),
        ({"name": None}, "name: expected text, got None"),
        ({"name": True}, "name: expected text, got True"),
        ({"name": ["a"]}, "name: expected text"),
        ({"steps": "a"}, "steps: expected a list, got 'a'"),
        ({"steps": {"command": "a"}}, "steps: expected a list"),
        ({"steps": ["a"]}, "steps[0]: expected a mapping, got 'a'"),
        ({"steps": [{"command": "a"}, {"command": 2}]}, "steps[1].command: expected text, got 2"),
        ({"steps": [{}]}, "steps[0].command: this key is required"),
        (
            {"steps": [{"command": "a", "inputs": ["x", 5]}]},
            "steps[0].inputs[1]: expected a path, got 5",
        ),
        ({"steps": [{"command": "a", "rate": "2e-5"}]}, "steps[0].rate: expected a number"),
        ({"steps": [{"command": "a", "rate": True}]}, "steps[0].rate: expected a number"),
        ({"steps": [{"command": "a", "rate": math.inf}]}, "steps[0].rate: expected a finite"),
        ({"steps": [{"command": "a", "rate": math.nan}]}, "steps[0].rate: expected a finite"),
        ({"size": [1]}, "size: expected 2 items, got 1"),
        ({"size": [1, 2, 3]}, "size: expected 2 items, got 3"),
        ({"size": [1, "b"]}, "size[1]: expected a whole number, got 'b'"),
        ({"size": 336}, "size: expected a list, got 336"),
        ({"seeds": [1, 2.5]}, "seeds[1]: expected a whole number, got 2.5"),
        ({"seeds": [True]}, "seeds[0]: expected a whole number, got True"),
        ({"weights": {"a": "b"}}, "weights.a: expected a number, got 'b'"),
        ({"weights": {1: 1}}, "weights: expected text, got 1"),
        ({"weights": []}, "weights: expected a mapping, got []"),
        ({"by_name": {"x": {"rate": 1}}}, "by_name.x.command: this key is required"),
        ({"first": {"command": 5}}, "first.command: expected text, got 5"),
        ({"limit": "3"}, "limit: expected a whole number, got '3'"),
        ({"limit": 1.5}, "limit: expected a whole number, got 1.5"),
        ({"limit": math.inf}, "limit: expected a whole number"),
        ({"limit": False}, "limit: expected a whole number, got False"),
        ({"mode": "cosin"}, "mode: unknown value 'cosin'; did you mean 'cosine'?"),
        ({"mode": 3.0}, "mode: unknown value '3.0'"),
        ({"mode": []}, "mode: unknown value '[]'"),
        ({"folder": 1}, "folder: expected a path, got 1"),
        ({"folder": None}, "folder: expected a path, got None"),
        ({"exact": 1}, "exact: expected true or false, got 1"),
        ({"exact": "true"}, "exact: expected true or false, got 'true'"),
        ({"either": 1.5}, "expected a whole number, got 1.5 or either: expected text, got 1.5"),
        ({"either": True}, "either: expected a whole number, got True"),
    ],
)
def test_wrong_type(changes, message):
    """The path of the value, what was expected, what was found."""
    with pytest.raises(ConfigError) as caught:
        build(Recipe, {"name": "a", **changes})
    assert message in str(caught.value)


def test_load_names_file_and_path(yaml_file):
    """The place inside of the file follows the file."""
    path = yaml_file("name: a\nsteps:\n- command: x\n- command: [y]\n")
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path)
    assert str(caught.value) == f"{path}: steps[1].command: expected text, got ['y']"


def test_a_number_too_large_for_a_float():
    """A whole number beyond the floats is refused as infinity is."""
    with pytest.raises(ConfigError, match="rate: expected"):
        build(Step, {"command": "a", "rate": 10**400})


@pytest.mark.parametrize("value", [[], "text", 3, ["a"]])
def test_top_level_is_a_mapping(value):
    """A list or a word is no configuration."""
    with pytest.raises(ConfigError, match="top level: expected a mapping"):
        build(Recipe, value)


def test_missing_required_key():
    """The key is named."""
    with pytest.raises(ConfigError, match=r"^name: this key is required"):
        build(Recipe, {"limit": 3})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"nme": "a"}, "unknown key 'nme'; did you mean 'name'?"),
        ({"name": "a", "Limit": 3}, "unknown key 'Limit'; did you mean 'limit'?"),
        ({"name": "a", 5: 3}, "unknown key '5'; known: name, steps"),
        ({"name": "a", "zzzzzz": 3}, "unknown key 'zzzzzz'; known: name, steps"),
    ],
)
def test_unknown_key(value, message):
    """The nearest key is suggested, and without one the known keys are listed."""
    with pytest.raises(ConfigError) as caught:
        build(Recipe, value)
    assert str(caught.value).startswith(message)


def test_unknown_key_further_down():
    """The path stands before the message as with every other error."""
    with pytest.raises(ConfigError) as caught:
        build(Recipe, {"name": "a", "steps": [{"command": "a"}, {"comand": "b"}]})
    assert str(caught.value) == "steps[1]: unknown key 'comand'; did you mean 'command'?"


def test_the_class_checks_its_own_values():
    """A ValueError of `__post_init__` becomes a ConfigError with the path."""

    @dataclass(frozen=True)
    class Positive:
        a: int = 1

        def __post_init__(self):
            if self.a <= 0:
                raise ValueError("a must be positive")

    @dataclass(frozen=True)
    class Outer:
        inner: list[Positive]

    with pytest.raises(ConfigError, match=r"^a must be positive$"):
        build(Positive, {"a": 0})
    with pytest.raises(ConfigError, match=r"^inner\[1\]: a must be positive$"):
        build(Outer, {"inner": [{}, {"a": -1}]})


def test_long_values_are_cut_in_messages():
    """A page of text pasted in a wrong place does not fill the screen."""
    with pytest.raises(ConfigError) as caught:
        build(Recipe, {"name": "a", "limit": "x" * 5000})
    assert len(str(caught.value)) < 200


def test_build_does_not_share_what_it_was_given():
    """Lists and mappings are copied, so that two configurations of one file stay apart."""
    weights = {"a": 1.0}
    recipe = build(Recipe, {"name": "a", "weights": weights, "seeds": [1]})
    weights["a"] = 2.0
    assert recipe.weights == {"a": 1.0}


# --------------------------------------------------------------------- round trip


def test_to_plain():
    """What YAML and JSON hold: no dataclass, tuple or path is left."""
    recipe = Recipe("a", steps=[Step("b", [Path("c")])], first=Step("d"), seeds=(1,))
    plain = to_plain(recipe)
    assert plain["steps"] == [{"command": "b", "inputs": ["c"], "rate": 1.0}]
    assert plain["first"]["command"] == "d"
    assert plain["seeds"] == [1]
    assert plain["folder"] == "runs"
    assert list(plain) == [f.name for f in dataclasses.fields(Recipe)]
    yaml.safe_dump(plain)


def test_save_writes_the_defaults(tmp_path):
    """A run can be repeated from its folder after a default has changed."""
    save(Recipe("grün"), tmp_path / "run" / "config.yaml")
    text = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("name: grün\n")
    assert read_yaml(tmp_path / "run" / "config.yaml")["size"] == [336, 336]


@pytest.mark.parametrize(
    "text",
    [
        *("2e-5", "123e4567", "1E3", ".5e3", "1", "0.5", "0x1F", "010", "1_000", ".inf", ".nan"),
        *("true", "on", "null", "~", "", "1:30", "2024-08-29", "<<", "=", "!x", "&a", "*a", "%a"),
        *("@a", "`a", "{a", "[a", "a,b", "a: b", "- a", "# a", " a ", "\ta", "a\nb\n", "'", '"'),
        *("é", "\u2028"),
    ],
)
def test_text_comes_back_as_text(tmp_path, text):
    """A commit such as 123e4567, a version or a switch written as text is text when read again."""
    recipe = Recipe("a", by_name={text or "k": Step(text)}, anything={"text": text})
    save(recipe, tmp_path / "a.yaml")
    assert same(load(Recipe, tmp_path / "a.yaml"), recipe)


def test_fields_that_are_computed(tmp_path):
    """A field outside of `__init__` does not keep a saved configuration from loading."""

    @dataclass(frozen=True)
    class Derived:
        a: int = 1
        twice: int = field(init=False, default=2)

    save(Derived(3), tmp_path / "a.yaml")
    assert load(Derived, tmp_path / "a.yaml") == Derived(3)


WORDS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t"), max_size=9
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
PATHS = st.lists(st.text("abc.-é 1e", min_size=1, max_size=5), min_size=1, max_size=3).map(
    lambda parts: Path(*parts)
)
STEPS = st.builds(Step, command=WORDS, inputs=st.lists(PATHS, max_size=2), rate=FLOATS)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
RECIPES = st.builds(
    Recipe,
    name=WORDS,
    steps=st.lists(STEPS, max_size=3),
    size=st.tuples(st.integers(), st.integers()),
    seeds=st.lists(st.integers(), max_size=3).map(tuple),
    weights=st.dictionaries(WORDS, FLOATS, max_size=3),
    by_name=st.dictionaries(WORDS, STEPS, max_size=2),
    first=st.none() | STEPS,
    limit=st.none() | st.integers(),
    mode=st.sampled_from(["cosine", "nll", 3]),
    folder=PATHS,
    exact=st.booleans(),
    either=st.integers() | WORDS,
    anything=ANYTHING,
    plain_list=st.lists(ANYTHING, max_size=3),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(recipe=RECIPES)
@example(recipe=Recipe("a", weights={"tiny": 5e-324, "large": 1.7976931348623157e308, "e": 1e22}))
@example(recipe=Recipe("a", steps=[Step("b", rate=1e-5), Step("c", rate=-0.0)], limit=10**30))
def test_round_trip(tmp_path_factory, recipe):
    """build -> save -> load gives the same values of the same types, to the last digit."""
    path = tmp_path_factory.mktemp("config") / "a.yaml"
    save(recipe, path)
    assert same(load(Recipe, path), recipe)
    assert same(build(Recipe, to_plain(recipe)), recipe)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=40) | st.text("ab:- []{}*&!|>'\"#0123e.\n", max_size=40))
def test_any_file_is_a_value_or_a_config_error(tmp_path_factory, data):
    """Whatever stands in a file, no other exception leaves."""
    path = tmp_path_factory.mktemp("config") / "a.yaml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    try:
        load(Recipe, path)
    except ConfigError as error:
        assert str(path) in str(error)
