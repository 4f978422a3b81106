package nm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	gnm "github.com/Wifx/gonetworkmanager/v2"
	"github.com/godbus/dbus/v5"
)

const (
	busName              = "org.freedesktop.DBus"
	busPath              = dbus.ObjectPath("/org/freedesktop/DBus")
	propertiesInterface  = "org.freedesktop.DBus.Properties"
	objectManager        = "org.freedesktop.DBus.ObjectManager"
	objectManagerPath    = dbus.ObjectPath("/org/freedesktop")
	signalChanged        = propertiesInterface + ".PropertiesChanged"
	signalAdded          = objectManager + ".InterfacesAdded"
	signalRemoved        = objectManager + ".InterfacesRemoved"
	signalOwner          = busName + ".NameOwnerChanged"
	signalState          = gnm.DeviceInterface + "." + gnm.DeviceSignalStateChanged
	signalProfileUpdated = gnm.ConnectionInterface + ".Updated"

	// maxCalls bounds how many calls are outstanding. Replies go through one
	// channel that must never be full, because godbus's reader would wait; and
	// what we send must fit the socket's buffer even if nobody reads it, because
	// godbus cannot close a connection on which a write waits.
	maxCalls = 32
)

// matches are the signals to subscribe to. They are named one by one:
// everything below NetworkManager's path would bring the scan results of every
// Wi-Fi in reach, statistics, and a second, deprecated PropertiesChanged for
// each change.
func matches() [][]dbus.MatchOption {
	from := func(options ...dbus.MatchOption) []dbus.MatchOption {
		return append([]dbus.MatchOption{dbus.WithMatchSender(gnm.NetworkManagerInterface)}, options...)
	}
	changed := func(iface string) []dbus.MatchOption {
		return from(dbus.WithMatchInterface(propertiesInterface),
			dbus.WithMatchMember("PropertiesChanged"), dbus.WithMatchArg(0, iface))
	}
	return [][]dbus.MatchOption{
		{
			dbus.WithMatchSender(busName), dbus.WithMatchInterface(busName), dbus.WithMatchMember("NameOwnerChanged"),
			dbus.WithMatchArg(0, gnm.NetworkManagerInterface),
		},
		from(dbus.WithMatchInterface(objectManager)),
		from(dbus.WithMatchInterface(gnm.DeviceInterface), dbus.WithMatchMember(gnm.DeviceSignalStateChanged)),
		from(dbus.WithMatchInterface(gnm.ConnectionInterface), dbus.WithMatchMember("Updated")),
		changed(gnm.NetworkManagerInterface),
		changed(gnm.DeviceInterface),
		changed(gnm.ActiveConnectionInterface),
		changed(gnm.IP4ConfigInterface),
		changed(gnm.IP6ConfigInterface),
		changed(gnm.DHCP4ConfigInterface),
	}
}

// A session is one connection to the bus. Everything in it belongs to the
// goroutine that runs it.
type session struct {
	w       *Watcher
	conn    *dbus.Conn
	queue   *queue
	replies chan *dbus.Call
	// pending are replies that came while an older signal was waiting.
	pending []*dbus.Call
	calls   map[*dbus.Call]outstanding
	// views is passed on to the tree.
	views bool

	// owner is the unique name of the process that is NetworkManager, empty if
	// there is none; ownerKnown is false until the bus was asked.
	owner      string
	ownerKnown bool
	tree       *tree
	loaded     bool
	// complete says that everything was known once.
	complete bool
	// reload is when to ask for the objects again after a failure.
	loadAttempts int
	reload       time.Time
	loadProblem  error

	// initial are the devices that have not been read since the objects were.
	// Until all have, nothing is published: who follows can then do in one step
	// what would cost more in a thousand.
	initial map[*device]struct{}
	// unread are the active devices whose profile is not known.
	unread map[*device]struct{}
	// backlog are the devices whose profile waits for a call to become free.
	backlog []*device
	// retries are the devices whose profile is to be asked for again later.
	retries map[*device]struct{}
	// releases says until when a device that NetworkManager let go of is kept.
	releases map[string]time.Time

	timer *time.Timer
	due   time.Time
}

