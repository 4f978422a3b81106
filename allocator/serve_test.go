package allocator_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"multihomed/allocator"
	"multihomed/routing"
)

// client is the n-th of as many keys as needed, of all families by turns. Those
// of an address lie in the network of the link key(n).
func client(n int) allocator.ClientKey {
	link := key(n)
	if n%5 == 4 {
		return allocator.ClientKey{Interface: link.Interface, Address: fmt.Sprintf("modem %d", n)}
	}
	return allocator.ClientKey{Family: link.Family, Interface: link.Interface, Address: link.Prefix.Addr().Next().String()}
}

// wants is a demand of an hour by user 7.
func wants(n int) allocator.Demand {
	return allocator.Demand{Key: client(n), Owner: 7, Lifetime: time.Hour, Tag: "test"}
}

func gives(n int) allocator.Demand {
	return allocator.Demand{Key: client(n), Owner: 7, Release: true}
}

// serve must succeed for every demand.
func serve(tb testing.TB, a *allocator.Allocator, demands ...allocator.Demand) []allocator.Outcome {
	tb.Helper()
	outcomes := a.Serve(tb.Context(), demands, nil)
	for i, d := range demands {
		if err := outcomes[i].Err; err != nil {
			tb.Fatalf("%v: %v", d.Key, err)
		}
	}
	return outcomes
}

// A clock is the uptime of a host that a test reboots.
type clock struct{ now time.Duration }

func (c *clock) uptime() time.Duration { return c.now }

