package kernel

// A cause is why something changed.
type cause struct {
	// port is the netlink port of whoever asked for it, zero for the kernel.
	port uint32
	// own says that this was us.
	own bool
}
