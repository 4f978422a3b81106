package hookstate

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Index returns the current index of an interface (netdevice(7), SIOCGIFINDEX). The error is
// ENODEV if there is none.
func Index(name string) (int, error) {
	doing := func(err error) error { return fmt.Errorf("finding the interface %s: %w", name, err) }
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, doing(unix.ENODEV) // A name that no interface can have.
	}
	if err := ask(unix.SIOCGIFINDEX, request); err != nil {
		return 0, doing(err)
	}
	return int(request.Uint32()), nil
}

// Exists reports whether there is an interface of that index, whatever its name
// (netdevice(7), SIOCGIFNAME).
func Exists(index int) (bool, error) {
	request, err := unix.NewIfreq("")
	if err != nil {
		return false, fmt.Errorf("finding interface %d: %w", index, err)
	}
	request.SetUint32(uint32(index)) //nolint:gosec // an int32 of the kernel
	switch err := ask(unix.SIOCGIFNAME, request); {
	case errors.Is(err, unix.ENODEV):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("finding interface %d: %w", index, err)
	}
	return true, nil
}

func ask(what uint, request *unix.Ifreq) error {
	// A socket of any family will do; this one every sandbox has.
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlIfreq(s, what, request), unix.Close(s))
}
