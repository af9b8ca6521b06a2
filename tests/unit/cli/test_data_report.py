"""What is said of a sealed data set, and how far its records are."""

from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from tests.support.plan_tree import Tree, add_recipient, at, plan_tree, put, toml_of
from tests.support.sealed_sets import Owner, SealedSet, sealed_set

from cloister.cli.commands.data._seal_options import seal_options
from cloister.cli.commands.data.info import command as info
from cloister.cli.data_progress import showing_records
from cloister.errors import CloisterError, ConfigError

OTHER = f"sha256:{64 * 'e'}"


@pytest.fixture
def data(tmp_path: Path) -> SealedSet:
    return sealed_set(tmp_path / "data.sealed", owner=Owner())


def planned(it: SealedSet, **changes: str | None) -> Tree:
    """Returns a plan in which a data set is alice's, or what is said instead."""
    alice = at(plan_tree(), ("party", 1))
    assert isinstance(alice, dict)
    pin = it.pin
    own = {"key": pin.owner, "data": pin.digest, "data_key": pin.key, **changes}
    kept: Tree = {key: value for key, value in own.items() if value is not None}
    return put(plan_tree(), ("party", 1), {**alice, **kept})


def called(*arguments: object) -> Result:
    return CliRunner().invoke(info, [str(it) for it in arguments])


def told(*arguments: object) -> str:
    """Returns what ``data info`` says on stdout."""
    done = called(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def against(data: SealedSet, tree: Tree, party: str = "alice") -> Result:
    plan = data.path.parent / "plan.toml"
    plan.write_bytes(toml_of(tree))
    return called(data.path, "--plan", plan, "--party", party, "--json")


def refusal(done: Result) -> CloisterError:
    assert isinstance(done.exception, CloisterError), done.output
    assert done.stdout == ""
    return done.exception


def test_a_data_set_says_what_it_holds_and_whose_it_is(data: SealedSet) -> None:
    said = told(data.path)
    for words in (
        data.made.digest,
        data.pin.key,
        data.pin.owner,
        "made of   made",
        "7 train, 4 held-out",
        "label: uint8, below 10",
        "price: float32 2\n",
        "image: uint8 1 x 3 x 3\n",
        f"{data.made.size_bytes} bytes, 18 a record",
    ):
        assert words in said


def test_machines_read_the_same(data: SealedSet) -> None:
    said = json.loads(told(data.path, "--json"))
    assert said["plan"] is None
    assert said["data"] == data.made.digest
    assert (said["train"], said["held_out"]) == (7, 4)
    assert said["fields"][0] == {
        "name": "label",
        "dtype": "uint8",
        "shape": [],
        "below": 10,
    }


def test_a_plan_says_whether_it_is_the_data_that_it_pins(data: SealedSet) -> None:
    done = against(data, planned(data))
    assert json.loads(done.stdout)["plan"] == "the pinned data"
    for changes, code in (
        ({"data": OTHER}, "data-differs"),
        ({"key": f"ed25519:{64 * 'e'}"}, "data-foreign"),
        ({"data_key": OTHER}, "data-key-differs"),
        ({"data_key": None}, "data-not-planned"),
    ):
        assert refusal(against(data, planned(data, **changes))).code == code
    assert refusal(against(data, planned(data), party="bob")).code == (
        "data-not-planned"
    )
    assert refusal(against(data, planned(data), party="carol")).code == "party-unknown"


def test_what_a_recipient_predicts_on_need_not_be_pinned(data: SealedSet) -> None:
    tree = add_recipient(plan_tree(), "rita", key=data.pin.owner)
    put(tree, ("party", 3, "data_key"), data.pin.key)
    put(tree, ("party", 3, "predictions_to"), "age1" + 58 * "p")
    said = json.loads(against(data, tree, party="rita").stdout)
    assert said["plan"] == "sealed under the data key"
    put(tree, ("party", 3, "data_key"), OTHER)
    assert refusal(against(data, tree, party="rita")).code == "data-key-differs"


@pytest.mark.parametrize("said", [("--plan", "plan.toml"), ("--party", "alice")])
def test_a_plan_without_a_party_is_half_a_question(
    data: SealedSet, said: tuple[str, str]
) -> None:
    error = refusal(called(data.path, *said))
    assert isinstance(error, ConfigError)
    assert (error.code, error.got) == ("data-party-unsaid", f"{said[0]} alone")


def test_what_is_no_sealed_data_set_is_said(data: SealedSet) -> None:
    content = data.path.read_bytes()
    for altered, code in (
        (b"", "data-malformed"),
        (content[:-1], "data-truncated"),
        (content + b"\n", "data-truncated"),
    ):
        data.path.write_bytes(altered)
        assert refusal(called(data.path)).code == code
    data.path.unlink()
    assert refusal(called(data.path)).code == "data-missing"


# How many records are held out.


def held_out(text: str) -> Result:
    @click.command()
    @seal_options
    def command(**options: object) -> None:
        click.echo(repr(options["held_out"]))

    said = ("-o", "file", "--custodian", "directory")
    return CliRunner().invoke(command, [*said, f"--held-out={text}"])


@pytest.mark.parametrize(
    ("text", "value"), [("0", "0"), ("70", "70"), ("all", "'all'")]
)
def test_some_records_are_held_out_or_all(text: str, value: str) -> None:
    assert held_out(text).stdout == f"{value}\n"


@pytest.mark.parametrize("text", ["-1", "1.0", "", "All", "none", "٣", 20 * "9"])
def test_anything_else_is_no_number_of_records(text: str) -> None:
    done = held_out(text)
    assert done.exit_code == 2
    assert "neither a number of records nor 'all'" in done.stderr


# How far the records are.


def shown(*done: int, total: int | None) -> str:
    text = StringIO()
    console = Console(file=text, width=80)
    with showing_records("sealing", total=total, console=console) as tell:
        for number in done:
            tell(number)
    return text.getvalue()


def test_a_pipe_gets_a_line_at_first_and_then_now_and_then() -> None:
    assert shown(3, 6, 9, 11, total=11) == "sealing: 3 of 11 records\n"
    assert shown(3, 6, 9, total=None) == "sealing: 3 records\n"


def test_what_is_done_at_once_is_not_worth_a_line() -> None:
    assert shown(11, total=11) == ""
    assert shown(total=11) == ""


@pytest.mark.parametrize("total", [11, None])
def test_a_terminal_gets_a_bar_that_moves(total: int | None) -> None:
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    with showing_records("sealing", total=total, console=console) as tell:
        tell(3)
        tell(11)
    drawn = text.getvalue().rpartition(os.linesep)[0]
    assert f"11/{total or '?'}" in drawn
    assert "sealing" in drawn
