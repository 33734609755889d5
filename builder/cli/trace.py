"""`build trace`: which files, and which parts of them, the start of an image reads."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli.context import Context
from builder.cli.options import common, plain_http_option
from builder.cli.starting import Options, Starter, start_options
from builder.coldstart import residency
from builder.coldstart import trace as traces
from builder.coldstart.trace import Trace, TracedFile
from builder.errors import BuilderError
from builder.oci.files import write
from builder.progress import counted, human_size


@click.command(
    help="Start the image REF on the lazy stack and note what the start reads: files, and parts of large ones. The result "
    "goes to FILE (`NAME.trace.json` beside a profile), is the same for the same start, and is reviewed as a lock is. "
    "With -n, what any of several starts read. Needs what `build start` needs.",
    epilog="Example: build trace oci:out/ocr -o ocr.trace.json --model /models/ocr oci:out/ocr:model-ocr "
    "--ready http://127.0.0.1:8080/healthz",
)
@start_options
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE", help="The trace."
)
@click.option("-n", "--count", type=click.IntRange(1, 20), default=1, show_default=True, help="How many starts.")
@click.option("--add", is_flag=True, help="Add to what FILE has already, such as another way to start the image.")
@plain_http_option
@common
def trace(context: Context, options: Options, output: Path, count: int, add: bool) -> None:
    """Traces, writes, and says how much it was."""
    before = [traces.parse(_read(output), str(output))] if add else []
    starter = Starter.prepare(context, options, "soci")
    found = traces.merged([*before, *(_traced(starter) for _ in range(count))])
    try:
        write(output, traces.encode(found).encode())
    except OSError as error:
        raise BuilderError(f"{output}: cannot be written: {error.strerror}", hint="choose another place: -o") from error
    read = sum(file.read for file in found.files)
    context.progress.note(f"{output}: {counted(len(found.files), 'file')}, {human_size(read)} of {_size(found)}")


def _traced(starter: Starter) -> Trace:
    files: tuple[TracedFile, ...] = ()
    with starter.stack(watched=True) as (running, gateway):
        starter.mount(running, gateway)
        if not residency.without_readahead(residency.layers(running.folder)):
            starter.context.progress.note(
                "the kernel's read-ahead cannot be turned off here (/sys is read-only): more is noted than what is read"
            )
        with residency.watching(running.folder, running.folder / "soci.log", starter.wanted.platform) as noted:

            def look() -> None:
                nonlocal files
                files = noted().files

            starter.start(running, gateway, again=True, look=look)
    if not files:
        raise BuilderError(
            "the image was not started lazily: no layer was mounted, or nothing of one was read",
            hint="publish it with its SOCI index, with layers of `publish.soci.min-layer-size` or more",
        )
    return Trace(traces.VERSION, starter.wanted.platform, files)


def _size(found: Trace) -> str:
    return human_size(sum(file.size for file in found.files))


def _read(path: Path) -> bytes:
    try:
        return traces.read(path)
    except OSError as error:
        raise BuilderError(f"{path}: cannot be read: {error.strerror}", hint="leave out --add") from error
