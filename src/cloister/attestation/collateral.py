"""Collateral: what Intel's services say about platforms. Parsed, NOT verified.

Two ways in: the JSON object that DCAP tools exchange, and the separate answers of the
PCS API version 4. Both keep the exact bytes that were signed. `verify_evidence` decides
in steps 3 to 6, 8 and 10 whether any of it is genuine and in date; until then it is
somebody's claim, wherever it came from.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from cloister.attestation.issuer_chain import IssuerChain, parse_issuer_chain
from cloister.attestation.qe_identity import QeIdentity, parse_qe_identity
from cloister.attestation.revocation_list import (
    RevocationList,
    parse_revocation_list,
)
from cloister.attestation.signed_json import (
    SIGNATURE_HEX_DIGITS,
    malformed,
    read_object,
    split_signed_document,
)
from cloister.attestation.tcb_info import TcbInfo, parse_tcb_info

# The nine members of the common shape, all of them text.
COLLATERAL_FIELDS = (
    "tcb_info",
    "tcb_info_signature",
    "tcb_info_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
    "qe_identity_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "pck_crl_issuer_chain",
)
# dcap-qvl copies the quote's own chain to this tenth member. The chain in the quote is
# the only one that counts here, so this one is allowed and not looked at.
IGNORED_FIELD = "pck_certificate_chain"
# Two revocation lists in hexadecimal, two documents and three chains.
MAX_COLLATERAL_BYTES = 4_194_304

_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """What verification needs beside a quote; NOTHING in it is verified.

    Made by `parse_collateral` and `collateral_from_parts` and nowhere else: they see to
    it that the parsed documents are those of the signed texts.

    Attributes:
        tcb_info: The TCB info, parsed.
        tcb_info_text: The same, exactly as it was signed.
        tcb_info_signature: r||s over `tcb_info_text`, 64 bytes.
        tcb_info_issuer_chain: Its signer and the root.
        qe_identity: The QE identity, parsed.
        qe_identity_text: The same, exactly as it was signed.
        qe_identity_signature: r||s over `qe_identity_text`, 64 bytes.
        qe_identity_issuer_chain: Its signer and the root.
        root_ca_crl: What the root has revoked.
        pck_crl: What the CA of the PCK certificates has revoked.
        pck_crl_issuer_chain: That CA and the root.
    """

    tcb_info: TcbInfo
    tcb_info_text: bytes = field(repr=False)
    tcb_info_signature: bytes = field(repr=False)
    tcb_info_issuer_chain: IssuerChain
    qe_identity: QeIdentity
    qe_identity_text: bytes = field(repr=False)
    qe_identity_signature: bytes = field(repr=False)
    qe_identity_issuer_chain: IssuerChain
    root_ca_crl: RevocationList
    pck_crl: RevocationList
    pck_crl_issuer_chain: IssuerChain

    def to_json(self) -> str:
        """Returns the common JSON shape, from which `parse_collateral` makes this."""
        return json.dumps(
            {
                "tcb_info": self.tcb_info_text.decode(),
                "tcb_info_signature": self.tcb_info_signature.hex(),
                "tcb_info_issuer_chain": self.tcb_info_issuer_chain.pem.decode(),
                "qe_identity": self.qe_identity_text.decode(),
                "qe_identity_signature": self.qe_identity_signature.hex(),
                "qe_identity_issuer_chain": self.qe_identity_issuer_chain.pem.decode(),
                "root_ca_crl": self.root_ca_crl.der.hex(),
                "pck_crl": self.pck_crl.der.hex(),
                "pck_crl_issuer_chain": self.pck_crl_issuer_chain.pem.decode(),
            }
        )


def parse_collateral(unverified_json: bytes | str) -> Collateral:
    """Returns collateral in the JSON shape that DCAP tools exchange.

    Nine members, all text; signatures and CRLs in hexadecimal. A tenth one,
    `pck_certificate_chain`, is allowed and not looked at; any other is refused.

    Args:
        unverified_json: The object.

    Raises:
        VerificationError: If it has any other form (step 3 for the CRLs, else 4).
    """
    what = "collateral"
    if isinstance(unverified_json, str):
        unverified_json = unverified_json.encode("utf-8", "surrogatepass")
    members = read_object(unverified_json, what=what, max_bytes=MAX_COLLATERAL_BYTES)
    members.pop(IGNORED_FIELD, None)
    texts = {name: text for name, text in members.items() if isinstance(text, str)}
    if members.keys() != texts.keys() or texts.keys() != set(COLLATERAL_FIELDS):
        raise malformed(what, f"not the {len(COLLATERAL_FIELDS)} members, all text")
    return _collateral(
        tcb_info=(_encoded(texts["tcb_info"], what), texts["tcb_info_signature"]),
        qe_identity=(
            _encoded(texts["qe_identity"], what),
            texts["qe_identity_signature"],
        ),
        chains=(
            _encoded(texts["tcb_info_issuer_chain"], what),
            _encoded(texts["qe_identity_issuer_chain"], what),
            _encoded(texts["pck_crl_issuer_chain"], what),
        ),
        crls=(
            _unhex(texts["root_ca_crl"], "root CA CRL"),
            _unhex(texts["pck_crl"], "PCK CRL"),
        ),
    )


def collateral_from_parts(  # noqa: PLR0913 - seven answers, each by its name
    *,
    tcb_info_body: bytes,
    tcb_info_issuer_chain_pem: bytes,
    qe_identity_body: bytes,
    qe_identity_issuer_chain_pem: bytes,
    root_ca_crl_der: bytes,
    pck_crl_der: bytes,
    pck_crl_issuer_chain_pem: bytes,
) -> Collateral:
    """Returns collateral from the separate answers of PCS or a PCCS.

    Args:
        tcb_info_body: `{"tcbInfo": {...}, "signature": "..."}`, to the byte.
        tcb_info_issuer_chain_pem: Header `TCB-Info-Issuer-Chain`, URL-decoded.
        qe_identity_body: `{"enclaveIdentity": {...}, "signature": "..."}`, likewise.
        qe_identity_issuer_chain_pem: Header `SGX-Enclave-Identity-Issuer-Chain`,
            URL-decoded.
        root_ca_crl_der: The root's CRL, in DER.
        pck_crl_der: The PCK CRL, in DER.
        pck_crl_issuer_chain_pem: Header `SGX-PCK-CRL-Issuer-Chain`, URL-decoded.

    Raises:
        VerificationError: If a part has any other form (step 3 for the CRLs, else 4).
    """
    return _collateral(
        tcb_info=split_signed_document(tcb_info_body, name="tcbInfo", what="TCB info"),
        qe_identity=split_signed_document(
            qe_identity_body, name="enclaveIdentity", what="QE identity"
        ),
        chains=(
            tcb_info_issuer_chain_pem,
            qe_identity_issuer_chain_pem,
            pck_crl_issuer_chain_pem,
        ),
        crls=(root_ca_crl_der, pck_crl_der),
    )


def _collateral(
    *,
    tcb_info: tuple[bytes, str],
    qe_identity: tuple[bytes, str],
    chains: tuple[bytes, bytes, bytes],
    crls: tuple[bytes, bytes],
) -> Collateral:
    return Collateral(
        tcb_info=parse_tcb_info(tcb_info[0]),
        tcb_info_text=tcb_info[0],
        tcb_info_signature=_signature(tcb_info[1], "TCB info"),
        tcb_info_issuer_chain=parse_issuer_chain(chains[0], step=4),
        qe_identity=parse_qe_identity(qe_identity[0]),
        qe_identity_text=qe_identity[0],
        qe_identity_signature=_signature(qe_identity[1], "QE identity"),
        qe_identity_issuer_chain=parse_issuer_chain(chains[1], step=4),
        root_ca_crl=parse_revocation_list(crls[0], what="root CA CRL"),
        pck_crl=parse_revocation_list(crls[1], what="PCK CRL"),
        pck_crl_issuer_chain=parse_issuer_chain(chains[2], step=3),
    )


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise malformed(what, "text with half a character") from error


def _signature(text: str, what: str) -> bytes:
    signature = _unhex(text, f"signature of {what}")
    if len(text) != SIGNATURE_HEX_DIGITS:
        raise malformed(f"signature of {what}", f"not {SIGNATURE_HEX_DIGITS} digits")
    return signature


def _unhex(text: str, what: str) -> bytes:
    if _HEX.fullmatch(text) is None:
        raise malformed(what, "not hexadecimal")
    return bytes.fromhex(text)
