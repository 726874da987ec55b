"""The door of a server's session: which datagrams are worth taking apart, asked before they are.

Decoding a packet takes fifty microseconds and more, and a sender pays nothing for it. What nobody here will
listen to, and what somebody sends beyond his share, is told from a few bytes at fixed places, so that a flood
leaves the processor to the transfer, and the socket's buffer to those who take part in it.
"""

from __future__ import annotations

from wdstransport.protocol.allowance import Allowance
from wdstransport.protocol.clients import Address, ClientLists
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.wire.security import Security
from wdstransport.wire.transport import DropReason, OpCode, WireError

__all__ = ["Door"]

# Plain numbers: a member of an enum costs a slow look-up in Python 3.11.
_JOIN, _NACK = int(OpCode.JOIN), int(OpCode.NACK)
_OF_MEMBERS = frozenset(map(int, (OpCode.ACK, OpCode.NACK, OpCode.QCR, OpCode.POLLACK, OpCode.LEAVE)))


class Door:
    """Judges datagrams by OpCode and source, for one session."""

    __slots__ = ("_at", "_clients", "_joins", "_security", "_session")

    def __init__(
        self,
        *,
        session_id: int,
        security: Security,
        clients: ClientLists,
        parameters: ServerParameters,
        now: float,
    ) -> None:
        """Open the door.

        Args:
            session_id: the session's number.
            security: the mode and keys of what clients send.
            clients: who is known.
            parameters: how much one may send.
            now: seconds.
        """
        # The session header: SessionID, then OpCode (MS-WDSMT 2.2.3).
        self._at = security.header_len + 4
        self._session = session_id.to_bytes(4, "big")
        self._security = security
        self._clients = clients
        self._joins = Allowance(parameters.joins_per_second, parameters.join_burst, now)

    def refuses(self, datagram: memoryview, source: Address, now: float) -> str | None:
        """Why a datagram is not worth decoding: the key to count it under; None when it may be.

        A datagram with more than one fault is counted under the one that was cheaper to find.
        """
        at = self._at
        if len(datagram) <= at or datagram[at - 4 : at] != self._session:
            return None  # junk: decoding ends early and names the reason
        code = datagram[at]
        record = self._clients.at(source)
        if code == _JOIN:
            if record is None or record.client_id in self._clients.pending:
                return self._refuses_join(datagram, now)
        elif record is None:
            # Only a JOIN makes an address somebody (MS-WDSMT 3.1.5.2); all else would end there anyway.
            return DropReason.UNKNOWN_CLIENT.value if code in _OF_MEMBERS else None
        elif code == _NACK and record.nack_work.left(now) < 1:
            return "too_many_nacks"
        return None

    def _refuses_join(self, datagram: memoryview, now: float) -> str | None:
        """A JOIN of somebody not confirmed costs a record and up to three JOINACKs as well."""
        try:
            self._security.verify(datagram)
        except WireError:
            return None  # junk is dropped for what it is, and costs nobody's turn
        if self._joins.left(now) < 1:
            return "too_many_joins"
        self._joins.spend(1, now)
        return None
