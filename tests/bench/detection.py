"""How well the demo's detectors tell planted behaviours on held-out prompts.

usage: python tests/bench/detection.py [--work build/detection] [--n 600]

Collects the splits `fit`, `calibration` and `heldout` through vLLM, fits the demo's
recipe on the first two and prints request-level AUROC and flag rates on the third,
which nothing was chosen on.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probes import Dataset, load_bundle, load_dataset
from probes.detector import Detector
from probes.fit.evaluate import auroc, request_statistics
from probes.fit.judge import judge
from probes.fit.trajectories import trajectories
from service.commands.collect import collect
from service.demo.result import BENIGN
from service.demo.run import HOOK_POINTS, MAX_TOKENS, VLLM_ARGUMENTS, Demo

ROOT = Path(__file__).resolve().parents[2]
EVEN = {"backdoor": 0.2, "sabotage": 0.2, "payload": 0.2, BENIGN: 0.4}
BEHAVIOURS = ("backdoor", "sabotage", "payload")


def main() -> None:
    """Collect, fit, and print a table; write it as JSON beside the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/detection"))
    parser.add_argument("--n", type=int, default=600, help="held-out prompts")
    args = parser.parse_args()
    demo = Demo(
        folder=ROOT / "deploy" / "demo",
        work=args.work.resolve(),
        n_requests=0,
        concurrency=64,
        is_kept=False,
        is_json=False,
    )
    demo.clear_work()
    demo.make_bundle()
    heldout = demo.work / "heldout"
    collect(
        model=str(demo.model),
        jobs={heldout: demo.prompts("heldout", args.n, EVEN)},
        hook_points=HOOK_POINTS,
        max_tokens=MAX_TOKENS,
        concurrency=64,
        vllm_arguments=VLLM_ARGUMENTS,
        log=demo.work / "heldout.log",
        is_quiet=False,
    )
    bundle, dataset = load_bundle(demo.work / "bundle"), load_dataset(heldout)
    everyone = range(len(dataset.requests))
    judged = judge(
        trajectories(dataset, bundle.detectors, everyone), bundle.calibration
    )
    found = {
        detector.name: measure(dataset, detector, judged.is_flagged[:, index])
        for index, detector in enumerate(bundle.detectors)
    }
    (demo.work / "detection.json").write_text(json.dumps(found, indent=2) + "\n")
    print(
        f"\n{len(dataset.requests)} held-out requests; AUROC against benign / flagged"
    )
    print("detector".ljust(12) + "".join(f"{b:>18}" for b in (*BEHAVIOURS, BENIGN)))
    for name, row in found.items():
        cells = [f"{row[b]['auroc']:.4f} / {row[b]['flagged']:.3f}" for b in BEHAVIOURS]
        cells.append(f"{row[BENIGN]['flagged']:.4f}")
        print(name.ljust(12) + "".join(f"{cell:>18}" for cell in cells))


def measure(
    dataset: Dataset, detector: Detector, is_flagged: NDArray[np.bool_]
) -> dict[str, dict[str, float]]:
    """Return AUROC against benign requests and the share flagged, by behaviour."""
    statistics = request_statistics(dataset, detector)
    labels = np.array([r.labels["behaviour"] for r in dataset.requests])
    benign = statistics[labels == BENIGN]
    return {
        behaviour: {
            "n": int((labels == behaviour).sum()),
            "auroc": float(auroc(statistics[labels == behaviour], benign)),
            "flagged": float(is_flagged[labels == behaviour].mean()),
        }
        for behaviour in (*BEHAVIOURS, BENIGN)
    }


if __name__ == "__main__":
    main()
