"""What a node with containerd mounts: of a model's image its files, of its artifact nothing, without an error. Needs root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import judges
import modelworld
import pytest
from containernode import Node, container_node
from registryworld import repository

from builder.models.image import image_of, publish_image
from builder.models.publish import publish
from builder.places.delivery import Sink
from builder.progress import Silent

FILES = {path: data for path, data in modelworld.small_files().items() if data}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with container_node() as running:
        yield running


def test_containerd_mounts_the_image_and_not_the_artifact(
    node: Node, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = modelworld.small_model(tmp_path / "files", FILES)
    with judges.registry("docker-registry", tmp_path_factory.mktemp("registry")) as address:
        target = repository(address, "models/small")
        publish(model, [Sink("registry", target, ("v1",))], Silent())
        publish_image(image_of(model, None, Silent()), [Sink("registry", target, ("v1-image",))], Silent())
        assert node.mounted(f"{address}/models/small:v1-image") == {f"models/{path}": FILES[path] for path in FILES}
        assert node.mounted(f"{address}/models/small:v1") == {}
