"""An adaptation as a person sees it in a terminal: a bar while it goes on, its curve afterwards."""

from types import TracebackType

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dataset.arc_tasks import Task
from inference.adapt import ENDS, Tell
from inference.adapt_answers import Mark, agreement_fell
from inference.adapt_options import Budget
from inference.adapt_record import Answered
from inference.terminal import print_line

COLUMNS = ("updates", "seconds", "loss", "demonstrations explained", "agreement")


class AdaptProgress:
    """A bar of updates or seconds for each task, with the loss and how many demonstrations are explained."""

    def __init__(self, *, disable: bool):
        self.disable = disable
        self.bar: tqdm | None = None

    def __enter__(self) -> "AdaptProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def of(self, task: Task, budget: Budget) -> Tell:
        """What hears of the progress on a task, which is given so much."""
        self._close()
        by_updates = budget.updates is not None
        bar = self.bar = tqdm(
            total=budget.updates if by_updates else budget.seconds,
            desc=f"adapt to {task.id}",
            disable=self.disable,
            leave=False,
            bar_format="{desc}: {percentage:3.0f}%|{bar}|{postfix}",
        )

        def tell(mark: Mark | None, updates: int, seconds: float) -> None:
            done = updates if by_updates else min(seconds, budget.seconds or seconds)
            bar.update(done - bar.n)
            if mark is not None:
                loss = "" if mark.loss is None else f"loss {mark.loss:.3f}, "
                bar.set_postfix_str(f"{updates} updates, {loss}explained {mark.explained}/{len(task.train)}")

        return tell


def print_adaptation(console: Console, found: Answered, *, with_curve: bool) -> None:
    """How an adaptation ended, and by option its marks in a table."""
    if with_curve:
        table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
        for title in COLUMNS:
            table.add_column(title, justify="right")
        for mark in found.marks:
            table.add_row(*_cells(mark, found.demonstrations))
        print_line(console, f"{found.puzzle}, adapting:")
        console.print(table)
    for sentence in sentences(found):
        print_line(console, sentence)


def _cells(mark: Mark, demonstrations: int) -> tuple[str, ...]:
    loss = "" if mark.loss is None else f"{mark.loss:.3f}"
    agreement = "" if mark.agreement is None else f"{100 * mark.agreement:.0f} %"
    return str(mark.updates), f"{mark.seconds:.1f}", loss, f"{mark.explained} of {demonstrations}", agreement


def sentences(found: Answered) -> list[str]:
    """What an adaptation came to, in words."""
    why = ENDS[found.ended]
    if found.ended == "out_of_memory" and not any(found.marks[0].votes):
        why = "memory ran out before the base had answered"
    said = [f"{found.puzzle}: {found.updates} updates in {found.seconds:.1f} s; {why}."]
    if found.ended == "seconds" and not found.updates:
        said.append(
            "Nothing was adapted: asking the base took the time. Give more (--adapt, --total-seconds) or fewer --votes."
        )
    if found.ended == "stopped" and not found.updates:
        said.append("Nothing was adapted: the base answers.")
    if found.demos_left_out:
        said.append(f"{found.demos_left_out} demonstrations are left out, for max_context_tokens holds no more.")
    if len(found.marks) < 2:
        return said
    if agreement_fell(found.marks[0], found.marks[-1]):
        said.append("The adapted weights predict the demonstration left out less often: the base answers.")
    elif found.last_change:
        said.append(f"The answer (its first attempt) last changed after {found.last_change} updates.")
    else:
        said.append("The answer (its first attempt) is the one before adapting.")
    return said
