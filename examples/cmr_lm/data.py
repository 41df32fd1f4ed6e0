"""Real text without a download: the Python documentation topics that CPython ships."""

from __future__ import annotations

import math
from collections import Counter
from pydoc_data.topics import topics

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def topic_texts() -> tuple[bytes, bytes]:
    """Training and validation text: of the topics in alphabetical order every eighth validates."""
    names = sorted(topics)
    train = "\n".join(topics[name] for i, name in enumerate(names) if i % 8 != 2)
    valid = "\n".join(topics[name] for i, name in enumerate(names) if i % 8 == 2)
    return train.encode("utf-8"), valid.encode("utf-8")


def unigram_entropy(train: bytes, valid: bytes) -> float:
    """Cross entropy of the validation bytes under the training bytes' frequencies, nats per byte.

    What a model reaches that knows how often each byte comes and nothing else; one is added to each
    count, so that unseen bytes cost a finite amount.
    """
    counts = Counter(train)
    total = len(train) + 256
    return -sum(math.log((counts[byte] + 1) / total) for byte in valid) / len(valid)


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Contiguous windows of a text: inputs and the bytes that follow each, shape ``(length,)``."""

    def __init__(self, text: bytes, length: int) -> None:
        self.text = torch.tensor(list(text), dtype=torch.int64)
        self.length = length

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.length
        window = self.text[start : start + self.length + 1]
        return window[:-1], window[1:]


class PythonDocs(pl.LightningDataModule):
    """The topics as batches of byte windows.

    ``unigram_entropy`` (nats per byte) and ``unigram_bits`` are what counting bytes alone
    reaches on the validation text.

    Args:
        context: bytes in a window.
        batch_size: windows in a batch.
        validation_batches: batches of validation text that are used.
        seed: of the shuffling.
    """

    def __init__(
        self, context: int = 128, batch_size: int = 16, validation_batches: int = 24, seed: int = 0
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        train, valid = topic_texts()
        self.unigram_entropy = unigram_entropy(train, valid)
        self.unigram_bits = self.unigram_entropy / math.log(2)
        self.train = Windows(train, context)
        self.valid = Windows(valid[: validation_batches * batch_size * context + 1], context)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled windows, the same order in every run of one seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self.train, self.batch_size, shuffle=True, drop_last=True, generator=generator
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Windows in order."""
        return DataLoader(self.valid, self.batch_size)
