"""What is fuzzed, and what must hold: any bytes are accepted or counted, and nothing else happens.

A target takes bytes and raises only if the promise is broken. The session targets read the bytes as a script:
datagrams of their own making, time that passes, calls of the driver.
"""

import functools
import random
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

from wdstransport.protocol.client_session import ClientSession
from wdstransport.protocol.clients import DemoteTarget
from wdstransport.protocol.events import BlocksArrived, Demoted, Left
from wdstransport.protocol.parameters import ClientParameters, ServerParameters
from wdstransport.protocol.server_session import ServerSession
from wdstransport.wire import application, initiation, keys, transport
from wdstransport.wire.answers import decode_answer, encode_answer
from wdstransport.wire.batch import Batch, parse_data
from wdstransport.wire.security import (
    ChecksumSecurity,
    HashSecurity,
    NoSecurity,
    SignSecurity,
    build_sec_mode,
    parse_sec_mode,
)
from wdstransport.wire.slots import SlotBuffer
from wdstransport.wire.transport import Ack, KickReason, Nack, Ncf, OpCode, WireError

SESSION = 0x6D19EE7E
SERVER = ("10.0.0.1", 5000)
BLOCKS, BLOCK = 300, 16
# What costs construct's time and keeps nothing of an input is built once: inputs a second are the point.
CHECKSUM = ChecksumSecurity()
SECURITIES = (NoSecurity(), CHECKSUM, HashSecurity(b"key"))
# Nobody knows its factors, and only verifying is fuzzed: any odd number of the length will do.
SIGN_KEY = RSAPublicNumbers(65537, 3**646 | 1 << 1023).public_key()
MAX_STEPS = 400


