"""MKL's vector functions, settled before any is used."""

import torch

# What torch hands to MKL on the CPU, where it is built with it (ATen/cpu/vml.h).
FUNCTIONS = (
    torch.acos,
    torch.asin,
    torch.atan,
    torch.cos,
    torch.erf,
    torch.erfc,
    torch.erfinv,
    torch.exp,
    torch.log,
    torch.log10,
    torch.log2,
    torch.sin,
    torch.sqrt,
    torch.tan,
    torch.tanh,
    torch.trunc,
)


def settle_vector_functions() -> None:
    """Call each once on one number, by one thread: 32 calls, microseconds each.

    On a function's first call MKL picks the kernel for this processor. Where several threads of torch's pool make that
    first call together, MKL 2024.2 (in torch's wheels up to 2.13 at least) lets one of them compute its share with a
    kernel of low accuracy: measured on two cores, in 7 of 94 starts one half of the rotary cosines was off, for the
    whole run, and two runs of one seed went apart (https://github.com/pytorch/pytorch/issues/188792).
    """
    for function in FUNCTIONS:
        for dtype in (torch.float32, torch.float64):
            function(torch.full((1,), 0.5, dtype=dtype, device="cpu"))
