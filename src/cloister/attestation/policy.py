"""Appraisal: is genuine evidence what I want? Closed by default, hashed whole.

A `Policy` is one role's table in the plan. It has no switch: every check below is done
for every claim, an empty list of measurements is refused when the policy is made, and
adding a field to a policy changes its hash.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import cbor2
import msgspec

from cloister.attestation.claims import Claims, SgxMeasurements, TdxMeasurements
from cloister.errors import AppraisalError, ConfigError

SGX_MEASUREMENT_HEX = 64
TDX_MEASUREMENT_HEX = 96

_ROOT = re.compile(r"hardware|simulated:sha256:[0-9a-f]{64}")
_HASH_LABEL = "cloister policy 1"


class SgxReference(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """One enclave that is accepted.

    Attributes:
        mr_enclave: 64 lower-case hex digits.

    Raises:
        ConfigError: If it is anything else.
    """

    mr_enclave: str

    def __post_init__(self) -> None:
        """Refuses a measurement that is not whole."""
        _require_hex(self.mr_enclave, SGX_MEASUREMENT_HEX, "mr_enclave")


class TdxReference(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """One trust domain that is accepted; all four registers must be equal.

    Attributes:
        mrtd: 96 lower-case hex digits, like the others.
        rtmr0: Of the firmware's configuration.
        rtmr1: Of the kernel and what starts it.
        rtmr2: Of what the kernel was told to run.

    Raises:
        ConfigError: If any is anything else.
    """

    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str

    def __post_init__(self) -> None:
        """Refuses a measurement that is not whole."""
        for name in self.__struct_fields__:
            _require_hex(getattr(self, name), TDX_MEASUREMENT_HEX, name)


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one role's evidence must be, exactly as `[policy.ROLE]` in the plan.

    Attributes:
        root: "hardware", or "simulated:sha256:<64 lower-case hex digits>".
        sgx: Enclaves that are accepted.
        tdx: Trust domains that are accepted.

    Raises:
        ConfigError: If the root is not so named, or nothing would be accepted.
    """

    root: str
    sgx: tuple[SgxReference, ...] = ()
    tdx: tuple[TdxReference, ...] = ()

    def __post_init__(self) -> None:
        """Refuses an unnamed root and an empty policy."""
        if _ROOT.fullmatch(self.root) is None:
            raise ConfigError(
                "policy does not name a trust root",
                code="policy-root",
                expected="hardware, or simulated:sha256:<64 lower-case hex digits>",
                got=repr(self.root),
            )
        if not (self.sgx or self.tdx):
            raise ConfigError(
                "policy accepts nothing",
                code="policy-empty",
                expected="at least one measurement under sgx or tdx",
                remedy="`cloister measure PLAN` prints what a node will measure",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Genuine evidence that a policy accepted; made by `appraise` and nowhere else.

    Attributes:
        claims: What was appraised.
        policy_sha256: The policy's hash, lower-case hex.
        checks: Every check, all of them passed.
    """

    claims: Claims
    policy_sha256: str
    checks: tuple[Check, ...]


def policy_sha256(policy: Policy) -> str:
    """Returns the hash of everything a policy says, as 64 lower-case hex digits.

    The order of a list does not change what is accepted and does not change the hash.
    """
    lists = {
        "sgx": sorted(_canonical(reference) for reference in policy.sgx),
        "tdx": sorted(_canonical(reference) for reference in policy.tdx),
    }
    # Built from the struct itself: a field added later is in the hash by itself.
    fields = {
        name: lists.get(name, getattr(policy, name))
        for name in policy.__struct_fields__
    }
    return hashlib.sha256(_canonical([_HASH_LABEL, fields])).hexdigest()


def appraise(claims: Claims, policy: Policy) -> Verdict:
    """Returns the verdict, if and only if every check passes.

    Checks, all of them always done:

    1. the evidence is genuine under the root that the policy names, and no other;
    2. the host cannot look inside (debug);
    3. the measurement is one that the policy lists for this kind of environment.

    Raises:
        AppraisalError: If any check fails; its code is the first failing check's, its
            text names them all.
    """
    outcomes = (
        _check_root(claims, policy),
        _check_debug(claims),
        _check_measurement(claims, policy),
    )
    failures = [outcome for outcome in outcomes if isinstance(outcome, AppraisalError)]
    if failures:
        raise _all_of(failures) from failures[0]
    return Verdict(
        claims=claims,
        policy_sha256=policy_sha256(policy),
        checks=tuple(outcome for outcome in outcomes if isinstance(outcome, Check)),
    )


def _check_root(claims: Claims, policy: Policy) -> Check | AppraisalError:
    if claims.root_name != policy.root:
        return AppraisalError(
            "evidence is not under the root that the policy names",
            code="appraisal-root",
            expected=policy.root,
            got=claims.root_name,
            remedy="a simulated node cannot take part in a hardware plan, nor one "
            "deployment's node in another's",
        )
    return Check(code="appraisal-root", reason=f"genuine under {claims.root_name}")


def _check_debug(claims: Claims) -> Check | AppraisalError:
    if claims.debug:
        return AppraisalError(
            "the environment runs in debug mode: its host can read everything in it",
            code="appraisal-debug",
            expected="debug off",
            got="debug on",
            remedy="build and start it for production",
        )
    return Check(code="appraisal-debug", reason="debug is off")


def _check_measurement(claims: Claims, policy: Policy) -> Check | AppraisalError:
    measured, accepted, got = _measured_against(claims.measurements, policy)
    if measured not in accepted:
        return AppraisalError(
            "the peer runs other code than the policy accepts",
            code="appraisal-measurement",
            expected=" or ".join(map(_in_words, accepted))
            or f"no {claims.tee} environment at all",
            got=got,
            remedy="compare task.py and the installed packages with the other parties; "
            "`cloister measure PLAN` prints what this machine runs",
        )
    return Check(code="appraisal-measurement", reason=f"{got} is in the policy")


def _measured_against(
    measurements: SgxMeasurements | TdxMeasurements, policy: Policy
) -> tuple[msgspec.Struct, tuple[msgspec.Struct, ...], str]:
    """Returns the measured reference, the accepted ones, and the first in words."""
    measured: SgxReference | TdxReference
    if isinstance(measurements, SgxMeasurements):
        measured = SgxReference(mr_enclave=measurements.mr_enclave)
        return measured, policy.sgx, _in_words(measured)
    measured = TdxReference(
        mrtd=measurements.mrtd,
        rtmr0=measurements.rtmr0,
        rtmr1=measurements.rtmr1,
        rtmr2=measurements.rtmr2,
    )
    return measured, policy.tdx, _in_words(measured)


def _in_words(reference: msgspec.Struct) -> str:
    return ", ".join(
        f"{name} {getattr(reference, name)}" for name in reference.__struct_fields__
    )


def _all_of(failures: list[AppraisalError]) -> AppraisalError:
    return AppraisalError(
        "; ".join(failure.what for failure in failures),
        code=failures[0].code,
        expected="; ".join(failure.expected for failure in failures),
        got="; ".join(failure.got for failure in failures),
        remedy="; ".join(failure.remedy for failure in failures),
    )


def _canonical(value: object) -> bytes:
    return cbor2.dumps(msgspec.to_builtins(value), canonical=True)


def _require_hex(text: str, digits: int, name: str) -> None:
    if re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is None:
        raise ConfigError(
            f"{name} is not a whole measurement",
            code="policy-measurement",
            expected=f"{digits} lower-case hex digits",
            got=repr(text),
        )
