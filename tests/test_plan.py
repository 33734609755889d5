"""The plan: the order of layers, and keys that change exactly with what decides their bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from builder.lock import (
    Lock,
    LockedDeb,
    LockedDebian,
    LockedFile,
    LockedInclude,
    LockedLocal,
    LockedPlatform,
    LockedPython,
    LockedRelease,
    LockedTemplate,
    LockedWheel,
    SociSettings,
)
from builder.oci.config import Execution
from builder.oci.digest import Digest
from builder.oci.spec import Platform
from builder.plan import LARGE_WHEEL, FilesLayer, Layer, SystemLayer, WheelLayer, inputs, plan

MIB = 1 << 20


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def deb(name: str, version: str = "1") -> LockedDeb:
    path = f"pool/{name}_{version}.deb"
    return LockedDeb(name, version, "amd64", LockedFile("debian", path, sha(path), 1000))


def wheel(name: str, size: int = MIB, version: str = "1.0") -> LockedWheel:
    path = f"{name}-{version}-py3-none-any.whl"
    return LockedWheel(name, version, LockedFile("pypi", path, sha(path), size))


DEBIAN = LockedDebian(
    "bookworm",
    "request",
    (LockedRelease("debian", "bookworm", sha("InRelease")),),
    (deb("libc6"), deb("python3.11-minimal"), deb("tzdata")),
)
WHEELS = (
    wheel("torch", 800 * MIB),
    wheel("nvidia-cublas", 500 * MIB),
    wheel("numpy", 20 * MIB),
    wheel("click"),
    wheel("nvidia-cudnn", 600 * MIB),
    wheel("exactly-large", LARGE_WHEEL),
    wheel("almost-large", LARGE_WHEEL - 1),
)
PYTHON = LockedPython("3.11", "/usr/bin/python3.11", True, ("libc6", "python3.11-minimal"), "request", WHEELS)
PLATFORM = LockedPlatform(Platform("linux", "amd64"), DEBIAN, PYTHON)
LOCK = Lock(
    "demo",
    f"sha256:{sha('profile')}",
    "2026-01-31T12:00:00Z",
    (PLATFORM,),
    (LockedInclude("base.yaml", sha("base")),),
    (
        LockedLocal("/srv/app.py", "app/app.py", "0644", sha("app"), 10),
        LockedLocal("/srv/link", "app/link", "0777", target="app.py"),
    ),
    (LockedTemplate("/srv/serve.sh", "serve.sh.j2", "0755", sha("template"), sha("text"), 20),),
    image=Execution(entrypoint=("/srv/serve.sh",), env=(("A", "1"),)),
)


def layers(lock: Lock) -> tuple[Layer, ...]:
    return plan(lock).platforms[0].layers


def keys(lock: Lock) -> dict[str, Digest]:
    return {layer.name: layer.key for layer in layers(lock)}


def python(lock: Lock = LOCK, **change: Any) -> Lock:
    (platform,) = lock.platforms
    assert platform.python
    return locked(lock, python=dataclasses.replace(platform.python, **change))


def debian(lock: Lock = LOCK, **change: Any) -> Lock:
    (platform,) = lock.platforms
    assert platform.debian
    return locked(lock, debian=dataclasses.replace(platform.debian, **change))


def locked(lock: Lock, **change: Any) -> Lock:
    return dataclasses.replace(lock, platforms=(dataclasses.replace(lock.platforms[0], **change),))


def test_the_order_of_layers() -> None:
    assert [layer.name for layer in layers(LOCK)] == [
        "debian bookworm",
        "nvidia-cublas 1.0",
        "nvidia-cudnn 1.0",
        "exactly-large 1.0",
        "torch 1.0",
        "3 wheels",
        "files",
    ]
    kinds = [type(layer) for layer in layers(LOCK)]
    assert kinds == [SystemLayer, *[WheelLayer] * 5, FilesLayer]
    small = layers(LOCK)[5]
    assert isinstance(small, WheelLayer)
    assert [item.name for item in small.wheels] == ["almost-large", "click", "numpy"]


def test_parts_that_are_not_there_make_no_layer() -> None:
    bare = dataclasses.replace(locked(LOCK, python=None), files=(), templates=())
    assert [layer.name for layer in layers(bare)] == ["debian bookworm"]
    assert [layer.name for layer in layers(python(wheels=()))] == ["debian bookworm", "files"]
    assert [layer.name for layer in layers(python(wheels=(wheel("click"),)))][1] == "click 1.0"
    assert layers(locked(dataclasses.replace(LOCK, files=(), templates=()), debian=None, python=None)) == ()
    assert layers(dataclasses.replace(LOCK, files=()))[-1].name == "files"


def test_the_order_of_the_lock_does_not_matter() -> None:
    mixed = random.Random(0)
    for _ in range(5):
        shuffled = dataclasses.replace(
            debian(python(wheels=tuple(mixed.sample(WHEELS, len(WHEELS))), interpreter=PYTHON.interpreter[::-1]))
        )
        shuffled = debian(shuffled, packages=tuple(mixed.sample(DEBIAN.packages, 3)))
        shuffled = dataclasses.replace(shuffled, files=LOCK.files[::-1])
        assert plan(shuffled) == plan(LOCK)


def test_no_more_layers_than_a_runtime_takes() -> None:
    many = tuple(wheel(f"large{number:03}", LARGE_WHEEL + number) for number in range(130))
    found = layers(python(wheels=many))
    assert len(found) == 1 + 96 + 1 + 1
    rest = found[-2]
    assert isinstance(rest, WheelLayer)
    assert {item.name for item in rest.wheels} == {f"large{number:03}" for number in range(34)}
    assert keys(python(wheels=many[::-1])) == keys(python(wheels=many))


SYSTEM, SMALL, FILES = "debian bookworm", "3 wheels", "files"
LARGE = ["nvidia-cublas 1.0", "nvidia-cudnn 1.0", "exactly-large 1.0", "torch 1.0"]
EVERY_WHEEL = {*LARGE, SMALL}


def replaced(items: tuple[Any, ...], index: int, **change: Any) -> tuple[Any, ...]:
    return (*items[:index], dataclasses.replace(items[index], **change), *items[index + 1 :])


def other_file(items: tuple[Any, ...], index: int) -> tuple[Any, ...]:
    return replaced(items, index, file=dataclasses.replace(items[index].file, sha256=sha("other")))


CHANGES: dict[str, tuple[Callable[[], Lock], set[str]]] = {
    "format": (lambda: dataclasses.replace(LOCK, format=2), {SYSTEM, *EVERY_WHEEL, FILES}),
    "a package": (lambda: debian(packages=other_file(DEBIAN.packages, 2)), {SYSTEM}),
    "a package of the interpreter": (lambda: debian(packages=other_file(DEBIAN.packages, 1)), {SYSTEM, *EVERY_WHEEL}),
    "one package more": (lambda: debian(packages=(*DEBIAN.packages, deb("zlib1g"))), {SYSTEM}),
    "the interpreter's packages": (lambda: python(interpreter=("libc6",)), EVERY_WHEEL),
    "no bytecode": (lambda: python(bytecode=False), EVERY_WHEEL),
    "another Python": (lambda: python(version="3.12"), {SYSTEM, *EVERY_WHEEL}),
    "the interpreter's place": (lambda: python(executable="/usr/local/bin/python3.11"), {SYSTEM}),
    "a large wheel": (lambda: python(wheels=other_file(WHEELS, 0)), {"torch 1.0"}),
    "a small wheel": (lambda: python(wheels=other_file(WHEELS, 3)), {SMALL}),
    "a file": (lambda: dataclasses.replace(LOCK, files=replaced(LOCK.files, 0, sha256=sha("other"))), {FILES}),
    "a file's mode": (lambda: dataclasses.replace(LOCK, files=replaced(LOCK.files, 0, mode="0755")), {FILES}),
    "a file's place": (lambda: dataclasses.replace(LOCK, files=replaced(LOCK.files, 0, to="/x")), {FILES}),
    "a link": (lambda: dataclasses.replace(LOCK, files=replaced(LOCK.files, 1, target="other")), {FILES}),
    "a template's text": (
        lambda: dataclasses.replace(LOCK, templates=replaced(LOCK.templates, 0, sha256=sha("other"))),
        {FILES},
    ),
    "a template's mode": (
        lambda: dataclasses.replace(LOCK, templates=replaced(LOCK.templates, 0, mode="0644")),
        {FILES},
    ),
    # What does not decide a byte of any layer.
    "the name": (lambda: dataclasses.replace(LOCK, name="other"), set()),
    "the time": (lambda: dataclasses.replace(LOCK, created="2027-01-31T12:00:00Z"), set()),
    "the profile": (lambda: dataclasses.replace(LOCK, profile=f"sha256:{sha('other')}"), set()),
    "an include": (lambda: dataclasses.replace(LOCK, includes=()), set()),
    "the execution": (lambda: dataclasses.replace(LOCK, image=Execution(user="1000")), set()),
    "the spans": (lambda: dataclasses.replace(LOCK, soci=SociSettings(False, 1, 2)), set()),
    "a release": (lambda: debian(releases=()), set()),
    "a request": (lambda: debian(python(request="other"), request="other"), set()),
    "a file's source": (lambda: dataclasses.replace(LOCK, files=replaced(LOCK.files, 0, source="elsewhere")), set()),
    "a template's source": (
        lambda: dataclasses.replace(LOCK, templates=replaced(LOCK.templates, 0, source="x", template=sha("x"))),
        set(),
    ),
    "an origin": (
        lambda: python(wheels=replaced(WHEELS, 0, file=dataclasses.replace(WHEELS[0].file, origin="other"))),
        set(),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_keys_change_with_what_decides_their_bytes(name: str) -> None:
    make, expected = CHANGES[name]
    before, after = keys(LOCK), keys(make())
    assert {layer for layer in before if after[layer] != before[layer]} == expected
    assert set(after) == set(before)


def test_a_large_wheel_is_the_same_layer_in_every_profile() -> None:
    """The profile around it may be any, as long as it has the same interpreter."""
    other = Lock(
        "other",
        f"sha256:{sha('other')}",
        "2020-01-01T00:00:00Z",
        (
            LockedPlatform(
                Platform("linux", "amd64"),
                dataclasses.replace(DEBIAN, packages=(*DEBIAN.packages, deb("libgl1"))),
                dataclasses.replace(PYTHON, wheels=(WHEELS[0], wheel("scipy", 90 * MIB), wheel("flask"))),
            ),
        ),
    )
    (torch,) = (layer for layer in layers(other) if layer.name == "torch 1.0")
    assert torch in layers(LOCK)


def test_without_bytecode_a_wheel_is_the_same_layer_on_every_platform() -> None:
    arm = LockedPlatform(
        Platform("linux", "arm64"),
        dataclasses.replace(DEBIAN, packages=(deb("libc6", "2"),)),
        dataclasses.replace(PYTHON, bytecode=False, interpreter=()),
    )
    amd = dataclasses.replace(PLATFORM, python=dataclasses.replace(PYTHON, bytecode=False))
    one, other = plan(dataclasses.replace(LOCK, platforms=(amd, arm))).platforms
    assert one.layers[1:] == other.layers[1:]
    assert one.layers[0].key != other.layers[0].key


def test_the_kinds_of_layers_never_share_a_key() -> None:
    found = [layer.key for layer in layers(LOCK)]
    assert len(set(found)) == len(found)


def test_the_keys_of_the_format() -> None:
    """Golden: a key that moves makes every store forget its layers, and so asks for another format number."""
    found = hashlib.sha256("".join(f"{name} {key}\n" for name, key in keys(LOCK).items()).encode()).hexdigest()
    assert found == GOLDEN


GOLDEN = "bb163a574a2e979aaf325eb838ce9014686e6ab65a89b6b409beb4ff8f809212"


def test_what_goes_into_a_layer() -> None:
    system, cublas, *_, files = layers(LOCK)
    assert inputs(system) == (("libc6 1", 1000), ("python3.11-minimal 1", 1000), ("tzdata 1", 1000))
    assert inputs(cublas) == (("nvidia-cublas 1.0", 500 * MIB),)
    assert inputs(files) == (("/srv/app.py", 10), ("/srv/link", 0), ("/srv/serve.sh", 20))


def test_the_configuration() -> None:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert plan(LOCK).platforms[0].config.env == (("A", "1"), ("PATH", f"/opt/venv/bin:{path}"))
    assert plan(locked(LOCK, python=None)).platforms[0].config.env == (("A", "1"), ("PATH", path))
    own = dataclasses.replace(LOCK, image=Execution(env=(("PATH", "/srv"), ("B", "2")), ports=("80/tcp",), user="1"))
    config = plan(own).platforms[0].config
    assert config == Execution(env=(("B", "2"), ("PATH", "/srv")), ports=("80/tcp",), user="1")
    assert plan(LOCK).created == LOCK.created
    assert plan(LOCK).soci == SociSettings()


def test_the_interpreter_that_compiles() -> None:
    torch = layers(LOCK)[4]
    assert isinstance(torch, WheelLayer)
    assert torch.bytecode
    assert [package.name for package in torch.bytecode.packages] == ["libc6", "python3.11-minimal"]
    plain = layers(python(bytecode=False))[4]
    assert isinstance(plain, WheelLayer)
    assert plain.bytecode is None
