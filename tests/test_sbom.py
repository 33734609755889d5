"""SBOMs and provenance: valid for the tools of their makers, complete, and always the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import judges
import papers
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from license_expression import get_spdx_licensing
from packageurl import PackageURL
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
from wheelmaker import Wheel

from builder.errors import HostileInputError
from builder.lock import Lock, LockedDeb, LockedFile, LockedModel, LockedModelFile, LockedWheel
from builder.sbom import cyclonedx, inventory, licences, provenance, spdx
from builder.sbom.inventory import Inventory
from builder.sbom.licences import Licence, Told
from builder.store import Store

NUMPY, TORCH, TYPING = (item.file.sha256 for item in papers.WHEELS)
TOLD = {
    NUMPY: Licence("BSD-3-Clause AND 0BSD AND Apache-2.0 WITH LLVM-exception"),
    TORCH: Licence(None, 'Some Words\nof a licence, with "quotes", <tags> and ü'),
    TYPING: Licence("MIT OR LicenseRef-NVIDIA-Proprietary"),
}


def one(lock: Lock | None = None, told: Mapping[str, Licence] = TOLD) -> Inventory:
    lock = lock or papers.lock()
    (found,) = inventory.of(lock, papers.image(lock), told)
    return found


def spdx_problems(data: bytes) -> list[str]:
    parser: Any = JsonLikeDictParser  # its __init__ has no types
    document = parser().parse(json.loads(data))
    return [message.validation_message for message in validate_full_spdx_document(document)]


def cyclonedx_problem(data: bytes) -> str | None:
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode())
    return str(error) if error else None


MODELS = tuple(
    LockedModel(
        name,
        "pypi://thing==1.0#weights",
        f"sha256:{papers.sha('request')}",
        (LockedModelFile("w.gguf", papers.sha(name), 5),),
        f"sha256:{papers.sha(f'manifest of {name}')}",
        1,
        wheel=papers.wheel("thing", "1.0").file,
        licenses=licenses,
    )
    for name, licenses in (
        ("one", ()),
        ("two", ("Apache-2.0", "MIT OR BSD-3-Clause")),
        ("three", ("Some (words)",)),
        ("a_b-c.d", ("LicenseRef-x",)),
    )
)

ODD: dict[str, Lock] = {
    "models": replace(papers.lock(), models=MODELS),
    "usual": papers.lock(),
    "no files": Lock("demo", f"sha256:{papers.sha('p')}", papers.CREATED, papers.lock().platforms),
    "nothing": papers.lock((), ()),
    "epochs and tildes": papers.lock((papers.deb("ca-certificates", "1:2~rc1+b1-3"),)),
    "upper case": papers.lock(name="Demo_1.x-Y"),
}


@pytest.mark.parametrize("name", ODD)
def test_judges_find_no_fault(name: str) -> None:
    found = one(ODD[name])
    assert spdx_problems(spdx.document(found)) == []
    assert cyclonedx_problem(cyclonedx.document(found)) is None


def test_judges_would_find_a_fault() -> None:
    found = one()
    assert spdx_problems(spdx.document(found).replace(b'"DESCRIBES"', b'"CONTAINS"'))
    assert cyclonedx_problem(cyclonedx.document(found).replace(b'"SHA-256"', b'"SHA-257"'))


def test_every_package_wheel_and_file_is_there_once() -> None:
    lock = papers.lock()
    documents = json.loads(spdx.document(one(lock))), json.loads(cyclonedx.document(one(lock)))
    expected = {(item.name, item.version, item.file.sha256) for item in (*papers.DEBS, *papers.WHEELS)}
    expected |= {(item.to, "", item.sha256) for item in lock.files if item.sha256}
    expected |= {(item.to, "", item.sha256) for item in lock.templates}
    image, *packages = documents[0]["packages"]
    assert image["primaryPackagePurpose"] == "CONTAINER"
    assert sorted(expected) == sorted(
        (item["name"], item.get("versionInfo", ""), item["checksums"][0]["checksumValue"]) for item in packages
    )
    system, *components = documents[1]["components"]
    assert (system["name"], system["version"]) == ("debian", "12")
    assert sorted(expected) == sorted(
        (item["name"], item.get("version", ""), item["hashes"][0]["content"]) for item in components
    )
    contained = {item["relatedSpdxElement"] for item in documents[0]["relationships"] if "CONTAINS" in item.values()}
    assert contained == {item["SPDXID"] for item in packages}
    assert len(documents[1]["dependencies"][0]["dependsOn"]) == len(components) + 1


def test_models_are_what_the_image_depends_on() -> None:
    found = one(ODD["models"])
    document = json.loads(spdx.document(found))
    models = {
        item["SPDXID"]: item for item in document["packages"] if item.get("comment") == "published beside the image"
    }
    assert {item["name"]: item["licenseDeclared"] for item in models.values()} == {
        "one": "NOASSERTION",
        "two": "Apache-2.0 AND (MIT OR BSD-3-Clause)",
        "three": f"LicenseRef-{papers.sha('Some (words)')[:16]}",
        "a_b-c.d": "LicenseRef-x",
    }
    depends = {item["relatedSpdxElement"] for item in document["relationships"] if "DEPENDS_ON" in item.values()}
    assert depends == models.keys()
    assert {item["versionInfo"] for item in models.values()} == {model.manifest for model in MODELS}
    components = json.loads(cyclonedx.document(found))["components"]
    assert {item["name"] for item in components if item["type"] == "machine-learning-model"} == {
        model.name for model in MODELS
    }
    statement = json.loads(provenance.statement(ODD["models"], papers.image(ODD["models"])))
    inputs = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [item for item in inputs if item["name"].startswith("thing-1.0")] == [
        {"name": "thing-1.0-py3-none-any.whl", "digest": {"sha256": papers.wheel("thing", "1.0").file.sha256}}
    ]


@pytest.mark.parametrize("name", ["usual", "models"])
def test_package_urls_are_canonical(name: str) -> None:
    found = one(ODD[name])
    for purl in (found.purl, *(item.purl for item in found.components if item.purl)):
        assert PackageURL.from_string(purl).to_string() == purl
    by_name = {item.name: item.purl for item in found.components}
    assert by_name["libstdc++6"] == (
        "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12&upstream=gcc-12"
    )
    assert by_name["passwd"].startswith("pkg:deb/debian/passwd@1:4.13%2Bdfsg1-1%2Bb1?")
    assert by_name["tzdata"] == "pkg:deb/debian/tzdata@2026b-0%2Bdeb12u1?arch=all&distro=debian-12"
    assert by_name["torch"] == "pkg:pypi/torch@2.15.0%2Bcu130"
    assert found.purl == f"pkg:oci/demo@{found.digest}?arch=amd64"


def test_a_package_from_no_pool_names_no_source() -> None:
    odd = LockedFile("debian", "elsewhere/hello.deb", papers.sha("x"), 1)
    package = LockedDeb("hello", "1", "amd64", odd)
    assert inventory.source(package) == ""
    assert inventory.deb_purl(package, "") == "pkg:deb/debian/hello@1?arch=amd64"


def test_licences_are_told_as_the_metadata_tells_them() -> None:
    packages = {item["name"]: item for item in json.loads(spdx.document(one()))["packages"]}
    assert packages["numpy"]["licenseDeclared"] == TOLD[NUMPY].expression
    assert packages["torch"]["licenseDeclared"].startswith("LicenseRef-")
    assert packages["libc6"]["licenseDeclared"] == "NOASSERTION"
    assert "/usr/share/doc/libc6/copyright" in packages["libc6"]["licenseComments"]
    infos = {item["licenseId"]: item for item in json.loads(spdx.document(one()))["hasExtractedLicensingInfos"]}
    assert infos[packages["torch"]["licenseDeclared"]]["extractedText"] == TOLD[TORCH].text
    assert "LicenseRef-NVIDIA-Proprietary" in infos
    components = {item["name"]: item for item in json.loads(cyclonedx.document(one()))["components"]}
    assert components["numpy"]["licenses"][0]["expression"] == TOLD[NUMPY].expression
    assert components["torch"]["licenses"][0]["license"]["name"] == "Some Words"
    assert components["torch"]["licenses"][0]["license"]["text"]["content"] == TOLD[TORCH].text
    assert "licenses" not in components["libc6"]


def test_each_part_names_the_layer_that_has_it() -> None:
    lock = papers.lock()
    layers = {layer.name: str(layer.blob.digest) for layer in papers.image(lock).images[0].layers}
    components = {item["name"]: item for item in json.loads(cyclonedx.document(one(lock)))["components"]}

    def layer(name: str) -> str:
        properties = {item["name"]: str(item["value"]) for item in components[name]["properties"]}
        return properties["layerwright:layer"]

    assert layer("libc6") == layers["debian bookworm"]
    assert layer("numpy") == layers["3 wheels"]
    assert layer("/app/main.py") == layers["files"]


def test_each_platform_has_documents_of_its_own() -> None:
    lock = papers.lock(platforms=(papers.AMD64, papers.ARM64))
    image = papers.image(lock)
    found = inventory.of(lock, image, TOLD)
    assert [item.platform for item in found] == [papers.AMD64, papers.ARM64]
    assert [item.digest for item in found] == [item.digest for item in image.documents.manifests[:2]]
    for document in (spdx.document, cyclonedx.document):
        assert len({document(item) for item in found}) == 2
    other = inventory.of(lock, image, {})
    spaces = {json.loads(spdx.document(item))["documentNamespace"] for item in (*found, *other)}
    serials = {json.loads(cyclonedx.document(item))["serialNumber"] for item in (*found, *other)}
    assert len(spaces | serials) == 8


def test_the_provenance_is_a_statement_and_a_predicate_for_the_judge() -> None:
    lock = papers.lock(platforms=(papers.AMD64, papers.ARM64))
    image = papers.image(lock)
    document = json.loads(provenance.statement(lock, image))
    message = json_format.ParseDict(document, StatementMessage())
    Statement.copy_from_pb(message).validate()
    predicate: Any = json_format.ParseDict(document["predicate"], Provenance())
    digests = [item["digest"]["sha256"] for item in document["subject"]]
    assert digests == [item.digest.hex for item in (image.documents.top, *image.documents.manifests[:2])]
    found = {item.digest["sha256"]: item for item in predicate.build_definition.resolved_dependencies}
    packages = [item.file.sha256 for item in (*papers.DEBS, *papers.WHEELS)]
    others = [papers.sha(text) for text in ("include", "main", "source", "release")]
    assert set(packages) | set(others) < set(found)
    assert found[TORCH].uri == "pkg:pypi/torch@2.15.0%2Bcu130"
    names = [(item.name, item.digest["sha256"]) for item in predicate.build_definition.resolved_dependencies]
    assert len(set(names)) == len(names)
    assert len(predicate.run_details.byproducts) == 2


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import papers, test_sbom
from builder.oci.artifact import encode
from builder.papers import documents
lock = papers.lock(platforms=(papers.AMD64, papers.ARM64))
for artifact in documents(lock, papers.image(lock), {{"a.yaml": b"x", "../b.yaml": b"y"}}, test_sbom.TOLD):
    print(encode(artifact).manifest.digest)
"""


