"""Which flags are asked for, as a record and as SQL."""

from dataclasses import dataclass
from enum import StrEnum

# A flag's verdict is that of the first summary of its request after it: request
# ids may be used again by a client.
SUMMARY = """
    (SELECT {column} FROM requests
     WHERE requests.request_id = flags.request_id
       AND requests.engine = flags.engine
       AND requests.finished_at >= flags.flagged_at
     ORDER BY request_row LIMIT 1)
"""
VERDICT = f"coalesce({SUMMARY.format(column='verdict')}, '')"
LABEL = """
    coalesce((SELECT label FROM labels WHERE labels.flag_id = flags.flag_id
              ORDER BY label_id DESC LIMIT 1), '')
"""
# Of each reviewer the latest label counts; "unsure" disputes nothing.
N_ANSWERS = """
    (SELECT count(DISTINCT label) FROM labels
     WHERE labels.flag_id = flags.flag_id AND label != 'unsure'
       AND NOT EXISTS (SELECT 1 FROM labels AS later
                       WHERE later.flag_id = labels.flag_id
                         AND later.reviewer = labels.reviewer
                         AND later.label_id > labels.label_id))
"""
N_REVIEWERS = """
    (SELECT count(DISTINCT reviewer) FROM labels WHERE labels.flag_id = flags.flag_id)
"""


class LabelFilter(StrEnum):
    """Flags by what reviewers said of them; the first three by their latest label."""

    TRUE = "true"
    FALSE = "false"
    UNSURE = "unsure"
    NONE = "none"
    DISPUTED = "disputed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagFilter:
    """
    Which flags; an empty field asks for nothing.

    Attributes:
        search: Stands in the request id.

        since, until: Flagged in this time, seconds since the epoch; *until* exclusive.

        verdict: Of the request; "running" if it has not ended.

        before, after: With a lower, or a higher, flag id than this. With *after* alone
            the lowest come first, else the highest.
    """

    detector: str = ""
    engine: str = ""
    model: str = ""
    verdict: str = ""
    label: LabelFilter | None = None
    search: str = ""
    since: float = 0.0
    until: float = 0.0
    before: int = 0
    after: int = 0

    @property
    def is_rising(self) -> bool:
        """Whether the lowest flag ids come first."""
        return bool(self.after and not self.before)


def flag_conditions(wanted: FlagFilter) -> tuple[str, list[str | float]]:
    """Return *wanted* as a condition on the table ``flags``, and its parameters."""
    parts: list[tuple[str, str | float]] = [
        ("detector = ?", wanted.detector),
        ("engine = ?", wanted.engine),
        ("model = ?", wanted.model),
        ("instr(request_id, ?) > 0", wanted.search),
        ("flagged_at >= ?", wanted.since),
        ("flagged_at < ?", wanted.until),
        ("flag_id < ?", wanted.before),
        ("flag_id > ?", wanted.after),
        (f"{VERDICT} = ?", wanted.verdict if wanted.verdict != "running" else ""),
    ]
    used = [(text, value) for text, value in parts if value]
    conditions = [text for text, _ in used]
    if wanted.verdict == "running":
        conditions.append(f"{VERDICT} = ''")
    label_texts = {
        LabelFilter.NONE: (
            "NOT EXISTS (SELECT 1 FROM labels WHERE labels.flag_id = flags.flag_id)"
        ),
        # Few flags have labels: those are looked through, not all of them.
        LabelFilter.DISPUTED: (
            f"flag_id IN (SELECT flag_id FROM labels) AND {N_ANSWERS} > 1"
        ),
    }
    if wanted.label is not None:
        said = f"flag_id IN (SELECT flag_id FROM labels) AND {LABEL} = '{wanted.label}'"
        conditions.append(label_texts.get(wanted.label, said))
    return " AND ".join(conditions) or "1", [value for _, value in used]
