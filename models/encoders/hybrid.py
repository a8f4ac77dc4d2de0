"""Hybrid encoders: the deep LPN-style grid encoder under the standard encoder's set encoder."""

from config.arch_schema import EtrmArch
from dataset.batches import Demonstrations
from models.encoders.base import EncoderOutput, encoder, fixed_length_output
from models.encoders.grid import LpnGridEncoder
from models.encoders.lpn import ContextProjection, GaussianLatent
from models.encoders.standard import StandardDemoEncoder
from models.layers import rms_norm


@encoder("hybrid_standard")
class HybridEncoder(StandardDemoEncoder):
    """`hybrid_standard`: `LpnGridEncoder`, then `DemoSetEncoder`."""

    def __init__(self, config: EtrmArch):
        super().__init__(config, LpnGridEncoder(config))


@encoder("hybrid_variational")
class HybridVariationalEncoder(HybridEncoder):
    """`hybrid_variational`: the normed mean of the hybrid's tokens gives one Gaussian latent of hidden size, whose
    sample is projected to the context tokens."""

    def __init__(self, config: EtrmArch):
        super().__init__(config)
        self.latent = GaussianLatent(config.hidden_size, config.hidden_size)
        self.context = ContextProjection(config.hidden_size, config)

    def encode(self, demonstrations: Demonstrations) -> EncoderOutput:
        found = super().encode(demonstrations)
        latent, kl = self.latent(rms_norm(found.context.mean(1)))
        return fixed_length_output(self.context(latent), kl, found.pairs)
