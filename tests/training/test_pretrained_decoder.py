"""What was trained in one run goes on in another: a decoder under another encoder, and whole weights."""

from collections.abc import Callable

import pytest
import torch

from checkpoints.checkpoint import CheckpointError, open_checkpoint
from config.schema import TrainConfig, run_folder
from training.loop import create_trainer, fit
from utils.distributed import Ranks

Load = Callable[..., TrainConfig]


def test_an_etrm_decoder_goes_on_in_etrmtrm_and_stays_frozen_as_long_as_asked(shrunk_config: Load) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    fit(shrunk_config("+run_name=etrm", "lr=1e-2", "epochs=2", "log_predictions_every=0"), ranks)
    saved = open_checkpoint("runs/etrm-arc/etrm").model_state(ema=True)
    config = shrunk_config(
        "load_pretrained_decoder=runs/etrm-arc/etrm",
        "freeze_decoder_steps=2",
        "lr=1e-2",
        config_name="cfg_pretrain_etrmtrm_arc_agi_1",
    )
    trainer = create_trainer(config, ranks)
    encoder = {name: p.detach().clone() for name, p in trainer.model.encoder.named_parameters()}
    assert set(open_checkpoint("runs/etrm-arc/etrm").trained_on.puzzle_ids) <= set(trainer.trained_on.puzzle_ids)

    def decoder_moved() -> bool:
        state = trainer.model.inner.state_dict()
        return any(not torch.equal(value, saved[f"inner.{name}"]) for name, value in state.items())

    assert not decoder_moved()
    for step in range(3):
        trainer.train_step(trainer.train_data[step])
        assert decoder_moved() == (step == 2)
        moved = [name for name, p in trainer.model.encoder.named_parameters() if not torch.equal(p, encoder[name])]
        assert moved, f"the encoder must train at step {step}"


def test_encoder_and_decoder_of_a_run_are_its_whole_weights(shrunk_config: Load) -> None:
    ranks, run = Ranks(0, 1, torch.device("cpu")), "runs/etrm-arc/whole"
    fit(shrunk_config("+run_name=whole", "lr=1e-2", "epochs=2", "log_predictions_every=0"), ranks)
    trainer = create_trainer(
        shrunk_config(f"load_pretrained_decoder={run}", f"load_pretrained_encoder={run}", "seed=5"), ranks
    )
    saved, state = open_checkpoint(run).model_state(ema=True), trainer.model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in state.items())


def test_weights_without_an_encoder_are_refused_by_name(shrunk_config: Load) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    config = shrunk_config("+run_name=trm", "epochs=1", config_name="cfg_pretrain_trm_arc_agi_1")
    fit(config, ranks)
    with pytest.raises(CheckpointError, match=r"load_pretrained_encoder: .*it has no encoder"):
        create_trainer(shrunk_config(f"load_pretrained_encoder={run_folder(config)}"), ranks)
