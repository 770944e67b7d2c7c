-- The checkpoint, version 1. Rows are kept for ever: they are what prevents a second upload.
-- Times are milliseconds since the epoch, UTC. Sizes and offsets are bytes.

-- Facts about the database itself and the schedule.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,             -- 'last_cycle_ms': so that a missed cycle is caught up once;
                                        -- 'since SOURCE STORE': when this pair was first configured,
                                        -- so that a recorder that is down does not shorten `backfill`;
                                        -- 'stored in STORE': it has held clips of ours before;
                                        -- 'begin SOURCE STORE': a rebuild found clips since then, so
                                        -- the first cameras that are shown begin no later;
                                        -- 'unread STORE': a rebuild then could not list it, so older
                                        -- clips may lie there that are not on record;
                                        -- 'audit listed SOURCE <name>': when all was last listed;
                                        -- 'audit due STORE <name>': when this store was last audited;
                                        -- 'audit STORE <name>': what was found there, JSON
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row for each time an engine opened this database. A claim names the opening it was made in,
-- so whatever a dead process held is free again at the next opening, without any clean-up.
CREATE TABLE opening (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: an old claim can never look new
    opened_ms INTEGER NOT NULL                    -- for a person who reconstructs what happened
) STRICT;

-- Cameras ever seen. The name is the latest one, for display; a clip keeps the name it had when it
-- was planned, because that name is in its object key.
CREATE TABLE camera (
    id        INTEGER PRIMARY KEY,
    source    TEXT NOT NULL,            -- name of the source in the configuration
    source_id TEXT NOT NULL,            -- the source's stable id: survives a rename
    name      TEXT NOT NULL,
    oldest_ms  INTEGER,                 -- its oldest clip on record that the source still lists; NULL:
                                        -- nobody has looked. What begins earlier is most likely gone
    looked_ms  INTEGER,                 -- when that was looked up
    watched_ms INTEGER,                 -- when it was first looked up: how far `moved` can be trusted
    moved      REAL,                    -- seconds that `oldest_ms` moves on in a second, on average
    speed      REAL,                    -- the same as it is believed, for the order of the backlog:
                                        -- 0: nothing was ever seen to vanish, else at least 1
    UNIQUE (source, source_id)
) STRICT;

-- How far listings of a camera have come, for each store; a store added later starts anew. Servers
-- may hide an error behind an empty answer, so a stretch counts as listed for good only when two
-- passes have gone over it and both have shown a clip. The watermark is not stored: it is the
-- earlier of `listed_until_ms` and the start of the oldest waiting copy, so it cannot be wrong.
CREATE TABLE reach (
    camera          INTEGER NOT NULL REFERENCES camera,
    store           TEXT NOT NULL,      -- name of the store in the configuration
    begin_ms        INTEGER NOT NULL,   -- nothing that ended earlier is asked for; fixed at first sight
    proven_ms       INTEGER NOT NULL,   -- listed for good: the next window begins a lookback before
    seen_ms         INTEGER NOT NULL,   -- latest clip of the latest whole pass: proven if seen again
    listed_until_ms INTEGER NOT NULL,   -- where the latest pass without error, with a clip, ended
    whole_ms        INTEGER,            -- when all since `proven_ms` was last listed; NULL: never
    PRIMARY KEY (camera, store)
) STRICT, WITHOUT ROWID;

-- A clip as it was listed. A clip that was stored and later turned out to be longer is a row of its
-- own: the same start, a later end.
CREATE TABLE clip (
    id          INTEGER PRIMARY KEY,
    camera      INTEGER NOT NULL REFERENCES camera,
    source_id   TEXT NOT NULL,          -- the source's id; replaced while a waiting clip's id changes
    start_ms    INTEGER NOT NULL,
    end_ms      INTEGER,                -- NULL: the source does not say
    camera_name TEXT NOT NULL,          -- as it was when planned: object metadata and messages
    classes     TEXT NOT NULL,          -- detection classes, a JSON list: object metadata
    listed_ms   INTEGER NOT NULL        -- when it was planned: lag, and a clip's history
) STRICT;
-- Identity, and the planner's lookup by camera and start.
CREATE UNIQUE INDEX clip_identity ON clip (camera, start_ms, source_id, ifnull(end_ms, -1));

