"""The README's words, tried."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from gptscale.cli.main import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.e2e


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    small = '["train.steps=2", "optim.warmup_steps=0", "eval.sequences=4", "sample.max_new_tokens=2"]'
    exec(compile(block.replace('["train.steps=100"]', small), "README.md", "exec"), {})
    assert "step 2/2" in capsys.readouterr().out
    assert (tmp_path / "runs" / "demo" / "checkpoints" / "step-00000002").is_dir()


def test_the_plan_that_is_shown_is_what_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no corpus
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    ((command, shown),) = re.findall(r"```\n\$ gptscale (plan [^\n]*)\n(.*?)```", README, re.DOTALL)
    assert app(command.split(), standalone_mode=False) in (None, 0)
    assert capsys.readouterr().out == shown


def test_every_command_and_file_that_is_named_exists() -> None:
    verbs = {command.name for command in app.registered_commands}
    assert set(re.findall(r"^gptscale ([\w-]+)", README, re.MULTILINE)) <= verbs
    table = README[README.index("| command | does |") :].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)", table, re.MULTILINE)) == verbs
    for path in re.findall(r"(?:configs|launch|tests|benchmarks|gptscale)/[\w/.-]*\w\.(?:py|yaml|md|tiktoken)", README):
        assert (ROOT / path).exists(), path


def test_the_configs_are_those_that_are_named() -> None:
    (words,) = re.findall(r"^`configs/` holds .*?\n\n", README, re.MULTILINE | re.DOTALL)
    named = {f"gpt2{name}" if name.startswith("-") else name for name in re.findall(r"`([\w-]+)`", words)}
    assert named == {path.stem for path in (ROOT / "configs").iterdir()}


def test_every_option_that_is_named_is_one_of_its_command() -> None:
    known = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    lines = re.findall(r"^(?:\| `|(?:[A-Z]+=\S+ )?gptscale )([\w-]+) (.*)$", README, re.MULTILINE)
    named = [(verb, option) for verb, line in lines if verb in known for option in re.findall(r"--[a-z][a-z-]*", line)]
    assert len(named) > 20
    assert [(verb, option) for verb, option in named if option not in known[verb]] == []
