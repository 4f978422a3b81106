package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

// ErrNotOurs is the answer to an operation on an object that does not carry our
// protocol.
var ErrNotOurs = errors.New("the object is not ours")

const (
	// One message to the kernel carries at most this much. It runs all of it
	// before sendto(2) returns, and the answers wait in the receive buffer.
	batchBytes    = 32 << 10
	batchRequests = 512
)

// A Writer changes the kernel. It touches nothing that does not carry
// [routing.Multihomed].
type Writer struct {
	requests *requester
	mirror   *Mirror
	// names is for the second name of the loopback interface, which is no part of an event.
	names *netlink.Handle
}

// OpenWriter opens the socket through which we make changes. The mirror then
// tells them from those of others.
func (m *Mirror) OpenWriter() (*Writer, error) {
	r, err := newRequester()
	if err != nil {
		return nil, err
	}
	// Without a socket of its own the library would open one for each request, in the
	// network namespace of whichever thread asks.
	names, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening a netlink socket for names of interfaces: %w", err), r.close())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.own[r.socket.Port] = struct{}{}
	return &Writer{requests: r, mirror: m, names: names}, nil
}

// Close closes the socket.
func (w *Writer) Close() error {
	w.mirror.mu.Lock()
	delete(w.mirror.own, w.Port())
	w.mirror.mu.Unlock()
	w.names.Close()
	return w.requests.close()
}

// Port is the netlink port by which the kernel names the author of a change.
func (w *Writer) Port() uint32 { return w.requests.socket.Port }

// Apply carries the operations out in their order, many in one system call. An
// operation that fails does not stop the others. The errors correspond to the
// operations; nil if all went well. What is there already, or gone already, is
// no error. After it, [Mirror.Drain] brings the effects into the mirror. It must
// not be called inside [Mirror.View].
func (w *Writer) Apply(ctx context.Context, ops []routing.Op) []error {
	errs := w.apply(ctx, ops, refuse)
	if slices.ContainsFunc(ops, func(op routing.Op) bool { return op.Verb == routing.DeleteRule && byAlias(op) }) {
		w.dropAlias(ctx)
	}
	return errs
}

func (w *Writer) apply(ctx context.Context, ops []routing.Op, refuse func(routing.Op) error) []error {
	b := batch{ctx: ctx, writer: w.requests, mirror: w.mirror, ops: ops}
	var nameless error
	if slices.ContainsFunc(ops, func(op routing.Op) bool { return addsRule(op) && byAlias(op) }) {
		nameless = w.nameLoopback()
	}
	w.requests.mu.Lock()
	defer w.requests.mu.Unlock()
	for i, op := range ops {
		if err := refuse(op); err != nil {
			b.fail(i, err)
			continue
		}
		if nameless != nil && addsRule(op) && byAlias(op) {
			b.fail(i, nameless)
			continue
		}
		if op.Verb != routing.AddRule && op.Verb != routing.MoveRule {
			b.finishMoves()
		}
		if op.Verb != routing.AddRule && b.adding {
			// A rule that the kernel refuses has to stand before others go.
			b.flush()
		}
		if op.Verb == routing.DeleteRule {
			b.deleteRule(i, op.Rule)
			continue
		}
		if op.Verb == routing.ReplaceRoute {
			b.replaceRoute(i, op.Route)
			continue
		}
		b.adding = op.Verb == routing.AddRule
		b.add(i, func(m *nlmsg.Builder) { encodeOp(m, op) }, kindOf(op.Verb), flagsOf(op))
		if op.Verb == routing.MoveRule {
			b.moving = append(b.moving, i)
		}
	}
	b.finishMoves()
	b.flush()
	w.tellGroups(ops, b.errs)
	w.tellSiblings(ops, b.errs)
	return b.errs
}

