"""`make bench`: packed against padded, and the data pipeline against the training step, as ratios.

Each pair runs in turn in one process, on the same weights and the same batch of real puzzles, so that a noisy machine
slows both.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.padded import padded_form
from config.schema import load_config
from dataset.fewshot_puzzle_dataset import Batch, FewshotTrainDataset
from dataset.store import load_store
from models import create_model
from models.losses import create_loss_head

DATA = "data/arc1-encoder-aug-1000"
BATCH = 16
OVERRIDES = (
    "arch.hidden_size=128",
    "arch.num_heads=4",
    "arch.H_cycles=3",
    "arch.L_cycles=6",
    "arch.forward_dtype=float32",
)


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def turn_by_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median ratio second / first over rounds of one call each, and its smallest and largest value."""
    first()
    ratios = []
    for _ in range(rounds):
        base = seconds(first)
        ratios.append(seconds(second) / base)
    return statistics.median(ratios), min(ratios), max(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = load_config("cfg_pretrain_etrm_arc_agi_1", OVERRIDES)
    store = load_store(DATA)
    data = FewshotTrainDataset(store, global_batch_size=BATCH, epochs=1000, seed=0)
    model = create_model(config.arch, store.metadata)
    head = create_loss_head(config.arch, model)
    batch: Batch = data[0]
    carry = model.initial_carry(batch)

    def encode() -> torch.Tensor:
        return model.encode(batch).context

    def train_step() -> None:
        _, loss, _, _ = head(carry, batch)
        (loss / BATCH).backward()
        model.zero_grad()

    def padded_step() -> None:
        with padded_form():
            train_step()

    def read_batches() -> None:
        for number in range(1, 21):
            data[number]

    with torch.no_grad():
        context = encode()
        with padded_form():
            difference = float((context - encode()).abs().max())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, hidden 128, 10 slots, float32")
    print(f"largest difference of the contexts, packed and padded: {difference:.1e}")
    ratio, low, high = turn_by_turn(train_step, padded_step, arguments.rounds)
    print(f"training step, packed against padded: {ratio:.1f} times faster ({low:.1f}-{high:.1f})")
    ratio, low, high = turn_by_turn(read_batches, train_step, arguments.rounds)
    print(
        f"data pipeline against this training step: {20 * ratio:.0f} times the samples ({20 * low:.0f}-{20 * high:.0f})"
    )
    demo = load_config("cfg_demo")
    demo_store = load_store(demo.data_paths[0])
    demo_data = FewshotTrainDataset(
        demo_store,
        global_batch_size=demo.global_batch_size,
        epochs=demo.epochs,
        seed=0,
        max_demos=demo.max_demos,
        max_groups=demo.max_train_groups,
    )
    demo_model = create_model(demo.arch, demo_store.metadata)
    demo_head = create_loss_head(demo.arch, demo_model)
    demo_batch = demo_data[0]
    demo_carry = demo_model.initial_carry(demo_batch)

    def demo_step() -> None:
        _, loss, _, _ = demo_head(demo_carry, demo_batch)
        loss.backward()
        demo_model.zero_grad()

    def read_demo_batches() -> None:
        for number in range(1, 21):
            demo_data[number]

    ratio, low, high = turn_by_turn(read_demo_batches, demo_step, 3 * arguments.rounds)
    print(f"data pipeline against the demo's step: {20 * ratio:.0f} times the samples ({20 * low:.0f}-{20 * high:.0f})")


if __name__ == "__main__":
    main()
