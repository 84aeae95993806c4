"""Hugging Face's Trainer with GPT2LMHeadModel."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from side_by_side import Contest
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from gptscale.weights.export import transformers_config


class Samples(IterableDataset):
    """The rows of the batches. A target is the next token already, so the labels must not be shifted again."""

    def __init__(self, contest: Contest) -> None:
        self._batches = contest.batches(torch.device("cpu"))  # a copy from the GPU would wait for it in every step

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for inputs, targets in self._batches:
            for x, y in zip(inputs, targets, strict=True):
                yield {"input_ids": x, "labels": y, "shift_labels": y}


class LossKeeping(Trainer):
    """Keeps the loss of the last step, which Trainer adds to others."""

    last: Tensor

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.last = super().training_step(*args, **kwargs)
        return self.last


class TurnTaking(TrainerCallback):
    """Tells the contest of each step."""

    def __init__(self, contest: Contest, trainer: LossKeeping) -> None:
        self._contest, self._trainer = contest, trainer

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._contest.step_done(self._trainer.last)


def train(contest: Contest) -> None:
    """Step for step."""
    setup, cfg = contest.setup, contest.cfg
    model = GPT2LMHeadModel(GPT2Config(**transformers_config(cfg, 50256, "float32")))
    weights = {f"transformer.{name}": values for name, values in contest.weights("transformers").items()}
    model.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    del weights  # memory is compared
    inputs, _ = next(contest.batches())
    with tempfile.TemporaryDirectory(dir=Path(setup.batches).parent) as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=len(inputs),
            max_steps=10**6,
            learning_rate=setup.lr,
            lr_scheduler_type="constant",
            weight_decay=setup.weight_decay,
            adam_beta1=setup.betas[0],
            adam_beta2=setup.betas[1],
            max_grad_norm=setup.clip_norm,
            bf16=setup.precision == "bf16",
            torch_compile=setup.compile,
            use_cpu=contest.device.type == "cpu",
            remove_unused_columns=False,  # shift_labels counts as one
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = LossKeeping(model, arguments, train_dataset=Samples(contest))
        trainer.add_callback(TurnTaking(contest, trainer))
        trainer.train()
