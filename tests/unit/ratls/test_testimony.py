from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.audit import Admittal
from tests.support.federation_in_memory import (
    START,
    Federation,
    make_federation,
)
from tests.support.meeting import Meeting
from tests.support.plan_tree import Tree, by_identity, hold_shares
from tests.support.published_collateral import publish, revoking, up_to_date
from tests.support.refusals import code_of

from cloister.attestation.collateral import Collateral, parse_collateral
from cloister.attestation.policy import Verdict
from cloister.attestation.trust_root import TrustRoot
from cloister.plan.plan import Plan, PlanHash, plan_hash
from cloister.ratls.challenge import EvidenceProof, IdentityProof
from cloister.ratls.identity import Spki, new_identity
from cloister.ratls.proofs import Identified, Standing
from cloister.ratls.testimony import (
    Said,
    Testimony,
    collateral_sha256,
    shown,
    verify_testimony,
)
from cloister.ratls.transcript import FarRole, Nonce, Transcript
from cloister.ratls.warrant import sign_warrant


@dataclass(slots=True)
class Case:
    """A testimony before somebody who judges it later; anything may be changed."""

    testimony: Testimony
    collateral: Collateral | None
    plan: Plan
    root: TrustRoot
    at: datetime = START
    plan_hash: PlanHash = field(default=PlanHash(b""))

    def verify(self) -> Standing:
        return verify_testimony(
            self.testimony,
            plan=self.plan,
            plan_hash=self.plan_hash or plan_hash(self.plan),
            collateral=self.collateral,
            root=self.root,
            at=self.at,
        )

    def change(self, **changes: Any) -> None:
        self.testimony = msgspec.structs.replace(self.testimony, **changes)

    def resay(self, **changes: Any) -> None:
        self.change(said=msgspec.structs.replace(self.testimony.said, **changes))


def admittal(federation: Federation, party: str) -> Admittal:
    meeting = Meeting(federation.node("aggregator"), federation.node(party))
    meeting.finish()
    [it] = meeting.door.admitted
    return it


def case_of(federation: Federation, it: Admittal) -> Case:
    return Case(
        testimony=it.testimony,
        collateral=None if it.collateral is None else parse_collateral(it.collateral),
        plan=federation.plan,
        root=federation.root.trust_root,
    )


def shares(tree: Tree) -> Tree:
    return hold_shares(by_identity(tree, "bob"), "aggregator", "alice")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Bob is admitted by his key; aggregator and alice hold shares."""
    return make_federation(tmp_path_factory.mktemp("mixed"), change=shares)


@pytest.fixture
def case(federation: Federation) -> Case:
    return case_of(federation, admittal(federation, "alice"))


@pytest.fixture
def bobs(mixed: Federation) -> Case:
    """Bob's, who is admitted by his key."""
    return case_of(mixed, admittal(mixed, "bob"))


@pytest.mark.parametrize("party", ["alice", "bob"])
def test_whoever_judges_it_later_comes_to_the_same_verdict(
    federation: Federation, party: str
) -> None:
    it = admittal(federation, party)
    standing = case_of(federation, it).verify()
    assert standing == it.admitted.peer.standing
    assert isinstance(standing, Verdict)


def test_a_party_by_identity_is_known_by_its_key_later(
    mixed: Federation, bobs: Case
) -> None:
    assert bobs.testimony.collateral is None
    assert bobs.verify() == Identified(party_key=mixed.plan.find_party("bob").key)


def test_it_is_the_same_after_it_lay_in_a_file(case: Case) -> None:
    verdict = case.verify()
    raw = msgspec.json.encode(case.testimony)
    case.testimony = msgspec.json.decode(raw, type=Testimony)
    assert case.verify() == verdict


def test_what_was_revoked_since_was_good_then(tmp_path: Path) -> None:
    """It is judged with its own collateral, and at its own time."""
    own = make_federation(tmp_path)
    it = admittal(own, "alice")
    quote = it.admitted.quote
    assert quote is not None
    publish(own, revoking("tdx", quote))
    assert case_of(own, it).verify() == it.admitted.peer.standing


BYTES = [
    name
    for name in Said.__struct_fields__
    if name.endswith(("_key", "_nonce", "_hash"))
]
# What a client's evidence does not name: the caller compares it with the recorder's.
NOT_IN_EVIDENCE = "server_encryption_key"


