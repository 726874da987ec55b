"""What a server sends from: slots of datagrams, first filled with content and last with numpy headers."""

from __future__ import annotations

import numpy as np

from wdstransport.wire.layout import (
    FW_LEAD,
    IDENTIFIER,
    NO_OPTIONS,
    OPTION_ID,
    OPTION_LEN,
    SRV_DATA,
    U64,
    DataLayout,
    records_in,
)
from wdstransport.wire.security import Security, SecurityMode
from wdstransport.wire.transport import OpCode

__all__ = ["SlotBuffer"]

# Plain names for the data path: a member of an enum costs a slow look-up in Python 3.11.
_NONE, _CHECKSUM = SecurityMode.NONE, SecurityMode.CHECKSUM


class SlotBuffer:
    """A buffer of equal slots, one data datagram each: content is read straight into place.

    Attributes:
        segment: bytes of one slot, header and options included.
        payload: one writable view per slot, where its block belongs; filled by `os.preadv` and the like.
        nbytes: bytes of the whole buffer.
    """

    def __init__(
        self, slots: int, block_len: int, *, session_id: int, security: Security, fw_lead: bool
    ) -> None:
        """Lay out `slots` datagrams.

        Args:
            slots: how many.
            block_len: bytes of content in each.
            session_id: of the session they will be sent in.
            security: the server's mode and keys.
            fw_lead: whether each carries ODATA_FW_LEAD_SEQ_NO (ODATA) or no option (RDATA, deviation 33).
        """
        layout = DataLayout.of(security.data_len)
        options = FW_LEAD if fw_lead else NO_OPTIONS
        self.segment = layout.data + block_len + options.itemsize
        self.block_len = block_len
        self.slots = slots
        self._security = security
        self._body_at = 5 + layout.security_len
        self._bytes = bytearray(slots * self.segment)
        self._view = memoryview(self._bytes)
        self.payload = [
            self._view[start : start + block_len]
            for start in range(layout.data, slots * self.segment, self.segment)
        ]
        self._header = records_in(layout.header, self._view, 0, slots, self.segment)
        self._options = records_in(options, self._view, layout.data + block_len, slots, self.segment)
        self._matrix = np.frombuffer(self._bytes, np.uint8).reshape(slots, self.segment)[:, self._body_at :]
        header = self._header
        header["identifier"] = IDENTIFIER
        header["security_type"] = security.mode
        header["security_len"] = layout.security_len
        header["session_id"] = session_id
        header["data_len"] = 13 + block_len
        header["packet_size"] = 13 + block_len
        header["ma_op_code"] = SRV_DATA
        header["block_len"] = block_len
        self._fw_lead = fw_lead
        self.nbytes = slots * self.segment
        if fw_lead:
            self._options["options_count"] = 1
            self._options["option_id"] = OPTION_ID
            self._options["option_len"] = OPTION_LEN

    def fill(
        self,
        start: int,
        count: int,
        *,
        op_code: OpCode,
        sender_time: int,
        client_id: int,
        odata_seq_no: U64,
        trail_odata_seq_no: int,
        block_number: U64,
        previous_lead: int = 0,
    ) -> memoryview:
        """Write the headers of `count` slots from `start`, seal them, and hand over the datagrams.

        With FW_LEAD, all but the last carry `previous_lead` and the last its own number (deviation 35), so
        that a batch gets one ACK.

        Args:
            start: first slot.
            count: how many slots, which hold their blocks already.
            op_code: ODATA or RDATA.
            sender_time: milliseconds (MS-WDSMT 2.2.3).
            client_id: the master client's (3.1.5.9.7).
            odata_seq_no: one sequence number a slot.
            trail_odata_seq_no: lowest sequence number that can be repaired.
            block_number: one block number a slot, from 1.
            previous_lead: the highest sequence number sent before this batch.

        Returns:
            The bytes of the datagrams, `segment` each.
        """
        stop = start + count
        header = self._header[start:stop]
        header["op_code"] = op_code
        header["sender_time"] = sender_time
        header["client_id"] = client_id
        header["odata_seq_no"] = odata_seq_no
        header["trail_odata_seq_no"] = trail_odata_seq_no
        header["block_number"] = block_number
        if self._fw_lead:
            options = self._options
            options["fw_lead"][start:stop] = previous_lead
            options["fw_lead"][stop - 1] = odata_seq_no[-1]
        if self._security.mode is _CHECKSUM:
            sums = np.add.reduce(self._matrix[start:stop], axis=1, dtype=np.uint32)
            header["security_data"] = (~sums).astype(">u4").view(np.uint8).reshape(count, 4)
        elif self._security.mode is not _NONE:
            for slot in range(start, stop):
                at = slot * self.segment
                body = self._view[at + self._body_at : at + self.segment]
                self._view[at : at + self._body_at] = self._security.seal(body)
        return self._view[start * self.segment : stop * self.segment]
