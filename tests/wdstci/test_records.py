"""What a request must be, without a session: its limits, and what `test_bad_use.py` does not try."""

import dataclasses

import pytest

from wdstransport import wdstci as w
from wdstransport.handles.constants import DEFAULT_CACHE_SIZE
from wdstransport.handles.records import Settings, checked_request

OPTIONS = {"interface": None, "port": 5041, "security": "checksum", "timeout": 30.0}


def request(**fields):
    names = {"pwszServer": "server", "pwszNamespace": "images", "pwszObjectName": "lab.img"}
    return w.WDS_TRANSPORTCLIENT_REQUEST(**{**names, **fields})


def checked(options=(), **fields):
    return checked_request(request(**fields), **{**OPTIONS, **dict(options)})


def test_a_request_with_nothing_but_names_is_enough():
    assert checked() == Settings(
        server="server",
        namespace="images",
        content="lab.img",
        cache_size=DEFAULT_CACHE_SIZE,
        interface=None,
        port=5041,
        security="checksum",
        timeout=30.0,
    )


@pytest.mark.parametrize("size", [1, 1 << 20, 0xFFFFFFFF])
def test_a_cache_of_any_size_below_4_gib_is_taken_as_it_is(size):
    assert checked(ulCacheSize=size).cache_size == size


@pytest.mark.parametrize(
    "options",
    [
        {"interface": "eth0"},
        {"port": 1},
        {"port": 65535},
        {"security": "none"},
        {"timeout": 0.25},
        {"timeout": 1},
        {"timeout": 1e9},
    ],
)
def test_options_at_their_limits_are_taken_as_they_are(options):
    found = checked(options)
    assert {name: getattr(found, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "fields", "named"),
    [
        ({"interface": b"eth0"}, {}, "interface"),
        ({"port": 5041.0}, {}, "port"),
        ({"timeout": -1.0}, {}, "timeout"),
        ({"timeout": "30"}, {}, "timeout"),
        ({"timeout": None}, {}, "timeout"),
        ({}, {"ulProtocolDataLength": 1}, "pvProtocolData"),
        ({}, {"ulCacheSize": None}, "ulCacheSize"),
        ({}, {"pwszNamespace": ""}, "pwszNamespace"),
        ({}, {"pwszObjectName": None}, "pwszObjectName"),
        ({}, {"pwszServer": "a\0b"}, "pwszServer"),
        ({}, {"pwszObjectName": "a\0b"}, "pwszObjectName"),
        ({}, {"pwszNamespace": "\ud800"}, "pwszNamespace"),
    ],
)
def test_what_cannot_be_is_invalid_parameter_and_names_what_it_is(options, fields, named):
    with pytest.raises(w.WdsTransportClientError, match=named) as caught:
        checked(options, **fields)
    assert caught.value.winerror == w.ERROR_INVALID_PARAMETER


def test_structures_have_the_lengths_of_their_64_bit_layouts():
    # 3 ULONG in 16 bytes with padding, 3 pointers, 2 ULONG, 1 pointer, 1 ULONG, to a multiple of 8.
    assert request().ulLength == 64
    assert w.TRANSPORTCLIENT_SESSION_INFO(10, 5).ulStructureLength == 24


def test_settings_do_not_follow_the_request():
    mine = request()
    found = checked_request(mine, **OPTIONS)
    mine.pwszServer = "another"
    assert found.server == "server"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.server = "another"
