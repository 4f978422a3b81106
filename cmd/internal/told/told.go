// Package told notes what an event says of an interface, where the daemon and
// those who stand in for it find it.
package told

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/cmd/internal/hook"
	"multihomed/cmd/internal/hooked"
	"multihomed/dispatcher"
)

// Note writes down what an event says, and returns the message that tells of it.
// What NetworkManager's dispatcher says is not written down: it is only a hint, for
// whoever cannot ask NetworkManager.
func Note(runtime string, e dispatcher.Event, now time.Time) (hook.Message, error) {
	m := hook.Message{Caller: e.Caller, Action: e.Action, Interface: e.Interface}
	switch e.Effect {
	case dispatcher.Nothing, dispatcher.Changed:
	case dispatcher.Configured:
		index, err := indexOf(e.Interface)
		if err != nil {
			// It has gone again, and that is an event of its own.
			return m, nil //nolint:nilerr // nothing is lost
		}
		configs := hooked.Of(e, index, now)
		if e.Caller == networkManager {
			m.Hints = configs
			return m, nil
		}
		var errs []error
		for _, c := range configs {
			errs = append(errs, hooked.Put(runtime, c))
		}
		return m, errors.Join(errs...)
	case dispatcher.Gone:
		m.Gone = true
		return m, hooked.Remove(runtime, e.Interface, func(c hooked.Config) bool {
			_, concerned := e.Configs[c.Family]
			return c.Caller == e.Caller && (e.Configs == nil || concerned && c.Part == e.Part)
		})
	case dispatcher.Removed:
		m.Gone = true
		return m, hooked.Remove(runtime, e.Interface, func(hooked.Config) bool { return true })
	}
	return m, nil
}

// networkManager is the caller that can be asked itself.
const networkManager = "NetworkManager"

// indexOf returns the index of an interface (netdevice(7), SIOCGIFINDEX).
func indexOf(name string) (int, error) {
	doing := func(err error) error { return fmt.Errorf("finding the interface %s: %w", name, err) }
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, doing(err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, doing(err)
	}
	err = unix.IoctlIfreq(s, unix.SIOCGIFINDEX, request)
	if err = errors.Join(err, unix.Close(s)); err != nil {
		return 0, doing(err)
	}
	return int(request.Uint32()), nil
}
