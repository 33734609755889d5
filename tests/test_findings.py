"""What is said of an image before it starts, and what could go from it: small roots of inputs made for one thing each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from elftrees import Elf
from hypothesis import given
from hypothesis import strategies as st

from builder.binaries.facts import BinaryFacts, InputFacts
from builder.binaries.inputs import read_binary
from builder.binaries.window import Window
from builder.cuda import flavours
from builder.errors import HostileInputError
from builder.findings import auto, minimal, report
from builder.findings.loader import Search
from builder.findings.minimal import Saving
from builder.findings.report import Finding
from builder.findings.root import Input, Root, compose
from builder.findings.scan import Scan, scan

SITE = "/opt/venv/lib/python3.11/site-packages"
TRIPLET = "/usr/lib/x86_64-linux-gnu"
EXT = "_ext.cpython-311-x86_64-linux-gnu.so"
LIBC = Elf("libc.so.6", defines=["GLIBC_2.17", "GLIBC_2.34", "GLIBC_2.36"])
LIBSTDCXX = Elf("libstdc++.so.6", defines=["GLIBCXX_3.4.9", "GLIBCXX_3.4.30"])


def facts(files: Mapping[str, Elf | bytes | str]) -> InputFacts:
    """The facts of an input with these files; text is the target of a symlink."""
    rows, links, binaries = [], [], []
    for path, item in files.items():
        if isinstance(item, str):
            links.append((path, item))
            continue
        data = item.bytes() if isinstance(item, Elf) else item
        rows.append((path, len(data), f"{hash(data) & 0xFFFFFFFF:08x}"))
        if isinstance(item, Elf):
            with tempfile.TemporaryFile() as file:
                file.write(data)
                file.flush()
                binaries.append(read_binary(path, Window(file.fileno(), 0, len(data), path)))
    return InputFacts(tuple(binaries), tuple(sorted(links)), tuple(sorted(rows)))


def debs() -> list[Input]:
    return [
        Input("libc6 2.36-9", "deb", facts({f"{TRIPLET}/libc.so.6": LIBC})),
        Input("libstdc++6 12.2.0", "deb", facts({f"{TRIPLET}/libstdc++.so.6": LIBSTDCXX})),
    ]


def wheel(name: str, files: Mapping[str, Elf | bytes | str]) -> Input:
    return Input(name, "wheel", facts({f"site/{path}": item for path, item in files.items()}))


def scanned(*inputs: Input, library_path: Iterable[str] = (), conf: tuple[str, ...] | None = None) -> Scan:
    return scan(root(*inputs), Search("x86_64", tuple(library_path), conf), "3.11")


def root(*inputs: Input) -> Root:
    return compose([*debs(), *inputs], "3.11")


def found(*inputs: Input, library_path: Iterable[str] = (), conf: tuple[str, ...] | None = None) -> list[Finding]:
    return list(report.report(scanned(*inputs, library_path=library_path, conf=conf), scanned(*inputs)))


def one(findings: list[Finding], kind: str) -> Finding:
    (item,) = (item for item in findings if item.kind == kind)
    return item


def cuda_wheels() -> list[Input]:
    return [
        wheel(
            "nvidia-cublas 13.4",
            {
                "nvidia/cu13/lib/libcublas.so.13": Elf("libcublas.so.13", ["libcublasLt.so.13"], runpath="$ORIGIN"),
                "nvidia/cu13/lib/libcublasLt.so.13": Elf("libcublasLt.so.13", more=b"x" * 500_000),
            },
        )
    ]


def test_nothing_to_say() -> None:
    module = Elf(
        None, ["libc.so.6", "libstdc++.so.6", "libcuda.so.1", "libnvidia-ml.so.1"], needs={"libc.so.6": ["GLIBC_2.34"]}
    )
    assert found(wheel("demo 1.0", {f"demo/{EXT}": module, "demo/__init__.py": b""})) == []


def test_a_module_without_its_library_cannot_be_imported() -> None:
    item = one(found(wheel("opencv 4.0", {f"cv2/{EXT}": Elf(None, ["libGL.so.1", "libc.so.6"])})), "missing")
    assert item.level == "error"
    assert item.what == "opencv 4.0: libGL.so.1 is missing"
    assert item.where == (f"cv2/{EXT} needs libGL.so.1: not found",)
    assert "libgl1" in item.remedy


def test_a_library_below_a_module_counts_as_much() -> None:
    inner = Elf("libinner.so", ["libX11.so.6"])
    files = {f"demo/{EXT}": Elf(None, ["libinner.so"], runpath="$ORIGIN"), "demo/libinner.so": inner}
    item = one(found(wheel("demo 1.0", files)), "missing")
    assert (item.level, item.where) == ("error", ("demo/libinner.so needs libX11.so.6: not found",))
    assert "libx11-6" in item.remedy


@pytest.mark.parametrize(
    ("soname", "package"),
    [
        ("libGL.so.1", "libgl1"),
        ("libX11.so.6", "libx11-6"),
        ("libSM.so.6", "libsm6"),
        ("libgthread-2.0.so.0", "libglib2.0-0"),
        ("libstdc++.so.6", "libstdc++6"),
        ("libffi.so.8.1.2", "libffi8"),
    ],
)
def test_what_debian_calls_it(soname: str, package: str) -> None:
    tree = compose([debs()[0], wheel("demo 1.0", {f"demo/{EXT}": Elf(None, [soname])})], "3.11")
    seen = scan(tree, Search(), "3.11")
    assert report.report(seen, seen)[0].remedy.endswith(f"usually {package}")


def test_a_plugin_that_nobody_needs_is_a_note() -> None:
    item = one(found(wheel("demo 1.0", {"demo/plugins/libnet.so": Elf("libnet.so", ["libmlx5.so.1"])})), "missing")
    assert item.level == "note"
    assert item.remedy.startswith("nothing, if")


def test_what_everything_needs_is_one_finding() -> None:
    """Even where only files that ctypes opens need it: no package has the C++ library as an option."""
    needs = Elf(None, ["libstdc++.so.6", "libc.so.6"])
    inputs = [
        wheel("one 1.0", {f"one/{EXT}": needs}),
        wheel("two 1.0", {f"two/{EXT}": needs, f"two/sub/{EXT}": needs}),
        wheel("three 1.0", {"three/lib/libthree.so": needs}),
    ]
    tree = compose([debs()[0], *inputs], "3.11")
    seen = scan(tree, Search(), "3.11")
    item = one(list(report.report(seen, seen)), "missing")
    assert item.level == "error"
    assert item.what == "3 packages (one, three, two): libstdc++.so.6 is missing"
    assert len(item.where) == 4
    assert "libstdc++6" in item.remedy


def test_what_a_module_finds_for_its_libraries_they_do_not_lack() -> None:
    """Though they are not found when nobody but a test opens them, and the module cannot be imported for another reason."""
    files = {
        f"demo/{EXT}": Elf(None, ["libouter.so", "libgone.so.1"], rpath="$ORIGIN"),
        "demo/libouter.so": Elf("libouter.so", ["libinner.so"]),
        "demo/libinner.so": Elf("libinner.so", ["libgone.so.1"]),
    }
    assert one(found(wheel("demo 1.0", files)), "missing").what == "demo 1.0: libgone.so.1 is missing"
    assert len(found(wheel("demo 1.0", files))) == 1


def test_code_for_gpus_without_cuda_is_an_error() -> None:
    """Even where it is opened later: a program that is made for GPUs would do without them, and say nothing."""
    item = one(found(wheel("demo 1.0", {"demo/libdemo_cuda.so": Elf(None, ["libcublas.so.13"])})), "missing")
    assert item.level == "error"
    assert "flavour: auto}" in item.remedy


def test_the_remedy_names_what_auto_does_not_add() -> None:
    item = one(
        found(wheel("demo 1.0", {"demo/libdemo_cuda.so": Elf(None, ["libnccl.so.2", "libcudnn.so.9"])})), "missing"
    )
    assert "flavour: auto, cudnn: true, nccl: true}" in item.remedy


def test_libraries_of_nvidia_are_not_debians() -> None:
    item = one(found(wheel("demo 1.0", {f"demo/{EXT}": Elf(None, ["libcutensor.so.2"])})), "missing")
    assert item.remedy == "add to python.requirements the wheel of NVIDIA's that has it"


@pytest.mark.parametrize(
    ("files", "flavour", "reason"),
    [
        ({f"demo/{EXT}": Elf(None, ["libcublas.so.13"])}, "base", "found by way of /usr/local/cuda"),
        ({f"demo/{EXT}": Elf(None, ["libcublas.so.13", "libgone.so.1"])}, "none", "no file needs"),
        (
            {f"demo/{EXT}": Elf(None, ["libcublas.so.13"], runpath="$ORIGIN/../nvidia/cu13/lib")},
            "none",
            "nvidia-cublas 13.4 brings it",
        ),
        (
            {
                f"demo/{EXT}": Elf(None, ["libcublas.so.13"], runpath="$ORIGIN"),
                "demo/libcublas.so.13": Elf("libcublas.so.13"),
            },
            "none",
            "no file needs",
        ),
        ({f"demo/{EXT}": Elf(None, ["libcurand.so.10"])}, "runtime", "libcurand.so.10: needed by demo/_ext."),
        ({f"demo/{EXT}": Elf(more=b"\0libcudart.so.13\0")}, "base", "libcudart.so.13: needed by demo/_ext."),
        ({f"demo/{EXT}": Elf(more=b"\0libcudart.so\0libcudart.so.12\0libOpenCL.so.1\0")}, "none", "no file needs"),
    ],
)
def test_the_smallest_flavour(files: Mapping[str, Elf | bytes | str], flavour: str, reason: str) -> None:
    choice = auto.choose(scanned(*cuda_wheels(), wheel("demo 1.0", files)), flavours.candidates("13.2"), "13.2")
    assert choice.candidate.flavour == flavour
    assert any(reason in line for line in choice.reasons), choice.reasons


def test_code_for_several_releases_of_cuda_needs_one() -> None:
    """As bitsandbytes has it: a library for each, and the one that is taken is decided when it starts."""
    path = "$ORIGIN/../nvidia/cu13/lib"
    files = {f"demo/libdemo{major}.so": Elf(None, [f"libcublas.so.{major}"], runpath=path) for major in (11, 12, 13)}
    assert {item.level for item in found(*cuda_wheels(), wheel("demo 1.0", files))} == {"note"}
    assert {item.level for item in found(wheel("demo 1.0", files))} == {"error"}
    choice = auto.choose(scanned(wheel("demo 1.0", files)), flavours.candidates("13.2"), "13.2")
    assert choice.candidate.flavour == "runtime"
    assert [line.partition(":")[0] for line in choice.reasons] == ["libcublas.so.13"]


def test_code_that_waits_for_more_than_cuda_is_an_option() -> None:
    needs = Elf(None, ["libcublas.so.13", "libnvinfer.so.10"])
    levels = {item.level for item in found(wheel("demo 1.0", {"demo/libdemo_tensorrt.so": needs}))}
    assert levels == {"note"}


def test_what_a_package_is_known_to_do_without() -> None:
    files = {"numba/np/ufunc/tbbpool.cpython-311-x86_64-linux-gnu.so": Elf(None, ["libtbb.so.12"])}
    assert one(found(wheel("numba 0.65.0", files)), "missing").level == "note"
    assert one(found(wheel("other 0.65.0", files)), "missing").level == "error"


def test_what_a_package_opens_by_names_that_it_composes() -> None:
    item = one(found(wheel("onnxruntime-gpu 1.31.1", {f"onnxruntime/{EXT}": Elf()})), "missing")
    assert item.level == "warning"
    assert "libcudnn.so.*, libcufft.so.*" in item.what


@pytest.mark.parametrize(
    ("project", "level", "remedy"),
    [
        ("onnxruntime-gpu 1.31.1", "warning", "call onnxruntime.preload_dlls() first"),
        ("cupy-cuda13x 14.2.0", "note", "nothing"),
        ("unknown 1.0", "error", "set LD_LIBRARY_PATH to"),
    ],
)
def test_libraries_that_are_there_and_not_found(project: str, level: str, remedy: str) -> None:
    findings = found(*cuda_wheels(), wheel(project, {f"demo/{EXT}": Elf(None, ["libcublas.so.13"])}))
    (item,) = (item for item in findings if item.kind in ("unreachable", "import"))
    assert (item.level, item.remedy[: len(remedy)]) == (level, remedy)
    assert item.where == (
        f"demo/{EXT} needs libcublas.so.13, which is nvidia/cu13/lib/libcublas.so.13 of nvidia-cublas 13.4",
    )


def test_a_package_loads_nvidias_libraries_and_no_others() -> None:
    other = wheel("other 1.0", {"other/lib/libother.so.1": Elf("libother.so.1")})
    item = one(found(other, wheel("cupy-cuda13x 14.2.0", {f"cupy/{EXT}": Elf(None, ["libother.so.1"])})), "unreachable")
    assert item.level == "error"


def test_libraries_that_another_package_loads_first() -> None:
    first = wheel(
        "torch 2.15.0", {f"torch/{EXT}": Elf(None, ["libc10.so"], rpath="$ORIGIN"), "torch/libc10.so": Elf("libc10.so")}
    )
    item = one(found(first, wheel("vision 1.0", {f"vision/{EXT}": Elf(None, ["libc10.so"])})), "import")
    assert item.level == "note"
    assert item.what == "vision 1.0: libc10.so: found once torch 2.15.0 is imported"


def test_what_importing_torch_loads_is_there_for_others() -> None:
    first = wheel("torch 2.15.0", {f"torch/{EXT}": Elf(None, ["libc.so.6"])})
    item = one(
        found(*cuda_wheels(), first, wheel("other 1.0", {f"other/{EXT}": Elf(None, ["libcublas.so.13"])})), "import"
    )
    assert item.what == "other 1.0: libcublas.so.13: found once torch 2.15.0 is imported"


@pytest.mark.parametrize(
    ("library", "versions", "what"),
    [
        ("libc.so.6", ["GLIBC_2.34", "GLIBC_2.38", "GLIBC_2.4"], "GLIBC_2.38 is needed, libc6 2.36-9 has GLIBC_2.36"),
        ("libstdc++.so.6", ["GLIBCXX_3.4.32"], "GLIBCXX_3.4.32 is needed, libstdc++6 12.2.0 has GLIBCXX_3.4.30"),
    ],
)
def test_libraries_that_are_too_old(library: str, versions: list[str], what: str) -> None:
    module = Elf(None, [library], needs={library: versions})
    item = one(found(wheel("demo 1.0", {f"demo/{EXT}": module})), "too-old")
    assert item.level == "error"
    assert what in item.what
    assert "newer Debian" in item.remedy
    plugin = one(found(wheel("demo 1.0", {"demo/libplugin.so": module})), "too-old")
    assert plugin.level == "warning"


def test_a_library_that_ld_library_path_puts_in_the_place_of_another() -> None:
    """As images of nvidia/cuda do, whose variable names their own CUDA, to wheels that have RUNPATH."""
    base = Input(
        "base image, 1 of 1",
        "image",
        facts(
            {
                "/usr/local/cuda-12.4/lib/libcublas.so.13": Elf("libcublas.so.13"),
                "/usr/local/cuda-12.4/lib/libcublasLt.so.13": Elf("libcublasLt.so.13", more=b"y" * 400_000),
                "/usr/local/cuda": "cuda-12.4",
            }
        ),
    )
    user = wheel("demo 1.0", {f"demo/{EXT}": Elf(None, ["libcublas.so.13"], rpath="$ORIGIN/../nvidia/cu13/lib")})
    findings = found(base, *cuda_wheels(), user, library_path=["/usr/local/cuda/lib"])
    item = one(findings, "shadowed")
    assert item.level == "warning"
    assert (
        "/usr/local/cuda-12.4/lib/libcublasLt.so.13 takes the place of nvidia/cu13/lib/libcublasLt.so.13" in item.what
    )
    assert item.where == (
        "nvidia/cu13/lib/libcublas.so.13 gets it by LD_LIBRARY_PATH, and nvidia/cu13/lib/libcublasLt.so.13 without",
    )
    own = one(findings, "own-cuda")
    assert own.level == "warning"
    assert own.size > 400_000
    assert "2 libraries of the base image are there twice, 0 MB" in own.what
    assert not [item for item in findings if item.kind == "twice"]


def test_libraries_that_are_there_twice() -> None:
    big, other = Elf("libbig.so.1", more=b"a" * 2_000_000), Elf("libbig.so.1", more=b"b" * 1_500_000)
    item = one(found(wheel("one 1.0", {"one/libbig.so.1": big}), wheel("two 1.0", {"two/libbig.so.1": other})), "twice")
    assert (item.level, item.size) == ("warning", len(other.bytes()))
    assert "2 times, different files: 1.5 MB" in item.what
    assert "one/libbig.so.1 of one 1.0, two/libbig.so.1 of two 1.0" in item.where[0]
    same = one(found(wheel("one 1.0", {"one/libbig.so.1": big}), wheel("two 1.0", {"two/libbig.so.1": big})), "twice")
    assert "the same" in same.what
    alone = one(found(wheel("one 1.0", {"one/libbig.so.1": big, "one/sub/libbig.so.1": big})), "twice")
    assert (alone.level, alone.size) == ("note", len(big.bytes()))
    small = Elf("libsmall.so.1")
    inputs = wheel("one 1.0", {"one/libsmall.so.1": small}), wheel("two 1.0", {"two/libsmall.so.1": small})
    assert one(found(*inputs), "twice").level == "note"


def test_errors_come_first_and_the_largest_waste() -> None:
    sizes = {f"lib{name}.so.1": size for name, size in (("a", 3_000_000), ("b", 9_000_000), ("c", 10))}
    inputs = [
        wheel(owner, {f"{owner[:3]}/{name}": Elf(name, more=b"x" * size) for name, size in sizes.items()})
        for owner in ("one 1.0", "two 1.0")
    ]
    findings = found(*inputs, wheel("bad 1.0", {f"bad/{EXT}": Elf(None, ["libgone.so.1"])}))
    assert [(item.level, item.what.partition(" ")[0]) for item in findings] == [
        ("error", "bad"),
        ("warning", "libb.so.1"),
        ("warning", "liba.so.1"),
        ("note", "libc.so.1"),
    ]
    documents = report.as_documents(findings)
    assert documents[0]["level"] == "error"
    assert set(documents[0]) == {"level", "kind", "what", "where", "size", "remedy"}


def test_what_slim_leaves_out_is_missing() -> None:
    files = {f"demo/{EXT}": Elf(None, ["libinner.so"], runpath="$ORIGIN"), "demo/libinner.so": Elf("libinner.so")}
    whole = wheel("demo 1.0", files)
    assert found(whole) == []
    assert one(found(replace(whole, gone=lambda path: path == "demo/libinner.so")), "missing").level == "error"


def test_files_that_two_wheels_bring() -> None:
    one_, two = (wheel(f"{name} 1.0", {"build_backend.py": name.encode(), "same.py": b""}) for name in ("one", "two"))
    item = one(found(one_, two), "collision")
    assert (item.level, item.what) == (
        "error",
        "one 1.0 and two 1.0 both bring build_backend.py, with different content",
    )
    assert item.remedy == "leave out one of them: `slim: [{wheels: [two], drop: [build_backend.py]}]`"
    assert not found(one_, replace(two, gone=lambda path: path == "build_backend.py"))
    headers = [wheel(f"nvidia-{name} 1.0", {"nvidia/cu13/include/x.h": name.encode()}) for name in ("a", "b")]
    assert not found(*headers), "for these there is a rule"


def test_damaged_files_are_told() -> None:
    broken = InputFacts((), (), (("site/demo/libx.so", 10, ""),), (("site/demo/libx.so", "the headers end too early"),))
    item = one(found(Input("demo 1.0", "wheel", broken)), "damaged")
    assert (item.level, item.what) == ("warning", "demo 1.0: demo/libx.so: it cannot be loaded")
    assert item.where == ("the headers end too early",)


def test_another_machine() -> None:
    """The libraries of arm64 are in folders of their own, and those of x86-64 are none of its."""
    folder = "/usr/lib/aarch64-linux-gnu"
    libraries = {f"{folder}/libc.so.6": replace(LIBC, machine="aarch64"), f"{TRIPLET}/libz.so.1": Elf("libz.so.1")}
    module = Elf(None, ["libc.so.6", "libz.so.1"], needs={"libc.so.6": ["GLIBC_2.38"]}, machine="aarch64")
    inputs = [Input("libc6 2.36-9", "deb", facts(libraries)), wheel("demo 1.0", {f"demo/{EXT}": module})]
    seen = scan(compose(inputs, "3.11"), Search("aarch64"), "3.11")
    assert {(item.kind, item.level) for item in report.report(seen, seen)} == {
        ("missing", "error"),
        ("too-old", "error"),
    }
    assert [(edge.name, edge.path) for edge in seen.edges] == [("libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6")]


def test_modules_for_other_pythons_are_nobodys() -> None:
    other = Elf(None, ["libgone.so.1"])
    assert found(wheel("demo 1.0", {"demo/_ext.cpython-312-x86_64-linux-gnu.so": other})) == []


def test_layers_of_an_image_hide_what_lies_below() -> None:
    layers = [
        Input("base image, 1", "image", facts({"/a/one": b"1", "/a/two": b"2", "/b/x/three": b"3", "/l": "a"})),
        Input(
            "base image, 2", "image", facts({"/a/.wh.one": b"", "/b/.wh..wh..opq": b"", "/b/four": b"4", "/.wh.l": b""})
        ),
    ]
    tree = compose(layers, None)
    assert set(tree.files) == {"/a/two", "/b/four"}
    assert not tree.links
    assert tree.file("/b/x/three") is None


def test_a_link_hides_the_folder_that_was_there() -> None:
    inputs = [
        Input("base image, 1", "image", facts({"/usr/local/cuda/lib/x": b"1", "/opt/x": b"2"})),
        Input("cuda 13.2", "cuda", facts({"/usr/local/cuda": "cuda-13.2"})),
        Input("own files", "files", facts({"/opt": b"a file"})),
    ]
    assert set(compose(inputs, None).files) == {"/opt"}


# -- what could go --------------------------------------------------------------------------------------------------


def savings(
    *inputs: Input, asked: Iterable[str] = (), require: Iterable[str] = (), devel: bool = False
) -> list[Saving]:
    return list(minimal.savings(scanned(*inputs), "3.11", asked=tuple(asked), require=tuple(require), devel=devel))


BIG = b"0" * 200_000


@pytest.mark.parametrize(
    ("files", "kind", "rule"),
    [
        ({"demo/lib/libdemo.a": BIG}, "static libraries", '{wheels: [demo], drop: ["*.a"]}'),
        ({"demo/include/cuda/x.h": BIG, "demo/x.h": BIG}, "headers", "{wheels: [demo], drop: [demo/include]}"),
        ({"demo/sub/tests/data.bin": BIG, "demo/test.py": BIG}, "tests", "{wheels: [demo], drop: [tests]}"),
        (
            {"demo/_c.cpython-312-x86_64-linux-gnu.so": BIG, f"demo/{EXT}": BIG},
            "modules for another Python",
            "{wheels: [demo], drop: [demo/_c.cpython-312-x86_64-linux-gnu.so]}",
        ),
    ],
)
def test_what_could_go_of_a_wheel(files: dict[str, bytes], kind: str, rule: str) -> None:
    different = {path: data + path.encode() for path, data in files.items()}
    (item,) = savings(wheel("demo 1.0", different))
    assert (item.kind, item.owner, item.files, item.rule) == (kind, "demo 1.0", 1, rule)
    assert item.size >= len(BIG)


def test_licences_and_metadata_stay() -> None:
    files = {"demo/tests/LICENSE.txt": BIG, "demo-1.0.dist-info/licenses/tests/x.h": BIG}
    assert savings(wheel("demo 1.0", files)) == []


def test_copies_across_wheels() -> None:
    one_, two = wheel("one 1.0", {"one/data.bin": BIG}), wheel("two 1.0", {"two/data.bin": BIG})
    (item,) = savings(one_, two)
    assert (item.kind, item.size, item.owner) == ("copies", len(BIG), "two 1.0")
    assert item.what == "two/data.bin: the same as one/data.bin"


def test_nvidias_wheels_that_nobody_uses() -> None:
    unused = wheel("nvidia-npp 13.1", {"nvidia/cu13/lib/libnppc.so.13": Elf("libnppc.so.13", more=BIG)})
    user = wheel("demo 1.0", {f"demo/{EXT}": Elf(None, ["libcublas.so.13"], rpath="$ORIGIN/../nvidia/cu13/lib")})
    found_ = [item for item in savings(*cuda_wheels(), unused, user) if item.kind == "packages"]
    assert [item.owner for item in found_] == ["nvidia-npp 13.1"]
    opener = wheel("opener 1.0", {f"opener/{EXT}": Elf(more=b"\0libnppc.so.13\0")})
    assert not [item for item in savings(unused, opener) if item.kind == "packages"]


def test_debian_packages_that_nobody_needs() -> None:
    extra = Input("libextra1 1.0", "deb", facts({f"{TRIPLET}/libextra.so.1": Elf("libextra.so.1", more=BIG)}))
    (item,) = savings(extra)
    assert (item.owner, item.rule) == ("libextra1 1.0", "base: {skip: [libextra1]}")
    assert savings(extra, asked=["libextra1"]) == []
    assert savings(extra, wheel("demo 1.0", {f"demo/{EXT}": Elf(None, ["libextra.so.1"])})) == []


def test_a_devel_image_keeps_its_headers() -> None:
    headers = wheel("nvidia-cuda-cccl 13.2", {"nvidia/cu13/include/cub.h": BIG, "nvidia/cu13/lib/libx.a": BIG + b"1"})
    assert {item.kind for item in savings(headers)} == {"headers", "static libraries"}
    assert savings(headers, devel=True) == []


def test_code_for_other_gpus() -> None:
    binaries = (
        BinaryFacts("site/demo/a.cubin", 300_000, "cuda", sass=("sm_100",)),
        BinaryFacts("site/demo/b.cubin", 300_000, "cuda", sass=("sm_90",)),
        BinaryFacts(
            "site/demo/libdemo.so",
            900_000,
            "x86_64",
            sass=("sm_80", "sm_90"),
            code=(("sm_80", 400_000), ("sm_90", 300_000)),
        ),
    )
    item = Input(
        "demo 1.0", "wheel", InputFacts(binaries, (), tuple((each.path, each.size, each.path) for each in binaries))
    )
    assert savings(item) == []
    inner, whole = sorted(savings(item, require=["sm_90"]), key=lambda saving: saving.rule)
    assert (inner.size, inner.rule) == (400_000, "")
    assert (whole.size, whole.rule) == (300_000, "{wheels: [demo], drop: [demo/a.cubin]}")
    assert {"kind", "of", "what", "size", "files", "rule"} == set(minimal.as_documents([inner])[0])


def test_libraries_that_all_need_one_another() -> None:
    """Following that takes a time of its own; nobody waits for it."""
    count = 400
    everybody = tuple(f"lib{number}.so" for number in range(count))
    binaries = [
        BinaryFacts(f"site/demo/{name}", 1, "x86_64", soname=name, needed=everybody, runpath=("$ORIGIN",))
        for name in everybody
    ]
    rows = tuple((binary.path, 1, "") for binary in binaries)
    with pytest.raises(HostileInputError, match="its libraries need one another"):
        scanned(Input("demo 1.0", "wheel", InputFacts(tuple(binaries), (), rows)))


def test_many_whiteouts_take_no_longer_than_many_files() -> None:
    files = tuple((f"/d{number % 10}/f{number}", 1, "") for number in range(20_000))
    hidden = tuple((f"/d{number % 10}/.wh.f{number}", 0, "") for number in range(20_000))
    layers = [Input(name, "image", InputFacts((), (), rows)) for name, rows in (("1", files), ("2", hidden))]
    assert not compose(layers, None).files


names = st.sampled_from(
    ["libx.so.1", "liby.so", "libcuda.so.1", "libcublas.so.13", "../../x", "/", "", "a/b", ".", "lib\n.so.1"]
)
odd = st.builds(
    BinaryFacts,
    path=st.sampled_from(
        ["site/a/_e.cpython-311-x86_64-linux-gnu.so", "site/a.so", "/bin/x", "/usr/lib/liby.so", "venv/bin/y", "/"]
    ),
    size=st.integers(0, 1 << 60),
    machine=st.sampled_from(["x86_64", "cuda", "em_9999"]),
    soname=st.none() | names,
    needed=st.lists(names, max_size=3).map(tuple),
    rpath=st.lists(st.sampled_from(["$ORIGIN", "${ORIGIN}/..", "/..", "x", "", "$LIB", "/usr/lib"]), max_size=2).map(
        tuple
    ),
    runpath=st.lists(st.sampled_from(["$ORIGIN/../..", "/", "//"]), max_size=1).map(tuple),
    needs=st.lists(st.tuples(names, st.just(("V_1", "V"))), max_size=1).map(tuple),
    opens=st.lists(names, max_size=2).map(tuple),
)


@given(
    binaries=st.lists(odd, max_size=5, unique_by=lambda binary: binary.path),
    links=st.lists(
        st.tuples(st.sampled_from(["/bin", "/usr/lib/libx.so.1", "site/a", "/opt", "/x"]), names), max_size=3
    ),
    python=st.sampled_from(["3.11", None]),
)
def test_no_facts_bring_it_down(binaries: list[BinaryFacts], links: list[tuple[str, str]], python: str | None) -> None:
    """What is read of hostile files is anything at all."""
    rows = tuple((binary.path, binary.size, "00") for binary in binaries)
    tree = compose([Input("odd 1", "wheel", InputFacts(tuple(binaries), tuple(links), rows))], python)
    seen = scan(tree, Search("x86_64", ("/usr/lib", ""), ("/usr/lib",)), python)
    report.report(seen, seen)
    minimal.savings(seen, python, require=("sm_90",))