def test_the_same_bytes_at_another_time_place_and_hash_seed(tmp_path: Path) -> None:
    faketime = str(judges.require("faketime"))
    outcomes = set()
    for seed, prefix, environ in (
        ("0", [], {}),
        ("1", [faketime, "2031-02-03 04:05:06"], {"TZ": "Asia/Kathmandu"}),
        ("4242", [faketime, "1999-12-31 23:59:59"], {"LC_ALL": "tr_TR.UTF-8", "PYTHONUTF8": "0"}),
    ):
        done = subprocess.run(
            [*prefix, sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parent))],
            env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": seed, "HOME": str(tmp_path), **environ},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outcomes.add(done.stdout)
    assert len(outcomes) == 1
    assert len(outcomes.pop().split()) == 3 + 2 * 2 * 2


def test_hundreds_of_packages_take_no_time() -> None:
    lock = papers.lock(
        [papers.deb(f"package-{number}", f"1.{number}") for number in range(500)],
        [papers.wheel(f"wheel-{number}", f"1.{number}") for number in range(200)],
    )
    image = papers.image(lock)
    told = {wheel.file.sha256: Licence("MIT") for platform in lock.platforms for wheel in _wheels(platform)}
    start = time.perf_counter()
    (found,) = inventory.of(lock, image, told)
    data = spdx.document(found), cyclonedx.document(found), provenance.statement(lock, image)
    assert time.perf_counter() - start < 0.5
    assert max(map(len, data)) < 1 << 20


