package cgroups_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"multihomed/internal/cgroups"
)

// A helper binds what a Keeper asks for.
type helper struct {
	mu       sync.Mutex
	attached []string // "LINK PATH"
	ids      []uint64
	refuse   error
	calls    int
}

func (h *helper) attach(_ context.Context, link string, cgroup *os.File) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(cgroup.Fd()), &stat); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.calls++; h.refuse != nil {
		return h.refuse
	}
	h.attached = append(h.attached, link+" "+filepath.Base(cgroup.Name()))
	h.ids = append(h.ids, stat.Ino)
	return nil
}

func (h *helper) setRefuse(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = err
}

func (h *helper) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.attached)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// keep runs a keeper until stop is called.
func keep(t *testing.T, k *cgroups.Keeper) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// brief is what matters of a state.
func brief(s cgroups.State) string {
	return fmt.Sprintf("%v %v %d+%d", s.Selector, s.Standing, s.Bound, s.Unbound)
}

// awaitStates waits until the bindings are so.
func awaitStates(t *testing.T, k *cgroups.Keeper, want ...string) []cgroups.State {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		states := k.States()
		var got []string
		for _, s := range states {
			got = append(got, brief(s))
		}
		if slices.Equal(got, want) {
			return states
		}
		select {
		case <-k.Changed():
		case <-timeout.C:
			t.Fatalf("states %q, want %q: %+v", got, want, states)
		}
	}
}

func TestCgroupsAreBoundWhenTheyAppear(t *testing.T) {
	root := newRoot(t)
	before := descriptors(t)
	h := &helper{}
	memory := cgroups.Memory{Directory: t.TempDir()}
	k := cgroups.NewKeeper(cgroups.Options{Logger: quiet(), Mount: root, Attach: h.attach, Remember: memory.Keep})
	a, b := selector(t, "unit a.service"), selector(t, "slice b.slice")
	k.Want(cgroups.Bind{Selector: a, Link: "wan1"}, cgroups.Bind{Selector: b, Link: "wan0"})
	if s := k.States(); brief(s[0]) != "unit a.service looking 0+0" || s[0].Sentence() == "" {
		t.Errorf("before it runs: %+v", s)
	}
	stop := keep(t, k)
	states := awaitStates(t, k, "unit a.service waiting 0+0", "slice b.slice waiting 0+0")
	if text := states[0].Sentence(); text != "unit a.service: it has no cgroup yet" {
		t.Error(text)
	}
	mkdir(t, root, "system.slice/a.service")
	states = awaitStates(t, k, "unit a.service bound 1+0", "slice b.slice waiting 0+0")
	last := states[0].Last
	if last.Link != "wan1" || last.Path != "system.slice/a.service" || last.Early != 0 || last.Window < 0 || last.Window > patience || last.At.IsZero() {
		t.Errorf("%+v", last)
	}
	for range 5 { // Made anew.
		removeAll(t, filepath.Join(root, "system.slice"))
		awaitStates(t, k, "unit a.service waiting 0+0", "slice b.slice waiting 0+0")
		mkdir(t, root, "system.slice/a.service")
		awaitStates(t, k, "unit a.service bound 1+0", "slice b.slice waiting 0+0")
	}
	mkdir(t, root, "b.slice/a.service")
	states = awaitStates(t, k, "unit a.service bound 2+0", "slice b.slice bound 1+0")
	if text := states[0].Sentence(); !strings.HasPrefix(text, "unit a.service: bound to wan1 (2 cgroups); the last one existed for ") {
		t.Error(text)
	}
	stop()
	if got := h.all(); len(got) != 8 || got[0] != "wan1 a.service" {
		t.Errorf("attached %q", got)
	}
	h.mu.Lock()
	if ids := slices.Compact(slices.Sorted(slices.Values(h.ids))); len(ids) != 8 {
		t.Errorf("a cgroup was bound twice: %v", h.ids)
	}
	h.mu.Unlock()
	if now := descriptors(t); now != before {
		t.Errorf("%d descriptors before, %d after", before, now)
	}
	// The next process of this boot binds nothing a second time.
	next := &helper{}
	k = cgroups.NewKeeper(cgroups.Options{Logger: quiet(), Mount: root, Attach: next.attach, Remembered: memory.Recall()})
	k.Want(cgroups.Bind{Selector: a, Link: "wan1"}, cgroups.Bind{Selector: b, Link: "wan0"})
	stop = keep(t, k)
	awaitStates(t, k, "unit a.service bound 2+0", "slice b.slice bound 1+0")
	// What is bound stays so.
	k.Want(cgroups.Bind{Selector: a, Link: "wan2"})
	states = awaitStates(t, k, "unit a.service failed 0+2")
	if text := states[0].Sentence(); !strings.Contains(text, "is bound to wan1 for as long as it exists; to fix: systemctl restart a.service") {
		t.Error(text)
	}
	if left := k.Left(); len(left) != 3 || left[0].Path != "b.slice" {
		t.Errorf("left %+v", left)
	}
	removeAll(t, filepath.Join(root, "b.slice"))
	mkdir(t, root, "b.slice/a.service")
	awaitStates(t, k, "unit a.service failed 1+1")
	if left := k.Left(); len(left) != 1 || left[0].Path != "system.slice/a.service" {
		t.Errorf("left %+v", left)
	}
	stop()
	if got := next.all(); !slices.Equal(got, []string{"wan2 a.service"}) {
		t.Errorf("attached %q", got)
	}
}