class Reader:
    """Bytes as choices; zero when there are none left."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, size: int) -> int:
        piece = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(piece.ljust(size, b"\0"), "big")

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def small(self, below: int) -> int:
        return self.number(1) % below

    def sequence(self, near: int) -> int:
        """A sequence number: usually near one that makes sense, sometimes anything."""
        kind = self.number(1)
        if kind < 200:
            return max(0, min(2**64 - 1, near + kind - 100))
        return self.number(8)

    def __bool__(self) -> bool:
        return self.at < len(self.data)


def wire_transport(data: bytes) -> None:
    """MS-WDSMT 2.2: what decodes can be encoded again, and decodes to the same."""
    if not data:
        return
    security = SECURITIES[data[0] % len(SECURITIES)]
    body = data[1:]
    for datagram in (body, security.seal(body) + body):
        try:
            header, packet = transport.decode(datagram, session_id=None, security=security)
        except WireError:
            continue
        again = transport.encode(
            packet, session_id=header.session_id, sender_time=header.sender_time, security=security
        )
        assert transport.decode(again, session_id=header.session_id, security=security) == (header, packet)


def wire_application(data: bytes) -> None:
    """MS-WDSMA 2.2: building is the inverse of parsing."""
    try:
        packet = application.decode(data)
    except WireError:
        return
    assert application.encode(packet) == data


def wire_initiation(data: bytes) -> None:
    """MS-WDSMSI 2.2.2: what decodes can be encoded again, and decodes to the same."""
    try:
        packet = initiation.decode(data)
    except WireError:
        return
    assert initiation.decode(initiation.encode(packet)) == packet


def wire_keys(data: bytes) -> None:
    """CryptoAPI blobs: what parses can be built again, and an RSA key is one or is refused."""
    try:
        blob = keys.parse_plaintext_key_blob(data)
    except WireError:
        pass
    else:
        assert keys.build_plaintext_key_blob(blob) == data
    try:
        public = keys.parse_public_key_blob(data)
        rsa = public.to_rsa()
    except WireError:
        return
    assert keys.build_public_key_blob(rsa, public.alg_id) == data


def wire_security(data: bytes) -> None:
    """MS-WDSMT 2.2.2 in every mode, nothing learnt yet (deviations 12, 48); SecMode of MS-WDSMSI."""
    reader = Reader(data)
    value = reader.number(4)
    try:
        modes = parse_sec_mode(value)
    except WireError:
        pass
    else:
        assert parse_sec_mode(build_sec_mode(*modes)) == modes
    kind = reader.small(4)
    algorithm = ("sha1", "sha256", "sha384", "sha512")[reader.small(4)]
    security = (
        NoSecurity(),
        ChecksumSecurity(),
        HashSecurity(b"key", algorithm),
        SignSecurity(SIGN_KEY, algorithm),
    )[kind]
    tag, body = reader.take(security.data_len), data[reader.at :]
    fixed = b"WD" + bytes([security.mode]) + security.data_len.to_bytes(2, "big")
    for datagram in (data, fixed + tag + body):
        try:
            assert bytes(security.verify(memoryview(datagram))) == datagram[security.header_len :]
        except WireError:
            continue
    if kind < 3:
        assert security.verify(memoryview(security.seal(body) + body)) == body


def wire_answers(data: bytes) -> None:
    """ACK, NACK and NCF, nearly: the fast form takes what the declaration takes, and reads it alike."""
    reader = Reader(data)
    security = SECURITIES[reader.small(2)]
    op_code = (OpCode.ACK, OpCode.NACK, OpCode.NCF, reader.number(1))[reader.small(4)]
    session = SESSION if reader.small(8) else reader.number(4)
    body = session.to_bytes(4, "big") + bytes([op_code]) + reader.number(8).to_bytes(8, "big")
    loss = (reader.number(1) * 10**14 if reader.small(4) else reader.number(8)).to_bytes(8, "big")
    if op_code == OpCode.ACK:
        body += reader.number(4).to_bytes(4, "big") + reader.number(4).to_bytes(8, "big") * 3 + loss
    elif op_code == OpCode.NACK:
        body += reader.number(4).to_bytes(4, "big") + reader.sequence(1000).to_bytes(8, "big") + loss
    if op_code in (OpCode.NACK, OpCode.NCF):
        body += _ranges(reader, 1000)
    body += (b"\0\0", b"\0\0", b"", _options(reader))[reader.small(4)] + reader.take(reader.small(3))
    datagram = bytearray(security.seal(body) + body)
    if not reader.small(8):
        datagram[reader.number(1) % len(datagram)] ^= reader.number(1)
    answer = decode_answer(memoryview(datagram), session_id=SESSION, security=security)
    try:
        header, packet = transport.decode(datagram, session_id=SESSION, security=security)
    except WireError:
        assert answer is None, "the fast form took what the declaration refuses"
        return
    if answer is not None:
        assert answer == (header.sender_time, packet)
    if isinstance(packet, Ack | Nack | Ncf):
        again = encode_answer(packet, session_id=SESSION, sender_time=header.sender_time, security=security)
        assert transport.decode(again, session_id=SESSION, security=security) == (header, packet)
        assert (again == datagram) == (answer is not None), "not the usual form, or left to the declaration"


@functools.lru_cache(4096)
def _slots(security: int, count: int, length: int, fw_lead: bool) -> SlotBuffer:
    """Slots to be filled anew; whoever keeps what they hold takes a copy."""
    return SlotBuffer(count, length, session_id=SESSION, security=SECURITIES[security], fw_lead=fw_lead)


def wire_batch(data: bytes) -> None:
    """A batch of data packets with bytes changed: the records agree with the declarations."""
    reader = Reader(data)
    mode = reader.small(len(SECURITIES))
    security = SECURITIES[mode]
    count = 1 + reader.small(6)
    slots = _slots(mode, count, BLOCK, bool(reader.small(2)))
    numbers = np.arange(5, 5 + count, dtype=np.uint64)
    kind = (OpCode.ODATA, OpCode.RDATA)[reader.small(2)]
    buffer = bytearray(
        slots.fill(
            0,
            count,
            op_code=kind,
            sender_time=1,
            client_id=2,
            odata_seq_no=numbers,
            trail_odata_seq_no=1,
            block_number=numbers,
        )
    )
    reseal = reader.small(2)
    while reader:
        buffer[reader.number(2) % len(buffer)] = reader.number(1)
    if reseal:
        for at in range(0, len(buffer), slots.segment):
            body = bytes(buffer[at + security.header_len : at + slots.segment])
            buffer[at : at + security.header_len] = security.seal(body)
    del buffer[len(buffer) - reseal * reader.small(40) :]
    if not buffer:
        return
    batch = Batch(memoryview(buffer), slots.segment, SERVER)
    records, leftover, dropped = parse_data(batch, session_id=SESSION, security=security)
    rows = [] if records is None else records.rows.tolist()
    total = -(-len(buffer) // slots.segment)
    assert len(rows) + len(leftover) + sum(count for _, count in dropped) == total
    assert not set(rows) & set(leftover.tolist())
    for place, row in enumerate(rows):
        header, packet = transport.decode(batch.datagram(row), session_id=SESSION, security=security)
        block = application.decode(packet.data)
        assert records is not None
        assert isinstance(block, application.Data)
        assert int(records.odata_seq_no[place]) == packet.odata_seq_no
        assert int(records.block_number[place]) == block.block_number
        assert int(records.client_id[place]) == packet.client_id
        assert int(records.header["sender_time"][place]) == header.sender_time
    for datagram in batch.datagrams():
        answer = decode_answer(datagram, session_id=SESSION, security=security)
        if answer is not None:
            header, packet = transport.decode(datagram, session_id=SESSION, security=security)
            assert answer == (header.sender_time, packet)


def _options(reader: Reader) -> bytes:
    return b"\0\0" if reader.small(4) else reader.take(2 + reader.small(12))


def _ranges(reader: Reader, near: int) -> bytes:
    count = reader.small(5)
    pairs = b"".join(
        start.to_bytes(8, "big") + min(2**64 - 1, start + reader.small(40)).to_bytes(8, "big")
        for start in (reader.sequence(near) for _ in range(count))
    )
    stated = count if reader.small(8) else reader.number(2)
    return stated.to_bytes(2, "big") + pairs


def _sealed(body: bytes, op_code: int, sender_time: int, reader: Reader) -> bytes:
    session = SESSION if reader.small(16) else reader.number(4)
    packet = session.to_bytes(4, "big") + bytes([op_code]) + sender_time.to_bytes(8, "big") + body
    datagram = CHECKSUM.seal(packet) + packet
    if not reader.small(16) and datagram:
        broken = bytearray(datagram)
        broken[reader.number(1) % len(broken)] ^= 1 + reader.small(255)
        return bytes(broken)
    return datagram


def _client_packet(reader: Reader, client_id: int, lead: int, polls: int, now: float) -> bytes:
    """Something a client might send, or nearly."""
    op_code = (0x02, 0x05, 0x08, 0x09, 0x0B, 0x0D, reader.number(1))[reader.small(7)]
    identity = client_id.to_bytes(4, "big")
    loss = (reader.number(1) * 10**14).to_bytes(8, "big")
    ours = int(now * 1000) - reader.small(40)
    match op_code:
        case 0x02:
            name = reader.take(reader.small(6)).hex().encode("utf-16-le")[:28]
            mac = reader.take(6)
            body = name.ljust(32, b"\0") + b"\4" + reader.take(4).ljust(4, b"\0")
            body += bytes([len(mac)]) + mac + _options(reader)
        case 0x05:
            payload = application.encode(application.ProgressReport(reader.number(4), reader.small(101)))
            payload = b"" if reader.small(3) == 0 else payload
            body = identity + reader.small(4).to_bytes(8, "big") + reader.number(2).to_bytes(2, "big")
            body += ours.to_bytes(8, "big") + reader.sequence(lead).to_bytes(8, "big") + loss
            body += len(payload).to_bytes(2, "big") + payload + _options(reader)
        case 0x08:
            body = identity + reader.sequence(lead).to_bytes(8, "big") + ours.to_bytes(8, "big")
            body += reader.sequence(lead).to_bytes(8, "big") + loss + b"\0\0"
        case 0x09:
            body = (
                identity + reader.sequence(lead).to_bytes(8, "big") + loss + _ranges(reader, lead) + b"\0\0"
            )
        case 0x0B:
            body = identity + bytes([reader.small(4)]) + b"\0\0"
        case 0x0D:
            start = 1 + reader.small(BLOCKS)
            ranges = ((start, min(BLOCKS, start + reader.number(1))),) if reader.small(3) else ()
            payload = application.encode(application.CntCir(reader.small(101), reader.number(1), ranges))
            body = identity + (polls if reader.small(6) else reader.number(8)).to_bytes(8, "big")
            body += len(payload).to_bytes(2, "big") + payload + b"\0\0"
        case _:
            body = reader.take(reader.small(80))
    return _sealed(body, op_code, reader.number(2), reader)


def server_session(data: bytes) -> None:
    """MS-WDSMT 3.1 and MS-WDSMA 3.1 under any sequence of packets, times and calls."""
    reader = Reader(data)
    now = 1000.0
    parameters = ServerParameters(max_clients=6, max_pending_clients=4, min_clients=1 + reader.small(2))
    session = ServerSession(
        session_id=SESSION,
        total_blocks=BLOCKS,
        client_security=CHECKSUM,
        server_security=CHECKSUM,
        parameters=parameters,
        rng=random.Random(reader.number(2)),
        now=now,
    )
    known: list[int] = [1]
    lead = polls = 0
    for _ in range(MAX_STEPS):
        if not reader:
            break
        step = reader.small(16)
        if step < 10:
            source = (f"10.0.1.{reader.small(8)}", 40000)
            client_id = known[reader.small(len(known))]
            datagram = _client_packet(reader, client_id, lead, polls, now)
            before = sum(session.dropped.values())
            waiting = len(session.transport.outbox.packets)
            session.receive(Batch(memoryview(datagram), len(datagram), source), now)
            if sum(session.dropped.values()) > before:
                # A client that was removed and joins again is told so, once more (deviation 56).
                told = [packet for packet, _ in session.transport.outbox.packets[waiting:]]
                assert all(isinstance(packet, transport.Kick | transport.Demote) for packet in told), (
                    "an answer to what was dropped"
                )
                assert not told or datagram[CHECKSUM.header_len + 4] == OpCode.JOIN
        elif step < 13:
            now += (0.001, 0.02, 0.3, 5.0, 70.0)[reader.small(5)]
        elif step == 13:
            run = session.take_odata(1 + reader.small(64), now)
            if run is not None:
                assert 1 <= run.first_block <= run.first_block + run.count - 1 <= BLOCKS
                assert run.first_seq == lead + 1
                lead = run.first_seq + run.count - 1
        elif step == 14:
            repairs = session.take_repairs(64)
            for seq, block in repairs:
                assert 1 <= seq <= lead
                assert 1 <= block <= BLOCKS
            session.repairs_sent([seq for seq, _ in repairs], now)
        else:
            client_id = known[reader.small(len(known))]
            if reader.small(2):
                session.kick(client_id, KickReason(reader.small(3)), now)
            else:
                session.demote(client_id, DemoteTarget(1, bytes(4), 1, bytes(4), 1), now)
        _due(session, now)
        for datagram, to in session.take_outgoing(now):
            _, packet = transport.decode(datagram, session_id=SESSION, security=CHECKSUM)
            if isinstance(packet, transport.JoinAck):
                assert to is not None
                known.append(packet.client_id)
                del known[:-8]
            elif isinstance(packet, transport.Poll):
                polls = packet.poll_seq_no
        session.take_events()
        lists = session.transport.clients
        assert len(lists.active) <= parameters.max_clients
        assert len(lists.pending) <= parameters.max_pending_clients
        data_state = session.transport.data
        assert 0 <= data_state.mc_trail <= data_state.mc_lead == lead
        assert data_state.window.size <= data_state.window.maximum


def _due(session: ServerSession | ClientSession, now: float) -> None:
    """The rule of the pump: after the timers were handled, the next deadline is later."""
    if session.next_deadline() <= now:
        session.handle_timers(now)
        assert session.next_deadline() > now, "a deadline that does not move: the pump would spin"


def _server_packet(reader: Reader, client_id: int, lead: int, join_time: int) -> bytes:
    """Something a server might send, or nearly."""
    op_code = (0x01, 0x03, 0x04, 0x0A, 0x0C, 0x0E, 0x0F, reader.number(1))[reader.small(8)]
    identity = (client_id if reader.small(4) else reader.number(4)).to_bytes(4, "big")
    counter = reader.small(32).to_bytes(8, "big")
    back_off = reader.number(2).to_bytes(2, "big")
    match op_code:
        case 0x01:
            trail = reader.sequence(lead)
            body = counter + identity + back_off + back_off + trail.to_bytes(8, "big")
            body += reader.sequence(lead).to_bytes(8, "big") + back_off + b"\0\0"
        case 0x03:
            echo = join_time if reader.small(4) else reader.number(8)
            body = identity + back_off * 3 + echo.to_bytes(8, "big") + b"\0\0"
        case 0x04:
            body = counter + back_off + b"\0\0"
        case 0x0A:
            body = _ranges(reader, lead) + b"\0\0"
        case 0x0C:
            payload = b"\0\3\1" if reader.small(3) else reader.take(reader.small(9))
            body = counter + back_off + len(payload).to_bytes(2, "big") + payload + b"\0\0"
        case 0x0E:
            body = b"\0\1" + identity + bytes([reader.small(4)]) + b"\0\0"
        case 0x0F:
            body = reader.take(4).ljust(4, b"\0") + b"\4" + b"\xef\1\2\3" + b"\1\1" + b"\4" + b"\x0a\0\0\1"
            body += b"\1\1" + b"\0\1" + identity + b"\0\0"
        case _:
            body = reader.take(reader.small(80))
    return _sealed(body, op_code, reader.number(2), reader)


def _data_batch(reader: Reader, client_id: int, lead: int) -> Batch:
    count = 1 + reader.small(9)
    first = max(1, min(2**64 - 20, reader.sequence(lead)))
    block = 1 + reader.small(BLOCKS) if reader.small(8) else reader.number(8)
    block = min(block, 2**64 - 20)
    length = BLOCK if reader.small(8) else reader.small(BLOCK)
    slots = _slots(1, count, length, bool(reader.small(2)))
    buffer = bytearray(
        slots.fill(
            0,
            count,
            op_code=(OpCode.ODATA, OpCode.RDATA)[reader.small(2)],
            sender_time=reader.number(2),
            client_id=client_id if reader.small(2) else reader.number(1),
            odata_seq_no=np.arange(first, first + count, dtype=np.uint64),
            trail_odata_seq_no=max(0, min(first, first - reader.small(40))),
            block_number=np.arange(block, block + count, dtype=np.uint64),
            previous_lead=first - 1,
        )
    )
    if not reader.small(6):
        buffer[reader.number(2) % len(buffer)] ^= 1 + reader.small(255)
    kept = memoryview(buffer)[: len(buffer) - reader.small(2) * reader.small(60)]
    return Batch(kept, slots.segment, SERVER if reader.small(12) else ("10.9.9.9", 1))


def client_session(data: bytes) -> None:
    """MS-WDSMT 3.2 and MS-WDSMA 3.2 under any sequence of packets, times and calls."""
    reader = Reader(data)
    now = 1000.0
    session = ClientSession(
        session_id=SESSION,
        server=SERVER,
        content_size=BLOCKS * BLOCK - reader.small(BLOCK),
        block_size=BLOCK,
        total_blocks=BLOCKS,
        client_name="fuzz",
        ip_address=bytes([10, 0, 0, 9]),
        mac_address=bytes(6),
        client_security=CHECKSUM,
        server_security=CHECKSUM,
        parameters=ClientParameters(max_cache_size=40 * (BLOCK + 13)),
        rng=random.Random(reader.number(2)),
        now=now,
    )
    client_id = lead = 0
    outstanding: list[BlocksArrived] = []
    arrived: set[int] = set()
    for _ in range(MAX_STEPS):
        if not reader:
            break
        step = reader.small(16)
        if step < 11:
            if step < 6:
                batch = _data_batch(reader, client_id, lead)
            else:
                datagram = _server_packet(reader, client_id, lead, int(now * 1000))
                batch = Batch(memoryview(datagram), len(datagram), SERVER)
            refused = session.dropped.total() + -(-len(batch.buffer) // batch.segment)
            waiting = len(session.transport.outbox.packets)
            session.receive(batch, now, multicast=step < 6 or bool(step % 2))
            if session.dropped.total() == refused:
                assert len(session.transport.outbox.packets) == waiting, "an answer to what was dropped"
            assert session.dropped.total() <= refused, "counted twice"
            lead = max(lead, session.transport.data.lead % 2**32)
        elif step < 14:
            now += (0.001, 0.02, 0.3, 5.0, 31.0)[reader.small(5)]
        elif step == 14:
            while outstanding:
                session.stored(outstanding.pop(), now)
        elif not reader.small(8):
            session.leave((Left.COMPLETE, Left.CANCELLED)[reader.small(2)], now)
        _due(session, now)
        for event in session.take_events():
            if isinstance(event, BlocksArrived):
                outstanding.append(event)
                blocks = {run.first_block + place for run in event.runs for place in range(run.rows)}
                assert len(blocks) == event.count, "a block handed over twice"
                assert not blocks & arrived, "a block handed over twice"
                assert min(blocks) >= 1
                assert max(blocks) <= BLOCKS
                arrived |= blocks
            elif isinstance(event, Demoted):
                session.enter_lower_session(SESSION, SERVER, now)
        for datagram in session.take_outgoing(now):
            _, packet = transport.decode(datagram, session_id=SESSION, security=CHECKSUM)
            assert not isinstance(packet, transport.OData)
        client_id = session.transport.client_id
        assert session.transport.cache_used <= session.cache_size
        assert len(arrived) == session.application.blocks.count


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        wire_transport,
        wire_application,
        wire_initiation,
        wire_keys,
        wire_security,
        wire_answers,
        wire_batch,
        server_session,
        client_session,
    )
}
