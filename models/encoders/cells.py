"""The cells of the demonstrations as tokens.

A token is the sum of embeddings of its colour, of its role (input or output), and of the aligned cell, which is that
of the same row and column in the other grid of its pair (PAD where that grid has none).
Nothing says which pair it comes from: an embedding of pairs would let their order matter. Cells of one pair are told
from those of others by what they are aligned with and, where pairs differ in size or offset, by where they stand.
"""

from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dataset.batches import Demonstrations
from dataset.grids import PAD, SEQ_LEN, VOCAB_SIZE
from models.canvas import extents_of
from models.encoders.base import EncoderOutput, HasDtype, forward_dtype, packs_by_view
from models.grid_conv import with_neighbours
from models.grid_coordinates import ABSENT, GridCoordinates, grid_coordinates
from models.layers import TokenEmbedding, trunc_normal_
from models.packing import Packing, pack
from models.pair_vectors import pair_means
from models.positions import coordinates_above_canvas, coordinates_of_cells
from models.task_rows import in_stack, of_each_sample


class CellConfig(HasDtype, Protocol):
    """What the tokens read of an `arch` config."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def puzzle_emb_len(self) -> int: ...
    @property
    def context_tokens(self) -> str: ...
    @property
    def query_as_context(self) -> bool: ...


class CellTokens(nn.Module):
    """A learned first token, which the q head reads, then those of all pairs' cells and EOS borders.

    `context_tokens: two` has a token for each cell of an input and of an output, `one` a token for each place where
    either grid has a cell, with both colours.
    """

    def embed_cells(self, config: CellConfig) -> None:
        """Make the embeddings."""
        hidden = config.hidden_size
        self.dtype = forward_dtype(config)
        self.first_position = config.puzzle_emb_len
        self.has_roles = config.context_tokens == "two"
        self.embeds_query = config.query_as_context
        self.first = nn.Parameter(trunc_normal_(torch.empty(hidden), hidden**-0.5))
        self.colour_embedding = TokenEmbedding(VOCAB_SIZE, hidden)  # `one`: of the input
        self.aligned_embedding = TokenEmbedding(VOCAB_SIZE, hidden)  # `one`: of the output
        self.role_embedding = TokenEmbedding(2, hidden) if self.has_roles else None

    def tokens(self, demonstrations: Demonstrations) -> EncoderOutput:
        """The context is as long as the batch's longest, whatever the number of slots: memory follows real tokens."""
        shown = self._shown(demonstrations)
        index, mask = where_valid(shown.flatten(1))
        cells, role = index % SEQ_LEN, index // SEQ_LEN % shown.shape[2]
        place = index // (SEQ_LEN * shown.shape[2]) * SEQ_LEN + cells
        grids = [grid.flatten(1).gather(1, place).int() for grid in (demonstrations.inputs, demonstrations.labels)]
        inputs, outputs = (torch.where(mask, grid, PAD) for grid in grids)
        own, aligned = torch.where(role == 0, inputs, outputs), torch.where(role == 0, outputs, inputs)
        table = self._token_table()
        context = F.embedding(in_stack((role * VOCAB_SIZE + own) * VOCAB_SIZE + aligned, table), table.flatten(0, -2))
        output = self._behind_the_first(context, mask, cells, shown.sum((2, 3)))
        return replace(
            output,
            cells=torch.cat([index.new_full((len(index), 1), -1), index], dim=1),
            grids=shown.shape[1] * shown.shape[2],
            in_grid=self._in_grid(demonstrations, cells, place // SEQ_LEN),
            query_tokens=self._as_query(table) if self.embeds_query else None,
        )

    @staticmethod
    def _as_query(table: Float[Tensor, "*tasks rows hidden"]) -> Float[Tensor, "*tasks vocab hidden"]:
        """A query's cell is like an input's whose output is not known, so that it can be matched with those."""
        return table.unflatten(-2, (-1, VOCAB_SIZE, VOCAB_SIZE))[..., 0, :, PAD, :]

    @staticmethod
    def _in_grid(
        demonstrations: Demonstrations, cells: Int[Tensor, "batch tokens"], pair: Int[Tensor, "batch tokens"]
    ) -> Int[Tensor, "batch 1+tokens 4"]:
        """Where the first token, which is nowhere, and the cells stand in the input grid of their pair."""
        index = pair[..., None].expand(-1, -1, 2)
        first, end = (bound.gather(1, index) for bound in extents_of(demonstrations.inputs))
        numbers = grid_coordinates(cells, first, end)
        return torch.cat([numbers.new_full((len(cells), 1, 4), ABSENT), numbers], dim=1)

    def _shown(self, demonstrations: Demonstrations) -> Bool[Tensor, "batch demos roles 900"]:
        """Which places give a token, pair by pair; with roles those of the input and those of the output."""
        has_cell = torch.stack([demonstrations.inputs != PAD, demonstrations.labels != PAD], dim=2)
        if not self.has_roles:
            has_cell = has_cell.any(dim=2, keepdim=True)
        return has_cell & demonstrations.mask[..., None, None]

    def _token_table(self) -> Float[Tensor, "*tasks rows hidden"]:
        """The embedding of each (role, colour, aligned colour)."""
        colour, aligned = self.colour_embedding.embedding_weight, self.aligned_embedding.embedding_weight
        table = (colour[..., None, :] + aligned[..., None, :, :]).flatten(-3, -2)
        if self.role_embedding is not None:
            table = (self.role_embedding.embedding_weight[..., None, :] + table[..., None, :, :]).flatten(-3, -2)
        return table.to(self.dtype)

    def _behind_the_first(
        self,
        context: Float[Tensor, "batch tokens hidden"],
        mask: Bool[Tensor, "batch tokens"],
        cells: Int[Tensor, "batch tokens"],
        pair_lengths: Int[Tensor, "batch demos"],
    ) -> EncoderOutput:
        """A cell has the place that the decoder's cell has; the first token stands above the canvas."""
        zero = cells.new_zeros(len(cells), 1)
        return EncoderOutput(
            context=torch.cat([of_each_sample(self.first.to(self.dtype), len(cells))[:, None], context], dim=1),
            mask=torch.cat([torch.ones_like(zero, dtype=torch.bool), mask], dim=1),
            positions=torch.cat([zero, cells + self.first_position], dim=1),
            kl_loss=context.new_zeros(len(cells), dtype=torch.float32),
            coordinates=torch.cat([coordinates_above_canvas(zero), coordinates_of_cells(cells)], dim=1),
            pair_lengths=pair_lengths,
        )


def evidence_packing(tokens: EncoderOutput, scope: str, *, grid_conv: bool = False) -> Packing:
    """The packing of the cells behind the first token.

    Args:
        scope: what layers attend within: `all` of a task, a `pair`, or both in turn (`alternate`).
        grid_conv: whether layers ask for a cell's neighbours.
    """
    mask = tokens.mask[:, 1:]
    packing = pack(mask, by_view=packs_by_view(mask.device, tokens.context.dtype))
    if grid_conv:
        assert tokens.cells is not None
        packing = with_neighbours(packing, tokens.cells[:, 1:], tokens.grids)
    return packing.scoped(scope, tokens.pair_lengths, mask.shape[1])


def packed_cells(
    tokens: EncoderOutput, packing: Packing, coordinates: GridCoordinates | None
) -> Float[Tensor, "n hidden"]:
    """The cells behind the first token as rows of a network, with where they stand in their grids."""
    cells = tokens.context[:, 1:]
    x = cells.shape[-1] ** 0.5 * packing.gather(cells)
    if coordinates is None or tokens.in_grid is None:
        return x
    return x + coordinates(packing.gather(tokens.in_grid[:, 1:]), x.dtype)


def pairs_of_cells(
    rows: Float[Tensor, "n hidden"], packing: Packing, tokens: EncoderOutput
) -> Float[Tensor, "batch demos hidden"]:
    """The mean of each pair's rows; `packing` is that of the cells behind the first token."""
    assert tokens.cells is not None
    assert tokens.pair_lengths is not None
    return pair_means(rows, packing, tokens.cells[:, 1:], tokens.grids, tokens.pair_lengths.shape[1])


def where_valid(
    valid: Bool[Tensor, "batch slots"],
) -> tuple[Int[Tensor, "batch longest"], Bool[Tensor, "batch longest"]]:
    """Each row's valid slots in their order, and which of them there are; the rest of a row is slot 0."""
    count = valid.cumsum(1)
    lengths = count[:, -1:]
    is_used = torch.arange(valid.shape[1], device=valid.device) < lengths.max()
    number = 1 + is_used.nonzero().squeeze(-1).expand(len(valid), -1)  # the one synchronisation
    there = number <= lengths
    return torch.where(there, torch.searchsorted(count, number), 0), there
