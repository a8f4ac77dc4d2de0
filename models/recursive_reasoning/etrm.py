"""ETRM: an encoder reads the demonstrations at every ACT step and gives the decoder its context."""

from config.arch_schema import EtrmArch
from dataset.batches import Batch, Demonstrations
from models.act import StaticContextReasoner
from models.encoders.base import EncoderOutput, create_encoder
from models.recursive_reasoning.decoder import TRMEncoderInner


class TRMWithEncoder(StaticContextReasoner):
    """Demonstrations → `encoder` → context → `inner`. The context is static for given weights.

    The encoder runs inside every step, attached to the graph: the loss trains it at each step for all samples.
    """

    def __init__(self, config: EtrmArch):
        super().__init__(config)
        self.encoder = create_encoder(config)
        self.inner = TRMEncoderInner(config)

    @property
    def context_tokens(self) -> int | None:
        return self.encoder.num_tokens

    def encode(self, data: Batch) -> EncoderOutput:
        return self.encoder(*Demonstrations.of(data))
