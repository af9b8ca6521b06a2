"""Server and workers together, in this process, over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import pytest
from examples.softmax.task import Softmax, SoftmaxLearner
from numpy.typing import NDArray
from tests.support.federation_in_memory import (
    Federation,
    make_federation,
    quoting,
)
from tests.support.plan_tree import WORKERS, measurement_of
from tests.support.run_audit import entries_of, kinds_of, links_of
from tests.support.running import Run
from tests.support.training_calls import until
from tests.support.whole_run import Scene, make_scene, sources, task, whole_run
from typing_extensions import override

from cloister.errors import (
    AppraisalError,
    CloisterError,
    ConfigError,
    PlatformError,
    ProtocolError,
)
from cloister.federation.audit_records import RunFailed
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors
from cloister.federation.course import course_of
from cloister.federation.layout import ModelBuffer
from cloister.federation.server import Outcome
from cloister.federation.task import Evaluation, LearnerSettings, StepReport, Task
from cloister.plan.plan import Plan, plan_hash
from cloister.plan.training import SgdOptimizer
from cloister.storage.model_vault import open_model
from cloister.storage.records import DataSource

PARTIES = ("aggregator", *WORKERS)
Failure = TypeVar("Failure", bound=CloisterError)


def with_training(plan: Plan, **changes: object) -> Plan:
    training = msgspec.structs.replace(plan.training, **changes)
    return msgspec.structs.replace(plan, training=training)


def settings_of(plan: Plan, party: str) -> LearnerSettings:
    training = plan.training
    return LearnerSettings(
        party=party,
        batch_size=training.batch_size,
        seed=training.seed,
        threads=training.threads,
        precision=training.precision,
    )


def opened(scene: Scene, federation: Federation) -> dict[str, NDArray[np.generic]]:
    return open_model(scene.model_path, identity=federation.owner).arrays


@pytest.fixture(scope="module")
def finished(
    runner: asyncio.Runner,
    federation: Federation,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Scene, Outcome]:
    scene = make_scene(tmp_path_factory.mktemp("run"), federation)
    return scene, runner.run(whole_run(scene))


def test_a_federation_learns(finished: tuple[Scene, Outcome]) -> None:
    scene, outcome = finished
    assert outcome.rounds == 12
    assert outcome.metrics["accuracy"] > 0.95
    losses = [float(str(e["loss"])) for e in scene.events("aggregator", "round")]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]


def test_every_worker_attested_the_server_and_was_attested(
    finished: tuple[Scene, Outcome],
) -> None:
    scene, _ = finished
    admitted = scene.events("aggregator", "peer-admitted")
    assert {line["peer"] for line in admitted} == set(WORKERS)
    for party in WORKERS:
        [line] = scene.events(party, "server-attested")
        assert (line["peer"], line["peer_role"]) == ("aggregator", "server")
        assert len(scene.events(party, "round")) == 12
        assert len(scene.events(party, "finished")) == 1


def test_it_leaves_logs_and_one_sealed_model_and_nothing_else(
    finished: tuple[Scene, Outcome], federation: Federation
) -> None:
    scene, outcome = finished
    assert scene.files() == [
        "audit.jsonl",
        "logs/aggregator.jsonl",
        "logs/alice.jsonl",
        "logs/bob.jsonl",
        "model.safetensors.age",
    ]
    model = open_model(scene.model_path, identity=federation.owner)
    assert model.metadata["run"] == "blobs/a"
    assert model.metadata["plan"] == plan_hash(federation.plan).hex()
    assert model.metadata["simulated"] == "true"
    accuracy = outcome.metrics["accuracy"]
    assert model.metadata["metric.accuracy"] == repr(accuracy)


def test_the_opened_model_scores_what_was_reported(
    finished: tuple[Scene, Outcome], federation: Federation
) -> None:
    scene, outcome = finished
    model = task().load_exported(opened(scene, federation))
    right = examples = 0.0
    for party, source in sources().items():
        learner = task().learner(source, settings_of(federation.plan, party))
        learner.load(model)
        evaluation = learner.evaluate()
        right += evaluation.sums["accuracy"]
        examples += evaluation.examples
    assert right / examples == outcome.metrics["accuracy"]


def one_process(plan: Plan) -> ModelBuffer:
    """Trains in one loop with every worker's shard; the step is written out here."""
    model = task().initial_model(seed=plan.training.seed)
    names = [worker.name for worker in plan.workers]
    learners = [
        task().learner(source, settings_of(plan, party))
        for party, source in sources(names).items()
    ]
    outs = [ModelBuffer(model.layout) for _ in learners]
    optimizer, rate = plan.training.optimizer, course_of(plan).rate
    assert isinstance(optimizer, SgdOptimizer)
    parameters = model.parameters.astype(np.float64)
    velocity = np.zeros_like(parameters)
    decay = optimizer.weight_decay * model.layout.decay_mask()
    for number in range(1, plan.training.rounds + 1):
        for learner, out in zip(learners, outs, strict=True):
            learner.load(model)
            learner.step(number, out)
        gradient = np.mean([out.parameters for out in outs], axis=0, dtype=np.float64)
        velocity = optimizer.momentum * velocity + gradient + decay * parameters
        parameters -= rate.at(number) * velocity
        model.parameters[:] = parameters
        model.statistics[:] = np.mean([out.statistics for out in outs], axis=0)
    return model


