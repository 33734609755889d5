"""What `build inspect --gpu` says of a published image: whether and how it runs on one architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import click

from builder.errors import HostileInputError
from builder.examine import ExaminedImage
from builder.gpu import architectures, drivers, labels
from builder.gpu.contract import Support, Verdict, verdict
from builder.gpu.values import GpuContract


def architecture(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """The option's value, if it is the architecture of a GPU."""
    if value is None:
        return None
    try:
        architectures.number(value)
    except ValueError as error:
        digits = value.replace(".", "")
        near = f"; did you mean sm_{digits}?" if digits.isdecimal() and len(digits) in (2, 3) else ""
        raise click.BadParameter(f"{error}{near}") from error
    return value


def summary(contract: GpuContract) -> str:
    """What a contract says, in a line or two."""
    lists = (("natively", contract.native), ("compiled by the driver", contract.ptx))
    parts = [f"{', '.join(names)} {how}" for how, names in lists if names]
    driver = f"; driver {contract.driver} or later" if contract.driver else ""
    return f"GPUs: {'; '.join(parts) or 'none'}{driver}"


@dataclass(frozen=True)
class Answer:
    """For one image: the verdict, None where the image does not speak of GPUs; and the lowest driver, if it is known."""

    platform: str
    architecture: str
    verdict: Verdict | None
    driver: str | None

    @property
    def runs(self) -> bool:
        """Whether it runs there; not known is no."""
        return self.verdict is not None and self.verdict.support is not Support.NONE

    def text(self) -> str:
        """The answer in a few lines."""
        if self.verdict is None:
            return f"{self.platform}: it says nothing of GPUs: it was not made with `gpu` or `cuda` in its profile"
        found = self.verdict
        lines = [
            f"{self.architecture}: {project} has no code for it, but for {', '.join(has)}"
            for project, has in found.lacking
        ]
        if found.support is Support.NATIVE:
            lines.append(f"{self.architecture}: runs natively")
        elif found.support is Support.PTX:
            cuda = f", which takes the driver of CUDA {drivers.cuda_of(found.isa)} or later" if found.isa else ""
            lines.append(f"{self.architecture}: runs; the driver compiles {', '.join(found.compiled)}{cuda}")
        elif not found.lacking:
            lines.append(f"{self.architecture}: nothing in it is for GPUs")
        if found.unused and self.runs:
            lines.append(f"{self.architecture}: some files of {', '.join(_projects(found.unused))} are for other GPUs")
        if self.runs and self.driver:
            lines.append(f"driver {self.driver} or later")
        return "\n".join(f"{self.platform}: {line}" for line in lines)

    def document(self) -> dict[str, object]:
        """The answer for programs."""
        found = self.verdict
        return {
            "architecture": self.architecture,
            "support": str(found.support) if found else None,
            "lacking": {project: list(has) for project, has in found.lacking} if found else {},
            "compiled": list(found.compiled) if found else [],
            "cuda": drivers.cuda_of(found.isa) if found and found.isa else None,
            "driver": self.driver,
        }


def answer(image: ExaminedImage, gpu: str) -> Answer:
    """Whether a published image runs on an architecture, by its labels. Raises `HostileInputError` for labels that are
    not as Layerwright writes them."""
    told: Mapping[str, str] = image.config.get("config", {}).get("Labels") or {}
    try:
        code = labels.code_of(told)
        if code is None and labels.CUDA in told:
            code = ()
        found = None if code is None else verdict(code, architectures.number(gpu))
        driver = labels.driver_of(told)
    except (ValueError, AttributeError, TypeError) as error:
        raise HostileInputError(
            f"{image.platform}: its labels of GPUs cannot be read: {error}", hint="publish the image again"
        ) from error
    return Answer(image.platform, gpu, found, driver)


def _projects(files: tuple[str, ...]) -> list[str]:
    return sorted({file.partition(" ")[0] for file in files})
