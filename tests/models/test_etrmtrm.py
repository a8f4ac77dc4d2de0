"""Recurrent encoders: the update rules, what reaches the gradient, what restarts."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import islice, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config.schema import TrainConfig
from dataset.batches import Demonstrations
from dataset.fewshot_puzzle_dataset import Batch, FewshotTrainDataset
from dataset.store import PuzzleStore
from models import create_model
from models.act import RecursiveReasoner
from models.encoders import RECURRENT_ENCODERS
from models.losses import ACTLossHead, create_loss_head
from tests.reference import cross_attention, pair_vector, post_norm_block, rms, swiglu

Load = Callable[..., TrainConfig]
CONFIG = "cfg_pretrain_etrmtrm_arc_agi_1"
VARIANTS = list(RECURRENT_ENCODERS)
BY_THEMSELVES = ("recurrent_standard", "trm_style")  # those whose latent moves on without the decoder


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build(shrunk_config: Load, store: PuzzleStore, variant: str) -> Callable[..., ACTLossHead]:
    """`build("key=value", ...)`: model and loss of the variant, nobody halting before the limit."""

    def create(*overrides: str) -> ACTLossHead:
        choice = f"arch.recurrent_encoder_type={variant}"
        config = shrunk_config(choice, "arch.halt_exploration_prob=0", *overrides, config_name=CONFIG)
        return create_loss_head(config.arch, create_model(config.arch, store.metadata))

    return create


def unreached(model: RecursiveReasoner, prefix: str = "") -> list[str]:
    """Parameters without any gradient."""
    return [n for n, p in model.named_parameters() if n.startswith(prefix) and (p.grad is None or not p.grad.any())]


def pair_vectors(encoder: torch.nn.Module, batch: Batch, sample: int, config: TrainConfig) -> Tensor:
    shown = batch["demo_mask"][sample]
    pairs = [
        pair_vector(encoder.grid_encoder, batch["demo_inputs"][sample, k], batch["demo_labels"][sample, k], config.arch)
        for k in range(len(shown))
        if shown[k]
    ]
    return torch.stack(pairs)


def test_every_parameter_gets_a_gradient_at_the_first_step_and_all_but_the_initial_latent_later(
    build: Callable[..., ACTLossHead], batch: Batch
) -> None:
    head = build()
    carry = head.model.initial_carry(batch)
    for step in range(3):
        head.model.zero_grad()
        carry, loss, _, _ = head(carry, batch)
        loss.backward()
        missing = unreached(head.model)
        assert missing == ([] if step == 0 else [n for n in missing if n == "encoder.z_e_init"]), f"step {step}"


def padded_alike(*latents: Tensor) -> list[Tensor]:
    """Latents of as many tokens as the longest has, zero behind their own."""
    longest = max(latent.shape[1] for latent in latents)
    return [F.pad(latent, (0, 0, 0, longest - latent.shape[1])) for latent in latents]


@pytest.mark.parametrize("variant", BY_THEMSELVES, indirect=True)
def test_a_detach_inside_the_encoder_is_noticed(
    build: Callable[..., ACTLossHead], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above must fail on the fault it is there for: a context that is cut from the graph."""
    head = build()
    encoder = head.model.encoder
    update = encoder.update

    def detached(carry: object, encoding: object) -> object:
        after = update(carry, encoding)
        return replace(after, **{f.name: getattr(after, f.name).detach() for f in fields(after)})

    monkeypatch.setattr(encoder, "update", detached)
    head(head.model.initial_carry(batch), batch)[1].backward()
    assert set(unreached(head.model)) == {n for n, _ in head.model.named_parameters() if n.startswith("encoder.")}


def test_no_gradient_crosses_a_step(build: Callable[..., ACTLossHead], batch: Batch) -> None:
    head = build()
    carry, *_ = head(head.model.initial_carry(batch), batch)
    for part in (carry.encoder_carry, carry.inner_carry):
        assert not any(getattr(part, f.name).requires_grad for f in fields(part))


