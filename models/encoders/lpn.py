"""LPN-style encoders ("Searching Latent Program Spaces", arXiv 2411.08706): a deep grid encoder with a CLS token.

`GaussianLatent` and `ContextProjection` serve the hybrid family too.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from config.arch_schema import EtrmArch
from dataset.batches import Demonstrations
from models.encoders.base import DemoEncoder, EncoderOutput, encoder, fixed_length_output, forward_dtype, masked_mean
from models.encoders.grid import LpnGridEncoder
from models.layers import Linear

LOG_VARIANCE_LIMIT = 10.0


class GaussianLatent(nn.Module):
    """x → μ, log σ² → a sample in training, μ in evaluation; float32. log σ² starts at zero and is clamped to ±10."""

    def __init__(self, hidden_size: int, latent_size: int):
        super().__init__()
        self.mean = Linear(hidden_size, latent_size, bias=True)
        self.log_variance = Linear(hidden_size, latent_size, bias=True)
        nn.init.zeros_(self.log_variance.weight)

    def forward(
        self, x: Float[Tensor, "*shape hidden"]
    ) -> tuple[Float[Tensor, "*shape latent"], Float[Tensor, "*shape"]]:
        """The latent, and its KL divergence to the unit normal, summed over latent dimensions."""
        mean = self.mean(x.float())
        log_variance = self.log_variance(x.float()).clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        if not self.training:
            return mean, kl
        return mean + (0.5 * log_variance).exp() * torch.randn_like(mean), kl


class ContextProjection(nn.Module):
    """One vector to T context tokens: linear, then reshape."""

    def __init__(self, width: int, config: EtrmArch):
        super().__init__()
        self.tokens, self.dtype = config.puzzle_emb_len, forward_dtype(config)
        self.projection = Linear(width, config.puzzle_emb_len * config.hidden_size)

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch tokens hidden"]:
        return self.projection(x.to(self.dtype)).unflatten(-1, (self.tokens, -1))


@encoder("lpn_standard")
class LpnEncoder(DemoEncoder):
    """`lpn_standard`: masked mean of the pairs' CLS vectors, projected to the context tokens."""

    def __init__(self, config: EtrmArch):
        super().__init__(config.puzzle_emb_len)
        self.grid_encoder = LpnGridEncoder(config)
        self.context = ContextProjection(config.hidden_size, config)

    def encode(self, demonstrations: Demonstrations) -> EncoderOutput:
        pairs = self.grid_encoder(demonstrations)
        return fixed_length_output(self.context(masked_mean(pairs, demonstrations.mask)), pairs=pairs)


@encoder("lpn_variational")
class LpnVariationalEncoder(DemoEncoder):
    """`lpn_variational`: each pair gives a Gaussian latent; their samples' mean is projected. KL: mean over pairs."""

    def __init__(self, config: EtrmArch):
        super().__init__(config.puzzle_emb_len)
        self.grid_encoder = LpnGridEncoder(config)
        self.latent = GaussianLatent(config.hidden_size, config.lpn_latent_dim)
        self.context = ContextProjection(config.lpn_latent_dim, config)

    def encode(self, demonstrations: Demonstrations) -> EncoderOutput:
        pairs = self.grid_encoder(demonstrations)
        latent, kl = self.latent(pairs)
        mean_kl = masked_mean(kl[..., None], demonstrations.mask).squeeze(-1)
        return fixed_length_output(self.context(masked_mean(latent, demonstrations.mask)), mean_kl, pairs)
