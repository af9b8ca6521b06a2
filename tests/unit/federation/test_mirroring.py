"""Where a server's state comes from, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import with_quorum
from tests.support.rounds_story import filled
from tests.support.whole_run import place_of

from cloister.errors import CloisterError, ConfigError, StorageError, VerificationError
from cloister.federation.mirroring import ServerMirror, journal_place
from cloister.federation.model_state import ModelState
from cloister.federation.strategies.optimizers import Sgd
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, plan_hash
from cloister.plan.sections import Predecessor
from cloister.ratls.mark import Mark
from cloister.storage.keys import new_key
from cloister.storage.mirror.subject import Kept, MirrorPlace

HEAD = b"\7" * 32


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def a_state(value: float = 0.0) -> ModelState:
    state = ModelState(filled(value), Sgd(momentum=0.5))
    state.vectors[0].fill(value)
    return state


class Servers:
    """Servers of one plan, one after the other."""

    def __init__(
        self, plan: Plan, directory: Path, threads: ThreadPoolExecutor
    ) -> None:
        self.plan = plan
        self.place = place_of(plan, "aggregator", directory)
        self._threads = threads

    def begin(
        self,
        state: ModelState,
        *,
        mark: Mark | None = None,
        former: MirrorPlace | None = None,
    ) -> ServerMirror:
        return ServerMirror.begin(
            state,
            plan=self.plan,
            place=self.place,
            former=former,
            mark=mark,
            threads=self._threads,
        )

    def keep(self, *values: float) -> Kept:
        """Has a server make one round of each value."""
        state = a_state()
        with closing(self.begin(state)) as mirror:
            for value in values:
                state.model.parameters.fill(value)
                state.vectors[0].fill(value)
                mirror.seal(mirror.newest.round + 1, head=HEAD)
                mirror.commit()
            return mirror.newest

    def refusal(
        self, *, mark: Mark | None = None, former: MirrorPlace | None = None
    ) -> CloisterError:
        with pytest.raises(CloisterError) as caught:
            self.begin(a_state(), mark=mark, former=former)
        return caught.value


@pytest.fixture
def servers(
    federation: Federation, tmp_path: Path, threads: ThreadPoolExecutor
) -> Servers:
    return Servers(federation.plan, tmp_path / "run", threads)


def mark_of(kept: Kept, *, beyond: int = 0, state: bytes | None = None) -> Mark:
    return Mark(
        round=kept.round + beyond,
        state=state or kept.digest,
        server_epoch=1,
        server_key=bytes(32),
    )


def amended(servers: Servers, kept: Kept) -> Plan:
    before = Predecessor(
        plan=format_digest(plan_hash(servers.plan)),
        state=format_digest(kept.digest),
        round=kept.round,
    )
    return msgspec.structs.replace(servers.plan, predecessor=before)


def test_a_first_server_keeps_the_state_that_the_plan_begins_with(
    servers: Servers,
) -> None:
    with closing(servers.begin(a_state(3.0))) as mirror:
        assert not mirror.resumed
        assert mirror.newest.round == 0
        assert mirror.survives in {"power-cut", "process-death"}
        known = mirror.newest
    state = a_state()
    with closing(servers.begin(state, mark=mark_of(known))) as mirror:
        assert mirror.resumed
        assert mirror.newest == known
        assert (state.model.parameters == 3).all()
        assert (state.model.statistics == 3).all()


def test_a_server_goes_on_from_the_newest_state_that_was_committed(
    servers: Servers,
) -> None:
    kept = servers.keep(1.0, 2.0)
    state = a_state(9.0)
    with closing(servers.begin(state)) as mirror:
        assert (mirror.resumed, mirror.newest) == (True, kept)
        np.testing.assert_array_equal(state.model.parameters, 2)
        np.testing.assert_array_equal(state.vectors[0], 2)
        state.model.parameters.fill(5)
        assert mirror.seal(3, head=HEAD).digest != kept.digest
        assert mirror.newest == kept
    with closing(servers.begin(state)) as mirror:
        assert mirror.newest == kept
        np.testing.assert_array_equal(state.model.parameters, 2)


def test_no_state_is_made_where_somebody_knows_of_one(servers: Servers) -> None:
    elsewhere = replace(servers.place, path=servers.place.path.with_name("other"))
    known = Kept(round=0, counters={}, digest=b"\1" * 32, slot=0)
    error = servers.refusal(mark=mark_of(known), former=elsewhere)
    assert isinstance(error, ConfigError)
    assert error.code == "state-missing"
    assert known.digest.hex() in error.expected
    assert "cloister custodian rewind" in error.remedy
    assert list(servers.place.path.parent.iterdir()) == []


def test_a_state_that_is_not_what_the_party_knows_is_refused(servers: Servers) -> None:
    kept = servers.keep(1.0)
    back = servers.refusal(mark=mark_of(kept, beyond=1))
    assert (type(back), back.code) == (VerificationError, "state-rolled-back")
    assert (back.expected[:7], back.got) == ("round 2", "round 1")
    fork = servers.refusal(mark=mark_of(kept, state=b"\1" * 32))
    assert (type(fork), fork.code) == (VerificationError, "state-forked")
    # Further than a mark, with whatever state: marks are not of every round.
    older = mark_of(kept, beyond=-1, state=b"\1" * 32)
    with closing(servers.begin(a_state(), mark=older)) as mirror:
        assert mirror.newest == kept


def test_an_amended_plan_takes_the_state_over_and_keeps_its_own_from_then_on(
    servers: Servers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    kept, state = servers.keep(1.0, 2.0), a_state()
    after = Servers(amended(servers, kept), tmp_path / "run", threads)
    for _ in range(2):  # until it has kept a state it may begin again and again
        mark = mark_of(kept)
        begun = after.begin(state, former=servers.place, mark=mark)
        with closing(begun) as mirror:
            assert (mirror.resumed, mirror.newest) == (True, kept)
            np.testing.assert_array_equal(state.model.parameters, 2)
            assert not after.place.path.exists()
    with closing(after.begin(state, former=servers.place)) as mirror:
        mirror.seal(3, head=HEAD)
        mirror.commit()
        own = mirror.newest
    servers.place.path.unlink()
    with closing(after.begin(state, former=servers.place)) as mirror:
        assert mirror.newest == own


def test_an_amended_plan_takes_over_no_other_state_than_the_one_it_names(
    servers: Servers, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    kept = servers.keep(1.0, 2.0)
    for named, former, code in (
        (replace(kept, round=1), servers.place, "state-differs"),
        (replace(kept, digest=b"\1" * 32), servers.place, "state-differs"),
        (kept, None, "state-missing"),
        (replace(kept, round=0), None, "state-missing"),
    ):
        after = Servers(amended(servers, named), tmp_path / "run", threads)
        error = after.refusal(former=former)
        assert isinstance(error, ConfigError)
        assert error.code == code
        assert format_digest(named.digest) in error.expected


def test_what_cannot_be_opened_is_no_missing_state(servers: Servers) -> None:
    servers.keep(1.0)
    raw = bytearray(servers.place.path.read_bytes())
    servers.place = replace(servers.place, key=new_key())
    error = servers.refusal()
    assert isinstance(error, StorageError)
    assert error.code in {"mirror-key", "mirror-damaged"}
    assert servers.place.path.read_bytes() == bytes(raw)


def test_two_servers_do_not_keep_one_state(servers: Servers) -> None:
    with closing(servers.begin(a_state())):
        assert servers.refusal().code == "mirror-in-use"
    with closing(servers.begin(a_state())):
        pass


def test_a_cohort_is_remembered_for_its_round_and_state_alone(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    some = make_federation(
        tmp_path / "some",
        more_workers=("carol",),
        change=lambda tree: with_quorum(tree, 2, deadline_seconds=1),
    )
    servers = Servers(some.plan, tmp_path / "run", threads)
    with closing(servers.begin(a_state())) as mirror:
        assert mirror.cohort() == ()
        mirror.choose(1, ("carol", "alice"))
        mirror.seal(1, head=HEAD)
    with closing(servers.begin(a_state())) as mirror:
        assert mirror.cohort() == ("alice", "carol")
        mirror.seal(1, head=HEAD)
        mirror.commit()
        assert mirror.cohort() == ()
    # Another state of the very round: a run that was begun anew.
    servers.place.path.unlink()
    assert journal_place(servers.place).path.exists()
    with closing(servers.begin(a_state())) as mirror:
        assert mirror.cohort() == ()


def test_nobody_is_chosen_where_all_contribute(servers: Servers) -> None:
    with closing(servers.begin(a_state())) as mirror:
        assert mirror.cohort() == ()
        with pytest.raises(RuntimeError):
            mirror.choose(1, ("alice",))
    assert not journal_place(servers.place).path.exists()
