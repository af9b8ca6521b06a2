"""Exceptions that nobody foresaw lose their words at the edge."""

from __future__ import annotations

import pytest

from cloister.ratls.refusals import bare_refusal_from, encode_status, refusal_from
from cloister.ratls.unforeseen import unforeseen

CANARY = "AGE-SECRET-KEY-1CANARY"


def raised() -> Exception:
    try:
        dict[str, str]()[CANARY]
    except KeyError as error:
        return error
    raise AssertionError


def test_nothing_of_its_words_is_told() -> None:
    told = unforeseen(raised())
    for shown in (
        str(told),
        repr(told),
        repr(told.__dict__),
        repr(refusal_from(told)),
        repr(bare_refusal_from(told)),
        encode_status(told),
    ):
        assert CANARY not in shown
    assert told.__cause__ is None
    assert told.__context__ is None


def test_the_log_learns_what_kind_it_was_and_where_it_came_from() -> None:
    assert unforeseen(raised()).got.startswith("KeyError at test_unforeseen.py:")


def test_one_without_a_traceback_is_named_as_well() -> None:
    assert unforeseen(ValueError(CANARY)).got == "ValueError"


def test_a_peer_hears_that_it_is_not_its_fault() -> None:
    refusal = bare_refusal_from(unforeseen(raised()))
    assert (refusal.code, refusal.trouble) == ("unforeseen-error", True)
    assert refusal.got == ""


@pytest.mark.parametrize("kind", [RuntimeError, OSError, MemoryError])
def test_any_kind_is_one_of_our_errors_then(kind: type[Exception]) -> None:
    assert unforeseen(kind(CANARY)).code == "unforeseen-error"
