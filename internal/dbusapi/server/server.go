// Package server answers on the bus with the values of package dbusapi. Every message that comes in
// is bounded before it is read, every call waits in a queue with bounds for its sender and its user,
// and what costs shares a part of a processor. Nothing here waits for a client, and nothing of the
// daemon waits for this package.
package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"multihomed/internal/dbusapi"
	"multihomed/internal/event"
	"multihomed/internal/news"
	"multihomed/routing"
)

// A Request is a call that the daemon carries out.
type Request struct {
	Method string
	Args   []any
	// UID is the user who calls, By the name of that user.
	UID uint32
	By  string
}

// ErrReplaced says that a backend ended before it did anything, so that the next one is asked.
var ErrReplaced = errors.New("the configuration was read again meanwhile; to see what came of it: multihomectl status")

// A Backend is the daemon under one configuration.
type Backend interface {
	// Do carries out a call. Its text is the result, if the method has one. An error that is no
	// [dbusapi.Error] becomes dbusapi.Failed. ErrReplaced itself has the next backend carry it out.
	Do(ctx context.Context, r Request) (string, error)
	// Check finds what is wrong with a call of which polkit is to be asked, so that nobody types a password for
	// what cannot be done. It changes nothing. Its errors are those of Do.
	Check(ctx context.Context, r Request) error
	// Measured is quick.
	Measured() dbusapi.Measured
}

// Options are those of a Server.
type Options struct {
	Logger *slog.Logger
	// Address is that of the bus.
	Address string
	// Fault takes what is wrong with the bus, the zero Problem if nothing is. Then the name is ours,
	// and a Publish reaches who asks from now on.
	Fault func(routing.Problem)
	// First is what is answered before the first Publish.
	First *dbusapi.Model
}

// A Server owns the name on the bus. Create it with New; Run must be running. It is safe for
// concurrent use.
type Server struct {
	Options
	manager, link *dbusapi.Interface
	// costly is for all users but root, who has a budget alone: what others spend delays nothing of root's.
	costly, costlyOfRoot *budget
	// checks is for the words of orders: who gives one waits for no question of others.
	checks *budget
	begun  *begun
	// tasks are calls that have begun.
	tasks sync.WaitGroup

	mu    sync.Mutex
	model *dbusapi.Model
	// wire is the connection that owns the name, nil if there is none.
	wire    *wire
	backend Backend
	// turned is closed, and renewed, when a backend comes or goes.
	turned chan struct{}
	// measured is renewed by who asks.
	measured   dbusapi.Measured
	measuredAt time.Time
	// written are the objects of a model, as they were measured at a moment.
	written   body
	writtenOf *dbusapi.Model
	writtenAt time.Time
}

// New returns a server.
func New(o Options) *Server {
	return &Server{
		Options: o, manager: dbusapi.Manager(), link: dbusapi.LinkOf(), model: o.First, turned: make(chan struct{}),
		costly: newBudget(), costlyOfRoot: newBudget(), checks: newBudget(), begun: newBegun(),
	}
}

// Codes of problems.
const (
	// NameTaken: somebody else owns the name.
	NameTaken routing.Code = "bus-name-taken"
	// NameRefused: the bus does not allow the name.
	NameRefused routing.Code = "bus-name-refused"
)

const (
	// firstRetry doubles up to lastRetry after each attempt to connect that failed.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// firstAsk doubles up to lastAsk each time that the bus refused the name: nobody says when its policy
	// changes. While packages are installed, it may do so soon.
	firstAsk = time.Second
	lastAsk  = time.Minute
)

// Run keeps a connection to the bus until ctx is done. A host without a bus is none to speak of.
func (s *Server) Run(ctx context.Context) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer s.tasks.Wait()
	tasks.Go(func() { s.costly.run(ctx) })
	tasks.Go(func() { s.costlyOfRoot.run(ctx) })
	tasks.Go(func() { s.checks.run(ctx) })
	retry := firstRetry
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		err := s.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastRetry {
			retry = firstRetry
		}
		level := slog.LevelDebug
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) && retry == firstRetry {
			level = event.LevelNotice
		}
		s.Logger.LogAttrs(ctx, level, "no connection to the system bus, trying again", slog.String("error", err.Error()))
		timer.Reset(retry)
		retry = min(2*retry, lastRetry)
	}
}

const (
	busName                    = "org.freedesktop.DBus"
	busPath    dbus.ObjectPath = "/org/freedesktop/DBus"
	doNotQueue                 = uint32(4)
	// Answers of RequestName.
	primaryOwner, alreadyOwner = uint32(1), uint32(4)
)

