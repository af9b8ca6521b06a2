"""A sealed model meets records only if the run's verified audit log names it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.made_audit import ROUNDS, AuditedRun
from tests.support.places import place_of
from tests.support.plan_tree import Tree, put

from cloister.cli.places import Place
from cloister.cli.sealed_copies import find_copy
from cloister.errors import CloisterError, ConfigError, VerificationError


def three_rounds(tree: Tree) -> Tree:
    put(tree, ("training", "rounds"), ROUNDS)
    return put(tree, ("training", "schedule"), {"name": "constant"})


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    directory = tmp_path_factory.mktemp("rita")
    return make_federation(directory, change=three_rounds, recipients=("rita",))


@pytest.fixture
def audited(federation: Federation, tmp_path: Path) -> AuditedRun:
    (tmp_path / "model.safetensors.age").write_bytes(b"sealed")
    return AuditedRun(federation, tmp_path / "audit.jsonl")


def rita(federation: Federation, directory: Path) -> Place:
    return place_of(federation.plan, directory, party="rita")


def refusal(audited: AuditedRun) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        find_copy(
            rita(audited.federation, audited.path.parent),
            audited.path.with_name("model.safetensors.age"),
            for_records=True,
        )
    return caught.value


def test_the_log_beside_the_model_says_which_one_it_is(audited: AuditedRun) -> None:
    audited.whole()
    path = audited.path.with_name("model.safetensors.age")
    place = rita(audited.federation, path.parent)
    assert find_copy(place, path, for_records=True).recorded == "5" * 64
    assert find_copy(place, path, for_records=False).recorded is None


def test_a_model_that_meets_no_records_needs_no_log(audited: AuditedRun) -> None:
    path = audited.path.with_name("model.safetensors.age")
    place = rita(audited.federation, path.parent)
    assert find_copy(place, path, for_records=False).recorded is None
    error = refusal(audited)
    assert isinstance(error, ConfigError)
    assert error.code == "audit-missing"


def test_the_log_of_a_run_that_goes_on_names_none(audited: AuditedRun) -> None:
    audited.begin()
    audited.admit_all()
    audited.train()
    audited.log.close()
    error = refusal(audited)
    assert isinstance(error, VerificationError)
    assert error.code == "audit-model-unnamed"


def test_a_log_in_which_the_host_put_another_model_is_refused(
    audited: AuditedRun,
) -> None:
    audited.whole()
    *before, last = audited.path.read_bytes().splitlines(keepends=True)
    envelope = json.loads(last)
    payload = base64.b64decode(envelope["payload"])
    assert b"5" * 64 in payload
    other = base64.b64encode(payload.replace(b"5" * 64, b"6" * 64)).decode()
    changed = last.replace(envelope["payload"].encode(), other.encode())
    audited.path.write_bytes(b"".join((*before, changed)))
    error = refusal(audited)
    assert isinstance(error, VerificationError)
    assert error.code == "audit-signature"


def test_a_log_of_another_plan_is_refused(
    audited: AuditedRun, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Made by a host that has its own parties sign its own plan."""
    theirs = tmp_path_factory.mktemp("theirs")
    other = make_federation(theirs, change=three_rounds, recipients=("rita",))
    AuditedRun(other, audited.path).whole()
    error = refusal(audited)
    assert isinstance(error, VerificationError)
    assert error.code.startswith("audit-")


def test_without_a_model_nothing_else_is_looked_for(audited: AuditedRun) -> None:
    audited.path.with_name("model.safetensors.age").unlink()
    assert refusal(audited).code == "model-missing"
