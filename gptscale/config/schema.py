"""The schema of a run's config. A line under each field gives its unit and what null means.

A section checks itself and `Config` checks what holds between sections; nothing here reads files.
Where a run lives (devices, ranks, engine) is not part of it: that is said by the launch.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    field_validator,
    model_validator,
)

from gptscale.config.data import DataConfig
from gptscale.config.presets import GPT2_SIZES
from gptscale.config.section import Count, Folder, Fraction, Section, Seed
from gptscale.config.watching import EvalConfig, HealthConfig, SampleConfig, WandbConfig

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class RunConfig(Section):
    """Where a run is kept and what its randomness starts from."""

    dir: Folder
    """The run folder: config, log, samples, report, checkpoints."""
    seed: Seed = 1337
    """Initial weights, sample order and dropout masks follow from it."""
    stop_after: str | None = None
    """Time after which a start stops with a checkpoint, such as 90m, 2.5h or 1d; null knows SLURM's limit only."""

    @property
    def stop_after_s(self) -> float | None:
        """stop_after in seconds."""
        return None if self.stop_after is None else float(self.stop_after[:-1]) * _SECONDS[self.stop_after[-1]]

    @field_validator("stop_after")
    @classmethod
    def _a_number_with_its_unit(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+(\.\d+)?[smhd]", value):
            raise ValueError(f"{value!r} is no time; give a number with its unit, such as 45s, 90m, 2.5h or 1d")
        return value


NO_FUNCTION = {"preset", "init", "init_from", "drop_rate"}
"""Fields of the model section that say how training goes; all others say which function the weights belong to."""


class ModelConfig(Section):
    """The shape of a GPTModel, in the words of "Build a Large Language Model (From Scratch)"."""

    preset: Literal["124M", "350M", "774M", "1558M"] | None = None
    """Fills emb_dim, n_heads and n_layers with a size of GPT-2; null takes them from below."""
    vocab_size: Count = 50257
    """Token ids the model can read and write."""
    context_length: Count = 1024
    """Tokens the model sees at once."""
    emb_dim: Count = 768
    """Width of the residual stream."""
    n_heads: Count = 12
    """Attention heads; they divide emb_dim."""
    n_layers: Count = 12
    """Transformer blocks."""
    drop_rate: Fraction = 0.0
    """Dropout probability of embeddings, attention weights and residual branches."""
    qkv_bias: bool = True
    """Whether the query, key and value projections have a bias (GPT-2: yes)."""
    norm_bias: bool = True
    """Whether the layer norms have a bias (GPT-2: yes)."""
    tie_embeddings: bool = True
    """Whether the output head is the token embedding (GPT-2: yes)."""
    gelu: Literal["tanh", "erf"] = "tanh"
    """GELU by its tanh approximation (GPT-2: yes) or exactly (nanoGPT)."""
    init: Literal["gpt2", "torch"] = "gpt2"
    """Initial weights: gpt2's small normals, or the defaults of torch's layers, which the book uses."""
    init_from: str | None = None
    """Weights to start from: gpt2, a Hub name, a folder, a file or a run; null draws them as init says."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and str(values.get("preset")) in GPT2_SIZES:
            return {**GPT2_SIZES[values["preset"]], **values}
        return values

    @model_validator(mode="after")
    def _preset_says_something(self) -> Self:
        if self.preset and all(getattr(self, name) != value for name, value in GPT2_SIZES[self.preset].items()):
            raise ValueError(
                f"preset={self.preset} gives way to emb_dim, n_heads and n_layers, which are all given; "
                "leave out the preset, or what it is to fill"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.emb_dim % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide emb_dim={self.emb_dim}; "
                f"choose an emb_dim that is a multiple of {self.n_heads}, or other heads"
            )
        return self


Precision = Literal["fp32", "bf16", "bf16-sharded", "fp16"]


class TrainConfig(Section):
    """How long to train, in which pieces and in which arithmetic."""

    steps: Count | None = None
    """Length in steps; exactly one of steps, tokens and epochs is given."""
    tokens: Count | None = None
    """Length in tokens, rounded down to whole steps."""
    epochs: PositiveFloat | None = None
    """Length in passes over the training samples, rounded down to whole steps."""
    tokens_per_step: Count = 524_288
    """Tokens in one step over all ranks; a multiple of context_length."""
    micro_batch_sequences: Count | None = 8
    """Samples in one forward and backward on one rank; auto or null takes the most that fit into memory."""
    precision: Precision = "bf16"
    """fp32; bf16: fp32 weights, bf16 compute; bf16-sharded: ZeRO or FSDP2 only; fp16: CUDA only, with loss scaling."""
    compile: bool = False
    """Whether torch.compile translates the model first."""
    activation_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass: a third more arithmetic, far less memory."""
    tf32: bool = False
    """Whether fp32 matrix products on CUDA may round their inputs to TF32: faster, ten bits of mantissa."""
    log_every_steps: Count = 10
    """Steps between two records of loss, learning rate, gradient norm and speed."""
    histograms_every_steps: Count | None = None
    """Steps between two histograms of every parameter and its gradient; null makes none."""
    profile_at_step: Annotated[int, Field(ge=2)] | None = None
    """First of three steps whose operators and kernels, and what lies between, rank 0 leaves in profile/; or null."""

    @field_validator("micro_batch_sequences", mode="before")
    @classmethod
    def _auto_is_null(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [f"{name}={value}" for name in ("steps", "tokens", "epochs") if (value := getattr(self, name))]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of steps, tokens and epochs as the length; found {found}")
        return self


class OptimizerConfig(Section):
    """The optimizer and its schedule: linear warmup to the peak, then a cosine to the floor."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the blocks at AdamW's rate, AdamW for all else."""
    lr_peak: PositiveFloat = 6e-4
    """Learning rate at the end of warmup."""
    lr_floor: NonNegativeFloat = 6e-5
    """Learning rate at the last step; equal to lr_peak for a constant rate."""
    decay_steps: Count | None = None
    """Step at which lr_floor is reached; null means the last. Set it to make a finished run longer without a jump."""
    warmup_steps: NonNegativeInt = 0
    """Steps before the peak; they start above zero."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of the matrices; biases and norms have none."""
    beta1: Fraction = 0.9
    """Decay of the first moment per step."""
    beta2: Fraction = 0.95
    """Decay of the second moment per step."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    momentum: Fraction = 0.95
    """Decay of Muon's momentum per step (muon only)."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest global gradient norm; null leaves gradients alone."""

    @model_validator(mode="after")
    def _floor_below_peak(self) -> Self:
        if self.lr_floor > self.lr_peak:
            raise ValueError(f"lr_floor={self.lr_floor} is above lr_peak={self.lr_peak}; lower it or raise lr_peak")
        return self

    @model_validator(mode="after")
    def _decay_after_warmup(self) -> Self:
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps={self.decay_steps} ends the schedule within warmup_steps={self.warmup_steps}; "
                "raise it, lower warmup_steps, or leave it out for the run's length"
            )
        return self


class CheckpointConfig(Section):
    """When checkpoints are written, and how many stay."""

    every_steps: Count | None = 1000
    """Steps between two checkpoints; null writes one at the end only."""
    keep: Count | None = 3
    """Newest checkpoints that are kept; null keeps all."""
    keep_every_steps: Count | None = None
    """Checkpoints of multiples of so many steps are kept as long as this says so; null keeps none for that."""
    keep_best: bool = True
    """Whether the checkpoint with the lowest validation loss is kept; it has to be evaluated at its very step."""
    background: bool = True
    """Whether files are written beside training, from a copy in host memory of this rank's share of the state."""


class ResumeConfig(Section):
    """What going on from a checkpoint may and may not do; `resume: strict` is short for strict: true."""

    strict: bool = False
    """Whether a broken newest checkpoint is an error; else it is named, and the one before is used."""
    allow: tuple[Literal["tokens_per_step"], ...] = ()
    """Settings that may differ from the checkpoint's, and begin a new segment of the run where it lies."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        return {"strict": True} if values == "strict" else values


class Config(Section):
    """Everything that decides what a run computes."""

    run: RunConfig
    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig
    optim: OptimizerConfig = OptimizerConfig()
    eval: EvalConfig = EvalConfig()
    sample: SampleConfig = SampleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume: ResumeConfig = ResumeConfig()
    health: HealthConfig = HealthConfig()
    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = False
    """Whether the record is also written for TensorBoard, into the run folder."""

    @property
    def stride(self) -> int:
        """Tokens between the starts of two samples."""
        return self.data.stride or self.model.context_length

    @property
    def sequences_per_step(self) -> int:
        """Samples in one step over all ranks."""
        return self.train.tokens_per_step // self.model.context_length

    def with_changes(self, **sections: dict[str, Any]) -> Self:
        """A copy in which some sections have other values, which nobody checks."""
        changed = {name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        return self.model_copy(update=changed)

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        tokens, context = self.train.tokens_per_step, self.model.context_length
        if tokens % context:
            near = max(1, round(tokens / context)) * context
            raise ValueError(
                f"train.tokens_per_step={tokens} is no multiple of model.context_length={context}; "
                f"the nearest is {near}"
            )
        return self

    @model_validator(mode="after")
    def _no_token_between_samples(self) -> Self:
        if self.stride > self.model.context_length:
            raise ValueError(
                f"data.stride={self.stride} would leave out the tokens between samples of "
                f"model.context_length={self.model.context_length}; take that or less"
            )
        return self

    @model_validator(mode="after")
    def _names_tell_evaluations_apart(self) -> Self:
        if taken := {corpus.label for corpus in self.data.mixture} & self.eval.sets.keys():
            raise ValueError(
                f"eval.sets and data.mixture both have the name {min(taken)}; rename the set, or give the corpus a name"
            )
        return self

    @model_validator(mode="after")
    def _micro_batch_within_step(self) -> Self:
        if (self.train.micro_batch_sequences or 1) > self.sequences_per_step:
            raise ValueError(
                f"train.micro_batch_sequences={self.train.micro_batch_sequences} is more than the "
                f"{self.sequences_per_step} sequences of a step; lower it or raise train.tokens_per_step"
            )
        return self
