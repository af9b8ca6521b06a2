"""What ``docs/how-to/data.md`` tells an owner to do can be done."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from tests.support.read_streams import counts

from cloister.cli.main import cloister
from cloister.storage.formats import FORMATS, open_format

PAGE = Path(__file__).parents[4] / "docs/how-to/data.md"
TEXT = PAGE.read_text()
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
    if line.startswith("cloister data ") and "FORMAT" not in line
]


def test_every_format_has_a_row_and_a_command() -> None:
    sealed = {words[2] for words in COMMANDS if words[1] == "seal"}
    assert sealed == set(FORMATS)
    assert all(f"| `{name}` |" in TEXT for name in FORMATS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_one_that_there_is(words: list[str]) -> None:
    command: click.Command = cloister
    context = click.Context(cloister)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None
        command, context = found, click.Context(found, parent=context)
    command.make_parser(context).parse_args(list(words))


def test_the_arrays_that_the_page_makes_can_be_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, str(PAGE), "exec"), {})  # noqa: S102 - our own page
    stream = open_format("arrays", tmp_path / "breast-cancer", held_out=142)
    assert [(f.name, f.dtype, f.shape) for f in stream.schema.fields] == [
        ("features", "float32", (30,)),
        ("label", "uint8", ()),
    ]
    assert counts(stream) == {"train": 427, "held-out": 142}


def test_every_digest_is_of_the_right_length() -> None:
    digests = re.findall(r"`([0-9a-f]{20,})`", TEXT)
    assert {len(digest) for digest in digests} == {40, 64}
    assert len(set(digests)) == len(digests)
