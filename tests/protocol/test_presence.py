"""When a client doubts that it is counted in, as a script of signs with their times."""

import pytest

from wdstransport.protocol.parameters import ClientParameters
from wdstransport.protocol.presence import Presence

T = 1000.0


@pytest.fixture
def presence():
    found = Presence(ClientParameters(), T)
    found.served(T)
    return found


def test_strong_sign_is_good_for_five_seconds(presence):
    assert presence.served(T + 7) == T + 12


@pytest.mark.parametrize(("at", "due"), [(1, 6), (24, 29), (25, 30), (27, 30), (30, 30), (40, 40)])
def test_weak_signs_are_good_for_five_seconds_but_not_beyond_thirty_from_the_last_strong_one(
    presence, at, due
):
    assert presence.seen(T + at) == T + due


def test_before_any_strong_sign_a_weak_one_is_good_for_nothing():
    assert Presence(ClientParameters(), T).seen(T + 3) == T + 3


def test_before_any_strong_sign_joining_again_is_repeated_as_soon_as_after_one():
    assert Presence(ClientParameters(), T).asked(T + 3) == T + 3.5


def test_joining_again_is_repeated_ever_less_often_and_weak_signs_do_not_put_it_off(presence):
    now, waits = T + 30, []
    for _ in range(6):
        due = presence.asked(now)
        assert presence.seen(now + 0.1) == due
        waits.append(due - now)
        now = due
    assert waits == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    presence.served(now)
    assert presence.asked(now + 30) == now + 30.5


def test_two_minutes_of_asking_in_vain_are_hopeless_and_a_strong_sign_is_hope(presence):
    assert not presence.hopeless(T + 1000)
    presence.asked(T + 30)
    presence.asked(T + 35)
    presence.seen(T + 100)
    assert not presence.hopeless(T + 149.9)
    assert presence.hopeless(T + 150)
    presence.served(T + 150)
    assert not presence.hopeless(T + 1000)
    presence.asked(T + 2000)
    assert not presence.hopeless(T + 2119)
    assert presence.hopeless(T + 2120)


def test_every_interval_is_a_parameter():
    parameters = ClientParameters(join_interval=2.0, rejoin_interval=3.0, unheard_timeout=7.0)
    presence = Presence(parameters, T)
    assert presence.served(T) == T + 3
    assert presence.seen(T + 17) == T + 18
    assert presence.asked(T + 18) == T + 20
    assert presence.asked(T + 20) == T + 23
    assert not presence.hopeless(T + 24.9)
    assert presence.hopeless(T + 25)