// tellSiblings tells the mirror who made what stands beside others.
func (w *Writer) tellSiblings(ops []routing.Op, errs []error) {
	if !slices.ContainsFunc(ops, func(op routing.Op) bool { return op.Route.Family == routing.IPv6 && op.Route.Gateway.IsValid() }) {
		return
	}
	if err := w.mirror.Drain(); err != nil {
		return // The next Sync says so, too.
	}
	w.mirror.View(func(s *State) { s.wrote(ops, errs) })
}

// tellGroups tells the mirror what the kernel does not: see Link.Group.
func (w *Writer) tellGroups(ops []routing.Op, errs []error) {
	for i, op := range ops {
		if op.Verb != routing.SetGroup && op.Verb != routing.ResetGroup || errs != nil && errs[i] != nil {
			continue
		}
		w.mirror.mu.Lock()
		if l := w.mirror.state.links[op.Index]; l != nil && !l.up() {
			l.group = op.Group
		}
		w.mirror.mu.Unlock()
	}
}

// refuse is the promise that nothing of anybody else is changed.
func refuse(op routing.Op) error {
	var p routing.Protocol
	switch op.Verb {
	case routing.AddRoute, routing.ReplaceRoute, routing.DeleteRoute:
		p = op.Route.Protocol
	case routing.AddRule, routing.MoveRule, routing.DeleteRule:
		p = op.Rule.Protocol
	case routing.SetGroup, routing.ResetGroup:
		return nil
	default:
		return fmt.Errorf("unknown operation %v", op.Verb)
	}
	if p != routing.Multihomed {
		return fmt.Errorf("%w: it has protocol %d", ErrNotOurs, p)
	}
	return nil
}

func kindOf(v routing.Verb) uint16 {
	switch v {
	case routing.AddRoute, routing.ReplaceRoute:
		return unix.RTM_NEWROUTE
	case routing.DeleteRoute:
		return unix.RTM_DELROUTE
	case routing.AddRule, routing.MoveRule:
		return unix.RTM_NEWRULE
	case routing.DeleteRule:
		return unix.RTM_DELRULE
	case routing.SetGroup, routing.ResetGroup:
		return unix.RTM_SETLINK
	default:
		return unix.NLMSG_NOOP
	}
}

func flagsOf(op routing.Op) uint16 {
	switch op.Verb {
	case routing.AddRule:
		return unix.NLM_F_CREATE | unix.NLM_F_EXCL
	case routing.MoveRule:
		// Without NLM_F_EXCL the same rule may stand twice.
		return unix.NLM_F_CREATE
	case routing.AddRoute:
		if op.Route.Family == routing.IPv6 {
			// NLM_F_EXCL would refuse a second leg (fib6_add_rt2node).
			return unix.NLM_F_CREATE
		}
		return unix.NLM_F_CREATE | unix.NLM_F_EXCL
	default:
		return 0
	}
}

func encodeOp(m *nlmsg.Builder, op routing.Op) {
	switch op.Verb {
	case routing.AddRoute, routing.ReplaceRoute:
		encodeRoute(m, op.Route)
	case routing.DeleteRoute:
		encodeRouteIdentity(m, op.Route)
	case routing.AddRule, routing.MoveRule, routing.DeleteRule:
		encodeRule(m, op.Rule)
	case routing.SetGroup, routing.ResetGroup:
		m.Bytes(unix.AF_UNSPEC, 0, 0, 0)
		m.Word(uint32(op.Index)) //nolint:gosec // an interface index
		m.Word(0)
		m.Word(0)
		m.Attribute32(unix.IFLA_GROUP, op.Group)
	}
}

// settled reports whether an answer means that the kernel is as it was meant to
// be.
func settled(v routing.Verb, err error) bool {
	switch v {
	case routing.AddRule:
		return errors.Is(err, unix.EEXIST)
	case routing.DeleteRule, routing.DeleteRoute, routing.MoveRule:
		// The table may be gone with its last route, the interface with its
		// routes.
		return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV)
	case routing.ResetGroup:
		return errors.Is(err, unix.ENODEV)
	default:
		return false
	}
}

