"""The encoder reads every demonstration, each alike, and nothing else."""

from collections.abc import Callable
from itertools import islice

import pytest
import torch

from config.schema import TrainConfig
from dataset.fewshot_puzzle_dataset import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.encoders import ENCODERS, create_encoder
from models.losses import create_loss_head
from tests.reference import rms, self_attention, standard_context, swiglu

Load = Callable[..., TrainConfig]
VARIANTS = [
    (),
    ("arch.encoder_pooling_method=attention",),
    ("arch.encoder_pooling_method=weighted",),
    ("arch.encoder_norm_style=pre", "arch.encoder_layer_scale_init=0.3"),
    ("arch.encoder_layer_scale_init=0.3", "arch.encoder_qk_norm=true"),
    ("arch.encoder_num_layers=1", "arch.encoder_set_layers=2", "arch.puzzle_emb_len=5"),
    ("arch.encoder_aligned_cells=true",),
]


def encode(encoder: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return encoder(batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"]).context


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_packed_context_and_gradients_equal_a_naive_loop_over_pairs(
    shrunk_config: Load, batch: Batch, overrides: tuple[str, ...]
) -> None:
    config = shrunk_config(*overrides).arch
    # In float64: a mean over many tokens is small, and the norm after it magnifies float32's rounding.
    encoder = create_encoder(config).double()
    encoder.grid_encoder.dtype = torch.float64
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
def test_order_of_demonstrations_has_no_influence(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, encoder_type: str
) -> None:
    """On context, where its tokens are of no pair; on the answer and the q head after two steps, for every encoder."""
    model = create_model(shrunk_config(f"arch.encoder_type={encoder_type}").arch, store.metadata).eval()
    torch.nn.init.normal_(model.inner.q_head.weight)
    order = torch.tensor([2, 0, 3, 1])
    permuted = batch | {key: batch[key][:, order] for key in ("demo_inputs", "demo_labels", "demo_mask")}
    if model.encoder.num_tokens is not None:
        torch.testing.assert_close(encode(model.encoder, batch), encode(model.encoder, permuted), atol=1e-5, rtol=1e-4)
    for one, other in zip(islice(model.rollout(batch), 2), islice(model.rollout(permuted), 2), strict=True):
        for key in ("logits", "q_halt_logits"):
            torch.testing.assert_close(one[key], other[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("encoder_type", list(ENCODERS))
def test_pad_and_masked_slots_have_no_influence(shrunk_config: Load, batch: Batch, encoder_type: str) -> None:
    encoder = create_encoder(shrunk_config(f"arch.encoder_type={encoder_type}").arch).eval()
    before = encode(encoder, batch)
    assert not batch["demo_mask"].all(), "the batch needs an empty slot for this test"
    noisy = dict(batch)
    for key in ("demo_inputs", "demo_labels"):
        noise = torch.randint(0, 12, batch[key].shape, dtype=torch.uint8)
        noisy[key] = torch.where(batch["demo_mask"][..., None], batch[key], noise)
    if encoder_type != "in_context":  # there PAD says that the other grid of a pair has no cell at a place
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if name.endswith("embedding_weight"):
                    parameter[0] = 1e3
    assert torch.equal(before, encode(encoder, noisy))


def test_what_a_masked_slot_holds_is_no_aligned_cell(shrunk_config: Load, batch: Batch) -> None:
    encoder = create_encoder(shrunk_config("arch.encoder_aligned_cells=true").arch).eval()
    noisy = dict(batch)
    for key in ("demo_inputs", "demo_labels"):
        noise = torch.randint(0, 12, batch[key].shape, dtype=torch.uint8)
        noisy[key] = torch.where(batch["demo_mask"][..., None], batch[key], noise)
    assert torch.equal(encode(encoder, batch), encode(encoder, noisy))


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


@pytest.mark.parametrize(
    ("encoder_type", "layers", "count"),
    [
        ("standard", 2, 10_506_240),
        ("hybrid_standard", 4, 17_060_352),
        ("hybrid_variational", 4, 21_779_968),
        ("lpn_standard", 8, 31_470_080),
        ("lpn_variational", 8, 31_995_392),
        ("in_context", None, 12_800),
    ],
)
def test_parameters_at_the_size_of_the_spec(
    shrunk_config: Load, encoder_type: str, layers: int | None, count: int
) -> None:
    size = ["arch.hidden_size=512", "arch.num_heads=8", *([f"arch.encoder_num_layers={layers}"] if layers else [])]
    config = shrunk_config(f"arch.encoder_type={encoder_type}", *size).arch
    assert sum(p.numel() for p in create_encoder(config).parameters()) == count


@pytest.mark.parametrize("encoder_type", list(ENCODERS))
def test_every_encoder_parameter_gets_a_gradient_from_the_decoders_loss(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, encoder_type: str
) -> None:
    config = shrunk_config(f"arch.encoder_type={encoder_type}").arch
    model = create_model(config, store.metadata)
    create_loss_head(config, model)(model.initial_carry(batch), batch)[1].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("aligned", ["false", "true"])
def test_lpn_context_equals_a_naive_loop(shrunk_config: Load, batch: Batch, aligned: str) -> None:
    """[CLS ; input ; output] at positions 0, 1, ..., pre-norm blocks, normed CLS, mean over pairs, linear."""
    config = shrunk_config("arch.encoder_type=lpn_standard", f"arch.encoder_aligned_cells={aligned}").arch
    encoder = create_encoder(config)
    grid = encoder.grid_encoder
    for i, context in enumerate(encode(encoder, batch)):
        vectors = []
        for k in torch.nonzero(batch["demo_mask"][i]).squeeze(-1):
            tokens = torch.cat([batch["demo_inputs"][i, k], batch["demo_labels"][i, k]]).long()
            kept = torch.nonzero(tokens).squeeze(-1)
            tables = (grid.input_embedding.embedding_weight, grid.output_embedding.embedding_weight)
            embedded = torch.stack([grid.cls_embedding[0], *(tables[int(p >= 900)][tokens[p]] for p in kept)])
            if config.encoder_aligned_cells:  # CLS has none: PAD
                other = [0, *((*tokens[900:], *tokens[:900])[p] for p in kept)]
                embedded = embedded + grid.aligned_embedding.embedding_weight[other]
            x = embedded * config.hidden_size**0.5
            positions = torch.cat([torch.zeros(1, dtype=torch.long), kept + 1])
            for block in grid.layers:
                x = x + self_attention(rms(x), block.self_attn, positions)
                x = x + swiglu(rms(x), block.mlp)
            vectors.append(rms(x[0]))
        expected = encoder.context.projection.weight @ torch.stack(vectors).mean(0)
        torch.testing.assert_close(context.flatten(), expected, atol=1e-4, rtol=1e-3)


VARIATIONAL = ["hybrid_variational", "lpn_variational"]


def opened(encoder: torch.nn.Module) -> torch.nn.Module:
    """The encoder with a log-variance head that no longer is zero."""
    torch.nn.init.normal_(encoder.latent.log_variance.weight, std=0.3)
    torch.nn.init.normal_(encoder.latent.log_variance.bias, std=0.3)
    return encoder


@pytest.mark.parametrize("encoder_type", VARIATIONAL)
def test_kl_equals_its_closed_form(shrunk_config: Load, batch: Batch, encoder_type: str) -> None:
    encoder = opened(create_encoder(shrunk_config(f"arch.encoder_type={encoder_type}").arch)).eval()
    seen: list[torch.Tensor] = []
    encoder.latent.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    kl = encoder(batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"]).kl_loss
    unit = torch.distributions.Normal(0.0, 1.0)
    head = encoder.latent
    deviation = (0.5 * head.log_variance(seen[0]).clamp(-10, 10)).exp()
    closed = torch.distributions.kl_divergence(torch.distributions.Normal(head.mean(seen[0]), deviation), unit).sum(-1)
    if encoder_type == "lpn_variational":
        shown = batch["demo_mask"]
        closed = torch.stack([closed[i][shown[i]].mean() for i in range(len(closed))])
    assert (kl > 0).all()
    torch.testing.assert_close(kl, closed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder_type", VARIATIONAL)
def test_training_samples_around_the_mean_that_evaluation_uses(
    shrunk_config: Load, batch: Batch, encoder_type: str
) -> None:
    encoder = create_encoder(shrunk_config(f"arch.encoder_type={encoder_type}").arch)
    batch = {key: value[:2] for key, value in batch.items()}
    with torch.no_grad():
        first, second = encode(encoder, batch), encode(encoder, batch)
        assert not torch.allclose(first, second)
        encoder.eval()
        mean = encode(encoder, batch)
        assert torch.equal(mean, encode(encoder, batch))
        encoder.train()
        samples = torch.stack([encode(encoder, batch) for _ in range(200)])
    deviation = (samples.mean(0) - mean).abs() / (samples.std(0) / 200**0.5)
    assert float(deviation.mean()) < 1.0, "the mean of many samples is the evaluation's context"


def test_log_variance_starts_at_zero_and_is_clamped(shrunk_config: Load, batch: Batch) -> None:
    encoder = create_encoder(shrunk_config("arch.encoder_type=lpn_variational").arch).eval()
    latent = encoder.latent
    assert not latent.log_variance.weight.any()
    assert latent.mean.weight.any()
    torch.nn.init.constant_(latent.log_variance.bias, 1e4)
    torch.nn.init.zeros_(latent.mean.weight)
    kl = encoder(batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"]).kl_loss
    per_dimension = 0.5 * (torch.tensor(10.0).exp() - 1 - 10)
    torch.testing.assert_close(kl, per_dimension.expand(6) * 512, rtol=1e-4, atol=1.0)


def test_kl_weight_means_what_it_says(shrunk_config: Load, store: PuzzleStore, batch: Batch) -> None:
    losses = {}
    for weight in (0.0, 0.5):
        config = shrunk_config("arch.encoder_type=hybrid_variational", f"arch.loss.kl_weight={weight}").arch
        torch.manual_seed(0)
        model = create_model(config, store.metadata)
        torch.manual_seed(1)
        _, loss, sums, _ = create_loss_head(config, model)(model.initial_carry(batch), batch)
        losses[weight] = loss.detach(), sums["kl_loss"]
    torch.testing.assert_close(losses[0.5][0] - losses[0.0][0], 0.5 * losses[0.0][1].double(), rtol=1e-4, atol=1e-4)


def test_bfloat16_context_is_close_to_float32(shrunk_config: Load, batch: Batch) -> None:
    encoder = create_encoder(shrunk_config().arch)
    half = create_encoder(shrunk_config("arch.forward_dtype=bfloat16").arch)
    half.load_state_dict(encoder.state_dict())
    context = encode(half, batch)
    assert context.dtype == torch.bfloat16
    torch.testing.assert_close(context.float(), encode(encoder, batch), atol=0.1, rtol=0.1)
