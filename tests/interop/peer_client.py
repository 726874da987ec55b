"""The client of MS-WDSMSI over UDP, MS-WDSMT 3.2 and MS-WDSMA 3.2."""

import random
import select
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import peer_wire as w
from peer_check import ServerCheck


@dataclass
class Result:
    """How a download ended. status: complete, refused, kicked, inactive, no answer or timeout."""

    data: bytes = b""
    status: str = "timeout"
    violations: list = field(default_factory=list)
    log: list = field(default_factory=list)
    client_id: int | None = None
    error: int | None = None  # the Win32 code of a refusal
    kick_reason: int | None = None
    seen: Counter = field(default_factory=Counter)  # packets of the server, before the simulated loss
    sent: Counter = field(default_factory=Counter)  # packets of this client, before the simulated loss


class MissingList:
    """MS-WDSMT 3.2.1.3.1, from FirstODATASeqNo on."""

    def __init__(self):
        self.ranges, self.start, self.end = [], 0, 0

    def begin(self, first):
        self.start, self.end = first, first - 1

    def update_start(self, new):
        if new < self.start:
            return
        self.ranges = [[max(a, new), b] for a, b in self.ranges if b >= new]
        self.start, self.end = new, max(self.end, new - 1)

    def update_end(self, new):
        if new <= self.end:
            return
        if self.ranges and self.ranges[-1][1] == self.end:
            self.ranges[-1][1] = new
        else:
            self.ranges.append([self.end + 1, new])
        self.end = new

    def received(self, number):
        self.ranges = [
            part
            for a, b in self.ranges
            for part in ([[a, number - 1], [number + 1, b]] if a <= number <= b else [[a, b]])
            if part[0] <= part[1]
        ]

    def continuous(self):
        return self.ranges[0][0] - 1 if self.ranges else self.end


