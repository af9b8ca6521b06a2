from __future__ import annotations

import json
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote

import pytest
from cryptography import x509
from tests.unit.attestation.pcs_servers import Clock

from cloister.attestation.checked_collateral import checked_collateral
from cloister.attestation.platforms.simulated import profile
from cloister.attestation.platforms.simulated.collateral import (
    COLLATERAL_FILES,
    COLLATERAL_LIFE,
    SimulatedCollateral,
    met_level,
    write_simulated_collateral,
)
from cloister.attestation.platforms.simulated.pccs import Answer, SimulatedPccs
from cloister.attestation.platforms.simulated.profile import MACHINE
from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
)
from cloister.attestation.reports import Tee
from cloister.errors import ConfigError, StorageError

TEES: tuple[Tee, ...] = ("sgx", "tdx")
FMSPC = profile.FMSPC.hex()


@pytest.fixture
def deployed(tmp_path: Path, at: datetime) -> SimulatedRoot:
    made = create_simulated_root(tmp_path / "root", at=at)
    write_simulated_collateral(made, at=at)
    return made


@pytest.fixture
def clock(at: datetime) -> Clock:
    return Clock(at)


@pytest.fixture
def pccs(deployed: SimulatedRoot, clock: Clock) -> SimulatedPccs:
    return SimulatedPccs(deployed, clock=clock)


def said(root: SimulatedRoot, tee: Tee) -> dict[str, str]:
    file = root.directory / COLLATERAL_FILES[tee]
    document: dict[str, str] = json.loads(file.read_text())
    return document


def header(answer: Answer) -> tuple[str, str]:
    ((name, value),) = answer.headers
    return name, unquote(value)


def undated(text: bytes) -> dict[str, object]:
    document: dict[str, object] = json.loads(text)
    return {
        name: value
        for name, value in document.items()
        if name not in {"issueDate", "nextUpdate"}
    }


def serial_numbers(crl_der: bytes) -> set[int]:
    return {entry.serial_number for entry in x509.load_der_x509_crl(crl_der)}


@pytest.mark.parametrize("tee", TEES)
def test_documents_are_answered_to_the_byte_with_their_chain(
    pccs: SimulatedPccs, deployed: SimulatedRoot, tee: Tee
) -> None:
    file = said(deployed, tee)
    tcb = pccs.answer(f"/{tee}/certification/v4/tcb?fmspc={FMSPC}")
    assert tcb.status == HTTPStatus.OK
    assert tcb.body.decode() == (
        f'{{"tcbInfo":{file["tcb_info"]},"signature":"{file["tcb_info_signature"]}"}}'
    )
    assert header(tcb) == ("TCB-Info-Issuer-Chain", file["tcb_info_issuer_chain"])
    identity = pccs.answer(f"/{tee}/certification/v4/qe/identity?update=early")
    assert json.loads(identity.body)["signature"] == file["qe_identity_signature"]
    assert file["qe_identity"].encode() in identity.body
    assert header(identity) == (
        "SGX-Enclave-Identity-Issuer-Chain",
        file["qe_identity_issuer_chain"],
    )


