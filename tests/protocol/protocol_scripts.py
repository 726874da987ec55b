"""Both machines under a script: packets as values, every time spelled out, nothing read from a clock."""

import random
from collections import deque
from dataclasses import fields, is_dataclass
from enum import Enum

import numpy as np
from hypothesis import HealthCheck, settings

from wdstransport.protocol.client_application import ClientApplication
from wdstransport.protocol.client_transport import ClientTransport
from wdstransport.protocol.parameters import ClientParameters, ServerParameters
from wdstransport.protocol.server_transport import ServerTransport
from wdstransport.wire.application import Data
from wdstransport.wire.application import encode as encode_application
from wdstransport.wire.batch import Batch, parse_data
from wdstransport.wire.options import CAP_MULTISTREAM, capabilities, fw_lead
from wdstransport.wire.security import NoSecurity
from wdstransport.wire.transport import Ack, Join, JoinAck, Nack, OData, Qcc, Qcr, RData, Spm, encode

T = 1000.0
"""When scripts begin, seconds."""
NO_LEAD = 2**64 - 1
STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Properties hold on a busy machine too."""


UNREMEMBERED = {"dropped", "datagrams", "__weakref__", "_joins"}
"""Counters, and the budget of JOINs, which has a test of its own: no part of a machine's state."""


def ms(seconds):
    """A SenderTime as the sessions write it."""
    return int(seconds * 1000)


def address(number):
    return (f"10.0.0.{number}", 40000 + number)


def snapshot(thing, skip=frozenset()):
    """Everything a machine remembers, as comparable values; chance, keys and named fields left out."""
    if thing is None or isinstance(thing, int | float | str | bytes | Enum):
        return thing
    if isinstance(thing, np.ndarray):
        return thing.tolist()
    if isinstance(thing, dict):
        return [(key, snapshot(value, skip)) for key, value in thing.items()]
    if isinstance(thing, list | tuple | deque):
        return [snapshot(value, skip) for value in thing]
    if isinstance(thing, set | frozenset):
        return sorted(thing)
    if isinstance(thing, random.Random) or not type(thing).__module__.startswith("wdstransport.protocol"):
        return None
    if id(thing) in skip:
        return None
    names = set(getattr(thing, "__dict__", ()))
    for kind in type(thing).__mro__:
        slots = getattr(kind, "__slots__", ())
        names.update((slots,) if isinstance(slots, str) else slots)
    if is_dataclass(thing):
        names.update(field.name for field in fields(thing))
    inner = skip | {id(thing)}
    return {
        name: snapshot(getattr(thing, name), inner)
        for name in sorted(names)
        if name not in ("dropped", "datagrams", "_joins", "__weakref__") and hasattr(thing, name)
    }


class RecordingApplication:
    """What a server's transport triggers, written down."""

    def __init__(self):
        self.calls = []
        self.accepts = True

    def poll_ack(self, client, payload, now):
        self.calls.append(("poll_ack", client.client_id, payload))
        return self.accepts

    def status(self, client, payload, now):
        self.calls.append(("status", client.client_id, payload))
        return self.accepts

    def data_empty(self, now):
        self.calls.append(("data_empty", now))

    def clients_changed(self, now):
        self.calls.append(("clients_changed", now))

    def named(self, name):
        return [call for call in self.calls if call[0] == name]


