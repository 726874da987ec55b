"""Where the fields of a data datagram lie (MS-WDSMT 2.2.2, 2.2.3, 2.2.16, MS-WDSMA 2.2.4), as numpy records.

`tests/wire/test_batch.py` and `test_slots.py` prove the records equal to the construct declarations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FW_LEAD",
    "IDENTIFIER",
    "NO_OPTIONS",
    "OPTION_ID",
    "OPTION_LEN",
    "SRV_DATA",
    "U64",
    "DataLayout",
    "records_in",
]

IDENTIFIER = 0x5744
OPTION_ID = 0x0406
OPTION_LEN = 8
SRV_DATA = 0x03

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class DataLayout:
    """Where the fields of a data datagram lie, in bytes from its first, for one length of SecurityData.

    Attributes:
        security_len: bytes of SecurityData (MS-WDSMT 2.2.2).
        op_code: offset of OpCode.
        header: the record from the identifier to the block's first byte.
        data: offset of the block's first byte.
    """

    security_len: int
    op_code: int
    header: np.dtype[np.void]
    data: int

    @staticmethod
    @lru_cache(maxsize=16)
    def of(security_len: int) -> DataLayout:
        """The layout for `security_len` bytes of SecurityData."""
        fields: list[tuple[str, Any]] = [
            ("identifier", ">u2"),
            ("security_type", "u1"),
            ("security_len", ">u2"),
            ("security_data", "u1", (security_len,)),  # type: ignore[list-item]
            ("session_id", ">u4"),
            ("op_code", "u1"),
            ("sender_time", ">u8"),
            ("client_id", ">u4"),
            ("odata_seq_no", ">u8"),
            ("trail_odata_seq_no", ">u8"),
            ("data_len", ">u2"),
            ("packet_size", ">u2"),
            ("ma_op_code", "u1"),
            ("block_number", ">u8"),
            ("block_len", ">u2"),
        ]
        header = np.dtype(fields)
        return DataLayout(security_len, 5 + security_len + 4, header, header.itemsize)


# The extended options of a data datagram, after the block: none, or FW_LEAD alone (2.2.16).
NO_OPTIONS = np.dtype([("options_count", ">u2")])
FW_LEAD = np.dtype(
    [("options_count", ">u2"), ("option_id", ">u2"), ("option_len", ">u2"), ("fw_lead", ">u8")]
)


def records_in(
    dtype: np.dtype[np.void], buffer: memoryview, offset: int, count: int, stride: int
) -> npt.NDArray[Any]:
    """`count` records of `dtype` in `buffer`, the first at `offset`, `stride` bytes from each to the next."""
    return np.ndarray((count,), dtype, buffer, offset, (stride,))
