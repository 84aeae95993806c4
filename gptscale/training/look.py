"""A look at the model during training: its loss on fixed windows, and what it writes."""

from collections.abc import Iterator

from gptscale.config.schema import Config
from gptscale.data.corpora import Corpora
from gptscale.data.corpus import check_split, open_corpus
from gptscale.data.loader import eval_batches, evenly_spaced_windows
from gptscale.data.manifest import Split
from gptscale.data.stream import TokenStream
from gptscale.data.tokenizer import Tokenizer
from gptscale.evaluation.loss import Evaluation, evaluate_loss, mixed
from gptscale.generation.text import generate_text
from gptscale.model.gpt import GPTModel
from gptscale.runtime.engine import Engine
from gptscale.runtime.seeding import seed_at


class Look:
    """Evaluations over the same windows each time, and samples from the same prompts."""

    def __init__(self, cfg: Config, engine: Engine, model: GPTModel, corpora: Corpora, tokenizer: Tokenizer) -> None:
        self._cfg = cfg
        self._engine = engine
        self._model = model
        self._corpora = corpora
        self._sets = engine.agree(lambda: _open_sets(cfg))
        self._tokenizer = tokenizer
        self._token_bytes = tokenizer.token_bytes

    def evaluate(self) -> dict[str, float]:
        """Loss on validation sets and training windows as a record's measurements. All ranks call this together."""
        shares = self._corpora.mixture.shares
        each = self._over("val", self._cfg.eval.sequences)
        measured = mixed(each, shares).figures("val/")
        if len(each) > 1:
            for name, its in zip(self._corpora.names, each, strict=True):
                measured |= its.figures(f"val/{name}/")
        for place, stream in self._sets.items():
            measured |= self._over_one(stream, self._cfg.eval.sequences).figures(f"{place}/")
        if self._cfg.eval.train_sequences:
            seen = mixed(self._over("train", self._cfg.eval.train_sequences), shares)
            measured |= {"eval_train/loss": seen.loss, "eval_train/perplexity": seen.perplexity}
        return measured

    def samples(self, step: int) -> Iterator[tuple[str, str]]:
        """Each prompt with what follows it. All ranks call this together: some engines give no rank all weights."""
        sample = self._cfg.sample
        if not sample.prompts:
            return
        with self._engine.evaluating():
            texts = generate_text(
                self._model,
                self._tokenizer,
                sample.prompts,
                max_new_tokens=sample.max_new_tokens,
                temperature=sample.temperature,
                top_k=sample.top_k,
                top_p=sample.top_p,
                seed=seed_at(self._cfg.run.seed, step, -1),
                agreed=lambda drawn: self._engine.gather(drawn)[0],
            )
        for prompt, text in zip(sample.prompts, texts, strict=True):
            yield prompt, text.removeprefix(prompt)

    def _over(self, split: Split, count: int | None) -> list[Evaluation]:
        """Up to count windows in all, of each corpus as many as its weight says."""
        counts = self._corpora.window_counts(count)
        return [self._over_one(part.of(split), its) for part, its in zip(self._corpora.parts, counts, strict=True)]

    def _over_one(self, stream: TokenStream, count: int | None) -> Evaluation:
        engine, context_length = self._engine, self._cfg.model.context_length
        starts = evenly_spaced_windows(stream, context_length, count)
        micro_batch = self._cfg.train.micro_batch_sequences
        assert micro_batch is not None
        batches = eval_batches(stream, starts, context_length, micro_batch, engine.rank, engine.world)
        with engine.evaluating():
            return evaluate_loss(
                lambda inputs, targets: engine.model(inputs, targets, by_token=True),
                batches,
                self._token_bytes,
                engine.device,
                engine.sum_over_ranks,
            )


def _open_sets(cfg: Config) -> dict[str, TokenStream]:
    """The streams of eval.sets, by the place of their figures in a record; raises what their corpora raise."""
    streams = {}
    for name, folder in cfg.eval.sets.items():
        corpus = open_corpus(folder, f"eval.sets.{name}")
        check_split(corpus, cfg, corpus.evaluated_split, folder)
        streams[f"val/{name}"] = corpus.of(corpus.evaluated_split)
    return streams
