"""Tasks adapted side by side come to what they come to one after another, whatever happens beside them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from config.schema import TrainConfig
from dataset.arc_tasks import Pair, Task
from dataset.build_arc_dataset import store_of_tasks
from dataset.store import PuzzleStore
from inference import adapt_stack
from inference.adapt import Adaptation, adapt, adaptation_steps
from inference.adapt_options import AdaptError, AdaptOptions, Budget
from inference.adapt_stack import Stack, adapt_stacked
from inference.adapt_views import TaskViews
from inference.adapt_weights import Course, create_task_learner
from learning.learner import Learner
from models import create_model
from models.act import RecursiveReasoner
from models.stacked import StackedModel, StackError
from models.stacked_linear import _in_one_kernel, stacked_linear

Load = Callable[..., TrainConfig]
ETRM = "cfg_pretrain_etrm_arc_agi_1"
BASE = ("arch.encoder_type=in_context", "arch.H_cycles=2", "arch.L_cycles=1", "arch.halt_max_steps=2")
OPTIONS = AdaptOptions(votes=4, views=4, agreement_views=2, warmup_updates=2, lr=3e-3)
SYSTEMS = [
    pytest.param(("arch.context_attention=all",), id="all"),
    pytest.param(
        ("arch.context_attention=alternate", "arch.L_layers=2", "arch.qk_norm_gain=true", "arch.grid_conv=true"),
        id="alternate",
    ),
    pytest.param(("arch.grid_coordinates=both", "arch.pos_encodings=rope2d", "arch.query_as_context=true"), id="grid"),
    pytest.param(("arch.pos_encodings=learned", "arch.context_tokens=one"), id="learned places, one token"),
    pytest.param(
        (
            *("arch.context_mode=read", "arch.context_attention=alternate", "arch.encoder_layer_scale_init=0.5"),
            *("arch.qk_norm_gain=true", "arch.grid_conv=true"),
        ),
        id="read",
    ),
]


def task_of(seed: int, demos: int, height: int, width: int) -> Task:
    """Grids that are turned upside down."""
    rng = np.random.default_rng(seed)
    grids = [rng.integers(0, 10, (height, width)).astype(np.uint8) for _ in range(demos + 1)]
    pairs = tuple(Pair(grid, grid[::-1].copy()) for grid in grids)
    return Task(f"t{seed}", "toy", pairs[:demos], pairs[demos:])


TASKS = [task_of(0, 3, 2, 2), task_of(1, 4, 5, 3), task_of(2, 2, 7, 7)]


@pytest.fixture
def double(shrunk_config: Load, store: PuzzleStore) -> Callable[..., tuple[RecursiveReasoner, TrainConfig]]:
    """A model of random weights in float64, with its config."""

    def create(*overrides: str) -> tuple[RecursiveReasoner, TrainConfig]:
        config = shrunk_config(*BASE, *overrides, config_name=ETRM)
        torch.manual_seed(0)
        model: Any = create_model(config.arch, store.metadata).double()
        for module in model.modules():
            if hasattr(module, "dtype"):
                module.dtype = torch.float64
        torch.nn.init.normal_(model.inner.q_head.weight)
        for name, parameter in model.named_parameters():
            if ".grid_conv." in name:
                torch.nn.init.normal_(parameter, std=0.2)
        return model.eval(), config

    return create


def courses_of(model: RecursiveReasoner, config: TrainConfig, options: AdaptOptions = OPTIONS) -> list[Course]:
    """One for each of `TASKS`, each with weights of its own."""
    found = []
    for number, task in enumerate(TASKS):
        views = TaskViews(
            store_of_tasks([task], 0, 0),
            range(len(task.train)),
            7 + number,
            views=options.views,
            max_demos=8,
            translate=True,
        )
        learner = create_task_learner(model, config.arch, options)
        learner.model.train()
        found.append(Course(learner, views, options, None, torch.device("cpu")))
    return found


def first_gradients(course: Course) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the first update, which is not made."""
    course.begin()
    learner = course.learner
    _, loss, *_ = learner.head(learner.model.initial_carry(course.batch), course.batch)
    (loss / learner.options.global_batch_size).backward()
    gradients = {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


@pytest.mark.parametrize("overrides", SYSTEMS)
def test_loss_gradient_and_weights_are_those_of_one_after_another(double: Any, overrides: tuple[str, ...]) -> None:
    model, config = double(*overrides)
    _, losses = Stack(model)._pass(together := courses_of(model, config))
    for course, loss, alone in zip(together, losses, courses_of(model, config), strict=True):
        expected, gradients = first_gradients(alone)
        assert abs(float(loss) - expected) <= 1e-10 * abs(expected)
        found = dict(course.learner.model.named_parameters())
        assert len(gradients) >= len(found) - 2
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name].grad, gradient, atol=1e-10, rtol=1e-10, msg=name)

    together, alone = courses_of(model, config), courses_of(model, config)
    stack = Stack(model)
    for _ in range(5):
        assert stack.update(together) == [None] * 3 == [course.update() for course in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.mean_loss() == pytest.approx(other.mean_loss(), rel=1e-7)
        assert one.updates == 5
        pairs = zip(one.learner.model.named_parameters(), other.learner.model.parameters(), strict=True)
        for (name, weight), expected in pairs:
            torch.testing.assert_close(weight, expected, atol=1e-7, rtol=1e-7, msg=name)
        assert one.learner.ema is not None
        assert other.learner.ema is not None
        for average, expected in zip(one.learner.ema.shadow, other.learner.ema.shadow, strict=True):
            torch.testing.assert_close(average, expected, atol=1e-7, rtol=1e-7)


def test_a_task_that_becomes_not_finite_does_not_touch_the_others(double: Any) -> None:
    model, config = double()
    together, alone = courses_of(model, config), courses_of(model, config)
    with torch.no_grad():
        together[1].learner.model.inner.lm_head.weight[0, 0] = float("nan")
    before = [p.clone() for p in together[1].learner.model.parameters()]
    stack = Stack(model)
    faults = stack.update(together)
    assert faults[0] is faults[2] is None
    assert faults[1] is not None
    for weight, kept in zip(together[1].learner.model.parameters(), before, strict=True):
        torch.testing.assert_close(weight, kept, atol=0, rtol=0, equal_nan=True)
    stack.update([together[0], together[2]])  # without the one that has left
    for course in (alone[0], alone[2]):
        course.update()
        course.update()
    for one, other in ((together[0], alone[0]), (together[2], alone[2])):
        for weight, expected in zip(one.learner.model.parameters(), other.learner.model.parameters(), strict=True):
            torch.testing.assert_close(weight, expected, atol=1e-9, rtol=1e-9)


def outcome(done: Adaptation) -> tuple[Any, ...]:
    """What an adaptation came to, but the time it took."""
    votes = [[(vote.grid.tolist(), vote.votes) for vote in part] for part in done.answer()]
    marks = [(mark.updates, mark.explained, mark.agreement) for mark in done.marks]
    return done.task, done.ended, done.updates, votes, marks


def test_tasks_side_by_side_leave_singly_and_answer_as_alone(double: Any) -> None:
    """Four tasks, two at a time: one has nothing to leave out, and its place goes to the next."""
    model, config = double()
    tasks = [*TASKS, task_of(3, 1, 2, 2)]
    budget = Budget(updates=17)
    stacked = dict(adapt_stacked(model, config, enumerate(tasks), OPTIONS, budget, size=2))
    assert stacked[3].ended == "one_demonstration"
    for number, task in enumerate(tasks):
        assert outcome(stacked[number]) == outcome(adapt(model, config, task, OPTIONS, budget))


def test_where_memory_runs_out_fewer_tasks_go_through_a_pass(double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = double()
    whole = Stack._pass

    def small(self: Stack, courses: Any) -> Any:
        if len(courses) > 2:
            raise MemoryError
        return whole(self, courses)

    monkeypatch.setattr(adapt_stack.Stack, "_pass", small)
    budget = Budget(updates=3)
    stacked = dict(adapt_stacked(model, config, enumerate(TASKS), OPTIONS, budget, size=3))
    for number, task in enumerate(TASKS):
        assert outcome(stacked[number]) == outcome(adapt(model, config, task, OPTIONS, budget))


def test_a_task_whose_optimizer_has_no_memory_ends_and_the_others_learn_what_they_would(
    double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = double()
    whole, calls = Learner.learn, []

    def full(self: Learner, *arguments: Any) -> Any:
        calls.append(self)
        if len(calls) == 5:  # of the second round, the second task's
            raise MemoryError
        return whole(self, *arguments)

    monkeypatch.setattr(Learner, "learn", full)
    budget = Budget(updates=4)
    stacked = dict(adapt_stacked(model, config, enumerate(TASKS), OPTIONS, budget, size=3))
    monkeypatch.undo()
    assert (stacked[1].ended, len(stacked[1].marks)) == ("out_of_memory", 1)
    for number in (0, 2):
        alone = adapt(model, config, TASKS[number], OPTIONS, budget)
        assert outcome(stacked[number]) == outcome(alone)
        for weight, expected in zip(stacked[number].model.parameters(), alone.model.parameters(), strict=True):
            torch.testing.assert_close(weight, expected, atol=1e-9, rtol=1e-9)


def test_a_task_for_which_others_leave_no_memory_waits_for_them(double: Any) -> None:
    model, config = double()
    calls, last = 0, 1_000_000

    def full(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            raise MemoryError

    budget = Budget(updates=3)
    handle = model.inner.q_head.register_forward_hook(full)
    next(adaptation_steps(model, config, TASKS[0], OPTIONS, budget))  # asks the base
    calls, last = 0, calls + 1  # the first that the second task asks
    stacked = dict(adapt_stacked(model, config, enumerate(TASKS), OPTIONS, budget, size=3))
    handle.remove()
    assert calls > last
    for number, task in enumerate(TASKS):
        assert outcome(stacked[number]) == outcome(adapt(model, config, task, OPTIONS, budget))


def test_what_cannot_be_stacked_is_refused(double: Any) -> None:
    model, config = double()
    with pytest.raises(AdaptError, match="share the clock"):
        next(adapt_stacked(model, config, enumerate(TASKS), OPTIONS, Budget(seconds=5), size=2))
    drawn = config.model_copy(update={"arch": config.arch.model_copy(update={"random_depth": True})})
    with pytest.raises(AdaptError, match="random_depth=true draws"):
        next(adapt_stacked(model, drawn, enumerate(TASKS), OPTIONS, Budget(updates=5), size=2))
    loss = config.arch.loss.model_copy(update={"pair_weight": 0.1})
    paired = config.model_copy(update={"arch": config.arch.model_copy(update={"loss": loss})})
    with pytest.raises(AdaptError, match="pair_weight tells a task's pairs"):
        next(adapt_stacked(model, paired, enumerate(TASKS), OPTIONS, Budget(updates=5), size=2))
    votes = OPTIONS.model_copy(update={"control": "votes"})
    with pytest.raises(AdaptError, match="votes"):
        next(adapt_stacked(model, config, enumerate(TASKS), votes, Budget(updates=5), size=2))
    model.encoder.blocks = torch.nn.GELU()
    with pytest.raises(StackError, match="GELU"):
        StackedModel(model)


def test_the_grouped_kernel_computes_what_the_loop_does() -> None:
    """Twelve outputs and ten inputs, which are no multiples of 16 bytes; the meta device has no values."""
    ends = torch.tensor([3, 10, 21], dtype=torch.int32)
    found = []
    for product in (stacked_linear, _in_one_kernel):
        torch.manual_seed(0)
        rows = torch.randn(21, 10, dtype=torch.bfloat16, requires_grad=True)
        weights = torch.randn(3, 12, 10, dtype=torch.bfloat16, requires_grad=True)
        out = product(rows, weights, ends)
        out.backward(torch.ones_like(out))
        found.append((out, rows.grad, weights.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.02)
    rows = torch.empty(21, 10, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weights = torch.empty(3, 12, 10, dtype=torch.bfloat16, device="meta", requires_grad=True)
    out = stacked_linear(rows, weights, ends.to("meta"))
    out.sum().backward()
    assert out.shape == (21, 12)
    assert weights.grad is not None
    assert weights.grad.shape == weights.shape