def test_context_differs_from_step_to_step_and_from_task_to_task(
    build: Callable[..., ACTLossHead], batch: Batch
) -> None:
    head = build()
    head.model.eval()
    contexts = [outputs["context"] for outputs in head.model.rollout(batch)]
    for before, after in pairwise(contexts):
        assert ((after - before).abs().amax((1, 2)) > 1e-3).all()
    last = contexts[-1]
    different = (last[:, None] - last[None, :]).abs().amax((2, 3)) + torch.eye(len(last))
    assert (different > 1e-3).all()


def test_context_tokens_differ_from_each_other(build: Callable[..., ACTLossHead], batch: Batch) -> None:
    head = build()
    context = next(iter(head.model.eval().rollout(batch)))["context"]
    assert float(context.std(dim=1).mean()) > 1e-3


def test_a_halted_samples_latent_restarts_while_its_neighbours_goes_on(
    build: Callable[..., ACTLossHead], store: PuzzleStore
) -> None:
    head = build()
    data = FewshotTrainDataset(store, global_batch_size=6, epochs=100, seed=0, max_demos=4, max_groups=12)
    first, second = data[0], data[1]
    carry, *_ = head(head.model.initial_carry(first), first)
    halted = torch.tensor([True, False, False, True, False, True])
    mixed, *_ = head(replace(carry, halted=halted), second)
    fresh, *_ = head(head.model.initial_carry(second), second)
    going_on, *_ = head(replace(carry, halted=torch.zeros(6, dtype=torch.bool)), second)
    ours, new, old = padded_alike(*(carry.encoder_carry.get_context() for carry in (mixed, fresh, going_on)))
    torch.testing.assert_close(ours, torch.where(halted[:, None, None], new, old), atol=1e-5, rtol=1e-4)
    apart = new - old
    assert (apart.abs().amax((1, 2)) > 1e-3).all()


