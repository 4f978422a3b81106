package routedlease

import (
	"context"
	"net/netip"

	"multihomed/allocator/server"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// Tables are what the kernel says of tables, for the allocator's server, which alone may use
// them. NewTables makes them. They implement [server.Kernel].
type Tables struct {
	mirror *kernel.Mirror
	loop   *reconcile.Loop
	tables routing.TableRange
	// sources are the tables that source rules of others lead to, as of the
	// last Fresh; nil if nobody has asked since.
	sources map[netip.Addr]routing.TableID
}

var _ server.Kernel = (*Tables)(nil)

// NewTables returns what the kernel says of a range of tables.
func NewTables(mirror *kernel.Mirror, loop *reconcile.Loop, tables routing.TableRange) *Tables {
	return &Tables{mirror: mirror, loop: loop, tables: tables}
}

// Fresh takes up what the kernel has to say.
func (t *Tables) Fresh(ctx context.Context) error {
	t.sources = nil
	return t.mirror.Sync(ctx)
}

// InUse says by what a table is used.
func (t *Tables) InUse(table routing.TableID) (string, bool) { return t.loop.TableInUse(table) }

// Used returns the table that somebody else's source rule gives an address.
func (t *Tables) Used(address netip.Addr) routing.TableID {
	if t.sources == nil {
		t.sources = map[netip.Addr]routing.TableID{}
		t.mirror.View(func(k *kernel.State) {
			for _, r := range k.ForeignRules() {
				if r.Action == routing.ActionLookup && r.From.IsSingleIP() && t.tables.Contains(r.Table) {
					t.sources[r.From.Addr()] = r.Table
				}
			}
		})
	}
	return t.sources[address]
}
