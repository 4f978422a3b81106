package kernel

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

const (
	// A dump comes in pieces of at most 32 KiB (netlink_dump in
	// net/netlink/af_netlink.c); a notification is one object.
	bufferSize = 64 << 10
	// requestReceiveBuffer has to hold the answers to one batch: the kernel
	// drops an answer that finds no room.
	requestReceiveBuffer = 4 << 20
	// interruptions is how often a dump that was overtaken by a change is
	// started again.
	interruptions = 20
)

// A requester asks the kernel, one question at a time.
type requester struct {
	mu     sync.Mutex
	socket *socket
	seq    uint32
	out    nlmsg.Builder
	in     []byte
}

func newRequester() (*requester, error) {
	s, err := openSocket(requestReceiveBuffer)
	if err != nil {
		return nil, err
	}
	return &requester{socket: s, in: make([]byte, bufferSize)}, nil
}

func (r *requester) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.socket.Close()
}

// errBudget ends a dump whose caller has seen enough.
var errBudget = errors.New("more routes than worth reading")

// A dump is one question whose answer is a list.
type dump struct {
	what string
	kind uint16
	// body writes what follows the netlink header.
	body func(*nlmsg.Builder)
	// restart is called before the first item, again if the dump was
	// interrupted and starts over.
	restart func()
	// each gets every item; false ends the dump with errBudget.
	each func(payload []byte) bool
}

// dump asks and retries while changes interrupt the answer
// (NLM_F_DUMP_INTR, nl_dump_check_consistent in include/net/netlink.h).
func (r *requester) dump(ctx context.Context, d dump) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range interruptions {
		d.restart()
		whole, err := r.dumpOnce(ctx, d)
		if err != nil {
			return fmt.Errorf("listing %s: %w", d.what, err)
		}
		if whole {
			return nil
		}
	}
	return fmt.Errorf("listing %s: interrupted %d times: %w", d.what, interruptions, unix.EINTR)
}

func (r *requester) dumpOnce(ctx context.Context, d dump) (whole bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, context.Cause(ctx)
	}
	r.seq++
	r.out.B = r.out.B[:0]
	r.out.Begin(d.kind, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, r.seq)
	d.body(&r.out)
	r.out.End()
	if err := r.socket.Send(r.out.B); err != nil {
		return false, err
	}
	whole = true
	finished := false
	// A dump left half read would answer the next one with EBUSY.
	defer func() {
		if !finished {
			err = errors.Join(err, r.reopen())
		}
	}()
	for {
		n, err := r.socket.receive(ctx, r.in)
		if err != nil {
			return false, err
		}
		for rest := r.in[:n]; len(rest) > 0; {
			var h nlmsg.Header
			var payload []byte
			if h, payload, rest, err = nlmsg.Next(rest); err != nil {
				return false, err
			}
			if h.Seq != r.seq {
				continue
			}
			if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
				whole = false
			}
			switch h.Kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				finished = true
				if len(payload) < 4 {
					return whole, nil
				}
				return whole, nlmsg.ErrorOf(h, payload)
			case unix.NLMSG_NOOP:
			case unix.NLMSG_OVERRUN:
				return false, unix.ENOBUFS
			default:
				if !d.each(payload) {
					return false, errBudget
				}
			}
		}
	}
}

func (r *requester) reopen() error {
	s, err := openSocket(requestReceiveBuffer)
	if err != nil {
		return err
	}
	old := r.socket
	r.socket = s
	return old.Close()
}

// barrier returns when every change of the network configuration that was
// under way has ended. Changes hold RTNL and announce themselves before they
// are complete (__inet_del_ifa in net/ipv4/devinet.c sends RTM_DELADDR, then
// flushes routes), while dumps no longer hold it (6.9 and later): a dump taken
// right after an announcement could still list what is about to go. A request
// about an interface that cannot exist takes RTNL and does nothing.
func (r *requester) barrier(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	r.out.B = r.out.B[:0]
	r.out.Begin(unix.RTM_SETLINK, unix.NLM_F_REQUEST|unix.NLM_F_ACK, r.seq)
	r.out.Bytes(unix.AF_UNSPEC, 0, 0, 0)
	r.out.Word(1<<31 - 1)
	r.out.Word(0)
	r.out.Word(0)
	r.out.End()
	if err := r.socket.Send(r.out.B); err != nil {
		return fmt.Errorf("waiting for changes under way: %w", err)
	}
	for {
		n, err := r.socket.receive(ctx, r.in)
		if err != nil {
			return fmt.Errorf("waiting for changes under way: %w", err)
		}
		if h, _, _, err := nlmsg.Next(r.in[:n]); err != nil {
			return err
		} else if h.Seq == r.seq {
			// The error itself says nothing: ENODEV, or EPERM for whoever is
			// not root and only looks.
			return nil
		}
	}
}
