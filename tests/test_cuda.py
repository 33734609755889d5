"""CUDA flavours: the table is read strictly, releases are found, wheels are resolved with what Python packages need."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cudawheels
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexserver import Archive, IndexServer, index_server, sdist, wheel
from packaging.version import Version

from builder.client import Client
from builder.cuda import environment, flavours, table
from builder.cuda.flavours import Asked
from builder.errors import BuilderError, FetchError, HostileInputError
from builder.lock import LockedWheel
from builder.oci.spec import Platform
from builder.sources import toolkit
from builder.sources.indexes import SETTING, configured
from builder.sources.requirements import Requirements
from builder.sources.simple import Catalogue
from builder.sources.target import Target

AMD64 = Target("3.11", "3.11.2", Platform("linux", "amd64"), (2, 36))
ARM64 = Target("3.11", "3.11.2", Platform("linux", "arm64"), (2, 36))


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with index_server() as server:
        server.publish(*cudawheels.all_wheels())
        yield server


@dataclass
class Resolver:
    """Resolves against one index with a cache and home of its own."""

    index: IndexServer
    tmp: Path

    @property
    def catalogue(self) -> Catalogue:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.tmp / "home"),
            "UV_CACHE_DIR": str(self.tmp / "uv"),
            SETTING: self.index.url,
            "NO_PROXY": "127.0.0.1",
        }
        return Catalogue(lambda: configured(environ), Client().get)

    def __call__(
        self,
        version: str,
        flavour: str,
        *lines: str,
        file: Path | None = None,
        target: Target = AMD64,
        previous: tuple[LockedWheel, ...] = (),
        release: str | None = None,
        upgrade: bool | frozenset[str] = False,
        cudnn: flavours.Choice = "auto",
        nccl: flavours.Choice = False,
    ) -> toolkit.Resolution:
        return toolkit.resolve(
            Requirements(lines, file),
            Asked(version, flavour, cudnn, nccl),
            target,
            catalogue=self.catalogue,
            previous=previous,
            release=release,
            upgrade=upgrade,
        )


@pytest.fixture
def resolver(index: IndexServer, tmp_path: Path) -> Resolver:
    return Resolver(index, tmp_path)


def named(resolution: toolkit.Resolution) -> list[str]:
    return [f"{locked.name} {locked.version}" for locked in resolution.wheels]


# -- what flavours are ---------------------------------------------------------------------------------------------


def test_flavours_are_wheels_of_the_newest_release(resolver: Resolver) -> None:
    base = resolver("13.2", "base")
    assert base.version == "13.2.1"
    assert named(base) == ["cuda-toolkit 13.2.1", "nvidia-cuda-runtime 13.2.75"]
    runtime = resolver("13.2", "runtime", nccl="auto")
    assert named(runtime) == [
        "cuda-toolkit 13.2.1",
        "nvidia-cublas 13.4.0.1",
        "nvidia-cuda-nvrtc 13.2.75",
        "nvidia-cuda-runtime 13.2.75",
        "nvidia-nccl-cu13 2.30.7",
    ]
    devel = resolver("13.2", "devel", cudnn=True)
    assert set(named(devel)) - set(named(runtime)) == {
        "nvidia-cuda-cupti 13.2.75",
        "nvidia-cuda-nvcc 13.2.75",
        "nvidia-cudnn-cu13 9.26.0.51",
    }
    assert resolver("13.2", "none").wheels == ()


def test_an_exact_release(resolver: Resolver) -> None:
    assert named(resolver("13.2.0", "base")) == ["cuda-toolkit 13.2.0", "nvidia-cuda-runtime 13.2.51"]
    assert named(resolver("12.8", "base")) == ["cuda-toolkit 12.8.2.0", "nvidia-cuda-runtime-cu12 12.8.90"]


def test_a_previous_release_is_kept_until_it_is_moved(resolver: Resolver) -> None:
    before = resolver("13.2.0", "base").wheels
    kept = resolver("13.2", "base", previous=before, release="13.2.0")
    assert (kept.version, kept.wheels) == ("13.2.0", before)
    assert resolver("13.2", "base", previous=before, release="13.2.0", upgrade=True).version == "13.2.1"
    moved = resolver("13.2", "base", previous=before, release="13.2.0", upgrade=frozenset({"cuda-toolkit"}))
    assert named(moved) == ["cuda-toolkit 13.2.1", "nvidia-cuda-runtime 13.2.75"]
    assert resolver("12.8", "base", previous=before, release="13.2.0").version == "12.8.2.0"


# -- together with Python packages -------------------------------------------------------------------------------------


def test_what_python_packages_bring_is_of_the_release(index: IndexServer, resolver: Resolver) -> None:
    """Without the table's constraints the newest cuBLAS of all would be taken."""
    index.publish(wheel("nvidia-cublas", "13.99.0.0", tag=cudawheels.X86))
    index.publish(cudawheels.framework("1.0", ["nvidia-cublas>=13", "nvidia-cuda-runtime>=13"]))
    for flavour in ("none", "base", "runtime"):
        assert "nvidia-cublas 13.4.0.1" in named(resolver("13.2", flavour, "framework"))


