"""Which tensors are cast, which are quantised and which keep their type, decided by name, type and shape alone.

* Matrices, of two dimensions or more, change; what has one dimension keeps its type: norms, scales, frequencies. The bias
  of a matrix is cast with it, so that both have one type where they are added.
* Norms, routers of experts, rotary tables and the state matrices of state-space models keep theirs whatever their shape.
* INT8 is for the weights of linear layers: `X.weight` of two dimensions, one scale for each output. Output heads and
  routers stay as they are, and so do embedding tables, but where the model writes no text and the tables are more than
  a third of it: an encoder such as MiniLM is half table. With `int8-dynamic`, whose readers know no tables, they all stay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from builder.models.convert.report import Precision
from builder.models.values import Tensor

Treatment = Literal["keep", "cast", "pack", "step"]
"""`pack`: quantised, four steps in a word (`pack-quantized`); `step`: quantised, a byte each (`int-quantized`)."""

TARGETS: Mapping[Precision, str] = {"fp16": "F16", "bf16": "BF16"}
"""The type that a precision casts to."""
WIDE = ("BF16", "F16", "F32", "F64")
"""What is converted: the types that hold at least 16 bits of a number."""

MAX_ROW = 1 << 22
"""Elements of a row; a longer one is no linear layer, and would not fit the bounds on memory."""
_TABLES_COUNT_FROM = 1 / 3

_KEPT = re.compile(
    r"(^|[._])(norm\d*|layer_?norm\d*|rms_?norm\d*|group_?norm\d*|batch_?norm\d*|ln_?\w{0,3}|bn\d*)\.(weight|bias)$"
    r"|(^|\.)(gate|router|shared_expert_gate|wg|router_gate)\.(\w+\.)*(weight|bias)$"
    r"|(^|[._])(rotary\w*|rope|inv_freq|freqs\w*|A_log|dt_bias|e_score_correction_bias)([._]|$)",
    re.IGNORECASE,
)
_TABLE = re.compile(r"embed|^(wte|wpe|shared|relative_attention_bias)$", re.IGNORECASE)
_HEADS = frozenset(("lm_head", "embed_out", "output_projection", "head", "heads", "score", "classifier", "qa_outputs"))
_WRITES = re.compile(r"(CausalLM|ConditionalGeneration|LMHeadModel|Seq2SeqLM)$")
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Model types of Transformers whose layers are `Conv1D`, whose matrices lie the other way round."""


@dataclass(frozen=True)
class Treatments:
    """How each tensor of a model is treated, by name, and for INT8 what its configuration has to say of that.

    `tables` is whether embedding tables are quantised too; `ignored` names the linear layers that are not, sorted.
    """

    by_name: Mapping[str, Treatment]
    tables: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def changed(self) -> int:
        """How many tensors are cast or quantised."""
        return sum(treatment != "keep" for treatment in self.by_name.values())


def treat(
    tensors: Iterable[Tensor], precision: Precision, config: Mapping[str, Any], tables: bool | None = None
) -> Treatments:
    """What becomes of the tensors of one model (all its files), whose `config.json` says `config`.

    `tables`: whether `int8` quantises embedding tables; None decides as the module says.
    """
    found = tuple(tensors)
    if precision in TARGETS:
        return _cast(found, TARGETS[precision])
    if precision == "int8-dynamic":
        return _quantised(found, config, "step", tables=False)
    return _quantised(found, config, "pack", tables)


def module(name: str) -> str:
    """The module that a tensor is a parameter of: `a.b` of `a.b.weight`."""
    return name.rpartition(".")[0]


def _cast(tensors: Sequence[Tensor], target: str) -> Treatments:
    def changes(tensor: Tensor) -> bool:
        return tensor.dtype in WIDE and tensor.dtype != target and not _KEPT.search(tensor.name)

    matrices = {tensor.name for tensor in tensors if len(tensor.shape) > 1 and changes(tensor)}
    modules = {module(name) for name in matrices if name.endswith(".weight")}
    biases = {
        tensor.name
        for tensor in tensors
        if tensor.name.endswith(".bias") and module(tensor.name) in modules and changes(tensor)
    }
    return Treatments({tensor.name: "cast" if tensor.name in matrices | biases else "keep" for tensor in tensors})


def _quantised(
    tensors: Sequence[Tensor], config: Mapping[str, Any], treatment: Treatment, tables: bool | None
) -> Treatments:
    weights = [tensor for tensor in tensors if _is_weight(tensor)]
    found = {tensor.name for tensor in weights if _TABLE.search(_last(tensor.name))}
    if tables is None:
        table_size = sum(math.prod(tensor.shape) for tensor in weights if tensor.name in found)
        weight_size = sum(math.prod(tensor.shape) for tensor in weights)
        tables = not _writes(config) and table_size > _TABLES_COUNT_FROM * weight_size
    by_name: dict[str, Treatment] = {tensor.name: "keep" for tensor in tensors}
    ignored = []
    for tensor in weights:
        if tensor.name in found:
            by_name[tensor.name] = treatment if tables and _is_fit(tensor) else "keep"
        elif _is_linear(tensor, config):
            by_name[tensor.name] = treatment
        if by_name[tensor.name] == "keep" and (tables or tensor.name not in found):
            ignored.append(module(tensor.name))
    return Treatments(by_name, tables and treatment in (by_name[name] for name in found), tuple(sorted(ignored)))


def _is_linear(tensor: Tensor, config: Mapping[str, Any]) -> bool:
    kept = _last(tensor.name) in _HEADS or _KEPT.search(tensor.name)
    return not kept and config.get("model_type") not in _TRANSPOSED and _is_fit(tensor)


def _is_weight(tensor: Tensor) -> bool:
    return tensor.name.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype in WIDE


def _is_fit(tensor: Tensor) -> bool:
    return tensor.dtype != "F64" and 0 < tensor.shape[1] <= MAX_ROW and tensor.shape[0] > 0


def _last(name: str) -> str:
    return module(name).rpartition(".")[2]


def _writes(config: Mapping[str, Any]) -> bool:
    architectures = config.get("architectures")
    return isinstance(architectures, list) and any(
        isinstance(name, str) and _WRITES.search(name) for name in architectures
    )
