"""What a client has of one content, and what it says about that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_scripts import STEADY

from wdstransport.protocol.client_application import ClientApplication
from wdstransport.wire.application import CntCir, ProgressReport, SrvCir, decode, encode


def application(*, content_size=1000, block_size=10, now=50.0, have=()):
    return ClientApplication(
        content_size=content_size,
        block_size=block_size,
        total_blocks=-(-content_size // block_size),
        now=now,
        have=have,
    )


def test_everything_is_missing_at_first():
    client = application()
    packet = decode(client.missing_packet(50.0))
    assert packet == CntCir(progress=0, time_in_session=0, ranges=((1, 100),))
    assert not client.complete


def test_what_is_here_already_is_not_asked_for():
    client = application(have=[(1, 10), (21, 90)])
    assert decode(client.missing_packet(50.0)).ranges == ((11, 20), (91, 100))
    assert decode(client.missing_packet(50.0)).progress == 80


def test_everything_here_already_is_complete_at_once():
    assert application(have=[(1, 100)]).complete


def test_content_of_no_bytes_is_complete_at_once():
    client = application(content_size=0)
    assert client.complete
    assert client.progress() == 100
    assert not client.accepts(1, 1, 0)


def test_block_that_came_is_set_and_a_second_copy_is_a_duplicate():
    client = application()
    assert client.data(5, 3) == [(5, 3)]
    assert client.data(6, 3) == [(8, 1)]
    assert client.duplicates == 2
    assert decode(client.missing_packet(50.0)).ranges == ((1, 4), (9, 100))


def test_last_missing_block_completes():
    client = application(have=[(1, 99)])
    assert client.progress() == 99
    client.data(100, 1)
    assert client.complete
    assert client.progress() == 100


def test_progress_is_the_share_received_rounded_down_until_all_is_there():
    client = application(content_size=3000)
    client.data(1, 299)
    assert client.progress() == 99
    assert decode(client.progress_packet(50.0)).progress == 99


def test_no_more_than_64_ranges_are_reported_and_the_lowest_ones():
    client = application(content_size=2000, have=[(block, block) for block in range(2, 200, 2)])
    ranges = decode(client.missing_packet(50.0)).ranges
    assert len(ranges) == 64
    assert ranges[0] == (1, 1)
    assert ranges[63] == (127, 127)


def test_exactly_64_ranges_are_all_reported():
    client = application(content_size=1280, have=[(block, block) for block in range(2, 129, 2)])
    ranges = decode(client.missing_packet(50.0)).ranges
    assert len(ranges) == 64
    assert ranges[-1] == (127, 127)


def test_time_in_session_is_whole_seconds_since_joining():
    client = application(now=50.0)
    assert decode(client.progress_packet(53.999)) == ProgressReport(time_in_session=3, progress=0)
    assert decode(client.missing_packet(54.0)).time_in_session == 4


def test_joining_again_starts_the_time_anew_and_keeps_the_blocks():
    client = application(now=50.0)
    client.data(1, 40)
    client.data(39, 2)
    client.joined(90.0)
    assert client.duplicates == 2
    assert decode(client.progress_packet(95.5)) == ProgressReport(time_in_session=5, progress=40)


def test_time_in_session_stays_within_its_field():
    client = application(now=50.0)
    assert decode(client.progress_packet(50.0 + 2**32)).time_in_session == 2**32 - 1


def test_clock_that_went_back_counts_as_no_time():
    assert decode(application(now=50.0).progress_packet(49.0)).time_in_session == 0


@pytest.mark.parametrize(
    ("first", "count", "block_len", "right"),
    [
        (1, 1, 10, True),
        (1, 100, 10, False),  # the last block is shorter
        (1, 99, 10, True),
        (100, 1, 5, True),
        (100, 1, 10, False),
        (99, 1, 5, False),
        (99, 2, 5, False),
        (0, 1, 10, False),
        (0, 2, 10, False),
        (100, 2, 5, False),
        (101, 1, 10, False),
        (1, 1, 9, False),
        (1, 1, 0, False),
        (2**64 - 1, 2, 10, False),
    ],
)
def test_only_blocks_of_this_content_are_accepted(first, count, block_len, right):
    assert application(content_size=995).accepts(first, count, block_len) is right


def test_whole_content_of_full_blocks_is_accepted_in_one_run():
    assert application(content_size=1000).accepts(1, 100, 10)


def test_blocks_beyond_the_horizon_are_as_if_they_had_not_come():
    client = application()
    client.horizon = 5
    assert client.data(4, 4) == [(4, 2)]
    assert client.data(6, 2) == []
    assert client.data(9, 2) == []
    assert client.duplicates == 0
    client.horizon = 6
    assert client.data(5, 3) == [(6, 1)]
    assert client.duplicates == 1
    assert decode(client.missing_packet(50.0)).ranges == ((1, 3), (7, 100))


def test_progress_is_of_the_whole_content_however_near_the_horizon_is():
    client = application(have=[(1, 20), (11, 40)])
    client.horizon = 40
    assert (client.progress(), client.complete) == (40, False)
    assert decode(client.missing_packet(50.0)).progress == 40


def test_repairs_of_blocks_that_are_here_are_duplicates_and_the_others_are_here_from_now_on():
    client = application(have=[(5, 8)])
    assert client.repairs([4, 5, 8, 9, 4]) == [0, 3]
    assert client.duplicates == 3
    assert decode(client.missing_packet(50.0)).ranges == ((1, 3), (10, 100))


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 10)), max_size=20))
@STEADY
def test_reports_never_depart_from_a_plain_list(runs):
    client, have = application(content_size=700), set()
    for first, count in runs:
        fresh = client.data(first, count)
        blocks = set(range(first, first + count))
        assert {block for start, length in fresh for block in range(start, start + length)} == blocks - have
        have |= blocks
        packet = decode(client.missing_packet(50.0))
        assert {block for start, end in packet.ranges for block in range(start, end + 1)} == (
            set(range(1, 71)) - have
        )
        assert packet.progress == len(have) * 100 // 70
        assert client.complete == (len(have) == 70)


# ---------------------------------------------------------------------- what a full cache takes


@given(
    st.sets(st.integers(1, 20)), st.integers(1, 20), st.integers(1, 10), st.integers(0, 8), st.integers(5, 20)
)
@STEADY
def test_as_much_of_a_run_is_taken_as_its_missing_blocks_fit(have, first, count, room, horizon):
    count = min(count, 20 - first + 1)
    client = application(content_size=200, have=[(block, block) for block in have])
    client.horizon = horizon
    taken, refused = client.fitting(first, count, room)
    wanted = [block not in have and block <= horizon for block in range(first, first + count)]
    assert sum(wanted[:taken]) <= room
    assert taken == count or (sum(wanted[:taken]) == room and wanted[taken])
    assert refused == sum(wanted[taken:])


@pytest.mark.parametrize("payload", [b"", b"\0", encode(ProgressReport(1, 1)), encode(SrvCir()) + b"\0"])
def test_only_srvcir_is_a_query(payload):
    assert not ClientApplication.is_query(payload)
    assert ClientApplication.is_query(encode(SrvCir()))
