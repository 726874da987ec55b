"""CryptoAPI key blobs: the example of MS-WDSMSI 4.1, layouts by hand, and what is refused."""

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.wire.keys import (
    AlgId,
    PlaintextKey,
    PublicKey,
    build_plaintext_key_blob,
    build_public_key_blob,
    hash_name,
    parse_plaintext_key_blob,
    parse_public_key_blob,
)
from wdstransport.wire.reasons import DropReason, WireError

SYM_KEY = bytes.fromhex("0802000003660000180000002F15F82AE0683EF79E6D62A70BDC519D2A3246E0FDB354E9")
MODULUS = (1 << 2047) + 0x0102030405060708 * 2 + 1
PUBLIC = bytes.fromhex(
    "06 02 0000"  # PUBLICKEYBLOB, version, reserved
    "00240000"  # CALG_RSA_SIGN
    "52534131"  # RSA1
    "00080000"  # 2048 bits
    "01000100"  # 65537
) + MODULUS.to_bytes(256, "little")


def refused(parse, blob):
    with pytest.raises(WireError) as caught:
        parse(blob)
    return caught.value.reason


def test_sym_key_of_the_example_is_a_3des_key_of_24_bytes():
    key = parse_plaintext_key_blob(SYM_KEY)
    assert key == PlaintextKey(
        AlgId.CALG_3DES, bytes.fromhex("2F15F82AE0683EF79E6D62A70BDC519D2A3246E0FDB354E9")
    )
    assert len(key.key) == 24
    assert build_plaintext_key_blob(key) == SYM_KEY


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.binary(max_size=80))
def test_parsing_a_built_plaintext_key_gives_the_key(alg_id, key):
    assert parse_plaintext_key_blob(build_plaintext_key_blob(PlaintextKey(alg_id, key))) == PlaintextKey(
        alg_id, key
    )


def test_public_key_blob_holds_the_modulus_least_significant_byte_first():
    key = parse_public_key_blob(PUBLIC)
    assert key == PublicKey(AlgId.CALG_RSA_SIGN, 65537, MODULUS)
    assert key.to_rsa().public_numbers().n == MODULUS
    assert build_public_key_blob(key.to_rsa()) == PUBLIC


def test_generated_key_survives_its_blob():
    public = rsa.generate_private_key(65537, 2048).public_key()
    blob = build_public_key_blob(public, AlgId.CALG_RSA_KEYX)
    assert blob[4:8] == bytes.fromhex("00A40000")
    key = parse_public_key_blob(blob)
    assert key.alg_id == AlgId.CALG_RSA_KEYX
    assert key.to_rsa().public_numbers() == public.public_numbers()


def test_key_that_fills_no_whole_bytes_says_its_bits_and_survives_its_blob():
    public = rsa.generate_private_key(65537, 1025).public_key()
    blob = build_public_key_blob(public)
    assert int.from_bytes(blob[12:16], "little") == 1025
    assert parse_public_key_blob(blob).to_rsa().public_numbers() == public.public_numbers()


@pytest.mark.parametrize(
    ("parse", "blob"), [(parse_plaintext_key_blob, SYM_KEY), (parse_public_key_blob, PUBLIC)]
)
def test_every_proper_prefix_and_a_trailing_byte_are_refused(parse, blob):
    for length in range(len(blob)):
        assert refused(parse, blob[:length]) is DropReason.TRUNCATED
    assert refused(parse, blob + b"\0") is DropReason.TRAILING


@pytest.mark.parametrize(
    ("parse", "blob"), [(parse_plaintext_key_blob, SYM_KEY), (parse_public_key_blob, PUBLIC)]
)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_other_type_version_or_reserved_is_refused(parse, blob, place):
    changed = blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]
    assert refused(parse, changed) is DropReason.FIELD


def test_public_key_without_rsa1_is_refused():
    assert refused(parse_public_key_blob, PUBLIC.replace(b"RSA1", b"RSA2")) is DropReason.FIELD


def test_modulus_shorter_than_announced_is_refused():
    assert refused(parse_public_key_blob, PUBLIC[:-1] + b"\x7f") is DropReason.FIELD


@pytest.mark.parametrize("bits", [16385, 16392])
def test_modulus_beyond_16384_bits_is_refused(bits):
    modulus = (1 << bits - 1).to_bytes(2049, "little")
    blob = PUBLIC[:12] + bits.to_bytes(4, "little") + PUBLIC[16:20] + modulus
    assert refused(parse_public_key_blob, blob) is DropReason.FIELD


def test_modulus_of_16384_bits_is_read():
    modulus = (1 << 16383) + 1
    blob = PUBLIC[:12] + (16384).to_bytes(4, "little") + PUBLIC[16:20] + modulus.to_bytes(2048, "little")
    assert parse_public_key_blob(blob).modulus == modulus


@pytest.mark.parametrize(
    "key", [PublicKey(0x2400, 65537, (1 << 2047) + 2), PublicKey(0x2400, 0, MODULUS), PublicKey(0x2400, 3, 3)]
)
def test_numbers_that_are_no_usable_rsa_key_are_refused(key):
    with pytest.raises(WireError, match="no usable RSA key"):
        key.to_rsa()


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60), st.sampled_from([b"", SYM_KEY[:8], PUBLIC[:8], PUBLIC[:12]]))
def test_any_bytes_are_a_key_or_a_wire_error(tail, head):
    for parse in (parse_plaintext_key_blob, parse_public_key_blob):
        try:
            key = parse(head + tail)
            if isinstance(key, PublicKey):
                key.to_rsa()
        except WireError:
            pass


def test_hash_names_of_the_ids_in_use():
    assert hash_name(0x800C) == "sha256"
    assert hash_name(0x8004) == "sha1"
    assert (hash_name(0x800D), hash_name(0x800E)) == ("sha384", "sha512")


@pytest.mark.parametrize("alg_id", [0, AlgId.CALG_HMAC, AlgId.CALG_3DES])
def test_id_that_is_no_hash_algorithm_is_an_error(alg_id):
    with pytest.raises(ValueError, match="hash algorithm"):
        hash_name(alg_id)


def test_value_that_does_not_fit_the_blob_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="cannot be written"):
        build_plaintext_key_blob(PlaintextKey(2**32, b""))
