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
	// Generation is the one that it made. A Read of this generation may be older than the transaction: the
	// kernel counts before it switches to the new rules. So whoever keeps what he read judges by Own and
	// All, and reads again after each foreign change of the table.
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
		return nil, errors.Join(err, s.Close())
	}
	return w, nil
}

// Close ends it.
func (w *Watcher) Close() error {
	if err := w.socket.Close(); err != nil {
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
		t.Own = h.Port == w.conn.socket.Port
		return true
	case unix.NFT_MSG_NEWCHAIN:
		t.Translation = w.nat.add(payload) || t.Translation
	case unix.NFT_MSG_DELCHAIN:
		t.Translation = w.nat.remove(payload) || t.Translation
	}
	if !w.table.is(payload) {
		return false
	}
	object, deleted := objectOf(kind)
	if object == 0 {
		return false
	}
	t.All++
	t.Deleted = t.Deleted || deleted
	if len(t.Changes) < maxChanges {
		change := Change{Object: object, Deleted: deleted}
		change.Name, change.Handle = nameOf(object, payload)
		t.Changes = append(t.Changes, change)
	}
	return false
}

// objectOf reads the type of a message. The Object is 0 for one that changes none.
func objectOf(kind uint16) (o Object, deleted bool) {
	switch kind {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		return ObjectTable, kind == unix.NFT_MSG_DELTABLE
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		return ObjectChain, kind == unix.NFT_MSG_DELCHAIN
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		return ObjectRule, kind == unix.NFT_MSG_DELRULE
	case unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET:
		return ObjectSet, kind == unix.NFT_MSG_DELSET
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		return ObjectElement, kind == unix.NFT_MSG_DELSETELEM
	case unix.NFT_MSG_NEWOBJ, unix.NFT_MSG_NEWFLOWTABLE:
		return ObjectOther, false
	case unix.NFT_MSG_DELOBJ, unix.NFT_MSG_DELFLOWTABLE:
		return ObjectOther, true
	default:
		return 0, false
	}
}

// nameOf reads what Change says of an object.
func nameOf(o Object, payload []byte) (name string, handle uint64) {
	switch o {
	case ObjectTable:
		_, table := tableOf(payload)
		return string(table), 0
	case ObjectChain:
		return decodeChain(payload).Name, 0
	case ObjectRule:
		chain, rule := decodeRule(payload)
		return chain, rule.Handle
	case ObjectSet:
		return decodeSet(payload).Name, 0
	case ObjectElement:
		return decodeElements(payload, nil), 0
	case ObjectOther:
	}
	return "", 0
}
