package nftables

import (
	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/internal/nlsocket"
)

// Port is the netlink port of a watcher.
func Port(w *Watcher) uint32 { return w.socket.Port }

// Encode writes a batch for a table, and returns its messages.
func Encode(id TableID, ops ...Op) ([]byte, error) {
	b, err := encodeBatch(nil, 1, id, ops, 7, true)
	if err != nil {
		return nil, err
	}
	return b.B, nil
}

// Decoded is what all decoders read in one message.
type Decoded struct {
	Table    Table
	Chain    Chain
	Set      Set
	InSet    string
	Elements []Element
	InChain  string
	Rule     Rule
	Program  string
}

// Decode reads a message by every decoder.
func Decode(payload []byte) (d Decoded) {
	d.Table, d.Chain, d.Set = decodeTable(payload), decodeChain(payload), decodeSet(payload)
	d.InSet = decodeElements(payload, func(e Element) { d.Elements = append(d.Elements, e) })
	d.InChain, d.Rule = decodeRule(payload)
	_, _, d.Program = decodeGeneration(payload)
	return d
}

// Transactions are what a Watcher of a table reads in a datagram, and what is not complete yet.
func Transactions(id TableID, datagram []byte) (all []Transaction, rest Transaction) {
	w := Watcher{conn: &Conn{socket: &socket{Socket: &nlsocket.Socket{Port: 7}}}, table: id, nat: natChains{ids: map[chainID]struct{}{}, all: true}}
	for len(datagram) > 0 {
		h, payload, more, err := nlmsg.Next(datagram)
		if err != nil {
			break
		}
		if w.take(h, payload) {
			all = append(all, w.pending)
			w.pending = Transaction{}
		}
		datagram = more
	}
	return all, w.pending
}

// Skip makes a Watcher of a table take a datagram each time that the function is called.
func Skip(id TableID, datagram []byte) func() {
	w := Watcher{conn: &Conn{socket: &socket{Socket: &nlsocket.Socket{Port: 7}}}, table: id, nat: natChains{ids: map[chainID]struct{}{}, all: true}}
	return func() {
		for b := datagram; len(b) > 0; {
			h, payload, rest, err := nlmsg.Next(b)
			if err != nil {
				return
			}
			w.take(h, payload)
			b = rest
		}
	}
}

// Explain is what an error of the kernel about an attribute of the last of some operations says.
func Explain(id TableID, errno unix.Errno, bad int, ops ...Op) error {
	b, err := encodeBatch(nil, 1, id, ops, 0, true)
	if err != nil {
		return err
	}
	return b.explain(b.sent[len(b.sent)-1], bad, errno)
}
