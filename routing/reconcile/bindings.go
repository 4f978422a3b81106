package reconcile

// bindings say which interface a claim is about. Owners speak of names, and names
// change: a claim stays with the interface that it was made for, whatever that is
// called by now, until its owner says otherwise or the interface goes. Two interfaces
// may have exchanged their names before any owner knows.
type bindings struct {
	// claims are by the name that the owner uses.
	claims map[string]Claim
	// index is the interface of a claim, name the claim of an interface.
	index map[string]int
	name  map[int]string
	// identified are the interfaces that owners recognise by more than a name;
	// identity is the reverse.
	identified map[string]int
	identity   map[int]string
	// numbered are the claims that name their interface by its index.
	numbered map[int]string
}

func newBindings() *bindings {
	return &bindings{
		claims: map[string]Claim{}, index: map[string]int{}, name: map[int]string{},
		identified: map[string]int{}, identity: map[int]string{}, numbered: map[int]string{},
	}
}

// set takes a claim and returns the interfaces of which something changed.
func (b *bindings) set(k State, name string, c Claim) (changed []int) {
	before, had := b.claims[name]
	if index, bound := b.index[name]; bound {
		changed = append(changed, index)
		if had && (before.Identity != c.Identity || c.Index != 0 && c.Index != index) {
			b.unbind(name)
		}
	}
	b.forgetNumber(name, before)
	b.claims[name] = c
	if c.Index != 0 {
		b.numbered[c.Index] = name
	}
	b.bind(k, name)
	if other, is := b.numbered[b.index[name]]; is && c.LeftToOthers && other != name {
		b.bind(k, other)
	}
	if index, bound := b.index[name]; bound {
		changed = append(changed, index)
	}
	return changed
}

// remove drops a claim and returns the interfaces of which something changed.
func (b *bindings) remove(k State, name string) (changed []int) {
	if index, bound := b.index[name]; bound {
		changed = append(changed, index)
	}
	b.unbind(name)
	b.forgetNumber(name, b.claims[name])
	delete(b.claims, name)
	if index, exists := k.IndexOf(name); exists {
		changed = append(changed, index)
	}
	return changed
}

func (b *bindings) forgetNumber(name string, c Claim) {
	if b.numbered[c.Index] == name {
		delete(b.numbered, c.Index)
	}
}

func (b *bindings) unbind(name string) {
	if index, bound := b.index[name]; bound {
		if b.name[index] == name {
			delete(b.name, index)
		}
		delete(b.index, name)
	}
}

// bind finds the interface of a claim, if it exists.
func (b *bindings) bind(k State, name string) {
	c := b.claims[name]
	index, found := c.Index, c.Index != 0
	if !found && c.Identity != "" {
		index, found = b.identified[c.Identity]
	}
	if !found {
		index, found = k.IndexOf(name)
	}
	if !found {
		index, found = b.index[name]
	}
	now, is := k.NameOf(index)
	if !found || !is {
		b.unbind(name)
		return
	}
	if other, taken := b.name[index]; taken && other != name {
		was := b.claims[other]
		switch {
		case c.LeftToOthers && was.Index == index:
			return // The other owner is who it is left to.
		case was.LeftToOthers && c.Index == index:
		case other == now:
			return // Of two claims, the one with the present name is newer.
		}
		b.unbind(other)
	}
	if index != b.index[name] {
		b.unbind(name)
	}
	b.index[name], b.name[index] = index, name
	if c.Identity != "" {
		delete(b.identified, b.identity[index])
		b.identified[c.Identity], b.identity[index] = index, c.Identity
	}
}

// of returns the claim of an interface, and the name that its owner uses.
func (b *bindings) of(k State, index int) (c Claim, name string, claimed bool) {
	if name, bound := b.name[index]; bound {
		return b.claims[name], name, true
	}
	now, is := k.NameOf(index)
	if !is {
		return Claim{}, "", false
	}
	if _, waits := b.claims[now]; waits {
		if other, bound := b.index[now]; !bound || !exists(k, other) {
			b.bind(k, now)
		}
	}
	if b.name[index] != now {
		return Claim{}, now, false
	}
	return b.claims[now], now, true
}

// forget drops an interface that does not exist any more. Its claim waits for one
// that is made anew.
func (b *bindings) forget(index int) {
	if name, bound := b.name[index]; bound {
		b.unbind(name)
	}
	if id, known := b.identity[index]; known {
		delete(b.identity, index)
		delete(b.identified, id)
	}
}

func exists(k State, index int) bool {
	_, is := k.NameOf(index)
	return is
}
