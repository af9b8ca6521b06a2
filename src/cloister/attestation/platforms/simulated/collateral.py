"""Collateral for the simulated machine: what Intel's services would say about it.

TCB info version 3, QE identity version 2, both CRLs and the signing chain, in the JSON
object that DCAP tools exchange. Signatures cover the exact text of the inner documents,
so these are carried as strings and never written a second time.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attestation.platforms.simulated import profile
from cloister.attestation.platforms.simulated.issuing import Issuer
from cloister.attestation.platforms.simulated.keyfiles import write_new
from cloister.attestation.platforms.simulated.quotes import raw_signature
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.reports import Tee

# As long as Intel's own lives.
COLLATERAL_LIFE = timedelta(days=30)
COLLATERAL_FILES: dict[Tee, str] = {
    "sgx": "collateral-sgx.json",
    "tdx": "collateral-tdx.json",
}

_CRL_NUMBER = 1
_ANY_BITS = 0xFF
# Intel's identities leave MODE64 open and compare all other flags, XFRM not at all.
_QE_ATTRIBUTES = "11000000000000000000000000000000"
_QE_ATTRIBUTES_MASK = "FBFFFFFFFFFFFFFF0000000000000000"


def write_simulated_collateral(root: SimulatedRoot, *, at: datetime) -> None:
    """Writes `collateral-sgx.json` and `collateral-tdx.json` beside the root.

    Args:
        root: Who signs, and where.
        at: Start of its validity, aware; it lasts 30 days.

    Raises:
        ConfigError: If there is some already.
        StorageError: If it cannot be written.
    """
    for tee, name in COLLATERAL_FILES.items():
        content = json.dumps(simulated_collateral(root, tee=tee, at=at), indent=1)
        write_new(Path(root.directory) / name, content.encode())


def simulated_collateral(
    root: SimulatedRoot, *, tee: Tee, at: datetime
) -> dict[str, str]:
    """Returns collateral that judges every platform under `root` up to date.

    Args:
        root: Who signs.
        tee: Kind of environment it is for.
        at: Start of its validity, aware; it lasts 30 days.
    """
    tcb_info = _compact(tcb_info_document(tee=tee, at=at))
    qe_identity = _compact(qe_identity_document(tee=tee, at=at))
    signing_chain = (root.signing.pem + root.root.pem).decode()
    key = root.signing.key
    return {
        "tcb_info": tcb_info,
        "tcb_info_signature": raw_signature(key, tcb_info.encode()).hex(),
        "tcb_info_issuer_chain": signing_chain,
        "qe_identity": qe_identity,
        "qe_identity_signature": raw_signature(key, qe_identity.encode()).hex(),
        "qe_identity_issuer_chain": signing_chain,
        "root_ca_crl": _empty_crl(root.root, at=at).hex(),
        "pck_crl": _empty_crl(root.ca, at=at).hex(),
        "pck_crl_issuer_chain": (root.ca.pem + root.root.pem).decode(),
    }


def tcb_info_document(*, tee: Tee, at: datetime) -> dict[str, object]:
    """Returns TCB info version 3 with one level, which the machine meets."""
    tcb: dict[str, object] = {
        "sgxtcbcomponents": [{"svn": svn} for svn in profile.COMPONENT_SVNS],
        "pcesvn": profile.PCE_SVN,
    }
    module: dict[str, object] = {}
    if tee == "tdx":
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in profile.TEE_TCB_SVN]
        module = _tdx_module(at)
    return {
        "id": tee.upper(),
        "version": 3,
        **_dates(at),
        "fmspc": profile.FMSPC.hex().upper(),
        "pceId": profile.PCE_ID.hex().upper(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": profile.TCB_EVALUATION_NUMBER,
        **module,
        "tcbLevels": [_level(tcb, at)],
    }


def qe_identity_document(*, tee: Tee, at: datetime) -> dict[str, object]:
    """Returns QE identity version 2 of the enclave that quotes for `tee`."""
    enclave = profile.QUOTING_ENCLAVES[tee]
    return {
        "id": enclave.identity,
        "version": 2,
        **_dates(at),
        "tcbEvaluationDataNumber": profile.TCB_EVALUATION_NUMBER,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": _QE_ATTRIBUTES,
        "attributesMask": _QE_ATTRIBUTES_MASK,
        "mrsigner": profile.QE_SIGNER.hex().upper(),
        "isvprodid": enclave.isv_prod_id,
        "tcbLevels": [_level({"isvsvn": enclave.isv_svn}, at)],
    }


def _tdx_module(at: datetime) -> dict[str, object]:
    module: dict[str, object] = {
        "mrsigner": profile.MRSIGNERSEAM.hex().upper(),
        "attributes": profile.SEAM_ATTRIBUTES.hex().upper(),
        "attributesMask": bytes([_ANY_BITS] * 8).hex().upper(),
    }
    identity = {
        "id": f"TDX_{profile.TDX_MODULE_MAJOR:02X}",
        **module,
        "tcbLevels": [_level({"isvsvn": profile.TDX_MODULE_SVN}, at)],
    }
    return {"tdxModule": module, "tdxModuleIdentities": [identity]}


def _level(tcb: dict[str, object], at: datetime) -> dict[str, object]:
    return {"tcb": tcb, "tcbDate": _timestamp(at), "tcbStatus": "UpToDate"}


def _dates(at: datetime) -> dict[str, object]:
    return {
        "issueDate": _timestamp(at),
        "nextUpdate": _timestamp(at + COLLATERAL_LIFE),
    }


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _compact(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _empty_crl(issuer: Issuer, *, at: datetime) -> bytes:
    return (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(at)
        .next_update(at + COLLATERAL_LIFE)
        .add_extension(x509.CRLNumber(_CRL_NUMBER), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
        .sign(issuer.key, SHA256())
        .public_bytes(Encoding.DER)
    )
