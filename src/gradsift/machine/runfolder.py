"""Where everything of a run stands: the one place that knows the folder names of the contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config that the folder was made with."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and seed."""
        return self.path / "environment.json"

    @property
    def pool(self) -> Path:
        """The encoded pool."""
        return self.path / "pool"

    @property
    def warmup(self) -> Path:
        """The warmup's checkpoints."""
        return self.path / "warmup"

    def tuned(self, target: str) -> Path:
        """The adapter that was trained on a target's examples, for the method `tov`."""
        return self.path / "tov" / target

    def target(self, name: str) -> Path:
        """The encoded examples of a target."""
        return self.path / "targets" / name

    def overlap(self, target: str) -> Path:
        """The pool's rows that hold text of the target's items."""
        return self.target(target) / "overlap.json"

    def pool_features(self, checkpoint: str) -> Path:
        """The pool's feature store at a checkpoint."""
        return self.path / "features" / "pool" / checkpoint

    def target_features(self, target: str, checkpoint: str) -> Path:
        """A target's feature store at a checkpoint."""
        return self.path / "features" / "targets" / target / checkpoint

    def scores(self, target: str, method: str = "less") -> Path:
        """The scores of every pool row for a target."""
        return self.path / "scores" / target / f"{method}.parquet"

    def selection(self, target: str, method: str = "less") -> Path:
        """The rows chosen for a target."""
        return self.path / "selection" / target / f"{method}.jsonl"

    def model(self, target: str, method: str = "less") -> Path:
        """The model trained on the rows chosen for a target."""
        return self.path / "model" / target / method

    @property
    def evaluations(self) -> Path:
        """All metrics, and a report of them."""
        return self.path / "evaluation"

    def evaluation(self, target: str, method: str = "less") -> Path:
        """The metrics of the model trained for a target; its predictions stand in the folder of the same name."""
        return self.evaluations / target / f"{method}.json"

    @property
    def influence_check(self) -> Path:
        """What was measured of the method itself, on this run's model, pool and targets."""
        return self.path / "checks" / "influence"
