from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CaptureMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPTURE_MODE_UNSPECIFIED: _ClassVar[CaptureMode]
    CAPTURE_MODE_PUSHDOWN: _ClassVar[CaptureMode]
    CAPTURE_MODE_ACTIVATIONS: _ClassVar[CaptureMode]

class LossReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOSS_REASON_UNSPECIFIED: _ClassVar[LossReason]
    LOSS_REASON_BUFFER_FULL: _ClassVar[LossReason]
    LOSS_REASON_DISCONNECTED: _ClassVar[LossReason]
    LOSS_REASON_NO_BANK: _ClassVar[LossReason]
    LOSS_REASON_PREFIX_CACHED: _ClassVar[LossReason]
    LOSS_REASON_TAP_SILENT: _ClassVar[LossReason]
    LOSS_REASON_REFUSED: _ClassVar[LossReason]
    LOSS_REASON_NOT_RECEIVED: _ClassVar[LossReason]
    LOSS_REASON_LAYOUT_UNREADABLE: _ClassVar[LossReason]
    LOSS_REASON_NOT_FINITE: _ClassVar[LossReason]
    LOSS_REASON_MISATTRIBUTED: _ClassVar[LossReason]
    LOSS_REASON_CANARY_FAILED: _ClassVar[LossReason]
CAPTURE_MODE_UNSPECIFIED: CaptureMode
CAPTURE_MODE_PUSHDOWN: CaptureMode
CAPTURE_MODE_ACTIVATIONS: CaptureMode
LOSS_REASON_UNSPECIFIED: LossReason
LOSS_REASON_BUFFER_FULL: LossReason
LOSS_REASON_DISCONNECTED: LossReason
LOSS_REASON_NO_BANK: LossReason
LOSS_REASON_PREFIX_CACHED: LossReason
LOSS_REASON_TAP_SILENT: LossReason
LOSS_REASON_REFUSED: LossReason
LOSS_REASON_NOT_RECEIVED: LossReason
LOSS_REASON_LAYOUT_UNREADABLE: LossReason
LOSS_REASON_NOT_FINITE: LossReason
LOSS_REASON_MISATTRIBUTED: LossReason
LOSS_REASON_CANARY_FAILED: LossReason

