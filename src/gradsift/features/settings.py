"""What features are made, and how they are stored: the `features` section of the config."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gradsift.gradients import AdamForm, ProjectionConfig
from gradsift.store import DTYPES


class FeaturesConfig(BaseModel):
    """What features are made, and how they are stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    projection: ProjectionConfig = ProjectionConfig()
    adam: AdamForm = "reference"
    """Γ of the pool's rows (METHOD section 2); a target's rows are always plain gradients."""
    store_dtype: Literal["float16", "bfloat16", "float32", "int8", "int4", "int1"] = "float16"
    """`int8`, `int4`, `int1`: the pool's rows are quantised; a target's, few as they are, stay in float16."""
    shard_rows: int = Field(1024, ge=1)
    tokens_per_batch: int | Literal["auto"] = "auto"
    """Padded tokens that go through the model at once; changes memory and speed, not the features."""

    def dtype_of(self, is_pool: bool) -> str:
        """The dtype of the pool's rows or a target's."""
        return self.store_dtype if is_pool or self.store_dtype in DTYPES else "float16"
