"""gptscale verify: every hash of a checkpoint, a run or a corpus."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptscale.errors import CheckpointError


def run_verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint, a run for all of its own, or a corpus.")],
    finite: Annotated[bool, typer.Option("--finite", help="Also look for values that are not finite.")] = False,
) -> None:
    """Read every file again and compare it with its manifest; names what is wrong, and exits with 2 then."""
    from gptscale.checkpoint.verify import checkpoints_at
    from gptscale.data.manifest import FILE_NAME

    if folders := checkpoints_at(path):
        _verify_checkpoints(folders, finite)
    elif (path / FILE_NAME).is_file():
        _verify_corpus(path)
    else:
        raise CheckpointError(
            f"{path} is no checkpoint, no run with checkpoints and no corpus; there is nothing to verify"
        )


def _verify_checkpoints(folders: list[Path], finite: bool) -> None:
    from gptscale.checkpoint.verify import verify_checkpoints

    bad = 0
    for verdict in verify_checkpoints(folders, finite=finite):
        for problem in verdict.problems:
            print(f"gptscale: {problem}", file=sys.stderr)
        if verdict.problems or verdict.manifest is None:
            bad += 1
            print(f"{verdict.folder}: BAD, {len(verdict.problems)} problems")
            continue
        files, parameters = verdict.manifest.files.values(), verdict.manifest.parameters
        size = sum(file.bytes for file in files) / 1e6
        print(f"{verdict.folder}: good, {len(files)} files, {size:,.1f} MB, {len(parameters)} parameters")
    print(f"{len(folders) - bad} of {len(folders)} checkpoints are good")
    if bad:
        raise typer.Exit(2)


def _verify_corpus(folder: Path) -> None:
    from gptscale.data.manifest import load_manifest
    from gptscale.data.unit import read_receipts, receipt_path
    from gptscale.data.verify import find_damage

    problems = find_damage(folder) + [
        f"{receipt_path(folder, number)} is damaged; run prepare again, which makes that shard again"
        for number, receipt in sorted(read_receipts(folder).items())
        if receipt is None
    ]
    if problems:
        for problem in problems:
            print(f"gptscale: {problem}", file=sys.stderr)
        print(f"{folder}: BAD, {len(problems)} problems")
        raise typer.Exit(2)
    manifest = load_manifest(folder)
    tokens = sum(shard.tokens for shard in manifest.shards)
    print(f"{folder}: good, {len(manifest.shards)} shards, {tokens:,} tokens, fingerprint {manifest.fingerprint[:12]}")
