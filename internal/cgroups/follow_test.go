package cgroups_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"multihomed/internal/cgroups"
)

// patience is how long what must come may take.
const patience = 30 * time.Second

// newRoot makes a cgroup of the test's own, which stands for the root.
func newRoot(tb testing.TB) string {
	tb.Helper()
	at, err := cgroups.Root(cgroups.Mount)
	if err != nil {
		tb.Fatal(err)
	}
	root := filepath.Join(at, fmt.Sprintf("multihomed-test-%d-%s", os.Getpid(), tb.Name()))
	if err := os.Mkdir(root, 0o755); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { removeAll(tb, root) })
	return root
}

type failer interface {
	Helper()
	Fatal(args ...any)
}

func mkdir(tb failer, root, place string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Join(root, place), 0o755); err != nil {
		tb.Fatal(err)
	}
}

// removeAll removes a cgroup and those in it. The files in them cannot be removed.
func removeAll(tb failer, place string) {
	tb.Helper()
	var all []string
	err := filepath.WalkDir(place, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			all = append(all, path)
		}
		return err
	})
	for _, path := range slices.Backward(all) {
		err = errors.Join(err, unix.Rmdir(path))
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func inode(tb failer, path string) uint64 {
	tb.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		tb.Fatal(err)
	}
	return stat.Ino
}

// A seen is a receiver that remembers.
type seen struct {
	mu      sync.Mutex
	changed chan struct{}
	now     map[string]string // of a selector and a number, the path
	all     []cgroups.Cgroup
	looked  int
	missed  error
	twice   []string
}

func newSeen() *seen { return &seen{changed: make(chan struct{}, 1), now: map[string]string{}} }

func key(s cgroups.Selector, id uint64) string { return fmt.Sprint(s, " ", id) }

func (s *seen) give() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *seen) Found(sel cgroups.Selector, c cgroups.Cgroup, directory *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.give()
	var stat unix.Stat_t
	if err := errors.Join(unix.Fstat(int(directory.Fd()), &stat), directory.Close()); err != nil || stat.Ino != c.ID {
		s.twice = append(s.twice, fmt.Sprintf("the directory of %v is %d (%v)", c, stat.Ino, err))
	}
	if _, is := s.now[key(sel, c.ID)]; is {
		s.twice = append(s.twice, "twice: "+key(sel, c.ID))
	}
	s.now[key(sel, c.ID)] = c.Path
	s.all = append(s.all, c)
}

func (s *seen) Gone(sel cgroups.Selector, id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.give()
	if _, is := s.now[key(sel, id)]; !is {
		s.twice = append(s.twice, "gone and never there: "+key(sel, id))
	}
	delete(s.now, key(sel, id))
}

func (s *seen) Looked(_ []cgroups.Selector, missed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.give()
	s.looked++
	s.missed = missed
}

// await waits until something holds.
func (s *seen) await(tb failer, what string, is func() bool) {
	tb.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		holds := is()
		s.mu.Unlock()
		if holds {
			return
		}
		select {
		case <-s.changed:
		case <-timeout.C:
			s.mu.Lock()
			tb.Fatal(what, ": not so; seen: ", s.now, s.missed)
		}
	}
}

// awaitNow waits until exactly these cgroups are known: "unit x.service: path".
func (s *seen) awaitNow(tb failer, root string, want ...string) {
	tb.Helper()
	all := map[string]string{}
	for _, w := range want {
		sel, place, _ := strings.Cut(w, ": ")
		all[fmt.Sprint(sel, " ", inode(tb, filepath.Join(root, place)))] = place
	}
	s.await(tb, fmt.Sprint(all), func() bool { return maps.Equal(s.now, all) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.twice) > 0 {
		tb.Fatal(s.twice)
	}
}

// follow follows until stop is called.
func follow(tb failer, f *cgroups.Follower, s cgroups.Receiver) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Follow(ctx, s) }()
	return func() {
		tb.Helper()
		cancel()
		if err := <-ended; err != nil {
			tb.Fatal(err)
		}
	}
}

func descriptors(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}

