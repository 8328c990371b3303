"""Who may import whom, and what a device never has to load."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from m2jl import COMMANDS

PACKAGES = ("firmware_bridge", "runtime", "train", "compress")
HEAVY = {"torch", "onnx", "onnxscript", "wfdb", "matplotlib", "pandas"}
# Package -> the packages of this project that it must not import, at any depth of its code.
FORBIDDEN = {
    "firmware_bridge": {"runtime", "train", "compress"},
    "runtime": {"train", "compress"},
    "train": {"compress"},
    "compress": set(),
}


def modules_of(root: Path, package: str) -> list[str]:
    files = (root / package).rglob("*.py")
    return sorted(".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files)


def top_level_names(node: ast.AST) -> Iterator[str]:
    """Top-level packages that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module.partition(".")[0]


def loaded_by(root: Path, modules: list[str]) -> set[str]:
    """Top-level packages in memory after the modules were imported in a fresh interpreter."""
    code = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in result.stdout.split()}


@pytest.mark.parametrize("package", ["firmware_bridge", "runtime"])
def test_what_runs_on_a_device_loads_nothing_heavy(root: Path, package: str) -> None:
    modules = modules_of(root, package)
    assert len(modules) > 5
    loaded = loaded_by(root, modules)
    assert package in loaded
    assert not HEAVY & loaded
    assert not FORBIDDEN[package] & loaded


def test_the_command_and_all_its_modules_load_nothing_heavy(root: Path) -> None:
    loaded = loaded_by(root, ["m2jl", *sorted(set(COMMANDS.values()))])
    assert not (HEAVY | {"scipy", "onnxruntime", "pydantic", "rich"}) & loaded


def test_every_command_is_in_the_module_that_the_table_names() -> None:
    import importlib

    import typer

    for name, module in COMMANDS.items():
        group = typer.main.get_group(importlib.import_module(module).app)
        assert name in group.commands


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(root: Path, package: str) -> None:
    """Read from the source, so that an import within a function counts too."""
    offenders = []
    for file in sorted((root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            wrong = set(top_level_names(node)) & FORBIDDEN[package]
            offenders += [f"{file.relative_to(root)}:{getattr(node, 'lineno', 0)} imports {name}" for name in wrong]
    assert offenders == []


@pytest.mark.parametrize("package", ["firmware_bridge", "runtime"])
def test_heavy_packages_are_imported_within_functions_only(root: Path, package: str) -> None:
    offenders = []
    for file in sorted((root / package).rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if HEAVY & set(top_level_names(node)):
                offenders.append(f"{file.relative_to(root)}:{node.lineno}")
    assert offenders == []


@pytest.mark.parametrize("package", PACKAGES)
def test_tests_mirror_the_packages(root: Path, package: str) -> None:
    assert (root / "tests" / package).is_dir()


@pytest.mark.parametrize("module", ["runtime.backend", "compress.quantize"])
def test_onnx_runtime_does_not_report_home(root: Path, tmp_path: Path, module: str) -> None:
    """Its wheels keep a device id and a queue of events in the user's cache unless told not to before the import."""
    code = (
        f"import {module}\nfrom runtime.model import Model, find_model\n"
        "Model.load(find_model('m2jlnet-ptbxl-super-int8')).warm_up()"
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name.lower()]
