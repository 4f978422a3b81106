package nftables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

// What Read reads at most: far more than anybody needs, and some 10 MiB.
const (
	maxChains   = 4096
	maxSets     = 1024
	maxRules    = 16384
	maxElements = 1 << 17
	// maxNATChains bounds only what a Watcher keeps of foreign chains, not how many there may be.
	maxNATChains = 1024
)

// attempts is how often a list is read that somebody changes meanwhile.
const attempts = 10

// Read reads a table, and the generation of the ruleset that it belongs to.
//
// The error is ErrNoTable if it does not exist (the generation is then as valid), ErrUnsupported,
// ErrChanged if the ruleset changed during each of several attempts, and ErrTooLarge. The limits are
// 4096 chains, 1024 sets, 16384 rules and 131072 elements.
func (c *Conn) Read(ctx context.Context, id TableID) (Table, Generation, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fail := func(g Generation, err error) (Table, Generation, error) {
		return Table{}, g, fmt.Errorf("reading table %s: %w", id, err)
	}
	if err := checkName("table", id.Name); err != nil {
		return fail(0, err)
	}
	for range attempts {
		before, err := c.generation(ctx)
		if err != nil {
			return fail(0, err)
		}
		table, failed := c.read(ctx, id)
		if ctx.Err() != nil {
			return fail(0, context.Cause(ctx))
		}
		after, err := c.generation(ctx)
		switch {
		case err != nil:
			return fail(0, err)
		case before != after, errors.Is(failed, errInterrupted):
		case failed != nil:
			return fail(before, failed)
		default:
			return table, before, nil
		}
	}
	return fail(0, fmt.Errorf("in each of %d attempts: %w", attempts, ErrChanged))
}

func (c *Conn) generation(ctx context.Context) (g Generation, err error) {
	err = c.one(ctx, unix.NFT_MSG_GETGEN, 0, nil, func(payload []byte) { g, _, _ = decodeGeneration(payload) })
	if err == nil && g == 0 {
		err = errors.New("the kernel has no generation")
	}
	return g, err
}

// read reads the table once.
func (c *Conn) read(ctx context.Context, id TableID) (t Table, err error) {
	name := func(m *nlmsg.Builder) { m.Text(unix.NFTA_TABLE_NAME, id.Name) }
	err = c.one(ctx, unix.NFT_MSG_GETTABLE, id.Family, name, func(payload []byte) { t = decodeTable(payload) })
	if errors.Is(err, unix.ENOENT) {
		return t, ErrNoTable
	}
	if err != nil {
		return t, err
	}
	if err := c.list(ctx, unix.NFT_MSG_GETCHAIN, id.Family, name, func(payload []byte) error {
		if !id.is(payload) {
			return nil
		}
		t.Chains = append(t.Chains, decodeChain(payload))
		return bounded(len(t.Chains), maxChains, "chains")
	}); err != nil {
		return t, err
	}
	if err := c.readRules(ctx, id, &t); err != nil {
		return t, err
	}
	if err := c.list(ctx, unix.NFT_MSG_GETSET, id.Family, name, func(payload []byte) error {
		if !id.is(payload) {
			return nil
		}
		t.Sets = append(t.Sets, decodeSet(payload))
		return bounded(len(t.Sets), maxSets, "sets")
	}); err != nil {
		return t, err
	}
	t.Others = max(0, t.Others-len(t.Chains)-len(t.Sets))
	return t, c.readElements(ctx, id, &t)
}

func (c *Conn) readRules(ctx context.Context, id TableID, t *Table) error {
	chains := make(map[string]*Chain, len(t.Chains))
	for i := range t.Chains {
		chains[t.Chains[i].Name] = &t.Chains[i]
	}
	rules := 0
	return c.list(ctx, unix.NFT_MSG_GETRULE, id.Family, func(m *nlmsg.Builder) { m.Text(unix.NFTA_RULE_TABLE, id.Name) }, func(payload []byte) error {
		if !id.is(payload) {
			return nil
		}
		name, rule := decodeRule(payload)
		chain := chains[name]
		if chain == nil {
			return errInterrupted
		}
		chain.Rules = append(chain.Rules, rule)
		rules++
		return bounded(rules, maxRules, "rules")
	})
}

func (c *Conn) readElements(ctx context.Context, id TableID, t *Table) error {
	left := maxElements
	for i := range t.Sets {
		set := &t.Sets[i]
		if set.Unknown {
			continue
		}
		err := errInterrupted
		for n := 0; n < attempts && errors.Is(err, errInterrupted); n++ {
			set.Elements, err = c.elements(ctx, id, set.Name, left)
		}
		if err != nil {
			return err
		}
		left -= len(set.Elements)
	}
	return nil
}

