-- One row for one routing table number, whoever holds it: the primary key is
-- what guarantees that nobody shares a number. Later kinds of holder add columns
-- and an index of their own and stay in this table.
CREATE TABLE tables (
    number        INTEGER PRIMARY KEY CHECK (number BETWEEN 1 AND 4294967295),
    -- 1: a link. The rows of other kinds are not interpreted by this release.
    kind          INTEGER NOT NULL,
    -- AF_INET 2, AF_INET6 10.
    family        INTEGER NOT NULL,
    interface     TEXT NOT NULL,
    -- Masked, as 192.0.2.0/24.
    prefix        TEXT NOT NULL,
    -- Milliseconds since 1970, for people; nothing is decided by them.
    created_at    INTEGER NOT NULL,
    -- NULL while the lease is held, as of the last time it was written.
    released_at   INTEGER,
    -- Counts releases: the lowest was released the longest ago.
    release_order INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX tables_link ON tables (interface, family, prefix) WHERE kind = 1;
