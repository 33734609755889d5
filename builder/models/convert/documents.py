"""What says of weights how they are stored: `config.json` and the index of shards, rewritten after a conversion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from builder.models import strictjson
from builder.models.convert.report import Precision
from builder.models.convert.rules import Treatments
from builder.models.convert.stream import PrecisionError
from builder.models.values import BadModelError, LocalModelFile

CONFIG = "config.json"
INDEX_SUFFIX = ".safetensors.index.json"
MAX_DOCUMENT = 64 << 20
_MAX_DEPTH = 64

_TYPES: Mapping[str, str] = {"fp16": "float16", "bf16": "bfloat16"}
_TYPE_KEYS = ("torch_dtype", "dtype")


def read(file: LocalModelFile) -> dict[str, Any]:
    """The JSON object in a file. Raises `BadModelError` for anything else, and for more than 64 MiB."""
    path = file.file.path
    if file.file.size > MAX_DOCUMENT:
        raise BadModelError(f"{path}: {file.file.size} bytes, at most {MAX_DOCUMENT} are read")
    try:
        found = json.loads(file.location.read_bytes().decode(), object_pairs_hook=strictjson.once)
    except (ValueError, RecursionError) as error:
        raise BadModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadModelError(f"{path}: it is to be an object")
    if strictjson.is_deep(found, _MAX_DEPTH):
        raise BadModelError(f"{path}: nested more than {_MAX_DEPTH} deep")
    return found


def encode(document: Mapping[str, Any]) -> bytes:
    """The bytes of a document as model repositories have them: indented by two, keys in their order."""
    try:
        return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can say
        return json.dumps(document, indent=2).encode() + b"\n"


def is_of_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of Transformers, which takes keys that are new to it; others may stumble over them."""
    return "model_type" in config or "architectures" in config


def check_config(config: Mapping[str, Any], precision: Precision, path: str) -> None:
    """Raises `PrecisionError` where a model of this configuration cannot be had in this precision."""
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else "?"
        raise PrecisionError(
            f"{path}: the model is quantised already ({method})", hint="convert the model that it was made from"
        )
    if precision.startswith("int8") and "_class_name" in config:
        raise PrecisionError(
            f"{path}: a part of a Diffusers pipeline, which does not read compressed-tensors",
            hint="choose fp16 or bf16, which every loader reads",
        )


def rewrite_config(config: Mapping[str, Any], precision: Precision, treatments: Treatments) -> dict[str, Any]:
    """`config.json` after a conversion: its type, also of the parts that name one, or how it is quantised."""
    if precision in _TYPES:
        document = _typed(config, _TYPES[precision])
        if not any(key in document for key in _TYPE_KEYS) and is_of_transformers(document):
            document["torch_dtype"] = _TYPES[precision]
        return document
    return {**config, "quantization_config": _quantisation(precision, treatments)}


def rewrite_index(
    index: Mapping[str, Any], names: Mapping[str, str], total: int, path: str, sources: Mapping[str, str]
) -> dict[str, Any]:
    """The index of shards for tensors `names` (name → file) of `total` bytes.

    `sources` is what the source's shards really hold (name → file). Raises `BadModelError` where the index says otherwise.
    """
    said = index.get("weight_map")
    if not isinstance(said, dict):
        raise BadModelError(f"{path}: it has no weight_map")
    for name in sorted({*said, *sources}):
        if said.get(name) != sources.get(name):
            raise BadModelError(
                f"{path}: tensor {name} is to be in {said.get(name, 'no file')}, and is in {sources.get(name, 'none of them')}"
            )
    metadata = index.get("metadata")
    kept = {**metadata} if isinstance(metadata, dict) else {}
    return {**index, "metadata": {**kept, "total_size": total}, "weight_map": dict(sorted(names.items()))}


def _typed(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        key: dtype
        if key in _TYPE_KEYS and isinstance(value, str)
        else _typed(value, dtype)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


def _quantisation(precision: Precision, treatments: Treatments) -> dict[str, Any]:
    """compressed-tensors' `QuantizationConfig`, with every key that its readers look at."""
    weights = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "channel",
        "group_size": None,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    dynamic = precision == "int8-dynamic"
    form = "int-quantized" if dynamic else "pack-quantized"
    group = {
        "targets": ["Linear", "Embedding"] if treatments.tables else ["Linear"],
        "weights": weights,
        "input_activations": {**weights, "strategy": "token", "dynamic": True, "observer": None} if dynamic else None,
        "output_activations": None,
        "format": form,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(treatments.ignored),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        # Transformers 5 stumbles over packed tables, unless it unpacks all weights while it reads them.
        **({"dequantize": True} if treatments.tables else {}),
    }
