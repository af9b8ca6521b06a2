"""What a custodian releases to its own party's node, message by message."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_meeting import CustodyMeeting, custodian_of
from tests.support.federation_in_memory import WARRANT_LIFE, HandClock
from tests.support.plan_tree import by_identity
from tests.support.refusals import code_of
from typing_extensions import override

from cloister.custody.custodian import PROOF_LIFE, Custodian
from cloister.custody.key_store import KeyStore
from cloister.custody.messages import KeyRequest, KeysReleased
from cloister.custody.register_records import RELEASES_AN_HOUR
from cloister.errors import ProtocolError, StorageError, VerificationError
from cloister.plan.plan import plan_hash
from cloister.ratls.epochs import key_digest
from cloister.ratls.identity import new_identity
from cloister.storage.keys import KeyKind, Secret, new_key

Lend = Callable[..., Custodian]
CANARY = "vault.example token=s3cret"


class Panic(BaseException):
    """As bindings to other languages raise it."""


FAILURES = [
    OSError(CANARY),
    KeyError(CANARY),
    RuntimeError(CANARY),
    StopIteration(CANARY),
    SystemExit(CANARY),
    asyncio.CancelledError(CANARY),
    Panic(CANARY),
]


@dataclass(frozen=True, slots=True)
class Failing(KeyStore):
    """Somebody's client of a key manager, which raises what it likes."""

    failure: BaseException

    @override
    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        raise self.failure


@dataclass(frozen=True, slots=True)
class Giving(KeyStore):
    """One that returns what it likes."""

    given: Any

    @override
    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        return self.given  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Overtaken(KeyStore):
    """A slow one: something else happens before it answers."""

    store: KeyStore
    meanwhile: Callable[[], object]

    @override
    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        self.meanwhile()
        return self.store.secret(key_id, kind=kind)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Alice and bob have data keys, rita a vault; bob is not attested."""
    return make_keyed(
        tmp_path_factory.mktemp("keyed"), change=lambda tree: by_identity(tree, "bob")
    )


@pytest.fixture
def lend(keyed: KeyedFederation, clock: HandClock, tmp_path: Path) -> Iterator[Lend]:
    """Lends a party's custodian with what it keeps."""
    with ExitStack() as stack:

        def custodian(party: str) -> Custodian:
            return stack.enter_context(
                custodian_of(
                    keyed.federation,
                    party,
                    tmp_path,
                    clock=clock,
                    keys=keyed.stores[party],
                )
            )

        yield custodian


@pytest.fixture
def custodian(lend: Lend) -> Custodian:
    """Alice's custodian."""
    return lend("alice")


def met(
    custodian: Custodian, keyed: KeyedFederation, clock: HandClock
) -> CustodyMeeting:
    """Returns the session of a fresh node of the custodian's party, warranted."""
    node = keyed.federation.node(custodian.party, clock=clock)
    meeting = CustodyMeeting(custodian, node)
    meeting.accept()
    return meeting


def records(custodian: Custodian, kind: str) -> list[str]:
    """Returns what the register recorded of a kind, as text."""
    found = [row for row in custodian.register.records() if row.kind == kind]
    return [row.payload.decode() for row in found]


@pytest.mark.parametrize(
    ("party", "kinds"),
    [
        ("alice", ("data",)),
        ("alice", ("state-share",)),
        ("alice", ("data", "state-share")),
        ("aggregator", ("state-share",)),
        ("bob", ("data",)),
        ("rita", ("vault",)),
    ],
)
def test_a_node_gets_its_own_keys(
    keyed: KeyedFederation,
    lend: Lend,
    clock: HandClock,
    party: str,
    kinds: tuple[KeyKind, ...],
) -> None:
    meeting = met(lend(party), keyed, clock)
    keys = meeting.keys(*kinds)
    assert keys == {kind: keyed.secrets[party, kind] for kind in kinds}


