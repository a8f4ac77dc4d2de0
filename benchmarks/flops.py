"""Useful floating-point operations, by formula: what the valid tokens need, without padding, copies or bookkeeping.

A multiplication with an addition counts as two. For sequences of n tokens a block of width h and SwiGLU width f needs

    n (2 · 3h² + 2h² + 2 · 2hf + 2fh)   projections        4 n² h   scores and their sums of values

and a backward pass twice its forward pass. Tokens that are read beside the sequence's own (m of them) add 4 n m h, and
4 m h² for their keys and values wherever these change. Norms, rotary positions, activations and embeddings are not
counted.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.batches import Batch
from dataset.grids import PAD, VOCAB_SIZE
from models.canvas import full_canvas
from models.layers import swiglu_width
from models.recursive_reasoning.targets import Targets

# Options that change what is multiplied, and the choices that the formulas know.
KNOWN = {
    "encoder_memory": ("pairs",),
    "grid_conv": (False,),
    "random_depth": (False,),
    "encoder_pooling_method": ("mean",),
    "mlp_t": (False,),
}


@dataclass(frozen=True)
class Part:
    """What a part of a system needs for a batch.

    Attributes:
        forward, backward: operations of its passes in one training step.
        is_once: whether one forward pass serves all ACT steps of an evaluation.
    """

    forward: float
    backward: float
    is_once: bool = False

    @classmethod
    def differentiated(cls, forward: float, *, is_once: bool = False) -> "Part":
        """A part whose every pass has a backward pass, at twice its operations."""
        return cls(forward, 2 * forward, is_once)


def refuse_unknown(config: Any) -> None:
    """
    Raises:
        ValueError: a system or an option that no formula knows.
    """
    is_trm, encoder = config.name.endswith("@TRM"), getattr(config, "encoder_type", None)
    if not is_trm and encoder not in ("standard", "in_context"):
        raise ValueError(f"no formula for {config.name} with the encoder {config.encoder_name}")
    for key, known in KNOWN.items():
        chosen = getattr(config, key, known[0])
        if chosen not in known:
            raise ValueError(f"no formula for arch.{key}={chosen}; there is one for {', '.join(map(str, known))}")


def is_recurrent(config: Any) -> bool:
    return config.name.endswith("TRMWithRecurrentEncoder")


def is_joint(config: Any) -> bool:
    """Whether the demonstrations' cells move on beside the decoder (variant C)."""
    return is_recurrent(config) and config.recurrent_encoder_type == "in_context"


def reads_cells(config: Any) -> bool:
    """Whether the decoder's rows attend to the demonstrations' cells beside themselves."""
    return is_joint(config) or (_is_in_context(config) and config.context_mode == "read")


def _is_in_context(config: Any) -> bool:
    return getattr(config, "encoder_type", None) == "in_context"


def block(rows: Tensor, config: Any, keys: Tensor | None = None) -> float:
    """A self-attention block's forward pass over sequences of so many rows.

    Args:
        keys: how many each row attends to (None: its own sequence).
    """
    hidden, inner = config.hidden_size, swiglu_width(config.hidden_size, config.expansion)
    projections = 2 * hidden * 3 * hidden + 2 * hidden * hidden + 2 * hidden * 2 * inner + 2 * inner * hidden
    keys = rows if keys is None else keys
    return float((rows * projections + 4 * rows * keys * hidden).sum())


def blocks(count: int, config: Any, whole: Tensor, parts: Tensor) -> float:
    """Blocks one after another, each within whole sequences or within the parts that they consist of."""
    within_parts = [config.context_attention == "pair"] * count
    if config.context_attention == "alternate":
        within_parts = [number % 2 == 0 for number in range(count)]
    return sum(block(parts if within else whole, config) for within in within_parts)


def cross_attention(queries: Tensor, keys: Tensor, config: Any) -> float:
    """The forward pass of attention to a memory, without making its keys and values."""
    hidden = config.hidden_size
    return float((queries * 2 * hidden * 2 * hidden + 4 * queries * keys * hidden).sum())


def keys_and_values(memory: Tensor, config: Any) -> float:
    """Of a memory, for one block."""
    return float(memory.sum()) * 2 * config.hidden_size * 2 * config.hidden_size


def cross_block(queries: Tensor, keys: Tensor, config: Any) -> float:
    """A cross-attention block's forward pass."""
    hidden, inner = config.hidden_size, swiglu_width(config.hidden_size, config.expansion)
    mlp = float(queries.sum()) * (2 * hidden * 2 * inner + 2 * inner * hidden)
    return cross_attention(queries, keys, config) + keys_and_values(keys, config) + mlp


def cells_of_pairs(batch: Batch, config: Any) -> Tensor:
    """How many tokens each demonstration pair's cells are, (B, K)."""
    inputs, outputs = (batch[key] != PAD for key in ("demo_inputs", "demo_labels"))
    tokens = inputs.sum(-1) + outputs.sum(-1) if config.context_tokens == "two" else (inputs | outputs).sum(-1)
    return (tokens * batch["demo_mask"]).double()


def context_lengths(batch: Batch, config: Any) -> Tensor:
    """How many context tokens each sample has among the decoder's rows.

    Raises:
        ValueError: a system or an option that no formula knows.
    """
    refuse_unknown(config)
    one = torch.ones_like(batch["inputs"][:, 0], dtype=torch.float64)
    if reads_cells(config):
        return one
    return one + cells_of_pairs(batch, config).sum(1) if _is_in_context(config) else one * config.puzzle_emb_len


