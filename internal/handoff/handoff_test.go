package handoff_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"multihomed/internal/handoff"
	"multihomed/internal/hookstate"
)

func TestHandOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := handoff.Message{Caller: "NetworkManager", Action: "up", Interface: "wan0"}
	if err := handoff.Send(dir, m); !errors.Is(err, handoff.ErrNobody) {
		t.Errorf("without a daemon: %v", err)
	}
	l, err := handoff.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, handoff.Name))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	// What comes before it is read is not lost.
	if err := handoff.Send(dir, m); err != nil {
		t.Errorf("with a daemon: %v", err)
	}
	raw, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, handoff.Name)})
	if err != nil {
		t.Fatal(err)
	}
	for _, nonsense := range []string{"", "[]", "{", strings.Repeat("x", 100_000), `{"interface":7}`} {
		if _, err := raw.Write([]byte(nonsense)); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	last := handoff.Message{Caller: "NetworkManager", Action: "down", Interface: "wan1"}
	if err := handoff.Send(dir, last); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got []handoff.Message
	err = l.Run(ctx, slog.New(slog.DiscardHandler), func(m handoff.Message) {
		if got = append(got, m); reflect.DeepEqual(m, last) {
			cancel()
		}
	})
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got[0], m) {
		t.Errorf("got %v, %v", got, err)
	}
	// What comes too late to be read is not lost in silence either.
	if err := handoff.Send(dir, m); err != nil {
		t.Fatal(err)
	}
	if left, err := l.Close(); err != nil || !left {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := handoff.Send(dir, m); !errors.Is(err, handoff.ErrNobody) {
		t.Errorf("after the daemon: %v", err)
	}
}

func TestADaemonThatHangsDelaysNobody(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := handoff.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if left, err := l.Close(); err != nil || !left {
			t.Errorf("left: %v, %v", left, err)
		}
	}()
	began := time.Now()
	for n := 0; ; n++ {
		err := handoff.Send(dir, handoff.Message{Interface: "wan0"})
		if errors.Is(err, handoff.ErrBusy) {
			break
		}
		if err != nil || n > 10_000 {
			t.Fatalf("message %d: %v", n, err)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestASocketThatIsLeftIsReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, handoff.Name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := handoff.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := l.Close(); err != nil || left {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := handoff.Send(dir, handoff.Message{Interface: strings.Repeat("x", 2000)}); err == nil {
		t.Error("a message without bound was sent")
	}
}

// Hints are left out where there is no room for them: that something happened
// matters more.
func TestHintsThatAreTooLong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := handoff.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	said := func(domain int) handoff.Message {
		return handoff.Message{Caller: "NetworkManager", Action: "up", Interface: "wan0", Hints: []hookstate.Config{{Interface: "wan0", Index: 7, Domains: []string{strings.Repeat("x", domain)}}}}
	}
	if err := handoff.Send(dir, handoff.Message{Caller: strings.Repeat("x", 64<<10), Hints: said(1).Hints}); err == nil || !strings.Contains(err.Error(), "is the most") {
		t.Errorf("a message without bound: %v", err)
	}
	for _, domain := range []int{64 << 10, 60 << 10} {
		if err := handoff.Send(dir, said(domain)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got []handoff.Message
	err = l.Run(ctx, slog.New(slog.DiscardHandler), func(m handoff.Message) {
		if got = append(got, m); len(got) == 2 {
			cancel()
		}
	})
	without := said(0)
	without.Hints = nil
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got, []handoff.Message{without, said(60 << 10)}) {
		t.Errorf("got %.200v, %v", got, err)
	}
	if left, err := l.Close(); err != nil || left {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestCommand: an order is carried out or refused, and the administrator hears which.
func TestCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	order := handoff.Message{Caller: "multihomectl", Action: "failover test", Interface: "wan0", Failover: handoff.TestFailover}
	if err := handoff.Command(t.Context(), dir, order); !errors.Is(err, handoff.ErrNobody) {
		t.Errorf("without a daemon: %v", err)
	}
	l, err := handoff.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	why := "no other uplink is alive" + strings.Repeat(", and so on", 1000)
	go func() {
		ended <- l.Run(ctx, slog.New(slog.DiscardHandler), func(m handoff.Message) {
			switch {
			case m.Failover != handoff.TestFailover && m.Failover != handoff.ResetFailover:
				m.Drop()
			case m.Interface == "wan0":
				m.Acknowledge()
			default:
				m.Refuse(why)
			}
		})
	}()
	if err := handoff.Command(t.Context(), dir, order); err != nil {
		t.Errorf("carried out: %v", err)
	}
	order.Interface, order.Failover = "wan1", handoff.ResetFailover
	err = handoff.Command(t.Context(), dir, order)
	if refusal, is := errors.AsType[*handoff.RefusedError](err); !is || len(refusal.Why) != 4<<10 || !strings.HasPrefix(why, refusal.Why) {
		t.Errorf("refused: %T, %.200v", err, err)
	}
	// One of a release without orders lets go of it.
	order.Failover = "jump"
	if err := handoff.Command(t.Context(), dir, order); !errors.Is(err, handoff.ErrNobody) {
		t.Errorf("not understood: %v", err)
	}
	// Nobody waits for the answer to a message without one.
	handoff.Message{}.Refuse("no")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := l.Close(); err != nil {
		t.Error(err)
	}
}
