"""The profile's own files: what a folder holds when it is locked, and what becomes of it."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from builder.errors import BuilderError, HostileInputError
from builder.layers.merge import CollisionError, merge
from builder.layers.pack import pack
from builder.layers.tar import Kind, Region
from builder.lock import LockedLocal
from builder.sources.local import Copy, image_path, origins, scan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of a profile with an app in it."""
    folder = tmp_path / "profile"
    write(folder / "app/main.py", "print('app')\n")
    write(folder / "app/run.sh", "#!/bin/sh\n", 0o755)
    write(folder / "app/lib/util.py", "")
    write(folder / "app/lib/data.bin", "data")
    return folder


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def places(found: Sequence[LockedLocal]) -> list[str]:
    return [local.to for local in found]


def assert_refused(root: Path, copy: Copy, *messages: str) -> BuilderError:
    with pytest.raises(BuilderError) as caught:
        scan(root, [copy])
    assert type(caught.value) is BuilderError
    assert caught.value.hint
    for message in ("files: ", *messages):
        assert message in str(caught.value)
    str(caught.value).encode()
    return caught.value


def test_a_folder(root: Path) -> None:
    found = scan(root, [Copy("app", "/srv/app")])
    assert places(found) == ["/srv/app/lib/data.bin", "/srv/app/lib/util.py", "/srv/app/main.py", "/srv/app/run.sh"]
    data = found[0]
    assert data == LockedLocal(
        "/srv/app/lib/data.bin", "app/lib/data.bin", "0644", hashlib.sha256(b"data").hexdigest(), 4
    )
    assert [local.mode for local in found] == ["0644", "0644", "0644", "0755"]


@pytest.mark.parametrize("source", ["app", "app/", "./app", "app/.", "app/lib/.."])
@pytest.mark.parametrize("to", ["/srv", "/srv/"])
def test_spellings_of_a_folder(source: str, to: str, root: Path) -> None:
    (root / "app/link").symlink_to("lib/data.bin")
    found = scan(root, [Copy(source, to)])
    assert places(found) == [f"/srv/{name}" for name in ("lib/data.bin", "lib/util.py", "link", "main.py", "run.sh")]
    for local in found:
        assert (root / local.source).exists()


def test_one_file(root: Path) -> None:
    assert places(scan(root, [Copy("app/main.py", "/srv/start.py")])) == ["/srv/start.py"]
    assert places(scan(root, [Copy("app/main.py", "/srv/")])) == ["/srv/main.py"]
    assert scan(root, [Copy("app/main.py", "/srv/", mode="0600")])[0].mode == "0600"
    assert {local.mode for local in scan(root, [Copy("app", "/srv", mode="0755")])} == {"0755"}


def test_no_files(root: Path) -> None:
    (root / "empty/nested").mkdir(parents=True)
    assert scan(root, []) == scan(root, [Copy("empty", "/srv")]) == ()


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ((), ["lib/data.bin", "lib/util.py", "main.py", "run.sh"]),
        (("*.py",), ["lib/data.bin", "run.sh"]),
        (("lib",), ["main.py", "run.sh"]),
        (("lib/",), ["main.py", "run.sh"]),
        (("lib/*",), ["main.py", "run.sh"]),
        (("lib/util.py",), ["lib/data.bin", "main.py", "run.sh"]),
        (("/main.py",), ["lib/data.bin", "lib/util.py", "run.sh"]),
        (("*/util.py", "run.*"), ["lib/data.bin", "main.py"]),
        (("MAIN.PY",), ["lib/data.bin", "lib/util.py", "main.py", "run.sh"]),
        (("[lr]*",), ["main.py"]),
        (("*",), []),
    ],
)
def test_excludes(exclude: tuple[str, ...], left: list[str], root: Path) -> None:
    assert places(scan(root, [Copy("app", "/srv", exclude=exclude)])) == [f"/srv/{name}" for name in left]


def test_what_differs_between_checkouts_is_never_copied(root: Path) -> None:
    for name in (".git/config", "__pycache__/main.cpython-311.pyc", "lib/__pycache__/x.pyc", ".DS_Store", "lib/.git"):
        write(root / "app" / name, "x")
    write(root / "app/.gitignore", "x")
    assert "/srv/.gitignore" in places(scan(root, [Copy("app", "/srv")]))
    assert len(scan(root, [Copy("app", "/srv")])) == 5


