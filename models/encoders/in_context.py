"""No bottleneck: every cell of the demonstrations is a context token, and takes part in the decoder's recursion.

A token is the sum of embeddings of its colour, of its role (input or output), of the aligned cell, which is the cell of
the same row and column in the other grid of its pair (PAD where that grid has none), and by option of row and column.
Nothing says which pair it comes from: an embedding of pairs would let their order matter. Cells of one pair are told
from those of others by what they are aligned with and, where pairs differ in size or offset, by where they stand.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from config.arch_schema import EtrmArch
from dataset.batches import Demonstrations
from dataset.grids import CANVAS_SIDE, PAD, SEQ_LEN, VOCAB_SIZE
from models.encoders.base import DemoEncoder, EncoderOutput, encoder, forward_dtype
from models.layers import TokenEmbedding, trunc_normal_
from models.positions import coordinates_above_canvas, coordinates_of_cells


@encoder("in_context")
class InContextEncoder(DemoEncoder):
    """A learned first token, which the q head reads, then those of all pairs' cells and EOS borders.

    `context_tokens: two` has a token for each cell of an input and of an output, `one` a token for each place where
    either grid has a cell, with both colours. The decoder's z_H and z_L of these tokens evolve with the answer's.
    """

    def __init__(self, config: EtrmArch):
        super().__init__(num_tokens=None)
        hidden = config.hidden_size
        self.dtype = forward_dtype(config)
        self.first_position = config.puzzle_emb_len
        self.has_roles = config.context_tokens == "two"
        self.first = nn.Parameter(trunc_normal_(torch.empty(hidden), hidden**-0.5))
        self.colour_embedding = TokenEmbedding(VOCAB_SIZE, hidden)  # `one`: of the input
        self.aligned_embedding = TokenEmbedding(VOCAB_SIZE, hidden)  # `one`: of the output
        self.role_embedding = TokenEmbedding(2, hidden) if self.has_roles else None
        self.coordinates = CellCoordinates(hidden) if config.context_coordinates else None

    def encode(self, demonstrations: Demonstrations) -> EncoderOutput:
        """The context is as long as the batch's longest, whatever the number of slots: memory follows real tokens."""
        index, mask = where_valid(self._shown(demonstrations))
        num_places = demonstrations.inputs[0].numel()
        role, place = index // num_places, index % num_places
        cells = place % SEQ_LEN
        grids = [grid.flatten(1).gather(1, place).int() for grid in (demonstrations.inputs, demonstrations.labels)]
        inputs, outputs = (torch.where(mask, grid, PAD) for grid in grids)
        own, aligned = torch.where(role == 0, inputs, outputs), torch.where(role == 0, outputs, inputs)
        context = F.embedding((role * VOCAB_SIZE + own) * VOCAB_SIZE + aligned, self._token_table())
        if self.coordinates is not None:
            context = context + self.coordinates(cells, self.dtype)
        return self._behind_the_first(context, mask, cells)

    def _shown(self, demonstrations: Demonstrations) -> Bool[Tensor, "batch slots"]:
        """Which slots give a token: all places of the pairs, with roles those of the inputs before the outputs'."""
        has_cell = torch.stack([demonstrations.inputs != PAD, demonstrations.labels != PAD], dim=1)  # (b, 2, k, 900)
        if not self.has_roles:
            has_cell = has_cell.any(dim=1, keepdim=True)
        return (has_cell & demonstrations.mask[:, None, :, None]).flatten(1)

    def _token_table(self) -> Float[Tensor, "rows hidden"]:
        """The embedding of each (role, colour, aligned colour)."""
        colour, aligned = self.colour_embedding.embedding_weight, self.aligned_embedding.embedding_weight
        table = (colour[:, None] + aligned).flatten(0, 1)
        if self.role_embedding is not None:
            table = (self.role_embedding.embedding_weight[:, None] + table).flatten(0, 1)
        return table.to(self.dtype)

    def _behind_the_first(
        self,
        context: Float[Tensor, "batch tokens hidden"],
        mask: Bool[Tensor, "batch tokens"],
        cells: Int[Tensor, "batch tokens"],
    ) -> EncoderOutput:
        """A cell has the place that the decoder's cell has; the first token stands above the canvas."""
        zero = cells.new_zeros(len(cells), 1)
        return EncoderOutput(
            context=torch.cat([self.first.to(self.dtype).expand(len(cells), 1, -1), context], dim=1),
            mask=torch.cat([torch.ones_like(zero, dtype=torch.bool), mask], dim=1),
            positions=torch.cat([zero, cells + self.first_position], dim=1),
            kl_loss=context.new_zeros(len(cells), dtype=torch.float32),
            coordinates=torch.cat([coordinates_above_canvas(zero), coordinates_of_cells(cells)], dim=1),
        )


class CellCoordinates(nn.Module):
    """An embedding of a cell's row and one of its column, summed: what attention finds can tell where it was."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.row_embedding = TokenEmbedding(CANVAS_SIDE, hidden_size)
        self.column_embedding = TokenEmbedding(CANVAS_SIDE, hidden_size)

    def forward(self, cells: Int[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape hidden"]:
        row, column = coordinates_of_cells(cells).unbind(-1)
        return self.row_embedding(row, dtype) + self.column_embedding(column, dtype)


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
