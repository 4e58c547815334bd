"""The tables of the record."""

VERSION = 4
"""In ``PRAGMA user_version``. A file with a later one is refused, not changed."""

# Times are seconds since the epoch by the daemon's clock unless said. Rows are
# only ever added, but for the single row of `liveness`.
_FIRST = """
CREATE TABLE flags (
    flag_id INTEGER PRIMARY KEY AUTOINCREMENT,
    engine TEXT NOT NULL,
    request_id TEXT NOT NULL,
    detector TEXT NOT NULL,
    score REAL NOT NULL,
    threshold REAL NOT NULL,
    position INTEGER NOT NULL,
    scores BLOB NOT NULL,           -- float32, little-endian, from position 0
    token_ids BLOB,                 -- int32, little-endian; if kept
    token_ids_sha256 TEXT,          -- of the same bytes; if kept
    bank_digest TEXT NOT NULL,
    bundle_digest TEXT NOT NULL,
    model TEXT NOT NULL,
    flagged_at REAL NOT NULL,
    adapter TEXT NOT NULL DEFAULT '',  -- of LoRA
    -- A sender repeats what a killed daemon had not acknowledged. vLLM's request
    -- ids are used once by an engine.
    UNIQUE (engine, request_id, detector)
);
CREATE INDEX flags_by_request ON flags (request_id, engine);

CREATE TABLE requests (
    request_row INTEGER PRIMARY KEY AUTOINCREMENT,
    engine TEXT NOT NULL,
    request_id TEXT NOT NULL,
    verdict TEXT NOT NULL,
    n_prompt_tokens INTEGER NOT NULL,
    n_tokens_scored INTEGER NOT NULL,
    n_tokens_lost TEXT NOT NULL,    -- JSON: by reason
    statistics TEXT NOT NULL,       -- JSON: by detector; null before any token
    flagged_by TEXT NOT NULL,       -- JSON: list of detectors
    token_ids BLOB,                 -- of a flagged request; if kept
    token_ids_sha256 TEXT,
    bundle_digest TEXT NOT NULL,
    model TEXT NOT NULL,
    finished_at REAL NOT NULL,
    margins TEXT,                   -- JSON: by detector; null before any token
    p_value REAL,                   -- of the detector set; NULL if there is none
    is_discovery INTEGER NOT NULL DEFAULT 0,
    abstention TEXT,                -- why there is no answer; NULL if there is one
    n_tokens_shadowed INTEGER NOT NULL DEFAULT 0,
    adapter TEXT NOT NULL DEFAULT ''
);
CREATE INDEX requests_by_id ON requests (request_id, engine);

CREATE TABLE request_scores (       -- of flagged requests, when they finished
    request_row INTEGER NOT NULL REFERENCES requests (request_row),
    detector TEXT NOT NULL,
    scores BLOB NOT NULL,
    PRIMARY KEY (request_row, detector)
);

CREATE TABLE gaps (
    gap_id INTEGER PRIMARY KEY AUTOINCREMENT,
    engine TEXT NOT NULL,           -- empty: all of them
    reason TEXT NOT NULL,
    first_step INTEGER NOT NULL,
    last_step INTEGER NOT NULL,
    n_tokens INTEGER,               -- NULL: nobody counted
    began_at REAL NOT NULL,         -- sender's clock
    ended_at REAL NOT NULL,         -- sender's clock
    detail TEXT NOT NULL,
    recorded_at REAL NOT NULL
);

CREATE TABLE events (
    event_id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    engine TEXT NOT NULL,
    detail TEXT NOT NULL,
    at REAL NOT NULL
);

CREATE TABLE liveness (             -- when the daemon was last known to run
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at REAL NOT NULL
);
"""

_REVIEW = """
CREATE TABLE labels (               -- a reviewer's latest counts
    label_id INTEGER PRIMARY KEY AUTOINCREMENT,
    flag_id INTEGER NOT NULL,       -- 0: of the request as a whole
    engine TEXT NOT NULL,
    request_id TEXT NOT NULL,
    reviewer TEXT NOT NULL,
    label TEXT NOT NULL,            -- true, false, unsure
    note TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE INDEX labels_by_flag ON labels (flag_id, reviewer);
CREATE INDEX labels_by_request ON labels (request_id, engine);

CREATE TABLE views (                -- who saw a request's text or token ids
    view_id INTEGER PRIMARY KEY AUTOINCREMENT,
    engine TEXT NOT NULL,
    request_id TEXT NOT NULL,
    viewer TEXT NOT NULL,
    place TEXT NOT NULL,            -- page, command, rpc
    at REAL NOT NULL
);

CREATE TABLE exports (              -- who took records away
    export_id INTEGER PRIMARY KEY AUTOINCREMENT,
    who TEXT NOT NULL,
    format TEXT NOT NULL,
    query TEXT NOT NULL,
    n_records INTEGER NOT NULL,
    has_tokens INTEGER NOT NULL,
    at REAL NOT NULL
);

CREATE TABLE config_changes (
    change_id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    who TEXT NOT NULL,
    at REAL NOT NULL
);

CREATE INDEX flags_by_detector ON flags (detector, flag_id);
CREATE INDEX flags_by_time ON flags (flagged_at);
"""

SCHEMA = _FIRST + _REVIEW

UPGRADES = {
    1: """
ALTER TABLE requests ADD COLUMN margins TEXT;
ALTER TABLE requests ADD COLUMN p_value REAL;
ALTER TABLE requests ADD COLUMN is_discovery INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN abstention TEXT;
""",
    2: """
ALTER TABLE flags ADD COLUMN adapter TEXT NOT NULL DEFAULT '';
ALTER TABLE requests ADD COLUMN n_tokens_shadowed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN adapter TEXT NOT NULL DEFAULT '';
""",
    3: _REVIEW,
}
"""From each earlier version to the next. Columns are added; no row is changed."""