func TestUnitsComeAndGo(t *testing.T) {
	root := newRoot(t)
	mkdir(t, root, "system.slice/a.service")
	mkdir(t, root, "other/a.service")
	before := descriptors(t)
	s, f := newSeen(), cgroups.NewFollower(root)
	f.Want(selector(t, "unit a.service"), selector(t, "unit a.service"))
	stop := follow(t, f, s)
	s.awaitNow(t, root, "unit a.service: system.slice/a.service")
	mkdir(t, root, "b.slice/b-c.slice/a.service") // In a slice that did not exist.
	s.awaitNow(t, root, "unit a.service: system.slice/a.service", "unit a.service: b.slice/b-c.slice/a.service")
	removeAll(t, filepath.Join(root, "b.slice"))
	s.awaitNow(t, root, "unit a.service: system.slice/a.service")
	for range 20 { // Made anew.
		removeAll(t, filepath.Join(root, "system.slice"))
		mkdir(t, root, "system.slice/a.service")
	}
	s.awaitNow(t, root, "unit a.service: system.slice/a.service")
	mkdir(t, root, "user.slice/user-7.slice/user@7.service/app.slice/a.service")
	s.awaitNow(t, root, "unit a.service: system.slice/a.service", "unit a.service: user.slice/user-7.slice/user@7.service/app.slice/a.service")
	stop()
	if now := descriptors(t); now != before {
		t.Errorf("%d descriptors before, %d after", before, now)
	}
}

func TestWhatIsWantedChanges(t *testing.T) {
	root := newRoot(t)
	mkdir(t, root, "system.slice/a.service/inner")
	before := descriptors(t)
	s, f := newSeen(), cgroups.NewFollower(root)
	stop := follow(t, f, s)
	s.await(t, "looked at nothing", func() bool { return s.looked == 1 && len(s.now) == 0 })
	f.Want(selector(t, "unit a.service"), selector(t, "cgroup system.slice/a.service/inner"), selector(t, "slice system.slice"))
	all := []string{"unit a.service: system.slice/a.service", "cgroup /system.slice/a.service/inner: system.slice/a.service/inner", "slice system.slice: system.slice"}
	s.awaitNow(t, root, all...)
	f.Want()
	s.await(t, "looked without selectors", func() bool { return s.looked >= 3 })
	s.awaitNow(t, root, all...) // What is not wanted is not told as gone.
	removeAll(t, filepath.Join(root, "system.slice"))
	f.Want(selector(t, "slice system.slice"))
	s.await(t, "looked again", func() bool { return s.looked >= 4 })
	s.mu.Lock()
	clear(s.now)
	s.mu.Unlock()
	mkdir(t, root, "system.slice")
	s.awaitNow(t, root, "slice system.slice: system.slice")
	stop()
	if now := descriptors(t); now != before {
		t.Errorf("%d descriptors before, %d after", before, now)
	}
}