def test_the_order_is_that_of_bytes_and_not_of_the_copies(root: Path) -> None:
    for name in ("é", "z", "Z", "a-b", "a/b", "a.b"):
        write(root / "order" / name, name)
    found = scan(root, [Copy("order", "/o"), Copy("app", "/a")])
    assert places(found) == sorted(places(found), key=str.encode)
    assert found == scan(root, [Copy("app", "/a"), Copy("order", "/o")])


def test_umask_and_times_are_not_part_of_it(root: Path) -> None:
    before = scan(root, [Copy("app", "/srv")])
    (root / "app/main.py").chmod(0o600)
    (root / "app/run.sh").chmod(0o711)
    os.utime(root / "app/main.py", (1, 1))
    assert scan(root, [Copy("app", "/srv")]) == before


def test_two_copies_to_one_place(root: Path) -> None:
    assert len(scan(root, [Copy("app", "/srv"), Copy("app", "/srv")])) == 4
    write(root / "other/main.py", "print('other')\n")
    with pytest.raises(BuilderError, match=r"app/main\.py and other/main\.py both become /srv/main\.py") as caught:
        scan(root, [Copy("app", "/srv"), Copy("other", "/srv")])
    assert caught.value.hint


# Symlinks.


def test_links_inside_stay_links(root: Path) -> None:
    (root / "app/near").symlink_to("main.py")
    (root / "app/lib/up").symlink_to("../main.py")
    (root / "app/folder").symlink_to("lib")
    (root / "app/dangling").symlink_to("lib/nowhere")
    (root / "app/round").symlink_to("lib/../main.py")
    (root / "app/loop").symlink_to("loop")
    links = {local.to: local for local in scan(root, [Copy("app", "/srv")]) if local.target is not None}
    assert {to: local.target for to, local in links.items()} == {
        "/srv/near": "main.py",
        "/srv/lib/up": "../main.py",
        "/srv/folder": "lib",
        "/srv/dangling": "lib/nowhere",
        "/srv/round": "lib/../main.py",
        "/srv/loop": "loop",
    }
    assert {(local.mode, local.sha256, local.size) for local in links.values()} == {("0777", None, None)}


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../secret", "../../profile/app/main.py", "lib/../../secret", "..", "/"]
)
def test_links_that_lead_out(target: str, root: Path) -> None:
    write(root / "secret", "s")
    (root / "app/evil").symlink_to(target)
    assert_refused(root, Copy("app", "/srv"), "app/evil is a symlink that leads out of app, to", target)
    assert len(scan(root, [Copy("app", "/srv", exclude=("evil",))])) == 4


def test_a_chain_of_links_that_leads_out(root: Path) -> None:
    (root / "app/one").symlink_to("two/file")
    (root / "app/two").symlink_to("/etc")
    assert_refused(root, Copy("app", "/srv"), "is a symlink that leads out of app")
    assert_refused(root, Copy("app", "/srv", exclude=("two",)), "app/one is a symlink that leads out of app")


def test_a_folder_above_that_is_meant(root: Path) -> None:
    write(root.parent / "shared/file", "shared")
    (root.parent / "shared/link").symlink_to("file")
    found = scan(root, [Copy("../shared", "/srv")])
    assert [(local.to, local.source) for local in found] == [
        ("/srv/file", "../shared/file"),
        ("/srv/link", "../shared/link"),
    ]


@pytest.mark.parametrize("source", ["away", "away/file", "file-link"])
def test_a_link_out_of_the_profiles_folder(source: str, root: Path) -> None:
    write(root.parent / "elsewhere/file", "x")
    (root / "away").symlink_to("../elsewhere")
    (root / "file-link").symlink_to("../elsewhere/file")
    assert_refused(root, Copy(source, "/srv/"), f"files: {source} leads out of the profile's folder by a symlink, to /")


def test_a_link_to_what_is_in_the_folder_is_followed_when_it_is_named(root: Path) -> None:
    (root / "current").symlink_to("app")
    (root / "start.py").symlink_to("app/main.py")
    assert len(scan(root, [Copy("current", "/srv")])) == 4
    (local,) = scan(root, [Copy("start.py", "/srv/")])
    assert (local.to, local.target) == ("/srv/start.py", None)


# What cannot be copied.


