"""Another party's node at a custodian that holds a share, message by message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.custody_audit import verify_log
from tests.support.custody_keys import KeyedFederation, KeysInMemory, make_keyed
from tests.support.custody_meeting import (
    CustodyMeeting,
    SharesMeeting,
    certificate_of,
    custodian_of,
)
from tests.support.federation_in_memory import (
    START,
    WARRANT_LIFE,
    HandClock,
    quoting,
    rewarranted,
    warranted,
)
from tests.support.plan_tree import by_identity, measurement_of
from tests.support.refusals import code_of

from cloister.attestation.platforms.simulated.platform import load_simulated_platform
from cloister.attestation.policy import Policy, SgxReference
from cloister.custody.audit_export import export_audit
from cloister.custody.custodian import PROOF_LIFE, Custodian
from cloister.custody.messages import CustodianProof, KeyRequest, KeysReleased, Met
from cloister.custody.node_share_meeting import NodeShareMeeting
from cloister.custody.released_keys import seal_keys
from cloister.custody.share_meeting import ShareMeeting
from cloister.errors import ProtocolError, VerificationError
from cloister.plan.keys import format_party_key
from cloister.plan.plan import plan_hash
from cloister.ratls.challenge import (
    VERSION,
    Answer,
    EvidenceProof,
    IdentityProof,
)
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from cloister.ratls.proofs import IdentityProver, sign_possession
from cloister.ratls.warrant import HeldWarrant
from cloister.storage.keys import KeyKind, new_key

Lend = Callable[..., Custodian]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """The server's party and alice hold shares; bob is not attested, rita receives."""
    return make_keyed(
        tmp_path_factory.mktemp("keyed"), change=lambda tree: by_identity(tree, "bob")
    )


@pytest.fixture
def lend(keyed: KeyedFederation, clock: HandClock, tmp_path: Path) -> Iterator[Lend]:
    """Lends a party's custodian with what it keeps."""
    with ExitStack() as stack:

        def custodian(party: str, **changes: Any) -> Custodian:
            return stack.enter_context(
                custodian_of(
                    keyed.federation,
                    party,
                    tmp_path,
                    clock=clock,
                    **{"keys": keyed.stores[party], **changes},
                )
            )

        yield custodian


@pytest.fixture
def custodian(lend: Lend) -> Custodian:
    """The custodian of the server's party."""
    return lend("aggregator")


@pytest.fixture
def alice(keyed: KeyedFederation, clock: HandClock) -> Node:
    """Alice's node, warranted by her own custodian."""
    return keyed.federation.node("alice", clock=clock)


@pytest.fixture
def meeting(custodian: Custodian, alice: Node) -> SharesMeeting:
    """Alice's node at the custodian of the server's party."""
    return SharesMeeting(custodian, alice)


def kinds_of(custodian: Custodian) -> list[str]:
    """Returns what the custodian recorded since it consented."""
    return [row.kind for row in custodian.register.records()][2:]


def hello_of(node: Node, custodian: Custodian) -> Any:
    """Returns the hello of a node that does not look whom it greets."""
    return CustodyMeeting(custodian, node).node.hello()


def test_a_node_gets_the_share_of_another_party(
    keyed: KeyedFederation, meeting: SharesMeeting, custodian: Custodian
) -> None:
    meeting.accept()
    assert meeting.share() == keyed.secrets["aggregator", "state-share"]
    assert kinds_of(custodian) == ["collateral", "warrant-noted", "key-released"]
    [noted] = custodian.register.foreign_warrants()
    assert (noted.party, noted.role, noted.epoch) == ("alice", "worker", 1)


def test_it_gets_no_warrant_and_spends_no_epoch(
    meeting: SharesMeeting, custodian: Custodian, alice: Node
) -> None:
    held = alice.warrant.current
    meeting.accept()
    meeting.share()
    assert alice.warrant.current is held
    assert custodian.register.warrants() == ()