// elements reads the elements of one set, sorted.
//
// The kernel gives a long list in pieces, and counts for each piece from the start of its hash table. In
// the meantime it may enlarge the table, which happens some time after elements came. It does not
// say so: a piece then repeats elements and leaves out as many others (nft_rhash_walk in
// net/netfilter/nft_set_hash.c). So a list with an element twice is no list.
func (c *Conn) elements(ctx context.Context, id TableID, set string, limit int) (all []Element, err error) {
	err = c.list(ctx, unix.NFT_MSG_GETSETELEM, id.Family, func(m *nlmsg.Builder) {
		m.Text(unix.NFTA_SET_ELEM_LIST_TABLE, id.Name)
		m.Text(unix.NFTA_SET_ELEM_LIST_SET, set)
	}, func(payload []byte) error {
		if !id.is(payload) {
			return nil
		}
		decodeElements(payload, func(e Element) {
			// One more than the limit shows that there are more.
			if len(all) <= limit {
				all = append(all, e)
			}
		})
		return bounded(len(all), limit, "elements")
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, errInterrupted // The set has just gone.
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b Element) int { return strings.Compare(string(a.Key), string(b.Key)) })
	for i := 1; i < len(all); i++ {
		if all[i].Key == all[i-1].Key && !all[i].Unknown && !all[i-1].Unknown {
			return nil, errInterrupted
		}
	}
	return all, nil
}

func bounded(n, limit int, what string) error {
	if n > limit {
		return fmt.Errorf("more than %d %s: %w", limit, what, ErrTooLarge)
	}
	return nil
}

// Translates says in which families any base chain of type nat stands, in all tables of the network
// namespace. Rules of iptables-legacy are not in nf_tables.
func (c *Conn) Translates(ctx context.Context) (Translation, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	chains, err := c.natChains(ctx)
	if err != nil {
		return Translation{}, fmt.Errorf("looking for chains that translate addresses: %w", err)
	}
	return chains.translation, nil
}

// natChains are the base chains of type nat. ids are some of them if all is false.
type natChains struct {
	translation Translation
	ids         map[chainID]struct{}
	all         bool
}

// A chainID names a chain, also one that was deleted.
type chainID struct {
	table  TableID
	handle uint64
}

// add adds a chain of a message, and reports whether it is of type nat and new.
func (n *natChains) add(payload []byte) bool {
	f, name := tableOf(payload)
	if f != INet && f != IPv4 && f != IPv6 {
		return false
	}
	nat, handle := natChain(payload)
	if !nat {
		return false
	}
	n.translation.IPv4 = n.translation.IPv4 || f != IPv6
	n.translation.IPv6 = n.translation.IPv6 || f != IPv4
	id := chainID{TableID{f, string(name)}, handle}
	if _, known := n.ids[id]; known {
		return false
	}
	if len(n.ids) >= maxNATChains {
		n.all = false
		return true
	}
	n.ids[id] = struct{}{}
	return true
}

// remove forgets a chain of a message, and reports whether it may have been of type nat.
func (n *natChains) remove(payload []byte) bool {
	f, name := tableOf(payload)
	if f != INet && f != IPv4 && f != IPv6 {
		return false
	}
	if len(n.ids) == 0 {
		return !n.all
	}
	_, handle := natChain(payload)
	id := chainID{TableID{f, string(name)}, handle}
	_, known := n.ids[id]
	delete(n.ids, id)
	return known || !n.all
}

// natChain reads of a chain whether it is of type nat, and its handle.
func natChain(payload []byte) (nat bool, handle uint64) {
	_, a, _ := split(payload)
	for a.Next() {
		switch a.Kind {
		case unix.NFTA_CHAIN_TYPE:
			nat = string(text(a.Value)) == string(NAT)
		case unix.NFTA_CHAIN_HANDLE:
			handle = big64(&a)
		}
	}
	return nat, handle
}

// natChains lists all chains. A list that is of no single moment has every chain that was there all
// the time, so after some attempts it serves, and all is false.
func (c *Conn) natChains(ctx context.Context) (n natChains, err error) {
	for range attempts {
		n = natChains{ids: map[chainID]struct{}{}, all: true}
		err = c.list(ctx, unix.NFT_MSG_GETCHAIN, unix.AF_UNSPEC, nil, func(payload []byte) error {
			n.add(payload)
			return nil
		})
		if !errors.Is(err, errInterrupted) {
			return n, err
		}
	}
	n.all = false
	return n, nil
}
