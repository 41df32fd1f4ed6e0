"""`FullCMRModel`: a byte-level decoder-only transformer with a memory between its blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cmr_monitor_callbacks import CMRProbe
from examples.cmr_lm.layers import Block, LayerCounters, MemoryLayer
from examples.cmr_lm.memory import LayeredMemoryBuffer, Policy


@dataclass
class CMRConfig:
    """Sizes of the model.

    Attributes:
        vocabulary: number of tokens; 256 for bytes.
        dim: size of a hidden state.
        blocks: transformer blocks, numbered from 1.
        heads: attention heads.
        context: longest sequence.
        dropout: in the blocks.
        memory_layers: numbers of the blocks after which there is a memory layer.
        memory_enabled: false: the same blocks without memory layers.
        capacity: entries of a memory layer.
        capacity_of: entries of single layers, where they differ.
        max_total_entries: entries of all layers together.
        policy: what the buffer drops first.
        protect_steps: steps for which a read protects an entry from eviction.
        retrieve: entries read for each sequence.
        capture: states captured of each sequence, at most.
        threshold: relevance that a state must reach to be captured.
        checkpoint_blocks: recompute the blocks in the backward.
    """

    vocabulary: int = 256
    dim: int = 128
    blocks: int = 6
    heads: int = 4
    context: int = 128
    dropout: float = 0.1
    memory_layers: list[int] = field(default_factory=lambda: [2, 4, 6])
    memory_enabled: bool = True
    capacity: int = 2048
    capacity_of: dict[int, int] = field(default_factory=lambda: {6: 160})
    max_total_entries: int = 6144
    policy: Policy = "mixed"
    protect_steps: int = 8
    retrieve: int = 8
    capture: int = 4
    threshold: float = 0.05
    checkpoint_blocks: bool = False


def _ratio(part: float, whole: float) -> float:
    """A ratio over nothing is no data, not zero."""
    return part / whole if whole else math.nan


class FullCMRModel(nn.Module):
    """A language model whose memory layers capture, store, retrieve and reconstruct hidden states.

    In training each memory layer reads what earlier steps stored, then stores states of its own;
    in evaluation it only reads.

    Args:
        config: sizes.
    """

    def __init__(self, config: CMRConfig) -> None:
        super().__init__()
        self.config = config
        self.step = 0
        self.embed = nn.Embedding(config.vocabulary, config.dim)
        self.position = nn.Embedding(config.context, config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocabulary)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.memory_layers = nn.ModuleDict()
        self.probe = CMRProbe()
        # last, so that the rest starts from the same weights with and without memory
        if config.memory_enabled:
            self._make_memory(config)

    def _make_memory(self, config: CMRConfig) -> None:
        layers = list(config.memory_layers)
        special = {int(layer): n for layer, n in config.capacity_of.items()}
        self.memory_buffer = LayeredMemoryBuffer(
            layers,
            config.dim,
            {layer: special.get(layer, config.capacity) for layer in layers},
            config.max_total_entries,
            config.policy,
            config.protect_steps,
        )
        for layer in layers:
            self.memory_layers[str(layer)] = MemoryLayer(
                layer,
                config.dim,
                self.memory_buffer,
                config.retrieve,
                config.capture,
                config.threshold,
            )

    def forward(
        self, input_ids: Tensor, targets: Tensor | None = None, return_memory_info: bool = False
    ) -> dict[str, Any]:
        """Predict the next byte at each position.

        Args:
            input_ids: shape ``(batch, time)``, integers.
            targets: shape ``(batch, time)``; the loss is given if they are.
            return_memory_info: add the statistics of the memory.

        Returns:
            ``logits`` of shape ``(batch, time, vocabulary)``, ``loss`` (nats per byte, 0-d), and
            with ``return_memory_info`` the plain dictionaries ``performance_stats``,
            ``memory_stats`` and ``memory_info``.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embed(input_ids) + self.position(positions)
        for number, block in enumerate(self.blocks, start=1):
            if self.config.checkpoint_blocks and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            memory = self.memory_layer(number)
            if memory is not None:
                x = memory(x, self.step)
        if self.training:
            self.step += 1
            if self.config.memory_enabled:
                self.probe.buffer(self.memory_buffer.total_entries, self.config.max_total_entries)
        outputs: dict[str, Any] = {"logits": self.head(self.norm(x))}
        if targets is not None:
            logits = outputs["logits"].flatten(0, 1).float()
            outputs["loss"] = functional.cross_entropy(logits, targets.flatten())
        if return_memory_info:
            outputs["performance_stats"] = self.performance_stats
            outputs["memory_stats"] = self.memory_stats
            outputs["memory_info"] = {"step": self.step, "layers": list(self.config.memory_layers)}
        return outputs

    def memory_layer(self, number: int) -> MemoryLayer | None:
        """The memory layer after a block, if there is one."""
        if str(number) not in self.memory_layers:
            return None
        return cast(MemoryLayer, self.memory_layers[str(number)])

    def clear_memory(self) -> int:
        """Forget the entries of all layers; how many there were."""
        cleared = sum(cast(MemoryLayer, layer).clear() for layer in self.memory_layers.values())
        if self.config.memory_enabled:
            self.probe.buffer(0, self.config.max_total_entries)
        return cleared

    def _counters(self) -> dict[int, LayerCounters]:
        layers = {int(key): cast(MemoryLayer, m) for key, m in self.memory_layers.items()}
        return {number: layer.counters for number, layer in layers.items()}

    @property
    def performance_stats(self) -> dict[str, Any]:
        """What the memory layers did so far, as the specification names it."""
        layers = self._counters()
        captures = [s for c in layers.values() for s in c.capture_seconds]
        reconstructions = [s for c in layers.values() for s in c.reconstruction_seconds]
        return {
            "total_captures": sum(c.captured for c in layers.values()),
            "total_reconstructions": sum(c.reconstructions for c in layers.values()),
            "states_captured_per_layer": {i: c.captured for i, c in layers.items()},
            "states_stored_per_layer": {i: c.stored for i, c in layers.items()},
            "reconstructions_per_layer": {i: c.reconstructions for i, c in layers.items()},
            "capture_times": captures,
            "reconstruction_times": reconstructions,
            "avg_capture_time": _ratio(sum(captures), len(captures)),
            "avg_reconstruction_time": _ratio(sum(reconstructions), len(reconstructions)),
        }

    @property
    def memory_stats(self) -> dict[str, Any]:
        """What the buffer holds and how it is read, as the specification names it."""
        if not self.config.memory_enabled:
            return {}
        counters = self._counters().values()
        retrievals = sum(c.retrievals for c in counters)
        hits = sum(c.cache_hits for c in counters)
        buffer = self.memory_buffer.get_buffer_stats()
        return {
            **buffer,
            "eviction_rate": _ratio(buffer["eviction_count"], sum(c.stored for c in counters)),
            "total_retrievals": retrievals,
            "avg_retrieval_time": _ratio(sum(c.retrieval_seconds for c in counters), retrievals),
            "cache_hits": hits,
            "cache_hit_rate": _ratio(hits, retrievals),
            "retrieval_quality": _ratio(sum(c.similarity for c in counters), retrievals),
        }

    def get_extra_state(self) -> dict[str, Any]:
        """The step and the counters, for a checkpoint."""
        counters = {str(number): dict(vars(c)) for number, c in self._counters().items()}
        return {"step": self.step, "counters": counters}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        self.step = state["step"]
        for number, counters in self._counters().items():
            vars(counters).update(state["counters"][str(number)])
