"""What a batch says, against what its packets say one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_scripts import STEADY, records

from wdstransport.protocol import client_runs as module
from wdstransport.protocol.client_runs import repairs_of, runs_of, stretch_of
from wdstransport.wire.transport import OpCode

ME, OTHER = 5, 6
PACKETS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 12), st.integers(0, 12), st.integers(0, 12), st.booleans()),
    min_size=1,
    max_size=12,
)


def batch(packets, *, rdata, other=OTHER):
    return records(
        [(seq, block) for seq, block, *_ in packets],
        block_len=1,
        trails=[trail for _, _, trail, *_ in packets],
        leads=[lead for *_, lead, _ in packets],
        masters=[ME if mine else other for *_, mine in packets],
        rdata=rdata,
    )


def without(row, found):
    """The records of a batch of which one datagram failed its checksum."""
    for name in ("rows", "header", "odata_seq_no", "block_number", "fw_lead"):
        setattr(found, name, np.delete(getattr(found, name), row))
    return found


@given(PACKETS, st.booleans())
@STEADY
def test_runs_hold_every_packet_once_in_order_and_are_what_they_claim(packets, rdata):
    rows = []
    for run, wanted in runs_of(batch(packets, rdata=rdata)):
        taken = packets[run.start : run.start + run.rows]
        rows += range(run.start, run.start + run.rows)
        assert [seq for seq, *_ in taken] == list(range(run.first_seq, run.first_seq + run.rows))
        assert [block for _, block, *_ in taken] == list(range(run.first_block, run.first_block + run.rows))
        assert {mine for *_, mine in taken} == {run.master == ME}
        assert taken[-1][2] == run.trail
        here = range(run.start, run.start + run.rows)
        assert wanted == [row for row in here if packets[row][3] >= packets[row][0]]
    assert rows == list(range(len(packets)))


@pytest.mark.parametrize(
    ("places", "runs"),
    [
        ([], []),
        ([0], [(0, 1, 4)]),
        ([0, 1, 2, 3, 4, 5], [(0, 2, 4), (2, 3, 1), (5, 1, 9)]),
        ([1, 2, 4], [(1, 1, 5), (2, 1, 1), (4, 1, 3)]),
        ([0, 2, 3, 4], [(0, 1, 4), (2, 3, 1)]),
    ],
)
def test_repairs_of_neighbouring_blocks_in_neighbouring_rows_are_one_run(places, runs):
    packets = [(10 + row, block, 0, 0, True) for row, block in enumerate([4, 5, 1, 2, 3, 9])]
    repairs = repairs_of(batch(packets, rdata=True))
    assert [tuple(run) for run in repairs.runs(places)] == runs


def test_blocks_of_repairs_reach_from_the_lowest_to_the_highest_wherever_they_stand():
    packets = [(10 + row, block, 0, 0, True) for row, block in enumerate([4, 9, 1, 5])]
    assert repairs_of(batch(packets, rdata=True)).content == (1, 9)


def test_repairs_that_lost_a_row_between_them_are_two_runs():
    found = without(1, batch([(10, 4, 0, 0, True), (11, 7, 0, 0, True), (12, 5, 0, 0, True)], rdata=True))
    assert [tuple(run) for run in repairs_of(found).runs([0, 1])] == [(0, 1, 4), (2, 1, 5)]


def test_run_has_the_trail_of_its_last_packet():
    ((run, _),) = runs_of(batch([(5, 5, 1, 0, True), (6, 6, 3, 0, True), (7, 7, 4, 0, True)], rdata=False))
    assert (run.rows, run.trail) == (3, 4)


def test_sequence_numbers_do_not_go_on_from_the_largest_to_zero():
    found = runs_of(batch([(2**64 - 1, 1, 0, 0, True), (0, 2, 0, 0, True)], rdata=False))
    assert [run.rows for run, _ in found] == [1, 1]


@given(PACKETS)
@STEADY
def test_repairs_are_told_at_a_glance_under_one_master_and_with_no_trail_above_a_packet(packets):
    repairs = repairs_of(batch(packets, rdata=True))
    masters = {mine for *_, mine in packets}
    trails = {trail for _, _, trail, *_ in packets}
    usual = len(masters) == len(trails) == 1 and all(trail <= seq for seq, _, trail, *_ in packets)
    assert (repairs is not None) == usual
    if repairs is not None:
        numbers, blocks = [seq for seq, *_ in packets], [block for _, block, *_ in packets]
        assert (repairs.numbers, repairs.blocks) == (numbers, blocks)
        assert repairs.rows == list(range(len(packets)))
        assert repairs.wanted == [row for row, (seq, _, _, lead, _) in enumerate(packets) if lead >= seq]
        assert (repairs.trail, repairs.master) == (packets[-1][2], ME if masters == {True} else OTHER)
        assert (repairs.span, repairs.content) == ((min(numbers), max(numbers)), (min(blocks), max(blocks)))


def test_odata_is_no_repair():
    assert repairs_of(batch([(1, 1, 0, 0, True)], rdata=False)) is None


ORDERED = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from([0, 0, 0, 0, 1]), st.integers(0, 1), st.integers(0, 20)),
    min_size=1,
    max_size=12,
)


@given(ORDERED, st.sampled_from([0, 7]), st.integers(1, 5), st.booleans(), st.booleans())
@STEADY
def test_stretch_says_what_the_runs_say_wherever_a_batch_is_in_order(packets, ahead, trail, mine, rdata):
    rows, seq, shift = [], 0, ahead
    for step, jump, climb, lead in packets:
        seq, shift, trail = seq + step, shift + jump, trail + climb
        rows.append((seq, seq + shift, trail, lead, mine))
    found = batch(rows, rdata=rdata)
    stretch = stretch_of(found)
    usual = len({block - seq for seq, block, *_ in rows}) == len({trail for _, _, trail, *_ in rows}) == 1
    assert (stretch is not None) == usual
    if stretch is None:
        return
    numbers = [seq for seq, *_ in rows]
    assert (stretch.first, stretch.last) == (numbers[0], numbers[-1])
    assert (stretch.ahead, stretch.trail, stretch.master) == (
        rows[0][1] - numbers[0],
        rows[-1][2],
        ME if mine else OTHER,
    )
    assert stretch.wanted == [row for row, (seq, _, _, lead, _) in enumerate(rows) if lead >= seq]
    held = [
        (first_row + place, first + place)
        for first_row, count, first in stretch.runs
        for place in range(count)
    ]
    assert held == list(enumerate(numbers))
    missing = [number for low, high in stretch.gaps for number in range(low, high + 1)]
    assert sorted(numbers + missing) == list(range(numbers[0], numbers[-1] + 1))
    assert len(stretch.gaps) == len(stretch.runs) - 1


@pytest.mark.parametrize(
    "packets",
    [
        [(0, 1, 0, 0, True)],
        [(1, 1, 0, 0, True), (1, 1, 0, 0, True)],
        [(2, 2, 0, 0, True), (1, 1, 0, 0, True)],
        [(1, 1, 0, 0, True), (3, 3, 0, 0, True), (2, 2, 0, 0, True), (4, 4, 0, 0, True)],
        [(1, 1, 0, 0, True), (2, 5, 0, 0, True), (3, 3, 0, 0, True)],
        [(1, 1, 0, 0, True), (2, 2, 0, 0, False)],
        [(3, 3, 2, 0, True), (4, 4, 1, 0, True)],
        [(1, 1, 0, 0, True), (1 + (1 << 32), 1 + (1 << 32), 0, 0, True)],
    ],
    ids=["zero", "twice", "back", "swapped", "a block from elsewhere", "two masters", "lower trail", "far"],
)
def test_batch_out_of_order_is_no_stretch(packets):
    assert stretch_of(batch(packets, rdata=False)) is None


def test_batch_with_very_many_holes_is_no_stretch(monkeypatch):
    monkeypatch.setattr(module, "_MANY_GAPS", 2)
    rows = [(seq, seq, 0, 0, True) for seq in (1, 3, 5, 7)]
    assert stretch_of(batch(rows[:3], rdata=False)) is not None
    assert stretch_of(batch(rows, rdata=False)) is None


def test_row_that_is_left_out_of_a_batch_makes_it_no_stretch():
    found = batch([(seq, seq, 0, 0, True) for seq in (1, 2, 3)], rdata=False)
    for name in ("rows", "header", "odata_seq_no", "block_number", "fw_lead"):
        setattr(found, name, getattr(found, name)[[0, 2]])  # the one between failed its checksum
    assert stretch_of(found) is None


def test_stretch_of_a_batch_whose_first_row_is_left_out_begins_in_the_second():
    found = without(0, batch([(seq, seq, 0, 0, True) for seq in (1, 2, 4)], rdata=False))
    assert stretch_of(found).runs == [(1, 1, 2), (2, 1, 4)]


def test_packets_that_want_an_ack_are_named_by_their_places_among_those_that_are_left():
    packets = [(1, 1, 0, 1, True), (2, 2, 0, 0, True), (4, 4, 0, 4, True)]
    assert stretch_of(without(0, batch(packets, rdata=False))).wanted == [1]
    repairs = repairs_of(without(0, batch(packets, rdata=True)))
    assert (repairs.wanted, repairs.rows) == ([1], [1, 2])
    assert [wanted for _, wanted in runs_of(without(0, batch(packets, rdata=False)))] == [[], [1]]


@pytest.mark.parametrize("other", [ME + 0x100, ME + 0x10000, ME + 0x1000000])
def test_masters_are_told_apart_by_every_byte_of_their_ids(other):
    packets = [(2, 2, 0, 0, True), (3, 3, 0, 0, False)]
    assert stretch_of(batch(packets, rdata=False, other=other)) is None
    assert repairs_of(batch(packets, rdata=True, other=other)) is None
    assert [run.master for run, _ in runs_of(batch(packets, rdata=False, other=other))] == [ME, other]


def test_repairs_among_which_trail_moves_are_not_told_at_a_glance():
    """Each ACK says what was continuous under its own packet's Trail."""
    assert repairs_of(batch([(9, 9, 3, 0, True), (8, 8, 4, 0, True)], rdata=True)) is None
    assert repairs_of(batch([(9, 9, 4, 0, True), (8, 8, 4, 0, True)], rdata=True)).trail == 4


