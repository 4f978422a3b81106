package notify

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Keep gives a descriptor to the service manager, which passes it to the next process of this service under a name
// (FDSTORE in sd_notify(3)). The manager must not watch it (FDPOLL): a BPF map always looks broken to poll(2). Without a
// service manager it does nothing.
func (*Notifier) Keep(name string, f *os.File) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if err := keep(path, name, f); err != nil {
		return fmt.Errorf("giving %s to the service manager: %w", name, err)
	}
	return nil
}

func keep(path, name string, f *os.File) error {
	// Package net sends no descriptors by a connected socket of datagrams.
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return errors.Join(err, unix.Close(s))
	}
	// Without FDPOLL=0 the manager drops a descriptor that poll(2) finds fault with, as it does with every BPF map.
	text := []byte("FDSTORE=1\nFDPOLL=0\nFDNAME=" + name)
	var failed error
	err = raw.Control(func(fd uintptr) {
		// An @ stands for the zero byte of an abstract name, here as in NOTIFY_SOCKET.
		failed = unix.Sendmsg(s, text, unix.UnixRights(int(fd)), &unix.SockaddrUnix{Name: path}, unix.MSG_NOSIGNAL)
	})
	return errors.Join(err, failed, unix.Close(s))
}

// Forget takes all descriptors of a name out of the service manager's store (FDSTOREREMOVE in sd_notify(3)).
func (n *Notifier) Forget(name string) { n.send("FDSTOREREMOVE=1\nFDNAME=" + name) }
