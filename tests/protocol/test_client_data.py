"""Sequence numbers of a client: the run-wise procedures against the document's packet-by-packet ones."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from literal_client import LiteralClient
from protocol_scripts import STEADY, snapshot

from wdstransport.protocol.client_data import ClientData
from wdstransport.wire.transport import Spm

WEIGHT = 500 / 65536


def spm(seq, *, master=0, low=0, high=0, trail=0, lead=0, rtt=0):
    return Spm(seq, master, low, high, trail, lead, rtt)


def run(data, first, last=None, *, trail=0, master=0):
    return data.on_data(first, first if last is None else last, trail=trail, master=master)


@pytest.fixture
def data():
    return ClientData()


# ---------------------------------------------------------------------- SPM


def test_spm_sets_every_field_it_carries(data):
    assert data.on_spm(spm(3, master=9, low=20, high=35, trail=4, lead=8, rtt=10))
    assert data.last_spm_seq_no == 3
    assert data.master == 9
    assert (data.min_nack_back_off, data.max_nack_back_off) == (0.020, 0.035)
    assert data.mcrtt == 0.010
    assert (data.trail, data.lead) == (4, 8)


@pytest.mark.parametrize("seq", [4, 5])
def test_stale_spm_is_refused_and_changes_nothing(data, seq):
    data.on_spm(spm(5, master=9, lead=3, trail=1))
    before = snapshot(data)
    assert not data.on_spm(spm(seq, master=1, lead=99, trail=50, low=7, high=7, rtt=7))
    assert snapshot(data) == before
    assert (data.master, list(data.missing)) == (9, [(3, 3)])


def test_first_spm_with_a_lead_starts_the_list_there(data):
    data.on_spm(spm(1, lead=40, trail=10))
    assert data.first == 40
    assert list(data.missing) == [(40, 40)]


def test_what_was_sent_before_a_late_client_came_is_no_loss(data):
    data.on_spm(spm(1, lead=40, trail=10))
    assert data.loss.rate == 0.0
    run(data, 41, 45)
    assert data.loss.rate == 0.0
    run(data, 47)
    assert data.loss.rate == pytest.approx(WEIGHT * (1 - WEIGHT))


def test_only_a_late_client_does_not_know_where_its_list_starts(data):
    assert data.unplaced
    data.on_spm(spm(1, lead=0, trail=0))
    assert not data.unplaced
    late = ClientData()
    run(late, 9)
    assert not late.unplaced
    later = ClientData()
    later.on_spm(spm(1, lead=40, trail=10))
    assert not later.unplaced


@pytest.mark.parametrize("lost", [1, 100])
def test_spm_counts_every_packet_of_a_lost_tail(data, lost):
    run(data, 1)
    data.on_spm(spm(1, trail=1, lead=1 + lost))
    assert data.loss.rate == pytest.approx(1 - (1 - 500 / 65536) ** lost)


def test_spm_before_anything_was_sent_starts_nothing(data):
    data.on_spm(spm(1, lead=0, trail=0))
    assert data.first == 0
    assert list(data.missing) == []
    assert data.continuous() == 0
    assert data.loss.rate == 0.0


def test_client_from_before_the_start_misses_the_first_packets_too(data):
    data.on_spm(spm(1, lead=0, trail=0))
    run(data, 4)
    assert data.first == 1
    assert list(data.missing) == [(1, 3)]
    assert data.loss.rate == pytest.approx((1 - (1 - WEIGHT) ** 3) * (1 - WEIGHT))


def test_client_from_before_the_start_learns_of_a_lost_beginning_from_spm_alone(data):
    data.on_spm(spm(1, lead=0, trail=0))
    data.on_spm(spm(2, lead=3, trail=1))
    assert list(data.missing) == [(1, 3)]
    assert data.continuous() == 0
    assert data.loss.rate == pytest.approx(1 - (1 - WEIGHT) ** 3)


def test_lead_of_an_spm_beyond_the_last_packet_is_missing_and_lost(data):
    run(data, 1, 5)
    data.on_spm(spm(1, lead=8, trail=1))
    assert list(data.missing) == [(6, 8)]
    assert data.loss.rate == pytest.approx(1 - (1 - WEIGHT) ** 3)
    assert data.continuous() == 5


def test_same_loss_is_not_counted_by_the_next_spm_again(data):
    run(data, 1, 5)
    data.on_spm(spm(1, lead=8, trail=1))
    rate = data.loss.rate
    data.on_spm(spm(2, lead=8, trail=1))
    assert data.loss.rate == rate


def test_trail_of_an_spm_ends_the_search_for_what_cannot_be_repaired(data):
    run(data, 1)
    run(data, 20)
    data.on_spm(spm(1, lead=20, trail=10))
    assert list(data.missing) == [(10, 19)]
    data.on_spm(spm(2, lead=20, trail=20))
    assert list(data.missing) == []
    assert data.continuous() == 20


def test_highest_follows_the_trail_only_once_something_was_received(data):
    data.on_spm(spm(1, lead=40, trail=30))
    assert data.highest == 0
    run(data, 41)
    assert data.highest == 41
    data.on_spm(spm(2, lead=60, trail=50))
    assert data.highest == 50
    data.on_spm(spm(3, lead=60, trail=45))
    assert data.highest == 50


def test_trail_beyond_the_list_counts_nothing_below_it_as_missing_or_received(data):
    run(data, 1, 5)
    data.on_spm(spm(1, lead=12, trail=10))
    assert list(data.missing) == [(10, 12)]
    assert data.continuous() == 9
    run(data, 10)
    assert data.continuous() == 10


# ---------------------------------------------------------------------- ODATA and RDATA


def test_new_client_misses_nothing_older_than_its_first_packet(data):
    run(data, 1000, trail=1)
    assert data.first == 1000
    assert list(data.missing) == []
    assert data.continuous() == 1000
    assert data.loss.rate == 0.0


def test_older_packets_than_the_first_are_ignored(data):
    run(data, 50)
    assert run(data, 48, trail=1, master=5) == 1
    assert (data.master, data.trail, data.highest) == (0, 0, 50)
    assert run(data, 47, 52) == 3
    assert data.highest == 52


def test_gap_is_missing_until_each_packet_of_it_comes(data):
    run(data, 1)
    run(data, 6)
    assert list(data.missing) == [(2, 5)]
    run(data, 4)
    assert list(data.missing) == [(2, 3), (5, 5)]
    run(data, 2)
    assert list(data.missing) == [(3, 3), (5, 5)]
    run(data, 5)
    assert list(data.missing) == [(3, 3)]
    assert data.continuous() == 2
    run(data, 3)
    assert data.continuous() == 6


def test_duplicate_changes_only_the_loss_rate(data):
    run(data, 1)
    run(data, 5)
    rate = data.loss.rate
    run(data, 5)
    assert list(data.missing) == [(2, 4)]
    assert data.highest == 5
    assert data.loss.rate == pytest.approx(rate * (1 - WEIGHT))


def test_gap_is_lost_once_and_its_repair_is_an_arrival(data):
    run(data, 1)
    run(data, 4)
    expected = (1 - (1 - WEIGHT) ** 2) * (1 - WEIGHT)
    assert data.loss.rate == pytest.approx(expected)
    run(data, 2, 3)
    assert data.loss.rate == pytest.approx(expected * (1 - WEIGHT) ** 2)


def test_packet_names_the_master_and_the_highest_lead_stays(data):
    run(data, 9, master=4)
    assert (data.master, data.lead) == (4, 9)
    run(data, 9, master=6)
    assert (data.master, data.lead) == (6, 9)
    data.on_spm(spm(1, lead=20, trail=1))
    run(data, 10)
    assert data.lead == 20


@pytest.mark.parametrize("base", [0, 2**32 - 5, 2**63])
def test_trail_of_a_packet_removes_what_is_below_it_and_not_itself(data, base):
    run(data, base + 1)
    run(data, base + 10)
    run(data, base + 11, trail=base + 5)
    assert list(data.missing) == [(base + 5, base + 9)]


def test_repair_beyond_what_a_trail_above_its_lead_left_uncounted_is_taken_in_order(data):
    run(data, 1, 3)
    data.on_spm(spm(1, trail=10, lead=5))
    assert (data.highest, data.end, data.lead) == (10, 9, 5)
    assert not data.repairs_only(6, 6)
    assert data.repairs_only(2, 3)


def test_repair_beyond_a_lead_that_an_spm_took_back_is_taken_in_order(data):
    run(data, 1, 9)
    data.on_spm(spm(1, lead=5, trail=1))
    assert (data.end, data.highest, data.lead) == (9, 9, 5)
    assert data.repairs_only(1, 5)
    assert not data.repairs_only(2, 6)


def test_repairs_are_as_many_arrivals_as_packets_and_fill_their_holes(data):
    run(data, 1)
    run(data, 9)
    rate = data.loss.rate
    assert data.on_repairs([3, 1, 7, 3, 2], trail=2, master=6) == [1, 1, 1, 1, 3]
    assert data.loss.rate == pytest.approx(rate * (1 - WEIGHT) ** 5)
    assert (list(data.missing), data.master) == ([(4, 6), (8, 8)], 6)
    assert data.on_repairs([8, 6, 5, 4], trail=9, master=6) == [9, 9, 9, 9]


# ---------------------------------------------------------------------- against the transcription

numbers = st.integers(1, 45)
steps = st.one_of(
    st.tuples(st.just("run"), numbers, st.integers(1, 8), st.integers(0, 45), st.integers(1, 3)),
    st.tuples(st.just("spm"), st.integers(1, 12), st.integers(0, 45), st.integers(0, 45), st.integers(1, 3)),
)


@given(st.lists(steps, max_size=30))
@settings(STEADY, max_examples=300)
@example([("run", 1, 3, 0, 1), ("run", 8, 2, 0, 1), ("run", 4, 4, 6, 2), ("spm", 1, 9, 12, 1)])
@example([("spm", 1, 5, 9, 1), ("run", 3, 8, 0, 1)])
@example([("run", 1, 3, 0, 1), ("spm", 1, 0, 0, 1), ("run", 4, 2, 0, 1)])
@example([("run", 5, 3, 0, 1), ("spm", 1, 0, 0, 1), ("run", 3, 7, 0, 1)])
def test_runs_give_what_packet_by_packet_gives(script):
    data, literal = ClientData(), LiteralClient()
    for kind, *values in script:
        if kind == "run":
            first, count, trail, master = values
            ignored = run(data, first, first + count - 1, trail=trail, master=master)
            taken = [literal.data(seq, trail=trail, master=master) for seq in range(first, first + count)]
            assert taken == [False] * ignored + [True] * (count - ignored)
        else:
            seq, trail, lead, master = values
            accepted = data.on_spm(spm(seq, master=master, trail=trail, lead=lead))
            assert accepted == literal.spm(seq, master=master, trail=trail, lead=lead)
        assert list(data.missing) == [tuple(each) for each in literal.ranges]
        assert data.continuous() == literal.continuous()
        assert (data.first, data.highest, data.lead, data.master) == (
            literal.first,
            literal.hi,
            literal.lead,
            literal.master,
        )
        if data.first:
            assert data.trail == literal.trail
        assert data.end == literal.end
        assert data.loss.rate == pytest.approx(literal.loss, abs=1e-12)


@given(
    st.lists(steps, max_size=8),
    st.integers(1, 70),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), max_size=5),
    st.integers(0, 75),
)
@settings(STEADY, max_examples=300)
@example([("run", 1, 3, 0, 1)], 4, [(2, 1), (1, 3)], 3)
@example([("run", 1, 1, 0, 1), ("spm", 1, 0, 6, 1)], 7, [(1, 1)], 0)
@example([("run", 1, 1, 0, 1), ("spm", 1, 9, 6, 1)], 8, [], 8)
def test_new_packets_with_holes_leave_what_each_run_of_them_leaves(script, first, pieces, trail):
    data, literal = ClientData(), LiteralClient()
    for kind, *values in script:
        if kind == "run":
            start, count, low, master = values
            run(data, start, start + count - 1, trail=low, master=master)
            for seq in range(start, start + count):
                literal.data(seq, trail=low, master=master)
        else:
            seq, low, lead, master = values
            data.on_spm(spm(seq, master=master, trail=low, lead=lead))
            literal.spm(seq, master=master, trail=low, lead=lead)
    if not data.new_only(first, trail):
        assert data.first == 0 or trail > first or first <= max(data.end, literal.hi_loss)
        return
    gaps, numbers, at = [], [], first
    for present, gap in pieces:
        numbers += range(at, at + present)
        gaps.append((at + present, at + present + gap - 1))
        at += present + gap
    numbers.append(at)
    data.on_new(first, at, gaps, trail=trail, master=2)
    for seq in numbers:
        assert literal.data(seq, trail=trail, master=2)
    assert list(data.missing) == [tuple(each) for each in literal.ranges]
    assert data.continuous() == literal.continuous()
    assert (data.highest, data.lead, data.master, data.trail, data.end) == (
        literal.hi,
        literal.lead,
        literal.master,
        literal.trail,
        literal.end,
    )
    assert data.loss.rate == pytest.approx(literal.loss, abs=1e-12)
    data.on_spm(spm(99, trail=at + 2, lead=at + 1))
    literal.spm(99, master=0, trail=at + 2, lead=at + 1)
    assert (data.highest, data.lead, data.end) == (literal.hi, literal.lead, literal.end)
    later = at + 3
    data.on_data(later, later, trail=trail, master=2)
    literal.data(later, trail=trail, master=2)
    assert data.loss.rate == pytest.approx(literal.loss, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "trail", "new"), [(5, 5, True), (5, 6, False), (4, 0, True), (3, 0, False)]
)
def test_packets_beyond_the_end_are_new_only_with_a_trail_no_higher_than_the_first(data, first, trail, new):
    run(data, 1, 3)
    assert data.new_only(first, trail) == new
