"""Packets of MS-WDSMSI (UDP), MS-WDSMT and MS-WDSMA, a lossy UDP socket and the trackers of the checkers.

The plainest reading of the documents: one datagram at a time, no shortcuts, nothing shared with the
implementation under test.
"""

import random
import socket
import struct
import time
from collections import Counter
from types import SimpleNamespace

OPCODES = {
    0x01: "SPM",
    0x02: "JOIN",
    0x03: "JOINACK",
    0x04: "QCC",
    0x05: "QCR",
    0x06: "ODATA",
    0x07: "RDATA",
    0x08: "ACK",
    0x09: "NACK",
    0x0A: "NCF",
    0x0B: "LEAVE",
    0x0C: "POLL",
    0x0D: "POLLACK",
    0x0E: "KICK",
    0x0F: "DEMOTE",
}
OPNUMBERS = {name: number for number, name in OPCODES.items()}
FROM_CLIENT = {"JOIN", "QCR", "ACK", "NACK", "LEAVE", "POLLACK"}

# MS-WDSMT 2.2.6-19: fixed fields, their names, and what follows behind a 16-bit count.
LAYOUT = {
    "SPM": ("QIHHQQH", "seq master min_backoff max_backoff trail lead rtt", None),
    "JOINACK": ("IHHHQ", "client min_backoff max_backoff rtt client_time", None),
    "QCC": ("QH", "seq backoff", None),
    "QCR": ("IQHQQQ", "client seq backoff server_time hi loss", "data"),
    "ODATA": ("IQQ", "client seq trail", "data"),
    "RDATA": ("IQQ", "client seq trail", "data"),
    "ACK": ("IQQQQ", "client seq server_time hi loss", None),
    "NACK": ("IQQ", "client hi loss", "ranges"),
    "NCF": ("", "", "ranges"),
    "LEAVE": ("IB", "client reason", None),
    "POLL": ("QH", "seq backoff", "data"),
    "POLLACK": ("IQ", "client seq", "data"),
    "KICK": ("", "", "kicks"),
}
ELEMENT = {"ranges": struct.Struct(">QQ"), "kicks": struct.Struct(">IB")}
FW_LEAD = 0x0406
OPTIONS = {  # the only options that the documents name, with the length of their value where it is fixed
    "JOIN": {0x0504: None, 0x0505: None},
    "QCR": {0x0101: 1, 0x0102: 1, 0x0103: 1},
    "ODATA": {FW_LEAD: 8},
}
SECURITY = {"none": (0, 0), "checksum": (3, 4)}
LOSS_SCALE = 10**16
COMPLETE, CANCELLED, INACTIVE = 0, 1, 2


class Malformed(Exception):
    """A datagram that cannot be read at all."""


def clock() -> int:
    """Local time in milliseconds."""
    return int(time.monotonic() * 1000)


def arrival(stamp) -> int:
    """When a datagram arrived, in the milliseconds of clock()."""
    return clock() - (time.time_ns() - stamp) // 10**6


def checksum(body):
    """MS-WDSMT 2.2.2.3."""
    return ~sum(body) & 0xFFFFFFFF


def build(name, session, mode, when, fields, tail=None, options=()):
    """One MS-WDSMT datagram; JOIN and DEMOTE give their packet-specific section as bytes."""
    if isinstance(fields, bytes):
        section = fields
    else:
        form, _, kind = LAYOUT[name]
        section = struct.pack(">" + form, *fields)
        if kind == "data":
            section += struct.pack(">H", len(tail)) + tail
        elif kind:
            section += struct.pack(">H", len(tail)) + b"".join(ELEMENT[kind].pack(*item) for item in tail)
    section += struct.pack(">H", len(options))
    for number, value in options:
        section += struct.pack(">HH", number, len(value)) + value
    body = struct.pack(">IBQ", session, OPNUMBERS[name], when) + section
    kind, length = SECURITY[mode]
    return struct.pack(">2sBH", b"WD", kind, length) + (
        struct.pack(">I", checksum(body)) if length else b""
    ) + body  # fmt: skip


