"""The reference of profiles, for editors (JSON Schema) and for people (Markdown), generated from the types."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

from builder.documents.forms import Choice
from builder.documents.keys import Key, bare, element, expected, has_keys, keys, members, pair
from builder.documents.schema import plain
from builder.documents.schema import schema as schema_of
from builder.profile import PYTHON_OF, Base, Profile


def schema() -> dict[str, Any]:
    """The JSON Schema of one profile. What a profile that extends others leaves out may stand in those; the sections of a
    profile that stands alone have to be complete."""
    document = schema_of(Profile)
    complete: dict[str, Any] = {}
    for key in keys(Profile):
        for section in (_name(each) for each in (members(key.hint) or (key.hint,))):
            if section in document["$defs"] and (required := document["$defs"][section].pop("required", None)):
                complete[key.name] = {"required": required}
    either = [{"required": [name]} for name in Base.one_of]
    document["$defs"]["Base"]["not"] = {"required": list(Base.one_of)}
    complete["base"] = {"anyOf": [{"type": "null"}, *either]}
    return {**document, "if": {"not": {"required": ["extends"]}}, "then": {"properties": complete}}


def _name(hint: Any) -> str:
    return str(getattr(bare(hint)[0], "__name__", ""))


def markdown() -> str:
    """`docs/profile.md`."""
    suites = ", ".join(f"{suite} has Python {version}" for suite, version in PYTHON_OF.items())
    head = _HEAD.format(example=EXAMPLE, suites=suites)
    sections = [section for cls, path in _classes(Profile, "") for section in _section(cls, path)]
    merging = _EXTENDS.format(sets=_marked(lambda key: key.meta.unique), wholes=_marked(lambda key: key.meta.whole))
    return "\n".join([head, *sections, merging])


EXAMPLE = """\
profile: 1
name: sdxl-turbo
extends: [base/python.yaml]
platforms: [linux/amd64, linux/arm64]
base:
  debian: bookworm
  packages: [libgl1]
  skip: [libx11-data]
python:
  version: "3.11"
  requirements: [numpy>=2, flask]         # or requirements.txt, pylock.toml, uv.lock
  bytecode: auto
cuda: {version: "13.2", flavour: runtime, cudnn: true, nccl: auto}
gpu: {require: [sm_80, sm_90], driver: ">=580", optional: ["flashinfer-*"]}
nix:
  - ./tools#report
  - {from: "flake:nixpkgs#ffmpeg-headless", links: {/usr/local/bin/ffmpeg: bin/ffmpeg}}
slim:
  - {wheels: [triton], drop: [triton/backends/amd, "*.a"]}
files:
  - {from: app, to: /app, exclude: ["tests/*", "*.pyc"]}
  - {from: bin/tool, to: /usr/local/bin/tool, mode: "0755"}
templates:
  - {from: serve.sh.j2, to: /app/serve.sh, mode: "0755"}
values:
  port: 8080
models:
  - name: sdxl-turbo
    from: hf://stabilityai/sdxl-turbo@71153311d3dbb46851df1931d3ca6e939de83304
    include: ["*.safetensors", "*.json"]
    exclude: ["*onnx*"]
    precision: fp16
    allow-overflow: clamp
    mount: /models/sdxl
    image: false
    licenses: [Apache-2.0]
image:
  entrypoint: [/app/serve.sh]
  cmd: [--workers, 2]
  env: {LOG_LEVEL: info}
  user: "65532:65532"
  workdir: /app
  ports: [8080, 9000/udp]
  labels: {org.opencontainers.image.title: SDXL Turbo}
  stop-signal: SIGTERM
start: {trace: sdxl-turbo.trace.json, readahead: true, order: own}
budget: {total: 20s, pull: 5s, model: 10s}

publish:
  soci: {enabled: true, span-size: 4MiB, min-layer-size: 10MiB, spans: adaptive, platform: unknown, prefetch: true, mount: parallel}
  compression: gzip
  lazy: soci
  to: oci:out/sdxl-turbo
  models: localhost:5000/models
"""

_HEAD = """\
# The profile

<!-- Generated from builder/profile by builder/reference.py. -->

A profile is a YAML file that says what an image is made of and how it starts. It is read strictly: unknown keys, wrong
types, keys that stand twice and combinations that cannot be are all reported at once, each with its place.

```yaml
{example}```

`extends` and the files in this example would have to exist. `build init NAME` writes a smaller profile that works, and
`build schema` prints the JSON Schema, for editors.

## How it is written

* One document in UTF-8, up to 1 MiB. Anchors and aliases may be used; merge keys (`<<`), tags other than `!replace`,
  tabs for indentation and `%` directives may not.
