"""TRM: the published baseline, whose context is a learned embedding of the puzzle's id."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from config.arch_schema import TrmArch
from dataset.batches import Batch
from models.act import StaticContextReasoner
from models.encoders.base import EncoderOutput, fixed_length_output
from models.recursive_reasoning.decoder import TRMEncoderInner

EMBEDDINGS = "inner.puzzle_emb.weights"  # in a TRM's state


class PuzzleEmbedding(nn.Module):
    """A row of `puzzle_emb_ndim` numbers for each puzzle identifier, from zero.

    The table is a buffer: no optimizer, average or gradient is as large as it. In training a forward pass leaves the
    rows of its batch in `touched`, a leaf of the graph, for `learning.optim.PuzzleEmbeddingSGD`.
    """

    weights: Tensor

    def __init__(self, num_puzzles: int, ndim: int):
        super().__init__()
        self.register_buffer("weights", torch.zeros(num_puzzles, ndim))
        self.touched: tuple[Tensor, Tensor] | None = None

    def forward(self, puzzle_identifiers: Int[Tensor, " batch"]) -> Float[Tensor, "batch ndim"]:
        rows = self.weights[puzzle_identifiers]
        if self.training and torch.is_grad_enabled():
            rows.requires_grad_()
            self.touched = (puzzle_identifiers, rows)
        return rows


class TRMInner(TRMEncoderInner):
    """The decoder with the puzzle embeddings beside it, named as in published checkpoints."""

    def __init__(self, config: TrmArch, num_puzzle_identifiers: int):
        super().__init__(config)
        self.puzzle_emb = PuzzleEmbedding(num_puzzle_identifiers, config.puzzle_emb_ndim)

    def puzzle_context(self, puzzle_identifiers: Int[Tensor, " batch"]) -> EncoderOutput:
        """The puzzle's embedding, zero-padded and cut into `puzzle_emb_len` context tokens."""
        rows = self.puzzle_emb(puzzle_identifiers)
        slots, hidden = self.config.puzzle_emb_len, self.config.hidden_size
        padded = F.pad(rows, (0, slots * hidden - rows.shape[1]))
        return fixed_length_output(padded.view(-1, slots, hidden))


class TRM(StaticContextReasoner):
    """Puzzle identifier → learned embedding → context → `inner`: it never reads a demonstration."""

    reads_demonstrations = False
    condition_keys = ("puzzle_identifiers",)

    def __init__(self, config: TrmArch, num_puzzle_identifiers: int):
        super().__init__(config)
        self.inner = TRMInner(config, num_puzzle_identifiers)

    def encode(self, data: Batch) -> EncoderOutput:
        return self.inner.puzzle_context(data["puzzle_identifiers"])
