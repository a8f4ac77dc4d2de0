"""`make bench`: every system's training step and evaluation, in ratios of variants that run in turn in one process.

`--write` puts the table into docs/performance.md, between its markers, and the ratios of the short form into
benchmarks/reference.json; `--check` runs the short form alone and fails where a ratio has fallen more than 25 % under
that file's.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import Peaks, Ratio, in_turn, seconds
from benchmarks.pages import Row, table, write_between
from benchmarks.systems import DATA, SYSTEMS, System
from dataset.build_arc_dataset import build_dataset
from dataset.store import PuzzleStore, load_store

REFERENCE = Path(__file__).with_name("reference.json")
FALL_ALLOWED = 0.25
BATCH = 16
# The padded form computes every position of every sample, so its time is that of a few samples, times what is left out.
PADDED_SAMPLES = 4
VOTE_STEPS = 4  # ACT steps of a vote that are timed, of 16: those left out would spread the encoding further
READS = 20
SHARES = ("float32", "compiled", "fastest")  # the forms whose share of the matrix-product rate is shown


def training(store: PuzzleStore, rounds: int) -> tuple[str, dict[str, dict[str, System]]]:
    """Training steps of all systems; returns the table, and each system's compiled and fastest form."""
    rows: list[Row] = []
    compiled: dict[str, dict[str, System]] = {}
    for name in SYSTEMS:
        forms = {
            "float32": System(name, store),
            "full": System(name, store, canvas="full"),
            "compiled": System(name, store, compiled=True),
            "bfloat16": System(name, store, dtype="bfloat16"),
            "fastest": System(name, store, dtype="bfloat16", compiled=True),
            "padded": System(name, store, padded=True, samples=PADDED_SAMPLES),
        }
        fast, peaks = forms["fastest"], Peaks()
        steps = {form: system.train_step for form, system in forms.items()}
        steps["padded"] = peaks.watched("padded", steps["padded"])  # so long that looking at its memory costs nothing
        packed = forms["float32"]
        products = {"products": packed.products(), "fast products": fast.products()}
        steps |= {form: function for form, (function, _) in products.items()}
        part = {"padded": BATCH / PADDED_SAMPLES}
        timed = in_turn(steps, rounds, cold=["padded", "full"], once=["full"], stands_for=part)
        peaks.watched("packed", System(name, store, samples=PADDED_SAMPLES).train_step)()
        compiled[name] = {form: forms[form] for form in ("compiled", "fastest")}
        useful = packed.training_flops()
        shares = [
            timed.share(form, useful, product, products[product][1])
            for form, product in zip(SHARES, ("products", "products", "fast products"), strict=True)
        ]
        rows.append(
            (
                name,
                str(timed.ratio("padded", "float32")),
                str(timed.ratio("padded", "fastest")),
                str(timed.ratio("full", "float32")),
                str(timed.ratio("float32", "bfloat16")),
                str(timed.ratio("float32", "compiled")),
                ", ".join(f"{100 * share:.0f} %" for share in shares),
                f"{useful / 1e9:.0f}",
                str(peaks),
            )
        )
        progress(rows[-1])
    head = (
        "training step",
        "padded / packed, float32",
        "padded float32 / fastest",
        "full / task canvas",
        "float32 / bfloat16",
        "eager / compiled",
        f"of the matrix-product rate: {', '.join(SHARES)}",
        "useful GFLOP",
        f"peak memory of {PADDED_SAMPLES} samples, padded / packed",
    )
    return f"{table(head, rows)}\n\n{whole_batch(store)}", compiled


def whole_batch(store: PuzzleStore) -> str:
    """ETRM's padded training step with all samples: its memory, and its time against that of a few."""
    peaks = Peaks()
    packed, padded = (System("ETRM", store, padded=flag).train_step for flag in (False, True))
    few = System("ETRM", store, padded=True, samples=PADDED_SAMPLES).train_step
    peaks.watched("packed", packed)()
    ratio = seconds(peaks.watched("padded", padded)) / seconds(few)
    return (
        f"All {BATCH} samples, ETRM: peak memory, padded / packed, {peaks}; the padded step takes {ratio:.2f} times "
        f"that of {PADDED_SAMPLES} samples, which stands for it in the table."
    )


