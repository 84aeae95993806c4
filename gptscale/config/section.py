"""What every section of a config has in common: no field it does not know, and a few kinds of values."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator

Count = PositiveInt
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _expanded(value: Any) -> Any:
    if value == "":
        raise ValueError("is empty; name a folder")
    return os.path.expanduser(value) if isinstance(value, str) else value


Folder = Annotated[Path, BeforeValidator(_expanded)]
"""A path in which ~ is the home folder."""


class Section(BaseModel):
    """A frozen part of the config that refuses fields it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Keep YAML's true and false from passing as the numbers 1 and 0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool:
            words = f"one of {', '.join(get_args(annotation))}" if get_origin(annotation) is Literal else "a value"
            raise ValueError(f"is no switch; give {words}, not true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _nothing_for_an_empty_section(cls, value: Any, info: ValidationInfo) -> Any:
        """Take a section without lines, or with comments alone, as one that says nothing."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        return {} if value is None and isinstance(annotation, type) and issubclass(annotation, Section) else value
