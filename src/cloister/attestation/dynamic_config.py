"""Reads ``dynamic_config.json``, the policy file of CCZoo's gRPC RA-TLS.

Its meaning is kept: an entry of ``sgx_mrs`` or ``tdx_mrs`` is accepted if every value
whose switch is "on" is equal (AND), and one matching entry is enough (OR). What fails
open in that library is refused here by name: switches that are neither "on" nor "off"
("" and "onX" count as something there), values that are not whole (they become zeros
there), a file, a key or a list that is missing (a default or a crash there), more than
16 entries (the rest is silently left out there), all switches off, keys given twice.

Two more are refused because they accept what nobody means: SGX numbers without enclave
or signer, and a trust domain without MRTD and RTMR0 to 2, for then the host chooses
what runs.

The format has no word for anything else, so everything else is the strictest that
`Policy` has (status UpToDate, no advisory, no debug), except that it cannot name
platforms: they are "any". The root is the one that the caller verifies under.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.attestation.policy_schema import Policy
from cloister.attestation.reference_values import (
    MAX_ISV_NUMBER,
    SGX_MEASUREMENT_HEX,
    TDX_MEASUREMENT_HEX,
    SgxExactReference,
    TdxReference,
)
from cloister.attestation.signed_json import read_object
from cloister.errors import ConfigError, VerificationError

# What the reference library has room for; it is silent about the rest.
MAX_ENTRIES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """One value of an entry.

    Attributes:
        key: Its name in an entry; its switch is ``verify_`` and this.
        name: Its name in our references.
        digits: Length in hex digits; None for a number.
        required: Whether its switch must be on.
    """

    key: str
    name: str
    digits: int | None
    required: bool = False

    @property
    def switch(self) -> str:
        return f"verify_{self.key}"


def _tdx(key: str, name: str, *, required: bool = False) -> _Value:
    return _Value(key=key, name=name, digits=TDX_MEASUREMENT_HEX, required=required)


_SGX_LIST, _TDX_LIST = "sgx_mrs", "tdx_mrs"
_VALUES: dict[str, tuple[_Value, ...]] = {
    _SGX_LIST: (
        _Value(key="mr_enclave", name="mr_enclave", digits=SGX_MEASUREMENT_HEX),
        _Value(key="mr_signer", name="mr_signer", digits=SGX_MEASUREMENT_HEX),
        _Value(key="isv_prod_id", name="isv_prod_id", digits=None),
        _Value(key="isv_svn", name="isv_svn", digits=None),
    ),
    _TDX_LIST: (
        _tdx("mr_seam", "mrseam"),
        _tdx("mrsigner_seam", "mrsignerseam"),
        _tdx("mr_td", "mrtd", required=True),
        _tdx("mr_config_id", "mrconfigid"),
        _tdx("mr_owner", "mrowner"),
        _tdx("mr_owner_config", "mrownerconfig"),
        _tdx("rt_mr0", "rtmr0", required=True),
        _tdx("rt_mr1", "rtmr1", required=True),
        _tdx("rt_mr2", "rtmr2", required=True),
        _tdx("rt_mr3", "rtmr3"),
    ),
}


def parse_dynamic_config(text: bytes, *, root: str) -> Policy:
    """Returns the policy that a ``dynamic_config.json`` means.

    Args:
        text: The file's content.
        root: The trust root, as a policy names it; the file cannot.

    Raises:
        ConfigError: If it is malformed, or would accept what nobody means.
    """
    document = _document(text)
    lists = [name for name in _VALUES if name in document]
    if len(lists) != 1:
        raise _refused(
            "does not hold one list of measurements",
            code="dynamic-config-kind",
            expected=f"either {_SGX_LIST} or {_TDX_LIST}",
            got=" and ".join(lists) or "neither",
        )
    values = _VALUES[lists[0]]
    _require_keys(document, [*(it.switch for it in values), lists[0]], "the file")
    wanted = [it for it in values if _switched_on(document, it)]
    _check_switches(values, wanted)
    entries = [
        _entry(entry, values, wanted, where=f"{lists[0]}[{index}]")
        for index, entry in enumerate(_entries(document[lists[0]], lists[0]))
    ]
    if lists[0] == _SGX_LIST:
        sgx = tuple(
            SgxExactReference(
                mr_enclave=_text(entry.get("mr_enclave")),
                mr_signer=_text(entry.get("mr_signer")),
                isv_prod_id=_number(entry.get("isv_prod_id")),
                isv_svn=_number(entry.get("isv_svn")),
            )
            for entry in entries
        )
        return Policy(root=root, sgx_exact=sgx, platforms="any")
    tdx = tuple(
        TdxReference(**{name: str(value) for name, value in entry.items()})
        for entry in entries
    )
    return Policy(root=root, tdx=tdx, platforms="any")


def _document(text: bytes) -> dict[str, object]:
    try:
        return read_object(text, what="file")
    except VerificationError as error:
        raise _refused(
            "cannot be read",
            code="dynamic-config-malformed",
            expected="strict JSON, every key once",
            got=error.what,
        ) from error


def _switched_on(document: Mapping[str, object], value: _Value) -> bool:
    given = document[value.switch]
    if given in ("on", "off"):
        return given == "on"
    raise _refused(
        f"has a switch that is neither on nor off: {value.switch}",
        code="dynamic-config-switch",
        expected='"on" or "off"',
        got=repr(given)[:80],
    )


def _check_switches(values: Sequence[_Value], wanted: Sequence[_Value]) -> None:
    if not wanted:
        raise _refused(
            "has all switches off and would accept everything",
            code="dynamic-config-all-off",
            expected="at least one switch on",
        )
    missing = [it.switch for it in values if it.required and it not in wanted]
    if missing:
        raise _refused(
            "does not say what runs in the trust domain",
            code="dynamic-config-too-open",
            expected="verify_mr_td, verify_rt_mr0, verify_rt_mr1 and verify_rt_mr2 on",
            got=f"{', '.join(missing)} off",
        )
    if all(it.digits is None for it in wanted):
        raise _refused(
            "compares numbers that anybody's enclave may have",
            code="dynamic-config-too-open",
            expected="verify_mr_enclave or verify_mr_signer on",
            got=f"only {', '.join(it.switch for it in wanted)} on",
        )


def _entries(given: object, name: str) -> list[object]:
    if not isinstance(given, list) or not 0 < len(given) <= MAX_ENTRIES:
        raise _refused(
            f"has no usable list {name}",
            code="dynamic-config-entries",
            expected=f"1 to {MAX_ENTRIES} entries; the reference leaves out the rest",
            got=f"{len(given)} entries" if isinstance(given, list) else "no list",
        )
    return given


def _entry(
    given: object, values: Sequence[_Value], wanted: Sequence[_Value], *, where: str
) -> dict[str, str | int]:
    entry = _mapping(given, where)
    _require_keys(entry, [it.key for it in values], where)
    read = {
        it.name: _read(entry[it.key], it, asked=it in wanted, where=where)
        for it in values
    }
    return {it.name: value for it in wanted if (value := read[it.name]) is not None}


def _read(given: object, value: _Value, *, asked: bool, where: str) -> str | int | None:
    """Returns one value, in lower case; only what is not asked for may be empty."""
    if given == "" and not asked:
        return None
    if value.digits is None:
        text = str(given) if type(given) is int else given
        if (
            isinstance(text, str)
            and re.fullmatch(r"0|[1-9][0-9]{0,4}", text)
            and int(text) <= MAX_ISV_NUMBER
        ):
            return int(text)
        expected = f"a number from 0 to {MAX_ISV_NUMBER}"
    else:
        if isinstance(given, str) and re.fullmatch(
            f"[0-9a-fA-F]{{{value.digits}}}", given
        ):
            return given.lower()
        expected = f"{value.digits} hex digits"
    raise _refused(
        f"has a malformed value: {where}.{value.key}",
        code="dynamic-config-value",
        expected=expected,
        got=repr(given)[:200],
    )


def _require_keys(
    members: Mapping[str, object], known: Sequence[str], where: str
) -> None:
    missing = [key for key in known if key not in members]
    unknown = sorted(set(members) - set(known))
    if missing or unknown:
        raise _refused(
            f"lacks a key, or has an unknown one, in {where}",
            code="dynamic-config-keys",
            expected=f"exactly {', '.join(known)}",
            got="; ".join(
                [f"no {key}" for key in missing]
                + [f"unknown {key!r}"[:80] for key in unknown]
            ),
        )


def _mapping(given: object, where: str) -> dict[str, object]:
    if not isinstance(given, dict):
        raise _refused(
            f"has something else where an object should be: {where}",
            code="dynamic-config-malformed",
            expected="a JSON object",
            got=type(given).__name__,
        )
    return given


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def _number(value: str | int | None) -> int | None:
    return None if value is None else int(value)


def _refused(what: str, *, code: str, expected: str = "", got: str = "") -> ConfigError:
    return ConfigError(
        f"dynamic_config.json {what}",
        code=code,
        expected=expected,
        got=got,
        remedy="docs/how-to/policy.md shows both forms; a policy in TOML can say more",
    )
