package notify

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Keep gives a descriptor to the service manager, which passes it to the next process of this service under a name
// (FDSTORE in sd_notify(3)). A BPF map always looks broken to poll(2), and the manager would drop it (FDPOLL). Without a service manager it does nothing.
func (*Notifier) Keep(name string, f *os.File) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("giving %s to the service manager: %w", name, err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return errors.Join(fmt.Errorf("giving %s to the service manager: %w", name, err), c.Close())
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		_, _, failed = c.WriteMsgUnix([]byte("FDSTORE=1\nFDPOLL=0\nFDNAME="+name), unix.UnixRights(int(fd)), nil)
	})
	if err = errors.Join(err, failed, c.Close()); err != nil {
		return fmt.Errorf("giving %s to the service manager: %w", name, err)
	}
	return nil
}

// Forget takes all descriptors of a name out of the service manager's store (FDSTOREREMOVE in sd_notify(3)).
func (n *Notifier) Forget(name string) { n.send("FDSTOREREMOVE=1\nFDNAME=" + name) }
