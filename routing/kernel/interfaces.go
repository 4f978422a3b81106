package kernel

import (
	"context"
	"slices"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// Interfaces reads all interfaces of the host. It needs no privileges.
func (r *Reader) Interfaces(ctx context.Context) ([]lookup.Interface, error) {
	return r.interfaces(ctx)
}

// AddAltNames adds the other names of interfaces if a rule uses one of them. It asks the kernel only if a rule has a
// name that is no interface's first.
func (r *Reader) AddAltNames(ctx context.Context, interfaces []lookup.Interface, rules []routing.Rule) error {
	first := map[string]bool{"": true, routing.Loopback: true, routing.LoopbackAlias: true} // Lookups know the alias.
	for _, i := range interfaces {
		first[i.Name] = true
	}
	other := map[string]bool{}
	for _, rule := range rules {
		for _, name := range []string{rule.IIF, rule.OIF} {
			if !first[name] {
				other[name] = true
			}
		}
	}
	if len(other) == 0 {
		return nil
	}
	all, err := r.dumpInterfaces(ctx)
	if err != nil {
		return err
	}
	names := make(map[int][]string, len(all))
	used := false
	for _, i := range all {
		names[i.Index] = i.AltNames
		used = used || slices.ContainsFunc(i.AltNames, func(name string) bool { return other[name] })
	}
	if !used {
		return nil
	}
	var detached routing.ByFamily[[]string]
	for _, f := range routing.Families() {
		_, some, err := r.rules(ctx, f)
		if err != nil {
			return err
		}
		detached.Set(f, some)
	}
	for n := range interfaces {
		interfaces[n].AltNames = names[interfaces[n].Index]
	}
	for _, f := range routing.Families() {
		detach(interfaces, f, detached.In(f))
	}
	return nil
}

// detach notes by which of their names rules of a family do not know interfaces.
func detach(interfaces []lookup.Interface, f routing.Family, names []string) {
	for n := range interfaces {
		var detached []string
		for _, name := range interfaces[n].AltNames {
			if slices.Contains(names, name) {
				detached = append(detached, name)
			}
		}
		interfaces[n].Detached.Set(f, detached)
	}
}
