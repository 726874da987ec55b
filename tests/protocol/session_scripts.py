"""Both sessions under a script, as a driver sees them: datagrams and times."""

import random

import numpy as np
from hypothesis import strategies as st
from protocol_scripts import T, address, ms

from wdstransport.protocol.client_session import ClientSession
from wdstransport.protocol.parameters import ClientParameters, ServerParameters
from wdstransport.protocol.server_session import ServerSession
from wdstransport.wire.batch import Batch
from wdstransport.wire.options import CAP_MULTISTREAM, capabilities
from wdstransport.wire.security import ChecksumSecurity
from wdstransport.wire.slots import SlotBuffer
from wdstransport.wire.transport import Join, JoinAck, OpCode, PollAck, Qcc, Qcr, decode, encode

SESSION = 0x0BADCAFE
SERVER = ("10.0.0.99", 5000)
ME = 7


class ClientWire:
    """A client session in front of a server that is this script."""

    def __init__(
        self,
        *,
        now=T,
        total_blocks=100,
        block_size=10,
        client_security=None,
        server_security=None,
        seed=1,
        have=(),
        name="pc",
        **parameters,
    ):
        self.client_security = client_security or ChecksumSecurity()
        self.server_security = server_security or ChecksumSecurity()
        self.session = ClientSession(
            session_id=SESSION,
            server=SERVER,
            content_size=total_blocks * block_size,
            block_size=block_size,
            total_blocks=total_blocks,
            client_name=name,
            ip_address=bytes(4),
            mac_address=bytes(6),
            client_security=self.client_security,
            server_security=self.server_security,
            parameters=ClientParameters(**parameters),
            rng=random.Random(seed),
            now=now,
            have=have,
        )
        self.transport = self.session.transport
        self.block_size = block_size

    def sealed(self, packet, *, session_id=SESSION, sender_time=66):
        return encode(packet, session_id=session_id, sender_time=sender_time, security=self.server_security)

    def hear(self, what, now, *, multicast=True, source=SERVER, segment=None, sender_time=66):
        """Packets one by one, or the bytes of one batch."""
        data = what if isinstance(what, bytes | bytearray) else self.sealed(what, sender_time=sender_time)
        batch = Batch(memoryview(data), len(data) if segment is None else segment, source)
        self.session.receive(batch, now, multicast=multicast)

    def regular(self, now=T, *, low=0, high=0):
        self.hear(JoinAck(ME, low, high, 0, ms(now)), now, multicast=False)
        self.sent(now)
        self.session.take_events()
        return self

    def sent(self, now):
        return [
            decode(datagram, session_id=None, security=self.client_security)
            for datagram in self.session.take_outgoing(now)
        ]

    def data(self, first_seq, first_block, count, **fields):
        """The bytes of one batch of data, as the server's driver would build them."""
        return data_batch(self.server_security, first_seq, first_block, count, **fields)


def payload_of(block, block_len):
    return bytes((block + place) % 256 for place in range(block_len))


def data_batch(
    security,
    first_seq,
    first_block,
    count,
    *,
    block_len=10,
    op_code=OpCode.ODATA,
    master=ME,
    trail=1,
    fw_lead=True,
    previous_lead=0,
    sender_time=900,
    session_id=SESSION,
):
    """Datagrams with consecutive numbers, built by the code that the server's driver uses."""
    slots = SlotBuffer(count, block_len, session_id=session_id, security=security, fw_lead=fw_lead)
    for place in range(count):
        slots.payload[place][:] = payload_of(first_block + place, block_len)
    return bytes(
        slots.fill(
            0,
            count,
            op_code=op_code,
            sender_time=sender_time,
            client_id=master,
            odata_seq_no=np.arange(first_seq, first_seq + count, dtype=np.uint64),
            trail_odata_seq_no=trail,
            block_number=np.arange(first_block, first_block + count, dtype=np.uint64),
            previous_lead=previous_lead,
        )
    )


class ServerWire:
    """A server session in front of clients that are this script."""

    def __init__(self, *, now=T, total_blocks=100, client_security=None, server_security=None, **parameters):
        self.client_security = client_security or ChecksumSecurity()
        self.server_security = server_security or ChecksumSecurity()
        self.session = ServerSession(
            session_id=SESSION,
            total_blocks=total_blocks,
            client_security=self.client_security,
            server_security=self.server_security,
            parameters=ServerParameters(**parameters),
            rng=random.Random(1),
            now=now,
        )
        self.transport = self.session.transport

    def sealed(self, packet, *, session_id=SESSION, sender_time=66):
        return encode(packet, session_id=session_id, sender_time=sender_time, security=self.client_security)

    def hear(self, what, number, now, *, segment=None, sender_time=66):
        data = what if isinstance(what, bytes | bytearray) else self.sealed(what, sender_time=sender_time)
        source = number if isinstance(number, tuple) else address(number)
        self.session.receive(Batch(memoryview(data), len(data) if segment is None else segment, source), now)

    def sent(self, now, kind=None):
        """Packets with their SenderTime and address."""
        found = []
        for datagram, to in self.session.take_outgoing(now):
            header, packet = decode(datagram, session_id=SESSION, security=self.server_security)
            if kind is None or isinstance(packet, kind):
                found.append((packet, header.sender_time, to))
        return found

    def activate(self, number, now):
        """JOIN and QCR; the ClientId."""
        join = Join("pc", bytes(4), b"", (capabilities(CAP_MULTISTREAM),))
        self.hear(join, number, now, sender_time=ms(now))
        ((answer, sent_at, to),) = self.sent(now, JoinAck)
        assert to == address(number)
        self.hear(Qcr(answer.client_id, 0, 0, sent_at, 0, 0, b""), number, now)
        return answer.client_id

    def begin(self, *numbers, now=T):
        """Clients join and one becomes the master; the ids, and when the first POLL went out."""
        ids = [self.activate(number, now) for number in numbers]
        self.session.handle_timers(now + 0.25)
        seq = self.sent(now + 0.25, Qcc)[-1][0].qcc_seq_no
        for number, client_id in zip(numbers, ids, strict=True):
            self.hear(Qcr(client_id, seq, 0, ms(now + 0.25), 0, 0, b""), number, now + 0.25)
        now = self.session.next_deadline()
        self.session.handle_timers(now)
        return ids, now

    def pollack(self, number, client_id, seq, payload, now):
        self.hear(PollAck(client_id, seq, payload), number, now)


@st.composite
def broken(draw, datagrams, security):
    """A datagram of the list with bytes changed, cut off or added, and sealed again or not."""
    original = bytearray(draw(st.sampled_from(datagrams)))
    header_len = security.header_len
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, min(len(original), 120) - 1))
        original[place] = draw(st.sampled_from([0, 1, 2, 3, 0x7F, 0x80, 0xFF, original[place] ^ 1]))
    match draw(st.integers(0, 5)):
        case 0:
            original = original[: draw(st.integers(0, len(original)))]
        case 1:
            original += draw(st.binary(min_size=1, max_size=9))
    if draw(st.booleans()) and len(original) >= header_len:
        original[:header_len] = security.seal(bytes(original[header_len:]))
    return bytes(original)