// An outstanding call knows what to do with its reply.
type outstanding struct {
	done   func(*dbus.Call)
	cancel context.CancelFunc
}

// dial connects to the bus, with signals going to the queue.
func dial(ctx context.Context, opts Options, q *queue) (*dbus.Conn, error) {
	// The connection closes with its context. That is the only way to bound the
	// authentication, in which godbus waits for the bus without a limit.
	connCtx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(opts.CallTimeout, cancel)
	connect := func() (*dbus.Conn, error) {
		options := []dbus.ConnOption{dbus.WithSignalHandler(q), dbus.WithContext(connCtx)}
		if opts.Address == "" {
			return dbus.ConnectSystemBus(options...)
		}
		return dbus.Connect(opts.Address, options...)
	}
	conn, err := connect()
	if !timer.Stop() {
		err = fmt.Errorf("no answer in %s", opts.CallTimeout)
	}
	if err != nil {
		cancel()
		if conn != nil {
			_ = conn.Close() // it is of no use any more
		}
		return nil, err
	}
	context.AfterFunc(conn.Context(), cancel)
	return conn, nil
}

// newSession connects and subscribes.
func newSession(ctx context.Context, w *Watcher, views bool) (*session, error) {
	var keeps []string
	if !views {
		keeps = []string{}
		if w.opts.DNS {
			keeps = dnsProperties()
		}
	}
	q := newQueue(keeps)
	conn, err := dial(ctx, w.opts, q)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	s := &session{
		w: w, conn: conn, queue: q, views: views,
		replies:  make(chan *dbus.Call, 2*maxCalls),
		calls:    map[*dbus.Call]outstanding{},
		tree:     newTree(views, w.opts.DNS),
		initial:  map[*device]struct{}{},
		unread:   map[*device]struct{}{},
		retries:  map[*device]struct{}{},
		releases: map[string]time.Time{},
		timer:    time.NewTimer(time.Hour),
	}
	if err := s.subscribe(ctx); err != nil {
		s.close()
		return nil, err
	}
	s.call(ctx, busName, busPath, busName+".GetNameOwner", s.ownerReply, gnm.NetworkManagerInterface)
	return s, nil
}

func (s *session) close() {
	s.timer.Stop()
	_ = s.conn.Close() // nothing is written that could be lost
	for _, c := range s.calls {
		c.cancel()
	}
}

// subscribe adds the matches. The calls are sent together and then waited for.
func (s *session) subscribe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.w.opts.CallTimeout)
	defer cancel()
	all := matches()
	failed := make(chan error, len(all))
	for _, m := range all {
		go func() { failed <- s.conn.AddMatchSignalContext(ctx, m...) }()
	}
	var err error
	for range all {
		err = errors.Join(err, <-failed)
	}
	if err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	return nil
}

// call sends a method call; done gets its reply, in order with the signals.
func (s *session) call(ctx context.Context, to string, path dbus.ObjectPath, method string, done func(*dbus.Call), args ...any) {
	ctx, cancel := context.WithTimeout(ctx, s.w.opts.CallTimeout)
	c := s.conn.Object(to, path).GoWithContext(ctx, method, dbus.FlagNoAutoStart, s.replies, args...)
	s.calls[c] = outstanding{done: done, cancel: cancel}
}

