"""MS-WDSMT 3.2.1.3.1, 3.2.5.9, 3.2.5.10 and 3.2.5.13, one packet at a time, sentence after sentence.

Departs from the document only where the deviations do: 4 (loss), 11 and 50 (where the list starts, and with
it the loss report), 25 (End = NewStart - 1) and 26 (Hi follows Trail once something was received).
"""

WEIGHT = 500 / 65536


class LiteralClient:
    """Data Configuration, with the list as the document keeps it: [StartSeqNo, EndSeqNo] pairs."""

    def __init__(self):
        self.first = self.hi = self.hi_loss = self.trail = self.lead = 0
        self.from_the_start = False
        self.last_spm = self.master = 0
        self.start = self.end = 0
        self.ranges = []
        self.loss = 0.0
        self.received = False

    def set_first(self, number):
        number = 1 if self.from_the_start else number
        self.first = number
        self.start = number  # deviation 11
        self.end = number - 1
        self.hi_loss = number - 1

    # 3.2.1.3.1.1
    def update_start_of_list(self, new_start):
        if new_start < self.start:
            return
        kept = []
        done = False
        for start, end in self.ranges:
            if done or new_start < start:
                done = True
                kept.append([start, end])
            elif end < new_start:
                continue
            else:
                kept.append([new_start, end])
                done = True
        self.ranges = kept
        self.start = new_start
        if self.end < self.start:
            self.end = new_start - 1  # deviation 25

    # 3.2.1.3.1.2
    def update_end_of_list(self, new_end):
        if new_end <= self.end:
            return
        if self.ranges and self.ranges[-1][1] == self.end:
            self.ranges[-1][1] = new_end
        else:
            self.ranges.append([self.end + 1, new_end])
        self.end = new_end

    # 3.2.1.3.1.3
    def received_odata_packet(self, seq):
        for place, (start, end) in enumerate(self.ranges):
            if seq < start:
                return
            if start == end == seq:
                del self.ranges[place]
                return
            if start == seq:
                self.ranges[place][0] += 1
                return
            if end == seq:
                self.ranges[place][1] -= 1
                return
            if start < seq < end:
                self.ranges[place : place + 1] = [[start, seq - 1], [seq + 1, end]]
                return

    # 3.2.1.3.1.4
    def continuous(self):
        return self.ranges[0][0] - 1 if self.ranges else self.end

    def count_lost_until(self, seq):
        for _ in range(self.hi_loss + 1, seq + 1):
            self.loss += WEIGHT * (1 - self.loss)  # deviation 4
        self.hi_loss = max(self.hi_loss, seq)

    # 3.2.5.9
    def spm(self, seq, *, master, trail, lead):
        if seq <= self.last_spm:
            return False
        self.last_spm = seq
        self.master = master
        self.trail = trail
        self.lead = lead
        if not self.first and not lead:
            self.from_the_start = True  # deviation 50: nothing was sent before this client came
        if not self.first and lead:
            self.set_first(lead)
            if not self.from_the_start:
                self.hi_loss = lead  # deviation 50: it was sent before this client came
        if not self.first:
            return True
        self.count_lost_until(lead)
        if self.received:
            self.hi = max(self.hi, trail)  # deviation 26
        self.update_start_of_list(trail)
        self.update_end_of_list(lead)
        return True

    # 3.2.5.13 and 3.2.5.14
    def data(self, seq, *, trail, master, repair=False):
        if repair and not self.first and not self.from_the_start:
            return False  # deviation 50
        if self.first and seq < self.first:
            return False
        if not self.first:
            self.set_first(seq)
        self.received = True
        self.master = master
        self.trail = trail
        self.lead = max(self.lead, seq)
        self.hi = max(self.hi, seq)
        self.count_lost_until(seq - 1)
        self.loss -= WEIGHT * self.loss
        self.hi_loss = max(self.hi_loss, seq)
        self.update_start_of_list(trail)
        self.update_end_of_list(seq)
        self.received_odata_packet(seq)
        return True
