package hooked

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Index returns the index of an interface as the kernel has it at this moment
// (netdevice(7), SIOCGIFINDEX). The error is ENODEV if there is none.
func Index(name string) (int, error) {
	doing := func(err error) error { return fmt.Errorf("finding the interface %s: %w", name, err) }
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, doing(unix.ENODEV) // A name that no interface can have.
	}
	// A socket of any family will do; this one every sandbox has.
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, doing(err)
	}
	err = unix.IoctlIfreq(s, unix.SIOCGIFINDEX, request)
	if err = errors.Join(err, unix.Close(s)); err != nil {
		return 0, doing(err)
	}
	return int(request.Uint32()), nil
}
