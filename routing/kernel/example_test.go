package kernel_test

import (
	"context"
	"fmt"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A mirror needs no privileges. What it holds is that of the network namespace in which it
// was opened.
func ExampleMirror() {
	ctx := context.Background()
	m, err := kernel.Open(kernel.Config{Tables: routing.TableRange{First: 10000, Last: 10999}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	if err := m.Sync(ctx); err != nil {
		fmt.Println(err)
		return
	}
	m.View(func(s *kernel.State) {
		lo, found := s.Link(1)
		fmt.Println(lo.Name, found, s.Complete())
	})
	// Output:
	// lo true true
}

// A change goes through a Writer, and comes back through the mirror. It takes
// CAP_NET_ADMIN.
func ExampleWriter_Apply() {
	ctx := context.Background()
	m, err := kernel.Open(kernel.Config{Tables: routing.TableRange{First: 10000, Last: 10999}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	w, err := m.OpenWriter()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Close()
	r := rule(routing.PrioritySource, "192.0.2.10/32", 10000)
	for _, err := range w.Apply(ctx, []routing.Op{{Verb: routing.AddRule, Rule: r}}) {
		fmt.Println("refused:", err)
	}
	if err := m.Drain(); err != nil {
		fmt.Println(err)
	}
}
