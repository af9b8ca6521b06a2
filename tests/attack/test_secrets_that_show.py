"""Whatever holds a secret shows it to nobody: in no repr, no log, no pickle.

In one process. What errors carry is in `test_errors_that_quote.py`, what real processes
leave behind in `tests/integration/test_secrets_that_show.py`.
"""

from __future__ import annotations

import base64
import copy
import json
import pickle  # noqa: TID251 - to see that it is refused
import pprint
import secrets
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import cbor2
import msgspec
import numpy as np
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from numpy.typing import NDArray
from tests.support.canaries import Canaries, said_by
from tests.support.secret_scene import SecretScene, plant_node, secret_scene

from cloister.custody.keyring import FIRST_GENERATION
from cloister.federation.recipient import ReceivedModel
from cloister.ratls.identity import new_identity
from cloister.ratls.proofs import IdentityProver
from cloister.storage.age import new_identity as new_age_identity
from cloister.storage.keys import Secret
from cloister.storage.model_vault import OpenedModel

# --- the search itself ---

SECRET = bytes(range(0x27, 0x2F)) + b"\\\n\x00" + secrets.token_bytes(21)
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "hex": lambda it: it.hex().encode(),
    "upper-case hex": lambda it: it.hex().upper().encode(),
    "hex with colons": lambda it: it.hex(":").encode(),
    "hex of sixteen digits": lambda it: it[:8].hex().encode(),
    "hex in C": lambda it: ", ".join(f"0x{b:02x}" for b in it).encode(),
    "escaped hex": lambda it: "".join(f"\\x{b:02x}" for b in it).encode(),
    "its last half": lambda it: it[16:].hex().encode(),
    "repr": lambda it: repr(it).encode(),
    "repr within JSON": lambda it: json.dumps({"key": repr(it)}).encode(),
    "repr of repr": lambda it: repr(repr(it)).encode(),
    "text": lambda it: it.decode("latin-1").encode(),
    "text in JSON": lambda it: json.dumps(it.decode("latin-1")).encode(),
    "numbers": lambda it: str(list(it)).encode(),
    "numbers in JSON": lambda it: msgspec.json.encode(list(it)),
    "an array": lambda it: str(np.frombuffer(it, np.uint8)).encode(),
    "one number": lambda it: str(int.from_bytes(it)).encode(),
    "one number, little": lambda it: str(int.from_bytes(it, "little")).encode(),
    "UUID": lambda it: str(uuid.UUID(bytes=it[:16])).encode(),
    "CBOR": lambda it: cbor2.dumps({"key": it}),
    "base64": base64.b64encode,
    "base64, one later": lambda it: base64.b64encode(b"x" + it),
    "base64, two later": lambda it: base64.b64encode(b"xy" + it),
    "base64 of URLs": lambda it: base64.urlsafe_b64encode(it).rstrip(b"="),
    "base64 in lines": lambda it: base64.encodebytes(bytes(50) + it),
    "hex in base64": lambda it: base64.b64encode(b'{"k":"' + it.hex().encode()),
    "base64 in base64": lambda it: base64.b64encode(base64.b64encode(b"?" + it)),
}


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


@pytest.mark.parametrize("form", FORMS)
def test_the_search_finds_a_secret_in_every_form(
    canaries: Canaries, form: str, tmp_path: Path
) -> None:
    """Without this all others would say nothing."""
    canaries.plant("secret", SECRET)
    leak = b'{"event": "said", "got": "' + FORMS[form](SECRET) + b'"}\n'
    assert canaries.found_in(leak) == {"secret"}
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "alice.jsonl").write_bytes(leak)
    (tmp_path / "other").write_bytes(secrets.token_bytes(4096))
    assert canaries.found_below(tmp_path) == {"logs/alice.jsonl": {"secret"}}


def test_the_search_finds_keys_in_their_own_formats(canaries: Canaries) -> None:
    identity, age = new_identity(), new_age_identity()[0]
    party = Ed25519PrivateKey.generate()
    plant_node(canaries, identity)
    canaries.plant("party", party.private_bytes_raw())
    canaries.plant_identity("age", age)
    pem = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert canaries.found_in(identity.tls_key_pem()) == {"TLS key"}
    assert canaries.found_in(repr(identity.tls_key_pem())) == {"TLS key"}
    assert canaries.found_in(identity.encryption_key.private_bytes(*pem)) == {
        "X25519 key"
    }
    assert canaries.found_in(party.private_bytes(*pem)) == {"party"}
    assert canaries.found_in(f"identity {age}\n") == {"age"}
    assert canaries.found_in(age.lower()) == {"age"}


