from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.workloads.darknet_lines import MAX_CHARACTERS, Section, sections_of


def section(*lines: str) -> Section:
    (found,) = sections_of("\n".join(["[net]", *lines]))
    return found


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        list(sections_of(text))
    assert caught.value.code == "darknet-config"
    return str(caught.value)


def outcome(text: str) -> list[Section] | ConfigError:
    try:
        return list(sections_of(text))
    except ConfigError as error:
        return error


def test_sections_have_their_keys_and_the_numbers_of_their_lines() -> None:
    text = "# made by hand\r\n[net]\r\n a = 1 \r\n\r\n;b=2\n[ conv ]\nc=x=y\n[net]"
    first, second, third = sections_of(text)
    assert (first.name, first.line, first.text("a", "")) == ("net", 2, "1")
    assert (second.name, second.line, second.text("c", "")) == ("conv", 6, "x=y")
    assert (third.name, third.entries) == ("net", {})
    assert (first.line_of("a"), first.line_of("b")) == (3, 2)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a=1", 1),
        ("\n[net", 2),
        ("[net]\nbatch", 2),
        ("[net]\n\n=1", 3),
        ("[net]\na=1\n[conv]\na=1\nb=2\na=1", 6),
        ("#" * (MAX_CHARACTERS + 1), 1),
    ],
)
def test_what_is_no_configuration_is_refused_by_its_line(text: str, line: int) -> None:
    assert refused(text).startswith(f"line {line} of the Darknet configuration")


@pytest.mark.parametrize("value", ["", "1.", "1x", "1 0", "٣", "1_0", "9" * 10, "0x1"])
def test_a_whole_number_is_digits_and_no_more(value: str) -> None:
    with pytest.raises(ConfigError, match="line 2") as caught:
        section(f"size={value}").whole("size", 1, least=0, most=10)
    assert repr(value) in caught.value.got


def test_a_whole_number_keeps_its_limits() -> None:
    assert section("size=+7").whole("size", 1, least=-2, most=7) == 7
    assert section("size=-2").whole("size", 1, least=-2, most=7) == -2
    assert section().whole("size", 1, least=-2, most=7) == 1
    for value in (-3, 8):
        with pytest.raises(ConfigError, match="from -2 to 7"):
            section(f"size={value}").whole("size", 1, least=-2, most=7)


@pytest.mark.parametrize(
    ("value", "number"),
    [(".5", 0.5), ("5.", 5), ("-1E-3", -0.001), ("0.0005", 0.0005), ("4", 4)],
)
def test_a_number_is_written_as_in_c(value: str, number: float) -> None:
    assert section(f"decay={value}").number("decay", 1) == number


@pytest.mark.parametrize("value", ["", ".", "nan", "inf", "1e", "1e999", "1,5", "2f"])
def test_what_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        section(f"decay={value}").number("decay", 1)
    with pytest.raises(ConfigError, match="line 2"):
        section(f"steps=1,{value},2" if value != "1,5" else "steps=1,,5").numbers(
            "steps"
        )


def test_lists_choices_and_switches() -> None:
    some = section("steps=1, 20 ,.5", "policy=poly", "adam=0.0")
    assert some.numbers("steps") == (1, 20, 0.5)
    assert some.numbers("scales") == ()
    assert some.choice("policy", "step", ("step", "poly")) == "poly"
    some.neutral("adam", 0)
    some.neutral("xnor", 0)
    with pytest.raises(ConfigError, match=r"line 3.*one of step, exp"):
        some.choice("policy", "step", ("step", "exp"))
    with pytest.raises(ConfigError, match=r"line 4.*no other value"):
        some.neutral("adam", 1)


def test_a_key_that_nobody_took_is_refused() -> None:
    some = section("batch=1", "mosaic=1")
    some.whole("batch", 1, least=1, most=2)
    with pytest.raises(ConfigError, match=r"line 3.*mosaic.*one of batch"):
        some.finish()


@given(text=st.text(alphabet="[]=#;\n\r\t aZ01.-e,٣\x00"))
def test_any_text_ends_in_sections_or_in_our_error(text: str) -> None:
    found = outcome(text)
    if isinstance(found, ConfigError):
        assert found.code == "darknet-config"
        assert "\n" not in str(found)
    else:
        lines = [entry.line for s in found for entry in s.entries.values()]
        assert lines == sorted(set(lines))
