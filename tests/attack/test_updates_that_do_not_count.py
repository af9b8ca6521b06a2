"""A refused update disturbs nobody, and its refusal quotes no value of it.

Looked at: what the sender hears, the log, every file of the run directory, and what
stays in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc
import msgspec
import numpy as np
import pytest
from tests.support.canaries import Canaries
from tests.support.federation_in_memory import Federation
from tests.support.in_a_round import Party, Scene, four_of, in_a_round
from tests.support.plan_tree import with_quorum
from tests.support.running import Run
from tests.support.single_updates import (
    changed,
    constant,
    holders_of,
    others_held,
    plant_number,
    plant_values,
    reported,
    updates_held,
    values_of,
    veiled,
)
from tests.support.training_calls import contribute, until, wanted

from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import EvaluationReport, UpdateHeader
from cloister.ratls.channels import MAX_CHUNK_BYTES

LOSS = 0.7390851332151607
METRIC = 0.5671432904097838
LONG = 9 * str(METRIC)
LARGEST = MAX_CHUNK_BYTES - 100  # and a message around it

Messages = list[bytes]
Refusal = tuple[Callable[[ModelBuffer], None], Callable[[Messages], Messages], str]


def _with(place: int | slice, value: float) -> Callable[[ModelBuffer], None]:
    def put(values: ModelBuffer) -> None:
        values.parameters[place] = value

    return put


def _statistic(value: float) -> Callable[[ModelBuffer], None]:
    def put(values: ModelBuffer) -> None:
        values.statistics[-1] = value

    return put


def _padded(values: ModelBuffer) -> None:
    values.data[values.parameters.nbytes] = 7


def _as_it_is(values: ModelBuffer) -> None:
    del values


# What is done to the values, what to the messages, and how that is refused.
VALUES: tuple[Refusal, ...] = (
    (_with(1, np.nan), list, "update-not-finite"),
    (_with(-1, -np.inf), list, "update-not-finite"),
    (_statistic(np.nan), list, "update-not-finite"),
    (_with(2, 1024.5), list, "update-too-large"),
    (_statistic(1.5e12), list, "update-too-large"),
    (_padded, list, "chunk-padding"),
)

CHUNKS: tuple[Refusal, ...] = (
    (_as_it_is, lambda m: [m[0], b"", m[1]], "chunk-size"),
    (_as_it_is, lambda m: [m[0], m[1][:-8]], "chunk-size"),
    (_as_it_is, lambda m: [m[0], m[1] + m[1]], "chunk-size"),
    (_as_it_is, lambda m: [m[0], m[1] + b"\0"], "chunk-size"),
    (_as_it_is, lambda m: [m[0], (m[1] * 16384)[:LARGEST]], "chunk-size"),
    # After the last one.
    (_as_it_is, lambda m: [*m, m[1]], "chunk-size"),
    (_as_it_is, lambda m: [*m, b""], "chunk-size"),
    # None at all.
    (_as_it_is, lambda m: m[:1], "transfer-short"),
)

HEADERS: tuple[Refusal, ...] = (
    (_as_it_is, lambda m: m[1:], "header-malformed"),
    (_as_it_is, lambda m: [(m[1] * 16384)[:LARGEST]], "header-size"),
    (_as_it_is, lambda m: changed(m, loss_sum=LOSS * 1e305), "update-not-finite"),
    (_as_it_is, lambda m: changed(m, loss_sum=np.nan), "update-not-finite"),
    (_as_it_is, lambda m: changed(m, loss_sum=str(LOSS)), "header-malformed"),
    (_as_it_is, lambda m: changed(m, round=LOSS), "header-malformed"),
    (_as_it_is, lambda m: changed(m, examples=17), "update-weight"),
    (_as_it_is, lambda m: changed(m, round=2), "update-round"),
    (_as_it_is, lambda m: evaluated(m, accuracy=METRIC), "update-evaluation"),
    (_as_it_is, lambda m: evaluated(m, accuracy=str(METRIC)), "header-malformed"),
    (_as_it_is, lambda m: evaluated(m, **{LONG: METRIC}), "header-malformed"),
)


def evaluated(messages: Messages, **sums: object) -> Messages:
    """Returns an update with an evaluation that was not asked for."""
    report = {"type": "EvaluationReport", "examples": 9, "sums": sums}
    return changed(messages, evaluation=report)


@pytest.fixture(scope="module")
def two_of_four(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Rounds whose sum is exact, and so knows more limits."""
    return four_of(tmp_path_factory.mktemp("two"), lambda tree: with_quorum(tree, 2))


