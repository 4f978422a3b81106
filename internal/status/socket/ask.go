package socket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/status"
)

// largest bounds what a client takes from a daemon, in bytes.
const largest = 256 << 20

// ErrNobody says that no daemon answers on the socket.
var ErrNobody = errors.New("nobody serves the status")

// ErrUnanswered says that the daemon took the question and did not answer, for example because it ended.
var ErrUnanswered = errors.New("asking multihomed: it did not answer")

// Ask asks the daemon of a runtime directory. Without one it fails with ErrNobody; with
// one that hangs, when ctx is done. For whole see [status.Decode].
func Ask(ctx context.Context, runtime string, whole bool) (*status.Status, error) {
	reply, err := Fetch(ctx, runtime)
	if err != nil {
		return nil, err
	}
	return reply.Decode(whole)
}

// A Reply is what the daemon answered.
type Reply []byte

// Decode reads the answer; for whole see [status.Decode].
func (r Reply) Decode(whole bool) (*status.Status, error) { return checked(status.Decode(r, whole)) }

// Pick reads some links of the answer, see [status.Pick].
func (r Reply) Pick(w status.Wanted) (*status.Status, error) { return checked(status.Pick(r, w)) }

func checked(s *status.Status, err error) (*status.Status, error) {
	if err != nil {
		return nil, fmt.Errorf("reading what multihomed answers: %w", err)
	}
	if s.Schema != status.Schema {
		return nil, fmt.Errorf("multihomed answers in schema %d, this program knows %d", s.Schema, status.Schema)
	}
	return s, nil
}

// usual is how long most answers are at most, in bytes.
const usual = 64 << 10

// Fetch is Ask for those who read the answer later.
func Fetch(ctx context.Context, runtime string) (Reply, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(runtime, Name))
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		return nil, ErrNobody
	case err != nil:
		return nil, fmt.Errorf("asking multihomed: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	data := bytes.NewBuffer(make([]byte, 0, usual))
	_, err = data.ReadFrom(io.LimitReader(conn, largest))
	switch {
	case err == nil && data.Len() == 0, errors.Is(err, unix.ECONNRESET): // It ended before it took the question.
		return nil, ErrUnanswered
	case err != nil:
		return nil, fmt.Errorf("asking multihomed: %w", err)
	}
	return data.Bytes(), nil
}
