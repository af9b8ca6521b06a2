"""What a message must say to count, beside who sends it and when (`machine.py`).

These look at headers alone, before any chunk is asked for or taken. An update's values
are looked at as they come (`wire_format.py`).
"""

from __future__ import annotations

from cloister.federation.messages import EvaluationReport, ModelHeader, UpdateHeader
from cloister.federation.rounds.refusals import refusal

# Largest sum that counts: the sum of as many as there may be parties is still finite.
MAX_SUM = 1e300


def check_layout(party: str, *, expected: str, got: str) -> None:
    """Refuses a model of another layout.

    Raises:
        ProtocolError: `layout-differs` if the digests differ.
    """
    if expected != got:
        raise refusal(
            party, "layout-differs", expected=f"layout {expected}", got=f"layout {got}"
        )


def check_update_header(
    party: str,
    header: UpdateHeader,
    *,
    model: ModelHeader,
    examples: int,
) -> None:
    """Refuses an update whose numbers are not what the plan fixes.

    1. Its layout is the model's.
    2. It is over as many examples as the plan says, so all updates weigh alike.
    3. Its loss is finite, and not so large that a sum of losses is not.
    4. An evaluation comes exactly when one was asked for, and can be added up.
    5. It brings a chunk only where all may send at once: others wait to be asked.

    Left to the caller: the party's seat and the round (`RunMachine.check_offer`), and
    the countersignature.

    Args:
        party: Whose update it is.
        header: What it says of itself.
        model: What was said with the model that it is for.
        examples: Examples a worker uses in a round, as the plan fixes them.

    Raises:
        ProtocolError: `layout-differs`, `update-weight`, `update-not-finite`,
            `update-evaluation`, `evaluation-not-finite` or `update-early`; no value of
            the party is named.
    """
    check_layout(party, expected=model.layout, got=header.layout)
    if header.examples != examples:
        raise refusal(
            party, "update-weight", expected=f"{examples} examples", got="another count"
        )
    if not abs(header.loss_sum) <= MAX_SUM:
        raise refusal(
            party, "update-not-finite", expected="a finite loss", got="another"
        )
    if (header.evaluation is not None) != model.evaluate:
        raise refusal(
            party,
            "update-evaluation",
            expected="an evaluation exactly when asked for",
            got="none" if model.evaluate else "one",
        )
    if header.evaluation is not None:
        check_evaluation(party, header.evaluation)
    if header.first_chunk is not None and not model.at_once:
        raise refusal(
            party,
            "update-early",
            expected="no chunk before the server asks for it",
            got="one with the header",
        )


def check_evaluation(party: str, report: EvaluationReport) -> None:
    """Refuses an evaluation that would spoil the aggregate.

    Its metrics may have any names: whoever came first would otherwise say for all what
    a metric is called, and have every other party refused.

    Raises:
        ProtocolError: `evaluation-not-finite` if a sum is not finite, or so large that
            the sum over all parties is not.
    """
    if not all(abs(value) <= MAX_SUM for value in report.sums.values()):
        raise refusal(
            party, "evaluation-not-finite", expected="finite sums", got="another value"
        )
