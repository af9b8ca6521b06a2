"""The trained model, sealed to its owners.

Contents: the arrays in safetensors format (https://github.com/huggingface/safetensors),
encrypted whole to age X25519 recipients (https://age-encryption.org/v1). So the public
`age` tool opens it with an owner's identity, and any safetensors reader reads the rest.

Only ciphertext ever reaches the disk. A sealed model appears under its name complete or
not at all. What this module does not do: say who the recipients are; the plan does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from cloister.errors import StorageError
from cloister.storage.age import (
    check_recipients,
    new_identity,
    read_identity,
    recipient_of,
)
from cloister.storage.age_files import (
    OpenedBytes,
    SealedBytes,
    check_new,
    open_bytes,
    seal_bytes,
    write_output,
)

__all__ = [
    "OpenedModel",
    "SealedModel",
    "check_recipients",
    "new_identity",
    "open_model",
    "read_identity",
    "recipient_of",
    "seal_model",
    "unseal_to_file",
]

Arrays = dict[str, NDArray[np.generic]]
SealedModel: TypeAlias = SealedBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model as its owner sees it.

    Attributes:
        arrays: The arrays by name.
        metadata: The text that was sealed with them.
        sha256: SHA-256 (hex) of the sealed file.
    """

    arrays: Arrays = field(repr=False)
    metadata: dict[str, str]
    sha256: str


def seal_model(
    arrays: Mapping[str, NDArray[np.generic]],
    *,
    metadata: Mapping[str, str],
    recipients: Sequence[str],
    path: Path,
) -> SealedModel:
    """Seals a model to its recipients and writes it to `path`, whole or not at all.

    Predictions are sealed likewise: they are arrays, too. The same arrays and metadata
    open to the same bytes each time, so two runs can be compared by them.

    Args:
        arrays: The arrays by name.
        metadata: Text kept beside them, under the same seal.
        recipients: age X25519 recipients, ``age1...``; each of them alone can open it.
        path: Replaced if it exists; its directory must exist.

    Raises:
        ConfigError: If a recipient is invalid, or there is none.
        StorageError: If the file cannot be written.
    """
    # The library writes the memory as it lies: a transposed view would come out wrong.
    straight = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    content = safetensors.numpy.save(straight, metadata=dict(metadata))
    return seal_bytes(_in_order(content), recipients=recipients, path=path)


def open_model(path: Path, *, identity: str) -> OpenedModel:
    """Returns the model sealed at `path`.

    Args:
        path: A file written by `seal_model`, or by ``age`` over safetensors.
        identity: One recipient's identity, ``AGE-SECRET-KEY-1...``.

    Raises:
        ConfigError: If the file is missing or the identity is malformed.
        StorageError: If the file is not in age's format (``model-not-age``), sealed to
            others (``model-not-for-identity``), altered or cut off
            (``model-damaged``), or holds no safetensors (``model-not-safetensors``).
    """
    return _parse_model(path, open_bytes(path, identity=identity))


def unseal_to_file(path: Path, *, identity: str, output: Path) -> OpenedModel:
    """Writes the model sealed at `path` in the clear, as its owner asked.

    Args:
        path: The sealed model.
        identity: One recipient's identity.
        output: Receives the safetensors file, mode 0600, whole or not at all; the
            same bytes that ``age --decrypt`` gives.

    Raises:
        ConfigError: As `open_model`, and if `output` exists or has no directory.
        StorageError: As `open_model`, and if `output` cannot be written.
    """
    # The one who opens chooses the name; a sealed model's path is the run's own.
    check_new(output)
    sealed = open_bytes(path, identity=identity)
    opened = _parse_model(path, sealed)
    write_output(output, sealed.content)
    return opened


def _in_order(content: bytes) -> bytes:
    """Returns a safetensors file whose metadata stand in the order of their names.

    The library writes them in another order each time.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of eight
    return b"".join((len(text).to_bytes(8, "little"), text, content[8 + size :]))


def _parse_model(path: Path, sealed: OpenedBytes) -> OpenedModel:
    content = sealed.content
    try:
        arrays = safetensors.numpy.load(content)
        # The library returns no metadata from bytes; it has checked the header by now.
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, KeyError, ValueError) as error:
        raise StorageError(
            f"{path} opens, but does not hold a model",
            code="model-not-safetensors",
            expected="arrays in safetensors format",
            remedy="Seal models with this program, or as safetensors.",
        ) from error
    return OpenedModel(arrays=arrays, metadata=metadata, sha256=sealed.sha256)