async def _refusal(party: Party, messages: Messages, *, asked: bool) -> str:
    """Sends an update; returns all that its sender hears of its refusal."""
    call = contribute(party.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - any may be it
        await call.write(messages[0])
        if asked:
            await wanted(call)
            for message in messages[1:]:
                await call.write(message)
            await call.done_writing()
        await call.read()
    return f"{caught.value.code()} {caught.value.details()}"


async def _refused_without_a_word(
    federation: Federation, directory: Path, refusals: Iterable[Refusal], *, asked: bool
) -> None:
    """Has all refused that bob sends, one after the other; then the round goes on."""
    canaries, codes, others = Canaries(), [], others_held()
    plant_number(canaries, "loss", LOSS)
    plant_number(canaries, "metric", METRIC)
    async with in_a_round(federation, directory) as scene:
        port, mallory = scene.port, scene["bob"]
        secrets = []
        for seed, (spoil, change, code) in enumerate(refusals):
            values = values_of(port, seed=seed)
            plant_values(canaries, f"update {seed}", values)
            spoil(values)
            messages = change(mallory.messages(values, loss_sum=LOSS))
            secrets.append(veiled(values))
            heard = await _refusal(mallory, messages, asked=asked)
            del messages
            assert f'"code":"{code}"' in heard
            assert canaries.found_in(heard) == set()
            codes.append(("bob", code))

        assert port.audit.calls == codes
        assert port.refusals() == [code for _, code in codes]
        # A refusal arrives before the call is taken apart at the other end.
        await until(lambda: not (updates_held(but=others) or holders_of(secrets)))
        assert port.coordinator._machine.counted == ()
        await _the_round_goes_on(scene)
    assert canaries.found_below(directory) == {}


async def _the_round_goes_on(scene: Scene) -> None:
    """Everybody trains, the sender of the refused updates as well."""
    port = scene.port
    before = port.coordinator.model.parameters.copy()
    update = constant(port, 0.5)
    await asyncio.gather(*(party.train(update) for party in scene.parties.values()))
    assert np.allclose(port.coordinator.model.parameters, before - 0.5, atol=1e-6)
    assert [line["parties"] for line in port.events("round")] == [4]


def test_no_value_is_quoted_of_an_update_that_does_not_count(
    run: Run, two_of_four: Federation, tmp_path: Path
) -> None:
    run(_refused_without_a_word(two_of_four, tmp_path, VALUES, asked=True))


def test_no_value_is_quoted_of_chunks_that_do_not_fit(
    run: Run, two_of_four: Federation, tmp_path: Path
) -> None:
    run(_refused_without_a_word(two_of_four, tmp_path, CHUNKS, asked=True))


def test_no_value_is_quoted_of_a_header_that_does_not_count(
    run: Run, two_of_four: Federation, tmp_path: Path
) -> None:
    run(_refused_without_a_word(two_of_four, tmp_path, HEADERS, asked=False))


def test_a_header_does_not_show_what_one_party_measured() -> None:
    canaries = Canaries()
    plant_number(canaries, "loss", LOSS)
    plant_number(canaries, "metric", METRIC)
    report: EvaluationReport = reported(accuracy=METRIC)
    header = UpdateHeader(
        round=1,
        layout=64 * "0",
        examples=1,
        loss_sum=LOSS,
        countersignature=b"",
        evaluation=report,
    )
    assert canaries.found_in(msgspec.json.encode(header)) == {"loss", "metric"}
    assert (
        canaries.found_in(f"{header!r} {header} {report!r} {[header, report]}") == set()
    )