@pytest.mark.parametrize("name", BYTES)
def test_any_bit_of_what_was_said_counts(case: Case, name: str) -> None:
    """The key's bits are in the evidence or in the warrant, the others in both."""
    before, words = case.testimony, getattr(case.testimony.said, name)
    for bit in range(0, 8 * len(words), 5):
        spoilt = bytearray(words)
        spoilt[bit // 8] ^= 1 << bit % 8
        case.testimony = before
        case.resay(**{name: bytes(spoilt)})
        if name == NOT_IN_EVIDENCE:
            case.verify()
        else:
            assert code_of(case.verify)


@pytest.mark.parametrize("name", BYTES)
def test_a_partys_signature_covers_all_that_was_said(bobs: Case, name: str) -> None:
    spoilt = bytearray(getattr(bobs.testimony.said, name))
    spoilt[-1] ^= 1
    bobs.resay(**{name: bytes(spoilt)})
    assert code_of(bobs.verify)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run_id": "x/y"}, "testimony-foreign"),
        ({"plan_hash": bytes(32)}, "testimony-foreign"),
        ({"client_party": "mallory"}, "testimony-foreign"),
        ({"client_role": "server"}, "testimony-foreign"),
        ({"client_party": "bob"}, "warrant-signature"),
        ({"client_party": "aggregator", "client_role": "server"}, "testimony-foreign"),
        ({"server_party": "bob"}, "testimony-foreign"),
        ({"server_party": "mallory"}, "testimony-foreign"),
        ({"server_role": "custodian"}, "testimony-foreign"),
        ({"client_key": new_identity().tls_spki}, "warrant-foreign"),
        ({"server_key": new_identity().tls_spki}, "report-data"),
        ({"admission_key": new_identity().tls_spki}, "report-data"),
        ({"client_encryption_key": bytes(32)}, "report-data"),
        ({"client_nonce": bytes(32)}, "report-data"),
        ({"client_key": bytes(91)}, "tls-key-invalid"),
        ({"server_encryption_key": b""}, "testimony-malformed"),
    ],
)
def test_a_testimony_of_another_meeting_is_refused(
    case: Case, changes: dict[str, Any], code: str
) -> None:
    case.resay(**changes)
    assert code_of(case.verify) == code


def test_a_testimony_is_of_one_plan(case: Case) -> None:
    case.plan_hash = PlanHash(bytes(32))
    assert code_of(case.verify) == "testimony-foreign"


def test_a_testimony_without_a_warrant_is_refused(case: Case) -> None:
    case.change(warrant=None)
    assert code_of(case.verify) == "testimony-warrant"


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"run_id": "x/y"}, "warrant-foreign"),
        ({"plan_hash": bytes(32)}, "warrant-foreign"),
        ({"party": "bob"}, "warrant-foreign"),
        ({"role": "server"}, "warrant-foreign"),
        ({"tls_key": new_identity().tls_spki}, "warrant-foreign"),
        ({"expires_at": 1}, "warrant-malformed"),
        ({"issued_at": 0, "expires_at": 1}, "warrant-expired"),
    ],
)
def test_the_warrant_is_verified_again(
    federation: Federation, case: Case, terms: dict[str, Any], code: str
) -> None:
    assert case.testimony.warrant is not None
    other = msgspec.structs.replace(case.testimony.warrant.terms, **terms)
    case.change(warrant=sign_warrant(other, federation.keys["alice"]))
    assert code_of(case.verify) == code


def test_a_warrant_that_another_party_signed_is_refused(
    federation: Federation, case: Case
) -> None:
    key = Spki(case.testimony.said.client_key)
    theirs = federation.warrant("bob", key)
    assert case.testimony.warrant is not None
    forged = msgspec.structs.replace(theirs, terms=case.testimony.warrant.terms)
    case.change(warrant=forged)
    assert code_of(case.verify) == "warrant-signature"


def test_a_testimony_without_a_proof_is_refused(case: Case) -> None:
    case.change(proof=None)
    assert code_of(case.verify) == "testimony-proof"


def test_evidence_of_another_node_is_refused(
    federation: Federation, case: Case
) -> None:
    """Also of the same party's, and of the same code."""
    for party in ("alice", "bob"):
        other = admittal(federation, party)
        case.change(proof=other.testimony.proof)
        assert code_of(case.verify) == "report-data"


def test_a_proof_of_the_other_kind_is_refused(case: Case, bobs: Case) -> None:
    evidence, signature = case.testimony.proof, bobs.testimony.proof
    case.change(proof=signature, collateral=None)
    case.collateral = None
    assert code_of(case.verify) == "proof-kind"
    bobs.change(proof=evidence)
    assert code_of(bobs.verify) == "proof-kind"


def test_a_signature_by_another_key_is_refused(bobs: Case) -> None:
    bobs.change(proof=IdentityProof(signature=bytes(64)))
    assert code_of(bobs.verify) == "identity-signature"


def test_evidence_is_judged_with_the_collateral_that_it_names(
    federation: Federation, tmp_path: Path, case: Case
) -> None:
    """Other collateral is of another day, or of another platform."""
    other = make_federation(tmp_path)
    publish(other, up_to_date("tdx", at=START))
    newer = case_of(other, admittal(other, "alice")).collateral
    sgx = case_of(federation, admittal(federation, "bob")).collateral
    for given in (None, newer, sgx):
        case.collateral = given
        assert code_of(case.verify) == "testimony-collateral"


