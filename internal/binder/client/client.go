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
var ErrAway = errors.New("multihomed-binder cannot be reached")

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
	note, _, err = insist(ctx, path, request, cgroup, 0)
	return note, err
}

// Change writes a link's servers into the DNS map that attached programs read. The helper takes it of root and the daemon.
//
// Errors: as Bind.
func Change(ctx context.Context, path string, servers wire.DNS, dns *os.File) error {
	_, _, err := insist(ctx, path, wire.EncodeChange(nil, servers), dns, 0)
	return err
}

// insist asks until the helper is not busy. It passes a file, nil for none, and returns at most so many.
func insist(ctx context.Context, path string, request []byte, passed *os.File, most int) (note string, got []*os.File, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		answer, got, err := ask(ctx, path, request, passed, most)
		switch {
		case err != nil:
			return "", nil, errors.Join(fmt.Errorf("asking multihomed-binder: %w", err), closeAll(got))
		case answer.Code == wire.Bound:
			return answer.Text, got, nil
		case answer.Code != wire.Busy:
			return "", nil, errors.Join(Refusal{answer}, closeAll(got))
		}
		pause := time.NewTimer(between)
		select {
		case <-ctx.Done():
			pause.Stop()
			return "", nil, errors.Join(Refusal{answer}, closeAll(got))
		case <-pause.C:
		}
	}
}

func ask(ctx context.Context, path string, request []byte, passed *os.File, most int) (a wire.Answer, got []*os.File, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EACCES) {
			return a, nil, fmt.Errorf("%w (%w); to fix: systemctl start multihomed-binder.socket", ErrAway, err)
		}
		return a, nil, err
	}
	defer func() { _ = conn.Close() }()
	c, is := conn.(*net.UnixConn)
	if !is {
		return a, nil, errors.New("no unix socket")
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return a, nil, err
	}
	// A helper that is busy answers before it reads, and its answer is there although it has gone.
	if err := send(c, request, passed); err != nil && !errors.Is(err, unix.EPIPE) {
		return a, nil, err
	}
	datagram, got, err := receive(c, most)
	if errors.Is(err, unix.ECONNRESET) {
		// The kernel tells first that the request was not read, and then gives the answer.
		datagram, got, err = receive(c, most)
	}
	if err != nil {
		return a, got, err
	}
	a, err = wire.DecodeAnswer(datagram)
	return a, got, err
}

func send(c *net.UnixConn, request []byte, passed *os.File) error {
	if passed == nil {
		_, err := c.Write(request)
		return err
	}
	// Not Fd, which would have the file block from now on.
	raw, err := passed.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { _, _, failed = c.WriteMsgUnix(request, unix.UnixRights(int(fd)), nil) })
	return errors.Join(err, failed)
}
