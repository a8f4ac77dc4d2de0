"""How a model adapts to a task: every option with its default, and how much is spent on it."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError

from config.fields import Beta, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section

Control = Literal["votes", "mispaired", "random_weights"]
CONTROLS: tuple[Control, ...] = get_args(Control)
FIRST_MARK = 16


def _not_one(every: int) -> int:
    if every == 1:
        raise ValueError("1 leaves no update to the weights that answer: give 0 (no fork), or 2 or more")
    return every


class AdaptOptions(Section):
    """What happens in an adaptation.

    weights: which are trained: all, low-rank changes of all matrices, or the encoder's alone.
    lora_rank: of `weights=lora`.
    muon_lr: of hidden matrices under `optimizer=muon`.
    schedule: `cosine` falls to zero at the last update, so their number must be known.
    views: of the task in a batch.
    palettes: so many permutations of colours, of which one leaves them as they are: the versions that vote are drawn
        from these, turned or not, and are the only views (None: every view has colours of its own; so has every version
        under the control of more votes, which would else ask the same ones again).
    act_steps: optimizer steps on each batch, one after each ACT step (None: as many as the model takes).
    ema_rate: of the averaged weights, which answer.
    translate: views stand anywhere on the canvas, else all at its corner.
    fork_every: every so many updates one trains the fork, which never sees one of the demonstrations (0: no fork).
    agreement_views: in how many of the versions that vote the fork is asked for that demonstration.
    pooled_marks: how many of the last marks' votes are counted together.
    stop_when_consistent: stop as soon as two marks in a row explain every demonstration, also the one left out.
    stop_when_explained: the same where none is left out (`fork_every=0`, two demonstrations), so that nothing vouches
        for the answer.
    give_up: stop after half of the seconds where no demonstration is explained, which is asked once more then.
    votes: versions of the task that vote at each mark.
    seed: draws all views and versions.
    control: what is done instead, at the same cost: more votes without adapting, adapting to demonstrations with the
        outputs of others, adapting random weights.
    """

    weights: Literal["full", "lora", "encoder_only"] = "full"
    lora_rank: Positive = 8
    optimizer: Literal["adam_atan2", "muon"] = "adam_atan2"
    lr: PositiveFloat = 1e-3
    muon_lr: PositiveFloat = 4e-3
    warmup_updates: NonNegative = 10
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: NonNegativeFloat = 0.01
    grad_clip_norm: NonNegativeFloat = 1.0
    views: Positive = 8
    palettes: Positive | None = None
    act_steps: Positive | None = None
    ema_rate: Beta = 0.97
    translate: bool = True
    fork_every: Annotated[int, AfterValidator(_not_one)] = Field(default=4, ge=0)
    agreement_views: Positive = 8
    pooled_marks: Positive = 3
    stop_when_consistent: bool = True
    stop_when_explained: bool = False
    give_up: bool = False
    votes: Positive = 32
    seed: NonNegative = 0
    control: Control | None = None


class AdaptError(ValueError):
    """An adaptation that is asked for and cannot be made."""


def parse_options(settings: list[str], **values: object) -> AdaptOptions:
    """Options from `key=value` texts.

    Raises:
        AdaptError: an unknown key or a value out of range.
    """
    known = set(AdaptOptions.model_fields)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in known:
            raise AdaptError(
                f"--adapt-with {setting}: expected KEY=VALUE, KEY one of {', '.join(sorted(known))}; files stand "
                "before the options"
            )
        values[key] = None if value == "null" else value
    try:
        return AdaptOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0] if first["loc"] else ""
        raise AdaptError(f"--adapt-with {key}={first['input']}: {first['msg']}") from error


def unused(options: AdaptOptions, budget: "Budget") -> dict[str, str]:
    """Options that change nothing beside the others, with the reason."""
    found = {}
    if options.weights != "lora":
        found["lora_rank"] = f"weights={options.weights} has no low-rank changes"
    if options.optimizer != "muon":
        found["muon_lr"] = f"optimizer={options.optimizer} has the rate lr alone"
    if not options.fork_every:
        found["agreement_views"] = "fork_every=0 leaves no demonstration out"
    if not options.stop_when_consistent:
        found["stop_when_explained"] = "stop_when_consistent=false stops for nothing that is explained"
    if budget.seconds is None:
        found["give_up"] = "it is after half of the seconds, and updates are given"
    return found


class Budget(Section):
    """How much is spent on a task: exactly one of the two.

    updates: optimizer steps, of the fork too.
    seconds: of the clock, votes included.
    """

    updates: Positive | None = None
    seconds: PositiveFloat | None = Field(default=None, allow_inf_nan=False)

    def check(self, options: AdaptOptions) -> None:
        """Refuse what does not go together.

        Raises:
            AdaptError: both or neither, or a schedule that cannot know its end.
        """
        if (self.updates is None) == (self.seconds is None):
            raise AdaptError(f"adapt={self.seconds}, adapt_updates={self.updates}: give one of the two")
        if options.schedule == "cosine" and self.updates is None:
            raise AdaptError("schedule=cosine must know how many updates there will be: give --adapt-updates")


def mark_updates(updates: int) -> bool:
    """Whether answers are taken after so many updates: at 16, 24, 36, 54, ..., each half as many more."""
    mark = FIRST_MARK
    while mark < updates:
        mark = mark * 3 // 2
    return mark == updates
