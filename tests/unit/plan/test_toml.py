from __future__ import annotations

from typing import Literal

import msgspec
import pytest

from cloister.errors import ConfigError
from cloister.plan.toml import parse_toml


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    depth: int


class Dog(msgspec.Struct, forbid_unknown_fields=True, tag_field="name", tag="dog"):
    barks: bool = True


class Cat(msgspec.Struct, forbid_unknown_fields=True, tag_field="name", tag="cat"):
    lives: int = 9


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    numbers: dict[str, int] = {}
    pet: Dog | Cat | None = None
    pets: tuple[Dog | Cat, ...] = ()
    version: Literal[1] = 1


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text.encode(), Outer, what="the file")
    return caught.value


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("deep = 1", "top level"),
        ("inner = [{ depth = 1, deep = 1 }]", "inner[0]"),
        ("maybe = { depth = 1, deep = 1 }", "maybe"),
    ],
)
def test_an_unknown_key_is_named_wherever_it_stands(text: str, place: str) -> None:
    error = refusal(text)
    assert error.what == f"the file: unknown key 'deep' in [{place}]"


def test_a_key_like_a_known_one_gets_a_suggestion_and_others_none() -> None:
    assert refusal("inner = [{ dept = 1 }]").remedy == "Did you mean 'depth'?"
    assert refusal("inner = [{ xyz = 1 }]").remedy == "Remove it."


@pytest.mark.parametrize("key", ["a`b", "a.b", "$.inner", "", "\\n", "é"])
def test_an_odd_key_is_refused_as_well(key: str) -> None:
    assert refusal(f'"{key}" = 1').code in {"key-unknown", "value-invalid"}


def test_a_value_in_a_table_of_free_keys_is_named_by_its_table() -> None:
    assert "numbers" in refusal('numbers = { a = "b" }').what


@pytest.mark.parametrize(
    ("text", "known", "remedy"),
    [
        ('pet = { name = "dog", bark = true }', "name, barks", "'barks'"),
        ('pet = { name = "cat", live = 8 }', "name, lives", "'lives'"),
        ('pets = [{ name = "dog" }, { name = "cat", live = 8 }]', "name, lives", ""),
    ],
)
def test_of_several_kinds_of_table_the_one_that_it_says_it_is_is_explained(
    text: str, known: str, remedy: str
) -> None:
    error = refusal(text)
    assert error.code == "key-unknown"
    assert error.expected == f"one of {known}"
    assert remedy in error.remedy


@pytest.mark.parametrize(
    "text",
    [
        "pet = { barks = true }",
        'pet = { name = "cow", barks = true }',
        "pet = { name = 1 }",
        "pet = { name = [1] }",
        "pet = 1",
        "pets = [{}]",
        "pets = { name = 'dog' }",
    ],
)
def test_a_table_of_no_known_kind_is_refused(text: str) -> None:
    assert refusal(text).code == "value-invalid"


def test_an_integer_that_cannot_be_written_out_is_refused_as_any_other() -> None:
    assert refusal("version = 0x" + 5000 * "f").code == "value-invalid"
