package nftables

// Port is the netlink port of a watcher.
func Port(w *Watcher) uint32 { return w.socket.port }
