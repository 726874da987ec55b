"""What a batch says, against what its packets say one by one."""

from hypothesis import given
from hypothesis import strategies as st
from protocol_scripts import STEADY, records

from wdstransport.protocol.client_runs import repairs_of, runs_of

ME, OTHER = 5, 6
PACKETS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 12), st.integers(0, 12), st.integers(0, 12), st.booleans()),
    min_size=1,
    max_size=12,
)


def batch(packets, *, rdata):
    return records(
        [(seq, block) for seq, block, *_ in packets],
        block_len=1,
        trails=[trail for _, _, trail, *_ in packets],
        leads=[lead for *_, lead, _ in packets],
        masters=[ME if mine else OTHER for *_, mine in packets],
        rdata=rdata,
    )


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


@given(PACKETS)
@STEADY
def test_repairs_are_told_at_a_glance_under_one_master_and_with_no_trail_above_a_packet(packets):
    repairs = repairs_of(batch(packets, rdata=True))
    masters = {mine for *_, mine in packets}
    usual = len(masters) == 1 and all(trail <= seq for seq, _, trail, *_ in packets)
    assert (repairs is not None) == usual
    if repairs is not None:
        numbers, blocks = [seq for seq, *_ in packets], [block for _, block, *_ in packets]
        assert (repairs.numbers, repairs.blocks) == (numbers, blocks)
        assert repairs.rows == list(range(len(packets)))
        assert repairs.wanted == {row for row, (seq, _, _, lead, _) in enumerate(packets) if lead >= seq}
        assert (repairs.trail, repairs.master) == (packets[-1][2], ME if masters == {True} else OTHER)
        assert (repairs.span, repairs.content) == ((min(numbers), max(numbers)), (min(blocks), max(blocks)))


def test_odata_is_no_repair():
    assert repairs_of(batch([(1, 1, 0, 0, True)], rdata=False)) is None