def sequences(batch: Batch, active: Tensor, config: Any, *, training: bool) -> tuple[Tensor, Tensor]:
    """Of each sequence of a decoder that reads cells: how many it answers, and how many of demonstrations it reads."""
    pairs = cells_of_pairs(batch, config)
    if not training or getattr(config, "targets", "query") == "query":
        return active.sum(1).double(), pairs.sum(1)
    targets = Targets.of(batch)
    answered = full_canvas(targets.inputs) if config.canvas == "full" else targets.canvases(batch)
    own = F.pad(pairs, (0, 1))[targets.sample, targets.number]
    return answered.sum(1).double(), pairs.sum(1)[targets.sample] - own


def decoder(batch: Batch, active: Tensor, config: Any, *, training: bool) -> Part:
    """One ACT step: the passes of `L_level`, of which those of `grad_cycles` have a backward pass, and the head.

    Of all rows, also where the last block of a single ACT step computes the answer's alone (`models/answer_rows.py`).
    """
    cells = active.sum(1).double()
    context = context_lengths(batch, config)
    rows = context + cells
    if reads_cells(config):
        cells, read = sequences(batch, active, config, training=training)
        per_pass = config.L_layers * block(1 + cells, config, 1 + cells + read)
    elif _is_in_context(config):
        parts = torch.cat([cells_of_pairs(batch, config), 1 + cells[:, None]], dim=1)
        per_pass = blocks(config.L_layers, config, rows, parts)
    else:
        per_pass = config.L_layers * block(rows, config)
    in_a_cycle = config.L_cycles + 1
    head = float(cells.sum()) * 2 * config.hidden_size * VOCAB_SIZE
    return Part(config.H_cycles * in_a_cycle * per_pass + head, 2 * (in_a_cycle * config.grad_cycles * per_pass + head))


def grid_encoder(batch: Batch, config: Any) -> Part:
    """`DemoGridEncoder`: its blocks over the valid pairs' tokens, and a projection for each pair."""
    tokens = (batch["demo_inputs"] != PAD).sum(-1) + (batch["demo_labels"] != PAD).sum(-1)
    lengths = tokens[batch["demo_mask"]].double()
    forward = config.encoder_num_layers * block(lengths, config) + len(lengths) * 2 * config.hidden_size**2
    return Part.differentiated(forward, is_once=True)


def context_update(batch: Batch, config: Any) -> Part:
    """What turns pair vectors into context: in one ACT step, or once."""
    pairs = batch["demo_mask"].sum(1).double()
    queries = torch.full_like(pairs, config.puzzle_emb_len)
    if is_recurrent(config) and config.recurrent_encoder_type == "trm_style":
        one = config.encoder_l_layers * block(queries, config)
        cycles = config.encoder_l_cycles + 1
        with_gradient = cycles * (config.encoder_h_cycles if config.encoder_grad_cycles == "all" else 1)
        return Part(cycles * config.encoder_h_cycles * one, 2 * with_gradient * one)
    layers = 1 if is_recurrent(config) else config.encoder_set_layers
    return Part.differentiated(layers * cross_block(queries, pairs, config), is_once=not is_recurrent(config))


def evidence(batch: Batch, config: Any) -> Part:
    """`context_mode: read`: the encoder's blocks over the cells, and their keys and values for the decoder's blocks."""
    pairs = cells_of_pairs(batch, config)
    cells = pairs.sum(1)
    forward = blocks(config.encoder_num_layers, config, cells, pairs)
    return Part.differentiated(forward + config.L_layers * keys_and_values(cells, config), is_once=True)


def joint_encoder(batch: Batch, active: Tensor, config: Any) -> Part:
    """Variant C in one ACT step: in each H cycle passes over the cells, which read the decoder's rows, and the keys and
    values that either has for the other.

    The decoder's rows have no gradient where the first differentiated cycle reads them, so that of their keys and
    values there only the weights' is needed.
    """
    pairs = cells_of_pairs(batch, config)
    cells = pairs.sum(1)
    rows = context_lengths(batch, config) + active.sum(1).double()
    layers = config.encoder_l_layers
    a_pass = blocks(layers, config, cells, pairs) + layers * cross_attention(cells, rows, config)
    of_cells, of_rows = config.L_layers * keys_and_values(cells, config), layers * keys_and_values(rows, config)
    cycle = config.encoder_l_cycles * a_pass + of_cells + of_rows
    return Part(config.H_cycles * cycle, 2 * config.grad_cycles * cycle - of_rows)


def parts(batch: Batch, active: Tensor, config: Any, *, training: bool) -> list[Part]:
    """The decoder, and what multiplies beside it: nothing for a table of embeddings, or for cells among its rows.

    Args:
        active: (B, 900) the cells that are computed.
        training: whether each pair is a target too, where the config says so.

    Raises:
        ValueError: a system or an option that no formula knows.
    """
    found = [decoder(batch, active, config, training=training)]
    if is_joint(config):
        found.append(joint_encoder(batch, active, config))
    elif reads_cells(config):
        found.append(evidence(batch, config))
    elif not (config.name.endswith("@TRM") or _is_in_context(config)):
        found += [grid_encoder(batch, config), context_update(batch, config)]
    return found


def training_step(batch: Batch, active: Tensor, config: Any) -> float:
    """One ACT step with backward pass, for TRM, ETRM with the encoders standard and in_context, ETRMTRM A, B and C;
    raises as `parts`."""
    return sum(part.forward + part.backward for part in parts(batch, active, config, training=True))


def evaluation(batch: Batch, active: Tensor, config: Any) -> float:
    """One vote of each query: what is done once, then `max_steps` ACT steps; raises as `parts`."""
    found = parts(batch, active, config, training=False)
    return sum((1 if part.is_once else config.max_steps) * part.forward for part in found)
