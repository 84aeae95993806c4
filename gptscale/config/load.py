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


def settings(cfg: Config, *, changed: bool = False) -> dict[str, Any]:
    """All settings by section.key, as plain values, or those alone that are not the schema's defaults."""
    return dict(_flattened(cfg.model_dump(mode="json", exclude_defaults=changed)))


def _flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Loader(yaml.SafeLoader):
    """Plain values only: a date stays text, numbers are YAML 1.2's, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: list[Any] = []  # a key that is no text may have no hash
        for its_node, _ in node.value:
            if its_node.tag == "tag:yaml.org,2002:merge":
                continue
            if (key := self.construct_object(its_node, deep=True)) in known:
                raise yaml.MarkedYAMLError(
                    problem=f"{key} stands twice; leave out one of them", problem_mark=its_node.start_mark
                )
            known.append(key)
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
        raise ConfigError(f"config file {path} cannot be read: {error}; save it as UTF-8") from None
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
        section = _section_at(error["loc"][:-1])
        known = list(section.model_fields) if section else []
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
    message = re.sub(
        r"is not a valid path for .*", "should be a path, with quotes around one that is a number", message
    )
    message = message.replace(", unable to parse string as an integer", ", such as 1000000, 1_000_000 or 1e6")
    message = message.removesuffix(", unable to parse string as a number")
    message = message.replace("valid tuple", "list in [brackets]").replace("valid dictionary", "{name: value} or {}")
    return f"{path}={error['input']!r}: {message}{_or_null(error['loc'])}"


def _or_null(loc: Sequence[int | str]) -> str:
    """What is left to say where null is a value too: who turns something off often tries 0 or none first."""
    section = _section_at(loc[:-1])
    field = section.model_fields.get(str(loc[-1])) if section and loc else None
    return ", or null" if field and type(None) in get_args(field.annotation) else ""


def _section_at(loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The section that an error's location points to, if it is one."""
    section: type[BaseModel] | None = Config
    for part in loc:
        if isinstance(part, int):  # of a list, whose annotation says what it holds
            continue
        annotation = section.model_fields[str(part)].annotation if section else None
        candidates = [annotation, *get_args(annotation)]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)
    return section
