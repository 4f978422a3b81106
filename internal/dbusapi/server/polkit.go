package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
)

// polkit, as its D-Bus interface has it (polkit(8), org.freedesktop.PolicyKit1.Authority).
const (
	polkitName                 = "org.freedesktop.PolicyKit1"
	polkitPath dbus.ObjectPath = "/org/freedesktop/PolicyKit1/Authority"
	authority                  = "org.freedesktop.PolicyKit1.Authority"
	// askTheUser is the flag AllowUserInteraction.
	askTheUser = uint32(1)
	// noReply is what a bus says of polkit if that ends before it answers.
	noReply = "org.freedesktop.DBus.Error.NoReply"
)

// subject is who is to be allowed something.
type subject struct {
	Kind    string
	Details map[string]dbus.Variant
}

// authorize asks polkit whether the caller may do something. Root, who may do everything with polkit and
// without it, need not be asked for.
func authorize(ctx context.Context, c *call, action string) error {
	if c.uid == 0 {
		return nil
	}
	isAllowed, isChallenge, err := check(ctx, c, action, 0, callTime)
	if err != nil {
		return err
	}
	mayAsk := c.flags&dbus.FlagAllowInteractiveAuthorization != 0
	if isChallenge && !isAllowed && mayAsk {
		// Only now: who waits for a user waits long, and that polkit works is known.
		if isAllowed, isChallenge, err = check(ctx, c, action, askTheUser, interactiveTime); err != nil {
			return err
		}
	}
	switch {
	case isAllowed:
		return nil
	case isChallenge && !mayAsk:
		return dbusapi.Errorf(dbusapi.InteractionNeeded, "polkit wants a password for %s, and this program does not let it ask; to fix: use multihomectl, or do it as root", action)
	case isChallenge:
		return dbusapi.Errorf(dbusapi.AccessDenied, "nobody authenticated for %s; to fix: run an agent of polkit, such as pkttyagent, or do it as root", action)
	default:
		return dbusapi.Errorf(dbusapi.AccessDenied, "polkit does not allow this user %s; to fix: do it as root, or let a rule of polkit allow it", action)
	}
}

// check asks polkit once.
func check(ctx context.Context, c *call, action string, flags uint32, patience time.Duration) (isAllowed, isChallenge bool, err error) {
	asking, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("waited %s", patience))
	defer cancel()
	id := fmt.Sprintf("%s/%s/%d/%d", dbusapi.Name, c.sender, c.serial, flags)
	answer, err := c.wire.call(asking, polkitName, polkitPath, authority, "CheckAuthorization", "(bba{ss})",
		subject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(c.sender)}}, action, map[string]string{}, flags, id)
	if err != nil {
		if asking.Err() != nil {
			cancelCheck(ctx, c.wire, id)
		}
		return false, false, denied(err, action)
	}
	result, is := answer[0].([]any)
	if !is || len(result) < 2 {
		return false, false, dbusapi.Errorf(dbusapi.AccessDenied, "polkit gave an answer that is not understood")
	}
	isAllowed, _ = result[0].(bool)
	isChallenge, _ = result[1].(bool)
	return isAllowed, isChallenge, nil
}

// denied says why polkit could not be asked.
func denied(err error, action string) error {
	refusal, is := errors.AsType[*dbusapi.Error](err)
	switch {
	case !is:
		return dbusapi.Errorf(dbusapi.AccessDenied, "polkit does not answer (%v), so only root may do this; to fix: do it as root", err)
	case refusal.Name == dbusapi.AccessDenied:
		return dbusapi.Errorf(dbusapi.AccessDenied, "the system bus does not let multihomed ask polkit (%s), so only root may do this; to fix: do it as root, or install multihomed.conf into /usr/share/dbus-1/system.d, then: systemctl reload dbus", refusal.Text)
	case refusal.Name == noReply || refusal.Name == dbusapi.LimitsExceeded:
		return dbusapi.Errorf(dbusapi.AccessDenied, "polkit does not answer (%s), so only root may do this; to fix: do it as root", refusal.Text)
	case strings.HasPrefix(refusal.Name, "org.freedesktop.DBus.Error."):
		return dbusapi.Errorf(dbusapi.AccessDenied, "polkit does not run on this host, so only root may do this; to fix: do it as root, or install polkit")
	default:
		return dbusapi.Errorf(dbusapi.AccessDenied, "polkit refuses to decide about %s (%s); to fix: do it as root, or see whether org.multihomed1.policy is installed", action, refusal.Text)
	}
}

// cancelTime bounds the message that nobody needs an answer any more.
const cancelTime = time.Second

// cancelCheck takes the prompt away.
func cancelCheck(ctx context.Context, w *wire, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTime)
	defer cancel()
	_, _ = w.call(ctx, polkitName, polkitPath, authority, "CancelCheckAuthorization", "", id) // It has gone otherwise.
}
