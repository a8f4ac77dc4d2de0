"""ETRMTRM: encoder and decoder advance together; at each ACT step the decoder reasons on what the encoder says now."""

from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from config.arch_schema import EtrmtrmArch
from dataset.batches import Batch, Demonstrations
from models.act import RecursiveReasoner
from models.encoders.base import EncoderOutput, create_recurrent_encoder, fixed_length_output
from models.encoders.recurrent_base import PairEncoding, RecurrentEncoderCarry, TRMStyleEncoderCarry
from models.encoders.recurrent_in_context import InContextEncoderCarry
from models.recursive_reasoning.carry import InnerCarry
from models.recursive_reasoning.decoder import TRMEncoderInner

EncoderCarry = RecurrentEncoderCarry | TRMStyleEncoderCarry | InContextEncoderCarry


@dataclass(frozen=True)
class ETRMTRMCarry:
    """State between ACT steps: the encoder's latents, the decoder's, steps taken, who has halted, and the data."""

    encoder_carry: EncoderCarry
    inner_carry: InnerCarry
    steps: Int[Tensor, " batch"]
    halted: Bool[Tensor, " batch"]
    current_data: Batch


def carry_change(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """How far a latent (B, T, hidden) has moved in a step: norms over a sample's whole latent, (B) each."""
    before, after = before.detach().float().flatten(1), after.detach().float().flatten(1)
    return change_measures(*(x.norm(dim=1) for x in (before, after, after - before)))


def change_measures(
    before: Float[Tensor, " batch"], after: Float[Tensor, " batch"], change: Float[Tensor, " batch"]
) -> dict[str, Tensor]:
    """From the norms of a latent before and after a step, and of their difference."""
    return {
        "encoder_carry_norm": after,
        "encoder_carry_change": change,
        "encoder_carry_change_rel": change / before.clamp(min=1e-6),
    }


class TRMWithRecurrentEncoder(RecursiveReasoner):
    """Demonstrations → pair vectors → recurrent `encoder` → context → `inner`.

    The context of a step is attached to the graph; only the carry that leaves the model is detached.
    """

    config: EtrmtrmArch

    def __init__(self, config: EtrmtrmArch):
        super().__init__(config)
        self.encoder = create_recurrent_encoder(config)
        self.inner = TRMEncoderInner(config)
        if config.encoder_context_norm:
            self.encoder.context_norm = nn.LayerNorm(config.hidden_size)

    def initial_carry(self, batch: Batch) -> ETRMTRMCarry:
        inputs = batch["inputs"]
        return ETRMTRMCarry(self.encoder.initial_carry(len(inputs), inputs.device), **self._fresh_state(batch))

    @property
    def context_tokens(self) -> int | None:
        return self.encoder.num_tokens

    def encode(self, data: Batch) -> Any:
        return self.encoder.encode_pairs(Demonstrations.of(data))

    def advance_context(
        self, carry: ETRMTRMCarry, encoding: PairEncoding
    ) -> tuple[EncoderOutput, dict[str, Any], dict[str, Tensor]]:
        before = self.encoder.reset_carry(carry.halted, carry.encoder_carry)
        after = self.encoder.update(before, encoding)
        context = after.get_context()
        if self.config.encoder_context_norm:
            context = self.encoder.context_norm(context.float()).to(context.dtype)
        detached = replace(after, **{f.name: getattr(after, f.name).detach() for f in fields(after)})
        diagnostics = carry_change(before.get_context(), after.get_context())
        pairs = encoding.pairs if isinstance(encoding, PairEncoding) else None
        return fixed_length_output(context, pairs=pairs), {"encoder_carry": detached}, diagnostics
