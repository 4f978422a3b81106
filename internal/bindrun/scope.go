package bindrun

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	systemd = "org.freedesktop.systemd1"
	manager = systemd + ".Manager"
	tree    = dbus.ObjectPath("/org/freedesktop/systemd1")
)

// A property is that of a unit, as StartTransientUnit takes it (org.freedesktop.systemd1(5)).
type property struct {
	Name  string
	Value dbus.Variant
}

// An auxiliary is a further unit. There are none.
type auxiliary struct {
	Name       string
	Properties []property
}

// enterScope has the user's service manager make a scope with this process in it.
func enterScope(ctx context.Context, link string) (home, error) {
	bus, direct, err := connect(ctx, os.Getenv, os.Getuid())
	if err != nil {
		return home{}, fmt.Errorf("%w: the service manager of this user cannot be reached: %w", errNoCgroup, err)
	}
	defer func() { _ = bus.Close() }() // Nothing is left to be sent.
	name := prefix + strconv.Itoa(os.Getpid()) + ".scope"
	if err := startScope(ctx, bus, direct, name, link); err != nil {
		return home{}, fmt.Errorf("%w: the service manager of this user makes no scope: %w", errNoCgroup, err)
	}
	h, err := findHome()
	if err == nil && !strings.HasSuffix(h.name, "/"+name) {
		err = fmt.Errorf("%w: the service manager of this user made the scope %s, and this process is in %s", errNoCgroup, name, h.name)
	}
	return h, err
}

// connect connects to the user's service manager: directly to its own socket, as systemd-run(1) does, or by the user's bus.
func connect(ctx context.Context, env func(string) string, uid int) (c *dbus.Conn, direct bool, err error) {
	if c, err := dbus.Dial(pathIn(env, uid, "systemd/private"), dbus.WithContext(ctx)); err == nil {
		// Nobody is between us and it, so that there is no name to ask for (Hello).
		if c.Auth(nil) == nil && greet(ctx, c) == nil {
			return c, true, nil
		}
		_ = c.Close() // Nothing was sent.
	}
	c, err = dbus.Connect(userBus(env, uid), dbus.WithContext(ctx))
	return c, false, err
}

// greetAgain is how long an answer to a greeting may take before the next one.
const greetAgain = 50 * time.Millisecond

// greet waits until the service manager answers. If its end of the authentication and our first message come in one piece, it does
// not look at the message before another one comes (seen with systemd 252 and 257).
func greet(ctx context.Context, c *dbus.Conn) error {
	for {
		waiting, cancel := context.WithTimeout(ctx, greetAgain)
		err := c.Object(systemd, tree).CallWithContext(waiting, "org.freedesktop.DBus.Peer.Ping", 0).Err
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// userBus is the address of the user's bus. Where it is not known, no program is started that would make one
// (autolaunch).
func userBus(env func(string) string, uid int) string {
	if a := env("DBUS_SESSION_BUS_ADDRESS"); a != "" && !strings.HasPrefix(a, "autolaunch:") {
		return a
	}
	return pathIn(env, uid, "bus")
}

// pathIn is the address of a socket in the user's runtime directory.
func pathIn(env func(string) string, uid int, name string) string {
	dir := env("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = filepath.Join("/run/user", strconv.Itoa(uid))
	}
	return "unix:path=" + dbus.EscapeBusAddressValue(filepath.Join(dir, name))
}

func startScope(ctx context.Context, bus *dbus.Conn, direct bool, name, link string) error {
	object := bus.Object(systemd, tree)
	// Its signals come only to those who ask.
	if err := object.CallWithContext(ctx, manager+".Subscribe", 0).Err; err != nil {
		return fmt.Errorf("subscribing to its signals: %w", err)
	}
	// Its own socket tells everything, and nobody takes rules there.
	if !direct {
		if err := bus.AddMatchSignalContext(ctx, dbus.WithMatchSender(systemd), dbus.WithMatchInterface(manager), dbus.WithMatchMember("JobRemoved")); err != nil {
			return fmt.Errorf("asking for its signals: %w", err)
		}
	}
	signals := make(chan *dbus.Signal, 64)
	bus.Signal(signals)
	var job dbus.ObjectPath
	err := object.CallWithContext(ctx, manager+".StartTransientUnit", 0, name, "fail", []property{
		{"Description", dbus.MakeVariant("Program bound to " + strings.ToValidUTF8(link, "?") + " by multihomectl run")},
		{"PIDs", dbus.MakeVariant([]uint32{uint32(os.Getpid())})}, //nolint:gosec // Not negative.
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
	}, []auxiliary{}).Store(&job)
	if err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", job, context.Cause(ctx))
		case s, open := <-signals:
			if !open {
				return errors.New("the bus has gone")
			}
			// u id, o job, s unit, s result
			if s.Name != manager+".JobRemoved" || len(s.Body) != 4 || s.Body[1] != job {
				continue
			}
			if s.Body[3] != "done" {
				return fmt.Errorf("its job ended with %v", s.Body[3])
			}
			return nil
		}
	}
}
