"""What features are made, and how they are stored: the `features` section of the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gradsift.baselines import methods
from gradsift.errors import nearest
from gradsift.gradients import AdamForm, ProjectionConfig
from gradsift.store import DTYPES

StoreDtype = Literal["float16", "bfloat16", "float32", "int8", "int4", "int1"]


def gives_dim_or_kind(projection: Any) -> bool:
    """Whether what is given of a projection says its dim or its kind, and with it how exact features are to be."""
    given = projection.model_fields_set if isinstance(projection, ProjectionConfig) else projection
    return isinstance(given, Mapping | set) and not {"dim", "kind"}.isdisjoint(given)


class CandidatesConfig(BaseModel):
    """Which rows of the pool gradients are taken of: the best for each target by a method that is cheaper."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "rds+"
    """A name that `select.method` may have, with its own strategy; not `less`, nor `full`, which keeps every row."""
    fraction: float = Field(0.25, gt=0, le=1)
    """Of the rows read from the pool, for each target."""

    @field_validator("method")
    @classmethod
    def _is_cheaper(cls, method: str) -> str:
        names = [name for name in methods() if name not in ("less", "full")]
        if method not in names:
            raise ValueError(f"is no method that picks candidates{nearest(method, names)}")
        return method


class FeaturesConfig(BaseModel):
    """What features are made, and how they are stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    projection: ProjectionConfig = ProjectionConfig()
    adam: AdamForm = "reference"
    """Γ of the pool's rows (METHOD section 2); a target's rows are always plain gradients."""
    store_dtype: StoreDtype = "int1"
    """`int8`, `int4`, `int1`: the pool's rows are quantised; a target's, few as they are, stay in float16. Left out
    where the projection's dim or kind is given: float16, so that what was asked for is stored as it is."""
    representation_dtype: StoreDtype | None = Field(None, validate_default=True)
    """Likewise of baselines' representations and embeddings; None: store_dtype, whose value it then has. Where that is
    left out, float16: they have few numbers a row, some of them far larger than the rest, and one bit leaves little."""
    candidates: CandidatesConfig | None = None
    """None: gradients of every row. Else `less` scores and selects candidates alone; the stores may hold more."""
    shard_rows: int = Field(1024, ge=1)
    tokens_per_batch: int | Literal["auto"] = "auto"
    """Padded tokens that go through the model at once; changes memory and speed, not the features."""

    @model_validator(mode="before")
    @classmethod
    def _dtypes_left_out(cls, value: Any) -> Any:
        """What they are depends on what else is given; afterwards the config says it."""
        if not isinstance(value, Mapping) or "store_dtype" in value:
            return value
        exact = {"store_dtype": "float16"} if gives_dim_or_kind(value.get("projection")) else {}
        return {"representation_dtype": "float16", **value, **exact}

    @field_validator("representation_dtype")
    @classmethod
    def _as_the_stores(cls, value: Any, info: ValidationInfo) -> Any:
        """So that settings that mean the same are the same."""
        return info.data.get("store_dtype") if value is None else value

    def dtype_of(self, is_pool: bool, is_representation: bool = False) -> str:
        """The dtype of the pool's rows or a target's, of gradients or of a representation."""
        dtype = self.representation_dtype if is_representation else None
        dtype = dtype or self.store_dtype
        return dtype if is_pool or dtype in DTYPES else "float16"
