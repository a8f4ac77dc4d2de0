"""A decoder trained under one encoder goes on under another."""

from collections.abc import Callable

import torch

from checkpoints.checkpoint import open_checkpoint
from config.schema import TrainConfig
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
