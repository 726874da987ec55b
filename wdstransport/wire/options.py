"""Extended options of MS-WDSMT packets (MS-WDSMT 2.2.4), and their list, which MS-WDSMSI shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from construct import Construct, ExprAdapter, ExprValidator, Int16ub, PrefixedArray, Struct

from wdstransport.wire.fields import BYTES_16, RuleError
from wdstransport.wire.reasons import DropReason

__all__ = [
    "CAP_MULTISTREAM",
    "FW_LEAD_OPTION_LEN",
    "OPTIONS",
    "OPTIONS_COUNT_LEN",
    "OPTION_LIST",
    "Option",
    "OptionId",
    "capabilities",
    "check_options",
    "cpu_util",
    "find",
    "fw_lead",
    "fw_lead_seq_no",
    "has_capability",
    "mem_util",
    "net_util",
    "user_sid",
    "utilization",
]

CAP_MULTISTREAM = 1
"""WDSMCTP_CAP_MULTISTREAM: the client follows a DEMOTE (MS-WDSMT 2.2.5.1)."""

OPTIONS_COUNT_LEN = 2
FW_LEAD_OPTION_LEN = 12
"""Bytes an ODATA grows by when it carries ODATA_FW_LEAD_SEQ_NO: id, length and value."""


class OptionId(IntEnum):
    """Options that the document defines; others are kept and mean nothing."""

    CPU_UTIL = 0x0101
    """QCR: percent, one byte (MS-WDSMT 2.2.8.4)."""
    MEM_UTIL = 0x0102
    NET_UTIL = 0x0103
    ODATA_FW_LEAD_SEQ_NO = 0x0406
    """ODATA: a sequence number, 8 bytes (MS-WDSMT 2.2.16)."""
    USER_SID = 0x0504
    """JOIN: a security identifier (MS-WDSMT 2.2.5)."""
    CAPABILITIES = 0x0505
    """JOIN: one byte for each capability (MS-WDSMT 2.2.5.1)."""


@dataclass(frozen=True, slots=True)
class Option:
    """One extended option; `value` is its bytes as they are on the wire (MS-WDSMT 2.2.4)."""

    option_id: int
    value: bytes


MAX_OPTIONS = 64
"""Ten times what the documents know: a stranger's datagram of 14,000 options is not worth reading."""

OPTION_LIST: Construct = PrefixedArray(
    ExprValidator(Int16ub, lambda count, context: count <= MAX_OPTIONS),
    Struct("option_id" / Int16ub, "value" / BYTES_16),
)
"""OptionsCount and OptionList, alike in MS-WDSMT 2.2.4 and MS-WDSMSI 2.2.2."""

OPTIONS: Construct = ExprAdapter(
    OPTION_LIST,
    decoder=lambda found, context: tuple(Option(each.option_id, each.value) for each in found),
    encoder=lambda options, context: [{"option_id": o.option_id, "value": o.value} for o in options],
)
"""OptionsCount and OptionList (MS-WDSMT 2.2.4)."""

_PERCENT = frozenset({OptionId.CPU_UTIL, OptionId.MEM_UTIL, OptionId.NET_UTIL})
_KNOWN = frozenset(OptionId)


def check_options(options: Iterable[Option]) -> None:
    """Refuses options that cannot mean anything.

    The document does not say what a second option of the same kind would mean: it is refused, rather than
    one of the two chosen. Unknown options may repeat.

    Raises:
        RuleError: a known option appears twice, or its value has not the length or the range it must have.
    """
    seen = set()
    for option in options:
        known = option.option_id
        if known not in _KNOWN:
            continue
        if known in seen:
            raise RuleError(f"option {known:#06x} appears twice", DropReason.OPTIONS)
        seen.add(known)
        if known in _PERCENT and (len(option.value) != 1 or option.value[0] > 100):
            raise RuleError(f"option {known:#06x} is no percentage in one byte", DropReason.OPTIONS)
        if known == OptionId.ODATA_FW_LEAD_SEQ_NO and len(option.value) != 8:
            raise RuleError("ODATA_FW_LEAD_SEQ_NO is not 8 bytes long", DropReason.OPTIONS)


def find(options: Iterable[Option], option_id: int) -> bytes | None:
    """Returns the value of the first option of a kind, or None."""
    for option in options:
        if option.option_id == option_id:
            return option.value
    return None


def fw_lead_seq_no(options: Iterable[Option]) -> int | None:
    """Returns what ODATA_FW_LEAD_SEQ_NO says, or None where it is absent (MS-WDSMT 2.2.16)."""
    value = find(options, OptionId.ODATA_FW_LEAD_SEQ_NO)
    return None if value is None else int.from_bytes(value, "big")


def utilization(options: Iterable[Option], option_id: OptionId) -> int | None:
    """Returns a percentage of CPU_UTIL, MEM_UTIL or NET_UTIL, or None (MS-WDSMT 2.2.8.4)."""
    value = find(options, option_id)
    return None if value is None else int.from_bytes(value, "big")


def has_capability(options: Iterable[Option], capability: int) -> bool:
    """Whether a JOIN announces a capability; without the option there are none (MS-WDSMT 2.2.5.1)."""
    return capability in (find(options, OptionId.CAPABILITIES) or b"")


def fw_lead(odata_seq_no: int) -> Option:
    """Makes ODATA_FW_LEAD_SEQ_NO (MS-WDSMT 2.2.16)."""
    return Option(OptionId.ODATA_FW_LEAD_SEQ_NO, odata_seq_no.to_bytes(8, "big"))


def cpu_util(percent: int) -> Option:
    """Makes CPU_UTIL, 0 to 100 (MS-WDSMT 2.2.8.4)."""
    return _percentage(OptionId.CPU_UTIL, percent)


def mem_util(percent: int) -> Option:
    """Makes MEM_UTIL, 0 to 100 (MS-WDSMT 2.2.8.4)."""
    return _percentage(OptionId.MEM_UTIL, percent)


def net_util(percent: int) -> Option:
    """Makes NET_UTIL, 0 to 100 (MS-WDSMT 2.2.8.4)."""
    return _percentage(OptionId.NET_UTIL, percent)


def _percentage(option_id: OptionId, percent: int) -> Option:
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is no percentage")
    return Option(option_id, bytes([percent]))


def user_sid(sid: bytes) -> Option:
    """Makes USER_SID from a security identifier's bytes, taken as they are (MS-WDSMT 2.2.5)."""
    return Option(OptionId.USER_SID, sid)


def capabilities(*values: int) -> Option:
    """Makes CAPABILITIES from the numbers of capabilities (MS-WDSMT 2.2.5.1)."""
    return Option(OptionId.CAPABILITIES, bytes(values))
