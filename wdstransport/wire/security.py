"""The security header and the four security modes (MS-WDSMT 2.2.2).

A session has one `Security` for what the server sends and one for what clients send: the two modes may
differ (MS-WDSMSI 2.2.1, SecMode).
"""

from __future__ import annotations

import hashlib
import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import IntEnum
from typing import ClassVar

import numpy as np
from construct import Const, Construct, Int8ub, Struct
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hmac import HMAC

from wdstransport.wire.fields import BYTES_16, Buffer, build
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

__all__ = [
    "CALG_HMAC",
    "CALG_SHA1",
    "CALG_SHA_256",
    "SECURITY_FIXED_LEN",
    "SECURITY_HEADER",
    "AlgId",
    "ChecksumSecurity",
    "DropReason",
    "HashSecurity",
    "NoSecurity",
    "PlaintextKey",
    "PublicKey",
    "Security",
    "SecurityMode",
    "SignSecurity",
    "WireError",
    "build_plaintext_key_blob",
    "build_public_key_blob",
    "build_sec_mode",
    "checksum",
    "hash_name",
    "make_security",
    "parse_plaintext_key_blob",
    "parse_public_key_blob",
    "parse_sec_mode",
]

CALG_SHA1 = AlgId.CALG_SHA1
CALG_HMAC = AlgId.CALG_HMAC
CALG_SHA_256 = AlgId.CALG_SHA_256

SECURITY_FIXED_LEN = 5
"""Bytes of the security header before SecurityData."""

SECURITY_HEADER: Construct = Struct(
    "identifier" / Const(b"WD"),
    "security_header_type" / Int8ub,
    "security_data" / BYTES_16,
)
"""MS-WDSMT 2.2.2."""

_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}

_SHORT = 256
"""Below about this many bytes numpy's set-up costs more than adding in the interpreter does."""


class SecurityMode(IntEnum):
    """SecurityHeaderType, and each half of MS-WDSMSI's SecMode (MS-WDSMT 2.2.2)."""

    NONE = 0
    HASH = 1
    SIGN = 2
    CHECKSUM = 3


_COMBINATIONS = frozenset(
    {
        (SecurityMode.CHECKSUM, SecurityMode.CHECKSUM),
        (SecurityMode.HASH, SecurityMode.SIGN),
        (SecurityMode.HASH, SecurityMode.HASH),
        (SecurityMode.NONE, SecurityMode.NONE),
    }
)
"""Client's and server's mode (MS-WDSMSI 3.1.5.1)."""


def parse_sec_mode(value: int) -> tuple[SecurityMode, SecurityMode]:
    """Splits SecMode into the client's and the server's mode (MS-WDSMSI 2.2.1).

    The document draws the client's half first and does not say which half of the number that is. Of the
    combinations that exist (MS-WDSMSI 3.1.5.1) only one is uneven, and in it only a server signs: either
    order has one meaning.

    Raises:
        WireError: no such combination exists.
    """
    for client, server in _COMBINATIONS:
        if value in (client | server << 16, server | client << 16):
            return client, server
    raise WireError(DropReason.FIELD, f"SecMode {value:#010x} is no supported combination")


def build_sec_mode(client: SecurityMode, server: SecurityMode) -> int:
    """Returns SecMode, the client's mode in the half that is first in memory (MS-WDSMSI 2.2.1).

    Raises:
        ValueError: no such combination exists (MS-WDSMSI 3.1.5.1).
    """
    if (client, server) not in _COMBINATIONS:
        raise ValueError(f"{client.name} from clients with {server.name} from the server is not supported")
    return client | server << 16


def checksum(body: Buffer) -> int:
    """Returns the inverted 32-bit sum of all bytes (MS-WDSMT 2.2.2.3)."""
    if len(body) < _SHORT:
        total = sum(body)
    else:
        total = int(np.frombuffer(body, np.uint8).sum(dtype=np.uint64))
    return ~total & 0xFFFFFFFF


