"""ETRMTRM, variant C: the cells of demonstrations and answer reason in one recursion, with networks of their own."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from dataset.batches import Batch
from models.act import Thought
from models.encoders.base import EncoderOutput, MovingEvidence
from models.encoders.cells import pairs_of_cells
from models.encoders.recurrent_in_context import CellLatent
from models.layers import weights_cast_once
from models.recursive_reasoning.etrmtrm import TRMWithRecurrentEncoder, change_measures


class TRMWithJointEncoder(TRMWithRecurrentEncoder):
    """In each H cycle of an ACT step z_e moves on, reading z_H; then z_L and z_H do, reading z_e.

    Both have the gradient of the last cycle, and both are carried, detached, to the next step.
    """

    def think(self, carry: Any, data: Batch, encoding: EncoderOutput, active: Bool[Tensor, "batch 900"]) -> Thought:
        latent = self.encoder.begin(self.encoder.reset_carry(carry.halted, carry.encoder_carry), encoding)
        inner_carry = self.inner.reset_carry(carry.halted, carry.inner_carry)
        with weights_cast_once(self.encoder.L_enc, self.encoder.dtype):
            inner_carry, logits, halting = self.decode(inner_carry, data, moving(encoding, latent), active)
        norms = (latent.packing.norms(rows.detach()) for rows in (latent.start, latent.z_e, latent.z_e - latent.start))
        changed = {"inner_carry": inner_carry, "encoder_carry": latent.carry()}
        context = shown(encoding, latent)
        if self.config.loss.pair_weight:
            context = replace(context, pairs=pairs_of_cells(latent.shown, latent.packing, encoding))
        return Thought(context, logits, halting, changed, change_measures(*norms))


def moving(tokens: EncoderOutput, latent: CellLatent) -> MovingEvidence:
    """What the decoder takes: the first token, and cells whose latent moves on."""
    beside = {"packing": latent.packing, "rotary": latent.rotary, "beside": latent.beside, "is_read": True}
    return MovingEvidence(**vars(tokens) | beside)


def shown(tokens: EncoderOutput, latent: CellLatent) -> EncoderOutput:
    """The context at the end of the step: the first token, and what the decoder read last of each cell."""
    cells = latent.packing.scatter(latent.shown, torch.zeros_like(tokens.context[:, 1:]))
    return replace(tokens, context=torch.cat([tokens.context[:, :1], cells], dim=1))