def test_its_proof_is_never_taken_for_one_of_the_partys_own_node(
    meeting: SharesMeeting, custodian: Custodian
) -> None:
    meeting.accept()
    proved = meeting.custodian.proved
    assert proved is not None
    with pytest.raises(RuntimeError):
        custodian.warrant(proved)
    assert custodian.register.warrants() == ()


def test_the_server_gets_a_workers_share_as_well(
    keyed: KeyedFederation, lend: Lend, clock: HandClock
) -> None:
    node = keyed.federation.node("aggregator", clock=clock)
    meeting = SharesMeeting(lend("alice"), node)
    meeting.accept()
    assert meeting.share() == keyed.secrets["alice", "state-share"]


@pytest.mark.parametrize("kind", ["data", "vault"])
def test_it_gets_nothing_but_the_share(
    keyed: KeyedFederation,
    lend: Lend,
    clock: HandClock,
    kind: KeyKind,
) -> None:
    """Alice's custodian has her data key; the server's node asks for it."""
    custodian = lend("alice")
    node = keyed.federation.node("aggregator", clock=clock)
    meeting = SharesMeeting(custodian, node)
    meeting.accept()
    asked = len(keyed.stores["alice"].asked)
    assert code_of(meeting.release, kind) == "key-not-for-node"
    assert code_of(meeting.release, "state-share", kind) == "key-not-for-node"
    assert len(keyed.stores["alice"].asked) == asked
    assert "key-released" not in kinds_of(custodian)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("version", VERSION + 1, "version-differs"),
        ("plan_hash", bytes(32), "plan-not-consented"),
        ("run_id", "blobs/b", "run-differs"),
        ("party", "mallory", "party-differs"),
        ("party", "aggregator", "party-differs"),
        ("party", "bob", "key-not-for-node"),
        ("party", "rita", "role-differs"),
        ("role", "server", "role-differs"),
        ("role", "recipient", "role-differs"),
        ("tls_key", bytes(91), "tls-key-invalid"),
    ],
)
def test_a_hello_from_elsewhere_is_refused(
    meeting: SharesMeeting, name: str, value: Any, code: str
) -> None:
    hello = msgspec.structs.replace(meeting.hello(), **{name: value})
    with pytest.raises(VerificationError) as caught:
        meeting.custodian.challenge(hello)
    assert caught.value.code == code
    for secret in ("alice", "aggregator", "bob", "blobs"):
        assert secret not in caught.value.what


def test_a_custodian_without_a_share_meets_no_node_of_another_party(
    lend: Lend, alice: Node
) -> None:
    for party in ("bob", "rita"):
        custodian = lend(party)
        side = ShareMeeting(custodian, tls_key=new_identity().tls_spki)
        hello = hello_of(alice, custodian)
        assert code_of(side.challenge, hello) == "party-differs"
        # Nor does an honest node go there.
        with pytest.raises(VerificationError) as caught:
            NodeShareMeeting(alice, party=party)
        assert caught.value.code == "key-not-for-node"


@pytest.mark.parametrize("party", ["bob", "rita"])
def test_a_node_without_a_state_asks_nobody_for_a_share(
    keyed: KeyedFederation, clock: HandClock, party: str
) -> None:
    node = keyed.federation.node(party, clock=clock)
    with pytest.raises(VerificationError) as caught:
        NodeShareMeeting(node, party="alice")
    assert caught.value.code == "key-not-for-node"


def test_a_recipient_gets_no_share(
    keyed: KeyedFederation, lend: Lend, clock: HandClock
) -> None:
    """All state keys come from the same shares, and it has no state."""
    custodian = lend("alice")
    side = ShareMeeting(custodian, tls_key=new_identity().tls_spki)
    hello = hello_of(keyed.federation.node("rita", clock=clock), custodian)
    assert code_of(side.challenge, hello) == "key-not-for-node"


