package notify

import (
	"errors"
	"fmt"
	"net"
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
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("giving %s to the service manager: %w", name, err)
	}
	if err = errors.Join(pass(c, []byte("FDSTORE=1\nFDPOLL=0\nFDNAME="+name), f), c.Close()); err != nil {
		return fmt.Errorf("giving %s to the service manager: %w", name, err)
	}
	return nil
}

// pass sends a datagram with a descriptor. Package net does not do that on a connected socket.
func pass(c *net.UnixConn, datagram []byte, f *os.File) error {
	to, err := c.SyscallConn()
	if err != nil {
		return err
	}
	what, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var unwritable, failed error
	err = what.Control(func(fd uintptr) {
		unwritable = to.Write(func(at uintptr) bool {
			failed = unix.Sendmsg(int(at), datagram, unix.UnixRights(int(fd)), nil, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
	})
	return errors.Join(err, unwritable, failed)
}

// Forget takes all descriptors of a name out of the service manager's store (FDSTOREREMOVE in sd_notify(3)).
func (n *Notifier) Forget(name string) { n.send("FDSTOREREMOVE=1\nFDNAME=" + name) }
