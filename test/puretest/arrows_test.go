package puretest_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// floors lists the packages of the product from the ground up. A package imports packages of lower
// floors, never of its own or of a higher one. Put a new package on the lowest floor above all its
// imports; if there is none, the package has two tasks.
var floors = [][]string{
	// Values and tools without routing, and facts and plans without a system call.
	{
		"docs/schema", "internal/activation", "internal/dnsname", "internal/english", "internal/escape", "internal/event", "internal/fsutil", "internal/hangup", "internal/health", "internal/lazy", "internal/news", "internal/nlmsg", "internal/nlsocket", "internal/ownership",
		"internal/prober/wire", "internal/processor", "internal/rights", "internal/suggest", "internal/unitfile", "internal/unixgram", "routing",
	},
	{
		"allocator/wire", "dispatcher", "internal/flock", "internal/journal", "internal/lastgood", "internal/notify", "internal/prober/client",
		"internal/binder/wire", "internal/cgroups", "internal/nftables", "routing/answers", "internal/redact", "internal/rttables", "internal/shell", "internal/sockdiag", "internal/status", "routing/lookup",
	},
	// The outside world: kernel, NetworkManager, database, sockets; and the loop, which uses it by its
	// own ports.
	{"allocator", "internal/answers", "internal/dbusapi", "internal/binder/client", "internal/holding/wire", "internal/cgroupbpf", "internal/connections", "internal/metrics", "internal/netconf", "internal/prober", "internal/watch", "nm", "routing/kernel", "routing/reconcile"},
	{
		"allocator/client", "allocator/server", "internal/ancestor", "internal/binder", "internal/bindrun", "internal/cleanup", "internal/dbusapi/client", "internal/holding", "internal/hookstate", "internal/kerneltables",
		"internal/lockfile", "internal/metrics/scrape", "internal/offswitch", "internal/recollection", "internal/preview", "internal/status/outcome", "internal/status/socket", "internal/watch/follow", "internal/explain", "internal/graph",
	},
	// Who the links are.
	{"internal/config", "internal/dbusapi/server", "internal/handoff", "internal/holding/client", "internal/routedlease"},
	{"internal/binding", "internal/explain/reading", "internal/handoff/note", "internal/owners", "internal/standin", "internal/status/view"},
	// What follows the loop, and who looks at the host.
	{"internal/answering", "internal/dnsmasq", "internal/orders", "internal/doctor", "internal/graph/host", "internal/failover", "internal/mainroutes", "internal/status/check"},
	// What is put together, and the program.
	{"internal/doctor/gather", "internal/doctor/probe", "internal/status/offline"},
	{"internal/daemon"},
	{"internal/cli"},
	{"cmd/multihomed"},
}

// testHouses may import everything, and no package of the product imports them.
var testHouses = []string{"test", "packaging", "routing/kerneltest", "nm/nmtest", "internal/status/view/viewtest"}

const module = "multihomed/"

// TestArrowsOnlyGoDown: no package of the product imports one of its own floor or of a
// higher one, nor a package of test/.
func TestArrowsOnlyGoDown(t *testing.T) {
	t.Parallel()
	floor := map[string]int{}
	for n, packages := range floors {
		for _, p := range packages {
			if _, twice := floor[p]; twice {
				t.Errorf("%s stands on two floors", p)
			}
			floor[p] = n
		}
	}
	found := map[string]bool{}
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if isTestHouse(name) || len(p.GoFiles)+len(p.CgoFiles) == 0 {
			continue
		}
		found[name] = true
		own, known := floor[name]
		if !known {
			t.Errorf("%s is on no floor: put it into floors in test/puretest/arrows_test.go, above all that it imports", name)
			continue
		}
		for _, imported := range p.Imports {
			other, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			switch at, known := floor[other]; {
			case isTestHouse(other):
				t.Errorf("%s imports %s, which is for tests", name, other)
			case known && at >= own:
				t.Errorf("%s (floor %d) imports %s (floor %d): arrows only go down; move what both need below them, or pass it in", name, own, other, at)
			}
		}
	}
	if len(found) < 10 {
		t.Errorf("go list names %d packages of the product", len(found))
	}
	for name := range floor {
		if !found[name] {
			t.Errorf("%s is in the table and does not exist: take it out of floors in test/puretest/arrows_test.go", name)
		}
	}
}

func isTestHouse(name string) bool {
	return slices.ContainsFunc(testHouses, func(house string) bool { return name == house || strings.HasPrefix(name, house+"/") }) ||
		strings.HasSuffix(path.Base(name), "test")
}

// A listed package is what go list says of one.
type listed struct {
	ImportPath        string
	GoFiles, CgoFiles []string
	Imports           []string
}

// list asks for all packages of the module. It looks into every folder itself, so that
// `go test` knows what the answer depends on, and does not take it from its cache.
func list(t *testing.T) (all []listed) {
	t.Helper()
	err := filepath.WalkDir("../..", func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && len(entry.Name()) > 2 && strings.HasPrefix(entry.Name(), ".") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,GoFiles,CgoFiles,Imports", module+"...").Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
