"""What jobs would cost: from measured rates by operations, and unknown where nothing was measured."""

from pathlib import Path

import pytest

from benchmarks import cost
from config.schema import TrainConfig, load_config

ETRM = "cfg_pretrain_etrm_arc_agi_1"
# All augmentations of all puzzles are 500 times as many queries.
FEW = ("max_eval_augmentations=2",)


def config_of(dataset_folder: Path, *overrides: str, name: str = ETRM) -> TrainConfig:
    return load_config(name, [f"data_paths=[{dataset_folder}]", *FEW, *overrides])


def test_a_run_of_the_measured_sizes_costs_its_samples_at_the_measured_rate(dataset_folder: Path) -> None:
    """Operations of its own batches, which are those of another data set, decide within a few per cent."""
    found = cost.projected(config_of(dataset_folder), 1)
    measured = cost.RATES["training"]["ETRM"]["compiled"]
    assert found.samples == pytest.approx(100_000 * 398, rel=1e-4)
    assert found.samples / found.training == pytest.approx(256 / measured["ms"] * 1e3, rel=0.1)
    assert found.gib == measured["gib"]
    assert found.basis == "compiled"
    assert found.gpu_hours == pytest.approx((found.training + found.evaluations) / 3600)


def test_devices_share_a_batch_at_less_than_their_rate_alone(dataset_folder: Path) -> None:
    one, four = (cost.projected(config_of(dataset_folder), devices) for devices in (1, 4))
    assert four.gpu_hours == pytest.approx(one.gpu_hours / cost.SEVERAL)
    assert one.gib is not None
    assert four.gib == one.gib / 4


def test_other_sizes_cost_by_their_operations_and_say_so(dataset_folder: Path) -> None:
    base = cost.projected(config_of(dataset_folder), 1)
    deep = cost.projected(config_of(dataset_folder, "arch.H_cycles=6", "arch.grad_cycles=2"), 1)
    assert 1.5 < deep.training / base.training < 2  # the decoder's part doubles, the encoder's does not
    assert deep.gib is None
    assert deep.basis == "compiled; other sizes, by operations"


@pytest.mark.parametrize(
    ("overrides", "share"),
    [(("epochs=50000",), (0.5, 0.5)), (("eval_interval=20000",), (1.0, 0.5)), (("max_eval_groups=40",), (1.0, 0.1))],
    ids=str,
)
def test_epochs_and_evaluations_count(
    dataset_folder: Path, overrides: tuple[str, ...], share: tuple[float, ...]
) -> None:
    base, other = (cost.projected(config_of(dataset_folder, *more), 1) for more in ((), overrides))
    assert other.training / base.training == pytest.approx(share[0], rel=0.1)  # other batches stand for all
    assert other.evaluations / base.evaluations == pytest.approx(share[1], rel=0.4)


def test_what_was_measured_in_eager_form_alone_is_said_to_be(dataset_folder: Path) -> None:
    name = "cfg_pretrain_etrmtrm_arc_agi_1"
    assert cost.projected(config_of(dataset_folder, name=name), 1).basis == "eager; compiled not measured"
    assert cost.projected(config_of(dataset_folder, "compile=off", name=name), 1).basis == "eager"


@pytest.mark.parametrize(
    ("overrides", "devices", "why"),
    [
        (("arch.hidden_size=256",), 1, "measured at arch.hidden_size=512, not 256"),
        (("arch.num_heads=4",), 1, "measured at arch.num_heads=8, not 4"),
        (("arch.forward_dtype=float32",), 1, "measured at arch.forward_dtype=bfloat16, not float32"),
        (("arch.encoder_type=hybrid_standard",), 1, "no step of ETRM with hybrid_standard was measured"),
        (("arch.encoder_type=in_context",), 1, "no step of in_context was measured"),
        (("arch.encoder_pooling_method=attention",), 1, "no formula for arch.encoder_pooling_method=attention"),
        ((), 8, "32 samples a device"),
        (("data_paths=[data/nowhere]",), 1, "data/nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_told_is_unknown_with_the_reason(
    dataset_folder: Path, overrides: tuple[str, ...], devices: int, why: str
) -> None:
    with pytest.raises(cost.Unknown, match=why):
        cost.projected(config_of(dataset_folder, *overrides), devices)


def test_a_job_file_has_a_row_for_each_training_run_and_their_sum(dataset_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "jobs.txt"
    options = "max_eval_augmentations=2 data_paths=[data/nowhere]"
    lines = [
        "make nothing",
        f"python pretrain_etrm.py {options} +run_name=known",
        f"torchrun --nproc-per-node 4 pretrain_etrm.py {options} +run_name=four",
        f"python pretrain_etrm.py {options} arch.encoder_type=lpn_standard +run_name=lpn",
    ]
    file.write_text("".join(f"[ ] {line}\n" for line in lines))
    text = cost.report(cost.runs_of(file, None), str(dataset_folder))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["known", "four", "lpn"]
    assert rows[-1][-1] == "unknown: no step of ETRM with lpn_standard was measured"
    one, four = (float(row[5]) for row in rows[2:4])
    assert four == pytest.approx(one / cost.SEVERAL, rel=0.01)
    assert f"{one + four:.3g} GPU hours in all, without 1 unknown ones." in text
    assert f"On {dataset_folder} in place" in text
    assert [name for name, *_ in cost.runs_of(file, "f*")] == ["four"]