class Reader:
    """Takes bytes from the front and never reads beyond the end."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if self.at + count > len(self.data):
            raise Malformed(f"{count} bytes wanted at {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def unpack(self, form):
        return struct.unpack(">" + form, self.take(struct.calcsize(">" + form)))

    @property
    def left(self):
        return len(self.data) - self.at


def parse(datagram, mode, session):
    """Read one MS-WDSMT datagram: (packet, complaints). Malformed when there is nothing to be had."""
    reader = Reader(datagram)
    magic, kind, length = reader.unpack("2sBH")
    if magic != b"WD" or (kind, length) != SECURITY[mode]:
        raise Malformed(f"security header {magic!r} type {kind} length {length}, not {mode}")
    value = reader.take(length)
    if length and struct.unpack(">I", value)[0] != checksum(datagram[reader.at :]):
        raise Malformed("checksum does not match")
    number, opcode, when = reader.unpack("IBQ")
    if number != session:
        raise Malformed(f"SessionId {number:#x}, not {session:#x}")
    if opcode not in OPCODES:
        raise Malformed(f"OpCode {opcode:#x}")
    name, complaints = OPCODES[opcode], []
    packet = SimpleNamespace(op=name, time=when, options={}, size=len(datagram))
    if name == "JOIN":
        packet.name, packet.ip = reader.take(32), reader.take(reader.take(1)[0])
        packet.mac = reader.take(reader.take(1)[0])
    elif name == "DEMOTE":
        (packet.lower,) = reader.unpack("I")
        packet.group, (packet.group_port,) = reader.take(reader.take(1)[0]), reader.unpack("H")
        packet.address, (packet.port,) = reader.take(reader.take(1)[0]), reader.unpack("H")
        packet.clients = [reader.unpack("I")[0] for _ in range(reader.unpack("H")[0])]
    else:
        form, names, tail = LAYOUT[name]
        packet.__dict__.update(zip(names.split(), reader.unpack(form), strict=True))
        if tail:
            (count,) = reader.unpack("H")
            if tail == "data":
                packet.data = reader.take(count)
            else:
                form = ELEMENT[tail].format[1:]
                setattr(packet, tail, [reader.unpack(form) for _ in range(count)])
    if not reader.left:
        complaints.append(f"{name} without OptionsCount")
        return packet, complaints
    for _ in range(reader.unpack("H")[0]):
        option, size = reader.unpack("HH")
        value, allowed = reader.take(size), OPTIONS.get(name, {})
        if option not in allowed or option in packet.options or allowed[option] not in (None, size):
            complaints.append(f"{name} with option {option:#06x} of {size} bytes")
        if name == "QCR" and value > b"\x64":
            complaints.append(f"QCR utilisation {value!r} above 100")
        packet.options[option] = value
    if reader.left:
        complaints.append(f"{name} with {reader.left} bytes behind its end")
    return packet, complaints


# --- MS-WDSMA 2.2 -------------------------------------------------------------------------------------------

SRVCIR, CNTCIR, DATA, PROGRESS = 1, 2, 3, 4


def build_ma(opcode, payload=b""):
    return struct.pack(">HB", 3 + len(payload), opcode) + payload


def parse_ma(data, wanted):
    """Read an MS-WDSMA packet whose OpCode must be the wanted one and whose length must be exact."""
    reader = Reader(data)
    size, opcode = reader.unpack("HB")
    if size != len(data) or opcode != wanted:
        raise Malformed(f"MS-WDSMA Packet-Size {size} of {len(data)}, OpCode {opcode}, wanted {wanted}")
    packet = SimpleNamespace()
    if opcode == CNTCIR:
        packet.progress, packet.seconds, count = reader.unpack("BIH")
        packet.ranges = [reader.unpack("QQ") for _ in range(count)]
    elif opcode == DATA:
        packet.block, size = reader.unpack("QH")
        packet.data = reader.take(size)
    elif opcode == PROGRESS:
        packet.seconds, packet.progress = reader.unpack("IB")
    if reader.left:
        raise Malformed(f"MS-WDSMA packet with {reader.left} bytes too many")
    return packet


# --- MS-WDSMSI 2.2.2 ----------------------------------------------------------------------------------------

REQUEST, REPLY = 1, 2
NAMESPACE, CONTENT, MAC, IPV6_CAPABLE, ERROR = 0x0601, 0x0602, 0x050C, 0x010D, 0x030B
GROUP_ADDRESS, SERVER_ADDRESS, GROUP_PORT, SERVER_PORT = 0x0503, 0x0504, 0x0205, 0x0206
CONTENT_SIZE, BLOCK_SIZE, TOTAL_BLOCKS, SESSION_ID = 0x0407, 0x0309, 0x0408, 0x030A
REPLY_FORMS = {
    GROUP_ADDRESS: "4s",
    SERVER_ADDRESS: "4s",
    GROUP_PORT: "H",
    SERVER_PORT: "H",
    CONTENT_SIZE: "Q",
    BLOCK_SIZE: "I",
    TOTAL_BLOCKS: "Q",
    SESSION_ID: "I",
}


def wide(text):
    """A Unicode string, little-endian characters, with its null character."""
    return text.encode("utf-16-le") + b"\0\0"


def build_msi(opcode, options):
    parts = [struct.pack(">HH", number, len(value)) + value for number, value in options]
    return struct.pack(">BH", opcode, len(options)) + b"".join(parts)


def parse_msi(data):
    reader = Reader(data)
    opcode, count = reader.unpack("BH")
    options = {}
    for _ in range(count):
        number, size = reader.unpack("HH")
        if number in options:
            raise Malformed(f"initiation option {number:#06x} twice")
        options[number] = reader.take(size)
    if reader.left:
        raise Malformed(f"initiation packet with {reader.left} bytes behind its end")
    return opcode, options


# --- sockets and loss ---------------------------------------------------------------------------------------


class Loss:
    """Drops datagrams with one probability, from a stream of its own for each direction and kind."""

    def __init__(self, probability, seed):
        self.probability, self.seed, self.streams = probability, seed, {}

    def hits(self, stream):
        draw = self.streams.setdefault(stream, random.Random(f"{self.seed}/{stream}"))
        return draw.random() < self.probability


class Port:
    """A UDP socket that knows when a datagram arrived (SO_TIMESTAMPNS), whenever it is read, and how many
    the kernel dropped for lack of room (SO_RXQ_OVFL)."""

    OVERFLOW, STAMP = 40, 35
    SPACE = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(16)

    def __init__(self, address, port=0, group=None):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.kernel_drops = 0
        try:
            self.socket.setblocking(False)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self.socket.setsockopt(socket.SOL_SOCKET, self.OVERFLOW, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, self.STAMP, 1)
            local = socket.inet_aton(address)
            if group:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind((group or address, port))
            if group:
                join = socket.inet_aton(group) + local
                self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, join)
            else:
                self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, local)
                self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        except OSError:
            self.socket.close()
            raise
        self.address = self.socket.getsockname()

    def fileno(self):
        return self.socket.fileno()

    def send(self, data, to):
        try:
            self.socket.sendto(data, to)
        except OSError:
            return False
        return True

    def receive(self, limit=200):
        """Everything that waits, at most limit datagrams: (data, source, time of arrival).

        That time is in ns, of the system's clock; see arrival()."""
        for _ in range(limit):
            try:
                data, extra, _, source = self.socket.recvmsg(65535, self.SPACE)
            except OSError:
                return
            stamp = time.time_ns()
            for _, kind, value in extra:
                if kind == self.OVERFLOW:
                    self.kernel_drops = struct.unpack("I", value[:4])[0]
                elif kind == self.STAMP:
                    seconds, nanoseconds = struct.unpack("qq", value)
                    stamp = seconds * 10**9 + nanoseconds
            yield data, source, stamp

    def close(self):
        self.socket.close()


