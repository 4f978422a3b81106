package binder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"multihomed/internal/binder/wire"
)

// unknownUser is whom the kernel names for users that this namespace does not know (DEFAULT_OVERFLOWUID in
// include/linux/highuid.h): it may be anybody.
const unknownUser = 65534

// maxGroups bounds the supplementary groups of a peer; the kernel allows 65,536 (NGROUPS_MAX).
const maxGroups = 65536

// control calls f with the descriptor of a socket.
func control[T any](c syscall.Conn, f func(fd int) (T, error)) (got T, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return got, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { got, failed = f(int(fd)) })
	return got, errors.Join(err, failed)
}

// peerOf asks the kernel who connected.
func peerOf(c *net.UnixConn) (Peer, error) {
	p, err := control(c, func(fd int) (Peer, error) {
		who, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return Peer{}, err
		}
		groups, err := peerGroups(fd)
		return Peer{UID: who.Uid, GID: who.Gid, PID: who.Pid, Groups: groups}, err
	})
	if err != nil {
		return Peer{}, fmt.Errorf("asking the kernel for a client: %w", err)
	}
	return p, nil
}

func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4) //nolint:gosec // Bounded by maxGroups.
		//nolint:gosec // The kernel is told where groups are, and how many.
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		// It says how much room it needs.
		case errno == unix.ERANGE && size/4 > uint32(len(groups)) && size/4 <= maxGroups: //nolint:gosec // Bounded.
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}

// networkOf is the cookie of a socket's network namespace. The kernel gives that of the client to the socket that
// accept(2) returns (unix_stream_connect in net/unix/af_unix.c).
func networkOf(c syscall.Conn) (uint64, error) {
	cookie, err := control(c, func(fd int) (uint64, error) { return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE) })
	if err != nil {
		return 0, fmt.Errorf("asking for a network namespace: %w", err)
	}
	return cookie, nil
}

// receive reads a datagram and the file that comes with it.
func receive(ctx context.Context, c *net.UnixConn) (datagram []byte, file *os.File, err error) {
	deadline, _ := ctx.Deadline()
	if err := c.SetReadDeadline(deadline); err != nil {
		return nil, nil, err
	}
	// There is room for one descriptor, without the padding, which is room for another: the kernel drops the others, and
	// says so. The byte more shows that a datagram is too long.
	datagram, room := make([]byte, max(wire.MaxRequest, wire.MaxChange, wire.MaxUsers)+1), make([]byte, unix.CmsgLen(sizeofDescriptor))
	n, controlled, flags, _, err := c.ReadMsgUnix(datagram, room)
	file = passed(room[:controlled])
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, file, badRequest("no request came within %v", patience)
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return nil, file, badRequest("the client went without a request")
	case err != nil:
		return nil, file, fmt.Errorf("reading a request: %w", err)
	case flags&unix.MSG_CTRUNC != 0 && file != nil:
		return nil, file, badRequest("a request comes with one descriptor and no more; to fix: use multihomectl run")
	}
	return datagram[:n], file, nil
}

// sizeofDescriptor is that of a C int.
const sizeofDescriptor = 4

// passed returns the descriptor that came with a message, nil if none did.
func passed(room []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(room)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "passed")
		}
	}
	return nil
}

// fixCgroup says how to get a cgroup.
const fixCgroup = "; to fix: use multihomectl run, which makes a cgroup of cgroup v2"

// checkCgroup refuses what is not a cgroup that the peer may bind.
func checkCgroup(cgroup *os.File, p Peer, trusted bool) error {
	_, err := control(cgroup, func(fd int) (struct{}, error) { return struct{}{}, checkDirectory(fd, p, trusted) })
	return err
}

func checkDirectory(fd int, p Peer, trusted bool) error {
	var system unix.Statfs_t
	var file unix.Stat_t
	if err := errors.Join(unix.Fstatfs(fd, &system), unix.Fstat(fd, &file)); err != nil {
		return fmt.Errorf("looking at the cgroup: %w", err)
	}
	if system.Type != unix.CGROUP2_SUPER_MAGIC || file.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errors.New("what was passed is not the directory of a cgroup v2" + fixCgroup)
	}
	// Every cgroup has this file but the root (Documentation/admin-guide/cgroup-v2.rst).
	err := unix.Faccessat(fd, "cgroup.type", unix.F_OK, 0)
	if errors.Is(err, unix.ENOENT) {
		return gone(fd)
	}
	switch {
	case err != nil:
		return fmt.Errorf("looking at the cgroup: %w", err)
	case trusted:
		return nil
	case p.UID == unknownUser:
		return fmt.Errorf("user %d may be anybody, and owns no cgroup; to fix: run it as another user, outside of user namespaces", p.UID)
	case file.Uid != p.UID:
		return fmt.Errorf("the cgroup belongs to user %d, and user %d asks; to fix: use a cgroup that was delegated to you, for example by `systemd-run --user --scope`", file.Uid, p.UID)
	}
	return checkAlone(fd, p)
}

// gone tells the root of the hierarchy from a cgroup that was removed: that has no files at all.
func gone(fd int) error {
	if unix.Faccessat(fd, "cgroup.procs", unix.F_OK, 0) != nil {
		return errors.New("the cgroup has been removed" + fixCgroup)
	}
	return errors.New("this is the root of all cgroups, and binding it would bind the whole host" + fixCgroup)
}

// checkAlone refuses a cgroup that holds more than the caller: other cgroups or processes may be somebody else's.
func checkAlone(fd int, p Peer) error {
	stat, err := readFile(fd, "cgroup.stat")
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(stat, []byte("nr_descendants 0\n")) {
		return errors.New("the cgroup holds further cgroups" + fixCgroup)
	}
	procs, err := readFile(fd, "cgroup.procs")
	if err != nil {
		return err
	}
	if pids := strings.Fields(string(procs)); len(pids) > 1 || len(pids) == 1 && (p.PID <= 0 || pids[0] != strconv.Itoa(int(p.PID))) {
		return errors.New("the cgroup holds processes other than the caller" + fixCgroup)
	}
	return nil
}

// readFile reads the start of a file of a cgroup.
func readFile(directory int, name string) ([]byte, error) {
	fd, err := unix.Openat(directory, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("reading %s of the cgroup: %w", name, err)
	}
	b := make([]byte, 256)
	n, err := unix.Read(fd, b)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return nil, fmt.Errorf("reading %s of the cgroup: %w", name, err)
	}
	return b[:n], nil
}