def test_variant_a_follows_its_two_lines(shrunk_config: Load, store: PuzzleStore, batch: Batch) -> None:
    config = shrunk_config(config_name=CONFIG)
    encoder = create_model(config.arch, store.metadata).encoder
    carry = encoder.reset_carry(torch.ones(6, dtype=torch.bool), encoder.initial_carry(6, torch.device("cpu")))
    for _ in range(3):
        before = carry.get_context()
        carry = encoder(carry, batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"])
        for i in range(6):
            z_e = before[i]
            z_e = rms(z_e + cross_attention(z_e, pair_vectors(encoder, batch, i, config), encoder.aggregate.cross_attn))
            z_e = rms(z_e + swiglu(z_e, encoder.aggregate.mlp))
            torch.testing.assert_close(carry.z_e[i], z_e, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("variant", BY_THEMSELVES, indirect=True)
def test_with_cells_as_memory_every_cell_is_read_in_any_order_of_pairs(
    build: Callable[..., ACTLossHead], batch: Batch
) -> None:
    """No sample reads another's; all parameters are trained."""
    head = build("arch.encoder_memory=cells")
    encoder = head.model.encoder
    _, loss, _, outputs = head(head.model.initial_carry(batch), batch)
    loss.backward()
    assert unreached(head.model) == []
    order = torch.tensor([3, 1, 0, 2])
    permuted = batch | {key: batch[key][:, order] for key in ("demo_inputs", "demo_labels", "demo_mask")}
    found = head.model(head.model.initial_carry(batch), permuted)[1]["context"]
    torch.testing.assert_close(found, outputs["context"], atol=1e-5, rtol=1e-4)
    memory = encoder.encode_pairs(Demonstrations.of(batch))
    tokens = sum((batch[key] != 0).sum(-1) for key in ("demo_inputs", "demo_labels"))
    assert memory.lengths.tolist() == torch.where(batch["demo_mask"], tokens, 0).sum(1).tolist()
    cell = torch.nonzero(batch["demo_inputs"][0, 0] > 1)[-1]
    other = batch["demo_inputs"].clone()
    other[0, 0, cell] = 2 + (other[0, 0, cell] - 1) % 10
    changed = head.model(head.model.initial_carry(batch), batch | {"demo_inputs": other})[1]["context"]
    assert (changed[0] - outputs["context"][0]).abs().max() > 1e-6
    torch.testing.assert_close(changed[1:], outputs["context"][1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grad_cycles", ["last", "all"])
def test_variant_b_follows_its_loops_with_gradients_of_the_cycles_asked_for(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, grad_cycles: str
) -> None:
    config = shrunk_config(
        "arch.recurrent_encoder_type=trm_style",
        "arch.encoder_l_cycles=2",
        f"arch.encoder_grad_cycles={grad_cycles}",
        config_name=CONFIG,
    )
    encoder = create_model(config.arch, store.metadata).encoder
    positions = torch.arange(config.arch.puzzle_emb_len)

    def level(h: Tensor) -> Tensor:
        for block in encoder.L_enc:
            h = post_norm_block(h, block, positions)
        return h

    carry = encoder.initial_carry(6, torch.device("cpu"))
    carry = encoder(carry, batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"])
    naive = []
    for i in range(6):
        z_H, z_L = encoder.H_init, encoder.L_init
        demo_input = pair_vectors(encoder, batch, i, config).mean(0)
        cycles = config.arch.encoder_h_cycles
        for cycle in range(cycles):
            with torch.set_grad_enabled(grad_cycles == "all" or cycle == cycles - 1):
                for _ in range(2):
                    z_L = level(z_L + (z_H + demo_input))
                z_H = level(z_H + z_L)
        naive.append(z_H)
        torch.testing.assert_close(carry.z_e_H[i], z_H, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(carry.z_e_L[i], z_L, atol=1e-4, rtol=1e-3)
    weights = torch.randn(6, *naive[0].shape)
    parameters = list(encoder.parameters())
    ours = torch.autograd.grad((carry.get_context() * weights).sum(), parameters)
    expected = torch.autograd.grad((torch.stack(naive) * weights).sum(), parameters)
    for grad, reference in zip(ours, expected, strict=True):
        scale = reference.abs().max()
        torch.testing.assert_close(grad / scale, reference / scale, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("variant", BY_THEMSELVES, indirect=True)
def test_forward_returns_only_the_carry_and_its_context_is_the_decoders(
    build: Callable[..., ACTLossHead], batch: Batch
) -> None:
    head = build()
    encoder = head.model.eval().encoder
    carry = encoder.reset_carry(torch.ones(6, dtype=torch.bool), encoder.initial_carry(6, torch.device("cpu")))
    carry = encoder(carry, batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"])
    outputs = next(iter(head.model.rollout(batch)))
    torch.testing.assert_close(carry.get_context(), outputs["context"])


def test_encoder_and_decoder_share_no_tensor(build: Callable[..., ACTLossHead]) -> None:
    head = build()
    storages = [
        {t.untyped_storage().data_ptr() for t in (*part.parameters(), *part.buffers())}
        for part in (head.model.encoder, head.model.inner)
    ]
    assert not storages[0] & storages[1]


def test_order_of_demonstrations_and_masked_slots_have_no_influence(
    build: Callable[..., ACTLossHead], batch: Batch, variant: str
) -> None:
    """On the context, where its tokens are of no pair; on answer and q head."""
    head = build()
    model = head.model.eval()
    torch.nn.init.normal_(model.inner.q_head.weight)
    changed = {key: value.clone() for key, value in batch.items()}
    for key in ("demo_inputs", "demo_labels"):
        noise = torch.randint(0, 12, changed[key].shape, dtype=torch.uint8)
        changed[key] = torch.where(batch["demo_mask"][..., None], changed[key], noise)
    for key in ("demo_inputs", "demo_labels", "demo_mask"):
        changed[key] = changed[key][:, torch.tensor([3, 1, 0, 2])]
    if variant in BY_THEMSELVES:  # for the other PAD says that the other grid of a pair has no cell at a place
        with torch.no_grad():
            for name, parameter in model.encoder.named_parameters():
                if name.endswith("embedding_weight"):
                    parameter[0] = 1e3
    ours, theirs = (list(islice(model.rollout(b), 2)) for b in (batch, changed))
    if variant in BY_THEMSELVES:
        torch.testing.assert_close(ours[0]["context"], theirs[0]["context"], atol=1e-5, rtol=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        for key in ("logits", "q_halt_logits"):
            torch.testing.assert_close(one[key], other[key], atol=1e-3, rtol=1e-3)


def test_rollout_equals_stepping(build: Callable[..., ACTLossHead], batch: Batch) -> None:
    head = build()
    model = head.model.eval()
    carry = model.initial_carry(batch)
    with torch.no_grad():
        for outputs in model.rollout(batch):
            carry, stepped = model(carry, batch)
            assert torch.equal(outputs["logits"], stepped["logits"])


@pytest.mark.parametrize("variant", BY_THEMSELVES, indirect=True)
def test_state_ema_keeps_its_share_of_the_latent_and_the_gradient_path(
    build: Callable[..., ACTLossHead], batch: Batch
) -> None:
    head = build("arch.encoder_state_ema=0.75")
    plain_head = build()
    plain_head.model.load_state_dict(head.model.state_dict())
    carry = head.model.initial_carry(batch)
    start = head.model.encoder.reset_carry(carry.halted, carry.encoder_carry).get_context()
    smooth, loss, _, _ = head(carry, batch)
    full, *_ = plain_head(plain_head.model.initial_carry(batch), batch)
    expected = 0.75 * start + 0.25 * full.encoder_carry.get_context()
    torch.testing.assert_close(smooth.encoder_carry.get_context(), expected.detach(), atol=1e-5, rtol=1e-4)
    loss.backward()
    assert unreached(head.model) == []


@pytest.mark.parametrize("override", ["arch.encoder_residual_scale=0.3", "arch.encoder_context_norm=true"])
def test_options_against_a_moving_encoder_act(build: Callable[..., ACTLossHead], batch: Batch, override: str) -> None:
    contexts = []
    for overrides in ((), (override,)):
        torch.manual_seed(0)
        head = build(*overrides)
        torch.manual_seed(1)
        for parameter in head.model.encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        _, loss, _, outputs = head(head.model.initial_carry(batch), batch)
        contexts.append((outputs["logits"], loss))
    assert not torch.allclose(contexts[0][0], contexts[1][0], atol=1e-3)
    contexts[1][1].backward()
    assert unreached(head.model, "encoder.") == []


def test_diagnostics_measure_the_latent(build: Callable[..., ACTLossHead], batch: Batch) -> None:
    head = build()
    carry = head.model.initial_carry(batch)
    before = head.model.encoder.reset_carry(carry.halted, carry.encoder_carry).get_context()
    for _ in range(2):
        carry, _, _, outputs = head(carry, batch)
        after = carry.encoder_carry.get_context()
        if before.shape[1] == 0:  # all begin at one latent, which is of no row
            has_row = torch.arange(after.shape[1]) < carry.encoder_carry.lengths[:, None]
            before = torch.where(has_row[..., None], head.model.encoder.E_init, 0)
        for i in range(6):
            change = (after[i] - before[i]).square().sum().sqrt()
            norm = after[i].square().sum().sqrt()
            torch.testing.assert_close(outputs["encoder_carry_norm"][i], norm, rtol=1e-5, atol=0)
            torch.testing.assert_close(outputs["encoder_carry_change"][i], change.detach(), rtol=1e-5, atol=0)
            relative = change / before[i].square().sum().sqrt()
            torch.testing.assert_close(outputs["encoder_carry_change_rel"][i], relative.detach(), rtol=1e-5, atol=0)
        before = after
