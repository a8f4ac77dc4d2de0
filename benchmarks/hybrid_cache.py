"""What the latent cache saves: a training step of the TRM hybrid with cached latents, and with the language model.

python -m benchmarks.hybrid_cache [--rounds 5] [key=value ...]

Both run in turn in one process, from the same weights on the same batches of real puzzles (`cfg_cpu_trm_hybrid`), so
that a noisy machine slows both; their losses must agree.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int64

from benchmarks.bench import seconds
from config.schema import ConfigError, HybridArch, TrainConfig, load_config
from dataset.batches import Batch
from dataset.store import load_stores
from dataset.text_tasks import TextTrainDataset
from inference.latent_cache import TextSystem
from inference.task_latents import attach_latents, task_texts
from learning.adam_atan2 import AdamATan2
from models.losses import create_loss_head
from models.recursive_reasoning.trm_hybrid import HybridTRMModel
from models.text_reasoning import TaskText, TextReasoningModule, pad_tokens
from training.sources import create_train_source
from utils.distributed import Ranks


class TaskTokens:
    """Batches bring the tokens of their texts instead of latents."""

    def __init__(self, texts: Sequence[TaskText]):
        self.texts = texts

    def of(self, samples: Int64[np.ndarray, " batch"]) -> Batch:
        ids, mask = pad_tokens([self.texts[sample] for sample in samples])
        return {"text_tokens": ids, "text_mask": mask}


class Training:
    """A model with its optimizer and batches; `step()` trains on the next one."""

    def __init__(self, config: TrainConfig, data: TextTrainDataset, text_module: TextReasoningModule | None):
        torch.manual_seed(config.seed)
        self.data, self.size = data, config.global_batch_size
        self.model = HybridTRMModel(config.arch, text_module).train()
        self.head = create_loss_head(config.arch, self.model)
        self.optimizer = AdamATan2(self.model.inner.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.losses: list[float] = []

    def step(self) -> None:
        batch = self.data[len(self.losses)]
        _, loss, _, _ = self.head(self.model.initial_carry(batch), batch)
        (loss / self.size).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(float(loss.detach()) / self.size)


def both_ways(config: TrainConfig) -> tuple[Training, Training, Callable[[], int]]:
    """The training with cached latents, and the one that reads the texts at every step; tokens of the last batch."""
    ranks = Ranks(0, 1, torch.device("cpu"))
    store = load_stores(config.data_paths)
    cached, uncached = (create_train_source(config, store, ranks) for _ in range(2))
    assert isinstance(cached, TextTrainDataset)
    assert isinstance(uncached, TextTrainDataset)
    assert isinstance(config.arch, HybridArch)
    system = TextSystem(config.arch)
    config = attach_latents(config, [cached], ranks)
    uncached.conditions = TaskTokens(task_texts(uncached.tasks, store, system.tokenizer))
    slow = Training(config, uncached, system.load())
    return Training(config, cached, None), slow, lambda: int(uncached[0]["text_mask"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = load_config("cfg_cpu_trm_hybrid", [f"arch.text_cache={folder}", *arguments.overrides])
            cached, uncached, tokens = both_ways(config)
        except ConfigError as error:
            parser.exit(2, f"error: {error}\n")
        ratios = []
        for _ in range(arguments.rounds + 1):
            fast = seconds(cached.step)
            ratios.append(seconds(uncached.step) / fast)
    ratios = sorted(ratios[1:])  # the first step warms up
    difference = max(abs(a - b) for a, b in zip(cached.losses, uncached.losses, strict=True))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {config.global_batch_size}, "
        f"hidden {config.arch.hidden_size}, {tokens()} text tokens in the first batch"
    )
    print(f"losses of {len(cached.losses)} training steps differ by at most {difference:.1e}")
    median = ratios[len(ratios) // 2]
    print(f"training step, cached against uncached: {median:.1f} times faster ({ratios[0]:.1f}-{ratios[-1]:.1f})")


if __name__ == "__main__":
    main()
