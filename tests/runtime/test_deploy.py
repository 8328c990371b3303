"""What an operator copies: the unit, its options, the udev rules, and every command in the pages that explain them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import m2jl as command
from firmware_bridge.link import _split

PAGES = ("gateway.md", "jetson.md", "raspberry-pi.md")
COMMAND = re.compile(r"(?:^|\s|&& )(?:/opt/m2jl/bin/)?m2jl ([a-z]+)([^#&|]*)")


@pytest.fixture(scope="module")
def deploy(root: Path) -> Path:
    return root / "runtime" / "deploy"


def options_of(name: str) -> set[str]:
    group = typer.main.get_command(command.app)
    assert isinstance(group, command.LazyGroup)
    found = group.get_command(typer.Context(group), name)
    assert found is not None, f"there is no m2jl {name}"
    return {option for parameter in found.params for option in parameter.opts}


def check(name: str, arguments: str) -> None:
    """The sub-command and each of its options are there."""
    known = options_of(name)
    for word in shlex.split(arguments):
        if word.startswith("--"):
            assert word in known, f"m2jl {name} has no {word}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_the_pages_is_there(root: Path, page: str) -> None:
    blocks = [line for line in (root / "docs" / page).read_text().splitlines() if line.startswith("    ")]
    commands = [match.groups() for line in blocks for match in COMMAND.finditer(line)]
    assert len(commands) >= 3
    for name, arguments in commands:
        check(name, arguments)


@pytest.mark.parametrize("page", [*PAGES, "alerts.md", "model_card.md"])
def test_every_link_in_the_pages_leads_somewhere(root: Path, page: str) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", (root / "docs" / page).read_text()):
        linked = root / "docs" / (target or page)
        assert linked.is_file(), target
        titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
        if anchor:
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_what_is_installed_is_the_wheel_of_this_version(root: Path, page: str) -> None:
    """There is no m2jlnet on PyPI."""
    text = (root / "docs" / page).read_text()
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    (words,) = re.findall(r"pip install (.*m2jlnet.*)", text)
    options, _, wheel = words.partition("'")
    assert options == "-c constraints.txt "
    assert wheel.startswith(f"m2jlnet-{version}-py3-none-any.whl[mqtt]'")
    assert page == "gateway.md" or "(gateway.md#install)" in text


def test_the_unit_names_the_page_that_installs_it(root: Path, deploy: Path) -> None:
    (page,) = re.findall(r"docs/[\w-]+\.md", (deploy / "m2jl.service").read_text())
    assert "m2jl.service /etc/systemd/system/" in (root / page).read_text()


def test_the_service_starts_what_is_there(deploy: Path) -> None:
    unit = (deploy / "m2jl.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert start == "/opt/m2jl/bin/m2jl run $M2JL_OPTIONS"
    environment = (deploy / "m2jl.env").read_text()
    (options,) = re.findall(r"^M2JL_OPTIONS=(.*)$", environment, re.MULTILINE)
    check("run", options)
    (example,) = re.findall(r"^# .*: (--model .*)$", environment, re.MULTILINE)
    check("run", example)
    words = options.split()  # as systemd does it
    sources = [words[at + 1] for at, word in enumerate(words) if word == "--source"]
    assert sources
    for source in sources:
        _split(source)
    # A state folder that the unit does not make would not be writable.
    assert "StateDirectory=m2jl" in unit
    assert "sqlite:/var/lib/m2jl/" in options


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(deploy: Path, tmp_path: Path) -> None:
    # The command has to be there for systemd-analyze: ours stands in for the one in /opt.
    unit = tmp_path / "m2jl.service"
    unit.write_text((deploy / "m2jl.service").read_text().replace("/opt/m2jl/bin/m2jl", sys.executable))
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_rules_are_pairs_of_a_key_and_a_value(deploy: Path) -> None:
    """The grammar of udev's rules, of those keys that are in use here; the example counts, too."""
    pair = re.compile(r'(ACTION|SUBSYSTEM|DRIVER|ATTR\{\w+\}|ATTRS\{\w+\}|ENV\{\w+\}|SYMLINK)(==|!=|=|\+=)"[^"]+"')
    rules = re.findall(r"^(?:# )?(ACTION.*)$", (deploy / "70-m2jl.rules").read_text(), re.MULTILINE)
    assert len(rules) == 3
    for rule in rules:
        pairs = [pair.fullmatch(part) for part in rule.split(", ")]
        assert all(pairs), rule
        assert any(match is not None and match[2] in ("=", "+=") for match in pairs), "it does nothing"
