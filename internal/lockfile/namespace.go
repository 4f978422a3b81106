package lockfile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

// The lock of a network namespace is a Unix socket with an abstract name: the kernel keeps
// those for each network namespace (unix(7)), and frees them when their holder dies. Any user
// may bind such a name. So the kernel is asked for the owner of a socket (NETLINK_SOCK_DIAG,
// sock_diag(7)): a name that an ordinary user holds is skipped, and the next one counts.
const (
	namespaceName = "multihomed/network-namespace/"
	// names bounds how many names ordinary users can hold before the lock is given up.
	names = 64
)

// ErrSquatted says that ordinary users hold all names of the lock.
var ErrSquatted = errors.New("ordinary users hold all names of the lock of the network namespace; to fix: find them with `ss -xap`, and end them")

// A NamespaceHeldError says that another process of ours works in this network
// namespace.
type NamespaceHeldError struct{ UID uint32 }

func (e *NamespaceHeldError) Error() string {
	return fmt.Sprintf("another multihomed works in this network namespace: a process of user %d; to fix: stop it (find it with `ss -xap src '*@%s*'`)", e.UID, namespaceName)
}

// A Namespace is the lock of the network namespace, held until Close.
type Namespace struct{ fd int }

// Close gives the lock back.
func (n *Namespace) Close() error { return unix.Close(n.fd) }

// TryNamespace takes the lock of the network namespace, whatever the runtime directory,
// or returns a [NamespaceHeldError] if a process of one of the trusted users holds it.
// Others cannot keep anybody from taking it: at worst nobody does, with [ErrSquatted].
func TryNamespace(trusted ...uint32) (_ *Namespace, err error) {
	fd, err := mute()
	if err != nil {
		return nil, fmt.Errorf("locking the network namespace: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	own := ""
	for i := range names {
		name := fmt.Sprintf("%s%d", namespaceName, i)
		err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + name})
		if err == nil {
			own = name
			break
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("locking the network namespace: %w", err)
		}
	}
	// Check all names even after a success: an ordinary user may just have freed this one.
	holders, err := named(namespaceName)
	if err != nil {
		return nil, err
	}
	for name, s := range holders {
		if name != own && slices.Contains(trusted, s.uid) {
			return nil, &NamespaceHeldError{UID: s.uid}
		}
	}
	if own == "" {
		return nil, ErrSquatted
	}
	return &Namespace{fd: fd}, nil
}

// mute opens a socket that is there for its name alone: nothing is ever sent to it.
func mute() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Constants of linux/unix_diag.h: what to show, the attributes of the answer, and the size and
// offsets of struct unix_diag_msg.
const (
	diagShowName = 0x1
	diagShowUID  = 0x40
	diagName     = 0
	diagUID      = 7
	diagHeader   = 16
	diagType     = 1
	diagInode    = 4
)

// A socket is one with a name of ours: its owner, and its inode.
type socket struct{ uid, inode uint32 }

// named returns the sockets of this network namespace whose abstract names have a prefix, by name.
func named(prefix string) (_ map[string]socket, err error) {
	doing := func(err error) error { return fmt.Errorf("looking for the holder of the network namespace: %w", err) }
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, doing(err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return nil, doing(err)
	}
	var request nlmsg.Builder
	request.Begin(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, 0)
	request.Bytes(unix.AF_UNIX, 0, 0, 0) // struct unix_diag_req
	for _, word := range []uint32{^uint32(0), 0, diagShowName | diagShowUID, 0, 0} {
		request.Word(word)
	}
	request.End()
	if err := unix.Sendto(fd, request.B, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, doing(err)
	}
	out := map[string]socket{}
	buffer := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return nil, doing(err)
		}
		for rest := buffer[:n]; len(rest) > 0; {
			var h nlmsg.Header
			var payload []byte
			if h, payload, rest, err = nlmsg.Next(rest); err != nil {
				return nil, doing(err)
			}
			switch {
			case h.Kind == unix.NLMSG_DONE:
				return out, nil
			case h.Kind == unix.NLMSG_ERROR:
				return nil, doing(nlmsg.ErrorOf(h, payload))
			case len(payload) >= diagHeader && payload[diagType] == unix.SOCK_DGRAM: // Each socket type has its own names.
				if name, uid, is := holderOf(payload[diagHeader:], prefix); is {
					out[name] = socket{uid, binary.NativeEndian.Uint32(payload[diagInode:])}
				}
			}
		}
	}
}