func TestAFailureIsSaidAndTriedAgain(t *testing.T) {
	root := newRoot(t)
	mkdir(t, root, "system.slice/a.service")
	before := descriptors(t)
	h := &helper{refuse: errors.New("the helper cannot be reached; to fix: start it")}
	k := cgroups.NewKeeper(cgroups.Options{Logger: quiet(), Mount: root, Attach: h.attach})
	a := selector(t, "unit a.service")
	k.Want(cgroups.Bind{Selector: a, Link: "wan1"}, cgroups.Bind{Selector: selector(t, "slice system.slice"), Link: "wan1"}, cgroups.Bind{Selector: a, Link: "wan0"})
	stop := keep(t, k)
	states := awaitStates(t, k, "unit a.service failed 0+1", "slice system.slice failed 0+1", "unit a.service failed 0+1")
	if text := states[0].Sentence(); text != "unit a.service: 1 cgroup not bound to wan1: the helper cannot be reached; to fix: start it" {
		t.Error(text)
	}
	if text := states[2].Error; text != "/system.slice/a.service is for wan1 by another binding; to fix: remove one of them" {
		t.Error(text)
	}
	h.setRefuse(nil)
	awaitStates(t, k, "unit a.service bound 1+0", "slice system.slice bound 1+0", "unit a.service failed 0+1")
	h.setRefuse(errors.New("no"))
	mkdir(t, root, "b.slice/a.service")
	awaitStates(t, k, "unit a.service failed 1+1", "slice system.slice bound 1+0", "unit a.service failed 0+2")
	removeAll(t, filepath.Join(root, "b.slice")) // While it is tried.
	awaitStates(t, k, "unit a.service bound 1+0", "slice system.slice bound 1+0", "unit a.service failed 0+1")
	mkdir(t, root, "b.slice/a.service")
	awaitStates(t, k, "unit a.service failed 1+1", "slice system.slice bound 1+0", "unit a.service failed 0+2")
	// Another link is tried at once, and the old one no longer.
	h.setRefuse(nil)
	k.Want(cgroups.Bind{Selector: selector(t, "cgroup b.slice/a.service"), Link: "wan0"})
	awaitStates(t, k, "cgroup /b.slice/a.service bound 1+0")
	stop()
	if now := descriptors(t); now != before {
		t.Errorf("%d descriptors before, %d after", before, now)
	}
}

func TestProcessesThatWereThereAreSaid(t *testing.T) {
	root := newRoot(t)
	mkdir(t, root, "system.slice/a.service/in")
	for _, place := range []string{"system.slice/a.service", "system.slice/a.service/in"} {
		directory, err := os.Open(filepath.Join(root, place))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = directory.Close() }()
		ctx, kill := context.WithCancel(t.Context())
		c := exec.CommandContext(ctx, "sleep", "1000")
		c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(directory.Fd())}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { kill(); _ = c.Wait() }()
	}
	k := cgroups.NewKeeper(cgroups.Options{Logger: quiet(), Mount: root, Attach: (&helper{}).attach})
	k.Want(cgroups.Bind{Selector: selector(t, "unit a.service"), Link: "wan1"})
	stop := keep(t, k)
	states := awaitStates(t, k, "unit a.service bound 1+0")
	stop()
	if states[0].Last.Early != 2 {
		t.Errorf("%+v", states[0].Last)
	}
	if text := states[0].Sentence(); !strings.HasSuffix(text, ", with 2 processes in it: sockets that were open by then are unbound; to fix: systemctl restart a.service") {
		t.Error(text)
	}
}

func TestWithoutCgroupsEveryBindingSaysSo(t *testing.T) {
	mount := t.TempDir()
	k := cgroups.NewKeeper(cgroups.Options{Logger: quiet(), Mount: mount, Attach: (&helper{}).attach})
	k.Want(cgroups.Bind{Selector: selector(t, "unit a.service"), Link: "wan1"})
	stop := keep(t, k)
	states := awaitStates(t, k, "unit a.service failed 0+0")
	if !strings.HasPrefix(states[0].Sentence(), "unit a.service: cgroups not bound to wan1: "+cgroups.ErrNone.Error()) {
		t.Error(states[0].Sentence())
	}
	stop()
}

