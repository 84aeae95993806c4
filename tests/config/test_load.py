from pathlib import Path
from typing import Any

import pytest
import yaml

from gptscale.config.load import dump_config, load_config, parse_config
from gptscale.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
LEAST = {"run": {"dir": "r"}, "data": {"dir": "d", "source": {"path": "p"}}, "train": {"steps": 3}}


def write(folder: Path, values: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_loads(path: Path) -> None:
    load_config(path)


def test_gpt2s_config_has_the_optimizer_of_gpt3s_paper() -> None:
    optim = load_config(CONFIGS[0].with_name("gpt2-124m.yaml")).optim
    # Brown et al. 2020, appendix B: Adam with 0.9, 0.95 and 1e-8, weight decay 0.1, the gradient's norm clipped at 1.0
    found = (optim.name, optim.beta1, optim.beta2, optim.eps, optim.weight_decay, optim.clip_norm)
    assert found == ("adamw", 0.9, 0.95, 1e-8, 0.1, 1.0)


def test_a_config_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    cfg = parse_config(LEAST)
    assert load_config(write(tmp_path, dump_config(cfg))) == cfg


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    home = Path("/home/ada")
    mixture = [{"dir": "~/web", "weight": 1}, {"dir": "~/code", "weight": 1}]
    values = {**LEAST, "run": {"dir": "~/r"}, "data": {"mixture": mixture}, "eval": {"sets": {"books": "~/b"}}}
    cfg = parse_config(values)
    assert (cfg.run.dir, cfg.data.mixture[1].dir, cfg.eval.sets["books"]) == (home / "r", home / "code", home / "b")
    assert parse_config({**LEAST, "data": {"dir": "~"}}).data.dir == home


def test_overrides_replace_the_files_settings(tmp_path: Path) -> None:
    overrides = [
        "train.steps=7",
        "optim.lr_peak=1e-3",
        "sample.prompts=[a, b]",
        "optim.clip_norm=null",
        "eval.sequences=5",
    ]
    cfg = load_config(write(tmp_path, LEAST), overrides)
    assert (cfg.train.steps, cfg.optim.lr_peak, cfg.sample.prompts) == (7, 1e-3, ("a", "b"))
    assert cfg.optim.clip_norm is None
    assert cfg.eval.sequences == 5


def test_a_date_is_a_text(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, LEAST), ["run.dir=2026-02-03"]).run.dir == Path("2026-02-03")
    assert load_config(write(tmp_path, LEAST), ["run.dir=2026-02-30"]).run.dir == Path("2026-02-30")


@pytest.mark.parametrize(("text", "value"), [("1e9", 10**9), ("1_000", 1000), ("010", 10), ("0x10", 16)])
def test_a_number_is_written_as_in_yaml_1_2(tmp_path: Path, text: str, value: int) -> None:
    assert load_config(write(tmp_path, LEAST), [f"train.steps={text}"]).train.steps == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=1:30", "train.steps='1:30': input should be a valid integer"),
        ("run.stop_after=1:30:00", "'1:30:00' is no time; give a number with its unit"),
    ],
)
def test_a_time_is_no_number_of_base_60(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, LEAST), [override])


@pytest.mark.parametrize("name", ["1e5", "010", "1:30", "2026-02-03", "null"])
def test_a_text_that_looks_like_a_value_is_read_back_as_text(tmp_path: Path, name: str) -> None:
    cfg = parse_config({**LEAST, "run": {"dir": name}, "wandb": {"group": name}})
    assert load_config(write(tmp_path, dump_config(cfg))) == cfg


def test_a_section_can_be_merged_from_an_anchor(tmp_path: Path) -> None:
    text = (
        "run: {dir: r}\ndata: {mixture: [&web {dir: a, weight: 1}, {<<: *web, dir: b}]}\n"
        "train: {steps: 3}\neval: {sets: {<<: {books: c}, web: d}}\n"
    )
    cfg = load_config(write(tmp_path, text))
    assert [(str(corpus.dir), corpus.weight) for corpus in cfg.data.mixture] == [("a", 1), ("b", 1)]
    assert sorted(cfg.eval.sets) == ["books", "web"]


