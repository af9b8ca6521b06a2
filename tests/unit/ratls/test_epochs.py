from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.refusals import code_of
from typing_extensions import override

from cloister.errors import VerificationError
from cloister.ratls.epochs import Epoch, EpochMemory, key_digest

FIRST, SECOND = Epoch(1, b"1" * 32), Epoch(2, b"2" * 32)
FORK = Epoch(2, b"f" * 32)


def remembering(epoch: Epoch) -> EpochMemory:
    memory = EpochMemory()
    memory.note("worker", "alice", epoch)
    return memory


def test_a_key_is_known_by_its_sha256() -> None:
    assert key_digest(b"key") == hashlib.sha256(b"key").digest()


def test_whoever_was_never_met_may_have_any_epoch() -> None:
    for number in (1, 7, 2**53):
        EpochMemory().check("worker", "alice", Epoch(number, b"k" * 32))


def test_the_same_node_and_a_newer_one_are_met_again() -> None:
    memory = remembering(FIRST)
    memory.note("worker", "alice", FIRST)
    memory.note("worker", "alice", SECOND)
    memory.check("worker", "alice", SECOND)


def test_an_older_node_is_refused_for_ever() -> None:
    memory = remembering(FIRST)
    memory.note("worker", "alice", SECOND)
    assert code_of(lambda: memory.check("worker", "alice", FIRST)) == "epoch-old"
    assert code_of(lambda: memory.note("worker", "alice", FIRST)) == "epoch-old"


def test_another_key_of_the_same_epoch_is_a_fork() -> None:
    memory = remembering(SECOND)
    with pytest.raises(VerificationError) as caught:
        memory.note("worker", "alice", FORK)
    assert caught.value.code == "epoch-forked"
    assert SECOND.key.hex()[:16] in caught.value.expected
    assert FORK.key.hex()[:16] in caught.value.got
    memory.check("worker", "alice", SECOND)


def test_what_is_only_checked_is_not_remembered() -> None:
    memory = remembering(FIRST)
    memory.check("worker", "alice", SECOND)
    memory.check("worker", "alice", FIRST)


def test_every_role_and_party_has_its_own_epochs() -> None:
    memory = remembering(SECOND)
    memory.check("worker", "bob", FIRST)
    memory.check("server", "alice", FIRST)


def test_a_refusal_quotes_the_party_only_where_strangers_do_not_read_it() -> None:
    with pytest.raises(VerificationError) as caught:
        remembering(SECOND).check("worker", "alice", FIRST)
    assert "alice" not in caught.value.what
    assert "alice" in caught.value.expected


def test_a_witness_that_knows_less_teaches_nothing_and_contradicts_nothing() -> None:
    memory = remembering(SECOND)
    memory.learn("worker", "alice", FIRST)
    memory.check("worker", "alice", SECOND)
    assert code_of(lambda: memory.check("worker", "alice", FIRST)) == "epoch-old"


def test_a_witness_that_knows_more_is_believed() -> None:
    memory = remembering(FIRST)
    memory.learn("worker", "alice", SECOND)
    memory.learn("worker", "bob", SECOND)
    for party in ("alice", "bob"):
        assert code_of(memory.check, "worker", party, FIRST) == "epoch-old"


def test_a_witness_that_met_another_key_of_the_newest_epoch_finds_the_fork() -> None:
    memory = remembering(SECOND)
    assert code_of(lambda: memory.learn("worker", "alice", FORK)) == "epoch-forked"
    memory.learn("worker", "alice", SECOND)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.sampled_from([b"a", b"b"])))
)
def test_whatever_is_met_the_newest_epoch_never_falls_and_keeps_its_key(
    met: list[tuple[bool, int, bytes]],
) -> None:
    memory, newest = EpochMemory(), None
    for noted, number, key in met:
        epoch = Epoch(number, key)
        try:
            if noted:
                memory.note("worker", "alice", epoch)
            else:
                memory.learn("worker", "alice", epoch)
        except VerificationError:
            assert newest is not None
            assert number < newest.number or (
                number == newest.number and key != newest.key
            )
        else:
            if newest is None or number > newest.number:
                newest = epoch
        if newest is not None:
            memory.check("worker", "alice", newest)


class Interrupted(int):
    """A number at whose comparison something else is done."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    @override
    def __gt__(self, other: int) -> bool:
        self.meanwhile()
        return super().__gt__(other)


@pytest.mark.parametrize("learnt", [False, True])
def test_what_one_thread_learns_is_not_lost_to_another(*, learnt: bool) -> None:
    """A thread notes an older node while another learns of the newest."""
    memory = remembering(FIRST)
    newest = Epoch(5, b"5" * 32)
    act = memory.learn if learnt else memory.note
    other = threading.Thread(target=act, args=("worker", "alice", newest))

    def meanwhile() -> None:
        other.start()
        other.join(0.1)  # without a lock it is done at once

    number = Interrupted(3)
    number.meanwhile = meanwhile
    memory.note("worker", "alice", Epoch(number, b"3" * 32))
    other.join()
    memory.check("worker", "alice", newest)
    assert code_of(memory.check, "worker", "alice", SECOND) == "epoch-old"
    assert code_of(memory.check, "worker", "alice", Epoch(4, b"4" * 32)) == "epoch-old"
