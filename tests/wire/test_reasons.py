"""The vocabulary in which datagrams that were dropped are counted."""

from wdstransport.wire.reasons import DropReason, WireError


def test_every_reason_is_counted_under_a_name_of_its_own():
    assert len({reason.value for reason in DropReason}) == len(DropReason.__members__)


def test_error_keeps_the_reason_it_was_raised_for():
    error = WireError(DropReason.TRAILING, "bytes follow the end of the packet")
    assert error.reason is DropReason.TRAILING
    assert str(error) == "bytes follow the end of the packet"
