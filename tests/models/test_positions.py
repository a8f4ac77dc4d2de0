"""Positions of one axis and of two."""

import math
from collections.abc import Callable

import pytest
import torch

from config.schema import ConfigError, TrainConfig
from dataset.store import PuzzleStore
from models import create_model
from models.layers import apply_rotary
from models.positions import ROPE_2D_THETA, coordinates_above_canvas, create_position_encoding
from tests.conftest import small_batch


def test_rope2d_turns_half_of_a_head_by_the_row_and_half_by_the_column() -> None:
    """Against the definition, pair by pair: channel i is turned with channel i + d/2."""
    torch.manual_seed(0)
    width, heads = 32, 2
    d = width // heads
    encoding = create_position_encoding("rope2d", width, heads, 0)
    places = torch.tensor([[0, 0], [3, 0], [0, 7], [29, 29], [-1, 4]])
    x = torch.randn(len(places), heads, d)
    turned = apply_rotary(x, encoding.rotary(places))
    for n, (row, column) in enumerate(places.tolist()):
        for i in range(d // 2):
            place, j = (row, i) if i < d // 4 else (column, i - d // 4)
            angle = place * ROPE_2D_THETA ** (-j / (d // 4))
            a, b = x[n, :, i], x[n, :, i + d // 2]
            expected = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
            torch.testing.assert_close(turned[n, :, i], expected[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(turned[n, :, i + d // 2], expected[1], rtol=0, atol=1e-5)


def test_rope2d_scores_depend_on_the_distance_in_rows_and_columns_alone() -> None:
    torch.manual_seed(0)
    encoding = create_position_encoding("rope2d", 64, 2, 0)
    q, k = torch.randn(2, 1, 2, 32).unbind(0)

    def score(query: tuple[int, int], key: tuple[int, int]) -> torch.Tensor:
        turned = [apply_rotary(x, encoding.rotary(torch.tensor([place]))) for x, place in ((q, query), (k, key))]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(score((2, 3), (7, 5)), score((12, 23), (17, 25)), rtol=0, atol=1e-4)
    assert (score((2, 3), (7, 5)) - score((2, 3), (5, 7))).abs().max() > 1e-3  # the axes are told apart


def test_learned_positions_are_a_rows_and_a_columns_embedding() -> None:
    torch.manual_seed(0)
    encoding = create_position_encoding("learned", 32, 2, 0)
    places = torch.tensor([[4, 9], [-1, 3]])
    row, column = (e.embedding_weight for e in (encoding.row_embedding, encoding.column_embedding))
    embedded = encoding.embedding(places, torch.float32)
    torch.testing.assert_close(embedded[0], row[4] + column[9])
    assert not embedded[1].any()  # a token that is no cell
    assert encoding.rotary(places) is None


def test_tokens_that_are_no_cells_stand_above_the_canvas_each_at_a_place_of_its_own() -> None:
    places = coordinates_above_canvas(torch.arange(40))
    assert (places[:, 0] == -1).all()
    assert len(set(places[:, 1].tolist())) == 40


def test_a_longer_rope_begins_with_the_shorter_one() -> None:
    short, long = (create_position_encoding("rope", 32, 2, n) for n in (916, 3000))
    positions = torch.arange(916)
    before = [part.clone() for part in short.rotary(positions)]
    short.cover(3000)
    for part, covered, other in zip(before, short.rotary(positions), long.rotary(positions), strict=True):
        assert torch.equal(part, covered)
        assert torch.equal(part, other)


@pytest.mark.parametrize(
    ("config_name", "overrides"),
    [
        ("cfg_pretrain_etrm_arc_agi_1", ()),
        ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=lpn_standard",)),
        ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context",)),
        ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context", "arch.context_mode=read")),
        ("cfg_pretrain_etrmtrm_arc_agi_1", ()),
        ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=trm_style",)),
        ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=in_context",)),
        ("cfg_pretrain_trm_arc_agi_1", ()),
    ],
)
@pytest.mark.parametrize("encoding", ["rope", "rope2d", "learned"])
def test_an_answer_depends_on_where_the_cells_stand(
    shrunk_config: Callable[..., TrainConfig],
    store: PuzzleStore,
    config_name: str,
    overrides: tuple[str, ...],
    encoding: str,
) -> None:
    """Two cells of the query exchanged: without positions their answers would be exchanged, and no other change."""
    arch = shrunk_config(f"arch.pos_encodings={encoding}", *overrides, config_name=config_name).arch
    torch.manual_seed(0)
    model = create_model(arch, store.metadata).eval()
    batch = small_batch(store, 2)
    cells = (batch["inputs"][0] > 1).nonzero().squeeze(1)
    one, two = next((int(a), int(b)) for a in cells for b in cells if batch["inputs"][0, a] != batch["inputs"][0, b])
    exchanged = {key: value.clone() for key, value in batch.items()}
    exchanged["inputs"][0, [one, two]] = batch["inputs"][0, [two, one]]
    with torch.no_grad():
        before, after = (model(model.initial_carry(b), b)[1]["logits"][0] for b in (batch, exchanged))
    assert (before[one] - after[two]).abs().max() > 1e-4


def test_a_head_must_divide_into_pairs_for_both_axes(shrunk_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"pos_encodings=rope2d.*multiple of 4"):
        shrunk_config("arch.pos_encodings=rope2d", "arch.hidden_size=12", "arch.num_heads=2")
    with pytest.raises(ConfigError, match="mlp_t=true"):
        shrunk_config("arch.pos_encodings=learned", "arch.mlp_t=true", "arch.canvas=full")
