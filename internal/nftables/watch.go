package nftables

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

// maxChanges is how many changes a Transaction names.
const maxChanges = 32

// maxDrained bounds how much is thrown away at once after a loss.
const maxDrained = 1 << 14

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

// String is the word of nft(8).
func (o Object) String() string {
	names := [...]string{ObjectTable: "table", ObjectChain: "chain", ObjectRule: "rule", ObjectSet: "set", ObjectElement: "element", ObjectOther: "object"}
	if int(o) < len(names) && names[o] != "" {
		return names[o]
	}
	return fmt.Sprintf("object %d", uint8(o))
}

// A Watcher hears of every transaction. Use it in one goroutine.
type Watcher struct {
	conn   *Conn
	socket *socket
	table  TableID
	nat    natChains
	// stale is true after a loss until nat has been read again.
	stale bool
	// rest is what is left of the datagram that was read last.
	rest    []byte
	pending Transaction
}

// Watch subscribes to changes of the ruleset: every transaction after Watch has returned is seen, and
// perhaps some before.
func (c *Conn) Watch(ctx context.Context, id TableID) (*Watcher, error) {
	s, err := openSocket(notificationsBuffer, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, err
	}
	w := &Watcher{conn: c, socket: s, table: id}
	if err := w.readNAT(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return w, nil
}

// Close ends it.
func (w *Watcher) Close() error {
	if err := w.socket.close(); err != nil {
		return fmt.Errorf("closing the socket to nf_tables: %w", err)
	}
	return nil
}

// readNAT lists the chains of type nat. Notifications that were queued before and are read afterwards
// do no harm: they name chains by their handles, which are never used twice.
func (w *Watcher) readNAT(ctx context.Context) (err error) {
	w.conn.mu.Lock()
	defer w.conn.mu.Unlock()
	if w.nat, err = w.conn.natChains(ctx); err != nil {
		return fmt.Errorf("looking for chains that translate addresses: %w", err)
	}
	return nil
}

// Next waits for the next transaction, whoever made it and whatever table it is about.
//
// The error is ErrLost if notifications were lost: the caller reads the table and Translates
// again, and goes on with Next.
func (w *Watcher) Next(ctx context.Context) (Transaction, error) {
	for {
		if w.stale {
			// Whatever waits is older than the list that follows, and than what the caller reads.
			w.drain()
			if err := w.readNAT(ctx); err != nil {
				return Transaction{}, errors.Join(ErrLost, err)
			}
			w.stale = false
			return Transaction{}, ErrLost
		}
		for len(w.rest) > 0 {
			h, payload, rest, err := nlmsg.Next(w.rest)
			w.rest = rest
			if err != nil {
				w.stale = true
				break
			}
			if w.take(h, payload) {
				t := w.pending
				w.pending = Transaction{}
				return t, nil
			}
		}
		if w.stale {
			continue
		}
		b, err := w.socket.receive(ctx)
		switch {
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EMSGSIZE):
			w.stale = true
		case err != nil:
			if ctx.Err() != nil {
				return Transaction{}, context.Cause(ctx)
			}
			return Transaction{}, fmt.Errorf("reading notifications of nf_tables: %w", err)
		default:
			w.rest = b
		}
	}
}

// drain throws away what waits, and what a transaction has collected until now.
func (w *Watcher) drain() {
	w.rest, w.pending = nil, Transaction{}
	for range maxDrained {
		if _, err := w.socket.try(); errors.Is(err, unix.EAGAIN) {
			return
		}
	}
}

// take takes a message, and reports whether it ends a transaction.
func (w *Watcher) take(h nlmsg.Header, payload []byte) bool {
	if h.Kind>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return false
	}
	t := &w.pending
	kind := h.Kind & 0xff
	switch kind {
	case unix.NFT_MSG_NEWGEN:
		t.Generation, t.PID, t.Program = decodeGeneration(payload)
		t.Port = h.Port
		t.Own = h.Port == w.conn.socket.port
		return true
	case unix.NFT_MSG_NEWCHAIN:
		t.Translation = w.nat.add(payload) || t.Translation
	case unix.NFT_MSG_DELCHAIN:
		t.Translation = w.nat.remove(payload) || t.Translation
	}
	if !w.table.is(payload) {
		return false
	}
	change := changeOf(kind, payload)
	if change.Object == 0 {
		return false
	}
	t.All++
	t.Deleted = t.Deleted || change.Deleted
	if len(t.Changes) < maxChanges {
		t.Changes = append(t.Changes, change)
	}
	return false
}

// changeOf reads what a message says about an object. Its Object is 0 for other messages.
func changeOf(kind uint16, payload []byte) (c Change) {
	switch kind {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		_, name := tableOf(payload)
		c = Change{Object: ObjectTable, Deleted: kind == unix.NFT_MSG_DELTABLE, Name: string(name)}
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		c = Change{Object: ObjectChain, Deleted: kind == unix.NFT_MSG_DELCHAIN, Name: decodeChain(payload).Name}
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain, rule := decodeRule(payload)
		c = Change{Object: ObjectRule, Deleted: kind == unix.NFT_MSG_DELRULE, Name: chain, Handle: rule.Handle}
	case unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET:
		c = Change{Object: ObjectSet, Deleted: kind == unix.NFT_MSG_DELSET, Name: decodeSet(payload).Name}
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		c = Change{Object: ObjectElement, Deleted: kind == unix.NFT_MSG_DELSETELEM, Name: decodeElements(payload, nil)}
	case unix.NFT_MSG_NEWOBJ, unix.NFT_MSG_NEWFLOWTABLE:
		c = Change{Object: ObjectOther}
	case unix.NFT_MSG_DELOBJ, unix.NFT_MSG_DELFLOWTABLE:
		c = Change{Object: ObjectOther, Deleted: true}
	}
	return c
}
