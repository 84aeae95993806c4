"""A plan as lines of text."""

from collections.abc import Iterator, Sequence

from gptscale.planning.memory import GIB
from gptscale.planning.outlook import EngineOutlook, Outlook
from gptscale.planning.steptime import Rates

HEADINGS = (
    "GiB per GPU",
    "weights",
    "gradients",
    "moments",
    "activations",
    "logits",
    "buffers",
    "total",
    "host",
    "micro-batch",
    "step",
)


def lines(plan: Outlook, reached: str, length: str) -> Iterator[str]:
    """Everything that a plan says, the verdict last; reached tells of the speed, length why the run's is not known."""
    here, step, saved = plan.engines[0], plan.engines[0].step, plan.checkpoints
    yield _row("model", f"{plan.parameters:,} parameters, {plan.flops_per_token / 1e6:,.0f} MFLOP for each token")
    yield _row("step", _cut(plan))
    yield _row("GPU counts", f"{', '.join(map(str, plan.legal_gpu_counts)) or 'none'} divide the step without filling")
    yield _row("rates", f"{plan.gpu} at {plan.rates.flops / 1e12:,.3g} TFLOP/s, {reached}; {_links(plan.rates)}")
    yield ""
    yield from aligned([list(HEADINGS), *(_cells(engine, plan) for engine in plan.engines)])
    yield ""
    yield _row(
        "step time",
        f"{_seconds(here.step_s)}: computing {_seconds(step.compute_s)}, updating {_seconds(step.update_s)}, "
        f"waiting {_seconds(step.exposed_s)} for {_seconds(step.communication_s)} of communication",
    )
    if length:
        yield _row("this run", length)
    for budget in plan.budgets:
        took = f"{budget.hours:,.3g} hours, {budget.gpu_hours:,.3g} GPU hours"
        yield _row(budget.name, f"{budget.tokens:,} tokens, {budget.steps:,} steps: {took}")
    stay = f"{saved.kept} or more stay, so at least" if saved.at_least else f"{saved.kept} stay, so up to"
    yield _row(
        "checkpoints",
        f"{saved.bytes_each / 1e9:,.3g} GB each, safe after {_seconds(saved.save_s)}; {stay} "
        f"{saved.disk_bytes / 1e9:,.3g} GB of disk",
    )
    yield _row("verdict", plan.verdict)


def _row(name: str, value: str) -> str:
    return f"{name:12} {value}"


def _cut(plan: Outlook) -> str:
    launch = plan.launch
    copies = f" with {launch.copies} copies of the state" if launch.engine == "hsdp" else ""
    filling = f", {plan.filler_sequences} of them filling" if plan.filler_sequences else ""
    return (
        f"{plan.tokens_per_step:,} tokens, {plan.sequences_per_step:,} sequences: "
        f"{launch.engine} x{launch.gpus}{copies}, "
        f"{plan.accumulation} micro-batches of {launch.micro_batch_sequences}{filling}"
    )


def _links(rates: Rates) -> str:
    over_all = f"{rates.link_bytes / 1e9:,.3g} GB/s from GPU to GPU"
    if rates.near_bytes is None or rates.between_bytes is None:
        return over_all
    near, between = rates.near_bytes / 1e9, rates.between_bytes / 1e9
    return f"{over_all}, {near:,.3g} within a machine, {between:,.3g} for each to its like in another"


def _cells(engine: EngineOutlook, plan: Outlook) -> list[str]:
    m = engine.memory
    parts = (m.weights, m.gradients, m.moments, m.activations, m.logits, m.buffers, engine.total_bytes, m.host)
    full = "" if engine.total_bytes <= plan.usable_bytes else " (too much)"
    name = f"{'>' if engine is plan.engines[0] else ' '} {engine.engine}{full}"
    largest = f"up to {engine.largest_micro_batch_sequences}" if engine.largest_micro_batch_sequences else "none"
    return [name, *(f"{part / GIB:.2f}" for part in parts), largest, _seconds(engine.step_s)]


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows of a table as lines, the first column on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        yield "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))])


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"