-- One clip in one store: the unit of work, and the only queue.
CREATE TABLE copy (
    id            INTEGER PRIMARY KEY,
    clip          INTEGER NOT NULL REFERENCES clip,
    store         TEXT NOT NULL,
    camera        INTEGER NOT NULL,     -- the clip's, repeated here for the backlog's index
    start_ms      INTEGER NOT NULL,     -- the clip's, repeated here for the backlog's index
    object_key    TEXT NOT NULL,        -- fixed when planned: retries and renames cannot move it
    state         TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'stored', 'set_aside')),
    claim         INTEGER,              -- the opening in which a worker holds it; NULL or old: free
    attempts      INTEGER NOT NULL DEFAULT 0,  -- failures so far: doubles the delay
    same_reason   INTEGER NOT NULL DEFAULT 0,  -- latest failures with one and the same reason: patience
    not_before_ms INTEGER NOT NULL DEFAULT 0,  -- a failed copy is not tried again earlier
    reason        TEXT,                 -- of the latest failure, or why it was set aside
    finished_ms   INTEGER,              -- when it was stored or set aside
    size          INTEGER,              -- of the stored object, as its store confirmed it
    crc32c        INTEGER,              -- likewise; NULL where a store keeps none
    generation    TEXT,                 -- the store's version of the object, where it has versions
    verified      INTEGER,              -- 1: the store's size and checksum were compared with ours;
                                        -- 0: created by us, but the answer was lost and may not be
                                        -- read, or known by its metadata alone (a rebuild)
    proven_ms     INTEGER,              -- when its bytes were last read back and were the right ones
    replaces      TEXT,                 -- generation of the corrupt object under its key, which the
                                        -- next upload may replace ('': it has none)
    UNIQUE (clip, store),
    UNIQUE (store, object_key)          -- a key belongs to one clip
) STRICT;
-- The oldest waiting copy of each camera, the watermark and the backlog's size.
CREATE INDEX copy_waiting ON copy (store, camera, start_ms, id, not_before_ms, claim)
    WHERE state = 'waiting';
-- When the next failed copy is due.
CREATE INDEX copy_due ON copy (store, not_before_ms) WHERE state = 'waiting';
CREATE INDEX copy_set_aside ON copy (finished_ms) WHERE state = 'set_aside';

-- What a verification last found wrong with a stored copy: until it is stored anew or found right.
CREATE TABLE finding (
    copy       INTEGER PRIMARY KEY REFERENCES copy,
    at_ms      INTEGER NOT NULL,
    what       TEXT NOT NULL,           -- 'missing', 'size', 'checksum', 'content'
    detail     TEXT NOT NULL,           -- for a person
    generation TEXT                     -- of the object that was found, where it has one
) STRICT;

-- The unfinished upload of a copy: at most a row a worker, so it is kept out of the wide table that
-- stays for ever. `session` can be a bearer secret: the database has mode 0600 and it is never logged.
CREATE TABLE upload (
    copy         INTEGER PRIMARY KEY REFERENCES copy,
    session      TEXT NOT NULL,         -- the store's handle; '': one request whose answer is unknown
    object_key   TEXT NOT NULL,         -- the session was made for this key
    content_type TEXT NOT NULL,         -- and this type
    created_ms   INTEGER NOT NULL,      -- sessions expire
    offset_bytes INTEGER NOT NULL,      -- confirmed by the store
    crc32c       INTEGER NOT NULL,      -- of the clip's bytes before the offset: proves the same stream
    inspection   TEXT NOT NULL,         -- the content check's state at the offset
    total_bytes  INTEGER,               -- set before the finishing request: verifies a lost answer
    total_crc32c INTEGER                -- likewise
) STRICT;

-- What happened to a copy, attempt by attempt (the latest of them): `clips` and `explain` show it.
CREATE TABLE attempt (
    id      INTEGER PRIMARY KEY,
    copy    INTEGER NOT NULL REFERENCES copy,
    at_ms   INTEGER NOT NULL,
    outcome TEXT NOT NULL,              -- 'stored', 'failed', 'set_aside', 'retried', 'found',
                                        -- 'found_wrong'
    reason  TEXT NOT NULL,
    bytes   INTEGER NOT NULL,           -- received from the source in this attempt
    seconds REAL NOT NULL
) STRICT;
CREATE INDEX attempt_copy ON attempt (copy, id);