def test_lists_are_answered_as_intel_and_as_pccs_do(
    pccs: SimulatedPccs, deployed: SimulatedRoot
) -> None:
    file = said(deployed, "sgx")
    pck = pccs.answer("/sgx/certification/v4/pckcrl?ca=platform&encoding=der")
    assert pck.body == bytes.fromhex(file["pck_crl"])
    assert header(pck) == ("SGX-PCK-CRL-Issuer-Chain", file["pck_crl_issuer_chain"])
    root = pccs.answer("/sgx/certification/v4/rootcacrl")
    assert root.body.decode() == file["root_ca_crl"]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/", HTTPStatus.NOT_FOUND),
        ("/sgx/certification/v3/tcb?fmspc=" + FMSPC, HTTPStatus.NOT_FOUND),
        ("/snp/certification/v4/tcb?fmspc=" + FMSPC, HTTPStatus.NOT_FOUND),
        ("/sgx/certification/v4/tcb", HTTPStatus.NOT_FOUND),
        ("/sgx/certification/v4/tcb?fmspc=00906ED50000", HTTPStatus.NOT_FOUND),
        ("/sgx/certification/v4/qe/identity?update=later", HTTPStatus.BAD_REQUEST),
        (
            "/sgx/certification/v4/qe/identity?tcbEvaluationDataNumber=1",
            HTTPStatus.OK,
        ),
        (
            "/sgx/certification/v4/qe/identity?tcbEvaluationDataNumber=2",
            HTTPStatus.NOT_FOUND,
        ),
        (
            "/sgx/certification/v4/qe/identity?tcbEvaluationDataNumber=1&update=early",
            HTTPStatus.NOT_FOUND,
        ),
        ("/sgx/certification/v4/pckcrl?ca=platform", HTTPStatus.BAD_REQUEST),
        (
            "/sgx/certification/v4/pckcrl?ca=processor&encoding=der",
            HTTPStatus.NOT_FOUND,
        ),
        (
            "/sgx/certification/v4/pckcrl?ca=platform&ca=processor&encoding=der",
            HTTPStatus.BAD_REQUEST,
        ),
        ("/tdx/certification/v4/pckcrl?ca=platform&encoding=der", HTTPStatus.NOT_FOUND),
        ("/../../etc/passwd", HTTPStatus.NOT_FOUND),
    ],
)
def test_what_is_not_there_has_the_status_of_the_real_service(
    pccs: SimulatedPccs, target: str, status: HTTPStatus
) -> None:
    assert pccs.answer(target).status == status


@pytest.mark.parametrize("tee", TEES)
def test_near_its_end_it_is_issued_anew_with_all_it_says(
    pccs: SimulatedPccs,
    deployed: SimulatedRoot,
    clock: Clock,
    at: datetime,
    tee: Tee,
) -> None:
    judged = SimulatedCollateral(
        tee=tee,
        at=at,
        levels=(
            met_level(
                MACHINE,
                tee=tee,
                date=at,
                status="OutOfDate",
                advisory_ids=("INTEL-SA-00001",),
            ),
        ),
        revoked_by_root=(11, 12),
        revoked_by_ca=(13,),
        tcb_info_number=7,
        crl_number=41,
    )
    file = deployed.directory / COLLATERAL_FILES[tee]
    file.write_text(json.dumps(judged.signed_by(deployed)))
    before = pccs.current(tee)
    clock.now = at + COLLATERAL_LIFE * 2 / 3 - timedelta(seconds=1)
    assert pccs.current(tee) == before
    clock.advance(seconds=1)
    after = pccs.current(tee)
    # Genuine, later, and otherwise the same.
    checked = checked_collateral(after, root=deployed.trust_root, at=clock.now)
    assert checked.not_after >= clock.now + COLLATERAL_LIFE - timedelta(seconds=1)
    assert (after.root_ca_crl.number, after.pck_crl.number) == (42, 42)
    for old, new in (
        (before.tcb_info_text, after.tcb_info_text),
        (before.qe_identity_text, after.qe_identity_text),
    ):
        assert undated(new) == undated(old)
        assert json.loads(new)["issueDate"] == f"{clock.now:%Y-%m-%dT%H:%M:%SZ}"
    lists = (after.root_ca_crl, after.pck_crl)
    assert [serial_numbers(it.der) for it in lists] == [{11, 12}, {13}]
    # And not at every request.
    assert pccs.current(tee) == after
    assert {path.suffix for path in deployed.directory.iterdir()} == {
        ".json",
        ".key",
        ".pem",
    }


def test_collateral_that_has_expired_long_ago_is_issued_anew_as_well(
    pccs: SimulatedPccs, deployed: SimulatedRoot, clock: Clock
) -> None:
    clock.advance(days=400)
    checked_collateral(pccs.current("tdx"), root=deployed.trust_root, at=clock.now)


def test_damaged_collateral_is_an_error_of_the_server_and_is_not_replaced(
    pccs: SimulatedPccs, deployed: SimulatedRoot
) -> None:
    file = deployed.directory / COLLATERAL_FILES["sgx"]
    file.write_text("{}")
    with pytest.raises(StorageError):
        pccs.current("sgx")
    answer = pccs.answer("/sgx/certification/v4/rootcacrl")
    assert answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
    assert file.read_text() == "{}"
    file.unlink()
    with pytest.raises(ConfigError):
        pccs.current("sgx")
