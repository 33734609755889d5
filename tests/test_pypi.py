"""Requirements become the wheels of the target, whatever machine resolves them: judged by uv and a loopback index."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import uv
from hypothesis import given
from hypothesis import strategies as st
from indexserver import IndexServer, index_server, sdist, wheel
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name

from builder import process
from builder.client import Client
from builder.errors import BuilderError, ToolError
from builder.lock import LockedFile, LockedWheel
from builder.oci.spec import Platform
from builder.profile.forms import PLAIN_REQUIREMENT
from builder.sources.indexes import SETTING, configured
from builder.sources.pypi import resolve
from builder.sources.requirements import Requirements, read_list, request
from builder.sources.simple import Catalogue
from builder.sources.target import Target

AMD64 = Target("3.11", "3.11.2", Platform("linux", "amd64"), (2, 36))
ARM64 = Target("3.11", "3.11.2", Platform("linux", "arm64"), (2, 36))
TRIXIE = Target("3.13", "3.13.5", Platform("linux", "amd64"), (2, 41))


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with index_server() as server:
        yield server


@dataclass
class Resolver:
    """Resolves against one index with a cache and home of its own."""

    index: IndexServer
    tmp: Path
    environ: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[list[str], Mapping[str, str]]] = field(default_factory=list)

    def catalogue(self, *, measured: bool = False) -> Catalogue:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.tmp / "home"),
            "UV_CACHE_DIR": str(self.tmp / "uv"),
            SETTING: self.index.url,
            "NO_PROXY": "127.0.0.1",
        } | self.environ
        return Catalogue(lambda: configured(environ), Client().get, measure=_measure if measured else None)

    def __call__(
        self,
        *lines: str,
        file: Path | None = None,
        target: Target = AMD64,
        previous: tuple[LockedWheel, ...] = (),
        upgrade: bool | frozenset[str] = False,
        measured: bool = False,
    ) -> tuple[LockedWheel, ...]:
        return resolve(
            Requirements(lines, file),
            target,
            catalogue=self.catalogue(measured=measured),
            previous=previous,
            upgrade=upgrade,
            run=self._run,
        )

    def _run(self, argv: list[str], **options: object) -> bytes:
        environment = options["env"]
        assert isinstance(environment, dict)
        self.calls.append((argv, environment))
        return process.run(argv, **options)  # type: ignore[arg-type]


def _measure(url: str) -> int | None:
    with Client().open(url) as answer:
        return int(answer.headers["content-length"])


@pytest.fixture
def resolver(index: IndexServer, tmp_path: Path) -> Resolver:
    return Resolver(index, tmp_path)


def versions(wheels: tuple[LockedWheel, ...]) -> dict[str, str]:
    return {wheel.name: wheel.version for wheel in wheels}


def test_a_wheel_is_locked_by_name_sha256_and_size(index: IndexServer, resolver: Resolver) -> None:
    helper = index.publish(wheel("helper", "1.5"))
    app = index.publish(wheel("My.App", "2.0", requires=["helper>=1"]))
    assert resolver("my-app") == (
        LockedWheel("helper", "1.5", LockedFile("pypi", helper.name, helper.sha256, len(helper.data))),
        LockedWheel("my-app", "2.0", LockedFile("pypi", app.name, app.sha256, len(app.data))),
    )


def test_nothing_asked_for_needs_no_index(resolver: Resolver) -> None:
    assert resolver() == ()
    assert resolver.calls == []


def test_versions_are_kept_until_upgraded(index: IndexServer, resolver: Resolver) -> None:
    index.publish(wheel("one", "1.0"), wheel("two", "1.0"))
    first = resolver("one", "two")
    index.publish(wheel("one", "1.1"), wheel("two", "1.1"), wheel("three", "3.0"))
    assert resolver("one", "two", previous=first) == first
    assert versions(resolver("one", "two", "three", previous=first)) == {"one": "1.0", "two": "1.0", "three": "3.0"}
    assert versions(resolver("one", "two", previous=first, upgrade=frozenset({"Two"}))) == {"one": "1.0", "two": "1.1"}
    assert versions(resolver("one", "two", previous=first, upgrade=True)) == {"one": "1.1", "two": "1.1"}
    assert versions(resolver("one>1", "two", previous=first)) == {"one": "1.1", "two": "1.0"}


def test_the_file_of_a_kept_version_is_kept(index: IndexServer, resolver: Resolver) -> None:
    plain = index.publish(wheel("fast", "1.0"))
    first = resolver("fast")
    native = index.publish(wheel("fast", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64"))
    assert resolver("fast", previous=first)[0].file.path == plain.name
    assert resolver("fast", previous=first, upgrade=frozenset({"fast"}))[0].file.path == native.name
    assert resolver("fast")[0].file.path == native.name


def test_the_highest_build_of_the_best_tag_is_taken(index: IndexServer, resolver: Resolver) -> None:
    index.publish(wheel("built", "1.0"), wheel("built", "1.0", build="10"), wheel("built", "1.0", build="9"))
    assert resolver("built")[0].file.path == "built-1.0-10-py3-none-any.whl"


@pytest.mark.parametrize(("target", "machine"), [(AMD64, "x86_64"), (ARM64, "aarch64")], ids=["amd64", "arm64"])
def test_wheels_are_for_the_target_and_not_for_this_machine(
    index: IndexServer, resolver: Resolver, target: Target, machine: str
) -> None:
    for name in ("x86_64", "aarch64", "ppc64le"):
        index.publish(wheel("native", "1.0", tag=f"cp311-cp311-manylinux_2_28_{name}"))
        index.publish(wheel("native", "1.0", tag=f"cp313-cp313-manylinux_2_28_{name}"))
    assert [w.file.path for w in resolver("native", target=target)] == [
        f"native-1.0-cp311-cp311-manylinux_2_28_{machine}.whl"
    ]


def test_a_newer_c_library_than_the_image_has_is_not_asked_for(index: IndexServer, resolver: Resolver) -> None:
    index.publish(wheel("native", "2.0", tag="cp311-cp311-manylinux_2_39_x86_64"))
    index.publish(wheel("native", "1.0", tag="cp311-cp311-manylinux_2_36_x86_64"))
    index.publish(wheel("native", "2.0", tag="cp313-cp313-manylinux_2_39_x86_64"))
    assert versions(resolver("native")) == {"native": "1.0"}
    assert versions(resolver("native", target=TRIXIE)) == {"native": "2.0"}


def test_a_python_that_this_machine_lacks(index: IndexServer, resolver: Resolver) -> None:
    target = Target("3.12", "3.12.9", Platform("linux", "amd64"), (2, 36))
    index.publish(wheel("native", "1.0", tag="cp312-cp312-manylinux_2_28_x86_64", python=">=3.12.5"))
    resolver.environ["PATH"] = "/nonexistent"
    assert versions(resolver("native", target=target)) == {"native": "1.0"}


def test_markers_are_of_the_target(index: IndexServer, resolver: Resolver) -> None:
    for name in ("arm", "intel", "old", "exact", "linux", "kernel", "dep"):
        index.publish(wheel(name, "1.0"))
    index.publish(wheel("app", "1.0", requires=['dep; platform_machine == "aarch64"']))
    lines = (
        'arm; platform_machine == "aarch64"',
        'intel; platform_machine == "x86_64"',
        'old; python_version < "3.11"',
        'exact; python_full_version == "3.11.2"',
        'linux; sys_platform == "linux" and implementation_name == "cpython" and os_name == "posix"',
        'kernel; platform_release != ""',
        "app",
    )
    assert [w.name for w in resolver(*lines)] == ["app", "exact", "intel", "linux"]
    assert [w.name for w in resolver(*lines, target=ARM64)] == ["app", "arm", "dep", "exact", "linux"]


def test_extras(index: IndexServer, resolver: Resolver) -> None:
    index.publish(wheel("helper", "1.0"), wheel("other", "1.0"))
    index.publish(wheel("app", "1.0", extras={"fast": ["helper"], "slow": ["other"]}))
    assert [w.name for w in resolver("app")] == ["app"]
    assert [w.name for w in resolver("app[fast]")] == ["app", "helper"]


def test_yanked_versions_are_not_chosen(index: IndexServer, resolver: Resolver) -> None:
    index.publish(wheel("app", "1.0"))
    index.publish(wheel("app", "2.0"), yanked=True)
    assert versions(resolver("app")) == {"app": "1.0"}


def test_no_wheel_for_the_platform_is_explained(index: IndexServer, resolver: Resolver) -> None:
    index.publish(wheel("native", "1.0", tag="cp311-cp311-win_amd64"))
    with pytest.raises(BuilderError) as caught:
        resolver("native", target=ARM64)
    message = str(caught.value)
    assert "Python 3.11 on linux/arm64 (glibc 2.36)" in message
    assert "native" in message
    assert "win_amd64" in message
    assert "would match: cp311-cp311-manylinux_2_36_aarch64" in message


def test_a_source_distribution_is_no_wheel(index: IndexServer, resolver: Resolver) -> None:
    index.publish(sdist("source-only", "1.0"))
    with pytest.raises(BuilderError, match="source-only"):
        resolver("source-only")


def test_a_conflict_is_explained_by_uv(index: IndexServer, resolver: Resolver) -> None:
    index.publish(wheel("base", "1.0"), wheel("base", "2.0"))
    index.publish(wheel("left", "1.0", requires=["base<2"]), wheel("right", "1.0", requires=["base>=2"]))
    with pytest.raises(
        BuilderError, match=r"(?s)right depend on base>=2 and all versions of left depend on base<2"
    ) as caught:
        resolver("left", "right")
    assert not isinstance(caught.value, ToolError)


def test_a_missing_project_is_named(resolver: Resolver) -> None:
    with pytest.raises(BuilderError, match="no-such-project was not found"):
        resolver("no-such-project")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("app @ file:///tmp/app-1.0-py3-none-any.whl", "app: only packages of an index"),
        ("app @ https://example.invalid/app.whl", "app: only packages of an index"),
        ("git+https://example.invalid/app.git", "only packages of an index"),
        ("https://example.invalid/app.whl", "only packages of an index"),
        ("./app", "only packages of an index"),
        ("/srv/app-1.0-py3-none-any.whl", "only packages of an index"),
        ("app-1.0-py3-none-any.whl", "only packages of an index"),
        ("-e .", "-e: an editable install"),
        ("--editable=./app", "--editable: an editable install"),
        ("--index-url https://example.invalid/simple", "--index-url: indexes come from your own configuration"),
        ("-i https://example.invalid/simple", "-i: indexes come from"),
        ("--extra-index-url=https://example.invalid", "--extra-index-url: indexes come from"),
        ("--find-links ./wheels", "--find-links: indexes come from"),
        ("--trusted-host example.invalid", "--trusted-host: indexes come from"),
        ("--pre", "--pre: this option is not understood"),
        ("-r https://example.invalid/more.txt", "cannot be taken from the network"),
        ("app --config-settings=x=y", "--config-settings: this option is not understood"),
        ("app --hash=md5:00", "needs a sha256 hash"),
        ("app <<2", "'app <<2': "),
        ("-", "-: this option is not understood"),
    ],
)
def test_what_a_requirements_file_may_not_say(tmp_path: Path, resolver: Resolver, line: str, message: str) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(f"# first\nfine==1.0\n{line}\n")
    with pytest.raises(BuilderError) as caught:
        resolver(file=file)
    assert f"{file}:3: " in str(caught.value)
    assert message in str(caught.value)
    assert resolver.calls == []


def test_a_refused_requirement_is_shown_without_its_secret(resolver: Resolver) -> None:
    with pytest.raises(BuilderError) as caught:
        resolver(
            "https://reader:secret@example.invalid/app.whl", "app @@ https://reader:secret@example.invalid/app.whl"
        )
    assert str(caught.value).count("https://***@example.invalid") == 3
    assert "secret" not in str(caught.value)


def test_every_problem_is_told_at_once(tmp_path: Path, resolver: Resolver) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("-e .\napp @ file:///x\n")
    with pytest.raises(BuilderError, match=rf"(?s)'\./x'.*{file}:1: .*{file}:2: "):
        resolver("./x", file=file)


def test_a_requirements_file_with_all_that_it_may_say(index: IndexServer, tmp_path: Path, resolver: Resolver) -> None:
    index.publish(wheel("app", "1.0"), wheel("app", "2.0"), wheel("helper", "1.0"), wheel("helper", "2.0"))
    (tmp_path / "sub").mkdir()
    file = tmp_path / "requirements.txt"
    file.write_bytes(
        b"\xef\xbb\xbf# a comment \\\r\napp \\\r\n  == 1.0 # why\r\n\r\n--only-binary :all:\r\n-r sub/more.txt\r\n"
    )
    (tmp_path / "sub/more.txt").write_text("helper\n-c limits.txt\n-r ../requirements.txt\n")
    (tmp_path / "sub/limits.txt").write_text("helper<2\n")
    assert versions(resolver(file=file)) == {"app": "1.0", "helper": "1.0"}


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not text"])
def test_a_file_that_cannot_be_read(tmp_path: Path, resolver: Resolver, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "requirements.txt").write_bytes(content)
    with pytest.raises(BuilderError, match=r"requirements\.txt: "):
        resolver(file=tmp_path / "requirements.txt")


def test_pinned_hashes_are_kept_to(index: IndexServer, tmp_path: Path, resolver: Resolver) -> None:
    plain = index.publish(wheel("app", "1.0"))
    native = index.publish(wheel("app", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64"))
    file = tmp_path / "requirements.txt"
    file.write_text(f"app==1.0 \\\n    --hash=sha256:{plain.sha256.upper()} \\\n    --hash=sha256:{'1' * 64}\n")
    assert resolver(file=file)[0].file.path == plain.name
    file.write_text(f"app==1.0 --hash=sha256:{plain.sha256} --hash=sha256:{native.sha256}\n")
    assert resolver(file=file)[0].file.path == native.name
    file.write_text(f"app==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BuilderError, match=r"app 1\.0: no wheel of it has a given hash"):
        resolver(file=file)


def test_one_hash_means_a_hash_for_all(index: IndexServer, tmp_path: Path, resolver: Resolver) -> None:
    index.publish(wheel("helper", "1.0"))
    app = index.publish(wheel("app", "1.0", requires=["helper"]))
    file = tmp_path / "requirements.txt"
    file.write_text(f"app==1.0 --hash=sha256:{app.sha256}\n")
    with pytest.raises(BuilderError, match=r"helper 1\.0: has no --hash, but others have"):
        resolver(file=file)
    file.write_text(f"app==1.0 --hash=sha256:{app.sha256}\nhelper\n")
    with pytest.raises(BuilderError, match=r"requirements\.txt:2: needs `==` and a --hash"):
        resolver(file=file)


def pylock(*packages: str, head: str = "") -> str:
    return f'lock-version = "1.0"\ncreated-by = "a test"\n{head}\n' + "\n".join(packages)


def package(name: str, version: str, *files: str, marker: str = "", size: int | None = 7, kind: str = "wheels") -> str:
    size_text = f"size = {size}, " if size is not None else ""
    tables = [
        f'{{ name = "{file}", url = "https://files.invalid/{file}", {size_text}hashes = {{ sha256 = "{"ab" * 32}" }} }}'
        for file in files
    ]
    marker = f"marker = {marker!r}\n" if marker else ""
    wheels = f"wheels = [{', '.join(tables)}]" if kind == "wheels" else f"sdist = {tables[0]}"
    return f'[[packages]]\nname = "{name}"\nversion = "{version}"\n{marker}{wheels}\n'


def test_a_pylock_is_taken_as_it_is(tmp_path: Path, resolver: Resolver) -> None:
    file = tmp_path / "pylock.toml"
    file.write_text(
        pylock(
            package("arm", "1.0", "arm-1.0-py3-none-any.whl", marker='platform_machine == "aarch64"'),
            package(
                "native",
                "1.0+cpu",
                "native-1.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
                "native-1.0+cpu-cp311-cp311-manylinux_2_28_aarch64.whl",
                "native-1.0+cpu-py3-none-any.whl",
            ),
        )
    )
    path = "native-1.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert resolver(file=file) == (LockedWheel("native", "1.0+cpu", LockedFile("pypi", path, "ab" * 32, 7)),)
    assert [w.name for w in resolver(file=file, target=ARM64)] == ["arm", "native"]
    assert resolver.calls == []


def test_every_project_without_a_wheel_is_named_with_its_tags(tmp_path: Path, resolver: Resolver) -> None:
    file = tmp_path / "pylock.toml"
    file.write_text(
        pylock(
            package("mac", "1.0", "mac-1.0-cp311-cp311-macosx_11_0_arm64.whl", "mac-1.0-cp39-abi3-win32.whl"),
            package("source", "2.0", "source-2.0.tar.gz", kind="sdist"),
            '[[packages]]\nname = "folder"\ndirectory = { path = "x", editable = true }\n',
            '[[packages]]\nname = "repo"\nvcs = { type = "git", url = "https://h.invalid/x", commit-id = "1" }\n',
            package("fine", "1.0", "fine-1.0-py3-none-any.whl"),
        )
    )
    with pytest.raises(BuilderError) as caught:
        resolver(file=file)
    assert str(caught.value).splitlines() == [
        "no usable wheel for Python 3.11 on linux/amd64 (glibc 2.36):",
        "  mac 1.0: has only wheels for cp311-cp311-macosx_11_0_arm64, cp39-abi3-win32",
        "  source 2.0: has only a source distribution",
        "  folder: is a URL, a repository or a folder, and no wheel of an index",
        "  repo: is a URL, a repository or a folder, and no wheel of an index",
        "wheels that would match: cp311-cp311-manylinux_2_36_x86_64, cp311-abi3-manylinux_2_36_x86_64 "
        "(and those for an older manylinux), py3-none-any",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not toml", "not a usable pylock.toml"),
        ('lock-version = "2.0"\ncreated-by = "x"\npackages = []', "version 2.0 is not supported"),
        ('lock-version = "1.0"\ncreated-by = "x"', "packages"),
        (pylock("packages = []", head='requires-python = ">=3.12"'), "does not fit Python 3.11 on linux/amd64"),
        (pylock("packages = []", head="environments = [\"sys_platform == 'win32'\"]"), "does not fit"),
        (pylock(*[package("a", "1.0", "a-1.0-py3-none-any.whl")] * 2), "Multiple packages with the name 'a'"),
        (pylock(package("a", "1.0", "b-1.0-py3-none-any.whl")), "not consistent"),
        (pylock(package("a", "1.0", "a-1.0-py3-none-any%2F..%2Fx.whl")), "a-1.0"),
        (pylock(package("a", "1.0", "a-1.0-py3-none-any.whl").replace("ab" * 32, "xy")), "no sha256"),
        (pylock(package("a", "1.0", "a-1.0-py3-none-any.whl").replace("url", "path")), "is a local file"),
        (pylock(package("a", "1.0", "a-1.0-py3-none-any.whl", size=None)), "no index tells the size"),
    ],
)
def test_what_a_pylock_may_not_say(tmp_path: Path, resolver: Resolver, text: str, message: str) -> None:
    file = tmp_path / "pylock.image.toml"
    file.write_text(text)
    with pytest.raises(BuilderError) as caught:
        resolver(file=file)
    assert message in str(caught.value)


def test_a_lock_file_stands_alone(tmp_path: Path, resolver: Resolver) -> None:
    file = tmp_path / "pylock.toml"
    file.write_text(pylock("packages = []"))
    with pytest.raises(BuilderError, match="stands alone"):
        resolver("app", file=file)


def project(folder: Path, resolver: Resolver, *dependencies: str, more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    listed = ", ".join(repr(dependency) for dependency in dependencies)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "service"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = [{listed}]\n{more}'
    )
    environment = resolver.catalogue().indexes.environment
    process.run([uv.find_uv_bin(), "lock", "--python", sys.executable], env=environment, cwd=folder)
    return folder / "uv.lock"


def test_a_uv_lock(index: IndexServer, tmp_path: Path, resolver: Resolver) -> None:
    index.publish(wheel("app", "1.0"), wheel("arm", "1.0"), wheel("dev-tool", "1.0"))
    more = '[dependency-groups]\ndev = ["dev-tool"]\n'
    file = project(tmp_path / "service", resolver, "app", "arm; platform_machine == 'aarch64'", more=more)
    index.publish(wheel("app", "2.0"))
    before = sorted(file.parent.iterdir())
    assert versions(resolver(file=file)) == {"app": "1.0"}
    assert versions(resolver(file=file, target=ARM64)) == {"app": "1.0", "arm": "1.0"}
    assert sorted(file.parent.iterdir()) == before


def test_a_uv_lock_that_uv_cannot_read(index: IndexServer, tmp_path: Path, resolver: Resolver) -> None:
    index.publish(wheel("app", "1.0"))
    file = project(tmp_path / "service", resolver, "app")
    file.write_text("version = 999")
    with pytest.raises(BuilderError, match=r"uv\.lock: uv cannot read it"):
        resolver(file=file)
    (file.parent / "pyproject.toml").unlink()
    with pytest.raises(BuilderError, match=r"pyproject\.toml: missing"):
        resolver(file=file)


def test_a_size_that_uv_does_not_know_is_measured(index: IndexServer, resolver: Resolver) -> None:
    index.html_only = True
    archive = index.publish(wheel("app", "1.0"))
    with pytest.raises(BuilderError, match=r"app 1\.0: no index tells the size of app-1\.0"):
        resolver("app")
    assert resolver("app", measured=True)[0].file == LockedFile("pypi", archive.name, archive.sha256, len(archive.data))


def test_a_size_is_looked_up_on_the_index(index: IndexServer, tmp_path: Path, resolver: Resolver) -> None:
    archive = index.publish(wheel("app", "1.0"))
    file = tmp_path / "pylock.toml"
    file.write_text(pylock(package("app", "1.0", archive.name, size=None).replace("ab" * 32, archive.sha256)))
    assert resolver(file=file)[0].file.size == len(archive.data)


def test_the_same_answer_everywhere(index: IndexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tag in ("cp311-cp311-manylinux_2_28_x86_64", "cp311-abi3-manylinux_2_28_x86_64", "py3-none-any"):
        index.publish(wheel("native", "1.0", tag=tag))
    index.publish(wheel("app", "1.0", requires=["native", "helper"]), wheel("helper", "1.0"), wheel("helper", "2.0a1"))
    here = Resolver(index, tmp_path / "here", {"TZ": "UTC", "LANG": "C"})("app")
    (tmp_path / "pyproject.toml").write_text("[tool.uv]\nconstraint-dependencies = ['helper<1']\n")
    (tmp_path / "uv.toml").write_text("exclude-newer = '2001-01-01'\n")
    monkeypatch.chdir(tmp_path)
    meddling = {
        "TZ": "Asia/Kathmandu",
        "LANG": "de_DE.UTF-8",
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(tmp_path),
        "VIRTUAL_ENV": str(tmp_path),
        "FORCE_COLOR": "1",
        "UV_PRERELEASE": "allow",
        "UV_RESOLUTION": "lowest",
        "UV_PYTHON": "3.99",
        "UV_NO_SYSTEM_CONFIG": "1",
        "UV_FIND_LINKS": str(tmp_path),
        "UV_PROJECT": str(tmp_path),
    }
    assert Resolver(index, tmp_path / "there", meddling)("app") == here
    assert versions(here) == {"app": "1.0", "helper": "1.0", "native": "1.0"}


def test_secrets_are_in_no_argument_message_or_lock(index: IndexServer, resolver: Resolver) -> None:
    index.login = ("reader", "s3cr/t@x y")
    archive = index.publish(wheel("app", "1.0"))
    resolver.environ[SETTING] = index.login_url
    locked = resolver("app")
    assert locked[0].file.path == archive.name
    index.login = ("reader", "changed")
    resolver.environ["UV_CACHE_DIR"] = str(resolver.tmp / "another cache")
    with pytest.raises(BuilderError) as caught:
        resolver("app")
    secrets = ("s3cr", "s3cr%2Ft%40x%20y")
    arguments = [" ".join(argv) for argv, _ in resolver.calls]
    for text in (str(caught.value), str(caught.value.hint), repr(locked), *arguments):
        assert not any(secret in text for secret in secrets)


def test_the_request_changes_with_what_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("a>=1\n")
    asked = request(Requirements(("b",), file))
    file.write_text("b # first\na>=1\n")
    assert asked == request(Requirements(file=file))
    assert asked == request(Requirements(("a >=1", "b")))
    assert asked != request(Requirements(("a>=2", "b")))
    file.write_text(f"a==1 --hash=sha256:{'1' * 64}\n")
    assert request(Requirements(file=file)) != request(Requirements(("a==1",)))
    locked = tmp_path / "pylock.toml"
    locked.write_text("one")
    one = request(Requirements(file=locked))
    locked.write_text("two")
    assert request(Requirements(file=locked)) != one


@given(st.from_regex(PLAIN_REQUIREMENT, fullmatch=True))
def test_a_plain_requirement_is_what_packaging_makes_of_it(text: str) -> None:
    requirement = Requirement(text)
    assert str(requirement) == text
    hashed = f"{text} --hash=sha256:{'1' * 64}" if "==" in text else text
    asked = read_list(Requirements((hashed,)))
    assert asked.requirements == (text,)
    assert asked.hashes is None or set(asked.hashes) == {canonicalize_name(requirement.name)}


def test_the_target_speaks_for_the_image() -> None:
    assert AMD64.uv_platform == "x86_64-manylinux_2_36"
    assert ARM64.uv_platform == "aarch64-manylinux_2_36"
    assert TRIXIE.uv_platform == "x86_64-manylinux_2_40"
    assert AMD64.tags[0] == Tag("cp311", "cp311", "manylinux_2_36_x86_64")
    ranks = AMD64.ranks
    order = ["cp311-cp311-manylinux_2_28_x86_64", "cp311-cp311-manylinux2014_x86_64", "cp311-abi3-manylinux1_x86_64"]
    order += ["cp37-abi3-linux_x86_64", "py3-none-manylinux_2_5_x86_64", "cp311-none-any", "py3-none-any"]
    places = [ranks[Tag(*name.split("-"))] for name in order]
    assert places == sorted(places)
    assert Tag("py3", "none", "manylinux1_aarch64") not in ARM64.ranks
    assert set(AMD64.environment()) == set(default_environment())
    assert Marker('python_full_version == "3.13.5"').evaluate(cast("dict[str, str]", TRIXIE.environment()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("3.11", "3.11.2", Platform("linux", "s390x"), (2, 36)), "linux/s390x: Python packages cannot be chosen"),
        (("3.11", "3.11.2", Platform("windows", "amd64"), (2, 36)), "windows/amd64"),
        (("3.11", "3.11.2", Platform("linux", "amd64"), (2, 12)), "glibc 2.17 or newer"),
        (("3.11", "3.12.2", Platform("linux", "amd64"), (2, 36)), "not a release of Python 3.11"),
    ],
)
def test_targets_without_wheels(values: tuple[str, str, Platform, tuple[int, int]], message: str) -> None:
    with pytest.raises(BuilderError, match=message):
        Target(*values)
