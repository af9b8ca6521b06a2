"""A recipient, a model that was sealed for it, and records that its party sealed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import CLASSES, FEATURES, Tree, put
from tests.support.predicting_task import Predicting
from tests.support.records_in_memory import MemorySource, clouds
from typing_extensions import override

from cloister.cli.data_sealing import PartySigner
from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.recipient import SealedCopy
from cloister.plan.plan import plan_hash
from cloister.storage.data_sealing import SealedData, seal_data
from cloister.storage.keys import KeyKind, KeySource, Secret, key_id, new_key
from cloister.storage.model_vault import SealedModel, new_identity, seal_model
from cloister.storage.record_stream import Chunk
from cloister.storage.records import Schema, SplitName

RITA = 3  # her place in the plan
# Who reads the predictions.
ASKER, ASKERS_RECIPIENT = new_identity()
TASK = Predicting(FEATURES, CLASSES)


@dataclass(frozen=True, slots=True)
class Keys(KeySource):
    """A node that was released some keys."""

    released: Mapping[KeyKind, Secret]

    @override
    def key(self, kind: KeyKind) -> Secret:
        if kind not in self.released:
            raise ConfigError("this node has no such key", code="key-missing")
        return self.released[kind]


@dataclass(frozen=True, slots=True)
class MemoryStream:
    """Records in memory, as a source to be sealed."""

    source: MemorySource
    schema: Schema = field(default_factory=TASK.schema)
    format: str = "arrays"
    total: None = None

    def chunks(self) -> Iterator[Chunk]:
        splits: tuple[SplitName, ...] = ("train", "held-out")
        for split in splits:
            columns = self.source.split(split).columns
            if len(columns["label"]):
                yield Chunk(split=split, columns=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A recipient's node and what a host may give it.

    Attributes:
        federation: Its federation; rita is the recipient.
        data_key: Of rita's records.
        directory: Where everything lies.
    """

    federation: Federation
    data_key: Secret
    directory: Path

    @property
    def model(self) -> ModelBuffer:
        """The run's model."""
        return TASK.initial_model(seed=5)

    @property
    def sealed(self) -> Path:
        """Where the sealed model lies."""
        return self.directory / "model.safetensors.age"

    @property
    def keys(self) -> Keys:
        """What rita's custodian releases to her node."""
        vault = Secret(self.federation.vaults["rita"].encode())
        return Keys({"vault": vault, "data": self.data_key})

    def metadata(self) -> dict[str, str]:
        """Returns what the server says of the model; anybody can say it."""
        plan = self.federation.plan
        return {
            "run": plan.run_id,
            "plan": plan_hash(plan).hex(),
            "rounds": str(plan.training.rounds),
            "simulated": "true",
            "metric.accuracy": "0.5",
        }

    def seal_model(
        self,
        *,
        model: ModelBuffer | None = None,
        metadata: Mapping[str, str] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
        recipients: tuple[str, ...] | None = None,
    ) -> SealedModel:
        """Seals a model to the plan's recipients."""
        return seal_model(
            TASK.export(model or self.model) if arrays is None else arrays,
            metadata=self.metadata() if metadata is None else metadata,
            recipients=recipients or self.federation.plan.recipients,
            path=self.sealed,
        )

    def copy(self) -> SealedCopy:
        """Returns the sealed model that lies here, as if the run's log named it."""
        content = self.sealed.read_bytes() if self.sealed.exists() else b""
        return SealedCopy(
            path=self.sealed, recorded=hashlib.sha256(content).hexdigest()
        )

    def seal_records(
        self,
        name: str,
        *,
        train: int = 8,
        held_out: int = 40,
        owner: Ed25519PrivateKey | None = None,
        key: Secret | None = None,
        schema: Schema | None = None,
    ) -> SealedData:
        """Seals some records; as rita, under her data key, unless others are given."""
        source = clouds(
            seed=3,
            features=FEATURES,
            classes=CLASSES,
            train=train,
            held_out=held_out,
        )
        return seal_data(
            MemoryStream(source, schema=schema or TASK.schema()),
            path=self.directory / name,
            key=key or self.data_key,
            signer=PartySigner(owner or self.federation.keys["rita"]),
        )

    def files(self) -> list[str]:
        """Returns every file that lies here but for the log."""
        return sorted(
            path.name
            for path in self.directory.rglob("*")
            if path.is_file() and path.suffix != ".jsonl"
        )


def predicting(key: Secret) -> Callable[[Tree], Tree]:
    """Returns what has rita's node predict on records under a data key."""

    def change(tree: Tree) -> Tree:
        put(tree, ("party", RITA, "data_key"), key_id("data", key))
        return put(tree, ("party", RITA, "predictions_to"), ASKERS_RECIPIENT)

    return change


def predicting_federation(
    directory: Path, *, change: Callable[[Tree], Tree] = lambda tree: tree
) -> tuple[Federation, Secret]:
    """Returns a federation in which rita's node predicts, and her data key.

    Args:
        directory: Where the platforms' keys go.
        change: What else to change in the plan.
    """
    key = new_key()
    federation = make_federation(
        directory,
        change=lambda tree: change(predicting(key)(tree)),
        recipients=("rita",),
    )
    return federation, key
