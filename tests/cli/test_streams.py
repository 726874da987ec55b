from __future__ import annotations

import subprocess
import sys

import pytest

import wdstransport
from cli import children
from cli.streams import needed


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_on_a_closed_standard_descriptor_nothing_else_is_opened(closed, tmp_path):
    code = "import os; from cli.streams import occupy; occupy(); os._exit(os.open('/dev/null', 0))"
    line = f"exec '{sys.executable}' -P -c \"{code}\" {closed}"
    assert subprocess.run(["sh", "-c", line], env=children.environment(), check=False).returncode == 3


def test_an_open_stream_is_as_good_as_needed():
    needed(sys.stdout, "standard output", "The image", "name a file")


def test_a_closed_stream_that_is_needed_is_a_usage_error_that_says_what_to_do():
    with pytest.raises(wdstransport.UsageError) as raised:
        needed(None, "standard output", "The image", "name a file as TARGET")
    assert str(raised.value) == (
        "The image would go to standard output, which is closed. Connect it to a file or a program, or name "
        "a file as TARGET."
    )
