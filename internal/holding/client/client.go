// Package client is how multihomed-binder asks the daemon: it implements the helper's [binder.Bindings].
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/binder"
	"multihomed/internal/cgroupbpf"
	"multihomed/internal/holding/wire"
)

// A Daemon is asked on its socket.
type Daemon struct {
	// Path is that of the socket.
	Path string
	// Trusted are users who may bind whatever the group is, beside root: the daemon's.
	Trusted []uint32
}

var _ binder.Bindings = Daemon{}

// Allowed refuses callers that are not in the group which the configuration names.
func (d Daemon) Allowed(ctx context.Context, p binder.Peer) error {
	if p.UID == 0 || slices.Contains(d.Trusted, p.UID) {
		return nil
	}
	a, given, err := d.ask(ctx, wire.Request{Op: wire.Policy}, nil)
	if err != nil {
		return err
	}
	drop(given)
	switch g := a.Group; {
	case g.GID == nil:
		return fmt.Errorf("only root may use multihomectl run, because there is no group %q; to fix: make it (groupadd), or name another one as [run] group in multihomed.toml", g.Name)
	case p.GID != *g.GID && !slices.Contains(p.Groups, *g.GID):
		return fmt.Errorf(`this user may not use multihomectl run, which is for root and the group %[1]s; to fix: sudo usermod -aG %[1]s "$USER", and log in again; or name another group as [run] group in multihomed.toml`, g.Name)
	}
	return nil
}

// Hold asks for what a link's sockets need.
func (d Daemon) Hold(ctx context.Context, link string) (binder.Binding, error) {
	a, given, err := d.ask(ctx, wire.Request{Op: wire.Hold, Link: link}, nil)
	if err != nil {
		return binder.Binding{}, err
	}
	dns := cgroupbpf.DNS(*a.DNS)
	return binder.Binding{
		Mark: cgroupbpf.Mark{Value: a.Value, Mask: a.Mask}, DNS: &dns, Map: given, Note: a.Note,
		Keep: func(ctx context.Context, f *os.File) error {
			_, given, err := d.ask(ctx, wire.Request{Op: wire.Keep, Link: link, DNS: a.DNS}, f)
			drop(given)
			return err
		},
	}, nil
}

func drop(f *os.File) {
	if f != nil {
		_ = f.Close() // Nobody asked for it.
	}
}

// errAway is for the user of multihomectl run, who may not be the administrator.
var errAway = errors.New("multihomed does not run, so that no rule leads to a link; to fix: systemctl start multihomed")

var errDeaf = errors.New("it does not answer this user; to fix: systemd-sysusers multihomed.conf, which makes the user multihomed-binder, and systemctl restart multihomed-binder.socket")

// ask asks one thing. The file that comes with the answer is the caller's.
func (d Daemon) ask(ctx context.Context, r wire.Request, give *os.File) (a wire.Answer, got *os.File, err error) {
	datagram, err := wire.Encode(r)
	if err != nil {
		return a, nil, fmt.Errorf("asking multihomed: %w", err)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unixpacket", d.Path)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		return a, nil, errAway
	case err != nil:
		return a, nil, fmt.Errorf("asking multihomed: %w", err)
	}
	defer func() { _ = conn.Close() }()
	c, is := conn.(*net.UnixConn)
	if !is {
		return a, nil, errors.New("asking multihomed: no unix socket")
	}
	if deadline, has := ctx.Deadline(); has {
		if err := c.SetDeadline(deadline); err != nil {
			return a, nil, fmt.Errorf("asking multihomed: %w", err)
		}
	}
	if err := wire.Send(c, datagram, give); err != nil && !errors.Is(err, unix.EPIPE) {
		return a, nil, fmt.Errorf("asking multihomed: %w", err)
	}
	b, got, err := wire.Receive(c)
	switch {
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, io.EOF):
		err = errDeaf
	case err == nil:
		a, err = wire.DecodeAnswer(b, r.Op)
	}
	switch {
	case err != nil:
		drop(got)
		return wire.Answer{}, nil, fmt.Errorf("asking multihomed: %w", err)
	case a.Error != "":
		drop(got)
		return wire.Answer{}, nil, errors.New(a.Error)
	}
	return a, got, nil
}
