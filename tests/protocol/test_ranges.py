"""RangeSet against a set of numbers, BlockMap against a list of truth values."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_scripts import STEADY

from wdstransport.protocol import ranges as module
from wdstransport.protocol.ranges import BlockMap, RangeSet

LAST = 2**64 - 1


def runs(numbers):
    """The merged inclusive ranges of a set of numbers, the slow way."""
    found = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


# ---------------------------------------------------------------------- RangeSet


def test_adjacent_ranges_become_one():
    assert list(RangeSet([(1, 3), (4, 6)])) == [(1, 6)]
    assert list(RangeSet([(4, 6), (1, 3)])) == [(1, 6)]


def test_a_gap_of_one_number_keeps_ranges_apart():
    assert list(RangeSet([(1, 3), (5, 6)])) == [(1, 3), (5, 6)]


def test_a_number_between_two_ranges_joins_them():
    assert list(RangeSet([(1, 3), (5, 6), (4, 4)])) == [(1, 6)]


def test_a_range_over_several_swallows_them():
    assert list(RangeSet([(2, 3), (5, 6), (8, 9), (20, 20), (1, 12)])) == [(1, 12), (20, 20)]


@pytest.mark.parametrize("other", [[(2, 3), (6, 9)], [(1, 3), (6, 8)], [(1, 3)]])
def test_sets_that_differ_in_any_number_are_not_equal(other):
    assert RangeSet([(1, 3), (6, 9)]) == RangeSet([(6, 9), (1, 3)])
    assert RangeSet([(1, 3), (6, 9)]) != RangeSet(other)


def test_set_is_equal_to_nothing_else():
    assert (RangeSet([(1, 3)]) == [(1, 3)]) is False


def test_removing_from_the_middle_leaves_both_sides():
    numbers = RangeSet([(1, 9)])
    numbers.remove(4, 6)
    assert list(numbers) == [(1, 3), (7, 9)]


def test_removing_a_single_number_range_deletes_it():
    numbers = RangeSet([(4, 4), (6, 6)])
    numbers.remove(4, 4)
    assert list(numbers) == [(6, 6)]


def test_removing_across_several_ranges_trims_the_outer_two():
    numbers = RangeSet([(1, 3), (5, 6), (8, 12)])
    numbers.remove(3, 9)
    assert list(numbers) == [(1, 2), (10, 12)]


def test_backwards_ranges_change_nothing():
    numbers = RangeSet([(1, 5)])
    numbers.add(9, 8)
    numbers.remove(4, 3)
    assert list(numbers) == [(1, 5)]


def test_remove_below_keeps_the_number_itself():
    numbers = RangeSet([(1, 5), (8, 9)])
    numbers.remove_below(5)
    assert list(numbers) == [(5, 5), (8, 9)]
    numbers.remove_below(7)
    assert list(numbers) == [(8, 9)]
    numbers.remove_below(8)
    assert list(numbers) == [(8, 9)]


def test_first_ranges_are_the_lowest():
    numbers = RangeSet([(7, 9), (1, 2), (20, 20), (4, 5)])
    assert numbers.first_ranges(2) == ((1, 2), (4, 5))
    assert numbers.first_ranges(9) == ((1, 2), (4, 5), (7, 9), (20, 20))
    assert numbers.first_ranges(0) == ()


def test_numbers_of_64_bits_are_held_without_counting_them_out():
    numbers = RangeSet([(1, LAST)])
    numbers.remove(2**63, 2**63)
    assert list(numbers) == [(1, 2**63 - 1), (2**63 + 1, LAST)]
    assert numbers.total == LAST - 1
    assert LAST in numbers
    assert 2**63 not in numbers


def test_empty_set_has_no_first_and_no_last():
    numbers = RangeSet()
    assert not numbers
    assert len(numbers) == numbers.total == 0
    with pytest.raises(IndexError):
        _ = numbers.first
    with pytest.raises(IndexError):
        _ = numbers.last


def test_sets_compare_by_their_numbers_and_cannot_be_hashed():
    assert RangeSet([(1, 2), (3, 4)]) == RangeSet([(1, 4)])
    assert RangeSet([(1, 4)]) != RangeSet([(1, 3)])
    assert RangeSet() != [(1, 2)]
    assert repr(RangeSet([(1, 2)])) == "RangeSet([(1, 2)])"
    with pytest.raises(TypeError):
        hash(RangeSet())


@pytest.mark.parametrize(
    ("number", "left"),
    [
        (2, [(3, 6), (9, 9)]),
        (4, [(2, 3), (5, 6), (9, 9)]),
        (6, [(2, 5), (9, 9)]),
        (9, [(2, 6)]),
        (1, None),
        (7, None),
        (10, None),
    ],
)
def test_a_number_is_taken_from_where_it_is_and_nothing_else_with_it(number, left):
    numbers = RangeSet([(2, 6), (9, 9)])
    assert numbers.discard(number) == (left is not None)
    assert list(numbers) == (left or [(2, 6), (9, 9)])


def test_the_smallest_number_left_is_told_after_each_that_went():
    numbers = RangeSet([(2, 3), (9, 9)])
    assert numbers.discard_each([3, 2, 5, 9], beyond=20) == [2, 9, 9, 20]


small = st.integers(0, 40)
operations = st.one_of(
    st.tuples(st.sampled_from(["add", "add", "remove"]), small, small),
    st.tuples(st.sampled_from(["below", "each"]), small, small),
    st.tuples(st.just("clear"), small, small),
)


@given(st.lists(operations, max_size=30))
@settings(STEADY, max_examples=200)
def test_range_set_behaves_like_a_set_of_numbers(steps):
    numbers, model = RangeSet(), set()
    for name, low, high in steps:
        match name:
            case "add":
                numbers.add(low, high)
                model |= set(range(low, high + 1))
            case "remove":
                numbers.remove(low, high)
                model -= set(range(low, high + 1))
            case "each":
                gone, expected = [high, low, low, high + 2], []
                for number in gone:
                    model.discard(number)
                    expected.append(min(model, default=99))
                assert numbers.discard_each(gone, beyond=99) == expected
            case "below":
                numbers.remove_below(low)
                model = {number for number in model if number >= low}
            case "clear" if low == high:
                numbers.clear()
                model = set()
        found = list(numbers)
        assert found == runs(model)
        assert all(end + 1 < start for (_, end), (start, _) in pairwise(found))
        assert numbers.total == len(model)
        assert len(numbers) == len(found)
        assert bool(numbers) == bool(model)
        assert [number for number in range(-1, 43) if number in numbers] == sorted(model)
        assert list(numbers.first_ranges(3)) == found[:3]
        if model:
            assert (numbers.first, numbers.last) == (min(model), max(model))


@given(
    st.lists(st.tuples(small, small), max_size=5), st.lists(st.tuples(small, st.integers(0, 5)), max_size=5)
)
@STEADY
def test_ranges_above_all_others_are_appended_as_they_would_be_added(before, distances):
    numbers, added = RangeSet(before), RangeSet(before)
    at, more = numbers.last + 1 if numbers else 0, []
    for distance, length in distances:
        more.append((at + distance + 1, at + distance + 1 + length))
        at = more[-1][1] + 1
    numbers.extend(more)
    for start, end in more:
        added.add(start, end)
    assert numbers == added


# ---------------------------------------------------------------------- BlockMap


def test_map_of_no_blocks_is_complete():
    blocks = BlockMap(0)
    assert blocks.complete
    assert blocks.missing(64) == ()


def test_blocks_count_from_one():
    blocks = BlockMap(9)
    assert blocks.missing(64) == ((1, 9),)
    assert blocks.add(1, 1) == [(1, 1)]
    assert 1 in blocks
    assert 2 not in blocks
    assert blocks.missing(64) == ((2, 9),)
    assert blocks.add(9, 1) == [(9, 1)]
    assert blocks.missing(64) == ((2, 8),)


def test_only_what_was_not_there_is_fresh():
    blocks = BlockMap(30)
    assert blocks.add(4, 3) == [(4, 3)]
    assert blocks.add(10, 2) == [(10, 2)]
    assert blocks.add(3, 10) == [(3, 1), (7, 3), (12, 1)]
    assert blocks.add(3, 10) == []
    assert blocks.count == 10


@pytest.mark.parametrize("first", [2, 65_536, 65_537, 80_000, 524_289, 600_000])
def test_late_start_of_a_long_content_misses_all_before_it_and_nothing_else(first):
    blocks = BlockMap(first + 70_000)
    blocks.add(first, 70_001)
    assert blocks.missing(9) == ((1, first - 1),)
    blocks.add(1, first - 1)
    assert blocks.complete


def test_missing_stops_at_the_limit_with_the_lowest_ranges():
    blocks = BlockMap(20)
    for block in range(2, 20, 2):
        blocks.add(block, 1)
    assert blocks.missing(3) == ((1, 1), (3, 3), (5, 5))
    assert len(blocks.missing(100)) == 10
    assert blocks.missing(10)[-1] == (19, 20)


@pytest.mark.parametrize("block", range(1, 10))
def test_only_missing_block_is_named_wherever_in_its_byte_it_is(block):
    blocks = BlockMap(9)
    blocks.add(1, block - 1)
    blocks.add(block + 1, 9 - block)
    assert blocks.missing(64) == ((block, block),)


def test_map_is_complete_with_the_last_block_and_not_before():
    blocks = BlockMap(17)
    blocks.add(1, 16)
    assert not blocks.complete
    assert blocks.missing(1) == ((17, 17),)
    blocks.add(17, 1)
    assert blocks.complete
    assert blocks.missing(1) == ()


def test_blocks_that_come_in_order_but_for_losses_are_counted_once_when_repaired():
    blocks = BlockMap(1000)
    assert blocks.add(101, 50) == [(101, 50)]
    assert blocks.add(152, 49) == [(152, 49)]
    assert blocks.missing(3) == ((1, 100), (151, 151), (201, 1000))
    assert blocks.add(150, 3) == [(151, 1)]
    assert blocks.count == 100


def test_range_across_what_is_read_at_a_time_stays_one_range():
    blocks = BlockMap((1 << 19) * 2 + 5)
    blocks.add(1, 1)
    blocks.add(blocks.total, 1)
    assert blocks.missing(64) == ((2, blocks.total - 1),)
    blocks.add(1, 1 << 19)
    assert blocks.missing(64) == (((1 << 19) + 1, blocks.total - 1),)


@pytest.mark.parametrize("limit", [3, 4])
def test_single_blocks_in_a_long_hole_leave_no_more_holes_than_are_kept(monkeypatch, limit):
    monkeypatch.setattr(module, "_HOLES", limit)
    blocks = BlockMap(100)
    blocks.add(1, 1)
    blocks.add(100, 1)
    most = 0
    for block in range(2, 100, 2):
        assert blocks.add_each([block]) == [0]
        most = max(most, len(blocks._holes))
    assert most == limit
    assert blocks.missing(100) == tuple((block, block) for block in range(3, 100, 2))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8),
    st.integers(0, 30),
    st.integers(0, 30),
)
@settings(STEADY, max_examples=200)
def test_within_gives_what_both_hold(ranges, start, end):
    numbers = {n for low, high in ranges for n in range(low, high + 1)}
    inside = RangeSet(ranges).within(start, end)
    assert inside == runs(sorted(n for n in numbers if start <= n <= end))


kinds = st.sampled_from(["run", "ask", "each"])


@given(
    st.integers(1, 100).flatmap(
        lambda total: st.tuples(
            st.just(total),
            # A run starts anywhere, or (0) where the last one ended; what is missing is asked now and then.
            st.lists(
                st.tuples(st.one_of(st.just(0), st.integers(1, total)), st.integers(1, 40), kinds),
                max_size=12,
            ),
            st.integers(1, 8),
            st.sampled_from([1, 2, 3, 1 << 16]),
            st.sampled_from([0, 1, 2, 4096]),
        )
    )
)
@settings(STEADY, max_examples=200)
def test_block_map_behaves_like_a_list_of_truth_values(case):
    total, steps, limit, chunk, holes = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        patch.setattr(module, "_HOLES", holes)
        blocks, model, following = BlockMap(total), [False] * (total + 1), 1
        for first, count, step in [*steps, (1, 1, "ask")]:
            first = first or following
            count = min(count, total - first + 1)
            if count < 1:
                continue
            following = first + count
            fresh = [block for block in range(first, first + count) if not model[block]]
            if step == "each":
                singles = [*range(first, first + count, 2), *reversed(range(first, first + count))]
                places = blocks.add_each(singles)
                assert sorted(singles[place] for place in places) == fresh
                assert [singles[place] for place in places] == list(
                    dict.fromkeys(block for block in singles if not model[block])
                )
            else:
                expected = [(start, end - start + 1) for start, end in runs(fresh)]
                assert blocks.add(first, count) == expected
            for block in fresh:
                model[block] = True
            assert blocks.count == sum(model)
            assert blocks.complete == all(model[1:])
            assert [block in blocks for block in range(1, total + 1)] == model[1:]
            if step == "ask":
                missing = runs(block for block in range(1, total + 1) if not model[block])
                assert list(blocks.missing(limit)) == missing[:limit]
                assert list(blocks.missing(total)) == missing


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), max_size=4),
    st.integers(1, 90),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=5),
    st.sampled_from([0, 2, 3, 4096]),
)
@settings(STEADY, max_examples=200)
def test_blocks_with_holes_are_appended_as_they_would_be_added_or_not_at_all(before, first, steps, holes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_HOLES", holes)
        blocks, model = BlockMap(150), set()
        for start, count in before:
            blocks.add(start, count)
            model |= set(range(start, start + count))
        absent, at = [], first
        for present, gap in steps:
            absent.append((at + present, at + present + gap - 1))
            at += present + gap
        done = blocks.append(first, at, absent)
        if holes == 4096 and first > max(model, default=0):
            # In order is what `append` is for; only where the last blocks did not come in order it declines.
            assert done or before
        if done:
            model |= set(range(first, at + 1)) - {
                block for low, high in absent for block in range(low, high + 1)
            }
        assert blocks.count == len(model)
        assert [block for block in range(1, 151) if block in blocks] == sorted(model)
        assert list(blocks.missing(200)) == runs(sorted(set(range(1, 151)) - model))
        assert [block for block in range(1, 151) if block in blocks] == sorted(model)


def test_blocks_in_order_are_appended_wherever_they_begin():
    blocks = BlockMap(100)
    assert blocks.append(5, 7, [(6, 6)])
    assert blocks.append(8, 9, [])
    assert blocks.append(12, 12, [])
    assert not blocks.append(12, 13, [])
    assert blocks.missing(9) == ((1, 4), (6, 6), (10, 11), (13, 100))


def test_blocks_that_fill_two_holes_at_once_are_all_counted():
    blocks = BlockMap(20)
    assert blocks.append(1, 10, [(3, 4), (6, 8)])
    assert blocks.add(2, 8) == [(3, 2), (6, 3)]
    assert blocks.count == 10


def test_blocks_are_appended_while_their_holes_are_few(monkeypatch):
    monkeypatch.setattr(module, "_HOLES", 3)
    blocks = BlockMap(100)
    assert blocks.append(1, 3, [(2, 2)])
    assert not blocks.append(4, 8, [(5, 5), (7, 7)])
    assert blocks.append(4, 6, [(5, 5)])
    assert not blocks.append(7, 9, [(8, 8)])
    assert blocks.append(7, 9, [])
    assert blocks.missing(9) == ((2, 2), (5, 5), (10, 100))


@pytest.mark.parametrize("count", [0, -1])
def test_block_map_that_is_given_no_blocks_stays_as_it_is(count):
    blocks = BlockMap(10)
    blocks.add(1, 2)
    assert blocks.add(6, count) == []
    assert (blocks.count, blocks.missing(9)) == (2, ((3, 10),))
