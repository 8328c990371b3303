"""What the models are and what made them, for those who take them further: a CycloneDX 1.5 list and checksums.

    write_sbom(Path("out/m2jlnet.cdx.json"), "m2jlnet", [Path("out/m2jlnet-fp32.onnx"), Path("out/m2jlnet-int8.onnx")])
    write_checksums(Path("out/SHA256SUMS"), [...])           # cd out && sha256sum -c SHA256SUMS

Software components are the installed distributions of which this process has imported a module.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from runtime.model import read_model
from runtime.session import write_atomically


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
    write_atomically(path, json.dumps(fields, indent=1) + "\n")


def write_checksums(path: Path, files: Sequence[Path]) -> None:
    """Write the SHA-256 of files in the same folder, as `sha256sum` reads them."""
    write_atomically(path, "".join(f"{_sha256(file)}  {file.name}\n" for file in files))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    imported = {name.partition(".")[0] for name in sys.modules}
    distributions = {
        distribution
        for module, names in packages_distributions().items()
        if module in imported
        for distribution in names
    }
    packages = []
    for name in sorted(distributions, key=str.lower):
        # The form of a name in a package URL is that of the index: lower case, with hyphens.
        purl = f"pkg:pypi/{re.sub('[-_.]+', '-', name).lower()}@{version(name)}"
        packages.append({"type": "library", "bom-ref": purl, "name": name, "version": version(name), "purl": purl})
    return packages
