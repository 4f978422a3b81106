package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/event"
	"multihomed/internal/fsutil"
	"multihomed/internal/offswitch"
	"multihomed/internal/processor"
)

// What answers cost is paid for by pauses: each is so many times as long as the answer took of a
// processor, but for short bursts.
const (
	pauseFactor = 3
	burst       = 50 * time.Millisecond
)

// work answers calls, one after the other, until the connection ends. Life is the context of the server.
func (s *Server) work(ctx, life context.Context, w *wire, q *queue) {
	paid := toll{factor: 1 + pauseFactor, credit: burst}
	timer := time.NewTimer(0)
	defer timer.Stop()
	a := &answers{
		Server: s, wire: w,
		lasting: func() (context.Context, context.CancelFunc) { return context.WithTimeout(life, doTime) },
	}
	for {
		c := q.next(ctx, w)
		if c == nil {
			return
		}
		c.isTurn = true
		cost := processor.Cost(func() { a.answer(ctx, c) })
		if wait := paid.pay(time.Now(), cost); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-w.done:
				return
			case <-ctx.Done():
				return
			}
		}
	}
}

// answer answers a call, or begins to.
func (a *answers) answer(ctx context.Context, c *call) {
	i, m, refusal := a.find(c)
	if refusal == nil && c.signature != m.Signature() {
		refusal = dbusapi.Errorf(dbusapi.InvalidArgs, "%s takes arguments of the type %q, and got %q", m.Name, m.Signature(), c.signature)
	}
	if refusal != nil {
		c.fail(ctx, refusal)
		return
	}
	if m.Kind != dbusapi.Reading {
		a.begin(ctx, c, m)
		return
	}
	args, err := c.body()
	if err != nil {
		c.fail(ctx, dbusapi.Errorf(dbusapi.InvalidArgs, "the arguments of %s cannot be read: %v", m.Name, err))
		return
	}
	if i.Name == dbusapi.ObjectManager {
		if written, err := a.objects(); err != nil {
			c.fail(ctx, dbusapi.Errorf(dbusapi.Failed, "%v", err))
		} else {
			c.replyWith(ctx, written)
		}
		return
	}
	values, refusal := a.read(c.path, i, m.Name, args)
	if refusal != nil {
		c.fail(ctx, refusal)
		return
	}
	c.reply(ctx, values...)
}

// find finds the method of a call.
func (a *answers) find(c *call) (*dbusapi.Interface, dbusapi.Method, *dbusapi.Error) {
	all, isObject := dbusapi.Interfaces(c.path)
	if index, isLink := dbusapi.IndexOf(c.path); isLink {
		if _, isObject = a.Last().Link(index); !isObject {
			return nil, dbusapi.Method{}, dbusapi.Errorf(dbusapi.UnknownObject, "there is no link %s", c.path)
		}
	}
	if !isObject && !isOnTheWay(c.path) {
		return nil, dbusapi.Method{}, dbusapi.Errorf(dbusapi.UnknownObject, "there is no object %s", c.path)
	}
	known := false
	for _, i := range all {
		if c.iface != "" && c.iface != i.Name {
			continue
		}
		known = true
		if m, is := i.Method(c.member); is {
			return i, m, nil
		}
	}
	if !known {
		return nil, dbusapi.Method{}, dbusapi.Errorf(dbusapi.UnknownInterface, "%s has no interface %s", c.path, c.iface)
	}
	return nil, dbusapi.Method{}, dbusapi.Errorf(dbusapi.UnknownMethod, "%s has no method %s", c.path, c.member)
}

// isOnTheWay reports whether a path leads to an object.
func isOnTheWay(p dbus.ObjectPath) bool {
	_, leads := strings.CutPrefix(string(dbusapi.LinksPath), strings.TrimSuffix(string(p), "/")+"/")
	return leads || p == dbusapi.LinksPath
}

