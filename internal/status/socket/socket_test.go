package socket_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"multihomed/internal/status"
	"multihomed/internal/status/socket"
)

func serve(t *testing.T, document func(context.Context) ([]byte, error)) string {
	t.Helper()
	dir := t.TempDir()
	server, err := socket.Listen(dir, slog.New(slog.DiscardHandler), document)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAsk(t *testing.T) {
	if _, err := socket.Ask(t.Context(), t.TempDir(), true); !errors.Is(err, socket.ErrNobody) {
		t.Errorf("of nobody: %v", err)
	}
	for name, c := range map[string]struct {
		document string
		sound    bool
	}{
		"a status": {`{"schema":1,"ok":true}`, true}, "of another schema": {`{"schema":2}`, false},
		"nothing": {"", false}, "no JSON": {"hello", false}, "a part": {`{"schema":1`, false},
	} {
		dir := serve(t, func(context.Context) ([]byte, error) { return []byte(c.document), nil })
		s, err := socket.Ask(t.Context(), dir, true)
		if (err == nil) != c.sound || c.sound && !s.OK || errors.Is(err, socket.ErrNobody) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
		info, err := os.Stat(filepath.Join(dir, socket.Name))
		if err != nil || info.Mode().Perm() != 0o666 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
}

// TestOneWhoHangs: who asks does not wait longer than he wants to.
func TestOneWhoHangs(t *testing.T) {
	dir := serve(t, func(ctx context.Context) ([]byte, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	// The server's own bound would end it without this error.
	if _, err := socket.Ask(ctx, dir, true); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// TestClientsWhoDoNotRead: they are served from one document, and only for a while; who
// talks is not listened to.
func TestClientsWhoDoNotRead(t *testing.T) {
	document, err := json.Marshal(status.Status{Schema: status.Schema, OK: true, Unread: []string{string(bytes.Repeat([]byte("x"), 4<<20))}})
	if err != nil {
		t.Fatal(err)
	}
	dir := serve(t, func(context.Context) ([]byte, error) { return document, nil })
	path := filepath.Join(dir, socket.Name)
	for range 40 {
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
			t.Error(err)
		}
	}
	if s, err := socket.Ask(t.Context(), dir, true); err != nil || !s.OK {
		t.Errorf("while others do not read: %v", err)
	}
}

// TestProducer: an answer is begun after the question, many share one, and many questions
// cost no more than a part of the time.
func TestProducer(t *testing.T) {
	var state, made atomic.Int64
	const takes = 5 * time.Millisecond
	p := socket.NewProducer(func(context.Context) ([]byte, error) {
		made.Add(1)
		now := state.Load()
		<-time.After(takes)
		return []byte{byte(now)}, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	began := time.Now()
	var clients sync.WaitGroup
	for range 50 {
		clients.Go(func() {
			for range 4 {
				want := state.Add(1)
				if got, err := p.Document(ctx); err != nil || int64(got[0]) < want && want < 256 && state.Load() < 256 {
					t.Errorf("got %v, %v, want at least %d", got, err, want)
				}
			}
		})
	}
	clients.Wait()
	if most := int64(time.Since(began)/(10*takes)) + 1; made.Load() > most {
		t.Errorf("%d documents in %v", made.Load(), time.Since(began))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := p.Document(ctx); err == nil {
		t.Error("an answer from nobody")
	}
}

// TestDecode: objects of a link come where one of them is not as it must be.
func TestDecode(t *testing.T) {
	object := func(state string) []status.Object {
		return []status.Object{{Kind: "rule", State: status.State(state), Text: "10000: from all"}}
	}
	sound, bad := status.Count{Planned: 1, Present: 1}, status.Count{Planned: 1}
	data, err := json.Marshal(status.Status{Schema: 1, Links: []status.Link{
		{Interface: "wan0", InForce: sound, Objects: object("in force")},
		{Interface: "wan1", InForce: bad, Objects: object("missing")},
		{Interface: "wan2", InForce: sound, Objects: object("yields")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for whole, want := range map[bool][]int{true: {1, 1, 1}, false: {0, 1, 1}} {
		s, err := status.Decode(data, whole)
		if err != nil || len(s.Links) != len(want) {
			t.Fatalf("%+v, %v", s, err)
		}
		for i, n := range want {
			if len(s.Links[i].Objects) != n {
				t.Errorf("whole %t: %s has the objects %+v", whole, s.Links[i].Interface, s.Links[i].Objects)
			}
		}
	}
}
