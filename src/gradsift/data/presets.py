"""Presets: the four pools of the paper, where they are published, in which layouts, how many rows were taken.

The paper (LESS, section 4.1) takes its pools as open-instruct prepared them for Tulu, 270,679 rows in all.
The authors publish their processed copies as one zip, `princeton-nlp/less_data` on the hub; its files have a
`messages` column and are read with `preset` and `path`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """A published pool and the number of examples that the paper took of it."""

    hub: str
    formats: tuple[str, ...]
    """Layouts in which it is published; recognised by their columns."""
    num_examples: int
    """Drawn with the run's seed where the source is larger; a smaller one gives all its rows."""
    split: str = "train"
    subset: str | None = None
    files: tuple[str, ...] = ()
    """Files of the hub repository to read; none named: those that the hub's own card names."""
    language: str | None = None


TULU_STORE = "hamishivi/tulu_mix_store"
"""What open-instruct's own download script fetches FLAN v2 and CoT from."""

PRESETS: dict[str, Preset] = {
    # Already the 100,000 rows that Tulu, and so the paper, uses.
    "flan_v2": Preset(TULU_STORE, ("flan", "messages"), 100_000, files=("flan_v2_resampled_100k.jsonl",)),
    # FLAN's zero-shot and few-shot prompts. Tulu draws 50,000 from each file; here the 100,000 are drawn
    # from both together. A folder of FLAN's tab-separated files (question, answer, rationale) is read too.
    "cot": Preset(TULU_STORE, ("cot", "flan", "messages"), 100_000, files=("cot_zsopt.jsonl", "cot_fsopt.jsonl")),
    "dolly": Preset("databricks/databricks-dolly-15k", ("dolly", "messages"), 15_011),
    # Tulu reads the trees that are ready for export, which the hub splits in two, in all their languages:
    # hence no language. It drops paths that end in a question; here they are cut back to their last answer.
    "oasst1": Preset(
        "OpenAssistant/oasst1",
        ("oasst_trees", "oasst_messages", "messages"),
        55_668,
        split="train+validation",
    ),
}
