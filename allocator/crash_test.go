package allocator_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"multihomed/allocator"
	"multihomed/routing"
	_ "multihomed/test/seeds"
)

// childVariable names the database for a process that leases until it is killed.
const childVariable = "MULTIHOMED_TEST_LEASES"

func TestMain(m *testing.M) {
	if path := os.Getenv(childVariable); path != "" {
		fmt.Println("ended:", leaseForEver(path))
		os.Exit(1)
	}
	if path := os.Getenv(servesVariable); path != "" {
		fmt.Println("ended:", serveForEver(path))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// copyDatabase copies what a crash at this moment would leave.
func copyDatabase(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "leases.db")
	copyTo(t, from, to)
	return to
}

func copyTo(t *testing.T, from, to string) {
	t.Helper()
	if err := copyFiles(from, to); err != nil {
		t.Fatal(err)
	}
}

func copyFiles(from, to string) error {
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(from + suffix)
		if errors.Is(err, fs.ErrNotExist) && suffix != "" {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(to+suffix, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// The child has fewer numbers than keys, so that it must recycle.
const (
	childFirst, childLast = 10000, 10019
	childKeys             = 30
	childHeld             = 12
)

// leaseForEver acquires and releases at random and reports each step that is
// done, without a buffer.
func leaseForEver(path string) error {
	a, err := allocator.Open(context.Background(), allocator.Options{Path: path, Range: routing.TableRange{First: childFirst, Last: childLast}})
	if err != nil {
		return err
	}
	var held []int
	for {
		n := rand.IntN(childKeys)
		got, err := a.Acquire(context.Background(), []routing.Key{key(n)}, nil)
		if err != nil {
			return err
		}
		fmt.Println("have", n, got[key(n)])
		held = append(held, n)
		if len(held) > childHeld {
			n, held = held[0], held[1:]
			fmt.Println("release", n)
			a.Release(key(n))
		}
		if rand.IntN(20) == 0 {
			if err := a.Flush(context.Background()); err != nil {
				return err
			}
		}
	}
}

func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases.db")
	for range 30 {
		held := runUntilKilled(t, path, 1+rand.IntN(400))
		a := open(t, allocator.Options{Path: path, Range: routing.TableRange{First: childFirst, Last: childLast}})
		for n, table := range held {
			if got, ok := a.Lookup(key(n)); !ok || got != table {
				t.Errorf("key %d was told %d; after the kill it has %d, %v", n, table, got, ok)
			}
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// runUntilKilled kills a child with SIGKILL after it reported so many steps,
// and returns what it held.
func runUntilKilled(t *testing.T, path string, steps int) map[int]routing.TableID {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childVariable+"="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	held := map[int]routing.TableID{}
	counts := map[int]int{}
	lines := bufio.NewScanner(out)
	for i := 0; lines.Scan(); i++ {
		if i == steps {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		report(t, lines.Text(), held, counts)
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child ended otherwise: %v", err)
	}
	return held
}

func report(t *testing.T, line string, held map[int]routing.TableID, counts map[int]int) {
	t.Helper()
	var n int
	var table routing.TableID
	switch {
	case scanned(fmt.Sscanf(line, "have %d %d", &n, &table)):
		for other, its := range held {
			if its == table && other != n {
				t.Errorf("%d was given to key %d while key %d held it", table, n, other)
			}
		}
		held[n] = table
		counts[n]++
	case scanned(fmt.Sscanf(line, "release %d", &n)):
		// One release is enough, however often it was acquired.
		delete(held, n)
	default:
		t.Errorf("the child says %q", line)
	}
}

func scanned(n int, err error) bool { return n > 0 && err == nil }
