"""Consents that are missing, another's, of elsewhere, or not what was signed.

A node does not start on them, and no custodian takes one up.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.custodians import text_of
from tests.support.federation_in_memory import START, Federation, make_federation
from tests.support.places import place_of
from tests.support.recorded_log import RecordedLog
from tests.support.registers import Content, content_of
from tests.support.running import Run

from cloister.cli.nodes import build_node
from cloister.custody.register import Register
from cloister.errors import CloisterError
from cloister.plan.consent import (
    check_consents,
    consents_directory,
    parse_consent,
    sign_consent,
    write_consent,
)
from cloister.plan.plan import Plan, PlanHash, parse_plan, plan_hash
from cloister.storage.model_vault import new_identity as new_recipient

PARTIES = ("aggregator", "alice", "bob")
EMPTY: Content = ((), (), ())


class Host:
    """A host's disk: a plan, everybody's consents, and hands that change them."""

    def __init__(self, federation: Federation, directory: Path) -> None:
        self.federation = federation
        self.directory = directory
        self.path = directory / "plan.toml"
        self.plan = federation.plan
        self.path.write_bytes(text_of(self.plan))
        for party in PARTIES:
            self.sign(self.plan, party)

    def sign(self, plan: Plan, party: str, *, after: timedelta = timedelta()) -> bytes:
        """Has a party consent to a plan, and its consent lie beside that plan."""
        key = self.federation.keys[party]
        consent = sign_consent(plan, party=party, key=key, at=START + after)
        return write_consent(consent, consents_directory(self.path, plan)).read_bytes()

    def consent(self, party: str) -> Path:
        return consents_directory(self.path, self.plan) / f"{party}.json"

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in self.directory.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def host(federation: Federation, tmp_path: Path) -> Host:
    directory = tmp_path / "host"
    directory.mkdir()
    return Host(federation, directory)


def take_it_away(host: Host) -> None:
    host.consent("alice").unlink()


def take_one_to_another_plan(host: Host) -> None:
    training = msgspec.structs.replace(host.plan.training, seed=8)
    other = msgspec.structs.replace(host.plan, training=training)
    host.consent("alice").write_bytes(host.sign(other, "alice"))


def take_one_to_another_run(host: Host) -> None:
    header = msgspec.structs.replace(host.plan.plan, run="b")
    other = msgspec.structs.replace(host.plan, plan=header)
    host.consent("alice").write_bytes(host.sign(other, "alice"))


def take_bobs(host: Host) -> None:
    host.consent("alice").write_bytes(host.consent("bob").read_bytes())


def swap_two(host: Host) -> None:
    alice, bob = (host.consent(it).read_bytes() for it in ("alice", "bob"))
    host.consent("alice").write_bytes(bob)
    host.consent("bob").write_bytes(alice)


def put_alices_name_on_bobs(host: Host) -> None:
    bobs = host.consent("bob").read_bytes()
    host.consent("alice").write_bytes(bobs.replace(b'"bob"', b'"alice"'))


def flip_a_bit(host: Host) -> None:
    consent = msgspec.json.decode(host.consent("alice").read_bytes())
    signature = bytearray.fromhex(consent["signature"])
    signature[40] ^= 1
    consent["signature"] = signature.hex()
    host.consent("alice").write_bytes(msgspec.json.encode(consent))


def date_it_later(host: Host) -> None:
    consent = msgspec.json.decode(host.consent("alice").read_bytes())
    consent["signed_at"] += 1
    host.consent("alice").write_bytes(msgspec.json.encode(consent))


def sign_tomorrow(host: Host) -> None:
    host.sign(host.plan, "alice", after=timedelta(days=1))


def cut_it_short(host: Host) -> None:
    text = host.consent("alice").read_bytes()
    host.consent("alice").write_bytes(text[:-3])


Change = Callable[[Host], None]
CHANGES: list[tuple[Change, str]] = [
    (take_it_away, "consent-missing"),
    (take_one_to_another_plan, "consent-foreign"),
    (take_one_to_another_run, "consent-foreign"),
    (take_bobs, "consent-foreign"),
    (swap_two, "consent-foreign"),
    (put_alices_name_on_bobs, "consent-signature"),
    (flip_a_bit, "consent-signature"),
    (date_it_later, "consent-signature"),
    (sign_tomorrow, "consent-future"),
    (cut_it_short, "consent-malformed"),
]
every_change = pytest.mark.parametrize(
    ("change", "code"), CHANGES, ids=[change.__name__ for change, _ in CHANGES]
)


@every_change
@pytest.mark.parametrize("party", PARTIES)
def test_no_node_starts_on_them_whosever_it_is(
    run: Run, host: Host, change: Change, code: str, party: str
) -> None:
    assert len(check_consents(host.plan, host.path, at=START).by_party) == 3
    change(host)
    before = host.files()
    log = RecordedLog()
    place = place_of(host.plan, host.directory, party=party)
    with pytest.raises(CloisterError) as caught:
        run(build_node(place, log=log.logger()))
    assert caught.value.code == code
    # It measured nothing, read no task, made no key and wrote no file.
    assert log.events == []
    assert host.files() == before


@pytest.mark.parametrize(
    ("change", "code"),
    [it for it in CHANGES if it[0] not in {take_it_away, cut_it_short}],
    ids=lambda it: getattr(it, "__name__", it),
)
def test_no_custodian_takes_one_up(host: Host, change: Change, code: str) -> None:
    change(host)
    consent = parse_consent(host.consent("alice").read_bytes())
    path = host.directory.parent / "alice.sqlite"
    with Register.create(path, party="alice") as register:
        with pytest.raises(CloisterError) as caught:
            register.adopt(host.path.read_bytes(), consent, at=START)
        assert caught.value.code == code
        assert content_of(register) == EMPTY
        with pytest.raises(CloisterError) as caught:
            register.plan(plan_hash(host.plan))
        assert caught.value.code == "plan-not-consented"


def keep_the_consents(host: Host, plan: Plan) -> None:
    pass


def copy_the_consents(host: Host, plan: Plan) -> None:
    directory = consents_directory(host.path, plan)
    directory.mkdir()
    for party in PARTIES:
        (directory / f"{party}.json").write_bytes(host.consent(party).read_bytes())


def rename_the_plan_in_them(host: Host, plan: Plan) -> None:
    copy_the_consents(host, plan)
    old, new = (plan_hash(it).hex().encode() for it in (host.plan, plan))
    for party in PARTIES:
        path = consents_directory(host.path, plan) / f"{party}.json"
        path.write_bytes(path.read_bytes().replace(old, new))


def sign_with_keys_of_its_own(host: Host, plan: Plan) -> None:
    """Makes the files anew, as another federation of the same names would."""
    other = make_federation(host.directory.parent / "other")
    as_theirs = msgspec.structs.replace(plan, party=other.plan.party)
    for party in PARTIES:
        consent = sign_consent(as_theirs, party=party, key=other.keys[party], at=START)
        named = f"sha256:{plan_hash(plan).hex()}"
        forged = msgspec.structs.replace(consent, plan_hash=named)
        write_consent(forged, consents_directory(host.path, plan))


@pytest.mark.parametrize(
    ("then", "code"),
    [
        (keep_the_consents, "consent-missing"),
        (copy_the_consents, "consent-foreign"),
        (rename_the_plan_in_them, "consent-signature"),
        (sign_with_keys_of_its_own, "consent-signature"),
    ],
)
def test_a_recipient_that_the_host_put_into_the_signed_plan_is_nobodys_wish(
    run: Run,
    federation: Federation,
    host: Host,
    then: Callable[[Host, Plan], None],
    code: str,
) -> None:
    """One line is changed: who can open the model."""
    _, own = new_recipient()
    [genuine] = federation.plan.model.recipients
    text = host.path.read_bytes().replace(genuine.encode(), own.encode())
    assert text != host.path.read_bytes()
    host.path.write_bytes(text)
    plan = parse_plan(text)
    then(host, plan)
    before = host.files()

    log = RecordedLog()
    for party in PARTIES:
        place = place_of(plan, host.directory, party=party)
        with pytest.raises(CloisterError) as caught:
            run(build_node(place, log=log.logger()))
        assert caught.value.code == code
    assert log.events == []
    assert host.files() == before

    # The custodian goes by its own copy of what was signed.
    path = host.directory.parent / "alice.sqlite"
    with Register.create(path, party="alice") as register:
        consent = parse_consent(host.consent("alice").read_bytes())
        register.adopt(text_of(host.plan), consent, at=START)
        kept = content_of(register)
        with pytest.raises(CloisterError) as caught:
            register.adopt(text, consent, at=START)
        assert caught.value.code == "consent-foreign"
        with pytest.raises(CloisterError) as caught:
            register.plan(PlanHash(plan_hash(plan)))
        assert caught.value.code == "plan-not-consented"
        assert content_of(register) == kept
