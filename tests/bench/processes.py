"""Processes that are started together, listened to and measured: when, how much CPU, how much memory.

One thread, no pipes that fill up, and next to no CPU of its own: what this costs, the measured ones pay.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

__all__ = ["Fleet", "Process"]

_LINE = re.compile(rb"[^\r\n]*[\r\n]")
_END = re.compile(rb"[\r\n]")
_SAMPLE = 0.2
"""Seconds between two looks at the processes' memory."""
_GRACE = 3.0


@dataclass(slots=True)
class Process:
    """One process; times are seconds of the system's clock, `time.time`.

    Attributes:
        lines: what it printed, on either stream, with the time each line came. A carriage return ends a line.
        returncode: None while it runs; negative for a signal.
        cpu_seconds: user and system time, its own children included, once it ended.
        peak_bytes: the most memory it had resident.
    """

    name: str
    pid: int
    started: float
    lines: list[tuple[float, str]] = field(default_factory=list)
    ended: float | None = None
    returncode: int | None = None
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    _rest: bytes = b""

    def when(self, pattern: str) -> float | None:
        """When it first printed a line that `pattern` is found in."""
        for at, line in self.lines:
            if re.search(pattern, line):
                return at
        return None

    def last_words(self) -> str:
        """The end of what it printed, for a message."""
        return " / ".join(line.strip() for _, line in self.lines[-3:] if line.strip())[-300:]

    def take(self, data: bytes, now: float) -> None:
        """Add output."""
        if not _END.search(data):
            # Looking for lines in a long one that is not whole yet would cost its length squared.
            self._rest += data
            return
        data = self._rest + data
        end = 0
        last = max(data.rfind(b"\r"), data.rfind(b"\n")) + 1
        for match in _LINE.finditer(data, 0, last):
            end = match.end()
            text = match[0].rstrip(b"\r\n").decode(errors="replace")
            if text:
                self.lines.append((now, text))
        self._rest = data[end:]

    def sample_memory(self) -> None:
        """Look at its high-water mark, which `exec` resets, unlike that of getrusage(2)."""
        try:
            with open(f"/proc/{self.pid}/status", "rb") as status:
                for line in status:
                    if line.startswith(b"VmHWM:"):
                        self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)
                        return
        except (OSError, ValueError):
            return


class Fleet:
    """Processes of one transfer. Leaving the context ends whatever still runs."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self._selector = selectors.DefaultSelector()
        self._popen: dict[int, subprocess.Popen[bytes]] = {}
        self._next_sample = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(self.processes)
        self._selector.close()

    def start(self, name: str, words: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
        """Start a process."""
        popen = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        process = Process(name, popen.pid, time.time())
        self.processes.append(process)
        self._popen[popen.pid] = popen
        assert popen.stdout is not None
        os.set_blocking(popen.stdout.fileno(), False)
        self._selector.register(popen.stdout, selectors.EVENT_READ, process)
        handle = os.pidfd_open(popen.pid)
        self._selector.register(handle, selectors.EVENT_READ, process)
        return process

    def wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Listen until `until` holds; False when that takes longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while not until():
            now = time.monotonic()
            if now >= deadline:
                return False
            if now >= self._next_sample:
                self._next_sample = now + _SAMPLE
                for process in self.processes:
                    if process.returncode is None:
                        process.sample_memory()
            self._listen(min(deadline, self._next_sample) - now)
        return True

    def wait_ended(self, processes: Sequence[Process], seconds: float) -> bool:
        """Listen until they have ended; False when that takes longer than `seconds`."""
        return self.wait(lambda: all(process.returncode is not None for process in processes), seconds)

    def stop(self, processes: Sequence[Process]) -> None:
        """Ask them to end, and then make them."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            running = [process for process in processes if process.returncode is None]
            for process in running:
                process.sample_memory()
                os.kill(process.pid, number)  # not yet reaped, so the number is still its own
            if self.wait_ended(running, _GRACE):
                return

    def _listen(self, seconds: float) -> None:
        for key, _ in self._selector.select(max(0.0, seconds)):
            process: Process = key.data
            now = time.time()
            if isinstance(key.fileobj, int):
                self._reap(process, key.fileobj, now)
                continue
            if process.returncode is not None:
                continue  # it ended a moment ago, in this very loop, and its output was drained
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            if data:
                process.take(data, now)
            else:
                self._selector.unregister(key.fileobj)

    def _reap(self, process: Process, handle: int, now: float) -> None:
        _, status, usage = os.wait4(process.pid, 0)
        self._selector.unregister(handle)
        os.close(handle)
        popen = self._popen[process.pid]
        popen.returncode = process.returncode = os.waitstatus_to_exitcode(status)
        process.ended = now
        process.cpu_seconds = usage.ru_utime + usage.ru_stime
        process.peak_bytes = process.peak_bytes or usage.ru_maxrss * 1024
        self._drain(process, popen, now)

    def _drain(self, process: Process, popen: subprocess.Popen[bytes], now: float) -> None:
        assert popen.stdout is not None
        while True:
            try:
                data = os.read(popen.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            process.take(data, now)
        if popen.stdout in self._selector.get_map():
            self._selector.unregister(popen.stdout)
        popen.stdout.close()
