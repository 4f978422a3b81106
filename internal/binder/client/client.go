// Package client asks multihomed-binder to bind a cgroup to a link, and to change a link's DNS servers.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/binder/wire"
)

// DefaultPath is where multihomed-binder.socket listens.
const DefaultPath = "/run/multihomed-binder/socket"

// ErrAway says that no helper can be reached: another way of binding may work.
var ErrAway = errors.New("multihomed-binder cannot be reached; to fix: systemctl start multihomed-binder.socket")

// ErrUnable says that the helper or the kernel cannot bind cgroups: another way may work.
var ErrUnable = errors.New("multihomed-binder cannot bind cgroups")

// A Refusal is the helper's answer that it did not bind the cgroup.
type Refusal struct{ wire.Answer }

// Error is the helper's reason.
func (r Refusal) Error() string { return r.Text }

// Is reports whether another way of binding may work.
func (r Refusal) Is(target error) bool { return target == ErrUnable && r.Code == wire.Unable }

const (
	// patience is how long the helper may take: more than it allows itself, and systemd for its start.
	patience = 20 * time.Second
	// between is the pause between attempts while the helper is busy.
	between = 50 * time.Millisecond
)

// Bind binds a cgroup, an open directory, to a link. The note says what the binding lacks; it is usually empty.
//
// Errors: [ErrAway], [Refusal].
func Bind(ctx context.Context, path, link string, cgroup *os.File) (note string, err error) {
	request, err := wire.EncodeRequest(nil, link)
	if err != nil {
		return "", err
	}
	return insist(ctx, path, request, cgroup)
}

// Change writes a link's servers into the DNS map that attached programs read. The helper takes it of root and the daemon.
//
// Errors: as Bind.
func Change(ctx context.Context, path string, servers wire.DNS, dns *os.File) error {
	_, err := insist(ctx, path, wire.EncodeChange(nil, servers), dns)
	return err
}

// insist asks until the helper is not busy.
func insist(ctx context.Context, path string, request []byte, passed *os.File) (note string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		answer, err := ask(ctx, path, request, passed)
		switch {
		case err != nil:
			return "", fmt.Errorf("asking multihomed-binder: %w", err)
		case answer.Code == wire.Bound:
			return answer.Text, nil
		case answer.Code != wire.Busy:
			return "", Refusal{answer}
		}
		pause := time.NewTimer(between)
		select {
		case <-ctx.Done():
			pause.Stop()
			return "", Refusal{answer}
		case <-pause.C:
		}
	}
}

func ask(ctx context.Context, path string, request []byte, passed *os.File) (wire.Answer, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EACCES) {
			return wire.Answer{}, fmt.Errorf("%w (%w)", ErrAway, err)
		}
		return wire.Answer{}, err
	}
	defer func() { _ = conn.Close() }()
	c, is := conn.(*net.UnixConn)
	if !is {
		return wire.Answer{}, errors.New("no unix socket")
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return wire.Answer{}, err
	}
	// Not Fd, which would have the file block from now on.
	raw, err := passed.SyscallConn()
	if err != nil {
		return wire.Answer{}, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { _, _, failed = c.WriteMsgUnix(request, unix.UnixRights(int(fd)), nil) })
	// A helper that is busy answers before it reads, and its answer is there although it has gone.
	if err = errors.Join(err, failed); err != nil && !errors.Is(err, unix.EPIPE) {
		return wire.Answer{}, err
	}
	b := make([]byte, wire.MaxAnswer+1)
	n, err := c.Read(b)
	if errors.Is(err, unix.ECONNRESET) {
		// The kernel tells first that the request was not read, and then gives the answer.
		n, err = c.Read(b)
	}
	if err != nil {
		return wire.Answer{}, err
	}
	return wire.DecodeAnswer(b[:n])
}
