"""Adapting to a task: what it may see, what it leaves untouched, what it depends on, and how it ends."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.checkpoint import CheckpointError
from dataset.arc_tasks import Pair, Task
from dataset.augment import augment_grid
from dataset.grids import place_grid
from inference import adapt_views
from inference.adapt import Adaptation, Steps, _Session, adapt, adaptation_steps, resumed, tell_nothing
from inference.adapt_answers import likeliest_second
from inference.adapt_options import AdaptError, AdaptOptions, Budget, mark_updates, parse_options
from inference.adapt_record import Answered
from inference.adapt_weights import Course, create_task_learner
from inference.solver import Solver
from models.recursive_reasoning.trm import EMBEDDINGS

TINY = (
    "arch.encoder_type=in_context",
    "arch.H_cycles=1",
    "arch.L_cycles=1",
    "arch.halt_max_steps=1",
)
QUICK = AdaptOptions(votes=4, views=4, agreement_views=2, warmup_updates=2, lr=3e-3)

ROUGH = QUICK.model_copy(update={"votes": 8})  # more than a task's marks have predictions


@pytest.fixture(scope="module")
def solver(untrained: Callable[..., Path]) -> Solver:
    return Solver.load(untrained(*TINY), device="cpu")


def random_task(seed: int, demos: int = 3, tests: int = 1) -> Task:
    """Grids of 2 x 2 that are turned upside down."""
    rng = np.random.default_rng(seed)
    grids = [rng.integers(0, 10, (2, 2)).astype(np.uint8) for _ in range(demos + tests)]
    pairs = tuple(Pair(grid, grid[::-1].copy()) for grid in grids)
    return Task(f"t{seed}", "toy", pairs[:demos], pairs[demos:])


def blank_task(demos: int = 3) -> Task:
    """Whatever the input, the output is one black cell: learned in a moment."""
    task = random_task(9, demos)
    black = np.zeros((1, 1), dtype=np.uint8)
    return replace(task, train=tuple(replace(pair, output=black) for pair in task.train))


def adapted(solver: Solver, task: Task, options: AdaptOptions = QUICK, updates: int = 17, **more: Any) -> Adaptation:
    return adapt(solver.model, solver.config, task, options, Budget(updates=updates), **more)


def found(adaptation: Adaptation) -> str:
    """Everything that an adaptation came to, but its name and the time it took."""
    value = Answered.of(adaptation, None).to_json() | {"puzzle": "", "seconds": 0}
    return json.dumps({**value, "marks": [{**mark, "seconds": 0} for mark in value["marks"]]})


def bits(state: dict[str, torch.Tensor]) -> list[tuple[str, bytes]]:
    return [(name, tensor.numpy().tobytes()) for name, tensor in state.items()]


@pytest.mark.parametrize("weights", ["full", "lora", "encoder_only"])
def test_the_base_keeps_its_bits(solver: Solver, weights: str) -> None:
    before = bits(solver.model.state_dict())
    trained = [p.requires_grad for p in solver.model.parameters()]
    done = adapted(solver, random_task(0), QUICK.model_copy(update={"weights": weights}))
    assert done.ended == "updates"
    assert bits(solver.model.state_dict()) == before
    assert [p.requires_grad for p in solver.model.parameters()] == trained
    assert not solver.model.training
    assert done.marks[-1].loss != done.marks[1].loss


def test_an_answer_does_not_depend_on_the_tasks_before_and_beside(solver: Solver) -> None:
    torch.manual_seed(1)
    alone = adapted(solver, random_task(2, tests=2))
    torch.manual_seed(2)
    tasks = [random_task(0), random_task(1, demos=2), replace(random_task(2, tests=2), id="renamed")]
    solutions, _ = solver.solve_adapted(tasks, QUICK, Budget(updates=17))
    last = solutions[-1].adaptation
    assert last is not None
    one, other = Answered.of(alone, None), last
    assert one.answer != ()
    assert [m.loss for m in one.marks] == [m.loss for m in other.marks]
    assert json.dumps(one.to_json()["answer"]) == json.dumps(other.to_json()["answer"])


def test_what_low_rank_changes_begin_with_depends_on_the_task_alone(solver: Solver) -> None:
    options, results = QUICK.model_copy(update={"weights": "lora"}), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(found(adapted(solver, random_task(2), options)))
    assert results[0] == results[1]


def test_the_outputs_of_test_inputs_are_never_seen(solver: Solver) -> None:
    """Outputs of other sizes and of noise change no bit of what the weights become and answer."""
    task = random_task(3, tests=2)
    noise = (np.full((7, 3), 5, dtype=np.uint8), None)
    told = replace(task, test=tuple(Pair(p.input, out) for p, out in zip(task.test, noise, strict=True)))
    one, other = adapted(solver, task), adapted(solver, told)
    assert found(one) == found(other)
    assert bits(one.model.state_dict()) == bits(other.model.state_dict())


def test_demonstrations_and_seed_decide(solver: Solver) -> None:
    one = found(adapted(solver, random_task(3)))
    assert one == found(adapted(solver, random_task(3)))
    assert one != found(adapted(solver, random_task(4)))
    assert one != found(adapted(solver, random_task(3), QUICK.model_copy(update={"seed": 1})))


@pytest.fixture(scope="module")
def learned(solver: Solver) -> Adaptation:
    return adapted(solver, blank_task(), QUICK.model_copy(update={"fork_every": 2}), updates=1000)


def test_it_learns_a_task_and_stops_as_soon_as_that_is_consistent(learned: Adaptation) -> None:
    black = np.zeros((1, 1), dtype=np.uint8)
    assert learned.ended == "consistent"
    assert learned.updates < 1000
    (before,), (after,) = learned.marks[0].votes, learned.answer()
    assert not before or not np.array_equal(before[0].grid, black)
    assert np.array_equal(after[0].grid, black)
    assert learned.marks[0].explained == 0
    assert [(m.explained, m.agreement) for m in learned.marks[-2:]] == [(3, 1.0), (3, 1.0)]


def test_one_demonstration_is_left_out_of_three_or_more(solver: Solver) -> None:
    """Its views decide the agreement; where there are two, both are needed to train on."""
    agreements = [[m.agreement for m in adapted(solver, blank_task(n), updates=3).marks] for n in (2, 3)]
    assert agreements == [[None, None], [0.0, 0.0]]
    session = _Session(solver.model, solver.config, blank_task(4), QUICK, Budget(updates=1), tell_nothing, False)
    main, fork = session._courses()
    assert fork is not None
    assert session.asking.left_out is not None
    assert len(session.asking.left_out["inputs"]) == QUICK.agreement_views
    assert set(main.views.pairs) - set(fork.views.pairs) == {session.asking.out}
    asked = session.asking.left_out["inputs"][0]
    plain = adapt_views.draw_views(
        fork.views.store,
        np.zeros(4, dtype=np.uint8),
        np.tile(np.arange(10, dtype=np.uint8), (4, 1)),
        np.zeros(4, dtype=np.int64),
        np.full((4, 1), -1),
        np.arange(4),
    )["inputs"]
    assert [torch.equal(asked, grid) for grid in plain] == [pair == session.asking.out for pair in range(4)]


class Ticking:
    """A clock by which each update takes a second, and all else no time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def tell(self, mark: Any, updates: int, seconds: float) -> None:
        self.now += mark is None


