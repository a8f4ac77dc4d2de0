"""`make bench-gpu`: every system at full size on one CUDA device, in under four minutes.

Training steps (forward and backward pass of one ACT step) and votes: eager, compiled, and compiled with the decoder's
blocks as CUDA graphs; their share of the rate of large products, which is measured in the same run; where the time goes
by kernel; what torch offers for attention. The table goes into docs/performance.md, between its marks. Without CUDA
nothing is measured, and one line says so.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.breakdown import REST, Breakdown, broken_down
from benchmarks.gpu_attention import milliseconds
from benchmarks.gpu_measure import Training, Vote, measure_training, measure_vote, rate_of_products
from benchmarks.pages import Row, table, write_between
from benchmarks.systems import SYSTEMS, System
from dataset.build_arc_dataset import build_dataset
from dataset.grids import PAD, SEQ_LEN
from dataset.store import PuzzleStore, load_store
from models.encoders.base import forward_dtype
from models.machine import best_dtype

TRAINING_HEAD = (
    "training step",
    "form",
    "batch",
    "ms",
    "samples/s",
    "useful TFLOP/s",
    "of the rate of products",
    "peak GiB",
    "first step, s",
    "graphs compiled after the tenth step",
)
VOTE_HEAD = ("one vote", "form", "queries", "s", "useful TFLOP/s", "of the rate of products", "peak GiB")
NOT_MEASURED = "not measured"
# Whose decoder reads no rows besides its own (`compile=graphs`).
WITH_GRAPHS = tuple(name for name in SYSTEMS if name not in ("in_context read", "ETRMTRM C"))


@dataclass(frozen=True)
class Plan:
    """How large everything is, and how often it runs.

    Attributes:
        in_context_batch: keeps several times as much for its backward pass.
        seconds: what has not begun by then is left out, and said to be.
    """

    device: torch.device
    size: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    batch: int = 256
    in_context_batch: int = 128
    warm: dict[str, int] = field(default_factory=lambda: {"eager": 2, "compiled": 10, "graphs": 20})
    timed: int = 5
    forms: tuple[str, ...] = ("compiled", "eager", "graphs")
    side: int = 8192
    seconds: float = 200.0

    def system(self, name: str, store: PuzzleStore, form: str) -> System:
        """A system in one form, on the device."""
        return System(
            name,
            store,
            size=self.size,
            dtype=self.dtype,
            batch_size=self.batch_of(name),
            compiled=form == "compiled",
            graphs=form == "graphs",
            device=self.device,
        )

    def batch_of(self, name: str) -> int:
        return self.in_context_batch if name == "in_context" else self.batch


@dataclass(frozen=True)
class Rows:
    """What the tables hold, filled system by system."""

    training: list[Row] = field(default_factory=list)
    votes: list[Row] = field(default_factory=list)
    breakdowns: dict[str, Breakdown] = field(default_factory=dict)


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def cells_of_training(found: Training, rate: float) -> Row:
    return (
        number(1e3 * found.step, 0),
        f"{found.samples:,.0f}",
        number(found.operations / 1e12),
        f"{100 * found.operations / rate:.0f} %",
        number(found.peak),
        number(found.first),
        str(found.recompiled),
    )


def cells_of_vote(found: Vote, rate: float) -> Row:
    share = f"{100 * found.operations / rate:.0f} %"
    return number(found.seconds, 2), number(found.operations / 1e12), share, number(found.peak)


def unless_it_fails(cells: Callable[[], Row], count: int) -> Row:
    """The cells, or what is to be said instead: one system or form that fails leaves the others' rows as they are."""
    try:
        return cells()
    except torch.OutOfMemoryError:
        return ("out of memory", *[""] * (count - 1))
    except RuntimeError as error:
        return (f"failed: {str(error).partition(chr(10))[0].replace('|', ' ')}", *[""] * (count - 1))


def measure(name: str, form: str, store: PuzzleStore, plan: Plan, rate: float, rows: Rows) -> None:
    """Add a system's rows in one form."""
    torch._dynamo.reset()  # so that every system compiles from nothing
    system = plan.system(name, store, form)
    first = (name, form, str(plan.batch_of(name)))
    training = unless_it_fails(
        lambda: cells_of_training(measure_training(system, plan.warm[form], plan.timed), rate),
        len(TRAINING_HEAD) - len(first),
    )
    rows.training.append((*first, *training))
    if all(training):
        rows.breakdowns[f"{name}, {form}"] = broken_down(system.train_step, plan.device)
    vote = unless_it_fails(lambda: cells_of_vote(measure_vote(system), rate), len(VOTE_HEAD) - len(first))
    rows.votes.append((*first, *vote))
    print(" | ".join(rows.training[-1]), file=sys.stderr, flush=True)