def test_the_release_that_python_packages_pin_is_found(index: IndexServer, resolver: Resolver) -> None:
    """12.8.2 is newer, but the framework is made for 12.8.1."""
    index.publish(cudawheels.framework("1.0", ["nvidia-cublas-cu12==12.8.4.1"]))
    for flavour in ("none", "base", "runtime"):
        found = resolver("12.8", flavour, "framework")
        assert found.version == "12.8.1"
        assert "nvidia-cublas-cu12 12.8.4.1" in named(found)


@pytest.mark.parametrize("flavour", ["none", "base", "runtime"])
def test_requirements_that_are_made_for_another_release(index: IndexServer, resolver: Resolver, flavour: str) -> None:
    index.publish(cudawheels.framework("1.0", ["cuda-toolkit[cublas,cudart]==13.2.1"]))
    with pytest.raises(BuilderError) as caught:
        resolver("12.8", flavour, "framework==1.0")
    assert str(caught.value).startswith(
        "CUDA 12.8.2, 12.8.1 and the Python requirements do not go together on linux/amd64:\n"
    )
    assert caught.value.hint == 'write cuda.version: "13.2", which the requirements are made for, or change them'


def test_requirements_that_bring_another_cuda_by_other_names(index: IndexServer, resolver: Resolver) -> None:
    index.publish(cudawheels.framework("1.0", ["nvidia-cublas>=13", "nvidia-cuda-runtime>=13"]))
    with pytest.raises(BuilderError, match=r"they bring nvidia-cuda-runtime 13\.2\.75, which is CUDA 13\.2") as caught:
        resolver("12.8", "base", "framework")
    assert caught.value.hint == 'write cuda.version: "13.2", which the requirements are made for, or change them'


def test_requirements_that_cannot_be_met_by_themselves(resolver: Resolver) -> None:
    with pytest.raises(BuilderError, match="the Python requirements cannot be met") as caught:
        resolver("13.2", "base", "framework==99")
    assert "relax the requirements" in str(caught.value.hint)


def test_a_lock_file_stays_as_it_is(index: IndexServer, resolver: Resolver, tmp_path: Path) -> None:
    alpha = index.publish(wheel("alpha", "1.0"), wheel("alpha", "2.0"))
    pinned = wheel("alpha", "1.0")
    lock = tmp_path / "pylock.toml"
    lock.write_text(
        'lock-version = "1.0"\ncreated-by = "a test"\n[[packages]]\nname = "alpha"\nversion = "1.0"\n'
        f'[[packages.wheels]]\nname = "{pinned.name}"\nurl = "{index.url}/../files/{pinned.name}"\n'
        f"size = {len(pinned.data)}\n"
        f'hashes = {{sha256 = "{pinned.sha256}"}}\n'
    )
    assert alpha.name == "alpha-2.0-py3-none-any.whl"
    assert named(resolver("13.2", "base", file=lock)) == [
        "alpha 1.0",
        "cuda-toolkit 13.2.1",
        "nvidia-cuda-runtime 13.2.75",
    ]


def test_a_lock_file_of_another_release(index: IndexServer, resolver: Resolver, tmp_path: Path) -> None:
    pinned = cudawheels.component("cudart", "12.8.90", "12.8.1")
    lock = tmp_path / "pylock.toml"
    lock.write_text(
        'lock-version = "1.0"\ncreated-by = "a test"\n[[packages]]\nname = "nvidia-cuda-runtime-cu12"\nversion = "12.8.90"\n'
        f'[[packages.wheels]]\nname = "{pinned.name}"\nurl = "{index.url}/../files/{pinned.name}"\n'
        f"size = {len(pinned.data)}\n"
        f'hashes = {{sha256 = "{pinned.sha256}"}}\n'
    )
    assert "nvidia-cuda-runtime-cu12 12.8.90" in named(resolver("12.8", "base", file=lock))
    with pytest.raises(BuilderError, match="do not go together") as caught:
        resolver("12.4", "none", file=lock)
    assert caught.value.hint == 'write cuda.version: "12.8", which the requirements are made for, or change them'


def test_requirements_with_hashes(index: IndexServer, resolver: Resolver, tmp_path: Path) -> None:
    alpha = index.publish(wheel("alpha", "1.0"))
    file = tmp_path / "requirements.txt"
    file.write_text(f"alpha==1.0 --hash=sha256:{alpha.sha256}\n")
    assert named(resolver("13.2", "base", file=file)) == [
        "alpha 1.0",
        "cuda-toolkit 13.2.1",
        "nvidia-cuda-runtime 13.2.75",
    ]


