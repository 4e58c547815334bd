"""Token evidence to a request statistic, online, in constant memory a request."""

from probes.aggregate.heads import AttentionMean, MultiMax, RollingAttentionMax
from probes.aggregate.plain import Last, Max, Mean
from probes.aggregate.protocol import TOKENS, Aggregator, is_answer
from probes.aggregate.recursive import CUSUM, EMAMax
from probes.aggregate.registry import aggregator_from_json
from probes.aggregate.weighted import SoftmaxMean, TopKMean
from probes.aggregate.windows import RollingMeanMax, SlidingMeanMax

__all__ = [
    "CUSUM",
    "TOKENS",
    "Aggregator",
    "AttentionMean",
    "EMAMax",
    "Last",
    "Max",
    "Mean",
    "MultiMax",
    "RollingAttentionMax",
    "RollingMeanMax",
    "SlidingMeanMax",
    "SoftmaxMean",
    "TopKMean",
    "aggregator_from_json",
    "is_answer",
]
