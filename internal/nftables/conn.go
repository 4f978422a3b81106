package nftables

import (
	"context"
	"errors"
)

var (
	// ErrUnsupported says that the kernel lacks nf_tables or a part of it, and cannot load it.
	ErrUnsupported = errors.New("the kernel lacks a part of nf_tables")
	// ErrNoTable says that the table does not exist.
	ErrNoTable = errors.New("the table does not exist")
	// ErrChanged says that somebody has changed the ruleset in the meantime: read it again.
	ErrChanged = errors.New("the ruleset has changed meanwhile")
	// ErrLost says that notifications were lost: read the table again.
	ErrLost = errors.New("notifications of nf_tables were lost")
	// ErrTooLarge says that a table or a batch is larger than this package handles.
	ErrTooLarge = errors.New("too large")
)

// A Conn is a socket to nf_tables of the network namespace in which it was opened. Its methods may be
// called by several goroutines; they wait for each other.
type Conn struct{}

// Open opens a Conn. What it is used for needs CAP_NET_ADMIN.
func Open() (*Conn, error) { return nil, errors.ErrUnsupported }

// Close closes it.
func (c *Conn) Close() error { return errors.ErrUnsupported }

// Read reads a table, and the generation of the ruleset that it belongs to.
//
// The error is ErrNoTable if it does not exist (the generation is then as valid), ErrUnsupported,
// ErrChanged if the ruleset changed during each of several attempts, and ErrTooLarge.
func (c *Conn) Read(ctx context.Context, id TableID) (Table, Generation, error) {
	return Table{}, 0, errors.ErrUnsupported
}

// Commit does all operations in their order, or none. generation is what they were decided by: if
// the ruleset has another one by now, nothing happens, and the error is ErrChanged. 0 means any.
// It returns the generation that it made, 0 if none was named.
//
// The error names each operation that the kernel refused ([OpError]).
func (c *Conn) Commit(ctx context.Context, id TableID, ops []Op, generation Generation) (Generation, error) {
	return 0, errors.ErrUnsupported
}

// Check asks the kernel what Commit would answer to each operation, and changes nothing. It does not
// find what the kernel checks for the whole batch (loops of chains).
func (c *Conn) Check(ctx context.Context, id TableID, ops []Op) error { return errors.ErrUnsupported }

// An OpError is the kernel's answer to an operation.
type OpError struct {
	Table TableID
	Op    Op
	Err   error
}

// Error names the operation and the answer.
func (e *OpError) Error() string { return e.Op.String() + " in " + e.Table.String() + ": " + e.Err.Error() }

// Unwrap is the answer.
func (e *OpError) Unwrap() error { return e.Err }

// Translates says in which families any base chain of type nat stands, in all tables of the network
// namespace. Rules of iptables-legacy are not in nf_tables.
func (c *Conn) Translates(ctx context.Context) (Translation, error) {
	return Translation{}, errors.ErrUnsupported
}

// Watch subscribes to changes of the ruleset: every transaction after Watch has returned is seen, and
// perhaps some before. Use a Watcher in one goroutine.
func (c *Conn) Watch(ctx context.Context, id TableID) (*Watcher, error) {
	return nil, errors.ErrUnsupported
}

// A Watcher hears of every transaction.
type Watcher struct{}

// Close ends it.
func (w *Watcher) Close() error { return errors.ErrUnsupported }

// Next waits for the next transaction, whoever made it and whatever table it is about.
//
// The error is ErrLost if notifications were lost: the caller reads the table and Translates
// again, and goes on with Next.
func (w *Watcher) Next(ctx context.Context) (Transaction, error) {
	return Transaction{}, errors.ErrUnsupported
}

// A Transaction is one change of the ruleset.
type Transaction struct {
	// Generation is the one that it made.
	Generation Generation
	// Own is true for a transaction of the Conn that made the Watcher.
	Own bool
	// Port is the netlink port of the one who made it. PID and Program are its process number in the
	// first PID namespace, and the name of the thread (comm): whoever it is chooses that name, so it is
	// for messages only.
	Port    uint32
	PID     uint32
	Program string
	// Changes are those of the watched table, the first 32 of them; All counts them.
	Changes []Change
	All     int
	// Deleted is true if anything was deleted of the watched table, or itself.
	Deleted bool
	// Translation is true if a base chain of type nat came or went, in any table: ask Translates.
	Translation bool
}

// A Change is one object of the table that came, changed or went.
type Change struct {
	Object  Object
	Deleted bool
	// Name is the chain of a rule, the set of an element, else the name of the object.
	Name string
	// Handle is that of a rule, else 0.
	Handle uint64
}

// An Object is a kind of object of a table.
type Object uint8

// The kinds.
const (
	ObjectTable Object = iota + 1
	ObjectChain
	ObjectRule
	ObjectSet
	ObjectElement
	// ObjectOther is a flowtable or a named object.
	ObjectOther
)
