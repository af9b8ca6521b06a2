from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from cloister.attestation.platforms.simulated.collateral import SimulatedCollateral
from cloister.attestation.qe_identity import QeIdentity, parse_qe_identity
from cloister.attestation.reports import Tee
from cloister.errors import VerificationError

Document = dict[str, Any]


def document(at: datetime, tee: Tee = "sgx") -> Document:
    return copy.deepcopy(SimulatedCollateral(tee=tee, at=at).qe_identity())


def parsed(made: Document) -> QeIdentity:
    return parse_qe_identity(json.dumps(made).encode())


def test_a_qe_identity_gives_its_fields(at: datetime) -> None:
    identity = parsed(document(at))
    assert identity.id == "QE"
    assert identity.issue_date == at
    assert identity.evaluation_number == 1
    assert identity.attributes_mask.hex() == "fbffffffffffffff" + "00" * 8
    assert identity.isv_prod_id == 1
    assert [level.isv_svn for level in identity.levels] == [8]
    assert parsed(document(at, "tdx")).id == "TD_QE"


def test_every_field_is_needed(at: datetime) -> None:
    for name in document(at):
        made = document(at)
        del made[name]
        with pytest.raises(VerificationError):
            parsed(made)


WRONG: dict[str, Callable[[Document], object]] = {
    "version 1": lambda it: it.update(version=1),
    "version 3": lambda it: it.update(version=3),
    "the verifying enclave's": lambda it: it.update(id="QVE"),
    "a mask of three bytes": lambda it: it.update(miscselectMask="FFFFFF"),
    "attributes of 15 bytes": lambda it: it.update(attributes="00" * 15),
    "a signer of 33 bytes": lambda it: it.update(mrsigner="00" * 33),
    "a product of 65536": lambda it: it.update(isvprodid=65_536),
    "no levels": lambda it: it.update(tcbLevels=[]),
    "an SVN of 65536": lambda it: it["tcbLevels"][0]["tcb"].update(isvsvn=65_536),
    "an unknown status": lambda it: it["tcbLevels"][0].update(tcbStatus="Fine"),
    "a platform's status": lambda it: it["tcbLevels"][0].update(
        tcbStatus="SWHardeningNeeded"
    ),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_field_of_a_wrong_form_is_refused(
    at: datetime, change: Callable[[Document], object]
) -> None:
    made = document(at)
    change(made)
    with pytest.raises(VerificationError) as refusal:
        parsed(made)
    assert (refusal.value.code, refusal.value.step) == ("collateral-malformed", 4)


def test_levels_stay_in_the_documents_order(at: datetime) -> None:
    made = document(at)
    (only,) = made["tcbLevels"]
    made["tcbLevels"] = [{**only, "tcb": {"isvsvn": svn}} for svn in (3, 9, 1)]
    assert [level.isv_svn for level in parsed(made).levels] == [3, 9, 1]
