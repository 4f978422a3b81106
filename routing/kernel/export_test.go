package kernel

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

// IsBefore615 and IsBefore72 are what the release of a kernel says.
var (
	IsBefore615 = isBefore615
	IsBefore72  = isBefore72
)

// Requester lets tests send any request.
type Requester struct{ *requester }

func NewRequester() (Requester, error) {
	r, err := newRequester()
	return Requester{r}, err
}

func (r Requester) Port() uint32 { return r.socket.Port }

func (r Requester) Close() error { return r.close() }

// A Body builds the payload of a request.
type Body struct{ *nlmsg.Builder }

func (b Body) Route(r routing.Route) { encodeRoute(b.Builder, r) }
func (b Body) Rule(r routing.Rule)   { encodeRule(b.Builder, r) }

// Nexthops appends RTA_MULTIPATH.
func (b Body) Nexthops(legs []routing.Route) {
	at := b.Open(unix.RTA_MULTIPATH)
	for _, l := range legs {
		start := len(b.B)
		var flags byte
		if l.OnLink {
			flags = unix.RTNH_F_ONLINK
		}
		b.Bytes(0, 0, flags, 0)
		b.Word(uint32(l.Device))
		if l.Gateway.IsValid() {
			b.Attribute(unix.RTA_GATEWAY, l.Gateway.AsSlice())
		}
		b.B[start] = byte(len(b.B) - start)
	}
	b.Close(at)
}

// Do sends one request and returns the kernel's verdict.
func (r Requester) Do(kind, flags uint16, body func(Body)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	r.out.B = r.out.B[:0]
	r.out.Begin(kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags, r.seq)
	body(Body{&r.out})
	r.out.End()
	if err := r.socket.Send(r.out.B); err != nil {
		return err
	}
	for {
		n, err := r.socket.receive(context.Background(), r.in)
		if err != nil {
			return err
		}
		h, payload, _, err := nlmsg.Next(r.in[:n])
		if err != nil {
			return err
		}
		if h.Seq == r.seq && h.Kind == unix.NLMSG_ERROR {
			return nlmsg.ErrorOf(h, payload)
		}
	}
}

// Encode and Decode are the codecs.
func EncodeRule(r routing.Rule) []byte {
	var b nlmsg.Builder
	encodeRule(&b, r)
	return b.B
}

func DecodeRule(b []byte) (routing.Rule, error) { return decodeRule(b) }

func EncodeRoute(r routing.Route) []byte {
	var b nlmsg.Builder
	encodeRoute(&b, r)
	return b.B
}

// DecodeRoute returns the legs.
func DecodeRoute(b []byte) ([]routing.Route, error) {
	a, err := decodeRoute(b)
	if err != nil {
		return nil, err
	}
	var out []routing.Route
	for _, l := range a.legs {
		out = append(out, l.route)
	}
	return out, nil
}

// ApplyAny feeds a state with whatever bytes, as the event socket would.
func ApplyAny(s *State, b []byte) {
	m := &Mirror{state: s, changed: make(chan struct{}, 1), own: map[uint32]struct{}{}}
	m.take(b)
}

func NewState(tables routing.TableRange) *State {
	return newState(routing.Ownership{Tables: tables}, func(string) bool { return true })
}

// Apply takes one announcement in.
func (s *State) Apply(kind, flags uint16, payload []byte) error {
	return s.apply(nlmsg.Header{Kind: kind, Flags: flags}, payload, cause{})
}

// Lines describes everything a state shows.
func (s *State) Lines() []string { return s.lines() }

// Doubts describes what is not known for sure.
func (s *State) Doubts() string { return fmt.Sprint(s.doubts) }