func TestServe(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	at := &clock{now: 1000*time.Second + 300*time.Millisecond}
	o.Uptime, o.Boot = at.uptime, "one"
	a := open(t, o)
	// Two of the same key in one batch, one that makes no sense, and a release.
	bad := wants(1)
	bad.Key.Address = "192.0.2.300"
	got := a.Serve(t.Context(), []allocator.Demand{wants(0), bad, wants(0), wants(2), gives(2), gives(3)}, nil)
	for i, want := range []allocator.Outcome{
		{Table: 10000, Expires: 4600 * time.Second, New: true},
		{},
		{Table: 10000, Expires: 4600 * time.Second},
		{Table: 10001, Expires: 4600 * time.Second, New: true},
		{},
		{},
	} {
		if i == 1 {
			if got[i].Err == nil || !strings.Contains(got[i].Err.Error(), "192.0.2.300") {
				t.Errorf("bad address: %+v", got[i])
			}
			continue
		}
		if got[i] != want {
			t.Errorf("outcome %d is %+v, want %+v", i, got[i], want)
		}
	}
	all := a.Clients()
	if len(all) != 2 || !all[0].Live || all[0].Owner != 7 || all[0].Tag != "test" || all[0].Expires != 4600*time.Second || all[1].Live || all[1].Table != 10001 {
		t.Errorf("clients %+v", all)
	}
	if links := a.List(); len(links) != 0 {
		t.Errorf("links %+v", links)
	}
	// Another process sees it at once.
	b, err := allocator.OpenReadOnly(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if seen := b.Clients(); !slices.Equal(seen, all) {
		t.Errorf("on disk %+v, want %+v", seen, all)
	}
	at.now += time.Hour
	if ended := a.Expire(); len(ended) != 1 || ended[0].Table != 10000 || ended[0].Live {
		t.Errorf("expired %+v", ended)
	}
	if again := a.Expire(); len(again) != 0 {
		t.Errorf("expired again %+v", again)
	}
}

func TestRenewalWithinASecondWritesNothing(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	at := &clock{now: 1000 * time.Second}
	o.Uptime = at.uptime
	a := open(t, o)
	serve(t, a, wants(0))
	before, err := os.ReadFile(o.Path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	at.now += 999 * time.Millisecond
	serve(t, a, wants(0))
	if after, err := os.ReadFile(o.Path + "-wal"); err != nil || len(after) != len(before) {
		t.Errorf("the log grew from %d to %d bytes, %v", len(before), len(after), err)
	}
	at.now += time.Millisecond
	serve(t, a, wants(0))
	if after, err := os.ReadFile(o.Path + "-wal"); err != nil || len(after) <= len(before) {
		t.Errorf("a renewal is not durable: the log has %d bytes as before, %v", len(after), err)
	}
}

func TestALinkTakesOverTheNumberOfItsAddress(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10009))
	serve(t, a, wants(2), wants(0))
	if n := acquire(t, a, key(0)); n != 10002 {
		t.Errorf("the link got %d while the client's lease lives", n)
	}
	serve(t, a, gives(2))
	// Its own rules may still stand: they lead to the same place.
	got, err := a.Acquire(t.Context(), []routing.Key{key(2)}, func(n routing.TableID) (string, bool) { return "a rule", n == 10000 })
	if err != nil || got[key(2)] != 10000 {
		t.Errorf("the link got %v, %v; want the client's 10000", got, err)
	}
	if all := a.Clients(); len(all) != 1 || all[0].Key != client(0) {
		t.Errorf("clients %+v", all)
	}
	// And the client, if it comes again, gets another.
	if n := serve(t, a, wants(2))[0].Table; n == 10000 {
		t.Error("a link and a client share 10000")
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	a := open(t, o)
	serve(t, a, wants(0), wants(2))
	list := []allocator.Imported{
		{Key: client(0), Table: 10000},
		{Key: client(2), Table: 10005},
		{Key: client(6), Table: 10001},
		{Key: client(8), Table: 10007, Tag: "kept"},
		{Key: client(10), Table: 10007},
		{Key: client(12), Table: 10011},
		{Key: client(13), Table: 10010},
		{Key: allocator.ClientKey{Family: 2, Interface: "wan0", Address: "x"}, Table: 10008},
	}
	want := []allocator.Fate{
		allocator.Already, allocator.Other, allocator.Taken, allocator.Entered, allocator.Taken, allocator.Outside, allocator.Kept, allocator.Senseless,
	}
	for _, try := range []bool{true, false} {
		results, err := a.Import(t.Context(), list, try)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range results {
			if r.Fate != want[i] || (r.Why == "") != (r.Fate == allocator.Entered) {
				t.Errorf("try %v: %+v, want fate %d", try, r, want[i])
			}
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	if n := serve(t, a, wants(8))[0].Table; n != 10007 {
		t.Errorf("the imported lease has %d", n)
	}
	results, err := a.Import(t.Context(), list[3:4], false)
	if err != nil || results[0].Fate != allocator.Already {
		t.Errorf("again: %+v, %v", results, err)
	}
}

func TestServeOnAFullDisk(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 19999)
	o.Path = filepath.Join(tmpfs(t, "512k"), "state", "leases.db")
	at := &clock{now: 1000 * time.Second}
	o.Uptime = at.uptime
	a := open(t, o)
	serve(t, a, wants(0), wants(1))
	filler := fill(t, filepath.Dir(filepath.Dir(o.Path)))
	var refusal error
	n := 2
	for ; refusal == nil && n < 10000; n++ {
		refusal = a.Serve(t.Context(), []allocator.Demand{wants(n)}, nil)[0].Err
	}
	refused(t, refusal, allocator.ErrDiskFull, o.Path)
	before := a.Clients()
	// What needs no disk works, in the same batch as what does.
	got := a.Serve(t.Context(), []allocator.Demand{wants(0), gives(1), wants(n)}, nil)
	if got[0].Err != nil || got[0].Table != 10000 {
		t.Errorf("a renewal that changes nothing: %+v", got[0])
	}
	refused(t, got[1].Err, allocator.ErrDiskFull, o.Path)
	refused(t, got[2].Err, allocator.ErrDiskFull, o.Path)
	at.now += time.Second
	refused(t, a.Serve(t.Context(), []allocator.Demand{wants(0)}, nil)[0].Err, allocator.ErrDiskFull, o.Path)
	if after := a.Clients(); !slices.Equal(before, after) {
		t.Errorf("a refused demand changed\n%v\nto\n%v", before, after)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	got = serve(t, a, wants(0), gives(1), wants(n))
	if got[2].Table == 0 || a.Fault() != nil {
		t.Errorf("after there is space again: %+v, %v", got, a.Fault())
	}
}

func TestServeAfterTheFileWasDeleted(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	a := open(t, o)
	first := serve(t, a, wants(0), wants(1))
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(o.Path + suffix); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, a, wants(2))
	b, err := allocator.OpenReadOnly(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := b.LookupClient(client(1)); !ok || n != first[1].Table || len(b.Clients()) != 3 {
		t.Errorf("the new file holds %v", b.Clients())
	}
}

func TestUpgradeFromSchema1(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile("migrations/001_tables.sql")
	if err != nil {
		t.Fatal(err)
	}
	old := raw(t, o.Path)
	execute(t, old, string(first))
	execute(t, old, "PRAGMA application_id=1296583729; PRAGMA user_version=1")
	execute(t, old, `INSERT INTO tables VALUES (10003, 1, 2, 'wan0', '10.0.0.0/24', 1, NULL, 0)`)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	// A reader does not change it.
	b, err := allocator.OpenReadOnly(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := b.Lookup(key(0)); !ok || n != 10003 {
		t.Errorf("read: %d, %v", n, ok)
	}
	a := open(t, o)
	if n := acquire(t, a, key(0)); n != 10003 {
		t.Errorf("the link has %d", n)
	}
	if n := serve(t, a, wants(0))[0].Table; n != 10000 {
		t.Errorf("the client has %d", n)
	}
}

// A clientWorld is the promises to clients and links together.
type clientWorld struct {
	dir     string
	opened  int
	options allocator.Options
	at      *clock
	a       *allocator.Allocator
	// told is what was acknowledged of leases that nobody released; links are
	// those acquired since the start.
	told  map[allocator.ClientKey]allocator.Outcome
	owner map[allocator.ClientKey]uint32
	links map[routing.Key]routing.TableID
}

func (w *clientWorld) live(k allocator.ClientKey) bool {
	o, ok := w.told[k]
	return ok && o.Expires > w.at.now.Truncate(time.Second)
}

func (w *clientWorld) serve(t *rapid.T) {
	demands := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) allocator.Demand {
		return allocator.Demand{
			Key:     client(rapid.IntRange(0, modelKeys-1).Draw(t, "key")),
			Release: rapid.IntRange(0, 3).Draw(t, "release") == 0,
			Owner:   rapid.Uint32Range(0, 2).Draw(t, "owner"), Quota: 3,
			Lifetime: time.Duration(rapid.IntRange(1, 20).Draw(t, "lifetime")) * time.Second,
			Table:    routing.TableID(rapid.SampledFrom([]int{0, 0, modelFirst + 1, modelFirst + 5}).Draw(t, "hint")),
		}
	}), 1, 6).Draw(t, "demands")
	for i, o := range w.a.Serve(t.Context(), demands, nil) {
		w.judge(t, demands[i], o)
	}
}

func (w *clientWorld) judge(t *rapid.T, d allocator.Demand, o allocator.Outcome) {
	live := w.live(d.Key)
	foreign := live && d.Owner != 0 && d.Owner != w.owner[d.Key]
	if foreign != errors.Is(o.Err, allocator.ErrNotOwner) {
		t.Fatalf("%+v of the lease of %d: %+v", d, w.owner[d.Key], o)
	}
	if foreign {
		return
	}
	if d.Release {
		if o != (allocator.Outcome{}) {
			t.Fatalf("release: %+v", o)
		}
		delete(w.told, d.Key)
		return
	}
	if o.Err != nil {
		_, full := errors.AsType[*allocator.FullError](o.Err)
		_, quota := errors.AsType[*allocator.QuotaError](o.Err)
		_, scarce := errors.AsType[*allocator.ScarceError](o.Err)
		inRange := live && leased(w.options).Contains(w.told[d.Key].Table)
		if !full && !quota && !scarce || inRange || quota && d.Owner == 0 {
			t.Fatalf("%+v (live: %v): %v", d, live, o.Err)
		}
		return
	}
	if o.New == live || o.Expires != w.at.now.Truncate(time.Second)+d.Lifetime {
		t.Fatalf("%+v at %v (live: %v): %+v", d, w.at.now, live, o)
	}
	if was := w.told[d.Key].Table; live && leased(w.options).Contains(was) && o.Table != was {
		t.Fatalf("%v had %d and got %d", d.Key, was, o.Table)
	}
	if !live {
		w.owner[d.Key] = d.Owner
	}
	w.told[d.Key] = o
}

func (w *clientWorld) acquire(t *rapid.T) {
	n := anyKeys().Draw(t, "links")
	var wanted []routing.Key
	for _, i := range n {
		wanted = append(wanted, key(i))
	}
	got, err := w.a.Acquire(t.Context(), wanted, nil)
	_, full := errors.AsType[*allocator.FullError](err)
	if _, scarce := errors.AsType[*allocator.ScarceError](err); err != nil && !full && !scarce {
		t.Fatal(err)
	}
	maps.Copy(w.links, got)
}

// invariant compares everything with what was acknowledged.
func (w *clientWorld) invariant(t *rapid.T) {
	holder := map[routing.TableID]string{}
	claim := func(n routing.TableID, who string) {
		if other, ok := holder[n]; ok {
			t.Fatalf("%s and %s have %d", other, who, n)
		}
		holder[n] = who
	}
	for k, n := range w.links {
		if got, ok := w.a.Lookup(k); ok && got != n {
			t.Fatalf("%v had %d and has %d", k, n, got)
		}
	}
	for _, l := range w.a.List() {
		claim(l.Table, l.Key.String())
	}
	live := 0
	for _, l := range w.a.Clients() {
		claim(l.Table, l.Key.String())
		if l.Live != w.live(l.Key) {
			t.Fatalf("%+v at %v, acknowledged %+v", l, w.at.now, w.told[l.Key])
		}
		if !l.Live {
			continue
		}
		live++
		if told := w.told[l.Key]; l.Table != told.Table || l.Expires != told.Expires || l.Owner != w.owner[l.Key] {
			t.Fatalf("%+v, acknowledged %+v to %d", l, told, w.owner[l.Key])
		}
	}
	for k := range w.told {
		if w.live(k) {
			live--
		}
	}
	if live != 0 {
		t.Fatalf("%d leases more than were acknowledged: %v", live, w.a.Clients())
	}
}

func (w *clientWorld) open(t *rapid.T) {
	a, err := allocator.Open(t.Context(), w.options)
	if err != nil {
		t.Fatal(err)
	}
	w.a, w.links = a, map[routing.Key]routing.TableID{}
}

func (w *clientWorld) restart(t *rapid.T) {
	if err := w.a.Close(); err != nil {
		t.Fatal(err)
	}
	w.open(t)
}

func (w *clientWorld) crash(t *rapid.T) {
	from := w.options.Path
	w.opened++
	w.options.Path = filepath.Join(w.dir, fmt.Sprintf("%d.db", w.opened))
	if err := copyFiles(from, w.options.Path); err != nil {
		t.Fatal(err)
	}
	w.restart(t)
}

func (w *clientWorld) reboot(t *rapid.T) {
	w.opened++
	w.options.Boot = fmt.Sprint("boot ", w.opened)
	w.at.now = time.Duration(rapid.IntRange(0, 100).Draw(t, "uptime")) * time.Second
	w.told = map[allocator.ClientKey]allocator.Outcome{}
	w.crash(t)
}

func TestClientModel(t *testing.T) {
	t.Parallel()
	memory := tmpfs(t, "256m")
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		dir := filepath.Join(memory, fmt.Sprint(runs))
		w := &clientWorld{
			dir: dir, at: &clock{now: 100 * time.Second},
			told: map[allocator.ClientKey]allocator.Outcome{}, owner: map[allocator.ClientKey]uint32{},
		}
		w.options = allocator.Options{
			Path:  filepath.Join(dir, "leases.db"),
			Range: routing.TableRange{First: modelFirst, Last: modelFirst + 7}, Uptime: w.at.uptime, Boot: "boot",
		}
		w.open(rt)
		defer func() {
			if err := errors.Join(w.a.Close(), os.RemoveAll(dir)); err != nil {
				t.Error(err)
			}
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"serve": w.serve, "more": w.serve, "most": w.serve,
			"acquire": w.acquire, "restart": w.restart, "crash": w.crash, "reboot": w.reboot,
			"release": func(t *rapid.T) {
				k := key(rapid.IntRange(0, modelKeys-1).Draw(t, "link"))
				w.a.Release(k)
				delete(w.links, k)
			},
			"expire": func(*rapid.T) { w.a.Expire() },
			"clock": func(t *rapid.T) {
				w.at.now += time.Duration(rapid.IntRange(1, 15000).Draw(t, "ms")) * time.Millisecond
			},
			"flush": func(t *rapid.T) {
				if err := w.a.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			},
			"": w.invariant,
		})
	})
}

