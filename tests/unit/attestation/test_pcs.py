"""The client against a real PCCS over HTTPS, which a test may make lie."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from tests.unit.attestation.pcs_servers import (
    Change,
    ChangingPccs,
    Clock,
    Pccs,
    saying,
)

from cloister.attestation.collateral import Collateral
from cloister.attestation.collateral_source import (
    CollateralSource,
    collateral_for_evidence,
)
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.pcs import (
    INTEL_PCS,
    CollateralService,
    PcsClient,
    PcsSettings,
)
from cloister.attestation.pcs_cache import Release
from cloister.attestation.pcs_freshness import MAX_AGE, REFRESH_PAUSE
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated import profile
from cloister.attestation.platforms.simulated.collateral import (
    COLLATERAL_FILES,
    COLLATERAL_LIFE,
    SimulatedCollateral,
    write_simulated_collateral,
)
from cloister.attestation.platforms.simulated.pccs import Answer
from cloister.attestation.platforms.simulated.quotes import USUAL_FORMS
from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
)
from cloister.attestation.platforms.simulated.scenario import SimulatedScenario
from cloister.attestation.reports import Tee
from cloister.attestation.verify import verify_evidence
from cloister.errors import (
    CloisterError,
    ConfigError,
    PlatformError,
    ProtocolError,
    StorageError,
    VerificationError,
)

TEES: tuple[Tee, ...] = ("sgx", "tdx")
FMSPC = profile.FMSPC.hex().upper()
REQUESTS = 4

MakeClient = Callable[..., PcsClient]


@pytest.fixture(scope="module")
def shared_root(
    tmp_path_factory: pytest.TempPathFactory, at: datetime
) -> SimulatedRoot:
    """A root whose directory tests may write collateral to; each restores it."""
    made = create_simulated_root(tmp_path_factory.mktemp("pccs") / "root", at=at)
    write_simulated_collateral(made, at=at)
    return made


@pytest.fixture(scope="module")
def running(shared_root: SimulatedRoot, at: datetime) -> Iterator[Pccs]:
    pccs = Pccs(ChangingPccs(shared_root, clock=Clock(at)), shared_root.directory)
    yield pccs
    pccs.close()


@pytest.fixture
def pccs(running: Pccs) -> Pccs:
    """The PCCS, telling the truth and asked for nothing yet."""
    running.answers.asked.clear()
    running.answers.change = lambda _, answer: answer
    return running


@pytest.fixture
def clock(at: datetime) -> Clock:
    return Clock(at)


@pytest.fixture
def make_client(
    pccs: Pccs, shared_root: SimulatedRoot, clock: Clock, tmp_path: Path
) -> Iterator[MakeClient]:
    made: list[PcsClient] = []

    def make(
        *,
        root: SimulatedRoot = shared_root,
        release: Release = "standard",
        minimum: int = 0,
    ) -> PcsClient:
        settings = PcsSettings(
            service=CollateralService(address=pccs.address),
            ca_file=pccs.ca_file,
            release=release,
            minimum_evaluation_number=minimum,
        )
        made.append(
            PcsClient(
                settings,
                root=root.trust_root,
                cache_directory=tmp_path / "cache",
                clock=clock,
            )
        )
        return made[-1]

    yield make
    for client in made:
        client.close()


def fetched(client: CollateralSource, tee: Tee = "sgx") -> Collateral:
    return client.collateral_for(tee=tee, fmspc=FMSPC, ca="platform")


def refused(client: CollateralSource, tee: Tee = "sgx") -> CloisterError:
    with pytest.raises(CloisterError) as refusal:
        fetched(client, tee)
    return refusal.value


def cache_files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir()}


def serve(pccs: Pccs, root: SimulatedRoot, said: SimulatedCollateral) -> None:
    """Makes the PCCS say this to whatever it is asked, signed by `root`."""
    pccs.answers.change = saying(said.signed_by(root))


def changed_route(route: str, change: Callable[[Answer], Answer]) -> Change:
    """Returns a change of one route's answers alone."""

    def changed(target: str, answer: Answer) -> Answer:
        path = urlsplit(target).path
        return change(answer) if path.endswith(f"/v4/{route}") else answer

    return changed


# What is fetched.


