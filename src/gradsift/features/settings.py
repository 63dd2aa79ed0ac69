"""What features are made, and how they are stored: the `features` section of the config."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gradsift.baselines import methods
from gradsift.errors import nearest
from gradsift.gradients import AdamForm, ProjectionConfig
from gradsift.store import DTYPES


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
    store_dtype: Literal["float16", "bfloat16", "float32", "int8", "int4", "int1"] = "float16"
    """`int8`, `int4`, `int1`: the pool's rows are quantised; a target's, few as they are, stay in float16."""
    candidates: CandidatesConfig | None = None
    """None: gradients of every row. Else `less` scores and selects candidates alone; the stores may hold more."""
    shard_rows: int = Field(1024, ge=1)
    tokens_per_batch: int | Literal["auto"] = "auto"
    """Padded tokens that go through the model at once; changes memory and speed, not the features."""

    def dtype_of(self, is_pool: bool) -> str:
        """The dtype of the pool's rows or a target's."""
        return self.store_dtype if is_pool or self.store_dtype in DTYPES else "float16"
