package cleanup

import (
	"context"
	"errors"
	"slices"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// LetGo removes the rules that answer "unreachable" and nothing else, because nobody
// maintains the routing any more ([Options.Unreachable]). Left counts the rules of ours
// that stay. An error says that the kernel could not be read, or refused.
func LetGo(ctx context.Context) (done Outcome, left int, err error) {
	r, err := Open(ctx, Options{Unreachable: true})
	if err != nil {
		return Outcome{}, 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if done, err = r.Remove(ctx); err == nil {
		// What comes back is the work of somebody who maintains it.
		err = errors.Join(done.Refused...)
	}
	return done, r.Rules(), err
}

// Guards reports whether the kernel holds a rule of ours that answers "unreachable". It
// reads the rules and nothing else.
func Guards(ctx context.Context) (bool, error) {
	rules, err := kernel.ReadRules(ctx)
	return slices.ContainsFunc(rules, func(r routing.Rule) bool {
		return r.Protocol == routing.Multihomed && r.Action == routing.ActionUnreachable
	}), err
}
