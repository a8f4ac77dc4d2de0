"""Where tokens stand: `arch.pos_encodings`.

    rope      one number for each token, turned into rotary angles (rotate-half form): published weights use it
    rope2d    half of each head is turned by the token's row, half by its column
    learned   an embedding of the row and one of the column are added to the token; nothing is turned

Places are integers: (n) numbers for `rope`, (n, 2) rows and columns for the others. A cell has the row and column of
the canvas whatever stands before it; a context token brings its own (`EncoderOutput.positions` and `.coordinates`), and
one that is no cell stands in a row above the canvas, -1.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dataset.grids import CANVAS_SIDE
from models.layers import Rotary, RotaryTable, TokenEmbedding

# A canvas has 30 rows: wavelengths beyond a few hundred would tell no two of them apart.
ROPE_2D_THETA = 100.0


class PositionEncoding(nn.Module, ABC):
    """How a network learns where its tokens stand."""

    is_one_dimensional = False

    @abstractmethod
    def of_cells(self, cells: Int[Tensor, "*shape"], first: int) -> Int[Tensor, "*places"]:
        """The places of canvas cells by their number (0..899, row-major); number 0 is the position `first`."""

    @abstractmethod
    def of_tokens(
        self, positions: Int[Tensor, "*shape"], coordinates: Int[Tensor, "*shape 2"] | None = None
    ) -> Int[Tensor, "*places"]:
        """The places of tokens that are numbered, and may have a row and a column (None: they are no cells)."""

    def cover(self, num_positions: int) -> None:
        """Let positions below `num_positions` be told apart."""
        return

    @abstractmethod
    def rotary(self, places: Int[Tensor, "n *axes"]) -> Rotary | None:
        """What turns queries and keys; None where nothing does."""

    def embedding(self, places: Int[Tensor, "n *axes"], dtype: torch.dtype) -> Float[Tensor, "n hidden"] | None:
        """What is added to the tokens, of the scale of token embeddings; None where nothing is."""
        return None


class Rope(PositionEncoding):
    """One position for each token, looked up in a table of angles."""

    is_one_dimensional = True

    def __init__(self, hidden_size: int, num_heads: int, num_positions: int):
        super().__init__()
        self.table = RotaryTable(hidden_size // num_heads, num_positions)

    def of_cells(self, cells: Tensor, first: int) -> Tensor:
        return cells + first

    def of_tokens(self, positions: Tensor, coordinates: Tensor | None = None) -> Tensor:
        return positions

    def cover(self, num_positions: int) -> None:
        self.table.cover(num_positions)

    def rotary(self, places: Tensor) -> Rotary:
        return self.table(places)


def coordinates_of_cells(cells: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape 2"]:
    """Row and column on the canvas by row-major number."""
    return torch.stack([cells // CANVAS_SIDE, cells % CANVAS_SIDE], dim=-1)


def coordinates_above_canvas(positions: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape 2"]:
    """A place for each token that is no cell: row -1, its number as the column."""
    return torch.stack([torch.full_like(positions, -1), positions], dim=-1)


class CanvasEncoding(PositionEncoding):
    """Rows and columns."""

    def of_cells(self, cells: Tensor, first: int) -> Tensor:
        return coordinates_of_cells(cells)

    def of_tokens(self, positions: Tensor, coordinates: Tensor | None = None) -> Tensor:
        return coordinates_above_canvas(positions) if coordinates is None else coordinates


class Rope2d(CanvasEncoding):
    """Angles computed from rows and columns: of the d/2 pairs of channels the first half turns by the row."""

    frequencies: Tensor

    def __init__(self, hidden_size: int, num_heads: int, num_positions: int):
        super().__init__()
        pairs = hidden_size // num_heads // 4
        frequencies = ROPE_2D_THETA ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def rotary(self, places: Tensor) -> Rotary:
        angles = (places[..., None] * self.frequencies).flatten(-2)[:, None]  # (n, 1, d/2)
        return angles.cos(), angles.sin()


class Learned(CanvasEncoding):
    """A row's and a column's embedding of std 1/√hidden each; tokens that are no cells have none."""

    def __init__(self, hidden_size: int, num_heads: int, num_positions: int):
        super().__init__()
        self.row_embedding = TokenEmbedding(CANVAS_SIDE, hidden_size)
        self.column_embedding = TokenEmbedding(CANVAS_SIDE, hidden_size)

    def rotary(self, places: Tensor) -> None:
        return None

    def embedding(self, places: Tensor, dtype: torch.dtype) -> Float[Tensor, "n hidden"]:
        row, column = places.clamp(min=0, max=CANVAS_SIDE - 1).unbind(-1)
        summed = self.row_embedding(row, dtype) + self.column_embedding(column, dtype)
        return torch.where(places[:, :1] >= 0, summed, 0)


def placed(
    encoding: PositionEncoding, x: Float[Tensor, "n hidden"], places: Int[Tensor, "n *axes"]
) -> tuple[Float[Tensor, "n hidden"], Rotary | None]:
    """Rows of unit scale with what tells where they stand, and what turns queries and keys."""
    embedding = encoding.embedding(places, x.dtype)
    if embedding is not None:
        x = x + x.shape[-1] ** 0.5 * embedding
    return x, encoding.rotary(places)


POSITION_ENCODINGS: dict[str, type[Rope | Rope2d | Learned]] = {"rope": Rope, "rope2d": Rope2d, "learned": Learned}


def create_position_encoding(
    name: str, hidden_size: int, num_heads: int, num_positions: int
) -> Rope | Rope2d | Learned:
    """The encoding named by `arch.pos_encodings`.

    Args:
        num_positions: how many positions `rope` distinguishes at least.
    """
    if name not in POSITION_ENCODINGS:
        raise ValueError(f"arch.pos_encodings '{name}' is not one of {', '.join(POSITION_ENCODINGS)}")
    return POSITION_ENCODINGS[name](hidden_size, num_heads, num_positions)
