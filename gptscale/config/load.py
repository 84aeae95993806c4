"""Configs from YAML files and `section.key=value` overrides. The home of YAML."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gptscale.config.presets import GPT2_SIZES
from gptscale.config.schema import Config
from gptscale.config.section import Section
from gptscale.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and lay `section.key=value` overrides over it.

    Raises ConfigError with every problem of the file at once, each with its full path.
    """
    path = Path(path)
    return parse_config(lay_over(_read_mapping(path), overrides), str(path))


def lay_over(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Put `section.key=value` overrides into plain values; raises ConfigError for any of another form."""
    for override in overrides:
        _apply(values, override)
    return values


def parse_config(values: dict[str, Any], origin: str = "config") -> Config:
    """Check plain values against the schema; origin names them in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_describe(e) for e in error.errors(include_url=False)]
        head = f"{origin}: " if len(problems) == 1 else f"{origin} has {len(problems)} problems: "
        raise ConfigError(head + "; ".join(problems)) from None


def dump_config(cfg: Config) -> str:
    """Write a config as YAML text that `load_config` reads back to an equal config."""
    values = cfg.model_dump(mode="json")
    for field, filled in GPT2_SIZES.get(str(cfg.model.preset), {}).items():
        if values["model"][field] == filled:
            del values["model"][field]  # the preset says it, and another preset may be laid over the file
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def plain_settings(cfg: Config) -> dict[str, Any]:
    """All settings by section.key, as plain values."""
    return dict(_flattened(cfg.model_dump(mode="json")))


def changed_settings(cfg: Config) -> dict[str, Any]:
    """The settings that are not the schema's defaults, by section.key, as plain values."""
    return dict(_flattened(cfg.model_dump(mode="json", exclude_defaults=True)))


def _flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Loader(yaml.SafeLoader):
    """Plain values only: a date stays text, numbers are YAML 1.2's, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that either version of YAML would read as something else."""


_REPLACED = [f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "int", "float")]
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# In YAML 1.1, 010 is 8, 1:30 is 90, and 1e9 is text. Underscores between digits are kept from it.
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.?[0-9_]*[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*|\.[0-9]+([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$"
    r"|\.(nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist{_nearby(path)}") from None
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}; give a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no sections; a config has at least run:, data: and train:")
    return values


def _nearby(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {path.parent / close[0]}?" if close else "; configs/ holds examples"


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r} is not of the form section.key=value, such as train.steps=100")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value; put quotes around it") from None
    if _is_cut(text.strip(), value):
        raise ConfigError(f"override {override!r}: YAML takes what follows # for a comment; put quotes around it")
    for part in parts[:-1]:
        if values.get(part) is None:  # a section whose lines are all comments is null
            values[part] = {}
        inner = values[part]
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {part} is a value, not a section")
        values = inner
    values[parts[-1]] = value


def _is_cut(text: str, value: Any) -> bool:
    """Whether YAML took a part of an override for a comment; quoted words and blocks may hold the sign."""
    if text.startswith("#"):
        return True
    return " #" in text and text[0] not in "\"'|>[{" and isinstance(value, str) and value != text


def _describe(error: Any) -> str:
    """One problem as `path: what is wrong (the value), what would be right`."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(_fields_at(error["loc"][:-1]))
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"unknown key {path}; {hint}"
    if error["type"] == "missing":
        return f"{path} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    message = message[0].lower() + message[1:]
    message = re.sub(r"a valid dictionary or instance of \w+", "a section with its own keys", message)
    message = message.replace("valid tuple", "list in [brackets]")
    return f"{path}={error['input']!r}: {message}"


def _fields_at(loc: Sequence[int | str]) -> Iterator[str]:
    """The field names of the section that an error's location points to."""
    section: type[BaseModel] = Config
    for part in loc:
        if isinstance(part, int):  # of a list, whose annotation says what it holds
            continue
        annotation = section.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    yield from section.model_fields