def evaluation(store: PuzzleStore, compiled: dict[str, dict[str, System]], rounds: int) -> str:
    """Votes of all systems, against the padded form that encodes again at each ACT step."""
    rows: list[Row] = []
    for name in SYSTEMS:
        packed, padded = System(name, store), System(name, store, padded=True, samples=PADDED_SAMPLES)
        forms = {"float32": packed, **compiled[name]}
        products, fast_products = packed.products(), compiled[name]["fastest"].products()
        variants: dict[str, Callable[[], object]] = {
            **{form: partial(system.vote, VOTE_STEPS) for form, system in forms.items()},
            "padded": partial(padded.evaluation_steps, 1),
            "products": products[0],
            "fast products": fast_products[0],
        }
        for system in compiled[name].values():
            system.evaluation_steps(1)  # compiles
        part = {"padded": VOTE_STEPS * BATCH / PADDED_SAMPLES}
        timed = in_turn(variants, rounds, cold=[*SHARES, "padded"], stands_for=part)
        useful = packed.vote_flops(VOTE_STEPS)
        shares = [timed.share(form, useful, "products", products[1]) for form in ("float32", "compiled")]
        shares.append(timed.share("fastest", useful, "fast products", fast_products[1]))
        against = [str(timed.ratio("padded", form)) for form in ("float32", "fastest")]
        rows.append((name, *against, ", ".join(f"{100 * share:.0f} %" for share in shares)))
        progress(rows[-1])
    head = (
        f"one vote ({VOTE_STEPS} of its 16 ACT steps)",
        "padded / packed, float32",
        "padded float32 / fastest",
        f"of the matrix-product rate: {', '.join(SHARES)}",
    )
    return table(head, rows)


def growth(store: PuzzleStore, rounds: int) -> str:
    """How the training step of ETRM grows, against its size above (hidden 128, batch 16, 10 slots, all puzzles)."""
    base = System("ETRM", store)
    variants = {
        "hidden 64": System("ETRM", store, overrides=("arch.hidden_size=64",)),
        "hidden 256": System("ETRM", store, overrides=("arch.hidden_size=256",)),
        "batch 4": System("ETRM", store, batch_size=4),
        "batch 32": System("ETRM", store, batch_size=32),
        "1 demonstration": System("ETRM", store, max_demos=1),
        "2 demonstrations": System("ETRM", store, max_demos=2),
    }
    with tempfile.TemporaryDirectory() as folder:
        for side in (10, 20):
            small = Path(folder) / str(side)
            build_dataset(small, ["training"], num_aug=0, max_side=side)
            variants[f"grids up to {side} x {side}"] = System("ETRM", load_store(small))
    steps = {"base": base.train_step} | {name: system.train_step for name, system in variants.items()}
    timed = in_turn(steps, rounds, cold=steps)
    rows = [
        (name, str(timed.ratio(name, "base")), f"{system.training_flops() / base.training_flops():.2f}")
        for name, system in variants.items()
    ]
    return table(("ETRM's training step, float32", "time / base", "useful FLOP / base"), rows)


def pipeline(store: PuzzleStore, compiled: dict[str, dict[str, System]], rounds: int) -> str:
    """Batches read against the fastest training step, and the time to build the data set."""
    rows: list[Row] = []
    for name in ("TRM", "ETRM"):
        system = compiled[name]["fastest"]

        def read(data: object = system.data) -> None:
            for number in range(1, READS + 1):
                data[number]  # pyright: ignore[reportIndexIssue]

        ratio = in_turn({"step": system.train_step, "read": read}, rounds).ratio("step", "read")
        shown = Ratio(ratio.median * READS, ratio.low * READS, ratio.high * READS)
        rows.append((f"batches that one worker reads in {name}'s fastest step", str(shown)))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "data"
        took = seconds(lambda: build_dataset(target, ["training", "evaluation"], test_set_name="evaluation"))
        size = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    rows.append(("building ARC-AGI-1 with 1000 augmentations", f"{took:.1f} s, {size:.1f} MB"))
    return table(("data", ""), rows)