// TestOthersAreBoundAtAPace: what other users make again and again costs few binds, and delays nobody else's.
func TestOthersAreBoundAtAPace(t *testing.T) {
	root := newRoot(t)
	const manager = "user.slice/user-1000.slice/user@1000.service"
	mkdir(t, root, manager)
	if err := os.Chown(filepath.Join(root, manager), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	h := &helper{}
	k := cgroups.NewKeeper(cgroups.Options{Logger: quiet(), Mount: root, Attach: h.attach})
	k.Want(cgroups.Bind{Selector: selector(t, "unit a@.service"), Link: "wan1"})
	stop := keep(t, k)
	awaitStates(t, k, "unit a@.service waiting 0+0")
	const many = 100
	began := time.Now()
	for n := range many {
		mkdir(t, root, fmt.Sprintf("%s/a@%d.service", manager, n))
	}
	mkdir(t, root, "system.slice/a@own.service")
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for !slices.Contains(h.all(), "wan1 a@own.service") {
		select {
		case <-k.Changed():
		case <-timeout.C:
			t.Fatal("the system's unit waits for those of others")
		}
	}
	if n, most := len(h.all()), 1+20+10*(1+int(time.Since(began)/time.Second)); n > most {
		t.Errorf("%d were bound after %v, want at most %d", n, time.Since(began), most)
	}
	stop()
}

// TestEachCgroupIsBoundOnce: whatever comes and goes and is wanted, all that exists in the end is bound, each once, to the
// first link that wants it or wanted it before.
func TestEachCgroupIsBoundOnce(t *testing.T) {
	texts := []string{"unit x.service", "unit y@.service", "slice a.slice", "cgroup a.slice/x.service"}
	places := []string{"a.slice", "a.slice/x.service", "b.slice/x.service", "b.slice/y@1.service", "x.service", "user.slice/user-1.slice/user@1.service/x.service"}
	n := 0
	base := newRoot(t)
	rapid.Check(t, func(r *rapid.T) {
		n++
		root := filepath.Join(base, fmt.Sprint(n))
		mkdir(r, root, ".")
		h := &helper{}
		k := cgroups.NewKeeper(cgroups.Options{Logger: quiet(), Mount: root, Attach: h.attach})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		for range rapid.IntRange(1, 30).Draw(r, "changes") {
			switch rapid.IntRange(0, 9).Draw(r, "change") {
			case 0, 1:
				var binds []cgroups.Bind
				for _, text := range rapid.SliceOfDistinct(rapid.SampledFrom(texts), rapid.ID).Draw(r, "wanted") {
					binds = append(binds, cgroups.Bind{Selector: selector(t, text), Link: rapid.SampledFrom([]string{"wan0", "wan1"}).Draw(r, "link")})
				}
				k.Want(binds...)
			case 2, 3, 4:
				place := filepath.Join(root, rapid.SampledFrom(places).Draw(r, "removed"))
				if _, err := os.Stat(place); err == nil {
					removeAll(r, place)
				}
			default:
				mkdir(r, root, rapid.SampledFrom(places).Draw(r, "made"))
			}
		}
		binds := make([]cgroups.Bind, 0, len(texts))
		for _, text := range texts {
			binds = append(binds, cgroups.Bind{Selector: selector(t, text), Link: "wan1"})
		}
		k.Want(binds...)
		exists := map[uint64]string{}
		for _, place := range places {
			if _, err := os.Stat(filepath.Join(root, place)); err == nil && slices.ContainsFunc(binds, func(b cgroups.Bind) bool { is, _ := b.Selector.At(place); return is }) {
				exists[inode(r, filepath.Join(root, place))] = place
			}
		}
		timeout := time.NewTimer(patience)
		defer timeout.Stop()
		for {
			h.mu.Lock()
			ids := slices.Clone(h.ids)
			h.mu.Unlock()
			missing := false
			for id := range exists {
				missing = missing || !slices.Contains(ids, id)
			}
			settled := !slices.ContainsFunc(k.States(), func(s cgroups.State) bool { return s.Standing == cgroups.Looking || s.Standing == cgroups.Binding })
			if !missing && settled {
				break
			}
			select {
			case <-k.Changed():
			case <-timeout.C:
				r.Fatalf("bound %v of %v: %+v", ids, exists, k.States())
			}
		}
		cancel()
		if err := <-ended; err != nil {
			r.Fatal(err)
		}
		slices.Sort(h.ids)
		if ids := slices.Compact(slices.Clone(h.ids)); len(ids) != len(h.ids) {
			r.Fatalf("a cgroup was bound twice: %v", h.ids)
		}
		removeAll(r, root)
	})
}
