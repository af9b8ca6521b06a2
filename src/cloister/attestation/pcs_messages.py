"""Answers of PCS and PCCS, API version 4, as collateral.

Signed documents stay as they came, to the byte: `collateral_from_parts` splits them by
position. What is read here is what HTTP adds: chains in headers, and CRLs in two
spellings. Nothing is verified.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from cloister.attestation.collateral import Collateral, collateral_from_parts
from cloister.attestation.pcs_transport import Reply
from cloister.errors import ProtocolError, VerificationError

TCB_INFO_CHAIN = "TCB-Info-Issuer-Chain"
QE_IDENTITY_CHAIN = "SGX-Enclave-Identity-Issuer-Chain"
PCK_CRL_CHAIN = "SGX-PCK-CRL-Issuer-Chain"

_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2})+")
_PEM_START = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """The four answers that make up collateral.

    Attributes:
        tcb_info: Of `tcb`.
        qe_identity: Of `qe/identity`.
        pck_crl: Of `pckcrl`.
        root_ca_crl: Of `rootcacrl`, or of Intel's certificate host.
    """

    tcb_info: Reply
    qe_identity: Reply
    pck_crl: Reply
    root_ca_crl: Reply


def collateral_from_replies(replies: Replies) -> Collateral:
    """Returns the collateral that a service sent; believes none of it.

    Raises:
        ProtocolError: If an answer is malformed.
    """
    try:
        return collateral_from_parts(
            tcb_info_body=replies.tcb_info.body,
            tcb_info_issuer_chain_pem=issuer_chain(
                replies.tcb_info, header=TCB_INFO_CHAIN
            ),
            qe_identity_body=replies.qe_identity.body,
            qe_identity_issuer_chain_pem=issuer_chain(
                replies.qe_identity, header=QE_IDENTITY_CHAIN
            ),
            root_ca_crl_der=crl_der(replies.root_ca_crl),
            pck_crl_der=crl_der(replies.pck_crl),
            pck_crl_issuer_chain_pem=issuer_chain(
                replies.pck_crl, header=PCK_CRL_CHAIN
            ),
        )
    except VerificationError as error:
        raise _malformed(replies.tcb_info, error.what) from error


def issuer_chain(reply: Reply, *, header: str) -> bytes:
    """Returns the PEM chain that a header carries URL-encoded.

    Raises:
        ProtocolError: If the header is missing, comes twice, or holds no PEM text.
    """
    values = reply.headers.get(header.lower(), ())
    if len(values) != 1:
        raise _malformed(reply, f"header {header} {len(values)} times")
    pem = unquote_to_bytes(values[0])
    if not (pem.startswith(_PEM_START) and pem.isascii()):
        raise _malformed(reply, f"header {header} without PEM")
    return pem


def crl_der(reply: Reply) -> bytes:
    """Returns a CRL that was sent in DER, or in hexadecimal as PCCS sends the root's.

    Which one it is cannot be mistaken: both may begin with the byte 0x30, but DER goes
    on with a length, which for a CRL is above 0x7F.
    """
    text = reply.body.strip()
    return bytes.fromhex(text.decode()) if _HEX.fullmatch(text) else reply.body


def _malformed(reply: Reply, got: str) -> ProtocolError:
    return ProtocolError(
        f"answer of the collateral service is malformed: {reply.url}",
        code="pcs-malformed",
        expected="an answer of PCS or PCCS, API version 4",
        got=got,
        remedy="is it a PCCS? correct the address, or use another one",
    )
