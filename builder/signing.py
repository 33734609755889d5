"""Signatures over published images, by the tool that people have for it: cosign or notation. No key is ever read here.

The digest of the image's index is signed, after it is published: it covers every layer, the SOCI index and all platforms.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import UsageError
from builder.oci.digest import Digest

_TIMEOUT = 600.0


@dataclass(frozen=True)
class _Tool:
    """How a tool signs without asking anybody; `plain` lets it speak to registries without encryption."""

    words: tuple[str, ...]
    plain: str


_TOOLS: Mapping[str, _Tool] = {
    "cosign": _Tool(("sign", "--yes"), "--allow-http-registry"),
    "notation": _Tool(("sign", "--force-referrers-tag=false"), "--insecure-registry"),
}


@dataclass(frozen=True)
class Signer:
    """A program and the options of its `sign`, such as the name of a key."""

    program: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Signer:
        """From `cosign` or `notation` (or a path that ends so) and options after it, as a shell would read them.

        Raises `UsageError`.
        """
        try:
            program, *options = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"{text!r} is no command to sign with: {error}", hint=_HINT) from error
        if Path(program).name not in _TOOLS:
            raise UsageError(f"{program!r} is no tool to sign with", hint=_HINT)
        return cls(program, tuple(options))

    def check(self, environ: Mapping[str, str]) -> None:
        """Raises `ToolError` if the program is not there, before anything is built that could not be signed."""
        process.run([self.program, "version"], env=environ, timeout=_TIMEOUT, hint=f"install {self.program}")

    def sign(self, repository: str, digest: Digest, environ: Mapping[str, str], *, plain_http: bool = False) -> None:
        """Signs the image `digest` in `repository` (HOST/NAME), with the tool's own keys and credentials.

        Each call makes a signature; the ones before stay. Raises `ToolError` with what the tool said.
        """
        tool = _TOOLS[Path(self.program).name]
        plain = [tool.plain] if plain_http else []
        argv = [self.program, *tool.words, *plain, *self.options, f"{repository}@{digest}"]
        process.run(argv, env=environ, timeout=_TIMEOUT, hint=f"the image is published; sign it with: {_shown(argv)}")


_HINT = "write cosign or notation, and options after it, as --sign 'cosign --key cosign.key'"


def _shown(argv: list[str]) -> str:
    return shlex.join(argv)