def _wheels(platform: Any) -> Iterable[LockedWheel]:
    found: tuple[LockedWheel, ...] = platform.python.wheels
    return found


# What wheels tell.

DECISIONS = {
    "expression": (Told("mit and apache-2.0", "old words"), "MIT AND Apache-2.0", ""),
    "expression that is none": (Told("BSD or so", "MIT"), "MIT", ""),
    "field that is an expression": (Told(text="Apache-2.0 OR BSD-2-Clause"), "Apache-2.0 OR BSD-2-Clause", ""),
    "field of old habit": (Told(text="The MIT License (MIT)"), "MIT", ""),
    "field over two lines": (Told(text="MIT\n  License"), "MIT", ""),
    "classifier": (Told(classifiers=("License :: OSI Approved :: MIT License",)), "MIT", ""),
    "classifier of many meanings": (
        Told(classifiers=("License :: OSI Approved :: BSD License",)),
        None,
        "OSI Approved :: BSD License",
    ),
    "two classifiers": (
        Told(classifiers=("License :: OSI Approved :: ISC License (ISCL)", "License :: OSI Approved :: MIT License")),
        None,
        "OSI Approved :: ISC License (ISCL); OSI Approved :: MIT License",
    ),
    "words": (Told(text="NVIDIA Proprietary Software"), None, "NVIDIA Proprietary Software"),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_what_is_made_of_what_a_wheel_tells(name: str) -> None:
    told, expression, text = DECISIONS[name]
    assert licences.decide(told) == Licence(expression, text)
    if expression:
        assert get_spdx_licensing().validate(expression).errors == []


def test_nothing_told_is_no_licence() -> None:
    assert licences.decide(Told()) is None


def test_metadata_is_read() -> None:
    text = (
        b"Metadata-Version: 2.4\nName: x\nVersion: 1\nLicense: UNKNOWN\nLicense-Expression: MIT\n"
        b"Classifier: Topic :: X\nClassifier: License :: OSI Approved\nClassifier: License :: OSI Approved\n\n# License: GPL\n"
    )
    assert licences.parse(text) == Told("MIT", "", ("License :: OSI Approved",))


@pytest.mark.parametrize("data", [b"", b"\0\xff\xfe", b"License: \xff\xfe\n", b": :\n\n", b"License\n" * 9])
def test_metadata_that_is_none_tells_nothing(data: bytes) -> None:
    assert licences.parse(data).expression == ""


def test_what_is_told_is_fit_for_a_terminal() -> None:
    assert licences.parse(b"License: a\x1b[31mb\x07c\n").text == "a[31mbc"
    assert len(licences.parse(b"License: " + b"x" * (1 << 20)).text) == 64 << 10


def licensed(store: Store, name: str, metadata: bytes) -> LockedWheel:
    """A wheel in the store whose METADATA says that."""
    stem = f"{name}-1.0"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    data = Wheel(stem, {f"{name}/__init__.py": b"", f"{stem}.dist-info/METADATA": head + metadata}).bytes()
    digest = store.put(data)
    return LockedWheel(name, "1.0", LockedFile("pypi", f"{stem}-py3-none-any.whl", digest.hex, len(data)))


def nothing(files: Iterable[LockedFile]) -> None:
    assert list(files) == []


def test_wheels_are_read_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wheels = [
        licensed(store, "alpha", b"License-Expression: MIT\n"),
        licensed(store, "beta", b"License: Words of mine\n"),
        licensed(store, "gamma", b""),
    ]
    lock = papers.lock(wheels=wheels)
    expected = {wheels[0].file.sha256: Licence("MIT"), wheels[1].file.sha256: Licence(None, "Words of mine")}
    assert licences.of(lock, store, nothing) == expected
    for wheel in wheels:
        store.discard(wheel.file.digest)
    assert licences.of(lock, Store(tmp_path / "store"), nothing) == expected


def test_a_wheel_that_was_never_read_is_fetched(tmp_path: Path) -> None:
    other, store = Store(tmp_path / "other"), Store(tmp_path / "store")
    wheel = licensed(other, "alpha", b"License: ISC\n")

    def ensure(files: Iterable[LockedFile]) -> None:
        for file in files:
            store.put(other.read(file.digest))

    lock = papers.lock(wheels=[wheel], platforms=(papers.AMD64, papers.ARM64))
    assert licences.of(lock, store, ensure) == {wheel.file.sha256: Licence("ISC")}
    assert store.has(wheel.file.digest)


def test_a_damaged_record_is_read_anew(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wheel = licensed(store, "alpha", b"License: ISC\n")
    store.put_record("licence", wheel.file.sha256, {"expression": 3})
    assert licences.of(papers.lock(wheels=[wheel]), store, nothing) == {wheel.file.sha256: Licence("ISC")}


def test_a_wheel_that_is_none_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = store.put(b"no zip")
    wheel = LockedWheel("alpha", "1.0", LockedFile("pypi", "alpha-1.0-py3-none-any.whl", digest.hex, 6))
    with pytest.raises(HostileInputError, match=r"alpha-1\.0"):
        licences.of(papers.lock(wheels=[wheel]), store, nothing)
