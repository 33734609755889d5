"""`build model`: models as artifacts of their own, with a profile and without one; a verb a file."""

from __future__ import annotations

from collections.abc import Mapping

import click

from builder.cli.main import Verbs

VERBS = {
    "publish": "builder.cli.model.publish:publish",
    "list": "builder.cli.model.list:list_models",
    "inspect": "builder.cli.model.inspect:inspect",
    "diff": "builder.cli.model.diff:diff",
    "convert": "builder.cli.model.convert:convert",
    "pull": "builder.cli.model.pull:pull",
    "cat": "builder.cli.model.cat:cat",
    "verify": "builder.cli.model.verify:verify",
    "client": "builder.cli.model.client:client",
    "recipe": "builder.cli.model.recipe:print_recipe",
}
"""Each verb and the command that does it, imported when it is asked for."""

_SUMMARIES = {
    "publish": "Publish the files of a model.",
    "list": "Show which models a place holds.",
    "inspect": "Show the files and tensors of a published model.",
    "diff": "Show what differs between two models.",
    "convert": "Convert a model to another precision.",
    "pull": "Pull a model into a folder, whole or in part.",
    "cat": "Write a file or a tensor of a model to stdout.",
    "verify": "Verify that a model is what it says.",
    "client": "Write the program that pulls, as one file.",
    "recipe": "Print how a cluster gets the models of a profile.",
}


class _ModelVerbs(Verbs):
    verbs: Mapping[str, str] = VERBS
    summaries: Mapping[str, str] = _SUMMARIES


@click.group(
    cls=_ModelVerbs,
    help="Models as artifacts of their own, in registries `HOST/REPOSITORY[:TAG]`, OCI layouts `oci:DIR[:TAG]` and archives "
    "`oci-archive:FILE[:TAG]`: published as CNCF ModelPack, one file a layer, and read by the file or by the tensor.",
    epilog="Example: build model publish ./bert localhost:5000/models:bert",
)
def model() -> None:
    """The group; its verbs are files beside this one."""
