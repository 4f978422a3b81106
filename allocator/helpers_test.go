package allocator_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/allocator"
	"multihomed/routing"
)

// options for a database in a directory of its own. The numbers from first to last
// are leased; the one behind them is kept for failover.
func options(tb testing.TB, first, last routing.TableID) allocator.Options {
	tb.Helper()
	return allocator.Options{
		Path:    filepath.Join(tb.TempDir(), "state", "leases.db"),
		Range:   routing.TableRange{First: first, Last: last + 1},
		Scratch: tb.TempDir(),
	}
}

func open(tb testing.TB, o allocator.Options) *allocator.Allocator {
	tb.Helper()
	a, err := allocator.Open(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := a.Close(); err != nil && !errors.Is(err, allocator.ErrClosed) {
			tb.Log("closing:", err) // Expected where the test has broken the disk.
		}
	})
	return a
}

// key is the n-th of as many keys as needed, of both families by turns.
func key(n int) routing.Key {
	if n%2 == 0 {
		return routing.Key{Family: routing.IPv4, Interface: fmt.Sprintf("wan%d", n), Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)}
	}
	return routing.Key{Family: routing.IPv6, Interface: fmt.Sprintf("wan%d", n), Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(n >> 8), byte(n)}), 64)}
}

func keys(from, count int) []routing.Key {
	all := make([]routing.Key, count)
	for i := range all {
		all[i] = key(from + i)
	}
	return all
}

// acquire must succeed and returns the number of the only key.
func acquire(tb testing.TB, a *allocator.Allocator, k routing.Key) routing.TableID {
	tb.Helper()
	got, err := a.Acquire(tb.Context(), []routing.Key{k}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return got[k]
}

// tmpfs mounts one of the given size, visible to this test only: its thread
// gets a mount namespace of its own and ends with the test.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatalf("making a mount namespace (needs root): %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755,size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes a file until the file system is full and returns its name.
func fill(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{4096, 1} {
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}
