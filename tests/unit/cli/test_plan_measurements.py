"""A plan's measurements are replaced where they stand, and nothing else is."""

from __future__ import annotations

import pytest
from tests.support.plan_tree import plan_tree, put, toml_of

from cloister.attestation.platforms.measurement import Measurement
from cloister.cli.deployment_files import policy_text
from cloister.cli.plan_measurements import check_asks_for, with_measurements
from cloister.errors import ConfigError
from cloister.plan.plan import Plan, Role, parse_plan

NAMES = ("mr_enclave", "mrtd", "rtmr0", "rtmr1", "rtmr2")
ROOT = f"simulated:sha256:{64 * 'e'}"
HEAD = '[plan]\nname = "x"   # stays\n\n'
TAIL = '\n[model]\nrecipients = ["age1..."]\n'


def measurement(byte: int) -> Measurement:
    return Measurement(
        role="server",
        mr_enclave=bytes([byte]) * 32,
        mr_signer=bytes(32),
        isv_prod_id=0,
        isv_svn=0,
        mrtd=bytes([byte + 1]) * 48,
        rtmr0=bytes([byte + 2]) * 48,
        rtmr1=bytes([byte + 3]) * 48,
        rtmr2=bytes([byte + 4]) * 48,
    )


def plan_of(server: Measurement, worker: Measurement) -> str:
    sections = [
        policy_text("server", server, root=ROOT),
        policy_text("worker", worker, root=ROOT),
    ]
    return HEAD + "\n".join(sections) + TAIL


def test_each_roles_measurements_take_the_place_of_the_old_ones() -> None:
    # One old value under both roles becomes two.
    old = plan_of(measurement(1), measurement(1))
    new: dict[Role, Measurement] = {
        "server": measurement(20),
        "worker": measurement(40),
        "recipient": measurement(60),
    }
    assert with_measurements(old, new) == plan_of(measurement(20), measurement(40))


def test_a_policy_of_one_kind_of_platform_is_enough() -> None:
    old = f'[policy.server]\nsgx = [{{ mr_enclave = "{64 * "a"}" }}]\n'
    new = with_measurements(old, {"server": measurement(7)})
    assert new == old.replace(64 * "a", 32 * "07")


@pytest.mark.parametrize(
    ("section", "got"),
    [
        ('root = "hardware"\n', "none"),
        (
            f'sgx = [{{ mr_enclave = "{64 * "a"}" }}, {{ mr_enclave = "{64 * "b"}" }}]',
            "mr_enclave 2 times",
        ),
    ],
)
def test_what_is_not_one_build_is_left_to_people(section: str, got: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_measurements(f"[policy.worker]\n{section}", {"worker": measurement(7)})
    assert (caught.value.code, caught.value.got) == ("policy-ambiguous", got)


def asking_for(worker: Measurement) -> Plan:
    tree = plan_tree()
    values = {name: getattr(worker, name).hex() for name in NAMES}
    reference = {"mr_enclave": values.pop("mr_enclave")}
    put(tree, ("policy", "worker", "sgx"), [reference])
    return parse_plan(toml_of(put(tree, ("policy", "worker", "tdx"), [values])))


def test_a_plan_that_was_not_rewritten_is_told_of() -> None:
    # TOML has spellings of a section that the text search does not know.
    check_asks_for(asking_for(measurement(20)), {"worker": measurement(20)})
    with pytest.raises(ConfigError) as caught:
        check_asks_for(asking_for(measurement(1)), {"worker": measurement(20)})
    assert caught.value.code == "policy-ambiguous"
    assert "mr_enclave, mrtd" in caught.value.got
