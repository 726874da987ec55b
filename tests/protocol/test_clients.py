"""The server's four lists: one list a client, one client an address, and bounds."""

from math import inf

import pytest
from protocol_scripts import address

from wdstransport.protocol.clients import ClientLists, ClientRecord
from wdstransport.wire.transport import KickReason


def record(client_id, number=None):
    return ClientRecord(client_id, address(client_id if number is None else number), 0, 0.0, 0.0)


@pytest.fixture
def lists():
    return ClientLists(3)


def homes(lists, client_id):
    return [name for name in ("pending", "active", "kicked", "demoted") if client_id in getattr(lists, name)]


def test_new_record_has_the_documents_initial_values():
    fresh = record(1)
    assert fresh.supports_demote is False
    assert fresh.kick_reason is KickReason.POLICY_NOT_MET
    assert fresh.join_ack_send_count == 0
    assert fresh.qcr_received is False
    assert fresh.rtt == 0.0


def test_records_share_nothing_and_bound_nothing_by_themselves():
    one, two = record(1), record(2)
    one.utilization["CPU_UTIL"] = 5
    one.nack_work.spend(1e9, 0.0)
    assert two.utilization == {}
    assert one.nack_work.left(0.0) == two.nack_work.left(0.0) == inf


def test_client_is_on_one_list_at_a_time(lists):
    one, two = record(1), record(2)
    lists.add_pending(one)
    assert homes(lists, 1) == ["pending"]
    lists.activate(one)
    assert homes(lists, 1) == ["active"]
    lists.kick(one)
    assert homes(lists, 1) == ["kicked"]
    lists.add_pending(two)
    lists.activate(two)
    lists.demote(two)
    assert homes(lists, 2) == ["demoted"]


def test_client_is_found_at_its_address_from_pending_to_removed(lists):
    one = record(1)
    lists.add_pending(one)
    assert lists.at(address(1)) is one
    lists.activate(one)
    assert lists.at(address(1)) is one
    lists.kick(one)
    assert lists.at(address(1)) is one
    lists.remove(one)
    assert lists.at(address(1)) is None
    assert homes(lists, 1) == []


def test_client_speaks_only_from_where_it_joined(lists):
    one = record(1)
    lists.add_pending(one)
    assert lists.speaking(1, address(1)) is one
    assert lists.speaking(1, (address(1)[0], address(1)[1] + 1)) is None
    assert lists.speaking(1, ("10.9.9.9", address(1)[1])) is None
    assert lists.speaking(2, address(1)) is None


def test_clients_behind_one_address_are_told_apart_by_their_ports(lists):
    one, two = record(1), record(2)
    two.address = (one.address[0], one.address[1] + 1)
    lists.add_pending(one)
    lists.add_pending(two)
    assert (lists.at(one.address), lists.at(two.address)) == (one, two)
    assert (lists.speaking(1, two.address), lists.speaking(2, two.address)) == (None, two)
    assert lists.at((one.address[0], one.address[1] + 2)) is None


@pytest.mark.parametrize("home", ["pending", "active", "kicked", "demoted"])
def test_client_on_any_list_speaks_and_can_be_removed(lists, home):
    one, other = record(1), record(2)
    for each in (one, other):
        lists.add_pending(each)
        if home != "pending":
            lists.activate(each)
        if home in ("kicked", "demoted"):
            {"kicked": lists.kick, "demoted": lists.demote}[home](each)
    assert homes(lists, 1) == [home]
    assert lists.speaking(1, address(1)) is one
    lists.remove(one)
    assert homes(lists, 1) == []
    assert lists.speaking(1, address(1)) is None
    assert homes(lists, 2) == [home]


def test_full_pending_list_drops_the_oldest_unconfirmed(lists):
    everyone = [record(number) for number in range(1, 6)]
    assert [lists.add_pending(each) for each in everyone[:3]] == [None, None, None]
    assert lists.add_pending(everyone[3]) is everyone[0]
    assert list(lists.pending) == [2, 3, 4]
    assert lists.at(address(1)) is None
    assert lists.add_pending(everyone[4]) is everyone[1]
    assert [lists.at(address(number)) for number in (2, 3, 4, 5)] == [None, *everyone[2:]]


def test_flood_of_pending_clients_does_not_touch_the_active_ones(lists):
    one = record(1)
    lists.add_pending(one)
    lists.activate(one)
    for number in range(2, 50):
        lists.add_pending(record(number))
    assert len(lists.pending) == 3
    assert homes(lists, 1) == ["active"]
    assert lists.at(address(1)) is one


def test_rearmed_client_goes_to_the_end_of_the_line(lists):
    one, two = record(1), record(2)
    lists.add_pending(one)
    lists.rearm(one, 1.0)
    lists.add_pending(two)
    lists.rearm(two, 1.5)
    lists.rearm(one, 2.0)
    assert [each.join_ack_due for each in lists.pending.values()] == [1.5, 2.0]


def test_removing_an_old_record_leaves_the_newcomer_at_its_address(lists):
    old, new = record(1, 7), record(2, 7)
    lists.add_pending(old)
    lists.activate(old)
    lists.add_pending(new)
    lists.remove(old)
    assert lists.at(address(7)) is new


def test_highest_rtt_counts_active_clients_only(lists):
    assert lists.highest_rtt() == 0.0
    for client_id, rtt in ((1, 0.5), (2, 0.25), (3, 0.125)):
        each = record(client_id)
        each.rtt = rtt
        lists.add_pending(each)
    assert lists.highest_rtt() == 0.0
    for client_id in (1, 2, 3):
        lists.activate(lists.pending[client_id])
    assert lists.highest_rtt() == 0.5
    lists.kick(lists.active[1])
    assert lists.highest_rtt() == 0.25


def heir(lists, client_id, *, rtt, answered=True, heard=10.0, gave_up_on=False, progress=50):
    each = record(client_id)
    each.rtt, each.qcr_received, each.last_update = rtt, answered, heard
    each.gave_up_on, each.progress = gave_up_on, progress
    lists.add_pending(each)
    lists.activate(each)
    return each


def test_successor_is_the_client_with_the_highest_rtt_that_answered(lists):
    heir(lists, 1, rtt=0.1)
    far = heir(lists, 2, rtt=0.3)
    heir(lists, 3, rtt=0.9, answered=False)
    assert lists.successor(5.0) is far


def test_successor_was_heard_lately_enough(lists):
    heir(lists, 1, rtt=0.9, heard=4.999)
    just = heir(lists, 2, rtt=0.1, heard=5.0)
    assert lists.successor(5.0) is just


def test_successor_is_nobody_who_was_given_up_on(lists):
    heir(lists, 1, rtt=0.9, gave_up_on=True)
    assert lists.successor(5.0) is None
    other = heir(lists, 2, rtt=0.1)
    assert lists.successor(5.0) is other


def test_successor_still_misses_blocks_where_there_is_such_a_client(lists):
    done = heir(lists, 1, rtt=0.9, progress=100)
    assert lists.successor(5.0) is done
    behind = heir(lists, 2, rtt=0.1, progress=99)
    assert lists.successor(5.0) is behind


@pytest.mark.parametrize(("near", "far"), [(10, 90), (90, 10), (0, 99)])
def test_how_much_a_successor_misses_does_not_matter(lists, near, far):
    heir(lists, 1, rtt=0.1, progress=near)
    slow = heir(lists, 2, rtt=0.9, progress=far)
    assert lists.successor(5.0) is slow
