"""The table of planted faults cannot rot: each still stands once in the sources, and its tests exist.

That tests catch them is `make mutate`'s to show, which takes long.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fault import PACKAGE, ROOT, read_all, read_table
from generate import generate

FAULTS = read_all()


@pytest.mark.parametrize("path", sorted({fault.path for fault in FAULTS}))
def test_every_planted_fault_applies_exactly_once_and_is_a_program(path):
    source = (ROOT / PACKAGE / path).read_text()
    for fault in FAULTS:
        if fault.path == path:
            compile(fault.plant(source), fault.path, "exec")


def test_every_fault_has_a_name_of_its_own_and_tests_that_exist():
    assert len(FAULTS) >= 50
    names = Counter((each.path, each.name) for each in FAULTS)
    assert [name for name, count in names.items() if count > 1] == []
    assert {path for each in FAULTS for path in each.tests if not (ROOT / path).exists()} == set()
    assert all(each.tests for each in FAULTS)


def test_a_fault_whose_text_is_gone_or_stands_twice_is_refused(tmp_path):
    table = tmp_path / "table.txt"
    table.write_text("[a.py] tests\n\nwrong sign\n- x + 1\n+ x - 1\n")
    (fault,) = read_table(table)
    assert fault.plant("y = x + 1") == "y = x - 1"
    for source in ("y = x", "y = x + 1; z = x + 1"):
        with pytest.raises(ValueError, match="not once"):
            fault.plant(source)


def test_a_fault_that_changes_nothing_says_why(tmp_path):
    table = tmp_path / "table.txt"
    table.write_text("[a.py] tests\n\nother order\n- x + y\n+ y + x\n= sums do not care\n")
    (fault,) = read_table(table)
    assert fault.equivalent == "sums do not care"


def test_generated_faults_change_one_place_each_and_leave_a_program():
    source = "def f(x: int) -> int:\n    y = min(x, 3)\n    return y if 0 <= x < 9 and y else -1\n"
    faults = generate("a.py", source, ("tests",))
    planted = [fault.plant(source) for fault in faults]
    for text in planted:
        compile(text, "a.py", "exec")
    assert len({fault.name for fault in faults}) == len(set(planted)) == len(faults)
    assert source.replace("min(x, 3)", "(x)") in planted
    assert source.replace("0 <= x < 9", "(0 <= x <= 9)") in planted
    assert source.replace("y = min(x, 3)", "pass") in planted
    with pytest.raises(ValueError, match="another one"):
        faults[0].plant("x = 1\n" + source)


def test_a_line_at_the_wrong_place_is_refused(tmp_path):
    table = tmp_path / "table.txt"
    table.write_text("[a.py] tests\n\nwrong sign\n+ x - 1\n")
    with pytest.raises(ValueError, match="line 4"):
        read_table(table)