@pytest.mark.parametrize("tee", TEES)
def test_collateral_comes_byte_for_byte(
    make_client: MakeClient, shared_root: SimulatedRoot, tee: Tee
) -> None:
    got = json.loads(fetched(make_client(), tee).to_json())
    files = {
        it: json.loads((shared_root.directory / COLLATERAL_FILES[it]).read_text())
        for it in TEES
    }
    # There is one list of each authority, for both kinds of environment.
    for name in ("pck_crl", "root_ca_crl"):
        files["tdx"][name] = files["sgx"][name]
    assert got == files[tee]


@pytest.mark.parametrize("tee", TEES)
def test_what_is_fetched_for_evidence_verifies_it(
    make_client: MakeClient,
    shared_root: SimulatedRoot,
    measurement: Measurement,
    at: datetime,
    tee: Tee,
) -> None:
    case = SimulatedScenario(
        form=USUAL_FORMS[tee], at=at, measurement=measurement
    ).build(shared_root)
    evidence = parse_evidence(case.quote)
    claims = verify_evidence(
        evidence,
        collateral=collateral_for_evidence(
            evidence, source=make_client(), root=shared_root.trust_root, at=at
        ),
        root=shared_root.trust_root,
        at=at,
    )
    assert claims.tcb_status == "UpToDate"


@pytest.mark.parametrize(
    ("release", "parameters"),
    [
        ("standard", {"update": ["standard"]}),
        ("early", {"update": ["early"]}),
        (1, {"tcbEvaluationDataNumber": ["1"]}),
    ],
)
@pytest.mark.parametrize("tee", TEES)
def test_the_routes_are_those_of_the_api(
    make_client: MakeClient,
    pccs: Pccs,
    tee: Tee,
    release: Release,
    parameters: dict[str, list[str]],
) -> None:
    fetched(make_client(release=release), tee)
    asked = [urlsplit(target) for target in pccs.answers.asked]
    assert [(url.path, parse_qs(url.query)) for url in asked] == [
        (f"/{tee}/certification/v4/tcb", {"fmspc": [FMSPC], **parameters}),
        (f"/{tee}/certification/v4/qe/identity", parameters),
        (
            "/sgx/certification/v4/pckcrl",
            {"ca": ["platform"], "encoding": ["der"]},
        ),
        ("/sgx/certification/v4/rootcacrl", {}),
    ]


def test_the_roots_list_may_lie_elsewhere_in_der_as_at_intels(
    pccs: Pccs, shared_root: SimulatedRoot, clock: Clock, tmp_path: Path
) -> None:
    def at_the_certificate_host(target: str, answer: Answer) -> Answer:
        if target != "/IntelSGXRootCA.der":
            return answer
        der = pccs.answers.current("sgx").root_ca_crl.der
        return Answer(status=HTTPStatus.OK, body=der)

    pccs.answers.change = at_the_certificate_host
    service = CollateralService(
        address=pccs.address, root_crl_address=f"{pccs.address}/IntelSGXRootCA.der"
    )
    with PcsClient(
        PcsSettings(service=service, ca_file=pccs.ca_file),
        root=shared_root.trust_root,
        cache_directory=tmp_path,
        clock=clock,
    ) as client:
        fetched(client)
    assert pccs.answers.asked[-1] == "/IntelSGXRootCA.der"


def test_intels_own_service_is_known() -> None:
    assert INTEL_PCS.address == "https://api.trustedservices.intel.com"
    assert INTEL_PCS.root_crl_address is not None


def test_plain_http_is_refused_before_anything_is_asked() -> None:
    for service in (
        {"address": "http://a"},
        {"address": "https://a", "root_crl_address": "http://a"},
    ):
        with pytest.raises(ConfigError):
            CollateralService(**service)


@pytest.mark.parametrize("fmspc", ["", "FF53", f"{FMSPC}00", "../../../etc", "g" * 12])
def test_an_fmspc_of_another_form_is_a_bug(
    make_client: MakeClient, pccs: Pccs, fmspc: str
) -> None:
    with pytest.raises(ValueError, match="fmspc"):
        make_client().collateral_for(tee="sgx", fmspc=fmspc, ca="platform")
    assert pccs.answers.asked == []


# What is refused.


