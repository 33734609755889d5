"""A published model in torch, transformers and numpy, by the tensor and as a folder: `python -m bench.frameworks REF`.

For a Python that has torch and transformers, three gigabytes that no test fetches. REF is a model for sentences, such as the
MiniLM of the package index. It fails unless all ways give the same numbers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from builder.models import LazyModel, open_model

SENTENCES = ("A cat sits on the mat.", "Weights do not belong into images.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.frameworks")
    parser.add_argument("ref", help="a published model with config.json, a tokenizer and safetensors")
    ref = parser.parse_args().ref
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    with tempfile.TemporaryDirectory() as name, open_model(ref, cache=Path(name, "cache")) as model:
        begun = time.perf_counter()
        state = model.state_dict()
        print(f"{len(state)} tensors, {sum(each.nbytes for each in state.values()):,} bytes: {_since(begun)}")
        folder = model.folder(Path(name, "folder"))
        whole = LazyModel(lambda: AutoModel.from_pretrained(folder), probe=lambda it: it.eval())
        begun = time.perf_counter()
        whole.start()
        tokens = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
        by_folder = whole.get(300)
        print(f"from_pretrained on the pulled folder: {_since(begun)}")
        by_tensor = AutoModel.from_config(AutoConfig.from_pretrained(folder)).eval()
        lacking = by_tensor.load_state_dict(state, strict=False).missing_keys
        assert not [key for key in lacking if "position_ids" not in key], lacking
        with torch.no_grad():
            one, other = (each(**tokens).last_hidden_state for each in (by_folder, by_tensor))
        assert torch.equal(one, other)
        largest = max(state, key=lambda key: state[key].nbytes)
        rows = model.tensor(largest)[:16]
        assert torch.equal(torch.from_numpy(rows.copy()), state[largest][:16])
        print(f"the same {tuple(one.shape)} numbers by folder and by tensor, and the same rows of {largest} by numpy")


def _since(begun: float) -> str:
    return f"{time.perf_counter() - begun:.2f} s"


if __name__ == "__main__":
    main()
