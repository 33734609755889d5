"""`build node-config`: settings of nodes that were measured to help."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from builder.cli.options import format_option
from builder.coldstart.recommended import Client, Mode, Node, containerd_text, soci, soci_text


@click.command(
    "node-config",
    help="Print the settings of a node that starts images lazily, as the file that WHICH of its daemons reads: those that are "
    "needed, and those that were measured to help, each with its figure. Whatever is not said stays as it is by default.",
    epilog="Example: build node-config soci --prefetch >/etc/soci-snapshotter-grpc/config.toml",
)
@click.argument("which", type=click.Choice(["soci", "containerd"]))
@click.option(
    "--client",
    type=click.Choice(["containerd", "kubernetes"]),
    default="containerd",
    show_default=True,
    help="Who asks containerd for images: `ctr` and `nerdctl`, or a kubelet.",
)
@click.option(
    "--mode",
    type=click.Choice(["lazy", "parallel"]),
    default="lazy",
    show_default=True,
    help="Start images before they are there, or pull all of them with many connections at once.",
)
@click.option(
    "--prefetch", is_flag=True, help="Fetch what indexes list (`publish.soci.prefetch`) before containers start."
)
@click.option(
    "--cores",
    type=click.IntRange(1, 1024),
    default=4,
    show_default=True,
    help="Of the node; as many layers are unpacked at once.",
)
@click.option("--soci-address", default=Node.soci, show_default=True, metavar="SOCKET", help="Of soci-snapshotter.")
@click.option(
    "--containerd-address", default=Node.containerd, show_default=True, metavar="SOCKET", help="Of containerd."
)
@click.option(
    "--root", default=Node.root, show_default=True, metavar="DIR", help="Where soci-snapshotter keeps what it has."
)
@format_option
def node_config(
    which: str,
    client: Client,
    mode: Mode,
    prefetch: bool,
    cores: int,
    soci_address: str,
    containerd_address: str,
    root: str,
    form: str,
) -> None:
    """Prints the file, or the settings with their figures as JSON."""
    if prefetch and mode == "parallel":
        raise click.UsageError("--prefetch is for --mode lazy: what is pulled whole needs no list")
    for option, text in (("soci-address", soci_address), ("containerd-address", containerd_address), ("root", root)):
        if not (text.startswith("/") and text.isprintable()):
            raise click.UsageError(f"--{option} {text!r}: no absolute path")
    node = Node(mode, client, prefetch, soci_address, containerd_address, root, cores)
    if form == "text":
        click.echo(soci_text(node) if which == "soci" else containerd_text(node), nl=False)
        return
    if which == "containerd":
        raise click.UsageError(
            "--format json is for `node-config soci`: nothing of containerd's was measured to matter"
        )
    rows = [{**asdict(setting), "table": list(setting.table)} for setting in soci(node)]
    click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
