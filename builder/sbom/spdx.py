"""An inventory as SPDX 2.3 in JSON (https://spdx.github.io/spdx-spec/v2.3). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from builder.oci.digest import Digest
from builder.sbom.inventory import TOOL, Component, Inventory, Kind, identified
from builder.sbom.licences import Licence

MEDIA_TYPE = "application/spdx+json"
_DOCUMENT, _IMAGE = "SPDXRef-DOCUMENT", "SPDXRef-image"
_NOTHING = "NOASSERTION"
_PURPOSES = {
    Kind.IMAGE: "CONTAINER",
    Kind.DEB: "INSTALL",
    Kind.WHEEL: "LIBRARY",
    Kind.NIX: "INSTALL",
    Kind.FILE: "FILE",
    Kind.MODEL: "OTHER",
}
_REFERENCE = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")


def document(inventory: Inventory) -> bytes:
    """The canonical bytes of the document."""
    return identified(
        {
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": _DOCUMENT,
            "name": f"{inventory.name} {inventory.platform}",
            "creationInfo": {"created": inventory.created, "creators": [f"Tool: {TOOL}"]},
            "packages": [_image(inventory), *(_package(component) for component in inventory.components)],
            "relationships": [
                _relation(_DOCUMENT, "DESCRIBES", _IMAGE),
                *(_relation(_IMAGE, _bond(component), _id(component)) for component in inventory.components),
            ],
            **_extracted(component.licence for component in inventory.components),
        },
        "documentNamespace",
    )


def _image(inventory: Inventory) -> dict[str, object]:
    return {
        **_common(_IMAGE, inventory.name, inventory.digest.hex, inventory.purl),
        "versionInfo": str(inventory.digest),
        "licenseDeclared": _NOTHING,
        "primaryPackagePurpose": "CONTAINER",
    }


def _package(component: Component) -> dict[str, object]:
    package = _common(_id(component), component.name, component.sha256, component.purl)
    package |= {
        "licenseDeclared": _declared(component.licence),
        "primaryPackagePurpose": _PURPOSES[component.kind],
        "comment": _place(component),
    }
    if component.version:
        package["versionInfo"] = component.version
    if component.kind is not Kind.FILE and component.file:
        package["packageFileName"] = component.file
    if component.source:
        package["sourceInfo"] = f"built from the Debian source package {component.source}"
    if component.copyright:
        package["licenseComments"] = f"told in the image's {component.copyright}"
    return package


def _bond(component: Component) -> str:
    return "DEPENDS_ON" if component.kind is Kind.MODEL else "CONTAINS"


def _place(component: Component) -> str:
    if component.kind is Kind.MODEL:
        return "published beside the image"
    return f"layer {component.layer}" if component.layer else "of the base image"


def _common(id_: str, name: str, sha256: str, purl: str) -> dict[str, object]:
    reference = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}
    return {
        "SPDXID": id_,
        "name": name,
        "downloadLocation": _NOTHING,
        "filesAnalyzed": False,
        **({"checksums": [{"algorithm": "SHA256", "checksumValue": sha256}]} if sha256 else {}),
        "licenseConcluded": _NOTHING,
        "copyrightText": _NOTHING,
        **({"externalRefs": [reference]} if purl else {}),
    }


def _id(component: Component) -> str:
    return f"SPDXRef-{component.id}"


def _relation(one: str, kind: str, other: str) -> dict[str, object]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def _declared(licence: Licence | None) -> str:
    if licence is None:
        return _NOTHING
    return licence.expression or _reference(licence.text)


def _reference(text: str) -> str:
    """The name that a licence told in words has in a document."""
    return f"LicenseRef-{Digest.of(text.encode()).hex[:16]}"


def _extracted(licences: Iterable[Licence | None]) -> dict[str, object]:
    """What every `LicenseRef-` of the document means."""
    found: dict[str, str] = {}
    for licence in filter(None, licences):
        if licence.expression is None:
            found[_reference(licence.text)] = licence.text
        else:
            names = _REFERENCE.findall(licence.expression)
            found |= {name: f"The package names this licence {name}; its archive has the text." for name in names}
    infos = [{"licenseId": name, "extractedText": text} for name, text in sorted(found.items())]
    return {"hasExtractedLicensingInfos": infos} if infos else {}
