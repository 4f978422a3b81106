package bindrun

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Warning says what the way without the helper does not cover. keepsRights says that the program may still get rights, from
// set-user-ID programs.
func Warning(link string, why error, keepsRights bool) string {
	lines := []string{
		fmt.Sprintf("warning: %v", why),
		fmt.Sprintf("Instead, each new IP socket is bound to the device %s (SO_BINDTODEVICE). That does not cover:", link),
		"- localhost: connections to this host fail",
		"- DNS: queries to a local resolver such as 127.0.0.53 fail, and those to servers in /etc/resolv.conf that " + link + " does not reach",
		fmt.Sprintf("- IPv4 while %s has no route: packets leave by it for hosts that it takes for neighbours, with any address of this host, unless [answers] fence = \"yes\"", link),
		"- sockets that the program inherits or gets from others, and packet sockets",
	}
	if !keepsRights {
		lines = append(lines, "- programs that need more rights than yours, such as sudo: they get none")
	}
	return strings.Join(lines, "\n")
}

// handshake bounds the wait for the attendant.
const handshake = 10 * time.Second

// withoutHelper becomes a program whose sockets an attendant opens. why says what keeps the helper away.
func withoutHelper(o Options, path string, why error) error {
	c, err := startOpening(o)
	if err != nil {
		return failed(fmt.Errorf("%w; and without it: %w", why, err))
	}
	// The filter is that of this thread, and the thread becomes the program.
	runtime.LockOSThread()
	keepsRights, err := watchSockets(c)
	if err = closing(err, c); err != nil {
		return failed(fmt.Errorf("%w; and without it: %w", why, err))
	}
	o.Say(Warning(o.Link, why, keepsRights))
	return become(o, path)
}

// startOpening starts the attendant. When it returns, sockets of the link can be opened.
func startOpening(o Options) (*net.UnixConn, error) {
	if _, err := filter(); err != nil {
		return nil, err
	}
	c, other, err := pair()
	if err != nil {
		return nil, err
	}
	if err := closing(attend(o.Attendant, []string{openSockets, o.Link}, other), other); err != nil {
		return nil, closing(err, c)
	}
	text, err := hear(c)
	if err == nil && text != "" {
		err = errors.New(text)
	}
	if err != nil {
		return nil, closing(err, c)
	}
	return c, nil
}

// hear reads what the other side says.
func hear(c *net.UnixConn) (string, error) {
	b := make([]byte, 1024)
	err := c.SetReadDeadline(time.Now().Add(handshake))
	if err == nil {
		var n int
		if n, err = c.Read(b); err == nil && n > 0 {
			return string(b[1:n]), nil
		}
	}
	return "", fmt.Errorf("hearing of the attendant: %w", err)
}

// tell says something, nothing included: an empty datagram would be the end.
func tell(c *net.UnixConn, text string) error {
	_, err := c.Write([]byte("." + text))
	return err
}

// watchSockets sets the filter, and gives its descriptor to the attendant.
func watchSockets(c *net.UnixConn) (keepsRights bool, err error) {
	code, err := filter()
	if err != nil {
		return false, err
	}
	fd, err := install(code)
	keepsRights = true
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		// Only a process that gets no further rights may filter its own calls.
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return false, err
		}
		keepsRights = false
		fd, err = install(code)
	}
	if err != nil {
		return false, fmt.Errorf("watching the program's sockets: %w", meaningOfFilter(err))
	}
	_, _, err = c.WriteMsgUnix([]byte("."), unix.UnixRights(fd), nil)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return false, fmt.Errorf("watching the program's sockets: %w", err)
	}
	_, err = hear(c)
	return keepsRights, err
}

func install(code []unix.SockFilter) (int, error) {
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}                                                                                    //nolint:gosec // Short.
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog))) //nolint:gosec // The kernel is told its length.
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// serveProgram is the attendant that opens sockets, until no process has the filter any more.
func serveProgram(link string) error {
	c, err := connOf(os.NewFile(extraProgram, "program"))
	if err != nil {
		return err
	}
	// Rights are those of a thread, and no other thread opens sockets.
	runtime.LockOSThread()
	network, err := networkOf("self")
	if err == nil {
		err = giveUpRights()
	}
	if err == nil {
		err = tryOut(link)
	}
	said := ""
	if err != nil {
		said = err.Error()
	}
	if err := errors.Join(err, tell(c, said)); err != nil {
		return closing(err, c)
	}
	b, room := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(b, room)
	if err != nil {
		return closing(err, c)
	}
	var listener int
	messages, err := unix.ParseSocketControlMessage(room[:n])
	if err == nil && len(messages) == 1 {
		var fds []int
		if fds, err = unix.ParseUnixRights(&messages[0]); err == nil {
			listener = fds[0]
		}
	}
	if err == nil && listener == 0 {
		err = errors.New("no filter came")
	}
	if err = closing(errors.Join(err, tell(c, "")), c); err != nil {
		return err
	}
	s := &opener{listener: listener, link: link, network: network}
	return s.serve()
}