class ModelIdentity(_message.Message):
    __slots__ = ("model", "config_sha256", "weights_sha256", "tokenizer_sha256", "d_model", "n_layers", "dtype")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    model: str
    config_sha256: str
    weights_sha256: str
    tokenizer_sha256: str
    d_model: int
    n_layers: int
    dtype: str
    def __init__(self, model: _Optional[str] = ..., config_sha256: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., d_model: _Optional[int] = ..., n_layers: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("engine", "rank", "identity", "hook_points", "k_max", "mode", "vllm_version", "model_runner", "abi", "served_model_name", "ranks", "rank_hook_points", "data_parallel_rank")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    HOOK_POINTS_FIELD_NUMBER: _ClassVar[int]
    K_MAX_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    VLLM_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_RUNNER_FIELD_NUMBER: _ClassVar[int]
    ABI_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    RANK_HOOK_POINTS_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    engine: str
    rank: int
    identity: ModelIdentity
    hook_points: _containers.RepeatedScalarFieldContainer[str]
    k_max: int
    mode: CaptureMode
    vllm_version: str
    model_runner: str
    abi: int
    served_model_name: str
    ranks: _containers.RepeatedScalarFieldContainer[int]
    rank_hook_points: _containers.RepeatedScalarFieldContainer[str]
    data_parallel_rank: int
    def __init__(self, engine: _Optional[str] = ..., rank: _Optional[int] = ..., identity: _Optional[_Union[ModelIdentity, _Mapping]] = ..., hook_points: _Optional[_Iterable[str]] = ..., k_max: _Optional[int] = ..., mode: _Optional[_Union[CaptureMode, str]] = ..., vllm_version: _Optional[str] = ..., model_runner: _Optional[str] = ..., abi: _Optional[int] = ..., served_model_name: _Optional[str] = ..., ranks: _Optional[_Iterable[int]] = ..., rank_hook_points: _Optional[_Iterable[str]] = ..., data_parallel_rank: _Optional[int] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("bank", "bundle_digest")
    BANK_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    bank: Bank
    bundle_digest: str
    def __init__(self, bank: _Optional[_Union[Bank, _Mapping]] = ..., bundle_digest: _Optional[str] = ...) -> None: ...

class Bank(_message.Message):
    __slots__ = ("digest", "slices")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    slices: _containers.RepeatedCompositeFieldContainer[BankSlice]
    def __init__(self, digest: _Optional[str] = ..., slices: _Optional[_Iterable[_Union[BankSlice, _Mapping]]] = ...) -> None: ...

class BankSlice(_message.Message):
    __slots__ = ("hook_point", "n_columns", "d_model", "weight", "bias")
    HOOK_POINT_FIELD_NUMBER: _ClassVar[int]
    N_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    hook_point: str
    n_columns: int
    d_model: int
    weight: bytes
    bias: bytes
    def __init__(self, hook_point: _Optional[str] = ..., n_columns: _Optional[int] = ..., d_model: _Optional[int] = ..., weight: _Optional[bytes] = ..., bias: _Optional[bytes] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("engine", "rank", "batch", "gap", "heartbeat", "goodbye", "bank_refusal")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    BANK_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    engine: str
    rank: int
    batch: StepBatch
    gap: Gap
    heartbeat: Heartbeat
    goodbye: Goodbye
    bank_refusal: BankRefusal
    def __init__(self, engine: _Optional[str] = ..., rank: _Optional[int] = ..., batch: _Optional[_Union[StepBatch, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., bank_refusal: _Optional[_Union[BankRefusal, _Mapping]] = ...) -> None: ...

class StepBatch(_message.Message):
    __slots__ = ("step", "bank_digest", "hook_points", "request_ids", "token_ids", "finished", "preempted", "n_rows_expected", "captured_at", "slots", "weights_generation", "layout", "cached", "adapters")
    STEP_FIELD_NUMBER: _ClassVar[int]
    BANK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HOOK_POINTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    N_ROWS_EXPECTED_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_AT_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_GENERATION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    step: int
    bank_digest: str
    hook_points: _containers.RepeatedCompositeFieldContainer[HookPointRows]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    token_ids: bytes
    finished: _containers.RepeatedCompositeFieldContainer[FinishedRequest]
    preempted: _containers.RepeatedScalarFieldContainer[str]
    n_rows_expected: int
    captured_at: float
    slots: bytes
    weights_generation: int
    layout: bytes
    cached: _containers.RepeatedCompositeFieldContainer[CachedPrefix]
    adapters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, step: _Optional[int] = ..., bank_digest: _Optional[str] = ..., hook_points: _Optional[_Iterable[_Union[HookPointRows, _Mapping]]] = ..., request_ids: _Optional[_Iterable[str]] = ..., token_ids: _Optional[bytes] = ..., finished: _Optional[_Iterable[_Union[FinishedRequest, _Mapping]]] = ..., preempted: _Optional[_Iterable[str]] = ..., n_rows_expected: _Optional[int] = ..., captured_at: _Optional[float] = ..., slots: _Optional[bytes] = ..., weights_generation: _Optional[int] = ..., layout: _Optional[bytes] = ..., cached: _Optional[_Iterable[_Union[CachedPrefix, _Mapping]]] = ..., adapters: _Optional[_Iterable[str]] = ...) -> None: ...

class HookPointRows(_message.Message):
    __slots__ = ("hook_point", "width", "values", "squared_norms")
    HOOK_POINT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SQUARED_NORMS_FIELD_NUMBER: _ClassVar[int]
    hook_point: str
    width: int
    values: bytes
    squared_norms: bytes
    def __init__(self, hook_point: _Optional[str] = ..., width: _Optional[int] = ..., values: _Optional[bytes] = ..., squared_norms: _Optional[bytes] = ...) -> None: ...

class CachedPrefix(_message.Message):
    __slots__ = ("token_ids", "slots", "request")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    token_ids: bytes
    slots: bytes
    request: int
    def __init__(self, token_ids: _Optional[bytes] = ..., slots: _Optional[bytes] = ..., request: _Optional[int] = ...) -> None: ...

class FinishedRequest(_message.Message):
    __slots__ = ("request_id", "n_positions")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    N_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    n_positions: int
    def __init__(self, request_id: _Optional[str] = ..., n_positions: _Optional[int] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("reason", "first_step", "last_step", "n_tokens", "lost", "finished", "n_finished", "began_at", "ended_at")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    N_FINISHED_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    reason: LossReason
    first_step: int
    last_step: int
    n_tokens: int
    lost: _containers.RepeatedCompositeFieldContainer[LostRange]
    finished: _containers.RepeatedCompositeFieldContainer[FinishedRequest]
    n_finished: int
    began_at: float
    ended_at: float
    def __init__(self, reason: _Optional[_Union[LossReason, str]] = ..., first_step: _Optional[int] = ..., last_step: _Optional[int] = ..., n_tokens: _Optional[int] = ..., lost: _Optional[_Iterable[_Union[LostRange, _Mapping]]] = ..., finished: _Optional[_Iterable[_Union[FinishedRequest, _Mapping]]] = ..., n_finished: _Optional[int] = ..., began_at: _Optional[float] = ..., ended_at: _Optional[float] = ...) -> None: ...

class LostRange(_message.Message):
    __slots__ = ("request_id", "first_position", "n_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    first_position: int
    n_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., first_position: _Optional[int] = ..., n_tokens: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("step", "sent_at", "is_proven", "bank_digest")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    IS_PROVEN_FIELD_NUMBER: _ClassVar[int]
    BANK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    step: int
    sent_at: float
    is_proven: bool
    bank_digest: str
    def __init__(self, step: _Optional[int] = ..., sent_at: _Optional[float] = ..., is_proven: _Optional[bool] = ..., bank_digest: _Optional[str] = ...) -> None: ...

class BankRefusal(_message.Message):
    __slots__ = ("digest", "reason")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    digest: str
    reason: str
    def __init__(self, digest: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("acknowledged_step", "refusal", "bank")
    ACKNOWLEDGED_STEP_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    BANK_FIELD_NUMBER: _ClassVar[int]
    acknowledged_step: int
    refusal: str
    bank: Bank
    def __init__(self, acknowledged_step: _Optional[int] = ..., refusal: _Optional[str] = ..., bank: _Optional[_Union[Bank, _Mapping]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunCanariesRequest(_message.Message):
    __slots__ = ("server", "model", "api_key", "timeout_seconds")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    server: str
    model: str
    api_key: str
    timeout_seconds: float
    def __init__(self, server: _Optional[str] = ..., model: _Optional[str] = ..., api_key: _Optional[str] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class RunCanariesResponse(_message.Message):
    __slots__ = ("verdict", "detail", "difference")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    verdict: str
    detail: str
    difference: float
    def __init__(self, verdict: _Optional[str] = ..., detail: _Optional[str] = ..., difference: _Optional[float] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("state", "reason", "bundle_name", "bundle_digest", "n_tokens_expected", "n_tokens_scored", "n_tokens_lost", "n_requests", "n_flags", "n_live_requests", "last_batch_at", "n_abstentions", "n_discoveries", "drift_log10_capital", "n_tokens_shadowed", "detectors")
    class NTokensLostEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class NRequestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class NFlagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class NAbstentionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class DriftLog10CapitalEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_NAME_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_EXPECTED_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_SCORED_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_LOST_FIELD_NUMBER: _ClassVar[int]
    N_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    N_FLAGS_FIELD_NUMBER: _ClassVar[int]
    N_LIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    LAST_BATCH_AT_FIELD_NUMBER: _ClassVar[int]
    N_ABSTENTIONS_FIELD_NUMBER: _ClassVar[int]
    N_DISCOVERIES_FIELD_NUMBER: _ClassVar[int]
    DRIFT_LOG10_CAPITAL_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_SHADOWED_FIELD_NUMBER: _ClassVar[int]
    DETECTORS_FIELD_NUMBER: _ClassVar[int]
    state: str
    reason: str
    bundle_name: str
    bundle_digest: str
    n_tokens_expected: int
    n_tokens_scored: int
    n_tokens_lost: _containers.ScalarMap[str, int]
    n_requests: _containers.ScalarMap[str, int]
    n_flags: _containers.ScalarMap[str, int]
    n_live_requests: int
    last_batch_at: float
    n_abstentions: _containers.ScalarMap[str, int]
    n_discoveries: int
    drift_log10_capital: _containers.ScalarMap[str, float]
    n_tokens_shadowed: int
    detectors: DetectorSets
    def __init__(self, state: _Optional[str] = ..., reason: _Optional[str] = ..., bundle_name: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., n_tokens_expected: _Optional[int] = ..., n_tokens_scored: _Optional[int] = ..., n_tokens_lost: _Optional[_Mapping[str, int]] = ..., n_requests: _Optional[_Mapping[str, int]] = ..., n_flags: _Optional[_Mapping[str, int]] = ..., n_live_requests: _Optional[int] = ..., last_batch_at: _Optional[float] = ..., n_abstentions: _Optional[_Mapping[str, int]] = ..., n_discoveries: _Optional[int] = ..., drift_log10_capital: _Optional[_Mapping[str, float]] = ..., n_tokens_shadowed: _Optional[int] = ..., detectors: _Optional[_Union[DetectorSets, _Mapping]] = ...) -> None: ...

class StartDrillRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StartDrillResponse(_message.Message):
    __slots__ = ("drill_id", "planted_at", "durable_at", "metrics_url", "sinks")
    DRILL_ID_FIELD_NUMBER: _ClassVar[int]
    PLANTED_AT_FIELD_NUMBER: _ClassVar[int]
    DURABLE_AT_FIELD_NUMBER: _ClassVar[int]
    METRICS_URL_FIELD_NUMBER: _ClassVar[int]
    SINKS_FIELD_NUMBER: _ClassVar[int]
    drill_id: str
    planted_at: float
    durable_at: float
    metrics_url: str
    sinks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, drill_id: _Optional[str] = ..., planted_at: _Optional[float] = ..., durable_at: _Optional[float] = ..., metrics_url: _Optional[str] = ..., sinks: _Optional[_Iterable[str]] = ...) -> None: ...

class GetDrillRequest(_message.Message):
    __slots__ = ("drill_id",)
    DRILL_ID_FIELD_NUMBER: _ClassVar[int]
    drill_id: str
    def __init__(self, drill_id: _Optional[str] = ...) -> None: ...

class GetDrillResponse(_message.Message):
    __slots__ = ("deliveries",)
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    deliveries: _containers.RepeatedCompositeFieldContainer[DrillDelivery]
    def __init__(self, deliveries: _Optional[_Iterable[_Union[DrillDelivery, _Mapping]]] = ...) -> None: ...

class DrillDelivery(_message.Message):
    __slots__ = ("sink", "at", "problem")
    SINK_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    sink: str
    at: float
    problem: str
    def __init__(self, sink: _Optional[str] = ..., at: _Optional[float] = ..., problem: _Optional[str] = ...) -> None: ...

class ListDetectorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DetectorsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadDetectorsRequest(_message.Message):
    __slots__ = ("path", "digest", "name")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    path: str
    digest: str
    name: str
    def __init__(self, path: _Optional[str] = ..., digest: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DetectorSets(_message.Message):
    __slots__ = ("sets", "bank_digest", "waiting_for", "problem")
    SETS_FIELD_NUMBER: _ClassVar[int]
    BANK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    sets: _containers.RepeatedCompositeFieldContainer[DetectorSet]
    bank_digest: str
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    problem: str
    def __init__(self, sets: _Optional[_Iterable[_Union[DetectorSet, _Mapping]]] = ..., bank_digest: _Optional[str] = ..., waiting_for: _Optional[_Iterable[str]] = ..., problem: _Optional[str] = ...) -> None: ...

class DetectorSet(_message.Message):
    __slots__ = ("name", "digest", "state", "path", "n_detectors", "n_live_requests", "shadow")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    N_DETECTORS_FIELD_NUMBER: _ClassVar[int]
    N_LIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    state: str
    path: str
    n_detectors: int
    n_live_requests: int
    shadow: ShadowTally
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., state: _Optional[str] = ..., path: _Optional[str] = ..., n_detectors: _Optional[int] = ..., n_live_requests: _Optional[int] = ..., shadow: _Optional[_Union[ShadowTally, _Mapping]] = ...) -> None: ...

class ShadowTally(_message.Message):
    __slots__ = ("n_requests", "n_requests_flagged", "n_flagged_live", "n_abstentions", "n_flags")
    class NFlagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    N_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    N_REQUESTS_FLAGGED_FIELD_NUMBER: _ClassVar[int]
    N_FLAGGED_LIVE_FIELD_NUMBER: _ClassVar[int]
    N_ABSTENTIONS_FIELD_NUMBER: _ClassVar[int]
    N_FLAGS_FIELD_NUMBER: _ClassVar[int]
    n_requests: int
    n_requests_flagged: int
    n_flagged_live: int
    n_abstentions: int
    n_flags: _containers.ScalarMap[str, int]
    def __init__(self, n_requests: _Optional[int] = ..., n_requests_flagged: _Optional[int] = ..., n_flagged_live: _Optional[int] = ..., n_abstentions: _Optional[int] = ..., n_flags: _Optional[_Mapping[str, int]] = ...) -> None: ...

class ListFlagsRequest(_message.Message):
    __slots__ = ("limit", "detector", "request_id")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    limit: int
    detector: str
    request_id: str
    def __init__(self, limit: _Optional[int] = ..., detector: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ListFlagsResponse(_message.Message):
    __slots__ = ("flags",)
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    flags: _containers.RepeatedCompositeFieldContainer[FlagRecord]
    def __init__(self, flags: _Optional[_Iterable[_Union[FlagRecord, _Mapping]]] = ...) -> None: ...

class GetFlagRequest(_message.Message):
    __slots__ = ("flag_id",)
    FLAG_ID_FIELD_NUMBER: _ClassVar[int]
    flag_id: int
    def __init__(self, flag_id: _Optional[int] = ...) -> None: ...

class GetFlagResponse(_message.Message):
    __slots__ = ("flag", "scores", "token_ids")
    FLAG_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    flag: FlagRecord
    scores: bytes
    token_ids: bytes
    def __init__(self, flag: _Optional[_Union[FlagRecord, _Mapping]] = ..., scores: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ...) -> None: ...

class EraseRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class EraseResponse(_message.Message):
    __slots__ = ("n_requests",)
    N_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    n_requests: int
    def __init__(self, n_requests: _Optional[int] = ...) -> None: ...

class RetainRequest(_message.Message):
    __slots__ = ("before",)
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    before: float
    def __init__(self, before: _Optional[float] = ...) -> None: ...

class RetainResponse(_message.Message):
    __slots__ = ("n_taken",)
    N_TAKEN_FIELD_NUMBER: _ClassVar[int]
    n_taken: int
    def __init__(self, n_taken: _Optional[int] = ...) -> None: ...

class RecordUseRequest(_message.Message):
    __slots__ = ("view", "export")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    view: AuditView
    export: AuditExport
    def __init__(self, view: _Optional[_Union[AuditView, _Mapping]] = ..., export: _Optional[_Union[AuditExport, _Mapping]] = ...) -> None: ...

class RecordUseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuditView(_message.Message):
    __slots__ = ("engine", "request_id", "viewer", "where")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VIEWER_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    engine: str
    request_id: str
    viewer: str
    where: str
    def __init__(self, engine: _Optional[str] = ..., request_id: _Optional[str] = ..., viewer: _Optional[str] = ..., where: _Optional[str] = ...) -> None: ...

class AuditExport(_message.Message):
    __slots__ = ("who", "format", "query", "n_records", "has_tokens")
    WHO_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    N_RECORDS_FIELD_NUMBER: _ClassVar[int]
    HAS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    who: str
    format: str
    query: str
    n_records: int
    has_tokens: bool
    def __init__(self, who: _Optional[str] = ..., format: _Optional[str] = ..., query: _Optional[str] = ..., n_records: _Optional[int] = ..., has_tokens: _Optional[bool] = ...) -> None: ...

class FlagRecord(_message.Message):
    __slots__ = ("flag_id", "request_id", "detector", "score", "threshold", "position", "bundle_digest", "model", "flagged_at", "verdict", "adapter", "client_request_id", "client_prompt", "client_answer")
    FLAG_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_AT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ANSWER_FIELD_NUMBER: _ClassVar[int]
    flag_id: int
    request_id: str
    detector: str
    score: float
    threshold: float
    position: int
    bundle_digest: str
    model: str
    flagged_at: float
    verdict: str
    adapter: str
    client_request_id: str
    client_prompt: int
    client_answer: int
    def __init__(self, flag_id: _Optional[int] = ..., request_id: _Optional[str] = ..., detector: _Optional[str] = ..., score: _Optional[float] = ..., threshold: _Optional[float] = ..., position: _Optional[int] = ..., bundle_digest: _Optional[str] = ..., model: _Optional[str] = ..., flagged_at: _Optional[float] = ..., verdict: _Optional[str] = ..., adapter: _Optional[str] = ..., client_request_id: _Optional[str] = ..., client_prompt: _Optional[int] = ..., client_answer: _Optional[int] = ...) -> None: ...
