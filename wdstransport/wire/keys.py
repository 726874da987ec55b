"""CryptoAPI key blobs, as MS-WDSMSI 2.2.1 hands over SymKey and SignKey (deviation 16).

Unlike everything else here these are little-endian: they are memory of the Windows API, not of a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO

from construct import Bytes, Const, Construct, GreedyBytes, Int8ul, Int16ul, Int32ul, Prefixed, Struct, this
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers

from wdstransport.wire.fields import Buffer, build, parse, refuse_rest
from wdstransport.wire.reasons import DropReason, WireError

__all__ = [
    "AlgId",
    "PlaintextKey",
    "PublicKey",
    "build_plaintext_key_blob",
    "build_public_key_blob",
    "hash_name",
    "parse_plaintext_key_blob",
    "parse_public_key_blob",
]

_MAX_RSA_BITS = 16384
"""What CryptoAPI itself can hold; a larger key would only serve to keep a client busy."""


class AlgId(IntEnum):
    """ALG_IDs of CryptoAPI that the documents name or imply."""

    CALG_SHA1 = 0x8004
    CALG_HMAC = 0x8009
    CALG_SHA_256 = 0x800C
    CALG_SHA_384 = 0x800D
    CALG_SHA_512 = 0x800E
    CALG_3DES = 0x6603
    CALG_RSA_SIGN = 0x2400
    CALG_RSA_KEYX = 0xA400


_HASH_NAMES: dict[int, str] = {
    AlgId.CALG_SHA1: "sha1",
    AlgId.CALG_SHA_256: "sha256",
    AlgId.CALG_SHA_384: "sha384",
    AlgId.CALG_SHA_512: "sha512",
}


def hash_name(alg_id: int) -> str:
    """Returns the name of HashAlgId's algorithm, as `hashlib` spells it (MS-WDSMSI 2.2.1).

    Raises:
        ValueError: it is no hash algorithm, or none that is known here.
    """
    try:
        return _HASH_NAMES[alg_id]
    except KeyError:
        raise ValueError(f"{alg_id:#x} is no known hash algorithm") from None


_PLAINTEXTKEYBLOB: Construct = Struct(
    "type" / Const(8, Int8ul),
    "version" / Const(2, Int8ul),
    "reserved" / Const(0, Int16ul),
    "alg_id" / Int32ul,
    "key" / Prefixed(Int32ul, GreedyBytes),
)

_PUBLICKEYBLOB: Construct = Struct(
    "type" / Const(6, Int8ul),
    "version" / Const(2, Int8ul),
    "reserved" / Const(0, Int16ul),
    "alg_id" / Int32ul,
    "magic" / Const(b"RSA1"),
    "bits" / Int32ul,
    "exponent" / Int32ul,
    "modulus" / Bytes((this.bits + 7) // 8),
)


@dataclass(frozen=True, slots=True)
class PlaintextKey:
    """A symmetric key in the open; `alg_id` is what it was made for (0x6603 in MS-WDSMSI 4.1)."""

    alg_id: int
    key: bytes


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An RSA public key."""

    alg_id: int
    exponent: int
    modulus: int

    def to_rsa(self) -> RSAPublicKey:
        """Returns the key in the form that `SignSecurity` takes.

        Raises:
            WireError: no RSA key can have these numbers.
        """
        if self.modulus % 2 == 0:
            raise WireError(DropReason.FIELD, "no usable RSA key: the modulus is even")
        try:
            return RSAPublicNumbers(self.exponent, self.modulus).public_key()
        except ValueError as error:
            raise WireError(DropReason.FIELD, f"no usable RSA key: {error}") from error


def parse_plaintext_key_blob(blob: Buffer) -> PlaintextKey:
    """Parses a PLAINTEXTKEYBLOB, such as SymKey (MS-WDSMSI 2.2.1; deviation 16).

    Raises:
        WireError: it is none.
    """
    stream = BytesIO(blob)
    found = parse(_PLAINTEXTKEYBLOB, stream)
    refuse_rest(stream)
    return PlaintextKey(found.alg_id, found.key)


def build_plaintext_key_blob(key: PlaintextKey) -> bytes:
    """Builds a PLAINTEXTKEYBLOB (MS-WDSMSI 2.2.1; deviation 16).

    Raises:
        ValueError: `alg_id` does not fit 32 bits.
    """
    return build(_PLAINTEXTKEYBLOB, {"alg_id": key.alg_id, "key": key.key})


def parse_public_key_blob(blob: Buffer) -> PublicKey:
    """Parses a PUBLICKEYBLOB, such as SignKey (MS-WDSMSI 2.2.1).

    Raises:
        WireError: it is none, or its modulus is not as long as it says.
    """
    stream = BytesIO(blob)
    found = parse(_PUBLICKEYBLOB, stream)
    refuse_rest(stream)
    modulus = int.from_bytes(found.modulus, "little")
    if modulus.bit_length() != found.bits or found.bits > _MAX_RSA_BITS:
        raise WireError(DropReason.FIELD, f"modulus of {modulus.bit_length()} bits, announced {found.bits}")
    return PublicKey(found.alg_id, found.exponent, modulus)


def build_public_key_blob(key: RSAPublicKey, alg_id: int = AlgId.CALG_RSA_SIGN) -> bytes:
    """Builds a PUBLICKEYBLOB (MS-WDSMSI 2.2.1).

    Raises:
        ValueError: the public exponent does not fit 32 bits.
    """
    numbers = key.public_numbers()
    return build(
        _PUBLICKEYBLOB,
        {
            "alg_id": alg_id,
            "bits": key.key_size,
            "exponent": numbers.e,
            "modulus": numbers.n.to_bytes((key.key_size + 7) // 8, "little"),
        },
    )