# -- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ("13.9", 'write cuda.version: "13.2"'),
        ("12.7", 'write cuda.version: "12.8"'),
        ("12.5", 'write cuda.version: "12.4"'),
        ("14.0", 'write cuda.version: "13.2"'),
        ("13.2.7", "of this release there are 13.2.0, 13.2.1"),
    ],
)
def test_unknown_releases(resolver: Resolver, version: str, hint: str) -> None:
    with pytest.raises(BuilderError) as caught:
        resolver(version, "base")
    assert str(caught.value) == (
        f"cuda.version: there is no CUDA {version} on the package index; it has 12.4, 12.8, 13.2"
    )
    assert caught.value.hint == hint


def test_a_platform_without_wheels(resolver: Resolver) -> None:
    assert named(resolver("12.8", "base", target=ARM64)) == [
        "cuda-toolkit 12.8.2.0",
        "nvidia-cuda-runtime-cu12 12.8.90",
    ]
    with pytest.raises(BuilderError) as caught:
        resolver("12.4", "base", target=ARM64)
    message = str(caught.value)
    assert message.startswith("CUDA 12.4.1 has not all wheels of flavour base for Python 3.11 on linux/arm64")
    assert "nvidia-cuda-runtime-cu12" in message
    assert caught.value.hint == "choose a newer cuda.version, another flavour, or leave the platform out"


def test_an_index_without_the_table(tmp_path: Path) -> None:
    with index_server() as empty, pytest.raises(FetchError, match="cuda-toolkit, NVIDIA's table") as caught:
        Resolver(empty, tmp_path)("13.2", "base")
    assert "add an index that has it" in str(caught.value.hint)


def test_an_index_with_the_table_as_a_source_distribution_only(tmp_path: Path) -> None:
    with index_server() as other:
        other.publish(sdist("cuda_toolkit", "13.2.0"))
        with pytest.raises(FetchError, match="it has no release there"):
            Resolver(other, tmp_path)("13.2", "base")


def test_an_index_of_plain_pages(index: IndexServer, resolver: Resolver) -> None:
    index.html_only = True  # this small server tells no size then, as HTML has none
    with pytest.raises(BuilderError, match="no index tells the size"):
        resolver("13.2", "base")


def test_a_table_that_is_too_large(index: IndexServer, resolver: Resolver) -> None:
    index.publish(broken(data=bytes(2 << 20)))
    with pytest.raises(FetchError, match=r"cuda_toolkit-13\.3\.0"):
        resolver("13.3", "base")


def broken(metadata: bytes | None = None, data: bytes | None = None) -> Archive:
    """A release of the table that is not what it should be."""
    good = cudawheels.table("13.3.0", {"cudart": "13.3.1"})
    if data is not None:
        return Archive(good.name, data)
    assert metadata is not None
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cuda_toolkit-13.3.0.dist-info/METADATA", metadata)
    return Archive(good.name, file.getvalue())


HEAD = b"Metadata-Version: 2.1\nName: cuda-toolkit\nVersion: 13.3.0\n"
LIES = {
    "no zip": (broken(data=b"not a zip"), "cannot be read as a wheel"),
    "empty": (broken(data=b""), "cannot be read as a wheel"),
    "another version": (broken(HEAD.replace(b"13.3.0", b"13.2.0")), "it says that it is version 13.2.0"),
    "no version": (broken(b"Name: cuda-toolkit\n"), "it says that it is version nothing"),
    "two versions": (broken(HEAD + b"Version: 1.0\n"), "it says that it is version 13.3.0, 1.0"),
    "no components": (broken(HEAD), "it names no components"),
    "not UTF-8": (broken(HEAD + b"\xff\xfe"), "cannot be read as a wheel"),
    "bad requirement": (broken(HEAD + b"Requires-Dist: ==;;\nProvides-Extra: cudart\n"), "is no requirement"),
    "an address": (
        broken(HEAD + b"Requires-Dist: x @ https://somewhere.example/x.whl ; extra == 'a'\nProvides-Extra: a\n"),
        "x is at an address",
    ),
    "too many": (broken(HEAD + b"Requires-Dist: x\n" * 5000), "it has 5000 requirements, the longest of 1 "),
    "too long": (broken(HEAD + b"Requires-Dist: x; " + b"(" * 100_000), "the longest of 100003 characters"),
    "too deep": (broken(HEAD + b"Requires-Dist: x; " + b"(" * 3000 + b"\n"), "is no requirement"),
    "too large": (broken(HEAD + b"#" * (2 << 20)), "its METADATA has 2097"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_lies(index: IndexServer, resolver: Resolver, lie: str) -> None:
    archive, message = LIES[lie]
    index.publish(archive)
    with pytest.raises(HostileInputError, match=re.escape(message)) as caught:
        resolver("13.3", "base")
    assert archive.name in str(caught.value)
    assert resolver("13.2", "base").version == "13.2.1"


def test_a_table_with_other_bytes_than_the_index_says(index: IndexServer, resolver: Resolver) -> None:
    index.publish(cudawheels.table("13.3.0", {"cudart": "13.3.1"}), sha256=hashlib.sha256(b"other").hexdigest())
    with pytest.raises(FetchError, match="another sha256 than the index says"):
        resolver("13.3", "base")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="Requires-Dist: Provides-Extra:\nVersion13.2;='\"()<>[]@ cuda*,", max_size=400))
