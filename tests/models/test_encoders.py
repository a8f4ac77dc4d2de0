"""The encoder reads every demonstration, each alike, and nothing else."""

from collections.abc import Callable

import pytest
import torch

from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import Batch
from models.encoders import ENCODERS, create_encoder
from tests.reference import standard_context

Load = Callable[..., TrainConfig]
VARIANTS = [
    (),
    ("arch.encoder_pooling_method=attention",),
    ("arch.encoder_pooling_method=weighted",),
    ("arch.encoder_norm_style=pre", "arch.encoder_layer_scale_init=0.3"),
    ("arch.encoder_layer_scale_init=0.3", "arch.encoder_qk_norm=true"),
    ("arch.encoder_num_layers=1", "arch.encoder_set_layers=2", "arch.puzzle_emb_len=5"),
]


def encode(encoder: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return encoder(batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"]).context


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_packed_context_and_gradients_equal_a_naive_loop_over_pairs(
    shrunk_config: Load, batch: Batch, overrides: tuple[str, ...]
) -> None:
    config = shrunk_config(*overrides).arch
    encoder = create_encoder(config)
    context = encode(encoder, batch)
    naive = torch.stack([standard_context(encoder, batch, i, config) for i in range(len(context))])
    torch.testing.assert_close(context, naive, atol=1e-5, rtol=1e-4)
    weights = torch.randn_like(context)
    grads = torch.autograd.grad((context * weights).sum(), list(encoder.parameters()))
    naive_grads = torch.autograd.grad((naive * weights).sum(), list(encoder.parameters()))
    for (name, _), grad, expected in zip(encoder.named_parameters(), grads, naive_grads, strict=True):
        scale = float(expected.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(
            grad / scale, expected / scale, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("encoder_type", list(ENCODERS))
def test_order_of_demonstrations_has_no_influence(shrunk_config: Load, batch: Batch, encoder_type: str) -> None:
    encoder = create_encoder(shrunk_config(f"arch.encoder_type={encoder_type}").arch).eval()
    order = torch.tensor([2, 0, 3, 1])
    permuted = {key: batch[key][:, order] for key in ("demo_inputs", "demo_labels", "demo_mask")}
    torch.testing.assert_close(encode(encoder, batch), encode(encoder, permuted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder_type", list(ENCODERS))
def test_pad_and_masked_slots_have_no_influence(shrunk_config: Load, batch: Batch, encoder_type: str) -> None:
    encoder = create_encoder(shrunk_config(f"arch.encoder_type={encoder_type}").arch).eval()
    before = encode(encoder, batch)
    assert not batch["demo_mask"].all(), "the batch needs an empty slot for this test"
    noisy = dict(batch)
    for key in ("demo_inputs", "demo_labels"):
        noise = torch.randint(0, 12, batch[key].shape, dtype=torch.uint8)
        noisy[key] = torch.where(batch["demo_mask"][..., None], batch[key], noise)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("embedding_weight"):
                parameter[0] = 1e3
    assert torch.equal(before, encode(encoder, noisy))


@pytest.mark.parametrize("encoder_type", list(ENCODERS))
def test_every_token_of_every_demonstration_has_influence(shrunk_config: Load, batch: Batch, encoder_type: str) -> None:
    encoder = create_encoder(shrunk_config(f"arch.encoder_type={encoder_type}").arch).eval()
    before = encode(encoder, batch)
    for key in ("demo_inputs", "demo_labels"):
        for slot in range(2):
            last = int(torch.nonzero(batch[key][0, slot] >= 2)[-1])
            changed = batch[key].clone()
            changed[0, slot, last] = 2 + (changed[0, slot, last] - 1) % 10
            after = encode(encoder, {**batch, key: changed})
            assert not torch.equal(before[0], after[0])
            torch.testing.assert_close(before[1:], after[1:])


@pytest.mark.parametrize("encoder_type", list(ENCODERS))
def test_a_sample_without_demonstrations_gives_a_finite_context(
    shrunk_config: Load, batch: Batch, encoder_type: str
) -> None:
    encoder = create_encoder(shrunk_config(f"arch.encoder_type={encoder_type}").arch)
    mask = batch["demo_mask"].clone()
    mask[1] = False
    context = encode(encoder, {**batch, "demo_mask": mask})
    context.square().sum().backward()
    assert torch.isfinite(context).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_parameters_at_the_size_of_the_spec(shrunk_config: Load) -> None:
    config = shrunk_config("arch.hidden_size=512", "arch.num_heads=8", "arch.L_layers=2").arch
    assert sum(p.numel() for p in create_encoder(config).parameters()) == 10_506_240


def test_bfloat16_context_is_close_to_float32(shrunk_config: Load, batch: Batch) -> None:
    encoder = create_encoder(shrunk_config().arch)
    half = create_encoder(shrunk_config("arch.forward_dtype=bfloat16").arch)
    half.load_state_dict(encoder.state_dict())
    context = encode(half, batch)
    assert context.dtype == torch.bfloat16
    torch.testing.assert_close(context.float(), encode(encoder, batch), atol=0.1, rtol=0.1)