def test_four_workers_compute_what_one_process_with_all_shards_would(
    run: Run, tmp_path: Path
) -> None:
    four = make_federation(tmp_path / "keys", more_workers=("carol", "dave"))
    scene = make_scene(tmp_path / "run", four)
    run(whole_run(scene))
    model = one_process(four.plan)
    arrays = opened(scene, four)
    assert arrays.keys() == model.arrays().keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(
            array.astype(np.float64), model.arrays()[name], rtol=0, atol=1e-5
        )


def test_a_second_run_gives_the_same_bits(
    run: Run, finished: tuple[Scene, Outcome], federation: Federation, tmp_path: Path
) -> None:
    first, outcome = finished
    scene = make_scene(tmp_path, federation)
    again = run(whole_run(scene))
    assert again.metrics == outcome.metrics
    before, after = opened(first, federation), opened(scene, federation)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].tobytes() == after[name].tobytes()


class CanaryLearner(SoftmaxLearner):
    """Reports numbers of its own that must not be seen beside the server's mean."""

    canary: float

    @override
    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        done = super().step(round_number, out)
        return replace(done, loss_sum=self.canary * done.examples)

    @override
    def evaluate(self) -> Evaluation:
        done = super().evaluate()
        return replace(done, sums={"canary": self.canary * done.examples})


class CanaryTask(Softmax):
    canary = 0.0

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        learner = CanaryLearner(self, source, settings)
        learner.canary = self.canary
        return learner