def timed(solver: Solver, task: Task, options: AdaptOptions, seconds: float) -> Adaptation:
    clock = Ticking()
    return adapt(solver.model, solver.config, task, options, Budget(seconds=seconds), tell=clock.tell, clock=clock)


def progress(adaptation: Adaptation) -> list[tuple[int, int]]:
    """How many demonstrations were explained after how many updates."""
    return [(mark.updates, mark.explained) for mark in adaptation.marks]


def test_seconds_are_kept_to_and_replayed_from_their_updates(solver: Solver) -> None:
    task = random_task(5)
    done = timed(solver, task, QUICK, 20.0)
    assert (done.ended, done.updates, done.seconds) == ("seconds", 20, 20.0)
    assert found(adapted(solver, task, updates=20)) == found(done).replace('"seconds",', '"updates",')


@pytest.fixture
def slow(solver: Solver) -> Iterator[Ticking]:
    """A clock by which each query takes a second, and each update, by which the clock of `Ticking` goes, one too."""
    clock = Ticking()

    def ask(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        clock.now += 0.0 if torch.is_grad_enabled() else len(output)

    handle = solver.model.inner.q_head.register_forward_hook(ask)
    yield clock
    handle.remove()


@pytest.mark.parametrize(("seconds", "versions"), [(100.0, 4), (80.0, 3), (60.0, 1), (2.0, 1)])
def test_fewer_versions_vote_where_a_mark_would_take_more_than_a_tenth_of_the_time(
    solver: Solver, slow: Ticking, seconds: float, versions: int
) -> None:
    """A mark asks three demonstrations, two views of one left out, and the versions: eight queries of 80 seconds."""
    task, budget = random_task(5), Budget(seconds=seconds)
    done = adapt(solver.model, solver.config, task, QUICK, budget, tell=slow.tell, clock=slow)
    assert done.versions == versions
    assert done.ended == "seconds"
    assert (done.updates > 0) == (seconds > 2)
    fewer = QUICK.model_copy(update={"votes": versions})
    if done.updates:
        again = adapted(solver, task, fewer, updates=done.updates)
        assert found(again) == found(done).replace('"seconds",', '"updates",')


def test_versions_that_are_trained_on_are_all_asked_however_long_it_takes(solver: Solver, slow: Ticking) -> None:
    options, budget = QUICK.model_copy(update={"palettes": 2}), Budget(seconds=20.0)
    done = adapt(solver.model, solver.config, random_task(5), options, budget, tell=slow.tell, clock=slow)
    assert done.versions == QUICK.votes


def test_once_it_is_to_stop_one_version_of_a_task_is_asked(solver: Solver) -> None:
    done = adapted(solver, random_task(5), stop=True)
    assert (done.ended, done.versions, done.updates) == ("stopped", 1, 0)


def test_a_task_is_given_up_where_nothing_is_explained_at_half_time(solver: Solver) -> None:
    options = QUICK.model_copy(update={"give_up": True})
    done = timed(solver, random_task(5), options, 40.0)
    assert (done.ended, progress(done)) == ("gave_up", [(0, 0), (16, 0), (21, 0)])
    goes_on = timed(solver, random_task(5), QUICK, 40.0)
    assert (goes_on.ended, progress(goes_on)) == ("seconds", [(0, 0), (16, 0), (24, 0), (36, 0), (40, 0)])


def test_where_none_is_left_out_a_task_ends_explained_only_by_option(solver: Solver) -> None:
    options = QUICK.model_copy(update={"fork_every": 0})
    done = timed(solver, blank_task(), options.model_copy(update={"stop_when_explained": True}), 200.0)
    assert (done.ended, [mark.explained for mark in done.marks[-2:]]) == ("consistent", [3, 3])
    longer = done.updates + 3
    assert longer < 200
    assert timed(solver, blank_task(), options, longer).ended == "seconds"


def test_what_was_learned_since_the_last_mark_counts_at_half_time(solver: Solver, learned: Adaptation) -> None:
    """What is asked then is no mark: its votes would not be there where the updates are made again without a clock."""
    options = QUICK.model_copy(update={"give_up": True, "fork_every": 0, "lr": 1e-9})
    clock, budget = Ticking(), Budget(seconds=40.0)
    steps = adaptation_steps(solver.model, solver.config, blank_task(), options, budget, tell=clock.tell, clock=clock)
    done = taught(steps, learned, lambda: clock() == 118.0)
    assert (done.ended, progress(done)) == ("seconds", [(0, 0), (16, 0), (24, 3), (36, 3), (40, 3)])


def taught(steps: Steps, learned: Adaptation, now: Callable[[], bool]) -> Adaptation:
    """An adaptation that, at a moment, knows what has been learned."""
    try:
        course = next(steps)
        while True:
            if now():
                know(course, learned)
            course = resumed(steps, course)
    except StopIteration as end:
        return end.value


@torch.no_grad()
def know(course: Course, learned: Adaptation) -> None:
    """Give the weights, and their average, what has been learned."""
    course.learner.model.load_state_dict(learned.model.state_dict())
    assert course.learner.ema is not None
    for average, parameter in zip(course.learner.ema.shadow, course.learner.ema.params, strict=True):
        average.copy_(parameter)


def test_a_task_of_one_demonstration_is_answered_by_the_base_and_says_so(solver: Solver) -> None:
    done = adapted(solver, random_task(6, demos=1))
    assert (done.ended, done.updates, len(done.marks)) == ("one_demonstration", 0, 1)
    assert done.model is solver.model


def test_where_numbers_are_not_finite_the_base_answers(solver: Solver) -> None:
    broken = copy.deepcopy(solver.model)
    with torch.no_grad():
        broken.inner.q_head.bias.fill_(float("inf"))
    done = adapt(broken, solver.config, random_task(7), QUICK, Budget(updates=5))
    assert (done.ended, len(done.marks)) == ("not_finite", 1)
    assert done.model is broken


def test_where_memory_runs_out_the_base_answers(solver: Solver) -> None:
    def full(mark: Any, updates: int, seconds: float) -> None:
        if updates == 3:
            raise MemoryError

    done = adapted(solver, random_task(7), tell=full)
    assert (done.ended, len(done.marks)) == ("out_of_memory", 1)
    assert done.answer() == tuple(likeliest_second(part) for part in done.marks[0].votes)


def test_where_memory_does_not_suffice_to_ask_a_task_has_no_answer_and_says_so(solver: Solver) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    handle = solver.model.inner.q_head.register_forward_hook(full)
    done = adapted(solver, random_task(7, tests=2))
    handle.remove()
    assert (done.ended, done.updates, done.answer()) == ("out_of_memory", 0, ((), ()))
    assert done.model is solver.model


class StopAfter:
    """A request to stop that comes after some looks."""

    def __init__(self, looks: int):
        self.looks = looks

    def __bool__(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_a_request_to_stop_is_answered_with_what_there_is(solver: Solver) -> None:
    task = random_task(8)
    stopped = adapted(solver, task, updates=1000, stop=StopAfter(20))
    assert (stopped.ended, stopped.updates) == ("stopped", 19)
    whole = adapted(solver, task, updates=19)
    assert json.dumps(Answered.of(stopped, None).to_json()["answer"]) == json.dumps(
        Answered.of(whole, None).to_json()["answer"]
    )


@pytest.mark.parametrize(
    "setting",
    [
        "weights=lora",
        "weights=encoder_only",
        "optimizer=muon",
        "lr=1e-4",
        "warmup_updates=9",
        "schedule=cosine",
        "weight_decay=1",
        "grad_clip_norm=0.01",
        "views=3",
        "ema_rate=0.5",
        "translate=false",
        "fork_every=0",
        "fork_every=3",
        "pooled_marks=1",
        "votes=3",
        "seed=1",
        "control=votes",
        "control=mispaired",
        "control=random_weights",
    ],
)
def test_every_option_changes_something(solver: Solver, setting: str) -> None:
    task = random_task(1)
    options = parse_options([setting], **ROUGH.model_dump(exclude={setting.partition("=")[0]}))
    one, other = adapted(solver, task, options), adapted(solver, task, ROUGH)
    assert found(one) != found(other) or bits(one.model.state_dict()) != bits(other.model.state_dict())


def test_act_steps_the_rank_of_low_rank_changes_and_muon_lr_change_something(untrained: Callable[..., Path]) -> None:
    solver = Solver.load(untrained(*TINY, "arch.halt_max_steps=3"), device="cpu")
    task = random_task(1)
    assert found(adapted(solver, task)) != found(adapted(solver, task, QUICK.model_copy(update={"act_steps": 1})))
    ranks = [QUICK.model_copy(update={"weights": "lora", "lora_rank": rank}) for rank in (1, 4)]
    muons = [QUICK.model_copy(update={"optimizer": "muon", "muon_lr": rate}) for rate in (1e-3, 4e-3)]
    assert found(adapted(solver, task, muons[0])) != found(adapted(solver, task, muons[1]))
    assert found(adapted(solver, task, ranks[0])) != found(adapted(solver, task, ranks[1]))


@pytest.mark.parametrize(
    "overrides",
    [
        ("arch.encoder_type=standard",),
        ("arch.encoder_type=hybrid_variational",),
        ("arch.encoder_type=lpn_standard",),
    ],
)
def test_every_encoder_can_be_adapted_repeatably(untrained: Callable[..., Path], overrides: tuple[str, ...]) -> None:
    solver = Solver.load(untrained(*TINY, *overrides), device="cpu")
    done = adapted(solver, random_task(1))
    assert done.ended == "updates"
    torch.manual_seed(5)
    assert found(adapted(solver, random_task(1))) == found(done)


@pytest.mark.parametrize("kind", ["recurrent_standard", "trm_style"])
def test_recurrent_encoders_can_be_adapted(untrained: Callable[..., Path], kind: str) -> None:
    run = untrained(*TINY[1:], f"arch.recurrent_encoder_type={kind}", config_name="cfg_pretrain_etrmtrm_arc_agi_1")
    assert adapted(Solver.load(run, device="cpu"), random_task(1)).ended == "updates"


def test_low_rank_changes_leave_the_matrices_and_encoder_only_leaves_the_decoder(solver: Solver) -> None:
    task = random_task(1)
    base = dict(solver.model.named_parameters())
    for weights, kept in (("lora", "original"), ("encoder_only", "inner.")):
        done = adapted(solver, task, QUICK.model_copy(update={"weights": weights}))
        names = {n: p for n, p in done.model.named_parameters() if kept in n}
        assert names
        for name, parameter in names.items():
            plain = name.replace("parametrizations.weight.original", "weight")
            assert torch.equal(parameter, base[plain]), name


def test_adapting_random_weights_does_not_depend_on_the_base(solver: Solver, untrained: Callable[..., Path]) -> None:
    other = Solver.load(untrained(*TINY, "seed=5"), device="cpu")
    options = QUICK.model_copy(update={"control": "random_weights"})
    one, two = (adapted(s, random_task(1), options) for s in (solver, other))
    assert [m.loss for m in one.marks] == [m.loss for m in two.marks]
    plain = [adapted(s, random_task(1)) for s in (solver, other)]
    assert [m.loss for m in plain[0].marks] != [m.loss for m in plain[1].marks]


def test_wrongly_paired_demonstrations_are_trained_on_and_the_right_ones_asked_about(solver: Solver) -> None:
    """Outputs that are all the same cannot be paired wrongly."""
    options = QUICK.model_copy(update={"control": "mispaired"})
    assert found(adapted(solver, blank_task(), options)) == found(adapted(solver, blank_task()))
    one, other = (Answered.of(adapted(solver, random_task(1), o), None).to_json()["marks"] for o in (options, QUICK))
    assert {**one[0], "seconds": 0} == {**other[0], "seconds": 0}
    assert one[1]["loss"] != other[1]["loss"]


def test_more_votes_are_new_versions_and_no_training(solver: Solver) -> None:
    done = adapted(solver, random_task(1), QUICK.model_copy(update={"control": "votes"}), updates=10)
    assert done.model is solver.model
    assert done.pooled == len(done.marks) > 3
    counted = sum(vote.votes for vote in done.answer()[0])
    assert counted == sum(vote.votes for mark in done.marks[1:] for vote in mark.votes[0])
    grids = [sorted(vote.grid.tobytes() for vote in mark.votes[0]) for mark in done.marks]
    assert grids[1] != grids[2]


@pytest.mark.parametrize("palettes", [1, 2, None])
def test_with_palettes_the_versions_that_vote_are_the_only_views(solver: Solver, palettes: int | None) -> None:
    task = random_task(1)
    options = QUICK.model_copy(update={"palettes": palettes, "votes": 32, "translate": False})
    course = next(adaptation_steps(solver.model, solver.config, task, options, Budget(updates=1)))
    store = course.views.versions
    seen = {row.tobytes() for number in range(400) for row in course.views[number]["inputs"].numpy()}
    if palettes is None:
        assert store is None
        assert len(seen) > 3 * 32, "colours are drawn anew for each view"
        return
    assert store is not None
    assert len(np.unique(store.colors, axis=0)) == palettes
    assert len(store.dihedral) == adapted(solver, task, options, 1).versions == 8 * palettes
    versions = list(zip(store.dihedral.tolist(), store.colors, strict=True))
    assert seen == {
        place_grid(augment_grid(pair.input, transform, colors)).tobytes()
        for pair in task.train
        for transform, colors in versions
    }


def test_marks_are_taken_at_updates_that_grow_by_half() -> None:
    assert [n for n in range(130) if mark_updates(n)] == [16, 24, 36, 54, 81, 121]


def test_what_does_not_go_together_is_refused(solver: Solver, untrained: Callable[..., Path]) -> None:
    for budget in (Budget(), Budget(updates=1, seconds=1)):
        with pytest.raises(AdaptError, match="one of the two"):
            adapt(solver.model, solver.config, random_task(0), QUICK, budget)
    with pytest.raises(AdaptError, match="cosine"):
        adapt(solver.model, solver.config, random_task(0), parse_options(["schedule=cosine"]), Budget(seconds=1))
    with pytest.raises(AdaptError, match="weights=lora takes adam_atan2"):
        adapted(solver, random_task(0), parse_options(["weights=lora", "optimizer=muon"]), updates=1)
    with pytest.raises(AdaptError, match="lr=0"):
        parse_options(["lr=0"])
    with pytest.raises(AdaptError, match="KEY one of"):
        parse_options(["speed=1"])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"adapt": 0}, "adapt=0: must be above 0"),
        ({"adapt": -1.0}, "adapt=-1.0: must be above 0"),
        ({"adapt_updates": 0}, "adapt_updates=0: must be above 0"),
        ({"adapt_with": QUICK}, "adapt_with: needs adapt or adapt_updates"),
    ],
)
def test_a_program_that_asks_for_no_adaptation_in_an_odd_way_is_told(solver: Solver, how: Any, said: str) -> None:
    with pytest.raises(AdaptError, match=said):
        solver.predict(random_task(0), **how)


