package allocator_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"multihomed/allocator"
	"multihomed/routing"
)

// A world is what the promises are about: the kernel, which survives a crash of
// the daemon, and what the daemon was told.
type world struct {
	dir     string
	opened  int
	options allocator.Options
	a       *allocator.Allocator

	// kernel says which key's rules stand with which table.
	kernel map[routing.TableID]routing.Key
	// foreign tables are used by others.
	foreign map[routing.TableID]bool
	// live is what the daemon holds.
	live map[routing.Key]routing.TableID
	// known is what each key was told last, unless its number was recycled.
	known map[routing.Key]routing.TableID
	// released keys in order; after a crash, only those since.
	released []routing.Key
}

// leased are the numbers that may be leased: all but the last, which is kept.
func leased(o allocator.Options) routing.TableRange {
	return routing.TableRange{First: o.Range.First, Last: o.Range.Last - 1}
}

func (w *world) leased() routing.TableRange { return leased(w.options) }

func (w *world) inUse(n routing.TableID) (string, bool) {
	if k, ok := w.kernel[n]; ok {
		return "rule for " + k.String(), true
	}
	return "foreign", w.foreign[n]
}

const (
	modelKeys  = 12
	modelFirst = 100
)

func anyKeys() *rapid.Generator[[]int] {
	return rapid.SliceOfNDistinct(rapid.IntRange(0, modelKeys-1), 1, 4, rapid.ID[int])
}

// acquire is a pass of the daemon: leases first, then the kernel.
func (w *world) acquire(t *rapid.T) {
	numbers := anyKeys().Draw(t, "keys")
	wanted := make([]routing.Key, 0, len(numbers))
	for _, n := range numbers {
		wanted = append(wanted, key(n))
	}
	unused := w.unused()
	candidates := w.candidates()
	got, err := w.a.Acquire(t.Context(), wanted, w.inUse)
	// The known keys are served first, so they are judged first.
	slices.SortStableFunc(wanted, func(x, y routing.Key) int { return cmp.Compare(w.rank(x), w.rank(y)) })
	if _, full := errors.AsType[*allocator.FullError](err); err != nil && !full {
		t.Fatalf("acquiring %v: %v", wanted, err)
	}
	for _, k := range wanted {
		table, ok := got[k]
		if !ok {
			if err == nil {
				t.Fatalf("%v got neither a number nor an error", k)
			}
			continue
		}
		w.check(t, k, table, unused, candidates)
		w.live[k], w.known[k], w.kernel[table] = table, table, k
		w.released = slices.DeleteFunc(w.released, func(r routing.Key) bool { return r == k })
	}
}

func (w *world) rank(k routing.Key) int {
	if n, ok := w.known[k]; ok && w.leased().Contains(n) {
		return 0
	}
	return 1
}

// check judges one answer.
func (w *world) check(t *rapid.T, k routing.Key, table routing.TableID, unused map[routing.TableID]bool, candidates []routing.TableID) {
	if !w.leased().Contains(table) {
		t.Fatalf("%v got %d, outside %v", k, table, w.leased())
	}
	if other, ok := w.kernel[table]; ok && other != k {
		t.Fatalf("%v got %d, where the rules of %v stand", k, table, other)
	}
	for other, its := range w.live {
		if its == table && other != k {
			t.Fatalf("%v got %d, which %v holds", k, table, other)
		}
	}
	had, ok := w.known[k]
	if ok && w.leased().Contains(had) {
		if table != had {
			t.Fatalf("%v had %d and got %d", k, had, table)
		}
		return
	}
	if w.foreign[table] {
		t.Fatalf("%v got %d, which is in use otherwise", k, table)
	}
	owner, recycled := w.owner(table)
	if !recycled {
		delete(unused, table)
		return
	}
	delete(w.known, owner)
	for n := range unused {
		t.Fatalf("%v got %d of %v although %d is unused", k, table, owner, n)
	}
	if !slices.Contains(candidates, table) {
		return // Released before the last crash: it is older than all of them.
	}
	// The same pass may have taken some of the older ones back.
	for _, n := range candidates {
		if n == table {
			break
		}
		if _, used := w.inUse(n); !used {
			t.Fatalf("%v got %d of %v although %d was released before", k, table, owner, n)
		}
	}
}

// owner finds the key that was told a number last.
func (w *world) owner(table routing.TableID) (routing.Key, bool) {
	for k, n := range w.known {
		if n == table {
			return k, true
		}
	}
	return routing.Key{}, false
}

func (w *world) unused() map[routing.TableID]bool {
	free := map[routing.TableID]bool{}
	for n := w.leased().First; n <= w.leased().Last; n++ {
		_, leased := w.owner(n)
		if _, used := w.inUse(n); !used && !leased {
			free[n] = true
		}
	}
	return free
}

