"""An inventory as CycloneDX 1.6 in JSON (https://cyclonedx.org/docs/1.6/json). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from builder.sbom.inventory import TOOL, Component, Inventory, Kind, identified
from builder.sbom.licences import Licence

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_IMAGE = "image"
_TYPES = {
    Kind.IMAGE: "container",
    Kind.DEB: "library",
    Kind.WHEEL: "library",
    Kind.NIX: "library",
    Kind.FILE: "file",
    Kind.MODEL: "machine-learning-model",
}
_MAX_NAME = 200


def document(inventory: Inventory) -> bytes:
    """The canonical bytes of the document."""
    components = [*_system(inventory), *(_component(component) for component in inventory.components)]
    return identified(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "timestamp": inventory.created,
                "lifecycles": [{"phase": "build"}],
                "tools": {"components": [{"type": "application", "name": TOOL}]},
                "component": {
                    "type": "container",
                    "bom-ref": _IMAGE,
                    "name": inventory.name,
                    "version": str(inventory.digest),
                    "purl": inventory.purl,
                    "hashes": _hashes(inventory.digest.hex),
                    "properties": _properties(platform=str(inventory.platform)),
                },
            },
            "components": components,
            "dependencies": [{"ref": _IMAGE, "dependsOn": sorted(str(item["bom-ref"]) for item in components)}],
        },
        "serialNumber",
    )


def _system(inventory: Inventory) -> Iterator[dict[str, object]]:
    """The distribution, by which scanners choose their advisories."""
    if inventory.debian:
        name = inventory.system
        yield {"type": "operating-system", "bom-ref": f"os-{name}", "name": name, "version": inventory.debian}


def _component(component: Component) -> dict[str, object]:
    document: dict[str, object] = {
        "type": _TYPES[component.kind],
        "bom-ref": component.id,
        "name": component.name,
        **({"hashes": _hashes(component.sha256)} if component.sha256 else {}),
        "properties": _properties(
            copyright=component.copyright,
            file="" if component.kind is Kind.FILE else component.file,
            layer=str(component.layer or ""),
            source=component.source,
        ),
    }
    if component.version:
        document["version"] = component.version
    if component.purl:
        document["purl"] = component.purl
    if component.licence:
        document["licenses"] = [_licence(component.licence)]
    return document


def _licence(licence: Licence) -> dict[str, object]:
    if licence.expression:
        return {"expression": licence.expression, "acknowledgement": "declared"}
    name = licence.text.partition("\n")[0][:_MAX_NAME]
    text = {} if name == licence.text else {"text": {"contentType": "text/plain", "content": licence.text}}
    return {"license": {"name": name, "acknowledgement": "declared", **text}}


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _properties(**values: str) -> list[dict[str, str]]:
    return [{"name": f"{TOOL}:{name}", "value": value} for name, value in sorted(values.items()) if value]
