"""Appraisal of how an environment runs: what its host can do to it.

A measurement says what was loaded; the attributes beside it say how, and the host chose
them. Each check returns what it found, or the error that appraisal then raises.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.attestation.claims import Claims, TdxMeasurements
from cloister.attestation.policy_schema import NO_SERVICE_TD, Policy
from cloister.attestation.reports import (
    SGX_FLAG_DEBUG,
    SGX_FLAG_INIT,
    SGX_FLAG_KSS,
    SGX_FLAG_MODE64,
    TD_FLAG_KEY_LOCKER,
    TD_FLAG_MIGRATABLE,
    TD_FLAG_PERFMON,
    TD_FLAG_PKS,
    TD_FLAG_SEPT_VE_DISABLE,
    TD_FLAGS_UNTRUSTED,
    SgxAttributes,
    TdAttributes,
)
from cloister.errors import AppraisalError

# How many references an error names.
_NAMED_REFERENCES = 8

# MRENCLAVE does not cover ATTRIBUTES: whoever signs the enclave picks them. The same
# bytes in 32-bit mode would be other code, and the provisioning and launch keys are for
# Intel's own enclaves. DEBUG has a check of its own.
_SGX_NEEDED = SGX_FLAG_INIT | SGX_FLAG_MODE64
_SGX_FLAG_CET = 1 << 6
_SGX_FLAG_AEX_NOTIFY = 1 << 10
_SGX_KNOWN = (
    _SGX_NEEDED | SGX_FLAG_DEBUG | SGX_FLAG_KSS | _SGX_FLAG_CET | _SGX_FLAG_AEX_NOTIFY
)
# LASS (bit 27) makes the domain stricter with itself. The untrusted group has the debug
# check, SEPT_VE_DISABLE and MIGRATABLE have their own.
_TD_FLAG_LASS = 1 << 27
_TD_KNOWN = (
    TD_FLAGS_UNTRUSTED
    | _TD_FLAG_LASS
    | TD_FLAG_SEPT_VE_DISABLE
    | TD_FLAG_MIGRATABLE
    | TD_FLAG_PKS
    | TD_FLAG_KEY_LOCKER
    | TD_FLAG_PERFMON
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check that passed.

    Attributes:
        code: Its stable name.
        reason: Why it passed, for people and the audit log.
    """

    code: str
    reason: str


def environment_checks(
    claims: Claims, policy: Policy
) -> tuple[Check | AppraisalError, ...]:
    """Returns the outcome of every check on how the environment runs."""
    return (
        _check_debug(claims, policy),
        _check_attributes(claims),
        *_trust_domain_checks(claims, policy),
    )


def _check_attributes(claims: Claims) -> Check | AppraisalError:
    code, attributes = "appraisal-attributes", claims.attributes
    if isinstance(attributes, SgxAttributes):
        needed, known = _SGX_NEEDED, _SGX_KNOWN
        expected = "INIT and MODE64BIT, beside them at most CET, KSS and AEX-Notify"
    else:
        needed, known = 0, _TD_KNOWN
        expected = "no bit whose meaning is unknown"
    if attributes.flags & needed != needed or attributes.flags & ~known:
        return AppraisalError(
            "the environment runs with attributes that nothing may ask for",
            code=code,
            expected=expected,
            got=f"flags {attributes.flags:#x}",
            remedy="build and start it as its measurement was meant to run",
        )
    return Check(code=code, reason=f"flags {attributes.flags:#x} are all known")


def _check_debug(claims: Claims, policy: Policy) -> Check | AppraisalError:
    if not claims.debug:
        return Check(code="appraisal-debug", reason="debug is off")
    if policy.debug == "accepted-insecurely":
        return Check(
            code="appraisal-debug",
            reason="debug is on and accepted: the host can read everything",
        )
    return AppraisalError(
        "the environment runs in debug mode: its host can read everything in it",
        code="appraisal-debug",
        expected="debug off",
        got="debug on",
        remedy="build and start it for production",
    )


def _trust_domain_checks(
    claims: Claims, policy: Policy
) -> tuple[Check | AppraisalError, ...]:
    if not (
        isinstance(claims.attributes, TdAttributes)
        and isinstance(claims.measurements, TdxMeasurements)
    ):
        return ()
    return (
        _check_sept_ve(claims.attributes, policy),
        _check_service_td(claims.attributes, claims.measurements, policy),
    )


def _check_sept_ve(attributes: TdAttributes, policy: Policy) -> Check | AppraisalError:
    code = "appraisal-sept-ve-disable"
    if attributes.sept_ve_disable:
        return Check(code=code, reason="SEPT_VE_DISABLE is on")
    if policy.sept_ve_disable == "any":
        return Check(code=code, reason="SEPT_VE_DISABLE is off and accepted")
    return AppraisalError(
        "the host can inject exceptions into the trust domain by taking pages away",
        code=code,
        expected="SEPT_VE_DISABLE on",
        got="SEPT_VE_DISABLE off",
        remedy="start the domain with sept-ve-disable=on",
    )


def _check_service_td(
    attributes: TdAttributes, measured: TdxMeasurements, policy: Policy
) -> Check | AppraisalError:
    code = "appraisal-service-td"
    # A report of version 1.0 has no place for it: it is made where none is bound.
    bound = measured.mrservicetd or NO_SERVICE_TD
    if bound not in policy.mrservicetd:
        return AppraisalError(
            "a service TD is bound that the policy does not list",
            code=code,
            expected=" or ".join(
                f"MRSERVICETD {it}" for it in policy.mrservicetd[:_NAMED_REFERENCES]
            ),
            got=f"MRSERVICETD {bound}",
            remedy="a service TD can reach into the domain: start it without, or list "
            "the one that is trusted",
        )
    # Only a service TD can move a domain; one that may be moved must name its mover.
    if attributes.migratable and bound == NO_SERVICE_TD:
        return AppraisalError(
            "the trust domain may be moved to another machine by nobody knows whom",
            code=code,
            expected="MIGRATABLE off, or on with a listed MRSERVICETD",
            got="MIGRATABLE on, no MRSERVICETD",
            remedy="start the domain without migration",
        )
    return Check(
        code=code,
        reason="no service TD is bound"
        if bound == NO_SERVICE_TD
        else f"MRSERVICETD {bound} is in the policy",
    )
