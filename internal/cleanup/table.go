package cleanup

import (
	"context"
	"errors"
	"net/netip"

	"multihomed/internal/answers"
	"multihomed/internal/nftables"
	plan "multihomed/routing/answers"
)

// tables opens the nftables table that marks packets. It returns nil where the kernel has no
// nf_tables: then there is none.
func tables() (*answers.Store, func() error, error) {
	conn, err := nftables.Open()
	if errors.Is(err, nftables.ErrUnsupported) {
		return nil, func() error { return nil }, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return answers.NewStore(conn), conn.Close, nil
}

// HasTable reports whether there is an nftables table of ours that the options name: as a whole, or
// with addresses of the interface.
func (r *Remains) HasTable(ctx context.Context) (is bool, err error) {
	store, done, err := tables()
	if store == nil || err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, done()) }()
	if r.options.Link == "" {
		return store.Exists(ctx)
	}
	held, _, err := store.Read(ctx)
	if errors.Is(err, nftables.ErrUnsupported) {
		return false, nil
	}
	return len(ofLink(held, r.options.Link)) > 0, err
}

// removeTable takes the table away, or what it has of the interface. It goes before the rules, to
// which its marks lead. It reports whether there was something.
func (r *Remains) removeTable(ctx context.Context) (something bool, err error) {
	store, done, err := tables()
	if store == nil || err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, done()) }()
	if r.options.Link == "" || r.link.isLast {
		if exists, err := store.Exists(ctx); !exists || err != nil {
			return false, err
		}
		return true, store.Delete(ctx)
	}
	for range rounds {
		held, generation, err := store.Read(ctx)
		if errors.Is(err, nftables.ErrUnsupported) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		ops := ofLink(held, r.options.Link)
		if len(ops) == 0 {
			return false, nil
		}
		if _, err = store.Write(ctx, ops, generation); !errors.Is(err, nftables.ErrChanged) {
			return err == nil, err
		}
	}
	return false, nftables.ErrChanged
}

// ofLink are the deletions of all that the table has of an interface: its pairs, and their addresses
// that no other interface has.
func ofLink(held plan.Held, name string) (ops []plan.Op) {
	own, others := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, e := range held.Elements {
		switch e.Element.Interface {
		case "":
		case name:
			own[e.Element.Address] = true
		default:
			others[e.Element.Address] = true
		}
	}
	for _, e := range held.Elements {
		alone := own[e.Element.Address] && !others[e.Element.Address]
		if e.Element.Interface == name || e.Element.Interface == "" && alone {
			ops = append(ops, plan.Op{Phase: plan.BeforeRules, Verb: plan.DeleteElement, Element: e.Element})
		}
	}
	return ops
}
