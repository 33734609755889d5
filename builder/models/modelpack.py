"""The words of CNCF ModelPack (github.com/modelpack/model-spec): media types, annotations, and which file is what."""

from __future__ import annotations

import posixpath
import re

from builder.models.values import INDEX_PATH, ModelFile
from builder.oci import spec
from builder.oci.artifact import TITLE
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
RAW = ".raw"
"""How the media type of a layer ends that is a file and not an archive of files."""

FILEPATH = "org.cncf.model.filepath"
METADATA = "org.cncf.model.file.metadata+json"
UNPACK = "io.deis.oras.content.unpack"
"""The annotation with which ORAS marks a layer that is an archive of a folder."""

_LAYER = re.compile(r"application/vnd\.cncf\.model\.(weight|weight\.config|doc|code|dataset)\.v1\.(.+)")
_WEIGHTS = (
    *(".safetensors", ".gguf", ".onnx", ".onnx_data", ".dduf", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".npy"),
    *(".h5", ".hdf5", ".keras", ".pb", ".tflite", ".mlmodel", ".msgpack", ".ot", ".pdparams", ".pdiparams", ".pdmodel"),
    *(".nemo", ".engine", ".plan", ".ggml", ".llamafile", ".joblib"),
)
_CODE = (".py", ".ipynb", ".sh", ".c", ".cc", ".cpp", ".cu", ".h", ".js", ".ts", ".rs", ".go")
_DOCS = (".md", ".rst", ".pdf", ".html", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
_DOC_NAMES = ("readme", "license", "licence", "notice", "copying", "authors", "changelog", "use_policy")
_DATA = (".parquet", ".arrow", ".csv", ".tsv", ".jsonl")


def kind(path: str) -> str:
    """What a file is to a model: `weight`, `weight.config`, `doc`, `code` or `dataset`, by its name."""
    name = posixpath.basename(path).lower()
    stem = re.split(r"[.\-]", name)[0]
    if name.endswith(_WEIGHTS):
        return "weight"
    if name.endswith(_CODE):
        return "code"
    if name.endswith(_DOCS) or stem in _DOC_NAMES:
        return "doc"
    return "dataset" if name.endswith(_DATA) else "weight.config"


def layer(file: ModelFile) -> Descriptor:
    """The layer that is a file, as it is: modctl goes by the end of the media type and the path, oras and CRI-O by the title."""
    metadata = {
        "name": posixpath.basename(file.path),
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": file.size,
        "mtime": "1970-01-01T00:00:00Z",
        "typeflag": ord("0"),
    }
    annotations = {FILEPATH: file.path, TITLE: file.path, METADATA: spec.encode(metadata).decode()}
    what = "weight.config" if file.path == INDEX_PATH else kind(file.path)
    return Descriptor(
        f"application/vnd.cncf.model.{what}.v1{RAW}", Digest(file.sha256), file.size, dict(sorted(annotations.items()))
    )


def is_archive(layer: Descriptor) -> bool:
    """Whether a layer holds files in an archive, so that its bytes are no file of the model."""
    if layer.annotations.get(UNPACK) == "true":
        return True
    match = _LAYER.fullmatch(layer.media_type)
    return match is not None and match[2] != RAW.removeprefix(".")