def test_no_metadata_breaks_the_reader(text: str) -> None:
    try:
        table.parse(HEAD.decode() + text, Version("13.3.0"), AMD64.environment())
    except table.TableError:
        return


@given(st.lists(st.text(max_size=60)), st.lists(st.from_regex(r"cuda_toolkit-[0-9a-z.]{1,8}-py3-none-any\.whl")))
def test_no_name_breaks_the_list_of_releases(names: list[str], others: list[str]) -> None:
    assert all(version >= table.OLDEST for version in table.releases([*names, *others]))


# -- what is said of them --------------------------------------------------------------------------------------------


def test_candidates_of_auto() -> None:
    found = flavours.candidates("13.2")
    assert [(each.flavour, each.cudnn, each.nccl) for each in found][:6] == [
        ("none", False, False),
        ("base", False, False),
        ("base", False, True),
        ("runtime", False, False),
        ("runtime", False, True),
        ("base", True, False),
    ]
    assert {"libcublas.so.13", "libcudnn.so.9", "libcudart.so.13"} <= found[5].sonames
    assert found[0].sonames == set()
    assert found[1].sonames == {"libcudart.so.13"}
    runtime = next(each for each in found if each.flavour == "runtime" and each.cudnn and each.nccl)
    assert {"libcublasLt.so.13", "libcufft.so.12", "libcudnn_ops.so.9", "libnccl.so.2"} <= runtime.sonames
    assert runtime.asked("13.2") == Asked("13.2", "runtime", cudnn=True, nccl=True)
    assert {each.cudnn for each in flavours.candidates("13.2", cudnn=True)} == {True}
    assert "none" not in {each.flavour for each in flavours.candidates("13.2", nccl=True)}
    twelve = flavours.candidates("12.4", components={"cudart", "cublas"})[-1]
    assert {"libcufile.so.0", "libcufft.so.11"} & twelve.sonames == set()
    assert "libcufft.so.11" in flavours.candidates("12.4")[3].sonames


def test_variables_and_labels() -> None:
    assert environment.variables("12.8.2.0", "runtime") == {
        "CUDA_VERSION": "12.8.2",
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib:/usr/local/nvidia/lib64:/usr/local/cuda/lib64",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "NVIDIA_REQUIRE_CUDA": "cuda>=12.8",
        "NVIDIA_VISIBLE_DEVICES": "all",
    }
    assert "/usr/local/cuda" not in environment.variables("13.2.1", "none")["LD_LIBRARY_PATH"]
    below = {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib:/own", "CUDA_VERSION": "13.2.0"}
    assert environment.variables("13.2.1", "base", below)["LD_LIBRARY_PATH"].endswith("/usr/local/cuda/lib64:/own")
    assert environment.variables("13.2.1", "none", below) == {}
    assert environment.path("none") == "/usr/local/nvidia/bin"
    assert environment.labels({"nvidia-cudnn-cu13": "9.26.0.51"}) == {"com.nvidia.cudnn.version": "9.26.0.51"}
    assert environment.labels({"nvidia-cublas": "13.4"}) == {}


@pytest.mark.parametrize(
    ("version", "flavour", "has", "message"),
    [
        ("13.2", "none", "12.8.1", "cuda.version: the base image has CUDA 12.8, not 13.2"),
        ("13.2.1", "runtime", "13.0.2", "cuda.version: the base image has CUDA 13.0, not 13.2"),
        (
            "13.2.1",
            "base",
            "13.2.0",
            "cuda.flavour: base would put CUDA 13.2 on top of a base image that has it already",
        ),
        ("13.2", "none", "13.2.0", None),
        ("13.2", "auto", "13.2.0", None),
        ("13.2", "runtime", None, None),
    ],
)
def test_a_base_image_with_cuda(version: str, flavour: str, has: str | None, message: str | None) -> None:
    below = {"PATH": "/bin"} | ({"CUDA_VERSION": has} if has else {})
    if message is None:
        return environment.check(version, flavour, below)
    with pytest.raises(environment.BaseImageError, match=re.escape(message)) as caught:
        environment.check(version, flavour, below)
    assert "write cuda." in str(caught.value.hint)
    return None
