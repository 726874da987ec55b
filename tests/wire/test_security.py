"""MS-WDSMT 2.2.2: the four modes, the readings that are tried, and every damage to the header."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.wire.security import (
    CALG_HMAC,
    CALG_SHA1,
    CALG_SHA_256,
    ChecksumSecurity,
    DropReason,
    HashSecurity,
    NoSecurity,
    SecurityMode,
    SignSecurity,
    WireError,
    build_sec_mode,
    checksum,
    make_security,
    parse_plaintext_key_blob,
    parse_sec_mode,
)

PRIVATE = rsa.generate_private_key(65537, 2048)
KEY = bytes.fromhex("2F15F82AE0683EF79E6D62A70BDC519D2A3246E0FDB354E9")
BODY = bytes(range(40))
MODES = {
    "none": NoSecurity,
    "checksum": ChecksumSecurity,
    "hash": lambda: HashSecurity(KEY),
    "sign": lambda: SignSecurity(PRIVATE),
}
each_mode = pytest.mark.parametrize("make", MODES.values(), ids=MODES.keys())


def sealed(security, body=BODY):
    return security.seal(body) + body


def refused(security, datagram):
    with pytest.raises(WireError) as caught:
        security.verify(memoryview(datagram))
    return caught.value.reason


@each_mode
def test_verify_returns_the_body_in_the_same_memory(make):
    security = make()
    datagram = bytearray(sealed(security))
    body = security.verify(memoryview(datagram))
    assert body == BODY
    assert body.obj is datagram


@pytest.mark.parametrize(
    ("make", "mode", "data_len"),
    [
        (NoSecurity, SecurityMode.NONE, 0),
        (ChecksumSecurity, SecurityMode.CHECKSUM, 4),
        (lambda: HashSecurity(KEY), SecurityMode.HASH, 32),
        (lambda: HashSecurity(KEY, "sha1"), SecurityMode.HASH, 20),
        (lambda: SignSecurity(PRIVATE), SecurityMode.SIGN, 256),
        (lambda: SignSecurity(PRIVATE.public_key()), SecurityMode.SIGN, 256),
    ],
)
def test_lengths_of_each_mode(make, mode, data_len):
    security = make()
    assert security.mode is mode
    assert security.data_len == data_len
    assert security.header_len == 5 + data_len


@each_mode
def test_header_names_identifier_type_and_length(make):
    security = make()
    header = security.seal(BODY)
    assert header[:2] == b"WD"
    assert header[2] == security.mode
    assert int.from_bytes(header[3:5], "big") == security.data_len == len(header) - 5


def test_checksum_is_the_inverted_sum_of_all_bytes():
    assert checksum(b"") == 0xFFFFFFFF
    assert checksum(b"\x01\x02") == 0xFFFFFFFC
    assert ChecksumSecurity().seal(b"\x01\x02") == bytes.fromhex("5744 03 0004 FFFFFFFC")


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=700), st.integers(0, 300))
def test_checksum_is_the_same_however_it_is_added_up(body, extra):
    body += b"\xff" * extra
    expected = ~sum(body) & 0xFFFFFFFF
    assert checksum(body) == checksum(memoryview(body)) == checksum(bytearray(body)) == expected


def test_checksum_of_the_largest_datagram_is_exact():
    assert checksum(b"\xff" * 65507) == ~(255 * 65507) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        ("sha256", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        ("sha1", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
    ],
)
def test_hmac_is_that_of_rfc_4231_and_rfc_2202_test_case_2(algorithm, digest):
    security = HashSecurity(b"Jefe", algorithm)
    assert security.security_data(b"what do ya want for nothing?") == bytes.fromhex(digest)


def test_key_blob_of_the_example_makes_a_working_hash_security():
    blob = bytes.fromhex("080200000366000018000000") + KEY
    theirs = make_security(
        SecurityMode.HASH, hmac_key=parse_plaintext_key_blob(blob).key, hash_alg=CALG_SHA_256
    )
    assert theirs.verify(memoryview(sealed(HashSecurity(KEY)))) == BODY


def dressed(security, security_data):
    return security.seal(BODY)[:5] + security_data + BODY


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
def test_hmac_over_the_hash_is_accepted_and_from_then_on_required(algorithm):
    security = HashSecurity(KEY, algorithm)
    over_hash = dressed(security, hmac.digest(KEY, hashlib.new(algorithm, BODY).digest(), algorithm))
    assert security.verify(memoryview(over_hash)) == BODY
    assert security.verify(memoryview(over_hash)) == BODY
    assert refused(security, sealed(HashSecurity(KEY, algorithm))) is DropReason.HMAC


def test_hmac_over_the_packet_once_verified_is_the_only_one_accepted():
    security = HashSecurity(KEY)
    over_hash = dressed(security, hmac.digest(KEY, hashlib.sha256(BODY).digest(), "sha256"))
    assert security.verify(memoryview(sealed(security))) == BODY
    assert refused(security, over_hash) is DropReason.HMAC


OVER_HASH = hmac.digest(KEY, hashlib.sha256(BODY).digest(), "sha256")
LITTLE_ENDIAN = PRIVATE.sign(BODY, PKCS1v15(), hashes.SHA256())[::-1]
READINGS = {
    "hmac over the packet": ("hash", hmac.digest(KEY, BODY, "sha256")),
    "hmac over the hash": ("hash", OVER_HASH),
    "least significant byte first": ("sign", LITTLE_ENDIAN),
    "most significant byte first": ("sign", LITTLE_ENDIAN[::-1]),
}
each_reading = pytest.mark.parametrize(("name", "data"), READINGS.values(), ids=READINGS.keys())


@each_reading
def test_packet_that_does_not_verify_decides_nothing(name, data):
    security = MODES[name]()
    for _ in range(3):
        assert refused(security, dressed(security, bytes(len(data)))) in (
            DropReason.HMAC,
            DropReason.SIGNATURE,
        )
    assert security.verify(memoryview(dressed(security, data))) == BODY


@each_reading
@pytest.mark.parametrize("learned", [True, False])
def test_every_byte_of_security_data_is_compared_in_whichever_reading(name, data, learned):
    security = MODES[name]()
    if learned:
        security.verify(memoryview(dressed(security, data)))
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        assert refused(security, dressed(security, damaged)) in (DropReason.HMAC, DropReason.SIGNATURE)


def test_hmac_over_the_packet_is_sent_whatever_the_peer_sends():
    security = HashSecurity(KEY)
    before = security.seal(BODY)
    security.verify(memoryview(dressed(security, hmac.digest(KEY, hashlib.sha256(BODY).digest(), "sha256"))))
    assert security.seal(BODY) == before


def test_other_key_does_not_verify():
    assert refused(HashSecurity(KEY), sealed(HashSecurity(KEY[::-1]))) is DropReason.HMAC
    other = rsa.generate_private_key(65537, 2048)
    assert refused(SignSecurity(other.public_key()), sealed(SignSecurity(PRIVATE))) is DropReason.SIGNATURE


@pytest.mark.parametrize(("name", "algorithm"), [("sha256", hashes.SHA256()), ("sha1", hashes.SHA1())])
def test_signature_is_pkcs1_least_significant_byte_first(name, algorithm):
    signature = SignSecurity(PRIVATE, name).security_data(BODY)
    PRIVATE.public_key().verify(signature[::-1], BODY, PKCS1v15(), algorithm)


def test_signature_of_a_key_that_fills_no_whole_bytes_takes_the_begun_one_too():
    private = rsa.generate_private_key(65537, 1025)
    security = SignSecurity(private)
    assert security.data_len == len(security.security_data(BODY)) == 129
    assert SignSecurity(private.public_key()).verify(memoryview(sealed(security))) == BODY


def test_signature_is_accepted_in_the_order_that_verified_first():
    big_endian = dressed(SignSecurity(PRIVATE), PRIVATE.sign(BODY, PKCS1v15(), hashes.SHA256()))
    little_endian = sealed(SignSecurity(PRIVATE))
    one = SignSecurity(PRIVATE.public_key())
    assert one.verify(memoryview(big_endian)) == BODY
    assert refused(one, little_endian) is DropReason.SIGNATURE
    other = SignSecurity(PRIVATE.public_key())
    assert other.verify(memoryview(little_endian)) == BODY
    assert refused(other, big_endian) is DropReason.SIGNATURE


def test_public_key_verifies_but_cannot_sign():
    security = SignSecurity(PRIVATE.public_key())
    assert security.verify(memoryview(sealed(SignSecurity(PRIVATE)))) == BODY
    with pytest.raises(ValueError, match="cannot sign"):
        security.seal(BODY)


@each_mode
def test_header_alone_is_the_header_of_an_empty_body(make):
    security = make()
    assert security.verify(memoryview(sealed(security, b""))) == b""


@each_mode
def test_every_prefix_of_the_header_is_refused_as_truncated(make):
    datagram = sealed(make())
    for length in range(make().header_len):
        assert refused(make(), datagram[:length]) is DropReason.TRUNCATED


@each_mode
def test_other_identifier_is_not_wds(make):
    for datagram in (b"X", b"WX", b"XD" + sealed(make())[2:], b"GET / HTTP/1.1"):
        assert refused(make(), datagram) is DropReason.NOT_WDS


def test_packet_of_another_mode_is_refused_by_its_type():
    for sender, make in MODES.items():
        for receiver, other in MODES.items():
            if sender != receiver:
                assert refused(other(), sealed(make())) is DropReason.SECURITY_TYPE


@each_mode
@pytest.mark.parametrize("difference", [1, 256])
def test_other_length_is_refused_even_where_the_data_is_there(make, difference):
    security = make()
    header = bytearray(security.seal(BODY)) + bytes(difference)
    header[3:5] = (security.data_len + difference).to_bytes(2, "big")
    assert refused(security, header + BODY) is DropReason.SECURITY_LENGTH


@pytest.mark.parametrize(
    ("name", "reason"),
    [("checksum", DropReason.CHECKSUM), ("hash", DropReason.HMAC), ("sign", DropReason.SIGNATURE)],
)
def test_every_bit_flip_is_refused_and_counted_by_where_it_is(name, reason):
    datagram = sealed(MODES[name]())
    security = MODES[name]()
    security.verify(memoryview(datagram))
    headers = {
        **dict.fromkeys((0, 1), DropReason.NOT_WDS),
        2: DropReason.SECURITY_TYPE,
        **dict.fromkeys((3, 4), DropReason.SECURITY_LENGTH),
    }
    for place in range(len(datagram)):
        for bit in range(8):
            damaged = bytearray(datagram)
            damaged[place] ^= 1 << bit
            assert refused(security, damaged) is headers.get(place, reason)


@each_mode
@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_verified_or_a_wire_error(make, datagram, dressed_up):
    security = make()
    if dressed_up:
        datagram = security.seal(b"")[: 5 + len(datagram) % 2 * security.data_len] + datagram
    try:
        body = security.verify(memoryview(datagram))
    except WireError:
        return
    assert datagram.endswith(bytes(body))


def test_make_security_makes_each_mode():
    made = make_security
    assert isinstance(made(SecurityMode.NONE), NoSecurity)
    assert isinstance(made(SecurityMode.CHECKSUM), ChecksumSecurity)
    assert made(SecurityMode.HASH, hmac_key=KEY).data_len == 32
    assert made(SecurityMode.HASH, hmac_key=KEY, hash_alg=CALG_SHA1).data_len == 20
    sender = made(SecurityMode.SIGN, private_key=PRIVATE)
    receiver = made(SecurityMode.SIGN, public_key=PRIVATE.public_key())
    assert receiver.verify(memoryview(sealed(sender))) == BODY


def test_side_with_both_keys_can_sign():
    both = make_security(SecurityMode.SIGN, private_key=PRIVATE, public_key=PRIVATE.public_key())
    assert SignSecurity(PRIVATE.public_key()).verify(memoryview(sealed(both))) == BODY


def test_signature_is_over_the_hash_that_was_agreed():
    sha1 = make_security(SecurityMode.SIGN, private_key=PRIVATE, hash_alg=CALG_SHA1)
    PRIVATE.public_key().verify(sha1.security_data(BODY)[::-1], BODY, PKCS1v15(), hashes.SHA1())


@pytest.mark.parametrize("mode", [SecurityMode.HASH, SecurityMode.SIGN])
def test_mode_without_its_key_cannot_be_made(mode):
    with pytest.raises(ValueError, match="needs"):
        make_security(mode)


def test_unknown_hash_algorithm_cannot_be_used():
    with pytest.raises(ValueError, match="hash algorithm"):
        make_security(SecurityMode.HASH, hmac_key=KEY, hash_alg=CALG_HMAC)
    with pytest.raises(ValueError, match="hash algorithm"):
        HashSecurity(KEY, "md5")


def test_sec_mode_of_the_example_is_hash_both_ways():
    assert parse_sec_mode(0x00010001) == (SecurityMode.HASH, SecurityMode.HASH)
    assert build_sec_mode(SecurityMode.HASH, SecurityMode.HASH) == 0x00010001


@pytest.mark.parametrize(
    ("value", "client", "server"),
    [
        (0x00000000, SecurityMode.NONE, SecurityMode.NONE),
        (0x00030003, SecurityMode.CHECKSUM, SecurityMode.CHECKSUM),
        (0x00020001, SecurityMode.HASH, SecurityMode.SIGN),
        (0x00010002, SecurityMode.HASH, SecurityMode.SIGN),
    ],
)
def test_sec_mode_names_the_client_and_the_server(value, client, server):
    assert parse_sec_mode(value) == (client, server)
    assert parse_sec_mode(build_sec_mode(client, server)) == (client, server)


def test_sec_mode_has_the_clients_mode_in_its_low_half():
    assert build_sec_mode(SecurityMode.HASH, SecurityMode.SIGN) == 0x00020001


@pytest.mark.parametrize("value", [0x00020002, 0x00010000, 0x00030001, 0x00040004, 1, 2**32 - 1, 2**40])
def test_sec_mode_outside_the_table_is_refused_as_a_field(value):
    with pytest.raises(WireError, match="SecMode") as caught:
        parse_sec_mode(value)
    assert caught.value.reason is DropReason.FIELD


def test_combination_outside_the_table_is_not_built():
    with pytest.raises(ValueError, match="not supported"):
        build_sec_mode(SecurityMode.SIGN, SecurityMode.SIGN)
