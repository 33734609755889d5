"""What a profile says, as a value: frozen, complete, and checked where it was read."""

# ruff: noqa: RUF009 (`field` makes a field, and the defaults are frozen)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from builder.baseimage import hostless
from builder.documents import Mode, dump, field
from builder.oci import spec
from builder.oci.digest import Digest
from builder.profile.cuda import Cuda
from builder.profile.forms import (
    PYTHON_OF,
    BaseImage,
    EnvName,
    EnvValue,
    Glob,
    ImageFile,
    ImagePath,
    LabelName,
    LocalPath,
    Name,
    Package,
    Platform,
    Port,
    Project,
    PythonVersion,
    Requirement,
    RequirementsFile,
    StopSignal,
    Suite,
    User,
    ValueName,
)
from builder.profile.gpu import Gpu
from builder.profile.models import Model, models_are_told_apart
from builder.profile.nix import Nix, NixReference, places_are_told_apart
from builder.profile.publishing import Publish
from builder.profile.starting import Budget, Start

_Complaints = Iterator[tuple[tuple[str | int, ...], str]]


def _one_thing_to_stand_on(
    debian: str | None, image: str | None, packages: tuple[str, ...], skip: tuple[str, ...]
) -> _Complaints:
    if (debian is None) is (image is None):
        suites = ", ".join(PYTHON_OF)
        yield (
            (),
            (
                f"either a Debian (debian: {suites}) or an image is below everything else, not both: remove one of them"
                if image
                else f"required key missing: debian ({suites}), or image"
            ),
        )
    for name, value in (("packages", packages), ("skip", skip)):
        if image and not debian and value:
            yield (
                (name,),
                "Debian packages are not put on top of an image: remove them, or write debian in place of image",
            )


@dataclass(frozen=True, kw_only=True)
class Base:
    """What is below everything else: an operating system that is composed from Debian packages, without running any script of
    them, or the image of somebody else."""

    later: ClassVar[tuple[str, ...]] = ("nix",)
    one_of: ClassVar[tuple[str, ...]] = ("debian", "image")
    checks: ClassVar = (_one_thing_to_stand_on,)

    debian: Suite | None = field(
        doc="The Debian suite that packages come from; either this or `image` has to be there.",
        default=None,
        example="bookworm",
    )
    image: BaseImage | None = field(
        doc="An image to stand on: in a registry, `HOST/REPOSITORY[:TAG]`, an OCI layout, `oci:DIR[:TAG]`, or an archive, "
        "`oci-archive:FILE[:TAG]` or `docker-archive:FILE[:NAME:TAG]`, each also with `@DIGEST`. The lock pins its digest; its "
        "layers are taken as they are.",
        default=None,
        example="localhost:5000/cuda:13.0.0-runtime-ubuntu24.04",
    )
    packages: tuple[Package, ...] = field(
        doc="Debian packages that the image needs, beside those that Python itself needs; "
        "what they depend on comes with them.",
        default=(),
        unique=True,
        example=["libgl1"],
    )
    skip: tuple[Package, ...] = field(
        doc="Packages that are left out even where something depends on them, beside those that only maintainer "
        "scripts need.",
        default=(),
        unique=True,
        example=["libx11-data"],
    )


@dataclass(frozen=True, kw_only=True)
class Python:
    """The image's Python and its packages, wheels only, all in one virtual environment at `/opt/venv`."""

    version: PythonVersion = field(
        doc=f"The version of Python: {', '.join(f'{v} on {suite}' for suite, v in PYTHON_OF.items())}. On top of an image: the "
        "image's own Python of this version, or its next newer one.",
        example="3.11",
    )
    requirements: tuple[Requirement, ...] | RequirementsFile = field(
        doc="Python packages: a list of requirements (PEP 508), or the name of a file `*.txt` (pip's requirements), "
        "`pylock.toml` or `uv.lock`.",
        default=(),
        unique=True,
        example=["numpy>=2", "flask"],
    )
    bytecode: Literal["auto", True, False] = field(
        doc="Whether modules are compiled by the image's own interpreter when the image is made. `auto` compiles where "
        "that interpreter runs on the building machine. On top of an image, whose programs are not run, `true` has Debian's "
        "interpreter of the same version compile, and `auto` none.",
        default="auto",
    )


@dataclass(frozen=True, kw_only=True)
class Slim:
    """Files of wheels that are left out of the image: nothing goes but what is named here. The metadata of wheels and the
    texts of licences stay, whatever a pattern says; `build plan --minimal` shows what could go."""

    wheels: tuple[Project, ...] = field(
        doc="The wheels that the patterns are for; all, if none is named.", default=(), unique=True, example=["triton"]
    )
    drop: tuple[Glob, ...] = field(
        doc="Patterns, matched against names and against paths relative to site-packages (what lies elsewhere is spelled as "
        "in RECORD, `../../../bin/tool`); a folder goes with all that is in it.",
        unique=True,
        example=["triton/backends/amd", "*.a"],
    )


