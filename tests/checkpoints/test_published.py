"""Published state dicts and bare files: they load whatever their prefixes, fit or say why not, and come out as they
went in; where they come from is never forgotten."""

import contextlib
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from checkpoints.checkpoint import CheckpointError, TrainedOn, open_checkpoint
from checkpoints.cli import main
from checkpoints.published import load_pretrained_decoder
from checkpoints.state_dicts import decoder_names
from config.schema import TrainConfig, dump_config
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.store import PuzzleStore
from evaluators.arc import ARC
from models import create_model
from training.loop import create_trainer
from utils.distributed import Ranks

DECODERS = ("cfg_pretrain_etrm_arc_agi_1", "cfg_pretrain_etrmtrm_arc_agi_1", "cfg_pretrain_trm_arc_agi_1")
ROOT = Path(__file__).parents[2]
KEYS = (
    "inner.{}",
    "_orig_mod.model.inner.{}",
    "model._orig_mod.inner.{}",
    "module._orig_mod.model.inner.{}",
    "_orig_mod.module.inner._orig_mod.{}",
)
State = dict[str, Tensor]
Load = Callable[..., TrainConfig]


@pytest.fixture
def make_model(shrunk_config: Load, store: PuzzleStore) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """`make_model("key=value", ..., config_name=...)`: a model with random numbers of its own in every tensor of its
    decoder, and its `arch` section."""

    def make(*overrides: str, config_name: str = DECODERS[0]) -> tuple[Any, dict[str, Any]]:
        config = shrunk_config(*overrides, config_name=config_name)
        model = create_model(config.arch, store.metadata)
        for name, value in model.inner.state_dict().items():
            if not name.startswith("puzzle_emb."):
                value.normal_()
        return model, dump_config(config)["arch"]

    return make


@pytest.fixture(scope="module")
def checkpoints(
    shrunk_config: Load, ranks: Ranks, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Any]]:
    """For each of `DECODERS` a run folder with one checkpoint, after 2 steps with averages; and its trainer."""
    made = {}
    for config_name in DECODERS:
        with contextlib.chdir(tmp_path_factory.mktemp("run")):
            trainer = create_trainer(shrunk_config("lr=1e-2", "ema_rate=0.5", config_name=config_name), ranks)
            for number in range(2):
                trainer.train_step(trainer.train_data[number])
            path = trainer.save_checkpoint()
            assert path is not None
            made[config_name] = (path.resolve().parents[1], trainer)
    return made


def decoder_state(decoder: nn.Module) -> State:
    """A copy of a decoder's tensors without puzzle embeddings."""
    return {k: v.detach().clone() for k, v in decoder.state_dict().items() if not k.startswith("puzzle_emb.")}


def published(decoder: nn.Module, *keys: str) -> State:
    """A decoder and puzzle embeddings of 7 rows in the published layout; the patterns of `keys` take turns."""
    state = decoder_state(decoder)
    state["puzzle_emb.weights"] = torch.randn(7, len(state["H_init"]))
    keys = keys or (KEYS[1],)
    return {keys[i % len(keys)].format(name): value for i, (name, value) in enumerate(state.items())}


def assert_same(found: State, expected: State) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def refusal(decoder: nn.Module, path: Path, arch: dict[str, Any]) -> str:
    """The message with which a file is refused; the decoder stays as it was."""
    before = decoder_state(decoder)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained_decoder(decoder, str(path), arch)
    assert_same(decoder_state(decoder), before)
    assert str(path.parent) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("config_name", DECODERS)
@pytest.mark.parametrize("keys", [*((key,) for key in KEYS), KEYS])
def test_a_published_state_dict_loads_whatever_its_prefixes(
    make_model: Callable, tmp_path: Path, config_name: str, keys: tuple[str, ...]
) -> None:
    source, _ = make_model()
    torch.save(published(source.inner, *keys), tmp_path / "step_7")
    model, arch = make_model(config_name=config_name)
    others = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("inner.") or "puzzle_emb" in k}
    load_pretrained_decoder(model.inner, "step_7", arch)
    assert_same(decoder_state(model.inner), decoder_state(source.inner))
    assert_same({k: v for k, v in model.state_dict().items() if k in others}, others)