def test_a_release_is_on_record_with_names_and_no_key(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    meeting = met(custodian, keyed, clock)
    node = meeting.node.transcript
    release = meeting.release("data", "state-share")
    [record] = records(custodian, "key-released")
    for said in (
        *release.key_ids.values(),
        node.run_id,
        key_digest(node.client_key).hex(),
    ):
        assert said in record
    told = record + repr(release) + repr(custodian) + repr(meeting)
    for key in keyed.secrets.values():
        assert key.reveal().hex() not in told
        assert repr(key.reveal()) not in told


@pytest.mark.parametrize(
    ("party", "kind"),
    [
        ("alice", "vault"),
        ("aggregator", "data"),
        ("aggregator", "vault"),
        ("rita", "data"),
        ("rita", "state-share"),
        ("bob", "state-share"),
        ("bob", "vault"),
    ],
)
def test_a_key_that_is_not_the_nodes_stays(
    keyed: KeyedFederation, lend: Lend, clock: HandClock, party: str, kind: KeyKind
) -> None:
    custodian = lend(party)
    meeting = met(custodian, keyed, clock)
    asked = len(keyed.stores[party].asked)
    assert code_of(meeting.release, kind) == "key-not-for-node"
    # Nor does an honest node ask.
    assert code_of(meeting.node.request, (kind,)) == "key-not-for-node"
    # The store was not even asked, and nothing says that anything left.
    assert len(keyed.stores[party].asked) == asked
    assert records(custodian, "key-released") == []


@pytest.mark.parametrize("kinds", [(), ("data", "data")])
def test_a_request_that_is_none_is_refused(
    keyed: KeyedFederation,
    custodian: Custodian,
    clock: HandClock,
    kinds: tuple[KeyKind, ...],
) -> None:
    meeting = met(custodian, keyed, clock)
    for act in (lambda: meeting.release(*kinds), lambda: meeting.node.request(kinds)):
        with pytest.raises(ProtocolError) as caught:
            act()
        assert caught.value.code == "key-request"


def test_a_consent_that_was_withdrawn_within_the_session_ends_releases(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    meeting = met(custodian, keyed, clock)
    meeting.keys("data")
    custodian.register.withdraw(plan_hash(keyed.plan), at=clock())
    assert code_of(meeting.release, "data") == "plan-withdrawn"
    assert len(records(custodian, "key-released")) == 1


def test_a_node_that_was_replaced_within_its_session_gets_nothing_more(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    """Its session is still open when the party's next node comes."""
    old = met(custodian, keyed, clock)
    newer = met(custodian, keyed, clock)
    assert code_of(old.release, "data") == "warrant-superseded"
    assert newer.keys("data")["data"] == keyed.secrets["alice", "data"]
    assert len(records(custodian, "key-released")) == 1


def test_a_node_that_proved_itself_long_ago_proves_itself_again(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    meeting = met(custodian, keyed, clock)
    clock.forward(PROOF_LIFE)
    meeting.keys("data")
    clock.forward(timedelta(seconds=1))
    assert code_of(meeting.release, "data") == "proof-old"
    assert len(records(custodian, "key-released")) == 1


def test_a_warrant_that_is_over_gets_no_key(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    short = replace(custodian, warrant_life=timedelta(minutes=1))
    meeting = met(short, keyed, clock)
    clock.forward(timedelta(minutes=1))
    assert code_of(meeting.release, "data") == "warrant-expired"


def test_a_key_that_was_revoked_or_never_came_is_named(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    store = keyed.stores["alice"]
    meeting = met(custodian, keyed, clock)
    name = str(keyed.plan.find_party("alice").data_key)
    store.revoked.add(name)
    assert code_of(meeting.release, "data") == "key-revoked"
    store.revoked.clear()
    key = store.keys.pop(name)
    assert code_of(meeting.release, "data") == "key-unknown"
    store.keys[name] = key
    assert records(custodian, "key-released") == []


def test_a_store_that_gives_another_key_has_it_stay(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    """An organisation's own key manager answers with the wrong one."""
    store = keyed.stores["alice"]
    meeting = met(custodian, keyed, clock)
    name = str(keyed.plan.find_party("alice").data_key)
    right = store.keys[name]
    for wrong in (new_key(), keyed.secrets["alice", "state-share"]):
        store.keys[name] = wrong
        assert code_of(meeting.release, "data") == "key-differs"
    store.keys[name] = right
    assert records(custodian, "key-released") == []


def test_a_node_that_keeps_asking_is_told_to_stop(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    meeting = met(custodian, keyed, clock)
    for _ in range(RELEASES_AN_HOUR):
        meeting.release("data")
    # Nor does a new node of the same party get round it.
    for renewed in (False, True):
        again = met(custodian, keyed, clock) if renewed else meeting
        with pytest.raises(ProtocolError) as caught:
            again.release("data")
        assert caught.value.code == "release-limit"
    clock.forward(timedelta(hours=1, seconds=1))
    met(custodian, keyed, clock).keys("data")


def test_a_flood_of_requests_costs_the_store_nothing(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    store = keyed.stores["alice"]
    meeting = met(custodian, keyed, clock)
    for _ in range(RELEASES_AN_HOUR):
        meeting.release("data")
    asked = len(store.asked)
    for _ in range(3):
        with pytest.raises(ProtocolError) as caught:
            meeting.release("data")
        assert caught.value.code == "release-limit"
    assert len(store.asked) == asked
    # Another node is not held to the first one's.
    clock.forward(timedelta(hours=1, seconds=1))
    met(custodian, keyed, clock).release("data")
    assert len(store.asked) == asked + 1


def test_two_that_ask_at_once_do_not_get_round_the_limit(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    """Both saw room for one more; the store answers one while the other asks."""
    meeting = met(custodian, keyed, clock)
    for _ in range(RELEASES_AN_HOUR - 1):
        meeting.release("data")
    store = Overtaken(keyed.stores["alice"], lambda: meeting.release("data"))
    slow = replace(custodian, keys=store)
    proved = meeting.custodian.proved
    assert proved is not None
    with pytest.raises(ProtocolError) as caught:
        slow.release(("data",), proved=proved, epoch=1)
    assert caught.value.code == "release-limit"
    assert len(records(custodian, "key-released")) == RELEASES_AN_HOUR


@pytest.mark.parametrize("failure", FAILURES, ids=lambda it: type(it).__name__)
def test_what_a_foreign_store_says_of_its_failure_is_told_to_nobody(
    custodian: Custodian,
    keyed: KeyedFederation,
    clock: HandClock,
    failure: BaseException,
) -> None:
    broken = replace(custodian, keys=Failing(failure))
    meeting = met(broken, keyed, clock)
    with pytest.raises(StorageError) as caught:
        meeting.release("data")
    error = caught.value
    assert (error.code, error.got) == ("key-store-failed", type(failure).__name__)
    assert (error.__cause__, error.__context__) == (None, None)
    assert CANARY not in "".join(traceback.format_exception(error))
    assert records(custodian, "key-released") == []


@pytest.mark.parametrize("given", [CANARY, CANARY.encode(), None, Secret(CANARY)])  # type: ignore[arg-type]
def test_what_is_no_key_is_not_told_either(
    custodian: Custodian, keyed: KeyedFederation, clock: HandClock, given: object
) -> None:
    meeting = met(replace(custodian, keys=Giving(given)), keyed, clock)
    with pytest.raises(StorageError) as caught:
        meeting.release("data")
    assert caught.value.code == "key-store-failed"
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_a_node_does_not_open_what_was_released_to_another(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    """The very same code, on the very same machine, a moment later."""
    first = met(custodian, keyed, clock)
    blob = KeysReleased(sealed=first.release("data").sealed)
    second = met(custodian, keyed, clock)
    with pytest.raises(VerificationError) as caught:
        second.node.open(blob, kinds=("data",))
    assert caught.value.code == "released-keys"


def test_a_node_does_not_open_what_was_released_to_it_in_another_session(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    node = keyed.federation.node("alice", clock=clock)
    old, new = (CustodyMeeting(custodian, node) for _ in range(2))
    old.accept()
    blob = KeysReleased(sealed=old.release("data").sealed)
    new.accept()
    with pytest.raises(VerificationError) as caught:
        new.node.open(blob, kinds=("data",))
    assert caught.value.code == "released-keys"


def test_a_node_takes_what_it_asked_for_and_nothing_else(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    meeting = met(custodian, keyed, clock)
    for got, kinds in (
        (("data", "state-share"), ("data",)),
        (("data",), ("data", "state-share")),
        (("state-share",), ("data",)),
    ):
        blob = KeysReleased(sealed=meeting.release(*got).sealed)
        with pytest.raises(VerificationError) as caught:
            meeting.node.open(blob, kinds=kinds)  # type: ignore[arg-type]
        assert caught.value.code == "released-keys"


def test_a_host_that_swaps_the_encryption_key_gets_no_evidence_for_it(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    """Between node and custodian it would put a key of its own into the hello."""
    node = keyed.federation.node("alice", clock=clock)
    meeting = CustodyMeeting(custodian, node)
    hello = meeting.hello()
    mine = msgspec.structs.replace(
        hello, encryption_key=new_identity().encryption_public
    )
    possession = meeting.node.possess(meeting.custodian.challenge(mine))
    assert code_of(meeting.custodian.prove, possession) == "transcript-signature"


def test_a_node_with_an_encryption_key_that_anybody_can_open_gets_nothing(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    meeting = met(custodian, keyed, clock)
    proved = meeting.custodian.proved
    assert proved is not None
    weak = replace(
        proved, transcript=replace(proved.transcript, client_encryption_key=bytes(32))
    )
    with pytest.raises(VerificationError) as caught:
        custodian.release(("data",), proved=weak, epoch=1)
    assert caught.value.code == "released-keys"
    assert records(custodian, "key-released") == []


def test_an_epoch_that_is_not_the_registers_gets_nothing(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    meeting = met(custodian, keyed, clock)
    proved = meeting.custodian.proved
    assert proved is not None
    with pytest.raises(VerificationError) as caught:
        custodian.release(("data",), proved=proved, epoch=2)
    assert caught.value.code == "epoch-old"


def test_keys_before_the_warrant_are_out_of_order(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    node = keyed.federation.node("alice", clock=clock)
    meeting = CustodyMeeting(custodian, node)
    request = KeyRequest(kinds=("data",))
    blob = KeysReleased(sealed=b"")
    meeting.node_proof()
    with pytest.raises(RuntimeError):
        meeting.custodian.release(request)
    with pytest.raises(RuntimeError):
        meeting.node.request(("data",))
    with pytest.raises(RuntimeError):
        meeting.node.open(blob, kinds=("data",))


def test_a_renewed_warrant_gets_keys_in_its_own_session(
    keyed: KeyedFederation, custodian: Custodian, clock: HandClock
) -> None:
    node = keyed.federation.node("alice", clock=clock)
    for _ in range(2):
        meeting = CustodyMeeting(custodian, node)
        meeting.accept()
        assert meeting.keys("data")["data"] == keyed.secrets["alice", "data"]
        clock.forward(WARRANT_LIFE / 2)
