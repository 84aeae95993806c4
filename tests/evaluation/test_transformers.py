"""Loss, sliding-window perplexity and cloze accuracy, computed a second time with transformers' GPT-2."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel

from gptscale.config.schema import ModelConfig
from gptscale.data.loader import eval_batches, evenly_spaced_windows
from gptscale.data.sliding import sliding_batches, sliding_windows
from gptscale.data.stream import TokenStream
from gptscale.data.tokenizer import load_tokenizer
from gptscale.errors import DataError
from gptscale.evaluation.cloze import ClozeScore, Question, log_likelihoods, read_questions, score
from gptscale.evaluation.loss import Evaluation, evaluate_loss
from gptscale.model.gpt import GPTModel
from tests.model.test_gpt import copy_over, reference

CPU = torch.device("cpu")
LENGTH = 24
CFG = ModelConfig(vocab_size=257, context_length=LENGTH, emb_dim=48, n_heads=4, n_layers=3)
BYTES = load_tokenizer("bytes")


@pytest.fixture(scope="module")
def models() -> tuple[GPTModel, GPT2LMHeadModel]:
    ours, theirs = GPTModel(CFG).eval(), reference(CFG)
    copy_over(theirs, ours)
    return ours, theirs


def stream_of(tokens: int) -> TokenStream:
    return TokenStream([np.random.default_rng(3).integers(0, 256, tokens).astype(np.uint16)])


def evaluate(model: GPTModel, stream: TokenStream, stride: int | None) -> Evaluation:
    if stride is None:
        batches = eval_batches(stream, evenly_spaced_windows(stream, LENGTH, None), LENGTH, 4)
    else:
        batches = sliding_batches(stream, sliding_windows(stream, LENGTH, stride, None), LENGTH, stride, 4)
    with torch.no_grad():
        return evaluate_loss(lambda x, y: model(x, y, by_token=True), batches, BYTES.token_bytes, CPU)


@torch.no_grad()
def their_losses(theirs: GPT2LMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
    """The loss of every token of one window but the first."""
    return F.cross_entropy(theirs(tokens[None]).logits[0, :-1], tokens[1:], reduction="none")


def test_the_loss_over_fixed_windows_and_at_each_position(models: tuple[GPTModel, GPT2LMHeadModel]) -> None:
    ours, theirs = models
    stream = stream_of(5 * LENGTH + 1)
    tokens = torch.from_numpy(stream.read(0, len(stream)))
    windows = torch.stack(
        [
            F.cross_entropy(
                theirs(tokens[None, i : i + LENGTH]).logits[0], tokens[i + 1 : i + LENGTH + 1], reduction="none"
            )
            for i in range(0, 5 * LENGTH, LENGTH)
        ]
    ).detach()
    found = evaluate(ours, stream, None)
    assert found.loss == pytest.approx(float(windows.mean()), abs=1e-4)
    assert found.by_position == pytest.approx(windows.mean(0).tolist(), abs=1e-4)
    assert found.bits_per_byte == pytest.approx(float(windows.sum()) / math.log(2) / (5 * LENGTH), abs=1e-4)


@pytest.mark.parametrize("stride", [1, 7, LENGTH])
def test_sliding_window_perplexity(models: tuple[GPTModel, GPT2LMHeadModel], stride: int) -> None:
    ours, theirs = models
    stream = stream_of(90)
    tokens = torch.from_numpy(stream.read(0, 90))
    losses: dict[int, float] = {}
    for begin in range(0, 90, stride):  # a token belongs to the first window that reaches it
        window = tokens[begin : begin + LENGTH + 1]
        logits = theirs(window[None, :LENGTH]).logits[0, : len(window) - 1].detach()
        for i, loss in enumerate(F.cross_entropy(logits, window[1:], reduction="none").tolist()):
            losses.setdefault(begin + 1 + i, loss)
        if begin + LENGTH >= 89:
            break
    assert len(losses) == 89
    found = evaluate(ours, stream, stride)
    assert found.tokens == 89
    assert found.loss == pytest.approx(sum(losses.values()) / 89, abs=1e-4)
    assert found.perplexity == pytest.approx(math.exp(sum(losses.values()) / 89), rel=1e-4)


QUESTIONS = [
    Question("the cat", ("sat down", "é", "flew over the green hill and back"), 0),
    Question("", ("a", "bb"), 1),
    Question("ends in spaces  ", ("x", "y z"), 0),
    Question("longer than the window of the model", ("one", "two and three"), 1),
    Question("short", ("an ending that alone is longer than the window", "no"), 1),
]


def test_cloze_log_likelihoods_and_accuracies(models: tuple[GPTModel, GPT2LMHeadModel]) -> None:
    ours, theirs = models
    with torch.no_grad():
        found = log_likelihoods(lambda x, y: ours(x, y, by_token=True), QUESTIONS, BYTES, LENGTH, CPU)
    right = {"acc": 0, "acc_norm": 0, "acc_bytes": 0}
    for question, sums in zip(QUESTIONS, found, strict=True):
        expected = []
        for ending in question.endings:
            text = (question.context + " " + ending).encode()
            head = question.context.rstrip().encode()
            tokens = list(text) if head else [256, *text]
            counted = len(text) - len(head)
            window = torch.tensor(tokens[-(LENGTH + 1) :])
            logits = theirs(window[None, :-1]).logits[0].detach()
            log_probs = -F.cross_entropy(logits, window[1:], reduction="none")
            expected.append(float(log_probs[-counted:].sum()))
        assert sums == pytest.approx(expected, abs=1e-4)
        lengths = {
            "acc": [1] * len(expected),
            "acc_norm": [len(e) for e in question.endings],
            "acc_bytes": [len(e.encode()) for e in question.endings],
        }
        for name, divisors in lengths.items():
            right[name] += int(np.argmax(np.array(expected) / divisors)) == question.label
    scored = score(QUESTIONS, found)
    assert {"acc": scored.acc, "acc_norm": scored.acc_norm, "acc_bytes": scored.acc_bytes} == {
        name: n / len(QUESTIONS) for name, n in right.items()
    }


def test_sums_are_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac's GPU has no float64."""

    class OnMps(torch.Tensor):
        def double(self) -> torch.Tensor:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

        def cpu(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    asked = [Question("a", ("b", "cd"), 0)]
    losses = lambda inputs, targets: torch.ones(inputs.shape).as_subclass(OnMps)  # noqa: E731
    assert log_likelihoods(losses, asked, load_tokenizer("bytes"), 16, torch.device("cpu")) == [[-3.0, -3.0]]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_model_without_numbers_has_no_accuracy(value: float) -> None:
    questions = [Question("a", ("b", "c"), 0)] * 2
    found = score(questions, [[-1.0, -2.0], [-1.0, value]])
    assert all(math.isnan(share) for share in (found.acc, found.acc_norm, found.acc_bytes, found.stderr))
    assert found.questions == 2


def test_the_length_of_an_ending_can_decide() -> None:
    question = Question("c", ("four", "seven..", "éé"), 1)
    # sums -4, -6, -2: per character -1, -0.857, -1; per byte -1, -0.857, -0.5
    found = score([question], [[-4.0, -6.0, -2.0]])
    assert (found.acc, found.acc_norm, found.acc_bytes) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(("label", "share"), [(0, 0.0), (1, 1.0), (2, 0.0)])
def test_of_endings_as_likely_as_each_other_the_first_is_taken(label: int, share: float) -> None:
    found = score([Question("c", ("aa", "bb", "cc"), label)], [[-2.0, -1.0, -1.0]])
    assert (found.acc, found.acc_norm, found.acc_bytes) == (share, share, share)


@pytest.mark.parametrize(("acc", "questions", "stderr"), [(0.5, 5, 0.25), (0.2, 17, 0.1), (1.0, 1, 0.0)])
def test_the_standard_error_is_that_of_a_sample(acc: float, questions: int, stderr: float) -> None:
    # the root of acc (1 - acc) / (n - 1): 0.25 / 4 and 0.16 / 16
    assert ClozeScore(0.0, acc, 0.0, questions).stderr == pytest.approx(stderr)


def test_hellaswags_own_lines_are_asked_as_the_harness_asks_them(tmp_path: Path) -> None:
    line = {
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is [header] sitting  on a roof.",
        "ctx_b": "he",
        "ctx": "unused",
        "endings": [" is [step] using wrap. [title] Done", "rips"],
        "label": "1",
    }
    (tmp_path / "h.jsonl").write_text(json.dumps(line) + "\n\n")
    (question,) = read_questions(tmp_path / "h.jsonl")
    assert question == Question(
        "Roof shingle removal: A man is sitting on a roof. He", ("is using wrap.. Done", "rips"), 1
    )


def test_only_a_newline_ends_a_question(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"context": "a\u2028b", "endings": ["c\x85"], "label": 0}, ensure_ascii=False) + "\r\n", newline=""
    )
    assert read_questions(tmp_path / "q.jsonl") == [Question("a\u2028b", ("c\x85",), 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"q\.jsonl holds no question; write one JSON object a line"),
        ('{"context": "a"}', r"q\.jsonl line 1 is no question \(KeyError: 'endings'\); it needs context, endings and"),
        ('{"context": "a", "endings": ["b"], "label": 1}', r"line 1: label=1 names none of its 1 endings; count them"),
        ('{"context": "a", "endings": ["b"], "label": -1}', r"line 1: label=-1 names none of its 1 endings; count t"),
        (
            '{"context": "a", "endings": "bc", "label": 0}',
            r"line 1 is no question \(TypeError: its endings are a str, not",
        ),
        (
            '{"context": "a", "endings": ["b"], "label": 1e400}',
            r"line 1 is no question \(TypeError: its label is inf, no",
        ),
        (
            '{"context": "a", "endings": ["b"], "label": 0.7}',
            r"TypeError: its label is 0\.7, no whole number\); it needs",
        ),
        ("[" * 100_000, r"line 1 is no question \(RecursionError: maximum recursion depth exceeded.*\); it needs"),
        ('{"context": null, "endings": ["b"], "label": 0}', r"its context or an ending is no text\); it needs context"),
        (
            '{"context": "a", "endings": ["b", 3], "label": 0}',
            r"its context or an ending is no text\); it needs context",
        ),
        (
            '{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": [3], "label": 0}',
            r"line 1 is no question \(AttributeError: 'int' object has no attribute 'strip'\); it needs context",
        ),
    ],
)
def test_a_file_that_cannot_be_asked_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "q.jsonl")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"q\.jsonl cannot be read: .*; give a JSONL file of questions"):
        read_questions(tmp_path / "q.jsonl")
