package lockfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The lock of a network namespace is a Unix socket with an abstract name: the kernel
// keeps those for each network namespace (unix(7)), and takes them back however their
// holder dies. Any user may bind such a name. So the kernel is asked whose a socket is
// (NETLINK_SOCK_DIAG, sock_diag(7)): a name that an ordinary user holds is passed over,
// and who holds the next one counts.
const (
	namespaceName = "multihomed/network-namespace/"
	// names bounds how many names squatters can have before the lock is given up.
	names = 64
)

// ErrSquatted says that no name is left for the lock: others hold all of them.
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
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("locking the network namespace: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	// Nobody has anything to send to it.
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return nil, fmt.Errorf("locking the network namespace: %w", err)
	}
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
	// Also where a name was free: a squatter may have left it.
	holders, err := holders()
	if err != nil {
		return nil, err
	}
	for name, uid := range holders {
		if name != own && slices.Contains(trusted, uid) {
			return nil, &NamespaceHeldError{UID: uid}
		}
	}
	if own == "" {
		return nil, ErrSquatted
	}
	return &Namespace{fd: fd}, nil
}

// Of linux/unix_diag.h: what is asked for, and the attributes that bring it. The size
// is that of struct unix_diag_msg.
const (
	diagShowName = 0x1
	diagShowUID  = 0x40
	diagName     = 0
	diagUID      = 7
	diagHeader   = 16
	diagType     = 1
)

// holders returns whose the sockets with names of the lock are.
func holders() (_ map[string]uint32, err error) {
	doing := func(err error) error { return fmt.Errorf("looking for the holder of the network namespace: %w", err) }
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, doing(err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return nil, doing(err)
	}
	request := binary.NativeEndian.AppendUint32(nil, unix.SizeofNlMsghdr+24)
	request = binary.NativeEndian.AppendUint16(request, unix.SOCK_DIAG_BY_FAMILY)
	request = binary.NativeEndian.AppendUint16(request, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	request = append(request, make([]byte, 8)...)    // sequence and port
	request = append(request, unix.AF_UNIX, 0, 0, 0) // struct unix_diag_req
	for _, word := range []uint32{^uint32(0), 0, diagShowName | diagShowUID, 0, 0} {
		request = binary.NativeEndian.AppendUint32(request, word)
	}
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, doing(err)
	}
	out := map[string]uint32{}
	buffer := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return nil, doing(err)
		}
		messages, err := syscall.ParseNetlinkMessage(buffer[:n])
		if err != nil {
			return nil, doing(err)
		}
		for _, m := range messages {
			switch {
			case m.Header.Type == unix.NLMSG_DONE:
				return out, nil
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				return nil, doing(unix.Errno(-binary.NativeEndian.Uint32(m.Data)))
			case len(m.Data) >= diagHeader && m.Data[diagType] == unix.SOCK_DGRAM: // Each type has names of its own.
				if name, uid, is := holderOf(m.Data[diagHeader:]); is {
					out[name] = uid
				}
			}
		}
	}
}

// holderOf reads the attributes of a socket.
func holderOf(attributes []byte) (name string, uid uint32, is bool) {
	hasUID := false
	for len(attributes) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(attributes))
		if size < unix.SizeofNlAttr || size > len(attributes) {
			break
		}
		value := attributes[unix.SizeofNlAttr:size]
		switch binary.NativeEndian.Uint16(attributes[2:]) {
		case diagName:
			name = string(value)
		case diagUID:
			if len(value) == 4 {
				uid, hasUID = binary.NativeEndian.Uint32(value), true
			}
		}
		attributes = attributes[min((size+3)&^3, len(attributes)):]
	}
	name, abstract := strings.CutPrefix(name, "\x00")
	return name, uid, hasUID && abstract && strings.HasPrefix(name, namespaceName)
}
