-- The tables of version 1, as that version made them.
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
    finished_at REAL NOT NULL
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