@dataclass(frozen=True, kw_only=True)
class File:
    """A file or a folder that goes into the image."""

    source: LocalPath = field(
        name="from", doc="A file or folder, relative to the folder of the profile that says so.", example="app"
    )
    to: ImagePath = field(doc="Where it is in the image. A folder's content appears below it.", example="/app")
    mode: Mode | None = field(
        doc='The permissions of the file, or of each file of the folder. Without it: `"0755"` for what its owner may '
        'execute, else `"0644"`.',
        default=None,
        example="0755",
    )
    exclude: tuple[Glob, ...] = field(
        doc="Patterns of what is left out of a folder, matched against paths relative to it.",
        default=(),
        unique=True,
        example=["tests/*", "*.pyc"],
    )


@dataclass(frozen=True, kw_only=True)
class Template:
    """A file that is rendered with `values` (Jinja; an undefined name is an error) and goes into the image."""

    source: LocalPath = field(
        name="from", doc="The template, relative to the folder of the profile that says so.", example="serve.sh.j2"
    )
    to: ImageFile = field(doc="Where the rendered file is in the image.", example="/app/serve.sh")
    mode: Mode = field(doc="Its permissions.", default=Mode(0o644), example="0755")


@dataclass(frozen=True, kw_only=True)
class Image:
    """How a container of the image starts, and what it says of itself (image-spec, config.md)."""

    entrypoint: tuple[EnvValue, ...] = field(
        doc="The program and its first arguments.", default=(), whole=True, example=["python", "/app/main.py"]
    )
    cmd: tuple[EnvValue, ...] = field(
        doc="Further arguments, which whoever starts a container may replace.", default=(), whole=True
    )
    env: tuple[tuple[EnvName, EnvValue], ...] = field(
        doc="Environment variables. `PATH` is set, with the virtual environment first, unless it is given here.",
        default=(),
        example={"LOG_LEVEL": "info"},
    )
    user: User = field(
        doc="The user that the program runs as, and its group; root if there is none.",
        default="",
        example="65532:65532",
    )
    workdir: ImagePath = field(doc="The working directory.", default="", example="/app")
    ports: tuple[Port, ...] = field(
        doc="Ports that the program listens on; `tcp` unless it says `/udp`.",
        default=(),
        unique=True,
        example=[8080, "9000/udp"],
    )
    labels: tuple[tuple[LabelName, EnvValue], ...] = field(
        doc="Labels of the image.", default=(), example={"org.opencontainers.image.title": "My service"}
    )
    stop_signal: StopSignal = field(
        name="stop-signal", doc="The signal that asks the program to end.", default="", example="SIGTERM"
    )


def _python_stands_on_debian(base: Base | None, python: Python | None) -> _Complaints:
    if python is None:
        return
    suite = next((suite for suite, version in PYTHON_OF.items() if version == python.version), None)
    if base is None:
        where = suite or next(iter(PYTHON_OF))
        advice = f"add base: {{debian: {where}}}, which has Python {PYTHON_OF[where]}"
        yield ("python",), f"there is no Debian for it to stand on: {advice}"
    elif base.debian and suite != base.debian:
        other = f', or base.debian: {suite}, which has "{python.version}"' if suite else ""
        version = PYTHON_OF[base.debian]
        yield ("python", "version"), f'{base.debian} has Python {version}: write "{version}"{other}'


def _slim_needs_wheels(python: Python | None, cuda: Cuda | None, slim: tuple[Slim, ...]) -> _Complaints:
    if slim and python is None and cuda is None:
        yield ("slim",), "there are no wheels to leave anything out of: add python, or remove slim"
    for index, rule in enumerate(slim):
        if not rule.drop:
            yield ("slim", index, "drop"), 'there is no pattern: add one, such as "*.a"'


def _cuda_stands_on_something(base: Base | None, cuda: Cuda | None) -> _Complaints:
    if cuda is not None and base is None:
        yield ("cuda",), "there is no operating system for it to stand on: add base: {debian: bookworm}"


def _gpu_needs_an_image(base: Base | None, gpu: Gpu | None) -> _Complaints:
    if gpu is not None and base is None:
        yield ("gpu",), "the image has no program that could use a GPU: add base, or remove gpu"