// holderOf reads the attributes of a socket.
func holderOf(attributes []byte, prefix string) (name string, uid uint32, is bool) {
	hasUID := false
	for a := (nlmsg.Attributes{Rest: attributes}); a.Next(); {
		switch a.Kind {
		case diagName:
			name = string(a.Value)
		case diagUID:
			if len(a.Value) == 4 {
				uid, hasUID = a.Uint32(), true
			}
		}
	}
	name, abstract := strings.CutPrefix(name, "\x00")
	return name, uid, hasUID && abstract && strings.HasPrefix(name, prefix)
}

// NamespaceHolder reports whether a process of one of the trusted users holds the lock of the
// network namespace. That process works, even without its runtime directory. The process is
// 0 if this user may not see it.
func NamespaceHolder(trusted ...uint32) (pid int, held bool, err error) {
	all, err := named(namespaceName)
	if err != nil {
		return 0, false, err
	}
	for _, s := range all {
		if !slices.Contains(trusted, s.uid) {
			continue
		}
		held = true
		if pid = ownerOf(s.inode); pid != 0 {
			return pid, true, nil
		}
	}
	return 0, held, nil
}

// ownerOf finds the process that has a socket open, 0 if none is seen (proc(5)).
func ownerOf(inode uint32) int {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, p := range processes {
		if pid, err := strconv.Atoi(p.Name()); err == nil && hasSocket(pid, inode) {
			return pid
		}
	}
	return 0
}

func hasSocket(pid int, inode uint32) bool {
	directory := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(directory)
	if err != nil {
		return false
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	for _, f := range files {
		if to, err := os.Readlink(filepath.Join(directory, f.Name())); err == nil && to == want {
			return true
		}
	}
	return false
}

// EndNamespaceHolder kills the process that holds the lock of the network namespace, and
// waits until it has ended. It returns its number, 0 if nobody holds the lock any more.
func EndNamespaceHolder(ctx context.Context, trusted ...uint32) (pid int, err error) {
	pid, held, err := NamespaceHolder(trusted...)
	switch {
	case err != nil:
		return 0, err
	case !held:
		return 0, nil
	case pid == 0:
		return 0, errors.New("the process that holds the lock of the network namespace is not visible here")
	}
	p, err := openProcess(pid)
	if p == nil || err != nil {
		return 0, err
	}
	defer p.Close()
	ended, err := p.end(ctx, func() (bool, error) {
		now, held, err := NamespaceHolder(trusted...)
		return held && now == pid, err
	})
	if err != nil {
		return 0, fmt.Errorf("ending process %d, which works in this network namespace: %w", pid, err)
	}
	if !ended {
		return 0, nil
	}
	return pid, nil
}

// serviceUser is the user of the unit.
const serviceUser = "multihomed"

// TrustedUsers are the users that multihomed runs as: root, the user of this process and of
// the unit, and the owners of its directories.
func TrustedUsers(directories ...string) []uint32 {
	all := []uint32{0, uint32(os.Geteuid())} //nolint:gosec // user numbers are 32 bits wide
	for _, d := range directories {
		if info, err := os.Stat(d); err == nil {
			if owner, is := info.Sys().(*syscall.Stat_t); is {
				all = append(all, owner.Uid)
			}
		}
	}
	if u, err := user.Lookup(serviceUser); err == nil {
		if uid, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
			all = append(all, uint32(uid))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
