package lockfile

import "golang.org/x/sys/unix"

// NamespaceCookie is the number of the network namespace of this process (SO_NETNS_COOKIE): as long as the kernel
// runs, no other one has it. It is 0 where the kernel does not tell, before Linux 5.14.
func NamespaceCookie() uint64 {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	_ = unix.Close(fd) // nothing was written
	if err != nil {
		return 0
	}
	return cookie
}
