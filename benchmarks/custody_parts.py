"""Shares released without a network, both sides in one process, step by step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cloister.custody.certificate import make_custodian_certificate
from cloister.custody.custodian import Custodian
from cloister.custody.key_store import ask_store
from cloister.custody.messages import CustodianProof, KeysReleased, Met
from cloister.custody.node_share_meeting import NodeShareMeeting
from cloister.custody.release_rules import keys_for
from cloister.custody.released_keys import seal_keys
from cloister.custody.share_meeting import ShareMeeting
from cloister.ratls.challenge import Answer
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from custody_scene import SHARE, WARRANT_LIFE
from reporting import Parts
from scene import SERVER, Scene


def in_parts(
    scene: Scene, custodian: Custodian, nodes: Sequence[Node], *, parts: Parts
) -> None:
    """Has nodes get their share without a network; notes what each part took.

    The custodian's register notes in `parts` what is its own.
    """
    identity = new_identity()
    certificate = make_custodian_certificate(
        SERVER,
        custodian.key,
        identity.tls_key,
        at=custodian.appraiser.clock(),
        life=WARRANT_LIFE,
    )
    for node in nodes:
        meeting = ShareMeeting(custodian, tls_key=identity.tls_spki)
        side = NodeShareMeeting(node, party=SERVER)

        def signatures(
            meeting: ShareMeeting = meeting, side: NodeShareMeeting = side
        ) -> tuple[Answer, CustodianProof]:
            side.pin(certificate)
            answer = side.answer(meeting.challenge(side.hello()))
            return answer, meeting.prove(answer)

        answer, proof = parts.time("1-5 certificate, signatures, warrant", signatures)
        evidence = parts.time("6 quote, by the node", lambda: side.prove(proof))  # noqa: B023
        transcript = side.transcript
        proved = parts.time(
            "7 verify the proof",
            lambda: custodian.judge(
                evidence,  # noqa: B023
                plan=scene.plan,
                transcript=transcript,  # noqa: B023
                warrant=answer.warrant,  # noqa: B023
            ),
        )
        terms = custodian.meet(proved)
        side.accept(Met())
        release_in_parts(parts, custodian, side, epoch=terms.epoch)


def release_in_parts(
    parts: Parts, custodian: Custodian, side: NodeShareMeeting, *, epoch: int
) -> None:
    """Does what `Custodian.release` does, step by step, and opens the result."""
    transcript = side.transcript

    def rules() -> str:
        key_ids = keys_for(
            custodian.plan(transcript.plan_hash),
            custodian_party=SERVER,
            role=transcript.client_role,
            party=transcript.client_party,
            kinds=SHARE,
        )
        custodian.register.check_release_rate(
            transcript, at=custodian.appraiser.clock()
        )
        return key_ids["state-share"]

    name = parts.time("release: plan and rate", rules)
    secret = parts.time(
        "release: key store",
        lambda: ask_store(custodian.keys, name, kind="state-share"),
    )
    sealed = parts.time(
        "release: HPKE seal",
        lambda: seal_keys({"state-share": secret}, transcript=transcript, epoch=epoch),
    )
    custodian.register.release(
        transcript, key_ids=(name,), at=custodian.appraiser.clock()
    )
    parts.time(
        "release: HPKE open, by the node",
        lambda: side.open(KeysReleased(sealed=sealed)),
    )


def sync_ms(directory: Path, times: int) -> float:
    """Returns the milliseconds that this disk takes for a page, written through."""
    parts = Parts()
    with (directory / "page").open("wb", buffering=0) as file:

        def write() -> None:
            file.write(bytes(4096))
            os.fsync(file.fileno())

        for _ in range(times):
            parts.time("fsync", write)
    return parts.medians()["fsync"]