// TestAnOverflowLosesNothing: the queue of inotify has 16,384 places, and nobody takes events while a receiver is busy.
func TestAnOverflowLosesNothing(t *testing.T) {
	root := newRoot(t)
	mkdir(t, root, "system.slice")
	s, f := newSeen(), cgroups.NewFollower(root)
	f.Want(selector(t, "unit a.service"), selector(t, "unit last.service"))
	blocked := &blocking{seen: s, entered: make(chan struct{}), leave: make(chan struct{})}
	stop := follow(t, f, blocked)
	s.await(t, "looked", func() bool { return s.looked > 0 })
	mkdir(t, root, "system.slice/a.service")
	<-blocked.entered
	places, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	var most int
	if _, err := fmt.Sscan(string(places), &most); err != nil {
		t.Fatal(err)
	}
	for n := range most/2 + 1000 { // Each is two events, and two names, since equal ones are merged.
		path := filepath.Join(root, "system.slice", fmt.Sprint("x", n%2))
		if err := errors.Join(os.Mkdir(path, 0o755), os.Remove(path)); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(t, root, "system.slice/last.service")
	removeAll(t, filepath.Join(root, "system.slice/a.service"))
	close(blocked.leave)
	s.awaitNow(t, root, "unit last.service: system.slice/last.service")
	if s.await(t, "looked again", func() bool { return s.looked > 1 }); s.missed != nil {
		t.Error(s.missed)
	}
	stop()
}

// A blocking receiver waits for the test at the first cgroup.
type blocking struct {
	*seen
	once           sync.Once
	entered, leave chan struct{}
}

func (b *blocking) Found(sel cgroups.Selector, c cgroups.Cgroup, directory *os.File) {
	b.once.Do(func() { close(b.entered); <-b.leave })
	b.seen.Found(sel, c, directory)
}

// TestOthersCannotUseUpTheRoom: a user who makes many cgroups in what was delegated to him costs few watches, and the
// system's units are found, whatever he does.
func TestOthersCannotUseUpTheRoom(t *testing.T) {
	root := newRoot(t)
	const manager = "user.slice/user-1000.slice/user@1000.service"
	mkdir(t, root, manager)
	if err := os.Chown(filepath.Join(root, manager), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	for n := range cgroups.MaxDelegated + 100 {
		mkdir(t, root, filepath.Join(manager, fmt.Sprintf("s%d.slice", n)))
	}
	before := descriptors(t)
	s, f := newSeen(), cgroups.NewFollower(root)
	f.Want(selector(t, "unit a.service"))
	stop := follow(t, f, s)
	s.await(t, "too many", func() bool { return s.missed != nil })
	if used := descriptors(t) - before; used > cgroups.MaxDelegated+20 {
		t.Errorf("%d descriptors", used)
	}
	if text := s.missed.Error(); !strings.Contains(text, manager) || !strings.Contains(text, "to fix: ") {
		t.Error(text)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	busy.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			path := filepath.Join(root, manager, fmt.Sprintf("t%d.slice", n%10))
			if err := errors.Join(os.Mkdir(path, 0o755), os.Remove(path)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 100 {
		mkdir(t, root, "system.slice/a.service")
		s.awaitNow(t, root, "unit a.service: system.slice/a.service")
		removeAll(t, filepath.Join(root, "system.slice"))
		s.awaitNow(t, root)
	}
	cancel()
	busy.Wait()
	stop()
	for _, c := range s.all {
		if c.Delegated {
			t.Errorf("%v is of another user", c)
		}
	}
}

func TestWhatOthersMadeIsSaid(t *testing.T) {
	root := newRoot(t)
	const manager = "user.slice/user-1000.slice/user@1000.service"
	mkdir(t, root, manager+"/app.slice/a.service")
	if err := os.Chown(filepath.Join(root, manager), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	s, f := newSeen(), cgroups.NewFollower(root)
	f.Want(selector(t, "unit a.service"), selector(t, "unit user@1000.service"))
	stop := follow(t, f, s)
	s.awaitNow(t, root, "unit a.service: "+manager+"/app.slice/a.service", "unit user@1000.service: "+manager)
	stop()
	for _, c := range s.all {
		if c.Delegated != strings.HasSuffix(c.Path, "a.service") {
			t.Errorf("%+v", c)
		}
		if age := time.Since(c.Born); age < 0 || age > patience {
			t.Errorf("%+v was born %v ago", c, age)
		}
	}
}

// TestTheFollowerKnowsWhatExists: after random changes of the tree and of what is wanted it knows what a walk finds.
func TestTheFollowerKnowsWhatExists(t *testing.T) {
	texts := []string{"unit x.service", "unit t@.service", "slice a.slice", "slice a-b.slice", "slice app.slice", "cgroup a.slice/x.service", "cgroup q/r"}
	places := []string{
		"a.slice", "a.slice/x.service", "a.slice/a-b.slice", "a.slice/a-b.slice/x.service", "a.slice/t@1.service", "b.slice/t@2.service", "x.service", "q", "q/r", "q/x.service",
		"user.slice/user-1.slice/user@1.service/app.slice", "user.slice/user-1.slice/user@1.service/app.slice/x.service", "user.slice/user-1.slice", "user.slice/x.service/in",
	}
	n := 0
	base := newRoot(t)
	rapid.Check(t, func(r *rapid.T) {
		n++
		root := filepath.Join(base, fmt.Sprint(n))
		mkdir(r, root, ".")
		s, f := newSeen(), cgroups.NewFollower(root)
		var wanted []string
		want := func() {
			wanted = rapid.SliceOfNDistinct(rapid.SampledFrom(texts), 1, len(texts), rapid.ID).Draw(r, "wanted")
			all := make([]cgroups.Selector, 0, len(wanted))
			for _, text := range wanted {
				all = append(all, selector(t, text))
			}
			s.mu.Lock()
			before := s.looked
			s.mu.Unlock()
			f.Want(all...)
			s.await(r, "looked", func() bool { return s.looked > before })
		}
		stop := follow(r, f, s)
		s.await(r, "looked", func() bool { return s.looked > 0 })
		want()
		for range rapid.IntRange(1, 30).Draw(r, "changes") {
			switch rapid.IntRange(0, 9).Draw(r, "change") {
			case 0:
				want()
				// It tells again what it tells; what it no longer follows is not told.
				s.mu.Lock()
				maps.DeleteFunc(s.now, func(k, _ string) bool {
					return !slices.ContainsFunc(wanted, func(w string) bool { return strings.HasPrefix(k, fmt.Sprint(selector(t, w), " ")) })
				})
				s.mu.Unlock()
			case 1, 2, 3:
				place := filepath.Join(root, rapid.SampledFrom(places).Draw(r, "removed"))
				if _, err := os.Stat(place); err == nil {
					removeAll(r, place)
				}
			default:
				mkdir(r, root, rapid.SampledFrom(places).Draw(r, "made"))
			}
		}
		var exists []string
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() || path == root {
				return err
			}
			place, err := filepath.Rel(root, path)
			for _, w := range wanted {
				if is, _ := selector(t, w).At(place); is {
					exists = append(exists, fmt.Sprint(selector(t, w), ": ", place))
				}
			}
			return err
		})
		if err != nil {
			r.Fatal(err)
		}
		slices.SortFunc(exists, cmp.Compare)
		s.awaitNow(r, root, exists...)
		stop()
		removeAll(r, root)
	})
}

func TestAHostWithoutCgroups(t *testing.T) {
	t.Parallel()
	if _, err := cgroups.Root(t.TempDir()); !errors.Is(err, cgroups.ErrNone) || !strings.Contains(err.Error(), "to fix: ") {
		t.Error(err)
	}
	if err := cgroups.NewFollower(filepath.Join(t.TempDir(), "none")).Follow(t.Context(), newSeen()); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestEventsAreParsed(t *testing.T) {
	t.Parallel()
	for _, data := range [][]byte{nil, make([]byte, 15), append(make([]byte, 12), 0xff, 0xff, 0xff, 0xff), make([]byte, 16)} {
		if n := cgroups.Parse(data); n != 0 {
			t.Errorf("%d events in %x", n, data)
		}
	}
}

// BenchmarkUntilFound is the time from mkdir(2) of a unit until it is told.
func BenchmarkUntilFound(b *testing.B) {
	root := newRoot(b)
	for n := range 200 {
		mkdir(b, root, fmt.Sprintf("system.slice/s%d.service", n))
	}
	f := cgroups.NewFollower(root)
	f.Want(selector(b, "unit a.service"))
	told := make(chan time.Time, 1)
	gone := make(chan struct{}, 1)
	looked := make(chan struct{}, 1)
	stop := follow(b, f, timing{told, gone, looked})
	<-looked
	path := filepath.Join(root, "system.slice/a.service")
	var all []time.Duration
	for b.Loop() {
		if err := os.Mkdir(path, 0o755); err != nil {
			b.Fatal(err)
		}
		made := time.Now()
		all = append(all, (<-told).Sub(made))
		b.StopTimer()
		removeAll(b, path)
		<-gone
		b.StartTimer()
	}
	stop()
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "us-median")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "us-p99")
	b.ReportMetric(float64(all[len(all)-1].Microseconds()), "us-worst")
}

type timing struct {
	told         chan time.Time
	gone, looked chan struct{}
}

func (t timing) Found(_ cgroups.Selector, _ cgroups.Cgroup, directory *os.File) {
	t.told <- time.Now()
	_ = directory.Close()
}
func (t timing) Gone(cgroups.Selector, uint64)    { t.gone <- struct{}{} }
func (t timing) Looked([]cgroups.Selector, error) { t.looked <- struct{}{} }
