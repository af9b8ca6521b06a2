"""What travels on the training port beside raw chunks.

    Receive     ModelRequest                 -> ModelHeader, chunks
    Contribute  UpdateHeader, chunks         -> [UpdateWanted,] ModelHeader, chunks
    Finish      FinalReport                  -> Finished

A stream begins with one header; every later message is a raw slice of the model
buffer, in order, until the layout's size is reached exactly. A model's header brings
the first slice itself, and so does that of an update where there is a place for
everybody's; then nobody asks for the others. Each message that is saved is a twentieth
of a small round. Written out in
`docs/spec/wire.md`.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from typing_extensions import override

from cloister.errors import ProtocolError

RECEIVE = "/cloister.Training/Receive"
CONTRIBUTE = "/cloister.Training/Contribute"
FINISH = "/cloister.Training/Finish"

# Headers are a handful of numbers; a task may add some metric names.
MAX_HEADER_BYTES = 16 * 1024
MAX_METRICS = 64

RoundNumber = Annotated[int, Meta(ge=1, le=2**31)]
LayoutDigest = Annotated[str, Meta(min_length=64, max_length=64)]
StateDigest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Examples = Annotated[int, Meta(ge=1, le=2**40)]
# ECDSA with P-256, DER: at most 72 bytes.
Countersignature = Annotated[bytes, Meta(max_length=80)]


class Header(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True
):
    """Base of all headers; never sent itself."""


class EvaluationReport(Header, frozen=True, kw_only=True):
    """One party's sums over its held-out examples; the server adds them up.

    Attributes:
        examples: Number of held-out examples.
        sums: For each metric, its sum over those examples.
    """

    examples: Examples
    sums: Annotated[
        dict[Annotated[str, Meta(max_length=64)], float], Meta(max_length=MAX_METRICS)
    ]

    @override
    def __repr__(self) -> str:
        return f"EvaluationReport({len(self.sums)} metrics)"  # they are one party's


class ModelRequest(Header, frozen=True, kw_only=True):
    """A worker asks for the current model."""

    layout: LayoutDigest


class ModelHeader(Header, frozen=True, kw_only=True):
    """The model to train in a round; chunks follow.

    Attributes:
        round: The round this model is for, counted from 1.
        layout: Digest of the layout of the chunks that follow.
        evaluate: Whether each worker reports on this model with its next message.
        final: Whether training is over: evaluate, finish, train no more.
        audit_head: Head of the server's audit log as the model goes out. It is one for
            a round: each worker signs it once.
        state: SHA-256 of the server's state after the rounds before this one, when a
            mark is due (`state.py`).
        at_once: Whether updates are to come without being asked for.
        first_chunk: The model's first chunk; only where the header is sent.
    """

    round: RoundNumber
    layout: LayoutDigest
    evaluate: bool
    final: bool
    audit_head: StateDigest
    state: StateDigest | None = None
    at_once: bool = False
    first_chunk: bytes | None = None

    @override
    def __repr__(self) -> str:
        return f"ModelHeader(round {self.round})"  # a chunk is of the model itself


class UpdateHeader(Header, frozen=True, kw_only=True):
    """One worker's update for a round; chunks follow.

    Attributes:
        round: The round the update was computed in.
        layout: Digest of the layout of the chunks that follow.
        examples: Examples used; the update's weight.
        loss_sum: Sum of the training loss over those examples.
        countersignature: The node's over the head that came with the round's model.
        evaluation: The report on the round's model, exactly when it was asked for.
        first_chunk: The update's first chunk, only if the model was sent `at_once`.
    """

    round: RoundNumber
    layout: LayoutDigest
    examples: Examples
    loss_sum: float
    countersignature: Countersignature
    evaluation: EvaluationReport | None = None
    first_chunk: bytes | None = None

    @override
    def __repr__(self) -> str:
        return f"UpdateHeader(round {self.round})"  # the loss is one party's


class UpdateWanted(Header, frozen=True, kw_only=True):
    """The server has room for the update: its chunks may follow."""


class FinalReport(Header, frozen=True, kw_only=True):
    """One worker's report on the final model.

    Attributes:
        evaluation: The report.
        countersignature: The node's over the head that came with that model.
    """

    evaluation: EvaluationReport
    countersignature: Countersignature


class Finished(Header, frozen=True, kw_only=True):
    """The server has the report; the worker may go."""


HeaderType = TypeVar("HeaderType", bound=Header)
encode_header = msgspec.msgpack.Encoder().encode


def decode_header(
    unverified: bytes, kind: type[HeaderType], *, chunk_bytes: int = 0
) -> HeaderType:
    """Returns the header in `unverified`.

    Args:
        unverified: What came.
        kind: What it has to be.
        chunk_bytes: Size of the chunk that it may bring.

    Raises:
        ProtocolError: If it is too large or anything but a `kind`.
    """
    if len(unverified) > (most := MAX_HEADER_BYTES + chunk_bytes):
        raise ProtocolError(
            "a header is too large",
            code="header-size",
            expected=f"at most {most} bytes",
            got=str(len(unverified)),
        )
    try:
        return msgspec.msgpack.decode(unverified, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(
            "a header is malformed",
            code="header-malformed",
            expected=kind.__name__,
            got=str(error)[:200],
        ) from error