// servesVariable names the database for a process that serves until it is killed.
const servesVariable = "MULTIHOMED_TEST_SERVES"

// serveForEver serves batches at random, and reports each after it is done.
func serveForEver(path string) error {
	a, err := allocator.Open(context.Background(), allocator.Options{Path: path, Range: routing.TableRange{First: childFirst, Last: childLast}})
	if err != nil {
		return err
	}
	for {
		var line strings.Builder
		demands := make([]allocator.Demand, 1+rand.IntN(8))
		asked := make([]int, len(demands))
		for i := range demands {
			asked[i] = rand.IntN(childKeys)
			if demands[i] = wants(asked[i]); rand.IntN(2) == 0 {
				demands[i] = gives(asked[i])
			}
			demands[i].Lifetime += time.Duration(rand.IntN(100)) * time.Second
			fmt.Fprintf(&line, "ask %d\n", asked[i])
		}
		fmt.Print(line.String())
		line.Reset()
		for i, o := range a.Serve(context.Background(), demands, nil) {
			_, full := errors.AsType[*allocator.FullError](o.Err)
			switch {
			case full:
			case o.Err != nil:
				return o.Err
			case demands[i].Release:
				fmt.Fprintf(&line, "gone %d\n", asked[i])
			default:
				fmt.Fprintf(&line, "have %d %d %d\n", asked[i], o.Table, o.Expires/time.Second)
			}
		}
		fmt.Print(line.String() + "done\n")
	}
}