def test_a_node_that_does_not_hold_its_key_hears_no_signature(
    meeting: SharesMeeting, custodian: Custodian, alice: Node
) -> None:
    """A warrant can be copied from the wire of another session."""
    meeting.answer()
    said = meeting.node.transcript
    for signature in (
        b"",
        sign_possession(new_identity(), said),
        sign_possession(alice.identity, replace(said, server_party="bob")),
        sign_possession(alice.identity, replace(said, server_role="server")),
    ):
        answer = Answer(warrant=alice.warrant.current, signature=signature)
        assert code_of(meeting.custodian.prove, answer) == "transcript-signature"
    assert kinds_of(custodian) == []


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"run_id": "blobs/b"}, "warrant-foreign"),
        ({"plan_hash": bytes(32)}, "warrant-foreign"),
        ({"role": "server"}, "warrant-foreign"),
        ({"party": "bob"}, "warrant-foreign"),
        ({"tls_key": new_identity().tls_spki}, "warrant-foreign"),
        ({"expires_at": int(START.timestamp())}, "warrant-malformed"),
        # Within the tolerance for clocks, and never in force.
        (
            {
                "issued_at": int(START.timestamp()) + 300,
                "expires_at": int(START.timestamp()) + 200,
            },
            "warrant-malformed",
        ),
        (
            {
                "issued_at": int(START.timestamp()) - 7200,
                "expires_at": int(START.timestamp()),
            },
            "warrant-expired",
        ),
        ({"issued_at": int(START.timestamp()) + 7200}, "warrant-expired"),
    ],
)
def test_a_warrant_for_something_else_is_refused(
    keyed: KeyedFederation,
    custodian: Custodian,
    alice: Node,
    terms: dict[str, Any],
    code: str,
) -> None:
    meeting = SharesMeeting(custodian, rewarranted(keyed.federation, alice, **terms))
    assert code_of(meeting.custodian_proof) == code


def test_a_warrant_that_another_party_signed_is_refused(
    keyed: KeyedFederation, custodian: Custodian, alice: Node
) -> None:
    """The custodian's own party as well: it does not speak for alice."""
    terms = alice.warrant.current.terms
    for signer in ("bob", "aggregator"):
        forged = msgspec.structs.replace(
            alice.warrant.current,
            signature=keyed.federation.keys[signer].sign(terms.signed_bytes()),
        )
        meeting = SharesMeeting(custodian, warranted(alice, forged))
        assert code_of(meeting.custodian_proof) == "warrant-signature"


def test_a_node_without_a_warrant_has_nothing_to_show(
    custodian: Custodian, alice: Node
) -> None:
    meeting = SharesMeeting(custodian, replace(alice, warrant=HeldWarrant()))
    with pytest.raises(ProtocolError) as caught:
        meeting.answer()
    assert caught.value.code == "no-warrant"


@pytest.mark.parametrize(
    ("how", "code"),
    [("code", "appraisal-measurement"), ("role", "appraisal-measurement")],
)
def test_a_node_of_other_code_gets_nothing_and_ages_nobody(
    keyed: KeyedFederation,
    custodian: Custodian,
    clock: HandClock,
    how: str,
    code: str,
) -> None:
    """Its own custodian warranted it: that one is deceived, or in league with it."""
    federation = keyed.federation
    other = measurement_of("worker", task_source=b"other")
    platform = {
        "code": federation.platform("alice", measurement=other),
        "role": federation.platform("aggregator"),
    }[how]
    bad = quoting(federation.node("alice", clock=clock, epoch=9), platform)
    meeting = SharesMeeting(custodian, bad)
    assert code_of(meeting.met) == code
    assert meeting.custodian.proved is None
    assert custodian.register.foreign_warrants() == ()
    good = SharesMeeting(custodian, federation.node("alice", clock=clock))
    good.accept()
    good.share()


