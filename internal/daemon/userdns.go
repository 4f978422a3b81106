package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"multihomed/internal/binder/client"
	"multihomed/internal/binder/wire"
	"multihomed/internal/binding"
	"multihomed/internal/escape"
	"multihomed/internal/event"
	"multihomed/internal/holding"
	"multihomed/internal/news"
	"multihomed/routing"
)

// Programs of users who are bound to a link ask its DNS servers. The rules cannot do that: a resolver on the loopback is another
// user's, and asks by any link. So multihomed-binder attaches programs to the root of all cgroups, which mark the sockets of
// these users and redirect their queries. They end with the last of their descriptors, which are here and in
// systemd's store: a daemon that is killed or restarted changes nothing, and after a stop, as for `flush` and when the package is
// removed, nothing of them is left.

// userLinks are the attached programs. They outlive a change of the configuration.
type userLinks struct {
	// store and forget keep descriptors for the next process.
	store  func(name string, f *os.File) error
	forget func(name string)

	mu       sync.Mutex
	attached []attachedUsers
	// made counts the attachments, beyond those of earlier processes.
	made uint64
}

// attachedUsers is an attachment with its descriptors, and their name in systemd's store.
type attachedUsers struct {
	what  binding.Attachment
	files []*os.File
	name  string
}

const (
	usersPrefix = "users-"
	// mostStored bounds what is taken from systemd's store. The kernel takes 64 programs of a kind.
	mostStored = 256
)

// storeName tells the attachment of an earlier process from others, and says what it is.
func storeName(a binding.Attachment, number uint64) string {
	dns := 0
	if a.DNS {
		dns = 1
	}
	return fmt.Sprintf("%s%d-%d-%x-%x-%d-%d", usersPrefix, a.Users.First, a.Users.Last, a.Mark.Value, a.Mark.Mask, dns, number)
}

// parseStoreName is the reverse of storeName. The name of the link is not in it.
func parseStoreName(name string) (a binding.Attachment, number uint64, is bool) {
	words := strings.Split(strings.TrimPrefix(name, usersPrefix), "-")
	if len(words) != 6 {
		return a, 0, false
	}
	var all [6]uint64
	for n, w := range words {
		base, bits := 10, 32
		switch n {
		case 2, 3:
			base = 16
		case 5:
			bits = 63
		}
		v, err := strconv.ParseUint(w, base, bits)
		if err != nil {
			return a, 0, false
		}
		all[n] = v
	}
	a.Users = routing.UIDRange{Set: true, First: uint32(all[0]), Last: uint32(all[1])} //nolint:gosec // Parsed as 32 bits.
	a.Mark = routing.Mark{Value: uint32(all[2]), Mask: uint32(all[3])}                 //nolint:gosec // see above
	a.DNS = all[4] == 1
	return a, all[5], storeName(a, all[5]) == name
}

// takeStored takes what systemd kept, by its name, and reports whether it is an attachment's. What an earlier process attached
// stays until the same is attached anew, or nobody wants it.
func (l *userLinks) takeStored(name string, f *os.File) bool {
	a, number, is := parseStoreName(name)
	if !is {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made = max(l.made, number)
	at := slices.IndexFunc(l.attached, func(o attachedUsers) bool { return o.name == name })
	if at < 0 && len(l.attached) < mostStored {
		at = len(l.attached)
		l.attached = append(l.attached, attachedUsers{what: a, name: name})
	}
	if at < 0 || len(l.attached[at].files) > wire.MaxLinks {
		_ = f.Close() // Nobody wants it.
		l.forget(name)
		return true
	}
	l.attached[at].files = append(l.attached[at].files, f)
	return true
}

// all are the attachments.
func (l *userLinks) all() (out []binding.Attachment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.attached {
		out = append(out, a.what)
	}
	return out
}

// add keeps what was attached. It is kept also where systemd does not: then it ends with this process, which the error says.
func (l *userLinks) add(what binding.Attachment, files []*os.File) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made++
	a := attachedUsers{what, files, storeName(what, l.made)}
	l.attached = append(l.attached, a)
	for _, f := range files {
		if err := l.store(a.name, f); err != nil {
			return err
		}
	}
	return nil
}

// end ends attachments, and returns them.
func (l *userLinks) end(is func(binding.Attachment) bool) (ended []binding.Attachment, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var left []attachedUsers
	for _, a := range l.attached {
		if !is(a.what) {
			left = append(left, a)
			continue
		}
		l.forget(a.name)
		ended = append(ended, a.what)
		err = errors.Join(err, closeFiles(a.files))
	}
	l.attached = left
	return ended, err
}

// close closes all. systemd has its own copies, unless this is a stop.
func (l *userLinks) close() (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.attached {
		err = errors.Join(err, closeFiles(a.files))
	}
	l.attached = nil
	return err
}

func closeFiles(all []*os.File) (err error) {
	for _, f := range all {
		err = errors.Join(err, f.Close())
	}
	return err
}

const (
	// leastPause and longestPause bound the time between attempts, which grows.
	leastPause   = 5 * time.Second
	longestPause = 2 * time.Minute
)

// errLater says that the next attempt is not due.
var errLater = errors.New("not yet")

// userNames follow what is bound, and have the programs attached.
type userNames struct {
	log   *slog.Logger
	links *userLinks
	maps  *holding.Maps
	fault func(routing.Code, error)
	// bind asks multihomed-binder.
	bind func(context.Context, wire.Users, *os.File) ([]*os.File, *os.File, error)
	// led are the users, and false if that is not known.
	led func() ([]binding.Led, bool)
	// rules waits until the rules of all marks stand.
	rules func(context.Context) error
	// servers are those of a link; kept is called when a map of its servers was kept.
	servers func(ctx context.Context, link string) (wire.DNS, error)
	kept    func()

	// asked has a number for each change.
	asked  *news.Slot[uint64]
	number atomic.Uint64
	// tried is the number of the last attempt, due when the next one is, after a pause. They are run's.
	tried uint64
	due   time.Time
	pause time.Duration
}