// told is what a killed server said of a lease last.
type told struct {
	table   routing.TableID
	expires int
}

func TestKilledWhileItServes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases.db")
	for range 20 {
		said, unsure := serveUntilKilled(t, path, 1+rand.IntN(1500))
		a := open(t, allocator.Options{Path: path, Range: routing.TableRange{First: childFirst, Last: childLast}})
		found := map[int]allocator.ClientLease{}
		for _, l := range a.Clients() {
			for n := range childKeys {
				if client(n) == l.Key && l.Live {
					found[n] = l
				}
			}
		}
		for n := range childKeys {
			if unsure[n] {
				continue // It was asked for when the process died.
			}
			want, leased := said[n]
			got, live := found[n]
			if leased != live || leased && (got.Table != want.table || int(got.Expires/time.Second) != want.expires) {
				t.Errorf("%v: told %v %+v, has %v %+v", client(n), leased, want, live, got)
			}
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func serveUntilKilled(t *testing.T, path string, steps int) (said map[int]told, unsure map[int]bool) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), servesVariable+"="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	said, unsure = map[int]told{}, map[int]bool{}
	lines := bufio.NewScanner(out)
	for i := 0; lines.Scan(); i++ {
		if i == steps {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		var n, table, expires int
		switch line := lines.Text(); {
		case line == "done":
			clear(unsure)
		case scanned(fmt.Sscanf(line, "ask %d", &n)):
			unsure[n] = true
		case scanned(fmt.Sscanf(line, "gone %d", &n)):
			delete(said, n)
		case scanned(fmt.Sscanf(line, "have %d %d %d", &n, &table, &expires)):
			for other, its := range said {
				if int(its.table) == table && other != n {
					t.Errorf("%d was given to %d while %d held it", table, n, other)
				}
			}
			said[n] = told{routing.TableID(table), expires}
		default:
			t.Errorf("the child says %q", line)
		}
	}
	if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child ended otherwise: %v", err)
	}
	return said, unsure
}

func BenchmarkServe(b *testing.B) {
	for name, dir := range map[string]func(*testing.B) string{"disk": onDisk, "memory": inMemory} {
		for _, size := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				a := open(b, allocator.Options{Path: filepath.Join(dir(b), "leases.db"), Range: routing.TableRange{First: 10000, Last: 19999}})
				n := 0
				for b.Loop() {
					demands := make([]allocator.Demand, size)
					for i := range demands {
						demands[i] = allocator.Demand{Lifetime: time.Hour, Release: n/size%2 == 1, Key: allocator.ClientKey{
							Family: routing.IPv4, Interface: "wan0", Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String(),
						}}
						n++
					}
					serve(b, a, demands...)
				}
				b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "requests/s")
			})
		}
	}
}

func onDisk(b *testing.B) string {
	b.Helper()
	return b.TempDir()
}

// inMemory needs no root, unlike a tmpfs of its own.
func inMemory(b *testing.B) string {
	b.Helper()
	directory, err := os.MkdirTemp("/dev/shm", "leases") //nolint:usetesting // not on disk
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(directory); err != nil {
			b.Error(err)
		}
	})
	return directory
}