// candidates are the numbers that may be recycled, in order.
func (w *world) candidates() (numbers []routing.TableID) {
	for _, k := range w.released {
		if n, ok := w.known[k]; ok && w.leased().Contains(n) {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// release takes the rules away first, or leaves them for a while.
func (w *world) release(t *rapid.T) {
	if len(w.live) == 0 {
		return
	}
	k := rapid.SampledFrom(slices.SortedFunc(maps.Keys(w.live), compareKeys)).Draw(t, "key")
	if rapid.Bool().Draw(t, "rules are gone") {
		delete(w.kernel, w.live[k])
	}
	w.a.Release(k)
	delete(w.live, k)
	w.released = append(w.released, k)
}

func compareKeys(a, b routing.Key) int { return a.Prefix.Compare(b.Prefix) }

// prune removes what stands for keys that nobody holds.
func (w *world) prune(*rapid.T) {
	maps.DeleteFunc(w.kernel, func(n routing.TableID, k routing.Key) bool { return w.live[k] != n })
}

// crash opens what is on disk at this moment; the kernel stays as it is.
func (w *world) crash(t *rapid.T) {
	from := w.options.Path
	w.opened++
	w.options.Path = filepath.Join(w.dir, fmt.Sprintf("%d.db", w.opened))
	if err := copyFiles(from, w.options.Path); err != nil {
		t.Fatal(err)
	}
	if err := w.a.Close(); err != nil {
		t.Fatal(err)
	}
	w.reopen(t)
	// The order of the releases since the last flush is lost.
	w.released = nil
}

func (w *world) restart(t *rapid.T) {
	if err := w.a.Close(); err != nil {
		t.Fatal(err)
	}
	// What was held at the end counts as released then, in the order of numbers.
	w.released = append(w.released, slices.SortedFunc(maps.Keys(w.live), func(x, y routing.Key) int {
		return cmp.Compare(w.live[x], w.live[y])
	})...)
	w.reopen(t)
}

func (w *world) reopen(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "another range") == 0 {
		w.options.Range = anyRange().Draw(t, "range")
	}
	a, err := allocator.Open(t.Context(), w.options)
	if err != nil {
		t.Fatal(err)
	}
	w.a = a
	w.live = map[routing.Key]routing.TableID{}
	// Whoever had the number that is kept now has lost it.
	maps.DeleteFunc(w.known, func(_ routing.Key, n routing.TableID) bool { return n == w.options.Range.Last })
}

func anyRange() *rapid.Generator[routing.TableRange] {
	return rapid.Custom(func(t *rapid.T) routing.TableRange {
		first := routing.TableID(rapid.IntRange(modelFirst, modelFirst+6).Draw(t, "first"))
		return routing.TableRange{First: first, Last: first + 1 + routing.TableID(rapid.IntRange(0, 8).Draw(t, "size"))}
	})
}

func (w *world) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"acquire": w.acquire,
		"more":    w.acquire,
		"release": w.release,
		"prune":   w.prune,
		"crash":   w.crash,
		"restart": w.restart,
		"flush": func(t *rapid.T) {
			if err := w.a.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		"foreign": func(t *rapid.T) {
			n := routing.TableID(rapid.IntRange(modelFirst, modelFirst+14).Draw(t, "table"))
			w.foreign[n] = !w.foreign[n]
		},
		"forget": func(t *rapid.T) {
			k := key(rapid.IntRange(0, modelKeys-1).Draw(t, "key"))
			err := w.a.Forget(t.Context(), k)
			if _, live := w.live[k]; live != (err != nil) {
				t.Fatalf("forgetting %v (live: %v): %v", k, live, err)
			} else if !live {
				delete(w.known, k)
			}
		},
		"range": func(t *rapid.T) {
			w.options.Range = anyRange().Draw(t, "range")
			if err := w.a.SetRange(w.options.Range); err != nil {
				t.Fatal(err)
			}
		},
		"": w.invariant,
	}
}

// invariant compares the whole list with the model after every step.
func (w *world) invariant(t *rapid.T) {
	holder := map[routing.TableID]routing.Key{}
	listed := map[routing.Key]routing.TableID{}
	for _, l := range w.a.List() {
		if other, ok := holder[l.Table]; ok {
			t.Fatalf("%v and %v have %d", other, l.Key, l.Table)
		}
		holder[l.Table], listed[l.Key] = l.Key, l.Table
		if _, live := w.live[l.Key]; live != l.Live {
			t.Fatalf("%v: live is %v, want %v", l.Key, l.Live, live)
		}
	}
	if !maps.Equal(listed, w.known) {
		t.Fatalf("leases %v, want %v", listed, w.known)
	}
}

func TestModel(t *testing.T) {
	t.Parallel()
	// In memory: a crash of the process, and not of the machine, is what is tried,
	// and it takes a tenth of the time.
	memory := tmpfs(t, "256m")
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		dir := filepath.Join(memory, fmt.Sprint(runs))
		w := &world{
			dir:     dir,
			options: allocator.Options{Path: filepath.Join(dir, "leases.db"), Range: routing.TableRange{First: modelFirst, Last: modelFirst + 6}},
			kernel:  map[routing.TableID]routing.Key{}, foreign: map[routing.TableID]bool{}, known: map[routing.Key]routing.TableID{},
		}
		w.reopen(rt)
		defer func() {
			if err := errors.Join(w.a.Close(), os.RemoveAll(dir)); err != nil {
				t.Error(err)
			}
		}()
		rt.Repeat(w.actions())
	})
}
