"""Labels as the source writes them: prepared notes are read again under a plan, which maps the labels then."""

from __future__ import annotations

from dataclasses import dataclass

from common.labels import LabelSchema
from common.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SourceLabels(LabelSchema):
    """Checks labels against a plan where there is one, and keeps the source's own words for them.

    Attributes:
        accepts_all: Whether there is no plan, so that every label is kept.
    """

    accepts_all: bool = False

    def resolve(self, label: str) -> str:
        """Return the label itself, or "" where the plan drops it.

        Raises:
            ValidationError: The plan does not know it.
        """
        if self.accepts_all:
            return label
        return label if super().resolve(label) else ""


def source_labels(plan: Plan | None) -> SourceLabels:
    """Return the labels that a plan knows; without a plan, all."""
    if plan is None:
        return SourceLabels(entity_types=("Entity",), accepts_all=True)
    return SourceLabels(entity_types=plan.task.entity_types, mapping=dict(plan.task.label_map))
