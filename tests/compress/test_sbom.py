"""The list of components and the checksums: every model and every package that had a part in it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from compress.sbom import write_checksums, write_sbom
from runtime.errors import ModelError


@pytest.fixture
def fields(tmp_path: Path, fp32: Path, int8: Path) -> dict[str, Any]:
    write_sbom(tmp_path / "x.cdx.json", "x", [fp32, int8])
    listed: dict[str, Any] = json.loads((tmp_path / "x.cdx.json").read_text())
    return listed


def test_the_list_is_cyclonedx(fields: dict[str, Any]) -> None:
    assert (fields["bomFormat"], fields["specVersion"], fields["version"]) == ("CycloneDX", "1.5", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", fields["serialNumber"])
    references = [component["bom-ref"] for component in fields["components"]]
    assert len(set(references)) == len(references)
    assert {component["type"] for component in fields["components"]} == {"file", "library"}


def test_models_by_their_sha256(fields: dict[str, Any], fp32: Path, int8: Path) -> None:
    files = [component for component in fields["components"] if component["type"] == "file"]
    assert [file["name"] for file in files] == ["fp32.onnx", "int8.onnx"]
    for file, path in zip(files, (fp32, int8), strict=True):
        assert file["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}]
        properties = {item["name"]: item["value"] for item in file["properties"]}
        assert properties["m2jl:precision"] == path.stem
    assert "m2jl:quantized_from_sha256" in properties


def test_packages_with_their_versions(fields: dict[str, Any]) -> None:
    found = {c["name"]: (c["version"], c["purl"]) for c in fields["components"] if c["type"] == "library"}
    for name in ("torch", "onnx", "onnxruntime", "numpy", "pydantic", "safetensors", "mpmath"):
        assert found[name] == (version(name), f"pkg:pypi/{name}@{version(name)}")
    assert "m2jlnet" in found
    assert "ruff" not in found  # is installed, and has no part in a model
    assert "pytest" not in found  # is imported as well


def test_the_same_models_give_the_same_list(fields: dict[str, Any], fp32: Path, int8: Path, tmp_path: Path) -> None:
    write_sbom(tmp_path / "y.cdx.json", "x", [fp32, int8])
    assert (tmp_path / "y.cdx.json").read_bytes() == (tmp_path / "x.cdx.json").read_bytes()
    write_sbom(tmp_path / "y.cdx.json", "x", [fp32])
    assert json.loads((tmp_path / "y.cdx.json").read_text())["serialNumber"] != fields["serialNumber"]


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(ModelError):
        write_sbom(tmp_path / "x.cdx.json", "x", [tmp_path / "x.onnx"])
    assert not (tmp_path / "x.cdx.json").exists()


def test_checksums_are_as_sha256sum_reads_them(tmp_path: Path) -> None:
    files = [tmp_path / "a file.onnx", tmp_path / "b.onnx"]
    for file in files:
        file.write_bytes(file.name.encode())
    write_checksums(tmp_path / "SHA256SUMS", files)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    files[0].write_bytes(b"damaged")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1
