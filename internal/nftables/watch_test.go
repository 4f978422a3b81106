package nftables_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/nftables"
)

func (w *world) watch() *nftables.Watcher {
	w.Helper()
	watcher, err := w.Watch(w.Context(), table)
	must(w, err)
	w.Cleanup(func() { must(w, watcher.Close()) })
	return watcher
}

func (w *world) next(watcher *nftables.Watcher) nftables.Transaction {
	w.Helper()
	t, err := watcher.Next(w.Context())
	must(w, err)
	return t
}

// TestWatchTellsOwnFromForeign: each transaction is one event, with its generation and who made it.
func TestWatchTellsOwnFromForeign(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nft("add table inet other")
	watcher := w.watch()
	_, g, err := w.Read(t.Context(), table)
	if !errors.Is(err, nftables.ErrNoTable) {
		t.Fatalf("reading a table that does not exist: %v", err)
	}
	g, err = w.Commit(t.Context(), table, []nftables.Op{nftables.AddTable{}, nftables.AddChain{Chain: nftables.Chain{Name: "c"}}}, g)
	must(t, err)
	own := w.next(watcher)
	if !own.Own || own.Generation != g || own.All != 2 || own.Deleted || own.Translation {
		t.Errorf("own transaction: %+v, and Commit returned %d", own, g)
	}
	w.nft("add chain inet other c\nadd set inet other s { type ipv4_addr; }\nadd element inet other s { 192.0.2.1 }")
	foreign := w.next(watcher)
	if foreign.Own || foreign.Generation != g+1 || foreign.All != 0 || foreign.Program != "nft" || foreign.PID == 0 || foreign.Port == own.Port {
		t.Errorf("transaction about another table: %+v", foreign)
	}
	w.nft("add rule inet multihomed c accept")
	added := w.next(watcher)
	if added.Own || added.Deleted || added.All != 1 || added.Changes[0].Object != nftables.ObjectRule || added.Changes[0].Name != "c" || added.Changes[0].Handle == 0 {
		t.Errorf("rule in the table: %+v", added)
	}
	w.nft("flush ruleset")
	gone := w.next(watcher)
	if gone.Own || !gone.Deleted || gone.All != 3 {
		t.Errorf("nft flush ruleset: %+v", gone)
	}
	if _, _, err := w.Read(t.Context(), table); !errors.Is(err, nftables.ErrNoTable) {
		t.Errorf("reading after the flush: %v", err)
	}
}

// TestChanges: every kind of object is named when it comes and when it goes.
func TestChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	watcher := w.watch()
	w.nft(`table inet multihomed {
		counter n { }
		set s { type ipv4_addr; elements = { 192.0.2.1 } }
		chain c { accept; }
	}`)
	var got []string
	for _, c := range w.next(watcher).Changes {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s", c.Object, c.Name)))
	}
	if want := "table multihomed, chain c, object, set s, element s, rule c"; strings.Join(got, ", ") != want {
		t.Errorf("came %s, not %s", strings.Join(got, ", "), want)
	}
	w.nft("delete table inet multihomed")
	counts := map[nftables.Object]int{}
	for _, c := range w.next(watcher).Changes {
		if c.Deleted {
			counts[c.Object]++
		}
	}
	for _, o := range []nftables.Object{nftables.ObjectTable, nftables.ObjectChain, nftables.ObjectRule, nftables.ObjectSet, nftables.ObjectOther} {
		if counts[o] != 1 {
			t.Errorf("%d of %s went", counts[o], o)
		}
	}
}

// TestWatchBoundsChanges: a transaction names some changes and counts all of them.
func TestWatchBoundsChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	watcher := w.watch()
	w.commit(ops(many(1000))...)
	got := w.next(watcher)
	if got.All != 1002 || len(got.Changes) != 32 {
		t.Errorf("%d changes of %d are named", len(got.Changes), got.All)
	}
}

