"""A PCCS for one deployment's simulated machines: the API, version 4, without a port.

Answers what Intel's service would say, out of the collateral files that lie beside the
development root, with the same headers and to the byte. When less than a third of its
life is left the collateral is issued anew with all it says, as a real service's is.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from cryptography import x509

from cloister.attestation.collateral import Collateral, parse_collateral
from cloister.attestation.collateral_source import PckCa
from cloister.attestation.pcs_messages import (
    PCK_CRL_CHAIN,
    QE_IDENTITY_CHAIN,
    TCB_INFO_CHAIN,
)
from cloister.attestation.platforms.simulated.collateral import (
    COLLATERAL_FILES,
    SimulatedCollateral,
)
from cloister.attestation.platforms.simulated.keyfiles import (
    damaged,
    read_file,
    write_new,
)
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.reports import Tee
from cloister.errors import CloisterError, StorageError, VerificationError

# The one authority that certifies simulated platforms.
SIMULATED_CA: PckCa = "platform"
RELEASES = ("standard", "early")

_JSON = "application/json"
_CRL = "application/pkix-crl"
_TEXT = "text/plain"
_REISSUE_SHARE = 3
_DATES = {"issueDate", "nextUpdate"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes back over HTTP.

    Attributes:
        status: Its status.
        body: Its body.
        content_type: What the body is.
        headers: Headers beside those of every answer.
    """

    status: HTTPStatus
    body: bytes = b""
    content_type: str = _TEXT
    headers: tuple[tuple[str, str], ...] = ()


class SimulatedPccs:
    """Answers for a deployment's simulated platforms. May be used from any thread.

    Args:
        root: The deployment's root; its directory holds the collateral.
        clock: Returns the time, aware.
    """

    def __init__(self, root: SimulatedRoot, *, clock: Callable[[], datetime]) -> None:
        self._root = root
        self._clock = clock
        self._lock = threading.Lock()

    def answer(self, target: str) -> Answer:
        """Returns the answer to a GET for `target`: a path with its query."""
        parts = urlsplit(target)
        query = parse_qsl(parts.query, keep_blank_values=True)
        parameters = dict(query)
        if len(parameters) != len(query):
            return Answer(status=HTTPStatus.BAD_REQUEST)
        try:
            return self._route(parts.path, parameters)
        except CloisterError as error:
            _log.error("%s: %s", parts.path, error)
            return Answer(status=HTTPStatus.INTERNAL_SERVER_ERROR)

    def current(self, tee: Tee) -> Collateral:
        """Returns the collateral for `tee`, issued anew if its end is near.

        Raises:
            ConfigError: If the file is missing.
            StorageError: If it is damaged or cannot be written.
        """
        path = Path(self._root.directory) / COLLATERAL_FILES[tee]
        with self._lock:
            collateral = _parsed(path, read_file(path))
            now = self._clock()
            if now < _reissue_at(collateral):
                return collateral
            content = json.dumps(
                _reissued(collateral, tee=tee, at=now).signed_by(self._root), indent=1
            ).encode()
            # Whole or not at all: a node may read the file at this moment.
            draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
            write_new(draft, content)
            try:
                draft.replace(path)
            except OSError as error:
                raise StorageError(
                    f"{path} cannot be replaced",
                    code="simulated-unwritable",
                    got=error.strerror or "an error",
                ) from error
            _log.info("%s: issued anew", path.name)
            return _parsed(path, content)

    def _route(self, path: str, parameters: Mapping[str, str]) -> Answer:
        match path.strip("/").split("/"):
            case [("sgx" | "tdx") as tee, "certification", "v4", "tcb"]:
                return self._tcb_info(tee, parameters)
            case [("sgx" | "tdx") as tee, "certification", "v4", "qe", "identity"]:
                return self._qe_identity(tee, parameters)
            case ["sgx", "certification", "v4", "pckcrl"]:
                return self._pck_crl(parameters)
            case ["sgx", "certification", "v4", "rootcacrl"]:
                crl = self.current("sgx").root_ca_crl.der
                return Answer(status=HTTPStatus.OK, body=crl.hex().encode())
            case _:
                return Answer(status=HTTPStatus.NOT_FOUND)

    def _tcb_info(self, tee: Tee, parameters: Mapping[str, str]) -> Answer:
        collateral = self.current(tee)
        tcb_info = collateral.tcb_info
        if parameters.get("fmspc", "").upper() != tcb_info.fmspc.hex().upper():
            return Answer(status=HTTPStatus.NOT_FOUND)
        return _document_answer(
            "tcbInfo",
            collateral.tcb_info_text,
            collateral.tcb_info_signature,
            header=(TCB_INFO_CHAIN, collateral.tcb_info_issuer_chain.pem),
            status=_release_status(parameters, tcb_info.evaluation_number),
        )

    def _qe_identity(self, tee: Tee, parameters: Mapping[str, str]) -> Answer:
        collateral = self.current(tee)
        return _document_answer(
            "enclaveIdentity",
            collateral.qe_identity_text,
            collateral.qe_identity_signature,
            header=(QE_IDENTITY_CHAIN, collateral.qe_identity_issuer_chain.pem),
            status=_release_status(
                parameters, collateral.qe_identity.evaluation_number
            ),
        )

    def _pck_crl(self, parameters: Mapping[str, str]) -> Answer:
        if parameters.get("encoding") != "der":
            return Answer(status=HTTPStatus.BAD_REQUEST)
        if parameters.get("ca") != SIMULATED_CA:
            return Answer(status=HTTPStatus.NOT_FOUND)
        collateral = self.current("sgx")
        return Answer(
            status=HTTPStatus.OK,
            body=collateral.pck_crl.der,
            content_type=_CRL,
            headers=(
                (PCK_CRL_CHAIN, quote(collateral.pck_crl_issuer_chain.pem, safe="")),
            ),
        )