// giveUpRights leaves nothing but the right to look at the program's processes. With its other rights root's attendant would open
// raw sockets for processes that have given theirs up.
func giveUpRights() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&header, &now[0]); err != nil {
		return fmt.Errorf("reading the rights of this process: %w", err)
	}
	keep := now[0].Permitted & (1 << unix.CAP_SYS_PTRACE)
	then := [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	if err := unix.Capset(&header, &then[0]); err != nil {
		return fmt.Errorf("giving up rights: %w", err)
	}
	return nil
}

// tryOut opens a socket as the program will.
func tryOut(link string) error {
	fd, err := openSocket(unix.AF_INET, unix.SOCK_DGRAM, 0, link)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("there is no interface %s; to fix: ip -br link shows which there are", link)
	}
	if err != nil {
		return fmt.Errorf("binding a socket to %s: %w; to fix: use Linux 5.7 or later", link, err)
	}
	return unix.Close(fd)
}

// openSocket opens a socket that is bound to a device. Protocols above 255 are those of the kernel's own, such as MPTCP, whose
// further sockets would not be bound: with this error programs take TCP (as in package cgroupbpf).
func openSocket(family, kind, protocol int, link string) (int, error) {
	if protocol > 255 {
		return -1, unix.ENOPROTOOPT
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, link); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// networkOf is the network namespace of a process.
func networkOf(pid string) (string, error) { return os.Readlink("/proc/" + pid + "/ns/net") }

// An opener answers a filter.
type opener struct {
	listener      int
	link, network string
}

func (s *opener) serve() error {
	for {
		wait := []unix.PollFd{{Fd: int32(s.listener), Events: unix.POLLIN}} //nolint:gosec // Small.
		if _, err := unix.Poll(wait, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for sockets: %w", err)
		}
		if wait[0].Revents&unix.POLLIN == 0 {
			if wait[0].Revents != 0 {
				return nil // The last process has ended (POLLHUP).
			}
			continue
		}
		var n notification
		switch err := s.control(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); { //nolint:gosec // The size that the request has.
		case err == nil:
			s.answer(n)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // Who asked was killed.
		default:
			return fmt.Errorf("waiting for sockets: %w", err)
		}
	}
}

func (s *opener) control(request uintptr, about unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), request, uintptr(about)); errno != 0 {
		return errno
	}
	return nil
}

// answer opens the socket that a process asks for. One in another network namespace opens its own, which cannot leave by the
// host's links; who cannot be looked at gets none.
func (s *opener) answer(n notification) {
	network, err := networkOf(fmt.Sprint(n.pid))
	if err != nil || s.control(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.id)) != nil { //nolint:gosec // see above
		s.respond(response{id: n.id, err: -int32(unix.EACCES)})
		return
	}
	if network != s.network {
		s.respond(response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
		return
	}
	// The arguments are C ints in wider registers.
	family, kind, protocol := int(int32(n.args[0])), int(int32(n.args[1])), int(int32(n.args[2])) //nolint:gosec // see above
	fd, err := openSocket(family, kind, protocol, s.link)
	if err != nil {
		errno := unix.EACCES
		_ = errors.As(err, &errno)
		s.respond(response{id: n.id, err: -int32(errno)})
		return
	}
	about := uint32(0)
	if kind&unix.SOCK_CLOEXEC != 0 {
		about = unix.O_CLOEXEC
	}
	if err := s.control(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&addedFD{id: n.id, flags: unix.SECCOMP_ADDFD_FLAG_SEND, source: uint32(fd), about: about})); err != nil { //nolint:gosec // Small.
		errno := unix.EMFILE
		_ = errors.As(err, &errno)
		s.respond(response{id: n.id, err: -int32(errno)})
	}
	_ = unix.Close(fd) // The program has its own.
}

// respond answers without a socket. Who was killed needs no answer.
func (s *opener) respond(r response) {
	_ = s.control(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)) //nolint:gosec // see above
}
