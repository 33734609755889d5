"""A Debian archive on the loopback: what gpgv and the hashes vouch for is taken, everything else is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import judges
import pytest
from debarchive import Signer, Suite, listed
from loopback import serving

from builder.client import Client
from builder.lock import LockedRelease
from builder.oci.digest import Digest
from builder.sources.apt import MAIN, SECURITY, Mirror
from builder.sources.debian import Archive, request, resolve
from builder.sources.packages import Index
from builder.sources.release import ArchiveError, verify

NOW = datetime(2024, 1, 3, tzinfo=UTC)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    judges.require("gpgv")
    made = Signer(tmp_path_factory.mktemp("gpg") / "home")
    made.key("archive")
    made.key("second")
    made.key("stranger")
    made.key("expired", expires="1d", at="20200101T000000")
    yield made
    made.close()


@pytest.fixture
def keyring(signer: Signer) -> Path:
    return signer.home / "archive.gpg"


def index(root: Path, keyring: Path, *, name: str = "bookworm", architecture: str = "amd64") -> Index:
    """The index of an archive without updates, as a client of its loopback server sees it."""
    with serving(root) as base:
        mirrors = {MAIN: Mirror(MAIN, (base,), (keyring,)), SECURITY: Mirror(SECURITY, (), (keyring,))}
        return Archive(mirrors, Client().get, NOW).index(name, architecture)


def write(root: Path, signer: Signer, *suites: Suite) -> None:
    for suite in (*suites, Suite("bookworm-updates")):
        suite.write(root, signer.sign(suite.release().encode(), "archive"))


def test_good_archive(tmp_path: Path, signer: Signer, keyring: Path) -> None:
    everywhere = [listed("tool", "2.0-1"), listed("data", architecture="all"), listed("alien", architecture="arm64")]
    suites = {
        "main": [Suite("bookworm", [listed("tool", "1.0-1"), *everywhere[1:]]), Suite("bookworm-updates")],
        "security": [Suite("bookworm-security", everywhere[:1])],
    }
    for part, members in suites.items():
        for suite in members:
            suite.write(tmp_path / part, signer.sign(suite.release().encode(), "archive"))
    with serving(tmp_path) as base:
        mirrors = {
            MAIN: Mirror(MAIN, (f"{base}/nowhere", f"{base}/main"), (keyring,)),
            SECURITY: Mirror(SECURITY, (f"{base}/security",), (keyring,)),
        }
        archive = Archive(mirrors, Client().get, NOW)
        found = archive.index("bookworm", "amd64")
        resolution = resolve("bookworm", "amd64", ["data", "tool"], archive)
    assert [package.version for package in found.candidates("tool")] == ["2.0-1", "1.0-1"]
    assert found.candidates("alien") == ()
    data, tool = resolution.locked.packages
    assert (data.architecture, data.file.origin, tool.version, tool.file.origin) == ("all", MAIN, "2.0-1", SECURITY)
    assert tool.file.path == "pool/main/t/tool/tool_2.0-1_amd64.deb"
    assert resolution.locked.request == request("bookworm", "amd64", ["tool", "data", "tool"])
    signed = (tmp_path / "security/dists/bookworm-security/InRelease").read_bytes()
    assert resolution.locked.releases[2] == LockedRelease(SECURITY, "bookworm-security", Digest.of(signed).hex)


@pytest.mark.parametrize("suffixes", [("",), (".gz",), ("", ".gz", ".xz")])
@pytest.mark.parametrize("by_hash", ["yes", ""])
def test_every_form_of_packages(
    tmp_path: Path, signer: Signer, keyring: Path, suffixes: tuple[str, ...], by_hash: str
) -> None:
    write(tmp_path, signer, Suite("bookworm", [listed("tool")], {"Acquire-By-Hash": by_hash}, suffixes))
    assert "tool" in index(tmp_path, keyring)


def test_packages_of_all_kept_apart(tmp_path: Path, signer: Signer, keyring: Path) -> None:
    main = Suite("bookworm", [listed("tool")], {"No-Support-for-Architecture-all": ""}, ("",))
    apart = Suite("bookworm", [listed("data", architecture="all")], main.fields, ("",), "all")
    release = main.release() + apart.release().partition("SHA256:\n")[2]
    main.write(tmp_path, signer.sign(release.encode(), "archive"))
    binary = tmp_path / "dists/bookworm/main/binary-all"
    binary.mkdir(parents=True)
    (binary / "Packages").write_bytes(apart.packages())
    write(tmp_path, signer)
    found = index(tmp_path, keyring)
    assert "tool" in found
    assert "data" in found


def test_wrong_packages(tmp_path: Path, signer: Signer, keyring: Path) -> None:
    write(tmp_path, signer, Suite("bookworm", [listed("tool")], {"Acquire-By-Hash": ""}))
    (tmp_path / "dists/bookworm/main/binary-amd64/Packages.xz").write_bytes(b"other")
    with pytest.raises(ArchiveError, match=r"Packages\.xz of bookworm \(debian\): its bytes are not those that"):
        index(tmp_path, keyring)


def test_packages_larger_than_said(tmp_path: Path, signer: Signer, keyring: Path) -> None:
    suite = Suite("bookworm", [listed("tool")], {"Acquire-By-Hash": ""})
    size = len(suite.packages())
    release = suite.release().replace(f" {size} main", f" {size - 9} main")
    suite.write(tmp_path, signer.sign(release.encode(), "archive"))
    write(tmp_path, signer)
    with pytest.raises(ArchiveError, match=f"it unpacks to more than the {size - 9} bytes that InRelease names"):
        index(tmp_path, keyring)


def test_a_second_mirror_is_asked_when_the_first_lies(tmp_path: Path, signer: Signer, keyring: Path) -> None:
    write(tmp_path / "good", signer, Suite("bookworm", [listed("tool")]))
    write(tmp_path / "bad", signer, Suite("bookworm", [listed("evil")]))
    forged = Suite("bookworm", [listed("evil")]).release().encode()
    (tmp_path / "bad/dists/bookworm/InRelease").write_bytes(signer.sign(forged, "stranger"))
    with serving(tmp_path) as base:
        mirrors = {MAIN: Mirror(MAIN, (f"{base}/bad", f"{base}/good"), (keyring,)), SECURITY: Mirror(SECURITY, (), ())}
        found = Archive(mirrors, Client().get, NOW).index("bookworm", "amd64")
    assert "tool" in found
    assert "evil" not in found


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"Origin": "Other"}, "its origin is 'Other', not Debian"),
        ({"Origin": ""}, "its origin is 'not given', not Debian"),
        ({"Codename": "trixie"}, "it is the release of 'trixie'"),
        ({"Valid-Until": "Tue, 02 Jan 2024 00:00:00 UTC"}, "it was valid until Tue, 02 Jan 2024"),
        ({"Valid-Until": "soon"}, "Valid-Until is no date: 'soon'"),
        ({"Architectures": "all arm64"}, "has no packages for amd64"),
    ],
)
def test_release_that_is_not_what_it_should_be(
    tmp_path: Path, signer: Signer, keyring: Path, fields: dict[str, str], why: str
) -> None:
    write(tmp_path, signer, Suite("bookworm", [listed("tool")], fields))
    with pytest.raises(ArchiveError, match=why):
        index(tmp_path, keyring)


def test_valid_until_in_the_future_is_good(tmp_path: Path, signer: Signer, keyring: Path) -> None:
    fields = {"Valid-Until": "Wed, 03 Jan 2024 00:00:01 UTC"}
    write(tmp_path, signer, Suite("bookworm", [listed("tool")], fields))
    assert "tool" in index(tmp_path, keyring)


def test_an_origin_that_nobody_configured(keyring: Path) -> None:
    archive = Archive({MAIN: Mirror(MAIN, (), (keyring,))}, Client().get, NOW)
    with pytest.raises(ArchiveError, match="origin 'debian' has no mirror"):
        archive.index("sid", "amd64")
    with pytest.raises(ArchiveError, match="no apt source of this machine is of the origin 'debian'"):
        Archive({}, Client().get, NOW).index("bookworm", "amd64")


def test_security_is_not_missed_silently(tmp_path: Path, signer: Signer, keyring: Path) -> None:
    write(tmp_path, signer, Suite("bookworm", [listed("tool")]))
    with serving(tmp_path) as base:
        archive = Archive({MAIN: Mirror(MAIN, (base,), (keyring,))}, Client().get, NOW)
        with pytest.raises(ArchiveError, match="origin 'debian-security', which suite bookworm-security needs"):
            archive.index("bookworm", "amd64")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (listed("tool", filename="../../etc/passwd"), "Filename or SHA256 is not one"),
        (listed("tool", filename="/pool/x.deb"), "Filename or SHA256 is not one"),
        (listed("tool", SHA256="0"), "Filename or SHA256 is not one"),
        (listed("tool", size="many"), "invalid literal"),
        (listed("tool", depends="a (b"), "not a relation between packages: 'a \\(b'"),
        (listed("tool", "not a version"), "[Ii]nvalid version"),
        ("Package: tool\nVersion: 1\n", "stanza 'Package: tool' has no field Architecture"),
    ],
)
def test_stanzas_that_are_none(tmp_path: Path, signer: Signer, keyring: Path, broken: str, why: str) -> None:
    write(tmp_path, signer, Suite("bookworm", [broken]))
    with pytest.raises(ArchiveError, match=why):
        index(tmp_path, keyring).candidates("tool")


def test_signature_by_one_known_key_of_two(signer: Signer, keyring: Path) -> None:
    signed = signer.sign(b"Origin: Debian\n", "archive", "stranger")
    assert verify(signed, [keyring], "InRelease") == "Origin: Debian\n"


def test_armoured_keyring(tmp_path: Path, signer: Signer, keyring: Path) -> None:
    armoured = tmp_path / "archive.asc"
    armoured.write_bytes(signer.gpg("--armor", "--export", "archive@example.invalid"))
    signed = signer.sign(b"Origin: Debian\n", "archive")
    assert verify(signed, [armoured], "InRelease") == verify(signed, [keyring], "InRelease")


def test_text_around_the_message_is_refused(signer: Signer, keyring: Path) -> None:
    signed = signer.sign(b"Origin: Debian\n", "archive")
    for forged in (b"Origin: Evil\n" + signed, signed + b"Origin: Evil\n", signed + signed, b"Origin: Debian\n", b""):
        with pytest.raises(ArchiveError, match="it is not one clear-signed message"):
            verify(forged, [keyring], "InRelease")


def test_changed_text_is_refused(signer: Signer, keyring: Path) -> None:
    signed = signer.sign(b"Origin: Debian\n", "archive").replace(b"Debian", b"debian")
    with pytest.raises(ArchiveError, match="a signature is wrong, the file was changed after it was signed"):
        verify(signed, [keyring], "InRelease of bookworm")


def test_changed_text_is_refused_though_another_signature_is_unknown(signer: Signer, keyring: Path) -> None:
    signed = signer.sign(b"Origin: Debian\n", "archive", "stranger").replace(b"Debian", b"debian")
    with pytest.raises(ArchiveError, match="a signature is wrong"):
        verify(signed, [keyring], "InRelease")


def test_unknown_key_is_refused(signer: Signer, keyring: Path) -> None:
    with pytest.raises(ArchiveError, match="no good signature: the key that signed it is not in the keyring"):
        verify(signer.sign(b"Origin: Debian\n", "stranger"), [keyring], "InRelease")


def test_expired_signature_is_refused(signer: Signer, keyring: Path) -> None:
    with pytest.raises(ArchiveError, match="no good signature: the signature has expired"):
        verify(signer.sign(b"Origin: Debian\n", "archive", expires="1d"), [keyring], "InRelease")


def test_expired_key_is_refused(signer: Signer) -> None:
    signed = signer.sign(b"Origin: Debian\n", "expired", at="20200101T010000")
    with pytest.raises(ArchiveError, match="no good signature: the key that signed it has expired"):
        verify(signed, [signer.home / "expired.gpg"], "InRelease")


def test_damaged_signature_is_refused(signer: Signer, keyring: Path) -> None:
    signed = signer.sign(b"Origin: Debian\n", "archive")
    head, mark, rest = signed.partition(b"-----BEGIN PGP SIGNATURE-----\n\n")
    for body in (base64.b64encode(b"nonsense" * 9) + b"\n", b""):
        forged = head + mark + body + rest[rest.index(b"-----END") :]
        with pytest.raises(ArchiveError):
            verify(forged, [keyring], "InRelease")


def test_no_keyring(signer: Signer, tmp_path: Path) -> None:
    signed = signer.sign(b"Origin: Debian\n", "archive")
    with pytest.raises(ArchiveError, match="there is no keyring to check it"):
        verify(signed, [], "InRelease")
    with pytest.raises(ArchiveError, match=r"nowhere\.gpg: No such file"):
        verify(signed, [tmp_path / "nowhere.gpg"], "InRelease")
