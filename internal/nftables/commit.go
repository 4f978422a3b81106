package nftables

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

// maxBatch is the longest batch: more than 100,000 elements.
const maxBatch = 16 << 20

// wholeBatch is the number of the message that begins a batch, counted from the first operation.
const wholeBatch = ^uint32(0)

// maxErrors is how many refused operations an error names.
const maxErrors = 16

// Commit does all operations in their order, or none. generation is what they were decided by: if
// the ruleset has another one by now, nothing happens, and the error is ErrChanged. 0 means any.
// It returns the generation that it made, 0 if none was named.
//
// The error names each operation that the kernel refused ([OpError]), up to 16 of them.
func (c *Conn) Commit(ctx context.Context, id TableID, ops []Op, generation Generation) (Generation, error) {
	if len(ops) == 0 {
		return generation, nil
	}
	if err := c.send(ctx, id, ops, generation, true); err != nil {
		return 0, fmt.Errorf("changing table %s: %w", id, err)
	}
	if generation == 0 {
		return 0, nil
	}
	// nf_tables_commit increments it, and leaves out 0.
	return max(generation+1, 1), nil
}

// Check asks the kernel what Commit would answer to each operation, and changes nothing. It does not
// find what the kernel checks for the whole batch (loops of chains).
func (c *Conn) Check(ctx context.Context, id TableID, ops []Op) error {
	if len(ops) == 0 {
		return nil
	}
	if err := c.send(ctx, id, ops, 0, false); err != nil {
		return fmt.Errorf("trying changes of table %s: %w", id, err)
	}
	return nil
}

func (c *Conn) send(ctx context.Context, id TableID, ops []Op, generation Generation, finished bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b, err := encodeBatch(c.out.B[:0], c.seq+1, id, ops, generation, finished)
	if err != nil {
		return err
	}
	c.seq += uint32(len(b.sent)) + 2 //nolint:gosec // a batch is bounded
	c.out.B = b.B[:0]
	if cap(c.out.B) > datagramBuffer {
		c.out.B = nil
	}
	if err := c.socket.write(b.B); err != nil {
		return err
	}
	return c.answers(ctx, b)
}

// answers reads what the kernel said to a batch. It has said all before the batch was sent.
func (c *Conn) answers(ctx context.Context, b *batch) error {
	var refused []error
	more := 0
	done, lost := false, false
	for {
		datagram, err := c.socket.try()
		switch {
		case errors.Is(err, unix.EAGAIN):
			if more > 0 {
				refused = append(refused, fmt.Errorf("and %d more operations were refused", more))
			}
			if lost {
				refused = append(refused, errors.New("some answers of the kernel were lost"))
			}
			if len(refused) == 0 && !done {
				return c.unanswered(ctx)
			}
			return errors.Join(refused...)
		case errors.Is(err, unix.ENOBUFS):
			// So many operations were refused that not all answers found place.
			lost = true
			continue
		case err != nil:
			return err
		}
		for len(datagram) > 0 {
			var h nlmsg.Header
			var payload []byte
			if h, payload, datagram, err = nlmsg.Next(datagram); err != nil {
				return err
			}
			number := h.Seq - b.first
			if h.Kind != unix.NLMSG_ERROR || number != wholeBatch && number >= uint32(len(b.sent)) { //nolint:gosec // a batch is bounded
				continue
			}
			err := b.verdictOf(number, h, payload)
			switch {
			case err == nil:
				done = done || int(number) == len(b.sent)-1
			case len(refused) < maxErrors:
				refused = append(refused, err)
			default:
				more++
			}
		}
	}
}

// unanswered is the error for a batch without any answer. It cannot happen: the kernel queues them
// before sendto(2) returns.
func (c *Conn) unanswered(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.New("the kernel has not answered")
}

// verdictOf reads the answer to a message.
func (b *batch) verdictOf(number uint32, h nlmsg.Header, payload []byte) error {
	err := nlmsg.ErrorOf(h, payload)
	if err == nil {
		return nil
	}
	if number == wholeBatch {
		switch {
		case errors.Is(err, unix.ERESTART):
			return ErrChanged
		case errors.Is(err, unix.EOPNOTSUPP):
			return &lack{"nf_tables", "nf_tables", err}
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("%w; to fix: give CAP_NET_ADMIN", err)
		default:
			return err
		}
	}
	sent := b.sent[number]
	return &OpError{b.table, sent.op, b.explain(sent, int(nlmsg.BadAttribute(h, payload)), err)}
}

// explain says what the kernel complains of: a table, a chain, a set or an element, or a part of itself
// that it lacks. bad is where the attribute stands that it names, 0 if it names none.
func (b *batch) explain(s sent, bad int, err error) error {
	if _, ok := s.op.(AddTable); ok && errors.Is(err, unix.EOPNOTSUPP) {
		return &lack{"nf_tables for tables of " + b.table.Family.String(), "nf_tables", err}
	}
	const first = unix.SizeofNlMsghdr + sizeofGenMsg
	absent := errors.Is(err, unix.ENOENT)
	if absent && bad == first {
		return ErrNoTable
	}
	if bad <= first || s.start+bad >= len(b.B) {
		return err
	}
	a := nlmsg.Attributes{Rest: b.B[s.start+bad:]}
	if !a.Next() {
		return err
	}
	switch s.op.(type) {
	case AddChain:
		if absent && a.Kind == unix.NFTA_CHAIN_TYPE {
			return &lack{"nf_tables' chain type " + a.Text(), "nft_chain_" + a.Text(), err}
		}
	case AddElements, DeleteElements:
		if e := decodeElement(a.Value); a.Kind == unix.NFTA_LIST_ELEM && !e.Unknown {
			return fmt.Errorf("element %s: %w", e, err)
		}
	case AddRule, InsertRule:
		// An expression complains of itself; everything else stands before the list of them.
		if e := (nlmsg.Attributes{Rest: a.Value}); absent && a.Kind == unix.NFTA_LIST_ELEM && e.Next() && e.Kind == unix.NFTA_EXPR_NAME {
			switch name := e.Text(); name {
			case "lookup":
				return fmt.Errorf("the set does not exist: %w", err)
			case "immediate":
				return fmt.Errorf("the chain of a verdict does not exist: %w", err)
			default:
				return &lack{"nf_tables' expression " + name, "nft_" + name, err}
			}
		}
	}
	return err
}
