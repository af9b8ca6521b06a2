"""One mutual challenge in memory, message by message, to be interfered with."""

from __future__ import annotations

from datetime import timedelta

from tests.support.audit import RecordedDoor

from cloister.ratls.admission import new_authority
from cloister.ratls.admission_table import AdmissionTable, Peer
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import (
    Admission,
    Answer,
    Challenge,
    ClientProof,
    Hello,
    ServerProof,
)
from cloister.ratls.client_enrolment import Admittance, ClientEnrolment
from cloister.ratls.enrolment_pace import EnrolmentPace
from cloister.ratls.node import Node
from cloister.ratls.server_enrolment import ServerEnrolment
from cloister.ratls.transcript import Transcript

CERTIFICATE_LIFE = timedelta(days=30)


class Meeting:
    """A server and a client at their challenge; each step does those before it.

    Args:
        server: The server's node.
        client: The client's.
        table: The server's table; a fresh one unless given.
        door: Where the server records; a fresh one unless given.
        pace: What counts the client's enrolments; a fresh one unless given.

    Attributes:
        table: The server's admission table.
        door: What the server recorded.
        client: The client's side.
        server: The server's side.
    """

    def __init__(
        self,
        server: Node,
        client: Node,
        *,
        table: AdmissionTable | None = None,
        door: RecordedDoor | None = None,
        pace: EnrolmentPace | None = None,
    ) -> None:
        self.server_node, self.client_node = server, client
        self.table = table or AdmissionTable(server.clock)
        self.door = door or RecordedDoor()
        self.authority = new_authority(at=server.clock(), life=CERTIFICATE_LIFE)
        self.client = ClientEnrolment(client)
        self.server = ServerEnrolment(
            server,
            authority=self.authority,
            table=self.table,
            audit=self.door,
            pace=pace,
        )

    def certificate(self) -> bytes:
        """(1) The server's certificate."""
        node = self.server_node
        return make_certificate(
            node.identity, node.platform, at=node.clock(), life=CERTIFICATE_LIFE
        )

    def hello(self) -> Hello:
        """(2) The client's hello, after it pinned the certificate."""
        self.client.pin(self.certificate())
        return self.client.hello()

    def challenge(self) -> Challenge:
        """(3) The server's challenge."""
        return self.server.challenge(self.hello())

    def answer(self) -> Answer:
        """(4) The client's answer."""
        return self.client.answer(self.challenge())

    def server_proof(self) -> ServerProof:
        """(5) The server's proof."""
        return self.server.prove(self.answer())

    def client_proof(self) -> ClientProof:
        """(6) The client's proof."""
        return self.client.prove(self.server_proof())

    def admit(self) -> tuple[Peer, Admission]:
        """(7) What the server makes of it."""
        return self.server.admit(self.client_proof())

    def finish(self) -> Admittance:
        """What the client has in the end."""
        _, admission = self.admit()
        return self.client.finish(admission)


def transcript_of(side: ClientEnrolment | ServerEnrolment) -> Transcript:
    """Returns what one side believes was said."""
    assert side._transcript is not None
    return side._transcript
