package daemon

import (
	"context"
	"log/slog"

	"multihomed/allocator"
	"multihomed/internal/offswitch"
	"multihomed/internal/rttables"
)

// tableNames keeps the file in the runtime directory from which iproute2 takes the
// names of tables.
type tableNames struct {
	log       *slog.Logger
	directory string
	leases    *allocator.Allocator
	// written is the generation of the leases that the file has, and none says that there
	// is no file, because everything is switched off.
	written uint64
	none    bool
}

// settled follows the leases. It costs nothing while they do not change. Without the
// file people see numbers, so that an error is logged and no more.
func (n *tableNames) settled(ctx context.Context, off offswitch.State) {
	generation := n.leases.Generation()
	if none := off.HostOff(); generation == n.written && none == n.none {
		return
	}
	n.written, n.none = generation, off.HostOff()
	err := n.write()
	if err != nil {
		n.log.LogAttrs(ctx, slog.LevelWarn, "names of routing tables not written", slog.String("error", err.Error()))
	}
}

func (n *tableNames) write() error {
	if n.none {
		return rttables.Remove(n.directory)
	}
	var tables []rttables.Leased
	for _, l := range n.leases.List() {
		tables = append(tables, rttables.Leased{Table: l.Table, Interface: l.Key.Interface, Family: l.Key.Family})
	}
	for _, l := range n.leases.Clients() {
		tables = append(tables, rttables.Leased{Table: l.Table, Interface: l.Key.Interface, Family: l.Key.Family})
	}
	return rttables.Write(n.directory, tables)
}
