"""Lines out of streams that say anything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloister.cli.line_cutter import LineCutter, printable


@given(
    lines=st.lists(st.binary(max_size=12).filter(lambda it: b"\n" not in it)),
    size=st.integers(1, 9),
)
def test_lines_are_the_same_however_they_come_and_none_is_too_long(
    lines: list[bytes], size: int
) -> None:
    content = b"".join(line + b"\n" for line in lines) + b"rest of it"
    cutter = LineCutter(8)
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    found = [line for piece in pieces for line in cutter.feed(piece)]
    assert found == [line[:8] for line in lines]
    assert cutter.end() == b"rest of "
    assert cutter.end() == b""


def test_nothing_is_kept_of_what_is_too_long() -> None:
    cutter = LineCutter(8)
    for _ in range(100):
        assert list(cutter.feed(1000 * b"x")) == []
    assert cutter.end() == 8 * b"x"


def test_a_printable_line_steers_no_terminal() -> None:
    assert printable("\x1b[2J a\u202eb\tc\u009b\r") == "[2J a b c"
