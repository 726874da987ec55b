"""The server of MS-WDSMSI over UDP, MS-WDSMT 3.1 and MS-WDSMA 3.1: one content, one session."""

import queue
import random
import select
import socket
import struct
import threading
from collections import Counter, deque
from math import sqrt
from types import SimpleNamespace

import peer_wire as w
from peer_check import ClientCheck

NOT_FOUND, NO_NAMESPACE = 2, 1168  # ERROR_FILE_NOT_FOUND, ERROR_NOT_FOUND


def throughput(rtt, loss):
    """MS-WDSMT 3.1.5.9.6.1, balanced."""
    cost = rtt * sqrt(loss) * (1 + 9 * loss * (1 + 32 * loss * loss))
    return 1 / cost if cost else float("inf")


class PeerServer:
    """Serves one content until stop(). completed: ids of the clients that left as complete.

    fw_lead: thin the ACK packets of a batch. remote_loss: loss that the clients add by themselves. fresh: the
    clients start without any block. Ports 0 are chosen by the system; read them after construction.
    """

    QCC_INTERVAL, NO_CLIENT_QCC, SPM_INTERVAL, POLL_BACKOFF, MAX_SPM = 1000, 500, 220, 200, 5
    EXP_WINDOW, MAX_WINDOW, CLIENT_DEAD, INACTIVITY = 64, 256, 60_000, 300_000

    def __init__(
        self,
        data,
        content,
        namespace,
        address="127.0.0.1",
        initiation_port=5041,
        session_port=0,
        group="239.192.7.41",
        mode="checksum",
        block_size=1385,
        loss=0.0,
        seed=0,
        *,
        fw_lead=False,
        remote_loss=0.0,
        fresh=True,
    ):
        self.data, self.content, self.namespace, self.mode, self.fw_lead = (
            data,
            content,
            namespace,
            mode,
            fw_lead,
        )
        self.loss, self.random = w.Loss(loss, f"server {seed}"), random.Random(f"server {seed}")
        self.front, self.port = w.Port(address, initiation_port), w.Port(address, session_port)
        self.initiation_port, self.session_port = self.front.address[1], self.port.address[1]
        self.group = (group, self.session_port)
        self.spy = w.Port(address, self.session_port, group)
        self.plan = SimpleNamespace(size=len(data), block_size=block_size, blocks=-(-len(data) // block_size))
        self.plan.session = self.random.getrandbits(32)
        self.collected = w.Violations()
        self.check = ClientCheck(self.collected.add, self.plan, remote_loss, fresh)
        self.requests, self.log, self.sent = {}, [], Counter()
        self.orders, self.running, self.thread = queue.SimpleQueue(), True, None
        self.turn = threading.Condition()  # told after each turn of the loop
        self.timers = {"inactivity": w.clock() + self.INACTIVITY, "cleanup": w.clock() + self.CLIENT_DEAD}
        # 3.1.1.1 and 3.1.1.2
        self.state, self.next_client = "prestart", self.random.randrange(1, 2**32 - 1000)
        self.pending, self.active, self.kicked, self.demoted = {}, {}, {}, {}
        # 3.1.1.3 and 3.1.1.5; packets is the Data Packet List, by number
        self.next = {"poll": 1, "qcc": 1, "spm": 1, "odata": 1}
        self.min_backoff = self.max_backoff = self.rtt = self.window = 1
        self.master = self.spm_count = self.trail = self.lead = self.wait = self.last_shrink = 0
        self.master_loss, self.packets = 0.0, {}
        # MS-WDSMA 3.1.1
        self.doing, self.reports, self.query_wait, self.todo = "nothing", {}, 0, deque()

    @property
    def violations(self):
        return self.collected.listed()

    @property
    def completed(self):
        """Ids of the clients whose LEAVE said so, before the simulated loss."""
        records = list(self.check.clients.items())
        return [client for client, record in records if record.reason == w.COMPLETE]

    def start(self):
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        return self

    def stop(self):
        self.running = False
        if self.thread:
            self.thread.join(5)
        for port in (self.front, self.port, self.spy):
            port.close()
        self.check.finish()

    def kick(self, client, reason=0):
        self.orders.put(lambda: self.kick_now(client, reason))

    def demote(self, client, other):
        """Send a client to the session of another PeerServer."""
        self.orders.put(lambda: self.demote_now(client, other))

    def serve(self):
        ports = [self.front, self.port, self.spy]
        while self.running:
            with self.turn:
                self.turn.notify_all()
            while not self.orders.empty():
                self.orders.get()()
            now = w.clock()
            for name in [name for name, when in self.timers.items() if when <= now]:
                if name in self.timers:
                    del self.timers[name]
                    self.expired(name)
            wait = max(0, min([when - w.clock() for when in self.timers.values()] + [20])) / 1000
            select.select(ports, [], [], wait)
            for data, source, arrived in self.front.receive():
                self.initiate(data, source, w.arrival(arrived))
            for data, source, arrived in self.port.receive(20):
                self.datagram(data, source, w.arrival(arrived))
            for _, source, _ in self.spy.receive():
                if source != self.port.address:
                    self.collected.add("destination", f"{source} sends to the multicast address")

    def expired(self, name):
        kind, _, key = name.partition(" ")
        getattr(self, kind + "_timer")(*([int(key)] if key else []))

    # --- MS-WDSMSI ------------------------------------------------------------------------------------------

    def initiate(self, data, source, now):
        bad = self.collected.add
        if now - self.requests.get(source, -(10**9)) < 950:
            bad("initiation", f"request again after {now - self.requests[source]} ms")
        self.requests[source] = now
        try:
            opcode, options = w.parse_msi(data)
            names = [options[number].decode("utf-16-le") for number in (w.NAMESPACE, w.CONTENT)]
            if (
                opcode != w.REQUEST
                or not options[w.MAC]
                or any(name.find("\0") != len(name) - 1 for name in names)
            ):
                raise w.Malformed(f"OpCode {opcode}, {options}")
            if set(options) - {w.NAMESPACE, w.CONTENT, w.MAC, w.IPV6_CAPABLE}:
                raise w.Malformed(f"options {sorted(options)}")
            if options.get(w.IPV6_CAPABLE, b"\0") not in (b"\0", b"\1"):
                raise w.Malformed(f"IPv6 capability {options[w.IPV6_CAPABLE]!r}")
        except (w.Malformed, KeyError, UnicodeDecodeError) as error:
            bad("initiation", f"request {data!r}: {error!r}")
            return
        if self.loss.hits("initiation"):
            return
        namespace, content = (name[:-1] for name in names)
        if namespace != self.namespace or content != self.content:
            error = NO_NAMESPACE if namespace != self.namespace else NOT_FOUND
            reply = w.build_msi(w.REPLY, [(w.ERROR, struct.pack(">I", error))])
        else:
            values = [socket.inet_aton(self.group[0]), socket.inet_aton(self.port.address[0])]
            values += [self.session_port, self.session_port, self.plan.size, self.plan.block_size]
            values += [self.plan.blocks, self.plan.session]
            forms = zip(w.REPLY_FORMS.items(), values, strict=True)
            reply = w.build_msi(w.REPLY, [(n, struct.pack(">" + form, value)) for (n, form), value in forms])
        if not self.loss.hits("out"):
            self.front.send(reply, source)

    # --- MS-WDSMT 3.1: clients ------------------------------------------------------------------------------

    def send(self, name, fields, tail=None, options=(), to=None):
        self.sent_at = w.clock()
        self.sent[name] += 1
        data = w.build(name, self.plan.session, self.mode, self.sent_at, fields, tail, options)
        return not self.loss.hits("out" if to else "out multicast") and self.port.send(data, to or self.group)

    def datagram(self, data, source, now):
        try:
            packet, complaints = w.parse(data, self.mode, self.plan.session)
        except w.Malformed as error:
            self.collected.add("malformed", f"{source}: {error}")
            return
        for complaint in complaints:
            self.collected.add("layout", complaint)
        self.check.see(packet, source, now)
        if self.loss.hits(f"in {source}") or packet.op not in w.FROM_CLIENT:
            return
        self.timers["inactivity"] = w.clock() + self.INACTIVITY
        if packet.op == "JOIN":
            self.on_join(packet, source)
            return
        for group in (self.active, self.pending, self.kicked, self.demoted):
            client = group.get(packet.client)
            if client and client.source == source:
                getattr(self, "on_" + packet.op.lower())(packet, client, group)

    def on_join(self, p, source):
        known = [c for group in (self.pending, self.active) for c in group.values() if c.source == source]
        if known:
            client = known[0]
        elif len(self.pending) + len(self.active) < 200:
            client = SimpleNamespace(id=self.next_client, source=source, rtt=0, answered=False)
            self.next_client += 1
            client.demotes = b"\x01" in p.options.get(0x0505, b"")
            self.pending[client.id] = client
        else:
            return
        client.time, client.updated, client.joinacks = p.time, w.clock(), 0
        self.send_joinack(client)

    def send_joinack(self, client):
        rtt = self.rtt if self.state == "data" else 0
        fields = (client.id, self.min_backoff, self.max_backoff, min(rtt, 0xFFFF), client.time)
        client.joinacks += 1
        if self.send("JOINACK", fields, to=client.source):
            self.check.sent_joinack(client.id, client.source, self.sent_at)
        if client.id in self.pending:
            self.timers[f"joinack {client.id}"] = w.clock() + 500

    def joinack_timer(self, number):
        client = self.pending.get(number)
        if client and client.joinacks >= 3:
            del self.pending[number]
        elif client:
            self.send_joinack(client)

    def on_qcr(self, p, client, group):
        if p.seq not in (0, self.next["qcc"] - 1):
            return
        joined = group is self.pending
        if joined:
            # Also when it answers a QCC: it can have its id from nothing but the JOINACK.
            self.active[client.id] = self.pending.pop(client.id)
            self.timers.pop(f"joinack {client.id}", None)
            self.log.append(f"client {client.id} joined")
        client.updated = w.clock()
        if p.server_time:
            client.rtt = max(0, w.clock() - p.server_time - p.backoff)
        client.answered |= p.seq != 0
        if self.state == "prestart":
            self.enter_qcc()
        if joined and self.doing in ("nothing", "waiting"):
            self.query()

    def on_leave(self, p, client, group):
        del group[client.id]
        self.log.append(f"client {client.id} left, reason {p.reason}")
        if client.id == self.master and self.state == "data":
            self.enter_qcc()

    def inactivity_timer(self):
        self.running = False

    def cleanup_timer(self):
        for group in (self.active, self.kicked, self.demoted):
            for client in [c for c in group.values() if w.clock() - c.updated > self.CLIENT_DEAD]:
                del group[client.id]
                self.log.append(f"client {client.id} is dead")
        self.timers["cleanup"] = w.clock() + self.CLIENT_DEAD

    def kick_now(self, client, reason):
        if client in self.active:
            self.kicked[client] = self.active.pop(client)
            self.kicked[client].reason = reason
            if "kick" not in self.timers:
                self.kick_timer()
            if client == self.master and self.state == "data":
                self.enter_qcc()

    def kick_timer(self):
        if self.kicked:
            if self.send("KICK", (), [(c.id, c.reason) for c in self.kicked.values()]):
                for client in self.kicked:
                    self.check.clients[client].kicked = self.check.clients[client].kicked or self.sent_at
            self.timers["kick"] = w.clock() + 15_000

    def demote_now(self, client, other):
        if client in self.active and self.active[client].demotes:
            self.demoted[client], self.lower = self.active.pop(client), other
            if "demote" not in self.timers:
                self.demote_timer()
            if client == self.master and self.state == "data":
                self.enter_qcc()

    def demote_timer(self):
        if self.demoted:
            other = self.lower
            body = struct.pack(">I", other.plan.session)
            for address, port in (other.group, other.port.address):
                body += b"\x04" + socket.inet_aton(address) + struct.pack(">H", port)
            body += struct.pack(f">H{len(self.demoted)}I", len(self.demoted), *self.demoted)
            self.send("DEMOTE", body)
            self.timers["demote"] = w.clock() + 500

    # --- MS-WDSMT 3.1: QCC state ----------------------------------------------------------------------------

    def highest_rtt(self):
        return max((c.rtt for c in self.active.values()), default=0)

    def enter_qcc(self):
        for name in ("spm", "list", "outqcc"):
            self.timers.pop(name, None)
        self.state, self.wait = "qcc", 0
        self.send_qcc()

    def send_qcc(self):
        for client in self.active.values():
            client.answered = False
        self.wait = min(2 * self.wait or max(1, len(self.active)), self.NO_CLIENT_QCC)
        self.timers["inqcc"] = w.clock() + self.put_qcc(self.wait + self.highest_rtt())

    def put_qcc(self, backoff):
        number, backoff = self.next["qcc"], min(backoff, 0xFFFF)
        self.next["qcc"] += 1
        if self.send("QCC", (number, backoff)):
            self.check.qccs[number] = (self.sent_at, backoff)
        return backoff

    def inqcc_timer(self):
        answered = [c for c in self.active.values() if c.answered]
        if answered:
            master = max(answered, key=lambda c: c.rtt)
            self.master, self.rtt, self.state, self.spm_count = master.id, max(1, master.rtt), "data", 0
            self.timers["list"] = w.clock() + 200
            self.timers["outqcc"] = w.clock() + self.QCC_INTERVAL
            self.send_spm()
            self.pump()
        else:
            self.send_qcc()

    def outqcc_timer(self):
        backoff = max(self.QCC_INTERVAL, len(self.active)) + self.highest_rtt()
        self.timers["outqcc"] = w.clock() + self.put_qcc(backoff)

    # --- MS-WDSMT 3.1: Data state ---------------------------------------------------------------------------

    def head(self):
        return min(self.packets, default=None)

    def send_spm(self):
        self.min_backoff = min(max(2 * self.rtt, 1), 0xFFFF)
        self.max_backoff = min(max(self.min_backoff + len(self.active) // 5, 1), 0xFFFF)
        trail = (self.head() or self.lead) if self.lead else 0
        fields = (self.next["spm"], self.master, self.min_backoff, self.max_backoff, trail, self.lead)
        self.next["spm"] += 1
        if self.send("SPM", (*fields, min(self.rtt, 0xFFFF))):
            self.check.sent_master(self.sent_at, self.master)
            self.check.backoffs.append(self.min_backoff)
            self.check.trail = max(self.check.trail, trail)
            self.check.lead = max(self.check.lead, self.lead)
        self.spm_count += 1
        self.timers["spm"] = w.clock() + max(self.SPM_INTERVAL, 4 * self.rtt)

    def spm_timer(self):
        if self.spm_count >= self.MAX_SPM:
            self.log.append("master is silent")
            self.enter_qcc()
        else:
            self.send_spm()

    def pump(self):
        """3.1.5.9.5, second half: send as much as the window lets through."""
        if self.state != "data":
            return
        count = min(self.window - (self.lead - self.trail), len(self.todo))
        for left, before in zip(range(count - 1, -1, -1), [self.lead] * max(count, 0), strict=True):
            number, block = self.next["odata"], self.todo.popleft()
            self.next["odata"] += 1
            start = (block - 1) * self.plan.block_size
            data = self.data[start : start + self.plan.block_size]
            payload = w.build_ma(w.DATA, struct.pack(">QH", block, len(data)) + data)
            self.packets[number] = SimpleNamespace(data=payload, block=block, made=w.clock(), sent=0)
            self.send_data("ODATA", number, before if self.fw_lead and left else None)
            self.lead = number

    def send_data(self, name, number, fw_lead=None):
        packet, trail = self.packets[number], self.head()
        packet.sent = w.clock()
        options = [] if fw_lead is None else [(w.FW_LEAD, struct.pack(">Q", fw_lead))]
        if self.send(name, (self.master, number, trail), packet.data, options):
            self.check.sent_data(self.sent_at, self.master, number, packet.block, fw_lead is None)
            self.check.trail = max(self.check.trail, trail)

    def on_ack(self, p, client, group):
        if self.state != "data" or client.id != self.master or not self.trail <= p.seq <= self.lead:
            return
        self.spm_count, self.rtt = 0, max(1, w.clock() - p.server_time)
        self.master_loss = p.loss / w.LOSS_SCALE
        acknowledged, self.trail = p.seq - self.trail, p.seq
        if self.window < self.EXP_WINDOW:
            self.window = min(self.window + 2 * acknowledged, self.EXP_WINDOW)
        else:
            self.window = min(self.window + acknowledged, self.MAX_WINDOW)
        self.pump()
        self.maybe_empty()

    def on_nack(self, p, client, group):
        if self.state != "data" or group is not self.active:
            return
        loss, now = p.loss / w.LOSS_SCALE, w.clock()
        if client.id == self.master:
            self.master_loss = loss
        elif throughput(client.rtt, loss) < 0.75 * throughput(self.rtt, self.master_loss):
            self.master, self.rtt, self.master_loss = client.id, max(1, client.rtt), loss
            self.log.append(f"client {client.id} is the new master")
        if now - self.last_shrink >= self.rtt:
            self.window, self.last_shrink = max(int(self.window * 0.75), 2), now
        self.send("NCF", (), p.ranges)
        for start, end in p.ranges:
            for number in range(max(start, self.head() or end), min(end, self.lead) + 1):
                if number in self.packets and now - self.packets[number].sent >= 4 * self.rtt:
                    self.send_data("RDATA", number)

    def list_timer(self):
        old = w.clock() - 1000
        gone = [n for n, packet in self.packets.items() if n < self.trail and packet.made < old]
        for number in gone:
            del self.packets[number]
        if gone:
            self.send_spm()
        self.timers["list"] = w.clock() + 200
        self.maybe_empty()

    def maybe_empty(self):
        """The Data Empty trigger: all was sent and acknowledged, the last packet is 1000 ms old."""
        last = self.packets.get(self.lead)
        if self.doing != "sending" or self.todo or self.trail < self.lead:
            return
        if last and w.clock() - last.made < 1000:
            self.timers["empty"] = last.made + 1000
        else:
            self.query()

    empty_timer = maybe_empty

    # --- MS-WDSMA 3.1 ---------------------------------------------------------------------------------------

    def query(self):
        self.timers.pop("again", None)
        self.doing, self.reports = "query" if self.active else "nothing", {}
        if not self.active:
            return  # until the next one joins
        number, payload = self.next["poll"], w.build_ma(w.SRVCIR)
        self.next["poll"] += 1
        if self.send("POLL", (number, self.POLL_BACKOFF), payload):
            self.check.polls[number] = (self.sent_at, self.POLL_BACKOFF)
        self.timers["query"] = w.clock() + self.POLL_BACKOFF + self.highest_rtt() + 50

    def on_pollack(self, p, client, group):
        if self.doing == "query" and p.seq == self.next["poll"] - 1 and group is self.active:
            try:
                self.reports[client.id] = w.parse_ma(p.data, w.CNTCIR)
            except w.Malformed:
                return  # the checker has seen it

    def query_timer(self):
        oldest = max((report.seconds for report in self.reports.values()), default=0)
        wanted = set()
        for report in self.reports.values():
            if report.seconds >= oldest - 30:
                for start, end in report.ranges:
                    wanted.update(range(max(start, 1), min(end, self.plan.blocks) + 1))
        self.todo.extend(sorted(wanted))
        if wanted:
            self.doing, self.query_wait = "sending", 0
            self.pump()
        elif self.reports:
            self.query_wait = min(2 * self.query_wait or 200, 2000)
            self.doing, self.timers["again"] = "waiting", w.clock() + self.query_wait
        else:
            self.query()

    again_timer = query
