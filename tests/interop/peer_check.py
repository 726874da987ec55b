"""The checkers: every MUST that one side can see in the packets of the other.

They are shown every datagram before the simulated loss takes its share, and are told what their own side
really put on the wire. remote_loss is the loss that the other side adds by itself, unseen from here.
Times called "when" are SenderTime of the server; "now" is the local time at which a datagram arrived.
"""

import socket
from bisect import bisect_left
from collections import Counter, defaultdict
from types import SimpleNamespace

from peer_wire import (
    CANCELLED,
    CNTCIR,
    COMPLETE,
    DATA,
    FROM_CLIENT,
    FW_LEAD,
    INACTIVE,
    LOSS_SCALE,
    PROGRESS,
    SRVCIR,
    Malformed,
    SenderClock,
    Sequence,
    check_ranges,
    parse_ma,
)


class ServerCheck:
    """Watches a server. first: nobody was there before us; alone: nobody else is there meanwhile."""

    def __init__(self, bad, plan, first=False, alone=False, remote_loss=0.0, max_window=None):
        self.bad, self.plan, self.first, self.alone = bad, plan, first, alone
        self.remote_loss, self.max_window, self.drops = remote_loss, max_window, 0
        names = ("QCCSeqNo", "POLLSeqNo", "SPMSeqNo", "ODATASeqNo")
        start = 1 if first and not remote_loss else None
        self.numbers = {name: Sequence(name, bad, start) for name in names}
        self.clocks = {via: SenderClock(via, bad) for via in ("unicast", "multicast")}
        self.counts, self.client, self.joins, self.qcrs = Counter(), None, set(), 0
        self.nacks, self.cirs, self.ncfs, self.repairs = [], {}, Counter(), Counter()
        self.digests, self.last_sent, self.rtts, self.since, self.early = {}, {}, [], [], 0
        self.trail, self.block, self.poll, self.qcc, self.spm, self.kick = 0, 0, None, None, None, None
        self.spm_times, self.unacked, self.in_qcc, self.entering, self.longest = [], 0, True, False, 0
        self.acks, self.ack_times, self.arrived = [0], [0], 0
        self.always_master, self.refuses_kick, self.now, self.given = True, False, 0, 0
        self.overdue = []

    @property
    def blind(self):
        """Whether the server sent what cannot be known here."""
        return bool(self.drops or self.remote_loss)

    def sent_ack(self, number, stamp):
        self.acks.append(number)
        self.ack_times.append(stamp)
        self.unacked = 0

    def sent_nack(self, now, ranges):
        # Nothing is owed in QCC state, nor to a client whose QCR never arrived.
        excused = self.in_qcc or not self.qcrs
        if self.remote_loss:
            excused |= not any(nack.done for nack in self.nacks)
        self.nacks.append(SimpleNamespace(time=now, ranges=ranges, done=False, excused=excused))

    def see(self, p, via, now, arrived):
        self.now, self.arrived = now, arrived
        self.counts[p.op] += 1
        self.clocks[via].see(p.time, now)
        if (via == "unicast") != (p.op == "JOINACK"):
            self.bad("destination", f"{p.op} came by {via}")
        if p.op in FROM_CLIENT:
            self.bad("direction", f"{p.op} from the server")
            return
        if self.first and not self.qcrs and p.op != "JOINACK":
            self.bad("PreStart", f"{p.op} before any QCR")
        if p.op in ("SPM", "ODATA", "RDATA"):
            if p.trail < self.trail or (p.op != "SPM" and not 1 <= p.trail <= p.seq):
                self.bad("TrailODATASeqNo", f"{p.op} with {p.trail}, after {self.trail}")
            self.trail = max(self.trail, p.trail)
            self.entering, self.in_qcc = self.in_qcc, False
            master = p.master if p.op == "SPM" else p.client
            self.always_master &= master == self.client
            if not master or (self.alone and master != self.client):
                self.bad("master", f"{p.op} names {master}, the only client is {self.client}")
        getattr(self, "on_" + p.op.lower())(p)

    def on_joinack(self, p):
        if p.client_time not in self.joins:
            self.bad("ClientTime", f"JOINACK echoes {p.client_time}, which no JOIN had")
        # A server that sent three JOINACK packets in vain forgets the client: only then is there a new id.
        if self.client != p.client:
            if self.client is not None and p.time - self.given < 1400:
                self.bad("ClientId", f"changed from {self.client} to {p.client}")
            self.client, self.given = p.client, p.time
        if p.min_backoff > p.max_backoff:
            self.bad("JOINACK", f"back-off {p.min_backoff}-{p.max_backoff}")
        if self.first and self.spm is None and p.rtt:
            self.bad("JOINACK", f"RTT {p.rtt} before there is a master client")
        if self.counts["JOINACK"] > 3 * len(self.joins):
            self.bad("JOINACK", f"{self.counts['JOINACK']} for {len(self.joins)} JOIN")

    def on_qcc(self, p):
        self.numbers["QCCSeqNo"].see(p.seq, p.time)
        # Before the last one's timer is over, or with a far shorter wait: the QCC state was entered.
        early = self.qcc and p.time < self.qcc.time + self.qcc.backoff - 5
        if early or 2 * p.backoff < self.longest:
            self.unacked, self.in_qcc = 0, True
        for nack in self.nacks[-100:]:
            nack.excused |= not nack.done and nack.time > self.now - 300
        self.qcc, self.longest = p, max(self.longest, p.backoff)

    def on_spm(self, p):
        self.numbers["SPMSeqNo"].see(p.seq, p.time)
        high = self.numbers["ODATASeqNo"].high
        if p.lead < high or (p.lead > high and (high or self.first) and not self.blind):
            self.bad("LeadODATASeqNo", f"{p.lead}, but {high} is the highest that was sent")
        if p.trail > p.lead + 1 or (p.trail and not p.lead):
            self.bad("SPM", f"trail {p.trail}, lead {p.lead}")
        if abs(p.min_backoff - max(2 * p.rtt, 1)) > 2 or p.max_backoff < max(p.min_backoff, 1):
            self.bad("SPM", f"back-off {p.min_backoff}-{p.max_backoff} with RTT {p.rtt}")
        if not self.entering:
            self.spm_times = [when for when in self.spm_times if when > p.time - 1000] + [p.time]
            if len(self.spm_times) > 11:
                self.bad("SPM", f"{len(self.spm_times)} in a second")
        self.unacked += p.master == self.client
        if self.unacked > 8:
            self.bad("MaxNoResponseSPM", f"{self.unacked} without an ACK and still no QCC state")
        # RTT changes with every ACK, and only this packet shows it: a repetition counts as early when it came
        # within half of the time that the lowest of the values around it allows.
        self.rtts, self.spm = [*self.rtts[-4:], p.rtt], p
        self.early += sum(since < 2 * min(self.rtts) - 2 for since in self.since)
        self.since, self.overdue = [], []

    def on_poll(self, p):
        self.numbers["POLLSeqNo"].see(p.seq, p.time)
        try:
            parse_ma(p.data, SRVCIR)
        except Malformed as error:
            self.bad("SRVCIR", str(error))
        if self.poll and p.time - self.poll.time < self.poll.backoff - 5:
            self.bad("POLL", f"{p.time - self.poll.time} ms after one with back-off {self.poll.backoff}")
        self.poll, self.block = p, 0

    def data(self, p):
        try:
            block = parse_ma(p.data, DATA)
        except Malformed as error:
            self.bad("DATA", str(error))
            return 0
        wanted = min(self.plan.block_size, self.plan.size - (block.block - 1) * self.plan.block_size)
        if not 1 <= block.block <= self.plan.blocks or len(block.data) != wanted:
            self.bad("DATA", f"block {block.block} of {self.plan.blocks} with {len(block.data)} bytes")
        return block.block

    def on_odata(self, p):
        if self.first and self.spm is None and not self.blind:
            self.bad("SPM", "none before the first ODATA")
        newest = self.numbers["ODATASeqNo"].see(p.seq, p.time)
        block, high = self.data(p), self.numbers["ODATASeqNo"].high
        self.digests[p.seq], self.last_sent[p.seq] = hash(p.data), p.time
        lead = int.from_bytes(p.options[FW_LEAD], "big") if FW_LEAD in p.options else None
        if lead is not None and not p.trail - 1 <= lead <= high:
            self.bad("FW_LEAD", f"{lead} in packet {p.seq}, trail {p.trail}, highest sent {high}")
        if newest:
            if block <= self.block and not self.drops:
                self.bad("order", f"block {block} after {self.block} with no POLL between")
            self.block = block
            wanted = self.cirs.get(self.poll.seq, ()) if self.poll else ()
            if self.alone and not self.drops and not any(start <= block <= end for start, end in wanted):
                self.bad("not requested", f"block {block}")
        # CurrentWindowSize starts at 1 and grows by at most 3 for every packet that is acknowledged (2 and
        # then, where ExpMaxWindowSize is crossed, 1); a NACK makes 2 of 1.
        acked = self.acks[bisect_left(self.ack_times, self.arrived) - 1]
        flight = p.seq - acked
        if self.first and self.always_master and flight > min(3 * acked + 2, self.max_window or p.seq):
            self.bad("CurrentWindowSize", f"{flight} in flight after {acked} acknowledged")
        # A server that was held up may send some data first; one that goes on without SPM has no excuse.
        if self.spm and p.time - self.spm.time > max(220, 4 * self.spm.rtt) + 1000:
            self.overdue.append(p.time)
            if p.time - self.overdue[0] > 500 and len(self.overdue) > 100:
                self.bad("SPM", f"none for {p.time - self.spm.time} ms")

    def on_rdata(self, p):
        self.data(p)
        self.repairs[p.seq] += 1
        if p.seq > self.numbers["ODATASeqNo"].high and self.first and not self.blind:
            self.bad("RDATA", f"{p.seq} was never sent as ODATA")
        if self.digests.get(p.seq, hash(p.data)) != hash(p.data):
            self.bad("RDATA", f"{p.seq} differs from what was sent first")
        if (self.ncfs or self.first) and self.repairs[p.seq] > self.ncfs[p.seq] and not self.blind:
            self.bad("RDATA", f"{p.seq} sent {self.repairs[p.seq]} times, promised {self.ncfs[p.seq]} times")
        self.since.append(p.time - self.last_sent.get(p.seq, -(10**9)))
        self.last_sent[p.seq] = p.time

    def on_ncf(self, p):
        same = [nack for nack in self.nacks if nack.ranges == p.ranges and not nack.done]
        if same:
            min(same, key=lambda nack: nack.excused).done = True
        elif self.alone:
            self.bad("NCF", f"answers no NACK: {p.ranges}")
        for start, end in p.ranges:
            if end - start < 100_000:
                self.ncfs.update(range(start, end + 1))

    def on_kick(self, p):
        for client, reason in p.kicks:
            if reason > 2:
                self.bad("KICK", f"reason {reason} for {client}")
        if len(p.kicks) > 200 or not p.kicks:
            self.bad("KICK", f"names {len(p.kicks)} clients")
        if self.kick and 50 < p.time - self.kick.time < 14_500:
            self.bad("KICK", f"repeated after {p.time - self.kick.time} ms")
        self.kick = p

    def on_demote(self, p):
        lengths = {len(p.group), len(p.address)}
        if lengths not in ({4}, {16}) or not 1 <= len(p.clients) <= 250 or p.lower == self.plan.session:
            self.bad("DEMOTE", f"session {p.lower}, address lengths {lengths}, {len(p.clients)} clients")

    def finish(self):
        for item in self.clocks.values():
            item.finish()
        if not self.blind:
            for item in self.numbers.values():
                item.finish()
        asked = [nack for nack in self.nacks if not nack.excused and nack.time < self.now - 200]
        silent = sum(not nack.done for nack in asked)
        allowed = 2 + 2 * bool(self.remote_loss) + len(asked) * (0.05 + 2.5 * self.remote_loss)
        if silent > allowed and not self.drops:
            self.bad("NCF", f"none for {silent} of {len(asked)} NACK")
        if self.alone and self.early > 2 + sum(self.repairs.values()) // 5:
            self.bad("RDATA", f"{self.early} repeated within 4 RTT")
        if self.refuses_kick and self.kick and self.now - self.kick.time > 17_000:
            self.bad("KICK", "not repeated after 15 s")


