package unixgram

import (
	"errors"
	"fmt"
	"strings"
)

// pathSize is the size of sun_path in struct sockaddr_un.
const pathSize = 108

// An Address is the name of a socket: sun_path, exactly as long as the kernel
// says. An abstract one begins with a NUL. The empty one is that of a socket
// without a name; nothing can be sent there.
type Address string

// Abstract returns the address with a name in the abstract namespace.
func Abstract(name string) (Address, error) {
	switch {
	case name == "":
		return "", errors.New("an abstract socket needs a name")
	case len(name) > pathSize-1:
		return "", fmt.Errorf("the name of an abstract socket has %d bytes; %d is the most", len(name), pathSize-1)
	case strings.ContainsRune(name, 0):
		return "", fmt.Errorf("the name %q of an abstract socket holds a NUL; leave it out", name)
	}
	return Address("\x00" + name), nil
}

// Padded returns the address filled with NULs to the full size of sun_path, as
// programs have it that do not think about the length.
func (a Address) Padded() Address {
	if len(a) >= pathSize {
		return a
	}
	return a + Address(make([]byte, pathSize-len(a)))
}

// isAbstract tells whether the address is no path.
func (a Address) isAbstract() bool { return a != "" && a[0] == 0 }

// String shows the address on one line; NULs at its end are left out.
func (a Address) String() string {
	name := strings.TrimRight(string(a), "\x00")
	switch {
	case a == "":
		return "(no name)"
	case a.isAbstract():
		name = "@" + strings.TrimPrefix(name, "\x00")
	}
	return printable(name)
}

func printable(name string) string {
	quoted := fmt.Sprintf("%q", name)
	if quoted == `"`+name+`"` {
		return name
	}
	return quoted
}
