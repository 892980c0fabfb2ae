"""Gradients of embedding tables, without a new table of zeros for every backward pass.

A batch meets some hundred words of thousands, but torch's gradient of a table is as large as the table, and new: on a
CPU the first touch of its memory is 4 to 7 % of a step of full fine-tuning. Here backward passes give the rows that the
batch met, and these are added up in one table that is kept from step to step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class EmbeddingGradients:
    """The gradient tables of a model's embeddings; none where a table is also something else's weight."""

    def __init__(self, model: nn.Module) -> None:
        uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        self._tables: dict[nn.Embedding, Tensor | None] = {
            module: None
            for module in model.modules()
            if type(module) is nn.Embedding
            and uses[id(module.weight)] == 1
            and not (module.sparse or module.scale_grad_by_freq or module.max_norm)
        }

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Inside are the forward and backward passes of one gradient; then `.grad` is what torch's own would be.

        It is overwritten when this is next entered. On a GPU new memory costs nothing, and torch goes its own way.
        """
        tables = [table for table in self._tables if table.weight.device.type == "cpu"]
        try:
            for table in tables:
                table.sparse = True
            yield
        finally:
            for table in tables:
                table.sparse = False
        for table in tables:
            if (rows := table.weight.grad) is not None and rows.is_sparse:
                table.weight.grad = self._added_up(table, rows)

    def _added_up(self, table: nn.Embedding, rows: Tensor) -> Tensor:
        """The whole gradient. rows: sparse, a row as often as the batch met its word. [V, D] -> [V, D]"""
        kept = self._tables[table]
        whole = table.weight.new_empty(table.weight.shape) if kept is None else kept
        self._tables[table] = whole
        return whole.zero_().index_add_(0, rows._indices()[0], rows._values())