# --- what the checkers of both sides share ------------------------------------------------------------------


class Violations:
    """A list of broken rules: every rule is counted, the first three examples of each are kept."""

    def __init__(self):
        self.items, self.counts = [], Counter()

    def add(self, rule, detail):
        self.counts[rule] += 1
        if self.counts[rule] <= 3:
            self.items.append(f"{rule}: {detail}")

    def listed(self):
        more = [f"{rule}: {count - 3} more" for rule, count in self.counts.items() if count > 3]
        return self.items + more


class Sequence:
    """A number that must grow by one with every packet, from 1 when the beginning was seen."""

    def __init__(self, name, bad, start=None):
        self.name, self.bad, self.start, self.seen, self.high, self.time = name, bad, start, set(), 0, 0

    def see(self, number, when):
        """True when the number is the highest so far."""
        if number in self.seen:
            self.bad(self.name, f"{number} used twice")
        elif not self.seen and self.start not in (None, number):
            self.bad(self.name, f"starts at {number}")
        elif number < self.high and when > self.time:
            self.bad(self.name, f"{number} sent after {self.high}")
        self.seen.add(number)
        if number <= self.high:
            return False
        self.high, self.time = number, when
        return True

    def finish(self):
        gaps = self.high - min(self.seen, default=1) + 1 - len(self.seen)
        if self.seen and gaps:
            self.bad(self.name, f"{gaps} numbers left out up to {self.high}")


class SenderClock:
    """SenderTime counts milliseconds and does not run backwards (20 ms and 500 ms + 10 % of slack)."""

    def __init__(self, name, bad):
        self.name, self.bad, self.first, self.high, self.now = name, bad, None, 0, 0

    def see(self, when, now):
        if self.first is None:
            self.first = (when, now)
        if when < self.high - 20:
            self.bad("SenderTime", f"{self.name} went back from {self.high} to {when}")
        self.high, self.now = max(self.high, when), now

    def finish(self):
        if self.first is not None:
            theirs, ours = self.high - self.first[0], self.now - self.first[1]
            if abs(theirs - ours) > 500 + ours / 10:
                self.bad("SenderTime", f"{self.name}: {theirs} ms of it in {ours} ms")


def check_ranges(ranges, low, high):
    """What is wrong with a list of ranges that must be sorted, merged and within low..high; or None."""
    before = low - 2
    for start, end in ranges:
        if start > end or start <= before + 1 or end > high:
            return f"range {start}-{end} after {before} within {low}-{high}"
        before = end
    return None