// read answers what costs little.
func (a *answers) read(path dbus.ObjectPath, i *dbusapi.Interface, method string, args []any) ([]any, *dbusapi.Error) {
	switch i.Name {
	case dbusapi.Peer:
		if method == "Ping" {
			return nil, nil
		}
		id, err := fsutil.ReadFile("/etc/machine-id", 64)
		if err != nil {
			return nil, dbusapi.Errorf(dbusapi.Failed, "reading the number of this machine: %v", err)
		}
		return []any{strings.TrimSpace(string(id))}, nil
	case dbusapi.Introspectable:
		return []any{dbusapi.Introspect(path, a.children(path))}, nil
	case dbusapi.Properties:
		return a.properties(path, method, args)
	case dbusapi.LinkInterface:
		return a.describe(path)
	default:
		return a.links(method, args)
	}
}

// objects are all links with their properties. A thousand take 40 ms to write, and are written once for
// all who ask.
func (s *Server) objects() (body, error) {
	m, now := s.Last(), s.now()
	s.mu.Lock()
	known, of, at := s.written, s.writtenOf, s.writtenAt
	measuredAt := s.measuredAt
	s.mu.Unlock()
	if of == m && at.Equal(measuredAt) && known.data != nil {
		return known, nil
	}
	out := make(map[dbus.ObjectPath]map[string]map[string]dbus.Variant, len(m.Links))
	for _, l := range m.Links {
		out[dbusapi.LinkPath(l.Index)] = map[string]map[string]dbus.Variant{dbusapi.LinkInterface: l.All(now)}
	}
	written, err := write(out)
	if err != nil {
		return body{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written, s.writtenOf, s.writtenAt = written, m, measuredAt
	return written, nil
}

// listed is a link in the answer of ListLinks.
type listed struct {
	Index int32
	Name  string
	Path  dbus.ObjectPath
}

func (a *answers) links(method string, args []any) ([]any, *dbusapi.Error) {
	m := a.Last()
	if method == "ListLinks" {
		out := make([]listed, 0, len(m.Links))
		for _, l := range m.Links {
			out = append(out, listed{int32(l.Index), l.Name, dbusapi.LinkPath(l.Index)}) //nolint:gosec // an index
		}
		return []any{out}, nil
	}
	name := args[0].(string)
	l, is := m.Named(name)
	if !is {
		return nil, dbusapi.Errorf(dbusapi.NoSuchLink, "there is no link %q; ListLinks names all", name)
	}
	return []any{int32(l.Index), dbusapi.LinkPath(l.Index)}, nil //nolint:gosec // an index
}

func (a *answers) describe(path dbus.ObjectPath) ([]any, *dbusapi.Error) {
	index, _ := dbusapi.IndexOf(path)
	l, is := a.Last().Link(index)
	if !is {
		return nil, dbusapi.Errorf(dbusapi.UnknownObject, "there is no link %s", path)
	}
	text, err := l.Describe()
	if err != nil {
		return nil, dbusapi.Errorf(dbusapi.Failed, "%v", err)
	}
	return []any{text}, nil
}

// children are the names of the objects below a path.
func (a *answers) children(path dbus.ObjectPath) []string {
	if path == dbusapi.LinksPath {
		m := a.Last()
		out := make([]string, 0, len(m.Links))
		for _, l := range m.Links {
			out = append(out, strings.TrimPrefix(string(dbusapi.LinkPath(l.Index)), string(path)+"/"))
		}
		return out
	}
	prefix := strings.TrimSuffix(string(path), "/") + "/"
	rest, below := strings.CutPrefix(string(dbusapi.LinksPath), prefix)
	if !below {
		return nil
	}
	first, _, _ := strings.Cut(rest, "/")
	return []string{first}
}

func (a *answers) properties(path dbus.ObjectPath, method string, args []any) ([]any, *dbusapi.Error) {
	index, isLink := dbusapi.IndexOf(path)
	m, own := a.Last(), a.manager
	var all func() map[string]dbus.Variant
	if isLink {
		l, is := m.Link(index)
		if !is {
			return nil, dbusapi.Errorf(dbusapi.UnknownObject, "there is no link %s", path)
		}
		own, all = a.link, func() map[string]dbus.Variant { return l.All(a.now()) }
	} else {
		all = func() map[string]dbus.Variant { return m.All(a.now()) }
	}
	name := args[0].(string)
	if name != "" && name != own.Name {
		every, _ := dbusapi.Interfaces(path)
		for _, i := range every {
			if i.Name == name && method == "GetAll" {
				return []any{map[string]dbus.Variant{}}, nil // It has none.
			}
		}
		return nil, dbusapi.Errorf(dbusapi.UnknownInterface, "%s has no properties of %q; they are those of %s", path, name, own.Name)
	}
	if method == "GetAll" {
		return []any{all()}, nil
	}
	property := args[1].(string)
	if _, is := own.Property(property); !is {
		return nil, dbusapi.Errorf(dbusapi.UnknownProperty, "%s has no property %q", own.Name, property)
	}
	if method == "Set" {
		return nil, dbusapi.Errorf(dbusapi.PropertyReadOnly, "%s can only be read", property)
	}
	return []any{all()[property]}, nil
}

// begin carries out a call that takes time, in a goroutine.
func (a *answers) begin(ctx context.Context, c *call, m dbusapi.Method) {
	release, refusal := a.begun.enter(c)
	if refusal != nil {
		c.fail(ctx, refusal)
		return
	}
	c.isTurn = false
	a.tasks.Go(func() {
		defer release()
		text, err := a.carryOut(ctx, c, m)
		if err != nil {
			refusal, is := errors.AsType[*dbusapi.Error](err)
			if !is {
				refusal = dbusapi.Errorf(dbusapi.Failed, "%v", err)
			}
			c.fail(ctx, refusal)
			return
		}
		if len(m.Out) == 0 {
			c.reply(ctx)
			return
		}
		if len(text) > mostText {
			c.fail(ctx, dbusapi.Errorf(dbusapi.LimitsExceeded, "the answer has %d bytes, and the bus carries %d; to fix: ask with multihomectl", len(text), mostText))
			return
		}
		c.reply(ctx, text)
	})
}

// mostText bounds a text: the bus carries messages of 32 MiB.
const mostText = 31 << 20

const (
	// doTime bounds what a call does, once it may.
	doTime = time.Minute
	// interactiveTime bounds how long a user may think about a prompt.
	interactiveTime = 5 * time.Minute
)

// carryOut checks the rights of the caller, and has the daemon do it.
func (a *answers) carryOut(ctx context.Context, c *call, m dbusapi.Method) (string, error) {
	// To wait for a backend is no work that others pay for.
	if _, err := a.serving(ctx, nil); err != nil {
		return "", err
	}
	if m.Action != "" && c.uid != 0 {
		check := func(ctx context.Context) (string, error) {
			return a.ask(ctx, c, m, func(b Backend, r Request) (string, error) { return "", b.Check(ctx, r) })
		}
		// Everybody may try, so that this has a budget, too.
		if _, err := a.checks.share(ctx, key{"check " + m.Name, c.uid, string(bodyOf(c))}, check); err != nil {
			return "", err
		}
		if err := authorize(ctx, c, m.Action); err != nil {
			return "", err
		}
	}
	do := func(ctx context.Context) (string, error) {
		return a.ask(ctx, c, m, func(b Backend, r Request) (string, error) { return b.Do(ctx, r) })
	}
	if m.Kind == dbusapi.Costly {
		return a.costlyOf(c.uid).share(ctx, key{m.Name, c.uid, string(bodyOf(c))}, do)
	}
	a.Logger.LogAttrs(ctx, event.LevelNotice, "order taken from D-Bus", slog.String("method", m.Name), slog.String("by", offswitch.UserName(c.uid)))
	// What has begun is done, whether or not the bus stays.
	doing, cancel := a.lasting()
	defer cancel()
	return do(doing)
}

// ask has the backend answer, or the next one if that ends before.
func (a *answers) ask(ctx context.Context, c *call, m dbusapi.Method, what func(Backend, Request) (string, error)) (string, error) {
	args, err := c.body()
	if err != nil {
		return "", dbusapi.Errorf(dbusapi.InvalidArgs, "the arguments of %s cannot be read: %v", m.Name, err)
	}
	var backend Backend
	for {
		if backend, err = a.serving(ctx, backend); err != nil {
			return "", err
		}
		text, err := what(backend, Request{Method: m.Name, Args: args, UID: c.uid, By: offswitch.UserName(c.uid)})
		if err != ErrReplaced { //nolint:errorlint // wrapped it says that something was done
			return text, err
		}
	}
}

// bodyOf are the bytes of the arguments.
func bodyOf(c *call) []byte {
	if c.signature == "" {
		return nil
	}
	return c.raw[len(c.raw)-c.bodySize:]
}