def test_a_platform_the_service_does_not_know_is_refused(
    make_client: MakeClient,
) -> None:
    client = make_client()
    with pytest.raises(PlatformError) as refusal:
        client.collateral_for(tee="sgx", fmspc="00906ED50000", ca="platform")
    assert refusal.value.code == "pcs-unknown"
    with pytest.raises(PlatformError) as refusal:
        client.collateral_for(tee="sgx", fmspc=FMSPC, ca="processor")
    assert refusal.value.code == "pcs-unknown"


def test_an_evaluation_number_that_is_not_published_is_refused(
    make_client: MakeClient,
) -> None:
    assert refused(make_client(release=20)).code == "pcs-unknown"


def test_another_release_than_the_one_asked_for_is_refused(
    make_client: MakeClient, pccs: Pccs, shared_root: SimulatedRoot, at: datetime
) -> None:
    serve(pccs, shared_root, SimulatedCollateral(tee="sgx", at=at))
    error = refused(make_client(release=20))
    assert (error.code, error.got) == ("collateral-foreign", "1 and 1")


@pytest.mark.parametrize("numbers", [(4, 5), (5, 4), (4, 4)])
def test_what_is_below_the_minimum_evaluation_number_is_refused(
    make_client: MakeClient,
    pccs: Pccs,
    shared_root: SimulatedRoot,
    at: datetime,
    numbers: tuple[int, int],
) -> None:
    serve(
        pccs,
        shared_root,
        SimulatedCollateral(
            tee="sgx", at=at, tcb_info_number=numbers[0], qe_identity_number=numbers[1]
        ),
    )
    error = refused(make_client(minimum=5))
    assert isinstance(error, VerificationError)
    assert error.code == "collateral-evaluation-number"
    fetched(make_client(minimum=4))


def test_collateral_for_another_platform_is_refused_by_name(
    make_client: MakeClient, pccs: Pccs, shared_root: SimulatedRoot, at: datetime
) -> None:
    serve(pccs, shared_root, SimulatedCollateral(tee="sgx", at=at))
    with pytest.raises(VerificationError) as refusal:
        make_client().collateral_for(tee="sgx", fmspc="00906ed50000", ca="platform")
    assert refusal.value.code == "collateral-foreign"
    assert (refusal.value.expected, refusal.value.got) == ("00906ED50000", FMSPC)
    assert refused(make_client(), "tdx").code == "collateral-foreign"
    with pytest.raises(VerificationError) as refusal:
        make_client().collateral_for(tee="sgx", fmspc=FMSPC, ca="processor")
    assert refusal.value.code == "collateral-foreign"


def test_collateral_of_another_root_is_refused_and_not_kept(
    make_client: MakeClient, root: SimulatedRoot, tmp_path: Path
) -> None:
    error = refused(make_client(root=root))
    assert isinstance(error, VerificationError)
    assert error.step in {3, 4}
    assert cache_files(tmp_path) == set()


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        (timedelta(days=31), "crl-expired"),
        (timedelta(days=-1), "crl-not-yet-valid"),
    ],
)
def test_collateral_out_of_date_is_refused_and_not_kept(
    make_client: MakeClient, clock: Clock, tmp_path: Path, offset: timedelta, code: str
) -> None:
    clock.now += offset
    assert refused(make_client()).code == code
    assert cache_files(tmp_path) == set()


def flipped(answer: Answer) -> Answer:
    # In the middle there is always something that is signed.
    middle = len(answer.body) // 2
    body = bytearray(answer.body)
    body[middle] ^= 1
    return replace(answer, body=bytes(body))


