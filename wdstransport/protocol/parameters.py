"""The documents' parameters with their defaults, in seconds, and the ones they leave to us.

MS-WDSMT 3.1.1.4 (server), 3.2.1.2 (client); MS-WDSMA 3.2.1 (cache). Where a document gives no default
(deviation 14) the reason for ours stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClientParameters", "ServerParameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParameters:
    """What a server session is set to; times in seconds, windows in packets."""

    inactivity_timeout: float = 300.0
    join_ack_to_qcr_timeout: float = 0.5
    max_join_ack_sends: int = 3
    poll_back_off: float = 0.2
    kick_interval: float = 15.0
    closing_kick_interval: float = 0.3
    no_client_qcc_interval: float = 0.5
    client_dead_timeout: float = 60.0
    spm_interval: float = 0.22
    cleanup_data_list_interval: float = 0.2
    max_no_response_spm: int = 5
    demote_interval: float = 0.5
    max_removed_joins: int = 8
    """JOINs of a removed client's address that are answered with KICK or DEMOTE (deviation 56), four seconds'
    worth. Whoever still asks then is another program there, which was removed from nowhere."""

    qcc_interval: float = 0.25
    """Deviation 14. A QCC brings every client's RTT, loss, progress and how far it is. A client that falls
    behind at 100 MB/s fills a receive buffer of 32 MB in a third of a second; by then it must have been
    noticed. The document adds a millisecond a client, so a thousand clients send a thousand QCR a second."""
    exp_max_window_size: int = 16384
    max_window_size: int = 16384
    """Deviation 14, in packets. 16384 packets of 1,401 bytes are 23 MB, 10 Gbit/s for 18 ms or 1 Gbit/s for
    180 ms, and less than the receive buffer that a client asks for (32 MB). A repair takes about six round
    trips (3.1.5.9.6: four at least), twelve when it is lost itself, and the window should not run out in
    them. With a cut to three quarters in every four round trips (deviation 30), a window that grows by all
    that is acknowledged comes to rest at 16 round trips' worth, one that grows by twice that at 32: so the
    second growth never takes the place of the first. Both together make a quarter to a third more
    of the rate at 1 % loss, and cost nothing that could be measured where a slow link is what loses."""

    data_linger: float = 1.0
    """How old the last packet is before the application may query again (deviation 22): CreationTime's
    1000 ms of MS-WDSMT 3.1.6.7."""
    query_margin: float = 0.05
    """Added to the query's wait for timers that fire late (deviation 41)."""
    empty_query_wait: float = 0.25
    max_empty_query_wait: float = 5.0
    """First and longest wait after a query that found nothing missing (deviation 38)."""
    late_client_share: float = 30.0
    """Seconds after the oldest client within which a client still counts in a round (MS-WDSMA 3.1.6.1)."""

    max_clients: int = 1024
    """A session's own limit; 200 is the limit of one KICK packet (deviation 19)."""
    max_pending_clients: int = 1024
    """JOINs that nobody confirmed. Beyond it the oldest is dropped (deviation 54): a flood of forged JOINs
    costs this much memory and nothing else."""
    joins_per_second: float = 250.0
    join_burst: int = 1024
    """JOINs of addresses without a confirmed client that are looked at: a room of a thousand at once, then
    so many a second. A JOIN beyond it is dropped unread; its client asks again after half a second."""
    join_acks_unanswered: int = 512
    """JOINACKs that nobody has confirmed: so many at once, then half as many a second; a QCR gives its
    client's back, so that a room of honest clients never meets this. A JOINACK to a forged address of the
    server's own network waits three seconds for an ARP answer, and holds nearly a kilobyte of the send buffer
    for so long, through which all data leaves: 512 and three times 256 take half of one of 2 MB. The driver
    sets less for a smaller one. What is beyond is not sent, which to its client is a lost JOINACK."""
    max_nack_work: int = 2048
    """Sequence numbers one NACK may make the server look at; the rest comes with the next (deviation 53)."""
    nack_work_per_second: float = 100_000.0
    nack_work_burst: float = 100_000.0
    nack_own_work: float = 20.0
    """One client's share: the sequence numbers that its NACKs make the server look at, and 20 for each NACK,
    which is also repeated to the group as NCF (3.1.5.9.6). A client sends a NACK every millisecond at most
    (3.2.5.12.1) and names a missing packet some six times until the repair is there, so this covers 10 % of
    loss at 1 Gbit/s. Beyond it NACKs are dropped unread until the share has grown again."""
    max_repairs_queued: int = 16384
    min_clients: int = 1
    max_wait: float | None = None
    """ScheduledCast: sending starts with so many clients, or so long after the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientParameters:
    """What a client session is set to; times in seconds, the cache in bytes."""

    inactivity_timeout: float = 30.0
    join_interval: float = 0.5
    max_leave_delay: float = 0.2
    force_qcc_interval: float = 20.0
    max_cache_size: int = 2_097_152
    rejoin_interval: float = 5.0
    """Silence (no SPM, POLL, ODATA or RDATA) after which a client sends its JOIN again (deviation 56)."""
    unheard_timeout: float = 120.0
    """How long that JOIN may stay unanswered while the server is heard. A server forgets who is silent for so
    long at the latest, as it looks every ClientDeadTimeout for who was silent for as long."""
    max_nack_wait: float = 0.05
    """Longest wait between NACKs that bring nothing (deviation 57)."""
    max_nack_ranges: int = 80
    """Ranges in one NACK: 80 fit one Ethernet frame in every security mode but SIGN (deviation 49). The
    lowest go first; the rest follows in the next."""
