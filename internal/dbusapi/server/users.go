package server

import (
	"context"
	"sync"

	"multihomed/internal/dbusapi"
)

// Bounds of the calls that have begun and are not answered.
const (
	// mostUnanswered bounds those of all users but root, who has as many alone.
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
}

// begun counts calls that have begun and are not answered. They may outlast a connection to the bus,
// and then a name of it may be somebody else's: that counts for both.
type begun struct {
	mu      sync.Mutex
	senders map[string]int
	users   map[uint32]int
	// others are those of all users but root.
	others int
}

func newBegun() *begun { return &begun{senders: map[string]int{}, users: map[uint32]int{}} }

// enter counts a call until release.
func (b *begun) enter(c *call) (release func(), refusal *dbusapi.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	sender, uid := c.sender, c.uid
	switch ofUser := b.users[uid]; {
	case b.senders[sender] >= mostBegunOfSender:
		return nil, dbusapi.Errorf(dbusapi.LimitsExceeded, "%d calls of this program wait for an answer", mostBegunOfSender)
	case uid == 0 && ofUser >= mostUnanswered:
		return nil, dbusapi.Errorf(dbusapi.LimitsExceeded, "%d calls of root wait for an answer", mostUnanswered)
	case uid != 0 && ofUser >= mostOfUser:
		return nil, dbusapi.Errorf(dbusapi.LimitsExceeded, "%d calls of this user wait for an answer", mostOfUser)
	case uid != 0 && b.others >= mostUnanswered:
		return nil, dbusapi.Errorf(dbusapi.LimitsExceeded, "%d calls wait for an answer", mostUnanswered)
	}
	b.add(sender, uid, 1)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.add(sender, uid, -1)
	}, nil
}

func (b *begun) add(sender string, uid uint32, n int) {
	if b.senders[sender] += n; b.senders[sender] == 0 {
		delete(b.senders, sender)
	}
	if b.users[uid] += n; b.users[uid] == 0 {
		delete(b.users, uid)
	}
	if uid != 0 {
		b.others += n
	}
}
