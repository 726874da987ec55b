"""The committed curve is what the code does: a change in behaviour shows as a change of numbers in review."""

from pathlib import Path

import pytest
from curve import GIGABIT, run
from plot import PICTURE, digest, read

SNAPSHOT = Path(__file__).parent / "CURVE.md"


@pytest.mark.parametrize("loss", [0.0, 0.001, 0.01])
@pytest.mark.parametrize("clients", [1, 10])
def test_cheap_rows_of_the_committed_curve_come_out_again(clients, loss):
    _, row = run(1, clients, loss, 20_000_000, GIGABIT, 0.0002)
    assert row in SNAPSHOT.read_text().splitlines(), "run `make curve`, and explain the change in its commit"


def test_the_committed_picture_was_drawn_from_the_committed_table():
    text = SNAPSHOT.read_text()
    assert [row["clients"] for row in read(text)] == [1, 10, 100, 1000] * 3
    assert digest(text).encode() in PICTURE.read_bytes(), "run `make curve`, or only tests/sim/plot.py"