def _reading_ahead_needs_python(python: Python | None, start: Start | None) -> _Complaints:
    if start and start.readahead and python is None:
        yield (
            ("start", "readahead"),
            "what reads ahead needs a Python, and the image has none: add python, or write false",
        )


def _adapting_needs_a_trace(start: Start | None, publish: Publish) -> _Complaints:
    if publish.soci.spans == "adaptive" and start is None:
        yield (
            ("publish", "soci", "spans"),
            "it is not known what a start reads: add start: {trace: FILE}, or write uniform",
        )
    if publish.soci.prefetch and start is None:
        yield (
            ("publish", "soci", "prefetch"),
            "it is not known what a start reads: add start: {trace: FILE}, or remove it",
        )


def _templates_do_not_collide(templates: tuple[Template, ...]) -> _Complaints:
    first: dict[str, int] = {}
    for index, template in enumerate(templates):
        if first.setdefault(template.to, index) != index:
            where = f"templates[{first[template.to]}]"
            yield ("templates", index, "to"), f"two templates cannot be the same file: {where} is {template.to} too"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What an image is made of and how it starts."""

    checks: ClassVar = (
        _python_stands_on_debian,
        _cuda_stands_on_something,
        _slim_needs_wheels,
        _gpu_needs_an_image,
        _reading_ahead_needs_python,
        _adapting_needs_a_trace,
        _templates_do_not_collide,
        models_are_told_apart,
        places_are_told_apart,
    )

    version: Literal[1] = field(name="profile", doc="The version of this language; each profile says it.", example=1)
    name: Name = field(doc="The name of the image, of its lock and of what is published.", example="sdxl-turbo")
    extends: tuple[LocalPath, ...] = field(
        doc="Profiles that this one is laid over, relative to its own folder; see below.",
        default=(),
        unique=True,
        example=["base/python.yaml"],
    )
    platforms: tuple[Platform, ...] = field(
        doc="What the image is made for; each platform is made on any machine.",
        default=(spec.Platform("linux", "amd64"),),
        unique=True,
        example=["linux/amd64", "linux/arm64"],
    )
    base: Base | None = field(doc="The operating system.", default=None)
    python: Python | None = field(doc="Python and its packages.", default=None)
    cuda: Cuda | None = field(doc="CUDA.", default=None)
    gpu: Gpu | None = field(doc="The GPUs that the image is for.", default=None)
    nix: tuple[NixReference | Nix, ...] = field(
        doc="What comes from Nix, with everything that it needs: references, or mappings where there is more to say; see nix.md.",
        default=(),
        example=["./default.nix#tool"],
    )
    slim: tuple[Slim, ...] = field(doc="What is left out of wheels.", default=())
    files: tuple[File, ...] = field(doc="Files of your own.", default=())
    templates: tuple[Template, ...] = field(doc="Files of your own that are rendered first.", default=())
    values: Mapping[ValueName, Any] = field(
        doc="What templates can use, by name: text, numbers, true or false, lists, mappings. Templates can also use "
        "`name`, the profile's name.",
        default_factory=dict,
        example={"port": 8080, "workers": 2},
    )
    models: tuple[Model, ...] = field(doc="Models that are published beside the image.", default=())
    image: Image = field(doc="How a container starts.", default=Image())
    start: Start | None = field(doc="What is known of how it starts, and used to make it faster.", default=None)
    budget: Budget | None = field(doc="How long a cold start may take.", default=None)
    publish: Publish = field(doc="What is published.", default=Publish())

    @property
    def digest(self) -> Digest:
        """The digest of what this profile asks for: comments, how it is split into files, `budget`, `publish.to` and
        `publish.models`, and the registry of `base.image`, do not count, because no byte of an image depends on them."""
        base = replace(self.base, image=hostless(self.base.image)) if self.base and self.base.image else self.base
        plain = replace(self, extends=(), base=base, budget=None, publish=replace(self.publish, to=None, models=None))
        document = dump(plain) | {"values": _ordered(self.values)}
        return Digest.of(spec.encode(document))

    @property
    def from_nix(self) -> tuple[Nix, ...]:
        """What comes from Nix; a reference alone stands for one with the links that are usual."""
        return tuple(item if isinstance(item, Nix) else Nix(source=item) for item in self.nix)

    @property
    def template_values(self) -> Mapping[str, Any]:
        """The names that templates can use."""
        return {**self.values, "name": self.name}


def _ordered(value: Any) -> Any:
    """Mappings as pairs: templates see their order, so that it counts."""
    if isinstance(value, Mapping):
        return {"pairs": [[key, _ordered(item)] for key, item in value.items()]}
    return [_ordered(item) for item in value] if isinstance(value, list) else value