// session is one connection.
func (s *Server) session(ctx context.Context) error {
	w, err := dial(ctx, s.Address)
	if err != nil {
		return err
	}
	life := ctx
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	defer w.close()
	stop := context.AfterFunc(ctx, w.close)
	defer stop()
	freed := news.NewSignal()
	q := newQueue()
	var failure error
	tasks.Go(w.write)
	tasks.Go(func() { s.work(ctx, life, w, q) })
	tasks.Go(func() {
		defer w.close()
		failure = s.read(w, q, freed)
	})
	ended := func(err error) error {
		w.close()
		cancel()
		tasks.Wait()
		return errors.Join(err, failure)
	}
	if err := s.introduce(ctx, w); err != nil {
		return ended(err)
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wire = nil
	}()
	again, pause := time.NewTimer(0), firstAsk
	defer again.Stop()
	for {
		select {
		case <-w.done:
			return ended(errClosed)
		case <-again.C:
		case <-freed:
		}
		problem, err := s.requestName(ctx, w)
		if err != nil {
			return ended(err)
		}
		s.mu.Lock()
		s.wire = nil
		if problem.Code == "" {
			s.wire = w
		}
		s.mu.Unlock()
		s.Fault(problem)
		if problem.Code == NameRefused {
			again.Reset(pause)
			pause = min(2*pause, lastAsk)
		}
	}
}

// introduce says hello, and asks for news of our name.
func (s *Server) introduce(ctx context.Context, w *wire) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := w.call(ctx, busName, busPath, busName, "Hello", "s"); err != nil {
		return fmt.Errorf("saying hello to the bus: %w", err)
	}
	match := "type='signal',sender='" + busName + "',interface='" + busName + "',member='NameOwnerChanged',arg0='" + dbusapi.Name + "'"
	if _, err := w.call(ctx, busName, busPath, busName, "AddMatch", "", match); err != nil {
		return fmt.Errorf("asking for news of %s: %w", dbusapi.Name, err)
	}
	return nil
}

// requestName takes the name. It never waits in the queue of another owner.
func (s *Server) requestName(ctx context.Context, w *wire) (routing.Problem, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	answer, err := w.call(ctx, busName, busPath, busName, "RequestName", "u", dbusapi.Name, doNotQueue)
	if refusal, is := errors.AsType[*dbusapi.Error](err); is {
		return routing.Problem{
			Code: NameRefused, Severity: routing.Notice, Object: dbusapi.Name,
			Text: "the system bus does not let multihomed have the name " + dbusapi.Name + ", so programs cannot ask it there: " + refusal.Text,
			Fix:  "install multihomed.conf into /usr/share/dbus-1/system.d, then: systemctl reload dbus, and systemctl restart multihomed",
		}, nil
	}
	if err != nil {
		return routing.Problem{}, fmt.Errorf("asking for the name %s: %w", dbusapi.Name, err)
	}
	if n := answer[0].(uint32); n == primaryOwner || n == alreadyOwner {
		return routing.Problem{}, nil
	}
	return routing.Problem{
		Code: NameTaken, Severity: routing.Warning, Object: dbusapi.Name,
		Text: "another program has the name " + dbusapi.Name + " on the system bus, so programs that ask multihomed get its answers" + s.ownerText(ctx, w),
		Fix:  "end that program",
	}, nil
}

// ownerText names the process that owns the name.
func (s *Server) ownerText(ctx context.Context, w *wire) string {
	answer, err := w.call(ctx, busName, busPath, busName, "GetConnectionUnixProcessID", "u", dbusapi.Name)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (process %d)", answer[0])
}

// read takes what comes in until the connection ends.
func (s *Server) read(w *wire, q *queue, freed news.Signal) error {
	for {
		f, ok, err := readFrame(w.in)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		switch f.kind {
		case dbus.TypeMethodReply, dbus.TypeError:
			w.answered(f)
		case dbus.TypeSignal:
			if f.sender == busName && f.member == "NameOwnerChanged" && f.signature == "sss" && f.raw != nil {
				if body, err := f.body(); err == nil && body[2] == "" {
					freed.Give() // Nobody has the name now.
				}
			}
		case dbus.TypeMethodCall:
			c := &call{frame: f, wire: w, uid: nobody}
			if f.raw == nil {
				c.refuse(errLongCall)
				continue
			}
			ask, refusal := q.add(c)
			if ask {
				refusal = s.identify(w, q, c.sender)
			}
			if refusal != nil {
				c.refuse(refusal)
			}
		}
	}
}

