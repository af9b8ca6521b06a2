from __future__ import annotations

import pytest

from cloister.errors import ConfigError, StorageError
from cloister.federation.plan_code import CodeKind, PlanCode, guarded

KIND = CodeKind(
    noun="recipe",
    named_under="[recipe]",
    methods=("cook",),
    advice="a cook cooks",
)
SOURCE = b"class Soup:\n    def cook(self): return 'soup'\n"


def made(source: bytes, class_name: str = "Soup") -> object:
    code = PlanCode(kind=KIND, source=source, filename="soup.py", simulated=True)
    return code.make(class_name, {})


def test_a_file_makes_an_instance_of_its_class() -> None:
    assert type(made(SOURCE)).__module__ == "cloister_recipe"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (b"raise ValueError", "recipe-failed"),
        (b"class Broth: pass", "recipe-class"),
        (b"class Soup: pass", "recipe-class"),
    ],
)
def test_errors_are_named_after_what_the_file_holds(source: bytes, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(source)
    assert caught.value.code == code


def test_our_own_errors_pass_the_guard_as_they_are() -> None:
    with (
        pytest.raises(StorageError, match="no such split"),
        guarded(KIND, "soup.py", "cooking", simulated=False),
    ):
        raise StorageError("no such split", code="split-missing")
