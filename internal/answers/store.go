package answers

import (
	"context"
	"errors"
	"fmt"

	"multihomed/internal/nftables"
	"multihomed/routing/answers"
)

// TableID is the table of multihomed.
var TableID = nftables.TableID{Family: nftables.INet, Name: "multihomed"} //nolint:gochecknoglobals // a constant in all but name

// A Store is the table in the network namespace of a [nftables.Conn]. Its methods may be called by several
// goroutines.
type Store struct{ conn *nftables.Conn }

// NewStore returns the Store of a Conn, which the caller closes. A Watcher of the same Conn tells the
// changes of the Store from those of others.
func NewStore(conn *nftables.Conn) *Store { return &Store{conn} }

// Read reads the table, and the generation of the ruleset to which it belongs. If there is none, that is
// no error. The errors are those of [nftables.Conn.Read].
func (s *Store) Read(ctx context.Context) (answers.Held, nftables.Generation, error) {
	table, generation, err := s.conn.Read(ctx, TableID)
	switch {
	case errors.Is(err, nftables.ErrNoTable):
		return answers.Held{}, generation, nil
	case errors.Is(err, nftables.ErrTooLarge):
		return answers.Held{}, generation, fmt.Errorf("reading table %s, which somebody else has filled: %w; to fix: nft delete table %s", TableID, err, TableID)
	case err != nil:
		return answers.Held{}, generation, fmt.Errorf("reading table %s: %w", TableID, err)
	}
	return decodeTable(table), generation, nil
}

// Write does the operations of one phase, all or none, if the ruleset still has the generation. It
// returns the generation that it made, by which the next phase can be written; without operations, the
// same one. The errors are those of [nftables.Conn.Commit]: after [nftables.ErrChanged] and any other
// one, read again.
func (s *Store) Write(ctx context.Context, ops []answers.Op, generation nftables.Generation) (nftables.Generation, error) {
	if len(ops) == 0 {
		return generation, nil
	}
	made, err := s.conn.Commit(ctx, TableID, opsOf(ops), generation)
	if err != nil {
		return made, fmt.Errorf("changing table %s, %s: %w", TableID, ops[0].Phase, err)
	}
	return made, nil
}

// Delete deletes the table with everything in it, also what somebody else put there, whatever the ruleset
// is. If there is none, that is no error.
func (s *Store) Delete(ctx context.Context) error {
	_, err := s.conn.Commit(ctx, TableID, []nftables.Op{nftables.DeleteTable{}}, 0)
	if err != nil && !errors.Is(err, nftables.ErrNoTable) {
		return fmt.Errorf("deleting table %s: %w", TableID, err)
	}
	return nil
}

// Exists reports whether there is a table. A kernel without nf_tables has none.
func (s *Store) Exists(ctx context.Context) (bool, error) {
	_, _, err := s.conn.Read(ctx, TableID)
	switch {
	case err == nil, errors.Is(err, nftables.ErrTooLarge):
		return true, nil
	case errors.Is(err, nftables.ErrNoTable), errors.Is(err, nftables.ErrUnsupported):
		return false, nil
	default:
		return false, fmt.Errorf("looking for table %s: %w", TableID, err)
	}
}
