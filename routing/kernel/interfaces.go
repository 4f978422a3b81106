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

// Name adds the other names of interfaces, if rules have a name that is the first one of none of them.
func (r *Reader) Name(ctx context.Context, interfaces []lookup.Interface, rules []routing.Rule) error {
	first := map[string]bool{"": true, routing.Loopback: true}
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
	all, err := r.unaddressed(ctx)
	if err != nil {
		return err
	}
	names := make(map[int][]string, len(all))
	for _, i := range all {
		names[i.Index] = i.AltNames
	}
	used := false
	for n := range interfaces {
		i := &interfaces[n]
		i.AltNames = names[i.Index]
		used = used || slices.ContainsFunc(i.AltNames, func(name string) bool { return other[name] })
	}
	if !used {
		return nil
	}
	for _, f := range routing.Families() {
		_, detached, err := r.rules(ctx, f)
		if err != nil {
			return err
		}
		detach(interfaces, detached)
	}
	return nil
}

// detach notes by which of their names rules do not know interfaces.
func detach(interfaces []lookup.Interface, names []string) {
	for n := range interfaces {
		i := &interfaces[n]
		for _, name := range i.AltNames {
			if slices.Contains(names, name) && !slices.Contains(i.Detached, name) {
				i.Detached = append(i.Detached, name)
			}
		}
	}
}
