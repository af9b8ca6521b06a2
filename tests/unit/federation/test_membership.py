"""Workers stay admitted for a whole run, and a lapse costs them no round."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
from tests.support.custodians import Office
from tests.support.enrolment_port import enrolment_port
from tests.support.federation_in_memory import (
    START,
    WARRANT_LIFE,
    Federation,
    HandClock,
    quoting,
    rewarranted,
)
from tests.support.open_server import OpenServer, open_server
from tests.support.plan_tree import WORKERS
from tests.support.recorded_log import RecordedLog
from tests.support.relay import always, relay
from tests.support.running import Run
from tests.support.training_calls import until
from tests.support.whole_run import (
    Hooked,
    Scene,
    make_scene,
    sources,
    task,
    whole_run,
)

from cloister.attestation.collateral import Collateral as SignedCollateral
from cloister.attestation.collateral_source import CollateralSource, PckCa
from cloister.attestation.reports import Tee
from cloister.custody.client import CustodianLine
from cloister.errors import (
    CloisterError,
    ProtocolError,
    RefusedByPeer,
    StorageError,
    VerificationError,
)
from cloister.federation import membership, warranting
from cloister.federation.line import SERVER_GONE
from cloister.federation.membership import Membership
from cloister.federation.outages import Ending
from cloister.federation.wire_format import wire_format
from cloister.plan.plan import Plan, plan_hash
from cloister.plan.sections import Admission
from cloister.plan.site import Address
from cloister.ratls.certificate import CLOCK_TOLERANCE
from cloister.ratls.node import Node
from cloister.storage.model_vault import open_model

MINUTE = timedelta(minutes=1)
# TLS looks at the real clock, so what is to be in force lasts for longer than tests.
HOUR = timedelta(hours=1)
LIFE = 30 * MINUTE
HALF_A_DAY = timedelta(hours=12)  # the plan's default
HALF = LIFE / 2 + timedelta(seconds=1)


def parameters(scene: Scene) -> dict[str, bytes]:
    """Returns the sealed model's values, to the bit."""
    identity = scene.custodians.federation.owner
    arrays = open_model(scene.model_path, identity=identity).arrays
    return {name: array.tobytes() for name, array in arrays.items()}


def with_admission(federation: Federation, **changes: int) -> Plan:
    return msgspec.structs.replace(federation.plan, admission=Admission(**changes))


def log_of(scene: Scene, party: str) -> str:
    path = scene.directory / "logs" / f"{party}.jsonl"
    return path.read_text() if path.exists() else ""


def renewed(scene: Scene, times: int) -> bool:
    """Returns whether alice has renewed her admission so many times."""
    return log_of(scene, "alice").count("admission-renewed") == times