// Consistent checks the indexes against the slots.
func (s *State) Consistent() error {
	n := 0
	for at, slot := range s.fib.slots {
		for ; slot != nil; slot = slot.next {
			if n++; len(slot.aliases) == 0 {
				return fmt.Errorf("empty slot %v", at)
			}
		}
	}
	if n != s.fib.keys {
		return fmt.Errorf("%d slots, counted %d", n, s.fib.keys)
	}
	for k, slot := range s.fib.all() {
		wanted := false
		for _, a := range slot.aliases {
			wanted = wanted || s.wanted(a)
			if a.key != k {
				return fmt.Errorf("alias of %v in slot %v", a.key, k)
			}
			for _, l := range a.legs {
				if _, ok := s.fib.byDevice[l.route.Device][a]; !ok {
					return fmt.Errorf("%v is not in the index of device %d", l.route, l.route.Device)
				}
				n++
			}
		}
		if !wanted {
			return fmt.Errorf("nobody wants slot %v", k)
		}
	}
	for d, aliases := range s.fib.byDevice {
		for a := range aliases {
			if !a.leads(d) {
				return fmt.Errorf("%v is in the index of device %d", a.legs, d)
			}
			slot := s.fib.at(a.key)
			found := false
			for i := range slot.aliases {
				found = found || slot.aliases[i] == a
			}
			if !found {
				return fmt.Errorf("%v is in the index of device %d and in no slot", a.legs, d)
			}
		}
	}
	return nil
}

// SetBudget changes how many routes are worth reading.
func (m *Mirror) SetBudget(n int) { m.loader.budget = n }

// Slots is how many keys are kept.
func (m *Mirror) Slots() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.fib.keys
}

// RunDumpOnce is one dump of rules without a second attempt.
func (r Requester) ListRules(f routing.Family) ([]routing.Rule, error) {
	s := NewState(routing.TableRange{First: 10000, Last: 10999})
	if err := (loader{requests: r.requester}).rules(context.Background(), s, f); err != nil {
		return nil, err
	}
	return append(s.ForeignRules(), collect(s)...), nil
}

func collect(s *State) []routing.Rule {
	var out []routing.Rule
	for r := range s.Rules() {
		out = append(out, r)
	}
	return out
}

// ListRoutes asks for the routes of a table.
func (r Requester) ListRoutes(f routing.Family, table routing.TableID) ([]routing.Route, error) {
	s := NewState(routing.TableRange{First: table, Last: table})
	aliases, err := loader{requests: r.requester}.ask(context.Background(), s, routeQuestion{family: f, table: table})
	if err != nil {
		return nil, err
	}
	var out []routing.Route
	for _, a := range aliases {
		for _, l := range a.legs {
			out = append(out, l.route)
		}
	}
	return out, nil
}

// CountRoutes counts the messages that list a table, and reads none of them.
func (r Requester) CountRoutes(f routing.Family, table routing.TableID) (n int, err error) {
	d := routeQuestion{family: f, table: table}.dump()
	d.restart = func() { n = 0 }
	d.each = func([]byte) bool { n++; return true }
	return n, r.dump(context.Background(), d)
}

// ReadRoutes counts the routes of a table once they are read as the mirror reads them.
func (r Requester) ReadRoutes(f routing.Family, table routing.TableID) (int, error) {
	s := NewState(routing.TableRange{First: 10000, Last: 10999})
	all, err := loader{requests: r.requester}.ask(context.Background(), s, routeQuestion{family: f, table: table})
	return len(all), err
}

// An Encoder writes requests into one buffer, as a Writer does.
type Encoder struct{ nlmsg.Builder }

func NewEncoder() *Encoder { return &Encoder{} }

// Rule is the request that adds a rule. The next one overwrites it.
func (e *Encoder) Rule(kind uint16, r routing.Rule) []byte {
	e.B = e.B[:0]
	e.Begin(kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, 1)
	encodeRule(&e.Builder, r)
	e.End()
	return e.B
}

// ListAddresses returns how many IPv4 addresses there are and how often the list
// had to be read.
func (r Requester) ListAddresses() (addresses, readings int, err error) {
	err = r.dump(context.Background(), dump{
		what: "addresses", kind: unix.RTM_GETADDR,
		body:    func(m *nlmsg.Builder) { m.Bytes(unix.AF_INET, 0, 0, 0, 0, 0, 0, 0) },
		restart: func() { addresses = 0; readings++ },
		each:    func([]byte) bool { addresses++; return true },
	})
	return addresses, readings, err
}

// Doubtful reports whether something has to be asked.
func (m *Mirror) Doubtful() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.state.doubts.none()
}

// BeforeAsking has a function called between reading and asking.
func (r *Reader) BeforeAsking(f func()) { r.beforeAsking = f }
