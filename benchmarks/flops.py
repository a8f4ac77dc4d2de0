"""Useful floating-point operations, by formula: what the valid tokens need, without padding, copies or bookkeeping.

A multiplication with an addition counts as two. For sequences of n tokens a block of width h and SwiGLU width f needs

    n (2 · 3h² + 2h² + 2 · 2hf + 2fh)   projections        4 n² h   scores and their sums of values

and a backward pass twice its forward pass. Norms, rotary positions, activations and embeddings are not counted.
"""

from typing import Any

import torch
from torch import Tensor

from dataset.batches import Batch
from dataset.grids import PAD, VOCAB_SIZE
from models.layers import swiglu_width

# Options that change what is multiplied, and the choices that the formulas know.
KNOWN = {
    "context_mode": ("evolve",),
    "context_attention": ("all",),
    "targets": ("query",),
    "recurrent_encoder_type": ("recurrent_standard", "trm_style"),
    "encoder_memory": ("pairs",),
    "grid_conv": (False,),
    "random_depth": (False,),
}


def refuse_unknown(config: Any) -> None:
    """
    Raises:
        ValueError: an option that no formula knows.
    """
    for key, known in KNOWN.items():
        chosen = getattr(config, key, known[0])
        if chosen not in known:
            raise ValueError(f"no formula for arch.{key}={chosen}; there is one for {', '.join(known)}")


def reads_in_context(config: Any) -> bool:
    """Whether the demonstrations' cells themselves are the context."""
    return getattr(config, "encoder_type", None) == "in_context"


def has_layers_of_its_own(config: Any) -> bool:
    """Whether something multiplies before the decoder: an encoder of pairs, but not a table of embeddings.

    Raises:
        ValueError: no formula knows the system.
    """
    if config.name.endswith("@TRM") or reads_in_context(config):
        return False
    if getattr(config, "encoder_type", None) != "standard":
        raise ValueError(f"no formula for {config.name} with the encoder {config.encoder_name}")
    return True


def block(lengths: Tensor, config: Any) -> float:
    """A self-attention block's forward pass over sequences of these lengths."""
    hidden, inner = config.hidden_size, swiglu_width(config.hidden_size, config.expansion)
    projections = 2 * hidden * 3 * hidden + 2 * hidden * hidden + 2 * hidden * 2 * inner + 2 * inner * hidden
    return float((lengths * projections + 4 * lengths.square() * hidden).sum())


def cross_block(queries: Tensor, keys: Tensor, config: Any) -> float:
    """A cross-attention block's forward pass."""
    hidden, inner = config.hidden_size, swiglu_width(config.hidden_size, config.expansion)
    of_queries = 2 * hidden * 2 * hidden + 2 * hidden * 2 * inner + 2 * inner * hidden
    return float((queries * of_queries + keys * 2 * hidden * 2 * hidden + 4 * queries * keys * hidden).sum())


def context_lengths(batch: Batch, config: Any) -> Tensor:
    """How many context tokens each sample has.

    Raises:
        ValueError: an option that no formula knows.
    """
    refuse_unknown(config)
    if not reads_in_context(config):
        return torch.full_like(batch["inputs"][:, 0], config.puzzle_emb_len, dtype=torch.float64)
    inputs, outputs = (batch[key] != PAD for key in ("demo_inputs", "demo_labels"))
    tokens = inputs.sum(-1) + outputs.sum(-1) if config.context_tokens == "two" else (inputs | outputs).sum(-1)
    return 1 + (tokens * batch["demo_mask"]).sum(1).double()


def decoder(batch: Batch, active: Tensor, config: Any, *, training: bool) -> float:
    """One ACT step: the passes of `L_level`, of which those of `grad_cycles` have a backward pass, and the head."""
    cells = active.sum(1).double()
    per_pass = config.L_layers * block(context_lengths(batch, config) + cells, config)
    in_a_cycle = config.L_cycles + 1
    passes = config.H_cycles * in_a_cycle + (2 * in_a_cycle * config.grad_cycles if training else 0)
    return passes * per_pass + float(cells.sum()) * 2 * config.hidden_size * VOCAB_SIZE * (3 if training else 1)


def grid_encoder(batch: Batch, config: Any) -> float:
    """`DemoGridEncoder`'s forward pass: its blocks over the valid pairs' tokens, and a projection for each pair."""
    tokens = (batch["demo_inputs"] != PAD).sum(-1) + (batch["demo_labels"] != PAD).sum(-1)
    lengths = tokens[batch["demo_mask"]].double()
    return config.encoder_num_layers * block(lengths, config) + len(lengths) * 2 * config.hidden_size**2


def context_update(batch: Batch, config: Any) -> tuple[float, float]:
    """What turns pair vectors into context in one ACT step: forward passes, and how many of them are differentiated."""
    pairs = batch["demo_mask"].sum(1).double()
    queries = torch.full_like(pairs, config.puzzle_emb_len)
    if config.name.endswith("TRMWithRecurrentEncoder") and config.recurrent_encoder_type == "trm_style":
        one = config.encoder_l_layers * block(queries, config)
        cycles = config.encoder_l_cycles + 1
        with_gradient = cycles * (config.encoder_h_cycles if config.encoder_grad_cycles == "all" else 1)
        return cycles * config.encoder_h_cycles * one, with_gradient * one
    layers = 1 if config.name.endswith("TRMWithRecurrentEncoder") else config.encoder_set_layers
    forward = layers * cross_block(queries, pairs, config)
    return forward, forward


def training_step(batch: Batch, active: Tensor, config: Any) -> float:
    """One ACT step with backward pass, for TRM, ETRM with the encoders standard and in_context, ETRMTRM A and B.

    Args:
        active: (B, 900) the cells that are computed.

    Raises:
        ValueError: another system.
    """
    total = decoder(batch, active, config, training=True)
    if not has_layers_of_its_own(config):
        return total
    forward, differentiated = context_update(batch, config)
    return total + 3 * grid_encoder(batch, config) + forward + 2 * differentiated


def evaluation(batch: Batch, active: Tensor, config: Any) -> float:
    """One vote of each query: demonstrations encoded once, then `max_steps` ACT steps; raises as `training_step`."""
    total = config.max_steps * decoder(batch, active, config, training=False)
    if not has_layers_of_its_own(config):
        return total
    forward, _ = context_update(batch, config)
    times = config.max_steps if config.name.endswith("TRMWithRecurrentEncoder") else 1
    return total + grid_encoder(batch, config) + times * forward
