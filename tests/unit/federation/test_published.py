from __future__ import annotations

import numpy as np
import pytest
from tests.support.rounds_story import WIDE
from tests.support.training_calls import model_in

from cloister.errors import ProtocolError
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import ModelHeader
from cloister.federation.published import _KEPT_CHUNKS, Published, superseded
from cloister.federation.wire_format import wire_format

WIRE = wire_format("float32", WIDE, workers=2)
HEADER = ModelHeader(
    round=2, layout=WIDE.digest(), evaluate=False, final=False, audit_head=bytes(32)
)


def model() -> ModelBuffer:
    made = ModelBuffer(WIDE)
    made.parameters[:] = np.arange(WIDE.parameter_count)
    return made


def test_its_messages_are_the_header_and_the_model() -> None:
    sent = model()
    published = Published(HEADER, sent, WIRE)
    messages = [published.message(n) for n in range(published.message_count)]
    assert len(messages) == WIRE.chunk_count
    assert model_in(messages) == (HEADER, sent.data.tobytes())


def test_who_is_at_the_same_place_gets_the_same_chunk_and_few_are_kept() -> None:
    published = Published(HEADER, model(), WIRE)
    first = published.message(0)
    assert published.message(0) is first
    for number in range(WIRE.chunk_count):
        published.message(number)
    assert len(published._kept) <= _KEPT_CHUNKS


def test_the_newest_chunks_are_kept_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloister.federation.published._KEPT_CHUNKS", 2)
    published = Published(HEADER, model(), WIRE)
    for number in (0, 1, 2, 1, 0):
        published.message(number)
    assert list(published._kept) == [2, 0]


def test_whoever_receives_a_model_that_is_gone_gets_nothing_more() -> None:
    changing = model()
    published = Published(HEADER, changing, WIRE)
    published.message(0)
    published.end(superseded(2))
    changing.parameters[:] = 0
    for number in range(3):
        with pytest.raises(ProtocolError) as caught:
            published.message(number)
        assert caught.value.code == "model-superseded"
    assert published._kept == {}
