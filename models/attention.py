"""`attend`: the one attention of the project, on packed sequences.

On CUDA in half precision it is one packed kernel. Elsewhere sequences of similar length stand next to each other as
runs (`models/packing.py`), each of which is a padded batch by view. Runs change from batch to batch, so they are
computed in an operator that compilers do not look into.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.segments import GatheredRuns, Runs, Segments, length_runs

# Largest number of attention scores held at once in the written-out backward pass.
SCORES_AT_ONCE = 1 << 26


def uses_varlen_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention runs in the packed CUDA kernel (half precision on CUDA); elsewhere it runs in padded groups.

    The meta device goes CUDA's way: without data or GPU it shows that nothing there waits for a value.
    """
    return device.type in ("cuda", "meta") and dtype in (torch.float16, torch.bfloat16)


def attend(
    q: Float[Tensor, "nq h d"],
    k: Float[Tensor, "nk h d"],
    v: Float[Tensor, "nk h d"],
    segments: Segments,
    *,
    runs: Runs | GatheredRuns | None = None,
    keys_are_arranged: bool = False,
) -> Float[Tensor, "nq h d"]:
    """Scaled dot-product attention within each of s packed sequences, without causal mask.

    A query whose sequence has no key gets zeros. On CUDA in half precision this is one packed kernel. Elsewhere
    sequences of similar length are gathered into padded batches; `runs` says how, where that is known already, or that
    the rows are arranged so (`Packing.runs`), which saves gather and scatter. Keys that are arranged by
    `GatheredRuns.k_index` already are told by `keys_are_arranged`.
    """
    if isinstance(runs, Runs):
        return attend_runs(q, k, v, runs.plan, runs.key_is_real)[0]
    if runs is None and uses_varlen_kernel(q.device, q.dtype):
        from torch.nn.attention.varlen import varlen_attn  # brings the compiler along, more than a second at each start

        cu_q, cu_k = segments.cu_q, segments.cu_k
        out = varlen_attn(q, k, v, cu_q, cu_k, segments.max_q, segments.max_k)
        assert isinstance(out, Tensor)
        if segments.all_have_keys:
            return out
        return torch.where((cu_k.diff() > 0).repeat_interleave(cu_q.diff(), output_size=len(q))[:, None, None], out, 0)
    if len(q) == 0:
        return q
    gathered = runs or length_runs(segments)
    plan, key_is_real = gathered.runs.plan, gathered.runs.key_is_real
    if not keys_are_arranged:
        k, v = k[gathered.k_index], v[gathered.k_index]
    out, _ = attend_runs(q[gathered.q_index], k, v, plan, key_is_real)
    return torch.zeros_like(q).index_copy(0, gathered.answered, out[gathered.live])


def _by_run(plan: Tensor, of_queries: list[Tensor], of_keys: list[Tensor]) -> Iterator[list[Tensor]]:
    """The rows of each run as (count, length, ...), by view."""
    q_start = k_start = 0
    for q_size, k_size, count in plan.tolist():
        if count:
            parts = [x[q_start : q_start + q_size].unflatten(0, (count, -1)) for x in of_queries]
            parts += [x[k_start : k_start + k_size].unflatten(0, (count, -1)) for x in of_keys]
            yield parts
        q_start, k_start = q_start + q_size, k_start + k_size


def _heads_first(x: Float[Tensor, "b l h d"]) -> Float[Tensor, "b h l d"]:
    return x.transpose(1, 2)


def _bias(real: Bool[Tensor, "b l"], q: Float[Tensor, "b h q d"]) -> Tensor | None:
    """What is added to the scores: -inf for keys that are not real; None where all are."""
    if real.device.type == "cpu" and bool(real.all()):
        return None
    return torch.zeros_like(real, dtype=q.dtype).masked_fill_(~real, float("-inf"))[:, None, None, :]


def _as_the_kernel_wants(x: Tensor) -> Tensor:
    """On the CPU attention is computed in float32 where rows are in half precision: there the kernel's backward pass is
    two to nine times slower in bfloat16, its forward pass no faster."""
    return x.float() if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16) else x


