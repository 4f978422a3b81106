package allocator_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"multihomed/allocator"
	"multihomed/routing"
)

func BenchmarkAcquireExisting(b *testing.B) {
	a := open(b, options(b, 10000, 10999))
	all := keys(0, 1)
	acquire(b, a, all[0])
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Acquire(b.Context(), all, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAcquireFlapping is a link that goes down and up.
func BenchmarkAcquireFlapping(b *testing.B) {
	a := open(b, options(b, 10000, 10999))
	all := keys(0, 2)
	if _, err := a.Acquire(b.Context(), all, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		a.Release(all...)
		if _, err := a.Acquire(b.Context(), all, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAcquireNew is one durable lease for each operation: one fsync.
func BenchmarkAcquireNew(b *testing.B) {
	a := open(b, options(b, 1, 1<<30))
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		if _, err := a.Acquire(b.Context(), keys(n, 1), nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAcquireRecycled is a new lease when no unused number is left.
func BenchmarkAcquireRecycled(b *testing.B) {
	a := open(b, options(b, 10000, 10999))
	n := 0
	for b.Loop() {
		n++
		acquire(b, a, key(n))
		a.Release(key(n))
	}
}

// BenchmarkAcquireBatch is a cold start with 1,000 new links: one fsync.
func BenchmarkAcquireBatch(b *testing.B) {
	all := keys(0, 1000)
	for b.Loop() {
		b.StopTimer()
		a := open(b, options(b, 10000, 10999))
		b.StartTimer()
		if _, err := a.Acquire(b.Context(), all, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen1000(b *testing.B) {
	o := options(b, 10000, 10999)
	a := open(b, o)
	if _, err := a.Acquire(b.Context(), keys(0, 1000), nil); err != nil {
		b.Fatal(err)
	}
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		a, err := allocator.Open(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := a.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkOpenNew(b *testing.B) {
	dir := b.TempDir()
	n := 0
	for b.Loop() {
		n++
		o := allocator.Options{Path: filepath.Join(dir, key(n).Interface, "leases.db"), Range: routing.TableRange{First: 1, Last: 10}}
		a, err := allocator.Open(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := a.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkServeRenewals is what most demands are: every lease is renewed, in the
// same second, which writes nothing, and in another one.
func BenchmarkServeRenewals(b *testing.B) {
	for name, step := range map[string]time.Duration{"same second": 0, "later": time.Second} {
		for _, size := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				o := options(b, 10000, 10999)
				now := time.Hour
				o.Uptime = func() time.Duration { return now }
				a := open(b, o)
				demands := make([]allocator.Demand, size)
				for i := range demands {
					demands[i] = wants(i)
				}
				serve(b, a, demands...)
				for b.Loop() {
					now += step
					serve(b, a, demands...)
				}
				b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "requests/s")
			})
		}
	}
}
