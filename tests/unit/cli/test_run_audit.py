from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.custodians import text_of
from tests.support.federation_in_memory import START, Federation
from tests.support.places import place_of
from tests.support.run_audit import entries_of

from cloister.cli.places import Place
from cloister.cli.run_audit import open_run_audit
from cloister.errors import ConfigError
from cloister.federation.audit_records import RunOpened
from cloister.plan.consent import (
    consents_directory,
    parse_consent,
    sign_consent,
    verify_consent,
    write_consent,
)
from cloister.ratls.node import Node


@pytest.fixture
def place(federation: Federation, tmp_path: Path) -> Place:
    """The server's place: a plan that everybody signed, and a run's directory."""
    plan = federation.plan
    made = place_of(plan, tmp_path, party="aggregator")
    made.plan_path.write_bytes(text_of(plan) + b"# the last line\n")
    for party, key in federation.keys.items():
        consent = sign_consent(plan, party=party, key=key, at=START)
        write_consent(consent, consents_directory(made.plan_path, plan))
    made.run_directory.mkdir(parents=True)
    return made


def test_the_log_lies_in_the_runs_directory_and_holds_plan_and_consents(
    federation: Federation, server: Node, place: Place
) -> None:
    with open_run_audit(server, place, known=None, known_under=None) as audit:
        audit.introduce(
            completed=0, state=bytes(32), admission_key=server.identity.tls_spki
        )
    assert place.audit_path == place.run_directory / "audit.jsonl"
    opened = entries_of(place.run_directory)[0]
    assert isinstance(opened, RunOpened)
    assert opened.plan == place.plan_path.read_bytes()
    for party, text in zip(federation.plan.party, opened.consents, strict=True):
        consent = parse_consent(text)
        verify_consent(consent, plan=federation.plan, party=party.name, at=START)


def test_a_plan_that_is_gone_or_another_one_is_named(
    server: Node, place: Place
) -> None:
    training = msgspec.structs.replace(place.plan.training, seed=99)
    other = msgspec.structs.replace(place.plan, training=training)
    place.plan_path.write_bytes(text_of(other))
    with pytest.raises(ConfigError) as caught:
        open_run_audit(server, place, known=None, known_under=None)
    assert caught.value.code == "plan-differs"
    place.plan_path.unlink()
    with pytest.raises(ConfigError) as caught:
        open_run_audit(server, place, known=None, known_under=None)
    assert caught.value.code == "file-unreadable"
    assert not place.audit_path.exists()


def test_a_consent_that_is_gone_is_named(server: Node, place: Place) -> None:
    directory = consents_directory(place.plan_path, place.plan)
    (directory / "bob.json").unlink()
    with pytest.raises(ConfigError) as caught:
        open_run_audit(server, place, known=None, known_under=None)
    assert caught.value.code == "consent-missing"
