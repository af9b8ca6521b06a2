from __future__ import annotations

import contextlib
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.run_audit import participant

from cloister.errors import StorageError
from cloister.federation.audit_records import (
    AnyEntry,
    CollateralUsed,
    ModelSealed,
    NodeRefused,
    RefusalsCounted,
    RoundCompleted,
    RunFailed,
    RunOpened,
    encode_entry,
    parse_entry,
)

HEX = 64 * "a"
ENTRIES: list[AnyEntry] = [
    RunOpened(
        run_id="blobs/a", plan_hash=bytes(32), plan=b"[plan]", consents=(b"{}", b"{}")
    ),
    CollateralUsed(sha256=HEX, text='{"tcb_info": "\u00e9"}'),
    NodeRefused(
        role="worker",
        party="alice",
        where="training",
        code="update-round",
        reason="not this one",
        testimony=None,
    ),
    RefusalsCounted(party="alice", count=3),
    RoundCompleted(round=1, head=HEX, participants=(participant("alice"),), state=None),
    ModelSealed(
        sha256=HEX,
        size_bytes=3,
        recipients=("age1",),
        rounds=1,
        state=HEX,
        head=HEX,
        reports=(participant("alice"),),
    ),
    RunFailed(code="worker-missing", reason="gave up"),
]


def refusal(raw: bytes) -> StorageError:
    with pytest.raises(StorageError) as caught:
        parse_entry(raw)
    assert caught.value.code == "audit-malformed"
    return caught.value


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_record_reads_as_written(entry: AnyEntry) -> None:
    raw = encode_entry(entry)
    assert parse_entry(raw) == entry
    assert json.loads(raw)["kind"]


def test_every_kind_has_a_name_of_its_own() -> None:
    kinds = typing.get_args(AnyEntry)
    assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds) == 11


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_prefix_every_tail_and_every_other_member_is_refused(
    entry: AnyEntry,
) -> None:
    raw = encode_entry(entry)
    for length in range(len(raw)):
        refusal(raw[:length])
    refusal(raw + b" ")
    refusal(b" " + raw)
    refusal(raw[:-1] + b',"more":1}')
    refusal(raw.replace(b'"kind":', b'"kind" :', 1))


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b"[]",
        b'{"kind":"round-completed"}',
        b'{"kind":"refusals-counted","party":"alice","count":0}',
        b'{"kind":"refusals-counted","count":1,"party":"alice"}',
        b'{"kind":"refusals-counted","party":"alice","count":1,"count":1}',
        b'{"kind":"refusals-counted","party":"al\\u0069ce","count":1}',
        b'{"kind":"refusals-counted","party":"../alice","count":1}',
        b'{"kind":"run-failed","code":"x","reason":"\\ud800"}',
        b'{"kind":"run-failed","code":"x","reason":"\xff"}',
        10_000 * b'{"kind":',
    ],
)
def test_what_no_server_writes_is_refused(raw: bytes) -> None:
    refusal(raw)


def test_bytes_have_one_spelling() -> None:
    raw = encode_entry(ENTRIES[0])
    spare = raw.replace(b'"consents":["e30=', b'"consents":["e31=')
    assert spare != raw
    refusal(spare)


@given(st.sampled_from(ENTRIES), st.integers(0, 5000), st.binary(max_size=5))
def test_damaged_records_raise_only_our_error(
    entry: AnyEntry, at: int, patch: bytes
) -> None:
    raw = encode_entry(entry)
    at %= len(raw)
    with contextlib.suppress(StorageError):
        parse_entry(raw[:at] + patch + raw[at + len(patch) :])
