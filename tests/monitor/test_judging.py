"""What a request's end says, and what the record of a flag keeps."""

import numpy as np
import pytest

from monitor.core import Monitor
from monitor.history import TokenHistory
from monitor.records import Abstention, Verdict
from probes.calibration import Calibration, CalibrationEvidence
from tests.monitor.builders import ENGINE, Rows, bank, batch, detectors, loud, quiet

N_BENIGN = 199


def calibration(gates: tuple[str, ...] = (), longest: int = 8) -> Calibration:
    """Levels at 2; the benign requests stood from -1.99 to 1.99."""
    ranks = (np.arange(N_BENIGN) - N_BENIGN // 2) / 50
    ones = np.ones((1, 3))
    return Calibration(
        detectors=("max", "ema", "mean"),
        gates=gates,
        longest=np.array([longest]),
        centre=0 * ones,
        scale=ones,
        running_level=2 * ones,
        final_level=2 * ones,
        reference=np.tile(ranks[:, None], 3),
        joint_reference=ranks,
        reference_offsets=np.array([0, N_BENIGN]),
        evidence=CalibrationEvidence(
            alpha=0.01,
            guarantee="marginal",
            confidence=0.0,
            budget="learnt",
            shares=tuple(
                0.0 if name in gates else 1.0 for name in ("max", "ema", "mean")
            ),
            gate_share=0.01 if gates else 0.0,
            dataset_sha256="d" * 64,
            seed=0,
            n_learnt=10,
            n_benign=(N_BENIGN,),
            n_checked=(0,),
            n_flagged=(0,),
            realised_low=0.0,
            realised_high=1.0,
        ),
    )


def monitor(
    gates: tuple[str, ...] = (), discovery_rate: float | None = None, longest: int = 8
) -> Monitor:
    """A monitor of the builders' detectors, with `calibration`."""
    return Monitor(
        bank(),
        detectors(),
        calibration(gates, longest),
        discovery_rate=discovery_rate,
    )


def test_a_p_value_is_the_rank_among_benign_requests() -> None:
    """
    Higher than all of 199 benign requests is 1 in 200; in their middle, one half.
    """
    watch = monitor()
    watch.observe(batch(Rows("odd", 0, [loud(0)]), Rows("usual", 0, [[0.0] * 4])))

    odd, usual = (watch.finish(ENGINE, name)[1] for name in ("odd", "usual"))

    assert 1 / 200 == odd.p_value
    assert 0.5 == pytest.approx(usual.p_value, abs=0.01)
    assert 8.0 == odd.margins["max"]
    assert odd.abstention is None


def test_too_long_a_request_gets_no_answer() -> None:
    """
    Beyond the longest calibrated length a request is counted as without an answer.
    """
    watch = monitor(longest=4)
    flags = watch.observe(batch(Rows("a", 0, [*quiet(4), loud(0)])))

    end_flags, summary = watch.finish(ENGINE, "a")

    assert [] == flags + end_flags
    assert Verdict.SCANNED is summary.verdict
    assert Abstention.TOO_LONG is summary.abstention
    assert np.isnan(summary.p_value)
    assert 1 == watch.totals.n_abstentions[Abstention.TOO_LONG]


@pytest.mark.parametrize("gate", ["max", "mean"])
def test_a_gate_turns_a_request_away(gate: str) -> None:
    """
    What is unlike the calibration set is not flagged, and is counted.
    """
    watch = monitor(gates=(gate,))
    everywhere = [[10.0, 0.0 if gate == "max" else 10.0, 10.0, 0.0]]
    watch.observe(batch(Rows("a", 0, everywhere), Rows("b", 0, [loud(1)])))

    flags, summary = watch.finish(ENGINE, "a")
    _, other = watch.finish(ENGINE, "b")

    assert [] == flags
    assert Abstention.UNLIKE_CALIBRATION is summary.abstention
    assert 1 == watch.totals.n_abstentions[Abstention.UNLIKE_CALIBRATION]
    assert ("ema",) == other.flagged_by
    assert other.abstention is None


def test_a_gate_never_flags() -> None:
    """
    A gate's own crossing is an abstention and no flag.
    """
    watch = monitor(gates=("max",))

    assert [] == watch.observe(batch(Rows("a", 0, [loud(0)])))
    assert () == watch.finish(ENGINE, "a")[1].flagged_by


def test_discoveries_are_counted() -> None:
    """
    With a rate set, requests that no benign one equals become discoveries in the end.
    """
    watch = monitor(discovery_rate=0.5)
    found = []
    for step in range(1, 40):
        name = f"r{step}"
        watch.observe(batch(Rows(name, 0, [loud(0)]), step=step))
        found.append(watch.finish(ENGINE, name)[1].is_discovery)

    assert any(found)
    assert sum(found) == watch.totals.n_discoveries
    assert not monitor().finish(ENGINE, "ghost")[1].is_discovery


def test_drift_shows_and_lost_tokens_do_not() -> None:
    """
    Whole requests that stand high move the capital; those with lost parts do not.
    """
    drifting, torn = monitor(), monitor()
    for step in range(1, 80):
        name = f"r{step}"
        drifting.observe(batch(Rows(name, 0, [[1.9, 1.9, 1.9, 0.0]]), step=step))
        torn.observe(batch(Rows(name, 3, [[1.9, 1.9, 1.9, 0.0]]), step=step))
        drifting.finish(ENGINE, name)
        torn.finish(ENGINE, name)

    assert (drifting.drift > 100).all()
    assert [1.0, 1.0, 1.0] == torn.drift.tolist()


class TestHistory:
    def test_the_oldest_make_room(self) -> None:
        """
        A ring of 3 tokens keeps the last 3 of all requests, each with its owner.
        """
        ring = TokenHistory(n_detectors=1, max_bytes=3 * 16)
        for i, owner in enumerate([7, 8, 7, 8, 7]):
            one = np.array([i])
            ring.write(
                np.array([owner]),
                one,
                np.full((1, 1), i, np.float32),
                np.array([i + 90]),
            )

        kept = ring.of(7, 6)

        assert [-1, -1, 92, -1, 94, -1] == kept.token_ids.tolist()
        scores = kept.scores_of(0)
        assert [2.0, 4.0] == scores[np.isfinite(scores)].tolist()
        assert [3] == ring.of(8, 6).positions.tolist()

    @pytest.mark.parametrize("n_tokens", [5, 16, 23, 41])
    def test_what_is_older_than_a_request_is_not_read(self, n_tokens: int) -> None:
        """
        However often the ring went round, a look-up finds what is kept of a request,
        in order, and nothing from before the token that it says is its first.
        """
        ring = TokenHistory(n_detectors=1, max_bytes=16 * 16)
        for i in range(n_tokens):
            one = np.array([i])
            scores = np.full((1, 1), i, np.float32)
            assert i == ring.next_number
            ring.write(np.array([i % 3]), one, scores, one.astype(np.int32))

        kept = range(max(0, n_tokens - 16), n_tokens)
        for since in range(n_tokens):
            for owner in range(3):
                found = ring.of(owner, n_tokens, since)
                expected = [i for i in kept if i >= since and i % 3 == owner]
                assert expected == found.positions.tolist()
                assert expected == found.numbers.tolist()
                assert expected == found.scores[:, 0].tolist()

    def test_a_step_larger_than_the_ring_keeps_its_end(self) -> None:
        """
        Of a step with more tokens than there is room for, the last ones are kept.
        """
        ring = TokenHistory(n_detectors=2, max_bytes=4 * 20)
        n = np.arange(11)
        ring.write(
            np.zeros(11, np.int64), n, np.zeros((11, 2), np.float32), n.astype(np.int32)
        )

        assert [7, 8, 9, 10] == sorted(ring.of(0, 11).positions.tolist())

    def test_a_flag_of_a_forgotten_request_is_still_a_flag(self) -> None:
        """
        With no room for a request's earlier tokens, its flag shows what there is.
        """
        watch = Monitor(
            bank(), detectors(), calibration(longest=64), max_history_bytes=1
        )
        watch.observe(batch(Rows("a", 0, quiet(3)), step=1))

        (flag,) = watch.observe(batch(Rows("a", 3, [loud(0)]), step=2))

        assert (3, 10.0, 2.0) == (flag.position, flag.score, flag.threshold)
        assert [True, True, True, False] == np.isnan(flag.scores).tolist()
        assert [-1, -1, -1, 100] == flag.token_ids.tolist()
