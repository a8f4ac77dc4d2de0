"""`arch.random_depth`: a training step has as many H cycles as are drawn, evaluation as many as the config says."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from config.schema import ConfigError, TrainConfig
from dataset.batches import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.act import DEPTH_KEY, depth_draw
from models.losses import create_loss_head
from training.setup import create_trainer
from utils.distributed import Ranks

Load = Callable[..., TrainConfig]
RANDOM = "arch.random_depth=true"
SYSTEMS = [
    ("cfg_pretrain_trm_arc_agi_1", ()),
    ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context",)),
    ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=in_context",)),
    ("cfg_pretrain_trm_hybrid", ("arch.text_hidden_size=24",)),
]


def made(load: Load, store: PuzzleStore, name: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    return create_model(load(*overrides, "arch.halt_exploration_prob=0", config_name=name).arch, store.metadata)


def two_steps(model: Any, batch: Batch) -> torch.Tensor:
    carry, _ = model(model.initial_carry(batch), batch)
    assert DEPTH_KEY not in carry.current_data
    return model(carry, batch)[1]["logits"]


@pytest.mark.parametrize(("name", "overrides"), SYSTEMS)
def test_a_step_is_that_of_a_model_with_the_drawn_number_of_cycles(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, name: str, overrides: tuple[str, ...]
) -> None:
    if "hybrid" in name:
        batch = batch | {"z_init": torch.randn(6, 24)}
    model = made(shrunk_config, store, name, *overrides, "arch.H_cycles=3", RANDOM)
    for cycles, draw in ((1, 0.0), (1, 0.33), (2, 0.34), (3, 0.67), (3, 0.999)):
        fixed = made(shrunk_config, store, name, *overrides, f"arch.H_cycles={cycles}")
        found = two_steps(model, {**batch, DEPTH_KEY: torch.tensor(draw)})
        assert torch.equal(found, two_steps(fixed, batch))
    whole = made(shrunk_config, store, name, *overrides, "arch.H_cycles=3").eval()
    model.eval()
    for one, other in zip(model.rollout(batch), whole.rollout(batch), strict=True):
        assert torch.equal(one["logits"], other["logits"])


def test_every_parameter_gets_its_gradient_at_every_depth(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    """Also where fewer cycles are drawn than have a gradient."""
    config = shrunk_config("arch.H_cycles=3", "arch.grad_cycles=2", RANDOM).arch
    model = create_model(config, store.metadata)
    head = create_loss_head(config, model)
    for draw in (0.0, 0.5, 0.9):
        model.zero_grad()
        head(model.initial_carry(batch), {**batch, DEPTH_KEY: torch.tensor(draw)})[1].backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_without_a_draw_in_the_batch_torchs_generator_decides(
    shrunk_config: Load, store: PuzzleStore, batch: Batch
) -> None:
    model = made(shrunk_config, store, "cfg_pretrain_etrm_arc_agi_1", "arch.H_cycles=3", RANDOM)
    seen = set()
    for seed in range(8):
        outputs = []
        for _ in range(2):
            torch.manual_seed(seed)
            outputs.append(two_steps(model, batch))
        assert torch.equal(*outputs)
        seen.add(float(outputs[0].detach().sum()))
    assert len(seen) > 1


def test_draws_are_even_and_keyed_by_seed_and_step() -> None:
    counts = Counter(1 + int(float(depth_draw(0, step)) * 3) for step in range(3000))
    assert sorted(counts) == [1, 2, 3]
    assert min(counts.values()) > 900
    assert depth_draw(3, 17) == depth_draw(3, 17)
    assert len({float(depth_draw(seed, step)) for seed in range(3) for step in range(3)}) == 9


def test_training_draws_by_the_step_whatever_the_rank(
    shrunk_config: Load, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shrunk_config("arch.H_cycles=3", RANDOM)
    depths = []
    for rank in (ranks, Ranks(1, 2, ranks.device)):
        trainer = create_trainer(config, ranks)
        trainer.ranks = rank
        used: list[int] = []
        at_depth = trainer.model.inner.at_depth

        def watched(cycles: int, used: list[int] = used, at_depth: Any = at_depth) -> Any:
            used.append(cycles)
            return at_depth(cycles)

        monkeypatch.setattr(trainer.model.inner, "at_depth", watched)
        size = config.global_batch_size // rank.world_size
        batch = {key: value[:size] for key, value in trainer.train_data[0].items()}
        for _ in range(6):
            trainer.train_step(batch)
        depths.append(used)
    assert depths[0] == depths[1]
    assert len(set(depths[0])) > 1


def test_one_cycle_has_nothing_to_draw(shrunk_config: Load) -> None:
    with pytest.raises(ConfigError, match=r"arch\.H_cycles=1 leaves nothing to draw"):
        shrunk_config("arch.H_cycles=1", RANDOM)