func newUserNames(s *service) *userNames {
	return &userNames{
		log: s.Logger, links: s.users, maps: s.maps, fault: s.fault, asked: news.NewSlot[uint64](),
		bind: func(ctx context.Context, u wire.Users, dns *os.File) ([]*os.File, *os.File, error) {
			return client.BindUsers(ctx, client.DefaultPath, u, dns)
		},
	}
}

// of gives it the parts, which know what is bound.
func (u *userNames) of(p *parts, h *holder) {
	u.led = p.bindings.Led
	u.rules = func(ctx context.Context) error {
		if err := p.stand(ctx); err != nil {
			return fmt.Errorf("waiting for the rules of bound users: %w", err)
		}
		return nil
	}
	u.servers = func(ctx context.Context, link string) (wire.DNS, error) {
		servers, _, err := h.servers(ctx, link)
		if err != nil {
			return wire.DNS{}, fmt.Errorf("looking for the DNS servers of %s: %w", link, err)
		}
		// A missing file names no resolver; those of the loopback are replaced anyway.
		resolvers, _ := holding.ReadResolvers(holding.ResolvConf)
		return holding.Choose(servers, resolvers), nil
	}
	u.kept = h.again.Give
}

// look asks for one more look. It never waits.
func (u *userNames) look() { u.asked.Put(u.number.Add(1)) }

// run follows until ctx is done.
func (u *userNames) run(ctx context.Context) error {
	u.look() // An earlier process may have left what nobody wants.
	return u.asked.Follow(ctx, leastPause, func(ctx context.Context, number uint64) error {
		if number == u.tried && time.Now().Before(u.due) {
			return errLater
		}
		if number != u.tried {
			u.tried, u.pause = number, leastPause
		}
		err := u.keep(ctx)
		if ctx.Err() != nil {
			return err
		}
		u.fault(userNamesFault, err)
		u.due, u.pause = time.Now().Add(u.pause), min(2*u.pause, longestPause)
		return err
	})
}

// keep attaches what is missing, and then ends what nobody wants any more: at no time is somebody unled in between.
func (u *userNames) keep(ctx context.Context) error {
	led, known := u.led()
	if !known {
		return nil // Not knowing is not emptiness.
	}
	wanted := binding.Attachments(led)
	missing := binding.Missing(wanted, u.links.all())
	var errs []error
	var failed []binding.Attachment
	if len(missing) > 0 {
		// A marked socket without rules would leave by any link.
		if err := u.rules(ctx); err != nil {
			return err
		}
	}
	for _, a := range missing {
		if err := u.attach(ctx, a); err != nil {
			failed = append(failed, a)
			errs = append(errs, fmt.Errorf("DNS queries of %s, bound to %s, go where the host's resolver sends them: %w", usersText(a.Users), escape.Text(a.Link), err))
		}
	}
	ended, err := u.links.end(func(a binding.Attachment) bool { return a.Outlived(wanted, failed) })
	if err != nil {
		u.log.LogAttrs(ctx, event.LevelNotice, "ending the programs of bound users failed", slog.String("error", err.Error()))
	}
	for _, a := range ended {
		u.log.LogAttrs(ctx, slog.LevelDebug, "programs of bound users ended", slog.String("users", usersText(a.Users)))
	}
	if len(errs) > 0 {
		return errs[0] // The others have the same cause, as a rule.
	}
	return nil
}

func usersText(u routing.UIDRange) string {
	if u.First == u.Last {
		return fmt.Sprintf("user %d", u.First)
	}
	return fmt.Sprintf("users %d-%d", u.First, u.Last)
}

// attach has one range bound.
func (u *userNames) attach(ctx context.Context, a binding.Attachment) error {
	request := wire.Users{First: a.Users.First, Last: a.Users.Last, Value: a.Mark.Value, Mask: a.Mark.Mask}
	var old *os.File
	if a.DNS {
		if old = u.maps.Of(a.Link); old != nil {
			request.Names = wire.OldMap
		} else if err := u.withServers(ctx, &request, a.Link); err != nil {
			return err
		}
	}
	links, made, err := u.bind(ctx, request, old)
	if r, is := errors.AsType[client.Refusal](err); is && old != nil && r.Code == wire.BadRequest {
		// The map is one of an earlier version.
		if err := u.withServers(ctx, &request, a.Link); err != nil {
			return err
		}
		links, made, err = u.bind(ctx, request, nil)
	}
	if err != nil {
		return err
	}
	if made != nil {
		err = u.maps.Keep(a.Link, made, request.DNS)
		u.kept()
	}
	if err := errors.Join(err, u.links.add(a, links)); err != nil {
		// They are there all the same, until the daemon ends.
		u.log.LogAttrs(ctx, event.LevelNotice, "systemd does not keep the programs of bound users over a restart", slog.String("error", err.Error()))
	}
	u.log.LogAttrs(ctx, slog.LevelDebug, "DNS queries of bound users led", slog.String("users", usersText(a.Users)), slog.String("link", a.Link))
	return nil
}

// withServers has a map made of the servers that a link has now.
func (u *userNames) withServers(ctx context.Context, request *wire.Users, link string) (err error) {
	request.Names = wire.NewMap
	request.DNS, err = u.servers(ctx, link)
	return err
}
