"""What the machine can do: the dtype that pays, and compiled blocks."""

from typing import Any

import torch
from torch import nn

from models.layers import MixerBlock, TransformerBlock
from utils.errors import ConfigError


def best_dtype(device: torch.device) -> str:
    """bfloat16 where matrix products are faster in it: CUDA since Ampere, CPUs with AMX tiles or AVX-512 BF16.

    Else float32.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    instructions = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return "bfloat16" if any(getattr(torch.cpu, name, bool)() for name in instructions) else "float32"


def wants_compiling(choice: str, device: torch.device) -> bool:
    """`compile`: on CUDA `auto` means on; on the CPU compiling takes longer than a short run gains.

    Raises:
        ConfigError: CUDA graphs without CUDA.
    """
    if choice == "graphs" and device.type != "cuda":
        raise ConfigError(
            f"compile=graphs replays CUDA graphs, and the device is {device.type}: write compile=on or off"
        )
    return choice in ("on", "graphs") or (choice == "auto" and device.type == "cuda")


def compile_blocks(model: nn.Module, backend: str = "inductor", *, graphs: bool = False) -> None:
    """Compile every transformer and mixer block, in place: parameter names stay as they are.

    Sizes that change from batch to batch are dynamic from the start, and attention is one operator that the compiler
    does not look into, so a block compiles twice (with and without gradient) and never again.

    Args:
        graphs: replay the decoder's blocks as CUDA graphs, which are recorded once for each number of rows; that is
            rounded up to one of few.
    """
    replayed: set[nn.Module] = set()
    if graphs:
        inner: Any = model.inner
        inner.replays_graphs, replayed = True, set(inner.L_level.layers)
    for module in model.modules():
        if isinstance(module, TransformerBlock | MixerBlock):
            mode = {"mode": "reduce-overhead"} if module in replayed and backend == "inductor" else {}
            module.compile(dynamic=True, fullgraph=True, backend=backend, **mode)
