package cleanup

import (
	"context"
	"errors"
	"slices"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// LetGo removes only the rules that answer "unreachable", because nobody maintains the
// routing any more ([Options.Unreachable]). Left counts our rules that stay. An error says
// that the kernel could not be read, or refused a deletion.
func LetGo(ctx context.Context) (done Outcome, left int, err error) {
	r, err := Open(ctx, Options{Unreachable: true})
	if err != nil {
		return Outcome{}, 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if done, err = r.Remove(ctx); err == nil {
		// Rules that come back are no error: then somebody maintains the routing.
		err = errors.Join(done.Refused...)
	}
	return done, r.Rules(), err
}

// Guards reports whether the kernel holds a rule of ours that answers "unreachable". It
// reads only the rules.
func Guards(ctx context.Context) (bool, error) {
	rules, err := kernel.ReadRules(ctx)
	return slices.ContainsFunc(rules, func(r routing.Rule) bool {
		return r.Protocol == routing.Multihomed && r.Action == routing.ActionUnreachable
	}), err
}
