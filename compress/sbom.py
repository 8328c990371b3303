"""What the models are and what made them, for those who take them further: a CycloneDX 1.5 list and checksums.

    write_sbom(Path("out/m2jlnet.cdx.json"), "m2jlnet", [Path("out/m2jlnet-fp32.onnx"), Path("out/m2jlnet-int8.onnx")])
    write_checksums(Path("out/SHA256SUMS"), [...])           # cd out && sha256sum -c SHA256SUMS

Software components are what ``m2jlnet[compress]`` requires, and what that requires, as installed: not what this process
has imported, for a run that was resumed imports less and must end with the same list.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runtime.model import read_model
from train.checkpoint import write_text
from train.files import sha256_of


def write_sbom(path: Path, name: str, models: Sequence[Path]) -> None:
    """Write the list of components: models by their SHA-256, and packages with their versions.

    Raises:
        runtime.errors.ModelError: a model cannot be read.
    """
    components = [*map(_model, models), *_packages()]
    # A number that follows from the content: the same models made with the same packages are the same list.
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components, sort_keys=True))
    fields = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": serial.urn,
        "version": 1,
        "metadata": {"component": {"type": "machine-learning-model", "bom-ref": name, "name": name}},
        "components": components,
    }
    write_text(path, json.dumps(fields, indent=1) + "\n")


def write_checksums(path: Path, files: Sequence[Path]) -> None:
    """Write the SHA-256 of files in the same folder, as `sha256sum` reads them."""
    write_text(path, "".join(f"{sha256_of(file)}  {file.name}\n" for file in files))


def _model(path: Path) -> dict[str, Any]:
    file, spec = read_model(path)
    properties = {"precision": spec.precision, "trained_on": spec.trained_on, **spec.provenance}
    return {
        "type": "file",
        "bom-ref": path.name,
        "name": path.name,
        "mime-type": "application/octet-stream",
        "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        "properties": [{"name": f"m2jl:{key}", "value": value} for key, value in properties.items()],
    }


def _packages() -> list[dict[str, Any]]:
    packages = []
    for name, version in sorted(_required("m2jlnet[compress]").items()):
        purl = f"pkg:pypi/{name}@{version}"
        packages.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return packages


def _required(requirement: str) -> dict[str, str]:
    """What is installed of a requirement and, recursively, of its own: versions by names."""
    versions: dict[str, str] = {}
    followed: set[tuple[str, str]] = set()
    todo = [Requirement(requirement)]
    while todo:
        wanted = todo.pop()
        # The form of a name in a package URL is that of the index: lower case, with hyphens.
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {extra for there, extra in followed if there == name}:
            followed.add((name, extra))
            try:
                found = distribution(name)
            except PackageNotFoundError:
                continue
            versions[name] = found.version
            own = map(Requirement, found.requires or ())
            todo += [each for each in own if each.marker is None or each.marker.evaluate({"extra": extra})]
    return versions
