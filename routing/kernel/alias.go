package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// This file gives the loopback interface a second name while rules of ours need one: see
// [routing.LoopbackAlias].

const (
	kindNewLinkProperty = 108 // RTM_NEWLINKPROP of linux/rtnetlink.h
	kindDelLinkProperty = 109
	linkProperties      = 52 // IFLA_PROP_LIST of linux/if_link.h
	linkAlias           = 53 // IFLA_ALT_IFNAME
	// loopback is LOOPBACK_IFINDEX of include/net/flow.h.
	loopback = 1
)

func byAlias(op routing.Op) bool { return op.Rule.IIF == routing.LoopbackAlias }

func addsRule(op routing.Op) bool { return op.Verb == routing.AddRule || op.Verb == routing.MoveRule }

// nameLoopback gives the loopback interface the second name. A rule that is added before
// would match nothing.
func (r *requester) nameLoopback(ctx context.Context) error {
	err := r.changeAlias(ctx, kindNewLinkProperty)
	if err == nil || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return fmt.Errorf("naming the loopback interface %s: %w", routing.LoopbackAlias, err)
}

// dropAlias takes the second name away if no rule says it any more.
func (w *Writer) dropAlias(ctx context.Context) {
	if err := w.mirror.Drain(); err != nil {
		return // The next Sync says so, too, and the name does no harm.
	}
	said := false
	w.mirror.View(func(s *State) {
		for r := range s.Rules() {
			said = said || r.IIF == routing.LoopbackAlias
		}
	})
	if !said {
		_ = w.ForgetAlias(ctx) // Likewise.
	}
}

// ForgetAlias takes the second name of the loopback interface away. It is no error if
// there is none.
func (w *Writer) ForgetAlias(ctx context.Context) error {
	err := w.requests.changeAlias(ctx, kindDelLinkProperty)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return fmt.Errorf("taking the name %s from the loopback interface: %w", routing.LoopbackAlias, err)
}

func (r *requester) changeAlias(ctx context.Context, kind uint16) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	r.out.b = r.out.b[:0]
	r.out.begin(kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK, r.seq)
	r.out.bytes(unix.AF_UNSPEC, 0, 0, 0)
	r.out.word(loopback)
	r.out.word(0)
	r.out.word(0)
	list := r.out.open(linkProperties | unix.NLA_F_NESTED)
	r.out.text(linkAlias, routing.LoopbackAlias)
	r.out.close(list)
	r.out.end()
	if err := r.socket.send(r.out.b); err != nil {
		return err
	}
	for {
		n, err := r.socket.receive(ctx, r.in)
		if err != nil {
			return err
		}
		if h, payload, _, err := nextMessage(r.in[:n]); err != nil {
			return err
		} else if h.seq == r.seq {
			return errorOf(h, payload)
		}
	}
}