* What YAML readers disagree about is not guessed. Text that looks like a number or a truth goes into quotes: `"3.10"`,
  `"0644"`, `"true"`; only where a whole number can mean nothing else (`ports`, `user`, `env` and the like) it may stand
  without. A truth is `true` or `false`.
* Paths of your own files are relative to the folder of the profile that says so. They leave that folder only where they
  begin with `../`. Paths in the image are absolute and normal.
* Sizes are written `512KiB`, `4MiB`, `1GiB`, or as a number of bytes. Permissions are octal and in quotes.
* Of the Debian suites, {suites}.

Keys without a default have to be there.
"""

_EXTENDS = """\
## `extends`

A profile is laid over those that it extends. The first in the list lies lowest; what a base extends itself lies below
that base; a profile that is reached twice counts once, where it is reached first. A circle is an error.

| here | and inherited | gives |
|---|---|---|
| a mapping | a mapping | both, key by key; where both have a key, this table again |
| a list | a list | the inherited items, then these; in the sets below, what is inherited already is not repeated |
| `!replace` before a list or mapping | anything | what stands here |
| anything else, also `null` | anything | what stands here |

* Sets: {sets}. An item that stands twice in one file is an error.
* Lists that are one value, so that the one here replaces the inherited one: {wholes}.
* `profile`, `name` and `extends` are not inherited. A base needs a `profile`, but no `name`.
* Paths and the names of files mean what they mean in the profile that says them.

```yaml
profile: 1
name: small
extends: [base/python.yaml]
python:
  requirements: !replace [flask]     # not those of base/python.yaml
files: !replace []                   # none
```

**Bases of several teams** lie in a repository of their own, as a submodule or a checkout beside the others, `extends:
[../platform/python.yaml]`. The lock has the digest of each; when one has changed, `build lock --check` names it, and
nothing changes in an image until `build lock` was run.
"""


def _classes(cls: type, path: str) -> Iterator[tuple[type, str]]:
    """The dataclasses that a document is made of, in its order, each with its place."""
    yield cls, path
    for key in keys(cls):
        place = f"{path}.{key.name}".lstrip(".")
        for hint in members(key.hint) or (key.hint,):
            inner = element(hint)
            for each in members(inner) or (inner or hint,):
                if has_keys(each):
                    yield from _classes(each, place if inner is None else f"{place}[]")


def _section(cls: type, path: str) -> Iterator[str]:
    yield f"## {f'`{path}`' if path else 'Keys'}\n"
    yield f"{inspect.getdoc(cls)}\n"
    yield "| key | what it is | default | |\n|---|---|---|---|"
    for key in keys(cls):
        yield f"| `{key.name}` | {_type(key)} | {_default(key)} | {_meaning(key)} |"
    yield ""


def _type(key: Key) -> str:
    hints = [hint for hint in members(key.hint) or (key.hint,) if hint is not type(None)]
    return _cell(" or ".join([_hint(hint) for hint in hints] + [f"`{str(short).lower()}`" for short in key.meta.short]))


def _hint(hint: Any) -> str:
    inner, rules = bare(hint)
    if several := members(inner):
        return " or ".join(map(_hint, several))
    if (item := element(inner)) is not None:
        return "a list of mappings, see below" if has_keys(item) else f"a list, each {_hint(item)}"
    if types := pair(inner):
        return f"a mapping of {_hint(types[0])} to {_hint(types[1])}"
    if has_keys(inner):
        return "a mapping, see below"
    if inner is Any:
        return "anything"
    choices = [choice for rule in rules if isinstance(rule, Choice) for choice in rule.choices]
    if len(choices) > 8:
        return f"a known name such as {choices[0]}"
    choices += [json.dumps(choice).strip('"') for choice in get_args(inner) if get_origin(inner) is Literal]
    return " or ".join(f"`{choice}`" for choice in choices) or expected(hint)


def _default(key: Key) -> str:
    if not key.optional:
        return ""
    if key.default in (None, "") or has_keys(type(key.default)):
        return "none" if key.default in (None, "") else "as below"
    return "`{}`" if pair(key.hint) else f"`{json.dumps(plain(key.default))}`"


def _meaning(key: Key) -> str:
    example = "" if key.meta.example is None else f" Example: `{json.dumps(key.meta.example, ensure_ascii=False)}`"
    return _cell(key.meta.doc + example)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _marked(mark: Callable[[Key], bool]) -> str:
    """The keys with a rule of merging, with their places."""
    return ", ".join(
        f"`{f'{path}.{key.name}'.lstrip('.')}`" for cls, path in _classes(Profile, "") for key in keys(cls) if mark(key)
    )
