"""GPUs in a profile: those that the image is for, and the driver that nodes have."""

# ruff: noqa: RUF009 (`field` makes a field, and the defaults are frozen)

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from builder.documents import Choice, Form, field
from builder.gpu.architectures import KNOWN

Architecture = Annotated[str, Choice(KNOWN)]


def _driver_advice(text: str) -> str | None:
    near = re.fullmatch(r"(?:>=?|==?|~=)?\s*(\d{3}(?:\.\d{1,3}){0,2})", text)
    return f'write ">={near[1]}"' if near else None


Driver = Annotated[
    str,
    Form(
        r">=[1-9]\d{2}(?:\.\d{1,3}){0,2}",
        'the oldest driver that nodes have, such as ">=550" or ">=550.54.14"',
        advice=_driver_advice,
    ),
]
ProjectPattern = Annotated[
    str, Form(r"[A-Za-z0-9*?][A-Za-z0-9*?._+-]*", "the name of a package, or a pattern of names")
]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPUs that the image is for. What is in the image is looked at when it is locked, and it is an error if the code
    for a GPU is missing or the driver too old; see gpu.md."""

    require: tuple[Architecture, ...] = field(
        doc="The architectures of GPUs that the image has to run on.",
        default=(),
        unique=True,
        example=["sm_80", "sm_90"],
    )
    driver: Driver = field(doc="The oldest driver that nodes have.", default="", example=">=550")
    optional: tuple[ProjectPattern, ...] = field(
        doc="Packages, by patterns of their names, that need not run on every GPU, because what uses them does not either.",
        default=(),
        unique=True,
        example=["flashinfer-*"],
    )
