from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from tests.support.running import Run

from cloister.errors import (
    PeerInTrouble,
    ProtocolError,
    RefusedByPeer,
    VerificationError,
)
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    EvidenceProof,
    IdentityProof,
    Refusal,
    decode_from_client,
    encode_message,
)
from cloister.ratls.exchange import broken_off, next_request, not_met

EVIDENCE = EvidenceProof(quote=b"q")
IDENTITY = IdentityProof(signature=bytes(64))


async def said(*messages: bytes) -> AsyncIterator[bytes]:
    """Says so much, and ends the call."""
    for message in messages:
        yield message


def test_the_next_message_is_one_of_the_kinds_awaited(run: Run) -> None:
    async def story() -> None:
        requests = said(*map(encode_message, (EVIDENCE, IDENTITY, EVIDENCE)))
        first = await next_request(requests, decode_from_client, EvidenceProof)
        either = [
            await next_request(
                requests, decode_from_client, EvidenceProof, IdentityProof
            )
            for _ in range(2)
        ]
        assert [first, *either] == [EVIDENCE, IDENTITY, EVIDENCE]

    run(story())


def test_another_kind_is_out_of_order(run: Run) -> None:
    requests = said(encode_message(IDENTITY))
    with pytest.raises(ProtocolError) as caught:
        run(next_request(requests, decode_from_client, EvidenceProof))
    assert caught.value.code == "message-order"
    assert (caught.value.expected, caught.value.got) == (
        "EvidenceProof",
        "IdentityProof",
    )


def test_the_end_of_the_call_is_out_of_order_and_says_what_was_awaited(
    run: Run,
) -> None:
    with pytest.raises(ProtocolError) as caught:
        run(next_request(said(), decode_from_client, EvidenceProof, IdentityProof))
    assert caught.value.code == "message-order"
    assert caught.value.expected == "EvidenceProof or IdentityProof"
    assert caught.value.got == "the end of the call"


def test_a_clients_refusal_comes_in_place_of_any_message(run: Run) -> None:
    words = encode_message(Refusal(code="odd", what="the server\nis odd"))
    with pytest.raises(RefusedByPeer) as caught:
        run(next_request(said(words), decode_from_client, EvidenceProof))
    assert caught.value.code == "odd"
    assert str(caught.value) == "the client refused this node: the server is odd"


def test_a_clients_own_trouble_is_no_word_about_this_node(run: Run) -> None:
    words = encode_message(Refusal(code="pcs-timeout", what="later", trouble=True))
    with pytest.raises(PeerInTrouble) as caught:
        run(next_request(said(words), decode_from_client, EvidenceProof))
    assert caught.value.code == "pcs-timeout"
    assert str(caught.value) == "the client cannot go on for now: later"


def test_who_is_not_met_is_no_refusal_and_says_all_that_is_known() -> None:
    wrong = VerificationError(
        "it is odd", code="odd", expected="even", got="odd", remedy="Look there."
    )
    error = not_met("the server", wrong)
    assert not isinstance(error, VerificationError)
    assert error.code == "odd"
    assert str(error) == (
        "who answers is not the server: it is odd; expected even; got odd. Look there."
    )


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "message-malformed"),
        (b"\xc1", "message-malformed"),
        (bytes(MAX_MESSAGE_BYTES + 1), "message-size"),
    ],
)
def test_bytes_that_are_no_message_are_refused(run: Run, raw: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        run(next_request(said(raw), decode_from_client, EvidenceProof))
    assert caught.value.code == code


def test_a_broken_call_names_its_status_in_one_harmless_line() -> None:
    cut = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(),
        details="\x1b[2Jgone\n" + 300 * "x",
    )
    error = broken_off("the server at a:1", cut)
    assert error.code == "enrolment-broken"
    assert error.got.startswith("UNAVAILABLE:  [2Jgone xxx")
    assert len(error.got) < 220
    assert str(error).isprintable()