@pytest.mark.parametrize("kind", ["torch.save", "older torch.save", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_file_format_and_half_precision_load(
    make_model: Callable, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    (source, _), (model, arch) = make_model(), make_model()
    state = {name: value.to(dtype) for name, value in published(source.inner).items()}
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch.save")
    load_pretrained_decoder(model.inner, str(path), arch)
    assert_same(decoder_state(model.inner), {k: v.to(dtype).float() for k, v in decoder_state(source.inner).items()})


def test_puzzle_embeddings_of_a_decoder_that_has_some_stay_as_they_are(make_model: Callable, tmp_path: Path) -> None:
    (source, _), (model, arch) = make_model(), make_model()
    torch.save(published(source.inner), tmp_path / "x.pt")
    model.inner.puzzle_emb = nn.Module()
    model.inner.puzzle_emb.register_buffer("weights", torch.full((3, 5), 2.0))
    load_pretrained_decoder(model.inner, "x.pt", arch)
    assert torch.equal(model.inner.puzzle_emb.weights, torch.full((3, 5), 2.0))
    assert_same(decoder_state(model.inner), decoder_state(source.inner))


def test_a_decoder_that_mixes_positions_loads_too(make_model: Callable, tmp_path: Path) -> None:
    mixer = ("arch.mlp_t=true", "arch.canvas=full")
    (source, _), (model, arch), (attends, other_arch) = make_model(*mixer), make_model(*mixer), make_model()
    torch.save(published(source.inner), tmp_path / "x.pt")
    (tmp_path / "x.yaml").write_text("{arch: {mlp_t: true, pos_encodings: none}}")
    load_pretrained_decoder(model.inner, "x.pt", arch)
    assert_same(decoder_state(model.inner), decoder_state(source.inner))
    message = refusal(attends.inner, tmp_path / "x.pt", other_arch)
    assert "arch.mlp_t=true arch.canvas=full" in message


@pytest.mark.parametrize("overrides", [(), ("arch.mlp_t=true", "arch.canvas=full"), ("arch.L_layers=3",)])
def test_the_names_of_the_published_layout_are_those_of_the_decoder(make_model: Callable, overrides: Any) -> None:
    model, arch = make_model(*overrides)
    assert decoder_names(arch["L_layers"], mlp_t=arch["mlp_t"]) == set(decoder_state(model.inner))


@pytest.mark.parametrize("config_name", DECODERS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_the_weights_file_of_a_checkpoint_loads_by_itself(
    make_model: Callable, checkpoints: dict, tmp_path: Path, config_name: str, name: str
) -> None:
    run, trainer = checkpoints[config_name]
    state = open_checkpoint(run).model_state()
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    model, arch = make_model()
    load_pretrained_decoder(model.inner, name, arch)
    assert_same(decoder_state(model.inner), decoder_state(trainer.model.inner))


def test_a_file_inside_a_checkpoint_folder_is_checked_by_its_hash(
    make_model: Callable, checkpoints: dict, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(open_checkpoint(checkpoints[DECODERS[0]][0]).path, tmp_path / "copy"))
    model, arch = make_model()
    assert load_pretrained_decoder(model.inner, "copy/model.safetensors", arch) == open_checkpoint(copy).trained_on
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert "SHA-256" in refusal(model.inner, copy / "model.safetensors", arch)


def test_what_was_loaded_and_what_was_left_out_is_logged(
    make_model: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, arch = make_model()
    torch.save(published(model.inner), tmp_path / "x.pt")
    count = sum(p.numel() for p in model.inner.parameters())
    with caplog.at_level(logging.INFO):
        load_pretrained_decoder(model.inner, "x.pt", arch)
    for part in ("published TRM state dict", "hidden size 32", "1 layers", f"{count:,}", "puzzle embeddings (7, 32)"):
        assert part in caplog.text
    assert "named contaminated" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "fitting"),
    [
        (("arch.hidden_size=64", "arch.L_layers=2"), "hidden_size 64 (this run: 32)"),
        (("arch.hidden_size=64", "arch.L_layers=2"), "arch.hidden_size=64 arch.L_layers=2"),
        (("arch.expansion=16",), "arch.expansion=13"),  # the first whole number whose width is that of 16
    ],
)
def test_other_sizes_are_refused_with_the_overrides_that_fit(
    make_model: Callable, tmp_path: Path, overrides: tuple[str, ...], fitting: str
) -> None:
    source, _ = make_model(*overrides)
    torch.save(published(source.inner), tmp_path / "x.pt")
    model, arch = make_model()
    message = refusal(model.inner, tmp_path / "x.pt", arch)
    assert fitting in message
    suggested = [word for word in message.split() if word.startswith("arch.")]
    fits, arch = make_model(*suggested)
    load_pretrained_decoder(fits.inner, "x.pt", arch)
    assert_same(decoder_state(fits.inner), decoder_state(source.inner))


P, QKV = "_orig_mod.model.inner.", "L_level.layers.0.self_attn.qkv_proj.weight"
FAULTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "missing": (lambda s: s.pop(f"{P}lm_head.weight"), "missing lm_head.weight"),
    "missing in a block": (lambda s: s.pop(P + QKV), f"missing {QKV}"),
    "missing embedding": (lambda s: s.pop(f"{P}embed_tokens.embedding_weight"), "missing embed_tokens"),
    "unexpected in the decoder": (lambda s: s.update({f"{P}extra": torch.zeros(1)}), "unexpected extra"),
    "unexpected part": (lambda s: s.update({"optimizer.x": torch.zeros(1)}), "unexpected optimizer.x"),
    "two keys of one name": (
        lambda s: s.update({"model.inner.H_init": torch.zeros(32)}),
        f"{P}H_init and model.inner.H_init are both inner.H_init",
    ),
    "shape": (lambda s: s.update({f"{P}q_head.bias": torch.zeros(3)}), "q_head.bias is (3,) instead of (2,)"),
    "scalar": (lambda s: s.update({f"{P}embed_tokens.embedding_weight": torch.zeros(())}), "embedding_weight is ()"),
    "integers": (lambda s: s.update({P + QKV: s[P + QKV].int()}), f"{P}{QKV} is strided int32"),
    "sparse": (lambda s: s.update({P + QKV: s[P + QKV].to_sparse()}), f"{P}{QKV} is sparse"),
    "no tensor": (lambda s: s.update({"epoch": 3}), "'epoch' is a int"),
    "NaN": (lambda s: s[P + QKV][3, 4].fill_(float("nan")), f"NaN or infinite values in {QKV}"),
    "infinite": (lambda s: s[f"{P}L_init"][0].fill_(float("-inf")), "NaN or infinite values in L_init"),
    "nothing": (lambda s: s.clear(), "an empty dict"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_state_dict_that_does_not_fit_is_refused_by_its_keys(
    make_model: Callable, tmp_path: Path, fault: str
) -> None:
    model, arch = make_model()
    state = published(model.inner)
    change, named = FAULTS[fault]
    change(state)
    torch.save(state, tmp_path / "x.pt")
    assert named in refusal(model.inner, tmp_path / "x.pt", arch)


@pytest.mark.parametrize("kind", ["torch.save", "older torch.save", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 1e-5, 1e-3, 0.01, 0.5, 0.999, -1])
def test_a_truncated_file_is_refused(make_model: Callable, tmp_path: Path, kind: str, share: float) -> None:
    model, arch = make_model()
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "safetensors":
        save_file(published(model.inner), path)
    else:
        torch.save(published(model.inner), path, _use_new_zipfile_serialization=kind == "torch.save")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))] if share >= 0 else whole[:-1])
    message = refusal(model.inner, path, arch)
    assert "damaged, truncated, or no state dict" in message
    assert ("empty" in message) == (share == 0)
    assert "weights_only" not in message, "torch's advice to load it unsafely must not reach the user"


