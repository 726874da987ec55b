"""What README.md and SECURITY.md say is what the program does."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import trio
import typer

import wdstransport
from cli.deploy_image import app
from cli.run import INTERRUPTED
from wdstransport.net.initiation import RequestLimiter
from wdstransport.net.served_client import MAX_DISCONNECTED
from wdstransport.protocol.parameters import ClientParameters, ServerParameters

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

DOCUMENTED_ADDRESS = "192.168.7.10"
LOOPBACK = "127.0.0.1"
PATIENCE = 60
IMAGE = bytes(range(256)) * 1000


def command(name):
    return typer.main.get_command(app).commands[name]


def shown_options(name):
    """Options in the help of a command, with their defaults as a table shows them."""
    return {
        flag: parameter.default
        for parameter in command(name).params
        if not getattr(parameter, "hidden", False)
        for flag in parameter.opts
        if flag.startswith("-")
    }


def section(text, heading):
    """The text below a heading, up to the next one of its level or a higher one."""
    level = heading.split(" ")[0]
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    end = re.compile(rf"^#{{1,{len(level)}}} ", re.MULTILINE).search(text, start)
    return text[start : end.start() if end else len(text)]


def rows(text):
    """The rows of the first table in a text, without its heads."""
    lines = iter(text.splitlines())
    found = []
    for line in lines:
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif found:
            break
    assert len(found) > 2
    return found[2:]


# ---------------------------------------------------------------------- the Python examples


def examples():
    """The server's and the client's, as they stand in the README."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    return blocks


def runnable(source, replacements, said):
    """The `main` of an example: other places in it, and what it prints handed to `said`."""
    for old, new in replacements.items():
        assert source.count(old) == 1, f"{old} should stand in the example once"
        source = source.replace(old, new)
    last = "trio.run(main)\n"
    assert source.endswith(last)
    names = {"print": said, "__name__": "example"}
    exec(compile(source.removesuffix(last), "README.md", "exec", dont_inherit=True), names)
    return names["main"]


async def test_the_two_examples_move_an_image_over_loopback_multicast(tmp_path, quick):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "lab.wim").write_bytes(IMAGE)
    copy = tmp_path / "copy.wim"
    server_example, client_example = examples()
    send, listening = trio.open_memory_channel(100)
    serve = runnable(
        server_example,
        {
            "/srv/images": str(tmp_path / "images"),
            f'interface="{DOCUMENTED_ADDRESS}"': f'interface="{LOOPBACK}", port=0',
        },
        send.send_nowait,
    )
    sentences = []
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            event = await listening.receive()
            assert isinstance(event, wdstransport.ServerListening)
            receive = runnable(
                client_example,
                {
                    "/tmp/lab.wim": str(copy),
                    DOCUMENTED_ADDRESS: LOOPBACK,
                    "port=5041": f"port={event.address[1]}",
                },
                sentences.append,
            )
            await receive()
    assert copy.read_bytes() == IMAGE
    assert sentences[0].startswith(f"{len(IMAGE)} bytes at ")


@pytest.mark.parametrize("example", [0, 1])
def test_an_example_has_about_ten_lines(example):
    lines = [line for line in examples()[example].splitlines() if line.strip()]
    assert len(lines) <= 10


# ---------------------------------------------------------------------- options and exit codes


def typed_commands():
    """Every `deploy-image` command line in README and CHANGELOG: its command and the options typed."""
    for text in (README, CHANGELOG):
        for name, rest in re.findall(r"deploy-image (serve|receive|demo)\b([^\n`|]*)", text):
            yield name, re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)


def test_every_option_on_a_command_line_is_in_the_help_of_that_command():
    typed = list(typed_commands())
    assert len(typed) > 10
    for name, options in typed:
        for option in options:
            assert option == "--help" or option in shown_options(name), f"{option} of {name}"


@pytest.mark.parametrize("text", [README, SECURITY, CHANGELOG], ids=["README", "SECURITY", "CHANGELOG"])
def test_every_option_named_anywhere_is_in_the_help(text):
    known = {"--help", "--version"}.union(*(shown_options(name) for name in ("serve", "receive", "demo")))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert named
    assert named <= known


def documented_default(value):
    if value is None:
        return "none"
    if value is False:
        return "off"
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))


@pytest.mark.parametrize("row", rows(section(README, "## Options worth knowing")), ids=lambda row: row[1])
def test_the_options_table_names_commands_and_defaults_as_they_are(row):
    who, option, default, _ = row
    for name in ("serve", "receive") if who == "both" else (who,):
        options = shown_options(name)
        assert option.strip("`") in options
        assert default == documented_default(options[option.strip("`")])


def errors(kind=wdstransport.TransportError):
    yield kind
    for child in kind.__subclasses__():
        yield from errors(child)


def test_the_exit_codes_table_has_every_code_and_no_other():
    documented = {int(row[0]) for row in rows(section(README, "## Exit codes"))}
    public = {kind.exit_code for kind in errors() if kind.__module__ == "wdstransport.errors"}
    assert documented == {0, INTERRUPTED} | public
    in_help = {int(code) for code in re.findall(r"(\d+) [a-z]", command("serve").epilog)}
    assert documented == in_help


# ---------------------------------------------------------------------- the rest


MODULES = {
    "server": "wdstransport.server",
    "options": "wdstransport.wire.options",
    **{name: f"wdstransport.net.{name}" for name in ("initiation", "server_driver", "serving")},
}


def real_setting(name, where):
    if "ServerParameters" in where:
        return getattr(ServerParameters(), name)
    if "ClientParameters" in where:
        return getattr(ClientParameters(), name)
    if "served_client" in where:
        return {"MAX_DISCONNECTED": MAX_DISCONNECTED}[name]
    if (module := where.strip("`")) in MODULES:
        return getattr(importlib.import_module(MODULES[module]), name)
    function = {
        "TransportServer": wdstransport.TransportServer,
        "RequestLimiter": RequestLimiter,
        "receive": wdstransport.receive,
    }[where.split("`")[1]]
    return inspect.signature(function).parameters[name].default


@pytest.mark.parametrize("row", rows(section(SECURITY, "## Limits and settings")), ids=lambda row: row[0])
def test_the_limits_in_security_are_the_programs_own(row):
    name, value, where, reason = row
    assert float(value) == real_setting(name.strip("`"), where)
    assert reason


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_to_files_and_headings_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_the_example_shows_public_names_only():
    for name in re.findall(r"wdstransport\.([A-Za-z]+)", "".join(examples())):
        assert hasattr(wdstransport, name)


def test_the_changelog_has_the_version_of_the_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.*)"$', project, re.MULTILINE)[1]
    assert version in CHANGELOG