class PeerClient:
    """One client. run() returns within its timeout, whatever happens, or as soon as until() is true.

    first and alone tell the checker that nobody used the session before, and nobody else uses it meanwhile.
    mute: after that many ACK packets none is sent any more. drain: bytes per second that the application
    takes from the cache (None: at once). obeys_kick False: stay, and see whether KICK is repeated.
    """

    def __init__(
        self,
        server,
        content,
        namespace,
        mode="checksum",
        loss=0.0,
        seed=0,
        *,
        interface="127.0.0.1",
        first=False,
        alone=False,
        remote_loss=0.0,
        max_window=None,
        inactivity=30.0,
        mute=None,
        cache=2097152,
        drain=None,
        obeys_kick=True,
        name="PEER",
    ):
        self.server, self.content, self.namespace, self.mode = server, content, namespace, mode
        self.interface, self.inactivity, self.mute, self.name = interface, inactivity * 1000, mute, name
        self.cache, self.drain, self.obeys_kick = cache, drain, obeys_kick
        self.first, self.alone, self.remote_loss, self.max_window = first, alone, remote_loss, max_window
        self.loss, self.random = w.Loss(loss, f"client {seed}"), random.Random(f"client {seed}")
        self.violations, self.result = w.Violations(), Result()
        self.began = time.monotonic()
        self.own = self.group = self.check = None

    def log(self, text):
        self.result.log.append(f"{time.monotonic() - self.began:8.3f} {text}")

    def run(self, timeout=30.0, until=lambda: False):
        end = time.monotonic() + timeout
        try:
            self.own = w.Port(self.interface)
            plan = self.initiate(end)
            if plan is not None:
                self.plan, self.total = plan, plan.blocks
                self.missing_blocks = set(range(1, plan.blocks + 1))
                self.content_data = bytearray(plan.size)
                if plan.blocks == 0:
                    self.result.status = "complete"
                else:
                    self.download(end, until)
                self.result.data = bytes(self.content_data)
        finally:
            for port in (self.own, self.group):
                if port:
                    port.close()
        self.result.violations = self.violations.listed()
        return self.result

    # --- MS-WDSMSI ------------------------------------------------------------------------------------------

    def initiate(self, end):
        options = [
            (w.NAMESPACE, w.wide(self.namespace)),
            (w.CONTENT, w.wide(self.content)),
            (w.MAC, bytes.fromhex("020000000001")),
        ]
        request = w.build_msi(w.REQUEST, options)
        while time.monotonic() < end:
            if not self.loss.hits("out"):
                self.own.send(request, self.server)
            again = min(time.monotonic() + 1, end)
            while (left := again - time.monotonic()) > 0:
                select.select([self.own], [], [], left)
                for data, source, _ in self.own.receive():
                    if source != tuple(self.server):
                        self.violations.add("initiation", f"answer from {source}")
                    elif not self.loss.hits("in"):
                        return self.read_reply(data)
        self.result.status = "no answer"
        return None

    def read_reply(self, data):
        bad = self.violations.add
        try:
            opcode, options = w.parse_msi(data)
            if opcode != w.REPLY:
                bad("initiation", f"OpCode {opcode}")
            if w.ERROR in options:
                if len(options) != 1:
                    bad("initiation", f"error with {sorted(options)}")
                (self.result.error,) = w.Reader(options[w.ERROR]).unpack("I")
                self.result.status = "refused"
                return None
            if sorted(options) != sorted(w.REPLY_FORMS):
                bad("initiation", f"options {[hex(n) for n in options]}")
            value = {}
            for number, form in w.REPLY_FORMS.items():
                (value[number],) = struct.unpack(">" + form, options[number])
        except (w.Malformed, KeyError, struct.error) as error:
            bad("initiation", f"reply {data!r}: {error!r}")
            self.result.status = "refused"
            return None
        size, block = value[w.CONTENT_SIZE], value[w.BLOCK_SIZE]
        if not block or value[w.TOTAL_BLOCKS] != -(-size // block):
            bad("initiation", f"{value[w.TOTAL_BLOCKS]} blocks of {block} for {size} bytes")
        if value[w.GROUP_PORT] != value[w.SERVER_PORT]:
            bad("initiation", f"ports {value[w.GROUP_PORT]} and {value[w.SERVER_PORT]}")
        if value[w.GROUP_ADDRESS][0] & 0xF0 != 0xE0:
            bad("initiation", f"multicast address {value[w.GROUP_ADDRESS]!r}")
        plan = SimpleNamespace(size=size, block_size=block, blocks=value[w.TOTAL_BLOCKS])
        plan.group = (socket.inet_ntoa(value[w.GROUP_ADDRESS]), value[w.GROUP_PORT])
        plan.server = (socket.inet_ntoa(value[w.SERVER_ADDRESS]), value[w.SERVER_PORT])
        plan.session = value[w.SESSION_ID]
        self.log(f"initiated: {vars(plan)}")
        return plan

    # --- MS-WDSMT 3.2 ---------------------------------------------------------------------------------------

    def enter(self):
        """Everything of 3.2.1 at its initial value; the application keeps its blocks."""
        self.finish_check()
        if self.group:
            self.group.close()
        self.group = w.Port(self.interface, self.plan.group[1], self.plan.group[0])
        self.check = ServerCheck(
            self.violations.add, self.plan, self.first, self.alone, self.remote_loss, self.max_window
        )
        self.check.refuses_kick = not self.obeys_kick
        self.state, self.client, self.master, self.gained = "join", None, 0, None
        self.poll = self.qcc = SimpleNamespace(seq=0)
        self.min_backoff = self.max_backoff = 0
        self.loss_rate, self.first_number, self.hi, self.hi_loss, self.lead, self.spm = 0.0, 0, 0, 0, 0, 0
        self.missing, self.joined, self.used, self.waiting = MissingList(), time.monotonic(), 0, []
        self.timers = {"join": 0.0, "inactivity": w.clock() + self.inactivity}

    def finish_check(self):
        if self.check:
            self.check.finish()
            self.result.seen.update(self.check.counts)

    def download(self, end, until):
        self.enter()
        while time.monotonic() < end and self.state != "over" and not until():
            now = w.clock()
            for name in [name for name, when in self.timers.items() if when <= now]:
                if name in self.timers and self.state != "over":
                    del self.timers[name]
                    getattr(self, name + "_timer")()
            if self.state == "over":
                break
            wait = max(0, min([when - w.clock() for when in self.timers.values()] + [50])) / 1000
            select.select([self.own, self.group], [], [], wait)
            for port, via in ((self.own, "unicast"), (self.group, "multicast")):
                for data, source, arrived in port.receive(50):
                    if port in (self.own, self.group):  # a DEMOTE replaces the group's socket
                        self.datagram(data, source, via, arrived)
        if self.state != "over" and self.client is not None:
            self.send_leave(w.CANCELLED)
        self.finish_check()

    def datagram(self, data, source, via, arrived):
        if source != self.plan.server:
            self.log(f"{via} datagram from {source} ignored")
            return
        self.check.drops = self.own.kernel_drops + self.group.kernel_drops
        try:
            packet, complaints = w.parse(data, self.mode, self.plan.session)
        except w.Malformed as error:
            self.violations.add("malformed", str(error))
            return
        for complaint in complaints:
            self.violations.add("layout", complaint)
        self.check.see(packet, via, w.arrival(arrived), arrived)
        if self.state == "over" or self.loss.hits(f"in {via}"):
            return
        self.timers["inactivity"] = w.clock() + self.inactivity
        if self.state == "regular" or packet.op == "JOINACK":
            handle = getattr(self, "on_" + packet.op.lower(), None)
            if handle:
                handle(packet)

    def send(self, name, fields, tail=None, options=()):
        """True when the datagram really went out; the time that it bears is left in self.sent_at."""
        self.sent_at, self.sent_ns = w.clock(), time.time_ns()
        self.result.sent[name] += 1
        data = w.build(name, self.plan.session, self.mode, self.sent_at, fields, tail, options)
        return not self.loss.hits("out") and self.own.send(data, self.plan.server)

    def join_timer(self):
        name = self.name.encode("utf-16-le")[:30].ljust(32, b"\0")
        address = socket.inet_aton(self.own.address[0])
        body = name + bytes([4]) + address + bytes([6]) + bytes.fromhex("020000000001")
        if self.send("JOIN", body, options=[(0x0505, b"\x01")]):
            self.check.joins.add(self.sent_at)
        self.timers["join"] = w.clock() + 500

    def on_joinack(self, p):
        self.client, self.min_backoff, self.max_backoff = p.client, p.min_backoff, p.max_backoff
        self.result.client_id = p.client
        self.check.qcrs += self.send("QCR", (p.client, 0, 0, p.time, 0, 0), b"")
        self.state = "regular"
        self.timers.pop("join", None)
        self.timers["force"] = w.clock() + 20_000
        self.timers.setdefault("rejoin", w.clock() + 3000)

    def rejoin_timer(self):
        """A server that got none of the QCR packets has forgotten this client, and nothing says so. Where
        nothing is gained for a while, JOIN again: from a client that it knows, that is a repetition."""
        if len(self.missing_blocks) == self.gained:
            self.join_timer()
        self.gained, self.timers["rejoin"] = len(self.missing_blocks), w.clock() + 3000

    def inactivity_timer(self):
        self.result.status = "inactive"
        self.leave(w.INACTIVE)

    def on_poll(self, p):
        if p.seq > self.poll.seq:
            self.poll = p
            self.timers["poll"] = w.clock() + self.random.uniform(0, p.backoff)

    def progress(self):
        seconds = int(time.monotonic() - self.joined)
        return seconds, 100 * (self.total - len(self.missing_blocks)) // self.total

    def poll_timer(self):
        ranges = []
        for block in sorted(self.missing_blocks):
            if ranges and ranges[-1][1] == block - 1:
                ranges[-1][1] = block
            else:
                ranges.append([block, block])
        ranges = ranges[:64]
        seconds, share = self.progress()
        body = struct.pack(">BIH", share, seconds, len(ranges))
        body += b"".join(struct.pack(">QQ", *pair) for pair in ranges)
        if self.send("POLLACK", (self.client, self.poll.seq), w.build_ma(w.CNTCIR, body)):
            self.check.cirs[self.poll.seq] = ranges

    def on_qcc(self, p):
        if p.seq > self.qcc.seq:
            self.qcc, self.qcc_received = p, w.clock()
            self.timers["qcc"] = w.clock() + self.random.uniform(0, p.backoff)

    def send_qcr(self, seq, backoff, server_time):
        payload = w.build_ma(w.PROGRESS, struct.pack(">IB", *self.progress()))
        fields = (self.client, seq, backoff, server_time, self.hi, int(self.loss_rate * w.LOSS_SCALE))
        self.send("QCR", fields, payload)
        self.timers["force"] = w.clock() + 20_000

    def qcc_timer(self):
        self.send_qcr(self.qcc.seq, min(w.clock() - self.qcc_received, 0xFFFF), self.qcc.time)

    def force_timer(self):
        self.send_qcr(0, 0, 0)

    def on_spm(self, p):
        if p.seq <= self.spm:
            return
        self.spm, self.master, self.lead = p.seq, p.master, p.lead
        self.min_backoff, self.max_backoff = p.min_backoff, p.max_backoff
        if not self.first_number and p.lead:
            self.begin(p.lead)
        if self.first_number:
            self.count_losses(p.lead)
            if self.hi:
                self.hi = max(self.hi, p.trail)
            self.missing.update_start(p.trail)
            self.missing.update_end(p.lead)
        self.nack()
        self.ack(p)

    def begin(self, number):
        self.first_number, self.hi_loss = number, number - 1
        self.missing.begin(number)

    def count_losses(self, up_to):
        for _ in range(self.hi_loss, up_to):
            self.loss_rate += 500 / 65536 * (1 - self.loss_rate)
        self.hi_loss = max(self.hi_loss, up_to)

    def ack(self, p):
        if self.master != self.client or (self.mute is not None and self.result.sent["ACK"] >= self.mute):
            return
        number, loss = self.missing.continuous(), int(self.loss_rate * w.LOSS_SCALE)
        if self.send("ACK", (self.client, number, p.time, self.hi, loss)):
            self.check.sent_ack(number, self.sent_ns)

    def nack(self):
        if not self.missing.ranges or "nack" in self.timers:
            return
        if self.master == self.client:
            self.nack_timer()
        else:
            self.timers["nack"] = w.clock() + self.random.uniform(self.min_backoff, self.max_backoff)

    def nack_timer(self):
        if self.missing.ranges:
            self.send_nack([tuple(pair) for pair in self.missing.ranges[:3500]])
            self.timers["nack"] = w.clock() + self.random.uniform(self.min_backoff, self.max_backoff)

    def send_nack(self, ranges):
        loss = int(self.loss_rate * w.LOSS_SCALE)
        if self.send("NACK", (self.client, self.hi, loss), ranges):
            self.check.sent_nack(w.clock(), ranges)

    def on_odata(self, p):
        if self.first_number and p.seq < self.first_number:
            return
        if not self.first_number:
            self.begin(p.seq)
        self.master, self.lead, self.hi = p.client, max(p.seq, self.lead), max(p.seq, self.hi)
        self.count_losses(p.seq - 1)
        self.loss_rate *= 1 - 500 / 65536
        self.hi_loss = max(self.hi_loss, p.seq)
        self.missing.update_start(p.trail)
        self.missing.update_end(p.seq)
        self.missing.received(p.seq)
        self.nack()
        lead = p.options.get(w.FW_LEAD)
        if lead is None or int.from_bytes(lead, "big") >= p.seq:
            self.ack(p)
        if self.cache - self.used < len(p.data):
            self.send_nack([])
            return
        self.used += len(p.data)
        if self.drain is None:
            self.take_data(p.data)
        else:
            self.waiting.append(p.data)
            self.timers.setdefault("drain", w.clock() + 1000 * len(p.data) / self.drain)

    on_rdata = on_odata

    def on_kick(self, p):
        for client, reason in p.kicks:
            if client == self.client:
                self.timers.pop("rejoin", None)
            if client == self.client and self.obeys_kick:
                self.result.status, self.result.kick_reason = "kicked", reason
                self.leave(w.CANCELLED)

    def on_demote(self, p):
        if self.client not in p.clients:
            return
        self.log(f"demoted to session {p.lower:#x}")
        self.send_leave(w.CANCELLED)
        self.plan.group = (socket.inet_ntoa(p.group), p.group_port)
        self.plan.server = (socket.inet_ntoa(p.address), p.port)
        self.plan.session, self.first, self.alone = p.lower, False, False
        self.enter()

    def leave(self, reason):
        """Wait a random time, as 3.2.5.4.3 wants, and leave; until then all goes on."""
        if "leave" not in self.timers:
            self.leave_reason = reason
            self.timers["leave"] = w.clock() + self.random.uniform(0, self.max_backoff or 200)

    def leave_timer(self):
        self.send_leave(self.leave_reason)
        self.state = "over"

    def send_leave(self, reason):
        self.log(f"leaving, reason {reason}")
        if self.client is not None:
            self.send("LEAVE", (self.client, reason))

    # --- MS-WDSMA 3.2 ---------------------------------------------------------------------------------------

    def drain_timer(self):
        self.take_data(self.waiting.pop(0))
        if self.waiting:
            self.timers["drain"] = w.clock() + 1000 * len(self.waiting[0]) / self.drain

    def take_data(self, data):
        self.used -= len(data)
        try:
            block = w.parse_ma(data, w.DATA)
        except w.Malformed:
            return  # the checker has seen it
        at = (block.block - 1) * self.plan.block_size
        if block.block in self.missing_blocks and at + len(block.data) <= self.plan.size:
            self.missing_blocks.remove(block.block)
            self.content_data[at : at + len(block.data)] = block.data
            if not self.missing_blocks:
                self.log("complete")
                self.result.status = "complete"
                self.leave(w.COMPLETE)