def test_a_single_partys_numbers_stand_in_no_log(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    canaries = {"alice": 1_357_911.0, "bob": 2_468_101.0}
    tasks: dict[str, Task] = {}
    for party, canary in canaries.items():
        birds = CanaryTask(task().features, task().classes)
        birds.canary = canary
        tasks[party] = birds
    scene = make_scene(tmp_path, federation)
    outcome = run(whole_run(scene, tasks=tasks))
    mean = sum(canaries.values()) / 2
    assert outcome.metrics == {"canary": mean}

    logs = {p: (tmp_path / "logs" / f"{p}.jsonl").read_text() for p in PARTIES}
    assert str(mean) in logs["aggregator"]
    for text in logs.values():
        for canary in canaries.values():
            for factor in (1, 16, 48, 1 / 2, 1 / 16):
                assert str(int(canary * factor)) not in text
    for party in WORKERS:
        # Nor does a worker's host see even the mean.
        assert str(int(mean)) not in logs[party]
        keys = {key for line in scene.events(party) for key in line}
        assert not keys & {"loss", "accuracy", "metrics", "canary"}


def failures_of(
    run: Run, story: Coroutine[object, object, Outcome], kind: type[Failure]
) -> list[Failure]:
    """Returns the errors of `kind` among those that ended the nodes of a run."""
    with pytest.raises(ExceptionGroup) as caught:
        run(story)
    return [error for error in caught.value.exceptions if isinstance(error, kind)]


class BrokenTask(Softmax):
    """Fails in its third round, in whichever way it is told."""

    failure: BaseException = ValueError("patient Ada, 1815")

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        failure = self.failure

        class Broken(SoftmaxLearner):
            @override
            def step(self, round_number: int, out: ModelBuffer) -> StepReport:
                if round_number == 3:
                    raise failure
                return super().step(round_number, out)

        return Broken(self, source, settings)


@pytest.mark.parametrize("failure", [ValueError("Ada"), StopIteration(), SystemExit(0)])
def test_a_task_that_fails_in_training_ends_its_worker_with_a_clear_error(
    run: Run, federation: Federation, tmp_path: Path, failure: BaseException
) -> None:
    broken = BrokenTask(task().features, task().classes)
    broken.failure = failure
    scene = make_scene(tmp_path, federation, patience_seconds=1.0)
    story = whole_run(scene, tasks={"bob": broken})
    [error] = failures_of(run, story, ConfigError)
    assert error.code == "task-failed"
    assert error.got.startswith(type(failure).__name__)
    [line] = scene.events("bob", "failed")
    assert line["what"] == "task.py failed while training"
    logs = [f"logs/{party}.jsonl" for party in PARTIES]
    assert scene.files() == ["audit.jsonl", *logs]


class DivergingTask(Softmax):
    """Its gradients are finite, and so large that the next model is not."""

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        class Diverging(SoftmaxLearner):
            @override
            def step(self, round_number: int, out: ModelBuffer) -> StepReport:
                done = super().step(round_number, out)
                out.parameters[:] = np.finfo(np.float32).max
                return done

        return Diverging(self, source, settings)


def test_a_model_that_diverges_ends_the_run_on_all_sides(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    rate = msgspec.structs.replace(
        federation.plan.training.optimizer, learning_rate=10.0
    )
    plan = with_training(federation.plan, optimizer=rate)
    wild = DivergingTask(task().features, task().classes)
    scene = make_scene(tmp_path, federation, plan=plan)
    story = whole_run(scene, tasks={"alice": wild, "bob": wild})
    [error] = failures_of(run, story, ConfigError)
    assert error.code == "training-diverged"
    [line] = scene.events("aggregator", "failed")
    assert line["what"] == "training diverged in round 1"
    assert not scene.model_path.exists()
    assert last_failure(scene) == "training-diverged"


def last_failure(scene: Scene) -> str:
    """Returns the code of the failure that the run's audit log ends with."""
    last = entries_of(scene.directory)[-1]
    assert isinstance(last, RunFailed)
    return last.code


def test_the_audit_log_of_a_run_holds_in_every_step(
    finished: tuple[Scene, Outcome],
) -> None:
    scene, outcome = finished
    links = links_of(scene.directory)
    report = verify_audit(
        links, anchors=Anchors(plan_hash=plan_hash(scene.custodians.plan))
    )
    assert report.completed == report.rounds_recorded == 12
    assert report.seal is not None
    assert report.seal.sha256 == outcome.sealed.sha256
    kinds = Counter(kinds_of(scene.directory))
    assert kinds == {
        "RunOpened": 1,
        "CollateralUsed": 2,
        "ServerIntroduced": 1,
        "NodeAdmitted": 2,
        "RoundCompleted": 12,
        "ModelSealed": 1,
    }
    [opened] = scene.events("aggregator", "audit-opened")
    assert (opened["records"], opened["dropped_bytes"]) == (3, 0)
    assert opened["audit_head"] == links[2].head
    [sealed] = scene.events("aggregator", "model-sealed")
    assert sealed["audit_head"] == links[-1].head
    assert scene.events("aggregator", "audit-head-not-deposited") == []


def test_a_server_that_its_own_plan_refuses_opens_no_port(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation)
    other = federation.platform("aggregator", measurement=measurement_of("worker"))

    async def story() -> None:
        node = scene.node("aggregator")
        async with (
            scene.custodians.office("aggregator") as office,
            office.line(node) as line,
        ):
            moved = quoting(node, other)
            error = await error_of(scene.serve(moved, task(), custodian=line))
        assert isinstance(error, AppraisalError)
        assert error.code == "appraisal-measurement"

    run(story())
    assert scene.events("aggregator", "listening") == []
    assert (scene.directory / "audit.jsonl").read_bytes() == b""
    assert scene.custodians.mark("aggregator") is None


def test_a_server_that_starts_again_goes_on_with_its_log(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation)

    async def story() -> None:
        serving = asyncio.ensure_future(scene.serve(scene.node("aggregator"), task()))
        log = scene.directory / "logs" / "aggregator.jsonl"
        await until(lambda: log.exists() and "listening" in log.read_text())
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await whole_run(scene)

    run(story())
    assert kinds_of(scene.directory)[:5] == [
        "RunOpened",
        "CollateralUsed",
        "ServerIntroduced",
        "RunFailed",
        "ServerIntroduced",
    ]
    report = verify_audit(links_of(scene.directory), anchors=Anchors())
    assert [server.epoch for server in report.servers] == [1, 2]
    assert report.completed == 12


def test_a_server_whose_log_was_cut_behind_its_partys_mark_does_not_start(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation)
    path = scene.directory / "audit.jsonl"

    async def story() -> None:
        serving = asyncio.ensure_future(scene.serve(scene.node("aggregator"), task()))
        log = scene.directory / "logs" / "aggregator.jsonl"
        await until(lambda: log.exists() and "listening" in log.read_text())
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        for lines in (0, 2):
            kept = path.read_bytes().splitlines(keepends=True)[:lines]
            path.write_bytes(b"".join(kept))
            error = await error_of(scene.serve(scene.node("aggregator"), task()))
            assert error.code == "audit-cut"
            assert path.read_bytes() == b"".join(kept)

    run(story())


def test_what_is_recorded_while_workers_are_awaited_is_with_the_custodian(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """Or a host could cut an admission, and start the server again."""
    scene = make_scene(tmp_path / "run", federation, patience_seconds=3.0)
    path = scene.directory / "audit.jsonl"

    def known_head() -> str:
        known = scene.custodians.mark("aggregator")
        return "" if known is None or not known.audit_head else known.audit_head.hex()

    async def story() -> None:
        async with (
            scene.custodians.office("aggregator") as office,
            office.line(node := scene.node("aggregator")) as line,
        ):
            serving = asyncio.ensure_future(scene.serve(node, task(), custodian=line))
            working = asyncio.ensure_future(
                error_of(scene.work(scene.node("alice"), task(), sources()["alice"]))
            )
            log = scene.directory / "logs" / "aggregator.jsonl"
            await until(lambda: log.exists() and "peer-admitted" in log.read_text())
            admitted = links_of(scene.directory)[-1].head
            await until(
                lambda: (
                    line.mark is not None
                    and line.mark.audit_head == bytes.fromhex(admitted)
                )
            )
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            await working
        # The server that was stopped had its party know even of that.
        assert known_head() == links_of(scene.directory)[-1].head
        kept = [
            it
            for it, kind in zip(
                path.read_bytes().splitlines(keepends=True),
                kinds_of(scene.directory),
                strict=True,
            )
            if kind not in {"NodeAdmitted", "RunFailed"}
        ]
        path.write_bytes(b"".join(kept))
        error = await error_of(scene.serve(scene.node("aggregator"), task()))
        assert error.code == "audit-cut"

    run(story())


class Interrupted(Softmax):
    """Has its server stopped while the model is sealed."""

    stop: Callable[[], None]

    @override
    def export(self, model: ModelBuffer) -> dict[str, NDArray[np.generic]]:
        self.stop()
        return super().export(model)


def test_a_server_that_is_stopped_while_it_seals_says_that_it_sealed(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """The thread that seals goes on; a model beside a log without it is nobody's."""
    scene = make_scene(tmp_path / "run", federation)
    stopped = Interrupted(task().features, task().classes)

    async def story() -> None:
        loop, nodes = asyncio.get_running_loop(), scene.nodes()
        serving = asyncio.ensure_future(scene.serve(nodes["aggregator"], stopped))

        def stop() -> None:
            done = threading.Event()

            def cancel() -> None:
                serving.cancel()
                # When the server has seen it.
                loop.call_soon(loop.call_soon, done.set)

            loop.call_soon_threadsafe(cancel)
            done.wait()

        stopped.stop = stop
        await asyncio.gather(
            *(scene.work(nodes[it], task(), sources()[it]) for it in WORKERS)
        )
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(story())
    assert scene.model_path.exists()
    kinds = kinds_of(scene.directory)
    assert kinds[-1] == "ModelSealed"
    assert "RunFailed" not in kinds
    assert len(scene.events("aggregator", "model-sealed")) == 1
    report = verify_audit(links_of(scene.directory), anchors=Anchors())
    assert report.seal is not None
    digest = hashlib.sha256(scene.model_path.read_bytes()).hexdigest()
    assert report.seal.sha256 == digest


class Unexportable(Softmax):
    @override
    def export(self, model: ModelBuffer) -> dict[str, NDArray[np.generic]]:
        raise ValueError("no such layer")


def test_a_model_that_cannot_be_sealed_is_a_failure_on_record(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation)
    tasks = {"aggregator": Unexportable(task().features, task().classes)}
    [error] = failures_of(run, whole_run(scene, tasks=tasks), ConfigError)
    assert error.code == "task-failed"
    assert last_failure(scene) == "task-failed"
    assert kinds_of(scene.directory).count("ModelSealed") == 0


def test_a_worker_that_never_comes_is_named_and_the_others_are_told(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path, federation, patience_seconds=1.0)

    async def story() -> None:
        nodes = scene.nodes()
        errors = await asyncio.gather(
            error_of(scene.serve(nodes["aggregator"], task())),
            error_of(scene.work(nodes["alice"], task(), sources()["alice"])),
        )
        for error in errors:
            assert isinstance(error, ProtocolError)
            assert error.code == "worker-missing"
            assert "bob" in error.expected
            assert "alice" not in error.expected

    run(story())
    assert scene.files() == ["audit.jsonl", "logs/aggregator.jsonl", "logs/alice.jsonl"]
    assert last_failure(scene) == "worker-missing"


async def error_of(node: Awaitable[object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        await node
    return caught.value


def test_a_server_that_is_stopped_tells_its_workers(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path, federation, patience_seconds=0.5)

    async def story() -> None:
        nodes = scene.nodes()
        serving = asyncio.ensure_future(scene.serve(nodes["aggregator"], task()))
        working = asyncio.ensure_future(
            error_of(scene.work(nodes["alice"], task(), sources()["alice"]))
        )
        log = tmp_path / "logs" / "aggregator.jsonl"
        await until(lambda: log.exists() and "peer-admitted" in log.read_text())
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        # It waited for the next one, and none came.
        gone = {"server-stopped", "server-gone", "server-unreachable"}
        assert (await working).code in gone

    run(story())
    assert not scene.model_path.exists()
    assert last_failure(scene) == "server-stopped"


def test_a_port_in_use_ends_the_server_and_frees_the_other_one(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", 0
        ) as taken:
            port = taken.sockets[0].getsockname()[1]
            first = make_scene(tmp_path / "first", federation)
            scene = replace(first, enrolment=replace(first.enrolment, port=port))
            error = await error_of(scene.serve(scene.node("aggregator"), task()))
        assert isinstance(error, PlatformError)
        assert error.code == "port-unusable"
        # The training port was opened before, and is free again.
        server = await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", scene.training.port
        )
        server.close()
        await server.wait_closed()

    run(story())


def test_a_recipient_that_cannot_be_sealed_to_is_refused_before_training(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    recipients = ("age1" + 58 * "q",)  # well-formed, and its checksum is wrong
    model = msgspec.structs.replace(federation.plan.model, recipients=recipients)
    plan = msgspec.structs.replace(federation.plan, model=model)
    scene = make_scene(tmp_path, federation, plan=plan)
    error = run(error_of(scene.serve(scene.node("aggregator"), task())))
    assert isinstance(error, ConfigError)
    assert [e["event"] for e in scene.events("aggregator")] == ["warranted", "failed"]


def test_a_worker_of_another_layout_is_told_so(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    class Renamed(Softmax):
        @override
        def initial_model(self, *, seed: int) -> ModelBuffer:
            model = super().initial_model(seed=seed)
            arrays = tuple(
                replace(spec, name=spec.name.upper()) for spec in model.layout.arrays
            )
            return ModelBuffer(replace(model.layout, arrays=arrays))

    other = Renamed(task().features, task().classes)
    scene = make_scene(tmp_path, federation, patience_seconds=1.0)
    story = whole_run(scene, tasks={"bob": other})
    errors = failures_of(run, story, ProtocolError)
    assert {error.code for error in errors} == {"layout-differs", "worker-missing"}
    [line] = scene.events("bob", "failed")
    assert line["code"] == "layout-differs"
    line, *_ = scene.events("aggregator", "call-refused")
    assert "'bob'" in str(line["reason"])
