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
from config.schema import TrainConfig, load_config
from dataset.fewshot_puzzle_dataset import FewshotTrainDataset
from dataset.store import load_store
from models import create_model
from models.losses import create_loss_head

DATA = "data/arc1-encoder-aug-1000"
BATCH = 16
READS = 20
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


class Bench:
    """A model, a batch of real puzzles, and the things that are timed on them."""

    def __init__(self, config: TrainConfig, data_path: str, batch_size: int):
        torch.manual_seed(0)
        store = load_store(data_path)
        self.data = FewshotTrainDataset(
            store,
            global_batch_size=batch_size,
            epochs=1000,
            seed=0,
            max_demos=config.max_demos,
            max_groups=config.max_train_groups,
        )
        self.model = create_model(config.arch, store.metadata)
        self.head = create_loss_head(config.arch, self.model)
        self.batch = self.data[0]
        self.carry = self.model.initial_carry(self.batch)

    @torch.no_grad()
    def context(self) -> torch.Tensor:
        return self.model.encode(self.batch).context

    def train_step(self) -> None:
        _, loss, _, _ = self.head(self.carry, self.batch)
        loss.backward()
        self.model.zero_grad()

    def padded_step(self) -> None:
        with padded_form():
            self.train_step()

    def read_batches(self) -> None:
        for number in range(1, READS + 1):
            self.data[number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    bench = Bench(load_config("cfg_pretrain_etrm_arc_agi_1", OVERRIDES), DATA, BATCH)
    packed = bench.context()
    with padded_form():
        difference = float((packed - bench.context()).abs().max())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, hidden 128, 10 slots, float32")
    print(f"largest difference of the contexts, packed and padded: {difference:.1e}")
    ratio, low, high = turn_by_turn(bench.train_step, bench.padded_step, rounds)
    print(f"training step, packed against padded: {ratio:.1f} times faster ({low:.1f}-{high:.1f})")
    demo_config = load_config("cfg_demo")
    demo = Bench(demo_config, demo_config.data_paths[0], demo_config.global_batch_size)
    for name, part in (("this", bench), ("the demo's", demo)):
        ratio, low, high = turn_by_turn(part.read_batches, part.train_step, rounds)
        rates = f"{READS * ratio:.0f} times the samples ({READS * low:.0f}-{READS * high:.0f})"
        print(f"data pipeline against {name} training step: {rates}")


if __name__ == "__main__":
    main()
