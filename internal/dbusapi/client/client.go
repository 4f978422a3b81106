// Package client asks the daemon on the system bus.
package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/escape"
)

// ErrNobody says that there is no bus, or that nobody has the name on it.
var ErrNobody = errors.New("nobody answers for multihomed on the system bus")

// A Client is a connection to the bus on which the daemon has its name.
type Client struct {
	conn    *dbus.Conn
	manager dbus.BusObject
}

// dialTime bounds the way to the bus, and the question who has the name.
const dialTime = 500 * time.Millisecond

// Open connects to the system bus. If nobody has the name there, it fails with ErrNobody.
func Open(ctx context.Context) (*Client, error) {
	// The connection closes with its context, which is the only bound of the authentication.
	living, end := context.WithCancel(ctx)
	timer := time.AfterFunc(dialTime, end)
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(living))
	if err != nil {
		end()
		return nil, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	context.AfterFunc(conn.Context(), end)
	var owned bool
	err = conn.BusObject().CallWithContext(living, "org.freedesktop.DBus.NameHasOwner", 0, dbusapi.Name).Store(&owned)
	if isLate := !timer.Stop(); err != nil || !owned || isLate {
		return nil, errors.Join(ErrNobody, err, conn.Close())
	}
	return &Client{conn: conn, manager: conn.Object(dbusapi.Name, dbusapi.Path)}, nil
}

// Close ends the connection.
func (c *Client) Close() { _ = c.conn.Close() }

// Works checks that the daemon works in a place: one of another network namespace or runtime directory may have
// the name, and then nobody answers here.
func (c *Client) Works(ctx context.Context, in dbusapi.Place) error {
	get := func(name string) *dbus.Call {
		return c.manager.GoWithContext(ctx, dbusapi.Properties+".Get", 0, make(chan *dbus.Call, 1), dbusapi.ManagerInterface, name)
	}
	directory, namespace := get("RuntimeDirectory"), get("NetworkNamespace")
	var is dbusapi.Place
	for _, p := range []struct {
		call *dbus.Call
		to   any
	}{{directory, &is.RuntimeDirectory}, {namespace, &is.NetworkNamespace}} {
		var v dbus.Variant
		select {
		case <-p.call.Done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := p.call.Store(&v); err != nil {
			if failure, known := refusal(err).(*dbusapi.Error); known && failure.Name == dbusapi.UnknownProperty { //nolint:errorlint // refusal returns it bare
				return errors.New("the running multihomed has another version; to fix: systemctl restart multihomed")
			}
			return refusal(err)
		}
		if err := v.Store(p.to); err != nil {
			return fmt.Errorf("asking multihomed on the system bus where it works: %w", err)
		}
	}
	in.RuntimeDirectory = escape.Text(in.RuntimeDirectory)
	if is != in {
		return fmt.Errorf("%w: the one there works in %s of network namespace %d", ErrNobody, is.RuntimeDirectory, is.NetworkNamespace)
	}
	return nil
}

// Describe returns the document of the status.
func (c *Client) Describe(ctx context.Context) ([]byte, error) {
	var text string
	if err := c.manager.CallWithContext(ctx, dbusapi.ManagerInterface+".Describe", 0, map[string]dbus.Variant{}).Store(&text); err != nil {
		return nil, refusal(err)
	}
	return []byte(text), nil
}

// Order has the daemon do something, for which polkit may ask the user. It returns the sentence of
// the daemon, if the method has one. An error is a [dbusapi.Error] if the daemon refuses.
func (c *Client) Order(ctx context.Context, method string, args ...any) (string, error) {
	// BusObject.Call drops the flag.
	m := &dbus.Message{
		Type: dbus.TypeMethodCall, Flags: dbus.FlagAllowInteractiveAuthorization | dbus.FlagNoAutoStart, Body: args,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(dbusapi.Name), dbus.FieldPath: dbus.MakeVariant(dbusapi.Path),
			dbus.FieldInterface: dbus.MakeVariant(dbusapi.ManagerInterface), dbus.FieldMember: dbus.MakeVariant(method),
		},
	}
	if len(args) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	call := c.conn.SendWithContext(ctx, m, make(chan *dbus.Call, 1))
	select {
	case <-call.Done:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if call.Err != nil {
		return "", refusal(call.Err)
	}
	if len(call.Body) == 0 {
		return "", nil
	}
	text, _ := call.Body[0].(string)
	return text, nil
}

// refusal is an error of the daemon as a value.
func refusal(err error) error {
	failure, is := errors.AsType[dbus.Error](err)
	if !is {
		return fmt.Errorf("asking multihomed on the system bus: %w", err)
	}
	text := failure.Name
	if len(failure.Body) > 0 {
		if first, isText := failure.Body[0].(string); isText {
			text = first
		}
	}
	if failure.Name == "org.freedesktop.DBus.Error.ServiceUnknown" {
		return fmt.Errorf("%w: %s", ErrNobody, text)
	}
	return &dbusapi.Error{Name: failure.Name, Text: text}
}
