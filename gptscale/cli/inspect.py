"""gptscale inspect: what is in a checkpoint."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gptscale.cli.arguments import Checkpoint

if TYPE_CHECKING:
    from gptscale.checkpoint.inspection import Inspection


def run_inspect(
    checkpoint: Checkpoint,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Tensors with their norms, the ledger, files, and the settings that are not the defaults."""
    from gptscale.checkpoint.inspection import inspect_checkpoint
    from gptscale.tracking.jsonl import plain

    found = inspect_checkpoint(checkpoint)
    print(json.dumps(plain(asdict(found)), indent=1, allow_nan=False) if as_json else "\n".join(_lines(found)))


def _lines(found: "Inspection") -> Iterator[str]:
    size = sum(record.bytes for record in found.files.values()) / 1e6
    yield f"{found.folder}: step {found.step}, written by {found.engine} x{found.world}, {size:,.1f} MB"
    yield f"data: {found.data_fingerprint}"
    yield ""
    yield from _table(found)
    yield f"{found.elements:,} elements in {len(found.tensors)} tensors"
    yield "\nfiles:"
    yield from (f"  {name}  {record.bytes:,} bytes  {record.xxh3[:12]}" for name, record in found.files.items())
    yield "\nledger:"
    yield from (f"  {key}: {json.dumps(value)}" for key, value in found.ledger.items())
    yield "\nsettings other than the defaults:"
    yield from (f"  {key}={json.dumps(value)}" for key, value in found.settings.items())


def _table(found: "Inspection") -> Iterator[str]:
    """One row for each tensor, one column for the norm of each kind that any tensor has."""
    from gptscale.planning.table import aligned

    kinds = list(dict.fromkeys(kind for tensor in found.tensors for kind in tensor.norms))
    rows = [["tensor", "shape", "parts", *(f"|{kind}|" for kind in kinds), "updates"]]
    for tensor in found.tensors:
        norms = [f"{tensor.norms[kind]:.4g}" if kind in tensor.norms else "-" for kind in kinds]
        updates = f"{tensor.scalars['step']:g}" if "step" in tensor.scalars else "-"
        rows.append([tensor.name, "x".join(map(str, tensor.shape)), str(tensor.ranges), *norms, updates])
    yield from aligned(rows)