class ClientCheck:
    """Watches the clients of one server; fresh: they start with no block of the content."""

    def __init__(self, bad, plan, remote_loss=0.0, fresh=True):
        self.bad, self.plan, self.remote_loss, self.fresh = bad, plan, remote_loss, fresh
        self.clients, self.joins, self.joined, self.acks_due, self.acks = {}, {}, {}, Counter(), Counter()
        self.qccs, self.polls, self.times, self.sent, self.blocks = {}, {}, defaultdict(set), set(), set()
        self.trail, self.lead, self.backoffs = 0, 0, [0]

    # What the server really sent.

    def sent_joinack(self, client, source, when):
        record = self.clients.get(client)
        if record is None:
            record = self.clients[client] = SimpleNamespace(
                source=source, joinacks=Counter(), answers=0, clock=SenderClock(f"client {client}", self.bad)
            )
            record.__dict__.update(qcc=0, poll=0, ack=None, hi=0, progress=0, seconds=0, missing=None)
            record.__dict__.update(left=None, kicked=None, qcr=when, nack=None, waits=[], counts=Counter())
            record.__dict__.update(
                first_ack=None, last=0, late=0, hasty=0, joined=self.joined.get(source, when), reason=None
            )
        record.joinacks[when] += 1

    def sent_data(self, when, master, number, block, due):
        """An ODATA or RDATA, and whether its master must acknowledge it."""
        self.sent.add(number)
        self.blocks.add(block)
        self.lead = max(self.lead, number)
        self.sent_master(when, master, due)

    def sent_master(self, when, master, due=True):
        self.acks_due[when, master] += due

    # What the clients send.

    def see_join(self, p, source, now):
        text = p.name.decode("utf-16-le", "replace")
        if "\0" not in text or "\ufffd" in text.split("\0")[0] or text.startswith("\0"):
            self.bad("JOIN", f"ClientName {p.name!r}")
        if len(p.ip) not in (4, 16) or socket.inet_aton(source[0]) != p.ip:
            self.bad("JOIN", f"IPAddress {p.ip!r} from {source[0]}")
        if len(p.mac) not in (6, 8):
            self.bad("JOIN", f"MacAddrLen {len(p.mac)}")
        if source in self.joins and p.time - self.joins[source] < 450:
            self.bad("JOIN", f"again after {p.time - self.joins[source]} ms")
        self.joins[source] = p.time
        self.joined.setdefault(source, now)

    def see(self, p, source, now):
        if p.op not in FROM_CLIENT:
            self.bad("direction", f"{p.op} from a client")
            return
        if p.op == "JOIN":
            self.see_join(p, source, now)
            return
        record = self.clients.get(p.client)
        if record is None or record.source != source:
            self.bad("ClientId", f"{p.op} from {source} with {p.client}, which it was not given")
            return
        record.clock.see(p.time, now)
        record.counts[p.op] += 1
        if record.left is not None:
            self.bad("LEAVE", f"{p.op} from {p.client} after its LEAVE")
        record.last = now
        if hasattr(p, "hi") and not (p.op == "QCR" and p.seq == 0 and p.server_time):
            if p.hi < record.hi or p.hi > self.lead or not 0 <= p.loss <= LOSS_SCALE:
                self.bad(p.op, f"HiODATASeqNo {p.hi} after {record.hi}, lead {self.lead}; LossRate {p.loss}")
            record.hi = max(record.hi, p.hi)
        getattr(self, "on_" + p.op.lower())(p, record, now)

    def on_qcr(self, p, record, now):
        quiet = p.seq == p.backoff == p.hi == p.loss == len(p.data) == 0
        if p.seq == 0 and p.server_time:
            record.answers += 1
            if not quiet or p.server_time not in record.joinacks or record.answers > record.joinacks.total():
                self.bad("QCR", f"after JOINACK: {vars(p)}")
            return
        if p.seq == 0:
            if p.backoff or now - record.qcr < 19_500:
                self.bad("QCR", f"voluntary, {now - record.qcr} ms after the last one")
        elif p.seq not in self.qccs or p.seq <= record.qcc:
            self.bad("QCR", f"QCCSeqNo {p.seq} after {record.qcc}, of {len(self.qccs)} sent")
        else:
            when, backoff = self.qccs[p.seq]
            record.late += p.backoff > backoff + 100
            if p.server_time != when or p.backoff > now - when + 5:
                self.bad("QCR", f"ServerTime {p.server_time - when}, {p.backoff} of {backoff} ms waited")
            if backoff >= 100:
                record.waits.append((now - when) / backoff)
            record.qcc = p.seq
        record.qcr = now
        try:
            report = parse_ma(p.data, PROGRESS)
        except Malformed as error:
            self.bad("PROGRESS", str(error))
        else:
            self.report(report, record, now)

    def report(self, report, record, now):
        elapsed = (now - record.joined) / 1000
        if not record.progress <= report.progress <= 100:
            self.bad("Progress", f"{report.progress} after {record.progress}")
        if not record.seconds <= report.seconds <= elapsed + 10 or report.seconds < elapsed - 5:
            self.bad("TimeInSession", f"{report.seconds} after {record.seconds}, {elapsed} s here")
        record.progress, record.seconds = report.progress, report.seconds

    def on_pollack(self, p, record, now):
        if p.seq not in self.polls or p.seq <= record.poll:
            self.bad("POLLACK", f"POLLSeqNo {p.seq} after {record.poll}")
            return
        record.poll, (when, backoff) = p.seq, self.polls[p.seq]
        record.late += now - when > backoff + 500
        if backoff >= 100:
            record.waits.append((now - when) / backoff)
        try:
            report = parse_ma(p.data, CNTCIR)
        except Malformed as error:
            self.bad("CNTCIR", str(error))
            return
        self.report(report, record, now)
        complaint = check_ranges(report.ranges, 1, self.plan.blocks)
        if complaint or len(report.ranges) > 64:
            self.bad("CNTCIR", complaint or f"{len(report.ranges)} ranges")
            return
        missing = {block for start, end in report.ranges for block in range(start, end + 1)}
        if record.missing is not None and not missing <= record.missing:
            self.bad("CNTCIR", f"missing again: {sorted(missing - record.missing)[:5]}")
        if len(report.ranges) < 64:
            have = set(range(1, self.plan.blocks + 1)) - missing
            if abs(100 * len(have) / self.plan.blocks - report.progress) > 1:
                self.bad("Progress", f"{report.progress} with {len(have)} of {self.plan.blocks} blocks")
            if self.fresh and not have <= self.blocks:
                self.bad("CNTCIR", f"claims blocks never sent: {sorted(have - self.blocks)[:5]}")
            record.missing = missing

    def on_ack(self, p, record, now):
        key = (p.server_time, p.client)
        self.acks[key] += 1
        if self.acks[key] > self.acks_due[key]:
            self.bad("ACK", f"of {p.server_time} is number {self.acks[key]}, due {self.acks_due[key]}")
        if p.seq > self.lead or (p.hi and p.seq > p.hi):
            self.bad("ACK", f"{p.seq} beyond what was sent ({self.lead}) or seen ({p.hi})")
        elif record.ack is not None:
            if p.seq < record.ack:
                self.bad("ACK", f"{p.seq} after {record.ack}")
            never = set(range(max(record.ack + 1, self.trail), p.seq + 1)) - self.sent
            if never:
                self.bad("ACK", f"{p.seq}, but {sorted(never)[:5]} never reached the wire")
        else:
            record.first_ack = now
        record.ack = max(p.seq, record.ack or 0)

    def on_nack(self, p, record, now):
        complaint = check_ranges(p.ranges, 1, self.lead)
        if complaint:
            self.bad("NACK", complaint)
        if not p.ranges:
            return
        if p.ranges[0][0] <= (record.ack or 0):
            self.bad("NACK", f"{p.ranges[0]} was acknowledged up to {record.ack}")
        if record.nack is not None and p.time - record.nack < min(self.backoffs[-4:]) - 2:
            record.hasty += 1
        record.nack = p.time

    def on_leave(self, p, record, now):
        kicked = record.kicked is not None and now - record.kicked > 500
        if p.reason not in (COMPLETE, CANCELLED, INACTIVE) or (kicked and p.reason != CANCELLED):
            self.bad("LEAVE", f"reason {p.reason}, kicked {kicked}")
        if p.reason == COMPLETE and self.fresh and len(self.blocks) < self.plan.blocks:
            self.bad("LEAVE", f"complete with {len(self.blocks)} of {self.plan.blocks} blocks sent")
        record.left, record.reason = now, p.reason

    def finish(self):
        for client, record in self.clients.items():
            record.clock.finish()
            if len(record.waits) >= 8 and max(record.waits) < 0.1:
                self.bad("BackOff", f"client {client} never waits")
            if record.late > 2 + (record.counts["QCR"] + record.counts["POLLACK"]) // 5:
                self.bad("BackOff", f"client {client} was late {record.late} times")
            if record.hasty > 2 + record.counts["NACK"] // 10:
                self.bad("NACK", f"client {client} did not wait {record.hasty} times")
            if record.first_ack is None:
                continue
            # What it answered last, and what came later, it may not have read before it left.
            heard = [when for when, master in self.acks if master == client]
            span = range(record.first_ack, max([*heard, record.last - 1500]))
            due = sum(n for (when, master), n in self.acks_due.items() if master == client and when in span)
            got = sum(n for (when, master), n in self.acks.items() if master == client and when in span)
            if got < 0.9 * due * (1 - self.remote_loss) ** 2 - 5:
                self.bad("ACK", f"client {client} sent {got} of {due}")
