package server

import (
	"context"
	"sync"

	"multihomed/internal/dbusapi"
	"multihomed/internal/offswitch"
)

// Bounds of the calls that have begun and are not answered.
const (
	mostUnanswered = 256
	// mostBegunOfSender and mostOfUser bound those of one connection, and of one user other than root.
	mostBegunOfSender = 16
	mostOfUser        = 96
)

// answers are the calls of one connection to the bus.
type answers struct {
	*Server
	wire *wire
	// lasting makes the context of what is done even if the bus goes.
	lasting func() (context.Context, context.CancelFunc)
	// free has a value for each call that has begun.
	free chan struct{}

	mu    sync.Mutex
	begun map[string]int
}

// enter counts a call of a sender.
func (a *answers) enter(sender string) (release func(), refusal *dbusapi.Error) {
	select {
	case a.free <- struct{}{}:
	default:
		return nil, dbusapi.Errorf(dbusapi.LimitsExceeded, "%d calls wait for an answer", mostUnanswered)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.begun == nil {
		a.begun = map[string]int{}
	}
	if a.begun[sender] >= mostBegunOfSender {
		<-a.free
		return nil, dbusapi.Errorf(dbusapi.LimitsExceeded, "%d calls of this program wait for an answer", mostBegunOfSender)
	}
	a.begun[sender]++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.begun[sender]--; a.begun[sender] == 0 {
			delete(a.begun, sender)
		}
		<-a.free
	}, nil
}

// users knows who is behind the names of connections, and counts the calls of each user.
type users struct {
	mu    sync.Mutex
	known map[string]uint32
	calls map[uint32]int
}

// mostKnown bounds what is kept of connections; then all is asked again.
const mostKnown = 1024

func newUsers() *users { return &users{known: map[string]uint32{}, calls: map[uint32]int{}} }

// reset forgets everybody: another bus gives the same names to others.
func (u *users) reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.known)
}

// of asks the bus for the user of a sender. A bus gives a name to one connection alone.
func (u *users) of(ctx context.Context, w *wire, sender string) (uint32, error) {
	u.mu.Lock()
	uid, known := u.known[sender]
	u.mu.Unlock()
	if known {
		return uid, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	answer, err := w.call(ctx, busName, busPath, busName, "GetConnectionUnixUser", "u", sender)
	if err != nil {
		return 0, err
	}
	uid = answer[0].(uint32)
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.known) >= mostKnown {
		clear(u.known)
	}
	u.known[sender] = uid
	return uid, nil
}

// enter counts a call of a user.
func (u *users) enter(uid uint32) (leave func(), refusal *dbusapi.Error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if uid != 0 && u.calls[uid] >= mostOfUser {
		return nil, dbusapi.Errorf(dbusapi.LimitsExceeded, "%d calls of this user wait for an answer", mostOfUser)
	}
	u.calls[uid]++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.calls[uid]--; u.calls[uid] == 0 {
			delete(u.calls, uid)
		}
	}, nil
}

// name is the name of a user.
func (u *users) name(uid uint32) string { return offswitch.UserName(uid) }
