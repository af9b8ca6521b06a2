"""A host gives a worker a data set that is well sealed, but not the one agreed on.

All of it is found out before a key is asked for, but for the key itself. Each story
ends with nothing opened, and nothing left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.sealed_sets import Owner, sealed_set
from tests.support.sealed_story import (
    HELD_OUT,
    SCHEMA,
    TRAIN,
    Lying,
    SealedStory,
    notes,
)

from cloister.errors import StorageError
from cloister.storage.data_manifest import Manifest, payload_of
from cloister.storage.dsse import Envelope, encode_envelope, pae, parse_envelope
from cloister.storage.keys import Secret, new_key
from cloister.storage.manifest_signature import PAYLOAD_TYPE, sign_manifest
from cloister.storage.records import Schema
from cloister.storage.sealed_data import UnopenedData, read_sealed_data


@pytest.fixture
def story(tmp_path: Path) -> SealedStory:
    return SealedStory(tmp_path)


def put_in_its_place(story: SealedStory, other: Path) -> None:
    other.replace(story.path)


def test_another_partys_set_is_refused(story: SealedStory) -> None:
    bob = story.seal("bob.sealed", notes(seed=2), owner=Owner(), key=new_key())
    put_in_its_place(story, bob.path)
    error = story.refuses()
    assert (error.code, error.got) == ("data-differs", bob.made.digest)
    story.assert_nothing_left()


def test_an_older_set_of_the_same_party_is_refused(story: SealedStory) -> None:
    # Sealed last month under the same data key, with records since taken back.
    old = story.seal("old.sealed", notes(seed=2))
    put_in_its_place(story, old.path)
    error = story.refuses()
    assert error.code == "data-differs"
    assert error.expected == story.pin.digest
    story.assert_nothing_left()


def test_the_same_records_sealed_again_are_another_set(story: SealedStory) -> None:
    again = story.seal("again.sealed", notes(seed=1))
    put_in_its_place(story, again.path)
    assert story.refuses().code == "data-differs"
    story.assert_nothing_left()


def test_a_set_that_the_host_sealed_itself_is_refused(story: SealedStory) -> None:
    own = story.seal("own.sealed", notes(seed=3), owner=Owner(), key=new_key())
    put_in_its_place(story, own.path)
    assert story.refuses().code == "data-differs"
    story.assert_nothing_left()


@pytest.mark.parametrize("named", ["in the envelope", "in the manifest", "in both"])
def test_a_set_signed_by_the_host_under_the_owners_name_is_refused(
    story: SealedStory, named: str
) -> None:
    host = Owner()
    manifest = story.manifest
    if named == "in the envelope":
        manifest = replace(manifest, owner=host.owner)
    payload = payload_of(manifest)
    line = encode_envelope(
        Envelope(
            payload=payload,
            payload_type=PAYLOAD_TYPE,
            keyid=host.owner if named == "in the manifest" else story.owner.owner,
            signature=host.sign(pae(payload, payload_type=PAYLOAD_TYPE)),
        )
    )
    replace(Lying.at(story.path), line=line).put(story.path)
    assert story.refuses().code == "data-signature"
    story.assert_nothing_left()


LABEL, NOTE = SCHEMA.fields

Change = Callable[[Manifest], Manifest]


@pytest.mark.parametrize(
    "change",
    [
        # The records that were to judge become records to train on, and so on.
        lambda m: replace(m, train=TRAIN + HELD_OUT, held_out=0),
        lambda m: replace(m, train=TRAIN - 1, held_out=HELD_OUT + 1),
        lambda m: replace(m, dataset_id=bytes(32)),
        # The label is looked for in another place.
        lambda m: replace(m, schema=Schema(fields=(NOTE, LABEL))),
        lambda m: replace(m, schema=Schema(fields=(replace(LABEL, below=2), NOTE))),
    ],
)
def test_a_manifest_that_says_more_or_less_needs_the_owners_signature(
    story: SealedStory, change: Change
) -> None:
    lying = Lying.at(story.path)
    genuine = parse_envelope(lying.line)
    payload = payload_of(change(story.manifest))
    replace(lying, line=encode_envelope(replace(genuine, payload=payload))).put(
        story.path
    )
    assert story.refuses().code == "data-signature"
    story.assert_nothing_left()


def test_even_the_owner_gives_old_records_no_new_split(story: SealedStory) -> None:
    # With the owner's help the plan pins the other manifest; the records say no.
    manifest = replace(story.manifest, train=TRAIN - 1, held_out=HELD_OUT + 1)
    line = sign_manifest(manifest, signer=story.owner)
    replace(Lying.at(story.path), line=line).put(story.path)
    digest = read_sealed_data(story.path).signed.digest
    worker = story.starts(pin=replace(story.pin, digest=digest))
    worker.reads("train", *range(TRAIN - 1))
    assert worker.refuses("held-out", *range(HELD_OUT)) == "data-damaged"
    story.assert_nothing_left()


def test_the_manifest_of_one_set_before_the_records_of_another(
    story: SealedStory,
) -> None:
    other = story.seal("other.sealed", notes(seed=2))
    records = Lying.at(other.path).records
    replace(Lying.at(story.path), records=records).put(story.path)
    worker = story.starts()
    assert worker.refuses("train", *range(TRAIN)) == "data-damaged"
    assert worker.refuses("held-out", *range(HELD_OUT)) == "data-damaged"
    story.assert_nothing_remembered()
    story.assert_nothing_left("other.sealed")


def test_two_parties_with_one_data_key_cannot_be_mistaken(story: SealedStory) -> None:
    # Bob made alice's key his own: he knows it, and seals under it.
    bob = story.seal("bob.sealed", notes(seed=2), owner=Owner())
    put_in_its_place(story, bob.path)
    error = story.refuses()
    assert error.code == "data-differs"
    # Where no digest is pinned, as for predictions, the owner's name still is.
    unopened = read_sealed_data(story.path)
    with pytest.raises(StorageError) as caught:
        unopened.check_owner(owner=story.pin.owner, key=story.pin.key)
    assert caught.value.code == "data-foreign"
    story.assert_nothing_left()


def test_a_set_under_an_older_data_key_is_refused(story: SealedStory) -> None:
    # The older key leaked, and the party made another; the plan names that.
    old = story.seal("old.sealed", notes(seed=2), key=new_key())
    put_in_its_place(story, old.path)
    unopened = read_sealed_data(story.path)
    with pytest.raises(StorageError) as caught:
        unopened.check_owner(owner=story.pin.owner, key=story.pin.key)
    assert caught.value.code == "data-key-differs"
    story.assert_nothing_left()


@pytest.mark.parametrize("key", [Secret(bytes(32)), Secret(b""), new_key()])
def test_a_key_that_is_not_the_sets_opens_nothing(
    story: SealedStory, key: Secret
) -> None:
    error = story.refuses(key=key)
    assert error.code == "data-key-differs"
    assert "does not open with this key" in str(error)
    story.assert_nothing_left()


def test_a_set_sealed_again_under_its_own_id_needs_the_owners_signature(
    story: SealedStory, tmp_path: Path
) -> None:
    # Who broke into a worker knows the data key; the records are still not his to make.
    intruder = Owner()
    made = sealed_set(
        tmp_path / "forged.sealed",
        stream=notes(seed=4),
        key=story.key,
        owner=intruder,
    )
    payload = payload_of(replace(made.made.manifest, owner=story.owner.owner))
    line = encode_envelope(
        Envelope(
            payload=payload,
            payload_type=PAYLOAD_TYPE,
            keyid=story.owner.owner,
            signature=intruder.sign(pae(payload, payload_type=PAYLOAD_TYPE)),
        )
    )
    replace(Lying.at(made.path), line=line).put(story.path)
    # Where a plan pins nothing, the owner's name and key are all that is compared.
    with pytest.raises(StorageError) as caught:
        read_sealed_data(story.path).check_owner(
            owner=story.owner.owner, key=story.manifest.key
        )
    assert caught.value.code == "data-signature"
    made.path.unlink()
    story.assert_nothing_left()


def test_the_type_of_what_was_not_compared_gives_no_record(story: SealedStory) -> None:
    unopened = read_sealed_data(story.path)
    assert isinstance(unopened, UnopenedData)
    assert not hasattr(unopened, "split")
    story.assert_nothing_left()
