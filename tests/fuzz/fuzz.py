"""Coverage-guided fuzzing with atheris: `python tests/fuzz/fuzz.py TARGET [libFuzzer options]`.

Without a target, every target gets `-runs=` inputs in turn (`make fuzz`). New inputs are kept in the corpus
folder of the target, `tests/fuzz/corpus/TARGET` (WDS_FUZZ_CORPUS names another place for them), and so is
whatever breaks the promise.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
MEMORY_LIMIT = 256 << 20


def within_memory(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """A target that fails where one input makes the process's peak grow by more than `MEMORY_LIMIT`."""

    def one(data: bytes) -> None:
        before = peak()
        target(data)
        grown = peak() - before
        if grown > MEMORY_LIMIT:
            raise MemoryError(f"{grown} bytes for an input of {len(data)}")

    return one


def peak() -> int:
    """The most bytes that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["wdstransport", "targets"]):
        sys.path.insert(0, str(HERE))
        from targets import TARGETS

    corpus = Path(os.environ.get("WDS_FUZZ_CORPUS", HERE / "corpus")) / name
    committed = HERE / "corpus" / name
    for folder in (corpus, committed):
        folder.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            str(committed),
            f"-artifact_prefix={corpus}/broken-",
            "-max_len=2048",
            # An input takes a millisecond or two: this is the promise of bounded time. That of bounded memory
            # is `within_memory`; the fuzzer's own tables grow by two kilobytes an input, and are no finding.
            "-timeout=20",
            "-rss_limit_mb=4096",
            *options,
        ],
        within_memory(TARGETS[name]),
    )
    atheris.Fuzz()


def fuzz_all(options: list[str]) -> int:
    """Fuzz every target in a process of its own; how many broke the promise."""
    sys.path.insert(0, str(HERE))
    from targets import TARGETS

    broken = 0
    for name in TARGETS:
        print(f"== {name}", flush=True)
        broken += subprocess.run([sys.executable, __file__, name, *options], check=False).returncode != 0
    return broken


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        fuzz(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(min(fuzz_all(sys.argv[1:]), 1))