@pytest.mark.parametrize(
    "change",
    [
        flipped,
        lambda answer: replace(answer, body=answer.body[:-1]),
        lambda answer: replace(answer, body=answer.body[: len(answer.body) // 2]),
        lambda answer: replace(answer, body=b""),
        lambda answer: replace(answer, body=b"<html>captive portal</html>"),
        lambda answer: replace(answer, body=b"[" * 100_000),
        lambda answer: replace(answer, body=b"\xff" + answer.body),
        lambda answer: replace(answer, body=answer.body + answer.body),
        lambda answer: replace(answer, body=bytes(5_000_000)),
    ],
    ids=[
        "flipped",
        "one byte short",
        "half",
        "empty",
        "html",
        "deep",
        "not text",
        "doubled",
        "huge",
    ],
)
@pytest.mark.parametrize("route", ["tcb", "qe/identity", "pckcrl", "rootcacrl"])
def test_a_damaged_answer_is_refused_and_not_kept(
    make_client: MakeClient,
    pccs: Pccs,
    tmp_path: Path,
    route: str,
    change: Callable[[Answer], Answer],
) -> None:
    pccs.answers.change = changed_route(route, change)
    error = refused(make_client())
    assert isinstance(error, (ProtocolError, VerificationError))
    assert cache_files(tmp_path) == set()


def without_headers(answer: Answer) -> Answer:
    return replace(answer, headers=())


def doubled_headers(answer: Answer) -> Answer:
    return replace(answer, headers=answer.headers * 2)


def header_as(value: str) -> Callable[[Answer], Answer]:
    return lambda answer: replace(
        answer, headers=tuple((name, value) for name, _ in answer.headers)
    )


@pytest.mark.parametrize(
    "change",
    [
        without_headers,
        doubled_headers,
        header_as(""),
        header_as("%00%FF"),
        header_as("-----BEGIN CERTIFICATE-----"),
        header_as(
            quote("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        ),
        lambda a: replace(a, headers=tuple((n, v * 2) for n, v in a.headers)),
        lambda a: replace(a, headers=tuple((n, v[:-40]) for n, v in a.headers)),
    ],
)
@pytest.mark.parametrize("route", ["tcb", "qe/identity", "pckcrl"])
def test_a_wrong_issuer_chain_is_refused_and_not_kept(
    make_client: MakeClient,
    pccs: Pccs,
    tmp_path: Path,
    route: str,
    change: Callable[[Answer], Answer],
) -> None:
    pccs.answers.change = changed_route(route, change)
    error = refused(make_client())
    assert isinstance(error, ProtocolError)
    assert error.code == "pcs-malformed"
    assert "PCCS" in error.remedy
    assert cache_files(tmp_path) == set()


def test_a_chain_with_its_parts_exchanged_is_refused(
    make_client: MakeClient, pccs: Pccs, shared_root: SimulatedRoot
) -> None:
    # The authority of PCK certificates is genuine, and still not the signer.
    pem = shared_root.ca.pem + shared_root.root.pem
    pccs.answers.change = changed_route("tcb", header_as(quote(pem, safe="")))
    error = refused(make_client())
    assert (error.code, getattr(error, "step", None)) == ("certificate-name", 4)


# What is kept, and for how long.


def test_the_second_time_nothing_is_asked(
    make_client: MakeClient, pccs: Pccs, tmp_path: Path
) -> None:
    client = make_client()
    first = fetched(client)
    assert fetched(client) == first
    assert fetched(make_client()) == first
    assert len(pccs.answers.asked) == REQUESTS
    assert cache_files(tmp_path) == {
        f"sgx-{FMSPC}-platform-standard.json",
        "crl-numbers.json",
    }


def test_each_environment_and_release_is_kept_for_itself(
    make_client: MakeClient, pccs: Pccs, tmp_path: Path
) -> None:
    fetched(make_client(), "sgx")
    fetched(make_client(), "tdx")
    fetched(make_client(release="early"), "sgx")
    assert len(pccs.answers.asked) == 3 * REQUESTS
    assert len(cache_files(tmp_path)) == 4


def test_many_callers_at_once_ask_once(make_client: MakeClient, pccs: Pccs) -> None:
    client = make_client()
    with ThreadPoolExecutor(max_workers=8) as pool:
        got = list(pool.map(lambda _: fetched(client), range(16)))
    assert all(it == got[0] for it in got)
    assert len(pccs.answers.asked) == REQUESTS


def test_what_was_fetched_an_hour_ago_is_fetched_anew(
    make_client: MakeClient, pccs: Pccs, clock: Clock, shared_root: SimulatedRoot
) -> None:
    client = make_client()
    first = fetched(client)
    clock.now += MAX_AGE - timedelta(seconds=1)
    assert fetched(client) == first
    assert len(pccs.answers.asked) == REQUESTS
    clock.advance(seconds=1)
    serve(pccs, shared_root, SimulatedCollateral(tee="sgx", at=clock.now))
    renewed = fetched(client)
    assert len(pccs.answers.asked) == 2 * REQUESTS
    assert renewed.tcb_info.next_update > first.tcb_info.next_update
    # And then not for another hour, in whatever process.
    clock.now += MAX_AGE - timedelta(seconds=1)
    assert fetched(client) == fetched(make_client()) == renewed
    assert len(pccs.answers.asked) == 2 * REQUESTS


def test_a_revocation_is_seen_within_the_hour(
    make_client: MakeClient,
    pccs: Pccs,
    clock: Clock,
    shared_root: SimulatedRoot,
    at: datetime,
) -> None:
    """Weeks before what is kept would end."""
    client = make_client()
    assert fetched(client).pck_crl.number == 1
    revoked = SimulatedCollateral(
        tee="sgx", at=at, revoked_by_ca=(12345,), crl_number=2
    )
    serve(pccs, shared_root, revoked)
    clock.now += MAX_AGE
    assert fetched(client).pck_crl.number == 2


def test_with_a_third_of_a_short_life_left_it_is_fetched_anew(
    make_client: MakeClient,
    pccs: Pccs,
    clock: Clock,
    shared_root: SimulatedRoot,
    at: datetime,
) -> None:
    short = SimulatedCollateral(tee="sgx", at=at, life=timedelta(minutes=30))
    serve(pccs, shared_root, short)
    client = make_client()
    fetched(client)
    clock.advance(minutes=20, seconds=-1)
    fetched(client)
    assert len(pccs.answers.asked) == REQUESTS
    clock.advance(seconds=1)
    fetched(client)
    assert len(pccs.answers.asked) == 2 * REQUESTS
    # There was nothing newer; it is not asked for with every quote.
    clock.advance(minutes=5)
    fetched(client)
    assert len(pccs.answers.asked) == 2 * REQUESTS


def test_a_clock_that_was_set_back_makes_nothing_newer(
    make_client: MakeClient, pccs: Pccs, clock: Clock
) -> None:
    client = make_client()
    clock.advance(hours=2)
    fetched(client)
    clock.advance(hours=-1)
    fetched(client)
    assert len(pccs.answers.asked) == 2 * REQUESTS


def test_what_cannot_be_renewed_serves_to_its_last_second_and_no_longer(
    make_client: MakeClient,
    pccs: Pccs,
    clock: Clock,
    at: datetime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = make_client()
    first = fetched(client)
    pccs.answers.fail()
    clock.now = at + COLLATERAL_LIFE
    with caplog.at_level(logging.WARNING):
        assert fetched(client) == first
    assert "cannot be refreshed" in caplog.text
    clock.advance(seconds=1)
    assert refused(client).code == "pcs-unavailable"
    clock.now += REFRESH_PAUSE
    assert refused(client).code == "pcs-unavailable"
    # Nor by a node that has just started.
    assert refused(make_client()).code == "pcs-unavailable"


def test_a_failed_renewal_is_not_tried_again_at_once(
    make_client: MakeClient, pccs: Pccs, clock: Clock, at: datetime
) -> None:
    client = make_client()
    fetched(client)
    pccs.answers.fail()
    clock.now = at + COLLATERAL_LIFE * 0.7
    for _ in range(5):
        fetched(client)
    assert len(pccs.answers.asked) == REQUESTS + 1
    clock.now += REFRESH_PAUSE
    fetched(client)
    assert len(pccs.answers.asked) == REQUESTS + 2
    # A clock that was set back does not make the pause longer.
    clock.now -= timedelta(seconds=1)
    fetched(client)
    assert len(pccs.answers.asked) == REQUESTS + 3


def test_a_failed_first_attempt_is_remembered_for_as_long(
    make_client: MakeClient, pccs: Pccs, clock: Clock
) -> None:
    client = make_client()
    pccs.answers.fail()
    for _ in range(5):
        assert refused(client).code == "pcs-unavailable"
    assert len(pccs.answers.asked) == 1
    # The service is back; nobody has to be told.
    pccs.answers.change = lambda _, answer: answer
    assert refused(client).code == "pcs-unavailable"
    clock.now += REFRESH_PAUSE
    fetched(client)
    assert len(pccs.answers.asked) == 1 + REQUESTS
    # And the failure is forgotten.
    clock.now += MAX_AGE
    fetched(client)
    assert len(pccs.answers.asked) == 1 + 2 * REQUESTS


def test_many_callers_at_once_fail_once(make_client: MakeClient, pccs: Pccs) -> None:
    client = make_client()
    pccs.answers.fail()
    with ThreadPoolExecutor(max_workers=8) as pool:
        codes = set(pool.map(lambda _: refused(client).code, range(16)))
    assert codes == {"pcs-unavailable"}
    assert len(pccs.answers.asked) == 1


def test_another_platforms_failure_is_not_ones_own(
    make_client: MakeClient, pccs: Pccs
) -> None:
    client = make_client()
    for _ in range(2):
        with pytest.raises(PlatformError):
            client.collateral_for(tee="sgx", fmspc="00906ED50000", ca="platform")
    assert len(pccs.answers.asked) == 1
    fetched(client)


class Gate:
    """Holds back a service's answers about one kind of environment.

    Attributes:
        reached: Set when somebody waits.
        opened: Lets everybody through.
    """

    def __init__(self, tee: Tee) -> None:
        self._tee = tee
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, target: str, answer: Answer) -> Answer:
        if urlsplit(target).path == f"/{self._tee}/certification/v4/tcb":
            self.reached.set()
            assert self.opened.wait(timeout=20)
        return answer


@pytest.fixture
def held(pccs: Pccs) -> Iterator[Gate]:
    """A service that does not answer about SGX yet."""
    gate = Gate("sgx")
    pccs.answers.change = gate
    yield gate
    gate.opened.set()


def test_a_slow_answer_about_one_platform_holds_up_no_other(
    make_client: MakeClient, held: Gate
) -> None:
    client = make_client()
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(fetched, client, "sgx")
        assert held.reached.wait(timeout=20)
        assert fetched(client, "tdx").tcb_info.tee == "tdx"
        assert not waiting.done()
        held.opened.set()
        assert waiting.result().tcb_info.tee == "sgx"


def test_who_has_something_in_date_does_not_wait_for_its_renewal(
    make_client: MakeClient, pccs: Pccs, clock: Clock, held: Gate
) -> None:
    pccs.answers.change = lambda _, answer: answer
    client = make_client()
    first = fetched(client)
    pccs.answers.change = held
    clock.now += MAX_AGE
    with ThreadPoolExecutor(max_workers=1) as pool:
        renewing = pool.submit(fetched, client)
        assert held.reached.wait(timeout=20)
        assert fetched(client) == first
        assert not renewing.done()
        held.opened.set()
        renewing.result()


def test_a_list_older_than_one_seen_is_refused(
    make_client: MakeClient,
    pccs: Pccs,
    clock: Clock,
    shared_root: SimulatedRoot,
    at: datetime,
) -> None:
    newer = SimulatedCollateral(tee="sgx", at=at, crl_number=2**100)
    serve(pccs, shared_root, newer)
    assert fetched(make_client()).pck_crl.number == 2**100
    older = SimulatedCollateral(tee="tdx", at=at, crl_number=2**100 - 1)
    serve(pccs, shared_root, older)
    # For another environment there is nothing in the cache, but the lists are the same.
    error = refused(make_client(), "tdx")
    assert isinstance(error, VerificationError)
    assert (error.code, error.expected) == (
        "crl-rollback",
        f"number {2**100} or higher",
    )
    # Even when all that is kept has expired.
    clock.now = at + COLLATERAL_LIFE * 2
    serve(pccs, shared_root, replace(older, tee="sgx", at=clock.now))
    assert refused(make_client()).code == "crl-rollback"


def test_a_kept_list_older_than_one_seen_is_not_used(
    make_client: MakeClient,
    pccs: Pccs,
    shared_root: SimulatedRoot,
    at: datetime,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "cache" / f"sgx-{FMSPC}-platform-standard.json"
    fetched(make_client())
    old = path.read_bytes()
    path.unlink()
    serve(pccs, shared_root, SimulatedCollateral(tee="sgx", at=at, crl_number=7))
    fetched(make_client())
    path.write_bytes(old)
    with caplog.at_level(logging.WARNING):
        assert fetched(make_client()).pck_crl.number == 7
    assert "older than one that was seen" in caplog.text


def test_numbers_of_lists_that_nobody_signed_are_not_remembered(
    make_client: MakeClient,
    pccs: Pccs,
    root: SimulatedRoot,
    at: datetime,
    tmp_path: Path,
) -> None:
    serve(pccs, root, SimulatedCollateral(tee="sgx", at=at, crl_number=2**64))
    refused(make_client())
    assert cache_files(tmp_path) == set()
    pccs.answers.change = lambda _, answer: answer
    assert fetched(make_client()).pck_crl.number == 1


def test_a_replay_of_older_documents_does_not_replace_newer_ones(
    make_client: MakeClient,
    pccs: Pccs,
    clock: Clock,
    shared_root: SimulatedRoot,
    at: datetime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = make_client()
    first = fetched(client)
    long_ago = SimulatedCollateral(
        tee="sgx", at=at - timedelta(days=1), life=timedelta(days=60)
    )
    serve(pccs, shared_root, long_ago)
    clock.now = at + COLLATERAL_LIFE * 0.7
    with caplog.at_level(logging.WARNING):
        assert fetched(client) == first
    assert "older than what was seen" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"UpToDate", b"Revoked!"),
        lambda content: content.replace(b'"pck_crl": "30', b'"pck_crl": "31'),
        lambda _: b"\xff\xfe",
        lambda _: b"{}",
    ],
)
def test_a_damaged_cache_file_is_passed_over_and_fetched_anew(
    make_client: MakeClient,
    pccs: Pccs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    first = fetched(make_client())
    path = tmp_path / "cache" / f"sgx-{FMSPC}-platform-standard.json"
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert fetched(make_client()) == first
    assert "is not used" in caplog.text
    assert len(pccs.answers.asked) == 2 * REQUESTS
    assert path.read_bytes() == whole


def test_a_cache_file_of_another_platform_is_passed_over(
    make_client: MakeClient,
    pccs: Pccs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fetched(make_client(), "tdx")
    cache = tmp_path / "cache"
    (cache / f"tdx-{FMSPC}-platform-standard.json").rename(
        cache / f"sgx-{FMSPC}-platform-standard.json"
    )
    with caplog.at_level(logging.WARNING):
        assert fetched(make_client()).tcb_info.tee == "sgx"
    assert "another platform" in caplog.text
    assert len(pccs.answers.asked) == 2 * REQUESTS


def test_every_flipped_bit_of_a_cache_file_is_found(
    make_client: MakeClient, pccs: Pccs, tmp_path: Path
) -> None:
    first = fetched(make_client())
    pccs.answers.fail()
    path = tmp_path / "cache" / f"sgx-{FMSPC}-platform-standard.json"
    whole = path.read_bytes()
    kept = 0
    for position in range(0, len(whole), 241):
        path.write_bytes(
            whole[:position]
            + bytes([whole[position] ^ (1 << position % 8)])
            + whole[position + 1 :]
        )
        try:
            got = fetched(make_client())
        except PlatformError:
            continue
        # Hexadecimal has two spellings of one value, and JSON two of a space.
        assert got == first
        kept += 1
    assert kept < 10


def test_damaged_crl_numbers_are_forgotten_with_a_warning(
    make_client: MakeClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fetched(make_client())
    path = tmp_path / "cache" / "crl-numbers.json"
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole.replace(b'"format":1', b'"format":2')):
        path.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            fetched(make_client())
        assert "forgotten" in caplog.text


def test_a_cache_is_its_owners_alone_and_leaves_no_parts(
    make_client: MakeClient, tmp_path: Path
) -> None:
    fetched(make_client())
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "cache").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.suffix == ".json"


def test_a_cache_that_cannot_be_made_is_refused(
    make_client: MakeClient, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError) as refusal:
        make_client()
    assert refusal.value.code == "collateral-cache"


def test_a_kept_answer_outlives_the_service(
    make_client: MakeClient, pccs: Pccs
) -> None:
    client = make_client()
    first = fetched(client)
    pccs.answers.fail()
    assert fetched(client) == first
    assert fetched(make_client()) == first
