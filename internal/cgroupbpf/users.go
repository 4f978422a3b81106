package cgroupbpf

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Users are those from First to Last, both included, by their numbers outside of user namespaces.
type Users struct{ First, Last uint32 }

// check refuses a range that is none, and root: it is whom the kernel and most services use.
func (u Users) check() error {
	switch {
	case u.First > u.Last:
		return fmt.Errorf("users %d to %d are none; to fix: write the lower number first", u.First, u.Last)
	case u.First == 0:
		return errors.New("user 0 is root, and binding it would bind the whole host; to fix: bind a unit instead of a user")
	}
	return nil
}

// usersProgram sets the mark of sockets that processes of some users make. The real user counts, so that a program with a set-user-ID
// bit is bound like its caller. Other network namespaces are left alone: in a container there are other
// users with the same numbers, neither the link nor its rules, and a resolver of its own.
func usersProgram(u Users, m Mark, network uint64) program {
	p := markProgram(m,
		move(r6, r1),
		call(getNetwork),
		wide(r1, network),
		ifOther(r0, r1, "pass"),
		call(getUIDAndGID), // The user is in the lower half.
		ifMore(r0, u.Last, "pass"),
		ifMore(r0, u.First-1, "theirs"),
		jump("pass"),
		place("theirs"),
		move(r1, r6),
	)
	p.name = "mh_users"
	return p
}

// Links hold programs attached: these end with the last copy of the descriptors, also when the process is killed.
type Links struct{ files []*os.File }

// Files are the descriptors, for another process. They remain the Links'.
func (l *Links) Files() []*os.File { return l.files }

// Close detaches the programs, if no other process has the descriptors. Sockets keep their mark.
func (l *Links) Close() (err error) {
	for _, f := range l.files {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("ending the binding of users: %w", err)
	}
	return nil
}

// AttachUsers binds the sockets that processes of some users make from now on, in a cgroup and in all below it: for the
// whole host that is the root. It binds sockets of one network namespace, told by
// its cookie (SO_NETNS_COOKIE). Without a map, DNS queries go where they are sent. A cgroup that is bound by [Attach] keeps its own
// link, because the innermost decides.
//
// DNS programs act on all sockets with the mark: where several ranges are bound to a link, one of them needs the map.
//
// Errors: as those of [Attach].
func AttachUsers(root *os.File, u Users, network uint64, m Mark, dns *DNSMap) (*Links, error) {
	if err := errors.Join(u.check(), m.check()); err != nil {
		return nil, err
	}
	raw, err := root.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("attaching to a cgroup: %w", err)
	}
	links := &Links{}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = withPrograms(usersProgram(u, m, network), m, dns, func(all []loaded) error { return links.add(int(fd), all) })
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, errors.Join(fmt.Errorf("binding users to a link: %w", err), links.Close())
	}
	return links, nil
}

// add attaches programs to a cgroup.
func (l *Links) add(cgroup int, all []loaded) error {
	for _, p := range all {
		a := linkAttr{program: uint32(p.fd), target: uint32(cgroup), attach: p.attach} //nolint:gosec // Descriptors are small.
		fd, err := bpf(unix.BPF_LINK_CREATE, &a)
		if err != nil {
			return fmt.Errorf("attaching %s: %w", p.name, err)
		}
		l.files = append(l.files, os.NewFile(uintptr(fd), p.name))
	}
	return nil
}
