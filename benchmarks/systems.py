"""The systems on a batch of real puzzles: a training step, an evaluation of one vote, and their useful operations."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch

from benchmarks import flops
from benchmarks.measure import matrix_products
from benchmarks.padded import padded_form
from config.schema import load_config
from dataset.batches import Batch
from dataset.fewshot_puzzle_dataset import FewshotTrainDataset
from dataset.store import PuzzleStore
from models import create_model
from models.encoders.base import forward_dtype
from models.losses import create_loss_head
from models.machine import compile_blocks

CPU = torch.device("cpu")
DATA = "data/arc1-encoder-aug-1000"
SIZE = ("arch.hidden_size=128", "arch.num_heads=4", "arch.H_cycles=3", "arch.L_cycles=6", "arch.halt_max_steps=16")
SYSTEMS = {
    "TRM": ("cfg_pretrain_trm_arc_agi_1", ()),
    "ETRM": ("cfg_pretrain_etrm_arc_agi_1", ()),
    "ETRMTRM A": ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=recurrent_standard",)),
    "ETRMTRM B": ("cfg_pretrain_etrmtrm_arc_agi_1", ("arch.recurrent_encoder_type=trm_style",)),
    "ETRMTRM C": (
        "cfg_pretrain_etrmtrm_arc_agi_1",
        ("arch.recurrent_encoder_type=in_context", "arch.grid_coordinates=both"),
    ),
    "in_context read": (
        "cfg_pretrain_etrm_arc_agi_1",
        ("arch.encoder_type=in_context", "arch.context_mode=read", "arch.grid_coordinates=both"),
    ),
    "in_context": ("cfg_pretrain_etrm_arc_agi_1", ("arch.encoder_type=in_context", "arch.grid_coordinates=both")),
}


class System:
    """A model with random weights and one batch; every variant of a system has the same of both.

    Args:
        graphs: compiled, with the decoder's blocks replayed as CUDA graphs.
        padded: compute every position of every sequence (`benchmarks/padded.py`) on the full canvas.
        samples: of the batch, the first so many.
        size: overrides that set the sizes of all systems.
    """

    def __init__(
        self,
        name: str,
        store: PuzzleStore,
        *,
        dtype: str = "float32",
        canvas: str = "task",
        compiled: bool = False,
        graphs: bool = False,
        padded: bool = False,
        batch_size: int = 16,
        samples: int | None = None,
        max_demos: int = 10,
        overrides: Sequence[str] = (),
        size: Sequence[str] = SIZE,
        device: torch.device = CPU,
    ):
        config_name, own = SYSTEMS[name]
        canvas = "full" if padded else canvas
        chosen = (f"arch.forward_dtype={dtype}", f"arch.canvas={canvas}")
        self.config = load_config(config_name, [*size, *own, *chosen, *overrides]).arch
        self.padded = padded
        self.data = FewshotTrainDataset(store, global_batch_size=batch_size, epochs=10_000, seed=0, max_demos=max_demos)
        self.samples, self.device = samples, device
        self.batch = self.batch_of(0)
        torch.manual_seed(0)
        self.model = create_model(self.config, store.metadata).to(device)
        if compiled or graphs:
            compile_blocks(self.model, graphs=graphs)
        self.head = create_loss_head(self.config, self.model)
        self.take(self.batch)

    def batch_of(self, number: int) -> Batch:
        """Another batch of the training data."""
        return {key: value[: self.samples].to(self.device) for key, value in self.data[number].items()}

    def take(self, batch: Batch) -> None:
        """Go on with this batch, all samples at their first ACT step."""
        self.batch = batch
        self.carry = self.model.initial_carry(batch)

    def _form(self) -> Any:
        return padded_form() if self.padded else nullcontext()

    def train_step(self) -> None:
        """Forward and backward pass of one ACT step."""
        self.model.train()
        with self._form():
            _, loss, _, _ = self.head(self.carry, self.batch)
            loss.backward()
        self.model.zero_grad()

    def vote(self, steps: int) -> None:
        """The first ACT steps of one evaluation of each query of the batch; the demonstrations are encoded once."""
        self.model.eval()
        for _ in islice(self.model.rollout(self.batch), steps):
            pass

    @torch.no_grad()
    def evaluation_steps(self, count: int) -> None:
        """ACT steps in evaluation that read the demonstrations again at each step."""
        self.model.eval()
        carry = self.carry
        with self._form():
            for _ in range(count):
                carry, _ = self.model(carry, self.batch)

    def context(self) -> torch.Tensor:
        """What the encoder says."""
        with torch.no_grad(), self._form():
            return self.model.encode(self.batch).context

    def logits(self) -> torch.Tensor:
        """Of one ACT step in evaluation."""
        self.model.eval()
        with torch.no_grad(), self._form():
            return self.model(self.carry, self.batch)[1]["logits"]

    @property
    def rows(self) -> int:
        """Rows of the decoder's packed tensor."""
        context = flops.context_lengths(self.batch, self.config)
        return int(self.model.active_cells(self.batch).sum() + context.sum())

    def products(self) -> tuple[Callable[[], None], float]:
        """`matrix_products` of a block on the decoder's rows in this dtype."""
        return matrix_products(self.rows, self.config.hidden_size, self.config.expansion, forward_dtype(self.config))

    def training_flops(self) -> float:
        """Useful operations of `train_step`."""
        self.model.train()
        return flops.training_step(self.batch, self.model.active_cells(self.batch), self.config)

    def vote_flops(self, steps: int) -> float:
        """Useful operations of `vote`."""
        self.model.eval()
        config = self.config.model_copy(update={"halt_max_steps": steps})
        return flops.evaluation(self.batch, self.model.active_cells(self.batch), config)