def parity(store: PuzzleStore) -> str:
    """Largest differences between the packed and the padded form."""
    contexts = [System("ETRM", store, padded=padded, batch_size=4).context() for padded in (False, True)]
    logits = [System("ETRM", store, canvas="full", padded=padded, batch_size=4).logits() for padded in (False, True)]
    differences = [float((a - b).abs().max()) for a, b in (contexts, logits)]
    return (
        f"Packed and padded form, float32, largest difference: contexts {differences[0]:.1e}, logits of one ACT step "
        f"with canvas=full {differences[1]:.1e}."
    )


def machine(rounds: int) -> str:
    """What the figures were measured on."""
    model = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    return (
        f"{model or platform.processor()}, {os.cpu_count()} logical CPUs, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}. Hidden 128, 4 heads, 2 layers, H 3, "
        f"L 6, batch {BATCH} of ARC-AGI-1 training puzzles, 10 demonstration slots. "
        f"Ratios are medians of {rounds} rounds, with their extremes; the full canvas is timed once."
    )


def short_form(store: PuzzleStore, rounds: int) -> dict[str, float]:
    """A few ratios that a slowdown of any part would show in; compiled forms are left out."""
    found: dict[str, float] = {}
    for name in ("TRM", "ETRM"):
        forms = {
            "packed": System(name, store, batch_size=4),
            "padded": System(name, store, batch_size=4, padded=True),
            "bfloat16": System(name, store, batch_size=4, dtype="bfloat16"),
        }
        timed = in_turn({form: system.train_step for form, system in forms.items()}, rounds)
        found[f"{name}: training step, padded / packed"] = timed.ratio("padded", "packed").median
        found[f"{name}: training step, float32 padded / bfloat16"] = timed.ratio("padded", "bfloat16").median
    packed, padded = (System("ETRM", store, batch_size=4, padded=flag) for flag in (False, True))
    votes = {"packed": partial(packed.vote, VOTE_STEPS), "padded": partial(padded.evaluation_steps, 1)}
    timed = in_turn(votes, rounds, stands_for={"padded": VOTE_STEPS})
    found["ETRM: one vote, padded / packed"] = timed.ratio("padded", "packed").median
    return found


def check(store: PuzzleStore, rounds: int) -> int:
    """The exit status of `--check`."""
    reference: dict[str, float] = json.loads(REFERENCE.read_text())
    found = short_form(store, rounds)
    rows = []
    failed = False
    for name, expected in reference.items():
        fell = found[name] < (1 - FALL_ALLOWED) * expected
        failed |= fell
        rows.append((name, f"{found[name]:.2f}", f"{expected:.2f}", "FELL" if fell else "ok"))
    print(table(("ratio", "now", "reference", ""), rows))
    return int(failed)


def progress(cells: Row) -> None:
    print(" | ".join(cells), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write docs/performance.md's table and the reference")
    parser.add_argument("--check", action="store_true", help="the short form against the reference")
    arguments = parser.parse_args()
    store = load_store(DATA)
    if arguments.check and not REFERENCE.exists():
        parser.exit(2, f"error: {REFERENCE.name} is not there to compare with: make it with --write\n")
    if arguments.check:
        sys.exit(check(store, max(3, arguments.rounds)))
    steps, compiled = training(store, arguments.rounds)
    parts = [machine(arguments.rounds), parity(store), steps, evaluation(store, compiled, arguments.rounds)]
    parts += [growth(store, arguments.rounds), pipeline(store, compiled, arguments.rounds)]
    text = "\n\n".join(parts)
    print(text)
    if arguments.write:
        write_between("bench", text)
        REFERENCE.write_text(json.dumps(short_form(store, 3), indent=1) + "\n")


if __name__ == "__main__":
    main()
