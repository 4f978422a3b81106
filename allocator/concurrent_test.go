package allocator_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"multihomed/allocator"
	"multihomed/routing"
)

func TestKnownLinksDoNotWaitForClients(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10999)
	a := open(t, o)
	acquire(t, a, key(0))
	// Serve then waits for the lock, in the middle of its transaction.
	other := raw(t, o.Path)
	execute(t, other, "BEGIN IMMEDIATE")
	waited := true
	// It gives up after a while, which must not be just before the link is
	// answered: then it looks as if the link had waited.
	for round := 0; round < 10 && waited; round++ {
		asked, served := make(chan struct{}), make(chan error, 1)
		tell := sync.OnceFunc(func() { close(asked) })
		go func() {
			served <- a.Serve(t.Context(), []allocator.Demand{wants(1)}, func(routing.TableID) (string, bool) {
				tell()
				return "", false
			})[0].Err
		}()
		<-asked
		a.Release(key(0))
		if n := acquire(t, a, key(0)); n != 10000 {
			t.Errorf("the link got %d", n)
		}
		select {
		case err := <-served:
			refused(t, err, allocator.ErrLocked, o.Path)
		default:
			waited = false
			refused(t, <-served, allocator.ErrLocked, o.Path)
		}
	}
	if waited {
		t.Error("a link that is known waits for the clients")
	}
	execute(t, other, "COMMIT")
}

func TestLinksAndClientsAtOnce(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10029))
	const workers, rounds = 4, 30
	done := make(chan error)
	for w := range workers {
		go func() {
			var errs []error
			for i := range rounds {
				n := 100*w + i%5
				for _, o := range a.Serve(t.Context(), []allocator.Demand{wants(n), wants(n + 10)}, nil) {
					errs = append(errs, o.Err)
				}
				got, err := a.Acquire(t.Context(), keys(1000+n, 2), nil)
				if err == nil && len(got) != 2 {
					err = fmt.Errorf("got %v", got)
				}
				errs = append(errs, err)
				a.Expire()
				a.Clients()
				a.Release(keys(1000+n, 2)...)
				errs = append(errs, a.Serve(t.Context(), []allocator.Demand{gives(n), gives(n + 10)}, nil)[0].Err)
				if i%10 == 0 {
					errs = append(errs, a.Flush(t.Context()))
				}
			}
			done <- errors.Join(errs...)
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	seen := map[routing.TableID]string{}
	claim := func(n routing.TableID, who string) {
		if other, ok := seen[n]; ok {
			t.Errorf("%s and %s share %d", other, who, n)
		}
		seen[n] = who
	}
	for _, l := range a.List() {
		claim(l.Table, l.Key.String())
	}
	for _, l := range a.Clients() {
		claim(l.Table, l.Key.String())
	}
}