def test_the_partys_own_policy_is_asked_as_well(
    keyed: KeyedFederation, lend: Lend, alice: Node
) -> None:
    """What it says of machines in general holds for everybody's."""
    plans = keyed.plan.policy_for("server")
    newer = msgspec.structs.replace(plans, min_tcb_evaluation_number=2)
    custodian = lend("aggregator", local_policy=newer)
    meeting = SharesMeeting(custodian, alice)
    assert code_of(meeting.met) == "appraisal-evaluation-number"
    assert custodian.register.foreign_warrants() == ()


def test_the_partys_own_code_and_machines_are_asked_of_its_own_node_alone(
    keyed: KeyedFederation, lend: Lend, alice: Node, clock: HandClock
) -> None:
    """Alice's node has another role, in a trust domain, and on her own machine."""
    plans = keyed.plan.policy_for("server")
    custodian = lend(
        "aggregator",
        local_policy=Policy(root=plans.root, sgx=plans.sgx, platforms=("0" * 32,)),
    )
    meeting = SharesMeeting(custodian, alice)
    meeting.accept()
    assert meeting.share() == keyed.secrets["aggregator", "state-share"]
    own = CustodyMeeting(custodian, keyed.federation.node("aggregator", clock=clock))
    assert code_of(own.warranted) == "appraisal-platform"


def test_the_partys_own_policy_lets_no_other_code_have_the_share(
    keyed: KeyedFederation, lend: Lend, clock: HandClock
) -> None:
    """It accepts what the plan does not, and is not asked about that."""
    other = measurement_of("worker", task_source=b"other")
    plans = keyed.plan.policy_for("server")
    reference = SgxReference(mr_enclave=other.mr_enclave.hex())
    custodian = lend(
        "aggregator",
        local_policy=msgspec.structs.replace(plans, sgx=(*plans.sgx, reference)),
    )
    federation = keyed.federation
    enclave = load_simulated_platform(
        federation.directory / "alice", tee="sgx", measurement=other
    )
    node = quoting(federation.node("alice", clock=clock), enclave)
    assert code_of(SharesMeeting(custodian, node).met) == "appraisal-measurement"


def test_a_signature_is_no_evidence(
    keyed: KeyedFederation, meeting: SharesMeeting
) -> None:
    """Whoever has alice's party key would have the share of another party."""
    meeting.node_proof()
    prover = IdentityProver(key=keyed.federation.keys["alice"])
    by_key = prover.prove(meeting.node.transcript)
    assert isinstance(by_key, IdentityProof)
    assert code_of(meeting.custodian.meet, by_key) == "proof-kind"


def test_evidence_for_anybody_else_is_refused(
    meeting: SharesMeeting, alice: Node
) -> None:
    """Above all for alice's own custodian, or the server, who pass it on."""
    meeting.node_proof()
    said = meeting.node.transcript
    for other in (
        replace(said, server_party="alice"),
        replace(said, server_party="bob"),
        replace(said, server_role="server"),
        replace(said, server_nonce=said.client_nonce),
        replace(said, client_encryption_key=new_identity().encryption_public),
    ):
        quote = alice.platform.quote(other.client_report_data())
        proof = EvidenceProof(quote=quote)
        assert code_of(meeting.custodian.meet, proof) == "report-data"


def test_evidence_for_a_shareholder_gets_no_warrant_at_home(
    lend: Lend, meeting: SharesMeeting, alice: Node
) -> None:
    """A foreign custodian passes alice's evidence on to alice's own."""
    proof = meeting.node_proof()
    home = CustodyMeeting(lend("alice"), alice)
    home.node_proof()
    assert code_of(home.custodian.warrant, proof) == "report-data"