// TestTranslation: chains of type nat of every table count, each family for itself, and their coming
// and going is told.
func TestTranslation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	watcher := w.watch()
	translates := func(want nftables.Translation) {
		t.Helper()
		got, err := w.Translates(t.Context())
		must(t, err)
		if got != want {
			t.Errorf("%+v, not %+v", got, want)
		}
	}
	told := func(want bool) {
		t.Helper()
		if got := w.next(watcher); got.Translation != want {
			t.Errorf("%+v, not %v", got, want)
		}
	}
	translates(nftables.Translation{})
	w.nft("add table ip a; add chain ip a filter { type filter hook input priority 0; }; add chain ip a plain; add table bridge b; add chain bridge b c { type filter hook input priority 0; }")
	told(false)
	w.nft("add chain ip a nat { type nat hook postrouting priority 100; }")
	told(true)
	translates(nftables.Translation{IPv4: true})
	w.nft("add rule ip a nat masquerade; delete chain ip a plain")
	told(false)
	w.nft("add table ip6 a; add chain ip6 a nat { type nat hook postrouting priority 100; }")
	told(true)
	translates(nftables.Translation{IPv4: true, IPv6: true})
	w.nft("delete table ip a")
	told(true)
	translates(nftables.Translation{IPv6: true})
	// A watcher that begins now knows what stands.
	second := w.watch()
	w.nft("flush ruleset")
	told(true)
	if got := w.next(second); !got.Translation {
		t.Errorf("second watcher: %+v", got)
	}
	w.nft("add table inet a; add chain inet a nat { type nat hook postrouting priority 100; }")
	told(true)
	translates(nftables.Translation{IPv4: true, IPv6: true})
}

// TestWatchLoses: when notifications are lost, Next says so once, and goes on with what comes then.
func TestWatchLoses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	watcher := w.watch()
	w.nft("add table inet other; add set inet other s { type ipv4_addr; }")
	w.next(watcher)
	other := nftables.TableID{Family: nftables.INet, Name: "other"}
	elements := many(100_000).Sets[0].Elements
	// Nobody reads meanwhile, so this overflows the queue.
	_, err := w.Commit(t.Context(), other, []nftables.Op{nftables.AddElements{Set: "s", Elements: elements}}, 0)
	must(t, err)
	w.nft("add table ip a\nadd chain ip a nat { type nat hook postrouting priority 100; }")
	if _, err := watcher.Next(t.Context()); !errors.Is(err, nftables.ErrLost) {
		t.Fatalf("after a loss: %v", err)
	}
	w.nft("delete table ip a")
	got := w.next(watcher)
	if !got.Translation || got.Program != "nft" {
		t.Errorf("after a loss: %+v, and the chain of type nat that came in the meantime is not known", got)
	}
}

// TestNextEnds: Next ends with its context, and says why.
func TestNextEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	watcher := w.watch()
	why := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := watcher.Next(ctx)
		ended <- err
	}()
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("Next ended with %v", err)
	}
	w.commit(nftables.AddTable{})
	if got := w.next(watcher); !got.Own {
		t.Errorf("the next call: %+v", got)
	}
}

// TestNextIgnoresStrangers: a message of another socket is not the kernel's.
func TestNextIgnoresStrangers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	watcher := w.watch()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	must(t, err)
	defer func() { must(t, unix.Close(fd)) }()
	forged := []byte{20, 0, 0, 0, 0x0f, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	must(t, unix.Sendto(fd, forged, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: nftables.Port(watcher)}))
	w.commit(nftables.AddTable{})
	if got := w.next(watcher); !got.Own || got.Generation == 0 {
		t.Errorf("%+v", got)
	}
}

// TestSkipsForeign: changes of foreign tables allocate nothing.
func TestSkipsForeign(t *testing.T) {
	foreign, err := nftables.Encode(nftables.TableID{Family: nftables.INet, Name: "multihomed2"}, ops(example())...)
	must(t, err)
	if n := testing.AllocsPerRun(100, nftables.Skip(table, foreign)); n > 1 {
		t.Errorf("%v allocations for a table of another name, one of them for its chain of type nat", n)
	}
	elements, err := nftables.Encode(nftables.TableID{Family: nftables.IPv4, Name: table.Name}, nftables.AddElements{Set: "s", Elements: many(1000).Sets[0].Elements})
	must(t, err)
	if n := testing.AllocsPerRun(100, nftables.Skip(table, elements)); n != 0 {
		t.Errorf("%v allocations for 1000 elements of a table of another family", n)
	}
}
