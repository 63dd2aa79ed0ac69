"""How work units are spread over processes: the `executor` section of the config."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from gradsift.errors import ConfigError
from gradsift.machine import num_devices


class ExecutorConfig(BaseModel):
    """Who does the work units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["local"] = "local"
    workers: int | Literal["auto"] = "auto"
    """Processes; `auto`: one per CUDA device, one on a CPU."""

    @property
    def num_workers(self) -> int:
        """Processes to start; raises ConfigError where it is less than one."""
        if self.workers == "auto":
            return num_devices()
        if self.workers < 1:
            raise ConfigError(f"executor.workers is {self.workers}: give at least 1")
        return self.workers
