package nftables

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

var (
	// ErrUnsupported says that the kernel lacks nf_tables or a part of it, and cannot load it: see Lacks.
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
type Conn struct {
	mu     sync.Mutex
	socket *socket
	seq    uint32
	out    nlmsg.Builder
}

// Open opens a Conn. What it is used for needs CAP_NET_ADMIN, and makes the kernel load nf_tables.
//
// The error is ErrUnsupported if the kernel has no nfnetlink.
func Open() (*Conn, error) {
	s, err := openSocket(answersBuffer)
	if err != nil {
		return nil, err
	}
	return &Conn{socket: s}, nil
}

// Close closes it.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.socket.Close(); err != nil {
		return fmt.Errorf("closing the socket to nf_tables: %w", err)
	}
	return nil
}

// An OpError is the kernel's answer to an operation.
type OpError struct {
	Table TableID
	Op    Op
	Err   error
}

// Error names the operation and the answer.
func (e *OpError) Error() string {
	return e.Op.String() + " in " + e.Table.String() + ": " + e.Err.Error()
}

// Unwrap is the answer.
func (e *OpError) Unwrap() error { return e.Err }

// ask sends one request.
func (c *Conn) ask(kind, flags uint16, f Family, attributes func(*nlmsg.Builder)) error {
	c.seq++
	c.out.B = c.out.B[:0]
	c.out.Begin(message(kind), unix.NLM_F_REQUEST|flags, c.seq)
	genMsg(&c.out, f, 0)
	if attributes != nil {
		attributes(&c.out)
	}
	c.out.End()
	return c.socket.write(c.out.B)
}

// one asks for one object, and gives the answer to read. The error is ENOENT if it does not exist.
func (c *Conn) one(ctx context.Context, kind uint16, f Family, attributes func(*nlmsg.Builder), read func([]byte)) error {
	if err := c.ask(kind, 0, f, attributes); err != nil {
		return err
	}
	for {
		b, err := c.socket.receive(ctx)
		if err != nil {
			return err
		}
		for len(b) > 0 {
			var h nlmsg.Header
			var payload []byte
			if h, payload, b, err = nlmsg.Next(b); err != nil {
				return err
			}
			switch {
			case h.Seq != c.seq:
			case h.Kind == unix.NLMSG_ERROR:
				return absent(nlmsg.ErrorOf(h, payload))
			default:
				read(payload)
				return nil
			}
		}
	}
}

// errInterrupted says that a list is of no single moment (NLM_F_DUMP_INTR).
var errInterrupted = errors.New("the ruleset changed while it was listed")

// list asks for a list, and gives each message of it to read until that returns an error.
func (c *Conn) list(ctx context.Context, kind uint16, f Family, attributes func(*nlmsg.Builder), read func([]byte) error) error {
	if err := c.ask(kind, unix.NLM_F_DUMP, f, attributes); err != nil {
		return err
	}
	// A list that was left half read would answer the next request with EBUSY: it is read to its end,
	// which the kernel has without anybody's help.
	var failed error
	interrupted := false
	for {
		b, err := c.socket.receive(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		if failed == nil && ctx.Err() != nil {
			failed = context.Cause(ctx)
		}
		for len(b) > 0 {
			var h nlmsg.Header
			var payload []byte
			if h, payload, b, err = nlmsg.Next(b); err != nil {
				return err
			}
			if h.Seq != c.seq {
				continue
			}
			interrupted = interrupted || h.Flags&unix.NLM_F_DUMP_INTR != 0
			switch h.Kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				err := absent(nlmsg.ErrorOf(h, payload))
				switch {
				case failed != nil:
					return failed
				case err == nil && interrupted, errors.Is(err, unix.EINTR):
					return errInterrupted
				default:
					return err
				}
			default:
				if failed == nil {
					failed = read(payload)
				}
			}
		}
	}
}

// absent names what a kernel without nf_tables answers (nfnetlink_rcv_msg in
// net/netfilter/nfnetlink.c): no request of this package is invalid otherwise.
func absent(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return &lack{"nf_tables", "nf_tables", err}
	}
	return err
}
