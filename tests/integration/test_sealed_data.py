"""A run on sealed records: they stay sealed, and one that was changed ends it."""

from __future__ import annotations

from pathlib import Path
from tempfile import gettempdir

import numpy as np
import pytest
from tests.integration.canary_task import CLASSES, IMAGE, Canary
from tests.integration.conftest import (
    PARTIES,
    Deployment,
    Start,
    StartCustodians,
    cloister,
)
from tests.support.canaries import Canaries
from tests.support.made_files import made_files
from tests.support.sealed_sets import ColumnStream

from cloister.cli.custodians import open_keys
from cloister.cli.host_time import utc_now
from cloister.cli.places import read_custodian_place
from cloister.plan.plan import Party, read_plan
from cloister.storage.data_sealing import SealedData
from cloister.storage.record_cipher import TAG_BYTES
from cloister.storage.records import Batch
from cloister.storage.sealed_file import MAGIC

TRAIN, HELD_OUT = 48, 16
WORKER = "alice"


def noise(count: int, *, seed: int) -> Batch:
    """Returns records that can be told from everything else, and not be learned."""
    generator = np.random.default_rng(seed)
    return {
        "label": generator.integers(0, CLASSES, count).astype(np.uint8),
        "image": generator.integers(0, 256, (count, *IMAGE)).astype(np.uint8),
    }


def records() -> ColumnStream:
    return ColumnStream(
        splits={"train": noise(TRAIN, seed=1), "held-out": noise(HELD_OUT, seed=2)},
        schema=Canary().schema(),
    )


def planned(deployment: Deployment) -> Party:
    return read_plan(deployment.plan).find_party(WORKER)


def seal(deployment: Deployment, *, key: str | None = None) -> SealedData:
    """Seals other records for alice, pins them, and has everybody sign."""
    before = planned(deployment)
    sealed = deployment.seal(WORKER, records(), key=key)
    assert before.data
    deployment.edit(deployment.plan, before.data, sealed.digest)
    deployment.sign()
    return sealed


def planted() -> Canaries:
    """Looks for some of the records, of either split."""
    canaries = Canaries()
    for split, columns in records().splits.items():
        for index in range(0, len(columns["image"]), 5):
            canaries.plant(f"{split} {index}", columns["image"][index].tobytes())
    return canaries


def test_a_run_trains_on_records_that_lie_nowhere_in_the_clear(
    deployment: Deployment,
) -> None:
    sealed, canaries = seal(deployment), planted()
    logs = deployment.run_directory / "logs"
    logs.mkdir(parents=True)
    here = (deployment.directory, deployment.data(WORKER).parent, Path(gettempdir()))
    with made_files(*here, deployment.run_directory, logs) as made:
        done = cloister("run", str(deployment.plan), "--json")
    try:
        assert done.returncode == 0, done.stderr
        assert canaries.found_in(done.stdout + done.stderr) == set()
        assert deployment.sealed_model in made.seen
        written = {it: canaries.found_in(held) for it, held in made.contents().items()}
    finally:
        made.close()
    assert {it: found for it, found in written.items() if found} == {}
    assert canaries.found_below(deployment.directory) == {}
    # All of them were used, and the key came from the owner's custodian alone.
    (received,) = deployment.events(WORKER, "keys-received")
    assert received["kinds"] == ["data", "state-share"]
    for party in PARTIES:
        released = [
            (event["node_party"], event["key_ids"])
            for event in deployment.custodian_log(party)
            if event["event"] == "keys-released"
        ]
        names = [
            name for _, keys in released if isinstance(keys, list) for name in keys
        ]
        assert (sealed.manifest.key in names) == (party == WORKER)


@pytest.mark.long
def test_a_record_that_was_altered_stops_its_worker_and_the_server_misses_it(
    deployment: Deployment, start: Start, start_custodians: StartCustodians
) -> None:
    """The worker names the record. To the server nobody says why: whose records are
    damaged, and how, is the party's own affair.
    """
    alter(deployment, train=11)
    site = deployment.site("aggregator")
    lines = site.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("patience_seconds")]
    site.write_text("\n".join(["patience_seconds = 3.0", *kept]))
    start_custodians(deployment)
    nodes = [
        start("server", "--plan", str(deployment.plan), "--json"),
        *(
            start("worker", "--party", it, "--plan", str(deployment.plan), "--json")
            for it in ("alice", "bob")
        ),
    ]
    failed = nodes[1].wait_for("failed")
    assert failed["code"] == "data-damaged"
    assert "data.sealed: train record 11 was altered" in str(failed)
    missed = nodes[0].wait_for("failed")
    assert missed["code"] == "worker-missing"
    assert "alice" in str(missed)
    assert "record" not in str(missed)
    # And what is left: no model, and no record in the clear.
    assert not deployment.sealed_model.exists()
    assert deployment.leftovers() == []
    assert planted().found_below(deployment.directory) == {}


def alter(deployment: Deployment, *, train: int) -> None:
    """Flips one bit of one sealed record, as the host can."""
    each = seal(deployment).manifest.schema.record_bytes + TAG_BYTES
    path = deployment.data(WORKER)
    content = bytearray(path.read_bytes())
    content[len(MAGIC) + train * each] ^= 1
    path.write_bytes(content)


def test_a_data_set_under_another_key_stops_its_worker_before_it_asks_for_one(
    deployment: Deployment,
) -> None:
    """The plan's data, its owner, and a key of hers: but not the key that it names."""
    place = read_custodian_place(deployment.custodian(WORKER))
    with deployment.register(WORKER) as register:
        other = open_keys(place, register).add("data", label="other", at=utc_now())
    seal(deployment, key=other)
    # No custodian runs; it is refused without one.
    done = cloister("worker", "--party", WORKER, "--plan", str(deployment.plan))
    assert done.returncode == 4, done.stderr
    assert "is sealed under another data key" in done.stderr
    assert other in done.stderr
