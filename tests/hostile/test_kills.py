"""`kill -9` of servers and receivers at random moments; HOSTILE_SEED decides them.

With HOSTILE_LARGE=1 (`make hostile`) HOSTILE_KILLS of them, two hundred as a rule; otherwise a few receivers.
"""

import os
import random
from collections import Counter

import pytest
from kills import Trial, run_wave
from lab import Lab
from neighbourhood import LARGE, SEED, Neighbourhood, why_not

KILLS = int(os.environ.get("HOSTILE_KILLS", "200"))
WAVE = 10
FIRST = int(os.environ.get("HOSTILE_FIRST_WAVE", "0"))

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def lab():
    with Lab(2, label=f"kills{os.getpid()}") as lab:
        yield lab


@pytest.fixture(scope="module")
def total():
    total = Counter()
    yield total
    if total:
        print(f"\nall waves, seed {SEED}: {dict(sorted(total.items()))}")


def wave(lab, folder, seed, number, victim=None):
    """One wave's counts; its seed is in whatever goes wrong."""
    rng = random.Random(seed)
    with Neighbourhood(lab, folder) as place:
        trials = [Trial(place, each, rng, victim) for each in range(number)]
        try:
            return run_wave(place, trials)
        except AssertionError as error:
            error.add_note(f"HOSTILE_SEED={SEED}, wave seed {seed}")
            raise


def test_receivers_killed_at_random_moments_leave_no_wrong_copy_and_the_others_get_the_image(lab, tmp_path):
    counts = wave(lab, tmp_path, f"{SEED} receivers", 2, "receiver")
    print(f"seed {SEED}: {dict(sorted(counts.items()))}")


@pytest.mark.skipif(not LARGE, reason="takes half a minute each: HOSTILE_LARGE=1 or make hostile")
@pytest.mark.parametrize("number", range(FIRST, FIRST + -(-KILLS // WAVE)))
def test_servers_and_receivers_killed_at_random_moments_leave_no_wrong_copy_and_documented_exit_codes(
    lab, tmp_path, number, total
):
    counts = wave(lab, tmp_path, f"{SEED} wave {number}", min(WAVE, KILLS - (number - FIRST) * WAVE))
    total.update(counts)
    print(f"seed {SEED}, wave {number}: {dict(sorted(counts.items()))}")
