from __future__ import annotations

from pathlib import Path

import pytest

from cloister.attestation.reports import Tee
from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.recipes import DIGITS
from cloister.errors import ConfigError

Named = tuple[tuple[str, Tee], ...]
WORKERS: Named = (("alice", "sgx"), ("bob", "tdx"))


def order(directory: Path, *, workers: Named, recipients: Named) -> DeploymentOrder:
    return DeploymentOrder(
        directory=directory,
        recipe=DIGITS,
        run="a",
        workers=workers,
        server_tee="sgx",
        data=None,
        recipients=recipients,
    )


def test_the_shares_are_the_servers_and_the_first_workers(tmp_path: Path) -> None:
    made = order(tmp_path, workers=WORKERS, recipients=(("rita", "tdx"),))
    assert made.shareholders == ("aggregator", "alice")
    assert [(it.name, it.role) for it in made.parties] == [
        ("aggregator", "server"),
        ("alice", "worker"),
        ("bob", "worker"),
        ("rita", "recipient"),
    ]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("alice", "name-repeats"),
        ("aggregator", "name-repeats"),
        ("Rita", "name-invalid"),
    ],
)
def test_a_recipient_has_a_name_of_its_own(
    tmp_path: Path, name: str, code: str
) -> None:
    directory = tmp_path / "new"
    wanted = order(directory, workers=WORKERS, recipients=((name, "sgx"),))
    with pytest.raises(ConfigError) as caught:
        write_deployment(wanted, at=utc_now(), tell=lambda _: None)
    assert caught.value.code == code
    assert not directory.exists()
