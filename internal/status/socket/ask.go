package socket

import (
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

// Ask asks the daemon of a runtime directory. Without one it fails with ErrNobody; with
// one that hangs, when ctx is done. For whole see [status.Decode].
func Ask(ctx context.Context, runtime string, whole bool) (*status.Status, error) {
	return ask(ctx, runtime, func(data []byte) (*status.Status, error) { return status.Decode(data, whole) })
}

// AskFor is Ask for some links, see [status.Pick].
func AskFor(ctx context.Context, runtime string, w status.Wanted) (*status.Status, error) {
	return ask(ctx, runtime, func(data []byte) (*status.Status, error) { return status.Pick(data, w) })
}

func ask(ctx context.Context, runtime string, decode func([]byte) (*status.Status, error)) (*status.Status, error) {
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
	data, err := io.ReadAll(io.LimitReader(conn, largest))
	if err != nil {
		return nil, fmt.Errorf("asking multihomed: %w", err)
	}
	if len(data) == 0 {
		return nil, errors.New("asking multihomed: it has no answer")
	}
	s, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("reading what multihomed answers: %w", err)
	}
	if s.Schema != status.Schema {
		return nil, fmt.Errorf("multihomed answers in schema %d, this program knows %d", s.Schema, status.Schema)
	}
	return s, nil
}