def test_evidence_that_names_no_collateral_is_refused(case: Case) -> None:
    given = case.collateral
    case.change(collateral=None)
    assert code_of(case.verify) == "testimony-collateral"
    case.collateral = None
    assert code_of(case.verify) == "testimony-collateral"
    case.collateral = given
    case.change(collateral=64 * "0")
    assert code_of(case.verify) == "testimony-collateral"


def test_a_signature_is_judged_with_no_collateral(case: Case, bobs: Case) -> None:
    bobs.collateral = case.collateral
    assert code_of(bobs.verify) == "testimony-collateral"
    bobs.change(collateral=case.testimony.collateral)
    bobs.collateral = None
    assert code_of(bobs.verify) == "testimony-collateral"


def test_it_is_judged_at_its_own_time(case: Case) -> None:
    case.at = START + timedelta(days=2)
    assert code_of(case.verify) == "warrant-expired"
    case.at = START - timedelta(days=2)
    assert code_of(case.verify) == "warrant-expired"
    case.at = START.replace(tzinfo=None)
    with pytest.raises(ValueError, match="aware"):
        case.verify()


def test_it_is_judged_by_the_policy_of_its_party(case: Case) -> None:
    parties = tuple(
        msgspec.structs.replace(party, platforms=(32 * "0",))
        if party.name == "alice"
        else party
        for party in case.plan.party
    )
    before = plan_hash(case.plan)
    case.plan = msgspec.structs.replace(case.plan, party=parties)
    assert code_of(case.verify) == "testimony-foreign"
    case.plan_hash = before
    assert code_of(case.verify) == "appraisal-platform"


def test_it_is_judged_under_one_root(other_federation: Federation, case: Case) -> None:
    case.root = other_federation.root.trust_root
    assert code_of(case.verify) == "root-untrusted"


# At custodians.


def at_custodian(
    federation: Federation, party: str, custodian: str, *, far: FarRole = "custodian"
) -> Case:
    """Returns what a party's node shows a party's custodian."""
    node = federation.node(party)
    transcript = Transcript(
        run_id=node.plan.run_id,
        plan_hash=node.plan_hash,
        client_role=node.role,
        client_party=party,
        server_role=far,
        server_party=custodian,
        client_nonce=Nonce(b"c" * 32),
        server_nonce=Nonce(b"s" * 32),
        client_key=node.identity.tls_spki,
        server_key=new_identity().tls_spki,
        admission_key=b"",
        client_encryption_key=node.identity.encryption_public,
        server_encryption_key=b"",
    )
    proof = node.prover.prove(transcript)
    collateral = None
    if isinstance(proof, EvidenceProof):
        collateral = node.appraiser.fetch_collateral(
            proof.quote, expected_report_data=transcript.client_report_data()
        )
    own = party == custodian
    it = shown(
        transcript,
        warrant=None if own else node.warrant.current,
        proof=proof,
        collateral=collateral,
    )
    assert (it.collateral is None) == (collateral is None)
    if it.collateral is not None:
        assert it.testimony.collateral == collateral_sha256(it.collateral)
    return Case(
        testimony=it.testimony,
        collateral=collateral,
        plan=federation.plan,
        root=federation.root.trust_root,
    )


@pytest.mark.parametrize("party", ["aggregator", "alice", "bob"])
def test_at_its_own_custodian_a_node_needs_no_warrant(
    mixed: Federation, party: str
) -> None:
    standing = at_custodian(mixed, party, party).verify()
    assert isinstance(standing, Identified if party == "bob" else Verdict)


@pytest.mark.parametrize(
    ("party", "custodian"), [("aggregator", "alice"), ("alice", "aggregator")]
)
def test_at_who_holds_a_share_of_its_key_a_node_needs_its_warrant(
    mixed: Federation, party: str, custodian: str
) -> None:
    case = at_custodian(mixed, party, custodian)
    assert isinstance(case.verify(), Verdict)
    case.change(warrant=None)
    assert code_of(case.verify) == "testimony-warrant"


@pytest.mark.parametrize(
    ("party", "custodian"), [("alice", "bob"), ("bob", "alice"), ("bob", "aggregator")]
)
def test_who_holds_no_share_of_its_key_meets_no_other_partys_node(
    mixed: Federation, party: str, custodian: str
) -> None:
    """Bob holds none, and has no state key either."""
    assert code_of(at_custodian(mixed, party, custodian).verify) == "testimony-foreign"


def test_a_recipient_has_no_state_and_meets_its_own_custodian_alone(
    tmp_path: Path,
) -> None:
    federation = make_federation(
        tmp_path,
        change=lambda tree: hold_shares(tree, "aggregator", "alice"),
        recipients=("rita",),
    )
    assert isinstance(at_custodian(federation, "rita", "rita").verify(), Verdict)
    for custodian in ("aggregator", "alice", "bob"):
        case = at_custodian(federation, "rita", custodian)
        assert code_of(case.verify) == "testimony-foreign"


def test_the_server_meets_nobody_as_a_client_of_itself(mixed: Federation) -> None:
    case = at_custodian(mixed, "aggregator", "aggregator", far="server")
    assert code_of(case.verify) == "testimony-foreign"