class ServerScript:
    """A server's transport, and what a script does to it."""

    def __init__(self, *, now=T, rng=None, **parameters):
        self.application = RecordingApplication()
        self.parameters = ServerParameters(**parameters)
        self.transport = ServerTransport(
            parameters=self.parameters,
            rng=rng or random.Random(1),
            application=self.application,
            now=now,
        )
        self.data = self.transport.data
        self.clients = self.transport.clients
        self.timers = self.transport.timers
        self.where = {}

    def sent(self, kind=None):
        """What is to be sent, drained, each with its address; all of it or one kind."""
        packets = self.transport.outbox.drain()
        return packets if kind is None else [each for each in packets if isinstance(each[0], kind)]

    def events(self):
        events = list(self.transport.events)
        self.transport.events.clear()
        return events

    def receive(self, packet, source, now, *, sender_time=0):
        return self.transport.receive(packet, sender_time, source, now)

    def join(self, number, now, *, sender_time=None, name="pc", options=None):
        """A JOIN from machine `number`; the ClientId of the JOINACK."""
        options = (capabilities(CAP_MULTISTREAM),) if options is None else options
        packet = Join(name, bytes([10, 0, 0, number % 256]), b"\2\0\0\0\0\1", options)
        before = self.transport.outbox.drain()
        reason = self.receive(
            packet, address(number), now, sender_time=ms(now) if sender_time is None else sender_time
        )
        self.transport.outbox.packets[:0] = before
        assert reason is None
        answer, to = self.transport.outbox.packets[-1]
        assert isinstance(answer, JoinAck)
        assert to == address(number)
        self.where[answer.client_id] = address(number)
        return answer.client_id

    def qcr(self, client_id, now, *, seq=0, rtt=0.0, back_off=0, loss=0, hi=0, app=b"", server_time=None):
        packet = Qcr(
            client_id,
            seq,
            back_off,
            ms(now - rtt) if server_time is None else server_time,
            hi,
            loss,
            app,
        )
        return self.receive(packet, self.where[client_id], now)

    def activate(self, number, now, *, rtt=0.0):
        """JOIN and QCR; the QCR comes `rtt` after the JOIN."""
        client_id = self.join(number, now)
        assert self.qcr(client_id, now + rtt, server_time=ms(now)) is None
        return client_id

    def last_qcc(self):
        qccs = [packet for packet, _ in self.transport.outbox.packets if isinstance(packet, Qcc)]
        return qccs[-1].qcc_seq_no

    def data_state(self, *numbers, now=T, rtt=0.0):
        """Clients join, answer the first QCC they all can answer, and the first one becomes the master.

        Time moves on by one second at most. Returns the ids and the time the Data state was entered.
        """
        ids = [self.activate(number, now, rtt=rtt) for number in numbers]
        now += 0.25
        self.transport.handle_timers(now)
        seq = self.last_qcc()
        for client_id in ids:
            assert self.qcr(client_id, now + rtt, seq=seq, server_time=ms(now)) is None
        now = self.timers.next_deadline()
        self.transport.handle_timers(now)
        self.sent()
        self.events()
        self.application.calls.clear()
        return ids, now

    def ack(self, client_id, seq, now, *, rtt=0.0, loss=0, hi=0, server_time=None):
        packet = Ack(client_id, seq, ms(now - rtt) if server_time is None else server_time, hi, loss)
        return self.receive(packet, self.where[client_id], now)

    def nack(self, client_id, ranges, now, *, loss=0, hi=0):
        return self.receive(Nack(client_id, hi, loss, tuple(ranges)), self.where[client_id], now)

    def open_window(self, client_id, now, packets=64):
        """Send and acknowledge until the window is `packets` or more; the next sequence number."""
        self.data.give([(1, 10_000)])
        while self.data.window.size < packets:
            self.data.take_odata(10_000, now)
            assert self.ack(client_id, self.data.mc_lead, now) is None
        return self.data.mc_lead + 1


class ClientScript:
    """A client's transport above an application, and what a script does to it."""

    def __init__(
        self, *, now=T, total_blocks=100_000, block_size=10, content_size=None, seed=1, have=(), **parameters
    ):
        self.parameters = ClientParameters(**parameters)
        self.block_size = block_size
        self.application = ClientApplication(
            content_size=content_size or total_blocks * block_size,
            block_size=block_size,
            total_blocks=total_blocks,
            now=now,
            have=have,
        )
        self.transport = ClientTransport(
            client_name="pc",
            ip_address=bytes(4),
            mac_address=bytes(6),
            parameters=self.parameters,
            application=self.application,
            rng=random.Random(seed),
            now=now,
        )
        self.data = self.transport.data
        self.timers = self.transport.timers

    def sent(self, kind=None):
        packets = [packet for packet, to in self.transport.outbox.drain() if to is None]
        return packets if kind is None else [packet for packet in packets if isinstance(packet, kind)]

    def events(self):
        events, self.transport.events = self.transport.events, []
        return events

    def receive(self, packet, now, *, sender_time=77):
        return self.transport.receive(packet, sender_time, now)

    def regular(self, now=T, *, client_id=7, low=0, high=0, sender_time=55):
        """JOINACK comes; what was sent and happened so far is forgotten."""
        packet = JoinAck(client_id, low, high, 0, ms(now))
        assert self.receive(packet, now, sender_time=sender_time) is None
        self.sent()
        self.events()
        return self

    def spm(self, now, seq, *, master=0, low=0, high=0, trail=0, lead=0, rtt=0, sender_time=66):
        return self.receive(Spm(seq, master, low, high, trail, lead, rtt), now, sender_time=sender_time)

    def odata(self, now, *rows, trail=0, master=0, leads=None, times=None, rdata=False, block_len=None):
        """Data packets that came in one batch; a row is a sequence number, or that and a block number."""
        pairs = [row if isinstance(row, tuple) else (row, row) for row in rows]
        return self.transport.on_data(
            records(
                pairs,
                block_len=self.block_size if block_len is None else block_len,
                trails=[trail] * len(pairs),
                masters=[master] * len(pairs),
                leads=leads,
                times=times,
                rdata=rdata,
            ),
            now,
        )


def records(pairs, *, block_len, trails, masters, leads=None, times=None, rdata=False):
    """Records of one batch from (sequence number, block number) pairs; without leads, without that option.

    `rdata` says of all, or of each, whether it is a repair.
    """
    security = NoSecurity()
    repairs = [rdata] * len(pairs) if isinstance(rdata, bool) else rdata
    datagrams = [
        encode(
            (RData if repairs[row] else OData)(
                masters[row],
                seq,
                trails[row],
                encode_application(Data(block, bytes(block_len))),
                () if leads is None else (fw_lead(leads[row]),),
            ),
            session_id=1,
            sender_time=500 + row if times is None else times[row],
            security=security,
        )
        for row, (seq, block) in enumerate(pairs)
    ]
    batch = Batch(memoryview(b"".join(datagrams)), len(datagrams[0]), ("server", 1))
    found, leftover, dropped = parse_data(batch, session_id=1, security=security)
    assert len(found) == len(pairs)
    assert not len(leftover)
    assert not dropped
    return found
