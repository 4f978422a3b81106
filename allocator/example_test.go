package allocator_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"multihomed/allocator"
	"multihomed/routing"
)

// A link gets the same table again after a restart.
func Example() {
	dir, err := os.MkdirTemp("", "leases")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	wan0 := routing.Key{Family: routing.IPv4, Interface: "wan0", Prefix: netip.MustParsePrefix("192.0.2.0/24")}
	wan1 := routing.Key{Family: routing.IPv4, Interface: "wan1", Prefix: netip.MustParsePrefix("198.51.100.0/24")}

	// In the daemon the kernel answers, and rt_tables, and the profiles.
	inUse := func(t routing.TableID) (string, bool) { return "rule 100 from 10.0.0.0/8", t == 10001 }
	for _, order := range [][]routing.Key{{wan0, wan1}, {wan1, wan0}} {
		a, err := allocator.Open(ctx, allocator.Options{
			Path:  filepath.Join(dir, allocator.DefaultName),
			Range: routing.TableRange{First: 10000, Last: 10999},
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		tables, err := a.Acquire(ctx, order, inUse)
		fmt.Println(tables[wan0], tables[wan1], err)
		if err := a.Close(); err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// 10000 10002 <nil>
	// 10000 10002 <nil>
}
