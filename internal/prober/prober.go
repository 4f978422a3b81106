// Package prober is the process multihomed-prober: it sends the probes that the daemon asks for, and
// reads what the kernel knows about TCP connections. The daemon itself has CAP_NET_ADMIN, and therefore
// no IP sockets; this process has IP sockets, and therefore no capability.
//
// It serves one client at a time, over the protocol of package wire. Others wait in the socket's
// queue. Everything a client can make it hold is bounded, and a client that does not read its reports
// is not served, but its answers are still noted.
//
// Every probe has a socket of its own, which one goroutine watches by epoll(7), because only that can
// say up to which time everything was delivered: the horizon.
package prober

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"multihomed/internal/activation"
	"multihomed/internal/notify"
)

// Options are what the process was told.
type Options struct {
	// Socket is the path to listen at. Empty means that systemd passed the socket.
	Socket string
	Logger *slog.Logger
}

// ErrNoSocket says that there is nothing to listen at.
var ErrNoSocket = errors.New("no socket was passed by systemd; to fix: start multihomed-prober.socket, or use --socket")

// nobody is the user and the group of a prober that root has started: those that the kernel shows for
// users it cannot map (DEFAULT_OVERFLOWUID in include/linux/highuid.h).
const nobody = 65534

// Run serves clients until ctx is done. With a socket of systemd it ends when its first client goes:
// systemd starts it again for the next one.
func Run(ctx context.Context, o Options) (err error) {
	listener, once, err := listen(o.Socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(listener)) }()
	users, err := allowed(listener)
	if err != nil {
		return err
	}
	if err := dropRights(); err != nil {
		return err
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("making an eventfd: %w", err)
	}
	stopped := make(chan struct{})
	release := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// Its counter is far from full, so that this does not block.
		_, _ = unix.Write(stop, binary.NativeEndian.AppendUint64(nil, 1))
	})
	defer func() {
		if !release() {
			<-stopped
		}
		err = errors.Join(err, unix.Close(stop))
	}()
	manager := notify.New(o.Logger)
	manager.Ready()
	p := process{listener: listener, stop: stop, users: users, log: o.Logger, manager: manager}
	for {
		client, err := p.accept(ctx)
		if err != nil || client < 0 {
			return err
		}
		switch err := serve(ctx, client, stop, manager.Alive); {
		case errors.Is(err, errRequest):
			o.Logger.LogAttrs(ctx, slog.LevelWarn, "client refused", slog.String("error", err.Error()))
		case err != nil:
			return err
		}
		if once || ctx.Err() != nil {
			return nil
		}
	}
}

type process struct {
	listener, stop int
	users          []uint32
	log            *slog.Logger
	manager        *notify.Notifier
}

// accept waits for a client that may ask. It returns -1 when ctx is done.
func (p process) accept(ctx context.Context) (int, error) {
	fds := []unix.PollFd{{Fd: int32(p.listener), Events: unix.POLLIN}, {Fd: int32(p.stop), Events: unix.POLLIN}} //nolint:gosec // Descriptors are small.
	for ctx.Err() == nil {
		p.manager.Alive()
		if _, err := unix.Poll(fds, int(beat.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return -1, fmt.Errorf("waiting for clients: %w", err)
		}
		client, _, err := unix.Accept4(p.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
			continue
		case err != nil:
			return -1, fmt.Errorf("taking a client: %w", err)
		}
		peer, err := unix.GetsockoptUcred(client, unix.SOL_SOCKET, unix.SO_PEERCRED)
		isAllowed := err == nil && slices.Contains(p.users, peer.Uid)
		if isAllowed && !isGone(client) {
			return client, nil
		}
		if isAllowed {
			// It went while it waited in the queue, and needs no process of its own.
			if err := unix.Close(client); err != nil {
				return -1, fmt.Errorf("leaving out a client that is gone: %w", err)
			}
			continue
		}
		p.log.LogAttrs(ctx, slog.LevelWarn, "client refused, because only root and the owner of the socket may ask", slog.Any("peer", peer))
		if err := unix.Close(client); err != nil {
			return -1, fmt.Errorf("refusing a client: %w", err)
		}
	}
	return -1, nil
}

// isGone reports whether the other side of a socket was closed. The kernel always tells of that
// (poll(2), POLLHUP).
func isGone(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}} //nolint:gosec // Descriptors are small.
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLHUP != 0
}