// run follows NetworkManager until the connection breaks, ctx is done, or
// enough says that there is nothing more to wait for.
func (s *session) run(ctx context.Context, enough func() bool) error {
	for {
		s.flush(ctx)
		if enough != nil && enough() {
			return nil
		}
		select {
		case <-s.queue.filled:
		case c := <-s.replies:
			s.pending = append(s.pending, c)
		case <-s.w.recheck:
			for _, name := range s.w.takePokes() {
				if d := s.tree.owner(name); d != nil {
					s.tree.want(d)
				}
			}
		case <-s.timer.C:
			s.due = time.Time{}
			s.expire(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.conn.Context().Done():
			return errors.New("the connection was closed")
		}
		if err := s.drain(ctx); err != nil {
			return err
		}
	}
}

// drain handles every signal and reply that has arrived, in the order in which
// the bus sent them. godbus delivers both from one goroutine, so when one was
// seen, everything older has been delivered too.
func (s *session) drain(ctx context.Context) error {
	for {
		signal := s.queue.first()
		for more := true; more; {
			select {
			case c := <-s.replies:
				s.pending = append(s.pending, c)
			default:
				more = false
			}
		}
		if signal == nil {
			signal = s.queue.first()
		}
		switch {
		case len(s.pending) > 0 && (signal == nil || s.pending[0].ResponseSequence < signal.Sequence):
			c := s.pending[0]
			s.pending = s.pending[1:]
			o, ok := s.calls[c]
			if !ok {
				continue
			}
			delete(s.calls, c)
			o.cancel()
			if err := s.answered(ctx, c); err != nil {
				return err
			}
			o.done(c)
		case signal != nil:
			s.queue.pop()
			s.signal(ctx, signal)
		default:
			return nil
		}
	}
}

// answered looks at how a call ended. An error that is nobody's answer means
// that the connection is broken. After a call that timed out the bus is asked
// for a sign of life: a NetworkManager that hangs is waited for, a bus that
// hangs is left.
func (s *session) answered(ctx context.Context, c *dbus.Call) error {
	switch _, isAnswer := errors.AsType[dbus.Error](c.Err); {
	case c.Err == nil || isAnswer:
	case !errors.Is(c.Err, context.DeadlineExceeded):
		return fmt.Errorf("calling %s: %w", c.Method, c.Err)
	case c.Destination == busName:
		return fmt.Errorf("no answer to %s in %s", c.Method, s.w.opts.CallTimeout)
	default:
		s.call(ctx, busName, busPath, busName+".GetId", func(*dbus.Call) {})
	}
	return nil
}

func (s *session) signal(ctx context.Context, g *dbus.Signal) {
	if g.Sender == busName {
		if g.Name != signalOwner || len(g.Body) != 3 || g.Body[0] != gnm.NetworkManagerInterface {
			return
		}
		// What was sent before the bus told us the owner is older than that.
		if owner, ok := g.Body[2].(string); ok && s.ownerKnown {
			s.setOwner(ctx, owner)
		}
		return
	}
	if g.Sender != s.owner || !s.loaded {
		return
	}
	switch g.Name {
	case signalChanged:
		if len(g.Body) < 2 {
			return
		}
		iface, ok1 := g.Body[0].(string)
		changed, ok2 := g.Body[1].(map[string]dbus.Variant)
		if ok1 && ok2 {
			s.tree.update(g.Path, iface, changed, false)
		}
	case signalAdded:
		if len(g.Body) != 2 {
			return
		}
		path, ok1 := g.Body[0].(dbus.ObjectPath)
		interfaces, ok2 := g.Body[1].(map[string]map[string]dbus.Variant)
		if ok1 && ok2 {
			s.tree.add(path, interfaces)
		}
	case signalRemoved:
		if len(g.Body) != 2 {
			return
		}
		path, ok1 := g.Body[0].(dbus.ObjectPath)
		interfaces, ok2 := g.Body[1].([]string)
		if ok1 && ok2 {
			if d, ok := s.tree.devices[path]; ok && slices.Contains(interfaces, gnm.DeviceInterface) {
				s.forget(d)
			}
			s.tree.remove(path, interfaces)
		}
	case signalProfileUpdated:
		s.tree.changedProfile(g.Path)
	case signalState:
		s.logState(ctx, g)
	}
}

// logState writes the line of a state transition. What it means comes with the
// property; only the reason is in the signal alone.
func (s *session) logState(ctx context.Context, g *dbus.Signal) {
	d, ok := s.tree.devices[g.Path]
	if !ok || len(g.Body) != 3 {
		return
	}
	now, ok1 := g.Body[0].(uint32)
	was, ok2 := g.Body[1].(uint32)
	reason, ok3 := g.Body[2].(uint32)
	if ok1 && ok2 && ok3 {
		s.w.log.LogAttrs(ctx, slog.LevelDebug, "device state",
			slog.String("interface", d.name), slog.String("state", StateName(gnm.NmDeviceState(now))),
			slog.String("previous", StateName(gnm.NmDeviceState(was))), slog.Uint64("reason", uint64(reason)))
	}
}

// forget drops what is under way for a device.
func (s *session) forget(d *device) {
	delete(s.initial, d)
	delete(s.unread, d)
	delete(s.retries, d)
	d.reading = reading{running: d.reading.running, queued: d.reading.queued}
}

func (s *session) ownerReply(c *dbus.Call) {
	s.ownerKnown = true
	owner := ""
	// The only error besides a broken connection is that nobody has the name.
	if c.Err == nil && len(c.Body) == 1 {
		owner, _ = c.Body[0].(string)
	}
	s.setOwner(s.conn.Context(), owner)
}

// setOwner begins anew with another NetworkManager, or with none. What is
// published stays.
func (s *session) setOwner(ctx context.Context, owner string) {
	if owner == s.owner && s.tree.managerSeen {
		return
	}
	s.owner = owner
	s.tree = newTree(s.views, s.w.opts.DNS)
	s.complete = false
	s.loaded, s.loadAttempts, s.reload, s.loadProblem = false, 0, time.Time{}, nil
	s.backlog = nil
	clear(s.initial)
	clear(s.unread)
	clear(s.retries)
	clear(s.releases)
	for c, o := range s.calls {
		o.cancel()
		delete(s.calls, c) // its reply is about another process
	}
	// A NetworkManager that exits may take its devices away first. That was no
	// news about them.
	s.w.ungone()
	if owner != "" {
		s.load(ctx)
	}
}

func (s *session) load(ctx context.Context) {
	s.reload = time.Time{}
	s.call(ctx, s.owner, objectManagerPath, objectManager+".GetManagedObjects", s.loadReply)
}

func (s *session) loadReply(c *dbus.Call) {
	err := c.Err
	var all objects
	if err == nil {
		ok := false
		if len(c.Body) == 1 {
			all, ok = c.Body[0].(objects)
		}
		if !ok {
			err = errType
		}
	}
	if err != nil {
		s.loadProblem = fmt.Errorf("reading its objects: %w", err)
		s.reload = time.Now().Add(backoff(loadFirst, retryLast, s.loadAttempts))
		s.loadAttempts++
		s.arm(s.reload)
		return
	}
	s.loadProblem, s.loadAttempts = nil, 0
	s.loaded = true
	s.tree.load(all)
	for _, d := range s.tree.devices {
		s.tree.want(d)
	}
	maps.Copy(s.initial, s.tree.wanted)
	s.sweep()
}

// sweep has every published interface looked at again. It is for the moments
// in which what is absent becomes known.
func (s *session) sweep() {
	for _, name := range s.w.names() {
		s.tree.names[name] = struct{}{}
	}
}

// starting reports whether devices may still be missing.
func (s *session) starting() bool { return !s.tree.managerSeen || s.tree.startup }

// flush publishes what changed and sends the calls that are needed.
func (s *session) flush(ctx context.Context) {
	if s.loaded {
		status := s.w.currentStatus()
		if status.Startup && !s.starting() {
			s.sweep()
		}
		for d := range s.tree.wanted {
			delete(s.tree.wanted, d)
			s.ask(d)
		}
		s.send(ctx)
		if len(s.initial) == 0 {
			for name := range s.tree.renamed {
				s.publish(ctx, name)
			}
			clear(s.tree.renamed)
			for name := range s.tree.names {
				delete(s.tree.names, name)
				s.publish(ctx, name)
			}
		}
	}
	s.publishStatus(ctx)
}

// publish makes known what there is to say of an interface.
func (s *session) publish(ctx context.Context, name string) {
	previous, known := s.w.Device(name)
	d := s.tree.owner(name)
	if before, renamed := s.tree.renamed[name]; renamed && d != nil && previous.ID != s.id(d) {
		// What is known of the interface is known under its old name.
		if p, was := s.w.Device(before); was && p.ID == s.id(d) {
			previous, known = p, true
		}
	}
	if d == nil && s.hasAnotherName(previous.ID) {
		s.w.drop(name)
		known = false
	}
	if d == nil {
		if !known {
			delete(s.releases, name)
			return
		}
		if s.starting() {
			return // it may come yet
		}
		now := previous
		now.Gone = true
		if _, releasing := s.releases[name]; releasing || !previous.Gone {
			s.release(name, &now)
		}
		s.w.put(ctx, now)
		return
	}
	for other := range s.tree.byName[name] {
		delete(s.unread, other)
	}
	now := s.tree.describe(d, previous)
	now.ID = s.id(d)
	if now.Active() && now.State != gnm.NmDeviceStateDeactivating && !now.ProfileKnown {
		s.unread[d] = struct{}{}
	}
	switch {
	case s.starting() && now.State < gnm.NmDeviceStatePrepare:
		now.Settling = true
	case now.State == gnm.NmDeviceStateUnmanaged && known &&
		(previous.State != gnm.NmDeviceStateUnmanaged || previous.Settling):
		now.Settling = s.release(name, &now)
	default:
		delete(s.releases, name)
		now.Settling = false
	}
	s.w.put(ctx, now)
}

// id names the object of a device.
func (s *session) id(d *device) string {
	if d.apart() {
		return s.owner + string(d.path) + apart
	}
	return s.owner + string(d.path)
}

// apart marks the id of an interface that carries the IP configuration of another.
const apart = "#ip"

// hasAnotherName reports whether the object of a device is there, and has a name.
func (s *session) hasAnotherName(id string) bool {
	path, ours := strings.CutPrefix(strings.TrimSuffix(id, apart), s.owner)
	d := s.tree.devices[dbus.ObjectPath(path)]
	return ours && d != nil && d.name != "" && s.id(d) == id
}

// release reports whether a device that NetworkManager let go of is still to
// be kept, and begins or ends its time of grace.
func (s *session) release(name string, d *Device) bool {
	until, ok := s.releases[name]
	if !ok {
		until = time.Now().Add(s.w.opts.Grace)
		s.releases[name] = until
		s.arm(until)
	}
	d.Settling = time.Now().Before(until)
	if !d.Settling {
		delete(s.releases, name)
	}
	return d.Settling
}

// ask puts a device in line for having its profile read.
func (s *session) ask(d *device) {
	r := &d.reading
	r.again = true
	if r.running == 0 && r.retry.IsZero() && !r.queued {
		r.queued = true
		s.backlog = append(s.backlog, d)
	}
}

// send reads the profiles of the devices in line, as far as calls are free.
func (s *session) send(ctx context.Context) {
	for len(s.backlog) > 0 && len(s.calls)+2 <= maxCalls {
		d := s.backlog[0]
		s.backlog = s.backlog[1:]
		d.reading.queued = false
		if s.tree.devices[d.path] != d || !s.tree.readable(d) {
			delete(s.initial, d)
			continue
		}
		if d.reading.running > 0 {
			continue
		}
		r := &d.reading
		r.running, r.again, r.of = 2, false, d.activation
		r.appliedFailed, r.storedFailed = nil, nil
		t := s.tree
		s.call(ctx, s.owner, d.path, gnm.DeviceGetAppliedConnection, func(c *dbus.Call) {
			r.applied, r.appliedFailed = decodeSettings(c)
			s.read(t, d)
		}, uint32(0))
		s.call(ctx, s.owner, t.actives[d.activation].connection, gnm.ConnectionGetSettings, func(c *dbus.Call) {
			r.stored, r.storedFailed = decodeSettings(c)
			s.read(t, d)
		})
	}
}

// read concludes a reading when both replies are there.
func (s *session) read(t *tree, d *device) {
	r := &d.reading
	r.running--
	if r.running > 0 || t != s.tree || t.devices[d.path] != d {
		return
	}
	delete(s.initial, d)
	if d.conclude(func() (profile, bool) { return s.passed(d) }) {
		r.attempts, r.retry = 0, time.Time{}
		delete(s.retries, d)
	} else if t.readable(d) {
		r.retry = time.Now().Add(backoff(retryFirst, retryLast, r.attempts))
		r.attempts++
		s.retries[d] = struct{}{}
		s.arm(r.retry)
	}
	t.touch(d)
	if r.again || r.of != d.activation {
		s.ask(d)
	}
}

// passed returns the profile of a device's activation that somebody has passed on.
func (s *session) passed(d *device) (profile, bool) {
	a, known := s.tree.actives[d.reading.of]
	if s.w.opts.Passed == nil || !known {
		return profile{}, false
	}
	p, is := s.w.opts.Passed(d.name)
	// Another profile may have been in force when it was passed on.
	if !is || p.UUID != a.uuid || p.Validate() != nil {
		return profile{}, false
	}
	return p.profile(), true
}

// arm makes the timer fire no later than at t.
func (s *session) arm(t time.Time) {
	if s.due.IsZero() || t.Before(s.due) {
		s.due = t
		s.timer.Reset(time.Until(t))
	}
}

// expire does what has become due.
func (s *session) expire(ctx context.Context) {
	now := time.Now()
	if !s.reload.IsZero() && s.owner != "" {
		if s.reload.After(now) {
			s.arm(s.reload)
		} else {
			s.load(ctx)
		}
	}
	for d := range s.retries {
		if d.reading.retry.After(now) {
			s.arm(d.reading.retry)
			continue
		}
		delete(s.retries, d)
		d.reading.retry = time.Time{}
		s.ask(d)
	}
	for name, until := range s.releases {
		if until.After(now) {
			s.arm(until)
			continue
		}
		s.tree.names[name] = struct{}{}
	}
}

// publishStatus says how complete the knowledge is.
func (s *session) publishStatus(ctx context.Context) {
	was := s.w.currentStatus()
	now := Status{Running: s.owner != "", Version: was.Version, Startup: s.owner != "" && s.starting()}
	if s.tree.version != "" {
		now.Version = s.tree.version
	}
	now.Read = s.loaded && s.loadProblem == nil && len(s.initial) == 0 && len(s.unread) == 0
	switch {
	case !s.ownerKnown:
		now.Absent = was.Absent // What was found last, until the bus has answered.
		now.Reason = "asking the bus for NetworkManager"
	case s.owner == "":
		now.Absent = true
		now.Reason = "NetworkManager is not running"
	case s.loadProblem != nil:
		now.Reason = "NetworkManager does not answer: " + s.loadProblem.Error()
	case !s.loaded:
		now.Reason = "reading NetworkManager's objects"
	case s.starting():
		now.Reason = "NetworkManager is starting"
	case s.complete:
		now.Complete = true
	case len(s.initial) > 0 || len(s.unread) > 0:
		// Not which ones: that would be a new reason for each that is read.
		now.Reason = "reading the profiles of the active devices"
	default:
		s.complete, now.Complete = true, true
	}
	s.w.setStatus(ctx, now)
}
