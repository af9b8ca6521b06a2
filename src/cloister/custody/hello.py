"""A node's first message to a custodian, and the transcript that begins with it.

The same for a node of the custodian's own party and for another's. Refusals here are
heard by strangers, so no first line of theirs names a value.
"""

from __future__ import annotations

import secrets

from cloister.custody.custodian import Custodian
from cloister.errors import VerificationError
from cloister.plan.plan import Party, Plan, PlanHash
from cloister.ratls.challenge import NONCE_BYTES, VERSION, Hello
from cloister.ratls.identity import Spki, parse_spki
from cloister.ratls.transcript import Nonce, Transcript


def plan_named(hello: Hello, *, custodian: Custodian) -> Plan:
    """Returns the custodian's own copy of the plan that a node names.

    Raises:
        VerificationError: If the node is of another version or run, or the party does
            not consent to the plan.
    """
    # First: a node waits for a consent, and another version would wait in vain.
    check_same("protocol version", str(VERSION), str(hello.version))
    plan = custodian.plan(PlanHash(hello.plan_hash))
    check_same("run", plan.run_id, hello.run_id)
    return plan


def transcript_with(
    hello: Hello, *, plan: Plan, node: Party, custodian: Custodian, tls_key: Spki
) -> Transcript:
    """Returns what both sides said, with a fresh nonce of the custodian's.

    Args:
        hello: The node's message.
        plan: The plan that it names.
        node: The node's party, as the plan has it.
        custodian: The custodian.
        tls_key: Its TLS key, as its certificate shows it.

    Raises:
        VerificationError: If the node's TLS key is none.
    """
    parse_spki(hello.tls_key)
    return Transcript(
        run_id=plan.run_id,
        plan_hash=PlanHash(hello.plan_hash),
        client_role=node.role,
        client_party=node.name,
        server_role="custodian",
        server_party=custodian.party,
        client_nonce=Nonce(hello.nonce),
        server_nonce=Nonce(secrets.token_bytes(NONCE_BYTES)),
        client_key=Spki(hello.tls_key),
        server_key=tls_key,
        admission_key=b"",
        client_encryption_key=hello.encryption_key,
        server_encryption_key=b"",
    )


def check_same(name: str, expected: str, got: str) -> None:
    """Checks one thing that a node says of itself.

    Raises:
        VerificationError: If it is not what was expected (``NAME-differs``).
    """
    if expected != got:
        raise differs(name, expected, got)


def differs(name: str, expected: str, got: str) -> VerificationError:
    """Returns the error for a node that is not of here."""
    return VerificationError(
        f"the node is of another {name}",
        code=f"{name.rsplit(maxsplit=1)[-1]}-differs",
        expected=expected,
        got=got,
        remedy="A custodian serves the nodes of its own party; those of others only"
        " where it holds a share of their state key.",
    )
