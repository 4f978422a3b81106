package wire

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// sizeofDescriptor is that of a C int.
const sizeofDescriptor = 4

// Send sends a datagram, and with it a file if that is not nil.
func Send(c *net.UnixConn, datagram []byte, file *os.File) error {
	if file == nil {
		_, err := c.Write(datagram)
		return err
	}
	// Not Fd, which would have the file block from now on.
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { _, _, failed = c.WriteMsgUnix(datagram, unix.UnixRights(int(fd)), nil) })
	return errors.Join(err, failed)
}

// Receive reads a datagram, and the file that comes with it, nil if none does.
func Receive(c *net.UnixConn) (datagram []byte, file *os.File, err error) {
	// There is room for one descriptor, without the padding, which is room for another: the kernel drops the others. The byte
	// more shows that a datagram is too long.
	b, room := make([]byte, Max+1), make([]byte, unix.CmsgLen(sizeofDescriptor))
	n, controlled, _, _, err := c.ReadMsgUnix(b, room)
	if err != nil {
		return nil, nil, fmt.Errorf("reading a message: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(room[:controlled])
	if err != nil {
		return b[:n], nil, nil //nolint:nilerr // A part of a header holds no descriptor.
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			file = os.NewFile(uintptr(fds[0]), "DNS map")
		}
	}
	return b[:n], file, nil
}
