// Package answers reads and writes the nftables table of multihomed, `inet multihomed`, whose content
// package routing/answers plans. It translates the values of that package into expressions of
// nf_tables and back, and knows nothing of links.
//
// A [Store] is used like this, around the change of rules 9099-9101 of routing:
//
//	held, generation, err := store.Read(ctx)
//	ops := answers.Diff(planned, held, mayDelete)
//	generation, err = store.Write(ctx, answers.Of(ops, answers.BeforeRules), generation)
//	…                                               // the rules of routing
//	generation, err = store.Write(ctx, answers.Of(ops, answers.AfterRules), generation)
//	generation, err = store.Write(ctx, answers.Of(ops, answers.Leftovers), generation)
//
// If somebody changes any nftables table meanwhile, Write does nothing and returns
// nftables.ErrChanged: begin again with Read.
package answers