class Security(ABC):
    """Writes and checks one direction's security headers (MS-WDSMT 2.2.2).

    Attributes:
        mode: the SecurityHeaderType.
        data_len: length of SecurityData in bytes, the same for every packet.
        header_len: length of the whole security header in bytes.
    """

    mode: ClassVar[SecurityMode]

    def __init__(self, data_len: int) -> None:
        self.data_len = data_len
        self.header_len = SECURITY_FIXED_LEN + data_len
        blank = build(
            SECURITY_HEADER, {"security_header_type": self.mode.value, "security_data": bytes(data_len)}
        )
        self._fixed = blank[:SECURITY_FIXED_LEN]

    def seal(self, body: Buffer) -> bytes:
        """Returns the security header to put before a body.

        Raises:
            ValueError: this side has no key to sign with.
        """
        return self._fixed + self.security_data(body)

    def verify(self, datagram: memoryview) -> memoryview:
        """Checks a datagram's security header (MS-WDSMT 3.1.5.1.1, 3.2.5.2).

        Returns:
            The body: everything behind the security header, in the same memory.

        Raises:
            WireError: it is not a packet of this security mode, or is not what was sent.
        """
        if datagram[:SECURITY_FIXED_LEN] != self._fixed:
            raise self._mismatch(datagram)
        if len(datagram) < self.header_len:
            raise WireError(DropReason.TRUNCATED, "ends inside the security header")
        body = datagram[self.header_len :]
        self.check(bytes(datagram[SECURITY_FIXED_LEN : self.header_len]), body)
        return body

    def _mismatch(self, datagram: memoryview) -> WireError:
        if not b"WD".startswith(datagram[:2]):
            return WireError(DropReason.NOT_WDS, "does not begin with WD")
        if len(datagram) < SECURITY_FIXED_LEN:
            return WireError(DropReason.TRUNCATED, "ends inside the security header")
        if datagram[2] != self.mode:
            return WireError(
                DropReason.SECURITY_TYPE, f"SecurityHeaderType {datagram[2]}, not {self.mode.value}"
            )
        return WireError(DropReason.SECURITY_LENGTH, f"SecurityDataLen is not {self.data_len}")

    @abstractmethod
    def security_data(self, body: Buffer) -> bytes:
        """Returns SecurityData for a body, `data_len` bytes.

        Raises:
            ValueError: this side has no key to sign with.
        """

    @abstractmethod
    def check(self, security_data: bytes, body: Buffer) -> None:
        """Checks SecurityData that is `data_len` bytes long.

        Raises:
            WireError: it does not belong to the body.
        """


class NoSecurity(Security):
    """WDSMCTP_SECHDR_NONE: no SecurityData, nothing to check (MS-WDSMT 2.2.2)."""

    mode = SecurityMode.NONE

    def __init__(self) -> None:
        super().__init__(0)

    def security_data(self, body: Buffer) -> bytes:
        """Returns nothing."""
        return b""

    def check(self, security_data: bytes, body: Buffer) -> None:
        """Accepts everything."""


class ChecksumSecurity(Security):
    """WDSMCTP_SECHDR_CHECKSUM: finds most accidents, stops nobody (MS-WDSMT 2.2.2.3)."""

    mode = SecurityMode.CHECKSUM

    def __init__(self) -> None:
        super().__init__(4)

    def security_data(self, body: Buffer) -> bytes:
        """Returns the checksum in network byte order."""
        return checksum(body).to_bytes(4, "big")

    def check(self, security_data: bytes, body: Buffer) -> None:
        """Compares the checksum."""
        if security_data != self.security_data(body):
            raise WireError(DropReason.CHECKSUM, "the checksum does not match")


class _Learning(Security):
    """Two readings of the document: one is sent, both are tried until a packet verifies under one."""

    reason: ClassVar[DropReason]

    def __init__(self, data_len: int) -> None:
        super().__init__(data_len)
        self._readings = self.readings()

    @abstractmethod
    def readings(self) -> tuple[Callable[[bytes, Buffer], bool], ...]:
        """Returns the predicates to try, the one that is sent first."""

    def check(self, security_data: bytes, body: Buffer) -> None:
        """Tries the readings that are left, and keeps the one that verifies."""
        for verifies in self._readings:
            if verifies(security_data, body):
                self._readings = (verifies,)
                return
        raise WireError(self.reason, f"the {self.reason.value} does not match")


