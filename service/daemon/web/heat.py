"""What the heat map of a request is drawn from: a lane a detector, a column a token."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.calibration import Calibration
from service.daemon.audit.rows import RequestDetail
from service.daemon.loaded_set import LoadedSet
from service.daemon.web.tokenizer import ShownTexts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lane:
    """
    One detector on one request.

    Attributes:
        scores: float32 (n_tokens,); NaN where there is none.

        threshold: What the flag was held against, in the score's units.

        position: Of the token with the highest score when it was flagged.

        boundary: By length bin, its last position and the running boundary there;
            empty where the detector's set is not loaded any more.
    """

    detector: str
    scores: NDArray[np.float32]
    score: float
    threshold: float
    position: int
    boundary: tuple[tuple[int, float], ...]

    @property
    def n_above(self) -> int:
        """Tokens above the threshold."""
        return int((self.scores > self.threshold).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One token for people who read a table: its scores, by lane."""

    position: int
    token_id: int | None
    text: str
    scores: tuple[float, ...]
    is_flagged: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeatMap:
    """
    All lanes of a request.

    Attributes:
        token_ids: int32 (n_tokens,); empty if they are not kept.

        texts: A text a token; empty without a tokenizer or ids.

        missing: First and last position of each run of tokens that no lane has.

        n_prompt_tokens: 0 while the request runs and nobody knows.
    """

    n_tokens: int
    lanes: tuple[Lane, ...]
    token_ids: NDArray[np.int32]
    texts: tuple[str, ...]
    missing: tuple[tuple[int, int], ...]
    n_prompt_tokens: int

    @property
    def has_raw(self) -> bool:
        """Whether it shows what somebody wrote, or ids that say it."""
        return bool(len(self.token_ids) or self.texts)

    @property
    def n_missing(self) -> int:
        """Tokens without a score."""
        return sum(last - first + 1 for first, last in self.missing)

    def to_json(self) -> dict[str, object]:
        """Return what the script draws; scores are little-endian float32, base64."""
        return {
            "n_tokens": self.n_tokens,
            "n_prompt_tokens": self.n_prompt_tokens,
            "token_ids": self.token_ids.tolist(),
            "texts": self.texts,
            "missing": self.missing,
            "lanes": [
                {
                    "detector": lane.detector,
                    "scores": _base64(lane.scores),
                    "threshold": lane.threshold,
                    "position": lane.position,
                    "boundary": lane.boundary,
                }
                for lane in self.lanes
            ],
        }

    def rows(self, first: int, n_rows: int) -> list[TokenRow]:
        """Return the tokens from *first* on, for a table."""
        flagged = {lane.position for lane in self.lanes}
        return [
            TokenRow(
                position=i,
                token_id=int(self.token_ids[i]) if i < len(self.token_ids) else None,
                text=self.texts[i] if i < len(self.texts) else "",
                scores=tuple(float(lane.scores[i]) for lane in self.lanes),
                is_flagged=i in flagged,
            )
            for i in range(first, min(first + n_rows, self.n_tokens))
        ]


def heat_map(
    detail: RequestDetail, loaded: Sequence[LoadedSet], texts: ShownTexts | None
) -> HeatMap:
    """Return the heat map of what is kept of a request."""
    token_ids = np.frombuffer(detail.token_ids, dtype="<i4")
    raw = {n: np.frombuffer(s, dtype="<f4") for n, s in detail.scores.items()}
    lengths = [len(token_ids), len(detail.text), *(len(s) for s in raw.values())]
    n_tokens = max(lengths)
    sets = {one.digest: one for one in loaded}
    lanes = tuple(
        Lane(
            detector=flag.detector,
            scores=_filled(raw.get(flag.detector), n_tokens),
            score=flag.score,
            threshold=flag.threshold,
            position=flag.position,
            boundary=_boundary(sets.get(flag.bundle_digest), flag.detector, n_tokens),
        )
        for flag in detail.flags
    )
    shown = detail.text
    if not shown and texts is not None:
        shown = texts.texts(token_ids.tolist())
    return HeatMap(
        n_tokens=n_tokens,
        lanes=lanes,
        token_ids=token_ids,
        texts=shown,
        missing=_missing(lanes, n_tokens),
        n_prompt_tokens=detail.summary.n_prompt_tokens if detail.summary else 0,
    )


def _filled(scores: NDArray[np.float32] | None, n_tokens: int) -> NDArray[np.float32]:
    filled = np.full(n_tokens, np.nan, dtype=np.float32)
    if scores is not None:
        filled[: len(scores)] = scores
    return filled


def _missing(lanes: Sequence[Lane], n_tokens: int) -> tuple[tuple[int, int], ...]:
    if not lanes or not n_tokens:
        return ()
    is_missing = np.all([np.isnan(lane.scores) for lane in lanes], axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_missing, [0]]).astype(int)))
    pairs = edges.reshape(-1, 2).tolist()
    return tuple((first, end - 1) for first, end in pairs)


def _boundary(
    one: LoadedSet | None, detector: str, n_tokens: int
) -> tuple[tuple[int, float], ...]:
    """Return the running boundary of *detector* over the positions of a request."""
    if one is None or detector not in one.bundle.calibration.detectors:
        return ()
    calibration: Calibration = one.bundle.calibration
    column = calibration.detectors.index(detector)
    levels = (calibration.centre + calibration.scale * calibration.running_level)[
        :, column
    ]
    steps: list[tuple[int, float]] = []
    for longest, level in zip(
        calibration.longest.tolist(), levels.tolist(), strict=True
    ):
        steps.append((min(longest, n_tokens) - 1, level))
        if longest >= n_tokens:
            break
    return tuple(steps)


def _base64(scores: NDArray[np.float32]) -> str:
    return base64.b64encode(scores.astype("<f4").tobytes()).decode()
