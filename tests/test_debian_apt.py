"""apt's sources: both forms, and only those that are Debian's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from builder.sources.apt import MAIN, SECURITY, mirrors, read_sources

KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"
BASE = "http://mirror.example.invalid/debian"


def machine(root: Path, files: Mapping[str, str]) -> Path:
    (root / KEYRING).parent.mkdir(parents=True)
    (root / KEYRING).write_bytes(b"")
    for name, text in files.items():
        path = root / "etc/apt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_one_line_form(tmp_path: Path) -> None:
    text = (
        "# a comment\n"
        f"deb [arch=amd64 signed-by=/{KEYRING}] {BASE}/ bookworm main contrib # of the installer\n"
        f"deb-src {BASE} bookworm main\n"
        "deb https://security.example.invalid/debian-security bookworm-security main\n"
        "deb cdrom:[Debian 12]/ bookworm main\n"
        "nonsense\n"
    )
    first, second = read_sources(machine(tmp_path, {"sources.list": text}))
    assert (first.uris, first.suites, first.components) == ((BASE,), ("bookworm",), ("main", "contrib"))
    assert first.keyrings == second.keyrings == (tmp_path / KEYRING,)
    assert second.uris == ("https://security.example.invalid/debian-security",)


def test_deb822_form(tmp_path: Path) -> None:
    text = (
        "# a comment\n"
        "Types: deb deb-src\n"
        f"URIs: {BASE}\n"
        " http://second.example.invalid/debian/\n"
        "Suites: trixie trixie-updates\n"
        "# in between\n"
        "Components: main\n"
        f"Signed-By: /{KEYRING}\n"
        "\n"
        "Enabled: no\n"
        "Types: deb\n"
        "URIs: http://off.example.invalid/debian\n"
        "Suites: trixie\n"
        "Components: main\n"
    )
    (source,) = read_sources(machine(tmp_path, {"sources.list.d/debian.sources": text}))
    assert source.uris == (BASE, "http://second.example.invalid/debian")
    assert source.suites == ("trixie", "trixie-updates")


@pytest.mark.parametrize(
    "line",
    [
        "deb https://other.example.invalid/linux/debian bookworm stable",
        "deb [signed-by=/etc/apt/keyrings/other.gpg] https://other.example.invalid bookworm main",
        "deb https://other.example.invalid/node_20.x nodistro main",
        "deb https://other.example.invalid/apt bookworm-pgdg main",
        "deb https://other.example.invalid/apt ./",
        "deb ftp://other.example.invalid/debian bookworm main",
    ],
)
def test_other_archives_do_not_count(tmp_path: Path, line: str) -> None:
    assert read_sources(machine(tmp_path, {"sources.list.d/other.list": line + "\n"})) == ()


def test_a_key_inside_a_source_is_not_debians(tmp_path: Path) -> None:
    text = (
        f"Types: deb\nURIs: {BASE}\nSuites: bookworm\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEAAAA\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    assert read_sources(machine(tmp_path, {"sources.list.d/own.sources": text})) == ()


def test_a_file_of_mirrors(tmp_path: Path) -> None:
    files = {
        "mirrors/debian.list": f"{BASE}\tpriority:1\nhttp://second.example.invalid/debian\n",
        "sources.list": "deb mirror+file:/etc/apt/mirrors/debian.list bookworm main\n",
    }
    (source,) = read_sources(machine(tmp_path, files))
    assert source.uris == (BASE, "http://second.example.invalid/debian")


def test_files_that_apt_does_not_read(tmp_path: Path) -> None:
    line = f"deb {BASE} bookworm main\n"
    root = machine(tmp_path, {"sources.list.d/a.list.disabled": line, "sources.list.d/b.save": line})
    (root / "etc/apt/sources.list").mkdir()
    (root / "etc/apt/sources.list.d/c.list").write_bytes(b"\xff\xfe")
    assert read_sources(root) == ()


def test_no_apt_at_all(tmp_path: Path) -> None:
    assert read_sources(tmp_path) == ()
    assert mirrors(tmp_path) == {}


def test_mirrors_by_origin(tmp_path: Path) -> None:
    text = (
        f"deb {BASE}-old bullseye main\n"
        f"deb {BASE} bookworm main\n"
        "deb http://security.example.invalid/debian-security bookworm-security main\n"
    )
    found = mirrors(machine(tmp_path, {"sources.list": text}), suite="bookworm")
    assert found[MAIN].uris == (BASE, f"{BASE}-old")
    assert found[SECURITY].uris == ("http://security.example.invalid/debian-security",)
    assert found[MAIN].urls("pool/x.deb")[0] == f"{BASE}/pool/x.deb"


def test_configuration_comes_first(tmp_path: Path) -> None:
    root = machine(tmp_path, {"sources.list": f"deb {BASE} bookworm main\n"})
    found = mirrors(root, {MAIN: ["http://own.example.invalid/debian/"], SECURITY: []}, keyrings=[tmp_path / "own.gpg"])
    assert found[MAIN].uris == ("http://own.example.invalid/debian",)
    assert found[MAIN].keyrings == (tmp_path / "own.gpg",)
    assert found[SECURITY].uris == ()


def test_without_a_keyring_package_the_trusted_keys_of_debian_count(tmp_path: Path) -> None:
    trusted = tmp_path / "etc/apt/trusted.gpg.d"
    trusted.mkdir(parents=True)
    for name in ("debian-archive-bookworm-stable.asc", "other.gpg"):
        (trusted / name).write_bytes(b"")
    (tmp_path / "etc/apt/sources.list").write_text(f"deb {BASE} bookworm main\n")
    assert mirrors(tmp_path)[MAIN].keyrings == (trusted / "debian-archive-bookworm-stable.asc",)
