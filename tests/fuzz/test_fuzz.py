"""The committed corpus and a short seeded run of every fuzz target; the long run is `make fuzz`."""

import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fuzz  # noqa: E402
from targets import TARGETS  # noqa: E402

SEED = 5041
COUNTS = {"server_session": 150, "client_session": 150, "wire_batch": 400}


def corpus(name):
    return sorted(path for path in (HERE / "corpus" / name).glob("*") if path.is_file())


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_keeps_the_promise(name):
    assert corpus(name)
    for path in corpus(name):
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_random_and_mutated_inputs_keep_the_promise(name):
    rng = random.Random(f"{SEED} {name}")
    seeds = [path.read_bytes() for path in corpus(name)]
    for count in range(COUNTS.get(name, 1500)):
        if count % 2:
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randint(1, 8)):
                if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
            data += rng.randbytes(rng.choice((0, 0, 4, 60)))
        else:
            data = bytearray(rng.randbytes(rng.choice((3, 20, 80, 300, 1200))))
        try:
            TARGETS[name](bytes(data))
        except Exception as error:
            error.add_note(f"seed {SEED}, input {bytes(data).hex()}")
            raise


@pytest.mark.parametrize(
    ("grown", "fails"), [(0, False), (fuzz.MEMORY_LIMIT, False), (fuzz.MEMORY_LIMIT + 1, True)]
)
def test_an_input_that_takes_more_memory_than_promised_is_a_finding(monkeypatch, grown, fails):
    peaks, taken = [1 << 30, (1 << 30) + grown], []
    monkeypatch.setattr(fuzz, "peak", lambda: peaks.pop(0))
    target = fuzz.within_memory(taken.append)
    if fails:
        with pytest.raises(MemoryError, match=f"{grown} bytes for an input of 3"):
            target(b"abc")
    else:
        target(b"abc")
    assert taken == [b"abc"]


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed (`make fuzz` installs it)")
@pytest.mark.parametrize("name", TARGETS)
def test_short_coverage_guided_run_finds_nothing(name, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "fuzz.py"),
            name,
            "-runs=400",
            "-seed=1",
            f"-artifact_prefix={tmp_path}/",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PATH": "/usr/bin:/bin", "WDS_FUZZ_CORPUS": str(tmp_path / "corpus")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