def test_blocks_of_a_large_content_keep_their_numbers():
    far = 1 << 33
    packets = [(1, far + 1, 0, 0, True), (2, far + 2, 0, 0, True)]
    ((run, _),) = runs_of(batch(packets, rdata=False))
    assert run.first_block == far + 1
    assert stretch_of(batch(packets, rdata=False)).ahead == far
    repairs = repairs_of(batch(packets, rdata=True))
    assert (repairs.blocks, repairs.content) == ([far + 1, far + 2], (far + 1, far + 2))


def test_run_ends_where_repairs_do():
    found = batch([(seq, seq, 0, 0, True) for seq in (5, 6, 7)], rdata=True)
    found.header = found.header.copy()
    found.header["op_code"][1:] = OpCode.ODATA
    assert [(run.start, run.rows, run.first_seq) for run, _ in runs_of(found)] == [(0, 1, 5), (1, 2, 6)]


def test_run_whose_trail_is_its_first_packet_is_one():
    found = batch([(seq, seq, 5, 0, True) for seq in (5, 6, 7)], rdata=False)
    assert [(run.first_seq, run.rows) for run, _ in runs_of(found)] == [(5, 3)]


@pytest.mark.parametrize("count", [255, 256, 257, 1500])
def test_stretch_is_one_however_long_it_is(count):
    packets = [(seq, seq, 0, 0, True) for seq in (1, *range(3, count + 2))]
    assert stretch_of(batch(packets, rdata=False)).runs == [(0, 1, 1), (1, count - 1, 3)]


def test_stretch_is_one_whatever_its_numbers_are():
    far = 1 << 60
    found = stretch_of(batch([(far + step, step, far + 1, 0, True) for step in (1, 2, 4)], rdata=False))
    assert (found.first, found.last, found.gaps) == (far + 1, far + 4, [(far + 3, far + 3)])
    assert found.trail == far + 1


def test_repairs_are_told_at_a_glance_whatever_their_numbers_are():
    far = 1 << 60
    found = repairs_of(batch([(far + 2, 1, far, 0, True), (far + 3, 2, far, 0, True)], rdata=True))
    assert (found.span, found.trail) == ((far + 2, far + 3), far)
