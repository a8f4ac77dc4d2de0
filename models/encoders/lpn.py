"""LPN-style encoders ("Searching Latent Program Spaces", arXiv 2411.08706): a deep grid encoder with a CLS token.

`LpnGridEncoder` and `GaussianLatent` serve the hybrid family too.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dataset.grids import PAD, SEQ_LEN, VOCAB_SIZE
from models.encoders.base import DemoEncoder, EncoderOutput, encoder, fixed_length_output, forward_dtype, packs_by_view
from models.layers import Linear, RotaryTable, TokenEmbedding, TransformerBlock, rms_norm, trunc_normal_
from models.packing import pack

LOG_VARIANCE_LIMIT = 10.0


class LpnGridEncoder(nn.Module):
    """One vector for each demonstration pair: [CLS ; input ; output] through pre-norm blocks, the normed CLS output.

    CLS has rotary position 0, cells follow. PAD never takes part. Masked pairs give zeros.
    """

    def __init__(self, config: Any):
        super().__init__()
        hidden, heads = config.hidden_size, config.num_heads
        self.embed_scale = hidden**0.5
        self.dtype = forward_dtype(config)
        self.input_embedding = TokenEmbedding(VOCAB_SIZE, hidden)
        self.output_embedding = TokenEmbedding(VOCAB_SIZE, hidden)
        self.cls_embedding = nn.Parameter(trunc_normal_(torch.empty(1, hidden), hidden**-0.5))
        self.layers = nn.ModuleList(
            TransformerBlock(
                hidden, heads, config.expansion, "pre", config.encoder_layer_scale_init, config.encoder_qk_norm
            )
            for _ in range(config.encoder_num_layers)
        )
        self.rotary = RotaryTable(hidden // heads, 1 + 2 * SEQ_LEN)

    def forward(
        self,
        demo_inputs: Int[Tensor, "batch demos 900"],
        demo_labels: Int[Tensor, "batch demos 900"],
        demo_mask: Bool[Tensor, "batch demos"],
    ) -> Float[Tensor, "batch demos hidden"]:
        tokens = torch.cat([demo_inputs, demo_labels], dim=-1).flatten(0, 1).int()  # (b · k, 1800)
        shown = demo_mask.flatten()[:, None]
        valid = torch.cat([shown, (tokens != PAD) & shown], dim=1)
        packing = pack(valid, by_view=packs_by_view(tokens.device, self.dtype))
        positions = packing.positions
        # Rows 0-11 of the joint table embed input tokens, rows 12-23 output tokens, row 24 is CLS.
        index = packing.gather(torch.cat([torch.full_like(tokens[:, :1], 2 * VOCAB_SIZE), tokens], dim=1))
        index = index + VOCAB_SIZE * (positions > SEQ_LEN)
        weights = (self.input_embedding.embedding_weight, self.output_embedding.embedding_weight, self.cls_embedding)
        x = nn.functional.embedding(index, (torch.cat(weights) * self.embed_scale).to(self.dtype))
        rotary = self.rotary(positions)
        for layer in self.layers:
            x = layer(x, packing, rotary)
        if not len(x):  # no sample has a demonstration
            return x.new_zeros(*demo_mask.shape, x.shape[1])
        cls = torch.where(shown, rms_norm(x[packing.first_row]), 0)
        return cls.unflatten(0, demo_mask.shape)


def masked_mean(
    values: Float[Tensor, "batch demos width"], mask: Bool[Tensor, "batch demos"]
) -> Float[Tensor, "batch width"]:
    """The mean over each sample's valid slots; zeros where there is none."""
    return torch.where(mask[..., None], values, 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


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

    def __init__(self, width: int, config: Any):
        super().__init__()
        self.tokens, self.dtype = config.puzzle_emb_len, forward_dtype(config)
        self.projection = Linear(width, config.puzzle_emb_len * config.hidden_size)

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch tokens hidden"]:
        return self.projection(x.to(self.dtype)).unflatten(-1, (self.tokens, -1))


@encoder("lpn_standard")
class LpnEncoder(DemoEncoder):
    """`lpn_standard`: masked mean of the pairs' CLS vectors, projected to the context tokens."""

    def __init__(self, config: Any):
        super().__init__()
        self.grid_encoder = LpnGridEncoder(config)
        self.context = ContextProjection(config.hidden_size, config)

    def forward(
        self,
        demo_inputs: Int[Tensor, "batch demos 900"],
        demo_labels: Int[Tensor, "batch demos 900"],
        demo_mask: Bool[Tensor, "batch demos"],
    ) -> EncoderOutput:
        pairs = self.grid_encoder(demo_inputs, demo_labels, demo_mask)
        return fixed_length_output(self.context(masked_mean(pairs, demo_mask)))


@encoder("lpn_variational")
class LpnVariationalEncoder(DemoEncoder):
    """`lpn_variational`: each pair gives a Gaussian latent; their samples' mean is projected. KL: mean over pairs."""

    def __init__(self, config: Any):
        super().__init__()
        self.grid_encoder = LpnGridEncoder(config)
        self.latent = GaussianLatent(config.hidden_size, config.lpn_latent_dim)
        self.context = ContextProjection(config.lpn_latent_dim, config)

    def forward(
        self,
        demo_inputs: Int[Tensor, "batch demos 900"],
        demo_labels: Int[Tensor, "batch demos 900"],
        demo_mask: Bool[Tensor, "batch demos"],
    ) -> EncoderOutput:
        latent, kl = self.latent(self.grid_encoder(demo_inputs, demo_labels, demo_mask))
        mean_kl = masked_mean(kl[..., None], demo_mask).squeeze(-1)
        return fixed_length_output(self.context(masked_mean(latent, demo_mask)), mean_kl)