def test_a_section_of_comments_says_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, dump_config(parse_config(LEAST)).split("optim:")[0] + "optim:\n  # eps: 1\nwandb:\n")
    assert load_config(path) == parse_config(LEAST)
    assert load_config(path, ["optim.eps=1e-6"]).optim.eps == 1e-6


def test_another_preset_can_be_laid_over_a_runs_own_config(tmp_path: Path) -> None:
    path = write(tmp_path, dump_config(parse_config({**LEAST, "model": {"preset": "124M"}})))
    assert load_config(path, ["model.preset=350M"]).model.emb_dim == 1024


def test_a_preset_fills_the_shape_and_gives_way_to_what_is_said() -> None:
    model = parse_config({**LEAST, "model": {"preset": "1558M", "n_layers": 2}}).model
    assert (model.emb_dim, model.n_heads, model.n_layers) == (1600, 25, 2)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("train", {"stepz": 3}, r"config: unknown key train.stepz; did you mean steps\?"),
        ("data", {"source": {"path": "p", "txt_column": "t"}}, r"unknown key data.source.txt_column; did you mean text_column\?"),
        ("wandb", {"zzz": 1}, "unknown key wandb.zzz; known here: mode, project, entity, group, tags"),
        ("model", {"emb_dim": "wide"}, "model.emb_dim='wide': input should be a valid integer"),
        ("model", {"n_layers": 0}, "model.n_layers=0: input should be greater than 0"),
        ("model", {"emb_dim": 100, "n_heads": 12}, "model: n_heads=12 does not divide emb_dim=100; choose an emb_dim"),
        ("model", {"preset": "200M"}, "model.preset='200M': input should be '124M', '350M', '774M' or '1558M'"),
        ("train", {"tokens_per_step": True}, "train.tokens_per_step: is no switch; give a value, not true or false"),
        ("run", {"dir": "r", "seed": 2**63}, "run.seed=9223372036854775808: input should be less than"),
        ("optim", {"lr_peak": float("inf")}, "optim.lr_peak=inf: input should be a finite number"),
        ("model", {"preset": [1]}, r"model.preset=\[1\]: input should be"),
        ("data", {"source": 3}, "data.source=3: input should be a section with its own keys"),
        ("run", None, "run.dir is missing"),
        ("wandb", {"mode": False}, "wandb.mode: is no switch; give one of disabled, offline, online, not true or false"),
        ("model", {"preset": "350M", "emb_dim": 768, "n_heads": 12, "n_layers": 12}, "model: preset=350M gives way to emb_dim, n_heads and n_layers, which are all given; leave out"),
        ("sample", {"prompts": "hello"}, r"sample.prompts='hello': input should be a list in \[brackets\]"),
        ("train", {"epochs": 2}, "exactly one of steps, tokens and epochs as the length; found steps=3, epochs=2.0"),
        ("train", {"steps": None}, "exactly one of steps, tokens and epochs as the length; found none"),
        ("train", {"tokens_per_step": 1500}, "train.tokens_per_step=1500 is no multiple of model.context_length=1024; the nearest is 1024"),
        ("train", {"tokens_per_step": 4096}, "train.micro_batch_sequences=8 is more than the 4 sequences of a step"),
        ("optim", {"lr_floor": 1.0}, "lr_floor=1.0 is above lr_peak=0.0006; lower it or raise lr_peak"),
        ("optim", {"warmup_steps": 9, "decay_steps": 9}, "decay_steps=9 ends the schedule within warmup_steps=9; raise it"),
        ("run", {"dir": None}, "run.dir=None: input should be a path, with quotes around one that is a number$"),
        ("train", {"tokens_per_step": "10M"}, "='10M': input should be a valid integer, such as 1000000, 1_000_000 or 1e6$"),
        ("optim", {"clip_norm": 0}, "optim.clip_norm=0: input should be greater than 0, or null$"),
        ("optim", {"clip_norm": "none"}, "optim.clip_norm='none': input should be a valid number, or null$"),
        ("optim", {"eps": 0}, "optim.eps=0: input should be greater than 0$"),
        ("eval", {"sets": None}, r"eval.sets=None: input should be a \{name: value\} or \{\}$"),
        ("eval", {"sets": {"a/b": "c"}}, r"eval.sets.a/b.\[key\]='a/b': string should match pattern"),
        ("run", {"dir": ""}, "run.dir: is empty; name a folder"),
        ("data", {"dir": ""}, "data.dir: is empty; name a folder"),
        ("modle", {}, r"unknown key modle; did you mean model\?"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_path_and_what_would_be_right(
    section: str, change: dict[str, Any] | None, message: str
) -> None:
    changed = None if change is None else {**LEAST.get(section, {}), **change}
    values: dict[str, Any] = {**LEAST, section: changed}
    with pytest.raises(ConfigError, match=message):
        parse_config(values)


def test_a_set_and_a_corpus_of_the_mixture_are_told_apart_by_name() -> None:
    data = {"tokenizer": "bytes", "mixture": [{"dir": "a/web", "weight": 1}, {"dir": "a/code", "weight": 1}]}
    values: dict[str, Any] = {**LEAST, "data": data, "eval": {"sets": {"web": "b/web"}}}
    with pytest.raises(ConfigError, match=r"eval\.sets and data\.mixture both have the name web; rename the set"):
        parse_config(values)
    parse_config({**values, "eval": {"sets": {"books": "b/books"}}})


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, {"train": {"stepz": 3, "steps": 1}, "optim": {"eps": 0}})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    text = str(caught.value)
    assert text.startswith(f"{path} has 4 problems: ")
    for part in ("run is missing", "data is missing", "unknown key train.stepz", "optim.eps=0"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("", "holds no sections"),
        ("train: {steps: 1}\ntrain: {steps: 2}", "train stands twice; leave out one of them in .*, line 2, column 1"),
        ("[" * 5000, "is not valid YAML: maximum recursion depth exceeded"),
        ("- 1", "holds no sections; a config has at least run:, data: and train:"),
    ],
)
def test_a_file_that_is_no_config_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"config file {tmp_path} cannot be read: Is a directory; give a YAML file$"):
        load_config(tmp_path)


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"config.yaml cannot be read: .*; save it as UTF-8$"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "is not of the form section.key=value, such as train.steps=100"),
        (".steps=3", "is not of the form section.key=value"),
        (f"train.steps={'[' * 5000}", "is not a YAML value"),
        ("train.steps=[1", "is not a YAML value; put quotes around it"),
        ("train.steps.more=3", "steps is a value, not a section"),
    ],
)
def test_an_override_that_cannot_be_read_is_told(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, LEAST), [override])