def _release_status(parameters: Mapping[str, str], number: int) -> HTTPStatus:
    """Returns whether the release that is asked for is the one there is."""
    wanted = parameters.get("tcbEvaluationDataNumber")
    if wanted is not None:
        there = "update" not in parameters and wanted == str(number)
        return HTTPStatus.OK if there else HTTPStatus.NOT_FOUND
    update = parameters.get("update", RELEASES[0])
    return HTTPStatus.OK if update in RELEASES else HTTPStatus.BAD_REQUEST


def _document_answer(
    name: str,
    text: bytes,
    signature: bytes,
    *,
    header: tuple[str, bytes],
    status: HTTPStatus,
) -> Answer:
    if status is not HTTPStatus.OK:
        return Answer(status=status)
    # The signed text goes in as it is; it is never written a second time.
    tail = f',"signature":"{signature.hex()}"}}'.encode()
    return Answer(
        status=status,
        body=f'{{"{name}":'.encode() + text + tail,
        content_type=_JSON,
        headers=((header[0], quote(header[1], safe="")),),
    )


def _parsed(path: Path, content: bytes) -> Collateral:
    try:
        return parse_collateral(content)
    except VerificationError as error:
        raise damaged(path, error.what) from error


def _reissue_at(collateral: Collateral) -> datetime:
    documents = (collateral.tcb_info, collateral.qe_identity)
    lists = (collateral.root_ca_crl, collateral.pck_crl)
    begin = max(
        *(document.issue_date for document in documents),
        *(crl.this_update for crl in lists),
    )
    end = min(
        *(document.next_update for document in documents),
        *(crl.next_update for crl in lists),
    )
    return end - (end - begin) / _REISSUE_SHARE


def _reissued(collateral: Collateral, *, tee: Tee, at: datetime) -> SimulatedCollateral:
    """Returns the same with later dates and a higher CRL number."""
    lists = (collateral.root_ca_crl, collateral.pck_crl)
    return SimulatedCollateral(
        tee=tee,
        at=at,
        tcb_info_extra=_undated(collateral.tcb_info_text),
        qe_identity_extra=_undated(collateral.qe_identity_text),
        revoked_by_root=_serial_numbers(collateral.root_ca_crl.der),
        revoked_by_ca=_serial_numbers(collateral.pck_crl.der),
        crl_number=max(crl.number for crl in lists) + 1,
    )


def _undated(text: bytes) -> dict[str, object]:
    document: dict[str, object] = json.loads(text)
    return {name: value for name, value in document.items() if name not in _DATES}


def _serial_numbers(crl_der: bytes) -> tuple[int, ...]:
    return tuple(entry.serial_number for entry in x509.load_der_x509_crl(crl_der))