async def error_of(node: Awaitable[object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        await node
    return caught.value


@pytest.fixture(scope="module")
def wanted(
    runner: asyncio.Runner,
    federation: Federation,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The result of a run in which no admission lapses."""
    scene = make_scene(tmp_path_factory.mktemp("run"), federation)
    runner.run(whole_run(scene))
    for party in WORKERS:
        assert "admission-ended" not in log_of(scene, party)
    return parameters(scene)


@pytest.fixture
def scene(federation: Federation, clock: HandClock, tmp_path: Path) -> Scene:
    """A scene in which admissions last for half an hour of a clock set by hand."""
    plan = with_admission(federation, life_seconds=1800)
    return make_scene(tmp_path / "run", federation, plan=plan, clock=clock)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks are looked at, and failures retried, without delay."""
    for name in ("LOOK_SECONDS", "FIRST_RETRY_SECONDS", "LAST_RETRY_SECONDS"):
        for module in (warranting, membership):
            monkeypatch.setattr(module, name, 0.01)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_admissions_that_lapse_by_rounds_do_not_change_a_bit_of_the_result(
    run: Run,
    federation: Federation,
    wanted: dict[str, bytes],
    tmp_path: Path,
    rounds: int,
) -> None:
    plan = with_admission(federation, rounds=rounds)
    scene = make_scene(tmp_path / "run", federation, plan=plan)
    run(whole_run(scene))
    assert parameters(scene) == wanted
    for party in WORKERS:
        lines = scene.events(party, "round")
        assert [line["round"] for line in lines] == list(range(1, 13))
        renewals = scene.events(party, "admission-renewed")
        assert len(renewals) >= 12 // rounds - 1
        [server] = scene.events(party, "server-attested")
        assert server["epoch"] == 1
    if rounds == 1:
        # No renewal comes in time: every round ends with a lapse. Nobody was counted
        # twice for it.
        for party in WORKERS:
            assert len(scene.events(party, "admission-ended")) == 12
        codes = {line["code"] for line in scene.events("aggregator", "call-refused")}
        assert codes == {"admission-lapsed"}


@pytest.mark.usefixtures("quick")
def test_an_admission_is_renewed_at_half_of_its_life_while_a_call_waits(
    run: Run,
    scene: Scene,
    clock: HandClock,
    wanted: dict[str, bytes],
) -> None:
    async def story() -> None:
        nodes = scene.nodes()
        rest = asyncio.gather(
            scene.serve(nodes["aggregator"], task()),
            scene.work(nodes["alice"], task(), sources()["alice"]),
        )
        await until(lambda: "worker-joined" in log_of(scene, "aggregator"))
        for renewals in (1, 2, 3):
            clock.forward(HALF)
            await until(partial(renewed, scene, renewals))
        # Alice has waited in one call for longer than any admission lasts.
        await scene.work(nodes["bob"], task(), sources()["bob"])
        await rest

    run(story())
    assert parameters(scene) == wanted
    assert scene.events("alice", "admission-ended") == []
    assert scene.events("aggregator", "call-refused") == []


def test_an_admission_that_lapses_while_a_call_waits_costs_a_handshake_and_no_more(
    run: Run, scene: Scene, clock: HandClock, wanted: dict[str, bytes]
) -> None:
    async def story() -> None:
        nodes = scene.nodes()
        rest = asyncio.gather(
            scene.serve(nodes["aggregator"], task()),
            scene.work(nodes["alice"], task(), sources()["alice"]),
        )
        await until(lambda: "worker-joined" in log_of(scene, "aggregator"))
        clock.forward(LIFE)
        await scene.work(nodes["bob"], task(), sources()["bob"])
        await rest

    run(story())
    assert parameters(scene) == wanted
    [line] = scene.events("alice", "admission-ended")
    assert line["code"] == "admission-lapsed"
    assert len(scene.events("alice", "admission-renewed")) == 1
    assert scene.events("bob", "admission-ended") == []


def test_admissions_that_lapse_in_the_middle_of_a_round_lose_no_round(
    run: Run, scene: Scene, clock: HandClock, wanted: dict[str, bytes]
) -> None:
    # Alice waits with her update of round 3 counted, and bob has not sent his. Later it
    # is the other way round, in a round that is evaluated.
    async def story() -> None:
        nodes = scene.nodes()
        await asyncio.gather(
            scene.serve(nodes["aggregator"], task()),
            scene.work(
                nodes["alice"],
                Hooked({9: lambda: clock.forward(LIFE)}),
                sources()["alice"],
            ),
            scene.work(
                nodes["bob"],
                Hooked({3: lambda: clock.forward(LIFE)}),
                sources()["bob"],
            ),
        )

    run(story())
    assert parameters(scene) == wanted
    for party in WORKERS:
        assert len(scene.events(party, "admission-ended")) == 2
        lines = scene.events(party, "round")
        assert [line["round"] for line in lines] == list(range(1, 13))


def test_a_worker_whose_warrant_is_half_over_renews_it_before_its_admission(
    run: Run, short: Scene, clock: HandClock, wanted: dict[str, bytes]
) -> None:
    # Nobody looks at the clock in time: the server's own warrant must last.
    custodians = replace(short.custodians, warrant_life=WARRANT_LIFE)
    patient = replace(short, custodians=custodians)

    async def story() -> None:
        nodes = short.nodes()
        rest = asyncio.gather(
            patient.serve(nodes["aggregator"], task()),
            short.work(nodes["alice"], task(), sources()["alice"]),
        )
        await until(lambda: "worker-joined" in log_of(short, "aggregator"))
        clock.forward(HOUR)
        late = Hooked({2: lambda: clock.forward(HOUR)})
        await short.work(nodes["bob"], late, sources()["bob"])
        await rest
        for node in nodes.values():
            assert node.warrant.current.terms.epoch == 1

    run(story())
    assert parameters(short) == wanted
    # An admission does not outlive its warrant.
    [ended] = short.events("alice", "admission-ended")
    assert ended["code"] == "admission-lapsed"
    # The first warrant, and one before it attested again.
    assert len(short.events("alice", "warranted")) == 2


@asynccontextmanager
async def alone(scene: Scene, office: Office) -> AsyncIterator[asyncio.Future[None]]:
    """Has alice wait in a call, with a server and without bob; lends her work."""
    nodes = scene.nodes()
    async with office.line(nodes["alice"]) as line:
        serving: asyncio.Future[object] = asyncio.ensure_future(
            scene.serve(nodes["aggregator"], task())
        )
        working = asyncio.ensure_future(
            scene.work(nodes["alice"], task(), sources()["alice"], custodian=line)
        )
        await until(lambda: "worker-joined" in log_of(scene, "aggregator"))
        yield working
        serving.cancel()
        working.cancel()
        await asyncio.gather(serving, working, return_exceptions=True)


@pytest.fixture
def short(federation: Federation, clock: HandClock, tmp_path: Path) -> Scene:
    """A scene in which warrants, and so admissions, last for two hours."""
    return make_scene(tmp_path / "run", federation, clock=clock, warrant_life=2 * HOUR)


@pytest.mark.usefixtures("quick")
def test_a_worker_whose_party_took_its_consent_back_stops_at_its_next_renewal(
    run: Run, short: Scene, clock: HandClock
) -> None:
    async def story() -> CloisterError:
        async with (
            short.custodians.office("alice") as office,
            alone(short, office) as working,
        ):
            office.register.withdraw(plan_hash(short.custodians.plan), at=clock())
            clock.forward(HOUR)
            return await error_of(working)

    error = run(story())
    assert isinstance(error, RefusedByPeer)
    assert error.code == "plan-withdrawn"
    assert short.events("alice", "admission-renewed") == []


@pytest.mark.usefixtures("quick")
def test_a_worker_renews_its_admission_without_its_custodian_while_the_warrant_lasts(
    run: Run, short: Scene, clock: HandClock
) -> None:
    async def story() -> None:
        async with (
            short.custodians.office("alice") as office,
            alone(short, office) as working,
        ):
            await office.shut()
            clock.forward(HOUR)
            await until(partial(renewed, short, 1))
            # Now the warrant ends, and with it all that it admits to.
            clock.forward(HOUR)
            await until(lambda: '"renewal-failed"' in log_of(short, "alice"))
            times = log_of(short, "alice").count("admission-renewed")
            await office.open()
            await until(partial(renewed, short, times + 1))
            assert not working.done()

    run(story())
    [told] = short.events("alice", "renewal-failed")
    assert told["code"] == "custodian-unreachable"
    assert len(short.events("alice", "warrant-renewal-failed")) == 1


def test_a_worker_without_a_warrant_says_so(run: Run, scene: Scene) -> None:
    async def story() -> CloisterError:
        node = scene.node("alice")
        async with (
            scene.custodians.office("alice") as office,
            office.line(scene.node("alice")) as line,
        ):
            return await error_of(
                scene.work(node, task(), sources()["alice"], custodian=line)
            )

    assert run(story()).code == "no-warrant"


@pytest.mark.usefixtures("quick")
def test_somebody_else_who_answers_a_renewal_does_not_end_the_worker(
    run: Run,
    federation: Federation,
    scene: Scene,
    clock: HandClock,
    wanted: dict[str, bytes],
) -> None:
    """One wrong certificate, by anybody on the way, and the run would be over."""

    async def story() -> None:
        posing = quoting(federation.node("aggregator"), federation.platform("bob"))
        async with (
            enrolment_port(posing) as other,
            relay(always(scene.enrolment)) as way,
        ):
            nodes = scene.nodes()
            led = replace(scene, enrolment=way.address)
            rest = asyncio.gather(
                scene.serve(nodes["aggregator"], task()),
                led.work(nodes["alice"], task(), sources()["alice"]),
            )
            await until(lambda: "worker-joined" in log_of(scene, "aggregator"))
            way.route = always(other.address)
            clock.forward(HALF)
            await until(lambda: '"renewal-failed"' in log_of(scene, "alice"))
            way.route = always(scene.enrolment)
            await until(partial(renewed, scene, 1))
            await scene.work(nodes["bob"], task(), sources()["bob"])
            await rest

    run(story())
    assert parameters(scene) == wanted
    [line] = scene.events("alice", "renewal-failed")
    assert line["code"] == "appraisal-measurement"


class Collateral:
    """Collateral that cannot be had until somebody mends it."""

    def __init__(self, source: CollateralSource) -> None:
        self._source = source
        self.away = False

    def collateral_for(self, *, tee: Tee, fmspc: str, ca: PckCa) -> SignedCollateral:
        if self.away:
            raise ProtocolError("no answer", code="pcs-unreachable")
        return self._source.collateral_for(tee=tee, fmspc=fmspc, ca=ca)


def test_a_server_in_trouble_is_waited_for(
    run: Run, scene: Scene, wanted: dict[str, bytes]
) -> None:
    """It could judge nobody, so it said nothing of the worker."""

    async def story() -> None:
        nodes = scene.nodes()
        node = nodes["aggregator"]
        collateral = Collateral(node.appraiser.collateral)
        server = replace(node, appraiser=replace(node.appraiser, collateral=collateral))
        serving = asyncio.ensure_future(scene.serve(server, task()))
        # A server needs some for its own evidence when it begins.
        await until(lambda: "listening" in log_of(scene, "aggregator"))
        collateral.away = True
        rest = asyncio.gather(
            serving,
            *(scene.work(nodes[name], task(), sources()[name]) for name in WORKERS),
        )
        await until(
            lambda: (
                "peer-refused" in log_of(scene, "aggregator")
                and "waiting-for-server" in log_of(scene, "alice")
            )
        )
        collateral.away = False
        await rest

    run(story())
    assert parameters(scene) == wanted


@asynccontextmanager
async def member(
    port: OpenServer,
    node: Node,
    log: RecordedLog,
    *,
    enrolment: Address | None = None,
    patience_seconds: float = 0.1,
) -> AsyncIterator[Membership]:
    """Has a node admitted, with a custodian that it has no need of."""
    model = task().initial_model(seed=1)
    membership = Membership(
        node,
        CustodianLine(node, port.enrolment, log=log.logger()),
        model=model,
        wire=wire_format(
            node.plan.training.wire, model.layout, workers=len(node.plan.workers)
        ),
        enrolment=enrolment or port.enrolment,
        training=port.training,
        patience_seconds=patience_seconds,
        log=log.logger(),
    )
    async with membership:
        yield membership


def test_a_worker_says_nothing_to_a_server_whose_own_warrant_has_ended(
    run: Run,
    federation: Federation,
    server: Node,
    alice: Node,
    clock: HandClock,
    tmp_path: Path,
) -> None:
    async def story() -> None:
        ends_at = int((START + LIFE).timestamp())
        short = rewarranted(federation, server, expires_at=ends_at)
        async with (
            open_server(short, tmp_path) as port,
            member(port, alice, RecordedLog()) as membership,
        ):
            clock.forward(LIFE + CLOCK_TOLERANCE)
            # To the server's table, alice is admitted for half a day.
            assert port.ports.table.check(alice.identity.tls_spki).party == "alice"
            with pytest.raises(ProtocolError) as caught:
                async with membership.line():
                    pytest.fail("a line to a server that is nobody's")
            assert caught.value.code == "admission-over"
            with pytest.raises(VerificationError) as again:
                await membership.recover(caught.value, lapsed=False)
            assert again.value.code == "warrant-expired"
            assert port.coordinator.traffic.sent == 0

    run(story())


def test_a_server_that_is_gone_is_attested_again_whatever_the_clock_says(
    run: Run, server: Node, alice: Node, clock: HandClock, tmp_path: Path
) -> None:
    """TLS ends a call without a word also where the server's clock says lapsed."""

    async def story() -> None:
        log = RecordedLog()
        gone = ProtocolError("the server went away", code=SERVER_GONE)
        async with (
            open_server(server, tmp_path) as port,
            member(port, alice, log) as membership,
        ):
            for times in (1, 2):
                assert await membership.recover(gone, lapsed=False) is Ending.LOSS
                assert len(log.named("admission-renewed")) == times
                clock.forward(HALF_A_DAY - CLOCK_TOLERANCE - MINUTE)
            assert len(log.named("server-lost")) == 2

    run(story())


def test_what_ends_a_call_for_good_is_not_recovered_from(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    lapse = RefusedByPeer("out", code="admission-lapsed")
    others = (
        RefusedByPeer("another came", code="epoch-old"),
        ProtocolError("no", code="update-not-finite"),
        StorageError("no", code="mirror-damaged"),
    )

    async def story() -> None:
        log = RecordedLog()
        async with (
            open_server(server, tmp_path) as port,
            member(port, alice, log) as membership,
        ):
            for error in others:
                with pytest.raises(CloisterError) as caught:
                    await membership.recover(error, lapsed=False)
                assert caught.value is error
            assert await membership.recover(lapse, lapsed=False) is Ending.LAPSE
            with pytest.raises(RefusedByPeer):
                await membership.recover(lapse, lapsed=True)
            assert len(log.named("admission-renewed")) == 1

    run(story())


@pytest.mark.usefixtures("quick")
def test_somebody_else_who_answers_for_a_server_that_died_does_not_end_the_worker(
    run: Run, federation: Federation, server: Node, alice: Node, tmp_path: Path
) -> None:
    """Until the next server is there, whoever is on the way can answer in its place."""

    async def story() -> None:
        log = RecordedLog()
        gone = ProtocolError("the server went away", code=SERVER_GONE)
        posing = quoting(federation.node("aggregator"), federation.platform("bob"))
        async with (
            open_server(server, tmp_path) as port,
            enrolment_port(posing) as other,
            relay(always(port.enrolment)) as way,
            member(
                port, alice, log, enrolment=way.address, patience_seconds=20
            ) as membership,
        ):
            way.route = always(other.address)
            recovering = asyncio.ensure_future(membership.recover(gone, lapsed=False))
            await until(lambda: log.named("waiting-for-server") != [])
            way.route = always(port.enrolment)
            await recovering
        [waited] = log.named("waiting-for-server")
        assert waited["code"] == "appraisal-measurement"

    run(story())
