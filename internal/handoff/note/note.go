// Package note notes what an event says of an interface, where the daemon and
// those who stand in for it find it.
package note

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/dispatcher"
	"multihomed/internal/handoff"
	"multihomed/internal/hookstate"
)

// Note writes down what an event says, and returns the message that tells of it.
// What NetworkManager's dispatcher says is not written down: it is only a hint, for
// whoever cannot ask NetworkManager. But root asks NetworkManager for the profile, and
// passes it on where the service may not read it.
func Note(ctx context.Context, runtime string, e dispatcher.Event, now time.Time) (handoff.Message, error) {
	// An alias (eth0:1) is another address of its interface, and part of what ifupdown
	// says of that.
	if base, alias, is := strings.Cut(e.Interface, ":"); is {
		e.Interface, e.Part = base, e.Part+":"+alias
	}
	m := handoff.Message{Caller: e.Caller, Action: e.Action, Interface: e.Interface}
	switch e.Effect {
	case dispatcher.Nothing:
	case dispatcher.Changed:
		if e.Caller == networkManager {
			return m, pass(ctx, runtime, e.Interface)
		}
	case dispatcher.Configured:
		index, err := hookstate.Index(e.Interface)
		if errors.Is(err, unix.ENODEV) {
			return m, nil // It has gone again, and that is an event of its own.
		}
		if err != nil {
			return m, err
		}
		configs := hookstate.Of(e, index, now)
		if e.Caller == networkManager {
			m.Hints = configs
			return m, pass(ctx, runtime, e.Interface)
		}
		var errs []error
		for _, c := range configs {
			errs = append(errs, hookstate.Put(runtime, c))
		}
		return m, errors.Join(errs...)
	case dispatcher.Gone:
		m.Gone = true
		err := hookstate.Remove(runtime, e.Interface, func(c hookstate.Config) bool {
			_, concerned := e.Configs[c.Family]
			return c.Caller == e.Caller && (e.Configs == nil || concerned && c.Part == e.Part)
		})
		if e.Caller == networkManager {
			err = errors.Join(err, forgetProfile(runtime, e.Interface))
		}
		return m, err
	case dispatcher.Removed:
		m.Gone = true
		return m, errors.Join(hookstate.Remove(runtime, e.Interface, func(hookstate.Config) bool { return true }), forgetProfile(runtime, e.Interface))
	}
	return m, nil
}

// networkManager is the caller that can be asked itself.
const networkManager = "NetworkManager"