@pytest.mark.parametrize(
    ("name", "message"), [("val", "sets cannot be named val, which mean"), ("a/b", "eval.sets.a/b")]
)
def test_a_validation_set_has_a_name_of_its_own(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, LEAST), [f"eval.sets={{{name}: corpora/x}}"])


def test_no_config_field_lacks_a_line_that_explains_it() -> None:
    import ast

    import gptscale.config.schema as schema

    tree = ast.parse(Path(schema.__file__).read_text())
    for section in (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name not in ("Section", "Config")
    ):
        for field, after in zip(section.body, [*section.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) != "SourceConfig":
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert told, f"{section.name}.{ast.unparse(field.target)}"


@pytest.mark.parametrize(
    ("text", "value"), [("'try #3'", "try #3"), ('"try #3"', "try #3"), ("try#3", "try#3"), ("|-\n # 3", "# 3")]
)
def test_a_word_with_a_number_sign_is_whole(tmp_path: Path, values: dict[str, Any], text: str, value: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    assert load_config(path, [f"wandb.notes={text}"]).wandb.notes == value
    for cut in ("try #3", "#3"):
        with pytest.raises(ConfigError, match="YAML takes what follows # for a comment; put quotes around it"):
            load_config(path, [f"wandb.notes={cut}"])
