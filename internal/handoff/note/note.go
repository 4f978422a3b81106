// Package note stores the facts of an event where the daemon and stand-ins find them.
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

// Note writes the facts of an event to the runtime directory, and returns the message for the
// daemon. Facts from NetworkManager's dispatcher are only hints in the message, for use
// without NetworkManager. For these events root reads the profile, and passes it on if the
// service may not read it.
func Note(ctx context.Context, runtime string, e dispatcher.Event, now time.Time) (handoff.Message, error) {
	// An alias (eth0:1) is another address of its interface: one part of ifupdown's
	// configuration.
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
			return m, nil // It is gone again, which is an event of its own.
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

// networkManager is the caller that the daemon can ask itself.
const networkManager = "NetworkManager"
