"""The tables of the record."""

VERSION = 4
"""In ``PRAGMA user_version``. A file with a later one is refused, not changed."""

# Times are seconds since the epoch by the daemon's clock unless said. Rows are only
# ever added, and taken away from the old end by retention; each is a leaf of the log.
# `payload` is sealed with the key in `key_slot` of the key file, -1 for none.
SCHEMA = """
CREATE TABLE flags (
    flag_id INTEGER PRIMARY KEY,
    engine TEXT NOT NULL,
    request_id TEXT NOT NULL,
    detector TEXT NOT NULL,
    score REAL NOT NULL,
    threshold REAL NOT NULL,
    position INTEGER NOT NULL,
    bank_digest TEXT NOT NULL,
    bundle_digest TEXT NOT NULL,
    model TEXT NOT NULL,
    adapter TEXT NOT NULL,          -- of LoRA
    flagged_at REAL NOT NULL,
    key_slot INTEGER NOT NULL,
    payload BLOB NOT NULL,          -- what was seen when it was flagged
    -- A sender repeats what a killed daemon had not acknowledged. vLLM's request
    -- ids are used once by an engine.
    UNIQUE (request_id, engine, detector)
);
CREATE INDEX flags_by_detector ON flags (detector, flag_id);
CREATE INDEX flags_by_time ON flags (flagged_at);

CREATE TABLE requests (
    request_row INTEGER PRIMARY KEY,
    engine TEXT NOT NULL,
    request_id TEXT NOT NULL,
    verdict TEXT NOT NULL,
    n_prompt_tokens INTEGER NOT NULL,
    n_tokens_scored INTEGER NOT NULL,
    n_tokens_shadowed INTEGER NOT NULL,
    n_tokens_lost TEXT NOT NULL,    -- JSON: by reason
    statistics TEXT NOT NULL,       -- JSON: by detector; null before any token
    margins TEXT,                   -- JSON: by detector; null before any token
    flagged_by TEXT NOT NULL,       -- JSON: list of detectors
    p_value REAL,                   -- of the detector set; NULL if there is none
    is_discovery INTEGER NOT NULL,
    abstention TEXT,                -- why there is no answer; NULL if there is one
    bundle_digest TEXT NOT NULL,
    model TEXT NOT NULL,
    adapter TEXT NOT NULL,
    finished_at REAL NOT NULL,
    key_slot INTEGER NOT NULL,
    payload BLOB NOT NULL           -- of a flagged request: all of it
);
CREATE INDEX requests_by_id ON requests (request_id, engine);

CREATE TABLE gaps (
    gap_id INTEGER PRIMARY KEY,
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
    event_id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    engine TEXT NOT NULL,
    detail TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE INDEX events_by_kind ON events (kind);

CREATE TABLE labels (               -- a reviewer's latest counts
    label_id INTEGER PRIMARY KEY,
    flag_id INTEGER NOT NULL,       -- 0: of the request as a whole
    engine TEXT NOT NULL,
    request_id TEXT NOT NULL,
    reviewer TEXT NOT NULL,
    label TEXT NOT NULL,            -- true, false, unsure
    at REAL NOT NULL,
    key_slot INTEGER NOT NULL,
    payload BLOB NOT NULL           -- the note: it may quote the request
);
CREATE INDEX labels_by_flag ON labels (flag_id, reviewer);
CREATE INDEX labels_by_request ON labels (request_id, engine);

CREATE TABLE views (                -- who saw a request's text or token ids
    view_id INTEGER PRIMARY KEY,
    engine TEXT NOT NULL,
    request_id TEXT NOT NULL,
    viewer TEXT NOT NULL,
    place TEXT NOT NULL,            -- page, command, rpc
    at REAL NOT NULL
);

CREATE TABLE exports (              -- who took records away
    export_id INTEGER PRIMARY KEY,
    who TEXT NOT NULL,
    format TEXT NOT NULL,
    query TEXT NOT NULL,
    n_records INTEGER NOT NULL,
    has_tokens INTEGER NOT NULL,
    at REAL NOT NULL
);

CREATE TABLE config_changes (
    change_id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    who TEXT NOT NULL,
    at REAL NOT NULL
);

CREATE TABLE log (                  -- stays when retention takes the rows
    leaf INTEGER PRIMARY KEY,       -- from 0, without a gap
    kind INTEGER NOT NULL,          -- see `leaves.TABLES`
    row INTEGER NOT NULL,
    hash BLOB NOT NULL
);

CREATE TABLE log_state (            -- a single row
    id INTEGER PRIMARY KEY CHECK (id = 1),
    size INTEGER NOT NULL,
    peaks BLOB NOT NULL,            -- of the compact range
    next_rows TEXT NOT NULL,        -- JSON: by table, the id that its next row gets
    checkpoint TEXT NOT NULL,       -- signed, of this size
    signed_at REAL NOT NULL,
    is_scrubbed INTEGER NOT NULL    -- whether nothing is left of an earlier version
);

CREATE TABLE checkpoints (          -- some of those that were signed
    size INTEGER PRIMARY KEY,
    checkpoint TEXT NOT NULL,
    signed_at REAL NOT NULL
);

CREATE TABLE liveness (             -- when the daemon was last known to run
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at REAL NOT NULL
);
"""

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
}
"""From versions 1 and 2 to the next; `migrating` goes on from 3."""
