"""MiniLM's sentence embeddings in numpy alone: words to tokens, tokens through the BERT encoder, their mean as a unit vector.

What it needs of a model is `config.json`, `vocab.txt`, and tensors by name; where they come from is the caller's affair.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = Any
Tensors = Callable[[str], Array]
LONGEST_WORD = 100


class Tokenizer:
    """BERT's tokens of an uncased vocabulary: words in lower case without accents, split into the longest known pieces."""

    def __init__(self, vocabulary: str) -> None:
        self._ids = {word: number for number, word in enumerate(vocabulary.splitlines())}
        self._unknown, self._first, self._last = (self._ids[name] for name in ("[UNK]", "[CLS]", "[SEP]"))

    def encode(self, text: str, most: int) -> list[int]:
        """The numbers of a text's tokens, with those that begin and end it; at most `most`."""
        pieces = [piece for word in _words(text) for piece in self._pieces(word)]
        return [self._first, *pieces[: most - 2], self._last]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > LONGEST_WORD:
            return [self._unknown]
        found, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            for end in range(len(word), start, -1):
                number = self._ids.get(mark + word[start:end])
                if number is not None:
                    break
            else:
                return [self._unknown]
            found.append(number)
            start = end
        return found


class Encoder:
    """The encoder. Every matrix is brought to float32 once, when it is made."""

    def __init__(self, config: Mapping[str, Any], tensors: Tensors) -> None:
        self.heads: int = config["num_attention_heads"]
        self.layers: int = config["num_hidden_layers"]
        self.most: int = config["max_position_embeddings"]
        self._epsilon = np.float32(config["layer_norm_eps"])

        def table(name: str) -> Array:
            return np.asarray(tensors(name)).astype(np.float32)

        def linear(name: str) -> tuple[Array, Array]:
            return np.ascontiguousarray(table(f"{name}.weight").T), table(f"{name}.bias")

        def norm(name: str) -> tuple[Array, Array]:
            return table(f"{name}.LayerNorm.weight"), table(f"{name}.LayerNorm.bias")

        self._words = table("embeddings.word_embeddings.weight")
        self._places = (
            table("embeddings.position_embeddings.weight") + table("embeddings.token_type_embeddings.weight")[0]
        )
        self._norm = norm("embeddings")
        self._stack = []
        for number in range(self.layers):
            layer = f"encoder.layer.{number}"
            attention = [linear(f"{layer}.attention.{part}") for part in ("self.query", "self.key", "self.value")]
            self._stack.append(
                (
                    tuple(np.concatenate(parts, axis=-1) for parts in zip(*attention, strict=True)),
                    linear(f"{layer}.attention.output.dense"),
                    norm(f"{layer}.attention.output"),
                    linear(f"{layer}.intermediate.dense"),
                    linear(f"{layer}.output.dense"),
                    norm(f"{layer}.output"),
                )
            )

    def embed(self, tokens: Sequence[Sequence[int]]) -> Array:
        """One unit vector for each sequence of tokens, float32."""
        return np.stack([self._embed(list(sequence)) for sequence in tokens])

    def _embed(self, tokens: list[int]) -> Array:
        state = self._normed(self._words[tokens] + self._places[: len(tokens)], self._norm)
        for (weights, bias), mixed, first, wide, narrow, second in self._stack:
            state = self._normed(state + _apply(self._attend(state @ weights + bias), mixed), first)
            state = self._normed(state + _apply(_gelu(_apply(state, wide)), narrow), second)
        mean = state.mean(0)
        return mean / np.linalg.norm(mean)

    def _attend(self, mixed: Array) -> Array:
        length, width = mixed.shape[0], mixed.shape[1] // 3
        query, key, value = mixed.reshape(length, 3, self.heads, width // self.heads).transpose(1, 2, 0, 3)
        scores = query @ key.transpose(0, 2, 1) / np.float32(math.sqrt(width / self.heads))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return (scores @ value).transpose(1, 0, 2).reshape(length, width)

    def _normed(self, state: Array, norm: tuple[Array, Array]) -> Array:
        centred = state - state.mean(-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + self._epsilon)
        return centred / spread * norm[0] + norm[1]


def _apply(state: Array, layer: tuple[Array, Array]) -> Array:
    return state @ layer[0] + layer[1]


def _gelu(x: Array) -> Array:
    """x · Φ(x); the error function by Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7."""
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return (0.5 * x * (1 + np.sign(x) * (1 - poly * np.exp(-z * z)))).astype(np.float32)


def _words(text: str) -> list[str]:
    """Words and single marks: spaces split, punctuation and Chinese characters stand alone, accents go."""
    plain = unicodedata.normalize("NFD", "".join(map(_cleaned, text)).lower())
    spaced = "".join(
        f" {character} " if _stands_alone(character) else character
        for character in plain
        if unicodedata.category(character) != "Mn"
    )
    return spaced.split()


def _cleaned(character: str) -> str:
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    return "" if character in "\0\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co") else character


def _stands_alone(character: str) -> bool:
    code = ord(character)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    chinese = (
        0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x2FA1F
    )
    return ascii_mark or chinese or unicodedata.category(character).startswith("P")