def test_the_search_finds_nothing_where_nothing_is(canaries: Canaries) -> None:
    canaries.plant("secret", SECRET)
    for noise in (b"", bytes(4096), secrets.token_bytes(100_000), b"AGE-SECRET-KEY-1"):
        assert canaries.found_in(noise) == set()


# --- what holds secrets ---


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretScene]:
    with secret_scene(tmp_path_factory.mktemp("scene")) as scene:
        yield scene


HOLDERS: dict[str, Callable[[SecretScene], object]] = {
    "secret": lambda it: it.secret("alice", "data"),
    "secrets by kind": lambda it: {"data": it.secret("alice", "data")},
    "passphrase": lambda it: it.passphrase,
    "identity file": lambda it: it.safe.lock,
    "keyring": lambda it: it.keyring,
    "next keyring": lambda it: it.keyring.and_next(FIRST_GENERATION),
    "keys in a register": lambda it: it.keys,
    "node identity": lambda it: it.node.identity,
    "node": lambda it: it.node,
    "identity prover": lambda it: IdentityProver(key=it.keyed.federation.keys["bob"]),
    "platform": lambda it: it.keyed.federation.platform("alice"),
    "admission CA": lambda it: it.authority,
    "custodian": lambda it: it.custodian,
    "node keys": SecretScene.node_keys,
    "both sides of a session": lambda it: vars(it.meeting()),
    "release": lambda it: it.meeting().release("data", "state-share"),
    "released keys": lambda it: it.meeting().keys("data", "state-share"),
    "model": SecretScene.model,
    "opened model": lambda it: OpenedModel(
        arrays=arrays_of(it), metadata={}, sha256=64 * "0"
    ),
    "received model": lambda it: ReceivedModel(
        model=it.model(), metadata={}, evaluation=None
    ),
}
# Whose values are ours to send.
MODELS = {"model", "opened model", "received model"}
# Of these not even a copy leaves the process.
UNPICKLED = {
    "secret",
    "passphrase",
    "keyring",
    "keys in a register",
    "node identity",
    "node",
    "identity prover",
    "platform",
    "admission CA",
    "custodian",
    "node keys",
    "both sides of a session",
    "released keys",
}


def arrays_of(scene: SecretScene) -> dict[str, NDArray[np.generic]]:
    return {name: np.array(it) for name, it in scene.model().arrays().items()}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_holds_a_secret_does_not_show_it(scene: SecretScene, holder: str) -> None:
    it = HOLDERS[holder](scene)
    error = ValueError("it failed", it)
    error.add_note(f"with {it!r}")
    event = {"event": "said", "it": it, "among": [{"others": it}]}
    shown = [
        *(str(it), repr(it), ascii(it), f"{it}", f"{it!r:>5}", pprint.pformat(it)),
        "%s %r" % (it, it),  # noqa: UP031 - as in logging
        *traceback.format_exception(error),
        str(structlog.processors.JSONRenderer()(None, "", dict(event))),
        str(structlog.dev.ConsoleRenderer(colors=False)(None, "", dict(event))),
        str(structlog.processors.KeyValueRenderer()(None, "", dict(event))),
        str(structlog.processors.LogfmtRenderer()(None, "", {"event": "", "it": it})),
    ]
    assert scene.canaries.found_in("\n".join(shown)) == set()


COPIES: dict[str, Callable[[object], object]] = {
    "JSON": msgspec.json.encode,
    "MessagePack": msgspec.msgpack.encode,
    "builtins": lambda it: repr(msgspec.to_builtins(it)),
    "CBOR": lambda it: cbor2.dumps({"it": it}),
    "JSON with words": lambda it: json.dumps(it, default=str),
    "dictionary": lambda it: repr(vars(it)),
    "pickle": pickle.dumps,
    "old pickle": lambda it: pickle.dumps(it, protocol=0),
}
# What a writer says of a thing that it cannot write.
REFUSALS = (
    TypeError,
    ValueError,
    AttributeError,
    cbor2.CBOREncodeError,
    pickle.PicklingError,
)


@pytest.mark.parametrize("holder", sorted(HOLDERS.keys() - MODELS))
def test_what_holds_a_secret_is_written_out_by_nothing(
    scene: SecretScene, holder: str
) -> None:
    it = HOLDERS[holder](scene)
    for name, write in COPIES.items():
        try:
            written = write(it)
        except REFUSALS as error:
            written = "\n".join(said_by(error))
        else:
            assert not (name.endswith("pickle") and holder in UNPICKLED), name
        content = written if isinstance(written, bytes) else str(written)
        assert scene.canaries.found_in(content) == set(), name


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_secret_is_not_copied(copied: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        copied(Secret(SECRET))
