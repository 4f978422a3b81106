package server

import (
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Access says who may lease. Root always may.
type Access struct {
	// Users and Groups are names or numbers. What does not exist (yet) matches
	// nobody.
	Users, Groups []string
}

// memory is how long a decision about a user is kept: asking the files of users
// and groups takes longer than a lease.
const memory = 10 * time.Second

// maxRemembered bounds the decisions kept.
const maxRemembered = 1024

// An arbiter decides who may lease.
type arbiter struct {
	access Access
	now    func() time.Time

	mu    sync.Mutex
	known map[identity]verdict
}

// An identity is what the kernel says of a sender.
type identity struct{ uid, gid uint32 }

type verdict struct {
	allowed bool
	until   time.Time
}

func newArbiter(access Access) *arbiter {
	return &arbiter{access: access, now: time.Now, known: map[identity]verdict{}}
}

func (a *arbiter) allows(uid, gid uint32) bool {
	if uid == 0 {
		return true
	}
	id := identity{uid, gid}
	a.mu.Lock()
	defer a.mu.Unlock()
	if v, ok := a.known[id]; ok && a.now().Before(v.until) {
		return v.allowed
	}
	if len(a.known) >= maxRemembered {
		clear(a.known)
	}
	allowed := a.judge(id)
	a.known[id] = verdict{allowed: allowed, until: a.now().Add(memory)}
	return allowed
}

// judge asks the databases of users and groups. A group is one that the sender
// runs as, or one of which its user is a member.
func (a *arbiter) judge(id identity) bool {
	uid := strconv.FormatUint(uint64(id.uid), 10)
	groups := []string{strconv.FormatUint(uint64(id.gid), 10)}
	names := []string{uid}
	if u, err := user.LookupId(uid); err == nil {
		names = append(names, u.Username)
		if member, err := u.GroupIds(); err == nil {
			groups = append(groups, member...)
		}
	}
	if slices.ContainsFunc(names, func(n string) bool { return slices.Contains(a.access.Users, n) }) {
		return true
	}
	for _, g := range groups {
		if slices.Contains(a.access.Groups, g) {
			return true
		}
	}
	for _, name := range a.access.Groups {
		if g, err := user.LookupGroup(name); err == nil && slices.Contains(groups, g.Gid) {
			return true
		}
	}
	return false
}