def test_a_node_that_was_replaced_gets_nothing_once_its_successor_was_here(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    """Its warrant is still in force, and its session still open."""
    old = SharesMeeting(custodian, keyed.federation.node("alice", clock=clock))
    old.accept()
    newer = keyed.federation.node("alice", clock=clock, epoch=2)
    new = SharesMeeting(custodian, newer)
    new.accept()
    assert code_of(old.release, "state-share") == "warrant-superseded"
    again = SharesMeeting(custodian, old.node._session.node)
    assert code_of(again.met) == "epoch-old"
    # It had proved itself, so it may hear why, and the refusal is recorded.
    assert again.custodian.proved is not None
    assert new.share() == keyed.secrets["aggregator", "state-share"]


def test_two_nodes_of_one_epoch_are_one_too_many(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    """Alice's custodian signed twice, or its register was put back."""
    first, second = (
        SharesMeeting(custodian, keyed.federation.node("alice", clock=clock))
        for _ in range(2)
    )
    first.accept()
    assert code_of(second.met) == "epoch-forked"


def test_an_epoch_is_remembered_by_a_custodian_that_starts_anew(
    keyed: KeyedFederation, clock: HandClock, tmp_path: Path
) -> None:
    for epoch, code in ((2, None), (1, "epoch-old")):
        with custodian_of(
            keyed.federation, "aggregator", tmp_path, clock=clock
        ) as custodian:
            node = keyed.federation.node("alice", clock=clock, epoch=epoch)
            meeting = SharesMeeting(custodian, node)
            if code is None:
                meeting.accept()
            else:
                assert code_of(meeting.met) == code


def test_a_consent_withdrawn_within_the_session_ends_it(
    keyed: KeyedFederation, meeting: SharesMeeting, custodian: Custodian
) -> None:
    proof = meeting.node_proof()
    meeting.node.accept(meeting.custodian.meet(proof))
    custodian.register.withdraw(plan_hash(keyed.plan), at=START)
    assert code_of(meeting.release, "state-share") == "plan-withdrawn"


def test_a_consent_withdrawn_before_the_proof_ends_it(
    keyed: KeyedFederation, meeting: SharesMeeting, custodian: Custodian
) -> None:
    proof = meeting.node_proof()
    custodian.register.withdraw(plan_hash(keyed.plan), at=START)
    assert code_of(meeting.custodian.meet, proof) == "plan-withdrawn"
    assert custodian.register.foreign_warrants() == ()


def test_a_warrant_that_ends_within_the_session_ends_it(
    keyed: KeyedFederation, custodian: Custodian, alice: Node, clock: HandClock
) -> None:
    soon = int((clock() + timedelta(minutes=1)).timestamp())
    node = rewarranted(keyed.federation, alice, expires_at=soon)
    meeting = SharesMeeting(custodian, node)
    meeting.accept()
    meeting.share()
    clock.forward(timedelta(minutes=1))
    assert code_of(meeting.release, "state-share") == "warrant-expired"


def test_a_warrant_that_ends_while_the_node_proves_itself_leaves_no_record(
    keyed: KeyedFederation, custodian: Custodian, alice: Node, clock: HandClock
) -> None:
    """What is recorded must hold for who reads the record."""
    soon = int((clock() + timedelta(seconds=5)).timestamp())
    meeting = SharesMeeting(
        custodian, rewarranted(keyed.federation, alice, expires_at=soon)
    )
    proof = meeting.node_proof()
    for seconds in (4, 1, 1):
        clock.forward(timedelta(seconds=seconds))
        assert code_of(meeting.custodian.meet, proof) == "warrant-expired"
    assert custodian.register.foreign_warrants() == ()
    assert kinds_of(custodian) == []
    again = rewarranted(keyed.federation, alice, expires_at=soon + 60)
    SharesMeeting(custodian, again).accept()
    log = b"".join(export_audit(custodian.register, key=custodian.key))
    key = format_party_key(custodian.key)
    [noted] = verify_log(log, key=key).nodes
    assert noted.terms == again.warrant.current.terms


def test_a_proof_of_some_time_ago_is_not_enough(
    meeting: SharesMeeting, clock: HandClock
) -> None:
    meeting.accept()
    clock.forward(PROOF_LIFE + timedelta(seconds=1))
    assert code_of(meeting.release, "state-share") == "proof-old"


def test_a_node_with_a_warrant_of_yesterday_is_refused(
    custodian: Custodian, alice: Node, clock: HandClock
) -> None:
    clock.forward(WARRANT_LIFE)
    meeting = SharesMeeting(custodian, alice)
    assert code_of(meeting.custodian_proof) == "warrant-expired"


def test_a_foreign_custodian_moves_no_clock_of_the_node(
    custodian: Custodian, alice: Node
) -> None:
    meeting = SharesMeeting(custodian, alice)
    before = alice.clock()
    meeting.accept()
    meeting.share()
    assert alice.clock() == before


def test_a_custodian_of_another_party_is_not_pinned(lend: Lend, alice: Node) -> None:
    """The host writes another address under [shares]: bob's, or alice's own."""
    node = NodeShareMeeting(alice, party="aggregator")
    for party in ("bob", "alice"):
        der = certificate_of(lend(party), new_identity())
        assert code_of(node.pin, der) == "custodian-certificate-signature"


def test_who_does_not_hold_the_partys_key_now_gets_no_evidence(
    keyed: KeyedFederation, meeting: SharesMeeting
) -> None:
    meeting.custodian_proof()
    said = meeting.node.transcript
    for signer, signed in (
        ("alice", said.custodian_bytes()),
        ("bob", said.custodian_bytes()),
        ("aggregator", said.identity_bytes()),
        ("aggregator", replace(said, server_party="alice").custodian_bytes()),
        ("aggregator", replace(said, client_party="bob").custodian_bytes()),
    ):
        signature = keyed.federation.keys[signer].sign(signed)
        proof = CustodianProof(signature=signature)
        assert code_of(meeting.node.prove, proof) == "custodian-signature"


def test_a_custodian_with_another_share_is_found_out_by_its_node(
    keyed: KeyedFederation, custodian: Custodian, alice: Node
) -> None:
    """It does not look at what it gives; the node does, and names whose it is."""
    meeting = SharesMeeting(custodian, alice)
    meeting.accept()
    proved = meeting.custodian.proved
    assert proved is not None
    for wrong in (new_key(), keyed.secrets["alice", "state-share"]):
        sealed = seal_keys(
            {"state-share": wrong}, transcript=proved.transcript, epoch=1
        )
        with pytest.raises(VerificationError, match="'aggregator'") as caught:
            meeting.node.open(KeysReleased(sealed=sealed))
        assert caught.value.code == "key-differs"


def test_a_share_for_one_node_is_nothing_to_another_of_the_same_code(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    first = SharesMeeting(custodian, keyed.federation.node("alice", clock=clock))
    first.accept()
    blob = KeysReleased(sealed=first.release("state-share").sealed)
    second = SharesMeeting(
        custodian, keyed.federation.node("alice", clock=clock, epoch=2)
    )
    second.accept()
    assert code_of(second.node.open, blob) == "released-keys"


def test_a_share_that_is_not_there_is_named(lend: Lend, alice: Node) -> None:
    meeting = SharesMeeting(lend("aggregator", keys=KeysInMemory()), alice)
    meeting.accept()
    assert code_of(meeting.release, "state-share") == "key-unknown"


def test_steps_out_of_order_are_bugs(meeting: SharesMeeting, alice: Node) -> None:
    side, node = meeting.custodian, meeting.node
    request = KeyRequest(kinds=("state-share",))
    answer = Answer(warrant=alice.warrant.current, signature=b"")
    proof = EvidenceProof(quote=b"q")
    assert side.proved is None
    for act in (
        lambda: side.prove(answer),
        lambda: side.meet(proof),
        lambda: side.release(request),
        lambda: node.prove(CustodianProof(signature=bytes(64))),
        lambda: node.accept(Met()),
        node.request,
        lambda: node.open(KeysReleased(sealed=b"")),
        lambda: node.transcript,
    ):
        with pytest.raises(RuntimeError):
            act()
    meeting.answer()
    with pytest.raises(RuntimeError):
        side.meet(proof)
    with pytest.raises(RuntimeError):
        side.release(request)
