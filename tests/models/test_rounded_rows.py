"""Tight rows rounded up to few numbers, for kernels that are recorded by their sizes: no result depends on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import models.recursive_reasoning.decoder
from config.schema import ConfigError, TrainConfig
from dataset.batches import Batch
from dataset.store import PuzzleStore
from models import create_model
from models.losses import create_loss_head
from models.machine import compile_blocks, wants_compiling
from models.packing import QUERIES_A_BLOCK, Packing, pack, rounded_up
from tests.conftest import small_batch
from tests.models.test_cuda_ready import CountedSizes
from training.setup import create_trainer
from utils.distributed import Ranks

Load = Callable[..., TrainConfig]
TRM, ETRM, ETRMTRM = (f"cfg_pretrain_{name}_arc_agi_1" for name in ("trm", "etrm", "etrmtrm"))
HALF = "arch.forward_dtype=bfloat16"
IN_CONTEXT, READ = "arch.encoder_type=in_context", "arch.context_mode=read"
SYSTEMS = [
    pytest.param(TRM, (), id="TRM"),
    pytest.param(ETRM, (), id="ETRM"),
    pytest.param(ETRM, (IN_CONTEXT,), id="in_context"),
    pytest.param(ETRM, (IN_CONTEXT, "arch.context_attention=alternate", "arch.L_layers=2"), id="alternating"),
    pytest.param(ETRMTRM, (), id="A"),
]


def test_numbers_of_rows_are_few_and_little_larger() -> None:
    found = {rounded_up(rows) for rows in range(1 << 15, 1 + (1 << 16))}
    assert len(found) == 17
    assert all(0 <= rounded_up(rows) - rows < max(QUERIES_A_BLOCK, rows // 16) for rows in range(1, 1 << 17, 7))


@pytest.mark.parametrize("lengths", [[5, 7, 300], [128], [900, 900, 900, 1], [0, 3]], ids=str)
def test_what_fills_up_stands_in_short_sequences_of_its_own(lengths: list[int]) -> None:
    mask = torch.arange(900) < torch.tensor(lengths)[:, None]
    plain, rounded = (pack(mask, by_view=False, rounded=flag) for flag in (False, True))
    total = sum(lengths)
    assert len(rounded.rows) == rounded_up(total)
    assert torch.equal(rounded.rows[:total], plain.rows)
    assert (rounded.rows[total:] == plain.rows[-1]).all()
    assert torch.equal(rounded.live_rows, torch.arange(total))
    used = len(plain.cu_seqlens)
    assert torch.equal(rounded.cu_seqlens[:used], plain.cu_seqlens)
    assert rounded.cu_seqlens[-1] == len(rounded.rows)
    pieces = rounded.cu_seqlens.diff()[used - 1 :]
    assert pieces.min() >= 0
    assert pieces.max() <= QUERIES_A_BLOCK <= rounded.max_seqlen
    assert torch.equal(rounded.in_order(rounded.rows), plain.rows)


def test_the_number_of_sequences_follows_from_the_number_of_rows() -> None:
    """So that it is no further size that graphs are recorded for."""
    pieces: dict[int, set[int]] = {}
    for total in range(1, 9000, 13):
        mask = torch.arange(9000)[None] < total
        packing = pack(mask, by_view=False, rounded=True)
        pieces.setdefault(len(packing.rows), set()).add(len(packing.cu_seqlens))
    assert {len(found) for found in pieces.values()} == {1}


def test_parts_of_sequences_are_filled_up_too() -> None:
    """Every row stands in a sequence of every layer, or the kernel would leave it as it was."""
    mask = torch.arange(900) < torch.tensor([5, 300])[:, None]
    packing = pack(mask, by_view=False, rounded=True).scoped("alternate", torch.tensor([[2, 3], [100, 200]]), 900)
    for layer, starts in ((0, [0, 2, 5, 105, 305]), (1, [0, 5, 305])):
        ends = packing.of_layer(layer).cu_seqlens.tolist()
        assert ends[: len(starts)] == starts
        assert ends[-1] == len(packing.rows) == 384


def step_of(model: Any, config: Any, batches: list[Batch]) -> list[Tensor]:
    """Of two ACT steps: logits, halt logits and loss; then all gradients."""
    torch.manual_seed(0)
    head, carry, found = create_loss_head(config, model), model.initial_carry(batches[0]), []
    model.zero_grad()
    for batch in batches:
        carry, loss, _, outputs = head(carry, batch)
        loss.backward()
        found += [outputs["logits"], outputs["q_halt_logits"], loss]
    return [value.detach().clone() for value in [*found, *(p.grad for p in model.parameters() if p.grad is not None)]]


@pytest.mark.parametrize(("name", "overrides"), SYSTEMS)
def test_steps_and_gradients_are_those_of_rows_that_are_not_rounded(
    shrunk_config: Load, store: PuzzleStore, name: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the decoder's rows tight, as on CUDA; the second step takes over the first one's latents."""
    decoder = models.recursive_reasoning.decoder
    sizes: list[tuple[int, int]] = []

    def noted(*arguments: Any, **options: Any) -> Packing:
        packing = pack(*arguments, **options)
        sizes.append((len(packing.rows), int(packing.lengths.sum())))
        return packing

    monkeypatch.setattr(decoder, "packs_by_view", lambda device, dtype: False)
    monkeypatch.setattr(decoder, "pack", noted)
    config = shrunk_config("arch.halt_exploration_prob=0", *overrides, config_name=name).arch
    model = create_model(config, store.metadata).train()
    batches = [small_batch(store, 5, number=number) for number in range(2)]
    plain = step_of(model, config, batches)
    assert all(rows == valid for rows, valid in sizes)
    model.inner.replays_graphs = True
    sizes.clear()
    rounded = step_of(model, config, batches)
    assert all(rows == rounded_up(valid) > valid for rows, valid in sizes)
    assert len(sizes) == 2
    for ours, expected in zip(rounded, plain, strict=True):
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(ours / scale, expected / scale, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "overrides"), SYSTEMS)
def test_rounding_asks_for_no_further_value(
    shrunk_config: Load, store: PuzzleStore, batch: Batch, name: str, overrides: tuple[str, ...]
) -> None:
    """On CUDA's path, which the meta device takes."""
    config = shrunk_config(HALF, *overrides, config_name=name).arch
    model = create_model(config, store.metadata).to("meta").train()
    on_meta = {key: value.to("meta") for key, value in batch.items()}
    questions = []
    for model.inner.replays_graphs in (False, True):
        with CountedSizes() as counted:
            create_loss_head(config, model)(model.initial_carry(on_meta), on_meta)[1].backward()
        questions.append((counted.questions, counted.values_asked))
    assert questions[0] == questions[1]


