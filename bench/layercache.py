"""What a layer cache saves: `python -m bench.layercache [PROFILE]`, with docker-registry on the loopback.

The same publication into one registry from stores that are empty, that have all inputs near, that are empty and find all layers
in the cache, and that have everything. Inputs come from where this user's settings say; the digests have to be the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import judges

_PROFILE = """\
profile: 1
name: table
base: {debian: bookworm}
python: {version: "3.11", requirements: [onnxruntime, scipy, opencv-python-headless, scikit-learn, pandas]}
image: {entrypoint: [python]}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="?", type=Path)
    parser.add_argument("--build", default="build", help="the command that is measured")
    arguments = parser.parse_args()
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir=kept) as name:
        measure(arguments.build, arguments.profile, Path(name))


def measure(build: str, given: Path | None, root: Path) -> None:
    """Prints the table."""
    profile = given.absolute() if given else root / "table.yaml"
    if not given:
        profile.write_text(_PROFILE)

    def run(store: str, *words: object, **more: str) -> tuple[float, str]:
        environment = {**os.environ, "XDG_CACHE_HOME": str(root / store), **more}
        begun = time.monotonic()
        argv = [build, *map(str, words)]
        done = subprocess.run(argv, cwd=root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        return time.monotonic() - begun, done.stdout.strip()

    with judges.registry("docker-registry", root / "registry") as at:
        run("lock", "cache", "key", "bench", "-o", root / "bench.key")
        off = {"LAYERWRIGHT_CACHE": ""}
        on = {"LAYERWRIGHT_CACHE": f"oci://{at}/layers", "LAYERWRIGHT_CACHE_SIGN": str(root / "bench.key")}
        if not profile.with_suffix(".lock.json").exists():
            run("lock", "lock", profile)
        rows = [("nothing, no cache", *run("one", "publish", "-q", profile, f"{at}/one:v1", **off))]
        inputs = {"LAYERWRIGHT_MIRRORS": str(root / "one/layerwright")}
        rows.append(
            (
                "inputs in a near mirror, no cache",
                *run("two", "publish", "-q", profile, f"{at}/two:v1", **off, **inputs),
            )
        )
        run("one", "cache", "fill", "-q", profile, **on)
        rows.append(("nothing, layers in the cache", *run("three", "publish", "-q", profile, f"{at}/three:v1", **on)))
        again = ("publish", "-q", profile, f"{at}/three:v1")
        rows.append(("all, with the cache", *min(run("three", *again, **on) for _ in range(3))))
        rows.append(("all, no cache", *min(run("three", *again, **off) for _ in range(3))))
    shutil.rmtree(root / "registry", ignore_errors=True)
    print("| the store has | publish, s |\n|---|---:|")
    for name, seconds, digest in rows:
        assert digest == rows[0][2], f"{name}: {digest}"
        print(f"| {name} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
