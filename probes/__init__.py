"""Activations in, scores out: detectors, thresholds and how they are stored."""

from probes.aggregate import (
    Aggregator,
    AttentionMean,
    EMAMax,
    Last,
    Max,
    Mean,
    MultiMax,
    RollingAttentionMax,
    aggregator_from_json,
)
from probes.attention import AttentionProbe, MultiMaxProbe
from probes.bank import ProjectionBank
from probes.bundle import (
    Bundle,
    check_identity,
    load_bundle,
    new_bundle,
    save_bundle,
)
from probes.calibration import Calibration, CalibrationEvidence, fixed_thresholds
from probes.dataset import Dataset, DatasetRequest, DatasetWriter, load_dataset
from probes.detector import Detector, Projection, score
from probes.errors import ActivationShapeError, ArtifactError, RecipeError
from probes.hooks import canonical_hook_point, check_hook_point, layer_of
from probes.identity import ModelIdentity, identity_of
from probes.linear import LinearProbe
from probes.mahalanobis import Mahalanobis
from probes.mlp import MLPProbe
from probes.multilayer import MultiLayerProbe
from probes.sae import SAEFeatureDetector
from probes.sae_formats import SAE, load_sae

__all__ = [
    "SAE",
    "ActivationShapeError",
    "Aggregator",
    "ArtifactError",
    "AttentionMean",
    "AttentionProbe",
    "Bundle",
    "Calibration",
    "CalibrationEvidence",
    "Dataset",
    "DatasetRequest",
    "DatasetWriter",
    "Detector",
    "EMAMax",
    "Last",
    "LinearProbe",
    "MLPProbe",
    "Mahalanobis",
    "Max",
    "Mean",
    "ModelIdentity",
    "MultiLayerProbe",
    "MultiMax",
    "MultiMaxProbe",
    "Projection",
    "ProjectionBank",
    "RecipeError",
    "RollingAttentionMax",
    "SAEFeatureDetector",
    "aggregator_from_json",
    "canonical_hook_point",
    "check_hook_point",
    "check_identity",
    "fixed_thresholds",
    "identity_of",
    "layer_of",
    "load_bundle",
    "load_dataset",
    "load_sae",
    "new_bundle",
    "save_bundle",
    "score",
]