def test_graphs_are_of_the_decoders_blocks_alone(shrunk_config: Load, store: PuzzleStore) -> None:
    """The encoder's have other numbers of rows; all are compiled."""
    model = create_model(shrunk_config().arch, store.metadata)
    compile_blocks(model, "eager", graphs=True)
    assert model.inner.replays_graphs
    blocks = [*model.inner.L_level.layers, *model.encoder.grid_encoder.layers]
    assert all(block._compiled_call_impl is not None for block in blocks)


def test_without_cuda_graphs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"compile=graphs replays CUDA graphs.*cpu.*compile=on or off"):
        wants_compiling("graphs", torch.device("cpu"))
    assert wants_compiling("graphs", torch.device("cuda"))


def test_a_run_on_the_cpu_is_refused_graphs_before_it_has_a_folder(
    shrunk_config: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="compile=graphs"):
        create_trainer(shrunk_config("compile=graphs", HALF), Ranks(0, 1, torch.device("cpu")))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "overrides", "why"),
    [
        (ETRM, ("arch.forward_dtype=float32",), "arch.forward_dtype=float32"),
        (ETRM, ("arch.forward_dtype=auto",), "arch.forward_dtype=auto"),
        (ETRM, (HALF, IN_CONTEXT, READ), "arch.context_mode=read"),
        (ETRMTRM, (HALF, "arch.recurrent_encoder_type=in_context"), "arch.recurrent_encoder_type=in_context"),
        (TRM, (HALF, "arch.mlp_t=true", "arch.canvas=full"), "arch.mlp_t=true"),
        (TRM, (HALF, "arch.grid_conv=true"), "arch.grid_conv=true"),
    ],
)
def test_systems_whose_sizes_are_many_are_refused_graphs(
    shrunk_config: Load, name: str, overrides: tuple[str, ...], why: str
) -> None:
    with pytest.raises(ConfigError, match=f"compile=graphs.*{why}"):
        shrunk_config("compile=graphs", *overrides, config_name=name)
    assert shrunk_config("compile=graphs", HALF, config_name=name).compile == "graphs"
