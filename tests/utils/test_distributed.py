"""Ranks: one process without a group, and two gloo processes that train as one does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from checkpoints.checkpoint import open_checkpoint
from config.schema import TrainConfig, run_folder
from tests.processes import ETRM, call
from training.loop import fit
from utils import distributed
from utils.distributed import Ranks, choose_device

CONFIG_NAME = "cfg_pretrain_etrm_arc_agi_1"
MetricsOf = Callable[[Path], list[dict[str, float]]]


@pytest.mark.parametrize(("batch", "world_size"), [(8, 1), (8, 2), (12, 4)])
def test_ranks_share_a_global_batch_without_gap_or_overlap(batch: int, world_size: int) -> None:
    shares = [Ranks(rank, world_size, torch.device("cpu")).local_slots(batch) for rank in range(world_size)]
    slots = list(range(batch))
    assert [slot for share in shares for slot in slots[share]] == slots
    assert len({len(slots[share]) for share in shares}) == 1


def test_rank_zero_alone_is_first() -> None:
    assert [Ranks(rank, 3, torch.device("cpu")).is_first for rank in range(3)] == [True, False, False]


def test_device_auto_takes_cuda_where_there_is_one() -> None:
    assert choose_device("auto", 1) == (torch.device("cuda", 1) if torch.cuda.is_available() else torch.device("cpu"))
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_cuda_without_one_says_what_to_write_instead() -> None:
    with pytest.raises(ValueError, match="device=cpu"):
        choose_device("cuda")


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = distributed.start("cpu")
    assert ranks == Ranks(0, 1, torch.device("cpu"))
    tensors = [torch.ones(2), torch.tensor(3)]
    distributed.sum_over_ranks(tensors, ranks)
    assert [t.tolist() for t in tensors] == [[1.0, 1.0], 3]
    assert distributed.gather_lists(["a"], ranks) == ["a"]
    assert distributed.from_first_rank("b", ranks) == "b"
    distributed.stop(ranks)
    assert not dist.is_initialized()


GROUP_SCRIPT = """
import json, sys
import torch
from utils import distributed
from utils.distributed import Ranks

ranks = distributed.start("cpu")
distributed.GATHERED_AT_ONCE = 2
tensors = [torch.full((2, 2), float(ranks.rank + 1)), torch.tensor(10.0 * ranks.rank), torch.zeros(0)]
tensors.append(torch.arange(3.0).to(torch.float64) + ranks.rank)
distributed.sum_over_ranks(tensors, ranks)
found = {
    "sums": [t.tolist() for t in tensors],
    "dtypes": [str(t.dtype) for t in tensors],
    "lists": distributed.gather_lists([f"{ranks.rank}{i}" for i in range(5 * ranks.rank)], ranks),
    "empty": distributed.gather_lists([], ranks),
    "any": [distributed.any_rank(ranks.rank == 1, ranks), distributed.any_rank(False, ranks)],
    "first": distributed.from_first_rank({"rank": ranks.rank}, ranks),
    "slots": list(range(6))[ranks.local_slots(6)],
}
with open(f"{sys.argv[1]}/rank_{ranks.rank}.json", "w") as file:
    json.dump(found, file)
distributed.stop(ranks)
"""


def test_sums_lists_and_values_reach_every_rank(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(GROUP_SCRIPT)
    done = call(tmp_path / "script.py", str(tmp_path), folder=tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2)]
    for rank, values in enumerate(found):
        assert values["sums"] == [[[3.0, 3.0], [3.0, 3.0]], 10.0, [], [1.0, 3.0, 5.0]]
        assert values["dtypes"] == ["torch.float32"] * 3 + ["torch.float64"]
        assert values["lists"] == ["10", "11", "12", "13", "14"]  # none of rank 0, five of rank 1, two at a time
        assert values["empty"] == []
        assert values["any"] == [True, False]
        assert values["first"] == {"rank": 0}
        assert values["slots"] == [0, 1, 2] if rank == 0 else [3, 4, 5]


@pytest.mark.parametrize(
    ("script", "choice"),
    [
        (ETRM, "arch.encoder_type=standard"),
        (ETRM, "arch.encoder_type=in_context"),
        pytest.param(
            ETRM,
            "arch.encoder_type=in_context arch.context_mode=read arch.context_attention=pair arch.targets=all_pairs",
            id="read, all_pairs",
        ),
        ("pretrain_etrmtrm.py", "arch.recurrent_encoder_type=in_context"),
    ],
)
def test_two_ranks_train_and_evaluate_as_one_does(
    script: str,
    choice: str,
    shrunk_config: Callable[..., TrainConfig],
    as_overrides: Callable[[TrainConfig, str], list[str]],
    eager_decoder: Path,
    metrics_of: MetricsOf,
    ranks: Ranks,
    tmp_path: Path,
) -> None:
    """Same global batch, same draws for exploration, same reduction, same votes; also with contexts of any length."""
    config_name = CONFIG_NAME if script == ETRM else "cfg_pretrain_etrmtrm_arc_agi_1"
    config = shrunk_config(
        "+run_name=run",
        *choice.split(),
        *([f"load_pretrained_decoder={eager_decoder}"] if script == ETRM else []),
        "log_interval=1",
        "lr=1e-3",
        "max_eval_groups=3",
        "max_eval_augmentations=3",
        "eval_batch_size=2",
        "log_predictions_every=0",
        config_name=config_name,
    )
    two_folder = tmp_path / "two"
    done = call(script, "--config-name", config_name, *as_overrides(config, config_name), folder=two_folder, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1  # rank 0 alone ends with the table

    fit(config, ranks)
    one, two = run_folder(config), two_folder / run_folder(config)
    one_lines, two_lines = metrics_of(one), metrics_of(two)
    assert [line["step"] for line in one_lines] == [line["step"] for line in two_lines]
    if script == ETRM:
        assert len({line.get("train/steps") for line in one_lines}) > 2  # exploration had a say
    # In evaluation, encoder health is a mean over batches, which differ.
    local = ("per_second", "eval/encoder_")
    for expected, found in zip(one_lines, two_lines, strict=True):
        shared = {key for key in expected if not any(part in key for part in local)}
        assert {key: found[key] for key in shared} == pytest.approx({key: expected[key] for key in shared}, abs=1e-4)
    assert json.loads((two / "submission.json").read_text()) == json.loads((one / "submission.json").read_text())

    alone, together = open_checkpoint(one), open_checkpoint(two)
    for name, weight in alone.model_state().items():
        torch.testing.assert_close(together.model_state()[name], weight, rtol=0, atol=1e-4)
    carry = alone.rank_state(0)["carry"]
    halves = [together.rank_state(rank)["carry"] for rank in range(2)]
    assert torch.equal(torch.cat([half["steps"] for half in halves]), carry["steps"])
    for key, value in carry["current_data"].items():
        assert torch.equal(torch.cat([half["current_data"][key] for half in halves]), value)
    assert together.trained_on == alone.trained_on
