"""The send window, and the list of packets that can be repaired."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_scripts import STEADY

from wdstransport.protocol.window import DataPacketList, SentRun, Window

# ---------------------------------------------------------------------- Window


def test_window_starts_with_one_packet():
    assert Window(16, 64).size == 1


def test_window_grows_by_twice_the_packets_below_its_exponential_limit():
    window = Window(16, 64)
    window.acknowledged(1)
    assert window.size == 3
    window.acknowledged(3)
    assert window.size == 9


def test_exponential_growth_stops_at_its_limit():
    window = Window(16, 64)
    window.size = 15
    window.acknowledged(15)
    assert window.size == 16


def test_window_grows_by_the_packets_from_the_exponential_limit_on():
    window = Window(16, 64)
    window.size = 16
    window.acknowledged(5)
    assert window.size == 21


def test_growth_ends_at_the_maximum():
    window = Window(16, 64)
    window.size = 60
    window.acknowledged(16)
    assert window.size == 64
    window.acknowledged(16)
    assert window.size == 64


def test_window_grows_without_a_rest_from_one_packet_to_its_maximum():
    window = Window(16_384, 16_384)
    sizes = [1]
    while window.size < 16_384:
        window.acknowledged(min(window.size, 352))
        sizes.append(window.size)
    assert all(after == min(before + 2 * min(before, 352), 16_384) for before, after in pairwise(sizes))
    assert len(sizes) < 40


def test_ack_of_nothing_new_does_not_grow_the_window():
    window = Window(16, 64)
    for size in (1, 5, 16, 40):
        window.size = size
        window.acknowledged(0)
        assert window.size == size


def test_loss_cuts_the_window_to_three_quarters():
    window = Window(1024, 4096)
    window.size = 1000
    assert window.lost(5.0, 0.01, 90, 100)
    assert window.size == 750


@pytest.mark.parametrize(("size", "after"), [(1, 2), (2, 2), (3, 2), (4, 3), (5, 3), (7, 5)])
def test_cut_window_is_whole_and_never_below_two(size, after):
    window = Window(1024, 4096)
    window.size = size
    window.lost(5.0, 0.01, 90, 100)
    assert window.size == after


def test_window_is_cut_once_in_four_round_trips():
    window = Window(1024, 4096)
    window.size = 100
    assert window.lost(5.0, 0.25, 90, 100)
    assert not window.lost(5.875, 0.25, 110, 120)
    assert window.size == 75
    assert window.lost(6.0, 0.25, 110, 120)
    assert window.size == 56


def test_refused_cut_does_not_postpone_the_next():
    window = Window(1024, 4096)
    window.size = 100
    window.lost(5.0, 0.25, 90, 100)
    window.lost(5.875, 0.25, 110, 120)
    assert window.lost(6.0, 0.25, 110, 120)


def test_losses_of_packets_sent_before_the_last_cut_are_no_new_event():
    window = Window(1024, 4096)
    window.size = 100
    assert window.lost(5.0, 0.25, 60, 100)
    assert not window.lost(6.0, 0.25, 100, 160)
    assert window.lost(6.0, 0.25, 101, 160)
    assert window.size == 56


@given(st.lists(st.one_of(st.integers(0, 50), st.none()), max_size=60))
@STEADY
def test_window_follows_the_documents_arithmetic(steps):
    window, size = Window(16, 64), 1
    for now, packets in enumerate(steps):
        if packets is None:
            window.lost(float(now), 0.25, now, now)
            size = max(int(size * 0.75), 2)
        else:
            window.acknowledged(packets)
            size = min(size + 2 * packets, 16) if size < 16 else min(size + packets, 64)
        assert window.size == size
        assert 1 <= window.size <= 64


# ---------------------------------------------------------------------- DataPacketList


def test_empty_list_has_no_head():
    packets = DataPacketList()
    assert not packets
    assert len(packets) == 0
    assert packets.find(1) is None
    assert packets.clean_up(100.0, 100) == 0
    with pytest.raises(IndexError):
        _ = packets.first_seq


def test_packet_is_found_with_its_block_and_the_time_it_left():
    packets = DataPacketList()
    packets.append(SentRun(1, 11, 3, 5.0))
    packets.append(SentRun(4, 50, 2, 6.0))
    assert packets.find(0) is None
    assert packets.find(1) == (11, 5.0)
    assert packets.find(3) == (13, 5.0)
    assert packets.find(4) == (50, 6.0)
    assert packets.find(5) == (51, 6.0)
    assert packets.find(6) is None
    assert (packets.first_seq, packets.last_seq, packets.last_created) == (1, 5, 6.0)


def test_last_send_times_of_many_repairs_outlive_a_cleanup():
    packets = DataPacketList()
    packets.append(SentRun(1, 1, 30_000, 5.0))
    for seq in range(1, 30_001):
        packets.resent(seq, 7.5)
    packets.clean_up(6.0, 100)
    assert [packets.find(seq) for seq in (100, 15_000, 30_000)] == [
        (100, 7.5),
        (15_000, 7.5),
        (30_000, 7.5),
    ]


def test_resent_packet_has_a_new_last_send_time_and_its_neighbours_have_not():
    packets = DataPacketList()
    packets.append(SentRun(1, 11, 3, 5.0))
    packets.resent(2, 7.5)
    assert [packets.find(seq)[1] for seq in (1, 2, 3)] == [5.0, 7.5, 5.0]
    assert packets.last_created == 5.0


def test_clean_up_needs_both_age_and_acknowledgement():
    packets = DataPacketList()
    packets.append(SentRun(1, 1, 10, 5.0))
    assert packets.clean_up(5.0, 100) == 0
    assert packets.clean_up(6.0, 1) == 0
    assert packets.clean_up(6.0, 4) == 3
    assert packets.first_seq == 4
    assert packets.find(3) is None
    assert packets.find(4) == (4, 5.0)


def test_young_packet_keeps_the_older_ones_behind_it():
    packets = DataPacketList()
    packets.append(SentRun(1, 1, 2, 5.0))
    packets.append(SentRun(3, 3, 2, 9.0))
    assert packets.clean_up(6.0, 100) == 2
    assert (packets.first_seq, packets.last_seq) == (3, 4)


def test_times_of_repairs_are_forgotten_with_their_packets():
    packets = DataPacketList()
    packets.append(SentRun(1, 1, 10, 5.0))
    packets.resent(2, 7.0)
    packets.resent(5, 7.0)
    packets.clean_up(6.0, 5)
    assert set(packets._resent) == {5}
    assert packets.find(5) == (5, 7.0)
    packets.clean_up(6.0, 11)
    assert not packets
    assert packets._resent == {}


steps = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 6), st.integers(1, 50)),
    st.tuples(st.just("resent"), st.integers(1, 60), st.just(0)),
    st.tuples(st.just("clean"), st.integers(0, 8), st.integers(0, 60)),
)


@given(st.lists(steps, max_size=40))
@settings(STEADY, max_examples=200)
def test_list_behaves_like_a_dictionary_of_packets(script):
    packets, model, following = DataPacketList(), {}, 1
    for step, (name, first, second) in enumerate(script):
        now = float(step)
        match name:
            case "append":
                packets.append(SentRun(following, second, first, now))
                for offset in range(first):
                    model[following + offset] = [second + offset, now, now]
                following += first
            case "resent":
                if first in model:
                    packets.resent(first, now)
                    model[first][2] = now
            case "clean":
                gone = []
                for seq in sorted(model):
                    if not (model[seq][1] < now - first and seq < second):
                        break
                    gone.append(seq)
                assert packets.clean_up(now - first, second) == len(gone)
                for seq in gone:
                    del model[seq]
        assert bool(packets) == bool(model)
        assert len(packets) == len(model)
        if model:
            assert (packets.first_seq, packets.last_seq) == (min(model), max(model))
            assert packets.last_created == model[max(model)][1]
        for seq in range(following + 2):
            expected = model.get(seq)
            assert packets.find(seq) == (None if expected is None else (expected[0], expected[2]))


def test_last_sent_before_a_moment_is_the_end_of_the_runs_created_by_then():
    packets = DataPacketList()
    for first, created in ((1, 5.0), (11, 6.0), (21, 6.0), (31, 7.0)):
        packets.append(SentRun(first, first, 10, created))
    assert [packets.last_sent_before(moment) for moment in (4.9, 5.0, 5.9, 6.0, 7.0)] == [0, 10, 10, 30, 40]
    packets.clean_up(5.5, 11)
    assert [packets.last_sent_before(moment) for moment in (5.0, 6.0, 7.0)] == [10, 30, 40]
