"""Where a proof of a resume trains."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from gptscale.cli.prove_resume import run_prove_resume


def test_a_run_in_the_present_folder_is_proved_beside_it(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(cfg: object, steps: int, before: object, after: object, folder: Path) -> None:
        raise InterruptedError(folder)

    (tmp_path / "here").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("gptscale.training.proof.prove_resume", asked)
    with pytest.raises(InterruptedError) as proof:
        run_prove_resume(tmp_path / "config.yaml", ["run.dir=."], 4, "none", None, None, None, None)
    assert proof.value.args == (tmp_path / "here.prove-resume",)
