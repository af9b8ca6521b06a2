"""The unchanging header of a mirror: whose it is, of what form, under which key.

Form: ``docs/spec/mirror.md``. It lies in the clear, and says nothing that changes; it
lets a wrong file be told by name. That it is authentic follows from its tag alone.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path

import cbor2

from cloister.storage.keys import Secret
from cloister.storage.mirror.block_cipher import (
    LABEL,
    form_of,
    header_tag,
    key_name,
)
from cloister.storage.mirror.manifest import Bound
from cloister.storage.mirror.refusals import damaged, foreign, other_key, other_version

_MAX_SHOWN = 64  # characters of what somebody may have written


@dataclass(frozen=True, slots=True, kw_only=True)
class Title:
    """What the header of a mirror is to say.

    Attributes:
        bound: Kind, subject and layout.
        slots: How many states it has room for.
    """

    bound: Bound
    slots: int

    def write(self, key: Secret) -> bytes:
        """Returns the header."""
        body = self._body(key)
        return cbor2.dumps(
            [LABEL, body, header_tag(key, self.bound.kind, body)], canonical=True
        )

    def check(self, header: bytes, key: Secret, *, path: Path) -> None:
        """Checks that a mirror's header says this.

        1. It is of this version.
        2. It names this kind of mirror, and this subject.
        3. It names this key.
        4. It is authentic.
        5. It names this layout and these slots.

        Steps 2 and 3 only find the right words: step 4 decides.

        Args:
            header: Anybody may have written it.
            key: The node's state key.
            path: The file, for messages.

        Raises:
            StorageError: If not (``mirror-version``, ``mirror-foreign``,
                ``mirror-key``, ``mirror-damaged``).
        """
        # Step 1
        label, body, tag = _parts(header, path)
        if label != LABEL:
            raise other_version(path)
        kind, whose, form, name = _fields(body, path)
        # Step 2
        own: list[object] = [self.bound.kind, form_of(self.bound.subject)]
        if [kind, whose] != own:
            raise foreign(path, expected=_shown(own), got=_shown([kind, whose]))
        # Step 3
        if name != key_name(key, self.bound.kind):
            raise other_key(path)
        # Step 4
        if not hmac.compare_digest(tag, header_tag(key, self.bound.kind, body)):
            raise damaged(path, "its header")
        # Step 5
        if form != [self.bound.layout.digest, self.slots]:
            raise foreign(
                path,
                expected="the arrays that the plan's task has",
                got="arrays of other names, shapes, types or number of copies",
            )

    def _body(self, key: Secret) -> bytes:
        bound = self.bound
        form = [
            bound.kind,
            form_of(bound.subject),
            [bound.layout.digest, self.slots],
            key_name(key, bound.kind),
        ]
        return cbor2.dumps(form, canonical=True)


def _parts(header: bytes, path: Path) -> tuple[object, bytes, bytes]:
    form = _loaded(header, path)
    if not (isinstance(form, list) and len(form) == 3):
        raise damaged(path, "its header")
    label, body, tag = form
    if not (isinstance(body, bytes) and isinstance(tag, bytes)):
        raise damaged(path, "its header")
    return label, body, tag


def _fields(body: bytes, path: Path) -> tuple[object, object, object, object]:
    form = _loaded(body, path)
    if not (isinstance(form, list) and len(form) == 4):
        raise damaged(path, "its header")
    kind, whose, layout, name = form
    return kind, whose, layout, name


def _loaded(content: bytes, path: Path) -> object:
    try:
        loaded: object = cbor2.loads(content)
    except (cbor2.CBORDecodeError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, "its header") from error
    return loaded


def _shown(form: list[object]) -> str:
    """Returns public values of whoever wrote them, fit for a message."""
    kind, whose = form
    words = whose if isinstance(whose, list) else []
    shown = [w.hex()[:16] if isinstance(w, bytes) else str(w) for w in words]
    text = " ".join([str(kind), *shown])
    return "".join(c if c.isprintable() else "?" for c in text[: 4 * _MAX_SHOWN])