@pytest.mark.parametrize(
    "content", [b"not a pickle", b"configuration\nof\nsomething", b"\x80\x02}q\x00.", b"PK\x03\x04"]
)
def test_a_file_that_is_no_state_dict_is_refused(make_model: Callable, tmp_path: Path, content: bytes) -> None:
    model, arch = make_model()
    (tmp_path / "x.pt").write_bytes(content)
    assert "no state dict" in refusal(model.inner, tmp_path / "x.pt", arch)


class Runs:
    """A pickle of it calls `exec` when it is loaded in the usual way."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


@pytest.mark.parametrize("protocol", [0, 2, 4, "torch.save", "older torch.save"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(
    make_model: Callable, tmp_path: Path, protocol: int | str
) -> None:
    model, arch = make_model()
    mark, path = tmp_path / "mark", tmp_path / "x.pt"
    state = {**published(model.inner), "inner.more": Runs(mark)}
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps({"inner.more": Runs(mark)}, protocol=protocol))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=protocol == "torch.save")
    message = refusal(model.inner, path, arch)
    assert "not tensors: refused, and nothing of it was run" in message
    assert not mark.exists()
    if isinstance(protocol, int):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists(), "the file must be one that really runs code"


@pytest.mark.parametrize("path", ["nothing", "nothing.safetensors", "folder"])
def test_a_path_that_holds_no_weights_is_named(make_model: Callable, tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    model, arch = make_model()
    message = refusal(model.inner, tmp_path / path, arch)
    assert ("an empty folder; expected a run folder" if path == "folder" else "no such file or folder") in message


CONFIGS = {
    "L_cycles": ({"L_cycles": 4}, "L_cycles 4 (this run: 2); these overrides would fit: arch.L_cycles=4"),
    "both cycles": ({"H_cycles": 3, "L_cycles": 6}, "arch.H_cycles=3 arch.L_cycles=6"),
    "heads": ({"num_heads": 4}, "num_heads 4 (this run: 2)"),
    "expansion": ({"expansion": 2.5}, "arch.expansion=2.5"),
    "positions": ({"pos_encodings": "learned"}, "arch.pos_encodings=learned"),
    "no positions, but attention": ({"pos_encodings": "none"}, "arch.pos_encodings=none"),
    "context": ({"puzzle_emb_len": 0, "puzzle_emb_ndim": 65}, "arch.puzzle_emb_len=3"),
    "no context": ({"puzzle_emb_len": 0, "puzzle_emb_ndim": 0}, "arch.puzzle_emb_ndim=0"),
    "of another file": ({"hidden_size": 64}, "do not belong together"),
    "no number": ({"L_cycles": "four"}, "arch.L_cycles=four"),
    "no whole number": ({"H_cycles": True}, "arch.H_cycles=True"),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("name", ["x.yaml", "all_config.yaml", "config.yaml"])
@pytest.mark.parametrize("in_section", [True, False])
def test_a_config_beside_the_file_must_agree(
    make_model: Callable, tmp_path: Path, case: str, name: str, in_section: bool
) -> None:
    model, arch = make_model()
    torch.save(published(model.inner), tmp_path / "x.pt")
    values, named = CONFIGS[case]
    (tmp_path / name).write_text(yaml.safe_dump({"lr": 1, "arch": values} if in_section else {"lr": 1, **values}))
    assert named in refusal(model.inner, tmp_path / "x.pt", arch)


def test_a_config_that_agrees_is_accepted_and_the_nearest_one_is_read(make_model: Callable, tmp_path: Path) -> None:
    model, arch = make_model()
    torch.save(published(model.inner), tmp_path / "x.pt")
    agrees = {"hidden_size": 32, "num_heads": 2, "expansion": 4, "H_cycles": 2, "L_cycles": 2, "L_layers": 1}
    agrees |= {"puzzle_emb_len": 0, "puzzle_emb_ndim": 16 * 32, "mlp_t": False, "pos_encodings": "rope"}
    agrees |= {"H_layers": 0, "name": "another@Name", "no_ACT_continue": True}
    (tmp_path / "config.yaml").write_text("not: [readable")
    (tmp_path / "all_config.yaml").write_text(yaml.safe_dump({"arch": agrees}))
    load_pretrained_decoder(model.inner, "x.pt", arch)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"arch": {**agrees, "L_cycles": 5}}))
    assert "L_cycles 5" in refusal(model.inner, tmp_path / "x.pt", arch)


@pytest.mark.parametrize("content", [b"a: [b", b"", b"- a", b"arch: 3", b"\xff\xfe\xff", b"trained_on: {puzzles: 3}"])
def test_an_unreadable_config_is_refused_by_its_name(make_model: Callable, tmp_path: Path, content: bytes) -> None:
    model, arch = make_model()
    torch.save(published(model.inner), tmp_path / "x.pt")
    (tmp_path / "x.yaml").write_bytes(content)
    assert str(tmp_path / "x.yaml") in refusal(model.inner, tmp_path / "x.pt", arch)


def test_a_record_of_training_data_is_read_from_the_config_or_the_file_beside(
    make_model: Callable, tmp_path: Path
) -> None:
    model, arch = make_model()
    torch.save(published(model.inner), tmp_path / "x.pt")

    def load() -> TrainedOn:
        return load_pretrained_decoder(model.inner, "x.pt", arch)

    assert load() == TrainedOn(unknown_origin=("x.pt",))
    (tmp_path / "trained_on.json").write_text(TrainedOn(puzzle_ids=("a",)).model_dump_json())
    assert load() == TrainedOn(puzzle_ids=("a",))
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"trained_on": {"puzzle_ids": ["b"]}}))
    assert load() == TrainedOn(puzzle_ids=("b",))
    (tmp_path / "x.yaml").unlink()
    (tmp_path / "trained_on.json").write_text('{"puzzle_ids": 3}')
    assert "trained_on.json" in refusal(model.inner, tmp_path / "x.pt", arch)


def test_figures_of_weights_of_unknown_origin_are_named_contaminated(
    make_model: Callable, shrunk_config: Load, store: PuzzleStore, ranks: Ranks, tmp_path: Path
) -> None:
    torch.save(published(make_model()[0].inner), tmp_path / "x.pt")
    trainer = create_trainer(shrunk_config("load_pretrained_decoder=x.pt", "arch.halt_max_steps=1"), ranks)
    assert trainer.trained_on.unknown_origin == ("x.pt",)
    metrics = trainer.evaluate().metrics
    assert metrics["ARC/num_contaminated_puzzles"] == len(trainer.eval_data.puzzles) == 4
    assert "ARC/contaminated_pass@1" in metrics
    assert "ARC/pass@1" not in metrics
    every = ARC(FewshotEvalDataset(store, batch_size=4), unknown_origin=True).contaminated_puzzles()
    assert every == [p.id for p in store.manifest.puzzles if p.split == "test"]


@pytest.mark.parametrize("config_name", DECODERS)
def test_an_exported_decoder_comes_back_bit_for_bit_with_its_cycles_and_provenance(
    make_model: Callable, checkpoints: dict, config_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, trainer = checkpoints[config_name]
    own = trainer.model.inner.state_dict().get("puzzle_emb.weights")
    main(["export", str(run), "--to", "trm", *(("--puzzle-identifiers", "5") if own is None else ())])
    said = capsys.readouterr().out
    output = run / "step_00000002-trm.pt"
    assert str(output) in said
    state = torch.load(output, weights_only=True)
    assert set(state) == {P + k for k in {*decoder_state(trainer.model.inner), "puzzle_emb.weights"}}
    assert torch.equal(state[f"{P}puzzle_emb.weights"], torch.zeros(5, 32) if own is None else own)
    assert ("zeros" in said) == (own is None)

    with trainer.averaged_weights():
        averaged = decoder_state(trainer.model.inner)
    model, arch = make_model()
    trained_on = load_pretrained_decoder(model.inner, str(output), arch)
    assert_same(decoder_state(model.inner), averaged)
    assert trained_on == open_checkpoint(run).trained_on
    assert trained_on.pair_hashes
    other, other_arch = make_model("arch.L_cycles=5")
    assert "arch.L_cycles=2" in refusal(other.inner, output, other_arch)


def test_export_of_the_raw_weights_to_a_named_file_which_it_does_not_overwrite(
    make_model: Callable, checkpoints: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, trainer = checkpoints[DECODERS[0]]
    command = ["export", str(run), "--to", "trm", "--raw", "--output", "raw.pt"]
    main(command)
    assert torch.load("raw.pt", weights_only=True)[f"{P}puzzle_emb.weights"].shape == (1, 32)
    model, arch = make_model()
    load_pretrained_decoder(model.inner, "raw.pt", arch)
    assert_same(decoder_state(model.inner), decoder_state(trainer.model.inner))
    before = (tmp_path / "raw.pt").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main([part for part in command if part != "--raw"])
    assert "raw.pt" in (error := capsys.readouterr().err)
    assert "--force" in error
    assert (tmp_path / "raw.pt").read_bytes() == before
    main([*(part for part in command if part != "--raw"), "--force"])
    assert (tmp_path / "raw.pt").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.pt", "raw.yaml"]


def test_weights_alone_are_a_checkpoint_that_can_be_read_and_not_gone_on_with(
    checkpoints: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = checkpoints[DECODERS[0]]
    command = ["export", str(run), "--to", "weights", "--output", str(tmp_path / "bare")]
    main(command)
    bare, whole = open_checkpoint(tmp_path / "bare"), open_checkpoint(run)
    assert_same(bare.model_state(ema=True), whole.model_state(ema=True))
    assert (bare.step, bare.config, bare.trained_on) == (whole.step, whole.config, whole.trained_on)
    with pytest.raises(CheckpointError, match=r"optim\.pt: cannot be read"):
        bare.optimizer_state()
    assert not list(bare.path.glob("rank_*"))
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "bare: cannot be written (File exists)" in capsys.readouterr().err


def test_tensors_of_options_are_known_and_are_not_exported_to_the_published_layout(
    make_model: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("arch.grid_coordinates=both", "arch.qk_norm_gain=true", "arch.grid_conv=true")
    model, _ = make_model(*options, "arch.pos_encodings=learned")
    torch.save({f"inner.{name}": value for name, value in model.inner.state_dict().items()}, "own.pt")
    main(["inspect", "own.pt"])
    assert "decoder parameters" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["export", "own.pt", "--to", "trm"])
    assert "the published layout has no inner." in capsys.readouterr().err


def test_a_published_file_keeps_its_own_puzzle_embeddings_and_its_unknown_origin(
    make_model: Callable, tmp_path: Path
) -> None:
    model, arch = make_model()
    state = published(model.inner, "model.inner.{}")
    torch.save(state, tmp_path / "x.pt")
    main(["export", "x.pt", "--to", "trm"])
    found = torch.load("x-trm.pt", weights_only=True)
    assert_same(found, {f"_orig_mod.{name}": value for name, value in state.items()})
    assert load_pretrained_decoder(model.inner, "x-trm.pt", arch) == TrainedOn(unknown_origin=("x.pt",))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("inspect", "nothing"), "nothing: no such file"),
        (("inspect", "part.pt"), "part.pt: not a whole decoder: missing inner.lm_head.weight"),
        (("export", "part.pt", "--to", "trm"), "part.pt: not a whole decoder: missing inner.lm_head.weight"),
        (("export", "x.pt", "--to", "trm", "--puzzle-identifiers", "3"), "7 rows"),
        (("export", "x.pt", "--to", "trm", "--output", "no/where.pt"), "no/where.yaml: cannot be written"),
        (("export", "x.pt", "--to", "trm", "--output", "x.safetensors"), "--output x.safetensors"),
        (("export", "x.pt", "--to", "trm", "--puzzle-identifiers", "0"), "1 or more"),
    ],
)
def test_a_command_that_cannot_be_done_ends_with_one_error(
    make_model: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    named: str,
) -> None:
    state = published(make_model()[0].inner)
    torch.save(state, "x.pt")
    torch.save({name: value for name, value in state.items() if "lm_head" not in name}, "part.pt")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    out, err = capsys.readouterr()
    assert not out
    assert "error: " in err
    assert named in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.pt", "x.pt"]


def test_the_command_line_as_a_process_ends_with_status_2_and_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nothing of use")
    done = subprocess.run(
        [sys.executable, "-m", "checkpoints", "inspect", str(tmp_path / "x.pt")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def rows_of(table: str) -> dict[str, str]:
    lines = [line.partition("  ") for line in table.splitlines()]
    starts = {len(name) + 2 + len(value) - len(value.lstrip()) for name, _, value in lines}
    assert len(starts) == 1, "two aligned columns"
    return {name: value.strip() for name, _, value in lines}


@pytest.mark.parametrize(
    ("overrides", "config_name", "layout", "encoder"),
    [
        ((), DECODERS[0], "ETRM checkpoint", "standard"),
        (("arch.recurrent_encoder_type=trm_style",), DECODERS[1], "ETRMTRM checkpoint", "trm_style"),
    ],
)
def test_inspect_tells_the_figures_of_a_checkpoint(
    shrunk_config: Load,
    ranks: Ranks,
    dataset_folder: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
    config_name: str,
    layout: str,
    encoder: str,
) -> None:
    config = shrunk_config("+run_name=run", "arch.L_cycles=3", *overrides, config_name=config_name)
    trainer = create_trainer(config, ranks)
    trainer.trained_on = trainer.trained_on.joined(TrainedOn(held_out_demonstrations=("a", "b"), unknown_origin=("f",)))
    trainer.train_step(trainer.train_data[0])
    trainer.save_checkpoint()
    main(["inspect", "runs/etrm-arc/run"])
    rows = rows_of(capsys.readouterr().out)
    counts = {part: sum(p.numel() for p in getattr(trainer.model, part).parameters()) for part in ("inner", "encoder")}
    seen = trainer.trained_on
    assert rows == {
        "layout": layout,
        "path": "runs/etrm-arc/run/checkpoints/step_00000001",
        "hidden size": "32",
        "layers": "1",
        "mixing": "attention, 2 heads",
        "vocabulary": "12",
        "cycles": "H 2, L 3",
        "encoder": encoder,
        "decoder parameters": f"{counts['inner']:,}",
        "encoder parameters": f"{counts['encoder']:,}",
        "total parameters": f"{counts['inner'] + counts['encoder']:,}",
        "puzzle embeddings": "none",
        "dtype": "float32",
        "step": "1",
        "data set": f"{dataset_folder}  sha256 {seen.datasets.get(str(dataset_folder), 'unknown')}",
        "puzzles seen": "8",
        "pairs seen": str(len(seen.pair_hashes)),
        "held-out puzzles whose demonstrations were seen": str(len(seen.held_out_demonstrations)),
        "unknown origin": "f",
    }
    assert len(seen.held_out_demonstrations) >= 2


def test_inspect_tells_the_figures_of_a_published_file(
    make_model: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = make_model("arch.L_layers=3")
    state = published(model.inner)
    state[f"{P}H_init"] = state[f"{P}H_init"].bfloat16()
    torch.save(state, tmp_path / "step_155718")
    record = {"puzzle_ids": ["a"], "pair_hashes": ["1", "2"], "datasets": {"data/one": "abc"}}
    (tmp_path / "step_155718.yaml").write_text(yaml.safe_dump({"trained_on": record, "arch": {"H_cycles": 3}}))
    main(["inspect", "step_155718"])
    rows = rows_of(capsys.readouterr().out)
    expected = {
        "layout": "published TRM state dict",
        "layers": "3",
        "mixing": "attention",
        "cycles": "H 3, L unknown",
        "encoder": "none",
        "decoder parameters": f"{sum(p.numel() for p in model.inner.parameters()):,}",
        "encoder parameters": "0",
        "puzzle embeddings": "224 (7, 32)",
        "dtype": "bfloat16, float32",
        "step": "155718",
        "data set": "data/one  sha256 abc",
        "puzzles seen": "1",
        "pairs seen": "2",
        "unknown origin": "none",
    }
    assert {name: rows[name] for name in expected} == expected
    (tmp_path / "step_155718.yaml").unlink()
    main(["inspect", "step_155718"])
    assert rows_of(capsys.readouterr().out)["unknown origin"] == "step_155718"
