package unixgram

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockaddr is struct sockaddr_un of linux/un.h.
type sockaddr struct {
	family uint16
	path   [pathSize]byte
}

const pathOffset = uint32(unsafe.Offsetof(sockaddr{}.path))

// raw returns the address for the kernel, and its exact length.
func (a Address) raw() (*sockaddr, uint32, error) {
	if a == "" || len(a) > pathSize {
		return nil, 0, unix.EINVAL
	}
	s := &sockaddr{family: unix.AF_UNIX}
	n := copy(s.path[:], a)
	return s, pathOffset + uint32(n), nil //nolint:gosec // At most pathSize.
}

// address returns what the kernel wrote. The length may be more than there is
// room for: a path may fill sun_path, and the kernel counts the NUL behind.
func (s *sockaddr) address(length uint32) Address {
	if length <= pathOffset {
		return ""
	}
	return Address(s.path[:min(length-pathOffset, pathSize)])
}

func bind(fd int, a Address) error    { return named(unix.SYS_BIND, fd, a) }
func connect(fd int, a Address) error { return named(unix.SYS_CONNECT, fd, a) }

// named does a call that takes an address. AF_UNIX datagram sockets connect at
// once.
func named(call uintptr, fd int, a Address) error {
	s, length, err := a.raw()
	if err != nil {
		return err
	}
	return restarted(func() unix.Errno {
		//nolint:gosec // The kernel is told where s is, and how long.
		_, _, errno := unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(s)), uintptr(length))
		return errno
	})
}

func localAddress(fd int) (Address, error) {
	var s sockaddr
	length := uint32(unsafe.Sizeof(s))
	//nolint:gosec // The kernel is told where s is, and how long.
	_, _, errno := unix.Syscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&s)), uintptr(unsafe.Pointer(&length)))
	if errno != 0 {
		return "", errno
	}
	return s.address(length), nil
}

// send sends to an address, or, if it is empty, to whom fd is connected.
func send(fd int, to Address, payload []byte) error {
	var s *sockaddr
	var length uint32
	if to != "" {
		var err error
		if s, length, err = to.raw(); err != nil {
			return err
		}
	}
	return restarted(func() unix.Errno {
		//nolint:gosec // The kernel is told where payload and s are, and how long.
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(payload))),
			uintptr(len(payload)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(s)), uintptr(length))
		return errno
	})
}

// restarted does a call again when a signal came in between.
func restarted(call func() unix.Errno) error {
	for {
		switch errno := call(); errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// receive reads one datagram, and the file that came with it, if passed is not nil.
func receive(fd int, buffer []byte, passed **os.File) (Datagram, error) {
	var from sockaddr
	// There is room for credentials, which come first, and for no descriptor
	// after them: the kernel then drops what a stranger passes. To take and to
	// close it could block, if it is a file of a file system of the stranger's.
	room := unix.CmsgSpace(unix.SizeofUcred)
	if passed != nil {
		room += unix.CmsgSpace(sizeofDescriptor)
	}
	control := make([]byte, room)
	vector := unix.Iovec{Base: unsafe.SliceData(buffer)} //nolint:gosec // Its length follows.
	vector.SetLen(len(buffer))
	message := unix.Msghdr{
		//nolint:gosec // Its length stands beside it.
		Name: (*byte)(unsafe.Pointer(&from)), Namelen: uint32(unsafe.Sizeof(from)),
		Iov: &vector, Control: &control[0],
	}
	message.SetIovlen(1)
	message.SetControllen(len(control))
	var n uintptr
	err := restarted(func() (errno unix.Errno) {
		//nolint:gosec // The kernel is told where message is, and how long its parts are.
		n, _, errno = unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&message)), unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		return errno
	})
	if err != nil {
		return Datagram{}, err
	}
	if passed != nil {
		*passed = file(control[:message.Controllen])
	}
	credentials, err := credentials(control[:message.Controllen])
	if err != nil {
		return Datagram{}, err
	}
	return Datagram{
		Payload: buffer[:n], Truncated: message.Flags&unix.MSG_TRUNC != 0, From: from.address(message.Namelen),
		UID: credentials.Uid, GID: credentials.Gid, PID: credentials.Pid,
	}, nil
}

// sizeofDescriptor is that of a C int.
const sizeofDescriptor = 4

// file returns the descriptor that was passed, nil if none was. The kernel drops those
// for which there was no room.
func file(control []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for i := range messages {
		// Of another kind it is an error.
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "passed")
		}
	}
	return nil
}

// credentials reads what the kernel says of a sender.
func credentials(control []byte) (*unix.Ucred, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) == 0 {
		return nil, errNoCredentials
	}
	// It returns an error if they are something else.
	credentials, err := unix.ParseUnixCredentials(&messages[0])
	if err != nil {
		return nil, errNoCredentials
	}
	return credentials, nil
}
