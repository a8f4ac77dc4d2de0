"""What a step leaves out changes nothing: casts of weights that are cast already, sequences without tokens."""

from typing import Any

import pytest
import torch

from models.layers import Linear, weights_cast_once
from models.memory import Reading
from models.packing import QUERIES_A_BLOCK, pack


def twice(linear: Linear, x: torch.Tensor) -> tuple[Any, ...]:
    """A map used twice: its output, and the gradients of its weight and of what it reads."""
    out = linear(linear(x))
    return out, *torch.autograd.grad(out.float().square().sum(), (linear.weight, x))


def test_weights_that_are_cast_once_give_the_same_outputs_and_gradients_bit_for_bit() -> None:
    linear = Linear(16, 16)
    x = torch.randn(5, 16, dtype=torch.bfloat16, requires_grad=True)
    expected = twice(linear, x)
    with weights_cast_once(linear, torch.bfloat16):
        assert linear.copy is not None
        found = twice(linear, x)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_the_copies_are_gone_after_the_block_whatever_ended_it() -> None:
    linear = Linear(4, 4)
    with pytest.raises(KeyError), weights_cast_once(linear, torch.bfloat16):
        raise KeyError
    assert linear.copy is None
    assert list(linear.state_dict()) == ["weight"]


def test_weights_of_the_dtype_itself_are_not_copied() -> None:
    linear = Linear(4, 4)
    with weights_cast_once(linear, torch.float32):
        assert linear.copy is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_packed_kernel_gets_the_sequences_that_have_tokens_alone(share: float) -> None:
    """And a bound of their lengths that is no further off than one block of queries."""
    mask = torch.rand(6, 300) < share
    mask[2] = False
    packing = pack(mask, by_view=False)
    assert torch.equal(packing.rows, mask.flatten().nonzero().squeeze(-1))
    lengths = mask.sum(1)
    assert packing.cu_seqlens.dtype == torch.int32
    assert packing.cu_seqlens.tolist() == [0, *lengths[lengths > 0].cumsum(0).tolist()]
    assert lengths.max() <= packing.max_seqlen <= max(int(lengths.max()) + QUERIES_A_BLOCK - 1, QUERIES_A_BLOCK)
    for sequence in torch.nonzero(lengths).flatten().tolist():
        assert packing.sequence[packing.first_row[sequence]] == sequence
    assert packing.in_order(mask.flatten()[packing.rows]).all()


def test_a_sequence_whose_memory_is_empty_reads_nothing_and_the_others_read_their_own() -> None:
    """The packings leave empty sequences out of their extents, each its own."""
    queries = pack(torch.tensor([[True, True], [True, False], [True, True]]), by_view=False)
    memory = pack(torch.tensor([[True, False, False], [False] * 3, [True, True, True]]), by_view=False)
    segments = Reading.across(queries, memory).segments
    assert (segments.cu_q.tolist(), segments.cu_k.tolist()) == ([0, 2, 3, 5], [0, 1, 1, 4])
    assert not segments.all_have_keys
