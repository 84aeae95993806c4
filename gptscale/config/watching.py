"""The sections of a config about watching a run: evaluations, samples, health, W&B."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from gptscale.config.section import Count, Folder, Section

SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class EvalConfig(Section):
    """The evaluations during training. One runs before the first step and one after the last."""

    every_steps: Count | None = 250
    """Steps between two evaluations; null evaluates before and after training only."""
    sequences: Count | None = 1024
    """Validation windows, spread evenly over the split; null takes all of it."""
    train_sequences: Count | None = 256
    """Training windows evaluated in the same way; null evaluates none."""
    sets: dict[SetName, Folder] = Field(default_factory=dict)
    """More validation sets: name -> corpus folder; its validation split counts, or all of it if it has none."""

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if taken := {"val", "train", "all", "cloze", "loss"} & self.sets.keys():
            raise ValueError(f"sets cannot be named {' or '.join(sorted(taken))}, which mean something else; rename")
        return self


class SampleConfig(Section):
    """The text written at every evaluation."""

    prompts: tuple[str, ...] = ("\n",)
    """One continuation is written for each; an empty list writes none."""
    max_new_tokens: Count = 64
    """Tokens to write after the prompt."""
    temperature: NonNegativeFloat = 0.8
    """0 always takes the likeliest token."""
    top_k: Count | None = 50
    """Only the k likeliest tokens can be drawn; null allows all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only the likeliest tokens that together reach this probability can be drawn; null allows all."""


class HealthConfig(Section):
    """What is done about steps that go wrong. An update that is not finite never reaches the weights."""

    stop_after_skips: Count | None = 20
    """Steps in a row whose update is not finite, after which the run stops; null never stops for that."""
    spike_window: Annotated[int, Field(ge=8)] = 128
    """Steps whose losses a step's loss is compared with; nothing is judged before a quarter of them."""
    spike_z: PositiveFloat = 8.0
    """Deviations above the median at which a loss is a spike; a deviation is 1.4826 times the median one."""
    rollback: bool = False
    """Whether a spike sends the run back to its last checkpoint, and leaves out the samples around it."""
    max_rollbacks: Count = 10
    """Rollbacks in the life of a run; later spikes are only recorded."""


class WandbConfig(Section):
    """Weights & Biases, a view of log.jsonl."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    """offline writes into the run folder for `wandb sync`."""
    project: str = "gptscale"
    """W&B project."""
    entity: str | None = None
    """W&B team; null is the user's default."""
    group: str | None = None
    """W&B group."""
    tags: tuple[str, ...] = ()
    """W&B tags."""
    notes: str | None = None
    """A longer description of the run."""
    x_axis: Literal["step", "tokens", "epoch"] = "step"
    """What W&B draws its charts against, unless a chart says otherwise."""
    rewind: bool = True
    """Whether an online run is rewound to its checkpoint's step by a resume; for a server that cannot, set false."""
    checkpoints: Literal["none", "reference", "upload"] = "none"
    """Whether checkpoints are W&B artifacts: not at all, by the place where they lie, or with their files."""
