"""What a client keeps about sequence numbers (MS-WDSMT 3.2.1.3), and how packets change it.

The Missing ODATA List, the loss report and the back-off values. Runs of consecutive sequence numbers are
taken at once; the result is what the document's packet-by-packet procedure gives, which a test proves
against a literal transcription.
"""

from __future__ import annotations

from collections.abc import Sequence

from wdstransport.protocol.loss import LossFilter
from wdstransport.protocol.ranges import RangeSet
from wdstransport.wire.transport import Spm

__all__ = ["ClientData"]


class ClientData:
    """Data Configuration of a client; sequence numbers are whole, times seconds.

    Attributes:
        first: FirstODATASeqNo, 0 before any ODATA or SPM with a Lead.
        highest: HiODATASeqNo.
        missing: RangeList.
        end: EndODATASeqNo.
        master: MasterClientId.
    """

    def __init__(self) -> None:
        self.first = 0
        self.highest = 0
        self.lead = 0
        self.trail = 0
        self.master = 0
        self.mcrtt = 0.0
        self.min_nack_back_off = 0.0
        self.max_nack_back_off = 0.0
        self.last_spm_seq_no = 0
        self.missing = RangeSet()
        self.end = 0
        self.loss = LossFilter()
        self._from_the_start = False
        self._highest_loss = 0

    def _begin(self, first: int) -> None:
        """The list starts at FirstODATASeqNo: a new client misses nothing older (deviation 11).

        Nor has it lost what was sent before it came (deviation 50).
        """
        if self._from_the_start:
            first = 1
        self.first = first
        self.end = first - 1
        self._highest_loss = first - 1

    @property
    def unplaced(self) -> bool:
        """Whether nothing has told a late client yet where its list starts."""
        return not self.first and not self._from_the_start

    def _update_start(self, trail: int) -> None:
        """Update Start of List (3.2.1.3.1.1): what cannot be repaired any more is not missing."""
        self.trail = trail
        self.missing.remove_below(trail)
        self.end = max(self.end, trail - 1)  # End = NewStart - 1 (deviation 25)

    def _update_end(self, end: int) -> None:
        """Update End of List (3.2.1.3.1.2)."""
        if end > self.end:
            self.missing.add(self.end + 1, end)
            self.end = end

    def continuous(self) -> int:
        """Highest Continuous Received ODATASeqNo (3.2.1.3.1.4)."""
        return self.missing.first - 1 if self.missing else self.end

    def on_spm(self, packet: Spm) -> bool:
        """The fields of 3.2.5.9.

        Returns:
            Whether the packet is newer than the last SPM.
        """
        if packet.spm_seq_no <= self.last_spm_seq_no:
            return False
        self.last_spm_seq_no = packet.spm_seq_no
        self.master = packet.master_client_id
        self.lead = packet.lead_odata_seq_no
        self.min_nack_back_off = packet.min_nack_back_off / 1000
        self.max_nack_back_off = packet.max_nack_back_off / 1000
        self.mcrtt = packet.rtt / 1000
        if not packet.lead_odata_seq_no:
            # Nothing was sent before this client came: it misses the first packet, too, if that is lost.
            self._from_the_start = True
        elif not self.first:
            self._begin(packet.lead_odata_seq_no)
            if not self._from_the_start:
                # Asked for as the document has it, but it was sent before this client came (deviation 50).
                self._highest_loss = self.first
        if self.first:
            self._report_lost_until(packet.lead_odata_seq_no)
            if self.highest:
                # Hi follows Trail only once something was received (deviation 26).
                self.highest = max(self.highest, packet.trail_odata_seq_no)
            self._update_start(packet.trail_odata_seq_no)
            self._update_end(packet.lead_odata_seq_no)
        return True

    def _report_lost_until(self, seq: int) -> None:
        """3.2.5.10.1: every number up to `seq` that did not come is a loss."""
        if seq > self._highest_loss:
            self.loss.lost(seq - self._highest_loss)
            self._highest_loss = seq

    def on_data(self, first: int, last: int, *, trail: int, master: int) -> int:
        """ODATA or RDATA numbered `first` to `last`, in order, have come (3.2.5.13).

        Args:
            first: sequence number of the run's first packet.
            last: of its last.
            trail: TrailODATASeqNo of its last packet.
            master: ClientId of its last packet.

        Returns:
            How many packets at the run's start to ignore, being older than FirstODATASeqNo.
        """
        if not self.first:
            self._begin(first)
        ignored = max(0, min(self.first, last + 1) - first)
        first += ignored
        if first > last:
            return ignored
        self.master = master
        self.lead = max(self.lead, last)
        self.highest = max(self.highest, last)
        self._report_lost_until(first - 1)
        self.loss.arrived(last - first + 1)
        self._highest_loss = max(self._highest_loss, last)
        self._update_start(trail)
        self._update_end(last)
        self.missing.remove(first, last)
        return ignored

    def new_only(self, first: int, trail: int) -> bool:
        """Whether sequence numbers from `first` are newer than all that this client has heard of.

        Then what comes is an arrival, and what is missing between is a loss and a hole, in one pass. A Trail
        above `first` is left to `on_data`, packet by packet. No loss was counted beyond the list's end.
        """
        return self.first > 0 and self.end < first and trail <= first

    def on_new(
        self, first: int, last: int, gaps: Sequence[tuple[int, int]], *, trail: int, master: int
    ) -> None:
        """Packets for which `new_only` holds have come in order: `first` to `last` but for the `gaps`.

        Args:
            first: the lowest sequence number that came.
            last: the highest.
            gaps: inclusive ranges between them that did not, ascending.
            trail: TrailODATASeqNo of all.
            master: ClientId of all.
        """
        self.master = master
        self.lead = self.highest = last  # neither was beyond the list's end
        self.loss.lost(first - 1 - self._highest_loss)
        self._highest_loss = last
        self._update_start(trail)
        self._update_end(first - 1)
        at = first
        for start, end in gaps:
            self.loss.arrived(start - at)
            self.loss.lost(end - start + 1)
            at = end + 1
        self.loss.arrived(last - at + 1)
        self.missing.extend(gaps)
        self.end = last

    def repairs_only(self, lowest: int, highest: int) -> bool:
        """Whether sequence numbers from `lowest` to `highest` lie where losses are counted already.

        Then each is an arrival and fills its hole, and the order among them makes no difference. Neither the
        list's end nor what losses are counted up to ever lies below Lead.
        """
        return 0 < self.first <= lowest and highest <= min(self.highest, self.lead)

    def on_repairs(self, numbers: Sequence[int], *, trail: int, master: int) -> list[int]:
        """Packets for which `repairs_only` holds have come in this order (3.2.5.14), all with this Trail.

        Returns:
            What `continuous` was after each.
        """
        self.master = master
        self.loss.arrived(len(numbers))
        self._update_start(trail)
        return [left - 1 for left in self.missing.discard_each(numbers, beyond=self.end + 1)]
