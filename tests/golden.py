"""The digests of the shipped locks: `python tests/golden.py --write` makes golden.json anew, after a deliberate change."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from layouts import Layout
from world import Real

from builder import lock as locks
from builder.oci.digest import Digest

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_name("golden.json")
PROFILES = {
    "real": ROOT / "tests/data/real.yaml",
    "both": ROOT / "tests/data/both.yaml",
    "cuda": ROOT / "tests/data/cuda.yaml",
    "cuda12": ROOT / "tests/data/cuda12.yaml",
    "ocr": ROOT / "profiles/ocr.yaml",
}


def description(published: Real) -> dict[str, Any]:
    """What golden.json says of an image: its digest, and each layer by its history, blob and diff_id."""
    layout = Layout(published.out)
    platforms = {}
    for entry in layout.json(Digest.parse(published.digest))["manifests"]:
        if "artifactType" in entry:
            continue
        manifest = layout.json(Digest.parse(entry["digest"]))
        config = layout.json(Digest.parse(manifest["config"]["digest"]))
        platforms["{os}/{architecture}".format(**entry["platform"])] = [
            {"name": history["created_by"], "blob": layer["digest"], "diff_id": diff_id, "size": layer["size"]}
            for history, layer, diff_id in zip(
                config["history"], manifest["layers"], config["rootfs"]["diff_ids"], strict=True
            )
        ]
    return {"digest": published.digest, "layers": platforms}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = {}
        for name, profile in PROFILES.items():
            (Path(folder) / name).mkdir()
            images[name] = description(Real.publish(profile, Path(folder) / name))
    document = {"format": locks.FORMAT, "images": images}
    FILE.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    main()