class HashSecurity(_Learning):
    """WDSMCTP_SECHDR_HASH: an HMAC that everybody in the session can make (MS-WDSMT 2.2.2.1; deviation 12).

    Args:
        key: the bytes of the session's key (HashKey, handed over as SymKey).
        hash_algorithm: sha1, sha256, sha384 or sha512.

    Raises:
        ValueError: the algorithm is none of these.
    """

    mode = SecurityMode.HASH
    reason = DropReason.HMAC

    def __init__(self, key: bytes, hash_algorithm: str = "sha256") -> None:
        algorithm = _algorithm(hash_algorithm)
        # With the key worked in already: a copy costs half of beginning anew for every datagram.
        self._keyed = HMAC(key, algorithm)
        self._hash = hash_algorithm
        super().__init__(algorithm.digest_size)

    def security_data(self, body: Buffer) -> bytes:
        """Returns the RFC 2104 HMAC over the body, whatever a peer was found to send (deviation 12)."""
        mac = self._keyed.copy()
        mac.update(body)
        return mac.finalize()

    def readings(self) -> tuple[Callable[[bytes, Buffer], bool], ...]:
        """HMAC over the packet, HMAC over the packet's hash."""
        return (self._over_packet, self._over_hash)

    def _over_packet(self, security_data: bytes, body: Buffer) -> bool:
        return hmac.compare_digest(security_data, self.security_data(body))

    def _over_hash(self, security_data: bytes, body: Buffer) -> bool:
        digest = hashlib.new(self._hash, body).digest()
        return hmac.compare_digest(security_data, self.security_data(digest))


class SignSecurity(_Learning):
    """WDSMCTP_SECHDR_SIGN: PKCS#1 v1.5 over the packet's hash (MS-WDSMT 2.2.2.2).

    The document says binary data without byte order; CryptSignHash of the Windows API writes the least
    significant byte first, so that is sent, and both orders are tried on verification (deviation 48).

    Args:
        key: the server's private key, or its public one on a side that only verifies.
        hash_algorithm: sha1, sha256, sha384 or sha512.

    Raises:
        ValueError: the algorithm is none of these.
    """

    mode = SecurityMode.SIGN
    reason = DropReason.SIGNATURE

    def __init__(self, key: RSAPrivateKey | RSAPublicKey, hash_algorithm: str = "sha256") -> None:
        self._private = key if isinstance(key, RSAPrivateKey) else None
        self._public = key.public_key() if isinstance(key, RSAPrivateKey) else key
        self._hash = _algorithm(hash_algorithm)
        super().__init__((key.key_size + 7) // 8)

    def security_data(self, body: Buffer) -> bytes:
        """Returns the signature, least significant byte first."""
        if self._private is None:
            raise ValueError("a public key cannot sign")
        return self._private.sign(bytes(body), PKCS1v15(), self._hash)[::-1]

    def readings(self) -> tuple[Callable[[bytes, Buffer], bool], ...]:
        """Least significant byte first, most significant byte first."""
        return (self._little_endian, self._big_endian)

    def _little_endian(self, security_data: bytes, body: Buffer) -> bool:
        return self._big_endian(security_data[::-1], body)

    def _big_endian(self, security_data: bytes, body: Buffer) -> bool:
        try:
            self._public.verify(security_data, bytes(body), PKCS1v15(), self._hash)
        except InvalidSignature:
            return False
        return True


def _algorithm(name: str) -> hashes.HashAlgorithm:
    try:
        return _HASHES[name]()
    except KeyError:
        raise ValueError(f"{name!r} is no known hash algorithm") from None


def make_security(
    mode: SecurityMode,
    *,
    hmac_key: bytes | None = None,
    hash_alg: int = AlgId.CALG_SHA_256,
    private_key: RSAPrivateKey | None = None,
    public_key: RSAPublicKey | None = None,
) -> Security:
    """Makes the security of one direction of a session.

    Args:
        mode: the mode of that direction (MS-WDSMSI 2.2.1, SecMode).
        hmac_key: the bytes of the session's key, for HASH.
        hash_alg: HashAlgId, for HASH and SIGN.
        private_key: for SIGN, on the side that sends.
        public_key: for SIGN, on the side that receives.

    Raises:
        ValueError: the mode needs a key that is not given, or the algorithm is not known.
    """
    if mode is SecurityMode.NONE:
        return NoSecurity()
    if mode is SecurityMode.CHECKSUM:
        return ChecksumSecurity()
    if mode is SecurityMode.HASH:
        if hmac_key is None:
            raise ValueError("HASH needs the session's key")
        return HashSecurity(hmac_key, hash_name(hash_alg))
    key = private_key or public_key
    if key is None:
        raise ValueError("SIGN needs an RSA key")
    return SignSecurity(key, hash_name(hash_alg))
