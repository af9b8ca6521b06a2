from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.plan.digest import Digest, digest_bytes, format_digest


@given(st.binary())
def test_a_digest_reads_as_written(content: bytes) -> None:
    sha256 = hashlib.sha256(content).digest()
    written = msgspec.convert(format_digest(sha256), Digest)
    assert digest_bytes(written) == sha256


@pytest.mark.parametrize("short", [b"", bytes(31), bytes(33)])
def test_only_32_bytes_are_a_digest(short: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(format_digest(short), Digest)
