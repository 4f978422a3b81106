package nftables

import "fmt"

// An Op is one change of a table. It is one of the types of this package, never a pointer to one.
type Op interface {
	// String says in words what it does: add chain fence.
	fmt.Stringer
	op()
}

// AddTable adds the table. If the table exists, it is not dormant afterwards.
type AddTable struct{}

// DeleteTable deletes the table and everything in it.
type DeleteTable struct{}

// AddChain adds a chain without its rules. If the chain exists, its policy becomes the chain's, and
// another base is an error (EEXIST, EOPNOTSUPP): delete the chain first, in the same batch.
type AddChain struct{ Chain Chain }

// FlushChain deletes all rules of a chain. The chain may be new in this batch.
type FlushChain struct{ Chain string }

// DeleteChain deletes a chain and its rules. It is an error (EBUSY) if rules or elements lead there
// at that point of the batch.
type DeleteChain struct{ Chain string }

// AddRule adds a rule behind another one, or behind all.
type AddRule struct {
	Chain string
	Rule  Rule
	// After is the handle of the other one, 0 for all.
	After uint64
}

// InsertRule adds a rule before another one, or before all.
type InsertRule struct {
	Chain string
	Rule  Rule
	// Before is the handle of the other one, 0 for all.
	Before uint64
}

// DeleteRule deletes a rule by its handle.
type DeleteRule struct {
	Chain  string
	Handle uint64
}

// AddSet adds a set or map without its elements. If it exists with the same type, nothing happens;
// with another type it is an error (EEXIST): delete the set first, in the same batch.
type AddSet struct{ Set Set }

// DeleteSet deletes a set. It is an error (EBUSY) if a rule uses it at that point of the batch.
type DeleteSet struct{ Set string }

// AddElements adds elements. Nothing happens to one that exists; it is an error (EEXIST) if a map has
// another verdict for its key. To change a verdict, delete the element first, in the same batch.
type AddElements struct {
	Set      string
	Elements []Element
}

// DeleteElements deletes elements by their keys. One that does not exist is an error (ENOENT).
type DeleteElements struct {
	Set      string
	Elements []Element
}

// FlushSet deletes all elements of a set.
type FlushSet struct{ Set string }

func (AddTable) op()       {}
func (DeleteTable) op()    {}
func (AddChain) op()       {}
func (FlushChain) op()     {}
func (DeleteChain) op()    {}
func (AddRule) op()        {}
func (InsertRule) op()     {}
func (DeleteRule) op()     {}
func (AddSet) op()         {}
func (DeleteSet) op()      {}
func (AddElements) op()    {}
func (DeleteElements) op() {}
func (FlushSet) op()       {}
