from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.registry import Registry, parameters_of


@dataclass(frozen=True)
class Apple:
    """An apple."""

    weight: float = 1.5
    count: int = 1
    kind: Literal["red", "green"] = "red"
    bites: int | None = None
    sweet: bool = True
    places: tuple[str, ...] = ()
    derived: int = field(default=7, init=False)

    def __post_init__(self):
        if self.weight <= 0:
            raise ConfigError(f"weight: must be above 0, got {self.weight}")


@dataclass(frozen=True)
class Pear:
    """A pear, which must have an age."""

    age: int
    home: Path = Path("tree")


@pytest.fixture
def fruits():
    return Registry("fruit", {"pear": Pear, "apple": Apple})


def test_the_table(fruits):
    assert list(fruits) == ["apple", "pear"]
    assert len(fruits) == 2
    assert "apple" in fruits
    assert "plum" not in fruits
    assert fruits.get("pear") is Pear


def test_the_table_is_a_copy():
    table = {"apple": Apple}
    fruits = Registry("fruit", table)
    table["pear"] = Pear
    assert list(fruits) == ["apple"]


def test_defaults_and_values(fruits):
    assert fruits.build("apple", {}) == Apple()
    assert fruits.build("apple", {"weight": 2, "places": ["a", "b"]}) == Apple(weight=2.0, places=("a", "b"))
    assert isinstance(fruits.build("apple", {"weight": 2}).weight, float)
    assert fruits.build("pear", {"age": 3, "home": "x/y"}) == Pear(3, Path("x/y"))


def test_numbers_that_yaml_reads_as_text_are_numbers(fruits):
    # YAML 1.1 reads 5e-4 as a string.
    assert fruits.build("apple", {"weight": "5e-4"}).weight == 5e-4


def test_an_unknown_member(fruits):
    with pytest.raises(
        UnknownNameError, match=r"unknown fruit 'appel'\. Did you mean 'apple'\? Known: apple, pear"
    ) as e:
        fruits.build("appel", {})
    assert (e.value.given, e.value.nearest) == ("appel", "apple")


def test_a_name_like_no_other(fruits):
    with pytest.raises(UnknownNameError, match=r"unknown fruit 'xyz'\. Known: apple, pear") as caught:
        fruits.get("xyz")
    assert caught.value.nearest is None


def test_an_empty_table():
    with pytest.raises(UnknownNameError, match="Known: none"):
        Registry("fruit", {}).get("apple")


def test_an_unknown_parameter(fruits):
    with pytest.raises(UnknownNameError, match="'wieght'. Did you mean 'weight'") as caught:
        fruits.build("apple", {"wieght": 1.0})
    assert "fruit" in str(caught.value)


def test_what_is_computed_cannot_be_given(fruits):
    with pytest.raises(UnknownNameError):
        fruits.build("apple", {"derived": 3})
    assert "derived" not in parameters_of(Apple())


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({"weight": "heavy"}, "weight"),
        ({"weight": None}, "weight"),
        ({"count": 1.5}, "count"),
        ({"count": True}, "count"),
        ({"weight": True}, "weight"),
        ({"bites": True}, "bites"),
        ({"kind": "blue"}, "kind"),
        ({"sweet": "perhaps"}, "sweet"),
        ({"places": 3}, "places"),
        ({"weight": -1.0}, "weight"),  # from the member itself
    ],
)
def test_a_wrong_value_names_its_path_and_what_was_given(fruits, params, where):
    with pytest.raises(ConfigError, match=rf"^fruit\.{where}: .*got "):
        fruits.build("apple", params)
    with pytest.raises(ConfigError, match=rf"^salad\.{where}: "):
        fruits.build("apple", params, path="salad")


def test_a_missing_value(fruits):
    with pytest.raises(ConfigError, match=r"^fruit\.age: missing"):
        fruits.build("pear", {})


@given(
    st.floats(min_value=1e-6, allow_nan=False, allow_infinity=False),
    st.integers(),
    st.sampled_from(["red", "green"]),
    st.none() | st.integers(),
    st.booleans(),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
def test_parameters_go_round(weight, count, kind, bites, sweet, places):
    apple = Apple(weight, count, kind, bites, sweet, places)
    assert Registry("fruit", {"apple": Apple}).build("apple", parameters_of(apple)) == apple


def test_only_dataclasses_have_parameters():
    with pytest.raises(ConfigError, match="object is not a dataclass"):
        parameters_of(object())


def test_given_values_are_not_changed(fruits):
    params = {"weight": 2, "places": ["a"]}
    fruits.build("apple", params)
    assert params == {"weight": 2, "places": ["a"]}


class Tree(Apple):
    """An apple that is no dataclass of its own."""


def test_a_member_is_added_once(fruits):
    @dataclass(frozen=True)
    class Plum:
        stone: bool = True

    fruits.add("plum", Plum)
    fruits.add("plum", Plum)
    assert list(fruits) == ["apple", "pear", "plum"]
    assert fruits.build("plum", {"stone": False}) == Plum(stone=False)
    with pytest.raises(ConfigError, match=r"^fruit 'plum': the name is taken by Plum; choose another"):
        fruits.add("plum", Pear)
    assert fruits.get("plum") is Plum


@pytest.mark.parametrize(
    ("name", "cls", "reason"),
    [
        ("apple", Pear, "the name is taken by Apple"),
        ("pear", Pear, "Pear must derive from Apple"),
        ("tree", Tree, "Tree is no dataclass"),
        ("", Apple, "a name must be a string"),
        ("made", Apple(), "must be a class, not Apple"),
        ("none", Apple, "it says that there is no fruit"),
    ],
)
def test_what_cannot_be_a_member(name, cls, reason):
    fruits = Registry("fruit", {"apple": Apple}, base=Apple)
    with pytest.raises(ConfigError, match=reason):
        fruits.add(name, cls)
    assert list(fruits) == ["apple"]
