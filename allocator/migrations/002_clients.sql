-- Numbers that are leased to clients (kind 2), which have an owner and expire.
-- What a number is leased for: the prefix of a link as before, the address or
-- the identifier of a client.
ALTER TABLE tables RENAME COLUMN prefix TO subject;
-- The user who may renew and release it.
ALTER TABLE tables ADD COLUMN owner INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tables ADD COLUMN tag TEXT NOT NULL DEFAULT '';
-- When a lease ends: in seconds of CLOCK_MONOTONIC_RAW of the boot with that id.
-- After a reboot that clock starts anew and all clients are gone.
ALTER TABLE tables ADD COLUMN boot TEXT NOT NULL DEFAULT '';
ALTER TABLE tables ADD COLUMN expires_at INTEGER NOT NULL DEFAULT 0;

CREATE UNIQUE INDEX tables_client ON tables (interface, family, subject) WHERE kind = 2;
