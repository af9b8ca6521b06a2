"""Reference values: which enclaves and trust domains a policy means.

A reference is a conjunction: everything it names must hold. A policy holds lists of
references, and one of them must match. Nothing is decided here; `policy` does that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import msgspec

from cloister.attestation.claims import SgxMeasurements, TdxMeasurements
from cloister.errors import ConfigError

SGX_MEASUREMENT_HEX = 64
TDX_MEASUREMENT_HEX = 96
# ISVPRODID and ISVSVN have 16 bits.
MAX_ISV_NUMBER = 0xFFFF

Relation = Literal["is", "is at least"]
Measurements = SgxMeasurements | TdxMeasurements


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One measured value that a reference names.

    Attributes:
        name: The value's name in the claims' measurements.
        relation: How the measured value must stand to `value`.
        value: What is wanted: lower-case hex, or a number.
    """

    name: str
    relation: Relation
    value: str | int

    def holds(self, measurements: Measurements) -> bool:
        """Whether the measured value stands so."""
        measured = getattr(measurements, self.name)
        if self.relation == "is at least":
            return bool(measured >= self.value)
        return bool(measured == self.value)


class SgxReference(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Enclaves that are accepted: one by its measurement, or a product by its signer.

    Attributes:
        mr_enclave: 64 lower-case hex digits; then nothing else.
        mr_signer: 64 lower-case hex digits; then both numbers as well, for a signer
            has more than one product, and an old version of one is not wanted.
        isv_prod_id: The signer's number of the product.
        min_isv_svn: The lowest security version that is accepted.

    Raises:
        ConfigError: If it is neither form, or both, or a value is not whole.
    """

    mr_enclave: str | None = None
    mr_signer: str | None = None
    isv_prod_id: int | None = None
    min_isv_svn: int | None = None

    def __post_init__(self) -> None:
        """Refuses everything but the two forms."""
        by_signer = (self.mr_signer, self.isv_prod_id, self.min_isv_svn)
        named = [value is not None for value in by_signer]
        if any(named) if self.mr_enclave is not None else not all(named):
            raise ConfigError(
                "an sgx entry does not name an enclave",
                code="policy-reference",
                expected="mr_enclave alone, or mr_signer, isv_prod_id and min_isv_svn",
                got=_names_given(self) or "nothing",
                remedy="write one entry for each enclave; one matching entry is enough",
            )
        _check_sgx_values(self)

    def pins(self) -> tuple[Pin, ...]:
        """Returns what must hold, all of it."""
        return (
            *_equal_pins(self, "mr_enclave", "mr_signer", "isv_prod_id"),
            *(
                ()
                if self.min_isv_svn is None
                else (
                    Pin(name="isv_svn", relation="is at least", value=self.min_isv_svn),
                )
            ),
        )


class SgxExactReference(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Enclaves as the reference's ``dynamic_config.json`` names them.

    Whatever is named must be equal, the security version too. A signer without a
    product means all its products; it is the meaning of that file, and `explain` says
    so. `SgxReference` is what a new policy should use.

    Attributes:
        mr_enclave: 64 lower-case hex digits.
        mr_signer: 64 lower-case hex digits.
        isv_prod_id: The signer's number of the product.
        isv_svn: The only security version that is accepted.

    Raises:
        ConfigError: If neither enclave nor signer is named, or a value is not whole.
    """

    mr_enclave: str | None = None
    mr_signer: str | None = None
    isv_prod_id: int | None = None
    isv_svn: int | None = None

    def __post_init__(self) -> None:
        """Refuses an entry that names nobody's code."""
        if self.mr_enclave is None and self.mr_signer is None:
            raise ConfigError(
                "an sgx_exact entry does not name an enclave or its signer",
                code="policy-reference",
                expected="mr_enclave or mr_signer; numbers alone fit anybody's enclave",
                got=_names_given(self) or "nothing",
            )
        _check_sgx_values(self)

    def pins(self) -> tuple[Pin, ...]:
        """Returns what must hold, all of it."""
        return _equal_pins(self, *self.__struct_fields__)


class TdxReference(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """One trust domain that is accepted; everything named must be equal.

    The first four are required. The others are looked at only where they are named:
    RTMR3 is extended by the workload itself, and a list of TDX modules (MRSEAM) breaks
    with every update of one, which Intel's collateral judges already.

    Attributes:
        mrtd: 96 lower-case hex digits, like all others.
        rtmr0: Of the firmware's configuration.
        rtmr1: Of the kernel and what starts it.
        rtmr2: Of what the kernel was told to run.
        rtmr3: Of what the workload says of itself.
        mrconfigid: Of the configuration the host gave.
        mrowner: Of who owns the domain, as the host says.
        mrownerconfig: Of the owner's configuration, as the host says.
        mrseam: Of the TDX module.
        mrsignerseam: Of the TDX module's signer.

    Raises:
        ConfigError: If any is anything else.
    """

    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str
    rtmr3: str | None = None
    mrconfigid: str | None = None
    mrowner: str | None = None
    mrownerconfig: str | None = None
    mrseam: str | None = None
    mrsignerseam: str | None = None

    def __post_init__(self) -> None:
        """Refuses a measurement that is not whole."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None:
                require_hex(value, TDX_MEASUREMENT_HEX, name)

    def pins(self) -> tuple[Pin, ...]:
        """Returns what must hold, all of it."""
        return _equal_pins(self, *self.__struct_fields__)


Reference = SgxReference | SgxExactReference | TdxReference


def require_hex(text: str, digits: int, name: str) -> None:
    """Checks that `text` is exactly `digits` lower-case hex digits.

    Raises:
        ConfigError: If it is anything else.
    """
    if re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is None:
        raise ConfigError(
            f"{name} is not a whole measurement",
            code="policy-measurement",
            expected=f"{digits} lower-case hex digits",
            got=repr(text[: 2 * digits]),
        )


def _check_sgx_values(reference: SgxReference | SgxExactReference) -> None:
    for name in ("mr_enclave", "mr_signer"):
        value = getattr(reference, name)
        if value is not None:
            require_hex(value, SGX_MEASUREMENT_HEX, name)
    for name in ("isv_prod_id", "isv_svn", "min_isv_svn"):
        number = getattr(reference, name, None)
        if number is not None and not 0 <= number <= MAX_ISV_NUMBER:
            raise ConfigError(
                f"{name} is out of range",
                code="policy-measurement",
                expected=f"0 to {MAX_ISV_NUMBER}",
                got=str(number),
            )


def _equal_pins(reference: Reference, *names: str) -> tuple[Pin, ...]:
    return tuple(
        Pin(name=name, relation="is", value=value)
        for name in names
        if (value := getattr(reference, name)) is not None
    )


def _names_given(reference: Reference) -> str:
    return ", ".join(
        name
        for name in reference.__struct_fields__
        if getattr(reference, name) is not None
    )
