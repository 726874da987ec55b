from __future__ import annotations

import importlib.metadata
import io
import re
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cli import children
from cli.deploy_image import app, main

OPTIONS = {
    "serve": (
        "--namespace --interface --port --group --session-ports --min-clients --max-wait --block-size "
        "--security --rate --ttl --exit-when-done --json --verbose"
    ),
    "receive": "--server --namespace --interface --port --security --timeout --force --json --verbose",
    "demo": "--clients --loss --size",
}


def help_of(*words: str) -> str:
    result = CliRunner().invoke(
        app, [*words, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    )
    assert result.exit_code == 0
    return " ".join(re.sub(r"[\u2500-\u257f]", " ", result.output).split())


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_of_the_documentation_is_in_the_help(command):
    text = help_of(command)
    for option in OPTIONS[command].split():
        assert option in text


def test_the_help_lists_every_exit_code():
    text = help_of()
    for code in (
        "0 done",
        "2 usage",
        "3 no such content",
        "5 nobody answered",
        "7 storage",
        "130 interrupted",
    ):
        assert code in text


def test_the_help_says_that_a_rate_is_bits():
    assert "900M means 900 Mbit/s" in help_of("serve")


@pytest.mark.parametrize(
    ("command", "default"), [("serve", "all."), ("receive", "the one that leads to the server.")]
)
def test_the_help_says_which_interface_each_side_takes_without_the_option(command, default):
    assert f"Network interface, by name or address. Default: {default}" in help_of(command)


def test_options_for_the_demo_alone_are_not_in_the_help():
    assert "--drop-" not in help_of("receive")


def test_the_version_is_told():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (
        0,
        f"deploy-image {importlib.metadata.version('wdstransport')}\n",
    )


def test_the_version_of_sources_that_are_not_installed_is_a_sentence_about_that(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not installed" in result.stderr
    assert "pip install -e ." in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("receive", "x", "t", "--server", "h", "--timeout", "0"), "no time to answer"),
        (("serve", "x", "--rate", "10"), "less than 8 kbit/s"),
    ],
)
def test_a_value_that_cannot_be_meant_is_exit_code_2_with_a_sentence(words, sentence):
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    assert sentence in result.output


def test_without_a_command_the_help_is_shown():
    result = CliRunner().invoke(app, [])
    assert "serve" in result.output
    assert result.exit_code == 2


def test_the_help_comes_without_the_packages_that_move_packets():
    code = (
        "import sys, cli.deploy_image\n"
        "print([name for name in ('trio', 'numpy', 'construct', 'wdstransport') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=children.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def interrupts():
    """Pytest's own handling of SIGINT, before and after."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_outside_of_the_work_an_interrupt_ends_the_process_without_a_traceback(monkeypatch, interrupts):
    monkeypatch.setattr(sys, "argv", ["deploy-image", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_name_that_the_terminal_cannot_show_does_not_end_the_program(monkeypatch, interrupts):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["deploy-image", "--help"])
    with pytest.raises(SystemExit):
        main()
    stream.write("b\u00fcro")
    stream.flush()
    assert stream.buffer.getvalue().endswith(b"b\\xfcro")
