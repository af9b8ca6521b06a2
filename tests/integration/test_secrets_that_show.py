"""A whole run with real processes; every secret of it is looked for wherever it may be.

Secrets that can be chosen are planted through the commands that people type. Those that
a node makes for itself are told by its task, which is code in the node.
"""

from __future__ import annotations

import os
import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

import pytest
from tests.integration.canary_task import CANARY
from tests.integration.conftest import Running
from tests.integration.planted_deployment import PARTIES, make, plant_keyring
from tests.integration.secret_story import Story
from tests.support.made_files import MadeFiles, made_files

from cloister.plan.plan import read_plan

# A whole run, whose every file and process is looked through.
pytestmark = pytest.mark.long

# Where each secret lies in the clear: there, and nowhere else.
HOMES = {
    "owner/identity.txt": {"owner"},
    "custodians/rita/passphrase": {"passphrase"},
    **{f"custodians/{it}/party-key.pem": {f"party key of {it}"} for it in PARTIES},
    **{
        f"custodians/{it}/keyring-identity.txt": {f"keyring identity of {it}"}
        for it in PARTIES
    },
}
LOUD = {"listening", "warranted", "keys-received", "round", "model-opened"}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A deployment with planted keys."""
    story = Story(tmp_path_factory.mktemp("secrets"))
    story.canaries.plant("model", struct.pack("<dd", CANARY, CANARY))
    story.canaries.plant("model", repr(CANARY).encode())
    make(story)
    yield story
    story.close()


@pytest.fixture(scope="module")
def made(story: Story) -> Iterator[MadeFiles]:
    """The run, its recipient and every command after it; and what files they made."""
    here = story.deployment
    (here.run_directory / "logs").mkdir(parents=True)
    watched = (
        here.directory,
        here.run_directory,
        here.run_directory / "logs",
        *(here.custodian(party) for party in PARTIES),
        story.tmp,
        Path(gettempdir()),
        Path("/tmp"),  # noqa: S108 - where nodes would put theirs
    )
    with made_files(*dict.fromkeys(watched)) as made:
        train(story)
        receive(story)
        look_back(story)
        go_wrong(story)
    yield made
    made.close()


def train(story: Story) -> None:
    run = story.start("run", str(story.deployment.plan), "--json")
    story.follow(run, LOUD)


def receive(story: Story) -> None:
    """Rita opens the model; then her custodian dies, keys and passphrase in memory."""
    directory = str(story.deployment.custodian("rita"))
    custodian = story.start("custodian", "serve", directory, "--json")
    custodian.wait_for("custodian-listening")
    plan = ("--party", "rita", "--plan", str(story.deployment.plan))
    story.follow(story.start("recipient", *plan, "--json"), LOUD)
    story.look_at(custodian)
    die(story, custodian)


def die(story: Story, running: Running) -> None:
    """Has a process of ours abort, where core files are asked for."""
    limits = Path(f"/proc/{running.process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    os.kill(running.process.pid, signal.SIGABRT)
    code, errors = running.finish()
    assert code == -signal.SIGABRT
    story.said.append(errors)


def look_back(story: Story) -> None:
    """What commands show of all that was done."""
    here = story.deployment
    alice, runs = str(here.custodian("alice")), str(here.run_directory)
    for party in ("alice", "rita"):
        audit = str(here.directory / f"{party}.audit.jsonl")
        story.do("custodian", "audit", str(here.custodian(party)), "-o", audit)
    story.do("custodian", "status", alice)
    story.do("custodian", "head", alice, "canary/test")
    data = read_plan(here.plan).find_party("alice").data_key
    assert data
    story.do("custodian", "keys", "revoke", alice, data, "--yes")
    plant_keyring(story, "alice")
    story.do("audit", "show", runs)


def go_wrong(story: Story) -> None:
    """What people do wrong around a secret."""
    here, identity = story.deployment, str(story.outside / "identity")
    alice = here.custodian("alice")
    add = ("custodian", "keys", "add", str(alice))
    story.do(*add, "data", "--from", identity, code=2)
    file = alice / "custodian.toml"
    right = file.read_text()
    here.edit(file, '"keyring-identity', '"../aggregator/keyring-identity')
    story.do("custodian", "serve", str(alice), "--json", code=2)
    file.write_text(right)
    sealed = here.sealed_model.read_bytes()
    here.sealed_model.write_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    opened = ("-o", str(story.outside / "model"), "--json")
    runs = str(here.run_directory)
    story.do("model", "open", runs, "--identity", identity, *opened, code=4)
    here.sealed_model.write_bytes(sealed)


@pytest.fixture(scope="module", autouse=True)
def told(story: Story, made: MadeFiles) -> dict[str, list[str]]:
    """What nodes wrote, by command; their own keys are looked for from now on."""
    assert made.seen
    return {it: story.plant_told(it) for it in ("server", "worker", "recipient")}


def test_everything_is_looked_for(story: Story) -> None:
    wanted = {
        "admission CA of a server",
        "data key",
        "keyring 1 of alice",
        "keyring 1 of rita",
        "keyring 2 of alice",
        "model",
        "share of aggregator",
        "share of alice",
        "state key of alice",
        "vault key",
        *(f"TLS key of a {it}" for it in ("server", "worker", "recipient")),
        *(f"X25519 key of a {it}" for it in ("server", "worker", "recipient")),
    }
    assert wanted | set().union(*HOMES.values()) <= story.canaries.names()


def test_on_the_disk_each_secret_lies_where_it_belongs_and_nowhere_else(
    story: Story,
) -> None:
    assert story.canaries.found_below(story.deployment.directory) == HOMES


def test_no_process_says_a_secret(story: Story) -> None:
    said = "\n".join(story.said)
    assert said.count("keys-received") >= 2
    assert "this does not open the keyring" in said
    assert story.canaries.found_in(said) == set()


def test_no_process_shows_a_secret_to_others(story: Story) -> None:
    seen = b"\n".join(story.processes.values())
    for command in (b"server", b"worker", b"recipient", b"custodian\0serve"):
        assert b"cloister\0" + command in seen
    assert len(story.processes) >= 8
    assert story.canaries.found_in(seen) == set()


def test_what_was_written_and_removed_had_no_secret(
    story: Story, made: MadeFiles
) -> None:
    """Journals, drafts and temporary files; and nothing was put where TMPDIR says."""
    assert any(
        it.name.endswith("-journal") or it.name.endswith("-wal") for it in made.seen
    )
    assert any(it.suffix == ".part" for it in made.seen)
    assert [it for it in made.seen if it.parent == story.tmp] == []
    content = {
        it: story.canaries.found_in(held) for it, held in made.contents().items()
    }
    assert {it: found for it, found in content.items() if found} == {}


def test_a_nodes_code_writes_to_its_run_alone(
    story: Story, told: dict[str, list[str]]
) -> None:
    homes = (str(story.deployment.run_directory), str(story.outside / "told"))
    for written in told.values():
        assert [it for it in written if not it.startswith((*homes, "/dev/null"))] == []