def test_special_files(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "app/pipe")
    assert_refused(root, Copy("app", "/srv"), "app/pipe is neither a file, a directory nor a symlink")
    assert_refused(root, Copy("app/pipe", "/srv/"), "app/pipe is neither a file, a directory nor a symlink")
    (root / "app/pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root / "app")  # the path of a socket has to be short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        assert_refused(root, Copy("app", "/srv"), "app/socket is neither a file")


def test_what_is_not_there(root: Path) -> None:
    assert_refused(root, Copy("gone", "/srv"), "files: gone: No such file or directory")
    assert_refused(root, Copy("app/main.py/x", "/srv"), "Not a directory")
    (root / "loop").symlink_to("loop")
    assert_refused(root, Copy("loop", "/srv"), "files: loop: Too many levels of symbolic links")


UNREADABLE = """
import os, sys
from pathlib import Path
from builder.errors import BuilderError
from builder.sources.local import Copy, scan
root = Path(sys.argv[1])
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    scan(root, [Copy("app", "/srv")])
except BuilderError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["main.py", "lib"])
def test_what_may_not_be_read(name: str) -> None:
    """In a child that is not root, whom every file lets in, and in a folder that others may enter."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        for made in (write(root / "app/main.py", "x"), write(root / "app/lib/x", "x").parent):
            made.parent.chmod(0o755)
        (root / "app" / name).chmod(0)
        done = subprocess.run([sys.executable, "-c", UNREADABLE, root], capture_output=True, text=True, check=False)
        (root / "app" / name).chmod(0o755)
    assert done.stdout.strip() == f"files: app/{name}: Permission denied", done.stderr


def test_names_and_targets_that_are_not_utf8(root: Path) -> None:
    bad = os.fsdecode(b"caf\xe9")
    write(root / "app" / bad, "x")
    assert_refused(root, Copy("app", "/srv"), "app/caf\\udce9", "is not UTF-8")
    (root / "app" / bad).unlink()
    (root / "app/link").symlink_to(bad)
    assert_refused(root, Copy("app", "/srv"), "app/link", "is not UTF-8")
    (root / "app/link").unlink()
    write(root / "app/café 日本語", "x")
    assert "/srv/café 日本語" in places(scan(root, [Copy("app", "/srv")]))


# Entries.


@pytest.mark.parametrize(
    ("to", "path"),
    [
        ("/srv/app", "srv/app"),
        ("/bin/tool", "usr/bin/tool"),
        ("/sbin/tool", "usr/sbin/tool"),
        ("/lib/x.so", "usr/lib/x.so"),
        ("/lib64/ld.so", "usr/lib64/ld.so"),
        ("/usr/bin/tool", "usr/bin/tool"),
        ("/binary/x", "binary/x"),
        ("/srv/bin/x", "srv/bin/x"),
        ("/bin", "bin"),
    ],
)
def test_places_in_an_image_whose_bin_is_a_link(to: str, path: str) -> None:
    assert image_path(to) == path


def test_entries_of_locked_files(root: Path) -> None:
    (root / "app/link").symlink_to("main.py")
    entries = merge(origins(root, scan(root, [Copy("app", "/bin")])))
    found = {entry.path: entry for entry in entries}
    assert [path for path, entry in found.items() if entry.kind is Kind.DIR] == ["usr", "usr/bin", "usr/bin/lib"]
    assert (found["usr/bin/link"].kind, found["usr/bin/link"].linkname) == (Kind.SYMLINK, "main.py")
    assert found["usr/bin/run.sh"].mode == 0o755
    content = found["usr/bin/lib/data.bin"].content
    assert isinstance(content, Region)
    assert content.recorded == ("sha256", hashlib.sha256(b"data").hexdigest())


def test_one_place_by_two_names(root: Path) -> None:
    write(root / "other.py", "other")
    same = scan(root, [Copy("app/main.py", "/bin/x"), Copy("app/main.py", "/usr/bin/x")])
    assert [entry.path for entry in merge(origins(root, same))] == ["usr", "usr/bin", "usr/bin/x"]
    different = scan(root, [Copy("app/main.py", "/bin/x"), Copy("other.py", "/usr/bin/x")])
    with pytest.raises(CollisionError, match=r"app/main.py and other.py both bring /usr/bin/x"):
        merge(origins(root, different))


@pytest.mark.parametrize("text", ["changed\n", "print('app')!", "", "longer " * 1000])
def test_a_file_that_changed_since_it_was_locked(text: str, root: Path, tmp_path: Path) -> None:
    entries = merge(origins(root, scan(root, [Copy("app/main.py", "/srv/")])))
    pack(entries, tmp_path / "blob", tmp_path / "windows", 4 << 20)
    write(root / "app/main.py", text)
    changed = len(text) < len("print('app')\n") or not text.startswith("print('app')\n")
    assert changed
    with pytest.raises(HostileInputError, match=r"app/main\.py: "):
        pack(entries, tmp_path / "blob", tmp_path / "windows", 4 << 20)