// listen returns the listening socket, and whether it is systemd's.
func listen(path string) (fd int, systemd bool, err error) {
	if path != "" {
		fd, err = listenAt(path)
		return fd, false, err
	}
	files := activation.Files()
	if len(files) == 0 {
		return -1, true, ErrNoSocket
	}
	fd = -1
	for _, f := range files {
		if fd < 0 {
			fd, err = adopt(f)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return -1, true, fmt.Errorf("socket activation: %w; to fix: see multihomed-prober.socket", err)
	}
	return fd, true, nil
}

// adopt takes over a socket of systemd.
func adopt(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(inherited uintptr) { fd, dupErr = unix.FcntlInt(inherited, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return -1, err
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	kind, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err = errors.Join(err, err2); err == nil && (domain != unix.AF_UNIX || kind != unix.SOCK_SEQPACKET) {
		err = errors.New("it is no AF_UNIX socket of type SOCK_SEQPACKET; in a unit that is ListenSequentialPacket=/PATH")
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// listenAt makes a socket at a path, for its owner only. Root gives it to the owner of the directory. A
// socket that nobody listens at is replaced.
func listenAt(path string) (_ int, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("listening at %s: %w", path, err), unix.Close(fd))
		}
	}()
	address := &unix.SockaddrUnix{Name: path}
	err = unix.Bind(fd, address)
	if errors.Is(err, unix.EADDRINUSE) {
		if err := abandoned(path); err != nil {
			return -1, err
		}
		err = unix.Bind(fd, address)
	}
	if err != nil {
		return -1, err
	}
	// Nobody can connect before listen(2).
	if err := os.Chmod(path, 0o600); err != nil {
		return -1, err
	}
	if os.Geteuid() == 0 {
		var directory unix.Stat_t
		if err := unix.Stat(filepath.Dir(path), &directory); err != nil {
			return -1, err
		}
		if err := os.Lchown(path, int(directory.Uid), int(directory.Gid)); err != nil {
			return -1, err
		}
	}
	return fd, unix.Listen(fd, 8)
}

// abandoned removes a socket that nobody listens at.
func abandoned(path string) error {
	var file unix.Stat_t
	if err := unix.Lstat(path, &file); err != nil {
		return err
	}
	if file.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return unix.EADDRINUSE
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	if err := unix.Close(fd); err != nil {
		return err
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return unix.EADDRINUSE
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// allowed are the users who may ask: root, and the owner of the socket's file.
func allowed(listener int) ([]uint32, error) {
	name, err := unix.Getsockname(listener)
	if err != nil {
		return nil, fmt.Errorf("asking for the socket's path: %w", err)
	}
	address, is := name.(*unix.SockaddrUnix)
	if !is || address.Name == "" {
		return nil, errors.New("the socket has no path")
	}
	var file unix.Stat_t
	if err := unix.Stat(address.Name, &file); err != nil {
		return nil, fmt.Errorf("asking for the owner of %s: %w", address.Name, err)
	}
	return []uint32{0, file.Uid}, nil
}

// dropRights makes root's process that of nobody: it needs no right of root's.
func dropRights() error {
	if os.Geteuid() != 0 {
		return nil
	}
	drop := func() error {
		if err := syscall.Setgroups(nil); err != nil {
			return err
		}
		if err := syscall.Setresgid(nobody, nobody, nobody); err != nil {
			return err
		}
		return syscall.Setresuid(nobody, nobody, nobody)
	}
	if err := drop(); err != nil {
		return fmt.Errorf("becoming user %d: %w", nobody, err)
	}
	return nil
}