def test_predict_takes_seconds_or_updates(solver: Solver) -> None:
    task = random_task(0)
    (plain,) = solver.predict(task, votes=4)
    (by_updates,) = solver.predict(task, votes=4, adapt_updates=5, adapt_with=QUICK)
    (by_seconds,) = solver.predict(task, votes=4, adapt=0.5, adapt_with=QUICK)
    assert plain.adaptation is None
    assert by_updates.adaptation is not None
    assert by_updates.adaptation.updates == 5
    assert by_seconds.adaptation is not None
    assert by_seconds.adaptation.ended == "seconds"
    assert by_seconds.adaptation.seconds < 30
    assert by_updates.trace.votes == by_updates.adaptation.answer[0]
    assert by_updates.versions == 4


def test_a_trm_learns_new_identifiers_and_its_weights(untrained: Callable[..., Path]) -> None:
    run = untrained(*TINY[1:], config_name="cfg_pretrain_trm_arc_agi_1")
    trm = Solver.load(run, device="cpu")
    before = bits(trm.model.state_dict())
    done = adapted(trm, blank_task(), QUICK.model_copy(update={"lr": 1e-2}), updates=121)
    assert bits(trm.model.state_dict()) == before
    rows = done.model.state_dict()[EMBEDDINGS]
    assert len(rows) == 1 + QUICK.votes
    assert not torch.equal(rows[1], rows[2])
    assert done.marks[-1].loss is not None
    assert done.marks[1].loss is not None
    assert done.marks[-1].loss < done.marks[1].loss / 2
    (solution,) = trm.predict(blank_task(), votes=4, adapt_updates=20, adapt_with=QUICK)
    assert solution.adaptation is not None
    for setting in ({"weights": "encoder_only"}, {"control": "votes"}):
        with pytest.raises(AdaptError, match="TRM"):
            adapted(trm, blank_task(), QUICK.model_copy(update=setting))


def test_a_trm_hybrid_says_why_it_cannot(untrained: Callable[..., Path], tiny_llama: Path, tmp_path: Path) -> None:
    run = untrained(f"text_model={tiny_llama}", f"arch.text_cache={tmp_path}", config_name="cfg_pretrain_trm_hybrid")
    with pytest.raises(CheckpointError, match="every view"):
        Solver.load(run, device="cpu").predict(random_task(0), adapt_updates=1)


def test_trained_weights_are_those_that_answer(solver: Solver) -> None:
    """The average, which the marks ask, is what stays in the model."""
    learner = create_task_learner(solver.model, solver.config.arch, QUICK)
    assert learner.ema is not None
    done = adapted(solver, random_task(1))
    again = adapt(done.model, solver.config, random_task(1), QUICK, Budget(updates=1))
    assert [[v.grid.tolist() for v in part] for part in again.marks[0].votes] == [
        [v.grid.tolist() for v in part] for part in done.marks[-1].votes
    ]
