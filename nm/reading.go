package nm

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// A reading is the state of asking for a device's profile. Two calls make one:
// GetAppliedConnection says what the device was configured with, GetSettings
// what is stored. They differ after the profile was changed and not activated
// again.
//
// From the stored one comes only the [user] data. It is no configuration of
// the device, NetworkManager itself does nothing with it, and a `device
// reapply` that changes nothing else sends no signal at all (measured on
// 1.42.4): taken from the stored profile, it is in force as soon as
// NetworkManager has loaded it, which is signalled.
type reading struct {
	// running is how many of the calls are outstanding; again says that
	// something happened since they were sent.
	running int
	again   bool
	// queued says that the device is in line.
	queued bool
	// of is the activation the calls are about.
	of                          dbus.ObjectPath
	applied, stored             settings
	appliedFailed, storedFailed error

	attempts int
	// retry is when to ask again after a failure, zero if not.
	retry   time.Time
	problem string
}

const (
	// loadFirst is short: NetworkManager owns its name a few milliseconds
	// before its objects are there.
	loadFirst  = 50 * time.Millisecond
	retryFirst = time.Second
	retryLast  = 30 * time.Second
)

// backoff is how long to wait after a number of failed attempts.
func backoff(first, last time.Duration, attempts int) time.Duration {
	d := first
	for range attempts {
		if d *= 2; d >= last {
			return last
		}
	}
	return d
}

// errType is a reply of another type than documented.
var errType = errors.New("the reply has an unexpected type")

// decodeSettings reads the reply of GetAppliedConnection or GetSettings.
func decodeSettings(call *dbus.Call) (settings, error) {
	if call.Err != nil {
		return nil, call.Err
	}
	if len(call.Body) == 0 {
		return nil, errType
	}
	s, ok := call.Body[0].(settings)
	if !ok {
		return nil, errType
	}
	return s, nil
}

// isPassing reports whether an error is worth another attempt: the device was
// between two activations, or NetworkManager or the bus were busy or away. What
// is left is an answer.
func isPassing(err error) bool {
	e, ok := errors.AsType[dbus.Error](err)
	if !ok {
		return !errors.Is(err, errType)
	}
	switch e.Name {
	case "org.freedesktop.NetworkManager.Device.NotActive",
		"org.freedesktop.DBus.Error.NoReply",
		"org.freedesktop.DBus.Error.Timeout",
		"org.freedesktop.DBus.Error.TimedOut",
		"org.freedesktop.DBus.Error.Disconnected",
		"org.freedesktop.DBus.Error.LimitsExceeded",
		"org.freedesktop.DBus.Error.NoMemory",
		"org.freedesktop.DBus.Error.ServiceUnknown",
		"org.freedesktop.DBus.Error.NameHasNoOwner",
		// GDBus says "UnknownMethod: Object does not exist at path".
		"org.freedesktop.DBus.Error.UnknownMethod",
		"org.freedesktop.DBus.Error.UnknownObject":
		return true
	default:
		return false
	}
}

// isDenied reports whether an error says that we may not know: the profile may hold
// [Device.Ignored] or tables of its own.
func isDenied(err error) bool {
	e, is := errors.AsType[dbus.Error](err)
	return is && (strings.HasSuffix(e.Name, ".PermissionDenied") || e.Name == "org.freedesktop.DBus.Error.AccessDenied")
}

// conclude turns the replies into the device's profile. It reports whether
// that succeeded; if not, the calls are worth another attempt.
//
// What is no profile does not keep the link from working: it counts as one that says
// nothing. One that NetworkManager does not let us read may say everything, unless
// somebody who may read it has passed it on.
func (d *device) conclude(passed func() (profile, bool)) bool {
	r := &d.reading
	applied, stored := r.applied, r.stored
	r.applied, r.stored = nil, nil
	switch {
	case r.appliedFailed == nil:
	case r.storedFailed == nil && !isPassing(r.appliedFailed):
		applied = stored
		r.problem = fmt.Sprintf("the applied profile cannot be read, the stored one is used: %s", r.appliedFailed)
	case isPassing(r.appliedFailed):
		if r.attempts == 0 {
			// Every deactivation is a race with this question: no news.
			return false
		}
		r.problem = fmt.Sprintf("reading the applied profile: %s", r.appliedFailed)
		return false
	case isDenied(r.appliedFailed):
		d.profileFor = r.of
		if p, known := passed(); known {
			r.problem, d.profile = "", p
			return true
		}
		r.problem = fmt.Sprintf("the profile is not for multihomed to read, its link is left alone: %s; to fix: `nmcli device reapply %s`, after which NetworkManager's dispatcher passes the profile on, or see connection.permissions in nm-settings-nmcli(5)", r.appliedFailed, d.name)
		d.profile = profile{denied: true}
		return true
	default:
		r.problem = fmt.Sprintf("the profile cannot be read, it is taken to say nothing: %s", r.appliedFailed)
		d.profileFor = r.of
		d.profile = profile{}
		return true
	}
	merged := applied
	if r.storedFailed == nil {
		merged = withUser(applied, stored)
	}
	if r.appliedFailed == nil {
		r.problem = ""
	}
	previous := d.profile
	if d.profileFor != r.of {
		previous = profile{}
	}
	d.profile = decodeProfile(merged, previous)
	d.profileFor = r.of
	return true
}

// withUser is an applied profile with the [user] data of the stored one.
func withUser(applied, stored settings) settings {
	merged := maps.Clone(applied)
	delete(merged, "user")
	if user, ok := stored["user"]; ok {
		merged["user"] = user
	}
	return merged
}
