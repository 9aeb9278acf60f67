"""What all tables of settings have in common."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from icdsel.settings.values import require_text


class Table(BaseModel):
    """A table of settings. `model_fields_set` has the names of the settings that were given."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
    MACHINE: ClassVar[tuple[str, ...]] = ()
    """Settings that do not change results: the device, limits of resources, what is shown."""
    MAY_BE_EMPTY: ClassVar[tuple[str, ...]] = ()
    """Settings whose text may be empty."""
    ESCAPED: ClassVar[tuple[str, ...]] = ()
    """Settings in which `\\n`, `\\t` and `\\\\` are typed for a line break, a tab and a backslash."""

    @field_validator("*", mode="before")
    @classmethod
    def _has_text(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name not in cls.MAY_BE_EMPTY:
            require_text(value)
        return value

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        for name, value in self:
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} does not fit into 64 bits")
            if isinstance(value, str | Path) and "\0" in str(value):
                raise ValueError(f"{name} contains a null byte")
        return self