// A batch is requests that go to the kernel in one message.
type batch struct {
	ctx    context.Context //nolint:containedctx // lives as long as one call of Apply
	writer *requester
	mirror *Mirror
	ops    []routing.Op
	errs   []error
	// sent are the operations of the requests in the message, in order.
	sent []int
	// first is the sequence number of the first.
	first uint32
	// moving are operations whose rule stands twice and has to go once.
	moving []int
	// adding says that the message ends with rules that are added, refused are
	// the additions that the kernel says stand already.
	adding  bool
	refused []int
	// beside are the routes that were refused once.
	beside map[int]bool
}

func (b *batch) fail(i int, err error) {
	if b.errs == nil {
		b.errs = make([]error, len(b.ops))
	}
	text := ""
	b.mirror.View(func(s *State) { text = b.ops[i].Text(s.Name) })
	b.errs[i] = fmt.Errorf("%s: %w", text, err)
}

func (b *batch) add(i int, body func(*nlmsg.Builder), kind, flags uint16) {
	r := b.writer
	if len(b.sent) == batchRequests || len(r.out.B) > batchBytes {
		b.flush()
	}
	r.seq++
	if len(b.sent) == 0 {
		r.out.B = r.out.B[:0]
		b.first = r.seq
	}
	r.out.Begin(kind, unix.NLM_F_REQUEST|flags, r.seq)
	body(&r.out)
	r.out.End()
	b.sent = append(b.sent, i)
}

// finishMoves deletes the first of the two copies of each moved rule, once the
// second is known to stand. The rule that is read last goes first: the rungs of a source
// would otherwise stand without the one that answers in front of the one that refuses.
func (b *batch) finishMoves() {
	if len(b.moving) == 0 {
		return
	}
	b.flush()
	for _, i := range slices.Backward(b.moving) {
		if b.errs == nil || b.errs[i] == nil {
			b.deleteRule(i, b.ops[i].Rule)
		}
	}
	b.moving = b.moving[:0]
}

// flush sends what is there and reads the answers. The kernel answers a request
// that fails, and the last one in any case: so one system call each way does
// for a batch without failures.
func (b *batch) flush() {
	if len(b.sent) == 0 {
		return
	}
	defer b.addRefused()
	defer func() { b.sent, b.adding = b.sent[:0], false }()
	r := b.writer
	r.out.AddFlags(unix.NLM_F_ACK)
	err := b.ctx.Err()
	if err != nil {
		err = context.Cause(b.ctx)
	} else if err = r.socket.Send(r.out.B); err == nil {
		err = b.answers()
	}
	r.out.B = r.out.B[:0]
	if err != nil {
		for _, i := range b.sent {
			if b.errs == nil || b.errs[i] == nil {
				b.fail(i, err)
			}
		}
	}
}

func (b *batch) answers() error {
	r := b.writer
	for {
		n, err := r.socket.receive(b.ctx, r.in)
		if err != nil {
			return fmt.Errorf("reading the kernel's answer: %w", err)
		}
		for rest := r.in[:n]; len(rest) > 0; {
			var h nlmsg.Header
			var payload []byte
			if h, payload, rest, err = nlmsg.Next(rest); err != nil {
				return fmt.Errorf("reading the kernel's answer: %w", err)
			}
			at := int(h.Seq - b.first)
			if h.Kind != unix.NLMSG_ERROR || at >= len(b.sent) {
				// The answer to a request that was given up.
				continue
			}
			i := b.sent[at]
			switch err := nlmsg.ErrorOf(h, payload); {
			case err == nil:
			case tooSoon(b.ops[i], err) && !b.beside[i]:
				if b.beside == nil {
					b.beside = map[int]bool{}
				}
				b.beside[i] = true
				b.refused = append(b.refused, i)
			case !settled(b.ops[i].Verb, err):
				b.fail(i, err)
			case b.ops[i].Verb == routing.AddRule:
				b.refused = append(b.refused, i)
			}
			if at == len(b.sent)-1 {
				return nil
			}
		}
	}
}