def leave_out(name: str, form: str, plan: Plan, rows: Rows) -> None:
    """Rows that say that nothing was measured."""
    first = (name, form, str(plan.batch_of(name)), NOT_MEASURED)
    rows.training.append((*first, *[""] * (len(TRAINING_HEAD) - len(first))))
    rows.votes.append((*first, *[""] * (len(VOTE_HEAD) - len(first))))


def breakdown_table(breakdowns: dict[str, Breakdown]) -> str:
    """Each group's share of the time on the device, and how many kernels ran."""
    groups = list(dict.fromkeys(group for found in breakdowns.values() for group in found.spent if group != REST))
    rows: list[Row] = [
        (group, *(f"{100 * found.shares[group]:.0f} %" for found in breakdowns.values())) for group in [*groups, REST]
    ]
    rows.append(("ms in all", *(number(sum(found.spent.values()) / 1e3, 0) for found in breakdowns.values())))
    rows.append(("kernels", *(str(found.count) for found in breakdowns.values())))
    return table(("share of a training step", *breakdowns), rows)


def longest_table(name: str, found: Breakdown) -> str:
    """The kernels that take longest."""
    rows = [(f"`{kernel[:90].replace('|', ' ')}`", number(spent / 1e3, 2)) for kernel, spent in found.longest]
    return table((f"kernels of {name} that take longest", "ms"), rows)


def attention_table(store: PuzzleStore, plan: Plan) -> str:
    """The candidates on the decoder's and on the encoder's sequences of ETRM."""
    system = plan.system("ETRM", store, "eager")
    batch, config = system.batch, system.config
    shown = batch["demo_mask"]
    pairs = (batch["demo_inputs"] != PAD).sum(-1) + (batch["demo_labels"] != PAD).sum(-1)
    sequences = {
        "decoder": (config.puzzle_emb_len + system.model.active_cells(batch).sum(1), config.puzzle_emb_len + SEQ_LEN),
        "encoder, valid pairs": (pairs[shown], 2 * SEQ_LEN),
        "encoder, all slots": (torch.where(shown, pairs, 0).flatten(), 2 * SEQ_LEN),
    }
    width = config.hidden_size // config.num_heads
    found = {
        name: milliseconds(lengths, slots, heads=config.num_heads, width=width, dtype=forward_dtype(config))
        for name, (lengths, slots) in sequences.items()
    }
    rows = [(kind, *(number(times[kind], 2) for times in found.values())) for kind in found["decoder"]]
    return table(("attention, forward and backward, ms", *found), rows)


def report(store: PuzzleStore, plan: Plan, device_name: str) -> str:
    """Everything that is measured, as text for the page."""
    began = time.monotonic()
    dtype = getattr(torch, plan.dtype)
    rate = rate_of_products(plan.side, dtype, plan.device)
    rows = Rows()
    for form in plan.forms:
        for name in SYSTEMS if form != "graphs" else WITH_GRAPHS:
            if time.monotonic() - began > plan.seconds:
                leave_out(name, form, plan, rows)
            else:
                measure(name, form, store, plan, rate, rows)
    parts = [
        f"{device_name}, torch {torch.__version__}. ARC-AGI-1 with augmentation, the configs' own sizes, {plan.dtype}. "
        f"A product of two {plan.side} × {plan.side} matrices runs at {rate / 1e12:.1f} TFLOP/s here.",
        table(TRAINING_HEAD, rows.training),
        table(VOTE_HEAD, rows.votes),
        breakdown_table(rows.breakdowns),
        *(longest_table(name, found) for name, found in rows.breakdowns.items() if name == "ETRM, compiled"),
        attention_table(store, plan),
        f"Measured in {time.monotonic() - began:.0f} s.",
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-write", action="store_true", help="print the table, and leave the page as it is")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured, and docs/performance.md stays as it is")
        return
    device = torch.device("cuda")
    with tempfile.TemporaryDirectory() as folder:
        build_dataset(Path(folder), ["training", "evaluation"], test_set_name="evaluation", num_aug=1000, seed=42)
        store = load_store(folder)
        text = report(store, Plan(device, dtype=best_dtype(device)), torch.cuda.get_device_name(device))
    print(text)
    if not arguments.no_write:
        write_between("bench-gpu", text)


if __name__ == "__main__":
    main()