@torch.library.custom_op("etrm::attend_runs", mutates_args=())
def attend_runs(q: Tensor, k: Tensor, v: Tensor, plan: Tensor, key_is_real: Tensor) -> tuple[Tensor, Tensor]:
    """Attention where rows are arranged in runs: output (nq, h, d), and the log of the softmax's sums (nq, h)."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    sums = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    q, k, v = map(_as_the_kernel_wants, (q, k, v))
    for queries, out_part, sums_part, keys, values, real in _by_run(plan, [q, out, sums], [k, v, key_is_real]):
        queries, keys, values = map(_heads_first, (queries, keys, values))
        part, log_sums = _forward(queries, keys, values, _bias(real, queries))
        out_part.copy_(_heads_first(part))
        sums_part.copy_(log_sums.transpose(1, 2))
    return out, sums


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    if q.device.type == "cpu":
        mask = None if bias is None else bias.expand(-1, q.shape[1], q.shape[2], -1)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float()
    scores = scores if bias is None else scores + bias
    log_sums = scores.logsumexp(-1)
    return (scores - log_sums[..., None]).exp().to(q.dtype) @ v, log_sums


@attend_runs.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, plan: Tensor, key_is_real: Tensor) -> tuple[Tensor, Tensor]:
    sums = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    return torch.empty_like(q, memory_format=torch.contiguous_format), sums


@torch.library.custom_op("etrm::attend_runs_backward", mutates_args=())
def attend_runs_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, plan: Tensor, key_is_real: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend_runs` for q, k and v."""
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    grad, q, k, v, out = map(_as_the_kernel_wants, (grad, q, k, v, out))
    of_queries, of_keys = [q, grad, out, sums, grads[0]], [k, v, grads[1], grads[2], key_is_real]
    for run in _by_run(plan, of_queries, of_keys):
        *tensors, real = run
        queries, d_out, output, log_sums, d_q, keys, values, d_k, d_v = map(_heads_first, tensors)
        bias = _bias(real, queries)
        if q.device.type == "cpu":
            mask = None if bias is None else bias.expand(-1, queries.shape[1], queries.shape[2], -1)
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                d_out, queries, keys, values, output, log_sums, 0.0, False, attn_mask=mask
            )
            for target, value in zip((d_q, d_k, d_v), found, strict=True):
                target.copy_(value)
            continue
        at_once = max(1, SCORES_AT_ONCE // (queries.shape[1] * queries.shape[2] * keys.shape[2]))
        for start in range(0, len(queries), at_once):
            part = slice(start, start + at_once)
            found = written_out_backward(
                queries[part],
                keys[part],
                values[part],
                d_out[part],
                None if bias is None else bias[part],
            )
            for target, value in zip((d_q, d_k, d_v), found, strict=True):
                target[part].copy_(value)
    return grads[0], grads[1], grads[2]


def written_out_backward(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """For devices other than the CPU, which has a kernel.

    With P = softmax(q kᵀ / √d): dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP - Σ dP·P), dQ = dS K / √d, dK = dSᵀ Q / √d.
    """
    scale = q.shape[-1] ** -0.5
    scaled = q * scale
    scores = scaled @ k.transpose(-1, -2)
    weights = (scores if bias is None else scores.add_(bias)).softmax(-1)
    d_weights = d_out @ v.transpose(-1, -2)
    d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
    return d_scores @ k * scale, d_scores.transpose(-1, -2) @ scaled, weights.transpose(-1, -2) @ d_out


@attend_runs_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, plan: Tensor, key_is_real: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_q, d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return d_q, d_k, d_v


def _save_for_backward(ctx: object, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:])  # pyright: ignore[reportAttributeAccessIssue]


def _backward(ctx: object, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*attend_runs_backward(grad, *ctx.saved_tensors), None, None)  # pyright: ignore[reportAttributeAccessIssue]


attend_runs.register_autograd(_backward, setup_context=_save_for_backward)