var errLongCall = dbusapi.Errorf(dbusapi.LimitsExceeded, "a call may have %d bytes", mostBody)

// identify asks the bus for the user of a sender. It does not wait for the answer.
func (s *Server) identify(w *wire, q *queue, name string) *dbusapi.Error {
	_, err := w.ask(func(f frame) {
		answer, err := read(f, "u")
		var uid uint32
		refusal := errMany
		if err == nil {
			uid = answer[0].(uint32)
		} else {
			refusal = unidentified(err)
		}
		for _, c := range q.identify(name, uid, err == nil) {
			if f.errName != noOwner { // It has gone.
				c.refuse(refusal)
			}
		}
	}, busName, busPath, busName, "GetConnectionUnixUser", name)
	if err != nil {
		q.identify(name, 0, false)
		return unidentified(err)
	}
	return nil
}

// noOwner is what a bus says of a connection that has gone.
const noOwner = "org.freedesktop.DBus.Error.NameHasNoOwner"

func unidentified(err error) *dbusapi.Error {
	return dbusapi.Errorf(dbusapi.Failed, "asking the bus who calls: %v", err)
}

// costlyOf is the budget of a user.
func (s *Server) costlyOf(uid uint32) *budget {
	if uid == 0 {
		return s.costlyOfRoot
	}
	return s.costly
}

// Serve makes a backend answer, until the next one does or Withdraw is called.
func (s *Server) Serve(b Backend) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backend, s.measuredAt = b, time.Time{}
	s.turn()
}

// Withdraw takes the backend away: calls wait for the next one.
func (s *Server) Withdraw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backend = nil
	s.turn()
}

// turn wakes who waits for a backend. The caller holds mu.
func (s *Server) turn() {
	close(s.turned)
	s.turned = make(chan struct{})
}

// reloadTime bounds the wait for a backend.
const reloadTime = 10 * time.Second

// serving waits for a backend, for another one than last.
func (s *Server) serving(ctx context.Context, last Backend) (Backend, error) {
	timer := time.NewTimer(reloadTime)
	defer timer.Stop()
	for {
		s.mu.Lock()
		b, turned := s.backend, s.turned
		s.mu.Unlock()
		if b != nil && b != last {
			return b, nil
		}
		select {
		case <-turned:
		case <-timer.C:
			return nil, dbusapi.Errorf(dbusapi.Failed, "multihomed is starting; to fix: do this again in a moment")
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Publish makes a model the one that is answered with, and tells the difference. It waits while
// the bus does not read.
func (s *Server) Publish(ctx context.Context, next *dbusapi.Model) {
	now := s.now()
	s.mu.Lock()
	last, w := s.model, s.wire
	s.model = next
	s.mu.Unlock()
	if w == nil {
		return // Nobody was told of the last one either: who comes asks for all.
	}
	for _, m := range dbusapi.Changes(last, next, now) {
		if err := w.emit(ctx, m); err != nil {
			s.Logger.LogAttrs(ctx, slog.LevelDebug, "signal lost", slog.String("error", err.Error()))
		}
	}
}

// Emit sends a signal, if the name is ours.
func (s *Server) Emit(ctx context.Context, m dbusapi.Message) {
	s.mu.Lock()
	w := s.wire
	s.mu.Unlock()
	if w == nil {
		return
	}
	if err := w.emit(ctx, m); err != nil {
		s.Logger.LogAttrs(ctx, slog.LevelDebug, "signal lost", slog.String("error", err.Error()))
	}
}

// IsHeard reports whether the name is ours, so that somebody may listen.
func (s *Server) IsHeard() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wire != nil
}

// Last is the model that is answered with.
func (s *Server) Last() *dbusapi.Model {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.model
}

// measuredFor is how long measurements are answered with.
const measuredFor = time.Second

// now is what is measured.
func (s *Server) now() dbusapi.Measured {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend != nil && time.Since(s.measuredAt) >= measuredFor {
		s.measured, s.measuredAt = s.backend.Measured(), time.Now()
	}
	return s.measured
}

// emit sends a signal.
func (w *wire) emit(ctx context.Context, m dbusapi.Message) error {
	return w.send(ctx, nobody, &dbus.Message{
		Type: dbus.TypeSignal,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(m.Path), dbus.FieldInterface: dbus.MakeVariant(m.Interface),
			dbus.FieldMember: dbus.MakeVariant(m.Member), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(m.Body...)),
		},
		Body: m.Body,
	}, body{})
}
