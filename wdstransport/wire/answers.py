"""The fast forms of ACK, NACK and NCF, which come and go with every loss and every batch.

The declarations of `transport` say what these packets are, and take fifty microseconds for one, several
times that where the processor's caches are full of image. Here the usual form of each, without options, is
packed by `struct`; whatever is not in the usual form is left to `transport.decode`, which also names the
reason to drop it. `tests/wire/test_answers.py` proves both forms equal.
"""

from __future__ import annotations

import struct

from wdstransport.wire.security import Security
from wdstransport.wire.transport import LOSS_SCALE, Ack, Nack, Ncf, OpCode, WireError

__all__ = ["decode_answer", "encode_answer"]

# Plain numbers: a member of an enum costs a slow look-up in Python 3.11.
_ACK_CODE, _NACK_CODE, _NCF_CODE = int(OpCode.ACK), int(OpCode.NACK), int(OpCode.NCF)
_OP_CODE_AT = 4
# The session header (MS-WDSMT 2.2.3), then the fixed fields; OptionsCount 0 ends each (deviation 13).
_ACK = struct.Struct(">IBQIQQQQH")
_NACK = struct.Struct(">IBQIQQH")
_NCF = struct.Struct(">IBQH")
_PAIR = struct.Struct(">QQ")
_NO_OPTIONS = bytes(2)

Answer = Ack | Nack | Ncf


def encode_answer(packet: Answer, *, session_id: int, sender_time: int, security: Security) -> bytes:
    """The bytes of an ACK, NACK or NCF, equal to what `transport.encode` makes of it.

    Args:
        packet: what to send; its ranges are in order, as every list of missing numbers here is.
        session_id: the session it belongs to.
        sender_time: milliseconds.
        security: that of the sender's direction.
    """
    if isinstance(packet, Ack):
        body = _ACK.pack(
            session_id,
            _ACK_CODE,
            sender_time,
            packet.client_id,
            packet.odata_seq_no,
            packet.server_time,
            packet.hi_odata_seq_no,
            packet.loss_rate,
            0,
        )
        return security.seal(body) + body
    ranges = packet.ranges
    if isinstance(packet, Nack):
        fixed = _NACK.pack(
            session_id,
            _NACK_CODE,
            sender_time,
            packet.client_id,
            packet.hi_odata_seq_no,
            packet.loss_rate,
            len(ranges),
        )
    else:
        fixed = _NCF.pack(session_id, _NCF_CODE, sender_time, len(ranges))
    numbers = [number for pair in ranges for number in pair]
    body = fixed + struct.pack(f">{len(numbers)}Q", *numbers) + _NO_OPTIONS
    return security.seal(body) + body


def decode_answer(datagram: memoryview, *, session_id: int, security: Security) -> tuple[int, Answer] | None:
    """SenderTime and packet of a usual ACK, NACK or NCF; None where `transport.decode` is to judge."""
    at = security.header_len
    if len(datagram) <= at + _OP_CODE_AT:
        return None
    code = datagram[at + _OP_CODE_AT]
    try:
        if code == _ACK_CODE:
            return _decode_ack(datagram, at, session_id, security)
        if code == _NACK_CODE:
            return _decode_nack(datagram, at, session_id, security)
        if code == _NCF_CODE:
            return _decode_ncf(datagram, at, session_id, security)
    except (WireError, struct.error):
        pass
    return None


def _decode_ack(
    datagram: memoryview, at: int, session_id: int, security: Security
) -> tuple[int, Answer] | None:
    if len(datagram) != at + _ACK.size:
        return None
    session, _, sent, client_id, sequence, server_time, highest, loss, options = _ACK.unpack_from(
        datagram, at
    )
    if session != session_id or options or loss > LOSS_SCALE:
        return None
    security.verify(datagram)
    return sent, Ack(client_id, sequence, server_time, highest, loss)


def _decode_nack(
    datagram: memoryview, at: int, session_id: int, security: Security
) -> tuple[int, Answer] | None:
    session, _, sent, client_id, highest, loss, count = _NACK.unpack_from(datagram, at)
    ranges = _ranges(datagram, at + _NACK.size, count)
    if session != session_id or loss > LOSS_SCALE or ranges is None:
        return None
    security.verify(datagram)
    return sent, Nack(client_id, highest, loss, ranges)


def _decode_ncf(
    datagram: memoryview, at: int, session_id: int, security: Security
) -> tuple[int, Answer] | None:
    session, _, sent, count = _NCF.unpack_from(datagram, at)
    ranges = _ranges(datagram, at + _NCF.size, count)
    if session != session_id or ranges is None:
        return None
    security.verify(datagram)
    return sent, Ncf(ranges)


def _ranges(datagram: memoryview, at: int, count: int) -> tuple[tuple[int, int], ...] | None:
    """The `count` ranges from `at`, when they and an OptionsCount of 0 are all that is left."""
    end = at + count * _PAIR.size
    if len(datagram) != end + len(_NO_OPTIONS) or datagram[end:] != _NO_OPTIONS:
        return None
    ranges = tuple(_PAIR.iter_unpack(datagram[at:end]))
    for first, last in ranges:
        if first > last:
            return None
    return ranges
